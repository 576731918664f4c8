//! Sockets that speak frames: accepting, dialling, TLS on both sides.

pub mod buffer;
pub mod dial;
pub mod end_point;
pub mod https;
pub mod listen;
pub mod stream;
pub mod tls;
pub mod watched;
pub mod way;
