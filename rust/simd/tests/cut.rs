//! The fused kernel: whole elements out of streams, raw bits, scale offsets and signs.

#![allow(
    clippy::struct_excessive_bools,
    clippy::too_many_lines,
    reason = "a kernel that does everything has many switches"
)]

use proptest::prelude::*;

use super::coder::{bytes_of, spec_of};
use super::guard_page::{Edge, Guarded};
use super::naive::{self, Entries};
use super::{CANARY, Random};
use crate::chunk::ChunkHash;
use crate::constants::{LANES, MAX_SYMBOLS, SUB_BLOCK};
use crate::entropy::rans::{Decoder, EscapedValues, ValueMap};
use crate::planes::words::low_mask;
use crate::simd::Kernels;
use crate::simd::cut::{CutForm, CutRun, ScaleWords, Source};

/// A form, and how much of it to decode.
#[derive(Clone, Debug)]
pub(super) struct CutCase {
    entries: Entries,
    escape: bool,
    element_bytes: usize,
    wide: bool,
    packed_bits: u32,
    sign_position: u32,
    scale: Option<Scale>,
    hashed: bool,
    past_cache: bool,
    runs: usize,
    groups: usize,
    /// Groups of the chunk before the run.
    before: usize,
    seed: u64,
}

#[derive(Clone, Debug)]
struct Scale {
    columns: usize,
    has_columns: bool,
    shift: u32,
}

pub(super) fn cut_case() -> impl Strategy<Value = CutCase> {
    let scale = (64_usize..300, any::<bool>(), 0_u32..40);
    let scale = scale.prop_map(|(columns, has_columns, shift)| Scale {
        columns,
        has_columns,
        shift,
    });
    (
        (2..=MAX_SYMBOLS, 0_usize..3, 0_u32..8, any::<u32>()),
        prop::option::of(scale),
        any::<[bool; 6]>(),
        (
            1_usize..=5,
            prop_oneof![0_usize..20, 60..150_usize],
            0_usize..130,
            any::<u64>(),
        ),
    )
        .prop_map(|((count, width, packed_bits, sign), scale, flags, size)| {
            let element_bytes = 1 << width;
            let [skewed, escape, wide, hashed, past_cache, rotated] = flags;
            let (runs, groups, before, seed) = size;
            CutCase {
                entries: Random::new(seed).entries(count, skewed, escape),
                escape,
                element_bytes,
                wide: wide && element_bytes > 1,
                packed_bits,
                sign_position: if rotated { 0 } else { sign % (8 << width) },
                scale,
                hashed,
                past_cache,
                runs,
                groups,
                before,
                seed,
            }
        })
}

/// One chunk, encoded.
struct Chunk {
    states: [u16; LANES],
    stream: Guarded,
    escaped: Vec<u16>,
    escapes: EscapedValues,
    low: Vec<Vec<u8>>,
    packed: Vec<u8>,
    raw: Guarded,
    first: usize,
}

/// Elements of the sub-blocks of a run.
fn block_len(case: &CutCase) -> usize {
    let end = LANES * (case.before + case.groups);
    let begin = LANES * case.before / SUB_BLOCK * SUB_BLOCK;
    SUB_BLOCK.min(end - begin)
}

/// The raw plane by docs/format.md, up to the end of the run; what comes before it is noise.
fn raw_plane(case: &CutCase, low: &[Vec<u8>], packed: &[u8], random: &mut Random) -> Vec<u8> {
    let block_len = block_len(case);
    let width = case.packed_bits as usize;
    let block_bytes = low.len() * SUB_BLOCK + SUB_BLOCK / 8 * width;
    let mut raw = Vec::new();
    for group in 0..case.groups {
        let element = LANES * (case.before + group);
        let (begin, within) = (element / SUB_BLOCK * block_bytes, element % SUB_BLOCK);
        let bits = begin + low.len() * block_len + within / 8 * width;
        let end = bits + LANES / 8 * width;
        raw.extend(random.bytes(end.saturating_sub(raw.len())));
        for (number, plane) in low.iter().enumerate() {
            let to = begin + number * block_len + within;
            raw[to..to + LANES].copy_from_slice(&plane[LANES * group..][..LANES]);
        }
        raw[bits..end].copy_from_slice(&packed[LANES / 8 * width * group..][..LANES / 8 * width]);
    }
    raw
}

impl Chunk {
    fn new(case: &CutCase, low_bytes: usize, random: &mut Random) -> Self {
        let count = LANES * case.groups;
        let escaped: Vec<u16> = (0..random.below(100))
            .map(|_| random.next() as u16)
            .collect();
        let low: Vec<Vec<u8>> = (0..low_bytes).map(|_| random.bytes(count)).collect();
        let packed = random.bytes(count / 8 * case.packed_bits as usize);
        let raw = raw_plane(case, &low, &packed, random);
        let stream = random.bytes(count);
        Self {
            stream: Guarded::copy_of(&stream, random.edge()),
            raw: Guarded::copy_of(&raw, random.edge()),
            low,
            packed,
            escapes: EscapedValues::new(escaped.iter().copied()),
            escaped,
            states: random.states(),
            first: random.below(1000),
        }
    }

    /// The elements, by docs/format.md, and the states after them.
    fn expected(
        &self,
        case: &CutCase,
        values: &[u16; 64],
        scale: impl Fn(usize) -> i64,
    ) -> (Vec<u8>, [u16; LANES]) {
        let (mut states, count) = (self.states, LANES * case.groups);
        let (indices, _) = naive::decode(&case.entries, &mut states, &self.stream, count);
        let values = naive::values(&indices, values, case.escape, &self.escaped, &mut 0);
        let packed = naive::unpack(&self.packed, case.packed_bits, count);
        let bits = 8 * case.element_bytes as u32;
        let mut bytes = Vec::new();
        for i in 0..count {
            let value = values[i] & if case.wide { 0xffff } else { 0xff };
            let mut word = u64::from(value | u16::from(packed[i])) << (8 * self.low.len());
            for (byte, plane) in self.low.iter().enumerate() {
                word |= u64::from(plane[i]) << (8 * byte);
            }
            let sign = word >> case.sign_position & 1;
            let below = low_mask(case.sign_position);
            let magnitude = word >> 1 & !below | word & below;
            let magnitude = magnitude.wrapping_add(scale(self.first + i) as u64);
            let word = magnitude & low_mask(bits - 1) | sign << (bits - 1);
            bytes.extend(&word.to_le_bytes()[..case.element_bytes]);
        }
        (bytes, states)
    }
}

pub(super) fn check_cut(kernels: Kernels, case: &CutCase) {
    if !kernels.has_decode_cut(case.element_bytes) {
        return;
    }
    let mut random = Random::new(case.seed);
    let values: [u16; 64] = std::array::from_fn(|_| random.next() as u16);
    let map = ValueMap {
        low: values.map(|value| value as u8),
        high: values.map(|value| (value >> 8) as u8),
        escape: case.escape,
    };
    let low_bytes = case.element_bytes - 1 - usize::from(case.wide);
    let chunks: Vec<Chunk> = (0..case.runs)
        .map(|_| Chunk::new(case, low_bytes, &mut random))
        .collect();

    let (columns, shift) = case
        .scale
        .as_ref()
        .map_or((64, 0), |scale| (scale.columns, scale.shift));
    let axis = |count: usize, random: &mut Random| -> Vec<i8> {
        (0..count).map(|_| random.next() as i8).collect()
    };
    // As elements past the last row have no offset, so have those of an axis that is absent.
    let rows = axis(random.below(20), &mut random);
    let has_columns = case.scale.as_ref().is_some_and(|scale| scale.has_columns);
    let cols = axis(if has_columns { columns } else { 0 }, &mut random);
    let rotated = u32::from(case.sign_position == 0);
    let offset = |axis: &[i8], at: usize| axis.get(at).map_or(0, |&offset| i64::from(offset));
    let ring = (0..columns + 63).flat_map(|i| {
        let word = offset(&cols, i % columns) << (shift + rotated);
        word.to_le_bytes()[..case.element_bytes].to_vec()
    });
    let ring: Vec<u8> = if has_columns {
        ring.collect()
    } else {
        vec![0; 64 * case.element_bytes]
    };
    let ring = Guarded::copy_of(&ring, Edge::End);
    let spec = spec_of(&case.entries);
    let form = CutForm {
        source: Source::Plain(&spec, &map),
        element_bytes: case.element_bytes,
        wide: case.wide,
        low_bytes,
        packed_bits: case.packed_bits,
        sign_position: case.sign_position,
        scale: case.scale.as_ref().map(|_| ScaleWords {
            columns,
            rows: &rows,
            shift: shift + rotated,
            words: &ring,
            has_columns,
            row_flips: &[],
            flips: &[],
            row_classes: &[],
            classes: &[],
        }),
        hashed: case.hashed,
        past_cache: case.past_cache,
    };

    let mut before = ChunkHash::default();
    let words = random.below(50);
    before.update(&random.bytes(8 * words));
    let skip = random.below(65);
    let mut hashes = vec![before; case.runs];
    let room = 64 + LANES * case.groups * case.element_bytes;
    let mut outputs: Vec<Guarded> = chunks
        .iter()
        .map(|_| Guarded::copy_of(&vec![CANARY; room], Edge::End))
        .collect();
    let mut decoders: Vec<Decoder<'_>> = chunks
        .iter()
        .map(|chunk| {
            let [low, high] = bytes_of(&chunk.states);
            Decoder {
                low,
                high,
                stream: &chunk.stream,
                escapes: &chunk.escapes,
                ..Decoder::default()
            }
        })
        .collect();
    let parts = chunks
        .iter()
        .zip(&mut decoders)
        .zip(&mut outputs)
        .zip(&mut hashes);
    let none = EscapedValues::none();
    let mut runs: Vec<CutRun<'_, '_>> = parts
        .map(|(((chunk, decoder), out), hash)| CutRun {
            decoder,
            second: None,
            escapes: [&none; 2],
            raw: &chunk.raw,
            start: LANES * case.before,
            block_len: block_len(case),
            out: &mut out[skip..],
            hash,
            first: chunk.first,
        })
        .collect();
    assert!(kernels.decode_cut(&form, &mut runs, case.groups));

    for (i, chunk) in chunks.iter().enumerate() {
        let (expected, states) = chunk.expected(case, &values, |element| {
            let of = |axis, at| {
                if case.scale.is_some() {
                    offset(axis, at)
                } else {
                    0
                }
            };
            (of(&rows, element / columns) + of(&cols, element % columns)) << shift
        });
        let (front, rest) = outputs[i].split_at(skip);
        let (elements, behind) = rest.split_at(expected.len());
        assert_eq!(elements, expected);
        assert!(front.iter().chain(behind).all(|&byte| byte == CANARY));
        let mut hash = before;
        if case.hashed {
            hash.update(&expected);
            assert_eq!(hashes[i], hash);
        }
        assert_eq!([decoders[i].low, decoders[i].high], bytes_of(&states));
    }
}
