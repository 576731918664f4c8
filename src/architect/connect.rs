//! The architect's own connections to a database: `postgres://` URLs by `deadpool-postgres`, with TLS by rustls.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod};
use rustls::ClientConfig;
use tokio_postgres::config::SslMode as DriverMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::{Identity, Server, SslMode};
use crate::net::tls;

/// A database that cannot be reached or entered.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to the database: {0}")]
pub struct ConnectError(String);

/// Connects to `url` (libpq's form: `postgres://user:password@host:port/dbname?sslmode=verify-full&sslrootcert=FILE`,
/// or `host=... sslmode=...`).
///
/// # Errors
/// The URL cannot be read, or PostgreSQL cannot be reached or refuses the sign-in.
pub async fn connect(url: &str) -> Result<Object, ConnectError> {
    let (url, tls) = TlsWanted::split_from(url)?;
    let mut config: tokio_postgres::Config =
        url.parse().map_err(|e| ConnectError(format!("the URL cannot be read: {}", causes(&e))))?;
    config.ssl_mode(match tls.mode {
        SslMode::Disable => DriverMode::Disable,
        SslMode::Prefer => DriverMode::Prefer,
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => DriverMode::Require,
    });
    let manager = Manager::from_config(
        config,
        MakeRustlsConnect::new(tls.client_config()?),
        ManagerConfig { recycling_method: RecyclingMethod::Verified },
    );
    let pool = Pool::builder(manager).max_size(1).build().map_err(|e| ConnectError(e.to_string()))?;
    pool.get().await.map_err(|e| match e {
        PoolError::Backend(e) => ConnectError(causes(&e)),
        other => ConnectError(causes(&other)),
    })
}

/// The TLS that a URL asks for. The driver's own grammar knows no roots and no verification.
struct TlsWanted {
    mode: SslMode,
    roots: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl TlsWanted {
    /// Takes `sslmode`, `sslrootcert`, `sslcert` and `sslkey` out of a URL or of `key=value` words.
    fn split_from(url: &str) -> Result<(String, Self), ConnectError> {
        let mut tls = Self { mode: SslMode::Prefer, roots: None, certificate: None, key: None };
        let mut takes = |word: &str| -> Result<bool, ConnectError> {
            match word.split_once('=') {
                Some(("sslmode", mode)) => tls.mode = sslmode(mode)?,
                Some(("sslrootcert", "system")) => {}
                Some(("sslrootcert", file)) => tls.roots = Some(decoded(file)),
                Some(("sslcert", file)) => tls.certificate = Some(decoded(file)),
                Some(("sslkey", file)) => tls.key = Some(decoded(file)),
                _ => return Ok(false),
            }
            Ok(true)
        };
        let mut keep =
            |words: &mut dyn Iterator<Item = &str>, between: &str| -> Result<String, ConnectError> {
                let mut kept = Vec::new();
                for word in words {
                    if !takes(word)? {
                        kept.push(word);
                    }
                }
                Ok(kept.join(between))
            };
        let rest = match url.split_once('?') {
            Some((base, query)) if url.contains("://") => {
                let query = keep(&mut query.split('&'), "&")?;
                if query.is_empty() { base.to_owned() } else { format!("{base}?{query}") }
            }
            _ if url.contains("://") => url.to_owned(),
            _ => keep(&mut url.split(' '), " ")?,
        };
        if matches!((&tls.mode, &tls.roots), (SslMode::VerifyCa, None)) {
            return Err(ConnectError(
                "sslmode=verify-ca needs sslrootcert=FILE; or use verify-full".to_owned(),
            ));
        }
        if tls.certificate.is_some() != tls.key.is_some() {
            return Err(ConnectError("sslcert=FILE and sslkey=FILE go together".to_owned()));
        }
        Ok((rest, tls))
    }

    fn client_config(self) -> Result<ClientConfig, ConnectError> {
        // Where TLS is off, the driver never asks for this.
        let tls = if self.mode == SslMode::Disable { SslMode::Prefer } else { self.mode };
        let identity = self.certificate.zip(self.key).map(|(certificate, key)| Identity { certificate, key });
        let server = Server {
            name: String::new(),
            host: String::new(),
            port: 0,
            tls,
            tls_directly: false,
            ca: self.roots,
            identity,
        };
        match tls::connector(&server) {
            Ok(Some(config)) => Ok(config),
            Ok(None) => Err(ConnectError("no TLS".to_owned())),
            Err(e) => Err(ConnectError(e.to_string())),
        }
    }
}

fn sslmode(text: &str) -> Result<SslMode, ConnectError> {
    match text {
        "disable" => Ok(SslMode::Disable),
        "allow" | "prefer" => Ok(SslMode::Prefer),
        "require" => Ok(SslMode::Require),
        "verify-ca" => Ok(SslMode::VerifyCa),
        "verify-full" => Ok(SslMode::VerifyFull),
        _ => {
            Err(ConnectError("sslmode must be disable, prefer, require, verify-ca or verify-full".to_owned()))
        }
    }
}

/// A path in a URL may be percent-encoded.
fn decoded(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(decoded) if byte == b'%' => {
                bytes.push(decoded);
                rest = &after[2..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// An error and what caused it, in one sentence: the outermost alone says only "db error".
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tls_is_taken_out_of_a_url_and_nothing_else() {
        for (url, rest, mode, roots) in [
            ("postgres://a@b/c", "postgres://a@b/c", SslMode::Prefer, None),
            ("postgres://a@b/c?sslmode=verify-full", "postgres://a@b/c", SslMode::VerifyFull, None),
            (
                "postgres://a@b/c?connect_timeout=3&sslmode=verify-ca&sslrootcert=%2Froot%20x.crt&application_name=x",
                "postgres://a@b/c?connect_timeout=3&application_name=x",
                SslMode::VerifyCa,
                Some("/root x.crt"),
            ),
            ("host=b sslmode=disable user=a", "host=b user=a", SslMode::Disable, None),
            (
                "postgres://a@b/c?sslmode=verify-full&sslrootcert=system",
                "postgres://a@b/c",
                SslMode::VerifyFull,
                None,
            ),
        ] {
            let (kept, tls) = TlsWanted::split_from(url).unwrap();
            assert_eq!((kept.as_str(), tls.mode, tls.roots), (rest, mode, roots.map(PathBuf::from)), "{url}");
        }
        let (kept, tls) = TlsWanted::split_from("postgres://a@b/c?sslcert=a%20b&sslkey=k").unwrap();
        assert_eq!(
            (kept.as_str(), tls.certificate, tls.key),
            ("postgres://a@b/c", Some("a b".into()), Some("k".into()))
        );
        for wrong in [
            "postgres://a@b/c?sslmode=full",
            "postgres://a@b/c?sslmode=verify-ca",
            "postgres://a@b/c?sslcert=c",
            "host=b sslkey=k",
        ] {
            assert!(TlsWanted::split_from(wrong).is_err(), "{wrong}");
        }
    }
}
