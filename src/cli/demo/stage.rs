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

use super::throwaway::{Options, Throwaway};
use super::{Args, DemoError};
use crate::architect::connect::{causes, connect};
use crate::architect::install;
use crate::auth::signing::{Algorithm, SigningKey};
use crate::config::{self, Config};
use crate::server::{Proxy, ServeError, stop_signal};
use crate::tenancy::context::unix_seconds;

/// An organization of the demo's data (`data.sql`).
pub(super) struct Organization {
    /// Last digit of its id.
    pub(super) number: usize,
    /// Its name.
    pub(super) name: &'static str,
    /// Names of its first two projects.
    pub(super) projects: [&'static str; 2],
}

/// The organizations that the demo speaks of.
pub(super) const ORGANIZATIONS: [Organization; 2] = [
    Organization { number: 1, name: "Acme Robotics", projects: ["Arms and grippers", "Warehouse fleet"] },
    Organization { number: 2, name: "Blue Harbor Logistics", projects: ["Sea freight", "Customs"] },
];

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
    _folder: TempDir,
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
        runtime.block_on(fill(&postgres, &config, &progress))?;
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
        progress.finish();
        Ok(Self { postgres, _folder: folder, key, proxy, stop, port, http_port })
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

/// The server lives on loopback for as long as the demo, behind a password all the same.
const APP_PASSWORD: &str = "app-password-of-the-demo";

/// The application's database: interface, schema, data, policies.
async fn fill(postgres: &Throwaway, config: &Config, progress: &Progress) -> Result<(), DemoError> {
    let said = |e: tokio_postgres::Error| DemoError::Other(format!("the demo's database: {}", causes(&e)));
    let connected =
        |url: String| async move { connect(&url).await.map_err(|e| DemoError::Other(e.to_string())) };
    let admin = connected(postgres.url("postgres")).await?;
    let role = format!("CREATE ROLE app LOGIN PASSWORD '{APP_PASSWORD}'");
    admin.batch_execute(&role).await.map_err(said)?;
    admin.batch_execute("CREATE DATABASE helpdesk").await.map_err(said)?;
    let mut client = connected(postgres.url("helpdesk")).await?;
    progress.step("installing the SQL interface");
    let grants = install::Grants { roles: vec!["app".to_owned()], harden: None };
    let installed = install::run(&mut client, &config.context, &grants).await;
    installed.map_err(|e| DemoError::Other(e.to_string()))?;
    progress.step("creating the application's tables");
    client.batch_execute(include_str!("schema.sql")).await.map_err(said)?;
    for step in include_str!("data.sql").split("-- step: ").skip(1) {
        let (name, statement) = step.split_once('\n').unwrap_or((step, ""));
        progress.step(name);
        client.batch_execute(statement).await.map_err(said)?;
    }
    progress.step("turning row level security on");
    client.batch_execute(include_str!("policies.sql")).await.map_err(said)
}

/// A spinner on a terminal, plain lines elsewhere.
struct Progress {
    bar: ProgressBar,
}

impl Progress {
    fn start() -> Self {
        let bar = ProgressBar::new_spinner().with_style(ProgressStyle::default_spinner());
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar }
    }

    fn step(&self, what: &str) {
        if self.bar.is_hidden() {
            // Nobody reads it if standard error is closed.
            let _ = writeln!(std::io::stderr(), "{what}");
        } else {
            self.bar.set_message(what.to_owned());
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
