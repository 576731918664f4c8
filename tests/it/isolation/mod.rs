//! Attacks as data: every sequence of the files beside this one, through the proxy and past it, and, by
//! `make isolation`, against other poolers. Of each it is asserted that what comes out is what the file says, and that
//! the canary row of the other organization is unchanged and unseen, whatever the file says.

mod actor;
mod crowd;
mod data;
mod forged;
pub mod report;
mod stage;

use std::path::PathBuf;

use pgtenant::cli::demo::throwaway::Options;

use crate::harness::gate::Gate;
use crate::harness::postgres::all_bins;
use data::classes;
use stage::{Stage, Target};

/// Before one server, so that whoever comes next finds what the last one left.
fn gate(stage: &Stage, mode: &str) -> crate::harness::gate::Setup {
    // A session keeps its server: there is one for each who plays.
    let size = if mode == "session" { 3 } else { 1 };
    Gate::with(&stage.database).mode(mode).pool_size(size).set(
        "databases.app.pool",
        "wait_timeout",
        "\"20s\"",
    )
}

async fn every_sequence(bin: PathBuf, mode: &str) {
    let classes = classes();
    let stage = Stage::set(&Options { bin: Some(bin), ..Options::default() }, true, &classes).await;
    let target = match mode {
        "past" => Target::past(&stage.database),
        mode => Target::gate(gate(&stage, mode).run().await),
    };
    let version = stage.shared.server.version_major();
    let mut wrong = Vec::new();
    for class in &classes {
        for sequence in class.sequences.iter().filter(|one| target.suits(one, version)) {
            let found = stage.play(&target, sequence).await;
            wrong.extend(found.iter().map(|what| format!("{}: {}: {what}", class.class, sequence.name)));
        }
    }
    assert!(wrong.is_empty(), "PostgreSQL {version}, {mode}:\n{}", wrong.join("\n"));
}

#[test]
fn there_are_enough_of_them_and_each_has_a_name() {
    let names: Vec<_> = classes().iter().flat_map(|c| c.sequences.iter().map(|s| s.name.clone())).collect();
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len());
    assert!(names.len() >= 120, "{}", names.len());
}

#[tokio::test]
async fn no_sequence_gets_through_the_proxy() {
    for bin in all_bins() {
        every_sequence(bin, "transaction").await;
    }
}

/// On the oldest and the newest of those that are there.
#[tokio::test]
async fn nor_in_session_mode() {
    let bins = all_bins();
    for bin in [bins.first(), bins.last()].into_iter().flatten() {
        every_sequence(bin.clone(), "session").await;
    }
}

#[tokio::test]
async fn nor_past_it() {
    for bin in all_bins() {
        every_sequence(bin, "past").await;
    }
}
