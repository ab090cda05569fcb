//! Whole files: what a file is decides how it is compressed, and results appear whole or not at all.
//!
//! ```text
//! .safetensors ──▶ compressed .safetensors      anything else ──▶ .nz
//! ```
//!
//! Inputs are mapped, outputs are written in large pieces, so memory stays bounded whatever the size of
//! a file. Invariants: a destination is untouched until its new content is complete and on the disk;
//! the result does not depend on names, times or the number of threads.
//!
//! Place in docs/format-files.md: "Telling files apart".

use std::collections::BTreeSet;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

pub use crate::container::file::{StreamCompressor, StreamDecompressor};
pub use crate::container::kind::{ContentKind, content_kind};

use crate::container::atomic::write_atomically;
use crate::container::file::{compress_frames, decode_frames, frame_references, scan_frames};
use crate::container::mapped::Mapped;
use crate::container::pieces::decode_streams;
use crate::error::{Error, Result};
use crate::safetensors::catalog::RangePlan;
use crate::safetensors::siblings::Siblings;
use crate::safetensors::{BaseChoice, Catalog, Header, SafetensorsFile, compress_map};
use crate::{CompressOptions, DecompressOptions, Stream};

/// Told the original bytes that are done, and how many there are; an error from it stops the work and
/// is handed to the caller, with nothing left behind.
pub type Progress<'a> = dyn FnMut(u64, u64) -> Result<()> + 'a;

/// Compresses `src` to `dst`; returns the original and the compressed length.
///
/// # Errors
/// [`Error::InvalidArgument`] if `src` is compressed already, [`Error::Io`] naming the file (of kind
/// `AlreadyExists` if there is a `dst` and `overwrite` is false), whatever `progress` returns.
pub fn compress_file(
    src: &Path,
    dst: &Path,
    options: &CompressOptions,
    overwrite: bool,
    progress: &mut Progress<'_>,
) -> Result<(u64, u64)> {
    compress_inner(src, dst, (None, None), options, overwrite, progress)
}

/// As [`compress_file`]; tensors of a `.safetensors` file become deltas where that is smaller. Other
/// files are compressed as without a base.
///
/// # Errors
/// As [`compress_file`], and those of decoding the base.
pub fn compress_file_with_base(
    src: &Path,
    dst: &Path,
    base: Option<BaseChoice<'_>>,
    options: &CompressOptions,
    overwrite: bool,
    progress: &mut Progress<'_>,
) -> Result<(u64, u64)> {
    compress_inner(src, dst, (base, None), options, overwrite, progress)
}

/// As [`compress_file`] for a `.safetensors` file that `catalog` knows as `name`: tensors of files before
/// it in the catalog are not stored again.
///
/// # Errors
/// As [`compress_file`].
pub fn compress_shard(
    src: &Path,
    dst: &Path,
    (catalog, name): (&Catalog, &str),
    options: &CompressOptions,
    overwrite: bool,
    progress: &mut Progress<'_>,
) -> Result<(u64, u64)> {
    compress_inner(
        src,
        dst,
        (None, Some((catalog, name))),
        options,
        overwrite,
        progress,
    )
}

/// Compresses a file of any kind that is called `name` beside those of `catalog`, if `ranges` of it that are
/// tensors of the catalog make up at least half of it; `None` if they do not.
///
/// # Errors
/// As [`compress_file`].
pub fn compress_ranges(
    src: &Path,
    dst: &Path,
    (catalog, name): (&Catalog, &str),
    ranges: Vec<Range<usize>>,
    options: &CompressOptions,
    progress: &mut Progress<'_>,
) -> Result<Option<(u64, u64)>> {
    let map = Mapped::open(src)?;
    let (data, original) = (map.bytes(), map.bytes().len() as u64);
    let plan = RangePlan::new(catalog, name, data, ranges, &mut || progress(0, original))?;
    if plan.bytes() == 0 || plan.bytes() < data.len() / 2 {
        return Ok(None);
    }
    write_atomically(dst, true, |out| {
        let compressed = compress_frames(out, data, &plan, options, &mut |done| {
            progress(done, original)
        });
        Ok(Some((original, map.settle(compressed, false)?)))
    })
}

fn compress_inner(
    src: &Path,
    dst: &Path,
    (base, catalog): (Option<BaseChoice<'_>>, Option<(&Catalog, &str)>),
    options: &CompressOptions,
    overwrite: bool,
    progress: &mut Progress<'_>,
) -> Result<(u64, u64)> {
    let map = Mapped::open(src)?;
    let original = map.bytes().len() as u64;
    let kind = ContentKind::of(map.bytes());
    if kind.is_compressed() {
        return Err(Error::InvalidArgument(format!(
            "{} is already compressed",
            src.display()
        )));
    }
    if let Some(base) = base {
        base.check_target(dst)?;
    }
    write_atomically(dst, overwrite, |out| {
        progress(0, original)?;
        let compressed = if kind == ContentKind::Safetensors {
            compress_map(out, &map, (base, catalog), options, progress)
        } else {
            let mut sweep = map.sweep();
            compress_frames(
                out,
                map.bytes(),
                &RangePlan::default(),
                options,
                &mut |done| {
                    sweep.passed(done as usize);
                    progress(done, original)
                },
            )
        };
        let compressed = map.settle(compressed, false);
        let compressed = match base {
            Some(base) => base.model.settle(compressed, false),
            None => compressed,
        };
        Ok((original, compressed?))
    })
}

/// Restores the original of `src` as `dst`, byte for byte; returns the compressed and the original
/// length.
///
/// # Errors
/// [`Error::Corrupt`] if `src` is damaged or not compressed, [`Error::OutputTooLarge`] before anything
/// is written if the original has more than `max_output_bytes`, [`Error::Io`] as [`compress_file`].
pub fn decompress_file(
    src: &Path,
    dst: &Path,
    options: &DecompressOptions,
    overwrite: bool,
    max_output_bytes: Option<u64>,
    progress: &mut Progress<'_>,
) -> Result<(u64, u64)> {
    decompress_file_with_base(
        src,
        dst,
        None,
        options,
        overwrite,
        max_output_bytes,
        progress,
    )
}

/// As [`decompress_file`]; deltas are taken from the base at `base`, or from the one that `src` names.
///
/// # Errors
/// As [`decompress_file`], and [`Error::BaseMismatch`] without the right base; nothing is written then.
pub fn decompress_file_with_base(
    src: &Path,
    dst: &Path,
    base: Option<&Path>,
    options: &DecompressOptions,
    overwrite: bool,
    max_output_bytes: Option<u64>,
    progress: &mut Progress<'_>,
) -> Result<(u64, u64)> {
    let source = CompressedFile::open(src, base)?;
    let original = source.original_bytes()?;
    source.references(true)?;
    if let Some(limit) = max_output_bytes.filter(|&limit| original > limit) {
        return Err(Error::OutputTooLarge {
            needed: original,
            limit,
        });
    }
    write_atomically(dst, overwrite, |out| {
        source.decode(original, options, progress, &mut |piece| {
            Ok(out.write_all(piece)?)
        })
    })
}

/// The files that a compressed file refers to, by names relative to its folder; with `check` each tensor
/// referred to is looked for.
///
/// # Errors
/// [`Error::Corrupt`] if `src` is damaged or not compressed, [`Error::BaseMismatch`] if it refers to what
/// is not there.
pub fn references(src: &Path, check: bool) -> Result<BTreeSet<String>> {
    CompressedFile::open(src, None)?.references(check)
}

/// Decodes all of `src` and writes nothing; returns the compressed and the original length.
///
/// # Errors
/// As [`decompress_file`].
pub fn verify_file(
    src: &Path,
    options: &DecompressOptions,
    progress: &mut Progress<'_>,
) -> Result<(u64, u64)> {
    verify_file_with_base(src, None, options, progress)
}

/// As [`verify_file`], with the base as in [`decompress_file_with_base`].
///
/// # Errors
/// As [`decompress_file_with_base`].
pub fn verify_file_with_base(
    src: &Path,
    base: Option<&Path>,
    options: &DecompressOptions,
    progress: &mut Progress<'_>,
) -> Result<(u64, u64)> {
    let source = CompressedFile::open(src, base)?;
    source.decode(source.original_bytes()?, options, progress, &mut |_| Ok(()))
}

/// A compressed file of any kind, mapped.
enum CompressedFile {
    Safetensors(Box<SafetensorsFile>),
    Frames(Mapped),
    Tensor(Mapped),
}

impl CompressedFile {
    fn open(path: &Path, base: Option<&Path>) -> Result<Self> {
        let named = |error: Error| error.within(&path.display().to_string());
        let map = Mapped::open(path)?;
        match ContentKind::of(map.bytes()) {
            ContentKind::NeuzipSafetensors => {
                let file = SafetensorsFile::of_map(map, base).map_err(named)?;
                Ok(Self::Safetensors(Box::new(file)))
            }
            ContentKind::NeuzipFile => Ok(Self::Frames(map)),
            ContentKind::NeuzipTensor => Ok(Self::Tensor(map)),
            ContentKind::Safetensors | ContentKind::Other => {
                map.settle(Err(named(not_compressed(&map))), true)
            }
        }
    }

    fn map(&self) -> &Mapped {
        match self {
            Self::Safetensors(file) => file.map(),
            Self::Frames(map) | Self::Tensor(map) => map,
        }
    }

    /// What reading the file came to; an error says which file, and whether it changed meanwhile.
    fn settle<T>(&self, result: Result<T>, verify: bool) -> Result<T> {
        let settled = match self {
            Self::Safetensors(file) => file.settle(result, verify),
            Self::Frames(map) | Self::Tensor(map) => map.settle(result, verify),
        };
        settled.map_err(|error| error.within(&self.map().path().display().to_string()))
    }

    /// The other files it refers to; with `check` each tensor referred to is looked for.
    fn references(&self, check: bool) -> Result<BTreeSet<String>> {
        let files = match self {
            Self::Safetensors(file) => file.references(check),
            Self::Frames(map) => {
                let siblings = check.then(|| Siblings::of(map.path()));
                frame_references(map.bytes(), siblings.as_ref())
            }
            Self::Tensor(_) => Ok(BTreeSet::new()),
        };
        self.settle(files, true)
    }

    /// Checks the structure and says how long the original is.
    fn original_bytes(&self) -> Result<u64> {
        let bytes = match self {
            Self::Safetensors(file) => Ok(file.original_bytes()),
            Self::Frames(map) => scan_frames(map.bytes()),
            Self::Tensor(map) => Stream::parse(map.bytes()).map(|stream| stream.original_len()),
        };
        self.settle(bytes, true)
    }

    fn decode(
        &self,
        original: u64,
        options: &DecompressOptions,
        progress: &mut Progress<'_>,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<(u64, u64)> {
        progress(0, original)?;
        let mut done = 0;
        let mut sink = |piece: &[u8]| {
            sink(piece)?;
            done += piece.len() as u64;
            progress(done, original)
        };
        let decoded = match self {
            Self::Safetensors(file) => file.decode_file(options, &mut sink),
            Self::Frames(map) => {
                let mut sweep = map.sweep();
                decode_frames(
                    map.bytes(),
                    &Siblings::of(map.path()),
                    options,
                    &mut |piece, read| {
                        sweep.passed(read);
                        sink(piece)
                    },
                )
            }
            Self::Tensor(map) => decode_tensor(map.bytes(), options, &mut sink),
        };
        self.settle(decoded, options.verify)?;
        Ok((self.map().bytes().len() as u64, original))
    }
}

fn decode_tensor(
    bytes: &[u8],
    options: &DecompressOptions,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let stream = std::iter::once(Stream::parse(bytes).map(|stream| (stream, ())));
    decode_streams(stream, options, |(), error| error, |piece, ()| sink(piece))
}

/// Says why a file is not one of ours; a damaged one may look like a `.safetensors` still.
fn not_compressed(map: &Mapped) -> Error {
    let file = map.bytes();
    match Header::of_file(file) {
        Err(Error::Corrupt(reason)) if file.get(8) == Some(&b'{') => Error::Corrupt(format!(
            "not a compressed file, or a damaged one ({reason})"
        )),
        _ => Error::corrupt("not a compressed file"),
    }
}
