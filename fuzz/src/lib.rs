//! What several targets share.

pub mod client;
pub mod issuers;
pub mod postgres;
