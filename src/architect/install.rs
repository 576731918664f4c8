//! `pgtenant install`: the SQL interface and the seal's keys, into a database whose tables are multi-tenant already.

use tokio_postgres::{Client, Transaction};

use super::connect::causes;
use super::names::{ident, literal};
use crate::config::{Context, IdType};
use crate::tenancy::seal::{key_id, pads};

/// Version of the SQL interface that this program installs and needs.
pub const INTERFACE_VERSION: i32 = 2;

/// Why nothing was installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// PostgreSQL refused a step.
    #[error("nothing was changed: {}", causes(.0))]
    Refused(#[from] tokio_postgres::Error),
    /// The key would be written to the server's log.
    #[error(
        "nothing was changed: this server logs statements with their parameters ({0}), and the seal's key would be \
         among them; install as a superuser, who may silence it, or set it off for this role while installing"
    )]
    Logged(String),
}

/// Whom the interface is installed for.
#[derive(Debug, Clone, Default)]
pub struct Grants {
    /// Roles that may use it.
    pub roles: Vec<String>,
    /// They lose what would get past the proxy's guard over plain settings; the roles without tenants, which are named here,
    /// keep it.
    pub harden: Option<Vec<String>>,
}

/// Installs the interface for roles, and the configured keys, in one transaction: a failure leaves everything as it was.
///
/// # Errors
/// See [`InstallError`].
pub async fn run(client: &mut Client, context: &Context, grants: &Grants) -> Result<(), InstallError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(&interface(context, grants)).await?;
    // Last, after all that may fail, and as parameters: the text of a statement can end up in a log.
    silence(&transaction).await?;
    let mut kids = Vec::new();
    for key in &context.seal_keys {
        let kid = key_id(key);
        let (inner, outer) = pads(key);
        transaction.execute(INSERT_KEY, &[&kid, &inner.as_slice(), &outer.as_slice()]).await?;
        kids.push(kid);
    }
    transaction.execute(DELETE_KEYS, &[&kids]).await?;
    Ok(transaction.commit().await?)
}

/// The SQL as people may look at it or run it: everything but the keys.
pub fn shown(context: &Context, grants: &Grants) -> String {
    let mut sql = interface(context, grants);
    for key in &context.seal_keys {
        sql.push_str(&format!(
            "\n-- The key's two pads (RFC 2104) are not shown.\n\
             INSERT INTO pgtenant.seal_keys (kid, inner_pad, outer_pad) VALUES ('{}', '...', '...')\n    \
             ON CONFLICT (kid) DO NOTHING;\n",
            key_id(key)
        ));
    }
    sql
}

/// The interface for ids of this type, without keys and for no role yet: `pgtenant install` brings both.
pub fn without_keys(id_type: IdType) -> String {
    let context = Context {
        id_type,
        seal_keys: Vec::new(),
        seal_key_file: None,
        seal_lifetime: std::time::Duration::from_secs(60),
        settings: Vec::new(),
    };
    interface(&context, &Grants::default())
}

const INSERT_KEY: &str = "INSERT INTO pgtenant.seal_keys (kid, inner_pad, outer_pad) VALUES ($1, $2, $3) \
     ON CONFLICT (kid) DO UPDATE SET inner_pad = excluded.inner_pad, outer_pad = excluded.outer_pad";

/// Keys that are no longer configured go, and their seals with them.
const DELETE_KEYS: &str = "DELETE FROM pgtenant.seal_keys WHERE kid <> ALL ($1)";

/// Settings by which PostgreSQL or its usual extensions log a statement with its parameters, and their silent values.
const SILENT: [(&str, &str); 6] = [
    ("log_statement", "none"),
    ("log_min_duration_statement", "-1"),
    ("log_min_duration_sample", "-1"),
    ("log_transaction_sample_rate", "0"),
    ("auto_explain.log_min_duration", "-1"),
    ("pgaudit.log", "none"),
];

/// Makes sure that the next statements are not logged with their parameters.
async fn silence(transaction: &Transaction<'_>) -> Result<(), InstallError> {
    for (name, silent) in SILENT {
        let sql = "SELECT pg_catalog.current_setting($1, true) IN ($2, NULL), COALESCE(pg_catalog.current_setting($1, true), '')";
        let row = transaction.query_one(sql, &[&name, &silent]).await?;
        let (is_silent, value): (Option<bool>, String) = (row.get(0), row.get(1));
        // `ddl` logs neither INSERT nor DELETE; an extension that is not loaded has no value.
        if is_silent == Some(true) || value.is_empty() || (name, value.as_str()) == ("log_statement", "ddl") {
            continue;
        }
        transaction.batch_execute("SAVEPOINT silence").await?;
        let set = transaction.execute("SELECT pg_catalog.set_config($1, $2, true)", &[&name, &silent]).await;
        if set.is_err() {
            transaction.batch_execute("ROLLBACK TO SAVEPOINT silence").await?;
            return Err(InstallError::Logged(format!("{name} = {value}")));
        }
    }
    Ok(())
}

fn interface(context: &Context, grants: &Grants) -> String {
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
    sql.push_str(&context_settings(context));
    for role in &grants.roles {
        let role = ident(role);
        sql.push_str(&format!(
            "\nGRANT USAGE ON SCHEMA pgtenant TO {role};\n\
             GRANT EXECUTE ON FUNCTION pgtenant.organization_id(), pgtenant.project_id(), pgtenant.subject(), pgtenant.roles(),\n    \
             pgtenant.claims(), pgtenant.claim(text), pgtenant.has_role(text), pgtenant.context(),\n    \
             pgtenant.require_organization({id_type}) TO {role};\n",
        ));
    }
    if let Some(plain) = &grants.harden {
        sql.push('\n');
        sql.push_str(include_str!("sql/harden.sql"));
        for (role, each) in grants
            .roles
            .iter()
            .map(|role| (role, include_str!("sql/hardened.sql")))
            .chain(plain.iter().map(|role| (role, include_str!("sql/unhardened.sql"))))
        {
            sql.push('\n');
            let text = literal(role);
            sql.push_str(&each.replace("{role}", &ident(role)).replace("{role_text}", &text));
        }
    }
    sql
}

/// Which settings are bound with a context, as the database is told. Their names need no quotes.
fn context_settings(context: &Context) -> String {
    let names = context.settings.iter().map(|setting| format!("'{}'", setting.name)).collect::<Vec<_>>();
    let mut sql = String::from("\nDELETE FROM pgtenant.context_settings;\n");
    if !names.is_empty() {
        let rows = names.join("), (");
        sql.push_str(&format!("INSERT INTO pgtenant.context_settings (name) VALUES ({rows});\n"));
    }
    sql
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
            seal_key_file: None,
            seal_lifetime: Duration::from_secs(60),
            settings: Vec::new(),
        };
        let grants = Grants { roles: vec!["app".to_owned()], harden: Some(vec!["it's".to_owned()]) };
        let shown = shown(&context, &grants);
        assert!(!shown.contains("\\x"), "a key in hexadecimal");
        assert!(!shown.contains("{id_type}") && !shown.contains("{verify"), "a placeholder was left");
        assert!(shown.contains("pgtenant.require_organization(bigint)"));
        assert!(
            !shown.contains("{role")
                && shown
                    .contains("format('GRANT TEMPORARY ON DATABASE %I TO %I', current_database(), 'it''s')")
        );
    }
}
