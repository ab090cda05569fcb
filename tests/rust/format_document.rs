//! The worked example of docs/format.md is what the encoder writes.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::unwrap_used,
    reason = "generated data is cut to size on purpose, and a failed unwrap is a failed test"
)]

use neuzip_rs::{CompressOptions, DecompressOptions, Dtype, Stream, compress};

/// The first `hex` block of the page.
fn dump() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/format.md");
    let page = std::fs::read_to_string(path).unwrap();
    let block = page
        .split("```hex\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .unwrap();
    block
        .split_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

fn tensor() -> Vec<u8> {
    let value = |i: i64| match i {
        i if i % 16 == 3 => 200,
        i if i % 7 == 0 => 5,
        _ => 2_i64,
    };
    (0..512).flat_map(|i| value(i).to_le_bytes()).collect()
}

#[test]
fn the_example_is_what_the_encoder_writes() {
    let stream = compress(
        &tensor(),
        Dtype::Int64,
        &[32, 16],
        &CompressOptions::default(),
    )
    .unwrap();
    assert_eq!(stream, dump());
}

#[test]
fn the_example_decodes() {
    let dump = dump();
    let stream = Stream::parse(&dump).unwrap();
    assert_eq!(
        (stream.dtype(), stream.shape()),
        (Dtype::Int64, &[32, 16][..])
    );
    let mut out = vec![0; 4096];
    stream
        .decode_into(0, &mut out, &DecompressOptions::default())
        .unwrap();
    assert_eq!(out, tensor());
}
