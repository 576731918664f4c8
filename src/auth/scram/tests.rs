//! The server's side of SCRAM against a client that others wrote.

#![allow(clippy::unwrap_used)]

use super::*;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use proptest::prelude::*;

/// RFC 7677 section 3: salt and exchange for the password "pencil".
const RFC_SALT: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";

/// The client of rust-postgres as an independent party.
fn sign_in(verifier: &Verifier, password: &[u8]) -> Result<(), ScramError> {
    sign_in_bound(verifier, password, ChannelBinding::unsupported(), &Binding::NotOffered)
}

fn sign_in_bound(
    verifier: &Verifier,
    password: &[u8],
    theirs: ChannelBinding,
    ours: &Binding,
) -> Result<(), ScramError> {
    let mut client = ScramSha256::new(password, theirs);
    let (exchange, server_first) = ServerFirst::start(client.message(), ours, verifier, "servernonce")?;
    client.update(&server_first).unwrap();
    let server_final = exchange.finish(client.message())?;
    client.finish(&server_final).unwrap();
    Ok(())
}

/// As PostgreSQL writes it (`pg_authid.rolpassword`).
fn written(verifier: &Verifier) -> String {
    format!(
        "SCRAM-SHA-256${}:{}${}:{}",
        verifier.iterations,
        STANDARD.encode(&verifier.salt),
        STANDARD.encode(verifier.stored_key),
        STANDARD.encode(verifier.server_key)
    )
}

fn start(first: &[u8]) -> Result<Exchange, ScramError> {
    start_bound(first, &Binding::NotOffered)
}

fn start_bound(first: &[u8], binding: &Binding) -> Result<Exchange, ScramError> {
    ServerFirst::start(first, binding, &Verifier::derive(b"x", b"salt", 1), "s").map(|(exchange, _)| exchange)
}

#[test]
fn the_right_password_signs_in_and_no_other() {
    // A Roman nine is the letters IX to SASLprep; a tab is prohibited by it, so that the raw bytes count.
    for password in ["hunter2", "pässwörd", "\u{2168}", "a\tb", ""] {
        let verifier = Verifier::from_secret(password.as_bytes());
        assert_eq!(sign_in(&verifier, password.as_bytes()), Ok(()), "{password}");
        assert_eq!(sign_in(&verifier, b"wrong"), Err(ScramError::WrongPassword), "{password}");
        assert!(verifier.matches(password.as_bytes()) && !verifier.matches(b"wrong"));
    }
    assert_eq!(sign_in(&Verifier::from_secret("\u{2168}".as_bytes()), b"IX"), Ok(()));
    assert_eq!(sign_in(&Verifier::from_secret(b"\xff\xfe"), b"\xff\xfe"), Ok(()), "not UTF-8");
}

#[test]
fn the_exchange_of_rfc_7677_comes_out_to_the_byte() {
    let verifier = Verifier::derive(b"pencil", &STANDARD.decode(RFC_SALT).unwrap(), 4096);
    let nonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    let (exchange, first) =
        ServerFirst::start(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO", &Binding::NotOffered, &verifier, nonce)
            .unwrap();
    let expected = format!("r=rOprNGfwEbeRWgbNEkqO{nonce},s={RFC_SALT},i=4096");
    assert_eq!(first, expected.as_bytes());
    let client_final =
        format!("c=biws,r=rOprNGfwEbeRWgbNEkqO{nonce},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
    let server_final = exchange.finish(client_final.as_bytes()).unwrap();
    assert_eq!(server_final, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
}

#[test]
fn a_written_verifier_is_understood_and_what_is_none_is_a_password() {
    let text = written(&Verifier::derive(b"pencil", &STANDARD.decode(RFC_SALT).unwrap(), 4096));
    assert_eq!(sign_in(&Verifier::from_secret(text.as_bytes()), b"pencil"), Ok(()));
    assert!(sign_in(&Verifier::from_secret(text.as_bytes()), text.as_bytes()).is_err());
    for close in
        [text.replace("$4096", "$x"), text.replace("4096:", "0:"), text.replace("256$", "1$"), text + "="]
    {
        assert_eq!(sign_in(&Verifier::from_secret(close.as_bytes()), close.as_bytes()), Ok(()), "{close}");
    }
}

#[test]
fn a_stranger_has_a_salt_of_its_own_and_no_password() {
    let strangers = Strangers::default();
    let salt = |user: &str| strangers.verifier(user).salt;
    assert!(salt("a") == salt("a") && salt("a") != salt("b") && salt("a").len() == SALT_BYTES);
    assert_ne!(Strangers::default().verifier("a").salt, salt("a"), "another process, another salt");
    for password in [&b""[..], b"a", b"password"] {
        assert_eq!(sign_in(&strangers.verifier("a"), password), Err(ScramError::WrongPassword));
    }
}

#[test]
fn a_costly_verifier_is_not_checked_in_clear() {
    let mut verifier = Verifier::derive(b"x", b"salt", 1);
    assert!(verifier.matches(b"x"));
    verifier.iterations = MAX_CLEARTEXT_ITERATIONS + 1;
    assert!(!verifier.matches(b"x"));
    assert!(Verifier::parse(&written(&verifier)).is_some());
}

#[test]
fn first_messages_that_ask_for_more_or_less_are_refused() {
    assert!(start(b"n,,n=,r=abc").is_ok() && start(b"y,,n=ignored,r=abc,x=extension").is_ok());
    let too_long = format!("n,,n=,r={}", "a".repeat(MAX_MESSAGE_BYTES));
    let refused: [&[u8]; 11] = [
        b"p=tls-server-end-point,,n=,r=abc",
        b"n,a=root,n=,r=abc",
        b"n,,m=x,n=,r=abc",
        b"n,,n=,r=",
        b"n,,n=,r=a b",
        b"n,,r=abc",
        b"n,,n=",
        b"n",
        b"",
        b"n,,n=\xff,r=abc",
        too_long.as_bytes(),
    ];
    for first in refused {
        assert!(
            matches!(start(first), Err(ScramError::Malformed(_))),
            "{:?}",
            String::from_utf8_lossy(first)
        );
    }
}

#[test]
fn downgrades_and_foreign_exchanges_are_refused() {
    let proof = "p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let finish = |first: &[u8], last: String| start(first).unwrap().finish(last.as_bytes()).unwrap_err();
    let binding = ScramError::WrongBinding;
    assert_eq!(
        finish(b"n,,n=,r=abc", format!("c=biws,r=abcX,{proof}")),
        ScramError::Malformed("nonce does not match")
    );
    assert_eq!(
        finish(b"n,,n=,r=abc", format!("c=biws,r=abc,{proof}")),
        ScramError::Malformed("nonce does not match")
    );
    assert_eq!(finish(b"y,,n=,r=abc", format!("c=biws,r=abcs,{proof}")), binding);
    assert_eq!(finish(b"n,,n=,r=abc", format!("c=eSws,r=abcs,{proof}")), binding);
    assert_eq!(finish(b"n,,n=,r=abc", format!("c=biws,r=abcs,{proof}")), ScramError::WrongPassword);
    for last in
        ["c=biws,r=abcs", "c=biws,r=abcs,p=", "c=biws,r=abcs,p=AAAA", "r=abcs,c=biws,p=AAAA", "", "p=,p="]
    {
        assert!(matches!(finish(b"n,,n=,r=abc", last.to_owned()), ScramError::Malformed(_)), "{last}");
    }
}

#[test]
fn an_exchange_is_bound_to_the_certificate_that_was_shown() {
    let verifier = Verifier::from_secret(b"hunter2");
    let end_point = |byte: u8| vec![byte; 32];
    let plus = Binding::EndPoint(end_point(1));
    let with = |theirs, ours: &Binding| sign_in_bound(&verifier, b"hunter2", theirs, ours);
    assert_eq!(with(ChannelBinding::tls_server_end_point(end_point(1)), &plus), Ok(()));
    assert_eq!(
        with(ChannelBinding::tls_server_end_point(end_point(2)), &plus),
        Err(ScramError::WrongBinding)
    );
    // A client that cannot, one that was made to believe that we cannot, and one where we really cannot.
    assert_eq!(with(ChannelBinding::unsupported(), &Binding::Declined), Ok(()));
    assert_eq!(with(ChannelBinding::unrequested(), &Binding::Declined), Err(ScramError::Downgrade));
    assert_eq!(with(ChannelBinding::unrequested(), &Binding::NotOffered), Ok(()));
    let wrong = sign_in_bound(&verifier, b"x", ChannelBinding::tls_server_end_point(end_point(1)), &plus);
    assert_eq!(wrong, Err(ScramError::WrongPassword));
}

#[test]
fn the_flag_goes_with_the_mechanism() {
    let plus = Binding::EndPoint(vec![1; 32]);
    for first in ["n", "y", "p=tls-unique", "p=tls-exporter", "p=", "p", "P=tls-server-end-point", ""] {
        let refused = start_bound(format!("{first},,n=,r=abc").as_bytes(), &plus);
        assert!(matches!(refused, Err(ScramError::Malformed(_))), "{first}");
    }
    for binding in [Binding::NotOffered, Binding::Declined] {
        let refused = start_bound(b"p=tls-server-end-point,,n=,r=abc", &binding);
        assert!(matches!(refused, Err(ScramError::Malformed(_))), "{binding:?}");
    }
    // The data is checked whole: cut, lengthened, without its header, or none.
    let header = b"p=tls-server-end-point,,";
    for data in [
        [&header[..], &[1; 31]].concat(),
        [&header[..], &[1; 33]].concat(),
        [1; 32].to_vec(),
        header.to_vec(),
        [&b"p=tls-server-end-point,a=b,"[..], &[1; 32]].concat(),
        b"n,,".to_vec(),
    ] {
        let exchange = start_bound(b"p=tls-server-end-point,,n=,r=abc", &plus).unwrap();
        let last = format!("c={},r=abcs,p={}", STANDARD.encode(&data), STANDARD.encode([0; 32]));
        assert_eq!(exchange.finish(last.as_bytes()).unwrap_err(), ScramError::WrongBinding);
    }
}

proptest! {
    #[test]
    fn no_message_panics(first in proptest::collection::vec(any::<u8>(), 0..200), last in any::<Vec<u8>>()) {
        let _ = start(&first);
        let _ = start(b"n,,n=,r=abc").unwrap().finish(&last);
    }

    #[test]
    fn nothing_that_looks_like_a_message_panics(
        first in "[nyp],(a=)?,[nm]=[ -~]{0,9},r=[ -~é]{0,30}",
        last in "c=biws,r=abcs?(,[a-z]=[ -~]{0,9})?,p=[A-Za-z0-9+/=]{0,50}",
        secret in "SCRAM-SHA-256\\$[0-9]{0,12}:[ -~]{0,30}\\$[ -~]{0,50}:[ -~]{0,50}",
    ) {
        let _ = start(first.as_bytes());
        let refused = start(b"n,,n=,r=abc").unwrap().finish(last.as_bytes());
        prop_assert!(refused.is_err());
        let _ = Verifier::parse(&secret);
    }
}
