//! Numbers of the wire format and of the encoder, in one place.

// --- Wire: fixed for ever once 0.1.0 is out ------------------------------------------------

/// First bytes of a tensor stream; the last one is the format version.
pub(crate) const STREAM_MAGIC: [u8; 3] = [0x89, b'N', b'Z'];
/// Version this release writes and reads.
pub(crate) const FORMAT_VERSION: u8 = 1;
/// Lanes of the entropy coder: symbol `i` belongs to lane `i mod 64`.
pub(crate) const LANES: usize = 64;
/// Slots of a frequency table, the sum of its frequencies.
pub(crate) const SLOTS: usize = 256;
/// Smallest state of a lane, where every lane starts and ends.
pub(crate) const STATE_LOW: u16 = 256;
/// Bytes of the 64 states at the head of a coded plane: 64 low bytes, then 64 high bytes.
pub(crate) const STATES_BYTES: usize = 2 * LANES;
/// Symbols of a table, the escape included.
pub(crate) const MAX_SYMBOLS: usize = 64;
/// Index of the escape in a table that has one.
pub(crate) const ESCAPE: u8 = 63;
/// Widest coded plane: a symbol and its escape take at most two bytes.
pub(crate) const MAX_CODED_BITS: u32 = 16;
/// Contexts of a coded plane with several tables.
pub(crate) const MAX_CONTEXTS: usize = 16;
/// Planes of one model that are coded in contexts: their tables are large.
pub(crate) const MAX_CONTEXT_PLANES: usize = 2;
/// Most raw bits of an element in a delta: with seven bits before them they fit one 64-bit load.
pub(crate) const MAX_DELTA_RAW_BITS: u32 = 56;
/// Elements of a sub-block: the unit of raw planes and of trailing zero counts.
pub(crate) const SUB_BLOCK: usize = 4096;
/// Alignment of payloads and of the planes inside them.
pub(crate) const ALIGNMENT: usize = 16;
/// Bytes of the checksum that closes a prelude.
pub(crate) const CHECKSUM_BYTES: usize = 4;
/// Bytes of a chunk hash.
pub(crate) const HASH_BYTES: usize = 8;

// --- Limits ---------------------------------------------------------------------------------

/// Dimensions of a shape.
pub(crate) const MAX_DIMS: usize = 255;
/// log2 of the smallest and the largest chunk, in original bytes.
pub(crate) const CHUNK_LOG2: std::ops::RangeInclusive<u32> = 12..=26;
/// Models of one stream.
pub(crate) const MAX_MODELS: usize = 4096;
/// Planes of one model: two for each byte of the widest element.
pub(crate) const MAX_PLANES: usize = 16;

// --- Defaults of the encoder ----------------------------------------------------------------

/// log2 of the chunk size where the caller names none: 128 KiB.
pub(crate) const DEFAULT_CHUNK_LOG2: u32 = 17;
/// log2 of the chunk size for wider types from [`LARGE_BYTES`] on: 256 KiB.
pub(crate) const LARGE_CHUNK_LOG2: u32 = 18;
/// Tensors from this size on have two chunks at least, which take turns in a decoder. (Threads take
/// [`UNIT_BYTES`] at a time, so that larger chunks do not keep any from working.)
pub(crate) const LARGE_BYTES: usize = 1 << 19;
/// log2 of the largest chunks that the level `max` makes of typed tensors: 1 MiB.
pub(crate) const MAX_LEVEL_CHUNK_LOG2: u32 = 20;
/// Original bytes that a thread encodes or decodes before it takes the next piece of work.
pub(crate) const UNIT_BYTES: usize = 768 << 10;
/// Outputs from this size on are written past the caches, which they would only empty.
pub(crate) const PAST_CACHE_BYTES: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_hold_the_maxima() {
        assert!(*CHUNK_LOG2.end() < 32, "chunk lengths are 32-bit");
        assert_eq!(ESCAPE as usize + 1, MAX_SYMBOLS);
        assert_eq!(SUB_BLOCK % LANES, 0);
        assert_eq!((SUB_BLOCK / 8) % ALIGNMENT, 0);
        assert!(1_usize << CHUNK_LOG2.start() >= ALIGNMENT);
    }
}
