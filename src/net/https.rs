//! One GET by HTTPS, of something short, from a server that may be slow or hostile.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CACHE_CONTROL, HOST, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::tls;
use crate::config::JwksUrl;

/// A longer answer is refused unread.
pub const MAX_BODY: usize = 256 * 1024;

/// From the look-up of the name to the last byte.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// What was fetched.
#[derive(Debug)]
pub struct Fetched {
    /// The body.
    pub body: Bytes,
    /// For how long it may be kept (RFC 9111, `max-age`), if the server says so.
    pub max_age: Option<Duration>,
}

/// Why nothing was fetched, in one sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FetchError(String);

/// Fetches. Redirects are not followed: who answers is who was asked.
///
/// # Errors
/// Nothing came within [`TIMEOUT`], or not what was asked for.
pub async fn get(url: &JwksUrl) -> Result<Fetched, FetchError> {
    match tokio::time::timeout(TIMEOUT, fetch(url)).await {
        Ok(fetched) => fetched,
        Err(_) => Err(FetchError(format!("no answer within {TIMEOUT:?}"))),
    }
}

async fn fetch(url: &JwksUrl) -> Result<Fetched, FetchError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| FetchError(format!("{what}: {error}"));
    // Read anew each time: roots are renewed too.
    let config = tls::https(url.ca.as_deref()).map_err(|e| failed("jwks_ca", &e))?;
    let name = ServerName::try_from(url.host.clone()).map_err(|e| failed("its host", &e))?;
    let tcp = TcpStream::connect((url.host.as_str(), url.port)).await;
    let tcp = tcp.map_err(|e| failed("cannot connect", &e))?;
    let connector = TlsConnector::from(std::sync::Arc::new(config));
    let tls = connector.connect(name, tcp).await.map_err(|e| failed("TLS", &e))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(tls)).await.map_err(|e| failed("HTTP", &e))?;
    // Ends with the answer, or with the time.
    let connection = tokio::spawn(connection);
    let _end = AbortOnDrop(connection);
    let authority = url.to_string();
    let authority = authority.trim_start_matches("https://").split('/').next().unwrap_or_default();
    let request = Request::get(url.path.as_str())
        .header(HOST, authority)
        .header(USER_AGENT, concat!("pgtenant/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "application/jwk-set+json, application/json")
        .body(Empty::<Bytes>::new())
        .map_err(|e| failed("HTTP", &e))?;
    let response = sender.send_request(request).await.map_err(|e| failed("HTTP", &e))?;
    match response.status() {
        StatusCode::OK => {}
        status if status.is_redirection() => {
            return Err(FetchError(format!(
                "HTTP {status}: redirects are not followed; name the place itself"
            )));
        }
        status => return Err(FetchError(format!("HTTP {status}"))),
    }
    let control = response.headers().get(CACHE_CONTROL).and_then(|value| value.to_str().ok());
    let max_age = control.and_then(max_age);
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
    let body = body.map_err(|e| FetchError(format!("its body: {e} (at most {MAX_BODY} bytes)")))?;
    Ok(Fetched { body: body.to_bytes(), max_age })
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// `max-age` of a Cache-Control (RFC 9111 section 5.2.2); what must not be kept is old at once.
fn max_age(control: &str) -> Option<Duration> {
    let directives = || control.split(',').map(|directive| directive.trim().to_ascii_lowercase());
    if directives().any(|directive| matches!(directive.as_str(), "no-store" | "no-cache")) {
        return Some(Duration::ZERO);
    }
    directives().find_map(|directive| {
        let seconds = directive.strip_prefix("max-age=")?.trim_matches('"').parse().ok()?;
        Some(Duration::from_secs(seconds))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_it_may_be_kept_is_read() {
        for (control, seconds) in [
            ("public, max-age=300", Some(300)),
            ("Max-Age=\"60\", must-revalidate", Some(60)),
            ("no-store, max-age=300", Some(0)),
            ("public", None),
            ("max-age=-1", None),
            ("s-maxage=9", None),
        ] {
            assert_eq!(max_age(control), seconds.map(Duration::from_secs), "{control}");
        }
    }
}
