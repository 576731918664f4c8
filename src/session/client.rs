//! The client's end of a conversation.

use bytes::BytesMut;

use super::accounts::Attendance;
use super::desk::Desk;
use super::plain;
use super::prepared::ClientStatements;
use super::reported::Reported;
use super::requests::Requests;
use crate::net::buffer::Buffer;
use crate::net::stream::Stream;
use crate::pool::switch::First;

/// What a turn needs of its client.
pub struct Client {
    /// The connection.
    pub stream: Stream,
    /// What it sent and nobody has taken yet.
    pub incoming: Buffer,
    /// What it has not taken yet.
    pub outgoing: BytesMut,
    /// The scan of its messages.
    pub requests: Requests,
    /// Its prepared statements.
    pub statements: ClientStatements,
    /// What it knows of its settings.
    pub reported: Reported,
    /// Where its tokens are judged.
    pub desk: Desk,
    /// By which it is counted as a client of its organization, where it has one.
    pub attendance: Option<Attendance>,
    /// The server of its first batch could not be taken over, so the next one is cleaned in a step of its own.
    pub runs_again: bool,
}

impl Client {
    /// Whether backslashes in its string constants are backslashes.
    pub fn has_standard_strings(&self) -> bool {
        self.reported.has_standard_strings()
    }

    /// What it has sent up to its first Sync or simple query.
    pub fn first_batch(&self) -> &[u8] {
        plain::first_batch(self.incoming.filled())
    }

    /// What it sends first, in this generation of the schema.
    pub fn first(&self, generation: u64) -> First {
        if !self.has_standard_strings() || self.runs_again {
            return First::Apart;
        }
        self.requests.first(self.incoming.filled(), &self.statements, generation)
    }
}
