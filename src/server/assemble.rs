//! A configuration becomes a gate: keys, certificates, and a pool for each database and role. The same when it is read
//! anew while the proxy runs: everything that can fail is made first.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ClientConfig;

use super::ServeError;
use super::jwks;
use super::keeper::{HERE, Pools};
use super::renewal::Watched as Watches;
use crate::admin::http::Endpoints;
use crate::auth::scram::Verifier;
use crate::auth::token::Keys;
use crate::config::{self, Config, Database, KeySource, Limits, Role, SealKeyError, Tenancy};
use crate::net::dial::Dialer;
use crate::net::tls::{self, TlsError};
use crate::net::watched::{Outcome, Watch, Watched};
use crate::observe::metrics::{self, DatabaseMetrics};
use crate::pool::{Pool, PoolSettings, budget};
use crate::session::{Gate, GateSettings};
use crate::tenancy::context::{Mapping, no_payload};
use crate::tenancy::guard::Guard;
use crate::tenancy::revoked::{Revoked, RevokedError};
use crate::tenancy::seal::Sealer;
use crate::tenancy::statements::Binder;

/// Everything that a proxy is made of, before it listens.
pub(super) struct Assembled {
    pub(super) gate: Arc<Gate>,
    pub(super) pools: Pools,
    pub(super) endpoints: Endpoints,
    pub(super) watches: Watches,
    pub(super) lasting: Lasting,
}

/// What stays as it is when a configuration is read anew.
pub(super) struct Lasting {
    limits: Arc<ArcSwap<Limits>>,
    sealer: Option<Arc<Watched<Sealer, SealKeyError>>>,
}

/// TLS towards each server, by its name.
type Connectors = BTreeMap<String, Option<Arc<Watched<ClientConfig>>>>;

pub(super) fn assemble(config: &Config) -> Result<Assembled, ServeError> {
    let metrics = metrics::install(config.budget_latency)
        .map_err(|e| ServeError::Configuration(format!("cannot start metrics: {e}")))?;
    let limits = Arc::new(ArcSwap::new(config.limits.clone()));
    let lasting = Lasting { limits, sealer: sealer(config)? };
    budget::limit_to(config.listen.max_kept);
    let keys = keys(config)?;
    let made = make(config, keys, &lasting)?;
    let pools = Pools::default();
    fill(&pools, config, &made.connectors, &lasting);
    let gate = Gate::new(made.settings(pools.by_name(config)));
    let watches = made.watches(&gate);
    let (published, checked, watched, fetched) = (pools.clone(), pools.clone(), gate.clone(), gate.clone());
    let endpoints = Endpoints {
        metrics,
        publish: Box::new(move || {
            published.publish();
            metrics::kept(budget::kept());
            jwks::publish(&fetched.settings().keys);
        }),
        unready: Box::new(move || match watched.wants_clients() {
            false => vec!["draining: pgtenant is shutting down".to_owned()],
            true => [checked.troubles(), jwks::troubles(&watched.settings().keys)].concat(),
        }),
    };
    Ok(Assembled { gate, pools, endpoints, watches, lasting })
}

/// Puts another configuration in force. `keys` are those of its issuers.
///
/// # Errors
/// What it names cannot be used; then nothing has changed.
pub(super) fn put_in_force(
    config: &Config,
    keys: Arc<Keys>,
    (gate, pools, lasting): (&Arc<Gate>, &Pools, &Lasting),
) -> Result<Watches, ServeError> {
    let made = make(config, keys, lasting)?;
    lasting.limits.store(config.limits.clone());
    gate.accounts.limits_changed();
    budget::limit_to(config.listen.max_kept);
    fill(pools, config, &made.connectors, lasting);
    gate.is_changed(made.settings(pools.by_name(config)));
    Ok(made.watches(gate))
}

/// The keys of the issuers.
pub(super) fn keys(config: &Config) -> Result<Arc<Keys>, ServeError> {
    Keys::load(&config.jwt).map(Arc::new).map_err(|e| ServeError::Configuration(e.to_string()))
}

/// What can fail, made of a configuration.
struct Made {
    connectors: Connectors,
    settings: GateSettings,
    watches: Watches,
}

impl Made {
    fn settings(&self, pools: HashMap<(String, String), Arc<Pool>>) -> GateSettings {
        GateSettings { pools, ..self.settings.clone() }
    }

    fn watches(mut self, gate: &Arc<Gate>) -> Watches {
        if let Some(revoked) = self.settings.revoked.clone() {
            let revocations = Revocations { revoked, gate: gate.clone() };
            self.watches.push(("jwt.revoked".to_owned(), Arc::new(revocations)));
        }
        self.watches
    }
}

fn make(config: &Config, keys: Arc<Keys>, lasting: &Lasting) -> Result<Made, ServeError> {
    let mut watches = Watches::new();
    let sealer = lasting.sealer.clone();
    watches.extend(sealer.map(|sealer| ("context.seal_key".to_owned(), sealer as Arc<dyn Watch>)));
    let connectors = connectors(config, &mut watches)?;
    let settings = settings(config, keys, lasting, &mut watches)?;
    Ok(Made { connectors, settings, watches })
}

fn connectors(config: &Config, watches: &mut Watches) -> Result<Connectors, ServeError> {
    let mut connectors = Connectors::new();
    for database in config.databases.values() {
        let server = &database.server;
        if let Entry::Vacant(entry) = connectors.entry(server.name.clone()) {
            let key = format!("servers.{}", server.name);
            let tls = tls::watched_connector(server).map_err(|e| unusable(&key, &e))?.map(Arc::new);
            watches.extend(tls.clone().map(|tls| (key, tls as Arc<dyn Watch>)));
            entry.insert(tls);
        }
    }
    Ok(connectors)
}

/// A pool for each database and role, as the configuration has them; those that are there already go on.
fn fill(pools: &Pools, config: &Config, connectors: &Connectors, lasting: &Lasting) {
    for database in config.databases.values() {
        let metrics = pools
            .metrics_of(&database.name)
            .unwrap_or_else(|| Arc::new(DatabaseMetrics::new(&database.name, config.budget_latency)));
        let tls = connectors.get(&database.server.name).cloned().flatten();
        for role in config.roles.values() {
            let (tls, password) = (tls.clone(), role.server_password.clone());
            let dialer = Dialer::new(database.server.clone(), tls, &database.dbname, &role.name, password);
            match pools.get(&database.name, &role.name) {
                Some(pool) => pool.is_changed(database.pool, dialer, HERE),
                None => {
                    let pool = pool(config, (database, role), dialer, metrics.clone(), lasting);
                    pools.add(&database.name, &role.name, pool);
                }
            }
        }
    }
    pools.retire_others(config);
}

fn pool(
    config: &Config,
    (database, role): (&Database, &Role),
    dialer: Dialer,
    metrics: Arc<DatabaseMetrics>,
    lasting: &Lasting,
) -> Arc<Pool> {
    Pool::new(PoolSettings {
        database: database.name.clone(),
        role: role.name.clone(),
        dialer: ArcSwap::from_pointee(dialer),
        mode: database.pool_mode,
        limits: ArcSwap::from_pointee(database.pool),
        organizations: lasting.limits.clone(),
        sealer: lasting.sealer.clone().filter(|_| role.tenancy != Tenancy::None),
        binder: match role.tenancy {
            Tenancy::None => Binder::default(),
            _ => Binder::new(&no_payload(&config.context.settings)),
        },
        metrics,
    })
}

/// Seals with the first of the keys, as it is in its file now.
fn sealer(config: &Config) -> Result<Option<Arc<Watched<Sealer, SealKeyError>>>, ServeError> {
    let Some(key) = config.context.seal_keys.first().cloned() else { return Ok(None) };
    let (file, lifetime) = (config.context.seal_key_file.clone(), config.context.seal_lifetime);
    let watched = Watched::new(file.clone().into_iter().collect(), move || {
        let key = file.as_ref().map_or_else(|| Ok(key.clone()), |file| config::read_seal_key(file))?;
        Ok(Sealer::new(&key, lifetime))
    });
    let watched =
        watched.map_err(|e: SealKeyError| ServeError::Configuration(format!("context.seal_key: {e}")))?;
    Ok(Some(Arc::new(watched)))
}

fn unusable(key: &str, error: &TlsError) -> ServeError {
    ServeError::Configuration(format!("{key}: {error}"))
}

/// All but the pools.
fn settings(
    config: &Config,
    keys: Arc<Keys>,
    lasting: &Lasting,
    watches: &mut Watches,
) -> Result<GateSettings, ServeError> {
    for (index, issuer) in config.jwt.issuers.iter().enumerate() {
        if let KeySource::JwksFile(file) | KeySource::KeyFile(file) = &issuer.keys {
            let (reloaded, key) = (keys.clone(), format!("jwt.issuers \"{}\"", issuer.issuer));
            let watched = Watched::new(vec![file.clone()], move || reloaded.reload(index));
            let watched = watched.map_err(|e| ServeError::Configuration(e.to_string()))?;
            watches.push((key, Arc::new(watched)));
        }
    }
    let revoked = match config.revoked.clone() {
        Some(file) => {
            let (read, id_type) = (file.clone(), config.context.id_type);
            let watched = Watched::new(vec![file], move || Revoked::load(&read, id_type));
            Some(Arc::new(watched.map_err(|e| ServeError::Configuration(format!("jwt.revoked: {e}")))?))
        }
        None => None,
    };
    let acceptor = match &config.listen.tls {
        Some(tls) => {
            let shown = Arc::new(tls::watched_acceptor(tls).map_err(|e| unusable("listen.tls", &e))?);
            watches.push(("listen.tls".to_owned(), shown.clone()));
            Some(shown)
        }
        None => None,
    };
    let verifiers: BTreeMap<String, Verifier> = config
        .roles
        .values()
        .filter_map(|role| {
            Some((role.name.clone(), Verifier::from_secret(role.sign_in_scram.as_ref()?.expose())))
        })
        .collect();
    Ok(GateSettings {
        tls: acceptor,
        tls_required: config.listen.tls.as_ref().is_some_and(|tls| tls.require),
        sign_in_timeout: config.listen.sign_in_timeout,
        failed_sign_in_delay: config.listen.failed_sign_in_delay,
        drain_delay: config.listen.drain_delay,
        max_clients: config.listen.max_clients,
        databases: config.databases.clone(),
        roles: config.roles.clone(),
        verifiers,
        keys,
        mapping: Mapping {
            claims: config.claims.clone(),
            id_type: config.context.id_type,
            leeway: config.jwt.leeway,
            settings: config.context.settings.clone(),
        },
        revoked,
        guard: Arc::new(Guard::new(&config.context.settings)),
        limits: lasting.limits.clone(),
        pools: HashMap::new(),
    })
}

/// The file of revocations, whose changes concern clients that are there already.
struct Revocations {
    revoked: Arc<Watched<Revoked, RevokedError>>,
    gate: Arc<Gate>,
}

impl Watch for Revocations {
    fn look(&self) -> Outcome {
        let outcome = self.revoked.look();
        if matches!(outcome, Outcome::Renewed) {
            self.gate.revocations_changed();
        }
        outcome
    }
}
