//! What a client's transactions run under, and when two clients' are the same.

use std::borrow::Cow;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};

use super::queue::Flow;
use super::server::TermsDigest;
use crate::tenancy::context::TenantContext;
use crate::tenancy::settings::{self, Settings};

/// A hash of all settings that a client brings to its servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettingsDigest([u8; 32]);

/// What a client's transactions run under: its context, if it has one, and its settings.
#[derive(Clone)]
pub struct Terms {
    context: Option<Arc<TenantContext>>,
    settings: Arc<Settings>,
    digest: TermsDigest,
    settings_digest: SettingsDigest,
    /// Whose account its server time goes to: the organization's, and of its projects'.
    flows: [Flow; 2],
}

impl Terms {
    /// Terms of a client.
    pub fn new(context: Option<Arc<TenantContext>>, settings: Arc<Settings>) -> Self {
        let mut terms = Vec::new();
        match &context {
            None => put(b"plain", &mut terms),
            Some(context) => {
                put(b"context", &mut terms);
                put(context.organization().as_str().as_bytes(), &mut terms);
                put(context.project().map_or("", |project| project.as_str()).as_bytes(), &mut terms);
                put(context.payload_digest(), &mut terms);
            }
        }
        let context_ends = terms.len();
        for (name, value) in settings.iter() {
            put(name.as_bytes(), &mut terms);
            put(value.as_bytes(), &mut terms);
        }
        let settings_digest = SettingsDigest(hash(&terms[context_ends..]));
        let flows = context.as_ref().map_or([Flow(0); 2], |context| {
            let project = context.project().map_or(Flow(0), |project| flow(project.as_str()));
            [flow(context.organization().as_str()), project]
        });
        Self { context, settings, digest: TermsDigest(hash(&terms)), settings_digest, flows }
    }

    /// The same context with other settings.
    #[must_use]
    pub fn with_settings(&self, settings: Settings) -> Self {
        Self::new(self.context.clone(), Arc::new(settings))
    }

    /// The same settings under another context, or none.
    #[must_use]
    pub fn with_context(&self, context: Option<Arc<TenantContext>>) -> Self {
        Self::new(context, self.settings.clone())
    }

    /// The context, to be kept.
    pub fn shared_context(&self) -> Option<&Arc<TenantContext>> {
        self.context.as_ref()
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What two leases must share.
    pub fn digest(&self) -> TermsDigest {
        self.digest
    }

    /// Whose account its server time goes to: the organization's, and of its projects'.
    pub(super) fn flows(&self) -> [Flow; 2] {
        self.flows
    }

    /// Whether nothing is to be written under them.
    pub fn is_read_only(&self) -> bool {
        self.context.as_ref().is_some_and(|context| context.actor().is_some())
    }

    /// The settings that a server gets.
    pub fn bound_settings(&self) -> Cow<'_, Settings> {
        if !self.is_read_only() {
            return Cow::Borrowed(&self.settings);
        }
        let mut settings = Settings::clone(&self.settings);
        settings.insert(settings::READ_ONLY.to_owned(), "on".to_owned());
        Cow::Owned(settings)
    }

    /// Whether its transactions are to be others than those of a new session.
    pub fn has_own_transactions(&self) -> bool {
        self.is_read_only() || self.settings.keys().any(|name| name.starts_with("default_transaction_"))
    }

    /// Which settings it brings.
    pub fn settings_digest(&self) -> SettingsDigest {
        self.settings_digest
    }

    /// The context.
    pub fn context(&self) -> Option<&TenantContext> {
        self.context.as_deref()
    }
}

fn flow(id: &str) -> Flow {
    let hash = hash(id.as_bytes());
    Flow(hash.first_chunk().map_or(0, |first| u128::from_be_bytes(*first)))
}

/// One part behind its length.
fn put(part: &[u8], bytes: &mut Vec<u8>) {
    bytes.extend((part.len() as u64).to_be_bytes());
    bytes.extend(part);
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}
