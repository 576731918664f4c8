//! `pgtenant install`: the SQL interface and the seal's keys, into a database whose tables are multi-tenant already.

use crate::config::{Context, IdType};
use crate::tenancy::seal::{hex, key_id, pads};

/// Version of the SQL interface that this program installs and needs.
pub const INTERFACE_VERSION: i32 = 1;

/// The SQL that installs the interface for `role`, keys included unless they are to be hidden.
///
/// Idempotent; the caller runs it in one transaction, as a superuser or as a role that may create roles and schemas.
pub fn sql(context: &Context, roles: &[String], keys: Keys) -> String {
    let id_type = match context.id_type {
        IdType::Uuid => "uuid",
        IdType::Bigint => "bigint",
        IdType::Text => "text",
    };
    let mut sql = include_str!("sql/interface.sql")
        .replace("{verify_declare}\n", include_str!("sql/verify_declare.sql"))
        .replace("{verify}\n", include_str!("sql/verify.sql"))
        .replace("{id_type}", id_type);
    sql.push_str(&format!(
        "\nINSERT INTO pgtenant.interface (version, id_type) VALUES ({INTERFACE_VERSION}, '{id_type}')\n    \
         ON CONFLICT (only_row) DO UPDATE SET version = excluded.version, id_type = excluded.id_type;\n",
    ));
    for role in roles {
        let role = quote_identifier(role);
        sql.push_str(&format!(
            "\nGRANT USAGE ON SCHEMA pgtenant TO {role};\n\
             GRANT EXECUTE ON FUNCTION pgtenant.organization_id(), pgtenant.project_id(), pgtenant.subject(), pgtenant.roles(),\n    \
             pgtenant.claims(), pgtenant.claim(text), pgtenant.has_role(text), pgtenant.context(),\n    \
             pgtenant.require_organization({id_type}) TO {role};\n",
        ));
    }
    sql.push_str(&keys_sql(context, keys));
    sql
}

/// Whether the keys appear in the SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// As they are, to be run.
    Included,
    /// As placeholders, to be looked at.
    Hidden,
}

/// Every configured key is installed; keys that are no longer configured are removed, and their seals with them.
fn keys_sql(context: &Context, keys: Keys) -> String {
    let mut sql = String::new();
    let mut kids = Vec::new();
    for key in &context.seal_keys {
        let kid = key_id(key);
        let (inner, outer) = pads(key);
        let bytes = |pad: &[u8; 64]| match keys {
            Keys::Hidden => "'...' /* hidden: the seal's key */".to_owned(),
            Keys::Included => {
                let mut text = String::from("'\\x");
                hex(pad, &mut text);
                text + "'"
            }
        };
        sql.push_str(&format!(
            "\nINSERT INTO pgtenant.seal_keys (kid, inner_pad, outer_pad)\n    VALUES ('{kid}', {}, {})\n    ON CONFLICT (kid) DO NOTHING;\n",
            bytes(&inner),
            bytes(&outer),
        ));
        kids.push(format!("'{kid}'"));
    }
    sql.push_str(&format!("DELETE FROM pgtenant.seal_keys WHERE kid NOT IN ({});\n", kids.join(", ")));
    sql
}

/// `"name"`, as `quote_ident` writes it.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;
    use std::time::Duration;

    #[test]
    fn what_is_shown_holds_no_key() {
        let context = Context {
            id_type: IdType::Bigint,
            seal_keys: vec![Secret::new(vec![7; 32])],
            seal_lifetime: Duration::from_secs(60),
        };
        let shown = sql(&context, &["app".to_owned()], Keys::Hidden);
        assert!(!shown.contains("\\x"), "a key in hexadecimal");
        assert!(!shown.contains("{id_type}") && !shown.contains("{verify"), "a placeholder was left");
        assert!(shown.contains("pgtenant.require_organization(bigint)"));
        assert!(sql(&context, &[], Keys::Included).contains("\\x31313131"));
    }
}
