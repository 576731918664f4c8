//! PostgreSQL's own reading of a text (libpg_query: its scanner and grammar), as far as targets ask for it.

use std::ops::Range;

use pg_query::ParserOptions;
use pg_query::protobuf::Token;
use serde_json::Value;

/// How a token of PostgreSQL's is compared with ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A key word or identifier without quotes.
    Word,
    /// An identifier in quotes.
    Quoted,
    /// A string constant.
    Text,
    /// A number or parameter: we take it apart.
    Number,
    /// Operators and the like: we take them apart.
    Symbols,
}

/// One of PostgreSQL's tokens.
#[derive(Debug)]
pub struct Lexeme {
    pub range: Range<usize>,
    pub kind: Kind,
}

/// The tokens of a text but for comments, where string constants are standard; none if PostgreSQL refuses it.
pub fn lexemes(sql: &str) -> Option<Vec<Lexeme>> {
    // The scanner reads strings as they were parsed last.
    pg_query::parse("", ParserOptions::DEFAULT).ok()?;
    let mut lexemes: Vec<Lexeme> = Vec::new();
    let mut is_unicode = false;
    let mut tokens = pg_query::scan_tokens(sql).ok()?.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let range = token.start as usize..token.end as usize;
        let next_start = tokens.peek().map(|next| next.start as usize);
        let is_bare = !sql[range.clone()].contains(['"', '\'']);
        let kind = match Token::try_from(token.token).ok()? {
            Token::SqlComment | Token::CComment => continue,
            // N'...' is a key word with a constant behind it; for us, the constant begins here.
            Token::Nchar if range.len() == 1 && next_start == Some(range.end) => {
                let constant = tokens.next()?;
                lexemes.push(Lexeme { range: range.start..constant.end as usize, kind: Kind::Text });
                is_unicode = false;
                continue;
            }
            Token::Sconst | Token::Bconst | Token::Xconst => Kind::Text,
            Token::Usconst => Kind::Text,
            Token::Ident if is_bare => Kind::Word,
            Token::Ident | Token::Uident => Kind::Quoted,
            Token::Iconst | Token::Fconst | Token::Param => Kind::Number,
            _ if token.keyword_kind != 0 => Kind::Word,
            _ => Kind::Symbols,
        };
        // The grammar takes UESCAPE and its constant as a part of what is before them.
        if is_unicode && kind == Kind::Word && sql[range.clone()].eq_ignore_ascii_case("uescape") {
            let escape = tokens.by_ref().find(|token| {
                !matches!(Token::try_from(token.token), Ok(Token::SqlComment | Token::CComment))
            })?;
            // Anything else, and an escape that cannot be, is a syntax error.
            let escape_text = &sql[escape.start as usize..escape.end as usize];
            if escape.token != Token::Sconst as i32 || !is_escape(&constant(escape_text, true)?) {
                return None;
            }
            lexemes.last_mut()?.range.end = escape.end as usize;
            is_unicode = false;
            continue;
        }
        is_unicode = matches!(Token::try_from(token.token), Ok(Token::Usconst | Token::Uident));
        lexemes.push(Lexeme { range, kind });
    }
    Some(lexemes)
}

/// PostgreSQL's `check_uescapechar`.
fn is_escape(text: &str) -> bool {
    let mut bytes = text.bytes();
    matches!((bytes.next(), bytes.next()), (Some(escape), None)
        if !escape.is_ascii_hexdigit() && !b"+'\"".contains(&escape) && !escape.is_ascii_whitespace())
}

/// The value of a string constant.
pub fn constant(text: &str, is_standard: bool) -> Option<String> {
    let tree = tree(&format!("SELECT {text}"), is_standard)?;
    let target = &tree["stmts"][0]["stmt"]["node"]["SelectStmt"]["target_list"];
    let [target] = target.as_array()?.as_slice() else { return None };
    let value = &target["node"]["ResTarget"]["val"]["node"];
    // N'...' is cast.
    let value = if value["TypeCast"].is_object() { &value["TypeCast"]["arg"]["node"] } else { value };
    Some(value["AConst"]["val"]["Sval"]["sval"].as_str()?.to_owned())
}

/// The name that an identifier or key word stands for.
pub fn name(text: &str, is_standard: bool) -> Option<String> {
    let tree = tree(&format!("SELECT 1 AS {text}"), is_standard)?;
    let target = &tree["stmts"][0]["stmt"]["node"]["SelectStmt"]["target_list"];
    Some(target[0]["node"]["ResTarget"]["name"].as_str()?.to_owned())
}

/// The syntax tree of a text; none if PostgreSQL refuses it, or it is nested too deep to be handed over.
pub fn tree(sql: &str, is_standard: bool) -> Option<Value> {
    let options = match is_standard {
        true => ParserOptions::DEFAULT,
        false => ParserOptions::DISABLE_STANDARD_CONFORMING_STRINGS,
    };
    let options = options | ParserOptions::DISABLE_ESCAPE_STRING_WARNING;
    let parsed = pg_query::parse(sql, options).ok()?;
    if sql.contains('$') {
        pg_query::parse(&without_parameters(sql)?, options).ok()?;
    }
    serde_json::to_value(&parsed.protobuf).ok()
}

/// A text with a number for each parameter. libpg_query takes one where PostgreSQL does not: as in `SELECT interval $1`.
fn without_parameters(sql: &str) -> Option<String> {
    let mut text = sql.to_owned();
    for token in pg_query::scan_tokens(sql).ok()?.iter().rev() {
        if token.token == Token::Param as i32 {
            text.replace_range(token.start as usize..token.end as usize, " 1 ");
        }
    }
    Some(text)
}

/// Every node of this kind, wherever it is.
pub fn nodes<'t>(tree: &'t Value, kind: &str) -> Vec<&'t Value> {
    let (mut found, mut left) = (Vec::new(), vec![tree]);
    while let Some(value) = left.pop() {
        match value {
            Value::Object(members) => {
                found.extend(members.get(kind).filter(|node| node.is_object()));
                left.extend(members.values());
            }
            Value::Array(values) => left.extend(values),
            _ => {}
        }
    }
    found
}

/// The statements of a tree: the kind of each, and where it is.
pub fn statements(tree: &Value) -> Vec<(&str, Range<usize>)> {
    let of = |raw: &'_ Value, name: &str| raw[name].as_u64().unwrap_or(0) as usize;
    let statements = tree["stmts"].as_array().into_iter().flatten();
    statements
        .filter_map(|raw| {
            let (kind, _) = raw["stmt"]["node"].as_object()?.iter().next()?;
            let start = of(raw, "stmt_location");
            Some((kind.as_str(), start..start + of(raw, "stmt_len")))
        })
        .collect()
}

/// What a setting's name is in a call of `set_config`.
#[derive(Debug, PartialEq, Eq)]
pub enum Named {
    /// A constant, perhaps cast to text.
    Constant(String),
    /// A constant that is cast to anything else.
    Cast(String),
    /// A parameter, perhaps cast to text.
    Parameter,
    /// Anything else.
    Computed,
}

/// The first argument of every call of `set_config` in a tree.
pub fn set_configs(tree: &Value) -> Vec<Named> {
    let mut found = Vec::new();
    for call in nodes(tree, "FuncCall") {
        let is_it = |name: &Value| name["node"]["String"]["sval"] == "set_config";
        if !call["funcname"].as_array().and_then(|names| names.last()).is_some_and(is_it) {
            continue;
        }
        // Without arguments there is no such function.
        let Some(first) = call["args"].as_array().and_then(|args| args.first()) else { continue };
        found.push(named(first, call["func_variadic"] == true));
    }
    found
}

fn named(argument: &Value, is_variadic: bool) -> Named {
    let (mut node, mut is_cast) = (&argument["node"], false);
    while node["TypeCast"].is_object() {
        is_cast |= !is_cast_to_text(&node["TypeCast"]["type_name"]);
        node = &node["TypeCast"]["arg"]["node"];
    }
    let constant = &node["AConst"]["val"];
    // B'01' and X'1f' are written as their digits, or refused: no setting is called so.
    let digits = constant["Bsval"]["bsval"].as_str().map(|bits| bits.trim_start_matches(['b', 'x']));
    match constant["Sval"]["sval"].as_str().or(digits) {
        _ if is_variadic => Named::Computed,
        // N'...': a constant of type character, which loses its blanks on the way to text.
        Some(name)
            if is_cast
                && argument["node"]["TypeCast"]["type_name"]["names"][1]["node"]["String"]["sval"]
                    == "bpchar"
                && argument["node"]["TypeCast"]["type_name"]["typmods"] == serde_json::json!([]) =>
        {
            Named::Constant(name.trim_end_matches(' ').to_owned())
        }
        Some(name) if is_cast => Named::Cast(name.to_owned()),
        Some(name) => Named::Constant(name.to_owned()),
        None if node["ParamRef"].is_object() && !is_cast => Named::Parameter,
        None => Named::Computed,
    }
}

fn is_cast_to_text(type_name: &Value) -> bool {
    let names = type_name["names"].as_array().into_iter().flatten();
    let names: Vec<&str> = names.filter_map(|name| name["node"]["String"]["sval"].as_str()).collect();
    let is_plain = ["typmods", "array_bounds"].iter().all(|of| type_name[of] == serde_json::json!([]));
    is_plain && matches!(names[..], ["text"] | ["varchar"] | ["pg_catalog", "text" | "varchar"])
}
