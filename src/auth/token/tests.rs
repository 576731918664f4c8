//! Good tokens of every algorithm, and every forgery that we know of.

#![allow(clippy::unwrap_used)]

mod keys;

use std::sync::LazyLock;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use serde_json::json;

use super::*;
use crate::auth::signing::{Algorithm, SigningKey};
use crate::config::{Issuer, Jwt, KeySource, Secret};

/// Unix seconds at which all tests play.
const NOW: u64 = 1_800_000_000;
const LEEWAY: u64 = 5;
/// An issuer with a JWK Set of several keys, and one with a shared secret.
const PUBLIC: &str = "https://login.example/";
const SHARED: &str = "https://shared.example/";

const NO_KEY_MADE_IT: TokenError = TokenError::Signature("no key of the issuer made it");
const NO_SUCH_KID: TokenError = TokenError::UnknownKey(0);
const NO_SUCH_ALGORITHM: TokenError = TokenError::Signature("its algorithm is not accepted from this issuer");
const WHICH_KEY: TokenError = TokenError::Signature("it does not say which of the issuer's keys made it");
const BRINGS_A_KEY: TokenError = TokenError::Malformed("its header brings a key");
const EXTENSION: TokenError = TokenError::Malformed("its header demands an extension");
const NOT_BASE64: TokenError = TokenError::Malformed("not base64url");
const NOT_JSON: TokenError = TokenError::Malformed("not a JSON object with distinct names and no NUL");
const NOT_THREE: TokenError = TokenError::Malformed("not three parts");
const WRONG_TYPE: TokenError = TokenError::Malformed("a field of its header or claims has a wrong type");
const NO_TIME: TokenError = TokenError::Malformed("a time is no number");
const STRANGE_TIME: TokenError = TokenError::Malformed("a time is out of range");

struct World {
    rsa: SigningKey,
    rsa_other: SigningKey,
    ec: SigningKey,
    ed: SigningKey,
    secret: SigningKey,
    stranger: SigningKey,
    keys: Keys,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let made = |algorithm, kid: &str| SigningKey::generate(algorithm).unwrap().with_kid(Some(kid.to_owned()));
    let rsa = made(Algorithm::Rs256, "rsa");
    let rsa_other = made(Algorithm::Rs256, "rsa-other");
    let ec = made(Algorithm::Es256, "ec");
    let ed = made(Algorithm::EdDsa, "ed");
    let secret = SigningKey::generate(Algorithm::Hs256).unwrap();
    let public = jwks(&[&rsa, &rsa_other, &ec, &ed]);
    let keys = load(vec![
        issuer(PUBLIC, &["RS256", "ES256", "EdDSA"], KeySource::JwksFile(public.path().to_owned())),
        issuer(SHARED, &["HS256"], KeySource::Secret(Secret::new(secret.private_text().to_vec()))),
    ]);
    let stranger = made(Algorithm::Rs256, "rsa");
    World { rsa, rsa_other, ec, ed, secret, stranger, keys: keys.unwrap() }
});

fn issuer(issuer: &str, algorithms: &[&str], keys: KeySource) -> Issuer {
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    Issuer {
        issuer: issuer.to_owned(),
        audience: texts(&["pgtenant"]),
        algorithms: texts(algorithms),
        oauth_scope: String::new(),
        keys,
    }
}

fn load(issuers: Vec<Issuer>) -> Result<Keys, String> {
    Keys::load(&Jwt { issuers, leeway: Duration::from_secs(LEEWAY) }).map_err(|error| error.to_string())
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn jwk(key: &SigningKey) -> Value {
    let set: Value = serde_json::from_str(&key.public_jwks()).unwrap();
    set["keys"][0].clone()
}

fn jwks(keys: &[&SigningKey]) -> tempfile::NamedTempFile {
    let keys: Vec<Value> = keys.iter().map(|key| jwk(key)).collect();
    file(&json!({ "keys": keys }).to_string())
}

/// Signs anything, with no library in between that would object.
fn signature(key: &SigningKey, message: &str) -> Vec<u8> {
    let private = key.private_text();
    let der = || pem::parse(&private[..]).unwrap().into_contents();
    let (random, message) = (SystemRandom::new(), message.as_bytes());
    match key.algorithm() {
        Algorithm::Hs256 => {
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &private), message).as_ref().to_vec()
        }
        Algorithm::Rs256 => {
            let pair = RsaKeyPair::from_pkcs8(&der()).unwrap();
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
            signature
        }
        Algorithm::Es256 => {
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der()).unwrap();
            pair.sign(&random, message).unwrap().as_ref().to_vec()
        }
        Algorithm::EdDsa => {
            let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der()).unwrap();
            pair.sign(message).as_ref().to_vec()
        }
    }
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn signed(key: &SigningKey, header: &str, claims: &str) -> String {
    let message = format!("{}.{}", encode(header), encode(claims));
    let signature = encode(signature(key, &message));
    format!("{message}.{signature}")
}

fn good_header(key: &SigningKey) -> Value {
    match key.kid() {
        Some(kid) => json!({ "alg": key.algorithm().name(), "typ": "JWT", "kid": kid }),
        None => json!({ "alg": key.algorithm().name(), "typ": "JWT" }),
    }
}

fn good_claims(key: &SigningKey) -> Value {
    let issuer = if key.algorithm() == Algorithm::Hs256 { SHARED } else { PUBLIC };
    json!({ "iss": issuer, "aud": "pgtenant", "sub": "ann", "exp": NOW + 60, "org_id": "a" })
}

/// A good token but for one claim; `None` takes the claim away.
fn with_claim(key: &SigningKey, name: &str, value: Option<Value>) -> String {
    let mut claims = good_claims(key);
    match value {
        Some(value) => claims[name] = value,
        None => drop(claims.as_object_mut().unwrap().remove(name)),
    }
    signed(key, &good_header(key).to_string(), &claims.to_string())
}

/// A good token but for one field of the header.
fn with_header(key: &SigningKey, name: &str, value: Value) -> String {
    let mut header = good_header(key);
    header[name] = value;
    signed(key, &header.to_string(), &good_claims(key).to_string())
}

fn good(key: &SigningKey) -> String {
    signed(key, &good_header(key).to_string(), &good_claims(key).to_string())
}

fn at(token: &str, now: u64) -> Result<VerifiedClaims, TokenError> {
    verify(token, &WORLD.keys, UNIX_EPOCH + Duration::from_secs(now))
}

#[track_caller]
fn refused(token: &str, why: TokenError) {
    assert_eq!(at(token, NOW).err(), Some(why), "{token:.200}");
}

#[track_caller]
fn accepted(token: &str) -> VerifiedClaims {
    at(token, NOW).unwrap()
}

#[test]
fn a_token_of_every_algorithm_is_accepted() {
    let world = &*WORLD;
    for key in [&world.secret, &world.rsa, &world.rsa_other, &world.ec, &world.ed] {
        let claims = accepted(&good(key));
        assert_eq!((claims.subject(), claims.expires_at()), ("ann", NOW + 60));
        assert_eq!(claims.issuer(), good_claims(key)["iss"]);
        assert_eq!(claims.claims()["org_id"], "a");
        accepted(&key.sign(&good_claims(key)).unwrap());
    }
}

#[test]
fn what_the_standards_allow_is_accepted() {
    let key = &WORLD.ed;
    accepted(&with_claim(key, "aud", Some(json!(["other", "pgtenant"]))));
    accepted(&with_claim(key, "nbf", Some(json!(NOW as f64 + 4.5))));
    assert_eq!(accepted(&with_claim(key, "exp", Some(json!(NOW as f64 + 0.5)))).expires_at(), NOW);
    accepted(&with_header(key, "typ", json!("at+JWT")));
    accepted(&with_header(key, "x5t", json!("AAAA")));
    accepted(&with_claim(key, "groups", Some(json!("g".repeat(16 * 1024)))));
    // The only key of its algorithm needs no name.
    accepted(&signed(key, r#"{"alg":"EdDSA"}"#, &good_claims(key).to_string()));
}

#[test]
fn other_algorithms_are_refused() {
    let world = &*WORLD;
    for alg in ["none", "None", "NONE", "nOnE", "", "rs256", "RS384", "PS256", "HS256", "ES256K", "Ed25519"] {
        let token = with_header(&world.rsa, "alg", json!(alg));
        refused(&token, NO_SUCH_ALGORITHM);
        let (message, _) = token.rsplit_once('.').unwrap();
        refused(&format!("{message}."), NO_SUCH_ALGORITHM);
    }
    refused(&with_header(&world.rsa, "alg", json!(null)), TokenError::Malformed("alg is missing or no text"));
    // Another of the issuer's algorithms, under the kid of this key.
    refused(&with_header(&world.rsa, "alg", json!("ES256")), NO_SUCH_KID);
}

#[test]
fn a_public_key_is_no_shared_secret() {
    let world = &*WORLD;
    for key in [&world.rsa, &world.ec, &world.ed] {
        let pem = key.public_pem().unwrap();
        for secret in [pem.as_bytes(), pem.trim_end().as_bytes(), &pem::parse(&pem).unwrap().into_contents()]
        {
            let forger = SigningKey::from_private(Algorithm::Hs256, secret).unwrap().with_kid(None);
            let claims = good_claims(key).to_string();
            for header in [json!({ "alg": "HS256" }), json!({ "alg": "HS256", "kid": key.kid() })] {
                refused(&signed(&forger, &header.to_string(), &claims), NO_SUCH_ALGORITHM);
            }
            // The true algorithm in the header, a MAC as the signature.
            refused(&signed(&forger, &good_header(key).to_string(), &claims), NO_KEY_MADE_IT);
        }
    }
}

#[test]
fn keys_of_others_are_refused() {
    let world = &*WORLD;
    refused(&good(&world.stranger), NO_KEY_MADE_IT);
    refused(&with_header(&world.rsa, "kid", json!("rsa-other")), NO_KEY_MADE_IT);
    refused(&with_header(&world.rsa, "kid", json!("ec")), NO_SUCH_KID);
    for kid in ["", "../../dev/null", "rsa ", "RSA", "' OR 1=1 --", "https://evil.example/key"] {
        refused(&with_header(&world.rsa, "kid", json!(kid)), NO_SUCH_KID);
    }
    refused(&with_header(&world.rsa, "kid", json!("rsa\0")), NOT_JSON);
    refused(&with_header(&world.rsa, "kid", json!(["rsa"])), TokenError::Malformed("kid is no text"));
    refused(&signed(&world.rsa, r#"{"alg":"RS256"}"#, &good_claims(&world.rsa).to_string()), WHICH_KEY);
    // A good key of one issuer under the name of another.
    refused(&with_claim(&world.rsa, "iss", Some(json!(SHARED))), NO_SUCH_ALGORITHM);
    refused(&with_claim(&world.secret, "iss", Some(json!(PUBLIC))), NO_SUCH_ALGORITHM);
}

#[test]
fn keys_and_extensions_in_the_header_are_refused() {
    let world = &*WORLD;
    let key = &world.stranger;
    refused(&with_header(key, "jwk", jwk(key)), BRINGS_A_KEY);
    refused(&with_header(key, "jku", json!("https://evil.example/jwks.json")), BRINGS_A_KEY);
    refused(&with_header(key, "x5u", json!("https://evil.example/cert.pem")), BRINGS_A_KEY);
    refused(&with_header(key, "x5c", json!(["MIIB"])), BRINGS_A_KEY);
    // Even one that the issuer signed.
    refused(&with_header(&world.rsa, "jwk", json!(null)), BRINGS_A_KEY);
    refused(&with_header(&world.rsa, "crit", json!(["exp"])), EXTENSION);
    refused(&with_header(&world.rsa, "crit", json!([])), EXTENSION);
    refused(&with_header(&world.rsa, "b64", json!(false)), EXTENSION);
    refused(&with_header(&world.rsa, "zip", json!("DEF")), EXTENSION);
    let typ = TokenError::Malformed("its typ is neither JWT nor at+jwt");
    refused(&with_header(&world.rsa, "typ", json!("dpop+jwt")), typ);
    refused(&with_header(&world.rsa, "typ", json!(1)), typ);
    refused(&with_header(&world.rsa, "cty", json!(1)), WRONG_TYPE);
}

#[test]
fn changed_tokens_are_refused() {
    let key = &WORLD.ed;
    let token = good(key);
    let (message, signature) = token.rsplit_once('.').unwrap();
    let (header, _) = message.split_once('.').unwrap();
    let mut claims = good_claims(key);
    claims["org_id"] = json!("b");
    refused(&format!("{header}.{}.{signature}", encode(claims.to_string())), NO_KEY_MADE_IT);
    refused(&format!("{message}."), TokenError::Signature("there is none"));
    refused(&format!("{message}.{}", &signature[..40]), NO_KEY_MADE_IT);
    let other_header = json!({ "kid": "ed", "alg": "EdDSA" }).to_string();
    refused(&format!("{}.{}", encode(other_header), token.split_once('.').unwrap().1), NO_KEY_MADE_IT);
    let zeros = |key: &SigningKey, length| {
        let message = good(key);
        let (message, _) = message.rsplit_once('.').unwrap();
        format!("{message}.{}", encode(vec![0; length]))
    };
    // The "psychic signature" (CVE-2022-21449), and its kin.
    refused(&zeros(&WORLD.ec, 64), NO_KEY_MADE_IT);
    refused(&zeros(&WORLD.ec, 0), TokenError::Signature("there is none"));
    refused(&zeros(&WORLD.ed, 64), NO_KEY_MADE_IT);
    refused(&zeros(&WORLD.rsa, 256), NO_KEY_MADE_IT);
}

#[test]
fn only_the_compact_form_is_read() {
    let token = good(&WORLD.ec);
    let parts: Vec<&str> = token.split('.').collect();
    refused(&format!("{token}.{}", parts[2]), NOT_THREE);
    refused(&format!("{}.{}", parts[0], parts[1]), NOT_THREE);
    refused("", NOT_THREE);
    refused("..", NOT_JSON);
    refused(&format!("{token}="), NOT_BASE64);
    refused(&format!("{}=.{}.{}", parts[0], parts[1], parts[2]), NOT_BASE64);
    refused(&format!("{}.{}.+/{}", parts[0], parts[1], &parts[2][2..]), NOT_BASE64);
    for space in [" ", "\n", "\t", "\r\n", "\0"] {
        refused(&format!("{token}{space}"), NOT_BASE64);
        refused(&format!("{space}{token}"), NOT_BASE64);
    }
    refused(&format!("Bearer {token}"), NOT_BASE64);
    refused(&"a".repeat(MAX_TOKEN_BYTES + 1), TokenError::Malformed("too long"));
    let room = MAX_TOKEN_BYTES - token.len();
    refused(&with_claim(&WORLD.ec, "x", Some(json!("x".repeat(room)))), TokenError::Malformed("too long"));
}

#[test]
fn json_with_two_readings_is_refused() {
    let key = &WORLD.ed;
    let (header, claims) = (good_header(key).to_string(), good_claims(key).to_string());
    let twice = |json: &str, more: &str| json.replacen('{', &format!("{{{more},"), 1);
    refused(&signed(key, &twice(&header, r#""alg":"none""#), &claims), NOT_JSON);
    refused(&signed(key, &header, &twice(&claims, r#""sub":"bob""#)), NOT_JSON);
    refused(&signed(key, &header, &twice(&claims, r#""s\u0075b":"bob""#)), NOT_JSON);
    refused(&signed(key, &header, &twice(&claims, r#""app":{"org":1,"org":2}"#)), NOT_JSON);
    for payload in ["", "[]", "null", "\"text\"", "{", &format!("{claims}{claims}"), &"[".repeat(20_000)] {
        refused(&signed(key, &header, payload), NOT_JSON);
    }
    refused(&format!("{}.{}.AAAA", encode(&header), encode(b"{\"iss\":\"\xff\"}")), NOT_JSON);
}

#[test]
fn the_issuer_is_exactly_a_configured_one() {
    let key = &WORLD.rsa;
    let unknown = TokenError::Issuer("iss is not configured");
    refused(&with_claim(key, "iss", None), TokenError::Issuer("iss is missing"));
    refused(&with_claim(key, "iss", Some(json!([PUBLIC]))), TokenError::Issuer("iss is no text"));
    refused(&with_claim(key, "iss", Some(json!(null))), TokenError::Issuer("iss is no text"));
    for near in [
        "https://login.example",
        "https://login.example/x",
        "HTTPS://login.example/",
        "",
        "https://evil.example/",
    ] {
        refused(&with_claim(key, "iss", Some(json!(near))), unknown);
    }
}

#[test]
fn the_audience_must_name_us() {
    let key = &WORLD.rsa;
    let (others, strange) = (
        TokenError::Audience("aud names others"),
        TokenError::Audience("aud is neither text nor an array of texts"),
    );
    refused(&with_claim(key, "aud", None), TokenError::Audience("aud is missing"));
    refused(&with_claim(key, "aud", Some(json!("other"))), others);
    refused(&with_claim(key, "aud", Some(json!("PGTENANT"))), others);
    refused(&with_claim(key, "aud", Some(json!(["other"]))), others);
    refused(&with_claim(key, "aud", Some(json!([]))), others);
    refused(&with_claim(key, "aud", Some(json!(["pgtenant", 1]))), strange);
    refused(&with_claim(key, "aud", Some(json!([["pgtenant"]]))), strange);
    refused(&with_claim(key, "aud", Some(json!({ "pgtenant": true }))), strange);
}

#[test]
fn expiry_is_demanded_and_forgiven_by_the_leeway_only() {
    let key = &WORLD.ed;
    refused(&with_claim(key, "exp", None), TokenError::Malformed("exp is missing"));
    let text = NOW.to_string();
    for strange in [json!(text), json!(null), json!(true), json!("NaN")] {
        refused(&with_claim(key, "exp", Some(strange)), NO_TIME);
    }
    refused(&with_claim(key, "exp", Some(json!([NOW + 60]))), WRONG_TYPE);
    for strange in [json!(-1), json!(-0.5), json!(u64::MAX), json!(1e300), json!((NOW + 60) * 1000)] {
        refused(&with_claim(key, "exp", Some(strange)), STRANGE_TIME);
    }
    for never_json in ["NaN", "Infinity", "1e999", "-1e999"] {
        let claims = good_claims(key).to_string().replace(&(NOW + 60).to_string(), never_json);
        refused(&signed(key, &good_header(key).to_string(), &claims), NOT_JSON);
    }
    refused(&with_claim(key, "exp", Some(json!(0))), TokenError::Expired { seconds_ago: NOW });
    let token = with_claim(key, "exp", Some(json!(NOW)));
    assert!(at(&token, NOW + LEEWAY).is_ok());
    assert_eq!(at(&token, NOW + LEEWAY + 1).err(), Some(TokenError::Expired { seconds_ago: LEEWAY + 1 }));
}

#[test]
fn a_token_is_not_valid_before_its_time() {
    let key = &WORLD.ed;
    let token = with_claim(key, "nbf", Some(json!(NOW)));
    assert!(at(&token, NOW - LEEWAY).is_ok());
    assert_eq!(
        at(&token, NOW - LEEWAY - 1).err(),
        Some(TokenError::NotYetValid { seconds_left: LEEWAY + 1 })
    );
    refused(&with_claim(key, "nbf", Some(json!("soon"))), NO_TIME);
    refused(&with_claim(key, "nbf", Some(json!(null))), NO_TIME);
    refused(&with_claim(key, "nbf", Some(json!(-1))), STRANGE_TIME);
    let before_1970 = verify(&good(key), &WORLD.keys, UNIX_EPOCH - Duration::from_secs(9));
    assert_eq!(before_1970.err(), Some(TokenError::NotYetValid { seconds_left: 9 }));
}

#[test]
fn the_subject_is_plain_text() {
    let key = &WORLD.ed;
    refused(&with_claim(key, "sub", None), TokenError::Malformed("sub is missing"));
    refused(&with_claim(key, "sub", Some(json!(""))), TokenError::Malformed("sub is empty"));
    for strange in [json!(42), json!(null)] {
        refused(&with_claim(key, "sub", Some(strange)), TokenError::Malformed("sub is no text"));
    }
    refused(&with_claim(key, "sub", Some(json!(["ann"]))), WRONG_TYPE);
    refused(&with_claim(key, "jti", Some(json!(123))), TokenError::Malformed("jti is no text"));
    accepted(&with_claim(key, "jti", Some(json!("123"))));
    refused(&with_claim(key, "sub", Some(json!("a\0b"))), NOT_JSON);
    for control in ["a\nb", "a\u{7f}", "a\u{9b}b"] {
        refused(
            &with_claim(key, "sub", Some(json!(control))),
            TokenError::Malformed("sub has control characters"),
        );
    }
    assert_eq!(accepted(&with_claim(key, "sub", Some(json!("änn 안")))).subject(), "änn 안");
}

#[test]
fn the_client_is_told_one_word_and_nobody_the_token() {
    let key = &WORLD.rsa;
    let token = with_claim(key, "exp", Some(json!(NOW - 75)));
    let error = at(&token, NOW).err().unwrap();
    assert_eq!(
        (error.to_string().as_str(), error.detail().as_str()),
        ("token refused: expired", "it expired 75 s ago")
    );
    let words = [
        (TokenError::NotYetValid { seconds_left: 1 }, "not yet valid"),
        (NO_KEY_MADE_IT, "signature"),
        (TokenError::Audience(""), "audience"),
        (TokenError::Issuer(""), "issuer"),
        (NOT_BASE64, "malformed"),
    ];
    for (error, word) in words {
        assert_eq!(error.to_string(), format!("token refused: {word}"));
    }
    assert!(!format!("{:?}", accepted(&good(key))).contains("org_id"));
}
