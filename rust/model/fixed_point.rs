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
        if W::BYTES <= 2 {
            return self.narrow_magnitude(word.widen() as u16);
        }
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

    /// The same for words of 16 bits, as far as possible in 16 bits: twice as many lanes in a vector.
    #[inline(always)]
    fn narrow_magnitude(self, word: u16) -> u32 {
        let mask = self.exponent_mask as u16;
        let leading = word >> self.dropped;
        let exponent = leading >> self.kept & mask;
        let implicit = (exponent + mask) >> self.exponent_bits << self.kept;
        let finite = u16::from(exponent != mask).wrapping_neg();
        let mantissa = (leading & low_mask(self.kept) as u16 | implicit) & finite;
        let top = self.top as u16;
        let lowest = top.saturating_sub(31).max(1);
        let depth = top.saturating_sub(exponent.max(lowest));
        (u32::from(mantissa) << (31 - self.kept)) >> depth
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;

    #[test]
    fn narrow_words_have_the_magnitudes_of_wide_ones() {
        for dtype in [
            Dtype::Bfloat16,
            Dtype::Float16,
            Dtype::Float8E4m3fn,
            Dtype::Float8E5m2,
        ] {
            let mut fixed = FixedPoint::new(dtype.float_fields().unwrap());
            for top in 1..=fixed.exponent_mask {
                fixed.top = top;
                for word in 0..=u16::MAX >> (16 - 8 * dtype.itemsize()) {
                    let wide = fixed.magnitude(u32::from(word));
                    assert_eq!(fixed.narrow_magnitude(word), wide, "{word:#x}, {top}");
                }
            }
        }
    }
}
