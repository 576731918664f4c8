//! Signing in: which database, as which role, and who it really is.

mod sasl;

use std::collections::BTreeMap;
use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use zeroize::Zeroizing;

use super::accounts::Attendance;
use super::cancel::Cancels;
use super::desk::{self, Desk, Refused};
use super::farewell;
use super::gate::Gate;
use super::opening::Opening;
use super::relay::{Parties, Relay};
use super::reported::Reported;
use super::throttle::Cost;
use super::turn;
use crate::auth::token::MAX_TOKEN_BYTES;
use crate::config::{Role, Tenancy};
use crate::net::buffer::Buffer;
use crate::net::listen::Peer;
use crate::net::stream::Stream;
use crate::net::tls::Shown;
use crate::observe::log;
use crate::observe::metrics::sign_in;
use crate::pool::server::Shard;
use crate::pool::switch::First;
use crate::pool::{Pool, Terms, Unserved};
use crate::tenancy::context::{TenantContext, Wanted};
use crate::tenancy::settings::{self, Settings};
use crate::wire::frame::{HEADER, peek, split_cstr};
use crate::wire::report::{Report, Sqlstate};
use crate::wire::startup::{NEWEST_MINOR, StartupMessage};
use crate::wire::violation::Violation;
use crate::wire::{speak, tag};
use sasl::Proof;

/// A client that has said who it wants to be.
pub struct Login {
    gate: Arc<Gate>,
    stream: Stream,
    incoming: Buffer,
    out: BytesMut,
    peer: Peer,
    shard: Shard,
    shown: Option<Arc<Shown>>,
    message: StartupMessage,
}

/// Why a sign-in ends without a client.
enum Refusal {
    /// The client went away.
    Gone,
    /// It is told this; the log gets the result's name and a detail.
    Told(Box<Told>),
}

struct Told {
    report: Report,
    result: &'static str,
    detail: String,
}

impl Refusal {
    fn told(report: Report, result: &'static str, detail: impl Into<String>) -> Self {
        Self::Told(Box::new(Told { report, result, detail: detail.into() }))
    }
}

impl From<Unserved> for Refusal {
    fn from(unserved: Unserved) -> Self {
        match unserved {
            Unserved::Refused(report) => report.into(),
            Unserved::Gone => Self::Gone,
        }
    }
}

impl From<Refused> for Refusal {
    fn from(Refused { report, detail }: Refused) -> Self {
        Self::told(*report, "token_refused", detail)
    }
}

impl From<Report> for Refusal {
    fn from(report: Report) -> Self {
        Self::told(report, "refused", "")
    }
}

impl From<Violation> for Refusal {
    fn from(violation: Violation) -> Self {
        Report::from(violation).into()
    }
}

impl Login {
    /// Goes on with what the client may have sent behind its startup packet (a password, if it is in a hurry).
    pub(super) fn new(opening: Opening, message: StartupMessage) -> Self {
        let Opening { gate, stream, incoming, peer, shard, shown, .. } = opening;
        Self { gate, stream, incoming, out: BytesMut::new(), peer, shard, shown, message }
    }

    /// Signs the client in; `None` when it was refused or left.
    pub async fn run(mut self) -> Option<Box<Relay>> {
        match self.sign_in().await {
            Ok(signed_in) => {
                sign_in("ok");
                self.welcome(signed_in).await
            }
            Err(Refusal::Gone) => {
                sign_in("gone");
                None
            }
            Err(Refusal::Told(told)) => {
                let Told { report, result, detail } = *told;
                sign_in(result);
                let (user, database) = (&self.message.user, &self.message.database);
                let is_guess = matches!(result, "token_refused" | "wrong_password" | "unknown_role");
                let Cost { failures, delay } = match is_guess {
                    true => self.gate.throttle.failed(self.peer, Instant::now()),
                    false => Cost { failures: 0, delay: Duration::ZERO },
                };
                tracing::info!(
                    target: log::SECURITY,
                    event = "sign_in_refused",
                    peer = %self.peer,
                    user,
                    database,
                    reason = report.message.as_str(),
                    detail,
                    failures,
                    "a sign-in was refused"
                );
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                farewell::fatal(self.stream, self.out, &report).await;
                None
            }
        }
    }

    /// The sequence of a sign-in.
    async fn sign_in(&mut self) -> Result<SignedIn, Refusal> {
        self.negotiate_protocol();
        self.refuse_replication()?;
        let (settings, wanted) = settings::from_startup(&self.message.parameters)?;
        let gate = self.gate.clone();
        // One configuration from here to the end, whichever comes meanwhile.
        let settings_now = gate.settings();
        let Some(role) = settings_now.roles.get(&self.message.user) else {
            return Err(self.unknown_user(&wanted).await);
        };
        if role.tenancy != Tenancy::None {
            settings_now.guard.check_startup(&settings)?;
        }
        let context = self.authenticate(role, &wanted).await?;
        // Only now: which databases there are is nothing for strangers.
        let pool = self.destination()?;
        let reported = pool.parameters(self.shard).await?;
        let settings = differing(settings, &reported);
        let context = context.map(Arc::new);
        let attendance = context.as_ref().map(|context| gate.accounts.enter(context.organization()));
        let attendance = attendance.transpose().map_err(|report| {
            Refusal::told(report, "too_many_clients", "limits.max_clients of its organization")
        })?;
        let desk = Desk::new(gate.clone(), role.clone(), wanted, self.peer, context.clone());
        let terms = Terms::new(context, Arc::new(settings));
        let parameters = self.tell_parameters(&pool, &terms, &reported).await?;
        let reported = Reported::at_sign_in(reported, &parameters);
        Ok(SignedIn { role: role.clone(), pool, terms, parameters, reported, desk, attendance })
    }

    /// A client that asks for more than is spoken is told so, as by PostgreSQL 18 (documentation, 54.2.1 "Start-up").
    fn negotiate_protocol(&mut self) {
        let options = std::mem::take(&mut self.message.protocol_options);
        if self.message.minor > NEWEST_MINOR || !options.is_empty() {
            speak::negotiate_protocol(self.message.spoken_minor(), options, &mut self.out);
        }
    }

    fn refuse_replication(&self) -> Result<(), Refusal> {
        let Some(value) = self.message.parameters.get("replication") else { return Ok(()) };
        let report = match value.to_ascii_lowercase().as_str() {
            "false" | "off" | "no" | "0" => return Ok(()),
            "true" | "on" | "yes" | "1" | "database" => {
                Report::new(Sqlstate::NOT_SUPPORTED, "replication connections cannot be pooled")
                    .hint("Connect to PostgreSQL itself for replication.")
            }
            _ => Report::new(
                Sqlstate::INVALID_PARAMETER,
                format!("invalid value for parameter \"replication\": \"{value}\""),
            ),
        };
        Err(report.into())
    }

    fn destination(&self) -> Result<Arc<Pool>, Refusal> {
        let message = &self.message;
        self.gate.pool(&message.database, &message.user).ok_or_else(|| {
            let report = Report::new(
                Sqlstate::NO_SUCH_DATABASE,
                format!("database \"{}\" is not configured in pgtenant", message.database),
            )
            .hint("Add it under [databases], or use a configured name in the connection string.");
            Refusal::told(report, "unknown_database", "")
        })
    }

    /// A user that is not configured is asked like others, and hears what they hear when they are wrong, as from
    /// PostgreSQL: who may sign in is nothing for strangers. The log says what is the matter.
    async fn unknown_user(&mut self, wanted: &Wanted) -> Refusal {
        let gate = self.gate.clone();
        let message = format!("user \"{}\" is not configured in pgtenant", self.message.user);
        // Whoever has a good token may know.
        let told = Report::new(Sqlstate::INVALID_AUTHORIZATION, message)
            .hint("Add it under [roles], or use a configured user in the connection string.");
        let (by_password, by_oauth) = (!gate.settings().verifiers.is_empty(), wanted.by_oauth);
        let refusal = if by_password || by_oauth {
            let stranger = gate.strangers.verifier(&self.message.user);
            match self.sasl(by_password.then_some(&stranger), by_oauth).await {
                Ok(Proof::Password) => wrong_password(&self.message.user, ""),
                Ok(Proof::Token(_)) => told.into(),
                Err(refusal) => refusal,
            }
        } else {
            // Nobody signs in here but by token.
            let verified = match self.clear_password().await {
                Ok(secret) => desk::verified(&gate, &secret).await.map_err(Refusal::from),
                Err(refusal) => Err(refusal),
            };
            verified.map_or_else(|refusal| refusal, |_| told.into())
        };
        match refusal {
            Refusal::Gone => Refusal::Gone,
            Refusal::Told(told) => {
                Refusal::told(told.report, "unknown_role", "no such user in [roles] of the configuration")
            }
        }
    }

    /// Who is it? A token gives a context; a password gives none.
    async fn authenticate(&mut self, role: &Role, wanted: &Wanted) -> Result<Option<TenantContext>, Refusal> {
        let gate = self.gate.clone();
        let by_oauth = role.sign_in_oauth && (wanted.by_oauth || !role.sign_in_jwt);
        if by_oauth || !role.sign_in_jwt {
            return match self.sasl(gate.settings().verifiers.get(&role.name), by_oauth).await? {
                Proof::Password => Ok(None),
                Proof::Token(verified) => Ok(desk::resolve(&gate, role, wanted, &verified)?),
            };
        }
        let secret = self.clear_password().await?;
        // A role with both: a token has two dots and begins with the base64url of `{"`.
        let is_token = secret.starts_with(b"eyJ") && secret.iter().filter(|byte| **byte == b'.').count() == 2;
        if is_token || role.sign_in_scram.is_none() {
            return Ok(desk::context(&gate, role, wanted, &secret).await?);
        }
        if self.password_matches(role, secret).await { Ok(None) } else { Err(wrong_password(&role.name, "")) }
    }

    /// Asks for a password in clear, which is how a token travels.
    async fn clear_password(&mut self) -> Result<Zeroizing<Vec<u8>>, Refusal> {
        self.demand_encryption()?;
        speak::request_cleartext_password(&mut self.out);
        self.send().await?;
        let body = Zeroizing::new(self.password_message(MAX_TOKEN_BYTES + 1).await?);
        match split_cstr(&body) {
            Some(([], [])) => {
                let report = Report::new(Sqlstate::INVALID_PASSWORD, "empty password returned by client");
                Err(Refusal::told(report, "wrong_password", ""))
            }
            Some((secret, [])) => Ok(Zeroizing::new(secret.to_vec())),
            _ => Err(Violation::Malformed(tag::PASSWORD).into()),
        }
    }

    /// Whoever reads a token has it.
    fn demand_encryption(&self) -> Result<(), Refusal> {
        if !self.stream.is_tls() && !self.peer.is_local() {
            let report = Report::new(Sqlstate::INVALID_AUTHORIZATION, "a token is not taken over an unencrypted connection")
                .hint("Configure [listen.tls] and add sslmode=require (better: verify-full) to the connection string.");
            return Err(Refusal::told(report, "no_tls", ""));
        }
        Ok(())
    }

    /// Away from the thread that serves clients: this takes a while, on purpose.
    async fn password_matches(&self, role: &Role, password: Zeroizing<Vec<u8>>) -> bool {
        let Ok(_turn) = self.gate.hashing.acquire().await else { return false };
        let (gate, name) = (self.gate.clone(), role.name.clone());
        let hashed = tokio::task::spawn_blocking(move || {
            gate.settings().verifiers.get(&name).is_some_and(|verifier| verifier.matches(&password))
        });
        hashed.await.unwrap_or(false)
    }

    /// What PostgreSQL reports for this client: the server's values, with the client's own settings tried out on a
    /// server, so that a bad one is refused now and the others are spelled as PostgreSQL spells them.
    async fn tell_parameters(
        &self,
        pool: &Arc<Pool>,
        terms: &Terms,
        reported: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, Refusal> {
        let mut parameters = reported.clone();
        let needs_trial = terms.settings().keys().any(|name| name != "application_name");
        if needs_trial {
            // The same settings are accepted whatever the context.
            let key = Terms::new(None, Arc::new(terms.settings().clone())).digest();
            if let Some(told) = pool.tried(key) {
                parameters.extend(told.iter().cloned());
            } else {
                let server = pool.lease(terms, self.shard, First::Apart, &mut pending()).await?;
                let told = turn::settle(pool, server).await?.unwrap_or_default();
                parameters.extend(told.iter().cloned());
                pool.remember_trial(key, told);
            }
        }
        for (name, value) in terms.settings() {
            if let Some(told) = parameters.get_mut(name)
                && name == "application_name"
            {
                value.clone_into(told);
            }
        }
        Ok(parameters)
    }

    async fn welcome(mut self, signed_in: SignedIn) -> Option<Box<Relay>> {
        let registered = Cancels::register(&self.gate, self.message.spoken_minor())?;
        speak::authentication_ok(&mut self.out);
        for (name, value) in &signed_in.parameters {
            speak::parameter_status(name, value, &mut self.out);
        }
        speak::backend_key_data(&registered.key, &mut self.out);
        speak::ready_for_query(&mut self.out);
        self.send().await.ok()?;
        let subject = signed_in.terms.context().map_or("", TenantContext::subject);
        tracing::debug!(peer = %self.peer, user = %signed_in.role.name, database = %self.message.database, subject, "signed in");
        let parties = Parties { gate: self.gate, pool: signed_in.pool, shard: self.shard, registered };
        Some(
            Relay::new(
                parties,
                (self.stream, self.incoming),
                signed_in.terms,
                (signed_in.reported, signed_in.desk, signed_in.attendance),
            )
            .into(),
        )
    }

    async fn send(&mut self) -> Result<(), Refusal> {
        self.stream.send(&mut self.out).await.map_err(|_| Refusal::Gone)
    }

    /// One message of the password family, whole; `limit` bounds its body before anything is stored.
    async fn password_message(&mut self, limit: usize) -> Result<Vec<u8>, Refusal> {
        let mut body = Vec::new();
        let mut wanted: Option<usize> = None;
        loop {
            if wanted.is_none()
                && let Some(header) = peek(self.incoming.filled())?
            {
                if header.tag != tag::PASSWORD {
                    return Err(Violation::Unexpected(header.tag).into());
                }
                if header.body > limit {
                    let report = Report::new(Sqlstate::LIMIT_EXCEEDED, "token refused: too long");
                    return Err(Refusal::told(report, "token_refused", header.body.to_string()));
                }
                wanted = Some(header.body);
                self.incoming.consume(HEADER);
            }
            if let Some(length) = wanted {
                let here = self.incoming.filled().len().min(length - body.len());
                body.extend_from_slice(&self.incoming.filled()[..here]);
                self.incoming.consume(here);
                if body.len() == length {
                    return Ok(body);
                }
            }
            match poll_fn(|cx| self.incoming.poll_fill(&mut self.stream, cx)).await {
                Ok(0) | Err(_) => return Err(Refusal::Gone),
                Ok(_) => {}
            }
        }
    }
}

struct SignedIn {
    role: Arc<Role>,
    pool: Arc<Pool>,
    terms: Terms,
    parameters: BTreeMap<String, String>,
    reported: Reported,
    desk: Desk,
    attendance: Option<Attendance>,
}

fn wrong_password(role: &str, detail: &str) -> Refusal {
    let report = Report::new(
        Sqlstate::INVALID_PASSWORD,
        format!("password authentication failed for user \"{role}\""),
    );
    Refusal::told(report, "wrong_password", detail)
}

/// Settings that are not what every server starts with anyway; most clients then have none but their name.
fn differing(settings: Settings, reported: &BTreeMap<String, String>) -> Settings {
    settings
        .into_iter()
        .filter(|(name, value)| !reported.get(name).is_some_and(|reported| same(name, reported, value)))
        .collect()
}

fn same(name: &str, reported: &str, value: &str) -> bool {
    // `utf8`, `UTF-8` and `'UTF8'` are one encoding to PostgreSQL.
    let plain = |text: &str| -> String {
        text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
    };
    reported == value || (name == "client_encoding" && plain(reported) == plain(value))
}
