//! Texts that are taken for harmless, against PostgreSQL's grammar: inert ones, plain ones, ends and beginnings of blocks.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgtenant::fuzzing::callable;
use pgtenant::tenancy::blocks::Block;
use pgtenant::tenancy::text::{Effects, Simple};
use pgtenant::tenancy::{inert, text};
use pgtenant_fuzz::postgres;
use serde_json::Value;

/// Statements that read and write rows.
const QUERIES: [&str; 5] = ["SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"];

fuzz_target!(|data: &[u8]| {
    let Ok(sql) = std::str::from_utf8(data) else { return };
    let sql = sql.split('\0').next().unwrap_or_default();
    let (is_inert, is_plain) = (inert::read(sql.as_bytes()).is_inert, text::is_plain(sql.as_bytes(), true));
    let block = Block::of(sql.as_bytes());
    let effects = Effects::of(sql.as_bytes(), true);
    let Some(tree) = postgres::tree(sql, true) else { return };
    let statements: Vec<&str> = postgres::statements(&tree).into_iter().map(|(kind, _)| kind).collect();
    if is_inert {
        check_inert(&statements, &tree);
    }
    // More than one PostgreSQL refuses, in the protocol in which it is asked for.
    if is_plain && statements.len() <= 1 {
        assert!(matches!(statements[..], [kind] if QUERIES.contains(&kind)), "it is {statements:?}");
        assert!(postgres::set_configs(&tree).is_empty(), "it calls set_config");
    }
    if let Some(block) = block {
        let kinds: Vec<&Value> =
            postgres::nodes(&tree, "TransactionStmt").into_iter().map(|node| &node["kind"]).collect();
        // TransactionStmtKind: BEGIN, START, COMMIT, ROLLBACK.
        let expected: &[u64] = if block == Block::Begins { &[1, 2] } else { &[3, 4] };
        let is_it = matches!(kinds[..], [kind] if kind.as_u64().is_some_and(|kind| expected.contains(&kind)));
        assert!(is_it && statements == ["TransactionStmt"], "{block:?} is {statements:?} {kinds:?}");
    }
    let simple = text::simple(sql.as_bytes());
    if matches!(simple, Simple::Reads | Simple::Writes) {
        check_simple(simple, &statements, &tree);
    }
    check_effects(&effects, &statements, &tree);
});

/// What is sent in the extended protocol in the place of a simple query.
fn check_simple(simple: Simple, statements: &[&str], tree: &Value) {
    assert!(matches!(statements[..], [kind] if QUERIES.contains(&kind)), "it is {statements:?}");
    assert!(postgres::nodes(tree, "ParamRef").is_empty(), "it has parameters");
    // What writes further within, PostgreSQL refuses in either protocol.
    let with = &tree["stmts"][0]["stmt"]["node"]["SelectStmt"]["with_clause"];
    let writes = |kind: &&str| !postgres::nodes(with, kind).is_empty();
    match simple {
        Simple::Reads => {
            assert!(statements == ["SelectStmt"] && !QUERIES[1..].iter().any(writes), "it writes")
        }
        _ => assert!(!tree.to_string().contains("\"returning_list\""), "it returns rows"),
    }
}

fn check_inert(statements: &[&str], tree: &Value) {
    let kind = match statements {
        [] => return,
        [kind] => kind,
        _ => panic!("it is {statements:?}"),
    };
    assert!(QUERIES.contains(kind) || *kind == "TransactionStmt", "it is a {kind}");
    assert!(postgres::nodes(tree, "into_clause").is_empty(), "it makes a table");
    for call in postgres::nodes(tree, "FuncCall") {
        let names = call["funcname"].as_array().into_iter().flatten();
        let names: Vec<&str> = names.filter_map(|name| name["node"]["String"]["sval"].as_str()).collect();
        // What is not called by its name alone, the grammar made of key words: pg_catalog.extract.
        let is_known = match names[..] {
            [name] => callable().any(|known| known == name),
            ["pg_catalog", _] => call["funcformat"] == 4,
            _ => false,
        };
        assert!(is_known, "it calls {names:?}");
    }
    for type_name in postgres::nodes(tree, "TypeName").into_iter().chain(postgres::nodes(tree, "type_name")) {
        let names = type_name["names"].as_array().into_iter().flatten();
        let names: Vec<&str> = names.filter_map(|name| name["node"]["String"]["sval"].as_str()).collect();
        let is_known = match names[..] {
            [name] => callable().any(|known| known == name),
            ["pg_catalog", _] => true,
            _ => names.is_empty(),
        };
        assert!(is_known, "it has a {names:?}");
    }
}

/// What a session is taken to have been left with may be more than it was, not less.
fn check_effects(effects: &Effects, statements: &[&str], tree: &Value) {
    for (kind, is_seen) in [
        ("ListenStmt", effects.needs_session.is_some()),
        ("PrepareStmt", effects.needs_session.is_some()),
        ("DeallocateStmt", effects.deallocates.is_some()),
    ] {
        assert!(!statements.contains(&kind) || is_seen, "{kind} is missed");
    }
    for set in
        tree["stmts"].as_array().into_iter().flatten().map(|raw| &raw["stmt"]["node"]["VariableSetStmt"])
    {
        // VariableSetKind: a value. Names with a dot are those that nobody reports.
        let name = set["name"].as_str().unwrap_or_default().to_ascii_lowercase();
        let is_reset = [5, 6].contains(&set["kind"].as_u64().unwrap_or(5));
        assert!(is_reset || effects.touched.seen() > 0, "SET {name:?} is missed");
        let is_of_session = set["kind"] == 1 && set["is_local"] == false && name.contains('.');
        let is_noted = effects.touched.opaque || effects.touched.names.contains(&name);
        assert!(!is_of_session || is_noted, "SET {name:?} is missed");
    }
}
