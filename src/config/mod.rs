//! A file becomes a [`Config`] that cannot be wrong: parsed once at the edge, trusted by every floor above.
//!
//! [`load`] reads TOML and reports *all* mistakes at once, each with its key and line. Keys that the contract
//! names but this version does not build yet are mistakes too: nothing is silently ignored.

mod context;
mod document;
mod ids;
mod limits;
mod places;
mod read;
mod secret;
mod size;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use context::{SealKeyError, read_seal_key};
pub use document::{Mistake, Mistakes, parse_duration};
pub use read::{load, parse, parse_with};
pub use secret::Secret;

/// Everything `serve` needs, checked: names that refer to each other exist, secrets are read, files are there.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where clients connect.
    pub listen: Listen,
    /// Address of the HTTP endpoints (`/metrics`, `/livez`, `/readyz`); none means no HTTP.
    pub admin_http: Option<SocketAddr>,
    /// The databases that clients may ask for, by the name they use.
    pub databases: BTreeMap<String, Arc<Database>>,
    /// The users that clients may name, which are also the roles on the server.
    pub roles: BTreeMap<String, Arc<Role>>,
    /// Who may issue tokens, and how their tokens are read.
    pub jwt: Jwt,
    /// A file that says whose tokens do not hold any more.
    pub revoked: Option<PathBuf>,
    /// Where the context is found in a token.
    pub claims: ClaimPaths,
    /// How the context reaches the database.
    pub context: Context,
    /// What organizations may take.
    pub limits: Arc<Limits>,
    /// What every query must stay within; an exact edge of each latency histogram.
    pub budget_latency: Duration,
}

/// Where clients connect and how long they may take to sign in.
#[derive(Debug, Clone)]
pub struct Listen {
    /// TCP addresses; port 0 takes a free one.
    pub tcp: Vec<SocketAddr>,
    /// Directories for Unix sockets, which are named by the port of the first TCP address, or 6432.
    pub unix: Vec<PathBuf>,
    /// Clients beyond this number are refused with 53300.
    pub max_clients: usize,
    /// Bytes that all clients together may have kept beyond their buffers: texts of prepared statements, long messages.
    pub max_kept: usize,
    /// From the first byte to `ReadyForQuery`; slower clients are dropped.
    pub sign_in_timeout: Duration,
    /// How long the answer to the first failed sign-in from an address is held back; each further one twice as long.
    pub failed_sign_in_delay: Duration,
    /// From SIGTERM, when readiness turns off, until nobody is accepted any more.
    pub drain_delay: Duration,
    /// Absent: no TLS is offered to clients.
    pub tls: Option<ListenTls>,
}

/// The certificate shown to clients.
#[derive(Debug, Clone)]
pub struct ListenTls {
    /// PEM file, leaf first.
    pub certificate: PathBuf,
    /// PEM file with the private key of the leaf.
    pub key: PathBuf,
    /// PEM bundle of roots: every client must show a certificate from one of them.
    pub client_ca: Option<PathBuf>,
    /// Refuse clients that do not ask for TLS.
    pub require: bool,
}

/// One PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The name in the configuration, for messages.
    pub name: String,
    /// Name or address, or the directory of a Unix socket, which starts with a slash.
    pub host: String,
    /// TCP port; it is also what the Unix socket is named by.
    pub port: u16,
    /// How much TLS is demanded (libpq's `sslmode`).
    pub tls: SslMode,
    /// Whether the handshake comes first, without a request for it (libpq's `sslnegotiation=direct`; PostgreSQL 17 and later).
    pub tls_directly: bool,
    /// PEM bundle of trusted roots; required for the verify modes unless the system's roots serve.
    pub ca: Option<PathBuf>,
    /// What the proxy shows to PostgreSQL, if that asks for a client's certificate.
    pub identity: Option<Identity>,
}

/// A certificate of ours and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// PEM file, leaf first.
    pub certificate: PathBuf,
    /// PEM file with the private key of the leaf.
    pub key: PathBuf,
}

impl Server {
    /// Where its Unix socket is, if it is reached by one.
    pub fn socket_directory(&self) -> Option<&Path> {
        self.host.starts_with('/').then(|| Path::new(&self.host))
    }
}

/// libpq's `sslmode` (PostgreSQL documentation, 34.19 "SSL Support").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS if the server has it, unverified.
    Prefer,
    /// TLS or nothing; verified as `verify-ca` when a `ca` is given, else unverified.
    Require,
    /// TLS with a certificate from a trusted root.
    VerifyCa,
    /// The same, and the certificate names the host.
    VerifyFull,
}

/// A database as clients see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Database {
    /// The name that clients ask for.
    pub name: String,
    /// Where it is.
    pub server: Arc<Server>,
    /// Its name there.
    pub dbname: String,
    /// How long a client keeps its server.
    pub pool_mode: PoolMode,
    /// How many servers, and for how long.
    pub pool: PoolLimits,
}

/// How long a client keeps its server (PgBouncer's `pool_mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PoolMode {
    /// Until it leaves: everything that PostgreSQL offers works.
    Session,
    /// Until its transaction is over.
    #[default]
    Transaction,
    /// Until its statement is over; transaction blocks are refused.
    Statement,
}

/// Bounds of one pool: the servers of one database and one role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolLimits {
    /// Server connections at most.
    pub size: usize,
    /// Of them, what one organization may hold at once.
    pub per_organization: usize,
    /// Server connections that are kept open even if nobody needs them.
    pub min_idle: usize,
    /// How long a client waits for a server before it gets 53300.
    pub wait_timeout: Duration,
    /// An idle server older than this is closed.
    pub idle_timeout: Duration,
    /// A server is closed at this age, once it is idle; each up to a tenth earlier, so that they do not go together.
    pub max_age: Duration,
}

/// What organizations may take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of every organization that is not named.
    pub usual: OrganizationLimits,
    /// By id.
    pub named: BTreeMap<String, OrganizationLimits>,
}

impl Limits {
    /// What an organization may take.
    pub fn of(&self, organization: &str) -> &OrganizationLimits {
        match self.named.is_empty() {
            true => &self.usual,
            false => self.named.get(organization).unwrap_or(&self.usual),
        }
    }
}

/// What one organization may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrganizationLimits {
    /// Its share of a crowded pool's server time, beside the others'.
    pub weight: u32,
    /// Its clients, of all databases, at most; 0 is any number.
    pub max_clients: u64,
    /// Queries (ReadyForQuery) per second, with a second's worth at once; 0 is any number.
    pub queries_per_second: u64,
    /// How long one of its transactions may have a server; zero is as long as it takes.
    pub transaction_time: Duration,
    /// How long a server may wait for its client within a transaction; zero is as long as it takes.
    pub idle_in_transaction_time: Duration,
}

impl Default for OrganizationLimits {
    fn default() -> Self {
        Self {
            weight: 1,
            max_clients: 0,
            queries_per_second: 0,
            transaction_time: Duration::ZERO,
            idle_in_transaction_time: Duration::ZERO,
        }
    }
}

/// A user that clients may name.
#[derive(Clone, Debug, PartialEq)]
pub struct Role {
    /// Its name, here and on the server.
    pub name: String,
    /// A token as the password is accepted.
    pub sign_in_jwt: bool,
    /// A token by OAUTHBEARER (RFC 7628) is accepted.
    pub sign_in_oauth: bool,
    /// SCRAM-SHA-256 with this password or verifier is accepted.
    pub sign_in_scram: Option<Secret>,
    /// What the role's queries run under.
    pub tenancy: Tenancy,
    /// What the proxy signs in to PostgreSQL with; none for `trust`.
    pub server_password: Option<Secret>,
}

/// Whether a role's queries need a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tenancy {
    /// Nothing runs without a context.
    Required,
    /// With a token its context, without one none: sealed policies then refuse.
    Optional,
    /// Plain pooling: the role is not tenant-scoped.
    None,
}

/// Accepted token issuers.
#[derive(Debug, Clone, PartialEq)]
pub struct Jwt {
    /// At least one when a role signs in by token.
    pub issuers: Vec<Issuer>,
    /// Clock difference forgiven in `exp` and `nbf`.
    pub leeway: Duration,
}

/// One issuer and its keys (RFC 7519 `iss`, `aud`).
#[derive(Debug, Clone, PartialEq)]
pub struct Issuer {
    /// Exact value of `iss`.
    pub issuer: String,
    /// The token's `aud` must contain one of these.
    pub audience: Vec<String>,
    /// Algorithms accepted from this issuer (RFC 7518 names): HS256, RS256, ES256, EdDSA.
    pub algorithms: Vec<String>,
    /// What a client is told to ask for that signs in by OAUTHBEARER and has no token yet.
    pub oauth_scope: String,
    /// Where its keys are.
    pub keys: KeySource,
}

/// Where an issuer's verification keys come from.
#[derive(Debug, Clone, PartialEq)]
pub enum KeySource {
    /// A shared secret for HS256, at least 32 bytes (RFC 7518 section 3.2).
    Secret(Secret),
    /// A PEM file with one public key (SPKI) for RS256, ES256 or EdDSA.
    KeyFile(PathBuf),
    /// A JWK Set file (RFC 7517).
    JwksFile(PathBuf),
    /// A JWK Set that is fetched.
    JwksUrl(JwksUrl),
}

/// Where a JWK Set is fetched from, by HTTPS alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwksUrl {
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Path and query, beginning with a slash.
    pub path: String,
    /// PEM bundle of trusted roots; none means the system's.
    pub ca: Option<PathBuf>,
}

impl std::fmt::Display for JwksUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port, path, .. } = self;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        if *port == 443 {
            write!(f, "https://{host}{path}")
        } else {
            write!(f, "https://{host}:{port}{path}")
        }
    }
}

/// Paths of claims; dots descend into objects.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimPaths {
    /// Required in every token of a tenant-scoped role.
    pub organization: String,
    /// Absent from a token: the whole organization.
    pub project: String,
    /// Who it is.
    pub subject: String,
    /// A string or an array of strings.
    pub roles: String,
}

/// How the context reaches the database.
#[derive(Debug, Clone, PartialEq)]
pub struct Context {
    /// Type of organization and project ids.
    pub id_type: IdType,
    /// The seal's keys, 32 random bytes each; the first one seals, all are installed. Empty only when no role is tenant-scoped.
    pub seal_keys: Vec<Secret>,
    /// The first one's file, if it stands in one: watched, and read anew by [`read_seal_key`].
    pub seal_key_file: Option<PathBuf>,
    /// How long a seal is honoured by the database.
    pub seal_lifetime: Duration,
    /// Further settings that are bound with the context, for policies that read them.
    pub settings: Vec<ContextSetting>,
}

/// A setting that is bound with the context, and that no client may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextSetting {
    /// Its name, in lower case and with a dot in it: PostgreSQL takes any such name (chapter "Customized Options").
    pub name: String,
    /// What it is set to.
    pub value: SettingValue,
}

/// What a setting is set to when a context is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingValue {
    /// This text, whatever the token says.
    Literal(String),
    /// `$organization`
    Organization,
    /// `$project`; empty where the context is a whole organization.
    Project,
    /// `$subject`
    Subject,
    /// `$roles`, as a JSON array.
    Roles,
    /// `$claims`, as a JSON object.
    Claims,
    /// `$claims.path`: a string as it is, anything else as JSON, empty where there is none.
    Claim(String),
}

/// Type of the tenant ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdType {
    /// `uuid`
    Uuid,
    /// `bigint`
    Bigint,
    /// `text`
    Text,
}
