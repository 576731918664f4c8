//! PostgreSQL moves to another address under its name.

use std::process::Command;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::harness::gate::Gate;
use crate::harness::{client, eventually, org, postgres};

/// Another address of PostgreSQL's: what comes there goes to this port.
pub fn address(listener: TcpListener, port: u16) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut lines = tokio::task::JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            lines.spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    })
}

#[tokio::test]
async fn a_name_is_looked_up_anew_at_each_connection() {
    let may_mount =
        Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success());
    if !may_mount {
        println!("not tried: a process of its own view of /etc/hosts needs the right to mount");
        return;
    }
    let database = postgres::shared().database().await;
    let before = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = before.local_addr().unwrap().port();
    let after = TcpListener::bind(("127.0.0.3", port)).await.unwrap();
    let (before, after) = (address(before, database.port), address(after, database.port));
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.2 database.test\n").unwrap();
    let setup = Gate::with(&database).hosts(&hosts);
    let setup =
        setup.set("servers.main", "host", "\"database.test\"").set("servers.main", "port", &port.to_string());
    let gate = setup.pool_size(2).run().await;
    let client = client::connect(&gate, "app", &gate.token(org(1)).sign()).await;
    let rows = "SELECT count(*) FROM items";
    let expected = client::value(&client, rows).await.unwrap();
    // In place: it is this file that the proxy sees.
    std::fs::write(&hosts, "127.0.0.3 database.test\n").unwrap();
    before.abort();
    let _ = before.await;
    eventually("the new address", async || {
        let client = client::try_connect(&gate, "app", &gate.token(org(1)).sign()).await.ok()?;
        (client::value(&client, rows).await.ok()? == expected).then_some(())
    })
    .await;
    after.abort();
}
