//! Ids of organizations and projects: one spelling for each, so that equal ids are equal texts.

use super::IdType;

/// Longest tenant id of type `text`, in bytes.
const MAX_TEXT_ID: usize = 255;

impl IdType {
    /// An id of this type as PostgreSQL would print it; `None` for what is none.
    pub fn canonical(self, text: &str) -> Option<String> {
        match self {
            Self::Uuid => uuid(text),
            Self::Bigint => text.parse::<i64>().ok().map(|n| n.to_string()),
            Self::Text => {
                let fits = !text.is_empty() && text.len() <= MAX_TEXT_ID;
                (fits && !text.chars().any(char::is_control)).then(|| text.to_owned())
            }
        }
    }
}

/// `8-4-4-4-12` hexadecimal digits, in lower case as `uuid_out` prints them.
fn uuid(text: &str) -> Option<String> {
    let fits = text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        });
    fits.then(|| text.to_ascii_lowercase())
}
