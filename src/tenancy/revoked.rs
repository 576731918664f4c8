//! Tokens, subjects and organizations whose contexts do not hold any more, whatever their tokens say.

use std::collections::HashSet;
use std::path::Path;

use serde::Deserialize;

use super::context::{TenantContext, TenantId};
use crate::config::IdType;

/// A file of revocations is not longer.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// What is revoked.
#[derive(Debug, Default)]
pub struct Revoked {
    tokens: HashSet<String>,
    subjects: HashSet<String>,
    organizations: HashSet<TenantId>,
    /// Transactions that run under it are ended too, not only kept from beginning.
    pub kills: bool,
}

/// The file as it is written.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Listed {
    tokens: Vec<String>,
    subjects: Vec<String>,
    organizations: Vec<String>,
    kill: bool,
}

/// Why a file of revocations cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RevokedError(String);

impl Revoked {
    /// Reads a file: TOML with the lists `tokens` (values of `jti`), `subjects` and `organizations`, and `kill`.
    ///
    /// # Errors
    /// It cannot be read, or is none such; nothing of it holds then.
    pub fn load(file: &Path, id_type: IdType) -> Result<Self, RevokedError> {
        let wrong = |what: String| RevokedError(format!("{}: {what}", file.display()));
        let length = std::fs::metadata(file).map_err(|error| wrong(error.to_string()))?.len();
        if length > MAX_FILE {
            return Err(wrong(format!("{length} bytes; at most {MAX_FILE} are read")));
        }
        let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
        Self::parse(&text, id_type).map_err(|error| wrong(error.0))
    }

    fn parse(text: &str, id_type: IdType) -> Result<Self, RevokedError> {
        let listed: Listed = toml::from_str(text).map_err(|error| {
            let first = error.message().lines().next().unwrap_or_default().to_owned();
            RevokedError(format!(
                "{first}; write lists of tokens, subjects and organizations, and kill = true or false"
            ))
        })?;
        let organizations = listed.organizations.iter().map(|id| {
            TenantId::parse(id, id_type).ok_or_else(|| {
                RevokedError(format!("organization \"{id}\" is not of the configured id type"))
            })
        });
        Ok(Self {
            organizations: organizations.collect::<Result<_, _>>()?,
            tokens: listed.tokens.into_iter().collect(),
            subjects: listed.subjects.into_iter().collect(),
            kills: listed.kill,
        })
    }

    /// What of a context is revoked: its token, subject or organization; `None` if it holds.
    pub fn concerns(&self, context: &TenantContext) -> Option<&'static str> {
        if self.organizations.contains(context.organization()) {
            Some("organization")
        } else if self.subjects.contains(context.subject())
            || context.actor().is_some_and(|actor| self.subjects.contains(actor))
        {
            Some("subject")
        } else if context.token_id().is_some_and(|id| self.tokens.contains(id)) {
            Some("token")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_list_is_read_whole_or_not_at_all() {
        let id = "018F6F3E-0000-7000-8000-000000000001";
        let text = format!("organizations = ['{id}']\nsubjects = ['mallory']\nkill = true");
        let revoked = Revoked::parse(&text, IdType::Uuid).unwrap();
        assert!(revoked.kills && revoked.subjects.contains("mallory") && revoked.tokens.is_empty());
        assert!(revoked.organizations.iter().any(|found| found.as_str() == id.to_ascii_lowercase()));
        for (text, said) in [
            ("organizations = ['acme']", "organization \"acme\" is not of the configured id type"),
            ("organisations = []", "unknown field"),
            ("tokens = 'x'", "write lists of tokens"),
            ("tokens = [", "write lists of tokens"),
        ] {
            let refused = Revoked::parse(text, IdType::Uuid).unwrap_err().to_string();
            assert!(refused.contains(said), "{text}: {refused}");
        }
        assert!(Revoked::parse("", IdType::Uuid).is_ok());
    }
}
