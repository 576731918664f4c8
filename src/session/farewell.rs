//! The last words: one report, if there is one, and an orderly close.

use std::time::Duration;

use bytes::BytesMut;

use crate::net::stream::Stream;
use crate::wire::report::Report;

/// A client that does not take its last message within this time gets a closed socket instead.
const PATIENCE: Duration = Duration::from_secs(2);

/// Sends what is left and a FATAL report, and closes.
pub async fn fatal(stream: Stream, mut pending: BytesMut, report: &Report) {
    report.fatal(&mut pending);
    close(stream, pending).await;
}

/// Sends what is left, and closes.
pub async fn close(mut stream: Stream, mut pending: BytesMut) {
    let goodbye = async {
        // The client may be gone; then nobody is there to be told.
        if stream.send(&mut pending).await.is_ok() {
            stream.shut_down().await;
        }
    };
    let _ = tokio::time::timeout(PATIENCE, goodbye).await;
}
