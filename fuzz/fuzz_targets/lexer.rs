//! The lexer against PostgreSQL's own: the same tokens with the same values, and the same ends of statements.
#![no_main]

use std::collections::HashMap;
use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use pgtenant::fuzzing::{Scanner, Token};
use pgtenant_fuzz::postgres::{self, Kind};

fuzz_target!(|data: &[u8]| {
    let Ok(sql) = std::str::from_utf8(data) else { return };
    let sql = sql.split('\0').next().unwrap_or_default();
    if let Some(theirs) = postgres::lexemes(sql) {
        compare(sql, &ours(sql, true), &theirs);
    }
    for is_standard in [true, false] {
        if let Some(tree) = postgres::tree(sql, is_standard) {
            compare_tree(sql, &ours(sql, is_standard), &tree);
        }
    }
});

/// Our tokens, with where each is.
fn ours(sql: &str, is_standard: bool) -> Vec<(Range<usize>, Token)> {
    let mut scanner = Scanner::new(sql.as_bytes(), is_standard).decoding().with_vertical_tabs(true);
    let mut tokens = Vec::new();
    loop {
        scanner.skip_to_token();
        let start = sql.len() - scanner.left();
        let Some(token) = scanner.next() else { return tokens };
        tokens.push((start..sql.len() - scanner.left(), token));
    }
}

fn compare(sql: &str, ours: &[(Range<usize>, Token)], theirs: &[postgres::Lexeme]) {
    let mut ours = ours.iter();
    for lexeme in theirs {
        let text = &sql[lexeme.range.clone()];
        let (range, token) = ours.next().unwrap_or_else(|| panic!("we end before {lexeme:?} {text:?}"));
        assert_eq!(range.start, lexeme.range.start, "{lexeme:?} {text:?}: we have {token:?}");
        let mut end = range.end;
        match lexeme.kind {
            Kind::Word => match token {
                Token::Word(word) => is_name(text, word, true),
                _ => panic!("{text:?}: we have {token:?}"),
            },
            Kind::Quoted => match token {
                Token::Quoted(name) => is_name(text, name, true),
                _ => panic!("{text:?}: we have {token:?}"),
            },
            Kind::Text => match token {
                Token::Text(value) => is_value(text, value, true),
                _ => panic!("{text:?}: we have {token:?}"),
            },
            Kind::Number | Kind::Symbols => {
                while end < lexeme.range.end {
                    let (range, token) = ours.next().unwrap_or_else(|| panic!("we end within {text:?}"));
                    assert_eq!(range.start, end, "{text:?}: there is space in front of {token:?}");
                    let fits = match lexeme.kind {
                        Kind::Number => matches!(token, Token::Word(_) | Token::Symbol(_)),
                        _ => matches!(token, Token::Symbol(_)),
                    };
                    assert!(fits, "{text:?}: we have {token:?}");
                    end = range.end;
                }
            }
        }
        assert_eq!(end, lexeme.range.end, "{lexeme:?} {text:?}: we end elsewhere");
    }
    if let Some(more) = ours.next() {
        panic!("they end before {more:?}");
    }
}

/// PostgreSQL cuts names off, which we leave to who asks.
fn is_name(text: &str, ours: &[u8], is_standard: bool) {
    if let Some(theirs) = postgres::name(text, is_standard) {
        assert!(ours.starts_with(theirs.as_bytes()), "{text:?}: {theirs:?}, ours {ours:?}");
        assert!(ours.len() == theirs.len() || theirs.len() > 59, "{text:?}: {theirs:?}, ours {ours:?}");
    }
}

fn is_value(text: &str, ours: &[u8], is_standard: bool) {
    if let Some(theirs) = postgres::constant(text, is_standard) {
        assert_eq!(ours, theirs.as_bytes(), "{text:?}: {theirs:?}");
    }
}

fn compare_tree(sql: &str, ours: &[(Range<usize>, Token)], tree: &serde_json::Value) {
    let semicolons: Vec<usize> = ours
        .iter()
        .filter(|(_, token)| *token == Token::Symbol(b';'))
        .map(|(range, _)| range.start)
        .collect();
    let statements = postgres::statements(tree);
    for (kind, range) in &statements {
        let is_last = range.is_empty();
        assert!(is_last || semicolons.contains(&range.end), "{kind} at {range:?} does not end for us");
    }
    // Semicolons stand within statements in the bodies of rules and functions alone.
    let has_body = statements.iter().any(|(kind, _)| ["RuleStmt", "CreateFunctionStmt"].contains(kind));
    if !has_body {
        let groups = ours.split(|(_, token)| *token == Token::Symbol(b';'));
        let count = groups.filter(|group| !group.is_empty()).count();
        assert_eq!(count, statements.len(), "statements of {sql:?}");
    }
    let starts: HashMap<usize, &Token> = ours.iter().map(|(range, token)| (range.start, token)).collect();
    for constant in postgres::nodes(tree, "AConst") {
        let location = constant["location"].as_u64();
        let value = constant["val"]["Sval"]["sval"].as_str();
        if let (Some(location), Some(value)) = (location, value) {
            // Of N'...' it is where the quote is.
            let location = location as usize;
            let ours = starts.get(&location).or_else(|| starts.get(&location.checked_sub(1)?));
            match ours {
                Some(Token::Text(ours)) => assert_eq!(ours, value.as_bytes(), "at {location}: {value:?}"),
                // Of -'...' it is where the sign is.
                Some(Token::Symbol(b'-')) => {}
                // The grammar makes some of words: SET x TO on.
                Some(Token::Word(_) | Token::Quoted(_)) => {}
                other => panic!("{value:?} at {location}: we have {other:?}"),
            }
        }
    }
}
