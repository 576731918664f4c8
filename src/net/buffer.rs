//! Read buffers that exist only while they hold bytes: ten thousand idle clients share a handful.

use std::cell::RefCell;
use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;

use super::stream::Stream;

/// Bytes of one buffer. Large results pass in pieces of this size; nothing is ever buffered whole.
pub const BUFFER_SIZE: usize = 32 * 1024;

/// So few unread bytes are kept in memory of their own size while the socket has no more: who waits for a server, or has sent
/// half a message, holds no buffer.
const PARKED: usize = 2 * 1024;

/// Buffers kept for reuse on each thread; more than this many are given back to the allocator.
const SPARE_BUFFERS: usize = 64;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// What was read from one socket and not yet dealt with.
///
/// The memory is taken from the thread's spares when bytes arrive, and given back when they are consumed, or when they are few and
/// nothing comes behind them.
#[derive(Default)]
pub struct Buffer {
    /// [`BUFFER_SIZE`] of them, or just those that are unread.
    bytes: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// The unread bytes.
    pub fn filled(&self) -> &[u8] {
        match &self.bytes {
            Some(bytes) => &bytes[self.start..self.end],
            None => &[],
        }
    }

    /// The unread bytes, to be changed where they are.
    pub fn filled_mut(&mut self) -> &mut [u8] {
        match &mut self.bytes {
            Some(bytes) => &mut bytes[self.start..self.end],
            None => &mut [],
        }
    }

    /// Whether nothing is unread.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Drops the first `count` unread bytes; gives the memory back when none is left.
    pub fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            if let Some(bytes) = self.bytes.take() {
                give_back(bytes);
            }
        }
    }

    /// Puts bytes back in front of the unread ones. Whether they fit in.
    pub fn put_back(&mut self, bytes: &[u8]) -> bool {
        let rest = self.filled().to_vec();
        if bytes.len() + rest.len() > BUFFER_SIZE {
            return false;
        }
        let mut memory = self.bytes.take().filter(|memory| memory.len() == BUFFER_SIZE).unwrap_or_else(take);
        memory[..bytes.len()].copy_from_slice(bytes);
        memory[bytes.len()..][..rest.len()].copy_from_slice(&rest);
        (self.start, self.end) = (0, bytes.len() + rest.len());
        self.bytes = Some(memory);
        if self.is_empty() {
            self.consume(0);
        }
        true
    }

    /// Whether no more bytes fit in.
    pub fn is_full(&self) -> bool {
        self.end - self.start == BUFFER_SIZE
    }

    /// Reads once from `stream` behind the unread bytes; `Ok(0)` is the end of the stream.
    ///
    /// While the socket has nothing, no memory is held.
    pub fn poll_fill(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.poll_fill_beside(0, stream, cx)
    }

    /// The same where so many bytes may still be put back. Without room for more, it is pending and wakes nobody.
    pub fn poll_fill_beside(
        &mut self,
        kept: usize,
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let unread = self.end - self.start;
        let Some(room @ 1..) = BUFFER_SIZE.checked_sub(unread + kept) else {
            debug_assert!(kept > 0, "a full buffer is consumed before it is filled");
            return Poll::Pending;
        };
        if self.start > 0
            && self.end == BUFFER_SIZE
            && let Some(bytes) = &mut self.bytes
        {
            bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let parked = self.bytes.take_if(|bytes| bytes.len() < BUFFER_SIZE);
        let mut bytes = self.bytes.take().unwrap_or_else(take);
        let end = BUFFER_SIZE.min(self.end + room);
        let mut space = ReadBuf::new(&mut bytes[self.end..end]);
        let outcome = stream.poll_recv(cx, &mut space);
        let count = space.filled().len();
        self.bytes = match parked {
            Some(parked) if count == 0 => {
                give_back(bytes);
                Some(parked)
            }
            Some(parked) => {
                bytes[self.start..self.end].copy_from_slice(&parked[self.start..self.end]);
                Some(bytes)
            }
            None if count == 0 && unread <= PARKED => {
                let parked = (unread > 0).then(|| Box::from(&bytes[self.start..self.end]));
                (self.start, self.end) = (0, unread);
                give_back(bytes);
                parked
            }
            None => Some(bytes),
        };
        self.end += count;
        ready!(outcome)?;
        Poll::Ready(Ok(count))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(bytes) = self.bytes.take() {
            give_back(bytes);
        }
    }
}

fn take() -> Box<[u8]> {
    let spare = SPARE.with_borrow_mut(Vec::pop);
    spare.unwrap_or_else(|| vec![0; BUFFER_SIZE].into_boxed_slice())
}

fn give_back(bytes: Box<[u8]>) {
    if bytes.len() < BUFFER_SIZE {
        return;
    }
    // During thread exit the spares may be gone already; then the allocator takes it.
    let _ = SPARE.try_with(|spare| {
        if let Ok(mut spare) = spare.try_borrow_mut()
            && spare.len() < SPARE_BUFFERS
        {
            spare.push(bytes);
        }
    });
}
