//! Samples of a tensor and the counts taken from them.
//!
//! A sample is a fixed set of whole sub-blocks, so that the same input gives the same model on every
//! machine and for every thread count.

use std::ops::Range;

use super::log2::log2;
use crate::constants::SUB_BLOCK;
use crate::planes::raw::TrailingZeros;
use crate::planes::scale::ScaleOffsets;
use crate::planes::words::{Word, with_word};

/// Which elements are looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) element_bytes: usize,
    /// Bytes before the first element.
    pub(crate) phase: usize,
    /// One of `step` neighbouring sub-blocks is taken; 1 takes everything.
    pub(crate) step: usize,
}

/// Which of `step` neighbours number `index` of a sample is: fixed, but without a period that could
/// meet one of the tensor's.
pub(crate) fn jitter(index: usize, step: usize) -> usize {
    ((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as usize % step
}

impl<'a> Sample<'a> {
    /// At least `blocks` sub-blocks, or everything if there are not that many.
    pub(crate) fn new(bytes: &'a [u8], element_bytes: usize, phase: usize, blocks: usize) -> Self {
        let elements = bytes.len().saturating_sub(phase) / element_bytes;
        let step = (elements.div_ceil(SUB_BLOCK) / blocks).max(1);
        Self {
            bytes,
            element_bytes,
            phase,
            step,
        }
    }

    /// Whether every element is taken.
    pub(crate) fn is_exact(&self) -> bool {
        self.step == 1
    }

    /// Elements of the whole input.
    pub(crate) fn elements(&self) -> usize {
        self.bytes.len().saturating_sub(self.phase) / self.element_bytes
    }

    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let elements = self.elements();
        let step = self.step;
        (0..elements.div_ceil(SUB_BLOCK).div_ceil(step))
            .map(move |index| (index * step + jitter(index, step)) * SUB_BLOCK)
            .filter(move |&start| start < elements)
            .map(move |start| start..elements.min(start + SUB_BLOCK))
    }

    /// Calls `visit` with the words of every sub-block taken, scale offsets subtracted.
    ///
    /// `W` is as wide as the elements.
    pub(crate) fn for_each_block<W: Word>(
        &self,
        scale: Option<&ScaleOffsets>,
        mut visit: impl FnMut(&[W]),
    ) {
        debug_assert_eq!(W::BYTES, self.element_bytes);
        let mut buffer = [W::default(); SUB_BLOCK];
        for range in self.blocks() {
            let words = &mut buffer[..range.len()];
            let start = self.phase + range.start * W::BYTES;
            W::load(&self.bytes[start..start + range.len() * W::BYTES], words);
            if let Some(scale) = scale {
                scale.subtract(words, range.start);
            }
            visit(words);
        }
    }

    /// Elements taken.
    pub(crate) fn taken(&self) -> u64 {
        self.blocks().map(|range| range.len() as u64).sum()
    }
}

/// Counts of a float's leading magnitude bits and its sign, and of its trailing zeros.
#[derive(Clone, Debug)]
pub(crate) struct FloatHistogram {
    /// Index: the top `bits` magnitude bits, then the sign.
    counts: Vec<u32>,
    /// Width of the counted magnitude bits.
    bits: u32,
    /// Elements counted.
    pub(crate) total: u64,
    /// `zeros[z]` elements lie in sub-blocks whose mantissas share `z` trailing zeros.
    zeros: [u64; 65],
}

impl FloatHistogram {
    /// Counts the top `bits` of the `element_bits - 1` magnitude bits over the sample.
    pub(crate) fn new(
        sample: &Sample<'_>,
        scale: Option<&ScaleOffsets>,
        bits: u32,
        mantissa_bits: u32,
    ) -> Self {
        with_word!(sample.element_bytes, W => {
            Self::count::<W>(sample, scale, bits, mantissa_bits)
        })
    }

    fn count<W: Word>(
        sample: &Sample<'_>,
        scale: Option<&ScaleOffsets>,
        bits: u32,
        mantissa_bits: u32,
    ) -> Self {
        let sign_position = W::BITS - 1;
        let below = sign_position - bits;
        let mut histogram = Self {
            counts: vec![0; 2 << bits],
            bits,
            total: 0,
            zeros: [0; 65],
        };
        let rule = TrailingZeros {
            bits: mantissa_bits,
            sign_is_last: false,
        };
        let mask = histogram.counts.len() - 1;
        sample.for_each_block::<W>(scale, |words| {
            for &word in words {
                // Sign and leading magnitude bits are the top of the element; the sign goes last.
                let top = (word >> below).widen() as usize;
                let index = (top << 1 | top >> bits) & mask;
                histogram.counts[index] += 1;
            }
            histogram.total += words.len() as u64;
            histogram.zeros[rule.count(words) as usize] += words.len() as u64;
        });
        histogram
    }

    /// Counts of the top `bits` magnitude bits, with the sign below them if it is wanted.
    pub(crate) fn symbols(&self, bits: u32, with_sign: bool) -> Vec<u32> {
        let mut counts = vec![0; 1 << (bits + u32::from(with_sign))];
        for (index, &count) in self.counts.iter().enumerate() {
            let top = index >> 1 >> (self.bits - bits);
            counts[if with_sign { top << 1 | index & 1 } else { top }] += count;
        }
        counts
    }

    /// The sign of every element counted, if they agree.
    pub(crate) fn constant_sign(&self) -> Option<u64> {
        let negative: u64 = self
            .counts
            .iter()
            .skip(1)
            .step_by(2)
            .map(|&c| u64::from(c))
            .sum();
        match negative {
            0 => Some(0),
            all if all == self.total => Some(1),
            _ => None,
        }
    }

    /// Bits that leaving out trailing zeros saves among the elements counted, of `raw_bits` mantissa bits.
    pub(crate) fn zero_bits(&self, raw_bits: u32) -> u64 {
        let saved =
            |(zeros, &elements): (usize, &u64)| (zeros as u64).min(raw_bits.into()) * elements;
        self.zeros.iter().enumerate().map(saved).sum()
    }
}

/// Counts of each byte of the elements, the highest byte first.
pub(crate) fn byte_histograms(sample: &Sample<'_>) -> Vec<Vec<u32>> {
    let mut counts = vec![vec![0; 256]; sample.element_bytes];
    with_word!(sample.element_bytes, W => sample.for_each_block::<W>(None, |words| {
        for (plane, counts) in counts.iter_mut().rev().enumerate() {
            for &word in words {
                counts[usize::from((word >> (8 * plane as u32)).widen() as u8)] += 1;
            }
        }
    }));
    counts
}

/// Order-0 entropy of frequencies that sum to 256, in bits.
pub(crate) fn table_entropy(frequencies: impl Iterator<Item = u8>) -> f64 {
    let cost: u64 = frequencies
        .map(|f| u64::from(f) * (log2(256) - log2(u64::from(f))))
        .sum();
    cost as f64 / 65536.0 / 256.0
}
