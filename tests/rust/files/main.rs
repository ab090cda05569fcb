//! Whole files: round trips, what is stored, damage, and outputs that appear whole or not at all.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a failing test may panic, and its files are small"
)]

mod damage;
mod document;
mod outputs;
mod roundtrip;
mod stored;
mod support;
