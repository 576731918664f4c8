//! Runs the cases of a driver and prints a line for each: name, seconds, outcome.

use std::env;
use std::error::Error;
use std::io::Write as _;
use std::pin::Pin;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

pub type Outcome = Result<String, Box<dyn Error + Send + Sync>>;
pub type Case = (&'static str, fn() -> Pin<Box<dyn Future<Output = Outcome>>>);

/// A list of cases from the names of async functions.
#[macro_export]
macro_rules! cases {
    ($($name:ident),* $(,)?) => {{
        const CASES: &[$crate::Case] = &[$((stringify!($name), || Box::pin($name()))),*];
        CASES
    }};
}

pub const ROWS: i32 = 1000;
pub const ERRORS: [&str; 4] = ["INSERT INTO items (id) VALUES (1)", "SELECT 1/0", "SELECT nowhere", "SELEC"];

/// A variable of the environment; empty when it is not set.
pub fn var(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

/// A connection string for everything that the environment names.
pub fn url() -> String {
    let part = |name| var(name);
    format!(
        "postgres://{}:{}@{}:{}/{}?sslmode=disable&application_name={}",
        part("PGUSER"), part("PGPASSWORD"), part("PGHOST"), part("PGPORT"), part("PGDATABASE"), part("PGAPPNAME")
    )
}

/// Owners as the runner expects them.
pub fn owners<T: AsRef<str>>(list: &[T]) -> String {
    let word = |owner: &str| match owner {
        own if own == var("CASES_TENANT") => "own".to_owned(),
        other if other == var("CASES_OTHER") => "other".to_owned(),
        stranger => stranger.to_owned(),
    };
    list.iter().map(|owner| word(owner.as_ref())).collect::<Vec<_>>().join(" ")
}

/// Runs them, again and again if `CASES_UNTIL` says so. `tenant` and `token` need what they are about.
pub async fn run(version: &str, cases: &[Case]) {
    print("version", 0.0, version);
    let until: f64 = var("CASES_UNTIL").parse().unwrap_or(0.0);
    loop {
        for (name, case) in cases {
            let needed = match *name {
                "tenant" => "CASES_TENANT",
                "token" => "CASES_TOKEN",
                _ => "PGHOST",
            };
            if var(needed).is_empty() {
                continue;
            }
            let start = Instant::now();
            let outcome = case().await.unwrap_or_else(|error| failure(&*error));
            print(name, start.elapsed().as_secs_f64(), &outcome);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64());
        if now >= until {
            return;
        }
    }
}

fn failure(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text.chars().take(160).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn print(case: &str, seconds: f64, outcome: &str) {
    let mut out = std::io::stdout().lock();
    // Without a reader there is nobody to tell.
    let _ = writeln!(out, "{case}\t{seconds:.3}\t{}", outcome.replace(['\n', '\t'], " "));
    let _ = out.flush();
}
