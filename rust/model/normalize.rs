//! From counts to a frequency table: which symbols get slots, how many, and what the plane then costs.
//!
//! Integers only. Costs are in 1/65536 bit.

use super::frequency_table::{Entry, FrequencyTable};
use super::log2::{LOG2_FRACTION_BITS, log2};
use crate::constants::{ESCAPE, MAX_SYMBOLS, SLOTS};

/// One bit, in the unit of costs.
pub(crate) const ONE_BIT: u64 = 1 << LOG2_FRACTION_BITS;

/// A symbol below a quarter of a slot is cheaper as an escape.
const MIN_SHARE: u64 = 4 * SLOTS as u64;

/// How a plane of counted symbols is best coded.
#[derive(Clone, Debug)]
pub(crate) enum Fit {
    /// Every symbol is this one; the counts were exact.
    Constant(u64),
    /// Coded with a table; `cost` is what the counted symbols take.
    Coded { table: FrequencyTable, cost: u64 },
}

impl Fit {
    /// What the counted symbols take, without table and states.
    pub(crate) fn cost(&self) -> u64 {
        match self {
            Self::Constant(_) => 0,
            Self::Coded { cost, .. } => *cost,
        }
    }
}

/// Fits a table to `counts`, one for each of the `2^bits` symbols; `None` when all are zero.
///
/// `exact` says that no symbol can occur that was not counted.
pub(crate) fn fit(counts: &[u32], bits: u32, exact: bool) -> Option<Fit> {
    let used = counts.iter().filter(|&&count| count > 0).count();
    if used == 0 {
        return None;
    }
    if used == 1 && exact {
        return Some(Fit::Constant(
            counts.iter().position(|&count| count > 0)? as u64
        ));
    }
    let without = if exact {
        fit_window(counts, bits, false)
    } else {
        None
    };
    let with = fit_window(counts, bits, true);
    [without, with]
        .into_iter()
        .flatten()
        .min_by_key(|&(_, cost)| cost)
        .map(|(table, cost)| Fit::Coded { table, cost })
}

/// The start of the window of `width` symbols, modulo the alphabet, with the most mass.
fn best_window(counts: &[u32], width: usize) -> (usize, u64) {
    let alphabet = counts.len();
    if alphabet <= width {
        return (0, counts.iter().map(|&count| u64::from(count)).sum());
    }
    let mut mass: u64 = counts[..width].iter().map(|&count| u64::from(count)).sum();
    let mut best = (0, mass);
    for start in 1..alphabet {
        mass += u64::from(counts[(start + width - 1) % alphabet]);
        mass -= u64::from(counts[start - 1]);
        if mass > best.1 {
            best = (start, mass);
        }
    }
    best
}

/// A table over the best window, with or without an escape for what it leaves out.
fn fit_window(counts: &[u32], bits: u32, escape: bool) -> Option<(FrequencyTable, u64)> {
    let total: u64 = counts.iter().map(|&count| u64::from(count)).sum();
    let width = if escape {
        usize::from(ESCAPE)
    } else {
        MAX_SYMBOLS
    };
    let (base, mass) = best_window(counts, width);
    if !escape && mass < total {
        return None;
    }
    let mut listed: Vec<(u8, u64)> = (0..width.min(counts.len()))
        .map(|index| {
            (
                index as u8,
                u64::from(counts[(base + index) % counts.len()]),
            )
        })
        .filter(|&(_, count)| count > 0 && (!escape || count * MIN_SHARE >= total))
        .collect();
    let escaped = total - listed.iter().map(|&(_, count)| count).sum::<u64>();
    if escape {
        listed.push((ESCAPE, escaped.max(1)));
    }
    if listed.len() < 2 {
        return None;
    }
    let weights: Vec<u64> = listed.iter().map(|&(_, count)| count).collect();
    let frequencies = normalize(&weights);
    let mut cost = 0;
    for (&count, &frequency) in weights.iter().zip(&frequencies) {
        cost += count * slot_cost(frequency);
    }
    let mut entries: Vec<Entry> = listed
        .iter()
        .zip(&frequencies)
        .map(|(&(index, _), &frequency)| Entry {
            index,
            frequency: frequency as u8,
        })
        .collect();
    // Large frequencies in the low slots lose the least precision (measured, docs/design.md).
    entries.sort_by_key(|entry| (std::cmp::Reverse(entry.frequency), entry.index));
    let table = FrequencyTable::new(bits, base as u64, escape, entries).ok()?;
    if escape {
        cost += escaped * 8 * table.escape_bytes() as u64 * ONE_BIT;
    }
    Some((table, cost))
}

/// Bits that a symbol with this many slots takes.
fn slot_cost(frequency: u64) -> u64 {
    log2(SLOTS as u64) - log2(frequency)
}

/// Frequencies of 1 to 255 that sum to 256, close to the cheapest for `weights` (at least two).
fn normalize(weights: &[u64]) -> Vec<u64> {
    let total: u64 = weights.iter().sum::<u64>().max(1);
    let limit = SLOTS as u64 - 1;
    let mut frequencies: Vec<u64> = weights
        .iter()
        .map(|&weight| {
            ((u128::from(weight) * SLOTS as u128 / u128::from(total)) as u64).clamp(1, limit)
        })
        .collect();
    let mut sum: u64 = frequencies.iter().sum();
    let step = |weight: u64, low: u64| u128::from(weight) * u128::from(log2(low + 1) - log2(low));
    while sum < SLOTS as u64 {
        let gain = |&i: &usize| step(weights[i], frequencies[i]);
        let grow = (0..weights.len())
            .filter(|&i| frequencies[i] < limit)
            .max_by_key(|i| (gain(i), std::cmp::Reverse(*i)));
        let Some(grow) = grow else { break };
        frequencies[grow] += 1;
        sum += 1;
    }
    while sum > SLOTS as u64 {
        let loss = |&i: &usize| step(weights[i], frequencies[i] - 1);
        let shrink = (0..weights.len())
            .filter(|&i| frequencies[i] > 1)
            .min_by_key(|i| (loss(i), *i));
        let Some(shrink) = shrink else { break };
        frequencies[shrink] -= 1;
        sum -= 1;
    }
    frequencies
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_counted_symbol_can_be_coded(
            counts in prop::collection::vec(prop_oneof![Just(0_u32), 1_u32..20, 1_u32..1_000_000], 2..=512),
            exact: bool,
        ) {
            let bits = counts.len().next_power_of_two().ilog2();
            let mut counts = counts;
            counts.resize(1 << bits, 0);
            let Some(fit) = fit(&counts, bits, exact) else {
                prop_assert!(counts.iter().all(|&count| count == 0));
                return Ok(());
            };
            if let Fit::Coded { table, cost } = fit {
                let symbols: Vec<u16> =
                    table.entries().iter().map(|entry| table.symbol(entry.index)).collect();
                for (symbol, &count) in counts.iter().enumerate() {
                    let listed = symbols.contains(&(symbol as u16));
                    prop_assert!(count == 0 || table.has_escape() || listed);
                }
                prop_assert!(exact || table.has_escape());
                let total: u64 = counts.iter().map(|&count| u64::from(count)).sum();
                prop_assert!(cost <= total * (8 + 16) * ONE_BIT);
            }
        }

        #[test]
        fn frequencies_are_legal(weights in prop::collection::vec(1_u64..1 << 40, 2..=64)) {
            let frequencies = normalize(&weights);
            prop_assert_eq!(frequencies.iter().sum::<u64>(), 256);
            prop_assert!(frequencies.iter().all(|f| (1..=255).contains(f)));
        }
    }

    #[test]
    fn costs_are_close_to_the_entropy() {
        let counts = [
            400_000, 300_000, 150_000, 100_000, 30_000, 15_000, 4_000, 1_000,
        ];
        let total: f64 = counts.iter().map(|&count| f64::from(count)).sum();
        let entropy: f64 = counts
            .iter()
            .map(|&count| -f64::from(count) * (f64::from(count) / total).log2())
            .sum();
        let cost = fit(&counts, 3, true).unwrap().cost() as f64 / ONE_BIT as f64;
        assert!(
            cost >= entropy && cost < entropy * 1.005,
            "{cost} {entropy}"
        );
    }

    #[test]
    fn one_symbol_is_constant_only_if_the_counts_are_exact() {
        assert!(matches!(fit(&[0, 7], 1, true), Some(Fit::Constant(1))));
        assert!(matches!(fit(&[0, 7], 1, false), Some(Fit::Coded { .. })));
        assert!(fit(&[0, 0], 1, true).is_none());
    }
}
