//! What strangers do to the protocol.

/// A stranger's bytes broke the protocol; the stream cannot be followed further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A length that cannot be.
    #[error("invalid message length in message type {:?}", char::from(*.0))]
    Length(u8),
    /// A type that this direction or phase does not have.
    #[error("unexpected message type {:?}", char::from(*.0))]
    Unexpected(u8),
    /// A body that does not have the form its type demands.
    #[error("malformed message of type {:?}", char::from(*.0))]
    Malformed(u8),
    /// A version of the protocol that is not spoken: major and minor.
    #[error("unsupported frontend protocol {0}.{1}: server supports 3.0 to 3.2")]
    Version(u16, u16),
    /// A StartupMessage without `user`.
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
    /// A first packet that is none of PostgreSQL's.
    #[error("invalid startup packet: {0}")]
    Startup(&'static str),
}
