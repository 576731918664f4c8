//! One client, first byte to last: opening, login, relay, farewell. Each phase is its own type.

pub mod cancel;
mod client;
mod farewell;
mod gate;
mod login;
mod message;
mod opening;
mod permitted;
mod prepared;
mod relay;
mod reported;
mod requests;
mod turn;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

pub use gate::{Gate, GateSettings, Presence};

use crate::pool::server::Shard;
use opening::Opening;

/// Once the house is closing, who has not signed in within this time is not waited for.
const LAST_SIGN_INS: Duration = Duration::from_secs(1);

/// Serves one client from its first byte to its last.
pub async fn serve(gate: Arc<Gate>, tcp: TcpStream, peer: SocketAddr, shard: Shard) {
    let deadline = gate.sign_in_deadline();
    let closing = {
        let gate = gate.clone();
        async move {
            gate.drained().await;
            tokio::time::sleep(LAST_SIGN_INS).await;
        }
    };
    let Ok(opening) = Opening::new(gate, tcp, peer, shard) else { return };
    let signed_in = tokio::time::timeout_at(deadline, async {
        let login = opening.run().await?;
        login.run().await
    });
    let signed_in = tokio::select! {
        signed_in = signed_in => signed_in,
        () = closing => return,
    };
    match signed_in {
        Ok(Some(relay)) => relay.run().await,
        Ok(None) => {} // told why, or a cancel request dealt with
        Err(_) => tracing::info!(%peer, "a client did not sign in within sign_in_timeout"),
    }
}
