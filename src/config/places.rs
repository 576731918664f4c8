//! Where clients come in, where operators look, where the servers are: addresses, sockets and certificates.

use std::net::SocketAddr;
use std::os::unix::net;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::document::{Item, Section};
use super::read::{HOUR, Named, SECOND, or};
use super::size::parse_size;
use super::{Identity, Listen, ListenTls, Server, SslMode};

/// What clients may have kept where nothing is said, and at least: one client may have 16 MiB.
const USUALLY_KEPT: u64 = 1 << 30;
const LEAST_KEPT: u64 = 16 << 20;

pub(super) fn listen(section: &Section<'_, '_>) -> Option<Listen> {
    let tcp = match section.get("tcp") {
        None => Some(vec![SocketAddr::from(([127, 0, 0, 1], 6432))]),
        Some(item) => item.items().map(|items| {
            if items.is_empty() && section.get("unix").is_none_or(|unix| unix.is_empty_array()) {
                item.note(
                    "must name at least one address, such as \"127.0.0.1:6432\", where unix names none",
                );
            }
            items.iter().filter_map(Item::address).collect()
        }),
    };
    let unix = match section.get("unix") {
        None => Some(Vec::new()),
        Some(item) => item.items().map(|items| items.iter().filter_map(socket_directory).collect()),
    };
    let max_clients = or(section.get("max_clients").map(|i| i.number(1, 1_000_000)), 10_000);
    let max_kept = section.get("max_kept").map(|item| {
        let size = item.text().map(|text| parse_size(&text))?;
        if size.is_none_or(|size| size < LEAST_KEPT) {
            item.note("must be a size such as \"64MiB\" or \"1GiB\", and at least 16MiB");
        }
        size
    });
    let max_kept = or(max_kept, USUALLY_KEPT) as usize;
    let sign_in_timeout =
        or(section.get("sign_in_timeout").map(|i| i.duration(SECOND, HOUR)), Duration::from_secs(15));
    let delay = section.get("failed_sign_in_delay").map(|i| i.duration(Duration::ZERO, 5 * SECOND));
    let failed_sign_in_delay = or(delay, Duration::from_millis(100));
    let delay = section.get("drain_delay").map(|i| i.duration(Duration::ZERO, 10 * SECOND));
    let drain_delay = or(delay, SECOND);
    let tls = listen_tls(&section.section("tls"));
    Some(Listen {
        tcp: tcp?,
        unix: unix?,
        max_clients: max_clients as usize,
        max_kept,
        sign_in_timeout,
        failed_sign_in_delay,
        drain_delay,
        tls,
    })
}

/// A directory that is there, and whose sockets' paths the system can take.
fn socket_directory(item: &Item<'_, '_>) -> Option<PathBuf> {
    let directory = item.folder()?;
    let longest = directory.join(".s.PGSQL.65535");
    if net::SocketAddr::from_pathname(&longest).is_err() {
        item.note("is too long for a Unix socket; the system takes about 100 bytes");
        return None;
    }
    Some(directory)
}

fn listen_tls(section: &Section<'_, '_>) -> Option<ListenTls> {
    let certificate = section.require("certificate", "a PEM file, leaf first").and_then(|i| i.file());
    let key = section.require("key", "a PEM file with the certificate's private key").and_then(|i| i.file());
    let require = or(section.get("require").map(|i| i.flag()), true);
    let client_ca = section.get("client_ca");
    if let (Some(item), false) = (&client_ca, require) {
        item.note(
            "is of no use with require = false: who has no certificate comes without TLS; set require = true",
        );
    }
    let client_ca = client_ca.map(|item| item.file());
    Some(ListenTls { certificate: certificate?, key: key?, client_ca: given(client_ca)?, require })
}

pub(super) fn admin(section: &Section<'_, '_>) -> Option<SocketAddr> {
    section.not_built("operators", "there is no console yet");
    section.get("http").and_then(|item| item.address())
}

pub(super) fn servers(section: &mut Section<'_, '_>) -> Named<Server> {
    let entries = section.entries().into_iter();
    entries.map(|(name, item)| (name.clone(), server(name, &item.into_section()))).collect()
}

fn server(name: String, section: &Section<'_, '_>) -> Option<Arc<Server>> {
    let modes = [
        ("disable", SslMode::Disable),
        ("prefer", SslMode::Prefer),
        ("require", SslMode::Require),
        ("verify-ca", SslMode::VerifyCa),
        ("verify-full", SslMode::VerifyFull),
    ];
    let host = section.require("host", "a name, an address, or a socket's directory").and_then(|i| i.text());
    let has_socket = host.as_ref().is_some_and(|host| host.starts_with('/'));
    let port = or(section.get("port").map(|i| i.number(1, 65_535)), 5432);
    let mode = section.get("tls");
    let tls = or(mode.as_ref().map(|i| i.choice(&modes)), SslMode::Prefer);
    if let (Some(item), true, false) = (&mode, has_socket, matches!(tls, SslMode::Disable | SslMode::Prefer))
    {
        item.note("there is no TLS over a Unix socket; remove it, or name a host");
        return None;
    }
    let tls_directly = tls_directly(section, matches!(tls, SslMode::Disable | SslMode::Prefer) || has_socket);
    let identity = identity(section, has_socket || tls == SslMode::Disable);
    let ca = section.get("ca");
    match (tls, &ca) {
        (SslMode::Disable | SslMode::Prefer, Some(item)) => {
            item.note("is of no use with this tls; set tls to verify-full (or verify-ca, or require)");
        }
        (SslMode::VerifyCa, None) => {
            section.note_at("ca", "is missing: verify-ca trusts the roots in it alone")
        }
        _ => {}
    }
    let ca = given(ca.map(|item| item.file()));
    let (port, ca, identity) = (port as u16, ca?, identity?);
    Some(Arc::new(Server { name, host: host?, port, tls, tls_directly, ca, identity }))
}

/// How TLS begins, in libpq's words.
fn tls_directly(section: &Section<'_, '_>, may_be_clear: bool) -> bool {
    let Some(item) = section.get("tls_negotiation") else { return false };
    let wrong = item.pin();
    let is_direct = item.choice(&[("postgres", false), ("direct", true)]).unwrap_or(false);
    if is_direct && may_be_clear {
        wrong.note("direct leaves no way back to a connection in clear; set tls to require, verify-ca or verify-full");
    }
    is_direct
}

/// What PostgreSQL is shown: both files, or none.
fn identity(section: &Section<'_, '_>, is_clear: bool) -> Option<Option<Identity>> {
    let (certificate, key) = (section.get("certificate"), section.get("key"));
    if let (Some(item), true) = (certificate.as_ref().or(key.as_ref()), is_clear) {
        item.note("is of no use without TLS; remove it, or set tls to verify-full (and host to a name)");
        return None;
    }
    match (certificate, key) {
        (None, None) => Some(None),
        (Some(certificate), Some(key)) => {
            let (certificate, key) = (certificate.file(), key.file());
            Some(Some(Identity { certificate: certificate?, key: key? }))
        }
        (Some(_), None) => {
            section.note_at("key", "is missing: a PEM file with the certificate's private key");
            None
        }
        (None, Some(_)) => {
            section.note_at("certificate", "is missing: a PEM file, leaf first, that the key belongs to");
            None
        }
    }
}

/// What may be left out, but not be wrong.
fn given<T>(value: Option<Option<T>>) -> Option<Option<T>> {
    match value {
        None => Some(None),
        Some(value) => value.map(Some),
    }
}
