//! What may this identity touch? Pure: no sockets, no clock; time is an argument.

pub mod blocks;
pub mod context;
pub mod guard;
pub mod inert;
pub mod revoked;
pub(crate) mod scanner;
pub mod seal;
pub mod settings;
pub mod stakes;
pub mod statements;
pub mod text;
pub mod token_command;
mod words;
