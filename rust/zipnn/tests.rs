//! Frames made by hand, in the layout that `frame` describes; what zipnn writes is read in
//! tests/python.

use super::*;
use crate::Dtype;

/// A frame of BF16: planes of which chunk `i` is raw or a repeated byte.
fn frame(original_bytes: u64, streaming: u8, planes: [&[(u8, &[u8])]; 2]) -> Vec<u8> {
    let mut frame = b"ZN\x00\x05\x04\x0a\x00\x00\x01\x00\x00\x00\x00".to_vec();
    frame.extend([streaming, 12, 6]);
    frame.extend(original_bytes.to_le_bytes());
    frame.extend([0; 8]);
    frame.extend(
        planes
            .iter()
            .flat_map(|plane| plane.iter().map(|part| part.0)),
    );
    for plane in planes {
        let mut end = 0;
        for (_, stored) in plane {
            end += stored.len() as u64;
            frame.extend(end.to_le_bytes());
        }
    }
    frame.extend(
        planes
            .iter()
            .flat_map(|plane| plane.iter().flat_map(|part| part.1)),
    );
    let bytes = frame.len() as u64;
    frame[24..32].copy_from_slice(&bytes.to_le_bytes());
    frame
}

fn read(data: &[u8]) -> Result<Vec<u8>> {
    decompress(data, Threads::new(1), None, &mut |_, _| Ok(()))
}

/// 4099 bytes in two chunks, and what they are.
fn sample(streaming: u8) -> (Vec<u8>, Vec<u8>) {
    let low: Vec<u8> = (0..2048).map(|i| i as u8).collect();
    let data = frame(
        4099,
        streaming,
        [&[(0, &low), (0, b"xz")], &[(1, b"\x3f"), (0, b"y")]],
    );
    let mut original: Vec<u8> = low.iter().flat_map(|&byte| [byte, 0x3f]).collect();
    original.extend(b"xyz");
    (data, original)
}

#[test]
fn frames_follow_each_other() {
    let (data, original) = sample(148);
    assert_eq!(read(&data).unwrap(), original);
    assert_eq!(
        read(&[&data[..], &data].concat()).unwrap(),
        original.repeat(2)
    );
    let header = header(&data).unwrap();
    assert_eq!((header.dtype, header.shape), (Dtype::Bfloat16, None));
    let (alone, original) = sample(0);
    assert_eq!(read(&alone).unwrap(), original);
    assert!(matches!(
        read(&[&alone[..], &alone].concat()),
        Err(Error::Corrupt(_))
    ));
}

#[test]
fn limits_are_obeyed_before_anything_is_decoded() {
    let (data, _) = sample(148);
    let limited = |limit| decompress(&data, Threads::new(1), Some(limit), &mut |_, _| Ok(()));
    assert!(limited(4099).is_ok());
    let Err(Error::OutputTooLarge { needed, limit }) = limited(4098) else {
        panic!("not limited")
    };
    assert_eq!((needed, limit), (4099, 4098));
}

#[test]
fn truncation_is_an_error() {
    let (data, _) = sample(148);
    for end in 0..data.len() {
        assert!(
            matches!(read(&data[..end]), Err(Error::Corrupt(_))),
            "{end}"
        );
    }
}

#[test]
fn other_headers_are_errors() {
    let (data, _) = sample(0);
    let with = |at: usize, value: u8| {
        let mut changed = data.clone();
        changed[at] = value;
        read(&changed)
    };
    for (at, value) in [
        (3, 2),
        (5, 8),
        (6, 2),
        (8, 4),
        (9, 1),
        (10, 1),
        (15, 3),
        (15, 20),
    ] {
        let refused = with(at, value);
        assert!(matches!(refused, Err(Error::UnsupportedVersion(_))), "{at}");
    }
    for (at, value) in [
        (0, 0),
        (14, 0),
        (14, 60),
        (14, 11),
        (16, 0),
        (23, 255),
        (24, 0),
        (31, 1),
    ] {
        assert!(matches!(with(at, value), Err(Error::Corrupt(_))), "{at}");
    }
    // The index: a coded part that claims what it has not, lengths that go back, a kind nobody knows.
    assert!(matches!(with(34, 0), Err(Error::Corrupt(_))));
    assert!(matches!(with(32, 9), Err(Error::UnsupportedVersion(_))));
    assert!(matches!(with(37, 1), Err(Error::Corrupt(_))));
}

#[test]
fn damaged_huffman_codes_are_errors() {
    // What huff0 made of 300 bytes, from another implementation, would begin like this table.
    let mut scratch = (Vec::new(), ruzstd::decoding::FrameDecoder::new());
    for seed in 0..2000_u32 {
        let coded: Vec<u8> = (1..60_u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503) >> (i % 13)) as u8)
            .collect();
        let result = huffman::decode(&coded, &mut [0; 300], &mut scratch.0, &mut scratch.1);
        assert!(result.is_err(), "{seed}");
    }
}
