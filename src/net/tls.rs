//! TLS on both sides with rustls and one crypto provider: what clients are shown, what servers must show.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::end_point::end_point;
use super::watched::Watched;
use crate::config::{Identity, ListenTls, Server, SslMode};

/// What the protocol is called in ALPN (RFC 7301; registered with IANA).
pub const ALPN: &[u8] = b"postgresql";

/// A certificate, key or bundle that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", .file.display())]
pub struct TlsError {
    file: PathBuf,
    problem: String,
}

/// The one provider of the whole program.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// What clients are shown, and what they must show; made anew when the files change.
///
/// # Errors
/// See [`acceptor`].
pub fn watched_acceptor(tls: &ListenTls) -> Result<Watched<Shown>, TlsError> {
    let ListenTls { certificate, key, client_ca, .. } = tls.clone();
    let files = [certificate, key].into_iter().chain(client_ca).collect();
    let tls = tls.clone();
    Watched::new(files, move || acceptor(&tls))
}

/// What a server must show, and what it is shown; made anew when the files change. `None` where TLS is never asked for.
///
/// # Errors
/// See [`connector`].
pub fn watched_connector(server: &Server) -> Result<Option<Watched<ClientConfig>>, TlsError> {
    if connector(server)?.is_none() {
        return Ok(None);
    }
    let Server { ca, identity, .. } = server.clone();
    let identity = identity.into_iter().flat_map(|identity| [identity.certificate, identity.key]);
    let (files, server) = (ca.into_iter().chain(identity).collect(), server.clone());
    let make =
        move || connector(&server)?.ok_or_else(|| error(Path::new("TLS"), "is never asked for".to_owned()));
    Watched::new(files, make).map(Some)
}

/// What clients are shown, and what they must show.
///
/// # Errors
/// A file that is not PEM, or a key that does not belong to the certificate.
pub fn acceptor(tls: &ListenTls) -> Result<Shown, TlsError> {
    let (chain, key) = (certificates(&tls.certificate)?, private_key(&tls.key)?);
    let end_point = chain.first().and_then(end_point);
    let clients = match &tls.client_ca {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(file) => WebPkiClientVerifier::builder_with_provider(Arc::new(roots(file)?), provider())
            .build()
            .map_err(|e| error(file, format!("no usable root certificate: {e}")))?,
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| error(&tls.certificate, e.to_string()))?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .map_err(|e| does_not_go_with(&tls.key, &tls.certificate, &e))?;
    // libpq and PostgreSQL itself never resume sessions: tickets would be work for nothing, and who comes again with
    // one would not show a certificate again.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // A client that offers other protocols only is refused in the handshake: it means another server.
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Shown { config: Arc::new(config), end_point })
}

/// What clients are shown.
pub struct Shown {
    /// The certificate, and whose certificates are demanded.
    pub config: Arc<ServerConfig>,
    /// What a client's SCRAM exchange may be bound to; none where the certificate has no such hash.
    pub end_point: Option<Vec<u8>>,
}

/// What a server must show, by its `sslmode`; `None` where TLS is never asked for.
///
/// # Errors
/// A bundle that cannot be read, or no roots at all where verification is demanded.
pub fn connector(server: &Server) -> Result<Option<ClientConfig>, TlsError> {
    let verify = match (server.tls, &server.ca) {
        (SslMode::Disable, _) => return Ok(None),
        // As libpq: PostgreSQL has no TLS there, and nobody is in between.
        _ if server.socket_directory().is_some() => return Ok(None),
        (SslMode::Prefer, _) | (SslMode::Require, None) => Verify::Nothing,
        // As libpq: a root file given to `require` is used.
        (SslMode::Require, Some(_)) | (SslMode::VerifyCa, _) => Verify::Chain,
        (SslMode::VerifyFull, _) => Verify::ChainAndName,
    };
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| error(Path::new("TLS"), e.to_string()))?;
    let verifier: Arc<dyn ServerCertVerifier> = match verify {
        Verify::Nothing => Arc::new(Unverified(provider)),
        Verify::Chain => Arc::new(ChainOnly(web_pki(server.ca.as_deref(), provider)?)),
        Verify::ChainAndName => web_pki(server.ca.as_deref(), provider)?,
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match &server.identity {
        None => builder.with_no_client_auth(),
        Some(Identity { certificate, key }) => builder
            .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
            .map_err(|e| does_not_go_with(key, certificate, &e))?,
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Some(config))
}

enum Verify {
    Nothing,
    Chain,
    ChainAndName,
}

/// What an HTTPS server must show: a certificate of its name, from one of the roots in `ca`, or of the system's.
///
/// # Errors
/// A bundle that cannot be read, or no roots at all.
pub fn https(ca: Option<&Path>) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let verifier = web_pki(ca, provider.clone())?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| error(Path::new("TLS"), e.to_string()))?
        .with_webpki_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn web_pki(ca: Option<&Path>, provider: Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    let origin = ca.unwrap_or(Path::new("the system's root certificates")).to_owned();
    let roots = match ca {
        Some(file) => roots(file)?,
        None => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        }
    };
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|e| error(&origin, format!("no usable root certificate: {e}")))
}

fn roots(file: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|e| error(file, e.to_string()))?;
    }
    Ok(roots)
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(file).map_err(|e| error(file, format!("no private key in PEM form: {e}")))
}

fn does_not_go_with(key: &Path, certificate: &Path, why: &rustls::Error) -> TlsError {
    error(key, format!("does not go with {}: {why}", certificate.display()))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|e| error(file, format!("no certificates in PEM form: {e}")))?;
    if certificates.is_empty() {
        return Err(error(file, "holds no certificate".to_owned()));
    }
    Ok(certificates)
}

pub(super) fn error(file: &Path, problem: String) -> TlsError {
    TlsError { file: file.to_owned(), problem }
}

/// `verify-ca`: the chain counts, the name does not.
#[derive(Debug)]
struct ChainOnly(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // webpki checks the chain before the name, so a name error means that the chain held.
        match self.0.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            outcome => outcome,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// `prefer`, and `require` without a root: encrypted against eavesdropping, open to an active attacker, as in libpq.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
