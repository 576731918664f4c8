//! `[context]` and `[context.settings]`: how the context reaches the database.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use zeroize::Zeroizing;

use super::document::{Item, Section, without_newline};
use super::read::{SECOND, or};
use super::{Context, ContextSetting, IdType, Secret, SettingValue};

/// Settings that are bound with every context at most: each costs a little in every change of hands.
const MAX_SETTINGS: usize = 16;

/// PostgreSQL cuts longer names off (`NAMEDATALEN` - 1), and then two may be the same.
const MAX_NAME: usize = 62;

pub(super) fn context(section: &Section<'_, '_>, is_needed: bool) -> Context {
    let settings = settings(&mut section.section("settings"));
    let id_types = [("uuid", IdType::Uuid), ("bigint", IdType::Bigint), ("text", IdType::Text)];
    let items = match section.get("seal_key") {
        None => Vec::new(),
        Some(item) if item.is_array() => item.items().unwrap_or_default(),
        Some(item) => vec![item],
    };
    if is_needed && items.is_empty() {
        section.note_at(
            "seal_key",
            "is missing: a role is tenant-scoped; make a key with: openssl rand -base64 32",
        );
    }
    let (mut seal_keys, mut first_file): (Vec<Secret>, _) = (Vec::new(), None);
    for item in items {
        let twice = item.pin();
        match seal_key(item) {
            Some((key, _)) if seal_keys.iter().any(|other| other.expose() == key.expose()) => {
                twice.note("stands twice; a key is replaced by another one");
            }
            Some((key, file)) => {
                first_file = if seal_keys.is_empty() { file } else { first_file };
                seal_keys.push(key);
            }
            None => {}
        }
    }
    Context {
        id_type: or(section.get("id_type").map(|i| i.choice(&id_types)), IdType::Uuid),
        seal_keys,
        seal_key_file: first_file,
        seal_lifetime: or(
            section.get("seal_lifetime").map(|i| i.duration(10 * SECOND, 60 * SECOND)),
            60 * SECOND,
        ),
        settings,
    }
}

fn seal_key(item: Item<'_, '_>) -> Option<(Secret, Option<PathBuf>)> {
    let wrong = item.pin();
    let (text, file) = item.secret_and_file()?;
    match decode_seal_key(text.expose()) {
        Some(key) => Some((key, file)),
        None => {
            wrong.note(format!("must be {SEAL_KEY}"));
            None
        }
    }
}

/// What a seal's key is, for people.
const SEAL_KEY: &str = "32 random bytes in base64; make one with: openssl rand -base64 32";

fn decode_seal_key(text: &[u8]) -> Option<Secret> {
    let key = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    let key = Secret::new(key);
    (key.expose().len() == 32).then_some(key)
}

/// Reads [`Context::seal_key_file`] anew.
///
/// # Errors
/// It cannot be read, or holds no key; says so in one clear sentence.
pub fn read_seal_key(file: &Path) -> Result<Secret, SealKeyError> {
    let wrong = |what: String| SealKeyError(format!("{}: {what}", file.display()));
    let text = std::fs::read(file).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let text = Zeroizing::new(text);
    decode_seal_key(without_newline(&text)).ok_or_else(|| wrong(format!("must be {SEAL_KEY}")))
}

/// A file that should hold a seal's key does not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SealKeyError(String);

/// `"name" = "$value"`, in the order of their names.
fn settings(section: &mut Section<'_, '_>) -> Vec<ContextSetting> {
    let mut settings: Vec<ContextSetting> = Vec::new();
    for (name, item) in section.entries() {
        let lower = name.to_ascii_lowercase();
        if !is_setting_name(&lower) {
            item.note("is no name for a setting of this kind; write two or more names of letters, digits and _ with dots between, such as \"app.organization\"");
        } else if lower.starts_with("pgtenant.") {
            item.note("is pgtenant's own; policies read it by pgtenant.organization_id() and its siblings");
        } else if settings.iter().any(|other| other.name == lower) {
            item.note("stands twice; names of settings have no case");
        } else if settings.len() == MAX_SETTINGS {
            item.note(format!("is one too many; at most {MAX_SETTINGS} settings are bound with a context"));
        } else if let Some(value) = item.text().and_then(|text| setting_value(&text, &item)) {
            settings.push(ContextSetting { name: lower, value });
        }
    }
    settings.sort_by(|a, b| a.name.cmp(&b.name));
    settings
}

fn is_setting_name(name: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && part.len() <= MAX_NAME
            && !part.starts_with(|c: char| c.is_ascii_digit())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    name.contains('.') && name.len() <= MAX_NAME && name.split('.').all(is_part)
}

fn setting_value(text: &str, item: &Item<'_, '_>) -> Option<SettingValue> {
    let Some(variable) = text.strip_prefix('$') else { return Some(SettingValue::Literal(text.to_owned())) };
    if variable.starts_with('$') {
        return Some(SettingValue::Literal(variable.to_owned()));
    }
    match variable {
        "organization" => Some(SettingValue::Organization),
        "project" => Some(SettingValue::Project),
        "subject" => Some(SettingValue::Subject),
        "roles" => Some(SettingValue::Roles),
        "claims" => Some(SettingValue::Claims),
        _ => match variable.strip_prefix("claims.") {
            Some(path) if !path.split('.').any(str::is_empty) => Some(SettingValue::Claim(path.to_owned())),
            _ => {
                item.note(
                    "must be $organization, $project, $subject, $roles, $claims, $claims.NAME, or a text; one that begins \
                     with $ is written $$",
                );
                None
            }
        },
    }
}
