//! Rules that matter, as tests.
