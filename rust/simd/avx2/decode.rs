//! The r8 decoder, a group of 64 symbols at a time, several chunks in turn.
//!
//! Scalar oracle: `entropy::rans::Decoder`. Deviations from the pseudocode there:
//! 1. states are two byte planes; 16-bit arithmetic is done on even and odd lanes in turn;
//! 2. the slot gives the entry ([`Buckets`]), or the index where the table has no such form; that gives
//!    frequency, first slot and value;
//! 3. where in the stream a lane finds its byte is a prefix sum over the lanes, 16 at a time;
//! 4. escapes are rare, so that they are filled in after the group has been written.

use std::arch::x86_64::*;

use super::buckets::Shape;
use super::{Table, block_starts, load_lanes, load_twice, positions, store_lanes};
use crate::constants::{ESCAPE, LANES};
use crate::entropy::rans::{Decoder, Spec, Value, ValueMap};

/// See [`crate::simd::Kernels::decode_groups`].
///
/// # Safety
/// The CPU has the features of this tier. Every stream has `64 * groups` bytes and every output
/// room for `64 * groups` values; there are as many outputs as decoders.
pub(in crate::simd) unsafe fn decode_groups<V: Value>(
    spec: &Spec,
    map: &ValueMap,
    mut decoders: &mut [Decoder<'_>],
    mut out: &mut [&mut [V]],
    groups: usize,
) {
    while !decoders.is_empty() {
        let k = decoders.len().min(2);
        let (now, later) = decoders.split_at_mut(k);
        let (now_out, later_out) = out.split_at_mut(k);
        // SAFETY: passed on.
        unsafe {
            if k == 2 {
                decode_shape::<2, V>(spec, map, now, now_out, groups);
            } else {
                decode_shape::<1, V>(spec, map, now, now_out, groups);
            }
        }
        (decoders, out) = (later, later_out);
    }
}

/// # Safety
/// As [`decode_groups`], with `K` decoders and outputs.
unsafe fn decode_shape<const K: usize, V: Value>(
    spec: &Spec,
    map: &ValueMap,
    decoders: &mut [Decoder<'_>],
    out: &mut [&mut [V]],
    groups: usize,
) {
    // SAFETY: passed on.
    unsafe {
        match spec.buckets().shape {
            Shape::Small => decode::<K, 2, 1, 1, V>(spec, map, decoders, out, groups),
            Shape::Medium => decode::<K, 1, 2, 2, V>(spec, map, decoders, out, groups),
            Shape::Large => decode::<K, 2, 3, 4, V>(spec, map, decoders, out, groups),
            Shape::Any => decode::<K, 0, 16, 4, V>(spec, map, decoders, out, groups),
        }
    }
}

/// Finds the entries of slots, in one of the forms of [`Shape`].
struct SlotTable<const CUTS: usize, const DENSE: usize> {
    first: __m256i,
    cuts: [__m256i; CUTS],
    dense: [__m256i; DENSE],
}

impl<const CUTS: usize, const DENSE: usize> SlotTable<CUTS, DENSE> {
    #[target_feature(enable = "avx2")]
    #[inline]
    fn new(spec: &Spec) -> Self {
        let buckets = spec.buckets();
        let slots = spec.slot_index.as_chunks::<16>().0;
        let dense: &[[u8; 16]] = if DENSE == 16 { slots } else { &buckets.dense };
        Self {
            first: load_twice(&buckets.first),
            cuts: std::array::from_fn(|cut| load_twice(&buckets.cuts[cut])),
            dense: std::array::from_fn(|number| load_twice(&dense[number])),
        }
    }

    /// The entry of each slot; the index, where all buckets are dense.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn entry(&self, slot: __m256i) -> __m256i {
        if DENSE == 16 {
            return self.entry_bucket_by_bucket(slot);
        }
        let nibble = _mm256_set1_epi8(15);
        let bucket = _mm256_and_si256(_mm256_srli_epi16::<4>(slot), nibble);
        let place = _mm256_and_si256(slot, nibble);
        let first = _mm256_shuffle_epi8(self.first, bucket);
        let cuts = self.cuts.map(|cuts| _mm256_shuffle_epi8(cuts, bucket));
        let mut entry = first;
        for cut in cuts {
            entry = _mm256_sub_epi8(entry, _mm256_cmpgt_epi8(place, cut));
        }
        for (number, &dense) in self.dense.iter().enumerate() {
            let is_dense = if number == 0 { first } else { cuts[number - 1] };
            let instead = _mm256_shuffle_epi8(dense, place);
            entry = _mm256_blendv_epi8(entry, instead, is_dense);
        }
        entry
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn entry_bucket_by_bucket(&self, slot: __m256i) -> __m256i {
        let beyond = _mm256_set1_epi8(0x70);
        let sixteen = _mm256_set1_epi8(16);
        let (mut entry, mut place) = (_mm256_setzero_si256(), slot);
        for &dense in &self.dense {
            // The sum stays below 0x80 for the slots of this bucket; the shuffle gives 0 for others.
            let at = _mm256_adds_epu8(place, beyond);
            entry = _mm256_or_si256(entry, _mm256_shuffle_epi8(dense, at));
            place = _mm256_sub_epi8(place, sixteen);
        }
        entry
    }
}

/// Gives 4 lanes each the byte of the last lane of the 4 before, and of those before that.
static LAST_OF_4_BEFORE: [u8; 16] = last_of_4(1);
static LAST_OF_8_BEFORE: [u8; 16] = last_of_4(2);

const fn last_of_4(back: usize) -> [u8; 16] {
    let mut from = [0x80; 16];
    let mut lane = 4 * back;
    while lane < 16 {
        from[lane] = (lane / 4 - back) as u8 * 4 + 3;
        lane += 1;
    }
    from
}

/// The number of each lane among its 16.
static LANE: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// How far ahead of its use the stream is fetched, in bytes.
const STREAM_AHEAD: usize = 512;

/// # Safety
/// As [`decode_groups`], with `K` decoders and outputs. `CUTS`, `DENSE` and `BLOCKS` are those of the
/// table's shape.
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt,lzcnt")]
unsafe fn decode<
    const K: usize,
    const CUTS: usize,
    const DENSE: usize,
    const BLOCKS: usize,
    V: Value,
>(
    spec: &Spec,
    map: &ValueMap,
    decoders: &mut [Decoder<'_>],
    outputs: &mut [&mut [V]],
    groups: usize,
) {
    let buckets = spec.buckets();
    let slots = SlotTable::<CUTS, DENSE>::new(spec);
    let numbers: [u8; BLOCKS] = std::array::from_fn(|block| block as u8);
    let starts = block_starts(numbers);
    let by_index = DENSE == 16;
    // Index 63 is the escape in tables that have one; 64 is no entry.
    let (frequency, start, low_value, high_value, escape) = if by_index {
        let escape = if map.escape { ESCAPE } else { 64 };
        (spec.frequency, spec.start, map.low, map.high, escape)
    } else {
        let (mut low, mut high) = ([0; 64], [0; 64]);
        let mut escape = 64;
        for (entry, &index) in buckets.index[..16 * BLOCKS].iter().enumerate() {
            low[entry] = map.low[usize::from(index)];
            high[entry] = map.high[usize::from(index)];
            if map.escape && index == ESCAPE {
                escape = entry as u8;
            }
        }
        (buckets.frequency, buckets.start, low, high, escape)
    };
    let frequencies = Table::new(&frequency, numbers);
    let first_slots = Table::new(&start, numbers);
    let low_values = Table::new(&low_value, numbers);
    let high_values = Table::new(&high_value, numbers);
    let escape = _mm256_set1_epi8(escape as i8);
    let low_bytes = _mm256_set1_epi16(0xff);
    let (zero, ones) = (_mm256_setzero_si256(), _mm256_set1_epi8(1));
    let pairs_of_pairs = _mm256_set1_epi32(0x0101_0101);
    let (last_of_4, last_of_8) = (load_twice(&LAST_OF_4_BEFORE), load_twice(&LAST_OF_8_BEFORE));
    let lane = load_twice(&LANE);

    let mut low: [[__m256i; 2]; K] = std::array::from_fn(|c| load_lanes(&decoders[c].low));
    let mut high: [[__m256i; 2]; K] = std::array::from_fn(|c| load_lanes(&decoders[c].high));
    let mut stream: [*const u8; K] = std::array::from_fn(|c| decoders[c].stream.as_ptr());
    let ahead: [*const i8; K] = std::array::from_fn(|c| decoders[c].ahead.as_ptr().cast());
    let mut out: [*mut V; K] = std::array::from_fn(|c| outputs[c].as_mut_ptr());

    for group in 0..groups {
        for c in 0..K {
            _mm_prefetch::<_MM_HINT_T0>(ahead[c].wrapping_add(LANES * group));
            _mm_prefetch::<_MM_HINT_T0>(stream[c].wrapping_add(STREAM_AHEAD).cast());
            let mut escaped = 0_u64;
            let mut refilled = 0_u64;
            for half in 0..2 {
                let slot = low[c][half];
                let entry = slots.entry(slot);
                let at = positions(entry, &starts);
                let frequency = frequencies.look_up(&at);
                let offset = _mm256_sub_epi8(slot, first_slots.look_up(&at));
                let even = _mm256_add_epi16(
                    _mm256_mullo_epi16(
                        _mm256_and_si256(frequency, low_bytes),
                        _mm256_and_si256(high[c][half], low_bytes),
                    ),
                    _mm256_and_si256(offset, low_bytes),
                );
                let odd = _mm256_add_epi16(
                    _mm256_mullo_epi16(
                        _mm256_srli_epi16::<8>(frequency),
                        _mm256_srli_epi16::<8>(high[c][half]),
                    ),
                    _mm256_srli_epi16::<8>(offset),
                );
                low[c][half] = _mm256_blendv_epi8(_mm256_slli_epi16::<8>(odd), even, low_bytes);
                high[c][half] = _mm256_blendv_epi8(odd, _mm256_srli_epi16::<8>(even), low_bytes);
                let refill = _mm256_cmpeq_epi8(high[c][half], zero);
                refilled |= u64::from(_mm256_movemask_epi8(refill) as u32) << (32 * half);
                let is_escape = _mm256_cmpeq_epi8(entry, escape);
                escaped |= u64::from(_mm256_movemask_epi8(is_escape) as u32) << (32 * half);

                let value = low_values.look_up(&at);
                // SAFETY: the output has room for `64 * groups` values.
                unsafe {
                    if V::WIDE {
                        let high_value = high_values.look_up(&at);
                        let first = _mm256_unpacklo_epi8(value, high_value);
                        let last = _mm256_unpackhi_epi8(value, high_value);
                        let words = [
                            _mm256_permute2x128_si256::<0x20>(first, last),
                            _mm256_permute2x128_si256::<0x31>(first, last),
                        ];
                        _mm256_storeu_si256(out[c].add(32 * half).cast(), words[0]);
                        _mm256_storeu_si256(out[c].add(32 * half + 16).cast(), words[1]);
                    } else {
                        _mm256_storeu_si256(out[c].add(32 * half).cast(), value);
                    }
                }
            }
            let taken = |lanes: u32| (refilled & ((1 << lanes) - 1)).count_ones() as usize;
            let taken = [0, taken(16), taken(32), taken(48)];
            for half in 0..2 {
                // SAFETY: group `g` begins at most `64 g` bytes into a stream of `64 * groups`, and 16
                // lanes take at most 16 bytes.
                let ahead = unsafe {
                    let [first, second] =
                        [2 * half, 2 * half + 1].map(|quarter| stream[c].add(taken[quarter]));
                    _mm256_inserti128_si256::<1>(
                        _mm256_castsi128_si256(_mm_loadu_si128(first.cast())),
                        _mm_loadu_si128(second.cast()),
                    )
                };
                // A lane's byte is its number less the lanes up to it that take none.
                let keeps = _mm256_min_epu8(high[c][half], ones);
                let in_4 = _mm256_mullo_epi32(keeps, pairs_of_pairs);
                let in_8 = _mm256_add_epi8(in_4, _mm256_shuffle_epi8(in_4, last_of_4));
                let in_16 = _mm256_add_epi8(in_8, _mm256_shuffle_epi8(in_8, last_of_8));
                let bytes = _mm256_shuffle_epi8(ahead, _mm256_sub_epi8(lane, in_16));
                let refill = _mm256_cmpeq_epi8(high[c][half], zero);
                high[c][half] = _mm256_blendv_epi8(high[c][half], low[c][half], refill);
                low[c][half] = _mm256_blendv_epi8(low[c][half], bytes, refill);
            }
            while escaped != 0 {
                let [low, high] = decoders[c].escapes.get(decoders[c].used);
                decoders[c].used += 1;
                // SAFETY: as above; the lane is below 64.
                unsafe {
                    let value = out[c].add(escaped.trailing_zeros() as usize);
                    *value = V::from_bytes(low, high);
                }
                escaped &= escaped - 1;
            }
            // SAFETY: the group took so many bytes of the stream and gave 64 values.
            unsafe {
                stream[c] = stream[c].add(refilled.count_ones() as usize);
                out[c] = out[c].add(LANES);
            }
        }
    }

    for (c, decoder) in decoders.iter_mut().enumerate() {
        store_lanes(low[c], &mut decoder.low);
        store_lanes(high[c], &mut decoder.high);
        // SAFETY: both point into the same stream.
        let taken = unsafe { stream[c].offset_from(decoder.stream.as_ptr()) };
        decoder.stream = &decoder.stream[taken as usize..];
    }
}
