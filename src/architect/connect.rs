//! The architect's own connections to a database: `postgres://` URLs by `deadpool-postgres`, with TLS by rustls.

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod};
use rustls::ClientConfig;
use tokio_postgres::config::SslMode as UrlSslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::{Server, SslMode};
use crate::net::tls;

/// A database that cannot be reached or entered.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to the database: {0}")]
pub struct ConnectError(String);

/// Connects to `url` (libpq's form, `postgres://user:password@host:port/dbname?sslmode=...`).
///
/// # Errors
/// The URL cannot be read, or PostgreSQL cannot be reached or refuses the sign-in.
pub async fn connect(url: &str) -> Result<Object, ConnectError> {
    let config: tokio_postgres::Config =
        url.parse().map_err(|e| ConnectError(format!("the URL cannot be read: {}", causes(&e))))?;
    let manager = Manager::from_config(
        config.clone(),
        MakeRustlsConnect::new(tls_config(&config)?),
        ManagerConfig { recycling_method: RecyclingMethod::Verified },
    );
    let pool = Pool::builder(manager).max_size(1).build().map_err(|e| ConnectError(e.to_string()))?;
    pool.get().await.map_err(|e| match e {
        PoolError::Backend(e) => ConnectError(causes(&e)),
        other => ConnectError(causes(&other)),
    })
}

/// The TLS that a URL asks for: `require` verifies nothing, as in libpq; stricter modes are not in the URL's grammar
/// of the driver, so `sslrootcert` and `verify-full` belong into the proxy's configuration.
fn tls_config(config: &tokio_postgres::Config) -> Result<ClientConfig, ConnectError> {
    let tls = match config.get_ssl_mode() {
        UrlSslMode::Require => SslMode::Require,
        _ => SslMode::Prefer,
    };
    let server = Server { name: String::new(), host: String::new(), port: 0, tls, ca: None };
    match tls::connector(&server) {
        Ok(Some(config)) => Ok((*config).clone()),
        Ok(None) => Err(ConnectError("no TLS".to_owned())),
        Err(e) => Err(ConnectError(e.to_string())),
    }
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
