//! The r8 decoder, a group of 64 symbols at a time, several chunks in turn.
//!
//! Scalar oracle: `entropy::rans::Decoder`. Deviations from the pseudocode there:
//! 1. states are two byte planes; 16-bit arithmetic is done on even and odd lanes in turn;
//! 2. the slot gives the entry ([`Buckets`]), or the index where the table has no such form; that gives
//!    frequency, first slot and value;
//! 3. where in the stream a lane finds its byte is a prefix sum over the lanes, 16 at a time;
//! 4. escapes are rare, so that they are filled in after the group has been written.

use std::arch::x86_64::*;

use super::buckets::{Buckets, Shape};
use super::{Table, load_lanes, load_twice, load_two, store_lanes};
use crate::constants::{ESCAPE, LANES, MAX_SYMBOLS};
use crate::entropy::rans::{Decoder, EscapedValues, Spec, Value, ValueMap};

/// See [`crate::simd::Kernels::decode_groups`].
///
/// # Safety
/// The CPU has the features of this tier. Every stream has `64 * groups` bytes and every output
/// room for `64 * groups` values; there are as many outputs as decoders.
pub(in crate::simd) unsafe fn decode_groups<V: Value>(
    spec: &Spec,
    map: &ValueMap,
    decoders: &mut [Decoder<'_>],
    out: &mut [&mut [V]],
    groups: usize,
) {
    let tables = Tables::new(spec, map);
    for (decoders, out) in decoders.chunks_mut(MOST).zip(out.chunks_mut(MOST)) {
        let mut parts = decoders.iter().zip(&mut *out);
        let mut planes: [Plane<'_, V>; MOST] = std::array::from_fn(|_| {
            parts.next().map_or(Plane::none(), |(decoder, out)| {
                Plane::new(decoder, out.as_mut_ptr())
            })
        });
        // SAFETY: passed on.
        unsafe { decode_planes(&tables, &mut planes[..decoders.len()], groups) };
        for (decoder, plane) in decoders.iter_mut().zip(&planes) {
            plane.write_back(decoder);
        }
    }
}

/// Planes that are decoded in lockstep at most: more are not faster.
pub(super) const MOST: usize = 3;

/// A decoder whose pointers are not checked.
pub(super) struct Plane<'a, V> {
    low: [u8; LANES],
    high: [u8; LANES],
    stream: *const u8,
    /// Where it is never read, only fetched.
    ahead: *const u8,
    /// Where values go, from the first one of a call on.
    out: *mut V,
    escapes: &'a EscapedValues,
    used: usize,
}

impl<'a, V: Value> Plane<'a, V> {
    pub(super) fn new(decoder: &Decoder<'a>, out: *mut V) -> Self {
        let stream = decoder.stream.as_ptr();
        Self {
            low: decoder.low,
            high: decoder.high,
            stream,
            ahead: if decoder.ahead.is_empty() {
                stream
            } else {
                decoder.ahead.as_ptr()
            },
            out,
            escapes: decoder.escapes,
            used: decoder.used,
        }
    }

    pub(super) fn none() -> Self {
        Self::new(&Decoder::default(), std::ptr::null_mut())
    }

    pub(super) fn write_back(&self, decoder: &mut Decoder<'_>) {
        (decoder.low, decoder.high, decoder.used) = (self.low, self.high, self.used);
        let taken = self.stream.addr() - decoder.stream.as_ptr().addr();
        decoder.stream = &decoder.stream[taken..];
    }
}

/// What to look up for the entries of a table, or for its indices if it is of no shape.
pub(super) struct Tables<'a> {
    spec: &'a Spec,
    buckets: &'a Buckets,
    frequency: &'a [u8; MAX_SYMBOLS],
    start: &'a [u8; MAX_SYMBOLS],
    low: [u8; MAX_SYMBOLS],
    high: [u8; MAX_SYMBOLS],
    /// The number of the escape, or one that does not occur.
    escape: u8,
}

impl<'a> Tables<'a> {
    pub(super) fn new(spec: &'a Spec, map: &ValueMap) -> Self {
        let buckets = spec.buckets();
        let mut tables = Self {
            spec,
            buckets,
            frequency: &spec.frequency,
            start: &spec.start,
            low: map.low,
            high: map.high,
            escape: if map.escape { ESCAPE } else { u8::MAX },
        };
        if buckets.shape == Shape::Any {
            return tables;
        }
        (tables.frequency, tables.start) = (&buckets.frequency, &buckets.start);
        for entry in 0..buckets.entries {
            let index = usize::from(buckets.index[entry]);
            (tables.low[entry], tables.high[entry]) = (map.low[index], map.high[index]);
            if map.escape && index == usize::from(ESCAPE) {
                tables.escape = entry as u8;
            }
        }
        tables
    }
}

/// Decodes as many groups of each plane; the outputs are not moved on.
///
/// # Safety
/// The CPU has the features of this tier. Every stream has `64 * groups` bytes and every output
/// room for `64 * groups` values; at most [`MOST`] planes.
pub(super) unsafe fn decode_planes<V: Value>(
    tables: &Tables<'_>,
    planes: &mut [Plane<'_, V>],
    groups: usize,
) {
    // SAFETY: passed on.
    unsafe {
        match planes.len() {
            3 => decode_shape::<6, V>(tables, planes, groups),
            2 => decode_shape::<4, V>(tables, planes, groups),
            _ => decode_shape::<2, V>(tables, planes, groups),
        }
    }
}

/// # Safety
/// As [`decode_planes`], with `U / 2` planes.
unsafe fn decode_shape<const U: usize, V: Value>(
    tables: &Tables<'_>,
    planes: &mut [Plane<'_, V>],
    groups: usize,
) {
    // SAFETY: passed on.
    unsafe {
        match tables.buckets.shape {
            Shape::Small => decode::<U, 2, 1, 1, V>(tables, planes, groups),
            Shape::Medium => decode::<U, 1, 2, 2, V>(tables, planes, groups),
            Shape::Large => decode::<U, 2, 3, 4, V>(tables, planes, groups),
            Shape::Any => decode::<U, 0, 16, 4, V>(tables, planes, groups),
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
    fn new(tables: &Tables<'_>) -> Self {
        let buckets = tables.buckets;
        let slots = tables.spec.slot_index.as_chunks::<16>().0;
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
    fn entries<const U: usize>(&self, slots: &[__m256i; U]) -> [__m256i; U] {
        let mut entries = *slots;
        if DENSE == 16 {
            for entry in &mut entries {
                *entry = self.entry_bucket_by_bucket(*entry);
            }
            return entries;
        }
        let nibble = _mm256_set1_epi8(15);
        for entry in &mut entries {
            let bucket = _mm256_and_si256(_mm256_srli_epi16::<4>(*entry), nibble);
            let place = _mm256_and_si256(*entry, nibble);
            let first = _mm256_shuffle_epi8(self.first, bucket);
            let mut cuts = self.cuts;
            *entry = first;
            for cut in &mut cuts {
                *cut = _mm256_shuffle_epi8(*cut, bucket);
                *entry = _mm256_sub_epi8(*entry, _mm256_cmpgt_epi8(place, *cut));
            }
            for number in 0..DENSE {
                let is_dense = if number == 0 { first } else { cuts[number - 1] };
                let instead = _mm256_shuffle_epi8(self.dense[number], place);
                *entry = _mm256_blendv_epi8(*entry, instead, is_dense);
            }
        }
        entries
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

/// Entries as [`Table::look_up`] takes them, for tables of the first blocks.
#[target_feature(enable = "avx2")]
#[inline]
fn places<const BLOCKS: usize, const U: usize>(entries: &[__m256i; U]) -> [[__m256i; BLOCKS]; U] {
    let beyond = _mm256_set1_epi8(0x70);
    let mut at = [[_mm256_setzero_si256(); BLOCKS]; U];
    for (at, &entry) in at.iter_mut().zip(entries) {
        for block in 0..BLOCKS {
            let start = _mm256_set1_epi8(16 * block as i8);
            // The top bit is set for other blocks: from below 0 or from 0x80 on.
            at[block] = if BLOCKS == 1 {
                entry
            } else if block == 0 {
                _mm256_adds_epu8(entry, beyond)
            } else if block == BLOCKS - 1 {
                _mm256_sub_epi8(entry, start)
            } else {
                _mm256_adds_epu8(_mm256_xor_si256(entry, start), beyond)
            };
        }
    }
    at
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

/// How lanes take their next bytes.
pub(super) struct Refilling {
    ones: __m256i,
    pairs_of_pairs: __m256i,
    last_of_4: __m256i,
    last_of_8: __m256i,
    lane: __m256i,
}

impl Refilling {
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn new() -> Self {
        Self {
            ones: _mm256_set1_epi8(1),
            pairs_of_pairs: _mm256_set1_epi32(0x0101_0101),
            last_of_4: load_twice(&LAST_OF_4_BEFORE),
            last_of_8: load_twice(&LAST_OF_8_BEFORE),
            lane: load_twice(&LANE),
        }
    }

    /// Shifts the states that `refill` marks and gives each the next byte of its chunk's stream; a chunk
    /// has two registers and the stream of the first one.
    ///
    /// # Safety
    /// The CPU has the features of this tier, and every stream has 64 bytes left.
    #[target_feature(enable = "avx2,popcnt")]
    #[inline]
    pub(super) unsafe fn apply<const U: usize>(
        &self,
        refill: &[__m256i; U],
        low: &mut [__m256i; U],
        high: &mut [__m256i; U],
        stream: &mut [*const u8; U],
    ) {
        let mut bytes = [_mm256_setzero_si256(); U];
        for c in 0..U / 2 {
            let taken = u64::from(_mm256_movemask_epi8(refill[2 * c]) as u32)
                | u64::from(_mm256_movemask_epi8(refill[2 * c + 1]) as u32) << 32;
            // SAFETY: 16 lanes take at most 16 bytes.
            unsafe {
                let second = stream[c].add((taken << 48).count_ones() as usize);
                let third = stream[c].add((taken << 32).count_ones() as usize);
                let fourth = stream[c].add((taken << 16).count_ones() as usize);
                bytes[2 * c] = load_two(stream[c], second);
                bytes[2 * c + 1] = load_two(third, fourth);
                stream[c] = stream[c].add(taken.count_ones() as usize);
            }
        }
        // A lane's byte is its number less the lanes up to it that take none.
        let mut keeps = [_mm256_setzero_si256(); U];
        for u in 0..U {
            let keep = _mm256_andnot_si256(refill[u], self.ones);
            keeps[u] = _mm256_mullo_epi32(keep, self.pairs_of_pairs);
        }
        for u in 0..U {
            keeps[u] = _mm256_add_epi8(keeps[u], _mm256_shuffle_epi8(keeps[u], self.last_of_4));
        }
        for u in 0..U {
            keeps[u] = _mm256_add_epi8(keeps[u], _mm256_shuffle_epi8(keeps[u], self.last_of_8));
        }
        for u in 0..U {
            bytes[u] = _mm256_shuffle_epi8(bytes[u], _mm256_sub_epi8(self.lane, keeps[u]));
            high[u] = _mm256_blendv_epi8(high[u], low[u], refill[u]);
            low[u] = _mm256_blendv_epi8(low[u], bytes[u], refill[u]);
        }
    }
}

/// Exchanges even and odd lanes.
static SWAP: [u8; 16] = [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14];

/// How far ahead of its use the stream is fetched, in bytes.
const STREAM_AHEAD: usize = 512;

/// # Safety
/// As [`decode_planes`], with `U / 2` planes. `CUTS`, `DENSE` and `BLOCKS` are those of the table's
/// shape.
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt,lzcnt")]
unsafe fn decode<
    const U: usize,
    const CUTS: usize,
    const DENSE: usize,
    const BLOCKS: usize,
    V: Value,
>(
    tables: &Tables<'_>,
    planes: &mut [Plane<'_, V>],
    groups: usize,
) {
    let slots = SlotTable::<CUTS, DENSE>::new(tables);
    let numbers: [u8; BLOCKS] = std::array::from_fn(|block| block as u8);
    let frequencies = Table::new(tables.frequency, numbers);
    let first_slots = Table::new(tables.start, numbers);
    let low_values = Table::new(&tables.low, numbers);
    let high_values = Table::new(&tables.high, numbers);
    let escape = _mm256_set1_epi8(tables.escape as i8);
    let low_bytes = _mm256_set1_epi16(0xff);
    let (zero, ones) = (_mm256_setzero_si256(), _mm256_set1_epi8(1));
    let refilling = Refilling::new();
    let swap = load_twice(&SWAP);

    let mut low = [zero; U];
    let mut high = [zero; U];
    for (c, plane) in planes[..U / 2].iter().enumerate() {
        [low[2 * c], low[2 * c + 1]] = load_lanes(&plane.low);
        [high[2 * c], high[2 * c + 1]] = load_lanes(&plane.high);
    }
    let mut stream: [*const u8; U] = [std::ptr::null(); U];
    let mut ahead: [*const i8; U] = [std::ptr::null(); U];
    let mut out: [*mut V; U] = [std::ptr::null_mut(); U];
    for c in 0..U / 2 {
        stream[c] = planes[c].stream;
        ahead[c] = planes[c].ahead.cast();
        out[c] = planes[c].out;
    }

    for group in 0..groups {
        for c in 0..U / 2 {
            _mm_prefetch::<_MM_HINT_T0>(ahead[c].wrapping_add(LANES * group));
            _mm_prefetch::<_MM_HINT_T0>(stream[c].wrapping_add(STREAM_AHEAD).cast());
        }
        let entries = slots.entries(&low);
        let at = places(&entries);
        let frequency = frequencies.look_up_each(&at);
        let start = first_slots.look_up_each(&at);
        let mut refill = [zero; U];
        for u in 0..U {
            let offset = _mm256_sub_epi8(low[u], start[u]);
            let (even, odd) = if BLOCKS < 4 {
                // Frequencies are below 128: a sum of two products of bytes, offset times one.
                let swapped = _mm256_shuffle_epi8(offset, swap);
                (
                    _mm256_maddubs_epi16(
                        _mm256_blendv_epi8(ones, high[u], low_bytes),
                        _mm256_blendv_epi8(swapped, frequency[u], low_bytes),
                    ),
                    _mm256_maddubs_epi16(
                        _mm256_blendv_epi8(high[u], ones, low_bytes),
                        _mm256_blendv_epi8(frequency[u], swapped, low_bytes),
                    ),
                )
            } else {
                let even = _mm256_mullo_epi16(
                    _mm256_and_si256(frequency[u], low_bytes),
                    _mm256_and_si256(high[u], low_bytes),
                );
                let odd = _mm256_mullo_epi16(
                    _mm256_srli_epi16::<8>(frequency[u]),
                    _mm256_srli_epi16::<8>(high[u]),
                );
                (
                    _mm256_add_epi16(even, _mm256_and_si256(offset, low_bytes)),
                    _mm256_add_epi16(odd, _mm256_srli_epi16::<8>(offset)),
                )
            };
            low[u] = _mm256_blendv_epi8(_mm256_slli_epi16::<8>(odd), even, low_bytes);
            high[u] = _mm256_blendv_epi8(odd, _mm256_srli_epi16::<8>(even), low_bytes);
            refill[u] = _mm256_cmpeq_epi8(high[u], zero);
        }
        // SAFETY: group `g` begins at most `64 g` bytes into a stream of `64 * groups`.
        unsafe { refilling.apply(&refill, &mut low, &mut high, &mut stream) };

        let values = low_values.look_up_each(&at);
        let mut any_escape = zero;
        for entry in entries {
            any_escape = _mm256_or_si256(any_escape, _mm256_cmpeq_epi8(entry, escape));
        }
        if V::WIDE {
            let high_values = high_values.look_up_each(&at);
            for u in 0..U {
                let first = _mm256_unpacklo_epi8(values[u], high_values[u]);
                let last = _mm256_unpackhi_epi8(values[u], high_values[u]);
                // SAFETY: the output has room for `64 * groups` values.
                unsafe {
                    let to: *mut __m256i = out[u / 2].add(u % 2 * 32).cast();
                    _mm256_storeu_si256(to, _mm256_permute2x128_si256::<0x20>(first, last));
                    _mm256_storeu_si256(to.add(1), _mm256_permute2x128_si256::<0x31>(first, last));
                }
            }
        } else {
            for u in 0..U {
                // SAFETY: the output has room for `64 * groups` values.
                unsafe { _mm256_storeu_si256(out[u / 2].add(u % 2 * 32).cast(), values[u]) };
            }
        }
        if _mm256_testz_si256(any_escape, any_escape) == 0 {
            for u in 0..U {
                let found = _mm256_cmpeq_epi8(entries[u], escape);
                let mut found = _mm256_movemask_epi8(found) as u32;
                while found != 0 {
                    let plane = &mut planes[u / 2];
                    let [low, high] = plane.escapes.get(plane.used);
                    plane.used += 1;
                    // SAFETY: as above; the lane is below 32.
                    unsafe {
                        let lane = u % 2 * 32 + found.trailing_zeros() as usize;
                        *out[u / 2].add(lane) = V::from_bytes(low, high);
                    }
                    found &= found - 1;
                }
            }
        }
        for out in &mut out[..U / 2] {
            *out = out.wrapping_add(LANES);
        }
    }

    for (c, plane) in planes[..U / 2].iter_mut().enumerate() {
        store_lanes([low[2 * c], low[2 * c + 1]], &mut plane.low);
        store_lanes([high[2 * c], high[2 * c + 1]], &mut plane.high);
        plane.stream = stream[c];
    }
}
