//! Certificates of a test's own: who signs them, who shows them, who believes them.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::sync::Arc;

use pgtenant::cli::demo::throwaway::Options;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SignatureAlgorithm};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::eventually;
use super::gate::{Gate, Setup};
use super::postgres::Shared;

/// A certificate and its key, as PEM.
pub type Pair = (String, String);

/// A certificate authority.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        Self::signing_by(&rcgen::PKCS_ECDSA_P256_SHA256)
    }

    /// What it signs is signed by this algorithm.
    pub fn signing_by(algorithm: &'static SignatureAlgorithm) -> Self {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// For these names or addresses.
    pub fn issue(&self, names: &[&str]) -> Pair {
        // Of the same name as its issuer, OpenSSL would take it for self-signed.
        self.issue_to("server", names)
    }

    /// For this common name, which PostgreSQL takes for a client's.
    pub fn issue_to(&self, common_name: &str, names: &[&str]) -> Pair {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// A client that believes this authority, offers these protocols, and shows this certificate, if any.
    pub fn client(&self, alpn: &[&[u8]], shows: Option<&Pair>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.unwrap().with_root_certificates(roots);
        let mut config = match shows {
            Some((certificate, key)) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config
    }
}

/// A handshake without a word before it.
pub async fn direct(gate: &Gate, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(("127.0.0.1", gate.port())).await?;
    handshake(tcp, config).await
}

/// A handshake on a socket where it may begin.
pub async fn handshake(tcp: TcpStream, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").unwrap();
    tokio::time::timeout(super::PATIENCE, TlsConnector::from(Arc::new(config)).connect(name, tcp))
        .await
        .expect("a handshake in time")
}

/// A gate that shows this certificate.
pub fn with_tls(setup: Setup, (certificate, key): &Pair) -> Setup {
    setup
        .file("server.crt", certificate.as_str())
        .file("server.key", key.as_str())
        .set("listen.tls", "certificate", "\"server.crt\"")
        .set("listen.tls", "key", "\"server.key\"")
}

/// A PostgreSQL that has TLS and takes nothing else over TCP.
pub async fn secured(authority: &Authority, names: &[&str]) -> Shared {
    secured_as(&Options::default(), authority, names).await
}

/// The same of another version.
pub async fn secured_as(options: &Options, authority: &Authority, names: &[&str]) -> Shared {
    let shared = Shared::start(options);
    let (certificate, key) = authority.issue(names);
    for (name, content) in
        [("server.crt", &certificate), ("server.key", &key), ("clients.crt", &authority.pem)]
    {
        give(&shared, name, content);
    }
    let admin = shared.admin("postgres").await;
    admin.batch_execute("ALTER SYSTEM SET ssl = on").await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    eventually("TLS of PostgreSQL", async || {
        let on = admin.query_one("SELECT current_setting('ssl')", &[]).await.unwrap();
        (on.get::<_, &str>(0) == "on").then_some(())
    })
    .await;
    shared
}

/// Puts a file into the data directory, as PostgreSQL's own.
pub fn give(shared: &Shared, name: &str, content: &str) {
    let folder = shared.server.data_dir();
    let owner = std::fs::metadata(&folder).unwrap();
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
}
