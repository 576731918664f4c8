//! A configuration becomes a gate: keys, certificates, and a pool for each database and role.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rustls::ClientConfig;

use super::ServeError;
use super::jwks;
use super::keeper::Pools;
use super::renewal::Watches;
use crate::admin::http::Endpoints;
use crate::auth::scram::Verifier;
use crate::auth::token::Keys;
use crate::config::{self, Config, KeySource, SealKeyError, Tenancy};
use crate::net::dial::Dialer;
use crate::net::tls::{self, TlsError};
use crate::net::watched::{Outcome, Watch, Watched};
use crate::observe::metrics::{self, DatabaseMetrics};
use crate::pool::{Pool, PoolSettings};
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
}

pub(super) fn assemble(config: &Config) -> Result<Assembled, ServeError> {
    let metrics = metrics::install(config.budget_latency)
        .map_err(|e| ServeError::Configuration(format!("cannot start metrics: {e}")))?;
    let mut watches = Watches::new();
    let pools = pools(config, &mut watches)?;
    let gate = gate(config, pools.by_name(), &mut watches)?;
    let (published, checked, watched, fetched) = (pools.clone(), pools.clone(), gate.clone(), gate.clone());
    let endpoints = Endpoints {
        metrics,
        publish: Box::new(move || {
            published.publish();
            jwks::publish(&fetched.settings.keys);
        }),
        unready: Box::new(move || match watched.is_draining() {
            true => vec!["draining: pgtenant is shutting down".to_owned()],
            false => [checked.troubles(), jwks::troubles(&watched.settings.keys)].concat(),
        }),
    };
    Ok(Assembled { gate, pools, endpoints, watches })
}

fn pools(config: &Config, watches: &mut Watches) -> Result<Pools, ServeError> {
    let sealer = sealer(config)?;
    watches.extend(sealer.clone().map(|sealer| ("context.seal_key".to_owned(), sealer as Arc<dyn Watch>)));
    let mut pools = Pools::default();
    let mut connectors: BTreeMap<&str, Option<Arc<Watched<ClientConfig>>>> = BTreeMap::new();
    for database in config.databases.values() {
        let metrics = Arc::new(DatabaseMetrics::new(&database.name, config.budget_latency));
        let server = &database.server;
        let tls = match connectors.entry(&server.name) {
            Entry::Occupied(entry) => entry.get().clone(),
            Entry::Vacant(entry) => {
                let key = format!("servers.{}", server.name);
                let tls = tls::watched_connector(server).map_err(|e| unusable(&key, &e))?.map(Arc::new);
                watches.extend(tls.clone().map(|tls| (key, tls as Arc<dyn Watch>)));
                entry.insert(tls).clone()
            }
        };
        for role in config.roles.values() {
            let (tls, password) = (tls.clone(), role.server_password.clone());
            let dialer = Dialer::new(server.clone(), tls, &database.dbname, &role.name, password);
            let pool = Pool::new(PoolSettings {
                database: database.name.clone(),
                role: role.name.clone(),
                dialer,
                mode: database.pool_mode,
                limits: database.pool,
                organizations: config.limits.clone(),
                sealer: sealer.clone().filter(|_| role.tenancy != Tenancy::None),
                binder: match role.tenancy {
                    Tenancy::None => Binder::default(),
                    _ => Binder::new(&no_payload(&config.context.settings)),
                },
                metrics: metrics.clone(),
            });
            pools.add(&database.name, &role.name, pool);
        }
    }
    Ok(pools)
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

fn gate(
    config: &Config,
    pools: HashMap<(String, String), Arc<Pool>>,
    watches: &mut Watches,
) -> Result<Arc<Gate>, ServeError> {
    let keys = Keys::load(&config.jwt).map_err(|e| ServeError::Configuration(e.to_string()))?;
    let keys = Arc::new(keys);
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
    let gate = Gate::new(GateSettings {
        tls: acceptor,
        tls_required: config.listen.tls.as_ref().is_some_and(|tls| tls.require),
        sign_in_timeout: config.listen.sign_in_timeout,
        failed_sign_in_delay: config.listen.failed_sign_in_delay,
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
        revoked: revoked.clone(),
        guard: Arc::new(Guard::new(&config.context.settings)),
        pools,
    });
    if let Some(revoked) = revoked {
        watches.push(("jwt.revoked".to_owned(), Arc::new(Revocations { revoked, gate: gate.clone() })));
    }
    Ok(gate)
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
