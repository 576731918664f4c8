//! The database's side: the SQL interface in schema `pgtenant`, its installation, and the way from one tenant to many.

pub mod apply;
pub mod backup;
pub mod catalog;
pub mod connect;
pub mod crossing;
pub mod guess;
pub mod install;
pub mod ledger;
pub mod losses;
pub mod mapping;
pub mod migrate;
pub mod migration;
pub mod names;
pub mod pace;
pub mod precheck;
pub mod promises;
pub mod report;
pub mod treatment;
pub mod verify;
pub mod workload;
