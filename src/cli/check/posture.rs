//! What a server tells of a role that signs in to it: whether policies bind it, and the interface is there.

use std::time::SystemTime;

use super::tier::{self, Tier};
use crate::architect::install::INTERFACE_VERSION;
use crate::config::{Config, Role, Tenancy};
use crate::tenancy::context::unix_seconds;

/// Asked as the role itself; one row of text.
pub(super) const QUESTION: &str = include_str!("posture.sql");

/// Clocks may differ by this share of a seal's lifetime.
const SKEW_SHARE: u64 = 4;

/// What isolation rests on, and what is wrong with the answer, a sentence each.
pub(super) fn judge(config: &Config, role: &Role, answer: &[String]) -> (Option<Tier>, Vec<String>) {
    let [rest @ .., read, bypasses] = answer else { return (None, vec![UNEXPECTED.to_owned()]) };
    let mut found = judge_role(config, role, rest);
    let creates = rest.get(7).map_or("", String::as_str);
    match tier::judge(&config.context, role, read, [creates, bypasses]) {
        Some((tier, sentences)) => {
            found.extend(sentences);
            (Some(tier), found)
        }
        None => (None, found),
    }
}

const UNEXPECTED: &str = "PostgreSQL answered unexpectedly; is another pooler in between?";

fn judge_role(config: &Config, role: &Role, answer: &[String]) -> Vec<String> {
    let [version, epoch, superuser, bypass, installed, usable, owned, creates, own_settings, logs] = answer
    else {
        return vec![UNEXPECTED.to_owned()];
    };
    let is = |value: &String| value == "t";
    let name = &role.name;
    let mut found = Vec::new();
    if version.parse().unwrap_or(0) < 140_000 {
        found.push("PostgreSQL is older than 14; upgrade it".to_owned());
    }
    if role.tenancy == Tenancy::None {
        return found;
    }
    if is(superuser) {
        found.push("the role is a superuser, whom no policy binds; use one that is not".to_owned());
    } else {
        if is(bypass) {
            found.push(format!(
                "the role bypasses row level security; run: ALTER ROLE \"{name}\" NOBYPASSRLS"
            ));
        }
        if !owned.is_empty() {
            found.push(format!(
                "the role is, or can become, the owner of {owned} and may switch its policies off; run: ALTER TABLE \
                 {owned} OWNER TO another role"
            ));
        }
        if !creates.is_empty() {
            found.push(format!(
                "the role may create objects in {creates}: one organization can put a view or function where \
                 another's queries find it; run: REVOKE CREATE ON {creates} FROM \"{name}\", PUBLIC"
            ));
        }
    }
    if !own_settings.is_empty() {
        found.push(format!(
            "the role has settings of its own ({own_settings}), which every client of the role can change for all; \
             run: ALTER ROLE \"{name}\" RESET ALL, and use ALTER DATABASE ... SET"
        ));
    }
    if is(logs) {
        found.push(format!(
            "PostgreSQL logs statements with their parameters, seals and claims among them; run as a superuser: \
             ALTER ROLE \"{name}\" SET log_parameter_max_length = 0, or set it for the database"
        ));
    }
    if !is(installed) {
        found.push(format!(
            "the SQL interface (version {INTERFACE_VERSION}) is not installed; run: pgtenant install --config ... \
             --database ... --role {name}"
        ));
    } else if !is(usable) {
        found
            .push(format!("the role may not use the SQL interface; run: pgtenant install ... --role {name}"));
    }
    let here = unix_seconds(SystemTime::now());
    let skew = here.abs_diff(epoch.parse().unwrap_or(here));
    if skew > config.context.seal_lifetime.as_secs() / SKEW_SHARE {
        found.push(format!(
            "its clock differs by {skew} s; seals live {:?}: synchronize the clocks",
            config.context.seal_lifetime
        ));
    }
    found
}
