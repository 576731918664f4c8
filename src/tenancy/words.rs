//! A search for any of a few words in whatever case: what most texts are done with.

use aho_corasick::{AhoCorasick, AhoCorasickKind};

/// A search for these; `None` where there are too many. Without a prefilter: that looks for bytes that are rare, which
/// these words do not have, and would be entered at every other word of a text.
pub fn any_of(words: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Option<AhoCorasick> {
    let mut builder = AhoCorasick::builder();
    builder.ascii_case_insensitive(true).kind(Some(AhoCorasickKind::DFA)).prefilter(false).build(words).ok()
}
