//! A stranger's first packet: what is read of it is what is in it, and written down again it reads the same.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use pgtenant::wire::startup::{self, CancelKey, MAX_STARTUP, Opening, StartupMessage};

fuzz_target!(|data: &[u8]| {
    check_length(data);
    let mut packet = ((4 + data.len()) as u32).to_be_bytes().to_vec();
    packet.extend(data);
    let Ok(opening) = startup::parse(&packet) else { return };
    let code = u32::from_be_bytes(data[..4].try_into().expect("four bytes"));
    let rest = &data[4..];
    match &opening {
        Opening::Ssl => assert_eq!((code, rest), (80_877_103, &[][..])),
        Opening::GssEnc => assert_eq!((code, rest), (80_877_104, &[][..])),
        Opening::Cancel(CancelKey { pid, secret }) => {
            assert_eq!(code, 80_877_102);
            assert_eq!([&pid.to_be_bytes()[..], secret].concat(), rest);
            assert!((4..=256).contains(&secret.len()));
        }
        Opening::Startup(message) => check_startup(message, code, rest),
    }
    // No part of it can be left out at its end.
    assert!(startup::parse(&packet[..packet.len() - 1]).is_err() || matches!(opening, Opening::Cancel(_)));
});

fn check_length(bytes: &[u8]) {
    let read = startup::length(bytes);
    let Some(word) = bytes.get(..4) else { return assert_eq!(read, Ok(None)) };
    let length = word.iter().fold(0_u64, |length, byte| length << 8 | u64::from(*byte));
    match read {
        Ok(told) => assert_eq!(told.map(|told| told as u64), Some(length)),
        Err(_) => assert!(length < 8 || length > MAX_STARTUP as u64),
    }
}

fn check_startup(message: &StartupMessage, code: u32, rest: &[u8]) {
    assert_eq!((code >> 16, code & 0xffff), (3, u32::from(message.minor)));
    assert!(message.spoken_minor() <= message.minor && message.spoken_minor() <= 2);
    assert!(!message.user.is_empty() && !message.database.is_empty());
    // Names and values in turn; behind the last one, an empty name.
    let text = std::str::from_utf8(rest).expect("UTF-8");
    let fields: Vec<&str> = text.split('\0').collect();
    let (pairs, end) = fields.split_at(fields.len() - 2);
    assert_eq!((end, pairs.len() % 2), (&["", ""][..], 0));
    let mut settings = HashMap::new();
    let mut options = Vec::new();
    for pair in pairs.chunks(2) {
        if pair[0].starts_with("_pq_.") {
            options.push(pair[0]);
        } else {
            assert!(settings.insert(pair[0], pair[1]).is_none(), "{} stands twice", pair[0]);
        }
    }
    assert_eq!(settings.remove("user"), Some(&*message.user));
    let database = settings.remove("database").filter(|name| !name.is_empty());
    assert_eq!(database.unwrap_or(&message.user), message.database);
    let read: HashMap<&str, &str> = message.parameters.iter().map(|(k, v)| (&**k, &**v)).collect();
    assert_eq!(read, settings);
    assert_eq!(message.protocol_options, options);
    assert_eq!(startup::parse(&written(message)), Ok(Opening::Startup(message.clone())));
}

fn written(message: &StartupMessage) -> Vec<u8> {
    let mut packet = vec![0, 0, 0, 0, 0, 3];
    packet.extend(message.minor.to_be_bytes());
    let own = [("user", &*message.user), ("database", &*message.database)];
    let settings = message.parameters.iter().map(|(name, value)| (&**name, &**value));
    let options = message.protocol_options.iter().map(|name| (&**name, "1"));
    for (name, value) in own.into_iter().chain(settings).chain(options) {
        packet.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    packet.push(0);
    packet
}
