//! The guided tour: every promise of the demo tried for real, through the proxy, and compared with what is there.

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_postgres::{Client, NoTls};

use super::DemoError;
use super::stage::{Progress, Stage, organization_id, project_id};
use super::story::{self, COMPANIES};
use crate::architect::connect::{causes, connect};

/// The latency that every query must stay within.
const BUDGET: Duration = Duration::from_millis(200);

/// How often each of the typical queries runs.
const ROUNDS: usize = 50;

/// One step and how it came out.
#[derive(Serialize)]
pub(super) struct Step {
    /// Who did what.
    pub(super) what: String,
    /// What should come out.
    pub(super) expected: String,
    /// What did.
    pub(super) found: String,
    /// Whether they agree.
    pub(super) right: bool,
}

impl Step {
    fn new(
        what: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
        right: bool,
    ) -> Self {
        Self { what: what.into(), expected: expected.into(), found: found.into(), right }
    }

    fn equal(
        what: impl Into<String>,
        expected: impl ToString,
        found: Result<impl ToString, Problem>,
    ) -> Self {
        let expected = expected.to_string();
        let found = found.map_or_else(|problem| problem.to_string(), |found| found.to_string());
        let right = expected == found;
        Self::new(what, expected, found, right)
    }
}

/// What a query or a sign-in ended with.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{code} {message}")]
    Refused { code: String, message: String },
    #[error("{0}")]
    Other(String),
}

impl From<tokio_postgres::Error> for Problem {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(error) => {
                Self::Refused { code: error.code().code().to_owned(), message: error.message().to_owned() }
            }
            None => Self::Other(causes(&error)),
        }
    }
}

impl From<DemoError> for Problem {
    fn from(error: DemoError) -> Self {
        Self::Other(error.to_string())
    }
}

/// Takes the tour. A step that cannot even be tried is a step that came out wrong.
pub(super) async fn take(stage: &Stage) -> Vec<Step> {
    let mut steps = Vec::new();
    match walk(stage, &mut steps).await {
        Ok(()) => {}
        Err(problem) => steps.push(Step::new("the tour", "goes on", format!("stopped: {problem}"), false)),
    }
    steps
}

async fn walk(stage: &Stage, steps: &mut Vec<Step>) -> Result<(), Problem> {
    let admin = connect(&stage.postgres_url()).await.map_err(|e| Problem::Other(e.to_string()))?;
    let over_before = over_budget(stage).await?;
    migration(stage, steps).await?;
    own_rows(stage, &admin, steps).await?;
    foreign_rows(stage, &admin, steps).await?;
    inserts(stage, &admin, steps).await?;
    forgeries(stage, steps).await?;
    bad_tokens(stage, steps).await?;
    latency(stage, steps).await?;
    counted(stage, over_before, steps).await
}

async fn as_member(stage: &Stage, organization: usize, project: Option<usize>) -> Result<Client, Problem> {
    Ok(stage.sign_in(&stage.token(organization, project, 600)?).await?)
}

async fn number(client: &Client, sql: &str) -> Result<i64, Problem> {
    Ok(client.query_one(sql, &[]).await?.get(0))
}

/// The architect made the tables multi-tenant: nothing is missing, and no row has changed.
async fn migration(stage: &Stage, steps: &mut Vec<Step>) -> Result<(), Problem> {
    let migrated = stage.migrated();
    let told = story::verify(migrated, &Progress::start()).await?;
    steps.push(Step::equal(
        format!(
            "single-tenant to multi-tenant, {} steps in {:.1} s: migrate verify",
            migrated.steps, migrated.seconds
        ),
        format!("all {} steps hold, and every table has its tenant", migrated.steps),
        Ok::<_, Problem>(told.join("; ")),
    ));
    let same = "every row is what it was";
    let found = migrated.told.iter().find(|line| *line == same).map_or("some rows differ", String::as_str);
    steps.push(Step::equal("rows before and after, by count and checksum", same, Ok::<_, Problem>(found)));
    let mut config: tokio_postgres::Config = migrated.place.database.parse()?;
    // The old login's own rights, without its session: a superuser takes its place.
    config.options("-c role=helpdesk_app");
    let (old, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    let seen = number(&old, "SELECT count(*) FROM tickets").await;
    steps.push(Step::equal("the login of before, past the proxy: SELECT count(*) FROM tickets", 0, seen));
    Ok(())
}

/// Own rows only: as many as there are, of one organization, per project and for the whole organization.
async fn own_rows(stage: &Stage, admin: &Client, steps: &mut Vec<Step>) -> Result<(), Problem> {
    for organization in &COMPANIES[..2] {
        let id = organization_id(organization.number);
        for project in [None, Some(1), Some(2)] {
            let mut there = format!("SELECT count(*) FROM tickets WHERE organization_id = '{id}'");
            let mut who = format!("{}, whole organization", organization.name);
            if let Some(project) = project {
                there += &format!(" AND project_id = '{}'", project_id(organization.number, project));
                who = format!("{}, project {project}", organization.name);
            }
            let there = number(admin, &there).await?;
            let member = as_member(stage, organization.number, project).await?;
            let seen = number(&member, "SELECT count(*) FROM tickets").await;
            steps.push(Step::equal(format!("{who}: SELECT count(*) FROM tickets"), there, seen));
            let organizations =
                number(&member, "SELECT count(DISTINCT organization_id) FROM ticket_messages").await;
            steps.push(Step::equal(
                format!("{who}: organizations seen in ticket_messages"),
                1,
                organizations,
            ));
        }
    }
    Ok(())
}

/// Of all tickets, whoever's they are.
const CHECKSUM: &str = "SELECT (sum(hashtextextended(t::text, 0)) % 1000000007)::int8 FROM tickets t";

/// What belongs to others cannot be read, changed or written, even when it is asked for by name.
async fn foreign_rows(stage: &Stage, admin: &Client, steps: &mut Vec<Step>) -> Result<(), Problem> {
    let (own, other) = (&COMPANIES[0], &COMPANIES[1]);
    let theirs = organization_id(other.number);
    let member = as_member(stage, own.number, None).await?;
    let who = own.name;
    let before = number(admin, CHECKSUM).await;
    let read =
        number(&member, &format!("SELECT count(*) FROM tickets WHERE organization_id = '{theirs}'")).await;
    steps.push(Step::equal(format!("{who} asks for {}'s tickets by id", other.name), 0, read));
    let updated = member
        .execute(&format!("UPDATE tickets SET subject = 'x' WHERE organization_id = '{theirs}'"), &[])
        .await;
    steps.push(Step::equal(
        format!("{who} updates {}'s tickets", other.name),
        0,
        updated.map_err(Problem::from),
    ));
    let deleted = member.execute(&format!("DELETE FROM tags WHERE organization_id = '{theirs}'"), &[]).await;
    steps.push(Step::equal(
        format!("{who} deletes {}'s tags", other.name),
        0,
        deleted.map_err(Problem::from),
    ));
    let sql = format!("INSERT INTO tags (organization_id, name) VALUES ('{theirs}', 'planted')");
    steps.push(refused(
        format!("{who} inserts a tag for {}", other.name),
        "42501",
        member.execute(&sql, &[]).await,
    ));
    let after = number(admin, CHECKSUM).await;
    if let (Ok(before), after) = (before, after) {
        steps.push(Step::equal("all tickets afterwards: checksum", before, after));
    }
    Ok(())
}

fn refused<T>(what: String, code: &str, outcome: Result<T, tokio_postgres::Error>) -> Step {
    let expected = format!("refused with {code}");
    match outcome.map_err(Problem::from) {
        Ok(_) => Step::new(what, expected, "not refused", false),
        Err(problem) => {
            let right = matches!(&problem, Problem::Refused { code: found, .. } if found == code);
            Step::new(what, expected, problem.to_string(), right)
        }
    }
}

/// An unmodified INSERT lands in the organization and project of the token.
async fn inserts(stage: &Stage, admin: &Client, steps: &mut Vec<Step>) -> Result<(), Problem> {
    let own = &COMPANIES[0];
    let member = as_member(stage, own.number, Some(2)).await?;
    let sql = "INSERT INTO articles (title, body) VALUES ('written by the tour', 'x') RETURNING id";
    let id: i64 = member.query_one(sql, &[]).await?.get(0);
    let place = admin
        .query_one(
            "SELECT organization_id::text || ' ' || project_id::text FROM articles \
             WHERE title = 'written by the tour' AND id = $1",
            &[&id],
        )
        .await?;
    let expected = format!("{} {}", organization_id(own.number), project_id(own.number, 2));
    steps.push(Step::equal(
        format!("{}, project 2: INSERT without naming either lands in", own.name),
        expected,
        Ok::<String, Problem>(place.get(0)),
    ));
    member.execute("DELETE FROM articles WHERE title = 'written by the tour'", &[]).await?;
    Ok(())
}

/// Settings that a client changes by itself, and what they give it.
async fn forgeries(stage: &Stage, steps: &mut Vec<Step>) -> Result<(), Problem> {
    let (own, other) = (&COMPANIES[0], &COMPANIES[1]);
    let mut forger = as_member(stage, own.number, None).await?;
    // Its transaction stays open, so that its server process cannot be the one that the forger gets.
    let mut theirs = as_member(stage, other.number, None).await?;
    let theirs = theirs.transaction().await?;
    let stolen: String = theirs.query_one("SELECT current_setting('pgtenant.seal')", &[]).await?.get(0);
    let edited = {
        let seal: String = forger.query_one("SELECT current_setting('pgtenant.seal')", &[]).await?.get(0);
        seal.replace(&organization_id(own.number), &organization_id(other.number))
    };
    for (what, seal) in [
        ("writes a seal of its own making", "forged".to_owned()),
        ("edits the organization in its own seal", edited),
        ("replays a seal of another server process", stolen),
    ] {
        let transaction = forger.transaction().await?;
        // Said plainly, the proxy would refuse it; here the database does.
        transaction.execute("SELECT set_config('pgtenant.' || 'seal', $1, false)", &[&seal]).await?;
        let outcome = transaction.query("SELECT count(*) FROM tickets", &[]).await;
        steps.push(refused(format!("{} {what} and reads", own.name), "42501", outcome));
        drop(transaction);
    }
    let seen = number(&forger, "SELECT count(DISTINCT organization_id) FROM tickets").await;
    steps.push(Step::equal(format!("{} afterwards: organizations seen", own.name), 1, seen));
    let key = forger.query("SELECT * FROM pgtenant.seal_keys", &[]).await;
    steps.push(refused(format!("{} reads the seal's key", own.name), "42501", key));
    Ok(())
}

/// Tokens that must not sign in.
async fn bad_tokens(stage: &Stage, steps: &mut Vec<Step>) -> Result<(), Problem> {
    let good = stage.token(1, None, 600)?;
    let other = stage.token(2, None, 600)?;
    let parts: Vec<&str> = good.split('.').collect();
    let payload = other.split('.').nth(1).unwrap_or_default();
    let tampered = format!("{}.{payload}.{}", parts[0], parts[2]);
    let expired = stage.token(1, None, -60)?;
    for (what, token, reason) in [
        ("a token with another organization's claims", tampered, "token refused: signature"),
        ("a token that expired a minute ago", expired, "token refused: expired"),
        ("a password that is no token", "secret".to_owned(), "token refused: malformed"),
    ] {
        let expected = format!("28000 {reason}");
        let step = match stage.sign_in(&token).await.map_err(Problem::from) {
            Ok(_) => Step::new(format!("sign-in with {what}"), expected, "signed in", false),
            Err(problem) => {
                let right = problem.to_string() == expected;
                Step::new(format!("sign-in with {what}"), expected, problem.to_string(), right)
            }
        };
        steps.push(step);
    }
    Ok(())
}

/// Typical queries of the application, as the largest organization, against the budget.
async fn latency(stage: &Stage, steps: &mut Vec<Step>) -> Result<(), Problem> {
    let member = as_member(stage, 1, Some(1)).await?;
    for (what, sql) in QUERIES {
        let statement = member.prepare(sql).await?;
        let mut times = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let started = Instant::now();
            member.query(&statement, &[]).await?;
            times.push(started.elapsed());
        }
        times.sort();
        let at = |percent: usize| times[(ROUNDS * percent / 100).min(ROUNDS - 1)];
        let shown = format!("p50 {:.1?}, p95 {:.1?}, p99 {:.1?}", at(50), at(95), at(99));
        steps.push(Step::new(
            format!("{what} ({ROUNDS} times)"),
            format!("p99 within {BUDGET:?}"),
            shown,
            at(99) <= BUDGET,
        ));
    }
    Ok(())
}

/// What an agent's screen asks for.
const QUERIES: [(&str, &str); 4] = [
    (
        "newest 20 open tickets of the project",
        "SELECT id, subject, status, priority, created_at FROM tickets WHERE status <> 'closed' ORDER BY created_at DESC LIMIT 20",
    ),
    (
        "a ticket with its messages",
        "SELECT t.subject, m.body, m.created_at FROM tickets t \
         JOIN ticket_messages m ON (m.organization_id, m.ticket_id) = (t.organization_id, t.id) \
         WHERE t.id = (SELECT min(id) FROM tickets) ORDER BY m.created_at",
    ),
    (
        "tickets by status in the newest 30 days",
        "SELECT status, count(*) FROM tickets \
         WHERE created_at > (SELECT max(created_at) FROM tickets) - interval '30 days' GROUP BY status",
    ),
    ("a customer by e-mail", "SELECT id, name FROM customers WHERE email = 'customer17@example.com'"),
];

/// The proxy's own figures agree: it counted, and nothing was over the budget.
async fn counted(stage: &Stage, over_before: f64, steps: &mut Vec<Step>) -> Result<(), Problem> {
    let queries = metric(stage, "pgtenant_queries_total").await?.unwrap_or(0.0);
    let least = (QUERIES.len() * ROUNDS) as f64;
    steps.push(Step::new(
        "/metrics: queries",
        format!("at least {least}"),
        queries.to_string(),
        queries >= least,
    ));
    let over = over_budget(stage).await? - over_before;
    steps.push(Step::equal("/metrics: queries of this tour over the budget", 0, Ok::<_, Problem>(over)));
    let refusals = metric(stage, "pgtenant_seal_refusals_total").await?.unwrap_or(0.0);
    steps.push(Step::equal("/metrics: refused seals", 3, Ok::<_, Problem>(refusals)));
    Ok(())
}

async fn over_budget(stage: &Stage) -> Result<f64, Problem> {
    let found = metric(stage, "pgtenant_over_budget_total").await?;
    found.ok_or_else(|| Problem::Other("pgtenant_over_budget_total is not in /metrics".to_owned()))
}

/// A counter of the database.
async fn metric(stage: &Stage, name: &str) -> Result<Option<f64>, Problem> {
    let text = metrics(stage).await.map_err(|e| Problem::Other(e.to_string()))?;
    let line = format!("{name}{{database=\"helpdesk\"}}");
    Ok(text.lines().find_map(|found| found.strip_prefix(&line)?.trim().parse().ok()))
}

async fn metrics(stage: &Stage) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", stage.http_port())).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}
