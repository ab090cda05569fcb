//! Classes of rows or columns, each with a table of its own for the first symbol.
//!
//! Lines that differ in more than their scale, such as embeddings of rare words or filters that died,
//! are told apart as k-means would: tables from the classes, classes from the tables. It begins with
//! lines in the order of what they cost under one table, and works on counts of each line. Measured in
//! docs/design.md.

use super::contexts::{ContextSource, ContextTables};
use super::frequency_table::FrequencyTable;
use super::lines::{Axis, Kinds, counts};
use super::log2::{LOG2_FRACTION_BITS, log2};
use super::normalize::{ONE_BIT, table_cost};
use super::scale_fit::Matrix;
use super::second::context_frequencies;
use super::select::Candidate;
use super::{Model, Plane, PlaneMode};
use crate::constants::{ESCAPE, MAX_SYMBOLS};
use crate::error::Result;
use crate::planes::scale::ScaleOffsets;

/// Rounds of tables and classes.
const ROUNDS: usize = 6;
/// Classes that are tried.
const CLASSES: [usize; 2] = [2, 4];
/// Elements of a line that classes can pay for, at least.
const MIN_LINE: usize = 64;
/// Bits that an escaped symbol takes, most often.
const ESCAPED_BITS: u32 = 6;
/// Costs are kept with so many fraction bits.
const COST_FRACTION_BITS: u32 = 8;

/// Counts of the listed symbols in every line, and of all others together as the last kind.
struct LineCounts {
    kinds: usize,
    counts: Vec<u32>,
    escape: bool,
    /// Bits that an escaped symbol takes besides.
    escaped_bits: u64,
}

impl LineCounts {
    fn lines(&self) -> impl Iterator<Item = &[u32]> {
        self.counts.chunks_exact(self.kinds)
    }

    /// Counts of all lines of every class together.
    fn by_class(&self, list: &[i8], classes: usize) -> Vec<Vec<u64>> {
        let mut sums = vec![vec![0; self.kinds]; classes];
        for (&class, counts) in list.iter().zip(self.lines()) {
            let sums = sums[class as usize].iter_mut();
            sums.zip(counts)
                .for_each(|(sum, &count)| *sum += u64::from(count));
        }
        sums
    }

    /// What each kind costs next to counts.
    fn costs(&self, counts: &[u64]) -> Vec<u64> {
        let shift = LOG2_FRACTION_BITS - COST_FRACTION_BITS;
        // Few counts are not to be believed: one is added to each symbol.
        let log_total = log2(counts.iter().sum::<u64>() + self.kinds as u64);
        let cost = |&count: &u64| (log_total - log2(count + 1)) >> shift;
        let mut costs: Vec<u64> = counts.iter().map(cost).collect();
        if let Some(last) = costs.last_mut().filter(|_| self.escape) {
            *last += self.escaped_bits << COST_FRACTION_BITS;
        }
        costs
    }

    /// The classes of all lines.
    fn classify(&self, classes: usize) -> Vec<i8> {
        let price = |counts: &[u32], costs: &[u64]| -> u64 {
            let pairs = counts.iter().zip(costs);
            pairs.map(|(&count, cost)| u64::from(count) * cost).sum()
        };
        let mut list = vec![0; self.counts.len() / self.kinds];
        let costs = self.costs(&self.by_class(&list, 1)[0]);
        let mean = |counts: &[u32]| {
            let elements: u64 = counts.iter().map(|&count| u64::from(count)).sum();
            (price(counts, &costs) << 8) / elements.max(1)
        };
        let mut order: Vec<(u64, usize)> = self.lines().map(mean).zip(0..).collect();
        order.sort_unstable();
        for (rank, &(_, line)) in order.iter().enumerate() {
            list[line] = (rank * classes / order.len()) as i8;
        }
        for _ in 0..ROUNDS {
            let tables = self.by_class(&list, classes);
            let tables: Vec<Vec<u64>> = tables.iter().map(|counts| self.costs(counts)).collect();
            for (class, counts) in list.iter_mut().zip(self.lines()) {
                // The first of equals wins.
                let best = (0..classes).min_by_key(|&class| price(counts, &tables[class]));
                *class = best.unwrap_or(0) as i8;
            }
        }
        list
    }

    /// Tables for counts by class, and what everything costs with them.
    fn tables(&self, counts: &[Vec<u64>], table: &FrequencyTable) -> Option<(ContextTables, u64)> {
        let mut cost = 0;
        let mut frequencies = Vec::with_capacity(counts.len());
        for counts in counts {
            let frequency = context_frequencies(counts);
            cost += table_cost(counts, &frequency);
            if let Some(escaped) = counts.last().filter(|_| self.escape) {
                cost += escaped * self.escaped_bits * ONE_BIT;
            }
            frequencies.push(frequency);
        }
        let head = (table.bits(), table.symbol(0).into(), self.escape);
        let tables = ContextTables::new(head, ContextSource::Lines, frequencies);
        tables.ok().map(|tables| (tables, cost))
    }
}

/// The kind of every symbol: its index in `table`, the last kind for those that are escaped.
fn kinds(table: &FrequencyTable) -> (Vec<u8>, usize) {
    let listed = table.entries().iter().map(|entry| entry.index);
    let ordinary = listed.filter(|&index| !(table.has_escape() && index == ESCAPE));
    let ordinary: Vec<u8> = ordinary.collect();
    let width = ordinary.iter().copied().max().unwrap_or(0) + 1;
    let mut kinds = vec![width; 1 << table.bits()];
    for index in ordinary {
        kinds[usize::from(table.symbol(index))] = index;
    }
    let count = usize::from(width) + usize::from(table.has_escape());
    (kinds, count)
}

/// The model with classes for its first symbol, and the classes, if they make it smaller.
///
/// # Errors
/// When the threads asked for cannot be had.
pub(super) fn with_classes(
    matrix: &Matrix<'_>,
    candidate: &Candidate,
    scale: &ScaleOffsets,
) -> Result<Option<(Candidate, ScaleOffsets)>> {
    let model = &candidate.model;
    let coded = |plane: &Plane| matches!(plane.mode, PlaneMode::Coded(_));
    let Some(number) = model.planes.iter().position(coded) else {
        return Ok(None);
    };
    let PlaneMode::Coded(table) = &model.planes[number].mode else {
        return Ok(None);
    };
    let (kinds, count) = kinds(table);
    if !(2..=MAX_SYMBOLS).contains(&count) {
        return Ok(None);
    }
    let kinds = Kinds {
        below: model.planes[number + 1..]
            .iter()
            .map(|plane| plane.bits)
            .sum(),
        of_bits: &kinds,
        count,
        sign_position: model.sign_position,
    };
    let mut best: Option<(u64, ContextTables, ScaleOffsets)> = None;
    let mut without = 0;
    for axis in [Axis::Rows, Axis::Columns] {
        let (lines, line) = match axis {
            Axis::Rows => (matrix.rows(), matrix.columns),
            Axis::Columns => (matrix.columns, matrix.rows()),
        };
        if lines < 4 || line < MIN_LINE {
            continue;
        }
        let counts = LineCounts {
            kinds: count,
            counts: counts(matrix, scale, kinds, axis)?,
            escape: table.has_escape(),
            escaped_bits: table.bits().min(ESCAPED_BITS).into(),
        };
        let one = counts.by_class(&vec![0; lines], 1);
        without = counts
            .tables(&one, table)
            .map_or(0, |(_, cost)| cost / (8 * ONE_BIT));
        without += (2 * table.entries().len() + scale.wire_len()) as u64;
        for classes in CLASSES {
            let list = counts.classify(classes);
            let Some((tables, cost)) = counts.tables(&counts.by_class(&list, classes), table)
            else {
                continue;
            };
            let mut scale = scale.clone();
            match axis {
                Axis::Rows => scale.row_classes = list,
                Axis::Columns => scale.col_classes = list,
            }
            let mut wire = Vec::new();
            tables.write_to(&mut wire);
            let bytes = cost / (8 * ONE_BIT) + (wire.len() + scale.wire_len()) as u64;
            if best.as_ref().is_none_or(|&(least, ..)| bytes < least) {
                best = Some((bytes, tables, scale));
            }
        }
    }
    let Some((bytes, tables, classes)) = best else {
        return Ok(None);
    };
    // One table is twice as fast: several have to be worth it.
    if bytes + (without >> 8) >= without {
        return Ok(None);
    }
    let mut planes = model.planes.clone();
    planes[number] = Plane::contexts(tables);
    let changed = Model {
        scaled: true,
        planes,
        ..model.clone()
    };
    let saved = without - bytes;
    Ok(changed.validated().ok().map(|model| {
        let bytes = candidate.bytes.saturating_sub(saved);
        (Candidate { model, bytes }, classes)
    }))
}
