//! The ledger against sequences of PostgreSQL's own answers.
#![allow(clippy::unwrap_used)]

use super::*;

fn statement(id: u64) -> Arc<Statement> {
    Arc::new(Statement::new(id, b"select 1\0\0\0"))
}

fn batch() -> Ledger {
    let mut ledger = Ledger::default();
    ledger.push(Due::Binding);
    ledger.push(Due::Ensure(statement(1)));
    ledger.push(Due::Bind(None));
    ledger.push(Due::Execute(Deallocated::default()));
    ledger.push(Due::Sync);
    ledger
}

#[test]
fn the_binding_is_swallowed_and_the_rest_is_the_clients() {
    let mut ledger = batch();
    for kind in [tag::BIND_COMPLETE, tag::DATA_ROW, tag::COMMAND_COMPLETE] {
        assert_eq!(ledger.answer(kind).unwrap().0, Verdict::Swallow);
    }
    assert_eq!(ledger.ready(b'I').unwrap(), Verdict::Swallow);
    assert!(ledger.over().is_none(), "the client's batch is outstanding");
    let (verdict, on_server) = ledger.answer(tag::PARSE_COMPLETE).unwrap();
    assert_eq!((verdict, on_server.unwrap().id), (Verdict::Swallow, 1));
    assert_eq!(ledger.answer(tag::BIND_COMPLETE).unwrap().0, Verdict::Pass);
    assert_eq!(ledger.answer(tag::COMMAND_COMPLETE).unwrap().0, Verdict::Pass);
    assert!(ledger.over().is_none(), "no ReadyForQuery yet");
    assert_eq!(ledger.ready(b'I').unwrap(), Verdict::Pass);
    assert!(ledger.over().is_some());
}

#[test]
fn an_open_transaction_is_not_over() {
    let mut ledger = Ledger::default();
    ledger.push(Due::Query(None));
    ledger.ready(b'T').unwrap();
    assert!(ledger.over().is_none());
    ledger.push(Due::Query(None));
    ledger.ready(b'I').unwrap();
    assert!(ledger.over().is_some());
}

#[test]
fn a_flushed_batch_without_its_sync_is_not_over() {
    let mut ledger = Ledger::default();
    ledger.push(Due::ParseUnnamed(None));
    ledger.answer(tag::PARSE_COMPLETE).unwrap();
    assert!(!ledger.is_waiting());
    assert!(ledger.over().is_none());
    ledger.push(Due::Sync);
    ledger.ready(b'I').unwrap();
    assert!(ledger.over().is_some());
}

#[test]
fn an_error_skips_up_to_sync_and_takes_back_what_was_skipped() {
    let mut ledger = Ledger::default();
    ledger.push(Due::Bind(None));
    ledger.push(Due::Parse { name: Box::from(&b"s1"[..]), statement: statement(1) });
    ledger.push(Due::Ensure(statement(2)));
    ledger.push(Due::Said(Said::CloseComplete { closed: Some((Box::from(&b"s0"[..]), statement(3))) }));
    ledger.push(Due::Sync);
    ledger.push(Due::Query(None));
    let mut skipped = Vec::new();
    assert_eq!(ledger.error(&mut skipped), Verdict::Pass);
    assert!(matches!(&skipped[..], [
        Skipped::NotOnServer(1), Skipped::Parse(name), Skipped::NotOnServer(2), Skipped::Close(closed, _),
    ] if &**name == b"s1" && &**closed == b"s0"));
    assert_eq!(ledger.ready(b'I').unwrap(), Verdict::Pass);
    assert!(ledger.over().is_none(), "the next query is outstanding");
}

#[test]
fn answers_nobody_asked_for_are_violations() {
    let mut ledger = Ledger::default();
    assert!(ledger.ready(b'I').is_err());
    assert!(ledger.answer(tag::COMMAND_COMPLETE).is_err());
    ledger.push(Due::Bind(None));
    assert!(ledger.answer(tag::COMMAND_COMPLETE).is_err());
}

#[test]
fn a_copy_swallows_the_syncs_before_its_end_and_no_other() {
    let mut ledger = Ledger::default();
    ledger.push(Due::Execute(Deallocated::default()));
    ledger.push(Due::Sync); // libpq sends it with the Execute; the server ignores it
    ledger.push(Due::CopyEnd);
    ledger.push(Due::Sync);
    ledger.copy_in().unwrap();
    ledger.answer(tag::COMMAND_COMPLETE).unwrap();
    assert!(ledger.to_say().is_none());
    assert_eq!(ledger.ready(b'I').unwrap(), Verdict::Pass);
    assert!(ledger.over().is_some());

    let mut mixed = Ledger::default();
    mixed.push(Due::Query(None));
    mixed.push(Due::Query(None));
    assert!(mixed.copy_in().is_err(), "which answer belongs to what cannot be known");
}

#[test]
fn the_proxys_own_answers_come_in_their_turn() {
    let mut ledger = Ledger::default();
    ledger.push(Due::Bind(None));
    ledger.push(Due::Said(Said::ParseComplete { name: Box::from(&b"s"[..]) }));
    ledger.push(Due::Sync);
    assert!(ledger.to_say().is_none(), "Bind comes first");
    ledger.answer(tag::BIND_COMPLETE).unwrap();
    assert!(matches!(ledger.to_say(), Some(Said::ParseComplete { .. })));
    assert!(ledger.to_say().is_none());
}

#[test]
fn it_is_the_clients_turn_where_nothing_more_comes_by_itself() {
    let mut ledger = Ledger::default();
    assert_eq!(ledger.speaks_next(true), Speaks::Client);
    ledger.push(Due::Query(None));
    assert_eq!(ledger.speaks_next(true), Speaks::Server);
    assert_eq!(ledger.speaks_next(false), Speaks::Client, "half a query");
    ledger.copy_in().unwrap();
    assert_eq!(ledger.speaks_next(true), Speaks::Client);
    ledger.push(Due::CopyEnd);
    assert_eq!(ledger.speaks_next(true), Speaks::Server);
    ledger.ready(b'I').unwrap();
    ledger.push(Due::Execute(Deallocated::default()));
    assert_eq!(ledger.speaks_next(true), Speaks::ServerIfAsked);
    ledger.push(Due::Query(None));
    assert_eq!(ledger.speaks_next(false), Speaks::Client, "behind answers that nobody asked for");
    ledger.push(Due::Sync);
    assert_eq!(ledger.speaks_next(true), Speaks::Server);
}
