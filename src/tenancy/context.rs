//! The context: organization, project or none, subject, roles and claims, as a verified token names them.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Map, Value};

use crate::auth::token::VerifiedClaims;
use crate::config::{ClaimPaths, ContextSetting, IdType, SettingValue};

/// An organization's or project's id, spelled as PostgreSQL would print it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TenantId(String);

impl TenantId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads an id from a claim or a start-up parameter; one spelling per id, so that equal ids are equal texts.
    pub(crate) fn parse(text: &str, id_type: IdType) -> Option<Self> {
        id_type.canonical(text).map(Self)
    }
}

/// How long before its end each transaction under a context is looked at before it is sent.
const LATE: Duration = Duration::from_secs(5);

/// What a verified token says, in the shape that a server is bound to. Only [`Mapping::resolve`] makes one.
pub struct TenantContext {
    organization: TenantId,
    project: Option<TenantId>,
    subject: String,
    token_id: Option<String>,
    actor: Option<String>,
    payload: String,
    payload_digest: [u8; 32],
    expires_at: u64,
}

impl TenantContext {
    /// Whose rows.
    pub fn organization(&self) -> &TenantId {
        &self.organization
    }
    /// Which project's rows; none means the whole organization.
    pub fn project(&self) -> Option<&TenantId> {
        self.project.as_ref()
    }
    /// Who asks.
    pub fn subject(&self) -> &str {
        &self.subject
    }
    /// Who acts for the subject (RFC 8693 section 4.1, `act`), if somebody does: then nothing is written.
    pub fn actor(&self) -> Option<&str> {
        self.actor.as_deref()
    }
    /// The token's `jti`, if it has one.
    pub fn token_id(&self) -> Option<&str> {
        self.token_id.as_deref()
    }
    /// Subject, roles and claims as one JSON object: what `pgtenant.claims()` and its siblings read.
    pub fn payload(&self) -> &str {
        &self.payload
    }
    /// SHA-256 of the payload, which the seal covers.
    pub fn payload_digest(&self) -> &[u8; 32] {
        &self.payload_digest
    }
    /// Unix seconds after which no transaction begins under this context (the token's `exp` and the leeway).
    pub fn expires_at(&self) -> u64 {
        self.expires_at
    }
    /// Whether a transaction may still begin.
    pub fn is_current(&self, now: SystemTime) -> bool {
        unix_seconds(now) <= self.expires_at
    }
    /// Whether it ends so soon that nothing is sent ahead under it.
    pub fn is_late(&self, now: SystemTime) -> bool {
        unix_seconds(now) + LATE.as_secs() > self.expires_at
    }
}

/// Whose it is, without what the token claims of them.
impl fmt::Debug for TenantContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { organization, project, expires_at, .. } = self;
        f.debug_struct("TenantContext")
            .field("organization", organization)
            .field("project", project)
            .field("expires_at", expires_at)
            .finish_non_exhaustive()
    }
}

/// Seconds since 1970; a clock before that reads as 0, under which every token is refused as not yet valid.
pub fn unix_seconds(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// The same JSON in ASCII, which is the same in whatever encoding a client or a database has.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            // Only strings hold such characters.
            for unit in c.encode_utf16(&mut [0; 2]) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    text
}

/// Which of several organizations or projects a client asks for at start-up; never one outside its token's claim.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Start-up parameter `pgtenant.organization`.
    pub organization: Option<String>,
    /// Start-up parameter `pgtenant.project`.
    pub project: Option<String>,
    /// Start-up parameter `pgtenant.sign_in` is `oauth`: the token comes by OAUTHBEARER, not as the password.
    pub by_oauth: bool,
}

/// Why a valid token gives no context. The client is told "no organization" or "no project"; the log says which.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MappingError {
    /// The claim is not there.
    #[error("no {level}: the token has no claim \"{claim}\"")]
    Missing {
        /// organization or project
        level: &'static str,
        /// Its configured path
        claim: String,
    },
    /// The claim's value is no id of the configured type.
    #[error("no {level}: claim \"{claim}\" is not of the configured id type")]
    Malformed {
        /// organization or project
        level: &'static str,
        /// Its configured path
        claim: String,
    },
    /// Several are claimed and none is chosen.
    #[error(
        "no {level}: claim \"{claim}\" lists several; choose one with the start-up parameter pgtenant.{level}"
    )]
    Ambiguous {
        /// organization or project
        level: &'static str,
        /// Its configured path
        claim: String,
    },
    /// The one asked for is not among the claimed.
    #[error("no {level}: the one asked for is not in claim \"{claim}\"")]
    Outside {
        /// organization or project
        level: &'static str,
        /// Its configured path
        claim: String,
    },
    /// The `act` claim does not say who acts.
    #[error("claim \"act\" is no object with a text \"sub\" (RFC 8693 section 4.1)")]
    Act,
    /// PostgreSQL's text has no NUL.
    #[error("what context.settings.\"{setting}\" is to be has a NUL in it")]
    Nul {
        /// Its name
        setting: String,
    },
    /// The roles claim is neither a string nor a list of strings.
    #[error("claim \"{claim}\" is neither a string nor a list of strings")]
    Roles {
        /// Its configured path
        claim: String,
    },
}

/// Where the context is found in a token.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// Paths of the claims.
    pub claims: ClaimPaths,
    /// Type of the ids.
    pub id_type: IdType,
    /// Added to the token's `exp`.
    pub leeway: Duration,
    /// What else is bound with the context.
    pub settings: Vec<ContextSetting>,
}

/// Under which name a payload has the settings that are bound with it.
const SETTINGS: &str = "settings";

/// What is bound in place of a payload where there is no context: settings that would be bound with one are empty.
pub fn no_payload(settings: &[ContextSetting]) -> String {
    if settings.is_empty() {
        return String::new();
    }
    let empty = settings.iter().map(|setting| (setting.name.clone(), Value::String(String::new())));
    let empty: Map<String, Value> = empty.collect();
    serde_json::json!({ SETTINGS: empty }).to_string()
}

impl Mapping {
    /// Turns verified claims into a context.
    ///
    /// # Errors
    /// See [`MappingError`].
    pub fn resolve(&self, verified: &VerifiedClaims, wanted: &Wanted) -> Result<TenantContext, MappingError> {
        let paths = &self.claims;
        let claims = verified.claims();
        let organization =
            self.choose("organization", &paths.organization, claims, wanted.organization.as_deref())?;
        let organization = organization.ok_or_else(|| MappingError::Missing {
            level: "organization",
            claim: paths.organization.clone(),
        })?;
        let project = self.choose("project", &paths.project, claims, wanted.project.as_deref())?;
        let subject = match find(claims, &paths.subject) {
            Some(Value::String(subject)) => subject.clone(),
            _ => verified.subject().to_owned(),
        };
        let roles = roles(find(claims, &paths.roles))
            .ok_or_else(|| MappingError::Roles { claim: paths.roles.clone() })?;
        let mut payload = serde_json::json!({ "subject": subject, "roles": roles, "claims": claims });
        if !self.settings.is_empty() {
            let mut settings = Map::new();
            for ContextSetting { name, value } in &self.settings {
                let text = match value {
                    SettingValue::Literal(text) => text.clone(),
                    SettingValue::Organization => organization.as_str().to_owned(),
                    SettingValue::Project => {
                        project.as_ref().map(TenantId::as_str).unwrap_or_default().to_owned()
                    }
                    SettingValue::Subject => subject.clone(),
                    SettingValue::Roles => ascii(&payload["roles"].to_string()),
                    SettingValue::Claims => ascii(&payload["claims"].to_string()),
                    SettingValue::Claim(path) => match find(claims, path) {
                        None | Some(Value::Null) => String::new(),
                        Some(Value::String(text)) => text.clone(),
                        Some(other) => ascii(&other.to_string()),
                    },
                };
                if text.contains('\0') {
                    return Err(MappingError::Nul { setting: name.clone() });
                }
                settings.insert(name.clone(), Value::String(text));
            }
            payload[SETTINGS] = Value::Object(settings);
        }
        let payload = ascii(&payload.to_string());
        let mut payload_digest = [0; 32];
        payload_digest.copy_from_slice(digest(&SHA256, payload.as_bytes()).as_ref());
        let expires_at = verified.expires_at().saturating_add(self.leeway.as_secs());
        let token_id = claims.get("jti").and_then(Value::as_str).map(str::to_owned);
        let actor = actor(claims.get("act")).ok_or(MappingError::Act)?;
        Ok(TenantContext {
            organization,
            project,
            subject,
            token_id,
            actor,
            payload,
            payload_digest,
            expires_at,
        })
    }

    /// The id at `path`: the only one claimed, or the one that is wanted if it is among the claimed.
    fn choose(
        &self,
        level: &'static str,
        path: &str,
        claims: &serde_json::Map<String, Value>,
        wanted: Option<&str>,
    ) -> Result<Option<TenantId>, MappingError> {
        let claim = || path.to_owned();
        let malformed = || MappingError::Malformed { level, claim: claim() };
        let values = match find(claims, path) {
            None | Some(Value::Null) => match wanted {
                // Without a project claim the token reaches the whole organization, so any project in it may be chosen.
                Some(text) if level == "project" => {
                    return TenantId::parse(text, self.id_type).map(Some).ok_or_else(malformed);
                }
                Some(_) => return Err(MappingError::Missing { level, claim: claim() }),
                None => return Ok(None),
            },
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let ids: Option<Vec<TenantId>> = values.iter().map(|value| self.id(value)).collect();
        let ids = ids.ok_or_else(malformed)?;
        match wanted {
            Some(text) => {
                let wanted = TenantId::parse(text, self.id_type);
                let found = ids.into_iter().find(|id| Some(id) == wanted.as_ref());
                found.map(Some).ok_or_else(|| MappingError::Outside { level, claim: claim() })
            }
            None if ids.len() > 1 => Err(MappingError::Ambiguous { level, claim: claim() }),
            // An empty list grants nothing: for a project that must not read as "the whole organization".
            None => ids
                .into_iter()
                .next()
                .map(Some)
                .ok_or_else(|| MappingError::Missing { level, claim: claim() }),
        }
    }

    fn id(&self, value: &Value) -> Option<TenantId> {
        match value {
            Value::String(text) => TenantId::parse(text, self.id_type),
            Value::Number(number) if self.id_type == IdType::Bigint => {
                number.as_i64().map(|n| TenantId(n.to_string()))
            }
            _ => None,
        }
    }
}

/// Descends along the dots; a claim whose name holds the dots itself (`https://x.example/org`) wins.
fn find<'a>(claims: &'a serde_json::Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    let (first, rest) = path.split_once('.')?;
    find(claims.get(first)?.as_object()?, rest)
}

/// Who acts: nobody where there is no claim; `None` if it does not say. Those who acted before (an `act` within) do not count.
fn actor(claim: Option<&Value>) -> Option<Option<String>> {
    let Some(claim) = claim else { return Some(None) };
    let actor = claim.as_object()?.get("sub")?.as_str()?;
    let is_name = !actor.is_empty() && !actor.chars().any(char::is_control);
    is_name.then(|| Some(actor.to_owned()))
}

fn roles(claim: Option<&Value>) -> Option<Vec<&str>> {
    match claim {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::String(role)) => Some(vec![role]),
        Some(Value::Array(roles)) => roles.iter().map(Value::as_str).collect(),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests;
