//! What happens on the stage: a helpdesk for one company, which the architect makes one for many, and the companies that come.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Instant;

use tokio_postgres::Client;

use super::DemoError;
use super::stage::{Progress, organization_id, project_id};
use super::throwaway::Throwaway;
use crate::architect::apply;
use crate::architect::connect::{causes, connect};
use crate::architect::install;
use crate::architect::migrate::{self, Place, Tell, Wanted};
use crate::architect::migration::Step;
use crate::config::Config;

/// A company that uses the helpdesk.
pub(super) struct Company {
    /// Last digit of its organization's id.
    pub(super) number: usize,
    /// Its name.
    pub(super) name: &'static str,
    /// Its desks.
    pub(super) projects: &'static [&'static str],
    /// How many work there.
    agents: usize,
    /// How many write to it.
    customers: usize,
    /// At each desk.
    tickets: usize,
}

/// All of them; the first is the one that the helpdesk was written for.
pub(super) const COMPANIES: [Company; 4] = [
    Company {
        number: 1,
        name: "Acme Robotics",
        projects: &["Arms and grippers", "Warehouse fleet", "Spare parts", "Academy"],
        agents: 60,
        customers: 3000,
        tickets: 6000,
    },
    Company {
        number: 2,
        name: "Blue Harbor Logistics",
        projects: &["Sea freight", "Customs", "Cold chain"],
        agents: 30,
        customers: 1200,
        tickets: 3000,
    },
    Company {
        number: 3,
        name: "Cobalt Clinics",
        projects: &["Front desk", "Laboratory"],
        agents: 20,
        customers: 600,
        tickets: 2000,
    },
    Company {
        number: 4,
        name: "Dune Analytics",
        projects: &["Dashboards", "Pipelines"],
        agents: 10,
        customers: 300,
        tickets: 1000,
    },
];

/// What the architect did.
#[derive(Debug, Clone)]
pub(super) struct Migrated {
    /// Its database and files.
    pub(super) place: Place,
    /// Steps that ran.
    pub(super) steps: usize,
    /// For so long.
    pub(super) seconds: f64,
    /// What it told.
    pub(super) told: Vec<String>,
}

/// The server lives on loopback for as long as the demo, behind a password all the same.
pub(super) const APP_PASSWORD: &str = "app-password-of-the-demo";

fn said(error: tokio_postgres::Error) -> DemoError {
    let hint = error.as_db_error().and_then(|report| report.hint()).map(|hint| format!("; {hint}"));
    DemoError::Other(format!("the demo's database: {}{}", causes(&error), hint.unwrap_or_default()))
}

/// The application as it was: one company, and nothing that says so.
pub(super) async fn one_company(postgres: &Throwaway, progress: &Progress) -> Result<(), DemoError> {
    let connected =
        |url: String| async move { connect(&url).await.map_err(|e| DemoError::Other(e.to_string())) };
    let admin = connected(postgres.url("postgres")).await?;
    admin.batch_execute("CREATE DATABASE helpdesk").await.map_err(said)?;
    let client = connected(postgres.url("helpdesk")).await?;
    progress.step("creating a single-tenant application's tables");
    client.batch_execute(include_str!("schema.sql")).await.map_err(said)?;
    let plans =
        "INSERT INTO plans VALUES ('free', 'Free', 0), ('team', 'Team', 1900), ('scale', 'Scale', 4900)";
    client.batch_execute(plans).await.map_err(said)?;
    let company = &COMPANIES[0];
    import(&client, company, None, progress).await?;
    for number in 1..=company.projects.len() {
        import(&client, company, Some(number), progress).await?;
    }
    client.batch_execute(BEHIND).await.map_err(said)?;
    client.batch_execute("ANALYZE").await.map_err(said)
}

/// What the importer sent had ids; those to come are behind them.
const BEHIND: &str = "
DO $$
DECLARE
    t text;
BEGIN
    FOR t IN SELECT table_name FROM information_schema.columns
             WHERE table_schema = 'public' AND column_name = 'id' AND is_identity = 'YES' LOOP
        EXECUTE format('SELECT setval(pg_get_serial_sequence(%L, ''id''), (SELECT max(id) + 1 FROM %I), false)', t, t);
    END LOOP;
END
$$";

/// Sends the importer's statements for a company, or for one of its desks.
pub(super) async fn import(
    client: &Client,
    company: &Company,
    project: Option<usize>,
    progress: &Progress,
) -> Result<(), DemoError> {
    let wanted = if project.is_some() { "project" } else { "company" };
    let number = project.unwrap_or_default();
    let name = project.map_or("", |number| company.projects[number - 1]);
    let parameters = [
        ("{domain}", format!("org{}.example.com", company.number)),
        ("{agents}", company.agents.to_string()),
        ("{customers}", company.customers.to_string()),
        ("{tickets}", company.tickets.to_string()),
        ("{before}", (company.tickets * number.saturating_sub(1)).to_string()),
        ("{project}", project_id(company.number, number)),
        ("{number}", number.to_string()),
        ("{name}", name.to_owned()),
    ];
    for part in include_str!("data.sql").split("-- for: ").skip(1).filter(|part| part.starts_with(wanted)) {
        for step in part.split("-- step: ").skip(1) {
            let (what, text) = step.split_once('\n').unwrap_or((step, ""));
            let of =
                if name.is_empty() { company.name.to_owned() } else { format!("{}, {name}", company.name) };
            progress.step(&format!("{of}: {what}"));
            let sql = parameters.iter().fold(text.to_owned(), |sql, (name, value)| sql.replace(name, value));
            client.batch_execute(&sql).await.map_err(said)?;
        }
    }
    Ok(())
}

/// What a person would do: have a plan made, say whose the rows are that are there, apply it all the way, install the seal's key,
/// and enter the customers to come.
pub(super) async fn many_companies(
    postgres: &Throwaway,
    config: &Config,
    tenancy: PathBuf,
    progress: &Progress,
) -> Result<Migrated, DemoError> {
    let other = |error: &dyn std::fmt::Display| DemoError::Other(format!("the migration: {error}"));
    let place = Place { database: postgres.url("helpdesk"), tenancy };
    let tell = Listener { progress, told: RefCell::new(Vec::new()) };
    progress.step("planning the migration");
    migrate::plan(&place, false, &tell).await.map_err(|error| other(&error))?;
    let guessed = std::fs::read_to_string(&place.tenancy)?;
    std::fs::write(&place.tenancy, reviewed(&guessed))?;
    migrate::plan(&place, false, &tell).await.map_err(|error| other(&error))?;
    let started = Instant::now();
    progress.step("migrating");
    let wanted = Wanted { backup: false, restore_test: false, cut_over: true };
    let steps = migrate::apply(&place, wanted, &tell).await.map_err(|error| other(&error))?;
    let seconds = started.elapsed().as_secs_f64();
    let mut client = connect(&place.database).await.map_err(|error| other(&error))?;
    progress.step("installing the seal's key");
    let grants = install::Grants { roles: vec!["app".to_owned()], harden: None };
    install::run(&mut client, &config.context, &grants).await.map_err(|error| other(&error))?;
    client.batch_execute(&format!("ALTER ROLE app PASSWORD '{APP_PASSWORD}'")).await.map_err(said)?;
    for company in &COMPANIES[1..] {
        let sql = format!(
            "INSERT INTO organizations (id, name) VALUES ('{}', '{}')",
            organization_id(company.number),
            company.name
        );
        client.batch_execute(&sql).await.map_err(said)?;
    }
    Ok(Migrated { place, steps, seconds, told: tell.told.into_inner() })
}

/// The guess, with what only a person knows: who the one company is, and as whom the proxy signs in.
fn reviewed(guessed: &str) -> String {
    let company = &COMPANIES[0];
    let lines = guessed.lines().map(|line| match line {
        "application = [\"helpdesk_tenant\"]" => "application = [\"app\"]".to_owned(),
        "organization_name = \"Default\"" => format!("organization_name = \"{}\"", company.name),
        // Of [default]; tables have "default" there.
        line if line.starts_with("organization = ") && !line.ends_with("\"default\"") => {
            format!("organization = \"{}\"", organization_id(company.number))
        }
        line => line.to_owned(),
    });
    lines.map(|line| line + "\n").collect()
}

/// Keeps what the architect tells, and shows what it is at.
struct Listener<'a> {
    progress: &'a Progress,
    told: RefCell<Vec<String>>,
}

impl apply::Progress for Listener<'_> {
    fn step(&self, number: usize, of: usize, step: &Step) {
        self.progress.passes(&format!("migrating, {number} of {of}: {}", step.title));
    }

    fn waits(&self, step: &Step, _tries: u32, _blockers: &[String]) {
        self.progress.passes(&format!("migrating: {} waits for a lock", step.title));
    }

    fn goes_on(&self, _how_far: &str) {}
}

impl Tell for Listener<'_> {
    fn result(&self, line: &str) {
        self.told.borrow_mut().push(line.to_owned());
    }

    fn says(&self, what: &str) {
        self.progress.passes(what);
    }
}

/// What `pgtenant migrate verify` tells.
pub(super) async fn verify(migrated: &Migrated, progress: &Progress) -> Result<Vec<String>, DemoError> {
    let tell = Listener { progress, told: RefCell::new(Vec::new()) };
    let outcome = migrate::verify(&migrated.place, &tell).await;
    let mut told = tell.told.into_inner();
    told.extend(outcome.err().map(|stop| stop.to_string()));
    Ok(told)
}
