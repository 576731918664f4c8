//! Connections and turns: servers, who holds them, and who is next.
//!
//! [`Pool`] is the servers of one database and one role. [`server`] holds the types of custody (clean, bound, used),
//! [`shelf`], [`shares`] and [`guests`] the pure decisions, [`queue`] who waits, [`ledger`] what a server still owes.

pub mod answers;
pub mod budget;
mod change;
mod clock;
pub mod due;
mod guests;
pub mod holder;
mod inquiry;
mod kept;
mod lease;
mod lease_state;
pub mod ledger;
mod pace;
mod patience;
mod queue;
mod returned;
pub mod server;
pub mod shares;
pub mod shelf;
pub mod statement;
mod supply;
pub mod switch;
mod taking;
mod terms;

pub use lease::{Pool, PoolSettings};
pub use queue::{Flow, Unserved};
pub use terms::Terms;
