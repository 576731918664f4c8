//! diesel-async: cases.

use diesel::prelude::{ExpressionMethods as _, IntoSql as _, QueryDsl as _, QueryableByName};
use diesel::result::Error;
use diesel::{dsl, sql_query, sql_types};
use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::{AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _, SimpleAsyncConnection as _};
use futures_util::future;
use pgtenant_drivers::{ERRORS, Outcome, ROWS, cases, owners, run, url, var};

diesel::table! {
    items (owner, id) {
        owner -> Text,
        id -> Integer,
        body -> Nullable<Text>,
    }
}

#[diesel::declare_sql_function]
extern "SQL" {
    fn owner() -> sql_types::Text;
    fn current_setting(name: sql_types::Text) -> sql_types::Text;
    fn set_config(name: sql_types::Text, value: sql_types::Text, is_local: sql_types::Bool) -> sql_types::Text;
}

#[derive(QueryableByName)]
struct Name {
    #[diesel(sql_type = sql_types::Text)]
    name: String,
}

async fn fresh() -> Result<AsyncPgConnection, Box<dyn std::error::Error + Send + Sync>> {
    let mut c = AsyncPgConnection::establish(&url()).await?;
    diesel::delete(items::table).execute(&mut c).await?;
    Ok(c)
}

/// Diesel keeps no SQLSTATE, but a kind or PostgreSQL's words.
fn state<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => "no error".to_owned(),
        Err(Error::DatabaseError(kind, words)) => format!("{kind:?} {}", words.message()),
        Err(error) => error.to_string(),
    }
}

async fn setting_of(c: &mut AsyncPgConnection, name: &str) -> Result<String, Error> {
    dsl::select(current_setting(name)).get_result(c).await
}

async fn connect() -> Outcome {
    let mut c = fresh().await?;
    Ok(format!("{}", setting_of(&mut c, "application_name").await? == var("PGAPPNAME")))
}

async fn prepared() -> Outcome {
    let mut c = fresh().await?;
    diesel::insert_into(items::table).values((items::id.eq(1), items::body.eq("x"))).execute(&mut c).await?;
    let mut seen = 0;
    for n in 0..20 {
        seen += items::table.filter(items::id.eq(n % 2)).count().get_result::<i64>(&mut c).await?;
    }
    Ok(format!("{seen}"))
}

async fn transaction() -> Outcome {
    let mut c = fresh().await?;
    let insert = |n: i32| diesel::insert_into(items::table).values(items::id.eq(n));
    c.transaction(async |c| {
        insert(1).execute(c).await?;
        let nested: Result<(), Error> = c.transaction(async |c| {
            insert(2).execute(c).await?;
            Err(Error::RollbackTransaction)
        }).await;
        assert!(nested.is_err());
        Ok::<(), Error>(())
    }).await?;
    let serial = c.build_transaction().serializable().read_only().run(async |c| insert(3).execute(c).await).await;
    Ok(format!("{} {}", state(serial), items::table.count().get_result::<i64>(&mut c).await?))
}

async fn error() -> Outcome {
    let mut c = fresh().await?;
    diesel::insert_into(items::table).values(items::id.eq(1)).execute(&mut c).await?;
    let mut states = Vec::new();
    for text in ERRORS {
        states.push(state(sql_query(text).execute(&mut c).await));
    }
    Ok(format!("{states:?} {}", items::table.count().get_result::<i64>(&mut c).await?))
}

async fn batch() -> Outcome {
    let mut c = fresh().await?;
    let rows: Vec<_> = (0..ROWS).map(|n| (items::id.eq(n), items::body.eq("b"))).collect();
    let inserted = diesel::insert_into(items::table).values(&rows).execute(&mut c).await?;
    c.batch_execute("UPDATE items SET body = 'c'; DELETE FROM items WHERE id < 10").await?;
    Ok(format!("{inserted} {}", items::table.count().get_result::<i64>(&mut c).await?))
}

async fn pipeline() -> Outcome {
    let c = fresh().await?;
    let one = async |n: i32| dsl::select(n.into_sql::<sql_types::Integer>()).get_result::<i32>(&mut &c).await;
    Ok(format!("{}", future::try_join_all((0..100).map(one)).await?.iter().sum::<i32>()))
}

async fn setting() -> Outcome {
    let mut c = fresh().await?;
    c.batch_execute("SET work_mem = '7MB'").await?;
    let mut seen = vec![setting_of(&mut c, "work_mem").await?];
    seen.push(c.transaction(async |c| {
        c.batch_execute("SET LOCAL work_mem = '9MB'").await?;
        setting_of(c, "work_mem").await
    }).await?);
    seen.push(setting_of(&mut c, "work_mem").await?);
    c.batch_execute("RESET work_mem").await?;
    seen.push(setting_of(&mut c, "work_mem").await?);
    Ok(seen.join(" "))
}

async fn concurrent() -> Outcome {
    let mut c = fresh().await?;
    let pool = Pool::builder(AsyncDieselConnectionManager::<AsyncPgConnection>::new(url())).max_size(8).build()?;
    let insert = async |n: i32| {
        let mut c = pool.get().await.map_err(|error| error.to_string())?;
        let insert = diesel::insert_into(items::table).values(items::id.eq(n));
        insert.execute(&mut c).await.map_err(|error| error.to_string())
    };
    future::try_join_all((0..160).map(insert)).await?;
    Ok(format!("{}", items::table.count().get_result::<i64>(&mut c).await?))
}

async fn session_state() -> Outcome {
    let mut c = fresh().await?;
    c.batch_execute("CREATE TEMP TABLE kept (n int)").await?;
    Ok(state(c.batch_execute("INSERT INTO kept VALUES (1)").await))
}

async fn tenant() -> Outcome {
    let mut c = fresh().await?;
    diesel::insert_into(items::table).values(items::id.eq(1)).execute(&mut c).await?;
    Ok(owners(&items::table.select(items::owner).load::<String>(&mut c).await?))
}

async fn token() -> Outcome {
    let mut c = fresh().await?;
    let mut seen = vec![dsl::select(owner()).get_result::<String>(&mut c).await?];
    dsl::select(set_config("pgtenant.token", var("CASES_TOKEN"), false)).execute(&mut c).await?;
    seen.push(dsl::select(owner()).get_result::<String>(&mut c).await?);
    c.batch_execute("RESET pgtenant.token").await?;
    let now: Name = sql_query("SELECT owner() AS name").get_result(&mut c).await?;
    seen.push(now.name);
    Ok(owners(&seen))
}

#[tokio::main]
async fn main() {
    let all = cases![
        connect, prepared, transaction, error, batch, pipeline, setting, concurrent, session_state, tenant, token,
    ];
    run("diesel-async 0.9.2", all).await;
}
