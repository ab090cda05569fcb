//! Classes of rows and columns, each with a table of its own for the first symbol.
//!
//! Lines that differ in more than their scale, such as embeddings of rare words or filters that died,
//! are told apart as k-means would: tables from the classes, classes from the tables. It begins with
//! lines in the order of what they cost under one table. Measured in docs/design.md.

use std::marker::PhantomData;

use super::contexts::{ContextSource, ContextTables};
use super::frequency_table::FrequencyTable;
use super::lines::{Axis, LANES, Lookup, for_each_block, row_ranges, sums};
use super::log2::log2;
use super::normalize::{MIN_SHARE, ONE_BIT, table_cost};
use super::scale_fit::Matrix;
use super::second::context_frequencies;
use super::select::{Candidate, Input};
use super::{Model, Plane, PlaneMode};
use crate::constants::{ESCAPE, MAX_SYMBOLS};
use crate::error::Result;
use crate::parallel;
use crate::planes::scale::ScaleOffsets;
use crate::planes::words::{Word, low_mask, with_word};
use crate::simd::Task;

/// Rounds of tables and classes.
const ROUNDS: usize = 4;
/// Classes that are tried.
const CLASSES: [(Axis, usize); 4] = [
    (Axis::Rows, 2),
    (Axis::Rows, 4),
    (Axis::Columns, 2),
    (Axis::Columns, 4),
];
/// Costs are kept with so many fraction bits.
const COST_FRACTION_BITS: u32 = 8;

/// Where the symbol with the classes stands in an element.
#[derive(Clone, Copy)]
struct Symbol {
    below: u32,
    bits: u32,
    sign_position: u32,
}

/// Counts of the symbol in every class.
struct Count<'a, W> {
    matrix: &'a Matrix<'a>,
    scale: &'a ScaleOffsets,
    symbol: Symbol,
    rows: std::ops::Range<usize>,
    word: PhantomData<W>,
}

impl<W: Word> Task for Count<'_, W> {
    type Output = Vec<u64>;

    #[inline(always)]
    fn run(self) -> Vec<u64> {
        let Symbol {
            below,
            bits,
            sign_position,
        } = self.symbol;
        let mask = low_mask(bits) as usize;
        let mut counts = vec![0; LANES << bits];
        let mut classes = [0; crate::constants::SUB_BLOCK];
        let (matrix, scale) = (self.matrix, self.scale);
        for_each_block::<W>(matrix, scale, &self.rows, sign_position, |first, words| {
            let classes = &mut classes[..words.len()];
            scale.classes(first, classes);
            for (&word, &class) in words.iter().zip(&*classes) {
                let symbol = (word >> below).widen() as usize & mask;
                counts[(usize::from(class) % LANES) << bits | symbol] += 1;
            }
        });
        counts
    }
}

fn counts(matrix: &Matrix<'_>, scale: &ScaleOffsets, symbol: Symbol) -> Result<Vec<u64>> {
    let ranges = row_ranges(matrix)?;
    let parts = parallel::map(matrix.threads, ranges.len(), |part| {
        with_word!(matrix.element_bytes(), W => matrix.kernels.run(Count::<W> {
            matrix,
            scale,
            symbol,
            rows: ranges[part].clone(),
            word: PhantomData,
        }))
    })?;
    let mut total = vec![0; LANES << symbol.bits];
    for part in parts {
        total.iter_mut().zip(part).for_each(|(to, add)| *to += add);
    }
    Ok(total)
}

/// The model with classes for its first symbol, and the classes, if they make it smaller.
///
/// # Errors
/// When the threads asked for cannot be had.
pub(super) fn with_classes(
    input: &Input<'_>,
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
    let symbol = Symbol {
        below: model.planes[number + 1..]
            .iter()
            .map(|plane| plane.bits)
            .sum(),
        bits: table.bits(),
        sign_position: model.sign_position,
    };
    let one_class = counts(matrix, scale, symbol)?;
    let Some((_, cost_before)) = fit_tables(&one_class, table, 1) else {
        return Ok(None);
    };
    let mut best: Option<(u64, ContextTables, ScaleOffsets)> = None;
    for (axis, classes) in CLASSES {
        let lines = match axis {
            Axis::Rows => matrix.rows(),
            Axis::Columns => matrix.columns,
        };
        if lines < 4 * classes {
            continue;
        }
        let mut scale = scale.clone();
        let found = fit_classes(matrix, &mut scale, symbol, table, (axis, classes))?;
        if let Some((tables, cost)) = found {
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
    let mut wire = Vec::new();
    table.write_to(&mut wire);
    let without = cost_before / (8 * ONE_BIT) + (wire.len() + scale.wire_len()) as u64;
    // One table is faster: a 4096th of the tensor is worth several.
    if bytes + (input.bytes.len() as u64 >> 12) >= without {
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

/// Sets the classes of `scale` and returns the tables with their cost.
fn fit_classes(
    matrix: &Matrix<'_>,
    scale: &mut ScaleOffsets,
    symbol: Symbol,
    table: &FrequencyTable,
    (axis, classes): (Axis, usize),
) -> Result<Option<(ContextTables, u64)>> {
    let line_costs = |scale: &ScaleOffsets, table: &[[u32; LANES]]| {
        let lookup = Lookup {
            below: symbol.below,
            table,
            sign_position: symbol.sign_position,
        };
        sums(matrix, scale, lookup, axis)
    };
    // Lines in the order of what an element costs.
    let mut table_of_all = class_costs(&counts(matrix, scale, symbol)?, symbol.bits);
    table_of_all.iter_mut().for_each(|lanes| lanes[1] = 1);
    let costs = line_costs(scale, &table_of_all)?;
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by_key(|&line| ((costs[line][0] << 8) / costs[line][1].max(1), line));
    let mut list = vec![0; order.len()];
    for (rank, &line) in order.iter().enumerate() {
        list[line] = (rank * classes / order.len()) as i8;
    }
    for _ in 0..ROUNDS {
        *axis_classes(scale, axis) = list.clone();
        let costs = class_costs(&counts(matrix, scale, symbol)?, symbol.bits);
        let costs = line_costs(scale, &costs)?;
        for (class, costs) in list.iter_mut().zip(&costs) {
            // The first of equals wins.
            let least = (0..classes).min_by_key(|&class| costs[class]);
            *class = least.unwrap_or(0) as i8;
        }
    }
    *axis_classes(scale, axis) = list;
    Ok(fit_tables(&counts(matrix, scale, symbol)?, table, classes))
}

fn axis_classes(scale: &mut ScaleOffsets, axis: Axis) -> &mut Vec<i8> {
    match axis {
        Axis::Rows => &mut scale.row_classes,
        Axis::Columns => &mut scale.col_classes,
    }
}

/// What each symbol costs in each class.
fn class_costs(counts: &[u64], bits: u32) -> Vec<[u32; LANES]> {
    let shift = super::log2::LOG2_FRACTION_BITS - COST_FRACTION_BITS;
    let mut costs = vec![[0; LANES]; 1 << bits];
    for (class, counts) in counts.chunks_exact(1 << bits).enumerate() {
        // Few counts are not to be believed: one is added to each symbol.
        let log_total = log2(counts.iter().sum::<u64>() + (1 << bits));
        for (cost, &count) in costs.iter_mut().zip(counts) {
            cost[class] = ((log_total - log2(count + 1)) >> shift) as u32;
        }
    }
    costs
}

/// Tables over the symbols from `table`'s base on, and what all counted symbols cost with them.
fn fit_tables(
    counts: &[u64],
    table: &FrequencyTable,
    classes: usize,
) -> Option<(ContextTables, u64)> {
    let bits = table.bits();
    let base = usize::from(table.symbol(0));
    let alphabet = 1_usize << bits;
    let counts: Vec<Vec<u64>> = counts
        .chunks_exact(alphabet)
        .take(classes)
        .map(|counts| {
            (0..alphabet)
                .map(|i| counts[(base + i) % alphabet])
                .collect()
        })
        .collect();
    let listed_by = |counts: &[u64], width: usize| {
        let total: u64 = counts.iter().sum();
        let listed = |&i: &usize| counts[i] > 0 && counts[i] * MIN_SHARE >= total;
        (0..width.min(alphabet)).filter(listed).collect::<Vec<_>>()
    };
    let all_listed = |width| {
        counts.iter().all(|counts| {
            let listed: u64 = listed_by(counts, width)
                .into_iter()
                .map(|i| counts[i])
                .sum();
            listed == counts.iter().sum::<u64>()
        })
    };
    let escape = !all_listed(MAX_SYMBOLS);
    let width = if escape { ESCAPE.into() } else { MAX_SYMBOLS };
    let end = counts
        .iter()
        .filter_map(|counts| listed_by(counts, width).pop())
        .max()?;
    // Two symbols at least, and the escape.
    let width = (end + 1).max(2).min(alphabet);
    let mut cost = 0;
    let mut frequencies = Vec::with_capacity(classes);
    for counts in &counts {
        let mut weights = vec![0; width];
        for i in listed_by(counts, width) {
            weights[i] = counts[i];
        }
        let escaped = counts.iter().sum::<u64>() - weights.iter().sum::<u64>();
        if escape {
            weights.push(escaped);
        }
        let frequency = context_frequencies(&weights);
        cost += table_cost(&weights, &frequency);
        cost += escaped * 8 * u64::from(bits.div_ceil(8)) * ONE_BIT;
        frequencies.push(frequency);
    }
    let tables = ContextTables::new(
        (bits, base as u64, escape),
        ContextSource::Lines,
        frequencies,
    );
    tables.ok().map(|tables| (tables, cost))
}
