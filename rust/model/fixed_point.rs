//! Magnitudes of floats in 32-bit fixed point, so that sums do not depend on their order.

use crate::dtype::FloatFields;
use crate::planes::words::{Word, low_mask};

/// Mantissa bits that are looked at: more would not change a mean by a step.
const KEPT_MANTISSA_BITS: u32 = 7;

/// Turns words into magnitudes in 32-bit fixed point: 0 for what is far below `top` or not finite.
#[derive(Clone, Copy)]
pub(super) struct FixedPoint {
    /// Mantissa bits that are left out.
    dropped: u32,
    kept: u32,
    exponent_bits: u32,
    pub(super) exponent_mask: u32,
    /// The exponent of the largest magnitudes; what is above counts as if it had this one.
    pub(super) top: u32,
}

impl FixedPoint {
    pub(super) fn new(fields: FloatFields) -> Self {
        let kept = fields.mantissa_bits.min(KEPT_MANTISSA_BITS);
        Self {
            dropped: fields.mantissa_bits - kept,
            kept,
            exponent_bits: fields.exponent_bits,
            exponent_mask: low_mask(fields.exponent_bits) as u32,
            top: 1,
        }
    }

    /// The exponent, that of infinities and subnormals taken for the smallest.
    #[inline(always)]
    pub(super) fn exponent<W: Word>(self, word: W) -> u32 {
        let exponent = (word >> self.dropped >> self.kept).widen() as u32 & self.exponent_mask;
        if exponent == self.exponent_mask {
            1
        } else {
            exponent.max(1)
        }
    }

    #[inline(always)]
    fn magnitude<W: Word>(self, word: W) -> u32 {
        let leading = (word >> self.dropped).widen() as u32;
        let exponent = leading >> self.kept & self.exponent_mask;
        // One above the mantissa unless the exponent is 0, without a comparison.
        let implicit = (exponent + self.exponent_mask) >> self.exponent_bits << self.kept;
        let mantissa = leading & low_mask(self.kept) as u32 | implicit;
        let lowest = self.top.saturating_sub(31).max(1);
        let depth = self.top - exponent.max(lowest).min(self.top);
        let finite = u32::from(exponent != self.exponent_mask).wrapping_neg();
        ((mantissa << (31 - self.kept)) >> depth) & finite
    }

    #[inline(always)]
    pub(super) fn magnitudes<W: Word>(self, words: &[W], magnitudes: &mut [u32]) {
        for (magnitude, &word) in magnitudes.iter_mut().zip(words) {
            *magnitude = self.magnitude(word);
        }
    }

    /// The sum of the magnitudes of elements as they are stored.
    #[inline(always)]
    pub(super) fn sum<W: Word>(self, elements: &[W::Bytes]) -> u64 {
        // Halves, so that vectors have lanes of 32 bits: they hold the sums of 2^16 halves.
        let of_block = |block: &[W::Bytes]| {
            let (mut low, mut high) = (0, 0);
            for &element in block {
                let magnitude = self.magnitude(W::from_bytes(element));
                low += magnitude & 0xffff;
                high += magnitude >> 16;
            }
            u64::from(low) + (u64::from(high) << 16)
        };
        elements.chunks(1 << 16).map(of_block).sum()
    }
}
