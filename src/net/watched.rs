//! What is made of files, and made anew when they change; whoever has the old one keeps it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{Context, SHA256};

use super::tls::TlsError;

/// A value made of files.
pub struct Watched<T, E = TlsError> {
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, E> + Send + Sync>,
    current: ArcSwap<T>,
    seen: Mutex<Seen>,
}

/// The files' content when the value was last made, or could not be, and what they held when they were last looked at.
struct Seen {
    tried: Fingerprint,
    last: Fingerprint,
}

type Fingerprint = Vec<u8>;

/// What a look at the files came to.
#[derive(Debug)]
pub enum Outcome {
    /// They are as they were, or still changing.
    Unchanged,
    /// The value was made anew.
    Renewed,
    /// They hold what no value can be made of: the old one stays. Told once for the same content.
    Kept(String),
}

/// Something whose files can be looked at.
pub trait Watch: Send + Sync {
    /// Reads the files; blocks while it does. A change is acted on when two looks in a row see the same: certificate
    /// and key are seldom replaced at once.
    fn look(&self) -> Outcome;
}

impl<T, E> Watched<T, E> {
    /// Makes the value for the first time.
    ///
    /// # Errors
    /// The files are not what they should be.
    pub fn new(
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        // Read before the value is made: a change in between is noticed by the first look.
        let tried = fingerprint(&files);
        let current = ArcSwap::from_pointee(make()?);
        let seen = Mutex::new(Seen { last: tried.clone(), tried });
        Ok(Self { files, make: Box::new(make), current, seen })
    }

    /// The value as it is now.
    pub fn current(&self) -> Arc<T> {
        self.current.load_full()
    }
}

impl<T, E> Watched<T, E> {
    /// The same for a moment, without counting who holds it: threads that ask often do not fight over a cache line.
    pub fn borrow(&self) -> impl std::ops::Deref<Target = Arc<T>> + use<'_, T, E> {
        self.current.load()
    }
}

impl<T: Send + Sync, E: std::fmt::Display> Watch for Watched<T, E> {
    fn look(&self) -> Outcome {
        let now = fingerprint(&self.files);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_settled = seen.last == now;
        seen.last.clone_from(&now);
        if now == seen.tried || !is_settled {
            return Outcome::Unchanged;
        }
        seen.tried = now;
        match (self.make)() {
            Ok(value) => {
                self.current.store(Arc::new(value));
                Outcome::Renewed
            }
            Err(error) => Outcome::Kept(error.to_string()),
        }
    }
}

/// Content, not dates or inodes: it is what counts, whichever way it came (written over, moved, a link that was turned).
fn fingerprint(files: &[PathBuf]) -> Fingerprint {
    let mut context = Context::new(&SHA256);
    for file in files {
        match std::fs::read(file) {
            Ok(content) => {
                context.update(&(content.len() as u64).to_be_bytes());
                context.update(&content);
            }
            Err(_) => context.update(&u64::MAX.to_be_bytes()),
        }
    }
    context.finish().as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::net::tls;

    #[test]
    fn a_change_counts_once_it_has_settled_and_a_bad_one_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("n");
        std::fs::write(&file, "1").unwrap();
        let read = file.clone();
        let make = move || -> Result<i64, TlsError> {
            let text = std::fs::read_to_string(&read).unwrap_or_default();
            text.parse().map_err(|_| tls::error(&read, "no number".to_owned()))
        };
        let watched = Watched::new(vec![file.clone()], make).unwrap();
        let look = || match watched.look() {
            Outcome::Unchanged => "unchanged".to_owned(),
            Outcome::Renewed => watched.current().to_string(),
            Outcome::Kept(error) => error,
        };
        let after = |content: &str| {
            std::fs::write(&file, content).unwrap();
            look()
        };
        assert_eq!(after("1"), "unchanged");
        assert_eq!(after("2"), "unchanged", "not before it has settled");
        assert_eq!(after("23"), "unchanged");
        assert_eq!(after("23"), "23");
        assert_eq!(after("23"), "unchanged");
        assert_eq!(after("x"), "unchanged");
        assert!(after("x").contains("no number"));
        assert_eq!(after("x"), "unchanged", "told once");
        assert_eq!(*watched.current(), 23, "the old one stays");
        std::fs::remove_file(&file).unwrap();
        let missing = (look(), look());
        assert!(missing.0 == "unchanged" && missing.1.contains("no number"), "{missing:?}");
        std::fs::write(&file, "4").unwrap();
        assert_eq!((look(), look()), ("unchanged".to_owned(), "4".to_owned()));
    }
}
