//! Reading what zipnn (arXiv 2411.05239, versions 0.3 to 0.5) has written, to move away from it.
//!
//! ```text
//! file = frames, one after the other; a frame = header, index, planes of bytes in chunks
//! ```
//!
//! A chunk is a part of the original whose bytes are grouped by their place in an element, each group
//! stored raw or Huffman coded. The layout is described where it is read (`frame`, `chunk`, `huffman`).
//! zipnn keeps no checksum of anything. Invariants: the structure of all frames is checked before
//! anything is decoded; every length is compared with the input before it is used; memory grows with
//! what has been decoded, not with what a header claims.
//!
//! Place in docs/format.md: none; it is another program's format.

mod chunk;
mod frame;
mod huffman;

use std::io::Write;
use std::path::Path;

use self::chunk::{Scratch, decode};
use self::frame::Frame;
pub use self::frame::{Header, Layout};
use crate::Threads;
use crate::container::atomic::write_atomically;
use crate::container::mapped::Mapped;
use crate::error::{Error, Result};
use crate::files::Progress;
use crate::parallel::{Ahead, in_order};

/// Original bytes under way or waiting to be written: a few chunks of the usual 256 KiB per thread.
const AHEAD: Ahead = Ahead {
    per_thread: 1 << 20,
    besides: 1 << 20,
};

/// Restores what zipnn has compressed, byte for byte; returns the compressed and the original length.
///
/// # Errors
/// [`Error::Corrupt`] if it is damaged as far as can be told, [`Error::UnsupportedVersion`] if it was
/// written in a way that is not read here, [`Error::OutputTooLarge`] before anything is written.
pub fn decompress_file(
    src: &Path,
    dst: &Path,
    threads: Threads,
    overwrite: bool,
    max_output_bytes: Option<u64>,
    progress: &mut Progress<'_>,
) -> Result<(u64, u64)> {
    let map = Mapped::open(src)?;
    let named = |error: Error| error.within(&src.display().to_string());
    let original = original_bytes(map.bytes(), max_output_bytes).map_err(named)?;
    write_atomically(dst, overwrite, |out| {
        progress(0, original)?;
        let mut done = 0;
        decode_frames(map.bytes(), threads, &mut |piece| {
            out.write_all(piece)?;
            done += piece.len() as u64;
            progress(done, original)
        })
        .map_err(named)?;
        map.unchanged()?;
        Ok((map.bytes().len() as u64, original))
    })
}

/// Restores the original bytes of what zipnn has compressed.
///
/// # Errors
/// As [`decompress_file`].
pub fn decompress(
    data: &[u8],
    threads: Threads,
    max_output_bytes: Option<u64>,
    progress: &mut Progress<'_>,
) -> Result<Vec<u8>> {
    let original = original_bytes(data, max_output_bytes)?;
    let mut out = Vec::new();
    decode_frames(data, threads, &mut |piece| {
        out.try_reserve(piece.len())
            .map_err(|_| Error::AllocationFailed { bytes: original })?;
        out.extend_from_slice(piece);
        progress(out.len() as u64, original)
    })?;
    Ok(out)
}

/// The header of the first frame.
///
/// # Errors
/// As [`decompress_file`].
pub fn header(data: &[u8]) -> Result<Header> {
    Ok(Frame::parse(data)?.header)
}

/// Checks the structure of all frames and adds up their original lengths.
fn original_bytes(data: &[u8], limit: Option<u64>) -> Result<u64> {
    let mut needed = 0_u64;
    for frame in frames(data) {
        // A frame has fewer original bytes than 2^63, so the sum saturates at most.
        needed = needed.saturating_add(frame?.header.original_bytes);
    }
    match limit.filter(|&limit| needed > limit) {
        Some(limit) => Err(Error::OutputTooLarge { needed, limit }),
        None => Ok(needed),
    }
}

/// Cuts the input into its frames, which fill it.
fn frames(data: &[u8]) -> impl Iterator<Item = Result<Frame<'_>>> {
    let mut at = 0;
    let mut failed = false;
    std::iter::from_fn(move || {
        // At least one: an empty input is none of zipnn's.
        if failed || (at == data.len() && at > 0) {
            return None;
        }
        let frame = Frame::parse(&data[at..])
            .and_then(|frame| {
                let alone = frame.header.streaming || (at == 0 && frame.bytes == data.len());
                alone
                    .then_some(frame)
                    .ok_or_else(|| Error::corrupt("there are bytes after the end"))
            })
            .map_err(|error| error.within(&format!("zipnn frame at byte {at}")));
        match &frame {
            Ok(frame) => at += frame.bytes,
            Err(_) => failed = true,
        }
        Some(frame)
    })
}

fn decode_frames(
    data: &[u8],
    threads: Threads,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let chunks = frames(data).flat_map(|frame| {
        // An error takes the place of the chunks.
        let (chunks, failed) = match frame {
            Ok(frame) => (Some(frame.chunks()), None),
            Err(error) => (None, Some(Err(error))),
        };
        let chunks = chunks.into_iter().flatten();
        chunks.chain(failed)
    });
    let mut free: Vec<Scratch> = Vec::new();
    in_order(
        threads,
        AHEAD,
        &mut free,
        chunks.map(|chunk| chunk.map(|chunk| (chunk.original_bytes(), chunk))),
        |chunk, scratch| decode(&chunk, scratch),
        |(), scratch| sink(&scratch.out),
    )
}

#[cfg(test)]
mod tests;
