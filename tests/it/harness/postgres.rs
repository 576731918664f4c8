//! One PostgreSQL for the whole test binary, and a fresh database for each test.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use pgtenant::cli::demo::throwaway::{Options, Throwaway, find_bin};
use tokio_postgres::NoTls;

use super::gate::Setup;
use super::{org, project};

/// What the proxy signs in with as role `<name>`: `<name>-password`.
pub fn password_of(role: &str) -> String {
    format!("{role}-password")
}

/// The cluster that all tests share.
///
/// Statics are not dropped; its supervisor notices when the process ends.
pub fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| Shared::start(&Options::default()))
}

/// [`shared`], and one of each further version that is there, for tests of every version.
pub fn every_version() -> Vec<&'static Shared> {
    static OTHERS: OnceLock<Vec<Shared>> = OnceLock::new();
    let others = OTHERS.get_or_init(|| {
        let starting: Vec<_> = all_bins()
            .into_iter()
            .skip(1)
            .map(|bin| {
                std::thread::spawn(|| Shared::start(&Options { bin: Some(bin), ..Options::default() }))
            })
            .collect();
        starting.into_iter().map(|server| server.join().unwrap()).collect()
    });
    std::iter::once(shared()).chain(others).collect()
}

/// A cluster with a template for databases. Tests that stop PostgreSQL, or need another version or other settings,
/// start their own.
pub struct Shared {
    pub server: Throwaway,
    template: tokio::sync::OnceCell<()>,
    finished: Arc<Mutex<Vec<String>>>,
}

const TEMPLATE: &str = "it_template";

impl Shared {
    pub fn start(options: &Options) -> Self {
        let server = Throwaway::start(options).unwrap_or_else(|error| panic!("{error}"));
        Self { server, template: tokio::sync::OnceCell::new(), finished: Arc::default() }
    }

    /// A superuser's connection to the cluster.
    pub async fn admin(&self, dbname: &str) -> tokio_postgres::Client {
        connect(&self.server.url(dbname)).await
    }

    /// A fresh database with the SQL interface, tables, policies and rows of [`SCHEMA`].
    pub async fn database(&self) -> Database {
        self.template.get_or_init(|| self.make_template()).await;
        self.create(TEMPLATE).await
    }

    /// A database with nothing in it.
    pub async fn empty_database(&self) -> Database {
        self.template.get_or_init(|| self.make_template()).await; // the roles
        self.create("template0").await
    }

    /// A database that is what another one is, which nobody is connected to.
    pub async fn copy_of(&self, database: &Database) -> Database {
        self.create(&database.name).await
    }

    async fn create(&self, template: &str) -> Database {
        let admin = self.admin("postgres").await;
        let finished = std::mem::take(&mut *self.finished.lock().unwrap());
        for name in finished {
            admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await.unwrap();
        }
        let name = format!("it_{}", random_name());
        admin.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE {template}")).await.unwrap();
        Database {
            url: self.server.url(&name),
            name,
            port: self.server.port(),
            bin: self.server.bin().to_owned(),
            finished: self.finished.clone(),
        }
    }

    async fn make_template(&self) {
        let admin = self.admin("postgres").await;
        for role in ["app", "reports", "plain"] {
            let password = password_of(role);
            admin
                .batch_execute(&format!(
                    "CREATE ROLE {role} LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE PASSWORD '{password}'"
                ))
                .await
                .unwrap();
        }
        admin.batch_execute(&format!("CREATE DATABASE {TEMPLATE}")).await.unwrap();
        install(Setup::new(self.server.port(), TEMPLATE), &self.server.url(TEMPLATE)).await;
        let template = self.admin(TEMPLATE).await;
        template.batch_execute(SCHEMA).await.unwrap();
        template.batch_execute(&seed()).await.unwrap();
    }
}

/// Runs the real `pgtenant install` for the roles that have tenancy.
pub async fn install(setup: Setup, url: &str) {
    let config = setup.write();
    let url = url.to_owned();
    let output = tokio::task::spawn_blocking(move || {
        Command::new(env!("CARGO_BIN_EXE_pgtenant"))
            .args(["install", "--config"])
            .arg(config.path())
            .args(["--database", &url, "--role", "app", "--role", "reports"])
            .output()
            .unwrap()
    });
    let output = output.await.unwrap();
    assert!(output.status.success(), "pgtenant install: {}", String::from_utf8_lossy(&output.stderr));
}

/// A database of one test's own; dropped with the value, or a little later.
pub struct Database {
    pub name: String,
    pub port: u16,
    /// For the superuser.
    pub url: String,
    /// PostgreSQL's programs.
    pub bin: PathBuf,
    finished: Arc<Mutex<Vec<String>>>,
}

impl Database {
    /// A superuser's connection, past the proxy.
    pub async fn admin(&self) -> tokio_postgres::Client {
        connect(&self.url).await
    }

    /// A connection as one of the template's roles, past the proxy.
    pub async fn direct(&self, role: &str) -> tokio_postgres::Client {
        let mut config: tokio_postgres::Config = self.url.parse().unwrap();
        config.user(role).password(password_of(role));
        let (client, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

impl Database {
    /// The same, and everything that PostgreSQL says besides its answers.
    pub async fn direct_and_loud(&self, role: &str) -> (tokio_postgres::Client, Arc<Mutex<String>>) {
        let mut config: tokio_postgres::Config = self.url.parse().unwrap();
        config.user(role).password(password_of(role));
        let (client, mut connection) = config.connect(NoTls).await.unwrap();
        let notices = Arc::new(Mutex::new(String::new()));
        let heard = notices.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                if let tokio_postgres::AsyncMessage::Notice(notice) = message {
                    heard.lock().unwrap().push_str(&format!("{notice:?}"));
                }
            }
        });
        (client, notices)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // The next database() removes it: this place can wait for nothing.
        self.finished.lock().unwrap().push(std::mem::take(&mut self.name));
    }
}

async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// The PostgreSQL in use and those that `tests/postgres-versions.sh` fetched, for tests of every version.
pub fn all_bins() -> Vec<PathBuf> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bins = vec![find_bin(None).unwrap_or_else(|error| panic!("{error}"))];
    let cache = std::env::var_os("PGTENANT_POSTGRES_CACHE").filter(|cache| !cache.is_empty());
    let cache = cache.map_or_else(|| PathBuf::from("/var/tmp/pgtenant-postgres"), PathBuf::from);
    // The folder is in a place where everyone may make one: another user's programs are not run.
    let us = std::env::current_exe().and_then(std::fs::metadata).unwrap().uid();
    let is_ours = std::fs::metadata(&cache).is_ok_and(|folder| [0, us].contains(&folder.uid()));
    let fetched = std::fs::read_dir(&cache).into_iter().flatten().flatten().map(|entry| entry.path());
    // Numbers only: a folder that is still being fetched has another name.
    let is_major =
        |path: &PathBuf| path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.parse::<u32>().is_ok());
    let mut fetched: Vec<_> =
        fetched.filter(|path| is_ours && is_major(path)).map(|path| path.join("bin")).collect();
    fetched.sort();
    bins.extend(fetched);
    bins
}

pub fn random_name() -> String {
    let mut bytes = [0_u8; 8];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Tables as an application has them once the architect has been there, and `notes`, which belong to nobody.
const SCHEMA: &str = "
    CREATE TABLE organizations (id uuid PRIMARY KEY, name text NOT NULL);
    CREATE TABLE projects (
        organization_id uuid NOT NULL DEFAULT pgtenant.organization_id() REFERENCES organizations,
        id uuid NOT NULL,
        PRIMARY KEY (organization_id, id)
    );
    CREATE TABLE items (
        organization_id uuid NOT NULL DEFAULT pgtenant.organization_id(),
        project_id uuid DEFAULT pgtenant.project_id(),
        id bigint GENERATED ALWAYS AS IDENTITY,
        body text,
        counter int NOT NULL DEFAULT 0,
        PRIMARY KEY (organization_id, id),
        FOREIGN KEY (organization_id, project_id) REFERENCES projects
    );
    CREATE TABLE notes (id int PRIMARY KEY, body text);
    GRANT SELECT, INSERT, UPDATE, DELETE ON organizations, projects, items TO app;
    GRANT SELECT ON organizations, projects, items TO reports;
    GRANT SELECT, INSERT, UPDATE, DELETE ON notes TO app, reports, plain;

    ALTER TABLE organizations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    ALTER TABLE projects ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    ALTER TABLE items ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    CREATE POLICY base ON organizations USING (true);
    CREATE POLICY base ON projects USING (true);
    CREATE POLICY base ON items USING (true);
    CREATE POLICY organization ON organizations AS RESTRICTIVE
        USING (id = (SELECT pgtenant.organization_id())) WITH CHECK (id = (SELECT pgtenant.organization_id()));
    CREATE POLICY organization ON projects AS RESTRICTIVE
        USING (organization_id = (SELECT pgtenant.organization_id()))
        WITH CHECK (organization_id = (SELECT pgtenant.organization_id()));
    CREATE POLICY organization ON items AS RESTRICTIVE
        USING (organization_id = (SELECT pgtenant.organization_id()))
        WITH CHECK (organization_id = (SELECT pgtenant.organization_id()));
    -- Without a project in the context: every project of the organization, and rows of none.
    CREATE POLICY project ON items AS RESTRICTIVE
        USING (project_id IS NOT DISTINCT FROM COALESCE((SELECT pgtenant.project_id()), project_id))
        WITH CHECK (project_id IS NOT DISTINCT FROM COALESCE((SELECT pgtenant.project_id()), project_id));
";

/// Rows of each project of each organization.
pub const ROWS_PER_PROJECT: i64 = 25;
/// Rows of each organization: it has two projects.
pub const ROWS_PER_ORGANIZATION: i64 = 2 * ROWS_PER_PROJECT;

/// Four organizations, two projects each; `body` names the organization: `org-1`.
fn seed() -> String {
    let mut sql = String::from("INSERT INTO notes SELECT n, 'note-' || n FROM generate_series(1, 10) n;\n");
    for n in 1..=4 {
        let organization = org(n);
        sql.push_str(&format!("INSERT INTO organizations VALUES ('{organization}', 'org-{n}');\n"));
        for m in 1..=2 {
            let project = project(n, m);
            sql.push_str(&format!(
                "INSERT INTO projects VALUES ('{organization}', '{project}');\n\
                 INSERT INTO items (organization_id, project_id, body)\n    \
                 SELECT '{organization}', '{project}', 'org-{n}' FROM generate_series(1, {ROWS_PER_PROJECT});\n"
            ));
        }
    }
    sql + "ANALYZE;"
}
