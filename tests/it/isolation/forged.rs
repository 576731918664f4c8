//! Tokens that sequences name: good, and not what they say.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pgtenant::auth::signing::{Algorithm, SigningKey};

use crate::harness::gate::Gate;
use crate::harness::issuer::{Issuer, now};

/// Each with the name by which files ask for it. `own` and `victim` are organizations.
pub fn tokens(gate: &Gate, own: &str, victim: &str) -> Vec<(&'static str, String)> {
    let of = |organization: &str| gate.token(organization);
    let good = of(victim).sign();
    let [_, claims, _] = parts(&good);
    vec![
        ("{token}", of(own).sign()),
        ("{expired}", of(own).expires_in(-600).sign()),
        ("{early}", of(own).claim("nbf", now() + 600).sign()),
        ("{foreign}", Issuer::es256().token(victim).sign()),
        ("{nobody}", of(own).without("org_id").sign()),
        ("{audience}", of(victim).claim("aud", "others").sign()),
        ("{issuer}", of(victim).claim("iss", "https://evil.example/").sign()),
        ("{edited}", edited(&of(own).sign(), own, victim)),
        ("{none}", format!("{}.{claims}.", encode(r#"{"alg":"none"}"#))),
        ("{long}", "x".repeat(40_000)),
        ("{namesake}", namesake(gate).sign(&claims_of(&good)).unwrap()),
        ("{confused}", by_public_key(gate, r#"{"alg":"HS256"}"#, &claims)),
        ("{kid}", by_public_key(gate, r#"{"alg":"HS256","kid":"../../../../dev/null"}"#, &claims)),
        ("{jwk}", by_public_key(gate, r#"{"alg":"HS256","jwk":{"kty":"oct","k":"eA"}}"#, &claims)),
        ("{jku}", by_public_key(gate, r#"{"alg":"HS256","jku":"https://127.0.0.1:1/keys"}"#, &claims)),
        ("{x5u}", by_public_key(gate, r#"{"alg":"HS256","x5u":"https://127.0.0.1:1/chain.pem"}"#, &claims)),
        ("{crit}", by_public_key(gate, r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, &claims)),
    ]
}

/// Signed by a key of one's own that has the issuer's `kid`.
fn namesake(gate: &Gate) -> SigningKey {
    let pem = Issuer::es256().key.private_pem().unwrap();
    let kid = gate.issuer.key.kid().map(str::to_owned);
    SigningKey::from_pem(pem.as_bytes()).unwrap().with_kid(kid)
}

/// What everybody may know, the issuer's public key, taken for a secret (RFC 8725 section 2.1), under this header.
fn by_public_key(gate: &Gate, header: &str, claims: &str) -> String {
    assert_ne!(gate.issuer.algorithm, Algorithm::Hs256);
    let signed = format!("{}.{claims}", encode(header));
    let key = hmac::Key::new(hmac::HMAC_SHA256, gate.issuer.key.public_pem().unwrap().as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes())))
}

/// Another organization in the claims, under the old signature.
fn edited(token: &str, own: &str, victim: &str) -> String {
    let [header, claims, signature] = parts(token);
    format!("{header}.{}.{signature}", encode(&decode(&claims).replace(own, victim)))
}

fn claims_of(token: &str) -> serde_json::Value {
    serde_json::from_str(&decode(&parts(token)[1])).unwrap()
}

fn parts(token: &str) -> [String; 3] {
    token.split('.').map(str::to_owned).collect::<Vec<_>>().try_into().unwrap()
}

fn decode(part: &str) -> String {
    String::from_utf8(URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

fn encode(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(text)
}
