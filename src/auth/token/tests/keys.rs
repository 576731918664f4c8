//! Keys that are taken from configured files, and keys that are not.

use super::*;

/// Loads one issuer from a JWK Set of one key with changed members.
fn load_jwk(key: &SigningKey, algorithms: &[&str], members: Value) -> Result<Keys, String> {
    let mut jwk = jwk(key);
    for (name, value) in members.as_object().unwrap() {
        jwk[name] = value.clone();
    }
    let file = file(&json!({ "keys": [jwk] }).to_string());
    load(vec![issuer(PUBLIC, algorithms, KeySource::JwksFile(file.path().to_owned()))])
}

#[test]
fn unusable_keys_of_a_jwk_set_are_ignored_and_none_left_is_an_error() {
    let world = &*WORLD;
    let all = ["RS256", "ES256", "EdDSA"];
    let told = |key: &SigningKey, members: Value, why: &str| {
        let error = load_jwk(key, &all, members).err().unwrap();
        assert!(error.contains(why) && error.contains(PUBLIC) && error.contains("jwks_file /"), "{error}");
    };
    told(&world.rsa, json!({ "use": "enc" }), "its use is not sig");
    told(&world.rsa, json!({ "key_ops": ["encrypt"] }), "lack verify");
    told(&world.rsa, json!({ "alg": "RS512" }), "its alg is not supported");
    told(&world.rsa, json!({ "alg": "RSA-OAEP" }), "its alg is not supported");
    told(&world.rsa, json!({ "d": "AQAB" }), "private key");
    told(&world.rsa, json!({ "n": encode([0xff; 128]) }), "2048 to 8192 bits");
    told(&world.rsa, json!({ "n": encode([0xff; 1025]) }), "2048 to 8192 bits");
    told(&world.rsa, json!({ "n": "%" }), "malformed");
    told(&world.ec, json!({ "crv": "P-384" }), "its type is not supported");
    told(&world.ec, json!({ "crv": "secp256k1" }), "its type is not supported");
    told(&world.ec, json!({ "x": encode([1; 32]) }), "malformed");
    told(&world.ed, json!({ "x": encode([1; 31]) }), "malformed");
    told(&world.ed, json!({ "kty": "oct", "k": encode([1; 32]) }), "shared secret");
    told(&world.ed, json!({ "kty": "AKP" }), "its type is not supported");
    assert!(
        load_jwk(&world.ec, &["RS256"], json!({})).err().unwrap().contains("not accepted from this issuer")
    );
    let mixed =
        json!({ "keys": [{ "kty": "oct", "k": "AA" }, 7, { "kty": "EC", "crv": "P-521" }, jwk(&world.ec)] });
    let mixed = file(&mixed.to_string());
    let keys = load(vec![issuer(PUBLIC, &all, KeySource::JwksFile(mixed.path().to_owned()))]).unwrap();
    assert!(verify(&good(&world.ec), &keys, UNIX_EPOCH + Duration::from_secs(NOW)).is_ok());
}

#[test]
fn a_key_without_a_name_is_not_taken_for_a_named_one() {
    let key = &WORLD.ed;
    let keys = load_jwk(
        &SigningKey::from_pem(key.private_pem().unwrap().as_bytes()).unwrap().with_kid(None),
        &["EdDSA"],
        json!({}),
    );
    let verify = |token: &str| verify(token, keys.as_ref().unwrap(), UNIX_EPOCH + Duration::from_secs(NOW));
    assert_eq!(verify(&good(key)).err(), Some(NO_SUCH_KID));
    assert!(verify(&signed(key, r#"{"alg":"EdDSA"}"#, &good_claims(key).to_string())).is_ok());
}

#[test]
fn a_key_file_is_one_public_key_of_an_accepted_algorithm() {
    let world = &*WORLD;
    let load_pem = |text: &str, algorithms: &[&str]| {
        let file = file(text);
        load(vec![issuer(PUBLIC, algorithms, KeySource::KeyFile(file.path().to_owned()))])
    };
    let all = ["RS256", "ES256", "EdDSA"];
    for key in [&world.rsa, &world.ec, &world.ed] {
        let keys = load_pem(&key.public_pem().unwrap(), &all).unwrap();
        // What the issuer calls its only key is its own business.
        assert!(verify(&good(key), &keys, UNIX_EPOCH + Duration::from_secs(NOW)).is_ok());
        let private = load_pem(&key.private_pem().unwrap(), &all).err().unwrap();
        assert!(
            private.contains("\"PRIVATE KEY\" where \"PUBLIC KEY\"") && private.contains(PUBLIC),
            "{private}"
        );
    }
    let other = load_pem(&world.ec.public_pem().unwrap(), &["RS256"]).err().unwrap();
    assert!(other.contains("is a key for ES256, which is not in algorithms"), "{other}");
    assert!(load_pem("", &all).err().unwrap().contains("not in PEM form"));
    let missing =
        load(vec![issuer(PUBLIC, &all, KeySource::KeyFile("/does/not/exist".into()))]).err().unwrap();
    assert!(missing.contains("key_file /does/not/exist: cannot be read"), "{missing}");
}

#[test]
fn issuers_are_distinct_and_secrets_long() {
    let secret = |length| KeySource::Secret(Secret::new(vec![b's'; length]));
    assert!(load(vec![issuer("a", &["HS256"], secret(32)), issuer("b", &["HS256"], secret(32))]).is_ok());
    let twice =
        load(vec![issuer("a", &["HS256"], secret(32)), issuer("a", &["HS256"], secret(33))]).err().unwrap();
    assert!(twice.contains("configured twice"), "{twice}");
    let short = load(vec![issuer("a", &["HS256"], secret(31))]).err().unwrap();
    assert!(short.contains("at least 32 bytes") && !short.contains("sss"), "{short}");
    assert!(load(vec![issuer("a", &["RS256"], secret(32))]).err().unwrap().contains("not in algorithms"));
}
