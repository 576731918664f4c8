//! Signing in by SCRAM-SHA-256, under TLS also bound to the certificate: SCRAM-SHA-256-PLUS.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Login, Refusal, wrong_password};
use crate::auth::scram::{Binding, ScramError, ServerFirst, Verifier};
use crate::wire::frame::split_cstr;
use crate::wire::report::{Report, Sqlstate};
use crate::wire::violation::Violation;
use crate::wire::{speak, tag};

const PLAIN: &str = "SCRAM-SHA-256";
const PLUS: &str = "SCRAM-SHA-256-PLUS";

/// A SASL message is far shorter.
const MAX_SASL_MESSAGE: usize = 4096;

impl Login {
    /// Whether the client knows the password of the user that it named.
    pub(super) async fn scram(&mut self, verifier: &Verifier) -> Result<(), Refusal> {
        let end_point = self.shown.as_ref().and_then(|shown| shown.end_point.clone());
        let mechanisms: &[&str] = if end_point.is_some() { &[PLUS, PLAIN] } else { &[PLAIN] };
        speak::request_sasl(mechanisms, &mut self.out);
        self.send().await?;
        let initial = self.password_message(MAX_SASL_MESSAGE).await?;
        let (binding, client_first) = sasl_initial(&initial, end_point)?;
        let nonce = nonce().ok_or_else(|| Report::new(Sqlstate::INTERNAL, "no random bytes"))?;
        let user = self.message.user.clone();
        let refused = |error: ScramError| refusal(&user, error);
        let (exchange, server_first) =
            ServerFirst::start(client_first, &binding, verifier, &nonce).map_err(refused)?;
        speak::sasl_continue(server_first, &mut self.out);
        self.send().await?;
        let client_final = self.password_message(MAX_SASL_MESSAGE).await?;
        let server_final = exchange.finish(&client_final).map_err(refused)?;
        speak::sasl_final(server_final, &mut self.out);
        Ok(())
    }
}

/// In PostgreSQL's words and codes.
fn refusal(role: &str, error: ScramError) -> Refusal {
    let (code, message) = match error {
        ScramError::WrongPassword => return wrong_password(role, "wrong password"),
        ScramError::Malformed(_) => (Sqlstate::PROTOCOL_VIOLATION, "malformed SCRAM message"),
        ScramError::Downgrade => (Sqlstate::INVALID_AUTHORIZATION, "SCRAM channel binding negotiation error"),
        ScramError::WrongBinding => (Sqlstate::INVALID_AUTHORIZATION, "SCRAM channel binding check failed"),
    };
    let mut report = Report::new(code, message);
    if error == ScramError::Downgrade {
        report = report.detail(
            "The client supports SCRAM channel binding but thinks the server does not. However, this server does \
             support channel binding.",
        );
    }
    Refusal::told(report, "wrong_password", error.to_string())
}

/// SASLInitialResponse: mechanism, length, data. `end_point` is what may be bound to.
fn sasl_initial(body: &[u8], end_point: Option<Vec<u8>>) -> Result<(Binding, &[u8]), Violation> {
    let malformed = Violation::Malformed(tag::PASSWORD);
    let (mechanism, rest) = split_cstr(body).ok_or(malformed)?;
    let (length, data) = rest.split_first_chunk::<4>().ok_or(malformed)?;
    if usize::try_from(i32::from_be_bytes(*length)) != Ok(data.len()) {
        return Err(malformed);
    }
    let binding = match (end_point, mechanism) {
        (Some(end_point), name) if name == PLUS.as_bytes() => Binding::EndPoint(end_point),
        (Some(_), name) if name == PLAIN.as_bytes() => Binding::Declined,
        (None, name) if name == PLAIN.as_bytes() => Binding::NotOffered,
        _ => return Err(malformed),
    };
    Ok((binding, data))
}

/// 18 random bytes in base64, as PostgreSQL's own (`SCRAM_RAW_NONCE_LEN`).
fn nonce() -> Option<String> {
    let mut bytes = [0; 18];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    Some(STANDARD.encode(bytes))
}
