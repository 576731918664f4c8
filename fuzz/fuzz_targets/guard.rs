//! The guard against PostgreSQL's grammar: what sets a setting of the context is refused.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pgtenant::config::{ContextSetting, SettingValue};
use pgtenant::tenancy::guard::{Guard, Under};
use pgtenant_fuzz::postgres::{self, Named};
use serde_json::Value;

static STRICT: LazyLock<Guard> = LazyLock::new(|| {
    let name = "app.organization".to_owned();
    Guard::new(&[ContextSetting { name, value: SettingValue::Organization }])
});

static SEAL: LazyLock<Guard> = LazyLock::new(|| Guard::new(&[]));

// The first byte says under what the text comes.
fuzz_target!(|data: &[u8]| {
    let Some((flags, sql)) = data.split_first() else { return };
    let flag = |bit: u8| flags & (1 << bit) != 0;
    let Ok(sql) = std::str::from_utf8(sql) else { return };
    let sql = sql.split('\0').next().unwrap_or_default();
    let (is_standard, is_strict) = (!flag(0), !flag(1));
    let under = Under { is_prepared: flag(2), is_read_only: flag(3) };
    let guard = if is_strict { &STRICT } else { &SEAL };
    let read = guard.check(sql.as_bytes(), is_standard, under);
    let Ok(open) = read else { return };
    let Some(tree) = postgres::tree(sql, is_standard) else { return };
    if under.is_prepared && postgres::statements(&tree).len() > 1 {
        return; // PostgreSQL refuses it in a Parse
    }

    for name in postgres::nodes(&tree, "VariableSetStmt").into_iter().filter_map(|set| set["name"].as_str()) {
        assert!(!belongs(name, is_strict, under), "it sets {name:?}");
    }
    let prepares = !postgres::nodes(&tree, "PrepareStmt").is_empty();
    for named in postgres::set_configs(&tree) {
        match named {
            // Without plain settings, only plain spellings of what the seal protects are spoken of.
            Named::Constant(name) => {
                assert!(!belongs(&name, is_strict, under), "it sets {name:?} by set_config")
            }
            // What PREPARE takes does not come by Bind, and where the seal protects, it is not asked for.
            Named::Parameter if under.is_prepared && !prepares => {
                assert!(open.by_parameter, "it sets what a parameter names, and is not left open");
            }
            Named::Parameter | Named::Cast(_) | Named::Computed => {
                assert!(!is_strict && !under.is_read_only, "it sets what cannot be told");
            }
        }
    }
    if is_strict || under.is_read_only {
        for update in postgres::nodes(&tree, "UpdateStmt") {
            assert_ne!(update["relation"]["relname"], "pg_settings", "it updates pg_settings");
        }
    }
    if under.is_read_only {
        assert!(!makes_writable(&tree), "it makes a transaction write");
    }
});

fn belongs(name: &str, is_strict: bool, under: Under) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("pgtenant.")
        || is_strict && name == "app.organization"
        || under.is_read_only && ["transaction_read_only", "default_transaction_read_only"].contains(&&*name)
}

/// READ WRITE, in whatever statement.
fn makes_writable(tree: &Value) -> bool {
    postgres::nodes(tree, "DefElem").into_iter().any(|option| {
        option["defname"] == "transaction_read_only"
            && option["arg"]["node"]["AConst"]["val"]["Ival"]["ival"] == 0
    })
}
