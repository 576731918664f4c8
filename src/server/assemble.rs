//! A configuration becomes a gate: keys, certificates, and a pool for each database and role.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::ServeError;
use super::keeper::Pools;
use crate::admin::http::Endpoints;
use crate::auth::scram::Verifier;
use crate::auth::token::Keys;
use crate::config::{Config, Tenancy};
use crate::net::dial::Dialer;
use crate::net::tls;
use crate::observe::metrics::{self, DatabaseMetrics};
use crate::pool::{Pool, PoolSettings};
use crate::session::{Gate, GateSettings};
use crate::tenancy::context::Mapping;
use crate::tenancy::seal::Sealer;

/// Everything that a proxy is made of, before it listens.
pub(super) struct Assembled {
    pub(super) gate: Arc<Gate>,
    pub(super) pools: Pools,
    pub(super) endpoints: Endpoints,
}

pub(super) fn assemble(config: &Config) -> Result<Assembled, ServeError> {
    let metrics = metrics::install(config.budget_latency)
        .map_err(|e| ServeError::Configuration(format!("cannot start metrics: {e}")))?;
    let pools = pools(config)?;
    let gate = gate(config, pools.by_name())?;
    let (published, checked, watched) = (pools.clone(), pools.clone(), gate.clone());
    let endpoints = Endpoints {
        metrics,
        publish: Box::new(move || published.publish()),
        unready: Box::new(move || match watched.is_draining() {
            true => vec!["draining: pgtenant is shutting down".to_owned()],
            false => checked.troubles(),
        }),
    };
    Ok(Assembled { gate, pools, endpoints })
}

fn pools(config: &Config) -> Result<Pools, ServeError> {
    let sealer = config.context.seal_keys.first();
    let sealer = sealer.map(|key| Arc::new(Sealer::new(key, config.context.seal_lifetime)));
    let mut pools = Pools::default();
    for database in config.databases.values() {
        let metrics = Arc::new(DatabaseMetrics::new(&database.name, config.budget_latency));
        for role in config.roles.values() {
            let dialer = Dialer::new(
                database.server.clone(),
                &database.dbname,
                &role.name,
                role.server_password.clone(),
            )
            .map_err(|e| ServeError::Configuration(format!("servers.{}: {e}", database.server.name)))?;
            let pool = Pool::new(PoolSettings {
                database: database.name.clone(),
                role: role.name.clone(),
                dialer,
                limits: database.pool,
                sealer: sealer.clone().filter(|_| role.tenancy != Tenancy::None),
                metrics: metrics.clone(),
            });
            pools.add(&database.name, &role.name, pool);
        }
    }
    Ok(pools)
}

fn gate(config: &Config, pools: HashMap<(String, String), Arc<Pool>>) -> Result<Arc<Gate>, ServeError> {
    let keys = Keys::load(&config.jwt).map_err(|e| ServeError::Configuration(e.to_string()))?;
    let acceptor = match &config.listen.tls {
        Some(tls) => {
            let shown =
                tls::acceptor(tls).map_err(|e| ServeError::Configuration(format!("listen.tls: {e}")))?;
            Some(Arc::new(shown))
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
    Ok(Gate::new(GateSettings {
        tls: acceptor,
        tls_required: config.listen.tls.as_ref().is_some_and(|tls| tls.require),
        sign_in_timeout: config.listen.sign_in_timeout,
        max_clients: config.listen.max_clients,
        databases: config.databases.clone(),
        roles: config.roles.clone(),
        verifiers,
        keys,
        mapping: Mapping {
            claims: config.claims.clone(),
            id_type: config.context.id_type,
            leeway: config.jwt.leeway,
        },
        pools,
    }))
}
