//! From claims to a context.
#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;
use crate::auth::signing::{Algorithm, SigningKey};
use crate::auth::token;
use crate::config::{Issuer, Jwt, KeySource, Secret};

const ORG: &str = "018f6f3e-0000-7000-8000-000000000001";

/// Only a real token makes verified claims, so the tests make one.
fn verified(mut claims: Value) -> VerifiedClaims {
    let key = SigningKey::generate(Algorithm::Hs256).unwrap();
    for (name, value) in
        [("iss", json!("i")), ("aud", json!("a")), ("sub", json!("ada")), ("exp", json!(2_000_000_000))]
    {
        claims[name] = value;
    }
    let issuer = Issuer {
        issuer: "i".to_owned(),
        audience: vec!["a".to_owned()],
        algorithms: vec!["HS256".to_owned()],
        oauth_scope: String::new(),
        keys: KeySource::Secret(Secret::new(key.private_text().to_vec())),
    };
    let keys = token::Keys::load(&Jwt { issuers: vec![issuer], leeway: Duration::ZERO }).unwrap();
    token::verify(&key.sign(&claims).unwrap(), &keys, UNIX_EPOCH).unwrap()
}

fn mapping(id_type: IdType) -> Mapping {
    let claims = ClaimPaths {
        organization: "org_id".to_owned(),
        project: "project_id".to_owned(),
        subject: "sub".to_owned(),
        roles: "roles".to_owned(),
    };
    Mapping { claims, id_type, leeway: Duration::from_secs(5), settings: Vec::new() }
}

fn resolve(id_type: IdType, claims: Value) -> Result<TenantContext, MappingError> {
    mapping(id_type).resolve(&verified(claims), &Wanted::default())
}

#[test]
fn a_token_becomes_a_context() {
    let context = resolve(IdType::Uuid, json!({ "org_id": ORG.to_uppercase(), "roles": ["admin"] })).unwrap();
    assert_eq!(context.organization().as_str(), ORG, "one spelling per id");
    assert!(context.project().is_none());
    assert_eq!((context.subject(), context.expires_at()), ("ada", 2_000_000_005));
    let payload: Value = serde_json::from_str(context.payload()).unwrap();
    assert_eq!((&payload["subject"], &payload["roles"]), (&json!("ada"), &json!(["admin"])));
}

#[test]
fn ids_must_be_of_the_configured_type() {
    for (id_type, id) in [
        (IdType::Uuid, json!("x")),
        (IdType::Uuid, json!(format!("{ORG}0"))),
        (IdType::Uuid, json!(format!("{{{ORG}}}"))),
        (IdType::Uuid, json!(7)),
        (IdType::Uuid, json!({ "id": ORG })),
        (IdType::Uuid, json!(true)),
        (IdType::Bigint, json!(1.5)),
        (IdType::Bigint, json!("9223372036854775808")),
        (IdType::Bigint, json!("1; drop")),
        (IdType::Text, json!("")),
        (IdType::Text, json!("a\nb")),
        (IdType::Text, json!("a\u{1}b")),
        (IdType::Text, json!("x".repeat(256))),
    ] {
        let refused = resolve(id_type, json!({ "org_id": id }));
        assert!(matches!(refused, Err(MappingError::Malformed { .. })), "{id_type:?} {id}");
    }
    assert!(matches!(resolve(IdType::Uuid, json!({})), Err(MappingError::Missing { .. })));
    assert!(matches!(resolve(IdType::Uuid, json!({ "org_id": null })), Err(MappingError::Missing { .. })));
    assert_eq!(resolve(IdType::Bigint, json!({ "org_id": "007" })).unwrap().organization().as_str(), "7");
    assert_eq!(resolve(IdType::Bigint, json!({ "org_id": 7 })).unwrap().organization().as_str(), "7");
}

#[test]
fn one_of_several_is_chosen_at_start_up_and_never_one_outside() {
    let other = ORG.replace("01", "02");
    let claims = json!({ "org_id": [ORG, other] });
    let choose = |wanted: &str| {
        let wanted = Wanted { organization: Some(wanted.to_owned()), project: None, by_oauth: false };
        mapping(IdType::Uuid).resolve(&verified(claims.clone()), &wanted)
    };
    assert_eq!(choose(&other).unwrap().organization().as_str(), other);
    assert!(matches!(choose(&ORG.replace("01", "03")), Err(MappingError::Outside { .. })));
    assert!(matches!(choose("x"), Err(MappingError::Outside { .. })));
    assert!(matches!(resolve(IdType::Uuid, claims.clone()), Err(MappingError::Ambiguous { .. })));
    assert!(matches!(resolve(IdType::Uuid, json!({ "org_id": [] })), Err(MappingError::Missing { .. })));
    assert!(resolve(IdType::Uuid, json!({ "org_id": [ORG] })).is_ok());
    // A list of no projects grants no project; it must not read as "the whole organization".
    assert!(resolve(IdType::Uuid, json!({ "org_id": ORG, "project_id": [] })).is_err());
}

#[test]
fn claims_are_found_along_dots_and_roles_must_be_texts() {
    let mut mapping = mapping(IdType::Uuid);
    mapping.claims.organization = "tenant.org".to_owned();
    let nested = verified(json!({ "tenant": { "org": ORG } }));
    assert!(mapping.resolve(&nested, &Wanted::default()).is_ok());
    mapping.claims.organization = "https://x.example/org.id".to_owned();
    let named = verified(json!({ "https://x.example/org.id": ORG }));
    assert!(mapping.resolve(&named, &Wanted::default()).is_ok());
    assert!(matches!(
        resolve(IdType::Uuid, json!({ "org_id": ORG, "roles": [1] })),
        Err(MappingError::Roles { .. })
    ));
}
