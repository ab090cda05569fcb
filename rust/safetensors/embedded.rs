//! The original header inside the compressed file's `__metadata__`.
//!
//! One metadata entry, `neuzip.header`, holds the JSON of the plain file as base64 of
//!
//! ```text
//! [8 bytes] xxh3-64 of everything after it, little endian
//! [varint]  length of the JSON
//! [rest]    the JSON, as a raw deflate stream
//! ```
//!
//! Invariants: the checksum is verified before the length is believed; the length is exact.
//!
//! Place in docs/format-files.md: "The embedded header".

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use xxhash_rust::xxh3::xxh3_64;

use super::header::{Header, MAX_HEADER_BYTES};
use crate::error::{Error, Result, try_zeroed};
use crate::varint::{read_varint, write_varint};

/// The metadata key of the original header.
pub(crate) const HEADER_KEY: &str = "neuzip.header";

const CHECKSUM_BYTES: usize = 8;
/// The usual trade; a higher level gains less than a percent of a header on real models.
const DEFLATE_LEVEL: u32 = 6;
/// From this length on the header is that of thousands of tensors, and takes a part of the time.
const LONG_BYTES: usize = 1 << 18;
const LONG_DEFLATE_LEVEL: u32 = 3;

/// Writes the metadata value that holds `json`.
pub(super) fn write_embedded(json: &[u8]) -> Result<String> {
    let mut blob = vec![0; CHECKSUM_BYTES];
    write_varint(&mut blob, json.len() as u64);
    let level = if json.len() < LONG_BYTES {
        DEFLATE_LEVEL
    } else {
        LONG_DEFLATE_LEVEL
    };
    let mut deflate = Compress::new(Compression::new(level), false);
    loop {
        let consumed = deflate.total_in() as usize;
        blob.reserve(4096 + (json.len() - consumed) / 4);
        let status = deflate.compress_vec(&json[consumed..], &mut blob, FlushCompress::Finish);
        match status {
            Ok(Status::StreamEnd) => break,
            Ok(Status::Ok | Status::BufError) => {}
            Err(error) => return Err(Error::Io(std::io::Error::other(error))),
        }
    }
    let checksum = xxh3_64(&blob[CHECKSUM_BYTES..]);
    blob[..CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
    Ok(STANDARD.encode(blob))
}

/// Reads what [`write_embedded`] wrote: the JSON of the original header.
pub(super) fn read_embedded(value: &str) -> Result<Vec<u8>> {
    if let Some(version) = later_version(value) {
        return Err(Error::UnsupportedVersion(format!(
            "compressed .safetensors of version {version}"
        )));
    }
    let body = open(value).ok_or_else(|| Error::corrupt("the embedded header is damaged"))?;
    let mut position = CHECKSUM_BYTES;
    let length = read_varint(&body, &mut position)?;
    let length = usize::try_from(length)
        .ok()
        .filter(|&length| length <= MAX_HEADER_BYTES)
        .ok_or_else(|| Error::corrupt("the embedded header is too long"))?;
    // One byte of room more, so that a longer stream is seen as such.
    let mut json = try_zeroed(length + 1)?;
    let mut inflate = Decompress::new(false);
    let status = inflate.decompress(&body[position..], &mut json, FlushDecompress::Finish);
    let whole = matches!(status, Ok(Status::StreamEnd))
        && inflate.total_out() == length as u64
        && inflate.total_in() == (body.len() - position) as u64;
    if !whole {
        return Err(Error::corrupt(
            "the embedded header does not inflate to its length",
        ));
    }
    json.truncate(length);
    Ok(json)
}

/// The version of a layout that does not exist yet: it will put its number and a colon, which base64
/// does not use, in front.
fn later_version(value: &str) -> Option<&str> {
    let (version, _) = value.split_once(':')?;
    (!version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit())).then_some(version)
}

/// Decodes the base64 and verifies the checksum.
fn open(value: &str) -> Option<Vec<u8>> {
    let body = STANDARD.decode(value).ok()?;
    let (checksum, rest) = body.split_first_chunk::<CHECKSUM_BYTES>()?;
    (u64::from_le_bytes(*checksum) == xxh3_64(rest)).then_some(body)
}

/// Whether a header is that of a compressed file.
///
/// An intact embedded header under another key counts too: then the key was damaged, and the file must
/// not pass for a plain one whose tensors are bytes.
pub(crate) fn is_compressed(header: &Header) -> bool {
    header
        .metadata()
        .any(|(key, value)| key == HEADER_KEY || open(value).is_some())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn roundtrip(json: Vec<u8>, repeat in 1_usize..2000) {
            let json = json.repeat(repeat);
            let value = write_embedded(&json).unwrap();
            prop_assert_eq!(read_embedded(&value).unwrap(), json);
        }
    }

    #[test]
    fn truncation_and_corruption() {
        let value =
            write_embedded(br#"{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}  "#).unwrap();
        for cut in 0..value.len() {
            assert!(read_embedded(&value[..cut]).is_err());
        }
        for position in 0..value.len() {
            for bit in 0..7 {
                let mut bytes = value.clone().into_bytes();
                bytes[position] ^= 1 << bit;
                assert!(read_embedded(std::str::from_utf8(&bytes).unwrap()).is_err());
            }
        }
    }

    #[test]
    fn later_versions_are_unsupported() {
        let value = format!("2:{}", write_embedded(b"{}").unwrap());
        assert!(matches!(
            read_embedded(&value),
            Err(Error::UnsupportedVersion(_))
        ));
        assert!(matches!(read_embedded(":"), Err(Error::Corrupt(_))));
    }

    #[test]
    fn a_vouched_for_but_wrong_length_is_refused() {
        let blob = STANDARD.decode(write_embedded(b"{}").unwrap()).unwrap();
        for length in [1_u8, 3, 127] {
            let mut blob = blob.clone();
            blob[CHECKSUM_BYTES] = length;
            let checksum = xxh3_64(&blob[CHECKSUM_BYTES..]);
            blob[..CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
            assert!(read_embedded(&STANDARD.encode(blob)).is_err());
        }
    }
}
