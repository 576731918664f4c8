//! Two issuers whose keys are known here: one with a shared secret, one with a JWK Set.

use std::time::Duration;

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pgtenant::auth::token::Keys;
use pgtenant::config::{Issuer, JwksUrl, Jwt, KeySource, Secret};

/// Unix seconds about which targets play.
pub const NOW: u64 = 1_800_000_000;

/// Seconds by which clocks may differ.
pub const LEEWAY: u64 = 5;

const SECRET: &[u8] = b"a shared secret of enough bytes for HS256";
const SEED: [u8; 32] = [7; 32];

/// The issuers, by their place in [`keys`].
pub const ISSUERS: [&str; 2] = ["https://login.example/", "https://shared.example/"];

/// The algorithms of their keys.
pub const ALGORITHMS: [&str; 2] = ["EdDSA", "HS256"];

/// The keys of both; the first one's are those of [`jwks`].
pub fn keys() -> Keys {
    let issuer = |index: usize, keys| Issuer {
        issuer: ISSUERS[index].to_owned(),
        audience: vec!["pgtenant".to_owned()],
        algorithms: vec![ALGORITHMS[index].to_owned()],
        oauth_scope: String::new(),
        keys,
    };
    let url = JwksUrl { host: "login.example".to_owned(), port: 443, path: "/".to_owned(), ca: None };
    let issuers =
        vec![issuer(0, KeySource::JwksUrl(url)), issuer(1, KeySource::Secret(Secret::new(SECRET.to_vec())))];
    let keys = Keys::load(&Jwt { issuers, leeway: Duration::from_secs(LEEWAY) }).expect("keys");
    keys.take(0, jwks().as_bytes()).expect("a usable key");
    keys
}

fn pair() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&SEED).expect("a key pair")
}

/// The first issuer's JWK Set, with one key.
pub fn jwks() -> String {
    let x = base64url(pair().public_key().as_ref());
    format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","x":"{x}","kid":"ed"}}]}}"#)
}

/// A token of whatever header and claims, signed by one of the issuers.
pub fn token(header: &[u8], claims: &[u8], issuer: usize) -> String {
    let signed = format!("{}.{}", base64url(header), base64url(claims));
    let signature = match issuer {
        0 => pair().sign(signed.as_bytes()).as_ref().to_vec(),
        _ => {
            let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
            hmac::sign(&key, signed.as_bytes()).as_ref().to_vec()
        }
    };
    format!("{signed}.{}", base64url(&signature))
}

fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
