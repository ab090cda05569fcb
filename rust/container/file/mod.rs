//! `.nz` files: any bytes, as frames that are tensor streams of bytes.
//!
//! ```text
//! [8 bytes] 89 4E 5A 46 0D 0A 1A 01
//! frame     [varint] length of the stream, above 0; [stream] dtype uint8, shape (n,), 1 <= n <= 16 MiB
//! end       [varint] 0; [8 bytes] original length; [8 bytes] xxh3-64 of all frames' prelude checksums
//! ```
//!
//! Invariants: a frame holds at most 16 MiB, so that reading needs bounded memory whatever a file
//! claims; the end record is required and nothing follows it, so that a truncated file never passes for
//! a shorter one, nor one with frames left out or swapped.
//!
//! Place in docs/format-files.md: ".nz files".

mod reader;
mod writer;

pub use reader::StreamDecompressor;
pub(crate) use reader::{decode_frames, frame_references, scan_frames};
pub use writer::StreamCompressor;
pub(crate) use writer::compress_frames;

use xxhash_rust::xxh3::Xxh3;

use crate::Stream;
use crate::error::{Error, Result};

/// First bytes of a `.nz` file; the last one is the version. The line ends and the DOS end-of-file
/// character in front of it show transfers that treat the file as text.
pub(crate) const FILE_MAGIC: [u8; 8] = [0x89, b'N', b'Z', b'F', 0x0D, 0x0A, 0x1A, 0x01];
/// Original bytes of every frame but the last.
pub(crate) const FRAME_BYTES: usize = 16 << 20;
/// Longest stream of a frame. Incompressible bytes take little more than themselves.
const MAX_STREAM_BYTES: usize = 2 * FRAME_BYTES;
/// Width of the end record after its zero.
const END_BYTES: usize = 16;
/// Longest number, in bytes.
const MAX_VARINT_BYTES: usize = 10;

/// Whether `bytes` begin as a `.nz` file of any version.
pub(crate) fn has_file_magic(bytes: &[u8]) -> bool {
    bytes.starts_with(&FILE_MAGIC[..7])
}

/// What the end record says: kept while frames are written or read.
#[derive(Default)]
struct Totals {
    original: u64,
    // Aligned to 64 bytes, which the memory of a Python object that holds this is not.
    checksums: Box<Xxh3>,
}

impl Totals {
    fn add(&mut self, stream: &Stream<'_>) -> Result<()> {
        self.original = self
            .original
            .checked_add(stream.original_len())
            .ok_or_else(|| Error::corrupt("the frames exceed 2^64 bytes"))?;
        self.checksums
            .update(&stream.prelude_checksum().to_le_bytes());
        Ok(())
    }

    fn end_record(&self) -> [u8; END_BYTES] {
        let mut record = [0; END_BYTES];
        record[..8].copy_from_slice(&self.original.to_le_bytes());
        record[8..].copy_from_slice(&self.checksums.digest().to_le_bytes());
        record
    }

    fn check_end(&self, record: &[u8]) -> Result<()> {
        if record == self.end_record() {
            return Ok(());
        }
        Err(Error::corrupt(
            "the end record does not fit the frames in front of it",
        ))
    }
}

/// Adds bytes to a buffer, or says that there is no memory for them.
fn append(buffer: &mut Vec<u8>, data: &[u8]) -> Result<()> {
    buffer
        .try_reserve(data.len())
        .map_err(|_| Error::AllocationFailed {
            bytes: data.len() as u64,
        })?;
    buffer.extend_from_slice(data);
    Ok(())
}
