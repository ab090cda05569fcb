//! Bit strings and table lookups, 32 fields at a time.

use std::arch::x86_64::*;

use super::{load, load_twice, store};

/// What the kernels of one width shuffle and multiply by.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    /// Two bytes for each field of the first eight, from its first bit on.
    pub(super) spread: [u8; 16],
    /// Lifts the field to the top of the two bytes.
    lifts: [u16; 8],
    /// The two bundles of eight fields, one behind the other.
    squeeze: [u8; 16],
    width: u8,
}

impl Steps {
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn lifts(&self) -> __m256i {
        // SAFETY: the array has 16 bytes.
        let lifts = unsafe { _mm_loadu_si128(self.lifts.as_ptr().cast()) };
        _mm256_broadcastsi128_si256(lifts)
    }

    /// By how much lifted fields are shifted back.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn drop(&self) -> __m128i {
        _mm_cvtsi32_si128(16 - i32::from(self.width))
    }
}

pub(super) static STEPS: [Steps; 8] = steps();

const fn steps() -> [Steps; 8] {
    let mut table = [Steps {
        spread: [0; 16],
        lifts: [0; 8],
        squeeze: [0x80; 16],
        width: 0,
    }; 8];
    let mut width = 1;
    while width < 8 {
        let steps = &mut table[width];
        steps.width = width as u8;
        let mut field = 0;
        while field < 8 {
            let (byte, bit) = (field * width / 8, field * width % 8);
            steps.spread[2 * field] = byte as u8;
            // The last field ends with the bundle: it may not need a second byte.
            let next = if byte + 1 < width { byte + 1 } else { byte };
            steps.spread[2 * field + 1] = next as u8;
            steps.lifts[field] = 1 << (16 - width - bit);
            field += 1;
        }
        let mut byte = 0;
        while byte < 2 * width {
            steps.squeeze[byte] = (byte / width * 8 + byte % width) as u8;
            byte += 1;
        }
        width += 1;
    }
    table
}

/// Fields of a step.
const STEP: usize = 32;

/// Bytes at the end of a bit string that a step may touch beyond its own: 16 are read and written at
/// a time, of which as little as 2 belong to it.
const SLACK: usize = 14;

/// Unpacks whole steps and returns how many fields that is.
///
/// # Safety
/// The CPU has the features of this tier; `packed` holds all fields; `width` is 1 to 7.
#[target_feature(enable = "avx2")]
pub(in crate::simd) unsafe fn unpack_bits(packed: &[u8], width: u32, fields: &mut [u8]) -> usize {
    let width = width as usize;
    let steps = &STEPS[width];
    let spread = load_twice(&steps.spread);
    let spread_next = _mm256_add_epi8(spread, _mm256_set1_epi8(width as i8));
    let (lifts, drop) = (steps.lifts(), steps.drop());
    let (groups, _) = fields.as_chunks_mut::<STEP>();
    let mut last = [0; 4 * 7 + SLACK];
    let mut left = packed;
    for group in &mut *groups {
        let from = if left.len() >= 4 * width + SLACK {
            left
        } else {
            let own = left.len().min(4 * width);
            last[..own].copy_from_slice(&left[..own]);
            &last[..]
        };
        // SAFETY: two loads of 16 bytes, the last from `2 * width` on: `2 * width + 16` is at most
        // `4 * width + SLACK`, which `from` has.
        let bytes = unsafe {
            let first = _mm_loadu_si128(from.as_ptr().cast());
            let second = _mm_loadu_si128(from.as_ptr().add(2 * width).cast());
            _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(first), second)
        };
        left = &left[4 * width..];
        let unpack = |spread| {
            let words = _mm256_mullo_epi16(_mm256_shuffle_epi8(bytes, spread), lifts);
            _mm256_srl_epi16(words, drop)
        };
        store(
            _mm256_packus_epi16(unpack(spread), unpack(spread_next)),
            group,
        );
    }
    STEP * groups.len()
}

/// Packs whole steps and returns how many fields that is.
///
/// # Safety
/// The CPU has the features of this tier; `packed` has room for all fields; `width` is 1 to 7.
#[target_feature(enable = "avx2")]
pub(in crate::simd) unsafe fn pack_bits(fields: &[u8], width: u32, packed: &mut [u8]) -> usize {
    let mask = _mm256_set1_epi8(((1_u32 << width) - 1) as i8);
    // Neighbours are joined three times: 2, 4, then 8 fields lie side by side.
    let pairs = _mm256_set1_epi16((1 << width << 8) | 1);
    let quads = _mm256_set1_epi32((1 << (2 * width) << 16) | 1);
    let low_half = _mm256_set1_epi64x(0xffff_ffff);
    let up = _mm_cvtsi64_si128(i64::from(32 - 4 * width));
    let width = width as usize;
    let squeeze = load_twice(&STEPS[width].squeeze);
    let (groups, _) = fields.as_chunks::<STEP>();
    let mut last = [0; 4 * 7 + SLACK];
    let mut left = packed;
    for group in groups {
        let narrow = _mm256_and_si256(load(group), mask);
        let two = _mm256_maddubs_epi16(pairs, narrow);
        let four = _mm256_madd_epi16(two, quads);
        let eight = _mm256_or_si256(
            _mm256_and_si256(four, low_half),
            _mm256_srl_epi64(_mm256_andnot_si256(low_half, four), up),
        );
        let bytes = _mm256_shuffle_epi8(eight, squeeze);
        let direct = left.len() >= 4 * width + SLACK;
        let to = if direct { &mut *left } else { &mut last[..] };
        // SAFETY: two stores of 16 bytes, the last from `2 * width` on: `2 * width + 16` is at most
        // `4 * width + SLACK`, which `to` has. What they write too much is written again.
        unsafe {
            let to = to.as_mut_ptr();
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(bytes));
            _mm_storeu_si128(
                to.add(2 * width).cast(),
                _mm256_extracti128_si256::<1>(bytes),
            );
        }
        let (own, after) = left.split_at_mut(4 * width);
        if !direct {
            own.copy_from_slice(&last[..4 * width]);
        }
        left = after;
    }
    STEP * groups.len()
}

/// See [`crate::simd::Kernels::index`].
///
/// # Safety
/// The CPU has the features of this tier; `escapes` has an entry for each group.
#[target_feature(enable = "avx2")]
pub(in crate::simd) unsafe fn index(table: &[u8; 64], offsets: &mut [u8], escapes: &mut [u64]) {
    let (blocks, _) = table.as_chunks::<16>();
    let blocks: [__m256i; 4] = std::array::from_fn(|block| load_twice(&blocks[block]));
    let escape = _mm256_set1_epi8(63);
    let look_up = |offsets: &mut [u8; 32]| {
        let offset = load(offsets);
        let look_up = |block: __m256i| _mm256_shuffle_epi8(block, offset);
        // Bits 4 and 5 choose, moved to where the blend looks.
        let (odd, upper) = (
            _mm256_slli_epi16::<3>(offset),
            _mm256_slli_epi16::<2>(offset),
        );
        let index = _mm256_blendv_epi8(
            _mm256_blendv_epi8(look_up(blocks[0]), look_up(blocks[1]), odd),
            _mm256_blendv_epi8(look_up(blocks[2]), look_up(blocks[3]), odd),
            upper,
        );
        store(index, offsets);
        _mm256_movemask_epi8(_mm256_cmpeq_epi8(index, escape)) as u32
    };
    for (group, escapes) in offsets.chunks_mut(64).zip(escapes) {
        let len = group.len();
        let mut padded = [0; 64];
        let (whole, lanes) = if len == 64 {
            (&mut *group, u64::MAX)
        } else {
            padded[..len].copy_from_slice(group);
            (&mut padded[..], !(u64::MAX << len))
        };
        let (halves, _) = whole.as_chunks_mut::<32>();
        let found = u64::from(look_up(&mut halves[0])) | u64::from(look_up(&mut halves[1])) << 32;
        *escapes = found & lanes;
        if len < 64 {
            group.copy_from_slice(&padded[..len]);
        }
    }
}
