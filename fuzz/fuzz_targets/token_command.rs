//! Token commands against PostgreSQL's grammar: none is missed, and what is read is what PostgreSQL would set.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgtenant::tenancy::token_command::{self, Form, Given};
use pgtenant_fuzz::postgres::{self, Named};
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Some((flags, sql)) = data.split_first() else { return };
    let Ok(sql) = std::str::from_utf8(sql) else { return };
    let sql = sql.split('\0').next().unwrap_or_default();
    let is_standard = flags & 1 == 0;
    let read = token_command::read(sql.as_bytes(), is_standard);
    let Some(tree) = postgres::tree(sql, is_standard) else { return };

    let is_token = |name: &str| name.eq_ignore_ascii_case("pgtenant.token");
    let sets = postgres::nodes(&tree, "VariableSetStmt");
    let sets: Vec<&Value> =
        sets.into_iter().filter(|set| set["name"].as_str().is_some_and(is_token)).collect();
    let calls = postgres::set_configs(&tree);
    let is_called = calls.iter().any(|named| matches!(named, Named::Constant(name) if is_token(name)));
    let Some(read) = read else {
        assert!(sets.is_empty() && !is_called, "a token command is missed");
        return;
    };
    let Ok(command) = read else { return };
    assert_eq!(postgres::statements(&tree).len(), 1, "there is more to it");
    match command.form {
        Form::Set | Form::Reset => {
            let [set] = sets[..] else { panic!("it sets no token: {command:?}") };
            assert_eq!(Given::Constant(set["is_local"] == true), command.is_local);
            let value = &set["args"][0]["node"]["AConst"]["val"]["Sval"]["sval"];
            match &command.value {
                Given::Constant(token) => assert_eq!(value.as_str().map(str::as_bytes), Some(token.expose())),
                Given::AtSignIn => assert!(value.is_null()),
                Given::Parameter(_) => panic!("SET takes no parameters"),
            }
        }
        Form::Function(_) => {
            // To which type it is cast is not looked at: the proxy answers, and no server sees it.
            let is_it = match &calls[..] {
                [Named::Constant(name) | Named::Cast(name)] => command.name.is_none() && is_token(name),
                [Named::Parameter | Named::Computed] => command.name.is_some(),
                _ => false,
            };
            assert!(is_it, "it calls {calls:?}: {command:?}");
        }
    }
});
