//! Who holds a server, and is charged for its time.

use super::queue::Flow;
use super::shares::{Nanos, Since};

/// Since when a server is on somebody's account: until it is given back, or gone (see [`super::server::Place`]).
#[derive(Debug, Clone, Copy)]
pub struct Holder {
    /// Whose account.
    pub flow: Flow,
    /// When it was taken from the pool.
    pub since: Since,
    /// Since when it is a guest, if it is one (see [`super::guests`]).
    pub guest: Option<Nanos>,
}
