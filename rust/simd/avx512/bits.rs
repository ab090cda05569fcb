//! Bit strings and table lookups, 64 fields at a time.

use std::arch::x86_64::*;

use super::{load, store};

/// Bytes that 64 fields of `width` bits take, as a mask.
const fn group_mask(width: u32) -> u64 {
    u64::MAX >> (64 - 8 * width)
}

/// What the kernels of one width shuffle by.
#[derive(Clone, Copy)]
pub(super) struct Shuffles {
    /// Gives each 8 bytes the `width` bytes that hold their eight fields.
    pub(super) spread: [u8; 64],
    /// Where in those the fields begin, in bits.
    pub(super) shifts: [u8; 64],
    /// The inverse of `spread`.
    squeeze: [u8; 64],
}

pub(super) static SHUFFLES: [Shuffles; 8] = shuffles();

const fn shuffles() -> [Shuffles; 8] {
    let mut table = [Shuffles {
        spread: [0; 64],
        shifts: [0; 64],
        squeeze: [0; 64],
    }; 8];
    let mut width = 1;
    while width < 8 {
        let shuffles = &mut table[width];
        let mut i = 0;
        while i < 64 {
            let (group, byte) = (i / 8, i % 8);
            let last = if byte < width { byte } else { width - 1 };
            shuffles.spread[i] = (group * width + last) as u8;
            shuffles.shifts[i] = (byte * width) as u8;
            // Bytes from `8 * width` on are not stored.
            let from = i / width * 8 + i % width;
            shuffles.squeeze[i] = from as u8 & 63;
            i += 1;
        }
        width += 1;
    }
    table
}

/// Unpacks whole groups of 64 fields and returns how many fields that are.
///
/// # Safety
/// The CPU has the features of this tier; `packed` holds all fields; `width` is 1 to 7.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(in crate::simd) unsafe fn unpack_bits(packed: &[u8], width: u32, fields: &mut [u8]) -> usize {
    let shuffles = &SHUFFLES[width as usize];
    let (spread, shifts) = (load(&shuffles.spread), load(&shuffles.shifts));
    let mask = _mm512_set1_epi8(((1_u32 << width) - 1) as i8);
    let (groups, _) = fields.as_chunks_mut::<64>();
    let mut from = packed.as_ptr();
    for group in &mut *groups {
        // SAFETY: `packed` holds this group, and masked bytes are not read.
        let bytes = unsafe { _mm512_maskz_loadu_epi8(group_mask(width), from.cast()) };
        from = from.wrapping_add(8 * width as usize);
        let bundles = _mm512_permutexvar_epi8(spread, bytes);
        let shifted = _mm512_multishift_epi64_epi8(shifts, bundles);
        store(_mm512_and_si512(shifted, mask), group);
    }
    64 * groups.len()
}

/// What packing 64 fields of one width takes.
pub(super) struct Packer {
    mask: __m512i,
    pairs: __m512i,
    quads: __m512i,
    up: __m512i,
    squeeze: __m512i,
    lanes: u64,
}

impl Packer {
    /// For fields of 1 to 7 bits.
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    pub(super) fn new(width: u32) -> Self {
        Self {
            mask: _mm512_set1_epi8(((1_u32 << width) - 1) as i8),
            // Neighbours are joined three times: 2, 4, then 8 fields lie side by side.
            pairs: _mm512_set1_epi16((1 << width << 8) | 1),
            quads: _mm512_set1_epi32((1 << (2 * width) << 16) | 1),
            up: _mm512_set1_epi64(i64::from(32 - 4 * width)),
            squeeze: load(&SHUFFLES[width as usize].squeeze),
            lanes: group_mask(width),
        }
    }

    /// The `8 * width` bytes of 64 fields, and others; bits above the width are ignored.
    ///
    /// # Safety
    /// The CPU has the features of this tier.
    #[inline(always)]
    pub(super) unsafe fn pack(&self, fields: __m512i) -> __m512i {
        // SAFETY: as the caller's.
        unsafe {
            let low_half = _mm512_set1_epi64(0xffff_ffff);
            let narrow = _mm512_and_si512(fields, self.mask);
            let two = _mm512_maddubs_epi16(self.pairs, narrow);
            let four = _mm512_madd_epi16(two, self.quads);
            let eight = _mm512_or_si512(
                _mm512_and_si512(four, low_half),
                _mm512_srlv_epi64(_mm512_andnot_si512(low_half, four), self.up),
            );
            _mm512_permutexvar_epi8(self.squeeze, eight)
        }
    }

    /// Stores the `8 * width` bytes of 64 fields; bits above the width are ignored.
    ///
    /// # Safety
    /// The CPU has the features of this tier, and there is room at `to`.
    #[inline(always)]
    pub(super) unsafe fn store(&self, fields: __m512i, to: *mut u8) {
        // SAFETY: masked bytes are not written, the others have room.
        unsafe { _mm512_mask_storeu_epi8(to.cast(), self.lanes, self.pack(fields)) };
    }
}

/// Packs whole groups of 64 fields and returns how many fields that are.
///
/// # Safety
/// The CPU has the features of this tier; `packed` has room for all fields; `width` is 1 to 7.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(in crate::simd) unsafe fn pack_bits(fields: &[u8], width: u32, packed: &mut [u8]) -> usize {
    let squeeze = Packer::new(width);
    let (groups, _) = fields.as_chunks::<64>();
    let mut to = packed.as_mut_ptr();
    for group in groups {
        // SAFETY: `packed` has room for this group.
        unsafe { squeeze.store(load(group), to) };
        to = to.wrapping_add(8 * width as usize);
    }
    64 * groups.len()
}

/// See [`crate::simd::Kernels::index`].
///
/// # Safety
/// The CPU has the features of this tier; `escapes` has an entry for each group.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(in crate::simd) unsafe fn index(table: &[u8; 64], offsets: &mut [u8], escapes: &mut [u64]) {
    let table = load(table);
    let escape = _mm512_set1_epi8(63);
    for (group, escapes) in offsets.chunks_mut(64).zip(escapes) {
        let lanes = u64::MAX >> (64 - group.len());
        // SAFETY: only the bytes of `group` are read and written.
        unsafe {
            let indices = _mm512_maskz_loadu_epi8(lanes, group.as_ptr().cast());
            let indices = _mm512_permutexvar_epi8(indices, table);
            *escapes = _mm512_mask_cmpeq_epi8_mask(lanes, indices, escape);
            _mm512_mask_storeu_epi8(group.as_mut_ptr().cast(), lanes, indices);
        }
    }
}
