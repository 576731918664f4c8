//! Which settings a client's session has, asked of PostgreSQL itself: whatever way they were changed, this is what they
//! are.

use std::collections::BTreeSet;

use super::ledger::TransactionOver;
use super::server::{BoundServer, TermsDigest, Unclean};
use crate::tenancy::settings::Settings;
use crate::tenancy::statements;
use crate::wire::{message, tag};

impl BoundServer {
    /// The seal that its session has. The transaction must be over, and is over afterwards. `None` if PostgreSQL refuses
    /// to tell.
    ///
    /// # Errors
    /// The server did not answer and must be closed.
    pub async fn seal(&mut self, over: &TransactionOver) -> Result<Option<String>, Unclean> {
        let found = self.settings(over, &BTreeSet::from([SEAL.to_owned()])).await?;
        Ok(found.map(|mut found| found.remove(SEAL).unwrap_or_default()))
    }

    /// The settings that were changed in this session and hold on, those of `names` among them, which PostgreSQL does
    /// not list by itself. `None` if it refuses to tell: the client's own `statement_timeout` may be too short for it.
    /// The transaction must be over, and is over afterwards.
    ///
    /// # Errors
    /// The server did not answer and must be closed.
    pub async fn settings(
        &mut self,
        _over: &TransactionOver,
        names: &BTreeSet<String>,
    ) -> Result<Option<Settings>, Unclean> {
        statements::inquire(names, self.outgoing());
        let mut found = Settings::new();
        let asked = self.acknowledge(|kind, body| {
            if kind == tag::DATA_ROW
                && let [name, value] = message::text_columns(body).as_slice()
                && let (Some(name), Some(value)) = (unhex(name), unhex(value))
            {
                found.insert(name, value);
            }
            kind == tag::READY_FOR_QUERY
        });
        match asked.await {
            Ok(()) => Ok(Some(found)),
            Err(Unclean::Refused(_)) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// Its settings are those of these terms now.
    pub fn is_known_as(&mut self, digest: TermsDigest) {
        self.redefine(digest);
    }
}

/// The setting that the seal is in.
const SEAL: &str = "pgtenant.seal";

fn unhex(text: &str) -> Option<String> {
    if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let digits = text.as_bytes().chunks(2);
    let bytes = digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    String::from_utf8(bytes.collect::<Option<Vec<u8>>>()?).ok()
}

#[cfg(test)]
mod tests {
    use super::unhex;

    #[test]
    fn hexadecimal_is_read_back() {
        assert_eq!(unhex("c3a961").as_deref(), Some("\u{e9}a"));
        assert_eq!(unhex("").as_deref(), Some(""));
        assert_eq!((unhex("c3"), unhex("x1"), unhex("+1")), (None, None, None));
    }
}
