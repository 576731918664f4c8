//! Signing in by SASL: SCRAM-SHA-256, under TLS also bound to the certificate (-PLUS), and OAUTHBEARER.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use zeroize::Zeroizing;

use super::{Login, Refusal, wrong_password};
use crate::auth::bearer;
use crate::auth::scram::{Binding, ScramError, ServerFirst, Verifier};
use crate::auth::token::{MAX_TOKEN_BYTES, VerifiedClaims};
use crate::session::desk;
use crate::wire::frame::split_cstr;
use crate::wire::report::{Report, Sqlstate};
use crate::wire::violation::Violation;
use crate::wire::{speak, tag};

const PLAIN: &str = "SCRAM-SHA-256";
const PLUS: &str = "SCRAM-SHA-256-PLUS";

/// A SASL message is far shorter.
const MAX_SASL_MESSAGE: usize = 4096;

/// Who a client turned out to be.
pub(super) enum Proof {
    /// It knows the password.
    Password,
    /// It has a good token.
    Token(Box<VerifiedClaims>),
}

impl Login {
    /// Has the client choose one of the mechanisms that its user may sign in by: SCRAM with this verifier, or a token.
    pub(super) async fn sasl(
        &mut self,
        verifier: Option<&Verifier>,
        by_token: bool,
    ) -> Result<Proof, Refusal> {
        let end_point = self.shown.as_ref().and_then(|shown| shown.end_point.clone());
        let mut mechanisms = Vec::new();
        if by_token {
            self.demand_encryption()?;
            mechanisms.push(bearer::MECHANISM);
        }
        if verifier.is_some() {
            mechanisms.extend(end_point.is_some().then_some(PLUS));
            mechanisms.push(PLAIN);
        }
        speak::request_sasl(&mechanisms, &mut self.out);
        self.send().await?;
        let limit = if by_token { MAX_TOKEN_BYTES + bearer::MAX_AROUND } else { MAX_SASL_MESSAGE };
        let initial = Zeroizing::new(self.password_message(limit).await?);
        let (mechanism, data) = sasl_initial(&initial)?;
        if by_token && mechanism == bearer::MECHANISM.as_bytes() {
            return Ok(Proof::Token(Box::new(self.bearer(data).await?)));
        }
        let verifier = verifier.ok_or(Violation::Malformed(tag::PASSWORD))?;
        let binding = match (end_point, mechanism) {
            (Some(end_point), name) if name == PLUS.as_bytes() => Binding::EndPoint(end_point),
            (Some(_), name) if name == PLAIN.as_bytes() => Binding::Declined,
            (None, name) if name == PLAIN.as_bytes() => Binding::NotOffered,
            _ => return Err(Violation::Malformed(tag::PASSWORD).into()),
        };
        self.scram(verifier, &binding, data).await?;
        Ok(Proof::Password)
    }

    async fn scram(&mut self, verifier: &Verifier, binding: &Binding, first: &[u8]) -> Result<(), Refusal> {
        let nonce = nonce().ok_or_else(|| Report::new(Sqlstate::INTERNAL, "no random bytes"))?;
        let user = self.message.user.clone();
        let refused = |error: ScramError| refusal(&user, error);
        let (exchange, server_first) =
            ServerFirst::start(first, binding, verifier, &nonce).map_err(refused)?;
        speak::sasl_continue(server_first, &mut self.out);
        self.send().await?;
        let client_final = self.password_message(MAX_SASL_MESSAGE).await?;
        let server_final = exchange.finish(&client_final).map_err(refused)?;
        speak::sasl_final(server_final, &mut self.out);
        Ok(())
    }

    /// A token by OAUTHBEARER. One that is refused, or that the client has yet to get, is answered by where tokens come
    /// from; the client acknowledges that, and hears the rest as an error.
    async fn bearer(&mut self, message: &[u8]) -> Result<VerifiedClaims, Refusal> {
        let gate = self.gate.clone();
        let malformed = |error: bearer::Malformed| {
            Refusal::told(
                Report::new(Sqlstate::PROTOCOL_VIOLATION, "malformed OAUTHBEARER message"),
                "token_refused",
                error.to_string(),
            )
        };
        let refused = match bearer::token(message).map_err(malformed)? {
            Some(token) if token.len() > MAX_TOKEN_BYTES => {
                let report = Report::new(Sqlstate::LIMIT_EXCEEDED, "token refused: too long");
                return Err(Refusal::told(report, "token_refused", token.len().to_string()));
            }
            Some(token) => match desk::verified(&gate, token).await {
                Ok(verified) => return Ok(verified),
                Err(refused) => refused.into(),
            },
            None => {
                let message =
                    format!("OAuth bearer authentication failed for user \"{}\"", self.message.user);
                Refusal::told(
                    Report::new(Sqlstate::INVALID_AUTHORIZATION, message),
                    "discovery",
                    "the client has no token and was told where to get one",
                )
            }
        };
        let keys = gate.settings().keys.clone();
        let issuer = keys.issuers().next();
        let challenge = issuer.map(|issuer| bearer::challenge(&issuer.issuer, &issuer.oauth_scope));
        speak::sasl_continue(challenge.unwrap_or_default().into_bytes(), &mut self.out);
        self.send().await?;
        let answer = self.password_message(MAX_SASL_MESSAGE).await?;
        if !bearer::is_farewell(&answer) {
            return Err(malformed(bearer::Malformed("no answer to the challenge")));
        }
        Err(refused)
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

/// SASLInitialResponse: mechanism, length, data.
fn sasl_initial(body: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    let malformed = Violation::Malformed(tag::PASSWORD);
    let (mechanism, rest) = split_cstr(body).ok_or(malformed)?;
    let (length, data) = rest.split_first_chunk::<4>().ok_or(malformed)?;
    if usize::try_from(i32::from_be_bytes(*length)) != Ok(data.len()) {
        return Err(malformed);
    }
    Ok((mechanism, data))
}

/// 18 random bytes in base64, as PostgreSQL's own (`SCRAM_RAW_NONCE_LEN`).
fn nonce() -> Option<String> {
    let mut bytes = [0; 18];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    Some(STANDARD.encode(bytes))
}
