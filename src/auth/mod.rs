//! Who is this? Tokens and SCRAM; no client sockets.

pub mod bearer;
pub mod scram;
pub mod signing;
mod strict_json;
pub mod token;
