//! Texts that do no more than read and write rows, or begin and end a transaction.
//!
//! Whatever calls a function that is not known to compute only, or could reach one in another way, is not inert: so a
//! client cannot change a setting, keep a lock or make an object by an inert text. What a list of words cannot see is what
//! the schema's author put behind tables, operators and types; that runs for every client alike.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::scanner::{Scanner, Token};
use crate::wire::frame::split_cstr;

/// What can be said of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// It does no more than read and write rows, or begin and end a transaction.
    pub is_inert: bool,
    /// It may have somebody's data in it: strings, numbers of more than two digits, comments.
    pub has_data: bool,
}

/// Words that an inert text may begin with.
const VERBS: &str = "abort begin commit delete end insert merge release rollback savepoint select start table update \
     values with";

/// Key words that may have a parenthesis behind them, which then is no call.
const KEY_WORDS: &str = "all and any array as between by case coalesce conflict distinct else except \
     exists extract filter from greatest group having in intersect interval is join lateral least like limit materialized \
     not nullif offset on or over position returning row select set some substring then trim union using \
     values when where with within zone escape";

/// Types of PostgreSQL's: a domain's CHECK may call anything.
const TYPES: &str = "bigint bool boolean bytea char character date decimal double float4 float8 inet int int2 int4 int8 \
     integer interval json jsonb numeric real smallint text time timestamp timestamptz uuid varchar";

/// Types and other objects from here on are not PostgreSQL's own (`FirstNormalObjectId`).
pub const FIRST_NORMAL_OID: u32 = 16_384;

/// Functions of PostgreSQL's that only compute, or wait.
const FUNCTIONS: &str = "abs array_agg array_length avg bool_and bool_or cardinality ceil char_length concat count date_part \
     date_trunc dense_rank first_value floor gen_random_uuid generate_series json_agg json_build_object jsonb_agg \
     jsonb_build_object lag last_value lead left length lower max min mod now pg_sleep power rank replace right round row_number \
     row_to_json string_agg substr sum to_json to_jsonb unnest upper";

/// What stands before a parenthesis.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Nothing that could be called, or only what may be.
    Harmless,
    /// A name.
    Name,
    /// The table of INSERT or MERGE: its columns may follow.
    Target,
}

/// Reads what follows the name in Parse: the text, and the types of its parameters.
pub fn read_parse(text_and_types: &[u8]) -> Reading {
    let (text, types) = split_cstr(text_and_types).unwrap_or((text_and_types, &[]));
    let mut types = types.get(2..).unwrap_or_default().chunks(4);
    let is_own = |oid: &[u8]| oid.try_into().is_ok_and(|oid| u32::from_be_bytes(oid) < FIRST_NORMAL_OID);
    if types.all(is_own) { read(text) } else { NOT_INERT }
}

/// Of what may do anything.
const NOT_INERT: Reading = Reading { is_inert: false, has_data: true };

/// Reads a text as PostgreSQL does where string constants are standard.
pub fn read(sql: &[u8]) -> Reading {
    let sql = memchr::memchr(0, sql).map_or(sql, |end| &sql[..end]);
    let is_commented = ["--", "/*"].iter().any(|mark| memchr::memmem::find(sql, mark.as_bytes()).is_some());
    let mut has_data = is_commented;
    let (mut scanner, mut before, mut digits) = (Scanner::new(sql, true), Before::Harmless, 0);
    let (mut index, mut is_behind_dot, mut colons, mut is_over) = (0, false, 0, false);
    // The last was a word that may be a type, whose constant would follow.
    let mut may_be_type = false;
    // The last ended an expression: a name behind a dot may be a function of its value.
    let mut is_closed = false;
    // INSERT INTO or MERGE INTO was read, and nothing behind it.
    let (mut may_have_target, mut is_behind_into) = (false, false);
    while let Some(token) = scanner.next() {
        let lists = match &token {
            Token::Word(word) => WORDS.get(word.as_slice()).copied().unwrap_or_default(),
            // In quotes it is no key word.
            Token::Quoted(word) => Lists {
                functions: WORDS.get(word.as_slice()).is_some_and(|lists| lists.functions),
                ..Lists::default()
            },
            _ => Lists::default(),
        };
        let is_inert = match &token {
            _ if is_over => false,
            Token::Word(_) if index == 0 => lists.verbs,
            _ if index == 0 => false,
            // SELECT ... INTO makes a table; so INTO is taken for INSERT's only where nothing else can be meant.
            Token::Word(word) if word == b"into" => index == 1 && may_have_target,
            Token::Word(_) | Token::Quoted(_) if colons == 2 => lists.types,
            Token::Word(word) | Token::Quoted(word) => lists.functions || !word.starts_with(b"pg_"),
            Token::Symbol(b'(') => before != Before::Name,
            Token::Symbol(b'.') => !is_closed,
            // It may be a name that is written in code points.
            Token::Other => false,
            // Behind a dot, N'...' is a constant of a type of that name.
            Token::Text(_) => !may_be_type && !is_behind_dot,
            Token::Symbol(_) => true,
        };
        if !is_inert {
            return NOT_INERT;
        }
        has_data |= match &token {
            Token::Text(_) => true,
            // 0x1f, 1e9, 1_000
            Token::Word(word) => digits > 0 && (word[0] == b'x' || word.iter().any(u8::is_ascii_digit)),
            Token::Symbol(symbol) => symbol.is_ascii_digit() && digits >= 2,
            _ => false,
        };
        digits = if matches!(token, Token::Symbol(b'0'..=b'9')) { digits + 1 } else { 0 };
        is_over = token == Token::Symbol(b';');
        before = match &token {
            Token::Word(_) | Token::Quoted(_) if is_behind_into => Before::Target,
            Token::Word(_) | Token::Quoted(_) if is_behind_dot && before == Before::Target => Before::Target,
            Token::Word(_) | Token::Quoted(_)
                if !is_behind_dot && (lists.key_words || lists.functions || lists.types) =>
            {
                Before::Harmless
            }
            Token::Word(_) | Token::Quoted(_) => Before::Name,
            Token::Symbol(b'.') => before,
            _ => Before::Harmless,
        };
        may_be_type = matches!(&token, Token::Word(_) | Token::Quoted(_)) && before != Before::Harmless;
        colons = if token == Token::Symbol(b':') { colons + 1 } else { 0 };
        is_behind_dot = token == Token::Symbol(b'.');
        is_closed = matches!(token, Token::Symbol(b')' | b']') | Token::Text(_));
        let word = if let Token::Word(word) = &token { word.as_slice() } else { b"" };
        is_behind_into = word == b"into";
        may_have_target = matches!(word, b"insert" | b"merge");
        index += 1;
    }
    Reading { is_inert: true, has_data }
}

/// The names that an inert text may call, and those that look like key words but can be called: where the schema has a
/// function of such a name, none is inert.
pub fn callable() -> impl Iterator<Item = &'static str> {
    [FUNCTIONS, KEY_WORDS, TYPES].into_iter().flat_map(str::split_ascii_whitespace)
}

/// Which lists a word is in.
#[derive(Debug, Clone, Copy, Default)]
struct Lists {
    verbs: bool,
    key_words: bool,
    types: bool,
    functions: bool,
}

/// Every word of the lists: most texts are looked at once for each of their words.
static WORDS: LazyLock<HashMap<&[u8], Lists>> = LazyLock::new(|| {
    let mut words = HashMap::<&[u8], Lists>::new();
    let mut put = |list: &'static str, note: fn(&mut Lists)| {
        list.split_ascii_whitespace().for_each(|word| note(words.entry(word.as_bytes()).or_default()));
    };
    put(VERBS, |lists| lists.verbs = true);
    put(KEY_WORDS, |lists| lists.key_words = true);
    put(TYPES, |lists| lists.types = true);
    put(FUNCTIONS, |lists| lists.functions = true);
    words
});

#[cfg(test)]
mod tests {
    use super::*;

    fn is_inert(sql: &str) -> bool {
        read(sql.as_bytes()).is_inert
    }

    #[test]
    fn queries_of_applications_are_inert() {
        for sql in [
            "SELECT pg_sleep(0.02), count(*) FROM items",
            "SELECT id, body FROM items WHERE id = $1 AND (a OR b) ORDER BY id LIMIT 10;",
            "select \"users\".\"id\", count(*) from \"public\".\"users\" where \"id\" in ($1, $2) group by 1",
            "INSERT INTO items (body, n) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET (a, b) = (1, 2) RETURNING id",
            "insert into \"public\".\"items\" (\"body\") values ($1), (lower($2))",
            "INSERT INTO items SELECT * FROM (SELECT 1) AS x",
            "UPDATE items SET n = n + 1 WHERE id = ANY($1) AND EXISTS (SELECT FROM other)",
            "DELETE FROM items USING (VALUES (1)) AS v WHERE id = 1",
            "WITH x AS (SELECT 1), y AS MATERIALIZED (SELECT 2) SELECT COALESCE(max(a), 0)::numeric(10, 2) FROM x, y",
            "MERGE INTO items USING other ON (a = b) WHEN MATCHED THEN DO NOTHING",
            "SELECT date_trunc('day', at), sum(n) FILTER (WHERE n > 0) OVER (PARTITION BY a) FROM t",
            "SELECT a FROM t WHERE b IN (SELECT c FROM u) FOR UPDATE SKIP LOCKED",
            "SELECT $1::uuid, a::varchar(9), date '2026-01-01' - interval '1 day' FROM t WHERE b LIKE 'x' AND c = 'y'",
            "TABLE items",
            "BEGIN ISOLATION LEVEL SERIALIZABLE",
            "COMMIT",
            "ROLLBACK TO s",
        ] {
            assert!(is_inert(sql), "{sql}");
        }
    }

    #[test]
    fn whatever_calls_or_makes_something_is_not() {
        for sql in [
            ";",
            "SELECT - hidden('x')",
            "SELECT pg_sleep_until('x')",
            "SELECT public.pg_sleep(1)",
            "SELECT * FROM pg_temp.items",
            "SELECT @ \"hidden\"('x')",
            "SELECT a hidden('x')",
            "INSERT INTO t.hidden SELECT b.hidden('x')",
            "SELECT INTO theirs FROM items",
            "SELECT 'x'::checked",
            "SELECT 'x'::\"checked\"[]",
            "SELECT 'x':: public.checked",
            "SELECT CAST('x' AS checked)",
            "SELECT checked 'x'",
            "SELECT \"checked\" 'x'",
            "SELECT public.checked 'x'",
            "SELECT public.N'x'",
            "SELECT public . N'x'",
            "SET work_mem = 1",
            "CALL p()",
            "DO $$ $$",
            "EXECUTE s",
            "DISCARD ALL",
            "SELECT hidden('x')",
            "SELECT \"hidden\" ('x')",
            "SELECT hidden/* */('x')",
            "SELECT public.lower('x')",
            "SELECT \"all\"('x')",
            "SELECT U&\"\\0073et_config\"('a', 'b', true)",
            "SELECT set_config('a', 'b', false)",
            "SELECT current_setting('a')",
            "UPDATE pg_settings SET setting = 'x'",
            "UPDATE pg_catalog.pg_settings SET setting = 'x'",
            "UPDATE \"pg_settings\" SET setting = 'x'",
            "SELECT 1 INTO theirs",
            "SELECT 1 AS insert INTO theirs",
            "SELECT (1) insert INTO theirs",
            "INSERT INTO t SELECT 1 insert INTO theirs",
            "WITH x AS (SELECT 1) SELECT 1 INTO theirs",
            "SELECT 1; SET work_mem = 1",
            "SELECT 1;;",
            "SELECT 1 OPERATOR(public.+) 2",
            "SELECT * FROM hidden($1)",
            "SELECT * FROM ROWS FROM (hidden('x'))",
            "INSERT INTO t (a) VALUES (hidden('x'))",
            "INSERT INTO t SELECT hidden('x')",
            "SELECT a.b.hidden('x')",
            "(SELECT 1)",
            "EXPLAIN ANALYZE SELECT 1",
            "COPY t FROM STDIN",
            "LISTEN x",
            "VACUUM",
        ] {
            assert!(!is_inert(sql), "{sql}");
        }
    }

    #[test]
    fn types_of_parameters_are_postgresqls() {
        for (types, expected) in [
            (&b"\0\0"[..], true),
            (b"\0\x02\0\0\0\x17\0\0\0\0", true),
            (b"\0\x02\0\0\0\x17\0\0\x40\0", false),
            (b"\0\x01\0\0", false),
        ] {
            let parse = [b"SELECT $1\0", types].concat();
            assert_eq!(read_parse(&parse).is_inert, expected, "{types:?}");
        }
    }

    #[test]
    fn what_may_be_somebodys_data_is_seen() {
        for (sql, has_data) in [
            ("SELECT a FROM t WHERE id = $1 LIMIT 10 OFFSET $2", false),
            ("SELECT a12345 FROM t1000", false),
            ("SELECT a FROM t WHERE id = 4711", true),
            ("SELECT a FROM t WHERE b = 'x'", true),
            ("SELECT a FROM t WHERE b = $x$x$x$", true),
            ("SELECT a FROM t WHERE id = 0xdeadbeef", true),
            ("SELECT a FROM t WHERE id = 1_000", true),
            ("SELECT a FROM t WHERE id = 1e9", true),
            ("SELECT a FROM t /* for you */", true),
            ("SELECT a FROM t -- for you", true),
        ] {
            let reading = read(sql.as_bytes());
            assert_eq!((reading.is_inert, reading.has_data), (true, has_data), "{sql}");
        }
    }
}
