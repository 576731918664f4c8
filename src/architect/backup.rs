//! A backup before anything is changed: by `pg_dump`, read back by `pg_restore`.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tokio_postgres::Client;
use tokio_postgres::config::Host;

use super::names::Name;

/// What was written.
#[derive(Debug)]
pub struct Backup {
    /// The file.
    pub file: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Tables whose rows are in it.
    pub tables: usize,
}

/// Dumps a database into a new file in this folder, and reads its table of contents back.
///
/// # Errors
/// One sentence: there is no pg_dump, or it failed, or the file has not as many tables as it should.
pub fn take(url: &str, folder: &Path, version: u32, tables: usize) -> Result<Backup, String> {
    let bin = programs(version)?;
    let stamp =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let file = folder.join(format!("backup-{stamp}.dump"));
    // It has everybody's rows: for its owner alone, before the first of them is in it.
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file);
    made.map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    let mut dump = Command::new(bin.join("pg_dump"));
    let dumped =
        connected(&mut dump, url)?.args(["--format=custom", "--no-password", "--file"]).arg(&file).output();
    succeeded("pg_dump", dumped)?;
    let listed =
        succeeded("pg_restore", Command::new(bin.join("pg_restore")).arg("--list").arg(&file).output())?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let found = text.lines().filter(|line| !line.starts_with(';') && line.contains(" TABLE DATA ")).count();
    if found < tables {
        return Err(format!(
            "the backup {} has the rows of {found} tables instead of {tables}",
            file.display()
        ));
    }
    let bytes = std::fs::metadata(&file).map_err(|error| error.to_string())?.len();
    Ok(Backup { file, bytes, tables: found })
}

/// Restores a backup into a database of its own, counts the rows of these tables there and here, and drops it. Returns how many
/// rows there were.
///
/// # Errors
/// One sentence: it cannot be restored, or has not the same rows (which it has not either where somebody wrote meanwhile).
pub async fn restore_test(
    client: &Client,
    url: &str,
    backup: &Backup,
    version: u32,
    tables: &[Name],
) -> Result<i64, String> {
    let scratch = format!("pgtenant_restore_{}", std::process::id());
    let refused = |error: tokio_postgres::Error| super::connect::causes(&error);
    client.batch_execute(&format!("CREATE DATABASE {scratch} TEMPLATE template0")).await.map_err(refused)?;
    let outcome = restored(client, url, backup, version, tables, &scratch).await;
    client.batch_execute(&format!("DROP DATABASE {scratch} WITH (FORCE)")).await.map_err(refused)?;
    outcome
}

async fn restored(
    client: &Client,
    url: &str,
    backup: &Backup,
    version: u32,
    tables: &[Name],
    scratch: &str,
) -> Result<i64, String> {
    let refused = |error: tokio_postgres::Error| super::connect::causes(&error);
    let mut restore = Command::new(programs(version)?.join("pg_restore"));
    let restore =
        connected(&mut restore, url)?.args(["--exit-on-error", "--no-password", "--dbname", scratch]);
    succeeded("pg_restore", restore.arg(&backup.file).output())?;
    let there = match url.contains("://") {
        true => format!("{url}{}dbname={scratch}", if url.contains('?') { '&' } else { '?' }),
        false => format!("{url} dbname={scratch}"),
    };
    let other = super::connect::connect(&there).await.map_err(|error| error.to_string())?;
    let mut total = 0;
    for table in tables {
        let sql = format!("SELECT count(*) FROM {table}");
        let [was, is] = [
            client.query_one(sql.as_str(), &[]).await.map_err(refused)?.get::<_, i64>(0),
            other.query_one(sql.as_str(), &[]).await.map_err(refused)?.get::<_, i64>(0),
        ];
        if was != is {
            return Err(format!("{table} has {was} rows, and {is} in the backup that was restored"));
        }
        total += is;
    }
    Ok(total)
}

/// Where programs are that can dump this version: at least as new as it.
fn programs(version: u32) -> Result<PathBuf, String> {
    let named = std::env::var_os("PGTENANT_PG_BIN").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut installed: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    installed.sort();
    let all = named.into_iter().chain(std::env::split_paths(&path)).chain(installed.into_iter().rev());
    let is_new_enough =
        |folder: &PathBuf| major(&folder.join("pg_dump")).is_some_and(|major| major >= version);
    all.into_iter().find(is_new_enough).ok_or_else(|| {
        format!("there is no pg_dump of version {version} or newer; install PostgreSQL's client programs, set PGTENANT_PG_BIN, or say --no-backup")
    })
}

fn major(program: &Path) -> Option<u32> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Where to, by the environment: a command line is seen by everyone.
fn connected<'a>(command: &'a mut Command, url: &str) -> Result<&'a mut Command, String> {
    let (plain, query) = url.split_once('?').unwrap_or((url, ""));
    for (key, variable) in [
        ("sslmode", "PGSSLMODE"),
        ("sslrootcert", "PGSSLROOTCERT"),
        ("sslcert", "PGSSLCERT"),
        ("sslkey", "PGSSLKEY"),
    ] {
        if let Some(value) = query.split('&').find_map(|word| word.strip_prefix(key)?.strip_prefix('=')) {
            command.env(variable, value);
        }
    }
    let config: tokio_postgres::Config =
        plain.parse().map_err(|error| format!("the URL cannot be read: {error}"))?;
    let host = config.get_hosts().first().map(|host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string(),
    });
    for (variable, value) in [
        ("PGHOST", host),
        ("PGPORT", config.get_ports().first().map(u16::to_string)),
        ("PGUSER", config.get_user().map(str::to_owned)),
        ("PGDATABASE", config.get_dbname().map(str::to_owned)),
        ("PGPASSWORD", config.get_password().map(|password| String::from_utf8_lossy(password).into_owned())),
    ] {
        match value {
            Some(value) => command.env(variable, value),
            None => command.env_remove(variable),
        };
    }
    Ok(command)
}

fn succeeded(program: &str, output: std::io::Result<Output>) -> Result<Output, String> {
    let output = output.map_err(|error| format!("{program} does not start: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{program} failed: {}", text.trim().replace('\n', "; ")))
}
