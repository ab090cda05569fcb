//! What the tests of whole files share.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use neuzip_rs::files::{compress_file, decompress_file, verify_file};
use neuzip_rs::safetensors::SafetensorsFile;
use neuzip_rs::{CompressOptions, DecompressOptions, Error, Result};
use tempfile::TempDir;

/// Original bytes of a frame of a `.nz` file.
pub(crate) const FRAME_BYTES: usize = 16 << 20;

pub(crate) struct Place {
    folder: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub(crate) fn compressed(&self, original: &[u8]) -> Vec<u8> {
        let (src, dst) = (self.put("original", original), self.path("compressed"));
        let lengths = compress(&src, &dst).unwrap();
        let bytes = fs::read(&dst).unwrap();
        assert_eq!(lengths, (original.len() as u64, bytes.len() as u64));
        bytes
    }
}

pub(crate) fn compress(src: &Path, dst: &Path) -> Result<(u64, u64)> {
    compress_file(src, dst, &CompressOptions::default(), true, &mut |_, _| {
        Ok(())
    })
}

pub(crate) fn decompress(src: &Path, dst: &Path) -> Result<(u64, u64)> {
    let options = DecompressOptions::default();
    decompress_file(src, dst, &options, true, None, &mut |_, _| Ok(()))
}

pub(crate) fn verify(src: &Path) -> Result<(u64, u64)> {
    verify_file(src, &DecompressOptions::default(), &mut |_, _| Ok(()))
}

pub(crate) fn is_about_data(error: &Error) -> bool {
    matches!(
        error,
        Error::Corrupt(_) | Error::UnsupportedVersion(_) | Error::BaseMismatch(_)
    )
}

/// Deterministic bytes that no model shrinks.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// A file whose data is the tensors' in order, with the header as the safetensors package spaces it.
pub(crate) fn safetensors(metadata: &str, tensors: &[(&str, &str, &[u64], &[u8])]) -> Vec<u8> {
    let (mut json, mut data) = (format!("{{{metadata}"), Vec::new());
    for (number, (name, dtype, shape, bytes)) in tensors.iter().enumerate() {
        let comma = if number == 0 && metadata.is_empty() {
            ""
        } else {
            ","
        };
        let begin = data.len();
        data.extend_from_slice(bytes);
        let end = data.len();
        write!(
            json,
            r#"{comma}"{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
        )
        .unwrap();
    }
    json.push_str("}  ");
    whole(&json, &data)
}

pub(crate) fn whole(json: &str, data: &[u8]) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes(), json.as_bytes(), data].concat()
}

/// Two weights that are tied, one that is not, an empty one, a constant one, a packed one.
pub(crate) fn small_model(seed: u64) -> Vec<u8> {
    let weight = noise(240, seed);
    safetensors(
        r#""__metadata__":{"format":"pt","é":"\n"}"#,
        &[
            ("embed", "BF16", &[12, 10], &weight),
            ("empty", "F32", &[0, 4], &[]),
            ("head", "BF16", &[12, 10], &weight),
            ("bias", "F32", &[16], &[0; 64]),
            ("scale", "F64", &[], &noise(8, seed + 1)),
            ("packed", "F4", &[2, 9], &noise(9, seed + 2)),
            ("other", "BF16", &[120], &noise(240, seed + 3)),
        ],
    )
}

pub(crate) fn read_all(path: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let file = SafetensorsFile::open(path)?;
    let mut tensors = Vec::new();
    for index in 0..file.header().len() {
        let mut bytes = vec![0; usize::try_from(file.header().tensor_bytes(index)).unwrap()];
        let options = DecompressOptions::default();
        file.read_into(index, 0, &mut bytes, &options, &mut |_| Ok(()))?;
        tensors.push((file.header().name(index).to_owned(), bytes));
    }
    Ok(tensors)
}
