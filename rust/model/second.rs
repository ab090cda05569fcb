//! The second symbol: leading mantissa bits next to the exponent they belong to.
//!
//! Within an octave small magnitudes are as likely as large ones, but in the highest octaves that are
//! used they are not. One table of exponent and mantissa bits would need more than 256 slots to be
//! precise (measured, docs/design.md); a table of a few mantissa bits for each of a few exponents does
//! not.

use super::contexts::{ContextSource, ContextTables};
use super::log2::log2;
use super::normalize::{normalize, table_cost};
use crate::constants::{MAX_CONTEXTS, SLOTS};

/// Numbers of contexts that are tried.
const CONTEXTS: [usize; 3] = [4, 8, MAX_CONTEXTS];

/// Counts of first and second symbols.
#[derive(Clone, Copy)]
pub(super) struct SecondCounts<'a> {
    /// The number of the first symbol that `counts` begins with.
    pub(super) first: usize,
    /// For each first symbol the counts of the second ones.
    pub(super) counts: &'a [u32],
    pub(super) first_bits: u32,
    pub(super) second_bits: u32,
}

impl SecondCounts<'_> {
    fn groups(&self) -> impl Iterator<Item = (usize, &[u32])> {
        let groups = self.counts.chunks_exact(1 << self.second_bits);
        (self.first..).zip(groups)
    }

    /// Counts of the second symbols in each of `contexts` contexts, the first of which begins at `start`.
    fn in_contexts(&self, start: usize, contexts: usize) -> Vec<u64> {
        let unused = u16::BITS - self.first_bits;
        let size = 1 << self.second_bits;
        let mut sums = vec![0; contexts * size];
        for (symbol, group) in self.groups() {
            let above = ((symbol.wrapping_sub(start) as u16) << unused).cast_signed() >> unused;
            let context = above.clamp(0, contexts as i16 - 1) as usize;
            let sums = &mut sums[context * size..][..size];
            sums.iter_mut()
                .zip(group)
                .for_each(|(sum, &count)| *sum += u64::from(count));
        }
        sums
    }

    /// Where the contexts may begin: with the symbol below those that are looked at apart.
    fn starts(&self, contexts: usize) -> std::ops::Range<usize> {
        let symbols = self.counts.len() >> self.second_bits;
        let last = (symbols + 1).saturating_sub(contexts);
        self.first..self.first + last + 1
    }

    /// About what the second symbols take.
    pub(super) fn estimate(&self) -> u64 {
        // Around the first symbol with the most elements, more of them above it than below.
        let peak = self
            .groups()
            .map(|(symbol, group)| {
                (
                    group.iter().map(|&count| u64::from(count)).sum::<u64>(),
                    symbol,
                )
            })
            .max()
            .map_or(0, |(_, symbol)| symbol);
        let start = peak.saturating_sub(MAX_CONTEXTS / 2).max(self.first);
        let sums = self.in_contexts(start, MAX_CONTEXTS);
        sums.chunks_exact(1 << self.second_bits).map(entropy).sum()
    }

    /// The tables with the smallest sum of cost and length, for plane number `plane` of first symbols, and
    /// the cost.
    pub(super) fn fit(&self, plane: u8) -> Option<(ContextTables, u64)> {
        let size = 1 << self.second_bits;
        let candidates = CONTEXTS.into_iter().flat_map(|contexts| {
            let table_bits = (contexts * size * 8) as u64;
            self.starts(contexts).map(move |start| {
                let sums = self.in_contexts(start, contexts);
                let cost: u64 = sums.chunks_exact(size).map(entropy).sum();
                (
                    cost + (table_bits << super::log2::LOG2_FRACTION_BITS),
                    start,
                    contexts,
                )
            })
        });
        let (_, start, contexts) = candidates.min()?;
        let sums = self.in_contexts(start, contexts);
        let mut cost = 0;
        let mut frequencies = Vec::with_capacity(contexts);
        for counts in sums.chunks_exact(size) {
            let table = context_frequencies(counts);
            cost += table_cost(counts, &table);
            frequencies.push(table);
        }
        let source = ContextSource::Plane {
            plane,
            first: start as u16,
        };
        let tables = ContextTables::new((self.second_bits, 0, false), source, frequencies).ok()?;
        Some((tables, cost))
    }
}

/// Slots for all symbols that were counted; for all symbols if there are fewer than two.
pub(super) fn context_frequencies(counts: &[u64]) -> Vec<u8> {
    let used: Vec<usize> = (0..counts.len()).filter(|&i| counts[i] > 0).collect();
    if used.len() < 2 {
        // The one that was counted, if any, and its neighbour for the last slot.
        let main = used.first().copied().unwrap_or(0);
        let mut table = vec![0; counts.len()];
        table[main] = (SLOTS - 1) as u8;
        table[main.checked_sub(1).unwrap_or(1)] = 1;
        return table;
    }
    let weights: Vec<u64> = used.iter().map(|&i| counts[i]).collect();
    let mut table = vec![0; counts.len()];
    for (&i, frequency) in used.iter().zip(normalize(&weights)) {
        table[i] = frequency as u8;
    }
    table
}

/// Order-0 entropy of counts.
fn entropy(counts: &[u64]) -> u64 {
    let total: u64 = counts.iter().sum();
    let log_total = log2(total);
    counts.iter().map(|&n| n * (log_total - log2(n))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::normalize::ONE_BIT;

    #[test]
    fn contexts_find_the_symbols_that_differ() {
        // Of 40 first symbols only number 30 has skewed second ones.
        let mut counts = vec![1000; 40 * 4];
        counts[30 * 4..31 * 4].copy_from_slice(&[64_000, 4000, 0, 0]);
        let counts = SecondCounts {
            first: 100,
            counts: &counts,
            first_bits: 8,
            second_bits: 2,
        };
        let (tables, cost) = counts.fit(3).unwrap();
        assert_eq!(tables.contexts(), 4);
        let uniform = 39 * 4000 * 2 * ONE_BIT;
        assert!(
            cost > uniform && cost < uniform + 68_000 * ONE_BIT / 2,
            "{cost}"
        );
        assert!(counts.estimate() < uniform + 68_000 * ONE_BIT / 2);
    }

    #[test]
    fn every_counted_symbol_gets_slots() {
        for counts in [[0, 0, 0, 0], [0, 9, 0, 0], [1 << 40, 0, 1, 0], [5, 5, 5, 5]] {
            let table = context_frequencies(&counts);
            assert_eq!(table.iter().map(|&f| usize::from(f)).sum::<usize>(), SLOTS);
            assert!(counts.iter().zip(table).all(|(&n, f)| n == 0 || f > 0));
        }
    }
}
