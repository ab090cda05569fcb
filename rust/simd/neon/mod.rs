//! NEON kernels: 64 lanes are four registers of low bytes and four of high bytes.
//!
//! NEON looks bytes up in tables of 64, by which it also moves bytes; it has no masks, expansions or
//! streaming stores: masks become 64-bit numbers, and tables of 256 say how 8 lanes are moved. Every
//! 64-bit ARM CPU has NEON, so that safe code is compiled for this tier anyway.

#![allow(
    clippy::inline_always,
    clippy::wildcard_imports,
    reason = "a step must be compiled into its loop, and intrinsics are many"
)]

mod bits;
mod hash;
mod rans;

pub(super) use bits::{index, pack_bits, unpack_bits};
pub(super) use hash::hash;
pub(super) use rans::{decode_groups, encode_groups};

use std::arch::aarch64::*;

/// Whether the CPU has what every function of this module needs.
pub(super) const fn is_available() -> bool {
    cfg!(all(target_feature = "neon", target_endian = "little"))
}

/// A byte of each of the 64 lanes.
type Lanes = [uint8x16_t; 4];

#[target_feature(enable = "neon")]
#[inline]
fn load(bytes: &[u8; 64]) -> Lanes {
    // SAFETY: four times 16 of the 64 bytes.
    std::array::from_fn(|part| unsafe { vld1q_u8(bytes.as_ptr().add(16 * part)) })
}

#[target_feature(enable = "neon")]
#[inline]
fn store(lanes: Lanes, bytes: &mut [u8; 64]) {
    for (part, lanes) in lanes.into_iter().enumerate() {
        // SAFETY: four times 16 of the 64 bytes.
        unsafe { vst1q_u8(bytes.as_mut_ptr().add(16 * part), lanes) }
    }
}

/// A table of 64 bytes to look up in; 0 from 64 on.
#[target_feature(enable = "neon")]
#[inline]
fn table(bytes: &[u8; 64]) -> uint8x16x4_t {
    let [a, b, c, d] = load(bytes);
    uint8x16x4_t(a, b, c, d)
}

#[target_feature(enable = "neon")]
#[inline]
fn load_eight(bytes: &[u8; 8]) -> uint8x8_t {
    // SAFETY: the reference is to 8 readable bytes.
    unsafe { vld1_u8(bytes.as_ptr()) }
}

/// Lanes of ones and zeros as the bits of a number.
#[target_feature(enable = "neon")]
#[inline]
fn mask_of(lanes: Lanes) -> u64 {
    let powers = vcombine_u8(load_eight(&POWERS), load_eight(&POWERS));
    let [a, b, c, d] = lanes.map(|lanes| vandq_u8(lanes, powers));
    // Each addition of neighbours halves what belongs to 8 lanes; three leave a byte of it.
    let sums = vpaddq_u8(vpaddq_u8(a, b), vpaddq_u8(c, d));
    vgetq_lane_u64::<0>(vreinterpretq_u64_u8(vpaddq_u8(sums, sums)))
}

static POWERS: [u8; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// In byte `k`, how many bits are set in the bytes `0..=k` of a mask.
#[target_feature(enable = "neon")]
#[inline]
fn counts_up_to(mask: u64) -> u64 {
    let counts = vcnt_u8(vcreate_u8(mask));
    let counts = vget_lane_u64::<0>(vreinterpret_u64_u8(counts));
    counts.wrapping_mul(0x0101_0101_0101_0101)
}

/// Byte `k` of a number.
#[inline]
const fn byte(number: u64, k: usize) -> u8 {
    (number >> (8 * k)) as u8
}

/// An index outside of every table of 16, also with 8 added.
const NOWHERE: u8 = 0x80;

/// For a mask of 8 lanes, in each set lane the number of set lanes before it.
static EXPAND: [[u8; 8]; 256] = {
    let mut table = [[NOWHERE; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut lane, mut rank) = (0, 0);
        while lane < 8 {
            if mask >> lane & 1 == 1 {
                table[mask][lane] = rank;
                rank += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    table
};

/// For a mask of 8 lanes, the set lanes in order, at the end.
static COMPRESS: [[u8; 8]; 256] = {
    let mut table = [[NOWHERE; 8]; 256];
    let mut mask: usize = 0;
    while mask < 256 {
        let (mut lane, mut place) = (0, 8 - mask.count_ones() as usize);
        while lane < 8 {
            if mask >> lane & 1 == 1 {
                table[mask][place] = lane;
                place += 1;
            }
            lane += 1;
        }
        mask += 1;
    }
    table
};

/// Replaces the lanes of `mask`, in order, by bytes from `from` on; `counts` is [`counts_up_to`] it.
///
/// # Safety
/// The CPU has NEON; 64 bytes from `from` on can be read.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn expand(lanes: Lanes, mask: u64, counts: u64, from: *const u8) -> Lanes {
    let before = counts << 8;
    std::array::from_fn(|part| {
        let (first, second) = (2 * part, 2 * part + 1);
        let start = byte(before, first);
        let moved = vdup_n_u8(byte(before, second) - start);
        let shuffle = vcombine_u8(
            load_eight(&EXPAND[usize::from(byte(mask, first))]),
            vadd_u8(load_eight(&EXPAND[usize::from(byte(mask, second))]), moved),
        );
        // SAFETY: at most 16 bytes per part are used before it, so that 16 of the 64 remain.
        let next = unsafe { vld1q_u8(from.add(usize::from(start))) };
        vqtbx1q_u8(lanes[part], next, shuffle)
    })
}
