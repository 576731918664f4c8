//! `[limits]` and `[limits.organization."id"]`: what organizations may take.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::document::Section;
use super::read::or;
use super::{IdType, Limits, OrganizationLimits};

/// The most that one organization may count for, beside one of weight 1.
const MAX_WEIGHT: u64 = 1_000;

pub(super) fn limits(section: &mut Section<'_, '_>, id_type: IdType) -> Arc<Limits> {
    let usual = organization(section, &OrganizationLimits::default());
    let mut named = BTreeMap::new();
    for (id, item) in section.section("organization").entries() {
        let Some(canonical) = id_type.canonical(&id) else {
            item.note(format!("is no organization's id: \"{id}\" is not of context.id_type"));
            continue;
        };
        let limits = organization(&item.into_section(), &usual);
        named.insert(canonical, limits);
    }
    Arc::new(Limits { usual, named })
}

fn organization(section: &Section<'_, '_>, usual: &OrganizationLimits) -> OrganizationLimits {
    for key in ["queries_per_second", "transaction_time", "max_clients"] {
        section.not_built(key, "only weight is there so far");
    }
    let weight = section.get("weight").map(|item| item.number(1, MAX_WEIGHT).map(|weight| weight as u32));
    OrganizationLimits { weight: or(weight, usual.weight) }
}
