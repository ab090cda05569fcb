//! `.safetensors` files, plain and compressed.
//!
//! ```text
//! plain file ──▶ header ──▶ streams + outer header ──▶ compressed file, itself a .safetensors
//!                  └──────▶ embedded in its metadata ──▶ the plain file again, byte for byte
//! ```
//!
//! Reading is that line from right to left. Invariants: the names, the metadata and the order of the
//! tensors are those of the plain file, so that tools which list, shard or fetch tensors by name keep
//! working on the compressed one. Small tensors share streams; their names stay.
//!
//! Place in docs/format-files.md: the first half.

mod base;
mod bundles;
mod casts;
pub(crate) mod catalog;
mod dtype;
pub(crate) mod embedded;
mod estimate;
mod header;
mod json;
mod memory_file;
mod parse;
mod parts;
mod plain;
mod reader;
mod repeats;
pub(crate) mod siblings;
mod writer;

use std::io::{Seek, Write};
use std::path::Path;

pub use base::{BaseChoice, BaseModel};
pub use catalog::Catalog;
pub use dtype::ElementType;
pub use header::Header;
pub use plain::MemoryTensor;
pub use reader::{BundledForm, SafetensorsFile, StoredForm};

use crate::CompressOptions;
use crate::container::atomic::write_atomically;
use crate::container::mapped::Mapped;
use crate::error::Result;
use crate::files::Progress;
use memory_file::MemoryFile;
use parse::json_of_file;
use plain::PlainFile;
use writer::{Plain, Source, write_compressed};

/// Compresses the plain file in `map` to `out`; returns the bytes written. `catalog` has the file under
/// the name that comes with it.
pub(crate) fn compress_map<W: Write + Seek>(
    out: &mut W,
    map: &Mapped,
    (base, catalog): (Option<BaseChoice<'_>>, Option<(&Catalog, &str)>),
    options: &CompressOptions,
    progress: &mut Progress<'_>,
) -> Result<u64> {
    let file = map.bytes();
    let json = json_of_file(file)?;
    let (header, data_at) = Header::of_file(file)?;
    let mut rest = &file[data_at..];
    let sources: Vec<Source<'_>> = (0..header.len())
        .map(|index| {
            // The header was checked against the length of the file.
            let (data, later) = rest.split_at(header.tensor_bytes(index) as usize);
            rest = later;
            Source::of_header(&header, index, data)
        })
        .collect();
    let total = file.len() as u64;
    let mut sweep = map.sweep();
    let plain = Plain {
        json,
        header: &header,
        sources: &sources,
        base,
        externals: catalog.map_or_else(Vec::new, |(catalog, name)| {
            catalog.externals(name, sources.len())
        }),
    };
    write_compressed(out, &plain, options, &mut |done| {
        let read = data_at + done as usize;
        sweep.passed(read);
        progress(read as u64, total)
    })
}

/// Writes tensors from memory to a compressed file that decompresses to the very file that the
/// safetensors package would have written. An existing file is replaced, as the package does.
///
/// # Errors
/// [`crate::Error::InvalidArgument`] if the tensors cannot be written, [`crate::Error::Io`], whatever `progress`
/// returns.
pub fn write_file(
    path: &Path,
    tensors: Vec<MemoryTensor<'_>>,
    metadata: Option<Vec<(String, String)>>,
    options: &CompressOptions,
    progress: &mut Progress<'_>,
) -> Result<u64> {
    write_file_with_base(path, tensors, metadata, None, options, progress)
}

/// As [`write_file`], with deltas from a base where they are smaller.
///
/// # Errors
/// As [`write_file`], and those of decoding the base.
pub fn write_file_with_base(
    path: &Path,
    tensors: Vec<MemoryTensor<'_>>,
    metadata: Option<Vec<(String, String)>>,
    base: Option<BaseChoice<'_>>,
    options: &CompressOptions,
    progress: &mut Progress<'_>,
) -> Result<u64> {
    let plain = PlainFile::of_tensors(tensors, metadata)?;
    if let Some(base) = base {
        base.check_target(path)?;
    }
    write_atomically(path, true, |file| {
        write_plain(file, &plain, base, options, progress)
    })
}

/// As [`write_file`], to memory.
///
/// # Errors
/// As [`write_file`], and [`crate::Error::AllocationFailed`].
pub fn write_bytes(
    tensors: Vec<MemoryTensor<'_>>,
    metadata: Option<Vec<(String, String)>>,
    options: &CompressOptions,
    progress: &mut Progress<'_>,
) -> Result<Vec<u8>> {
    let plain = PlainFile::of_tensors(tensors, metadata)?;
    let mut file = MemoryFile::default();
    write_plain(&mut file, &plain, None, options, progress)?;
    Ok(file.into_bytes())
}

fn write_plain<W: Write + Seek>(
    out: &mut W,
    plain: &PlainFile<'_>,
    base: Option<BaseChoice<'_>>,
    options: &CompressOptions,
    progress: &mut Progress<'_>,
) -> Result<u64> {
    let PlainFile {
        json,
        header,
        sources,
    } = plain;
    let total = header.data_bytes();
    let plain = Plain {
        json,
        header,
        sources,
        base,
        externals: Vec::new(),
    };
    let written = write_compressed(out, &plain, options, &mut |done| progress(done, total));
    match base {
        Some(base) => base.model.settle(written, false),
        None => written,
    }
}
