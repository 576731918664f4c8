//! An issuer's HTTPS endpoint, as it should be and as it should not.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::authority::Authority;

/// What the next request gets.
#[derive(Clone)]
pub enum Behaviour {
    /// These bytes, as they are.
    Says(String),
    /// This body with 200.
    Serves(String),
    /// Nothing, for as long as the client waits.
    Hangs,
    /// A header, then a byte now and then.
    Drips,
    /// A body without an end.
    Floods,
}

/// A running endpoint; its task ends with the test's runtime.
pub struct Endpoint {
    pub authority: Authority,
    pub port: u16,
    behaviour: Arc<Mutex<Behaviour>>,
    requests: Arc<AtomicUsize>,
}

impl Endpoint {
    /// With a certificate for these names.
    pub async fn start(names: &[&str], behaviour: Behaviour) -> Self {
        let authority = Authority::new();
        let (certificate, key) = authority.issue(names);
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(pgtenant::net::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let behaviour = Arc::new(Mutex::new(behaviour));
        let requests = Arc::new(AtomicUsize::new(0));
        let endpoint = Self { authority, port, behaviour: behaviour.clone(), requests: requests.clone() };
        tokio::spawn(async move {
            loop {
                let Ok((tcp, _)) = listener.accept().await else { return };
                let (acceptor, behaviour, requests) = (acceptor.clone(), behaviour.clone(), requests.clone());
                tokio::spawn(async move {
                    let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                    let mut request = [0; 4096];
                    let Ok(1..) = tls.read(&mut request).await else { return };
                    requests.fetch_add(1, Ordering::SeqCst);
                    let behaviour = behaviour.lock().unwrap().clone();
                    let _ = behave(&mut tls, behaviour).await;
                    let _ = tls.shutdown().await;
                });
            }
        });
        endpoint
    }

    pub fn url(&self) -> String {
        format!("https://localhost:{}/jwks.json?v=1", self.port)
    }

    pub fn now(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn behave(tls: &mut (impl tokio::io::AsyncWrite + Unpin), behaviour: Behaviour) -> std::io::Result<()> {
    match behaviour {
        Behaviour::Says(text) => tls.write_all(text.as_bytes()).await,
        Behaviour::Serves(body) => {
            let length = body.len();
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\ncache-control: max-age=7200\r\n\r\n");
            tls.write_all((head + &body).as_bytes()).await
        }
        Behaviour::Hangs => {
            std::future::pending::<()>().await;
            Ok(())
        }
        Behaviour::Drips => {
            tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await?;
            loop {
                tls.write_all(b" ").await?;
                tls.flush().await?;
                tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            }
        }
        Behaviour::Floods => {
            tls.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
            let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
            loop {
                tls.write_all(chunk.as_bytes()).await?;
            }
        }
    }
}
