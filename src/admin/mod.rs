//! For operators: HTTP endpoints.

pub mod http;
