//! Decoding streams of any size over threads, with buffers of bounded size, in order.
//!
//! Streams are cut into pieces; threads decode pieces while the calling thread hands on those that are
//! done. Invariants: a piece ends at the end of a chunk or of the stream, so every chunk is decoded once
//! and its hash is checked; a piece takes [`PIECE_BYTES`], or the length of a chunk if that is more.
//!
//! Place in docs/format-files.md: none.

use std::sync::Arc;

use crate::constants::CHUNK_LOG2;
use crate::error::{Error, Result, try_zeroed};
use crate::parallel::{Ahead, in_order};
use crate::{DecompressOptions, Stream, Threads};

/// Original bytes that a thread works on at once. Large enough to make the calls of the file system
/// cheap, small enough for the pieces under way to stay in the cache.
pub(crate) const PIECE_BYTES: usize = 2 << 20;
/// Pieces under way or waiting to be written: 4 MiB per thread, and two more.
pub(crate) const AHEAD: Ahead = Ahead {
    per_thread: 2 * PIECE_BYTES,
    besides: 2 * PIECE_BYTES,
};

/// Where a piece that begins at `position` of the stream's bytes should end.
pub(crate) fn piece_end(stream: &Stream<'_>, position: u64) -> u64 {
    // A stream without chunks says it is one chunk of any length, and may be cut anywhere.
    let chunk_bytes = stream.chunk_bytes();
    let cut_at_will = chunk_bytes > 1 << CHUNK_LOG2.end();
    // Both are powers of two, so a multiple of the larger is one of the chunk length.
    let step = if cut_at_will {
        PIECE_BYTES
    } else {
        chunk_bytes.max(PIECE_BYTES)
    } as u64;
    (position / step + 1)
        .saturating_mul(step)
        .min(stream.original_len())
}

/// The first `len` bytes of a buffer that is used again and again, made longer if it must be.
pub(crate) fn room(buffer: &mut Vec<u8>, len: usize) -> Result<&mut [u8]> {
    if buffer.len() < len {
        // The old content is not worth copying.
        *buffer = Vec::new();
        *buffer = try_zeroed(len.next_power_of_two().min(PIECE_BYTES).max(len))?;
    }
    Ok(&mut buffer[..len])
}

/// Gives back the memory of a buffer that took an unusually long piece.
pub(crate) fn trim(buffer: &mut Vec<u8>) {
    if buffer.len() > PIECE_BYTES {
        *buffer = Vec::new();
    }
}

/// Options for work on one piece, which is one thread's.
pub(crate) fn on_this_thread(options: &DecompressOptions) -> DecompressOptions {
    DecompressOptions {
        threads: Threads::new(1),
        ..*options
    }
}

/// A piece of a stream, and whose it is.
struct Piece<'a, P> {
    stream: Arc<(Stream<'a>, P)>,
    start: u64,
    bytes: usize,
}

/// Cuts streams into pieces, each with its weight.
fn pieces<'a, P>(
    mut streams: impl Iterator<Item = Result<(Stream<'a>, P)>>,
) -> impl Iterator<Item = Result<(usize, Piece<'a, P>)>> {
    let mut current: Option<(Arc<(Stream<'a>, P)>, u64)> = None;
    std::iter::from_fn(move || {
        loop {
            if let Some((stream, position)) = &mut current
                && *position < stream.0.original_len()
            {
                let (start, end) = (*position, piece_end(&stream.0, *position));
                *position = end;
                let bytes = (end - start) as usize;
                let stream = stream.clone();
                return Some(Ok((
                    bytes,
                    Piece {
                        stream,
                        start,
                        bytes,
                    },
                )));
            }
            match streams.next()? {
                Ok(stream) => current = Some((Arc::new(stream), 0)),
                Err(error) => return Some(Err(error)),
            }
        }
    })
}

/// Decodes streams one after the other; `sink` gets their bytes in order, each with what came along
/// with its stream. `named` says in an error which stream it is about.
pub(crate) fn decode_streams<'a, P: Send + Sync>(
    streams: impl Iterator<Item = Result<(Stream<'a>, P)>>,
    options: &DecompressOptions,
    named: impl Fn(&P, Error) -> Error + Sync,
    mut sink: impl FnMut(&[u8], &P) -> Result<()>,
) -> Result<()> {
    let alone = on_this_thread(options);
    in_order(
        options.threads,
        AHEAD,
        &mut Vec::new(),
        pieces(streams),
        |piece, buffer: &mut Vec<u8>| {
            let (stream, of) = &*piece.stream;
            let out = room(buffer, piece.bytes)?;
            stream
                .decode_into(piece.start, out, &alone)
                .map_err(|error| named(of, error))?;
            Ok(piece)
        },
        |piece, buffer| {
            sink(&buffer[..piece.bytes], &piece.stream.1)?;
            trim(buffer);
            Ok(())
        },
    )
}
