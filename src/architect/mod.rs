//! The database's side: the SQL interface in schema `pgtenant`, and its installation.

pub mod connect;
pub mod install;
