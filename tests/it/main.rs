//! Black-box tests: the real binary before a real PostgreSQL that the tests started themselves; one file per feature.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod certificates;
mod channel_binding;
mod cleaning;
mod commands;
mod differential;
mod direct_tls;
mod ground;
mod harness;
mod install;
mod isolation;
mod operations;
mod pipelines;
mod pool_modes;
mod prepared;
mod protocol;
mod refusals;
mod renewal;
mod seal;
mod settings;
mod sign_in;
mod strangers;
mod tls;
mod transactions;
mod unix;
mod versions;
