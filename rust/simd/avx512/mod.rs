//! AVX-512 kernels: 64 lanes are one register of low bytes and one of high bytes.
//!
//! VBMI looks bytes up in tables of 64 and 128, VBMI2 expands and compresses bytes: renormalisation is
//! one instruction in each direction.

#![allow(clippy::wildcard_imports, reason = "intrinsics are many")]

mod bits;
mod contexts;
mod cut;
mod hash;
mod rans;
mod split;
mod stream;
mod symbols;

pub(super) use bits::{index, pack_bits, unpack_bits};
pub(super) use contexts::{decode_contexts, look_up_bytes, look_up_words, unpack_fields};
pub(super) use cut::decode_cut;
pub(super) use hash::hash;
pub(super) use rans::{decode_groups, encode_groups};
pub(super) use split::split_cut;
pub(super) use stream::{copy_past_cache, fence};

use super::Task;
use std::arch::x86_64::{__m512i, _mm512_loadu_si512, _mm512_storeu_si512};

/// Whether the CPU has what every function of this module needs.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vbmi2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("popcnt")
}

/// Runs a task compiled for this tier.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt"
)]
pub(super) fn run<T: Task>(task: T) -> T::Output {
    task.run()
}

/// A constant or table as a register.
#[target_feature(enable = "avx512f")]
#[inline]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the reference is to 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(register: __m512i, bytes: &mut [u8; 64]) {
    // SAFETY: the reference is to 64 writable bytes; the store needs no alignment.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), register) }
}

/// Sixty-four consecutive entries of a table, as 16-bit numbers, in two registers.
#[target_feature(enable = "avx512f")]
#[inline]
fn load_words(words: &[u16; 64]) -> [__m512i; 2] {
    // SAFETY: the reference is to 128 readable bytes.
    unsafe {
        [
            _mm512_loadu_si512(words.as_ptr().cast()),
            _mm512_loadu_si512(words.as_ptr().add(32).cast()),
        ]
    }
}
