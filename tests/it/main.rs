//! Black-box tests: the real binary before a real PostgreSQL, one file per feature.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod ground;
mod harness;
mod isolation;
