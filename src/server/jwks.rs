//! Keeps the keys of issuers fresh that publish them by HTTPS.

use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};

use crate::auth::token::Keys;
use crate::config::{JwksUrl, KeySource};
use crate::net::https;

/// Where the issuer does not say for how long its keys may be kept; and what it may say.
const KEPT: Duration = Duration::from_secs(300);
const KEPT_LEAST: Duration = Duration::from_secs(60);
const KEPT_MOST: Duration = Duration::from_secs(3600);

/// After a fetch that failed, the next one comes after this long, then twice as long each time, up to [`KEPT_LEAST`].
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The issuers whose keys are fetched, with their places in the configuration.
pub(super) fn sources(keys: &Keys) -> Vec<(usize, JwksUrl)> {
    let urls = keys.issuers().enumerate().filter_map(|(index, issuer)| match &issuer.keys {
        KeySource::JwksUrl(url) => Some((index, url.clone())),
        _ => None,
    });
    urls.collect()
}

/// The first fetch of every issuer's keys, all at the same time. A failure is no reason not to start: the other issuers'
/// tokens are good, and the keys may come later.
pub(super) async fn fetch_all(keys: &Arc<Keys>) {
    let fetches: Vec<_> = sources(keys)
        .into_iter()
        .map(|(index, url)| {
            let keys = keys.clone();
            tokio::spawn(async move { fetch(&keys, index, &url).await })
        })
        .collect();
    for fetch in fetches {
        let _ = fetch.await;
    }
}

/// Fetches an issuer's keys again and again, before they age and when somebody asks, until the task is dropped.
pub(super) async fn keep_fresh(keys: Arc<Keys>, index: usize, url: JwksUrl) {
    let mut retry = FIRST_RETRY;
    let mut wait = match keys.freshness(index).is_some_and(|freshness| freshness.trouble.is_none()) {
        true => KEPT_LEAST,
        false => retry,
    };
    loop {
        tokio::select! {
            () = tokio::time::sleep(earlier(wait)) => {}
            () = keys.asked(index) => {}
        }
        wait = match fetch(&keys, index, &url).await {
            Ok(kept) => {
                retry = FIRST_RETRY;
                kept
            }
            Err(()) => {
                retry = (retry * 2).min(KEPT_LEAST);
                retry
            }
        };
    }
}

/// Up to a tenth earlier, so that many proxies do not ask at once.
fn earlier(wait: Duration) -> Duration {
    let mut byte = [0];
    // Without random bytes they do.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    wait.mul_f64(1.0 - f64::from(byte[0]) / 2560.0)
}

/// Fetches an issuer's keys; for how long they may be kept.
async fn fetch(keys: &Keys, index: usize, url: &JwksUrl) -> Result<Duration, ()> {
    let issuer = keys.issuers().nth(index).map(|issuer| issuer.issuer.clone()).unwrap_or_default();
    keys.fetch_begins(index);
    let fetched = match https::get(url).await {
        Ok(fetched) => match keys.take(index, &fetched.body) {
            Ok(count) => Ok((count, fetched.max_age)),
            Err(error) => Err(("unusable", error.to_string())),
        },
        Err(error) => Err(("failed", error.to_string())),
    };
    let result = match &fetched {
        Ok(_) => "ok",
        Err((result, _)) => result,
    };
    counter!("pgtenant_jwks_refreshes_total", "issuer" => issuer.clone(), "result" => result).increment(1);
    match fetched {
        Ok((count, max_age)) => {
            keys.fetch_ends(index, None);
            tracing::debug!(issuer, keys = count, "the issuer's keys were fetched");
            Ok(max_age.unwrap_or(KEPT).clamp(KEPT_LEAST, KEPT_MOST))
        }
        Err((_, reason)) => {
            keys.fetch_ends(index, Some(reason.clone()));
            tracing::warn!(issuer, %url, reason, "the issuer's keys cannot be fetched; those that are known stay in use");
            Err(())
        }
    }
}

/// Sets the gauges.
pub(super) fn publish(keys: &Keys) {
    for (index, _) in sources(keys) {
        let Some(age) = keys.freshness(index).and_then(|freshness| freshness.age) else { continue };
        if let Some(issuer) = keys.issuers().nth(index) {
            gauge!("pgtenant_jwks_age_seconds", "issuer" => issuer.issuer.clone()).set(age.as_secs_f64());
        }
    }
}

/// Issuers of whom no key is known: nobody signs in with their tokens.
pub(super) fn troubles(keys: &Keys) -> Vec<String> {
    let missing = sources(keys).into_iter().filter_map(|(index, url)| {
        let freshness = keys.freshness(index)?;
        let trouble = freshness.trouble.filter(|_| freshness.age.is_none())?;
        Some(format!("no keys from {url}: {trouble}"))
    });
    missing.collect()
}
