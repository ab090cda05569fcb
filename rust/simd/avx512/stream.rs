//! Stores past the caches: copies, and outputs that are written register by register.

use std::arch::x86_64::*;

use super::load;

/// See [`crate::simd::Kernels::copy_past_cache`].
///
/// # Safety
/// The CPU has the features of this tier; `to` has room for as many bytes as `from` has.
#[target_feature(enable = "avx512f")]
pub(in crate::simd) unsafe fn copy_past_cache(from: &[u8], to: *mut u8) {
    // Streaming stores need an aligned destination; the loads do not mind.
    let head = to.align_offset(64).min(from.len());
    let (first, rest) = from.split_at(head);
    let (lines, last) = rest.as_chunks::<64>();
    // SAFETY: the three parts follow each other in `to`, which has room for them; the lines begin
    // where `to` is aligned.
    unsafe {
        first.as_ptr().copy_to_nonoverlapping(to, head);
        let mut line_to = to.add(head);
        for line in lines {
            _mm512_stream_si512(line_to.cast(), load(line));
            line_to = line_to.add(64);
        }
        last.as_ptr().copy_to_nonoverlapping(line_to, last.len());
    }
}

/// Makes the copies of this thread visible to others before what follows.
#[target_feature(enable = "sse2")]
pub(in crate::simd) fn fence() {
    _mm_sfence();
}

/// How an output is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the caches.
    Plain,
    /// Streaming stores to aligned lines.
    Aligned,
    /// Streaming stores to aligned lines, which begin so many bytes into a register.
    Shifted(usize),
}

impl Way {
    pub(super) fn of(to: *const u8, past_cache: bool) -> Self {
        match to.addr() % 64 {
            _ if !past_cache => Self::Plain,
            0 => Self::Aligned,
            shift => Self::Shifted(64 - shift),
        }
    }
}

/// Bytes of an output that are kept in the first cache until whole lines of them can be stored.
const KEPT: usize = 2048;
/// How many bytes a line is stored behind the last one that was pushed: so many that its parts have
/// left the store queue, from which a load cannot take two of them at once.
const BEHIND: usize = 1536;

/// What [`Way::Shifted`] keeps: a ring, and its first line again behind it.
#[repr(align(64))]
pub(super) struct Ring([u8; KEPT + 64]);

impl Ring {
    pub(super) const fn new() -> Self {
        Self([0; KEPT + 64])
    }
}

/// An output that is written from front to back.
#[derive(Clone, Copy)]
pub(super) struct Output {
    begin: *mut u8,
    ring: *mut u8,
}

impl Output {
    pub(super) fn new(begin: *mut u8, ring: &mut Ring) -> Self {
        let ring = ring.0.as_mut_ptr();
        Self { begin, ring }
    }

    /// Stores the registers that follow the first `at` bytes: 1, 2 or 4, always as many.
    ///
    /// # Safety
    /// The CPU has AVX-512 with BW, there is room for the registers, `way` is that of this output or
    /// of one of the same alignment, and all bytes before `at` have been pushed.
    #[inline(always)]
    pub(super) unsafe fn push(self, at: usize, registers: &[__m512i], way: Way) {
        // SAFETY: plain stores go where there is room. A shifted output stores the first part of its
        // first register by mask, then whole lines of which every byte has been pushed. Positions in
        // the ring are below `KEPT`, a multiple of 1, 2 and 4 registers, and it has 64 bytes more.
        unsafe {
            let to = self.begin.add(at);
            match way {
                Way::Plain => {
                    for (part, &register) in registers.iter().enumerate() {
                        _mm512_storeu_si512(to.add(64 * part).cast(), register);
                    }
                }
                Way::Aligned => {
                    for (part, &register) in registers.iter().enumerate() {
                        _mm512_stream_si512(to.add(64 * part).cast(), register);
                    }
                }
                Way::Shifted(shift) => {
                    let place = at % KEPT;
                    for (part, &register) in registers.iter().enumerate() {
                        _mm512_store_si512(self.ring.add(place + 64 * part).cast(), register);
                    }
                    if place == 0 {
                        _mm512_store_si512(self.ring.add(KEPT).cast(), registers[0]);
                        if at == 0 {
                            let first = (1 << shift) - 1;
                            _mm512_mask_storeu_epi8(self.begin.cast(), first, registers[0]);
                        }
                    }
                    if at >= BEHIND {
                        for part in 0..registers.len() {
                            self.store_line(at - BEHIND + 64 * part, shift);
                        }
                    }
                }
            }
        }
    }

    /// Stores the line that begins `shift` bytes behind `at`.
    ///
    /// # Safety
    /// As [`Output::push`], with 128 bytes pushed from `at` on.
    #[inline(always)]
    unsafe fn store_line(self, at: usize, shift: usize) {
        // SAFETY: as the caller's.
        unsafe {
            let line = _mm512_loadu_si512(self.ring.add(at % KEPT + shift).cast());
            _mm512_stream_si512(self.begin.add(at + shift).cast(), line);
        }
    }

    /// Stores what a shifted output of `len` bytes still holds.
    ///
    /// # Safety
    /// As [`Output::push`], with `len` bytes pushed.
    #[inline(always)]
    pub(super) unsafe fn finish(self, len: usize, way: Way) {
        let Way::Shifted(shift) = way else { return };
        if len == 0 {
            return;
        }
        // SAFETY: all bytes have been pushed; those that are masked out are not touched.
        unsafe {
            for at in (len.saturating_sub(BEHIND)..len - 64).step_by(64) {
                self.store_line(at, shift);
            }
            let last = len - 64;
            let rest = _mm512_load_si512(self.ring.add(last % KEPT).cast());
            let mask = u64::MAX << shift;
            _mm512_mask_storeu_epi8(self.begin.add(last).cast(), mask, rest);
        }
    }
}
