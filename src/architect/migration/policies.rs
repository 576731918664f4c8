//! 004: who gets at rows. A restrictive floor that whatever policy is added later cannot lift, and a permissive base to take
//! from; each helper in a scalar sub-select, so that it runs once per query. FORCE is last: from then on not even the owner
//! sees a row without a context.

use std::collections::BTreeSet;

use super::design::Design;
use super::{How, Move, Moves, Part, data, expand, obstacles, partitions, sources};
use crate::architect::catalog::Table;
use crate::architect::names::{Name, dollar_quoted, ident, idents, literal};

/// What its policies are called.
pub(super) const NAMES: [&str; 4] = ["legacy_base", "tenant_base", "project_floor", "tenant_floor"];

const SHORT: &str = "ACCESS EXCLUSIVE, milliseconds";

/// A table with policies.
struct Guarded<'a> {
    name: Name,
    /// What each row must be.
    own_organization: String,
    own_project: Option<String>,
    rights: &'a str,
    had_policies: bool,
    /// Its own say what is let through: there is no need of one that lets everything through.
    has_own: bool,
    was_forced: bool,
}

pub(super) fn moves(design: &Design<'_>) -> Vec<Move> {
    let mut moves = Moves::new(Part::Policies);
    roles(design, &mut moves);
    grants(design, &mut moves);
    let guarded = guarded(design);
    guarded.iter().for_each(|table| policies(design, table, &mut moves));
    views(design, &mut moves);
    if !design.treatment.roles.legacy.is_empty() {
        // First what may fail: as long as it does, legacy roles go on.
        data::contract(design, &mut moves);
        cut_over(design, &guarded, &mut moves);
    }
    for table in &guarded {
        let name = &table.name;
        if table.was_forced {
            continue;
        }
        moves
            .add(
                format!("policies on {name} hold for its owner too"),
                format!("{SHORT} ({name})"),
                How::Transaction,
                vec![format!("ALTER TABLE {name} FORCE ROW LEVEL SECURITY")],
            )
            .checked(format!(
                "SELECT relforcerowsecurity FROM pg_class WHERE oid = {}::regclass",
                literal(&name.to_string())
            ))
            .undone(
                format!("policies on {name} do not hold for its owner"),
                How::Transaction,
                vec![format!("ALTER TABLE {name} NO FORCE ROW LEVEL SECURITY")],
            );
    }
    moves.all
}

/// The step from which on legacy roles see nothing any more.
pub const CUT_OVER: &str = "cut-over";

fn roles(design: &Design<'_>, moves: &mut Moves) {
    let new: Vec<_> = design
        .treatment
        .roles
        .application
        .iter()
        .filter(|role| !design.catalog.roles.contains(role))
        .collect();
    if new.is_empty() {
        return;
    }
    let make = |role: &&String| {
        let body = format!(
            " BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {}) THEN\n    CREATE ROLE {} LOGIN NOSUPERUSER NOBYPASSRLS \
             NOCREATEDB NOCREATEROLE NOREPLICATION;\nEND IF; END ",
            literal(role),
            ident(role)
        );
        format!("DO {}", dollar_quoted(&body))
    };
    let unmake = |role: &&String| {
        [format!("DROP OWNED BY {}", ident(role)), format!("DROP ROLE IF EXISTS {}", ident(role))]
    };
    let names = idents(new.iter().map(|role| role.as_str()));
    moves
        .add(format!("roles that the proxy signs in with: {names}"), "none", How::Transaction, new.iter().map(make).collect())
        .checked(format!(
            "SELECT count(*) = {} FROM pg_roles WHERE rolcanlogin AND NOT rolsuper AND NOT rolbypassrls AND rolname IN ({})",
            new.len(),
            new.iter().map(|role| literal(role)).collect::<Vec<_>>().join(", ")
        ))
        .undone(format!("no roles {names}"), How::Transaction, new.iter().flat_map(unmake).collect());
}

fn grants(design: &Design<'_>, moves: &mut Moves) {
    let application = idents(&design.treatment.roles.application);
    let (mut sql, mut undo) = (Vec::new(), Vec::new());
    let mut both = |what: String| {
        sql.push(format!("GRANT {what} TO {application}"));
        undo.push(format!("REVOKE {what} FROM {application}"));
    };
    let tables: Vec<&Table> =
        design.tables.iter().map(|one| one.table).chain(design.shared.iter().copied()).collect();
    let mut schemas: BTreeSet<&str> = tables.iter().map(|table| table.name.schema.as_str()).collect();
    schemas.extend([design.organizations.schema.as_str(), design.projects.schema.as_str(), "pgtenant"]);
    both(format!("USAGE ON SCHEMA {}", idents(&schemas)));
    both(INTERFACE.replace("{id_type}", interface_type(design)));
    both(format!(
        "EXECUTE ON FUNCTION pgtenant.row_organization({}), pgtenant.row_project({})",
        design.treatment.organizations.kind.sql(),
        design.treatment.projects.kind.sql()
    ));
    both("SELECT ON pgtenant.audit_log".to_owned());
    for table in &design.shared {
        both(format!("SELECT ON {}", table.name));
    }
    let sequences: BTreeSet<&str> = design.tables.iter().flat_map(|one| sequences(one.table)).collect();
    for sequence in sequences {
        both(format!("USAGE ON SEQUENCE {sequence}"));
    }
    audit_log(&application, &mut sql, &mut undo);
    moves.add(format!("what {application} may use"), "none", How::Transaction, sql).undone(
        format!("{application} may not"),
        How::Transaction,
        undo,
    );
}

/// Each organization reads what was done with its rows. The log's owner, by whom the trigger writes, is exempt.
fn audit_log(application: &str, sql: &mut Vec<String>, undo: &mut Vec<String>) {
    let log = "pgtenant.audit_log";
    for (policy, kind, what) in [
        (
            "tenant_floor",
            "RESTRICTIVE FOR ALL TO PUBLIC",
            "organization_id = (SELECT pgtenant.organization_id())",
        ),
        (
            "project_floor",
            "RESTRICTIVE FOR ALL TO PUBLIC",
            "project_id IS NULL OR project_id = COALESCE((SELECT pgtenant.project_id()), project_id)",
        ),
        ("tenant_base", &format!("PERMISSIVE FOR SELECT TO {application}"), "true"),
    ] {
        let drop = format!("DROP POLICY IF EXISTS {policy} ON {log}");
        sql.push(drop.clone());
        sql.push(format!("CREATE POLICY {policy} ON {log} AS {kind} USING ({what})"));
        undo.push(drop);
    }
    sql.push(format!("ALTER TABLE {log} ENABLE ROW LEVEL SECURITY"));
    undo.push(format!("ALTER TABLE {log} DISABLE ROW LEVEL SECURITY"));
}

const INTERFACE: &str = "EXECUTE ON FUNCTION pgtenant.organization_id(), pgtenant.project_id(), pgtenant.subject(), pgtenant.roles(), \
     pgtenant.claims(), pgtenant.claim(text), pgtenant.has_role(text), pgtenant.context(), pgtenant.require_organization({id_type})";

fn interface_type(design: &Design<'_>) -> &'static str {
    match design.treatment.organizations.kind.sql() {
        "integer" => "bigint",
        other => other,
    }
}

/// Sequences that defaults take numbers from; identity columns need no right on theirs.
fn sequences(table: &Table) -> impl Iterator<Item = &str> {
    table.columns.iter().filter_map(|column| {
        let rest = column.default.as_deref()?.strip_prefix("nextval('")?;
        rest.strip_suffix("'::regclass)")
    })
}

fn guarded<'a>(design: &'a Design<'_>) -> Vec<Guarded<'a>> {
    let (treatment, all) = (design.treatment, "SELECT, INSERT, UPDATE, DELETE");
    let organization = |column: &str| format!("{} = (SELECT pgtenant.organization_id())", ident(column));
    let project =
        |column: &str| format!("{0} = COALESCE((SELECT pgtenant.project_id()), {0})", ident(column));
    // An organization is opened and closed by the product's maker.
    let mut found = vec![Guarded {
        name: design.organizations.clone(),
        own_organization: organization(&treatment.organizations.id),
        own_project: None,
        rights: "SELECT",
        had_policies: design.catalog.table(&design.organizations).is_some_and(|table| table.has_policies),
        has_own: design.catalog.table(&design.organizations).is_some_and(Table::has_own_policies),
        was_forced: design.catalog.table(&design.organizations).is_some_and(|table| table.is_forced),
    }];
    if design.makes_projects {
        found.push(Guarded {
            name: design.projects.clone(),
            own_organization: organization(&treatment.organizations.column),
            own_project: Some(project(&treatment.projects.id)),
            rights: all,
            had_policies: false,
            has_own: false,
            was_forced: false,
        });
    }
    for one in &design.tables {
        let own = one.project.as_ref().map(|column| project(column.name));
        let is_projects = one.table.name == design.projects;
        let own = own.or_else(|| is_projects.then(|| project(&treatment.projects.id)));
        // Through the whole its policies hold, and by themselves a partition's own: nobody gets a right to one here.
        let leaves = partitions::of(design, &one.table.name).into_iter().map(|leaf| (leaf, ""));
        found.extend(std::iter::once((one.table, all)).chain(leaves).map(|(table, rights)| Guarded {
            name: table.name.clone(),
            own_organization: organization(one.organization.name),
            own_project: own.clone(),
            rights,
            had_policies: table.has_policies,
            has_own: table.has_own_policies(),
            was_forced: table.is_forced,
        }));
    }
    found
}

fn policies(design: &Design<'_>, table: &Guarded<'_>, moves: &mut Moves) {
    let roles = &design.treatment.roles;
    let (name, application) = (&table.name, idents(&roles.application));
    let floor_for = if roles.legacy.is_empty() { "PUBLIC".to_owned() } else { application.clone() };
    let mut sql = Vec::new();
    let mut policy = |policy: &str, kind: &str, to: &str, what: &str| {
        sql.push(format!("DROP POLICY IF EXISTS {policy} ON {name}"));
        sql.push(format!(
            "CREATE POLICY {policy} ON {name} AS {kind} FOR ALL TO {to}\n    USING ({what})\n    WITH CHECK ({what})"
        ));
    };
    policy("tenant_floor", "RESTRICTIVE", &floor_for, &table.own_organization);
    if let Some(own) = &table.own_project {
        policy("project_floor", "RESTRICTIVE", &floor_for, own);
    }
    if !table.has_own {
        policy("tenant_base", "PERMISSIVE", &application, "true");
        if !roles.legacy.is_empty() {
            policy("legacy_base", "PERMISSIVE", &idents(&roles.legacy), "true");
        }
    }
    if !table.rights.is_empty() {
        sql.push(format!("GRANT {} ON {name} TO {application}", table.rights));
    }
    sql.push(format!("ALTER TABLE {name} ENABLE ROW LEVEL SECURITY"));
    let mut undo: Vec<_> = NAMES.map(|policy| format!("DROP POLICY IF EXISTS {policy} ON {name}")).to_vec();
    if !table.had_policies {
        undo.insert(0, format!("ALTER TABLE {name} DISABLE ROW LEVEL SECURITY"));
    }
    undo.push(format!("REVOKE ALL ON {name} FROM {application}"));
    moves
        .add(format!("policies on {name}"), format!("{SHORT} ({name})"), How::Transaction, sql)
        .checked(format!(
            "SELECT relrowsecurity AND (SELECT count(*) >= {} FROM pg_policy WHERE polrelid = c.oid AND polname IN ('tenant_floor', \
             'tenant_base')) FROM pg_class AS c WHERE oid = {}::regclass",
            if table.has_own { 1 } else { 2 },
            literal(&name.to_string())
        ))
        .undone(format!("no policies on {name}"), How::Transaction, undo);
}

fn views(design: &Design<'_>, moves: &mut Moves) {
    if design.catalog.version < 15 {
        return;
    }
    let application = idents(&design.treatment.roles.application);
    for view in obstacles::exposing(design).into_iter().filter(|view| !view.is_materialized) {
        let name = &view.name;
        let mut undo = vec![format!("REVOKE ALL ON {name} FROM {application}")];
        if !view.is_invoker {
            undo.push(format!("ALTER VIEW {name} RESET (security_invoker)"));
        }
        moves
            .add(
                format!("view {name} reads with the rights of who asks"),
                format!("{SHORT} ({name})"),
                How::Transaction,
                vec![
                    format!("ALTER VIEW {name} SET (security_invoker = true)"),
                    format!("GRANT SELECT ON {name} TO {application}"),
                ],
            )
            .undone(format!("view {name} as it was"), How::Transaction, undo);
    }
}

/// Legacy roles end: floors are for everyone, and a row without a context is nobody's.
fn cut_over(design: &Design<'_>, guarded: &[Guarded<'_>], moves: &mut Moves) {
    let (legacy, application) =
        (idents(&design.treatment.roles.legacy), idents(&design.treatment.roles.application));
    let (mut sql, mut undo) =
        (expand::row_defaults(design, &[]), expand::row_defaults(design, &design.treatment.roles.legacy));
    for mapping in sources::mapping_tables(design) {
        sql.push(format!("REVOKE SELECT ON {mapping} FROM {legacy}"));
        undo.push(format!("GRANT SELECT ON {mapping} TO {legacy}"));
    }
    for table in guarded {
        let name = &table.name;
        let floors = ["tenant_floor"].into_iter().chain(table.own_project.as_ref().map(|_| "project_floor"));
        for floor in floors {
            sql.push(format!("ALTER POLICY {floor} ON {name} TO PUBLIC"));
            undo.push(format!("ALTER POLICY {floor} ON {name} TO {application}"));
        }
        if table.has_own {
            continue;
        }
        sql.push(format!("DROP POLICY IF EXISTS legacy_base ON {name}"));
        undo.push(format!("CREATE POLICY legacy_base ON {name} AS PERMISSIVE FOR ALL TO {legacy} USING (true) WITH CHECK (true)"));
    }
    moves
        .add(
            format!("{CUT_OVER}: {legacy} see rows no longer"),
            format!("{SHORT}, all tables"),
            How::Transaction,
            sql,
        )
        .undone(format!("{legacy} see rows again"), How::Transaction, undo);
}
