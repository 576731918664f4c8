//! Sign-ins that fail, beside PostgreSQL itself: the same SQLSTATE for the same mistake, and nothing for strangers.

use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};

use crate::harness::authority::{Authority, direct, with_tls};
use crate::harness::client::{Raw, error_fields, message, psql, startup};
use crate::harness::gate::Gate;
use crate::harness::postgres::{self, password_of};

/// What a sign-in by SCRAM comes to: SQLSTATE and message, or none if it succeeds.
async fn outcome(port: u16, packet: &[u8], password: &str) -> Option<(String, String)> {
    let mut raw = Raw::connect_to(port).await;
    raw.send(packet).await;
    let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
    loop {
        let (kind, body) = raw.read_message().await.expect("a word");
        match (kind, body.get(..4).map_or(0, |code| u32::from_be_bytes(code.try_into().unwrap()))) {
            (b'E', _) => return Some(error_fields(&body)),
            (b'Z', _) => return None,
            (b'R', 10) => {
                let first = scram.message();
                let length = u32::try_from(first.len()).unwrap().to_be_bytes();
                let first = [SCRAM_SHA_256.as_bytes(), b"\0", &length, first].concat();
                raw.send(&message(b'p', &first)).await;
            }
            (b'R', 11) => {
                scram.update(&body[4..]).unwrap();
                let last = message(b'p', scram.message());
                raw.send(&last).await;
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn the_same_mistakes_have_the_same_codes() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).set("databases", &database.name, "{ server = \"main\" }").run().await;
    let (right, own) = (password_of("plain"), database.name.as_str());
    let packet = |text: String| startup(0x0003_0000, &[text.as_bytes(), b"\0"].concat());
    let sign_in = |user: &str, database: &str| packet(format!("user\0{user}\0database\0{database}\0"));
    for (packet, password, expected) in [
        (sign_in("plain", own), right.as_str(), None),
        (sign_in("plain", own), "wrong", Some("28P01")),
        (sign_in("plain", own), "", Some("28P01")),
        (sign_in("nobody", own), &right, Some("28P01")),
        (sign_in("nobody", "nowhere"), &right, Some("28P01")),
        (sign_in("plain", "nowhere"), "wrong", Some("28P01")),
        (sign_in("plain", "nowhere"), &right, Some("3D000")),
        (packet("user\0plain\0".to_owned()), &right, Some("3D000")), // no database: named as the user
        (packet(format!("database\0{own}\0")), &right, Some("28000")),
        (packet(format!("user\0\0database\0{own}\0")), &right, Some("28000")),
        (packet("user\0plain\0replication\0perhaps\0".to_owned()), &right, Some("22023")),
        (startup(0x0004_0000, b"user\0plain\0\0"), &right, Some("0A000")),
        (startup(0x0003_0000, b"user\0plain"), &right, Some("08P01")),
        (startup(0x0003_0000, b"user\0plain\0\0x"), &right, Some("08P01")),
    ] {
        let told = outcome(database.port, &packet, password).await;
        let ours = outcome(gate.port(), &packet, password).await;
        let code = |told: &Option<(String, String)>| told.as_ref().map(|(code, _)| code.clone());
        assert_eq!(code(&told).as_deref(), expected, "PostgreSQL: {packet:?} {told:?}");
        assert_eq!(code(&ours).as_deref(), expected, "{packet:?} {ours:?}");
        if expected == Some("28P01") {
            assert_eq!(ours, told, "to the letter");
        }
    }
}

/// What comes in place of a password.
#[tokio::test]
async fn no_password_is_a_wrong_one() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).role("reports", &["jwt", "scram"], "optional").run().await;
    for role in ["app", "reports"] {
        let mut raw = Raw::connect(&gate).await;
        raw.startup(role, "app", &[]).await;
        raw.password("").await;
        let told = raw.expect_error().await;
        assert_eq!(told, ("28P01".to_owned(), "empty password returned by client".to_owned()));
    }
    // libpq has none to send.
    let (status, _, err) = psql(&gate, "app", "", &["-c", "SELECT 1"]).await;
    assert!(!status.success() && err.contains("no password supplied"), "{err}");
    for (port, name) in [(gate.port(), "app"), (database.port, database.name.as_str())] {
        for instead in [message(b'Q', b"SELECT 1\0"), message(b'p', b"SCRAM-SHA-1\0\0\0\0\0")] {
            let mut raw = Raw::connect_to(port).await;
            raw.startup("plain", name, &[]).await;
            raw.send(&instead).await;
            assert_eq!(raw.expect_error().await.0, "08P01", "{instead:?}");
        }
    }
}

/// A stranger's exchange looks like a user's: the same mechanism, the same salt each time, as many rounds.
#[tokio::test]
async fn who_exists_cannot_be_told_from_an_exchange() {
    let database = postgres::shared().database().await;
    let gate = Gate::with(&database).run().await;
    let challenge = async |user: &str| {
        let mut raw = Raw::connect(&gate).await;
        raw.startup(user, "app", &[]).await;
        let (_, offer) = raw.read_message().await.unwrap();
        raw.send(&message(b'p', b"SCRAM-SHA-256\0\0\0\0\x0bn,,n=,r=abc")).await;
        let (kind, body) = raw.read_message().await.unwrap();
        assert_eq!(kind, b'R');
        let text = String::from_utf8(body[4..].to_vec()).unwrap();
        let (nonce, rest) = text.split_once(',').unwrap();
        (offer, nonce.len(), rest.to_owned())
    };
    let (plain, nobody) = (challenge("plain").await, challenge("nobody").await);
    assert_eq!((&plain.0, plain.1, plain.2.len()), (&nobody.0, nobody.1, nobody.2.len()));
    assert_eq!(challenge("nobody").await.2, nobody.2);
    assert_ne!(challenge("noone").await.2, nobody.2);
}

/// Beyond `max_clients` a client hears why inside TLS, as it can: in clear libpq would not believe it.
#[tokio::test]
async fn too_many_clients_hear_so_inside_tls() {
    let (authority, database) = (Authority::new(), postgres::shared().database().await);
    let gate = with_tls(Gate::with(&database), &authority.issue(&["localhost"]))
        .set("listen", "max_clients", "1")
        .run()
        .await;
    let alpn: &[&[u8]] = &[b"postgresql"];
    let mut first = Raw::over(direct(&gate, authority.client(alpn, None)).await.unwrap());
    first.sign_in("plain", "app", &password_of("plain")).await;
    for mode in ["prefer", "require"] {
        let words = format!("dbname=app sslmode={mode}");
        let (status, _, err) =
            psql(&gate, "plain", &password_of("plain"), &["-d", &words, "-c", "SELECT 1"]).await;
        assert!(!status.success() && err.contains("sorry, too many clients already"), "{mode}: {err}");
    }
    let mut second = Raw::over(direct(&gate, authority.client(alpn, None)).await.unwrap());
    second.startup("plain", "app", &[]).await;
    assert_eq!(second.expect_error().await.0, "53300");
    assert_eq!(first.query("SELECT 1").await.rows.len(), 1);
}
