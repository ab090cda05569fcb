//! Which instruction set the kernels use, and the dispatch to them.
//!
//! A kernel allocates nothing, does no I/O and returns no error; its preconditions are asserted by the
//! dispatching method of [`Kernels`] right before the call. Every tier reads and writes the same
//! bytes: the scalar code is the oracle, and `simd::tests` holds the others against it.
//!
//! What kernels rely on, and their comments cite:
//! - K1. A [`Kernels`] is only made for a tier whose CPU features have been detected.
//! - K2. A decoder's stream has 64 bytes for each group that is asked for ([`Decoder::safe_groups`]): each of
//!   64 lanes takes a byte at most, and loads are of 64 bytes at most from where a group begins.
//! - K3. An output has room for 64 values for each group, a list of indices or contexts has as many.
//! - K4. An encoder has room for a byte for each index and 64 more ([`Encoder::has_room`]): it writes
//!   backwards, 64 bytes at a time.
//! - K5. A bit string has all bytes of its fields, whose width is 1 to 7 bits ([`bits::packed_len`]).
//! - K6. A form covers a run ([`CutForm::covers`], [`SplitForm::covers`]): raw planes, output, rings of the scale.
//! - K7. Escaped values are padded: 64 bytes can be read from each position up to their count, and
//!   positions are cut to it; a list of escape masks has an entry for each group.
//! - K8. Places in tables come from a byte for a table of 256, or are cut to its length: whatever a stream
//!   holds, no look-up leaves its table.
//! - K9. Stores that need an alignment are chosen by the address itself (`Way` of each tier).

#![allow(
    unsafe_code,
    reason = "calls into kernels compiled for an instruction set"
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bits;
pub(crate) mod cut;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(test)]
pub(crate) mod tests;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Buckets;

use crate::chunk::ChunkHash;
use crate::entropy::rans::{ContextSpec, Decoder, Encoder, Spec, Value, ValueMap};
use crate::error::{Error, Result};
use crate::planes::words::Word;
use cut::{CutForm, CutRun, SplitForm, SplitRun};

/// Environment variable that pins a tier.
const SIMD_VARIABLE: &str = "NEUZIP_SIMD";

/// A set of kernels. Every tier writes and reads the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimdTier {
    /// Portable Rust.
    Scalar,
    /// AVX2 and the bit instructions of its time: Haswell, Zen and later.
    Avx2,
    /// AVX-512 with VBMI and VBMI2: Ice Lake, Zen 4 and later.
    Avx512,
    /// NEON: every 64-bit ARM CPU.
    Neon,
}

impl SimdTier {
    /// Every tier, the fastest first.
    pub const ALL: [Self; 4] = [Self::Avx512, Self::Avx2, Self::Neon, Self::Scalar];

    /// The name `NEUZIP_SIMD` knows the tier by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }

    /// Whether this machine has what the tier needs.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => neon::is_available(),
            #[cfg(not(target_arch = "aarch64"))]
            Self::Neon => false,
        }
    }
}

/// The tier in use: the one `NEUZIP_SIMD` names, else the fastest this machine has.
///
/// # Errors
/// [`Error::InvalidArgument`] when the variable names a tier that is unknown or not available.
pub fn simd_tier() -> Result<SimdTier> {
    Kernels::select(None).map(|kernels| kernels.tier)
}

/// Safe code whose loops the compiler turns into vectors.
///
/// A closure would do but for one thing: `run` must be `#[inline(always)]`, and so must what it calls,
/// to be compiled with the features of the function it is called from.
pub(crate) trait Task {
    type Output;
    fn run(self) -> Self::Output;
}

/// Asks for memory that will soon be read from places the hardware cannot foresee.
///
/// Into the second cache: misses of the first are few at a time, and then loads wait for them.
#[inline(always)]
pub(crate) fn fetch(bytes: &[u8]) {
    const LINE: usize = 64;
    #[cfg(target_arch = "x86_64")]
    for line in 0..=bytes.len().div_ceil(LINE) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // Bytes that begin within a line end in one more.
        let place = (line * LINE).min(bytes.len().saturating_sub(1));
        // SAFETY: every x86-64 CPU has the instruction, and it cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(bytes.as_ptr().wrapping_add(place).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (bytes, LINE);
}

/// The kernels of a tier that this machine has: having one is the proof that they may be called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernels {
    tier: SimdTier,
}

impl Kernels {
    /// The portable kernels.
    pub(crate) const fn scalar() -> Self {
        Self {
            tier: SimdTier::Scalar,
        }
    }

    pub(crate) const fn tier(self) -> SimdTier {
        self.tier
    }

    /// The kernels of a tier, if this machine has them.
    pub(crate) fn new(tier: SimdTier) -> Option<Self> {
        tier.is_available().then_some(Self { tier })
    }

    /// The kernels of the pinned tier, else of the one `NEUZIP_SIMD` names, else the fastest.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a tier that is unknown or not available.
    pub(crate) fn select(pinned: Option<SimdTier>) -> Result<Self> {
        let unavailable = |name: &str| {
            let available = SimdTier::ALL.into_iter().filter(|tier| tier.is_available());
            let names: Vec<&str> = available.map(SimdTier::name).collect();
            Error::InvalidArgument(format!(
                "{SIMD_VARIABLE}={name:?} is not available here; available: {}",
                names.join(", ")
            ))
        };
        if let Some(tier) = pinned {
            return Self::new(tier).ok_or_else(|| unavailable(tier.name()));
        }
        match std::env::var(SIMD_VARIABLE) {
            Ok(name) if !name.is_empty() => SimdTier::ALL
                .into_iter()
                .find(|tier| tier.name() == name)
                .and_then(Self::new)
                .ok_or_else(|| unavailable(&name)),
            _ => Ok(SimdTier::ALL
                .into_iter()
                .find_map(Self::new)
                .unwrap_or(Self::scalar())),
        }
    }

    /// Runs safe code compiled for the tier, so that its loops use the tier's vectors.
    pub(crate) fn run<T: Task>(self, task: T) -> T::Output {
        match self.tier {
            // SAFETY: K1.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx2 => unsafe { avx2::run(task) },
            // SAFETY: K1.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx512 => unsafe { avx512::run(task) },
            _ => task.run(),
        }
    }

    /// Chunks that one thread decodes at a time, to hide the latency of a step: as many as have their
    /// states in registers. Measured in docs/optimizations.md.
    pub(crate) const fn decode_interleave(self, wide: bool) -> usize {
        match self.tier {
            SimdTier::Scalar => 1,
            SimdTier::Avx512 if wide => 2,
            SimdTier::Avx2 | SimdTier::Avx512 => 3,
            SimdTier::Neon => 2,
        }
    }

    /// The same for chunks of one or two symbols in contexts.
    pub(crate) const fn symbols_interleave(self) -> usize {
        match self.tier {
            SimdTier::Scalar => 1,
            SimdTier::Avx2 => 3,
            SimdTier::Avx512 | SimdTier::Neon => 2,
        }
    }

    /// Chunks that one thread encodes at a time.
    pub(crate) const fn encode_interleave(self) -> usize {
        match self.tier {
            SimdTier::Scalar => 1,
            SimdTier::Avx2 | SimdTier::Avx512 => 3,
            SimdTier::Neon => 2,
        }
    }

    /// Decodes `groups` groups of 64 values with each decoder; `out[i]` belongs to `decoders[i]`.
    ///
    /// # Panics
    /// If a stream has fewer than `64 * groups` bytes left or an output is too short.
    pub(crate) fn decode_groups<V: Value>(
        self,
        spec: &Spec,
        map: &ValueMap,
        decoders: &mut [Decoder<'_>],
        out: &mut [&mut [V]],
        groups: usize,
    ) {
        assert_eq!(decoders.len(), out.len());
        for (decoder, out) in decoders.iter().zip(&*out) {
            assert!(decoder.safe_groups() >= groups && out.len() >= 64 * groups);
        }
        match self.tier {
            // SAFETY: K1; K2 and K3 as asserted.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx2 => unsafe {
                avx2::decode_groups(spec, map, decoders, out, groups);
            },
            // SAFETY: K1; K2 and K3 as asserted.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx512 => unsafe {
                avx512::decode_groups(spec, map, decoders, out, groups);
            },
            // SAFETY: K1; K2 and K3 as asserted.
            #[cfg(target_arch = "aarch64")]
            SimdTier::Neon => unsafe { neon::decode_groups(spec, map, decoders, out, groups) },
            _ => {
                for (decoder, out) in decoders.iter_mut().zip(out) {
                    decoder.decode_groups(spec, map, &mut out[..64 * groups]);
                }
            }
        }
    }

    /// Decodes `groups` groups of each chunk and puts the elements together; `false`, with nothing
    /// done, where the tier has no kernel for it.
    ///
    /// # Panics
    /// If a part of a run is too short, or the runs do not begin at the same word of their chunks
    /// and of cache lines.
    pub(crate) fn decode_cut(
        self,
        form: &CutForm<'_>,
        runs: &mut [CutRun<'_, '_>],
        groups: usize,
    ) -> bool {
        let place = |run: &CutRun<'_, '_>| (run.hash.words, run.out.as_ptr().addr() % 64);
        let same = |run: &CutRun<'_, '_>| place(run) == place(&runs[0]);
        assert!(runs.iter().all(|run| form.covers(run, groups) && same(run)));
        match self.tier {
            // SAFETY: K1; K6 as asserted.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx2 => unsafe { avx2::decode_cut(form, runs, groups) },
            // SAFETY: K1; K6 as asserted.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx512 => unsafe { avx512::decode_cut(form, runs, groups) },
            _ => false,
        }
    }

    /// Hashes `groups` groups of a chunk and takes them apart into indices and raw bits; returns how
    /// many escaped symbols there are.
    ///
    /// # Panics
    /// If a part of the run is too short, or the tier has no such kernel ([`Kernels::has_split_cut`]).
    pub(crate) fn split_cut(self, form: &SplitForm<'_>, run: SplitRun<'_>, groups: usize) -> usize {
        assert!(form.covers(&run, groups) && self.has_split_cut(form.element_bytes));
        match self.tier {
            // SAFETY: K1; K6 as asserted.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx512 => unsafe { avx512::split_cut(form, run, groups) },
            _ => 0,
        }
    }

    /// Whether [`Kernels::split_cut`] has a kernel for elements of this width.
    pub(crate) const fn has_split_cut(self, element_bytes: usize) -> bool {
        matches!(self.tier, SimdTier::Avx512) && element_bytes <= 4
    }

    /// Whether [`Kernels::decode_cut`] has a kernel for elements of this width.
    pub(crate) const fn has_decode_cut(self, element_bytes: usize) -> bool {
        matches!(self.tier, SimdTier::Avx2 | SimdTier::Avx512) && element_bytes <= 4
    }

    /// The same for [`cut::Source::Symbols`].
    pub(crate) const fn has_decode_symbols(self, element_bytes: usize) -> bool {
        matches!(self.tier, SimdTier::Avx512) && element_bytes <= 4
    }

    /// Encodes whole groups of 64 indices with each encoder, the last group first.
    ///
    /// # Panics
    /// If the lists of indices differ in length, are no whole groups, or an encoder has too little room.
    pub(crate) fn encode_groups(self, spec: &Spec, encoders: &mut [Encoder], indices: &[&[u8]]) {
        let len = indices.first().map_or(0, |indices| indices.len());
        assert_eq!(encoders.len(), indices.len());
        assert!(len.is_multiple_of(64) && indices.iter().all(|indices| indices.len() == len));
        assert!(encoders.iter().all(|encoder| encoder.has_room(len)));
        match self.tier {
            // SAFETY: K1; K3 and K4 as asserted.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx2 => unsafe { avx2::encode_groups(spec, encoders, indices) },
            // SAFETY: K1; K3 and K4 as asserted.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx512 => unsafe { avx512::encode_groups(spec, encoders, indices) },
            // SAFETY: K1; K3 and K4 as asserted.
            #[cfg(target_arch = "aarch64")]
            SimdTier::Neon => unsafe { neon::encode_groups(spec, encoders, indices) },
            _ => {
                for (encoder, indices) in encoders.iter_mut().zip(indices) {
                    encoder.push(spec, indices);
                }
            }
        }
    }

    /// Replaces each offset, below 64, by its entry of `table`; bit `i` of `escapes[g]` says whether
    /// number `i` of group `g` has become 63.
    ///
    /// # Panics
    /// If `escapes` has not one entry for each group, the last of which may be shorter.
    pub(crate) fn index(self, table: &[u8; 64], offsets: &mut [u8], escapes: &mut [u64]) {
        assert_eq!(offsets.len().div_ceil(64), escapes.len());
        match self.tier {
            // SAFETY: K1; K7 as asserted: `escapes` has an entry for each group.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx2 => unsafe { avx2::index(table, offsets, escapes) },
            // SAFETY: K1; K7 as asserted: `escapes` has an entry for each group.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx512 => unsafe { avx512::index(table, offsets, escapes) },
            // SAFETY: K1; K7 as asserted: `escapes` has an entry for each group.
            #[cfg(target_arch = "aarch64")]
            SimdTier::Neon => unsafe { neon::index(table, offsets, escapes) },
            _ => {
                for (group, escapes) in offsets.chunks_mut(64).zip(escapes) {
                    *escapes = 0;
                    for (lane, offset) in group.iter_mut().enumerate() {
                        *offset = table[usize::from(*offset & 63)];
                        *escapes |= u64::from(*offset == 63) << lane;
                    }
                }
            }
        }
    }

    /// Reads fields of `width` bits, 1 to 7, from a little-endian bit string, one into each byte.
    ///
    /// # Panics
    /// If `packed` is shorter than the fields.
    pub(crate) fn unpack_bits(self, packed: &[u8], width: u32, fields: &mut [u8]) {
        assert!((1..=7).contains(&width));
        assert!(packed.len() >= bits::packed_len(fields.len(), width));
        let done = match self.tier {
            // SAFETY: K1; K5 as asserted.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx2 => unsafe { avx2::unpack_bits(packed, width, fields) },
            // SAFETY: K1; K5 as asserted.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx512 => unsafe { avx512::unpack_bits(packed, width, fields) },
            // SAFETY: K1; K5 as asserted.
            #[cfg(target_arch = "aarch64")]
            SimdTier::Neon => unsafe { neon::unpack_bits(packed, width, fields) },
            _ => 0,
        };
        let rest = &packed[bits::packed_len(done, width)..];
        bits::unpack(rest, width, &mut fields[done..]);
    }

    /// Decodes whole groups of 64 indices in contexts; returns how many groups, 0 where the tier has no
    /// kernel.
    ///
    /// # Panics
    /// If the stream has fewer than `64 * groups` bytes left, or there are fewer contexts or indices.
    pub(crate) fn decode_contexts(
        self,
        spec: &ContextSpec,
        decoder: &mut Decoder<'_>,
        contexts: &[u8],
        indices: &mut [u8],
        groups: usize,
    ) -> usize {
        assert!(decoder.safe_groups() >= groups);
        assert!(contexts.len().min(indices.len()) >= 64 * groups);
        match self.tier {
            // SAFETY: K1; K2 and K3 as asserted.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx512 => unsafe {
                avx512::decode_contexts(spec, decoder, contexts, indices, groups);
                groups
            },
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx2 => spec.few().map_or(0, |few| {
                // SAFETY: K1; K2 and K3 as asserted.
                unsafe { avx2::decode_contexts(few, decoder, contexts, indices, groups) };
                groups
            }),
            _ => {
                let _ = spec;
                0
            }
        }
    }

    /// Looks bytes up in two tables at once; returns how many of them, 0 where the tier has no kernel.
    ///
    /// # Panics
    /// If an output is too short.
    pub(crate) fn look_up_bytes(
        self,
        tables: [&[u8; 256]; 2],
        at: &[u8],
        out: [&mut [u8]; 2],
    ) -> usize {
        assert!(out.iter().all(|out| out.len() >= at.len()));
        match self.tier {
            // SAFETY: K1; K3 as asserted.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx512 => unsafe { avx512::look_up_bytes(tables, at, out) },
            _ => {
                let _ = tables;
                0
            }
        }
    }

    /// Looks words up in a table at numbers below 16; returns how many of them, 0 where the tier has no
    /// kernel.
    ///
    /// # Panics
    /// If the output is too short.
    pub(crate) fn look_up_words<W: Word>(self, table: &[W; 16], at: &[u8], out: &mut [W]) -> usize {
        assert!(out.len() >= at.len());
        match self.tier {
            // SAFETY: K1; K3 as asserted.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx512 => unsafe { avx512::look_up_words(table, at, out) },
            _ => {
                let _ = table;
                0
            }
        }
    }

    /// Reads fields of these widths less `low_bits`, at most 25, from a little-endian bit string from
    /// bit `position` on, each `low_bits` up in its word; returns how many, 0 where the tier has no
    /// kernel, and the bit after them. The last 64 bytes are not read.
    ///
    /// # Panics
    /// If the output is too short.
    pub(crate) fn unpack_fields<W: Word>(
        self,
        bytes: &[u8],
        position: usize,
        (widths, low_bits): (&[u8], u32),
        out: &mut [W],
    ) -> (usize, usize) {
        assert!(out.len() >= widths.len());
        match self.tier {
            // SAFETY: K1; K3 as asserted.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx512 if W::BYTES <= 4 => unsafe {
                avx512::unpack_fields(bytes, position, (widths, low_bits), out)
            },
            _ => {
                let _ = (bytes, low_bits);
                (0, position)
            }
        }
    }

    /// The inverse of [`Kernels::unpack_bits`]; bits of a field above `width` are ignored.
    ///
    /// # Panics
    /// If `packed` has not exactly the length of the fields.
    pub(crate) fn pack_bits(self, fields: &[u8], width: u32, packed: &mut [u8]) {
        assert!((1..=7).contains(&width));
        assert_eq!(packed.len(), bits::packed_len(fields.len(), width));
        let done = match self.tier {
            // SAFETY: K1; K5 as asserted.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx2 => unsafe { avx2::pack_bits(fields, width, packed) },
            // SAFETY: K1; K5 as asserted.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx512 => unsafe { avx512::pack_bits(fields, width, packed) },
            // SAFETY: K1; K5 as asserted.
            #[cfg(target_arch = "aarch64")]
            SimdTier::Neon => unsafe { neon::pack_bits(fields, width, packed) },
            _ => 0,
        };
        let rest = &mut packed[bits::packed_len(done, width)..];
        bits::pack(&fields[done..], width, rest);
    }

    /// Adds whole 8-byte words to a chunk hash.
    ///
    /// # Panics
    /// If there are bytes left over.
    pub(crate) fn hash(self, hash: &mut ChunkHash, bytes: &[u8]) {
        assert!(bytes.len().is_multiple_of(8));
        let done = match self.tier {
            // SAFETY: K1; the bytes are a slice.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx2 => unsafe { avx2::hash(hash, bytes) },
            // SAFETY: K1; the bytes are a slice.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx512 => unsafe { avx512::hash(hash, bytes) },
            // SAFETY: K1; the bytes are a slice.
            #[cfg(target_arch = "aarch64")]
            SimdTier::Neon => unsafe { neon::hash(hash, bytes) },
            _ => 0,
        };
        hash.update(&bytes[done..]);
    }

    /// Makes copies past the caches visible to other threads before what this one does next.
    pub(crate) fn fence(self) {
        match self.tier {
            // SAFETY: K1.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx2 => unsafe { avx2::fence() },
            // SAFETY: K1.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx512 => unsafe { avx512::fence() },
            _ => {}
        }
    }

    /// Appends to a vector that has room, past the caches; [`Kernels::fence`] is due before another
    /// thread reads it.
    pub(crate) fn append_past_cache(self, bytes: &[u8], to: &mut Vec<u8>) {
        to.reserve(bytes.len());
        match self.tier {
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx2 | SimdTier::Avx512 => {
                let len = to.len();
                let room = to.spare_capacity_mut()[..bytes.len()].as_mut_ptr();
                // SAFETY: the CPU has the features; the vector has room for as many bytes as are
                // copied, all of which are written before they count.
                unsafe {
                    if self.tier == SimdTier::Avx2 {
                        avx2::copy_past_cache(bytes, room.cast());
                    } else {
                        avx512::copy_past_cache(bytes, room.cast());
                    }
                    to.set_len(len + bytes.len());
                }
            }
            _ => to.extend_from_slice(bytes),
        }
    }

    /// Copies past the caches, for an output that is much larger than they are; [`Kernels::fence`] is
    /// due before another thread reads it.
    ///
    /// # Panics
    /// If the lengths differ.
    pub(crate) fn copy_past_cache(self, from: &[u8], to: &mut [u8]) {
        assert_eq!(from.len(), to.len());
        match self.tier {
            // SAFETY: K1; the lengths are equal, as asserted.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx2 => unsafe { avx2::copy_past_cache(from, to.as_mut_ptr()) },
            // SAFETY: K1; the lengths are equal, as asserted.
            #[cfg(target_arch = "x86_64")]
            SimdTier::Avx512 => unsafe { avx512::copy_past_cache(from, to.as_mut_ptr()) },
            _ => to.copy_from_slice(from),
        }
    }
}
