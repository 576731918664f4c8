//! Tokens as PostgreSQL reads them; what was once read otherwise.

#![allow(clippy::unwrap_used)]

use super::*;

fn tokens(sql: &str) -> Vec<Token> {
    let mut scanner = Scanner::new(sql.as_bytes(), true).decoding();
    std::iter::from_fn(|| scanner.next()).collect()
}

fn value(sql: &str) -> String {
    let tokens = tokens(sql);
    let [Token::Text(value) | Token::Quoted(value)] = &tokens[..] else { panic!("{sql}: {tokens:?}") };
    String::from_utf8(value.clone()).unwrap()
}

#[test]
fn an_escape_that_stands_twice_stands_for_itself() {
    for (sql, expected) in [
        (r"U&'a\\0062'", r"a\0062"),
        ("U&'a!!0062' UESCAPE '!'", "a!0062"),
        ("U&'apppp.x' UESCAPE 'p'", "app.x"),
        ("U&\"apppp\" UESCAPE 'p'", "app"),
        (r"U&'\++00061'", r"\++00061"),
    ] {
        assert_eq!(value(sql), expected, "{sql}");
    }
}

#[test]
fn the_escape_may_be_written_in_any_way() {
    for sql in [
        "U&'!0061' UESCAPE '!'",
        "U&'!0061' uescape /* */ E'!'",
        r"U&'!0061' UESCAPE E'\041'",
        r"U&'!0061' UESCAPE E'\x21'",
        r"U&'!0061' UESCAPE E'\u0021'",
        "U&'!0061' UESCAPE $$!$$",
        "U&'!0061' UESCAPE ''\n'!'",
    ] {
        assert_eq!(value(sql), "a", "{sql}");
    }
}

#[test]
fn escapes_that_never_end_are_read_in_a_constant_depth() {
    let sql = "U&'' UESCAPE ".repeat(100_000);
    assert_eq!(tokens(&sql).len(), 200_000);
}

#[test]
fn surrogates_are_one_character() {
    for sql in [r"E'\ud83d\ude00'", r"E'\ud83d\U0000de00'", r"U&'\d83d\de00'", r"U&'\+00d83d\de00'"] {
        assert_eq!(value(sql), "\u{1f600}", "{sql}");
    }
}

#[test]
fn escapes_are_read_as_far_as_they_go() {
    for (sql, expected) in [
        (r"E'\x4a\x4g\xg'", "J\u{4}gxg"),
        (r"E'\1011\8\b\f\n\r\t\v\\'", "A18\u{8}\u{c}\n\r\tv\\"),
        (r"E'\u00e4\U0001f600'", "\u{e4}\u{1f600}"),
    ] {
        assert_eq!(value(sql), expected, "{sql}");
    }
}

#[test]
fn a_constant_goes_on_behind_a_line_and_not_behind_a_block_comment() {
    let text = |value: &str| Token::Text(value.into());
    for (sql, expected) in [
        ("'a'\n'b'", vec![text("ab")]),
        ("'a' -- c\n -- d\n 'b'", vec![text("ab")]),
        ("'a' 'b'", vec![text("a"), text("b")]),
        ("'a'\n/* c */ 'b'", vec![text("a"), text("b")]),
        ("'a' /* \n */ 'b'", vec![text("a"), text("b")]),
    ] {
        assert_eq!(tokens(sql), expected, "{sql}");
    }
}

#[test]
fn a_bit_string_ends_at_its_first_quote() {
    let text = |value: &str| Token::Text(value.into());
    for (sql, expected) in [
        ("b'01''x'", vec![text("01"), text("x")]),
        ("X'1f'\n'2'';'", vec![text("1f2"), text(";")]),
        ("n'01''x'", vec![text("01'x")]),
    ] {
        assert_eq!(tokens(sql), expected, "{sql}");
    }
}
