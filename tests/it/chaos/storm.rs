//! Connections by the thousand, half of them rubbish: the good ones are all served, and nothing is left of any.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_postgres::NoTls;

use super::ground::Ground;
use super::pooler::{Pooler, peer};
use super::report::{Report, seconds};
use super::session::Session;
use super::{seed, size};
use crate::harness::client::{message, startup};
use crate::harness::{Dice, PATIENCE, eventually, org};

const ORGANIZATIONS: u32 = 10;

/// After each of them everyone is gone.
const WAVES: u64 = 5;

/// Above what is a tenth more than before.
const SLACK_KIB: u64 = 6 * 1024;

/// What is counted of a storm.
#[derive(Default)]
struct Count {
    next: AtomicU64,
    served: AtomicU64,
    unserved: AtomicU64,
    rubbish: AtomicU64,
}

/// What came of all waves.
#[derive(Default)]
struct Course {
    served: u64,
    unserved: u64,
    rubbish: u64,
    took: Duration,
    /// KiB ahead of it.
    fresh: u64,
    /// Descriptors and KiB after each wave.
    after: Vec<(usize, u64)>,
}

impl Course {
    async fn run(pooler: Pooler, connections: u64, at_once: u64, seed: u64) -> Self {
        let mut course = Self { fresh: pooler.resident_kib(), ..Self::default() };
        let credentials: Vec<_> = (1..=ORGANIZATIONS).map(|n| pooler.credential(n)).collect();
        let target = Arc::new(Target { port: pooler.port(), is_ours: pooler.is_ours(), credentials });
        let begun = Instant::now();
        for wave in 0..WAVES {
            let count = storm(&target, connections / WAVES, at_once, seed ^ wave).await;
            course.served += load(&count.served);
            course.unserved += load(&count.unserved);
            course.rubbish += load(&count.rubbish);
            course.after.push(settled(&pooler).await);
        }
        course.took = begun.elapsed();
        course
    }

    /// Of waves, counted from 0.
    fn descriptors(&self, waves: [usize; 2]) -> String {
        waves.map(|wave| self.after[wave].0.to_string()).join(", then ")
    }

    fn memory(&self, waves: [usize; 2]) -> String {
        waves.map(|wave| format!("{} KiB", self.after[wave].1)).join(", then ")
    }
}

const LAST: usize = WAVES as usize - 1;

#[tokio::test]
async fn a_storm_of_connections_leaves_nothing() {
    let connections = size("CHAOS_CONNECTIONS", 600, 50_000);
    let at_once = size("CHAOS_AT_ONCE", 100, 2_000);
    let seed = seed("storm");
    let ground = Ground::lay(ORGANIZATIONS, 8).await;
    let setup = ground.gate(ground.database.port).set("databases.app.pool", "wait_timeout", "\"30s\"");
    let mut report = Report::new("Connections", &ground, seed);
    let ours = Course::run(Pooler::ours(setup).await, connections, at_once, seed).await;
    let mut theirs = None;
    if let Some(program) = peer() {
        let pooler = ground.pooler(ground.database.port, Some(&program)).await;
        theirs = Some(Course::run(pooler, connections, at_once, seed).await);
    }
    let beside = |figure: &dyn Fn(&Course) -> String| theirs.as_ref().map(figure);
    let Course { served, unserved, rubbish, .. } = ours;
    report.row_beside(
        "connections",
        "50000",
        &(served + rubbish).to_string(),
        beside(&|course| (course.served + course.rubbish).to_string()),
        served + rubbish >= 50_000,
    );
    report.row_beside(
        "good ones that were not served",
        "0",
        &unserved.to_string(),
        beside(&|course| course.unserved.to_string()),
        unserved == 0,
    );
    let keeps_descriptors = ours.after[LAST].0 <= ours.after[0].0 + 8;
    report.row_beside(
        "descriptors of the proxy after the first wave, and in the end",
        "no more",
        &ours.descriptors([0, LAST]),
        beside(&|course| course.descriptors([0, LAST])),
        keeps_descriptors,
    );
    let mut memory = |what: &str, since: usize| {
        let (before, after) = (ours.after[since].1, ours.after[LAST].1);
        let (reached, peer) = (ours.memory([since, LAST]), beside(&|course| course.memory([since, LAST])));
        let keeps = after <= before + before / 10 + SLACK_KIB;
        report.row_beside(what, "no more than a tenth and 6 MiB above", &reached, peer, keeps);
        keeps
    };
    // What the first waves need at once is no leak: a leak goes on.
    let keeps_memory = memory("resident memory after the third of five waves, and in the end: a leak", 2);
    memory("resident memory after the first wave, and in the end: what is kept", 0);
    let each = |course: &Course| {
        let after: Vec<_> = course.after.iter().map(|(_, memory)| format!("{memory} KiB")).collect();
        format!("{} KiB before, and after each fifth: {}", course.fresh, after.join(", "))
    };
    report.text(&format!(
        "{at_once} at a time, {} in all: {served} that asked a query, and {rubbish} that sent random bytes, half a start-up, TLS, \
         a length that lies, a wrong token or password. The proxy had {}.",
        seconds(ours.took),
        each(&ours)
    ));
    if let Some(course) = &theirs {
        let took = seconds(course.took);
        report.text(&format!(
            "PgBouncer, which asks for the role's password instead of a token: {took}; {}.",
            each(course)
        ));
    }
    report.write();
    assert_eq!(unserved, 0, "CHAOS_SEED={seed}");
    assert!(keeps_descriptors, "{:?}", ours.after);
    assert!(keeps_memory, "{:?}", ours.after);
}

fn load(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

/// Whom they connect to.
struct Target {
    port: u16,
    is_ours: bool,
    /// Of each organization.
    credentials: Vec<String>,
}

async fn storm(target: &Arc<Target>, connections: u64, at_once: u64, seed: u64) -> Arc<Count> {
    let count = Arc::new(Count::default());
    let mut crowd = Vec::new();
    for n in 0..at_once {
        let (count, target) = (count.clone(), target.clone());
        let mut dice = Dice(seed ^ (n + 1).wrapping_mul(0x5851_f42d_4c95_7f2d));
        crowd.push(tokio::spawn(async move {
            loop {
                let turn = count.next.fetch_add(1, Ordering::Relaxed);
                if turn >= connections {
                    return;
                }
                if turn % 2 == 0 {
                    let organization = dice.roll(u64::from(ORGANIZATIONS)) as usize;
                    match good(&target, organization, turn).await {
                        Ok(()) => count.served.fetch_add(1, Ordering::Relaxed),
                        Err(why) => {
                            println!("not served: {why}");
                            count.unserved.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                } else {
                    rubbish(&target, &mut dice, turn).await;
                    count.rubbish.fetch_add(1, Ordering::Relaxed);
                }
            }
        }));
    }
    for one in crowd {
        one.await.unwrap();
    }
    count
}

/// From many addresses of loopback, so that there are ports enough.
async fn dial(target: &Target, turn: u64) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if cfg!(target_os = "linux") {
        socket.bind(([127, 0, 0, 2 + (turn % 200) as u8], 0).into())?;
    }
    let stream = socket.connect(([127, 0, 0, 1], target.port).into()).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn good(target: &Target, organization: usize, turn: u64) -> Result<(), String> {
    let stream = dial(target, turn).await.map_err(|error| error.to_string())?;
    let credential = &target.credentials[organization];
    let mut session =
        Session::over(stream, credential).await.map_err(|lost| format!("signing in: {lost:?}"))?;
    let only = match target.is_ours {
        true => String::new(),
        false => format!(" WHERE organization_id = '{}'", org(organization as u32 + 1)),
    };
    let sql = format!("SELECT 'm{turn}', count(*), count(DISTINCT organization_id) FROM accounts{only}");
    let answer = session.query(&sql).await.map_err(|lost| format!("asking: {lost:?}"))?;
    let expected = [format!("m{turn}"), super::ledger::ACCOUNTS.to_string(), "1".to_owned()].map(Some);
    if answer.rows != [expected] {
        return Err(format!("{answer:?}"));
    }
    session.leave().await;
    Ok(())
}

/// Whatever comes of it, but it does not stay.
async fn rubbish(target: &Target, dice: &mut Dice, turn: u64) {
    let Ok(mut stream) = dial(target, turn).await else { return };
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    let start = startup(196_608, b"user\0app\0database\0app\0\0");
    let random: Vec<u8> = (0..1 + dice.roll(200)).map(|_| dice.roll(256) as u8).collect();
    let bytes = match dice.roll(8) {
        0 => random,
        1 => start[..1 + dice.roll(start.len() as u64 - 1) as usize].to_vec(),
        2 => [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &random].concat(),
        3 => startup(80_877_103, b""), // SSLRequest, and nothing after it
        4 => [&0x7fff_fff0_u32.to_be_bytes()[..], &random].concat(),
        5 => [&start[..], &message(b'p', b"eyJhbGciOiJFUzI1NiJ9.e30.AAAA\0")].concat(),
        6 => [&start[..], &message(b'Q', b"SELECT 1\0")].concat(),
        _ => {
            let mut config = tokio_postgres::Config::new();
            config.user("plain").password("wrong").dbname("app").connect_timeout(PATIENCE);
            let wrong = config.connect_raw(stream, NoTls).await;
            assert!(wrong.is_err(), "a wrong password is refused");
            return;
        }
    };
    let _ = stream.write_all(&bytes).await;
    // Some hear the answer, some are gone before it comes.
    let patience = Duration::from_millis(dice.roll(100));
    let mut answer = [0; 512];
    let _ = tokio::time::timeout(patience, async {
        while stream.read(&mut answer).await.is_ok_and(|length| length > 0) {}
    })
    .await;
}

/// Descriptors and memory (KiB) once all clients are gone.
async fn settled(pooler: &Pooler) -> (usize, u64) {
    if let Pooler::Ours(gate) = pooler {
        eventually("all clients to be gone", async || {
            let (_, metrics) = gate.http("/metrics").await;
            let clients = metrics.lines().filter(|line| line.starts_with("pgtenant_clients{"));
            clients.into_iter().all(|line| line.ends_with(" 0")).then_some(())
        })
        .await;
    }
    let (mut last, mut same) = (usize::MAX, 0);
    while same < 5 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        // 0 where the system does not tell.
        let now = std::fs::read_dir(format!("/proc/{}/fd", pooler.pid())).map_or(0, Iterator::count);
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    (last, pooler.resident_kib())
}
