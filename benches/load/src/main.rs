//! Clients with a password each: `load MODE PORT USER DATABASE PASSWORDS CLIENTS SECONDS TABLE`.
//!
//! Prints `started` when all are signed in, and at the end transactions per second, the mean and the 99th percentile of
//! their latency in milliseconds. MODE: `select` (a prepared one-row SELECT), `application` (BEGIN; SET LOCAL app.org;
//! the same; COMMIT), `idle` (nothing, until standard input ends). PASSWORDS: a file with lines `organization password`.

use std::error::Error;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt as _;
use tokio_postgres::{Client, Config, NoTls};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

struct Load {
    mode: String,
    config: Config,
    clients: usize,
    seconds: u64,
    table: String,
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, port, user, database, passwords, clients, seconds, table] = arguments.as_slice() else {
        return Err("usage: load MODE PORT USER DATABASE PASSWORDS CLIENTS SECONDS TABLE".into());
    };
    let mut config = Config::new();
    config.host("127.0.0.1").port(port.parse()?).user(user).dbname(database);
    let passwords = std::fs::read_to_string(passwords)?;
    let passwords: Vec<(String, String)> =
        passwords.lines().filter_map(|line| line.split_once(' ')).map(|(a, b)| (a.into(), b.into())).collect();
    let load = Load {
        mode: mode.clone(),
        config,
        clients: clients.parse()?,
        seconds: seconds.parse()?,
        table: table.clone(),
    };
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(load.run(passwords))
}

impl Load {
    async fn run(self, passwords: Vec<(String, String)>) -> Outcome<()> {
        let mut signed_in = Vec::new();
        for (organization, password) in passwords.iter().cycle().take(self.clients) {
            let (client, connection) = self.config.clone().password(password).connect(NoTls).await?;
            tokio::spawn(connection);
            signed_in.push((client, organization.clone()));
        }
        println!("started");
        if self.mode == "idle" {
            tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
            return Ok(());
        }
        let begun = Instant::now();
        let end = begun + Duration::from_secs(self.seconds);
        let tasks: Vec<_> = signed_in
            .into_iter()
            .enumerate()
            .map(|(n, (client, organization))| {
                let (mode, table) = (self.mode.clone(), self.table.clone());
                tokio::spawn(async move { work(&client, &mode, &table, &organization, n as u64, end).await })
            })
            .collect();
        let mut latencies = Vec::new();
        for task in tasks {
            latencies.extend(task.await??);
        }
        let seconds = begun.elapsed().as_secs_f64();
        latencies.sort_unstable();
        let count = latencies.len().max(1);
        let mean = latencies.iter().sum::<Duration>().as_secs_f64() / count as f64;
        let p99 = latencies.get(count * 99 / 100).copied().unwrap_or_default();
        println!("{:.1} {:.4} {:.4}", latencies.len() as f64 / seconds, mean * 1e3, p99.as_secs_f64() * 1e3);
        Ok(())
    }
}

async fn work(
    client: &Client,
    mode: &str,
    table: &str,
    organization: &str,
    seed: u64,
    end: Instant,
) -> Outcome<Vec<Duration>> {
    let select = client.prepare(&format!("SELECT v FROM {table} WHERE id = $1")).await?;
    let set_local = format!("SET LOCAL app.org = '{organization}'");
    let mut latencies = Vec::new();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    loop {
        let begun = Instant::now();
        if begun >= end {
            return Ok(latencies);
        }
        // xorshift: any id will do, whoever owns it.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let id = (state % 100_000) as i32;
        if mode == "application" {
            client.batch_execute("BEGIN").await?;
            client.batch_execute(&set_local).await?;
        }
        client.query_opt(&select, &[&id]).await?;
        if mode == "application" {
            client.batch_execute("COMMIT").await?;
        }
        latencies.push(begun.elapsed());
    }
}
