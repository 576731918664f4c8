//! Where one client's tokens are judged: at its sign-in, and later on its connection.

use std::sync::Arc;
use std::time::SystemTime;

use super::accounts::Attendance;
use super::gate::Gate;
use crate::auth::token::{self, TokenError, VerifiedClaims};
use crate::config::{PoolMode, Role, Tenancy};
use crate::net::listen::Peer;
use crate::observe::log;
use crate::tenancy::context::{TenantContext, TenantId, Wanted};
use crate::tenancy::guard::Guard;
use crate::tenancy::token_command::{Given, TokenText};
use crate::wire::report::{Report, Sqlstate};

/// Why a token is refused.
pub(super) struct Refused {
    /// What the client is told.
    pub(super) report: Box<Report>,
    /// What the log says more; never a part of the token.
    pub(super) detail: String,
}

impl Refused {
    fn new(message: impl Into<String>, detail: impl Into<String>) -> Self {
        let report = Report::new(Sqlstate::INVALID_AUTHORIZATION, message)
            .hint("Send a current JSON Web Token of an issuer that pgtenant knows.");
        Self { report: Box::new(report), detail: detail.into() }
    }
}

/// What a token says, if it is good. Waits for the issuer's keys where it names one that is not known.
///
/// # Errors
/// It is not.
pub(super) async fn verified(gate: &Gate, token: &[u8]) -> Result<VerifiedClaims, Refused> {
    fetch_keys_for(gate, token).await;
    verify(gate, token)
}

/// The context that a token gives to who signs in as a role; none for a role without tenants. Waits likewise.
///
/// # Errors
/// The token is not good, or gives no context.
pub(super) async fn context(
    gate: &Gate,
    role: &Role,
    wanted: &Wanted,
    token: &[u8],
) -> Result<Option<TenantContext>, Refused> {
    fetch_keys_for(gate, token).await;
    resolve(gate, role, wanted, &verify(gate, token)?)
}

fn verify(gate: &Gate, token: &[u8]) -> Result<VerifiedClaims, Refused> {
    let text =
        std::str::from_utf8(token).map_err(|_| Refused::new("token refused: malformed", "not UTF-8"))?;
    token::verify(text, &gate.settings().keys, SystemTime::now()).map_err(|error| {
        if let TokenError::UnknownKey(issuer) = error {
            gate.settings().keys.wants_refresh(issuer);
        }
        Refused::new(error.to_string(), error.detail())
    })
}

/// The context that verified claims give to who signs in as a role; none for a role without tenants.
///
/// # Errors
/// They give no context.
pub(super) fn resolve(
    gate: &Gate,
    role: &Role,
    wanted: &Wanted,
    verified: &VerifiedClaims,
) -> Result<Option<TenantContext>, Refused> {
    if role.tenancy == Tenancy::None {
        return Ok(None);
    }
    let context = gate.settings().mapping.resolve(verified, wanted);
    let context =
        context.map_err(|error| Refused::new("token refused: no organization", error.to_string()))?;
    match gate.revocation(&context) {
        Some((what, _)) => Err(Refused::new("token refused: revoked", format!("its {what} is revoked"))),
        None => Ok(Some(context)),
    }
}

/// A token may be made by a key that its issuer has only just begun to use.
async fn fetch_keys_for(gate: &Gate, token: &[u8]) {
    let keys = gate.settings().keys.clone();
    if keys.are_fetched()
        && let Ok(text) = std::str::from_utf8(token)
        && let Err(TokenError::UnknownKey(issuer)) = token::verify(text, &keys, SystemTime::now())
    {
        keys.refreshed(issuer).await;
    }
}

/// Whether a client's next transaction may begin, as far as its token is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// As its context says.
    Good,
    /// It brought no token yet, and its role demands one.
    Missing,
    /// The last token that it gave was refused.
    Refused,
}

/// Whose context a client's transactions run under.
#[derive(Clone)]
pub struct Held {
    /// The context, if there is one.
    pub context: Option<Arc<TenantContext>>,
    /// Whether anything may run under it.
    pub standing: Standing,
}

impl Held {
    /// A session that was used under a context that writes has statements and functions of that time, by which it would go
    /// on writing: it does not become one that only reads. `reads`: what it has now does.
    ///
    /// # Errors
    /// It would.
    pub(super) fn suits(self, mode: PoolMode, reads: bool) -> Result<Self, Denied> {
        let is_acting = self.context.as_ref().is_some_and(|context| context.actor().is_some());
        if mode != PoolMode::Session || !is_acting || reads {
            return Ok(self);
        }
        let message = "a session that writes does not go on under a token that only reads";
        let report = Report::new(Sqlstate::NOT_SUPPORTED, message)
            .hint("Connect with the token that has the \"act\" claim.");
        Err(Denied { report, is_refused: false })
    }
}

/// One client's.
pub struct Desk {
    gate: Arc<Gate>,
    role: Arc<Role>,
    wanted: Wanted,
    peer: Peer,
    at_sign_in: Held,
}

impl Desk {
    /// For a client that has signed in with this context.
    pub(super) fn new(
        gate: Arc<Gate>,
        role: Arc<Role>,
        wanted: Wanted,
        peer: Peer,
        context: Option<Arc<TenantContext>>,
    ) -> Self {
        let is_missing = context.is_none() && role.tenancy == Tenancy::Required;
        let standing = if is_missing { Standing::Missing } else { Standing::Good };
        Self { gate, role, wanted, peer, at_sign_in: Held { context, standing } }
    }

    /// What guards the context's settings; nothing for who has no context.
    pub fn guard(&self) -> Option<Arc<Guard>> {
        (self.role.tenancy != Tenancy::None).then(|| self.gate.settings().guard.clone())
    }

    /// Counts the client as one of another organization, besides its own.
    ///
    /// # Errors
    /// That has as many as it may (53300), or asks too fast (53400).
    pub fn visits(&self, organization: &TenantId) -> Result<Attendance, Report> {
        let attendance = self.gate.accounts.enter(organization)?;
        attendance.may_begin()?;
        Ok(attendance)
    }

    /// What the client signed in with.
    pub fn at_sign_in(&self) -> &Held {
        &self.at_sign_in
    }

    /// Waits for the keys that a token command needs, where they are not known.
    pub async fn fetches_keys_for(&self, given: &Given<TokenText>) {
        if let Given::Constant(token) = given {
            fetch_keys_for(&self.gate, token.expose()).await;
        }
    }

    /// The database refused the seal of a client's context: it was tampered with, or the client tried to.
    pub fn seal_refused(&self, context: Option<&TenantContext>) {
        let organization = context.map_or("", |context| context.organization().as_str());
        let subject = context.map_or("", TenantContext::subject);
        tracing::warn!(
            target: log::SECURITY,
            event = "seal_refused",
            peer = %self.peer,
            user = %self.role.name,
            organization,
            subject,
            "the database refused a seal; the server is closed"
        );
    }

    /// What a token command gives the client.
    ///
    /// # Errors
    /// It gives none; the log has been told why.
    pub fn judge(&self, given: &Given<TokenText>) -> Result<Held, Denied> {
        let Given::Constant(token) = given else { return Ok(self.at_sign_in.clone()) };
        if self.role.tenancy == Tenancy::None {
            let report = Report::new(
                Sqlstate::NOT_SUPPORTED,
                format!("role \"{}\" has no tenant context that a token could switch", self.role.name),
            );
            let hint =
                "Give the role tenancy = \"required\" or \"optional\" in the configuration of pgtenant.";
            return Err(Denied { report: report.hint(hint), is_refused: false });
        }
        let verified = verify(&self.gate, token.expose());
        match verified.and_then(|verified| resolve(&self.gate, &self.role, &self.wanted, &verified)) {
            Ok(context) => {
                let context = context.map(Arc::new);
                let subject = context.as_deref().map_or("", TenantContext::subject);
                tracing::debug!(peer = %self.peer, user = %self.role.name, subject, "token switched");
                crate::observe::metrics::sign_in("switched");
                Ok(Held { context, standing: Standing::Good })
            }
            Err(Refused { report, detail }) => {
                crate::observe::metrics::sign_in("token_refused");
                tracing::info!(
                    target: log::SECURITY,
                    event = "token_refused",
                    peer = %self.peer,
                    user = %self.role.name,
                    reason = report.message.as_str(),
                    detail,
                    "a switch of tokens was refused"
                );
                Err(Denied { report: *report, is_refused: true })
            }
        }
    }
}

/// A token command that fails.
pub struct Denied {
    /// What the client is told.
    pub report: Report,
    /// The token is refused: the client has no context from now on.
    pub is_refused: bool,
}

impl Desk {
    /// Why a transaction cannot begin now under what a client holds, if it cannot.
    pub fn refusal(&self, held: &Held, now: SystemTime) -> Option<Report> {
        let refusal = held.refusal(now);
        if refusal.is_some() || held.standing != Standing::Good {
            return refusal;
        }
        let context = held.context.as_deref()?;
        let (what, _) = self.gate.revocation(context)?;
        self.was_revoked(context, what, "a transaction was refused");
        let hint = "Bring another one (SET pgtenant.token = '...'), or connect again with one.";
        Some(Report::new(Sqlstate::INVALID_AUTHORIZATION, "token revoked").hint(hint))
    }

    /// Whether nothing may be sent ahead under one of these contexts, since none may begin by the time it is its turn;
    /// and if none may begin any more, what the client is told.
    pub fn passing(&self, contexts: &[Arc<TenantContext>]) -> Option<Option<Report>> {
        let now = SystemTime::now();
        let ends = |message: &str| {
            let report = Report::new(Sqlstate::INVALID_AUTHORIZATION, message)
                .detail("Queries had been sent ahead of it.")
                .hint("Connect again with a current token; what did not complete was rolled back.");
            Some(report)
        };
        let passing = |context: &Arc<TenantContext>| {
            if !context.is_current(now) {
                Some(ends("token expired"))
            } else if self.gate.revocation(context).is_some() {
                Some(ends("token revoked"))
            } else {
                context.is_late(now).then_some(None)
            }
        };
        contexts.iter().filter_map(passing).max_by_key(Option::is_some)
    }

    /// Whether a context has not expired, and is not revoked.
    pub fn is_current(&self, context: &TenantContext) -> bool {
        context.is_current(SystemTime::now()) && self.gate.revocation(context).is_none()
    }

    /// Whether the house is closing.
    pub fn is_draining(&self) -> bool {
        self.gate.is_draining()
    }

    /// How often something was revoked.
    pub fn revocations(&self) -> u64 {
        self.gate.revocations()
    }

    /// Whether what runs under one of these contexts is to end: what the client is told.
    pub fn ends_under(&self, contexts: &[Arc<TenantContext>]) -> Option<Report> {
        let ends = |context: &Arc<TenantContext>| {
            let (what, kills) = self.gate.revocation(context)?;
            kills.then(|| (context.clone(), what))
        };
        let (context, what) = contexts.iter().find_map(ends)?;
        self.was_revoked(&context, what, "a transaction was ended");
        let message = "terminating connection because its token was revoked";
        Some(Report::new(Sqlstate::ADMIN_SHUTDOWN, message).hint("Connect again with another token."))
    }

    /// Somebody acts for a subject (RFC 8693 section 4.1): a transaction begins.
    pub fn acts(&self, context: &TenantContext) {
        tracing::info!(
            target: log::SECURITY,
            event = "acting",
            peer = %self.peer,
            user = %self.role.name,
            organization = context.organization().as_str(),
            subject = context.subject(),
            actor = context.actor().unwrap_or_default(),
            "a read-only transaction on behalf of somebody else"
        );
    }

    fn was_revoked(&self, context: &TenantContext, what: &str, message: &str) {
        tracing::info!(
            target: log::SECURITY,
            event = "token_revoked",
            peer = %self.peer,
            user = %self.role.name,
            organization = context.organization().as_str(),
            subject = context.subject(),
            reason = format!("its {what} is revoked"),
            "{message}"
        );
    }
}

impl Held {
    /// After a token that was refused: nothing runs.
    pub fn refused() -> Self {
        Self { context: None, standing: Standing::Refused }
    }

    /// Why a transaction cannot begin now, if it cannot, whatever is revoked.
    fn refusal(&self, now: SystemTime) -> Option<Report> {
        let (message, hint) = match self.standing {
            Standing::Missing => ("no tenant context", "Bring a token first: SET pgtenant.token = '...'."),
            Standing::Refused => (
                "no tenant context: the last token was refused",
                "Bring a good one (SET pgtenant.token = '...'), or RESET pgtenant.token to go back to the one \
                 signed in with.",
            ),
            Standing::Good if self.context.as_ref().is_none_or(|context| context.is_current(now)) => {
                return None;
            }
            Standing::Good => {
                ("token expired", "Bring a current one: SET pgtenant.token = '...', or connect again.")
            }
        };
        Some(Report::new(Sqlstate::INVALID_AUTHORIZATION, message).hint(hint))
    }
}
