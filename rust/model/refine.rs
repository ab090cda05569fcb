//! Scale offsets one by one: each row's and each column's is moved to where its elements cost least.
//!
//! What elements cost is taken from counts of exponent and leading mantissa bits under the offsets so
//! far; rows, then columns, and again. Integers only; measured in docs/design.md.

use super::histogram::FloatHistogram;
use super::lines::{Axis, LANES, Lookup, sums};
use super::log2::log2;
use super::sample::Sample;
use super::scale_fit::{LARGEST, Matrix, octave_log2};
use crate::error::Result;
use crate::planes::scale::ScaleOffsets;

/// Rounds over both axes at most.
const ROUNDS: usize = 3;
/// Steps that are tried. The first of equals wins.
const STEPS: [i8; LANES] = [0, -1, 1, -2, 2, -3, 3, 5];
/// Costs are kept with so many fraction bits.
const COST_FRACTION_BITS: u32 = 8;

/// Moves the offsets of `scale`, which fits `matrix`, to smaller costs.
///
/// # Errors
/// When the threads asked for cannot be had.
pub(super) fn refine(matrix: &Matrix<'_>, scale: &mut ScaleOffsets) -> Result<()> {
    for _ in 0..ROUNDS {
        let mut moved = 0;
        for axis in [Axis::Rows, Axis::Columns] {
            moved += refine_axis(matrix, scale, axis)?;
        }
        let lines = scale.rows.len() + scale.cols.len();
        if moved * 32 < lines {
            break;
        }
    }
    Ok(())
}

/// Returns how many offsets moved.
fn refine_axis(matrix: &Matrix<'_>, scale: &mut ScaleOffsets, axis: Axis) -> Result<usize> {
    let offsets = match axis {
        Axis::Rows => &scale.rows,
        Axis::Columns => &scale.cols,
    };
    if offsets.is_empty() {
        return Ok(0);
    }
    let fields = matrix.fields;
    let unit_log2 = octave_log2(fields);
    let sample = Sample::new(matrix.bytes, matrix.element_bytes(), 0, usize::MAX);
    let histogram = FloatHistogram::new(matrix.kernels, &sample, Some(scale), fields, unit_log2);
    let table = cost_table(&histogram, fields.exponent_bits + unit_log2);
    let lookup = Lookup {
        below: fields.mantissa_bits - unit_log2,
        table: &table,
        sign_position: fields.element_bits - 1,
    };
    let costs = sums(matrix, scale, lookup, axis)?;
    let range = stored_range(offsets);
    let offsets = match axis {
        Axis::Rows => &mut scale.rows,
        Axis::Columns => &mut scale.cols,
    };
    let mut moved = 0;
    for (offset, costs) in offsets.iter_mut().zip(&costs) {
        let possible = STEPS.iter().zip(costs).filter_map(|(&step, &cost)| {
            let to = i64::from(*offset) + i64::from(step);
            range.contains(&to).then_some((cost, to as i8))
        });
        if let Some((_, to)) = possible.min_by_key(|&(cost, _)| cost) {
            moved += usize::from(to != *offset);
            *offset = to;
        }
    }
    Ok(moved)
}

/// The offsets that can be stored in as many bits as these.
fn stored_range(offsets: &[i8]) -> std::ops::RangeInclusive<i64> {
    let low = i64::from(offsets.iter().copied().min().unwrap_or(0));
    let high = i64::from(offsets.iter().copied().max().unwrap_or(0));
    let span = ((high - low + 1) as u64).next_power_of_two() as i64;
    let free = span - 1 - (high - low);
    (low - free / 2).max(-LARGEST)..=(high + free - free / 2).min(LARGEST)
}

/// What an element costs after each step, by its leading bits below the sign.
fn cost_table(histogram: &FloatHistogram, bits: u32) -> Vec<[u32; LANES]> {
    let mask = (1 << bits) - 1;
    let (first, counts) = histogram.symbols(bits, false);
    // What was not counted costs something as well.
    let log_total = log2(histogram.total + mask as u64 + 1);
    let shift = super::log2::LOG2_FRACTION_BITS - COST_FRACTION_BITS;
    let mut costs = vec![(log_total >> shift) as u32; mask + 1];
    for (cost, count) in costs[first..].iter_mut().zip(counts) {
        *cost = ((log_total - log2(u64::from(count) + 1)) >> shift) as u32;
    }
    let after = |symbol: usize, step: i8| costs[symbol.wrapping_sub(step as usize) & mask];
    // The sign is above the bits that are looked at and masked out.
    (0..=mask)
        .map(|symbol| STEPS.map(|step| after(symbol, step)))
        .collect()
}
