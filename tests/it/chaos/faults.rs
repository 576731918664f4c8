//! Faults: what may happen to PostgreSQL and to the network, one at a time.

use std::process::Command;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, Config, NoTls};

use super::ground::{Between, Ground, kill};
use super::proxy::{Cut, Door, FaultProxy, Towards};
use crate::harness::postgres::password_of;
use crate::harness::{Dice, PATIENCE};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    RestartFast,
    RestartImmediate,
    BackendKilled,
    DiskFull,
    Frozen,
    OutOfConnections,
    PasswordChanged,
    ServersTerminated,
    ServersCut,
    ServersReset,
    SomeServersReset,
    ServersCutInAMessage,
    ServersStalled,
    ServersDelayed,
    ServersRefused,
    ServersUnheard,
    ClientsCut,
    ClientsCutInAMessage,
    ClientsStalled,
}

impl Fault {
    pub const ALL: [Self; 19] = [
        Self::RestartFast,
        Self::RestartImmediate,
        Self::BackendKilled,
        Self::DiskFull,
        Self::Frozen,
        Self::OutOfConnections,
        Self::PasswordChanged,
        Self::ServersTerminated,
        Self::ServersCut,
        Self::ServersReset,
        Self::SomeServersReset,
        Self::ServersCutInAMessage,
        Self::ServersStalled,
        Self::ServersDelayed,
        Self::ServersRefused,
        Self::ServersUnheard,
        Self::ClientsCut,
        Self::ClientsCutInAMessage,
        Self::ClientsStalled,
    ];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::RestartFast => "PostgreSQL restarted, fast, away for up to 2 s",
            Self::RestartImmediate => "PostgreSQL restarted, immediate, away for up to 2 s",
            Self::BackendKilled => "SIGKILL of a server process, crash recovery",
            Self::DiskFull => "no room for the write-ahead log (RLIMIT_FSIZE), PANIC and crash recovery",
            Self::Frozen => "SIGSTOP of PostgreSQL, SIGCONT within 1.5 s",
            Self::OutOfConnections => "PostgreSQL out of connections",
            Self::PasswordChanged => "the role's password changed, and back",
            Self::ServersTerminated => "pg_terminate_backend of some servers",
            Self::ServersCut => "all servers' connections closed (FIN)",
            Self::ServersReset => "all servers' connections reset (RST)",
            Self::SomeServersReset => "some servers' connections reset",
            Self::ServersCutInAMessage => "servers' connections cut in the middle of a message",
            Self::ServersStalled => "servers' connections stalled, up to 1.5 s",
            Self::ServersDelayed => "servers' connections delayed by up to 50 ms",
            Self::ServersRefused => "PostgreSQL's port closed, its connections reset",
            Self::ServersUnheard => "new connections to PostgreSQL accepted, and silence",
            Self::ClientsCut => "some clients' connections cut",
            Self::ClientsCutInAMessage => "clients' connections cut in the middle of a message",
            Self::ClientsStalled => "clients' connections stalled, up to 1 s",
        }
    }

    /// Makes it happen and undoes it. When PostgreSQL could be used again.
    pub async fn strike(self, ground: &Ground, between: &Between, dice: &mut Dice) -> Instant {
        let (back, front) = (&between.back, &between.front);
        let how = if dice.roll(2) == 0 { Cut::Fin } else { Cut::Rst };
        match self {
            Self::RestartFast => ground.restart(false, up_to(dice, 2_000)).await,
            Self::RestartImmediate => ground.restart(true, up_to(dice, 2_000)).await,
            Self::BackendKilled => backend_killed(ground).await,
            Self::DiskFull => disk_full(ground).await,
            Self::Frozen => frozen(ground, up_to(dice, 1_500)).await,
            Self::OutOfConnections => out_of_connections(ground, up_to(dice, 1_500)).await,
            Self::PasswordChanged => password_changed(ground, up_to(dice, 1_500)).await,
            Self::ServersTerminated => {
                let some = 1 + dice.roll(ground.pool_size as u64) as usize;
                terminate(ground, &ground.admin().await, some).await;
                Instant::now()
            }
            Self::ServersCut => now(back.cut_all(Cut::Fin)),
            Self::ServersReset => now(back.cut_all(Cut::Rst)),
            Self::SomeServersReset => now(back.cut_some(Cut::Rst, dice, 3)),
            Self::ServersCutInAMessage => {
                let towards = if dice.roll(2) == 0 { Towards::Client } else { Towards::Server };
                now(back.cut_all_after(how, towards, dice, 700))
            }
            Self::ServersStalled => stalled(back, up_to(dice, 1_500)).await,
            Self::ServersDelayed => {
                back.delay(up_to(dice, 50));
                tokio::time::sleep(up_to(dice, 1_500)).await;
                back.delay(Duration::ZERO);
                Instant::now()
            }
            Self::ServersRefused => shut(back, Door::Refusing, up_to(dice, 2_000)).await,
            Self::ServersUnheard => shut(back, Door::Mute, up_to(dice, 2_000)).await,
            Self::ClientsCut => now(front.cut_some(how, dice, 2)),
            Self::ClientsCutInAMessage => {
                let towards = if dice.roll(2) == 0 { Towards::Client } else { Towards::Server };
                now(front.cut_all_after(how, towards, dice, 700))
            }
            Self::ClientsStalled => stalled(front, up_to(dice, 1_000)).await,
        }
    }
}

fn up_to(dice: &mut Dice, milliseconds: u64) -> Duration {
    Duration::from_millis(1 + dice.roll(milliseconds))
}

fn now(_connections: usize) -> Instant {
    Instant::now()
}

async fn stalled(proxy: &FaultProxy, long: Duration) -> Instant {
    proxy.stall(true);
    tokio::time::sleep(long).await;
    proxy.stall(false);
    Instant::now()
}

async fn shut(proxy: &FaultProxy, door: Door, long: Duration) -> Instant {
    proxy.door(door);
    proxy.cut_all(Cut::Rst);
    tokio::time::sleep(long).await;
    proxy.door(Door::Open);
    Instant::now()
}

/// PostgreSQL ends all sessions and recovers.
async fn backend_killed(ground: &Ground) -> Instant {
    let admin = ground.admin().await;
    let Some(pid) = ground.servers(&admin).await.first().copied() else { return Instant::now() };
    kill("KILL", &[u32::try_from(pid).unwrap()]);
    // This session is one of those that end.
    while admin.batch_execute("SELECT 1").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    ground.admin().await;
    Instant::now()
}

/// PostgreSQL ignores SIGXFSZ, so that a limit on the size of files is to it as a full disk. The first who commits cannot
/// write its log, which is a PANIC; those who come after the recovery have room again.
async fn disk_full(ground: &Ground) -> Instant {
    let admin = ground.admin().await;
    let deadline = Instant::now() + PATIENCE;
    // There may be none yet after the fault before; and who has come since the last look is limited too.
    while admin.batch_execute("SELECT 1").await.is_ok() {
        assert!(Instant::now() < deadline, "nobody wrote to the log");
        let pids = admin.query(ground.servers_of_the_role(), &[]).await.unwrap_or_default();
        for pid in pids.iter().map(|row| row.get::<_, i32>(0)) {
            ground.as_its_owner(Command::new("prlimit").args([&format!("--pid={pid}"), "--fsize=0:"]));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ground.admin().await;
    Instant::now()
}

/// By a process that outlives this one, should it end meanwhile.
async fn frozen(ground: &Ground, long: Duration) -> Instant {
    let postmaster = ground.postmaster();
    // First of all who would start more.
    kill("STOP", &[postmaster]);
    let all = [vec![postmaster], ground.processes()].concat();
    let pids = all.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let script = format!("kill -STOP {pids}; sleep {:.3}; kill -CONT {pids}", long.as_secs_f64());
    let mut keeper = Command::new("/bin/sh").args(["-c", &script]).spawn().unwrap();
    tokio::task::spawn_blocking(move || keeper.wait()).await.unwrap().unwrap();
    Instant::now()
}

/// Sessions of another role take every place that comes free.
async fn out_of_connections(ground: &Ground, long: Duration) -> Instant {
    let admin = ground.admin().await;
    let mut config: Config = ground.database.url.parse().unwrap();
    config.user("plain").password(password_of("plain"));
    let mut sessions = Vec::new();
    let deadline = Instant::now() + long;
    let mut has_room = true;
    while Instant::now() < deadline {
        match config.connect(NoTls).await {
            Ok((client, connection)) => sessions.push((client, tokio::spawn(connection))),
            Err(_) if has_room => {
                has_room = false;
                terminate(ground, &admin, ground.pool_size / 2).await;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    for (client, connection) in sessions {
        drop(client);
        let _ = connection.await;
    }
    Instant::now()
}

async fn password_changed(ground: &Ground, long: Duration) -> Instant {
    let admin = ground.admin().await;
    admin.batch_execute("ALTER ROLE app PASSWORD 'another'").await.unwrap();
    terminate(ground, &admin, ground.pool_size / 2).await;
    tokio::time::sleep(long).await;
    let back = format!("ALTER ROLE app PASSWORD '{}'", password_of("app"));
    admin.batch_execute(&back).await.unwrap();
    Instant::now()
}

async fn terminate(ground: &Ground, admin: &Client, some: usize) {
    for pid in ground.servers(admin).await.into_iter().take(some.max(1)) {
        admin.query("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
    }
}
