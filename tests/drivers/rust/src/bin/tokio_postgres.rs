//! tokio-postgres: cases.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _, TryStreamExt as _, future, stream};
use pgtenant_drivers::{ERRORS, Outcome, ROWS, cases, owners, run, url, var};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client, Config, Error, IsolationLevel, NoTls};

/// A client, and what PostgreSQL says besides its answers.
async fn fresh_with(change: impl FnOnce(&mut Config)) -> Result<(Client, UnboundedReceiver<String>), Error> {
    let mut config: Config = url().parse()?;
    change(&mut config);
    let (client, mut connection) = config.connect(NoTls).await?;
    let (said, heard) = unbounded_channel();
    tokio::spawn(async move {
        let mut messages = stream::poll_fn(move |cx| connection.poll_message(cx));
        while let Some(Ok(message)) = messages.next().await {
            let text = match message {
                AsyncMessage::Notice(notice) => notice.message().to_owned(),
                AsyncMessage::Notification(notification) => notification.payload().to_owned(),
                _ => continue,
            };
            let _ = said.send(text);
        }
    });
    client.batch_execute("DELETE FROM items").await?;
    Ok((client, heard))
}

async fn fresh() -> Result<Client, Error> {
    Ok(fresh_with(|_| {}).await?.0)
}

fn state<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => "no error".to_owned(),
        Err(error) => error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned()),
    }
}

async fn show(client: &Client, name: &str) -> Result<String, Error> {
    Ok(client.query_one(&format!("SHOW {name}"), &[]).await?.get(0))
}

async fn count(client: &Client) -> Result<i64, Error> {
    Ok(client.query_one("SELECT count(*) FROM items", &[]).await?.get(0))
}

async fn connect() -> Outcome {
    let c = fresh().await?;
    let one: i32 = c.query_one("SELECT 1", &[]).await?.get(0);
    Ok(format!("{one} {}", show(&c, "application_name").await? == var("PGAPPNAME")))
}

async fn types() -> Outcome {
    let c = fresh().await?;
    let text = "SELECT $1::int, $2::text, $3::text, $4::bool, $5::float8, $6::int[], $7::bytea";
    let row = c
        .query_one(text, &[&1, &"é", &None::<&str>, &true, &1.5_f64, &vec![1, 2], &vec![0_u8, 255]])
        .await?;
    type Row = (i32, String, Option<String>, bool, f64, Vec<i32>, Vec<u8>);
    let seen: Row = (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4), row.get(5), row.get(6));
    // A type that the driver does not know is looked up in the catalogue by statements of its own.
    let domain = c.query_one("SELECT 'x'::information_schema.sql_identifier", &[]).await?;
    Ok(format!("{seen:?} {}", domain.columns()[0].type_().name()))
}

async fn prepared() -> Outcome {
    let c = fresh().await?;
    let plus = c.prepare("SELECT $1::int + 1").await?;
    let mut total = 0;
    for n in 0..20 {
        total += c.query_one(&plus, &[&n]).await?.get::<_, i32>(0);
    }
    let wrong = state(c.prepare("SELECT nowhere").await);
    for n in 0..50 {
        // Dropped, a statement is closed behind the next query.
        c.prepare(&format!("SELECT {n}")).await?;
    }
    let typed = c.query_typed("SELECT $1 + 1", &[(&1_i32, Type::INT4)]).await?;
    Ok(format!("{total} {wrong} {}", typed[0].get::<_, i32>(0)))
}

async fn transaction() -> Outcome {
    let mut c = fresh().await?;
    let mut outer = c.transaction().await?;
    outer.execute("INSERT INTO items (id) VALUES (1)", &[]).await?;
    let inner = outer.savepoint("s").await?;
    inner.execute("INSERT INTO items (id) VALUES (2)", &[]).await?;
    inner.rollback().await?;
    outer.commit().await?;
    let serial = c.build_transaction().isolation_level(IsolationLevel::Serializable).read_only(true).start().await?;
    let level: String = serial.query_one("SHOW transaction_isolation", &[]).await?.get(0);
    let refused = state(serial.execute("INSERT INTO items (id) VALUES (3)", &[]).await);
    let next = state(serial.query("SELECT 1", &[]).await);
    drop(serial);
    Ok(format!("{level} {refused} {next} {}", count(&c).await?))
}

async fn error() -> Outcome {
    let c = fresh().await?;
    c.execute("INSERT INTO items (id) VALUES (1)", &[]).await?;
    let mut states = Vec::new();
    for text in ERRORS {
        states.push(state(c.query(text, &[]).await));
        states.push(state(c.simple_query(text).await));
    }
    Ok(format!("{states:?} {}", count(&c).await?))
}

async fn batch() -> Outcome {
    let c = fresh().await?;
    c.batch_execute("INSERT INTO items (id) VALUES (1); INSERT INTO items (id) VALUES (2)").await?;
    let failed = state(c.batch_execute("INSERT INTO items (id) VALUES (3); SELECT 1/0").await);
    Ok(format!("{failed} {} {}", count(&c).await?, c.simple_query("SELECT 1; SELECT 2").await?.len()))
}

async fn pipeline() -> Outcome {
    let c = fresh().await?;
    let plus = c.prepare("SELECT $1::int").await?;
    let one = async |n: i32| Ok::<i32, Error>(c.query_one(&plus, &[&n]).await?.get(0));
    let same = future::try_join_all((0..300).map(&one)).await?;
    let each = async |n: i32| Ok::<i32, Error>(c.query_one(&format!("SELECT {n}"), &[]).await?.get(0));
    let different = future::try_join_all((0..100).map(&each)).await?;
    Ok(format!("{} {}", same.iter().sum::<i32>(), different.iter().sum::<i32>()))
}

async fn pipeline_error() -> Outcome {
    let c = fresh().await?;
    // In this order: without `biased` another may be sent first.
    let (first, again, wrong, second) = tokio::join!(
        biased;
        c.execute("INSERT INTO items (id) VALUES ($1)", &[&1]),
        c.execute("INSERT INTO items (id) VALUES ($1)", &[&1]),
        c.execute("SELECT nowhere", &[]),
        c.execute("INSERT INTO items (id) VALUES ($1)", &[&2]),
    );
    Ok(format!("{} {} {} {} {}", state(first), state(again), state(wrong), state(second), count(&c).await?))
}

async fn copy() -> Outcome {
    let c = fresh().await?;
    c.batch_execute("DELETE FROM own_loads").await?;
    let mut sink = Box::pin(c.copy_in::<_, std::io::Cursor<Vec<u8>>>("COPY loads (id, body) FROM STDIN").await?);
    for n in 0..ROWS {
        sink.send(std::io::Cursor::new(format!("{n}\trow {n}\n").into_bytes())).await?;
    }
    let written = sink.as_mut().finish().await?;
    let sink = c.copy_in("COPY loads (id, body) FROM STDIN (FORMAT binary)").await?;
    let mut binary = Box::pin(BinaryCopyInWriter::new(sink, &[Type::INT4, Type::TEXT]));
    binary.as_mut().write(&[&5000, &"binary"]).await?;
    binary.as_mut().finish().await?;
    let blocks = c.copy_out("COPY (SELECT id, body FROM own_loads) TO STDOUT").await?;
    let size: usize = blocks.try_fold(0, async |size, block| Ok(size + block.len())).await?;
    let mut bad = Box::pin(c.copy_in("COPY loads (id, body) FROM STDIN").await?);
    bad.send(std::io::Cursor::new(b"rubbish\n".to_vec())).await?;
    let failed = state(bad.as_mut().finish().await);
    // A sink that is dropped tells the server to give up.
    drop(c.copy_in::<_, std::io::Cursor<Vec<u8>>>("COPY loads (id, body) FROM STDIN").await?);
    Ok(format!("{written} {size} {failed} {}", count(&c).await?))
}

async fn cursor() -> Outcome {
    let mut c = fresh().await?;
    let t = c.transaction().await?;
    let portal = t.bind("SELECT generate_series(1, $1::int)", &[&1000]).await?;
    let first: i32 = t.query_portal(&portal, 10).await?[9].get(0);
    let next = t.query_portal(&portal, 100).await?.len();
    let rest = t.query_portal(&portal, 0).await?.len();
    t.commit().await?;
    Ok(format!("{first} {next} {rest}"))
}

async fn cancel() -> Outcome {
    let c = fresh().await?;
    let token = c.cancel_token();
    // Prepared before, and a second: another task sends the query, late on a busy machine, and a request that is there before it
    // is PostgreSQL's to ignore.
    let long = c.prepare("SELECT pg_sleep(20)").await?;
    let request = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        token.cancel_query(NoTls).await
    });
    let cancelled = state(c.query(&long, &[]).await);
    request.await??;
    Ok(format!("{cancelled} {}", count(&c).await?))
}

async fn setting() -> Outcome {
    let (mut c, _heard) = fresh_with(|config| {
        config.options("-c work_mem=5MB");
    })
    .await?;
    let mut seen = vec![show(&c, "work_mem").await?];
    c.batch_execute("SET work_mem = '7MB'").await?;
    seen.push(show(&c, "work_mem").await?);
    let t = c.transaction().await?;
    t.batch_execute("SET LOCAL work_mem = '9MB'").await?;
    seen.push(t.query_one("SHOW work_mem", &[]).await?.get(0));
    t.commit().await?;
    c.query("SELECT set_config('TimeZone', $1, false)", &[&"Asia/Tokyo"]).await?;
    seen.extend([show(&c, "work_mem").await?, show(&c, "TimeZone").await?]);
    c.batch_execute("RESET work_mem; SET statement_timeout = 200").await?;
    seen.extend([show(&c, "work_mem").await?, state(c.query("SELECT pg_sleep(20)", &[]).await)]);
    Ok(seen.join(" "))
}

async fn notice() -> Outcome {
    let (c, mut heard) = fresh_with(|_| {}).await?;
    c.batch_execute("DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$").await?;
    Ok(format!("{:?} {:?}", heard.recv().await, heard.recv().await))
}

async fn large() -> Outcome {
    let c = fresh().await?;
    let value: String = c.query_one("SELECT repeat('x', 20000000)", &[]).await?.get(0);
    let echo: i32 = c.query_one("SELECT length($1)", &[&"y".repeat(10_000_000)]).await?.get(0);
    let rows = c.query("SELECT n, md5(n::text) FROM generate_series(1, 100000) n", &[]).await?;
    Ok(format!("{} {echo} {}", value.len(), rows.len()))
}

async fn concurrent() -> Outcome {
    let c = fresh().await?;
    let work = async |n: i32| {
        let (client, connection) = tokio_postgres::connect(&url(), NoTls).await?;
        tokio::spawn(connection);
        for k in 0..20 {
            client.execute("INSERT INTO items (id) VALUES ($1)", &[&(n * 100 + k)]).await?;
        }
        Ok::<(), Error>(())
    };
    future::try_join_all((0..8).map(work)).await?;
    Ok(format!("{}", count(&c).await?))
}

async fn session_state() -> Outcome {
    let c = fresh().await?;
    c.batch_execute("CREATE TEMP TABLE kept (n int)").await?;
    Ok(state(c.batch_execute("INSERT INTO kept VALUES (1)").await))
}

async fn listen() -> Outcome {
    let (c, mut heard) = fresh_with(|_| {}).await?;
    let listening = state(c.batch_execute("LISTEN cases").await);
    fresh().await?.batch_execute("NOTIFY cases, 'hello'").await?;
    let payload = tokio::time::timeout(Duration::from_millis(500), heard.recv()).await;
    Ok(format!("{listening} {:?}", payload.ok().flatten()))
}

async fn tenant() -> Outcome {
    let c = fresh().await?;
    c.batch_execute("INSERT INTO items (id) VALUES (1)").await?;
    let rows = c.query("SELECT owner FROM items", &[]).await?;
    Ok(owners(&rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>()))
}

async fn token() -> Outcome {
    let c = fresh().await?;
    let owner = async || Ok::<String, Error>(c.query_one("SELECT owner()", &[]).await?.get(0));
    let mut seen = vec![owner().await?];
    c.query("SELECT set_config('pgtenant.token', $1, false)", &[&var("CASES_TOKEN")]).await?;
    seen.push(owner().await?);
    c.batch_execute("RESET pgtenant.token").await?;
    seen.push(owner().await?);
    Ok(owners(&seen))
}

#[tokio::main]
async fn main() {
    let all = cases![
        connect, types, prepared, transaction, error, batch, pipeline, pipeline_error, copy, cursor, cancel, setting,
        notice, large, concurrent, session_state, listen, tenant, token,
    ];
    run("tokio-postgres 0.7.18", all).await;
}
