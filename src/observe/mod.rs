//! How the program reports on itself: log and metrics.

pub mod log;
pub mod metrics;
