//! Names of PostgreSQL's objects, as people read them and as SQL needs them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A table or view.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct Name {
    /// Its schema.
    pub schema: String,
    /// Its own name.
    pub name: String,
}

impl Name {
    /// A name in a schema.
    pub fn new(schema: &str, name: &str) -> Self {
        Self { schema: schema.to_owned(), name: name.to_owned() }
    }

    /// Reads `schema.name`, each quoted where it must be.
    pub fn parse(text: &str) -> Option<Self> {
        let (schema, rest) = take_ident(text)?;
        let (name, rest) = take_ident(rest.strip_prefix('.')?)?;
        rest.is_empty().then(|| Self::new(&schema, &name))
    }
}

/// As in SQL.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", ident(&self.schema), ident(&self.name))
    }
}

fn take_ident(text: &str) -> Option<(String, &str)> {
    if let Some(mut rest) = text.strip_prefix('"') {
        let mut name = String::new();
        loop {
            let end = rest.find('"')?;
            name.push_str(&rest[..end]);
            rest = &rest[end + 1..];
            match rest.strip_prefix('"') {
                Some(after) => (rest, _) = (after, name.push('"')),
                None => return (!name.is_empty()).then_some((name, rest)),
            }
        }
    }
    let end = text.find('.').unwrap_or(text.len());
    (end > 0).then(|| (text[..end].to_owned(), &text[end..]))
}

/// A name as `quote_ident` writes it.
pub fn ident(name: &str) -> String {
    let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if is_plain && KEYWORDS.split_ascii_whitespace().all(|word| word != name) {
        return name.to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Names with commas between them.
pub fn idents<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    names.into_iter().map(|name| ident(name.as_ref())).collect::<Vec<_>>().join(", ")
}

/// A string constant, as `quote_literal` writes it.
pub fn literal(text: &str) -> String {
    let escapes = if text.contains('\\') { "E" } else { "" };
    format!("{escapes}'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// A text between dollar quotes that it cannot end, whatever is in it.
pub fn dollar_quoted(text: &str) -> String {
    let mut tag = "$$".to_owned();
    let mut number = 0;
    while text.contains(&tag) {
        number += 1;
        tag = format!("$q{number}$");
    }
    format!("{tag}{text}{tag}")
}

/// A name made of these, not longer than PostgreSQL's (63 bytes): what is too long is cut, and told apart by a digest.
pub fn composed(parts: &[&str]) -> String {
    let whole = parts.join("_");
    if whole.len() <= 63 {
        return whole;
    }
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, whole.as_bytes());
    let digest: String = hash.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let tail = format!("_{digest}_{}", parts.last().copied().unwrap_or_default());
    let mut end = 63usize.saturating_sub(tail.len());
    while !whole.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{tail}", &whole[..end])
}

/// Words that are no names unless quoted (PostgreSQL documentation, "SQL Key Words": all but the unreserved).
const KEYWORDS: &str = "all analyse analyze and any array as asc asymmetric authorization between bigint binary bit boolean \
     both case cast char character check coalesce collate collation column concurrently constraint create cross \
     current_catalog current_date current_role current_schema current_time current_timestamp current_user dec decimal \
     default deferrable desc distinct do else end except exists extract false fetch float for foreign freeze from full \
     grant greatest group grouping having ilike in initially inner inout int integer intersect interval into is isnull \
     join json json_array json_arrayagg json_exists json_object json_objectagg json_query json_scalar json_serialize \
     json_table json_value lateral leading least left like limit localtime localtimestamp merge_action national natural \
     nchar none normalize not notnull null nullif numeric offset on only or order out outer overlaps overlay placing \
     position precision primary real references returning right row select session_user setof similar smallint some \
     substring symmetric system_user table tablesample then time timestamp to trailing treat trim true union unique user \
     using values varchar variadic verbose when where window with xmlattributes xmlconcat xmlelement xmlexists \
     xmlforest xmlnamespaces xmlparse xmlpi xmlroot xmlserialize xmltable";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_quoted_where_they_must_be() {
        for (raw, quoted) in [
            ("users", "users"),
            ("User", "\"User\""),
            ("order", "\"order\""),
            ("a\"b", "\"a\"\"b\""),
            ("1a", "\"1a\""),
        ] {
            assert_eq!(ident(raw), quoted);
            let name = Name::new("public", raw);
            assert_eq!(Name::parse(&name.to_string()), Some(name));
        }
        assert_eq!(Name::parse("a.\"b.c\""), Some(Name::new("a", "b.c")));
        for wrong in ["", "a", "a.", ".a", "a.\"b", "a.\"b\"c", "a.\"\""] {
            assert_eq!(Name::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn no_text_ends_its_own_quotes() {
        assert_eq!(dollar_quoted("a"), "$$a$$");
        assert_eq!(dollar_quoted("a$$ $q1$ b"), "$q2$a$$ $q1$ b$q2$");
    }

    #[test]
    fn long_names_are_cut_and_told_apart() {
        let long = "x".repeat(60);
        let names = [
            composed(&[&long, "a", "key"]),
            composed(&[&long, "b", "key"]),
            composed(&["ü".repeat(40).as_str(), "key"]),
        ];
        assert!(names.iter().all(|name| name.len() <= 63 && name.ends_with("_key")), "{names:?}");
        assert_ne!(names[0], names[1]);
        assert_eq!(composed(&["a", "key"]), "a_key");
    }
}
