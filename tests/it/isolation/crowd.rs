//! Many organizations over one server: nobody ever sees, writes or updates a foreign row.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::harness::client::{connect, value};
use crate::harness::gate::Gate;
use crate::harness::postgres::{self, Database};
use crate::harness::{Dice, org, project};

/// Clients, transactions of all of them together, and organizations.
const CLIENTS: u32 = 16;
const TRANSACTIONS: usize = 2_000;
const ORGANIZATIONS: u32 = 4;

/// One member of one organization, perhaps of one project of it.
struct Member {
    client: Client,
    organization: u32,
    project: Option<u32>,
    dice: Dice,
}

/// Rows that a member may see at the beginning.
fn own_rows(project: Option<u32>) -> i64 {
    if project.is_some() { postgres::ROWS_PER_PROJECT } else { postgres::ROWS_PER_ORGANIZATION }
}

impl Member {
    /// One transaction of a random kind. Every answer is checked for foreign rows.
    async fn transaction(&mut self) {
        let (client, own) = (&self.client, org(self.organization));
        let body = format!("org-{}", self.organization);
        let foreign = org(1 + (self.organization + 1 + self.dice.roll(3) as u32) % ORGANIZATIONS);
        let foreign = if foreign == own { org(1 + self.organization % ORGANIZATIONS) } else { foreign };
        match self.dice.roll(8) {
            // Extended, without BEGIN.
            0 => {
                let rows = client.query("SELECT organization_id::text, body FROM items", &[]).await.unwrap();
                assert!(rows.len() as i64 >= own_rows(self.project));
                for row in rows {
                    assert_eq!(
                        (row.get::<_, String>(0), row.get::<_, String>(1)),
                        (own.clone(), body.clone())
                    );
                }
            }
            // Simple, without BEGIN.
            1 => {
                let sql = "SELECT count(*), count(*) FILTER (WHERE body <> 'x') FROM items";
                assert!(crate::harness::client::value(client, sql).await.unwrap().is_some());
                let sql = format!("SELECT count(*) FROM items WHERE organization_id = '{foreign}'");
                assert_eq!(crate::harness::client::value(client, &sql).await.unwrap().as_deref(), Some("0"));
            }
            // Extended, in a transaction block.
            2 => {
                client.batch_execute("BEGIN").await.unwrap();
                let seen = client.query_one("SELECT count(DISTINCT organization_id) FROM items", &[]).await;
                assert_eq!(seen.unwrap().get::<_, i64>(0), 1);
                let id: String =
                    client.query_one("SELECT pgtenant.organization_id()::text", &[]).await.unwrap().get(0);
                assert_eq!(id, own);
                client
                    .batch_execute(if self.dice.roll(2) == 0 { "COMMIT" } else { "ROLLBACK" })
                    .await
                    .unwrap();
            }
            // A write that names nobody lands at home.
            3 => {
                let sql = "INSERT INTO items (project_id, body) VALUES ($1::text::uuid, $2) RETURNING organization_id::text";
                let at = project(self.organization, self.project.unwrap_or(1));
                let row = client.query_one(sql, &[&at, &body]).await.unwrap();
                assert_eq!(row.get::<_, String>(0), own);
            }
            // A write that names somebody else is refused.
            4 => {
                let sql = format!(
                    "INSERT INTO items (organization_id, project_id, body) VALUES ('{foreign}', NULL, 'planted')"
                );
                let refused = client.execute(&sql, &[]).await.unwrap_err();
                assert_eq!(refused.code().unwrap().code(), "42501");
            }
            // An update of everything reaches the own rows only.
            5 => {
                let changed = client.execute("UPDATE items SET counter = counter + 1", &[]).await.unwrap();
                assert!(changed as i64 >= own_rows(self.project));
                let sql = format!("UPDATE items SET body = 'stolen' WHERE organization_id = '{foreign}'");
                assert_eq!(client.execute(&sql, &[]).await.unwrap(), 0);
            }
            // An error in a transaction block, simple protocol.
            6 => {
                let refused = client.batch_execute("BEGIN; SELECT 1/0").await.unwrap_err();
                assert_eq!(refused.code().unwrap().code(), "22012");
                client.batch_execute("ROLLBACK").await.unwrap();
            }
            // Several statements in one Query.
            _ => {
                client
                    .batch_execute("SELECT 1; BEGIN; UPDATE items SET counter = counter + 1; COMMIT; SELECT count(*) FROM items")
                    .await
                    .unwrap();
            }
        }
    }

    /// Tries to run as another organization in one of the ways that a client has. What it gets is an error or
    /// nothing; what must not come is a foreign row.
    async fn attack(&mut self) {
        let foreign = org(1 + self.organization % ORGANIZATIONS);
        let own = org(self.organization);
        let client = &self.client;
        let seal = client.query_one("SELECT current_setting('pgtenant.seal', true)", &[]).await;
        let seal: String = seal.unwrap().get(0);
        let forged = seal.replace(&own, &foreign).replace('\'', "''");
        let attempts = [
            format!("SET pgtenant.seal = '{forged}'"),
            format!("SELECT set_config('pgtenant.seal', '{forged}', false)"),
            format!("DO $$ BEGIN PERFORM set_config('pgtenant.seal', '{forged}', false); END $$"),
            "SELECT query_to_xml('select s' || 'et_config(''pgtenant.seal'', ''x'', false)', true, false, '')".to_owned(),
            "RESET pgtenant.seal".to_owned(),
            "RESET ALL".to_owned(),
            "DISCARD ALL".to_owned(),
            "DEALLOCATE ALL".to_owned(),
            "SET statement_timeout = 1".to_owned(),
            "SET search_path = pg_temp, public, pg_catalog".to_owned(),
            "SET ROLE NONE; SET row_security = off".to_owned(),
            format!("BEGIN; SET LOCAL pgtenant.seal = '{forged}'; SAVEPOINT a; ROLLBACK TO a; COMMIT"),
            "PREPARE pgtenant_bind AS SELECT 1".to_owned(),
            "CREATE TEMP TABLE items (organization_id uuid, body text)".to_owned(),
        ];
        let attempt = &attempts[self.dice.roll(attempts.len() as u64) as usize];
        // Whether it is refused or does nothing is not the point.
        let _ = client.batch_execute(attempt).await;
        if let Ok(rows) = client.query("SELECT organization_id::text FROM public.items", &[]).await {
            assert!(rows.iter().all(|row| row.get::<_, String>(0) == own), "{attempt}");
        }
        // Now in the same transaction as the attempt: refused, or the own rows.
        let _ = client.batch_execute("ROLLBACK").await;
        if client.batch_execute("BEGIN").await.is_ok() {
            let _ =
                client.batch_execute(&format!("SELECT set_config('pgtenant.seal', '{forged}', true)")).await;
            let seen = client.query("SELECT organization_id::text FROM public.items", &[]).await;
            assert!(seen.is_err(), "a forged seal was taken");
            let _ = client.batch_execute("ROLLBACK").await;
        }
        // Settings follow their client: it takes its own back, however short a time it gave its statements.
        let since = Instant::now();
        loop {
            assert!(since.elapsed() < Duration::from_secs(60), "its own settings stay");
            let _ = client.batch_execute("RESET ALL").await;
            if let Ok(Some(timeout)) = value(client, "SHOW statement_timeout").await
                && timeout == "0"
            {
                break;
            }
        }
    }
}

/// Runs all clients to the end, in random order, over a pool of one server.
async fn crowd(database: &Database, with_attacks: bool, seed: u64) {
    let gate =
        Gate::with(database).pool_size(1).set("databases.app.pool", "wait_timeout", "\"60s\"").run().await;
    let done = Arc::new(AtomicUsize::new(0));
    let mut members = Vec::new();
    for n in 0..CLIENTS {
        let organization = 1 + n % ORGANIZATIONS;
        let project_number = (n / ORGANIZATIONS).checked_sub(1).filter(|m| (1..=2).contains(m));
        let mut token = gate.token(org(organization)).subject(&format!("client-{n}"));
        if let Some(m) = project_number {
            token = token.project(project(organization, m));
        }
        let client = connect(&gate, "app", &token.sign()).await;
        members.push(Member {
            client,
            organization,
            project: project_number,
            dice: Dice(seed + u64::from(n)),
        });
    }
    let tasks: Vec<_> = members
        .into_iter()
        .map(|mut member| {
            let done = done.clone();
            tokio::spawn(async move {
                while done.fetch_add(1, Ordering::Relaxed) < TRANSACTIONS {
                    member.transaction().await;
                    if with_attacks {
                        member.attack().await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let (_, metrics) = gate.http("/metrics").await;
    assert!(metrics.contains("pgtenant_bind_failures_total{database=\"app\"} 0"), "{metrics}");
    verify(database).await;
}

/// What is in the table afterwards, seen by a superuser: every row still says whose it is.
async fn verify(database: &Database) {
    let admin = database.admin().await;
    let wrong: i64 = admin
        .query_one(
            "SELECT count(*) FROM items i JOIN organizations o ON o.id = i.organization_id WHERE i.body <> o.name",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert_eq!(wrong, 0, "rows that were written by somebody else");
    let per_organization = admin
        .query("SELECT count(*) FROM items WHERE counter >= 0 GROUP BY organization_id", &[])
        .await
        .unwrap();
    assert_eq!(per_organization.len(), ORGANIZATIONS as usize);
}

#[tokio::test]
async fn sixteen_clients_of_four_organizations_share_one_server() {
    let database = postgres::shared().database().await;
    crowd(&database, false, 7).await;
}

#[tokio::test]
async fn and_nobody_gets_further_by_changing_its_context() {
    let database = postgres::shared().database().await;
    crowd(&database, true, 11).await;
}

/// Two projects of one organization are kept apart as two organizations are.
#[tokio::test]
async fn a_token_with_a_project_sees_that_project_alone() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).pool_size(1).run().await;
    let whole = connect(&gate, "app", &gate.token(org(1)).sign()).await;
    let first = connect(&gate, "app", &gate.token(org(1)).project(project(1, 1)).sign()).await;
    let stranger = connect(&gate, "app", &gate.token(org(1)).project(project(2, 1)).sign()).await;
    for _ in 0..20 {
        for (client, rows) in
            [(&whole, postgres::ROWS_PER_ORGANIZATION), (&first, postgres::ROWS_PER_PROJECT), (&stranger, 0)]
        {
            let seen: i64 = client.query_one("SELECT count(*) FROM items", &[]).await.unwrap().get(0);
            assert_eq!(seen, rows);
        }
    }
    let row =
        first.query_one("INSERT INTO items (body) VALUES ('org-1') RETURNING project_id::text", &[]).await;
    assert_eq!(row.unwrap().get::<_, String>(0), project(1, 1));
    let refused = first
        .execute(&format!("INSERT INTO items (project_id, body) VALUES ('{}', 'x')", project(1, 2)), &[])
        .await;
    assert_eq!(refused.unwrap_err().code().unwrap().code(), "42501");
}
