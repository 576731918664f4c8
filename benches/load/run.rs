//! Clients of different organizations, each transaction one row by primary key.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use tokio::task::LocalSet;

use crate::connection::{Answer, Connection};
use crate::{Failure, Organization, Target};

/// As many as pgbench is given (`-j 2`).
const THREADS: usize = 2;

/// Options of `run`.
#[derive(clap::Args, Clone)]
pub struct Options {
    #[command(flatten)]
    target: Target,
    /// Has columns organization_id and body, and the key id.
    #[arg(long)]
    table: String,
    /// Clients, of consecutive organizations beginning with --first.
    #[arg(long)]
    clients: usize,
    /// How many of them have a transaction at a time; each is run by one drawn at random.
    #[arg(long)]
    at_once: usize,
    #[arg(long, default_value_t = 0)]
    first: usize,
    #[arg(long)]
    seconds: u64,
    /// The application's own way: BEGIN; SET LOCAL this setting to the organization; the row; COMMIT.
    #[arg(long, value_name = "SETTING")]
    set_local: Option<String>,
    /// How a client asks for its row.
    #[arg(long, value_enum, default_value_t = Way::Prepared)]
    way: Way,
    /// An expression that the query has besides the columns of its row.
    #[arg(long, value_name = "EXPRESSION")]
    also: Option<String>,
    /// Require that each client cannot see the row of another organization.
    #[arg(long)]
    isolated: bool,
}

/// How a client asks for its row.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By a prepared statement.
    Prepared,
    /// By a simple query.
    Simple,
    /// By a prepared statement between BEGIN and COMMIT, which are simple queries.
    Block,
}

#[derive(Default)]
struct Counters {
    transactions: AtomicU64,
    microseconds: AtomicU64,
}

/// A client and whose it is.
struct Client {
    connection: Connection,
    organization: Organization,
    /// What goes ahead of the row, if anything does.
    set_local: Option<String>,
    way: Way,
    /// The query up to the row's number.
    sql: String,
}

pub fn run(options: &Options) -> Result<(), Failure> {
    let organizations = options.target.read_organizations()?;
    let counters = Arc::new(Counters::default());
    let (ready, when_ready) = mpsc::channel();
    let mut threads = Vec::new();
    for index in 0..THREADS.min(options.at_once) {
        let (options, counters, ready) = (options.clone(), counters.clone(), ready.clone());
        let mine: Vec<_> = (index..options.clients)
            .step_by(THREADS.min(options.at_once))
            .map(|i| i + options.first)
            .map(|i| {
                (
                    organizations[i % organizations.len()].clone(),
                    organizations[(i + 1) % organizations.len()].first_row,
                )
            })
            .collect();
        let (go, when) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let outcome = work(&options, index, mine, &counters, &ready, &when);
            // Nobody listens after a failure elsewhere.
            let _ = ready.send(outcome.as_ref().map(drop).map_err(ToString::to_string));
            outcome
        });
        threads.push((thread, go));
    }
    for _ in &threads {
        when_ready.recv()??;
    }
    let start = Instant::now();
    let end = start + Duration::from_secs(options.seconds);
    for (_, go) in &threads {
        go.send(end)?;
    }
    report_progress(start, options.seconds, &counters);
    for (thread, _) in threads {
        thread.join().map_err(|_| "a thread failed")??;
    }
    report(start.elapsed(), &counters);
    Ok(())
}

/// One thread: signs its clients in, waits for the others, and works until the end it is told.
fn work(
    options: &Options,
    index: usize,
    mine: Vec<(Organization, u64)>,
    counters: &Arc<Counters>,
    ready: &mpsc::Sender<Result<(), String>>,
    when: &mpsc::Receiver<Instant>,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut clients = Vec::new();
    for (organization, foreign_row) in mine {
        clients.push(runtime.block_on(Client::open(options, organization, foreign_row))?);
    }
    ready.send(Ok(()))?;
    let end = when.recv()?;
    let clients = Rc::new(RefCell::new(clients));
    let threads = THREADS.min(options.at_once);
    let workers = options.at_once / threads + usize::from(index < options.at_once % threads);
    let local = LocalSet::new();
    let tasks: Vec<_> = (0..workers)
        .map(|number| {
            let random = Random::new(index * options.at_once + number);
            local.spawn_local(transactions(clients.clone(), random, end, counters.clone()))
        })
        .collect();
    local.block_on(&runtime, async {
        for task in tasks {
            task.await.map_err(|_| "a task failed")??;
        }
        Ok(())
    })
}

/// Transaction after transaction, each by a client that has none.
async fn transactions(
    idle: Rc<RefCell<Vec<Client>>>,
    random: Random,
    end: Instant,
    counters: Arc<Counters>,
) -> Result<(), Failure> {
    loop {
        let before = Instant::now();
        if before >= end {
            return Ok(());
        }
        let mut client = {
            let mut idle = idle.borrow_mut();
            let at = random.below(idle.len() as u64) as usize;
            idle.swap_remove(at)
        };
        let Organization { first_row, last_row, .. } = client.organization;
        let answer = client.transaction(first_row + random.below(last_row - first_row + 1)).await?;
        if answer.rows != 1 || !answer.is_own {
            return Err(format!("{} rows instead of the one that is the client's own", answer.rows).into());
        }
        idle.borrow_mut().push(client);
        counters.transactions.fetch_add(1, Ordering::Relaxed);
        counters.microseconds.fetch_add(before.elapsed().as_micros() as u64, Ordering::Relaxed);
    }
}

impl Client {
    async fn open(options: &Options, organization: Organization, foreign_row: u64) -> Result<Self, Failure> {
        let mut connection = Connection::open(&options.target, &organization.password, None).await?;
        let also = options.also.as_ref().map(|also| format!(", {also}")).unwrap_or_default();
        let sql = format!("SELECT organization_id, body{also} FROM {} WHERE id = ", options.table);
        connection.prepare(&format!("{sql}$1::bigint")).await?;
        let set_local =
            options.set_local.as_ref().map(|name| format!("SET LOCAL {name} = '{}'", organization.id));
        let mut client = Self { connection, organization, set_local, way: options.way, sql };
        if options.isolated && client.transaction(foreign_row).await?.rows != 0 {
            return Err("a client sees the row of another organization".into());
        }
        Ok(client)
    }

    async fn transaction(&mut self, row: u64) -> Result<Answer, Failure> {
        let own = &self.organization.id;
        match self.way {
            Way::Prepared if self.set_local.is_none() => return self.connection.row(row, own).await,
            Way::Simple => return self.connection.simple(&format!("{}{row}", self.sql), own).await,
            Way::Prepared | Way::Block => {}
        }
        self.connection.simple("BEGIN", "").await?;
        if let Some(set_local) = &self.set_local {
            self.connection.simple(set_local, "").await?;
        }
        let answer = self.connection.row(row, &self.organization.id).await?;
        self.connection.simple("COMMIT", "").await?;
        Ok(answer)
    }
}

fn report_progress(start: Instant, seconds: u64, counters: &Counters) {
    let mut told = 0;
    let mut last = start;
    for second in 1..=seconds {
        std::thread::sleep((start + Duration::from_secs(second)).saturating_duration_since(Instant::now()));
        let done = counters.transactions.load(Ordering::Relaxed);
        let rate = (done - told) as f64 / last.elapsed().as_secs_f64();
        eprintln!("progress: {:.1} s, {rate:.1} tps", start.elapsed().as_secs_f64());
        (told, last) = (done, Instant::now());
    }
}

fn report(took: Duration, counters: &Counters) {
    let done = counters.transactions.load(Ordering::Relaxed);
    let milliseconds = counters.microseconds.load(Ordering::Relaxed) as f64 / 1e3;
    println!("number of transactions actually processed: {done}");
    println!("latency average = {:.3} ms", milliseconds / done.max(1) as f64);
    println!("tps = {:.6} (without initial connection time)", done as f64 / took.as_secs_f64());
}

/// Marsaglia's xorshift64*: which row and which client, nothing that must not be guessed.
struct Random(Cell<u64>);

impl Random {
    fn new(salt: usize) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seed =
            now.map_or(1, |d| d.as_nanos() as u64) ^ (salt as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(Cell::new(seed | 1))
    }

    fn below(&self, bound: u64) -> u64 {
        let mut x = self.0.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0.set(x);
        (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % bound
    }
}
