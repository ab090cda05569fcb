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

/// Counts of a float's leading bits, and of its trailing zeros.
///
/// Only the magnitudes between the smallest and the largest have counts: clearing and adding those of all
/// there can be would take longer than counting a small tensor.
#[derive(Clone, Debug)]
pub(crate) struct FloatHistogram {
    /// Counts of positive elements by their top `bits` magnitude bits, then as many of negative ones.
    counts: Vec<u32>,
    /// The magnitude of the first count, a multiple of `2^joint_bits`, as is the number of counts.
    first: usize,
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

/// Counts in the making, which take turns: one count alone would wait for the store of the element
/// before.
struct Turns {
    /// Magnitudes that there are counts for.
    range: Range<usize>,
    counts: Vec<u32>,
}

impl Turns {
    /// Makes room for magnitudes up to and including `last`.
    fn reach(&mut self, first: usize, last: usize, group: usize) {
        if self.range.contains(&first) && self.range.contains(&last) {
            return;
        }
        let (mut start, mut end) = (first / group * group, (last / group + 1) * group);
        if !self.range.is_empty() {
            (start, end) = (start.min(self.range.start), end.max(self.range.end));
        }
        let (old, new) = (self.range.len(), end - start);
        let mut counts = vec![0; 2 * TURNS * new];
        if old > 0 {
            let places = counts.chunks_exact_mut(new);
            for (to, from) in places.zip(self.counts.chunks_exact(old)) {
                to[self.range.start - start..][..old].copy_from_slice(from);
            }
        }
        (self.range, self.counts) = (start..end, counts);
    }

    /// Counts elements whose magnitude bits above `below` there is room for.
    #[inline(always)]
    fn add<W: Word>(&mut self, words: &[W], below: u32, bits: u32) {
        let mask = W::mask(bits);
        let first = W::truncate(self.range.start as u64);
        let negative = W::truncate(self.range.len() as u64);
        let size = 2 * self.range.len();
        let (a, rest) = self.counts.split_at_mut(size);
        let (b, rest) = rest.split_at_mut(size);
        let (c, d) = rest.split_at_mut(size);
        let mut places = [0_u16; 256];
        for words in words.chunks(places.len()) {
            for (place, &word) in places.iter_mut().zip(words) {
                let top = word >> below;
                let sign = W::default().wrapping_sub(top >> bits);
                let magnitude = (top & mask).wrapping_sub(first);
                *place = magnitude.wrapping_add(sign & negative).widen() as u16;
            }
            let (groups, rest) = places[..words.len()].as_chunks::<TURNS>();
            for &[i, j, k, l] in groups {
                a[usize::from(i)] += 1;
                b[usize::from(j)] += 1;
                c[usize::from(k)] += 1;
                d[usize::from(l)] += 1;
            }
            for &place in rest {
                a[usize::from(place)] += 1;
            }
        }
    }

    /// The counts of all turns together.
    fn sum(mut self) -> Vec<u32> {
        let size = 2 * self.range.len();
        let (sums, others) = self.counts.split_at_mut(size);
        for other in others.chunks_exact(size) {
            sums.iter_mut()
                .zip(other)
                .for_each(|(sum, add)| *sum += add);
        }
        self.counts.truncate(size);
        self.counts
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
        let magnitude = W::mask(W::BITS - 1);
        let mut turns = Turns {
            range: 0..0,
            counts: Vec::new(),
        };
        let mut total = 0;
        let mut zeros = [0; 65];
        sample.for_each_run::<W>(scale, |words| {
            let (mut least, mut most, mut any) = (magnitude, W::default(), W::default());
            for &word in words {
                least = least.smaller(word & magnitude);
                most = most.larger(word & magnitude);
                any = any | word;
            }
            let place = |word: W| (word >> below).widen() as usize;
            turns.reach(place(least), place(most), 1 << joint_bits);
            turns.add(words, below, bits);
            total += words.len() as u64;
            let shared = (any.widen() | !low_mask(fields.mantissa_bits)).trailing_zeros();
            zeros[shared.min(fields.mantissa_bits) as usize] += words.len() as u64;
        });
        if total == 0 {
            turns.reach(0, 0, 1 << joint_bits);
        }
        Self {
            first: turns.range.start,
            counts: turns.sum(),
            bits,
            joint_bits,
            total,
            zeros,
        }
    }

    /// Counts of positive and of negative elements.
    fn halves(&self) -> (&[u32], &[u32]) {
        self.counts.split_at(self.counts.len() / 2)
    }

    /// The counts there would be if all magnitudes were less by `steps` of the lowest counted bit.
    pub(crate) fn lowered(&self, steps: i8) -> Self {
        let (positive, negative) = self.halves();
        let group = 1 << self.joint_bits;
        let start = self.first.checked_add_signed(-isize::from(steps));
        let fits = |&start: &usize| start + positive.len() <= 1 << self.bits;
        let Some(start) = start.filter(fits) else {
            return self.rotated(steps);
        };
        let first = start / group * group;
        let len = (start + positive.len()).next_multiple_of(group) - first;
        let mut counts = vec![0; 2 * len];
        for (to, from) in counts.chunks_exact_mut(len).zip([positive, negative]) {
            to[start - first..][..from.len()].copy_from_slice(from);
        }
        Self {
            counts,
            first,
            ..*self
        }
    }

    /// [`FloatHistogram::lowered`] where some magnitudes wrap.
    fn rotated(&self, steps: i8) -> Self {
        let all = 1_usize << self.bits;
        let (positive, negative) = self.halves();
        let mut counts = vec![0; 2 * all];
        for (to, from) in counts.chunks_exact_mut(all).zip([positive, negative]) {
            to[self.first..][..from.len()].copy_from_slice(from);
            to.rotate_left(i64::from(steps).rem_euclid(all as i64) as usize);
        }
        Self {
            counts,
            first: 0,
            ..*self
        }
    }

    /// Mantissa bits that were counted.
    pub(crate) fn joint_bits(&self) -> u32 {
        self.joint_bits
    }

    /// Counts of the top `bits` magnitude bits, with the sign below them if it is wanted, and the
    /// symbol that the first one is for.
    pub(crate) fn symbols(&self, bits: u32, with_sign: bool) -> (usize, Vec<u32>) {
        let folded = self.bits - bits;
        let (positive, negative) = self.halves();
        let first = self.first >> folded;
        let counts = match folded {
            0 => fold::<1>(positive, negative, with_sign),
            1 => fold::<2>(positive, negative, with_sign),
            2 => fold::<4>(positive, negative, with_sign),
            3 => fold::<8>(positive, negative, with_sign),
            _ => {
                let sums = |half: &[u32]| -> Vec<u32> {
                    let groups = half.chunks_exact(1 << folded);
                    groups.map(|group| group.iter().sum()).collect()
                };
                fold::<1>(&sums(positive), &sums(negative), with_sign)
            }
        };
        (first << u32::from(with_sign), counts)
    }

    /// Counts of the top `bits` magnitude bits, the sign above the lowest `below` of them, and the symbol
    /// that the first one is for.
    pub(crate) fn symbols_by_sign(&self, bits: u32, below: u32) -> (usize, Vec<u32>) {
        let (first, pairs) = self.symbols(bits, true);
        let mut counts = Vec::with_capacity(pairs.len());
        for group in pairs.chunks_exact(2 << below) {
            for sign in [0, 1] {
                counts.extend(group.iter().skip(sign).step_by(2));
            }
        }
        (first, counts)
    }

    /// The sign of every element counted, if they agree.
    pub(crate) fn constant_sign(&self) -> Option<u64> {
        let (_, negative) = self.halves();
        match negative.iter().map(|&count| u64::from(count)).sum::<u64>() {
            0 => Some(0),
            all if all == self.total => Some(1),
            _ => None,
        }
    }

    /// Bits that leaving out trailing zeros saves among the elements counted, of `raw_bits` mantissa bits.
    pub(crate) fn zero_bits(&self, raw_bits: u32) -> u64 {
        if self.zeros[0] == self.total {
            return 0;
        }
        let saved =
            |(zeros, &elements): (usize, &u64)| (zeros as u64).min(raw_bits.into()) * elements;
        self.zeros.iter().enumerate().map(saved).sum()
    }
}

/// Sums of `N` neighbours: of both signs together, or with the sign as the lowest bit.
fn fold<const N: usize>(positive: &[u32], negative: &[u32], with_sign: bool) -> Vec<u32> {
    let pairs = positive
        .as_chunks::<N>()
        .0
        .iter()
        .zip(negative.as_chunks::<N>().0)
        .map(|(p, n)| [p.iter().sum::<u32>(), n.iter().sum()]);
    if with_sign {
        let mut counts = vec![0; 2 * (positive.len() / N)];
        let places = counts.as_chunks_mut::<2>().0;
        places
            .iter_mut()
            .zip(pairs)
            .for_each(|(to, pair)| *to = pair);
        counts
    } else {
        pairs.map(|[p, n]| p + n).collect()
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
