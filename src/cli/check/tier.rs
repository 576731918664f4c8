//! What a database's isolation rests on: the seal, plain settings that are guarded, or plain settings that anyone can change.

use crate::config::{Context, Role, Tenancy};

/// How far an organization's isolation can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tier {
    /// Policies believe nothing but the seal.
    Sealed,
    /// Policies read plain settings, which the proxy guards, and the role has nothing to get past it.
    Guarded,
    /// Policies read plain settings that the role can change unseen.
    Open,
}

impl Tier {
    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Tier::Sealed => "sealed",
            Tier::Guarded => "guarded",
            Tier::Open => "open",
        }
    }
}

/// Judges a tenant-scoped role by the settings that policies read, and by what the role could change them with unseen.
/// What is wrong comes with it, a sentence each. `None` for a role without tenants.
pub(super) fn judge(
    context: &Context,
    role: &Role,
    read: &str,
    [creates, bypasses]: [&str; 2],
) -> Option<(Tier, Vec<String>)> {
    if role.tenancy == Tenancy::None {
        return None;
    }
    let read: Vec<&str> = read.split(',').filter(|name| !name.is_empty()).collect();
    if read.is_empty() {
        return Some((Tier::Sealed, Vec::new()));
    }
    let mut found = Vec::new();
    let is_bound = |name: &str| context.settings.iter().any(|setting| setting.name == name);
    let unbound: Vec<&str> = read.iter().copied().filter(|name| !is_bound(name)).collect();
    if !unbound.is_empty() {
        found.push(format!(
            "open: policies read {}, which any client can change; bind it under [context.settings], or have the policies \
             call pgtenant.organization_id()",
            unbound.join(", ")
        ));
    }
    if !bypasses.is_empty() {
        found.push(format!(
            "open: policies read plain settings ({}), and the role can change them unseen, having {bypasses}; run: pgtenant \
             install ... --harden, or have the policies call pgtenant.organization_id()",
            read.join(", ")
        ));
    }
    let is_guarded = found.is_empty() && creates.is_empty();
    Some((if is_guarded { Tier::Guarded } else { Tier::Open }, found))
}
