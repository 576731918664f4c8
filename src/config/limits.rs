//! `[limits]` and `[limits.organization."id"]`: what organizations may take.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::document::Section;
use super::read::or;
use super::{IdType, Limits, OrganizationLimits};

/// The most that one organization may count for, beside one of weight 1.
const MAX_WEIGHT: u64 = 1_000;

/// More clients than that are more than one proxy has.
const MAX_CLIENTS: u64 = 1_000_000;

/// More queries per second than that are more than one proxy carries.
const MAX_RATE: u64 = 1_000_000;

/// Longer than that is no limit.
const MAX_TIME: Duration = Duration::from_secs(7 * 24 * 3600);

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

/// 0 is none, for everything but the weight.
fn organization(section: &Section<'_, '_>, usual: &OrganizationLimits) -> OrganizationLimits {
    let number = |key, most| section.get(key).map(|item| item.number(0, most));
    let time = |key| section.get(key).map(|item| item.duration(Duration::ZERO, MAX_TIME));
    let weight = section.get("weight").map(|item| item.number(1, MAX_WEIGHT).map(|weight| weight as u32));
    OrganizationLimits {
        weight: or(weight, usual.weight),
        max_clients: or(number("max_clients", MAX_CLIENTS), usual.max_clients),
        queries_per_second: or(number("queries_per_second", MAX_RATE), usual.queries_per_second),
        transaction_time: or(time("transaction_time"), usual.transaction_time),
        idle_in_transaction_time: or(time("idle_in_transaction_time"), usual.idle_in_transaction_time),
    }
}
