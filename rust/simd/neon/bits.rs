//! Bit strings and table lookups, 64 fields at a time.

use std::arch::aarch64::*;

use super::{mask_of, table};

/// Where the fields of one width are: for each of 16 fields, the two bytes that hold it.
#[derive(Clone, Copy)]
struct Windows {
    bytes: [[u8; 16]; 2],
    /// Where in those it begins, in bits, negated as a shift to the right.
    shifts: [i16; 8],
}

static WINDOWS: [Windows; 8] = {
    let mut table = [Windows {
        bytes: [[0; 16]; 2],
        shifts: [0; 8],
    }; 8];
    let mut width = 1;
    while width < 8 {
        let mut field = 0;
        while field < 16 {
            let bit = field * width;
            let (half, at) = (field / 8, 2 * (field % 8));
            table[width].bytes[half][at] = (bit / 8) as u8;
            table[width].bytes[half][at + 1] = (bit / 8 + 1) as u8;
            table[width].shifts[field % 8] = -((bit % 8) as i16);
            field += 1;
        }
        width += 1;
    }
    table
};

/// Unpacks whole groups of 64 fields and returns how many fields that are.
///
/// # Safety
/// The CPU has NEON; `packed` holds all fields; `width` is 1 to 7.
#[target_feature(enable = "neon")]
pub(in crate::simd) unsafe fn unpack_bits(packed: &[u8], width: u32, fields: &mut [u8]) -> usize {
    let windows = &WINDOWS[width as usize];
    // SAFETY: the references are to 16 bytes each.
    let (bytes, shifts) = unsafe {
        (
            windows
                .bytes
                .each_ref()
                .map(|bytes| vld1q_u8(bytes.as_ptr())),
            vld1q_s16(windows.shifts.as_ptr()),
        )
    };
    let mask = vdupq_n_u8((1 << width) - 1);
    let stride = 2 * width as usize;
    let (groups, _) = fields.as_chunks_mut::<64>();
    for (number, group) in groups.iter_mut().enumerate() {
        let rest = &packed[4 * stride * number..];
        let mut padded = [0; 64];
        // Four loads of 16 bytes, of which the last ones reach behind the group.
        let from = if rest.len() >= 3 * stride + 16 {
            rest.as_ptr()
        } else {
            padded[..4 * stride].copy_from_slice(&rest[..4 * stride]);
            padded.as_ptr()
        };
        for part in 0..4 {
            // SAFETY: 58 bytes at most are read of `padded`, or as many as `rest` was seen to have.
            let packed = unsafe { vld1q_u8(from.add(stride * part)) };
            let [first, second] = bytes
                .map(|bytes| vshlq_u16(vreinterpretq_u16_u8(vqtbl1q_u8(packed, bytes)), shifts));
            let narrow = vuzp1q_u8(vreinterpretq_u8_u16(first), vreinterpretq_u8_u16(second));
            // SAFETY: the group has 64 bytes.
            unsafe { vst1q_u8(group.as_mut_ptr().add(16 * part), vandq_u8(narrow, mask)) };
        }
    }
    64 * groups.len()
}

/// Packs whole groups of 64 fields and returns how many fields that are.
///
/// # Safety
/// The CPU has NEON; `packed` has room for all fields; `width` is 1 to 7.
#[target_feature(enable = "neon")]
pub(in crate::simd) unsafe fn pack_bits(fields: &[u8], width: u32, packed: &mut [u8]) -> usize {
    let mask = vdupq_n_u8((1 << width) - 1);
    let shift = width as i16;
    // Neighbours are joined three times: 2, 4, then 8 fields lie side by side.
    let pairs = vdupq_n_s16(shift);
    let quads = vdupq_n_s32(2 * i32::from(shift));
    let eights = vdupq_n_s64(4 * i64::from(shift));
    let stride = width as usize;
    let (groups, _) = fields.as_chunks::<64>();
    for (number, group) in groups.iter().enumerate() {
        let rest = &mut packed[8 * stride * number..];
        let mut padded = [0; 64];
        // Eight stores of 8 bytes, of which the last ones reach behind the group.
        let direct = rest.len() >= 7 * stride + 8;
        let to = if direct {
            rest.as_mut_ptr()
        } else {
            padded.as_mut_ptr()
        };
        for part in 0..4 {
            // SAFETY: the group has 64 bytes.
            let narrow = vandq_u8(unsafe { vld1q_u8(group.as_ptr().add(16 * part)) }, mask);
            let narrow = vreinterpretq_u16_u8(narrow);
            let two = vorrq_u16(
                vandq_u16(narrow, vdupq_n_u16(0xff)),
                vshlq_u16(vshrq_n_u16::<8>(narrow), pairs),
            );
            let two = vreinterpretq_u32_u16(two);
            let four = vorrq_u32(
                vandq_u32(two, vdupq_n_u32(0xffff)),
                vshlq_u32(vshrq_n_u32::<16>(two), quads),
            );
            let four = vreinterpretq_u64_u32(four);
            let eight = vorrq_u64(
                vandq_u64(four, vdupq_n_u64(0xffff_ffff)),
                vshlq_u64(vshrq_n_u64::<32>(four), eights),
            );
            let eight = vreinterpretq_u8_u64(eight);
            // SAFETY: 57 bytes at most are written to `padded`, or as many as `rest` was seen to have;
            // the zeros behind the fields are overwritten by the next store.
            unsafe {
                let to = to.add(2 * stride * part);
                vst1_u8(to, vget_low_u8(eight));
                vst1_u8(to.add(stride), vget_high_u8(eight));
            }
        }
        if !direct {
            rest[..8 * stride].copy_from_slice(&padded[..8 * stride]);
        }
    }
    64 * groups.len()
}

/// See [`crate::simd::Kernels::index`]; `escapes` has an entry for each group.
#[target_feature(enable = "neon")]
pub(in crate::simd) fn index(entries: &[u8; 64], offsets: &mut [u8], escapes: &mut [u64]) {
    let entries = table(entries);
    let (last, escape) = (vdupq_n_u8(63), vdupq_n_u8(63));
    let lookup = |group: &mut [u8; 64]| {
        let indices = super::load(group).map(|offset| vqtbl4q_u8(entries, vandq_u8(offset, last)));
        super::store(indices, group);
        mask_of(indices.map(|index| vceqq_u8(index, escape)))
    };
    let (groups, rest) = offsets.as_chunks_mut::<64>();
    for (group, escapes) in groups.iter_mut().zip(&mut *escapes) {
        *escapes = lookup(group);
    }
    if let (false, Some(escapes)) = (rest.is_empty(), escapes.last_mut()) {
        let mut group = [0; 64];
        group[..rest.len()].copy_from_slice(rest);
        *escapes = lookup(&mut group) & (u64::MAX >> (64 - rest.len()));
        rest.copy_from_slice(&group[..rest.len()]);
    }
}
