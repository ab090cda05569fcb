//! Samples of a tensor: fixed sets of runs of neighbouring elements, so that the same input gives the
//! same model on every machine and for every thread count.

use std::ops::Range;

use crate::constants::SUB_BLOCK;
use crate::planes::scale::ScaleOffsets;
use crate::planes::words::Word;

/// Elements of a run: a few cache lines, and many places.
const RUN: usize = 128;

/// Which elements are looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) element_bytes: usize,
    /// Bytes before the first element.
    pub(crate) phase: usize,
    /// Elements of a run.
    run: usize,
    /// One of `step` neighbouring runs is taken; 1 takes everything.
    step: usize,
}

/// Which of `step` neighbours number `index` of a sample is: fixed, but without a period that could
/// meet one of the tensor's.
#[inline]
pub(crate) fn jitter(index: usize, step: usize) -> usize {
    // The high half of a product with the hash spreads it without a division.
    let hash = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    ((u128::from(hash) * step as u128) >> 32) as usize
}

impl<'a> Sample<'a> {
    /// At least `limit` elements, or everything if there are not twice as many.
    pub(crate) fn new(bytes: &'a [u8], element_bytes: usize, phase: usize, limit: usize) -> Self {
        let elements = bytes.len().saturating_sub(phase) / element_bytes;
        let step = (elements / limit).max(1);
        Self {
            bytes,
            element_bytes,
            phase,
            run: if step == 1 { SUB_BLOCK } else { RUN },
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

    fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        let elements = self.elements();
        let (run, step) = (self.run, self.step);
        (0..elements.div_ceil(run).div_ceil(step))
            .map(move |index| (index * step + jitter(index, step)) * run)
            .filter(move |&start| start < elements)
            .map(move |start| start..elements.min(start + run))
    }

    /// Calls `visit` with the words of every run taken, scale offsets subtracted.
    ///
    /// `W` is as wide as the elements.
    #[inline(always)]
    pub(crate) fn for_each_run<W: Word>(
        &self,
        scale: Option<&ScaleOffsets>,
        mut visit: impl FnMut(&[W]),
    ) {
        debug_assert_eq!(W::BYTES, self.element_bytes);
        let mut buffer = [W::default(); SUB_BLOCK];
        let mut runs = self.runs();
        let mut batch = Vec::with_capacity(SUB_BLOCK / self.run);
        loop {
            // Loading some runs before the first is counted lets their cache misses overlap.
            batch.clear();
            // In this order, or a run would be taken that no room is left for.
            for (words, range) in buffer.chunks_exact_mut(self.run).zip(&mut runs) {
                let start = self.phase + range.start * W::BYTES;
                let bytes = &self.bytes[start..start + range.len() * W::BYTES];
                W::load(bytes, &mut words[..range.len()]);
                batch.push(range);
            }
            if batch.is_empty() {
                return;
            }
            for (range, words) in batch.iter().zip(buffer.chunks_exact_mut(self.run)) {
                let words = &mut words[..range.len()];
                if let Some(scale) = scale {
                    scale.subtract(words, range.start);
                }
                visit(words);
            }
        }
    }

    /// Elements taken.
    pub(crate) fn taken(&self) -> u64 {
        self.runs().map(|range| range.len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn samples_take_every_element_or_at_least_as_many_as_asked(
            elements in 1_usize..200_000, limit in 1_usize..5000, phase in 0_usize..2,
        ) {
            let bytes: Vec<u8> = (0..2 * elements + phase).map(|i| (i >> 9) as u8).collect();
            let sample = Sample::new(&bytes, 2, phase, limit);
            let (mut visited, mut last) = (0, None);
            sample.for_each_run::<u16>(None, |words| visited += words.len());
            prop_assert_eq!(visited as u64, sample.taken());
            prop_assert!(!sample.is_exact() || visited == elements);
            prop_assert!(visited + RUN >= limit.min(elements));
            for range in sample.runs() {
                prop_assert!(last < Some(range.start) && range.end <= elements);
                last = Some(range.start);
            }
        }
    }
}
