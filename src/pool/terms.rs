//! What a client's transactions run under, and when two clients' are the same.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};

use super::server::TermsDigest;
use crate::tenancy::context::TenantContext;
use crate::tenancy::settings::Settings;

/// What a client's transactions run under: its context, if it has one, and its settings.
#[derive(Clone)]
pub struct Terms {
    context: Option<Arc<TenantContext>>,
    settings: Arc<Settings>,
    digest: TermsDigest,
}

impl Terms {
    /// Terms of a client.
    pub fn new(context: Option<Arc<TenantContext>>, settings: Arc<Settings>) -> Self {
        let mut bytes = Vec::new();
        let mut put = |part: &[u8]| {
            bytes.extend((part.len() as u64).to_be_bytes());
            bytes.extend(part);
        };
        match &context {
            None => put(b"plain"),
            Some(context) => {
                put(b"context");
                put(context.organization().as_str().as_bytes());
                put(context.project().map_or("", |project| project.as_str()).as_bytes());
                put(context.payload_digest());
            }
        }
        for (name, value) in settings.iter() {
            put(name.as_bytes());
            put(value.as_bytes());
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, &bytes).as_ref());
        Self { context, settings, digest: TermsDigest(hash) }
    }

    /// The same context with other settings.
    #[must_use]
    pub fn with_settings(&self, settings: Settings) -> Self {
        Self::new(self.context.clone(), Arc::new(settings))
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What two leases must share.
    pub fn digest(&self) -> TermsDigest {
        self.digest
    }

    /// The context.
    pub fn context(&self) -> Option<&TenantContext> {
        self.context.as_deref()
    }
}
