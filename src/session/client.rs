//! The client's end of a conversation.

use bytes::BytesMut;

use super::prepared::ClientStatements;
use super::reported::Reported;
use super::requests::Requests;
use crate::net::buffer::Buffer;
use crate::net::stream::Stream;

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
}
