//! The structs of `cuda/layout.cuh`, field by field. Little-endian, as every GPU is.

/// How the bytes of a chunk come about.
pub(super) mod kind {
    pub(in super::super) const RAW: u8 = 0;
    pub(in super::super) const CONSTANT: u8 = 1;
    pub(in super::super) const MODEL: u8 = 2;
    pub(in super::super) const RECORDS: u8 = 3;
    pub(in super::super) const DELTA: u8 = 4;
    pub(in super::super) const FILL: u8 = 5;
    pub(in super::super) const COPY: u8 = 6;
}

/// Bits of a chunk.
pub(super) mod flag {
    pub(in super::super) const VERIFY: u8 = 1;
    pub(in super::super) const ALIGNED: u8 = 2;
    pub(in super::super) const CUT: u8 = 4;
}

/// Bytes of a [`Chunk`].
pub(super) const CHUNK_BYTES: usize = 64;
/// Bytes of a plane, and how many of them a model has room for.
pub(super) const PLANE_BYTES: usize = 24;
pub(super) const MODEL_BYTES: usize = 400;
/// Bytes of the head of records, and of what there is for each class.
pub(super) const RECORDS_BYTES: usize = 272;
pub(super) const DELTA_BYTES: usize = 272;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chunk {
    pub(super) payload: u64,
    pub(super) out: u64,
    pub(super) base: u64,
    pub(super) hash: u64,
    pub(super) first: u64,
    pub(super) payload_bytes: u32,
    pub(super) bytes: u32,
    pub(super) model: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) tensor: u32,
    pub(super) number: u32,
}

impl Chunk {
    pub(super) fn write_to(&self, out: &mut Vec<u8>) {
        for number in [self.payload, self.out, self.base, self.hash, self.first] {
            out.extend(number.to_le_bytes());
        }
        for number in [self.payload_bytes, self.bytes, self.model] {
            out.extend(number.to_le_bytes());
        }
        out.extend([self.kind, self.flags, 0, 0]);
        for number in [self.tensor, self.number] {
            out.extend(number.to_le_bytes());
        }
    }
}

/// A slot of a table, by the bits of its fields.
pub(super) fn slot(frequency: u16, offset: usize, symbol: u16, escape: bool) -> [u8; 8] {
    let numbers = [frequency, offset as u16, symbol, u16::from(escape)];
    let mut bytes = [0; 8];
    for (to, number) in bytes.chunks_exact_mut(2).zip(numbers) {
        to.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

/// A slot of the fast kernel: symbol (its top bit set for the escape), frequency, offset.
pub(super) fn cut_slot(frequency: u16, offset: usize, symbol: u16, escape: bool) -> [u8; 4] {
    let symbol = if escape { 1 << 15 } else { symbol };
    let [low, high] = symbol.to_le_bytes();
    [low, high, frequency as u8, offset as u8]
}
