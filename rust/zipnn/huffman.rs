//! Huffman coded bytes as huff0 writes them: four interleaved streams behind a table of weights.
//!
//! They are the literals of a Zstandard block (RFC 8878, section 3.1.1.3.1), so a block is put around
//! them that has no sequences, and a frame around that, for a decoder of Zstandard to read.

use ruzstd::decoding::FrameDecoder;

use crate::error::{Error, Result};

/// Magic, no flags, a window of 2^17 bytes.
const FRAME_HEADER: [u8; 6] = [0x28, 0xB5, 0x2F, 0xFD, 0x00, 0x38];
const COMPRESSED_BLOCK: u32 = 2;
const COMPRESSED_LITERALS: u64 = 2;
/// Four streams, lengths of 18 bits each.
const SIZE_FORMAT: u64 = 3;

/// Decodes `coded`, at most 2^17 bytes, into all of `out`, which has as many at most.
pub(super) fn decode(
    coded: &[u8],
    out: &mut [u8],
    frame: &mut Vec<u8>,
    decoder: &mut FrameDecoder,
) -> Result<()> {
    // A single symbol is stored without a table.
    if let [symbol] = coded {
        out.fill(*symbol);
        return Ok(());
    }
    let literals = COMPRESSED_LITERALS
        | SIZE_FORMAT << 2
        | (out.len() as u64) << 4
        | (coded.len() as u64) << 22;
    // The last block: the header of the literals, the literals, and how many sequences there are.
    let block = 1 | COMPRESSED_BLOCK << 1 | (5 + coded.len() as u32 + 1) << 3;
    frame.clear();
    frame.extend_from_slice(&FRAME_HEADER);
    frame.extend_from_slice(&block.to_le_bytes()[..3]);
    frame.extend_from_slice(&literals.to_le_bytes()[..5]);
    frame.extend_from_slice(coded);
    frame.push(0);
    match decoder.decode_all(frame, out) {
        Ok(count) if count == out.len() => Ok(()),
        Ok(_) => Err(Error::corrupt("a Huffman coded plane ends early")),
        Err(error) => Err(Error::corrupt(format!("a Huffman coded plane: {error}"))),
    }
}
