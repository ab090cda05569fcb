//! Counts of the symbols in a sample.

use std::marker::PhantomData;
use std::ops::Range;

use super::log2::log2;
use super::sample::Sample;
use crate::dtype::FloatFields;
use crate::planes::scale::ScaleOffsets;
use crate::planes::words::{Word, low_mask, with_word};
use crate::simd::{Kernels, Task};

/// Counts that take turns.
const TURNS: usize = 4;
/// log2 of the counts that are looked at together.
const BLOCK_LOG2: u32 = 5;

/// Adds the leading bits of `words`, those above `below`, to counts that take turns: one count alone
/// would wait for the store of the element before.
#[inline(always)]
fn count_leading<W: Word, const TURNS: usize>(words: &[W], below: u32, counts: &mut [u32]) {
    let size = counts.len() / TURNS;
    let mask = size - 1;
    let index = |word: W| (word >> below).widen() as usize & mask;
    let (groups, rest) = words.as_chunks::<TURNS>();
    for group in groups {
        for (turn, &word) in group.iter().enumerate() {
            counts[turn * size + index(word)] += 1;
        }
    }
    for &word in rest {
        counts[index(word)] += 1;
    }
}

/// Trailing zeros that the low `bits` of all `words` share.
#[inline(always)]
fn shared_zeros<W: Word>(words: &[W], bits: u32) -> u32 {
    let any = words.iter().fold(W::default(), |any, &word| any | word);
    (any.widen() | !low_mask(bits)).trailing_zeros().min(bits)
}

/// Counts of a float's leading bits, and of its trailing zeros.
#[derive(Clone, Debug)]
pub(crate) struct FloatHistogram {
    /// Index: the top `bits` magnitude bits, below the sign.
    counts: Vec<u32>,
    /// Magnitudes that were counted, from and to multiples of `2^joint_bits`.
    used: Range<usize>,
    /// Width of the counted magnitude bits.
    bits: u32,
    /// Mantissa bits among them.
    joint_bits: u32,
    /// Elements counted.
    pub(crate) total: u64,
    /// `zeros[z]` elements lie in runs whose mantissas share `z` trailing zeros.
    zeros: [u64; 65],
}

/// The making of a [`FloatHistogram`].
struct Count<'a, W> {
    sample: &'a Sample<'a>,
    scale: Option<&'a ScaleOffsets>,
    fields: FloatFields,
    joint_bits: u32,
    word: PhantomData<W>,
}

impl<W: Word> Task for Count<'_, W> {
    type Output = FloatHistogram;

    #[inline(always)]
    fn run(self) -> FloatHistogram {
        FloatHistogram::count(&self)
    }
}

impl FloatHistogram {
    /// Counts the sign, the exponent and `joint_bits` of the mantissa over the sample.
    pub(crate) fn new(
        kernels: Kernels,
        sample: &Sample<'_>,
        scale: Option<&ScaleOffsets>,
        fields: FloatFields,
        joint_bits: u32,
    ) -> Self {
        with_word!(sample.element_bytes, W => kernels.run(Count::<W> {
            sample,
            scale,
            fields,
            joint_bits,
            word: PhantomData,
        }))
    }

    #[inline(always)]
    fn count<W: Word>(task: &Count<'_, W>) -> Self {
        let Count {
            sample,
            scale,
            fields,
            joint_bits,
            ..
        } = *task;
        let bits = fields.exponent_bits + joint_bits;
        let below = W::BITS - 1 - bits;
        let size = 2 << bits;
        // Several counts are worth their clearing and adding only for many elements.
        let turns = if sample.taken() < 2 * size as u64 {
            1
        } else {
            TURNS
        };
        let mut counts = vec![0; turns * size];
        let mut total = 0;
        let mut zeros = [0; 65];
        sample.for_each_run::<W>(scale, |words| {
            if turns == 1 {
                count_leading::<W, 1>(words, below, &mut counts);
            } else {
                count_leading::<W, TURNS>(words, below, &mut counts);
            }
            total += words.len() as u64;
            zeros[shared_zeros(words, fields.mantissa_bits) as usize] += words.len() as u64;
        });
        let (sums, others) = counts.split_at_mut(size);
        for other in others.chunks_exact(size) {
            sums.iter_mut()
                .zip(other)
                .for_each(|(sum, add)| *sum += add);
        }
        counts.truncate(size);
        let mut histogram = Self {
            counts,
            used: 0..0,
            bits,
            joint_bits,
            total,
            zeros,
        };
        histogram.find_used();
        histogram
    }

    fn find_used(&mut self) {
        let group = 1 << self.joint_bits;
        // Blocks first: most counts are zero, and a sum of many takes no longer than one branch.
        let block = (1 << self.bits.min(BLOCK_LOG2)).max(group);
        let is_used = |part: &[u32]| part.iter().fold(0, |any, count| any | count) > 0;
        let used = |part: &[u32]| {
            let first = part.chunks_exact(block).position(is_used)? * block;
            let last = part.chunks_exact(block).rposition(is_used)? * block;
            let within = |start: usize| part[start..start + block].chunks_exact(group);
            let first = first / group + within(first).position(is_used)?;
            let last = last / group + within(last).rposition(is_used)?;
            Some((first, last))
        };
        let (positive, negative) = self.counts.split_at(1 << self.bits);
        let used = match (used(positive), used(negative)) {
            (Some(p), Some(n)) => p.0.min(n.0)..p.1.max(n.1) + 1,
            (Some(one), None) | (None, Some(one)) => one.0..one.1 + 1,
            (None, None) => 0..1,
        };
        self.used = used.start * group..used.end * group;
    }

    /// The counts there would be if all magnitudes were less by `steps` of the lowest counted bit.
    pub(crate) fn lowered(&self, steps: i8) -> Self {
        let half = 1_usize << self.bits;
        let moved = |end: usize| end.checked_add_signed(-isize::from(steps));
        let used = moved(self.used.start).zip(moved(self.used.end).filter(|&end| end <= half));
        let Some((start, end)) = used else {
            return self.rotated(steps);
        };
        let mut counts = vec![0; 2 * half];
        for sign in [0, half] {
            let from = &self.counts[sign..][self.used.clone()];
            counts[sign + start..sign + end].copy_from_slice(from);
        }
        let group = 1 << self.joint_bits;
        Self {
            counts,
            used: start / group * group..end.next_multiple_of(group),
            ..*self
        }
    }

    /// [`FloatHistogram::lowered`] where some magnitudes wrap.
    fn rotated(&self, steps: i8) -> Self {
        let mut rotated = self.clone();
        let half = 1 << self.bits;
        let by = i64::from(steps).rem_euclid(half as i64) as usize;
        let (positive, negative) = rotated.counts.split_at_mut(half);
        positive.rotate_left(by);
        negative.rotate_left(by);
        rotated.find_used();
        rotated
    }

    /// Counts of the top `bits` magnitude bits, with the sign below them if it is wanted, and the
    /// symbol that the first one is for.
    pub(crate) fn symbols(&self, bits: u32, with_sign: bool) -> (usize, Vec<u32>) {
        let folded = self.bits - bits;
        let (positive, negative) = self.counts.split_at(1 << self.bits);
        let positive = fold(&positive[self.used.clone()], folded);
        let negative = fold(&negative[self.used.clone()], folded);
        let pairs = positive.iter().zip(&negative);
        let first = self.used.start >> folded;
        if with_sign {
            (first << 1, pairs.flat_map(|(&p, &n)| [p, n]).collect())
        } else {
            (first, pairs.map(|(p, n)| p + n).collect())
        }
    }

    /// The sign of every element counted, if they agree.
    pub(crate) fn constant_sign(&self) -> Option<u64> {
        let negative = &self.counts[1 << self.bits..][self.used.clone()];
        match negative.iter().map(|&count| u64::from(count)).sum::<u64>() {
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

/// Adds `2^times` neighbours.
fn fold(counts: &[u32], times: u32) -> Vec<u32> {
    match times {
        0 => counts.to_vec(),
        1 => counts
            .as_chunks::<2>()
            .0
            .iter()
            .map(|&[a, b]| a + b)
            .collect(),
        2 => counts
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&[a, b, c, d]| a + b + c + d)
            .collect(),
        _ => fold(&fold(counts, 2), times - 2),
    }
}

/// Counts of each byte of the elements, the highest byte first.
pub(crate) fn byte_histograms(sample: &Sample<'_>) -> Vec<Vec<u32>> {
    let mut turns = vec![[0_u32; 256]; sample.element_bytes * TURNS];
    with_word!(sample.element_bytes, W => sample.for_each_run::<W>(None, |words| {
        for (plane, turns) in turns.chunks_exact_mut(TURNS).rev().enumerate() {
            count_bytes(words, 8 * plane as u32, turns);
        }
    }));
    let sum = |turns: &[[u32; 256]]| {
        (0..256)
            .map(|byte| turns.iter().map(|counts| counts[byte]).sum())
            .collect()
    };
    turns.chunks_exact(TURNS).map(sum).collect()
}

/// Adds the bytes above `below` to counts that take turns.
#[inline(always)]
fn count_bytes<W: Word>(words: &[W], below: u32, turns: &mut [[u32; 256]]) {
    let [a, b, c, d] = turns else { return };
    let byte = |word: W| usize::from((word >> below).widen() as u8);
    let (groups, rest) = words.as_chunks::<TURNS>();
    for &[w, x, y, z] in groups {
        a[byte(w)] += 1;
        b[byte(x)] += 1;
        c[byte(y)] += 1;
        d[byte(z)] += 1;
    }
    for &word in rest {
        a[byte(word)] += 1;
    }
}

/// Order-0 entropy of frequencies that sum to 256, in bits.
pub(crate) fn table_entropy(frequencies: impl Iterator<Item = u8>) -> f64 {
    let cost: u64 = frequencies
        .map(|f| u64::from(f) * (log2(256) - log2(u64::from(f))))
        .sum();
    cost as f64 / 65536.0 / 256.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_level_of_detail_counts_the_same(
            words in prop::collection::vec(any::<u16>(), 1..3000), joint in 0_u32..4, steps in -4_i8..5,
        ) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let fields = Dtype::Bfloat16.float_fields().unwrap();
            let sample = Sample::new(&bytes, 2, 0, usize::MAX);
            prop_assert!(sample.is_exact());
            let histogram = FloatHistogram::new(Kernels::scalar(), &sample, None, fields, joint);
            let lowered = histogram.lowered(steps);
            for bits in 8..=8 + joint {
                let (first, counts) = lowered.symbols(bits, true);
                let mut expected = vec![0_u32; 2 << bits];
                for word in &words {
                    let magnitude = i64::from(word & 0x7fff) - (i64::from(steps) << (7 - joint));
                    let symbol = (magnitude.rem_euclid(1 << 15) as usize) >> (15 - bits);
                    expected[symbol << 1 | usize::from(word >> 15)] += 1;
                }
                let mut found = vec![0; 2 << bits];
                found[first..first + counts.len()].copy_from_slice(&counts);
                prop_assert_eq!(&found, &expected);
            }
        }
    }
}
