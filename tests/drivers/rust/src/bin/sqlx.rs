//! sqlx: cases.

use std::time::Duration;

use futures_util::{TryStreamExt as _, future};
use pgtenant_drivers::{ERRORS, Outcome, ROWS, cases, owners, run, url, var};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPoolOptions};
use sqlx::{Connection as _, Error, Executor as _, Row as _};

async fn fresh() -> Result<PgConnection, Error> {
    let mut c = PgConnection::connect(&url()).await?;
    sqlx::query("DELETE FROM items").execute(&mut c).await?;
    Ok(c)
}

fn state<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => "no error".to_owned(),
        Err(Error::Database(error)) => error.code().unwrap_or_default().into_owned(),
        Err(error) => error.to_string(),
    }
}

async fn text(c: &mut PgConnection, query: &str) -> Result<String, Error> {
    sqlx::query_scalar(query).fetch_one(c).await
}

async fn count(c: &mut PgConnection) -> Result<i64, Error> {
    sqlx::query_scalar("SELECT count(*) FROM items").fetch_one(c).await
}

async fn connect() -> Outcome {
    let mut c = fresh().await?;
    c.ping().await?;
    Ok(format!("{}", text(&mut c, "SHOW application_name").await? == var("PGAPPNAME")))
}

async fn types() -> Outcome {
    let mut c = fresh().await?;
    let row = sqlx::query("SELECT $1, $2, $3::text, $4, $5, $6, $7, ROW(1, 'x')::items")
        .bind(1).bind("é").bind(None::<&str>).bind(true).bind(1.5_f64).bind(vec![1, 2]).bind(vec![0_u8, 255])
        .fetch_one(&mut c)
        .await;
    let odd = state(row);
    let row = sqlx::query("SELECT $1, $2, $3::text, $4, $5, $6, $7")
        .bind(1).bind("é").bind(None::<&str>).bind(true).bind(1.5_f64).bind(vec![1, 2]).bind(vec![0_u8, 255])
        .fetch_one(&mut c)
        .await?;
    type Row = (i32, String, Option<String>, bool, f64, Vec<i32>, Vec<u8>);
    let seen: Row = (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4), row.get(5), row.get(6));
    Ok(format!("{odd} {seen:?}"))
}

async fn prepared() -> Outcome {
    let options: PgConnectOptions = url().parse()?;
    // A small cache closes what it throws out.
    let mut c = PgConnection::connect_with(&options.statement_cache_capacity(3)).await?;
    let mut total = 0;
    for n in 0..30 {
        let plus = format!("SELECT $1::int + {}", n % 5);
        total += sqlx::query_scalar::<_, i32>(&plus).bind(n).fetch_one(&mut c).await?;
    }
    let wrong = state(sqlx::query("SELECT nowhere").execute(&mut c).await);
    c.clear_cached_statements().await?;
    let once: i32 = sqlx::query_scalar("SELECT $1::int").bind(1).persistent(false).fetch_one(&mut c).await?;
    Ok(format!("{total} {wrong} {once}"))
}

async fn transaction() -> Outcome {
    let mut c = fresh().await?;
    let mut outer = c.begin().await?;
    sqlx::query("INSERT INTO items (id) VALUES (1)").execute(&mut *outer).await?;
    let mut inner = outer.begin().await?;
    sqlx::query("INSERT INTO items (id) VALUES (2)").execute(&mut *inner).await?;
    inner.rollback().await?;
    outer.commit().await?;
    let mut serial = c.begin_with("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY").await?;
    let level = text(&mut serial, "SHOW transaction_isolation").await?;
    let refused = state(sqlx::query("INSERT INTO items (id) VALUES (3)").execute(&mut *serial).await);
    let next = state(sqlx::query("SELECT 1").execute(&mut *serial).await);
    drop(serial);
    Ok(format!("{level} {refused} {next} {}", count(&mut c).await?))
}

async fn error() -> Outcome {
    let mut c = fresh().await?;
    sqlx::query("INSERT INTO items (id) VALUES (1)").execute(&mut c).await?;
    let mut states = Vec::new();
    for text in ERRORS {
        states.push(state(sqlx::query(text).execute(&mut c).await));
        states.push(state(sqlx::raw_sql(text).execute(&mut c).await));
    }
    Ok(format!("{states:?} {}", count(&mut c).await?))
}

async fn batch() -> Outcome {
    let mut c = fresh().await?;
    let ids: Vec<i32> = (0..ROWS).collect();
    sqlx::query("INSERT INTO items (id) SELECT * FROM unnest($1::int[])").bind(&ids).execute(&mut c).await?;
    let failed = state(sqlx::raw_sql("INSERT INTO items (id) VALUES (5000); SELECT 1/0").execute(&mut c).await);
    let several = sqlx::raw_sql("SELECT 1; SELECT 2").fetch_all(&mut c).await?.len();
    Ok(format!("{failed} {several} {}", count(&mut c).await?))
}

async fn copy() -> Outcome {
    let mut c = fresh().await?;
    sqlx::query("DELETE FROM own_loads").execute(&mut c).await?;
    let mut sink = c.copy_in_raw("COPY loads (id, body) FROM STDIN").await?;
    for n in 0..ROWS {
        sink.send(format!("{n}\trow {n}\n").into_bytes()).await?;
    }
    let written = sink.finish().await?;
    let size = c.copy_out_raw("COPY (SELECT id, body FROM own_loads) TO STDOUT").await?
        .try_fold(0, async |size, block| Ok(size + block.len())).await?;
    let mut bad = c.copy_in_raw("COPY loads (id, body) FROM STDIN").await?;
    bad.send(&b"rubbish\n"[..]).await?;
    let failed = state(bad.finish().await);
    let aborted = state(c.copy_in_raw("COPY loads (id, body) FROM STDIN").await?.abort("no more").await);
    Ok(format!("{written} {size} {failed} {aborted} {}", count(&mut c).await?))
}

async fn cursor() -> Outcome {
    let mut c = fresh().await?;
    let mut rows = sqlx::query_scalar::<_, i32>("SELECT generate_series(1, 1000)").fetch(&mut c);
    let first = rows.try_next().await?;
    drop(rows);
    Ok(format!("{first:?} {}", count(&mut c).await?))
}

async fn setting() -> Outcome {
    let options: PgConnectOptions = url().parse()?;
    let mut c = PgConnection::connect_with(&options.options([("work_mem", "5MB")])).await?;
    let mut seen = vec![text(&mut c, "SHOW work_mem").await?];
    c.execute("SET work_mem = '7MB'").await?;
    seen.push(text(&mut c, "SHOW work_mem").await?);
    let mut t = c.begin().await?;
    t.execute("SET LOCAL work_mem = '9MB'").await?;
    seen.push(text(&mut t, "SHOW work_mem").await?);
    t.commit().await?;
    sqlx::query("SELECT set_config('TimeZone', $1, false)").bind("Asia/Tokyo").execute(&mut c).await?;
    seen.extend([text(&mut c, "SHOW work_mem").await?, text(&mut c, "SHOW TimeZone").await?]);
    c.execute("RESET work_mem; SET statement_timeout = 200").await?;
    seen.extend([text(&mut c, "SHOW work_mem").await?, state(c.execute("SELECT pg_sleep(20)").await)]);
    Ok(seen.join(" "))
}

async fn large() -> Outcome {
    let mut c = fresh().await?;
    let value = text(&mut c, "SELECT repeat('x', 20000000)").await?;
    let echo: i32 = sqlx::query_scalar("SELECT length($1)").bind("y".repeat(10_000_000)).fetch_one(&mut c).await?;
    let rows = sqlx::query("SELECT n, md5(n::text) FROM generate_series(1, 100000) n").fetch_all(&mut c).await?;
    Ok(format!("{} {echo} {}", value.len(), rows.len()))
}

async fn concurrent() -> Outcome {
    let mut c = fresh().await?;
    let pool = PgPoolOptions::new().max_connections(8).connect(&url()).await?;
    let insert = async |n: i32| sqlx::query("INSERT INTO items (id) VALUES ($1)").bind(n).execute(&pool).await;
    future::try_join_all((0..160).map(insert)).await?;
    pool.close().await;
    Ok(format!("{}", count(&mut c).await?))
}

async fn session_state() -> Outcome {
    let mut c = fresh().await?;
    c.execute("CREATE TEMP TABLE kept (n int)").await?;
    Ok(state(c.execute("INSERT INTO kept VALUES (1)").await))
}

/// sqlx serialises its migrations by an advisory lock of the session.
async fn advisory_lock() -> Outcome {
    let (mut c, mut other) = (fresh().await?, fresh().await?);
    // Two columns of runs may share the server: the key is this program's own.
    let key = i64::from(std::process::id());
    sqlx::query("SELECT pg_advisory_lock($1)").bind(key).execute(&mut c).await?;
    let taken: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(key).fetch_one(&mut other).await?;
    Ok(format!("{taken}"))
}

async fn listen() -> Outcome {
    let mut listener = PgListener::connect(&url()).await?;
    let listening = state(listener.listen("cases").await);
    fresh().await?.execute("NOTIFY cases, 'hello'").await?;
    let heard = tokio::time::timeout(Duration::from_millis(500), listener.recv()).await;
    Ok(format!("{listening} {:?}", heard.ok().and_then(Result::ok).map(|n| n.payload().to_owned())))
}

async fn tenant() -> Outcome {
    let mut c = fresh().await?;
    c.execute("INSERT INTO items (id) VALUES (1)").await?;
    Ok(owners(&sqlx::query_scalar::<_, String>("SELECT owner FROM items").fetch_all(&mut c).await?))
}

async fn token() -> Outcome {
    let mut c = fresh().await?;
    let mut seen = vec![text(&mut c, "SELECT owner()").await?];
    sqlx::query("SELECT set_config('pgtenant.token', $1, false)").bind(var("CASES_TOKEN")).execute(&mut c).await?;
    seen.push(text(&mut c, "SELECT owner()").await?);
    c.execute("RESET pgtenant.token").await?;
    seen.push(text(&mut c, "SELECT owner()").await?);
    Ok(owners(&seen))
}

#[tokio::main]
async fn main() {
    let all = cases![
        connect, types, prepared, transaction, error, batch, copy, cursor, setting, large, concurrent, session_state,
        advisory_lock, listen, tenant, token,
    ];
    run("sqlx 0.8.6", all).await;
}
