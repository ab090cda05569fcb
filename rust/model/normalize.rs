//! From counts to a frequency table: which symbols get slots, how many, and what the plane then costs.
//!
//! Integers only. Costs are in 1/65536 bit.

use std::sync::LazyLock;

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
    fit_part(0, counts, bits, exact)
}

/// [`fit`] for counts of neighbours, the first of which is `first`; all others are zero.
pub(super) fn fit_part(first: usize, counts: &[u32], bits: u32, exact: bool) -> Option<Fit> {
    if 1 << bits <= MAX_SYMBOLS && counts.len() < 1 << bits {
        // Small alphabets are seen whole, as they may be complete.
        let mut all = [0; MAX_SYMBOLS];
        all[first..first + counts.len()].copy_from_slice(counts);
        return fit_part(0, &all[..1 << bits], bits, exact);
    }
    let exact = exact || is_complete(counts, bits);
    let used = used_range(counts);
    if used.is_empty() {
        return None;
    }
    if used.len() == 1 && exact {
        return Some(Fit::Constant((first + used.start) as u64));
    }
    let without = if exact {
        fit_window(first, counts, bits, false)
    } else {
        None
    };
    // An escape takes a slot, as does a single rare symbol.
    let total: u64 = counts.iter().map(|&count| u64::from(count)).sum();
    let is_rare = |&&count: &&u32| count > 0 && u64::from(count) * MIN_SHARE < total;
    let with = if without.is_none() || counts.iter().filter(is_rare).nth(1).is_some() {
        fit_window(first, counts, bits, true)
    } else {
        None
    };
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
    // Windows that fit between the first and the last symbol used need no search.
    let used = used_range(counts);
    if used.len() <= width {
        let mass = counts[used.clone()].iter().map(|&count| u64::from(count));
        // The first one gets index 0, so that index 63, which fast encoders keep for escapes, stays free.
        return (used.start, mass.sum());
    }
    let mut mass: u64 = counts[..width].iter().map(|&count| u64::from(count)).sum();
    let mut best = (0, mass);
    for start in 1..alphabet {
        let entering = start + width - 1;
        let entering = if entering < alphabet {
            entering
        } else {
            entering - alphabet
        };
        mass += u64::from(counts[entering]);
        mass -= u64::from(counts[start - 1]);
        if mass > best.1 {
            best = (start, mass);
        }
    }
    best
}

/// From the first symbol that was counted to behind the last one.
fn used_range(counts: &[u32]) -> std::ops::Range<usize> {
    let is_used = |&count: &u32| count > 0;
    let start = counts.iter().position(is_used).unwrap_or(0);
    let end = counts.iter().rposition(is_used).map_or(0, |last| last + 1);
    start..end.max(start)
}

/// [`best_window`]; counts of a part of the alphabet have nothing to wrap to.
fn window(counts: &[u32], bits: u32, width: usize) -> (usize, u64) {
    if counts.len() == 1 << bits {
        return best_window(counts, width);
    }
    let used = used_range(counts);
    let (start, mass) = heaviest(&counts[used.clone()], width);
    (used.start + start, mass)
}

/// About what [`fit`] would find: the cost of the counted symbols and how many symbols get slots.
///
/// Slots may be fractions here, but none is below one, and all of them have to fit.
pub(crate) fn estimate(counts: &[u32], bits: u32, exact: bool) -> Option<(u64, usize)> {
    let total: u64 = counts.iter().map(|&count| u64::from(count)).sum();
    if total == 0 {
        return None;
    }
    let find = |width| window(counts, bits, width);
    let whole = (exact || is_complete(counts, bits)).then(|| find(MAX_SYMBOLS));
    let whole = whole.filter(|&(_, mass)| mass == total);
    let (start, width) = match whole {
        Some((start, _)) => (start, MAX_SYMBOLS),
        None => (find(ESCAPE.into()).0, ESCAPE.into()),
    };
    let end = (start + width).min(counts.len());
    let wraps = if counts.len() == 1 << bits { start } else { 0 };
    let wrapped = &counts[..wraps.min(width - (end - start))];
    let window = counts[start..end].iter().chain(wrapped);
    let log_total = log2(total);
    let (mut cost, mut listed, mut listed_mass, mut slots) = (0, 0, 0, 0);
    for &count in window {
        let count = u64::from(count);
        if count * MIN_SHARE >= total && count > 0 {
            listed += 1;
            listed_mass += count;
            slots += (count * SLOTS as u64).max(total);
            cost += count * (log_total - log2(count)).min(8 * ONE_BIT);
        }
    }
    let escaped = total - listed_mass;
    if exact && listed == 1 && escaped == 0 {
        return Some((0, 1));
    }
    if escaped > 0 || whole.is_none() {
        listed += 1;
        slots += (escaped * SLOTS as u64).max(total);
        cost += escaped * (log_total - log2(escaped)).min(8 * ONE_BIT);
        cost += escaped * escaped_bits(counts, bits) * ONE_BIT;
    }
    // All slots together are more than there are: every symbol gets fewer.
    cost += total * (log2(slots) - log_total).saturating_sub(8 * ONE_BIT);
    Some((cost, listed))
}

/// Whether every symbol there can be was counted and fits into one table.
fn is_complete(counts: &[u32], bits: u32) -> bool {
    counts.len() == 1 << bits
        && counts.len() <= MAX_SYMBOLS
        && counts.iter().all(|&count| count > 0)
}

/// The start of the `width` neighbours with the most mass, and that mass.
fn heaviest(counts: &[u32], width: usize) -> (usize, u64) {
    let width = width.min(counts.len());
    let mut mass: u64 = counts[..width].iter().map(|&count| u64::from(count)).sum();
    let mut best = (0, mass);
    for (index, (&leaving, &entering)) in counts.iter().zip(&counts[width..]).enumerate() {
        mass = mass + u64::from(entering) - u64::from(leaving);
        if mass > best.1 {
            best = (index + 1, mass);
        }
    }
    best
}

/// Bits that an escaped symbol takes if escapes are between the first symbol that was counted and the last.
fn escaped_bits(counts: &[u32], bits: u32) -> u64 {
    let most = used_range(counts).len().saturating_sub(1);
    u64::from((usize::BITS - most.leading_zeros()).clamp(1, bits))
}

/// A table over the best window, with or without an escape for what it leaves out.
fn fit_window(
    first: usize,
    counts: &[u32],
    bits: u32,
    escape: bool,
) -> Option<(FrequencyTable, u64)> {
    let total: u64 = counts.iter().map(|&count| u64::from(count)).sum();
    let width = if escape {
        usize::from(ESCAPE)
    } else {
        MAX_SYMBOLS
    };
    let (start, mass) = window(counts, bits, width);
    if !escape && mass < total {
        return None;
    }
    let end = (start + width).min(counts.len());
    // Only a whole alphabet wraps.
    let wraps = if counts.len() == 1 << bits { start } else { 0 };
    let wrapped = &counts[..wraps.min(width - (end - start))];
    let mut listed: Vec<(u8, u64)> = (0_u8..)
        .zip(counts[start..end].iter().chain(wrapped))
        .map(|(index, &count)| (index, u64::from(count)))
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
    let base = (first + start) as u64;
    let table = FrequencyTable::new(bits, base, escape, entries).ok()?;
    if escape {
        cost += escaped * escaped_bits(counts, bits) * ONE_BIT;
    }
    Some((table, cost))
}

/// Bits that a symbol with this many slots takes.
fn slot_cost(frequency: u64) -> u64 {
    log2(SLOTS as u64) - log2(frequency)
}

/// Bits that counted symbols take with these slots.
pub(super) fn table_cost(counts: &[u64], frequencies: &[u8]) -> u64 {
    let pairs = counts.iter().zip(frequencies).filter(|&(&n, _)| n > 0);
    pairs.map(|(&n, &f)| n * slot_cost(f.into())).sum()
}

/// `log2(f + 1) - log2(f)`: what one more slot is worth to a symbol that has `f`.
static STEPS: LazyLock<[u64; SLOTS]> = LazyLock::new(|| {
    let mut steps = [0; SLOTS];
    for (f, step) in steps.iter_mut().enumerate().skip(1) {
        *step = log2(f as u64 + 1) - log2(f as u64);
    }
    steps
});

/// Frequencies of 1 to 255 that sum to 256, close to the cheapest for `weights`.
///
/// There are 2 to 64 weights, and their sum is below 2^46.
pub(super) fn normalize(weights: &[u64]) -> Vec<u64> {
    let total: u64 = weights.iter().sum::<u64>().max(1);
    let limit = SLOTS as u64 - 1;
    let steps = &*STEPS;
    let mut frequencies: Vec<u64> = weights
        .iter()
        .map(|&weight| (weight * SLOTS as u64 / total).clamp(1, limit))
        .collect();
    let mut sum: u64 = frequencies.iter().sum();
    let mut values = [0; MAX_SYMBOLS];
    let values = &mut values[..weights.len()];
    if sum < SLOTS as u64 {
        // What one more slot gains, plus one: 0 stands for a symbol that can have no more.
        let gain = |weight: u64, f: u64| {
            if f < limit {
                weight * steps[f as usize] + 1
            } else {
                0
            }
        };
        for ((value, &weight), &f) in values.iter_mut().zip(weights).zip(&frequencies) {
            *value = gain(weight, f);
        }
        while sum < SLOTS as u64 {
            let most = values.iter().copied().fold(0, u64::max);
            let Some(grow) = values.iter().position(|&value| value == most && most > 0) else {
                break;
            };
            frequencies[grow] += 1;
            values[grow] = gain(weights[grow], frequencies[grow]);
            sum += 1;
        }
    } else {
        let loss = |weight: u64, f: u64| {
            if f > 1 {
                weight * steps[f as usize - 1]
            } else {
                u64::MAX
            }
        };
        for ((value, &weight), &f) in values.iter_mut().zip(weights).zip(&frequencies) {
            *value = loss(weight, f);
        }
        while sum > SLOTS as u64 {
            let least = values.iter().copied().fold(u64::MAX, u64::min);
            let Some(shrink) = values.iter().position(|&v| v == least && least < u64::MAX) else {
                break;
            };
            frequencies[shrink] -= 1;
            values[shrink] = loss(weights[shrink], frequencies[shrink]);
            sum -= 1;
        }
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
                prop_assert!(exact || table.has_escape() || is_complete(&counts, bits));
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

    proptest! {
        #[test]
        fn estimates_are_close(
            peak in 0_usize..512, slope in 1_usize..30, exact: bool,
        ) {
            let distance = |i: usize| i.abs_diff(peak).min(512 - i.abs_diff(peak));
            let counts: Vec<u32> = (0..512_usize)
                .map(|i| 1_000_000_u32 >> (distance(i) * slope / 10).min(31))
                .collect();
            let cost = fit(&counts, 9, exact).unwrap().cost();
            let (estimated, _) = estimate(&counts, 9, exact).unwrap();
            prop_assert!(cost.abs_diff(estimated) < cost / 50, "{} {}", cost, estimated);
        }
    }

    #[test]
    fn an_alphabet_that_is_known_whole_needs_no_escape() {
        let fitted = fit(&[9, 5, 1, 2], 2, false).unwrap();
        assert!(matches!(fitted, Fit::Coded { table, .. } if !table.has_escape()));
        let fitted = fit(&[9, 5, 0, 2], 2, false).unwrap();
        assert!(matches!(fitted, Fit::Coded { table, .. } if table.has_escape()));
    }

    #[test]
    fn one_symbol_is_constant_only_if_the_counts_are_exact() {
        assert!(matches!(fit(&[0, 7], 1, true), Some(Fit::Constant(1))));
        assert!(matches!(fit(&[0, 7], 1, false), Some(Fit::Coded { .. })));
        assert!(fit(&[0, 0], 1, true).is_none());
    }
}
