//! One client, first byte to last: opening, login, relay, farewell. Each phase is its own type.

mod accounts;
mod bar;
pub mod cancel;
mod client;
mod desk;
mod farewell;
mod gate;
mod guarded;
mod login;
mod message;
mod opening;
mod permitted;
mod plain;
pub(crate) mod prepared;
mod relay;
mod reported;
pub(crate) mod requests;
mod throttle;
mod tokens;
mod turn;

use std::sync::Arc;
use std::time::Duration;

pub use gate::{Gate, GateSettings, Presence};

use crate::net::listen::Peer;
use crate::net::stream::Socket;
use crate::pool::server::Shard;
use opening::Opening;

/// Once the house is closing, who has not signed in within this time is not waited for.
const LAST_SIGN_INS: Duration = Duration::from_secs(1);

/// How long a client that there is no room for may take to hear so.
const TURNED_AWAY: Duration = Duration::from_secs(3);

/// Tells a client that there is no room, in TLS if it asks for that; a cancel request is dealt with. Too many at a time
/// are closed without a word.
pub async fn turn_away(gate: Arc<Gate>, socket: Socket, peer: Peer) {
    let Ok(_place) = gate.turned_away.try_acquire() else { return };
    let opening = Opening::beyond_limit(gate.clone(), socket, peer);
    // Nobody signs in: what it would go on with is dropped, and there is none.
    let _ = tokio::time::timeout(TURNED_AWAY, opening.run()).await;
}

/// Serves one client from its first byte to its last.
pub async fn serve(gate: Arc<Gate>, socket: Socket, peer: Peer, shard: Shard) {
    let deadline = gate.sign_in_deadline();
    let closing = {
        let gate = gate.clone();
        async move {
            gate.drained().await;
            tokio::time::sleep(LAST_SIGN_INS).await;
        }
    };
    let opening = Opening::new(gate, socket, peer, shard);
    // Boxed: what signing in takes is given back when it is over.
    let signed_in = Box::pin(async move {
        let signed_in = tokio::time::timeout_at(deadline, async {
            let login = opening.run().await?;
            login.run().await
        });
        tokio::select! {
            signed_in = signed_in => signed_in,
            () = closing => Ok(None),
        }
    });
    match signed_in.await {
        Ok(Some(relay)) => Box::pin(relay.run()).await,
        Ok(None) => {} // told why, or a cancel request dealt with
        Err(_) => tracing::info!(%peer, "a client did not sign in within sign_in_timeout"),
    }
}
