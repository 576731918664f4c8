//! Certificates and keys are made anew when their files change, by whichever way: nobody who is connected notices.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::net::watched::{Outcome, Watch};

/// How often files are looked at; a change takes effect at the second look that sees it.
const EVERY: Duration = Duration::from_secs(2);

/// What is watched, by the configuration's key.
pub(super) type Watched = Vec<(String, Arc<dyn Watch>)>;

/// The same, which another configuration replaces.
#[derive(Clone)]
pub(super) struct Watches(Arc<Mutex<Arc<Watched>>>);

impl Watches {
    pub(super) fn new(watched: Watched) -> Self {
        Self(Arc::new(Mutex::new(Arc::new(watched))))
    }

    /// What is looked at from the next round on.
    pub(super) fn replace(&self, watched: Watched) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(watched);
    }

    fn now(&self) -> Arc<Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Looks until it is aborted.
pub(super) async fn watch(watches: Watches) {
    let mut round = tokio::time::interval(EVERY);
    round.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        round.tick().await;
        for (key, watch) in watches.now().iter() {
            let watch = watch.clone();
            // A volume that hangs must not hold up who accepts clients.
            let Ok(outcome) = tokio::task::spawn_blocking(move || watch.look()).await else { continue };
            match outcome {
                Outcome::Unchanged => {}
                Outcome::Renewed => tracing::info!(key, "files were loaded anew"),
                Outcome::Kept(error) => {
                    tracing::warn!(
                        key,
                        reason = %error,
                        "changed files cannot be used; the former ones stay in use"
                    );
                }
            }
        }
    }
}
