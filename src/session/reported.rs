//! What a client was last told of the settings that PostgreSQL reports (ParameterStatus), so that it is told again when
//! that is no longer true.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::BytesMut;

use crate::wire::speak;

/// A client's picture of its session's reported settings.
#[derive(Default)]
pub struct Reported {
    /// What every server starts with; shared by all clients of a pool.
    base: Arc<BTreeMap<String, String>>,
    /// What this client was told differently at its sign-in.
    at_start: BTreeMap<String, String>,
    /// What it was told since.
    since: BTreeMap<String, String>,
    /// It was last told that `standard_conforming_strings` is off. Asked for at every message.
    has_backslashes: bool,
}

impl Reported {
    /// `parameters` were told at sign-in, where `base` is what servers start with.
    pub fn at_sign_in(base: Arc<BTreeMap<String, String>>, parameters: &BTreeMap<String, String>) -> Self {
        let own = parameters.iter().filter(|(name, value)| base.get(*name) != Some(value));
        let at_start = own.map(|(name, value)| (name.clone(), value.clone())).collect();
        let mut reported = Self { base, at_start, since: BTreeMap::new(), has_backslashes: false };
        reported.changed();
        reported
    }

    /// Whether backslashes in its string constants are backslashes.
    pub fn has_standard_strings(&self) -> bool {
        !self.has_backslashes
    }

    fn changed(&mut self) {
        self.has_backslashes = self.get("standard_conforming_strings") == Some("off");
    }

    /// What the client was last told.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.since.get(name).or_else(|| self.started_with(name)).map(String::as_str)
    }

    /// PostgreSQL told the client.
    pub fn note(&mut self, name: String, value: String) {
        if self.started_with(&name) == Some(&value) {
            self.since.remove(&name);
        } else {
            self.since.insert(name, value);
        }
        self.changed();
    }

    /// Tells the client, if it believes otherwise.
    pub fn correct(&mut self, name: String, value: String, out: &mut BytesMut) {
        let believed = self.since.get(&name).or_else(|| self.started_with(&name));
        if believed != Some(&value) {
            speak::parameter_status(&name, &value, out);
            self.note(name, value);
        }
    }

    /// A setting is again what it was at sign-in.
    pub fn is_as_at_start(&mut self, name: &str, out: &mut BytesMut) {
        if self.since.remove(name).is_none() {
            return;
        }
        if let Some(value) = self.started_with(name) {
            speak::parameter_status(name, value, out);
        }
        self.changed();
    }

    fn started_with(&self, name: &str) -> Option<&String> {
        self.at_start.get(name).or_else(|| self.base.get(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn only_what_is_news_is_told() {
        let base = Arc::new(map(&[("TimeZone", "UTC"), ("application_name", "")]));
        let mut reported =
            Reported::at_sign_in(base, &map(&[("TimeZone", "UTC"), ("application_name", "a")]));
        let mut out = BytesMut::new();
        reported.correct("application_name".into(), "a".into(), &mut out);
        reported.correct("TimeZone".into(), "UTC".into(), &mut out);
        reported.is_as_at_start("application_name", &mut out);
        assert!(out.is_empty());
        // RESET: PostgreSQL tells the server's own value, but the client's is put back.
        reported.note("application_name".into(), String::new());
        reported.is_as_at_start("application_name", &mut out);
        let mut expected = BytesMut::new();
        speak::parameter_status("application_name", "a", &mut expected);
        assert_eq!(out, expected);
        reported.correct("TimeZone".into(), "Asia/Tokyo".into(), &mut out);
        speak::parameter_status("TimeZone", "Asia/Tokyo", &mut expected);
        assert_eq!(out, expected);
        reported.correct("TimeZone".into(), "Asia/Tokyo".into(), &mut out);
        assert_eq!(out, expected);
    }

    #[test]
    fn how_strings_are_read_is_known_at_once() {
        let name = "standard_conforming_strings";
        let base = Arc::new(map(&[(name, "on")]));
        let mut out = BytesMut::new();
        let mut reported = Reported::at_sign_in(base.clone(), &map(&[(name, "on")]));
        assert!(reported.has_standard_strings());
        reported.note(name.into(), "off".into());
        assert!(!reported.has_standard_strings());
        reported.is_as_at_start(name, &mut out);
        assert!(reported.has_standard_strings());
        let mut reported = Reported::at_sign_in(base, &map(&[(name, "off")]));
        assert!(!reported.has_standard_strings());
        reported.correct(name.into(), "on".into(), &mut out);
        assert!(reported.has_standard_strings());
        assert!(Reported::default().has_standard_strings());
    }
}
