//! What is asked of a database, by pg_stat_statements (PostgreSQL documentation, F.32): which columns queries look for, so that each
//! organization's rows can be found by them.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::catalog::Table;
use super::names::{Name, ident};
use crate::tenancy::scanner::{Scanner, Token};

/// So many statements are looked at, those first on which the server spends most time.
const STATEMENTS: i64 = 200;

/// One that ran fewer times tells nothing.
const CALLS: i64 = 10;

/// Words that end a list of tables, and cannot be an alias.
const NO_ALIAS: [&str; 26] = [
    "where",
    "on",
    "using",
    "join",
    "left",
    "right",
    "full",
    "inner",
    "cross",
    "natural",
    "order",
    "group",
    "having",
    "limit",
    "offset",
    "set",
    "for",
    "union",
    "except",
    "intersect",
    "returning",
    "as",
    "lateral",
    "window",
    "fetch",
    "values",
];

/// Types whose comparisons are leakproof: only by those does row level security let an index be used.
const LEAKPROOF: [&str; 9] = [
    "uuid",
    "bigint",
    "integer",
    "smallint",
    "text",
    "boolean",
    "date",
    "timestamp with time zone",
    "timestamp without time zone",
];

/// What queries look for in one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// The table.
    pub table: Name,
    /// Columns that are equal to something, in the order of their names.
    pub equal: Vec<String>,
    /// A column that lies in a range, or by which rows are ordered.
    pub range: Option<String>,
    /// How often.
    pub calls: i64,
}

/// Reads what the database was asked, as far as pg_stat_statements is there.
///
/// # Errors
/// PostgreSQL refuses.
pub async fn read(client: &Client, tables: &[Table]) -> Result<Vec<Search>, tokio_postgres::Error> {
    let place = "SELECT nspname FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'pg_stat_statements'";
    let Some(row) = client.query_opt(place, &[]).await? else { return Ok(Vec::new()) };
    let sql = format!(
        "SELECT query, sum(calls)::bigint FROM {}.pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = \
         current_database()) AND query IS NOT NULL GROUP BY query HAVING sum(calls) >= {CALLS} ORDER BY sum(total_exec_time) DESC, query \
         LIMIT {STATEMENTS}",
        ident(row.get(0))
    );
    // It may be installed and not loaded: then there is nothing to be learned from it.
    let Ok(rows) = client.query(sql.as_str(), &[]).await else { return Ok(Vec::new()) };
    let mut found: Vec<Search> = Vec::new();
    for row in rows {
        for search in searches(row.get(0), row.get(1), tables) {
            match found.iter_mut().find(|other| search.is_like(other)) {
                Some(other) => other.calls += search.calls,
                None => found.push(search),
            }
        }
    }
    Ok(found)
}

impl Search {
    fn is_like(&self, other: &Self) -> bool {
        (&self.table, &self.equal, &self.range) == (&other.table, &other.equal, &other.range)
    }

    /// The columns of an index for it.
    pub fn columns(&self) -> Vec<String> {
        let range = self.range.iter().filter(|range| !self.equal.contains(range));
        self.equal.iter().chain(range).cloned().collect()
    }
}

/// What one statement looks for. It is read by its words, not by its grammar: what is not understood is left out.
fn searches(query: &str, calls: i64, tables: &[Table]) -> Vec<Search> {
    let mut scanner = Scanner::new(query.as_bytes(), true);
    let mut words = Vec::new();
    while let Some(token) = scanner.next() {
        words.push(token);
    }
    let sources = sources(&words, tables);
    let mut found: BTreeMap<&Name, Search> = BTreeMap::new();
    let (mut ordered, mut is_written) = (false, false);
    for at in 0..words.len() {
        match word(&words, at) {
            Some("order") => ordered = true,
            Some("limit" | "offset" | "for" | "select") => ordered = false,
            Some("set") => is_written = true,
            Some("where" | "from" | "returning") => (ordered, is_written) = (false, false),
            _ => {}
        }
        if is_written {
            continue;
        }
        let Some((table, column, next)) = column_at(&words, at, &sources) else { continue };
        let kind = table.column(&column).map_or("", |column| column.kind.as_str());
        if !LEAKPROOF.contains(&kind) && !kind.starts_with("character varying") {
            continue;
        }
        let search = found.entry(&table.name).or_insert_with(|| Search {
            table: table.name.clone(),
            equal: Vec::new(),
            range: None,
            calls,
        });
        match comparison(&words, next) {
            // What is equal to another table's column is found the other way round as well as this one.
            Some(Comparison::Equal) if !search.equal.contains(&column) => search.equal.push(column),
            Some(Comparison::Range) => {
                search.range.get_or_insert(column);
            }
            None if ordered => {
                search.range.get_or_insert(column);
            }
            Some(Comparison::Equal) | None => {}
        }
    }
    let mut all: Vec<Search> = found.into_values().filter(|search| !search.columns().is_empty()).collect();
    all.iter_mut().for_each(|search| search.equal.sort());
    all
}

fn word(words: &[Token], at: usize) -> Option<&str> {
    match words.get(at)? {
        Token::Word(text) => std::str::from_utf8(text).ok(),
        _ => None,
    }
}

/// A name, quoted or not.
fn name(words: &[Token], at: usize) -> Option<&str> {
    match words.get(at)? {
        Token::Word(text) | Token::Quoted(text) => std::str::from_utf8(text).ok(),
        _ => None,
    }
}

fn is_mark(words: &[Token], at: usize, mark: u8) -> bool {
    matches!(words.get(at), Some(Token::Symbol(byte)) if *byte == mark)
}

/// Tables that stand behind FROM, JOIN, UPDATE and INTO, each by what the statement calls it.
fn sources<'a>(words: &[Token], tables: &'a [Table]) -> BTreeMap<String, &'a Table> {
    let mut found = BTreeMap::new();
    let mut expected = false;
    let mut at = 0;
    while at < words.len() {
        match word(words, at) {
            Some("from" | "join" | "update" | "into") => expected = true,
            Some("only" | "lateral") if expected => {}
            _ if expected => {
                let Some(first) = name(words, at) else {
                    expected = false;
                    continue;
                };
                let (schema, table, next) = match (is_mark(words, at + 1, b'.'), name(words, at + 2)) {
                    (true, Some(table)) => (Some(first), table, at + 3),
                    _ => (None, first, at + 1),
                };
                let known = tables.iter().find(|known| {
                    known.name.name == table && schema.is_none_or(|schema| known.name.schema == schema)
                });
                let next = if word(words, next) == Some("as") { next + 1 } else { next };
                let alias = name(words, next).filter(|alias| !NO_ALIAS.contains(alias));
                if let Some(known) = known {
                    found.insert(alias.unwrap_or(table).to_owned(), known);
                }
                let behind = if alias.is_some() { next + 1 } else { next };
                // Another one may follow behind a comma.
                expected = is_mark(words, behind, b',');
                at = if expected { behind } else { behind - 1 };
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// A column at this place, of which table it is, and where what follows it stands.
fn column_at<'a>(
    words: &[Token],
    at: usize,
    sources: &BTreeMap<String, &'a Table>,
) -> Option<(&'a Table, String, usize)> {
    let first = name(words, at)?;
    if at > 0 && is_mark(words, at - 1, b'.') {
        return None;
    }
    if is_mark(words, at + 1, b'.') {
        let (table, column) = (sources.get(first)?, name(words, at + 2)?);
        return table.column(column).map(|there| (*table, there.name.clone(), at + 3));
    }
    let mut having = sources.values().filter(|table| table.column(first).is_some());
    let table = having.next()?;
    having.next().is_none().then(|| (*table, first.to_owned(), at + 1))
}

enum Comparison {
    Equal,
    Range,
}

fn comparison(words: &[Token], at: usize) -> Option<Comparison> {
    match words.get(at)? {
        Token::Symbol(b'=') if !is_mark(words, at + 1, b'>') => Some(Comparison::Equal),
        Token::Symbol(b'<') if is_mark(words, at + 1, b'>') => None,
        Token::Symbol(b'<' | b'>') => Some(Comparison::Range),
        Token::Word(text) if text == b"in" => Some(Comparison::Equal),
        Token::Word(text) if text == b"between" => Some(Comparison::Range),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn tables() -> Vec<Table> {
        let table = |name: &str, columns: &[(&str, &str)]| {
            let columns: Vec<_> = columns
                .iter()
                .map(|(name, kind)| {
                    serde_json::json!({"name": name, "type": kind, "is_not_null": true, "is_generated": false,
                        "is_identity": false, "default": null})
                })
                .collect();
            serde_json::from_value(serde_json::json!({"schema": "public", "name": name, "is_partitioned": false,
                "is_partition": false, "owner": "o", "comment": null, "rows": 0, "bytes": 0, "writes": 0, "has_policies": false,
                "is_forced": false, "policies": [], "public_rights": [],
                "parents": [], "columns": columns, "constraints": [], "indexes": [], "triggers": [], "grantees": []}))
            .unwrap()
        };
        let (big, text, at) = ("bigint", "text", "timestamp with time zone");
        vec![
            table(
                "orders",
                &[
                    ("id", big),
                    ("customer_id", big),
                    ("state", "order_state"),
                    ("At", at),
                    ("sum", "numeric"),
                ],
            ),
            table("customers", &[("id", big), ("email", text), ("name", "character varying(80)")]),
        ]
    }

    #[test]
    fn what_queries_look_for() {
        for (query, expected) in [
            (
                "SELECT * FROM orders WHERE customer_id = $1 ORDER BY \"At\" DESC LIMIT $2",
                "orders customer_id At",
            ),
            ("SELECT name FROM customers c WHERE c.email = $1", "customers email"),
            (
                "SELECT name FROM public.customers AS c, orders WHERE c.name IN ($1, $2) AND customer_id=c.id",
                "customers name;orders customer_id",
            ),
            ("UPDATE orders SET state = $1 WHERE \"At\" BETWEEN $2 AND $3", "orders At"),
            ("DELETE FROM ONLY orders o USING customers WHERE o.\"At\" < $1 -- and id = 1", "orders At"),
            (
                "SELECT o.id FROM orders o JOIN customers c ON c.id = o.customer_id WHERE c.email > $1",
                "customers id email",
            ),
            // Neither enums nor numbers of any length are leakproof; a function over a column is no column.
            ("SELECT * FROM orders WHERE state = $1 AND sum > $2", ""),
            ("SELECT * FROM customers WHERE lower(email) = $1", ""),
            // Whose it is cannot be told, or it is none of ours.
            ("SELECT * FROM orders, customers WHERE id = $1", ""),
            ("SELECT * FROM elsewhere WHERE id = $1", ""),
            ("SELECT id FROM customers WHERE id <> $1 AND email = 'it''s \"At\" = '", "customers email"),
            ("FROM , FROM", ""),
            // What is written is not looked for.
            ("UPDATE customers SET name = $1, email = $2 WHERE id = $3", "customers id"),
            ("INSERT INTO customers (id) VALUES ($1) ON CONFLICT (id) DO UPDATE SET email = $2", ""),
        ] {
            let mut found = searches(query, 10, &tables());
            found.sort_by(|a, b| a.table.cmp(&b.table));
            let told: Vec<_> =
                found.iter().map(|one| format!("{} {}", one.table.name, one.columns().join(" "))).collect();
            assert_eq!(told.join(";"), expected, "{query}");
        }
    }
}
