//! The stage of the demo: PostgreSQL, the application's database, a configuration, and the proxy on threads of its own.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio_postgres::{Client, NoTls};

use super::story::{self, APP_PASSWORD, COMPANIES, Migrated};
use super::throwaway::{Options, Throwaway};
use super::{Args, DemoError};
use crate::architect::connect::{causes, connect};
use crate::auth::signing::{Algorithm, SigningKey};
use crate::config::{self, Config};
use crate::server::{Proxy, ServeError, stop_signal};
use crate::tenancy::context::unix_seconds;

const ISSUER: &str = "https://login.demo.pgtenant/";

/// The id of an organization.
pub(super) fn organization_id(number: usize) -> String {
    format!("018f6f3e-0000-7000-8000-{number:012}")
}

/// The id of a project of an organization.
pub(super) fn project_id(organization: usize, project: usize) -> String {
    format!("018f6f3e-0000-7000-8000-{:012}", organization * 1_000_000 + project)
}

/// Everything that the demo runs; dropped, all of it goes.
pub(super) struct Stage {
    postgres: Throwaway,
    folder: TempDir,
    migrated: Migrated,
    key: SigningKey,
    proxy: JoinHandle<Result<(), ServeError>>,
    stop: oneshot::Sender<()>,
    port: u16,
    http_port: u16,
}

impl Stage {
    /// Builds it, showing progress.
    pub(super) fn build(args: &Args) -> Result<Self, DemoError> {
        free(args)?;
        let progress = Progress::start();
        progress.step("starting a throwaway PostgreSQL");
        let postgres = Throwaway::start(&Options { bin: args.pg_bin.clone(), settings: tuned() })?;
        let folder = tempfile::Builder::new().prefix("pgtenant-demo-").tempdir()?;
        let key = SigningKey::generate(Algorithm::Es256).map_err(|e| DemoError::Other(e.to_string()))?;
        let config = configuration(folder.path(), &postgres, &key, args)?;
        let runtime = super::runtime()?;
        runtime.block_on(story::one_company(&postgres, &progress))?;
        let tenancy = folder.path().join("tenancy.toml");
        let migrated = runtime.block_on(story::many_companies(&postgres, &config, tenancy, &progress))?;
        progress.step("starting the proxy");
        let (stop, stopped) = oneshot::channel();
        let (told, ports) = mpsc::channel();
        let proxy = std::thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(move || serve(&config, stopped, &told))?;
        let Ok((port, http_port)) = ports.recv() else {
            let outcome = proxy.join().map_err(|_| DemoError::Other("the proxy ended".to_owned()))?;
            let sentence =
                outcome.err().map_or_else(|| "the proxy ended".to_owned(), |error| error.to_string());
            return Err(DemoError::Other(format!("{sentence}; choose others with --port and --http")));
        };
        let stage = Self { postgres, folder, migrated, key, proxy, stop, port, http_port };
        runtime.block_on(stage.fill(&progress))?;
        progress.finish();
        Ok(stage)
    }

    /// The other companies come: through the proxy, by the statements that the application had when it was for one.
    async fn fill(&self, progress: &Progress) -> Result<(), DemoError> {
        for company in &COMPANIES[1..] {
            for project in std::iter::once(None).chain((1..=company.projects.len()).map(Some)) {
                let client = self.sign_in(&self.token(company.number, project, 600)?).await;
                let client = client.map_err(|error| DemoError::Other(causes(&error)))?;
                story::import(&client, company, project, progress).await?;
            }
        }
        let admin = connect(&self.postgres_url()).await.map_err(|e| DemoError::Other(e.to_string()))?;
        admin.batch_execute("ANALYZE").await.map_err(|error| DemoError::Other(causes(&error)))
    }

    /// Signs in with a token as the password.
    pub(super) async fn sign_in(&self, token: &str) -> Result<Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user("app").dbname("helpdesk").password(token);
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// What the architect did.
    pub(super) fn migrated(&self) -> &Migrated {
        &self.migrated
    }

    /// Where its files are, as long as the demo runs.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The proxy's port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The port of `/metrics`.
    pub(super) fn http_port(&self) -> u16 {
        self.http_port
    }

    /// PostgreSQL itself, for comparing what the proxy shows with what is there.
    pub(super) fn postgres_url(&self) -> String {
        self.postgres.url("helpdesk")
    }

    /// A token for an organization and one of its projects; `expires_in` in seconds, negative for one that has expired.
    pub(super) fn token(
        &self,
        organization: usize,
        project: Option<usize>,
        expires_in: i64,
    ) -> Result<String, DemoError> {
        let now = unix_seconds(SystemTime::now());
        let mut claims = json!({
            "iss": ISSUER,
            "aud": "pgtenant",
            "sub": "ada@example.com",
            "iat": now,
            "exp": now.saturating_add_signed(expires_in),
            "org_id": organization_id(organization),
            "roles": ["agent"],
        });
        if let Some(project) = project {
            claims["project_id"] = json!(project_id(organization, project));
        }
        self.key.sign(&claims).map_err(|e| DemoError::Other(e.to_string()))
    }

    /// Waits until a signal has stopped the proxy.
    pub(super) fn wait(self) -> Result<(), DemoError> {
        let _keep_running = self.stop;
        ended(self.proxy)
    }

    /// Stops the proxy, and PostgreSQL with it.
    pub(super) fn end(self) -> Result<(), DemoError> {
        // Its receiver is gone only when the proxy has ended already.
        let _ = self.stop.send(());
        ended(self.proxy)
    }
}

/// Told before anything is built: whether the proxy will have its ports.
fn free(args: &Args) -> Result<(), DemoError> {
    for port in [args.port, args.http] {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        std::net::TcpListener::bind(address).map_err(|error| {
            DemoError::Other(format!(
                "cannot listen on {address}: {error}; choose others with --port and --http"
            ))
        })?;
    }
    Ok(())
}

fn ended(proxy: JoinHandle<Result<(), ServeError>>) -> Result<(), DemoError> {
    let outcome = proxy.join().map_err(|_| DemoError::Other("the proxy failed".to_owned()))?;
    outcome.map_err(|error| DemoError::Other(error.to_string()))
}

/// The proxy's thread: until it is told to stop or gets a signal.
fn serve(
    config: &Config,
    stopped: oneshot::Receiver<()>,
    told: &mpsc::Sender<(u16, u16)>,
) -> Result<(), ServeError> {
    let runtime = super::runtime()?;
    runtime.block_on(async {
        let signal = stop_signal()?;
        let proxy = Proxy::bind(config).await?;
        let port = proxy.addresses().first().map_or(0, SocketAddr::port);
        let http_port = proxy.http_address().map_or(0, |address| address.port());
        // Who asked is waiting for it.
        let _ = told.send((port, http_port));
        proxy
            .run(async {
                tokio::select! {
                    () = signal => {}
                    _ = stopped => {}
                }
            })
            .await
    })
}

/// Enough memory for the demo's data.
fn tuned() -> Vec<(String, String)> {
    vec![("shared_buffers".to_owned(), "128MB".to_owned())]
}

/// A real configuration, in files, as a user would write it.
fn configuration(
    folder: &Path,
    postgres: &Throwaway,
    key: &SigningKey,
    args: &Args,
) -> Result<Config, DemoError> {
    let mut seal_key = [0; 32];
    aws_lc_rs::rand::fill(&mut seal_key).map_err(|_| DemoError::Other("no random bytes".to_owned()))?;
    let seal_key = base64::engine::general_purpose::STANDARD.encode(seal_key);
    for (name, content) in [
        ("seal.key", seal_key),
        ("issuer.jwks.json", key.public_jwks()),
        ("app.password", APP_PASSWORD.to_owned()),
    ] {
        std::fs::write(folder.join(name), content)?;
    }
    let text = format!(
        r#"
[listen]
tcp = ["127.0.0.1:{}"]
[admin]
http = "127.0.0.1:{}"
[servers.main]
host = "127.0.0.1"
port = {}
[databases.helpdesk]
server = "main"
pool.size = 10
[roles.app]
sign_in = ["jwt"]
tenancy = "required"
server_password = {{ file = "app.password" }}
[[jwt.issuers]]
issuer = "{ISSUER}"
audience = ["pgtenant"]
algorithms = ["ES256"]
jwks_file = "issuer.jwks.json"
[context]
seal_key = {{ file = "seal.key" }}
"#,
        args.port,
        args.http,
        postgres.port()
    );
    let file = folder.join("pgtenant.toml");
    std::fs::write(&file, text)?;
    config::load(&file).map_err(|mistakes| DemoError::Other(mistakes.to_string()))
}

/// A spinner on a terminal, plain lines elsewhere.
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub(super) fn start() -> Self {
        let bar = ProgressBar::new_spinner().with_style(ProgressStyle::default_spinner());
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar }
    }

    /// Something begins.
    pub(super) fn step(&self, what: &str) {
        if self.bar.is_hidden() {
            // Nobody reads it if standard error is closed.
            let _ = writeln!(std::io::stderr(), "{what}");
        } else {
            self.bar.set_message(what.to_owned());
        }
    }

    /// What passes by: only for who looks on.
    pub(super) fn passes(&self, what: &str) {
        if !self.bar.is_hidden() {
            self.bar.set_message(what.to_owned());
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
