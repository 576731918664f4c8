//! pgtenant: tenant-aware connection pooling for PostgreSQL.
//!
//! The house, floor by floor; imports point downward only (`tests/tidy.rs` keeps it so).
//!
//! | floor | module | what it does |
//! |---|---|---|
//! | 0 | [`config`] | a file becomes a `Config` that cannot be wrong |
//! | 0 | [`wire`] | the protocol as bytes and types; no sockets |
//! | 0 | [`observe`] | how the program reports on itself |
//! | 1 | [`net`] | sockets that speak frames: streams, dialling, TLS |
//! | 1 | [`auth`] | who is this? tokens and SCRAM |
//! | 2 | [`tenancy`] | what may this identity touch? context, seal, settings |
//! | 3 | [`pool`] | servers, leases, turns |
//! | 4 | [`session`] | one client, first byte to last |
//! | 5 | [`admin`] | HTTP for operators |
//! | 5 | [`architect`] | the SQL interface and its installation |
//! | 6 | [`server`] | assembly: accept, shards, shutdown |
//! | 7 | [`cli`] | the door |

pub mod admin;
pub mod architect;
pub mod auth;
pub mod cli;
pub mod config;
pub mod net;
pub mod observe;
pub mod pool;
pub mod server;
pub mod session;
pub mod tenancy;
pub mod wire;

/// What `fuzz/` alone reaches, and no other build has.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::session::prepared::ClientStatements;
    pub use crate::session::requests::Requests;
    pub use crate::tenancy::inert::callable;
    pub use crate::tenancy::scanner::{Scanner, Token};
}
