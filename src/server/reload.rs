//! The configuration is read anew while the proxy runs: by SIGHUP, or when its file has changed. A file that cannot be used
//! changes nothing, and nobody is disconnected by one that can.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::AbortHandle;

use super::assemble::{self, Lasting};
use super::jwks;
use super::keeper::Pools;
use super::renewal::Watches;
use crate::auth::token::Keys;
use crate::config::{self, Config, PoolMode, Tenancy};
use crate::net::watched::{Outcome, Watch, Watched};
use crate::session::Gate;

/// How often the file is looked at; a change takes effect at the second look that sees it.
const EVERY: Duration = Duration::from_secs(2);

/// What is needed to put a configuration in force.
pub(super) struct Reloader {
    /// None where the configuration came from no file.
    pub(super) file: Option<PathBuf>,
    pub(super) running: Config,
    lasts: Lasts,
    pub(super) gate: Arc<Gate>,
    pub(super) pools: Pools,
    pub(super) watches: Watches,
    pub(super) lasting: Lasting,
    /// Those who keep issuers' keys fresh.
    fresh: Vec<AbortHandle>,
}

impl Reloader {
    pub(super) fn new(
        running: Config,
        (gate, pools): (Arc<Gate>, Pools),
        (watches, lasting): (Watches, Lasting),
    ) -> Self {
        let mut lasts = Lasts::default();
        lasts.keep(&running);
        Self { file: None, running, lasts, gate, pools, watches, lasting, fresh: Vec::new() }
    }

    /// Waits for what asks for another configuration, until it is aborted. SIGHUP does not end the process from now on.
    pub(super) fn run(mut self) -> io::Result<impl Future<Output = ()>> {
        let mut hangup = signal(SignalKind::hangup())?;
        let seen = Watched::new(self.file.clone().into_iter().collect(), || Ok::<(), String>(()));
        let seen = Arc::new(seen.map_err(io::Error::other)?);
        Ok(async move {
            self.keep_fresh();
            loop {
                self.round(&mut hangup, &seen).await;
            }
        })
    }

    async fn round(&mut self, hangup: &mut Signal, seen: &Arc<Watched<(), String>>) {
        let by = tokio::select! {
            _ = hangup.recv() => "SIGHUP",
            () = tokio::time::sleep(EVERY) => {
                let seen = seen.clone();
                let look = tokio::task::spawn_blocking(move || seen.look());
                match look.await {
                    Ok(Outcome::Renewed) => "its file has changed",
                    _ => return,
                }
            }
        };
        match self.reload().await {
            Ok(Some(kept)) => {
                tracing::info!(by, "the configuration was read anew and is in force");
                if !kept.is_empty() {
                    tracing::warn!(keys = kept.join(", "), "these take effect at the next start");
                }
            }
            Ok(None) => tracing::warn!(by, "there is no configuration file to read anew"),
            Err(reason) => tracing::error!(
                by,
                reason,
                "the new configuration cannot be used; the former one stays in force"
            ),
        }
    }

    /// Which keys have changed that cannot without a start; `None` where there is no file.
    async fn reload(&mut self) -> Result<Option<Vec<&'static str>>, String> {
        let Some(file) = self.file.clone() else { return Ok(None) };
        let loaded = tokio::task::spawn_blocking(move || config::load(&file)).await;
        let mut config = loaded.map_err(|e| e.to_string())?.map_err(|mistakes| mistakes.to_string())?;
        let kept = keep_what_lasts(&mut config, &self.running, &self.lasts);
        let keys = self.keys(&config).await?;
        let watches = assemble::put_in_force(&config, keys, (&self.gate, &self.pools, &self.lasting));
        self.watches.replace(watches.map_err(|e| e.to_string())?);
        self.lasts.keep(&config);
        let are_keys_new = config.jwt != self.running.jwt;
        self.running = config;
        if are_keys_new {
            self.keep_fresh();
        }
        Ok(Some(kept))
    }

    /// The keys of the issuers; where nothing was changed, those that are known are kept through an outage.
    async fn keys(&self, config: &Config) -> Result<Arc<Keys>, String> {
        if config.jwt == self.running.jwt {
            return Ok(self.gate.settings().keys.clone());
        }
        let keys = assemble::keys(config).map_err(|e| e.to_string())?;
        jwks::fetch_all(&keys).await;
        Ok(keys)
    }

    fn keep_fresh(&mut self) {
        self.fresh.drain(..).for_each(|task| task.abort());
        let keys = self.gate.settings().keys.clone();
        let tasks = jwks::sources(&keys)
            .into_iter()
            .map(|(index, url)| tokio::spawn(jwks::keep_fresh(keys.clone(), index, url)).abort_handle());
        self.fresh = tasks.collect();
    }
}

impl Drop for Reloader {
    fn drop(&mut self) {
        self.fresh.drain(..).for_each(|task| task.abort());
    }
}

/// What the pools were made with that any configuration since the start has named: they are there to the end, also while no
/// configuration names them.
#[derive(Default)]
struct Lasts {
    modes: BTreeMap<String, PoolMode>,
    tenancies: BTreeMap<String, Tenancy>,
}

impl Lasts {
    /// A configuration is in force: what it has that was not there before stays.
    fn keep(&mut self, config: &Config) {
        for (name, database) in &config.databases {
            self.modes.entry(name.clone()).or_insert(database.pool_mode);
        }
        for (name, role) in &config.roles {
            self.tenancies.entry(name.clone()).or_insert(role.tenancy);
        }
    }
}

/// What cannot change while the proxy runs stays as it is. Its keys, where the new file has others.
fn keep_what_lasts(config: &mut Config, running: &Config, lasts: &Lasts) -> Vec<&'static str> {
    let mut kept = Vec::new();
    let mut keep = |key, is_other: bool| {
        if is_other {
            kept.push(key);
        }
    };
    keep("listen.tcp", config.listen.tcp != running.listen.tcp);
    keep("listen.unix", config.listen.unix != running.listen.unix);
    keep(
        "listen.failed_sign_in_delay",
        config.listen.failed_sign_in_delay != running.listen.failed_sign_in_delay,
    );
    keep("admin.http", config.admin_http != running.admin_http);
    keep("context", config.context != running.context);
    keep("budget.latency", config.budget_latency != running.budget_latency);
    config.context = running.context.clone();
    config.budget_latency = running.budget_latency;
    for (name, database) in &mut config.databases {
        let Some(mode) = lasts.modes.get(name).filter(|mode| **mode != database.pool_mode) else { continue };
        keep("databases.NAME.pool_mode", true);
        Arc::make_mut(database).pool_mode = *mode;
    }
    for (name, role) in &mut config.roles {
        let Some(tenancy) = lasts.tenancies.get(name).filter(|kept| **kept != role.tenancy) else { continue };
        keep("roles.NAME.tenancy", true);
        Arc::make_mut(role).tenancy = *tenancy;
    }
    kept
}
