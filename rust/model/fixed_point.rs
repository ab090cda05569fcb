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
        let implicit = u32::from(exponent > 0) << self.kept;
        let mantissa = leading & low_mask(self.kept) as u32 | implicit;
        let depth = (self.top as i32 - exponent.max(1) as i32).clamp(0, 31);
        let finite = u32::from(exponent != self.exponent_mask).wrapping_neg();
        ((mantissa << (31 - self.kept)) >> depth) & finite
    }

    #[inline(always)]
    pub(super) fn magnitudes<W: Word>(self, words: &[W], magnitudes: &mut [u32]) -> u64 {
        for (magnitude, &word) in magnitudes.iter_mut().zip(words) {
            *magnitude = self.magnitude(word);
        }
        magnitudes.iter().map(|&value| u64::from(value)).sum()
    }
}
