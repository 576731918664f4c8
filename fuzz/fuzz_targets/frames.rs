//! The frame scanner: the same bytes in whatever pieces are the same messages, and no length is believed.
#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};

use libfuzzer_sys::fuzz_target;
use pgtenant::config::PoolMode;
use pgtenant::wire::frame::{Header, peek, split_cstr};
use pgtenant_fuzz::client::Client;

/// More than anything needs at once that is here; less than what lengths can claim.
const MOST_AT_ONCE: usize = 1024 * 1024;

/// Ends the program when somebody's word is taken for how much there is to come.
struct Honest;

#[global_allocator]
static HONEST: Honest = Honest;

#[allow(unsafe_code)]
// SAFETY: it hands on to the system's own.
unsafe impl GlobalAlloc for Honest {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > MOST_AT_ONCE {
            std::process::abort();
        }
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) }
    }
}

// A byte that says how a client is served, a number of pieces' lengths that begins with their count, and what it sends.
fuzz_target!(|data: &[u8]| {
    let [how, count, rest @ ..] = data else { return };
    let Some((lengths, stream)) = rest.split_at_checked(usize::from(count % 8)) else { return };
    let mode = [PoolMode::Transaction, PoolMode::Session, PoolMode::Statement][usize::from(how % 3)];
    let client = || Client::new(mode, how & 8 == 0);

    let mut whole = client();
    whole.send(stream);
    let (mut pieces, mut left) = (client(), stream);
    let mut lengths = lengths.iter().cycle();
    while !left.is_empty() {
        let length = lengths.next().map_or(1, |length| usize::from(*length).max(1)).min(left.len());
        pieces.send(&left[..length]);
        left = &left[length..];
    }
    assert_eq!(whole.is_refused(), pieces.is_refused(), "refused or not");
    if !whole.is_refused() {
        assert!(whole.carried() == pieces.carried(), "the server gets other bytes");
    }
    if !whole.is_refused() && !whole.has_asked() {
        assert_eq!((whole.waiting(), whole.is_gone()), (pieces.waiting(), pieces.is_gone()));
    }
    check_headers(stream);
});

/// Header by header, as PostgreSQL's documentation has it (54.7): a type, and a length that counts itself.
fn check_headers(mut stream: &[u8]) {
    for _ in 0..64 {
        let read = peek(stream);
        let [tag, a, b, c, d, body @ ..] = stream else { return assert_eq!(read, Ok(None)) };
        let length = u64::from(*a) << 24 | u64::from(*b) << 16 | u64::from(*c) << 8 | u64::from(*d);
        if !(4..1 << 30).contains(&length) {
            return assert!(read.is_err());
        }
        let claimed = length as usize - 4;
        assert_eq!(read, Ok(Some(Header { tag: *tag, body: claimed })));
        let Some((body, after)) = body.split_at_checked(claimed) else { return };
        if let Some((text, rest)) = split_cstr(body) {
            assert!(!text.contains(&0) && [text, b"\0", rest].concat() == body);
        }
        stream = after;
    }
}
