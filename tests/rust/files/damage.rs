//! Damaged files give errors, never other bytes.

use std::fs;

use neuzip_rs::files::{ContentKind, StreamCompressor, StreamDecompressor};
use neuzip_rs::{CompressOptions, DecompressOptions};

use crate::support::{
    FRAME_BYTES, Place, decompress, is_about_data, noise, read_all, small_model, verify, whole,
};

/// A `.nz` file of three frames, small because its content is.
fn small_frames(place: &Place) -> (Vec<u8>, Vec<u8>) {
    let mut original = vec![1; 2 * FRAME_BYTES + 100];
    original[2 * FRAME_BYTES..].copy_from_slice(&noise(100, 4));
    let compressed = place.compressed(&original);
    (original, compressed)
}

#[test]
fn truncation_of_safetensors() {
    let place = Place::new();
    let compressed = place.compressed(&small_model(1));
    for cut in 0..compressed.len() {
        let path = place.put("cut", &compressed[..cut]);
        assert!(is_about_data(&verify(&path).unwrap_err()), "{cut}");
        assert!(is_about_data(&read_all(&path).unwrap_err()), "{cut}");
        assert!(decompress(&path, &place.path("restored")).is_err());
    }
    assert!(!place.path("restored").exists());
    let longer = place.put("longer", &[&compressed[..], &[0]].concat());
    assert!(is_about_data(&verify(&longer).unwrap_err()));
}

#[test]
fn corruption_of_safetensors() {
    let place = Place::new();
    let original = small_model(1);
    let mut compressed = place.compressed(&original);
    let tensors = read_all(&place.path("compressed")).unwrap();
    let restored = place.path("restored");
    for position in 0..compressed.len() {
        for bit in 0..8 {
            compressed[position] ^= 1 << bit;
            let path = place.put("flipped", &compressed);
            match decompress(&path, &restored) {
                Ok(_) => assert!(fs::read(&restored).unwrap() == original, "{position}.{bit}"),
                Err(error) => assert!(is_about_data(&error), "{position}.{bit}: {error}"),
            }
            match read_all(&path) {
                Ok(read) => assert!(read == tensors, "{position}.{bit}"),
                Err(error) => assert!(is_about_data(&error), "{position}.{bit}: {error}"),
            }
            compressed[position] ^= 1 << bit;
        }
    }
}

#[test]
fn truncation_of_frames() {
    let place = Place::new();
    let (_, compressed) = small_frames(&place);
    for cut in 0..compressed.len() {
        let path = place.put("cut", &compressed[..cut]);
        assert!(is_about_data(&verify(&path).unwrap_err()), "{cut}");
        let mut stream = StreamDecompressor::new(DecompressOptions::default(), None);
        let ended = stream
            .feed(&compressed[..cut])
            .and_then(|_| stream.finish());
        assert!(is_about_data(&ended.unwrap_err()), "{cut}");
    }
    let longer = place.put("longer", &[&compressed[..], &[0]].concat());
    assert!(is_about_data(&verify(&longer).unwrap_err()));
}

#[test]
fn corruption_of_frames() {
    let place = Place::new();
    let original = noise(150, 6);
    let mut compressed = place.compressed(&original);
    let restored = place.path("restored");
    for position in 0..compressed.len() {
        for bit in 0..8 {
            compressed[position] ^= 1 << bit;
            let path = place.put("flipped", &compressed);
            assert!(
                is_about_data(&decompress(&path, &restored).unwrap_err()),
                "{position}.{bit}"
            );
            let mut stream = StreamDecompressor::new(DecompressOptions::default(), None);
            let ended = stream.feed(&compressed).and_then(|_| stream.finish());
            assert!(is_about_data(&ended.unwrap_err()), "{position}.{bit}");
            compressed[position] ^= 1 << bit;
        }
    }
    assert!(!restored.exists());
}

#[test]
fn frames_left_out_swapped_or_repeated_are_noticed() {
    let place = Place::new();
    let frame = |fill: u8| {
        let mut compressor = StreamCompressor::new(CompressOptions::default());
        let bytes = compressor.feed(&vec![fill; FRAME_BYTES]).unwrap();
        bytes[8..].to_vec()
    };
    let mut original = vec![1; 2 * FRAME_BYTES];
    original[FRAME_BYTES..].fill(2);
    let compressed = place.compressed(&original);
    let (magic, end) = (&compressed[..8], &compressed[compressed.len() - 17..]);
    let assemble = |frames: &[u8]| {
        let frames: Vec<u8> = frames.iter().flat_map(|&fill| frame(fill)).collect();
        place.put("assembled", &[magic, &frames, end].concat())
    };
    assert!(verify(&assemble(&[1, 2])).is_ok());
    for wrong in [&[1][..], &[2], &[2, 1], &[1, 1], &[1, 2, 2], &[]] {
        assert!(
            is_about_data(&verify(&assemble(wrong)).unwrap_err()),
            "{wrong:?}"
        );
    }
}

#[test]
fn headers_that_break_the_rules_are_other_files() {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#""a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let good = entry("F32", "[2]", "[0,8]");
    let second = |offsets: &str| {
        format!(r#"{{{good},"b":{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}}}"#)
    };
    let deep = format!(r#"{{"a":{{"x":{}}}}}"#, "[".repeat(100_000));
    let ranks = format!("[8{}]", ",1".repeat(255));
    let cases = [
        (format!("{{{good}}}"), 8, true),
        (second("[8,12]"), 12, true),
        (
            format!(
                "{{{}}}",
                good.replace("\"dtype\"", "\"future\":{\"x\":[1]},\"dtype\"")
            ),
            8,
            true,
        ),
        (format!("{{{good}}} \n\t"), 8, true),
        (format!("{{{good},\"__metadata__\":{{}}}}"), 8, true),
        (format!("{{{good}}}"), 9, false),
        (format!(" {{{good}}}"), 8, false),
        (format!("{{{good}}}x"), 8, false),
        (format!("{{{good},{good}}}"), 8, false),
        (format!("{{{good},}}"), 8, false),
        (format!("[{{{good}}}]"), 8, false),
        (second("[9,13]"), 13, false),
        (second("[4,8]"), 8, false),
        (second("[0,4]"), 8, false),
        (second("[12,8]"), 12, false),
        (format!("{{{}}}", entry("F31", "[2]", "[0,8]")), 8, false),
        (format!("{{{}}}", entry("F32", "[3]", "[0,8]")), 8, false),
        (format!("{{{}}}", entry("F32", "[2.0]", "[0,8]")), 8, false),
        (format!("{{{}}}", entry("F32", "[-2]", "[0,8]")), 8, false),
        (format!("{{{}}}", entry("F32", "[2]", "[0,8,8]")), 8, false),
        (format!("{{{}}}", entry("F32", "[2]", "[0,8e0]")), 8, false),
        (
            format!("{{{}}}", entry("F32", "[2]", "[18446744073709551616,8]")),
            8,
            false,
        ),
        (
            format!("{{{}}}", entry("F32", "[4611686018427387905,4]", "[0,16]")),
            16,
            false,
        ),
        (format!("{{{}}}", entry("F4", "[3]", "[0,1]")), 1, false),
        (format!("{{{}}}", entry("U8", &ranks, "[0,8]")), 8, false),
        (
            format!(
                "{{{}}}",
                good.replace("\"dtype\"", "\"shape\":[2],\"dtype\"")
            ),
            8,
            false,
        ),
        (format!("{{{good},\"__metadata__\":{{\"a\":1}}}}"), 8, false),
        (
            format!("{{{good},\"__metadata__\":{{\"a\":\"\",\"\\u0061\":\"\"}}}}"),
            8,
            false,
        ),
        (
            format!("{{\"__metadata__\":{{}},{good},\"__metadata__\":{{}}}}"),
            8,
            false,
        ),
        (r#"{"a":["F32",[2],[0,8]]}"#.into(), 8, false),
        (deep, 0, false),
        ("{\"\\ud800\":{}}".into(), 0, false),
        (String::new(), 0, false),
    ];
    for (json, bytes, valid) in cases {
        let kind = ContentKind::of(&whole(&json, &vec![0; bytes]));
        let expected = if valid {
            ContentKind::Safetensors
        } else {
            ContentKind::Other
        };
        assert_eq!(kind, expected, "{}", &json[..json.len().min(300)]);
    }
    let mut invalid = whole("{\"a\":{}}", &[]);
    invalid[10] = 0xff;
    assert_eq!(ContentKind::of(&invalid), ContentKind::Other);
    for length in [100_000_001_u64, u64::MAX, 9] {
        let file = [&length.to_le_bytes()[..], b"{}      "].concat();
        assert_eq!(ContentKind::of(&file), ContentKind::Other);
    }
}
