//! Sequences as they stand in the files beside this one: who sends what, and what must come out.

use serde::Deserialize;

/// One class of attacks.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// What they have in common.
    pub class: String,
    /// Run by the owner of the database before: what a schema would have.
    #[serde(default)]
    pub setup: String,
    #[serde(rename = "sequence")]
    pub sequences: Vec<Sequence>,
}

/// One attack.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sequence {
    pub name: String,
    /// Where it makes no sense elsewhere: `pgtenant`, or `proxy` for whatever stands before PostgreSQL.
    #[serde(default)]
    pub only: Option<Only>,
    /// Not before this version of PostgreSQL.
    #[serde(default)]
    pub since: u32,
    /// Run by the owner of the database before.
    #[serde(default)]
    pub setup: String,
    pub steps: Vec<Step>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Only {
    Pgtenant,
    Proxy,
}

/// One thing that somebody does. Of the kinds exactly one is there. In texts, `{setting}` is what names the context (also
/// `{class}.{member}`, and `{unicode}` and `{escaped}`, the same as a name and as a constant), `{forged}` a value of it that claims to be the victim's, `{victim}` and `{own}` are ids of organizations, `{token}` is a
/// good token of one's own, `{expired}` an expired one, `{foreign}` one for the victim's organization by an unknown key; more of them are in `forged.rs`.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    /// `mallory` (if nobody is named) or `accomplice`, of one organization; `victim`, of another.
    pub who: Option<String>,
    /// A Query.
    pub sql: Option<String>,
    /// Parse, Bind, Execute, Sync.
    pub prepared: Option<String>,
    /// Parameters of `prepared`.
    pub with: Vec<String>,
    /// Several of them before one Sync.
    pub batch: Vec<String>,
    /// Several Queries in one write.
    pub pipeline: Vec<String>,
    /// Bytes in hexadecimal, and then whatever comes back until nothing does.
    pub raw: Option<String>,
    /// A new connection, with these start-up parameters; the former one just ends.
    pub connect: Option<Vec<(String, String)>>,
    /// A new connection that signs in by this, and is refused.
    pub signs_in: Option<String>,
    /// A cancel request: with the own key, the victim's, or half of that.
    pub cancel: Option<String>,
    /// Milliseconds to wait.
    pub pause: Option<u64>,
    /// A Query that is not waited for.
    pub starts: Option<String>,
    /// One of these must come out: `ok`, an SQLSTATE, `closed`, `rows N`, or `= value`; anything, if it is not said.
    pub gives: Gives,
    /// The same past the proxy, where nobody reads texts and connections are not pooled.
    pub past: Gives,
}

/// One outcome or several.
#[derive(Deserialize, Debug, Default)]
#[serde(untagged)]
pub enum Gives {
    #[default]
    Anything,
    One(String),
    Any(Vec<String>),
}

impl Gives {
    pub fn all(&self) -> Vec<&str> {
        match self {
            Self::Anything => Vec::new(),
            Self::One(one) => vec![one],
            Self::Any(several) => several.iter().map(String::as_str).collect(),
        }
    }
}

const FILES: [(&str, &str); 8] = [
    ("context.toml", include_str!("context.toml")),
    ("roles.toml", include_str!("roles.toml")),
    ("transactions.toml", include_str!("transactions.toml")),
    ("leftovers.toml", include_str!("leftovers.toml")),
    ("schema.toml", include_str!("schema.toml")),
    ("catalogues.toml", include_str!("catalogues.toml")),
    ("protocol.toml", include_str!("protocol.toml")),
    ("tokens.toml", include_str!("tokens.toml")),
];

/// All of them.
pub fn classes() -> Vec<Class> {
    let read = |(name, text): &(&str, &str)| toml::from_str(text).unwrap_or_else(|e| panic!("{name}: {e}"));
    FILES.iter().map(read).collect()
}
