//! The PostgreSQL protocol as bytes and types; no sockets. `pgwire` lives here and nowhere else.
//!
//! What strangers send is read by our own strict parsers, which look at headers and never trust a length;
//! what the proxy itself says is encoded by `pgwire`.

pub mod frame;
pub mod message;
pub mod report;
pub mod speak;
pub mod startup;
pub mod tag;
pub mod violation;
