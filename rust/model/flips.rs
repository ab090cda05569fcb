//! Which rows and columns have their signs turned, so that most signs are positive.
//!
//! Gradients and what optimizers make of them are sums of a few outer products, whose signs are those of
//! a row times those of a column. Majorities of columns and rows in turn find them, as power iteration
//! finds a singular vector.

use super::lines::{Axis, LANES, Lookup, sums};
use super::log2::{LOG2_FRACTION_BITS, log2};
use super::scale_fit::Matrix;
use crate::error::Result;
use crate::planes::scale::ScaleOffsets;

/// Rounds over the axes at most.
const ROUNDS: usize = 8;

/// Flips by the majority of signs that pay: of columns alone, and of columns and rows.
///
/// # Errors
/// When the threads asked for cannot be had.
pub(super) fn flips(matrix: &Matrix<'_>, scale: &ScaleOffsets) -> Result<Vec<ScaleOffsets>> {
    let elements = (matrix.bytes.len() / matrix.element_bytes()) as u64;
    let pays = |positive: u64, lines: usize| {
        elements.saturating_sub(entropy(positive, elements)) > lines as u64
    };
    let mut scale = scale.clone();
    let mut found = Vec::new();
    scale.col_flips = vec![0; matrix.columns];
    let mut positive = flip_axis(matrix, &mut scale, Axis::Columns)?;
    if pays(positive, matrix.columns) {
        found.push(scale.clone());
    }
    scale.row_flips = vec![0; matrix.rows()];
    let lines = matrix.columns + matrix.rows();
    for round in 0..ROUNDS {
        let before = positive;
        positive = flip_axis(matrix, &mut scale, Axis::Rows)?;
        if positive == before || (round > 0 && !pays(positive, lines)) {
            break;
        }
        positive = flip_axis(matrix, &mut scale, Axis::Columns)?;
    }
    if pays(positive, lines) {
        found.push(scale);
    }
    Ok(found)
}

/// Bits that signs take, `positive` of which are alike.
fn entropy(positive: u64, all: u64) -> u64 {
    let bits = |count: u64| count * (log2(all) - log2(count));
    (bits(positive) + bits(all - positive)) >> LOG2_FRACTION_BITS
}

/// Returns how many signs are positive afterwards.
fn flip_axis(matrix: &Matrix<'_>, scale: &mut ScaleOffsets, axis: Axis) -> Result<u64> {
    // Elements, and negative ones.
    let mut table = [[0; LANES]; 2];
    (table[0][0], table[1][0], table[1][1]) = (1, 1, 1);
    let sign_position = matrix.fields.element_bits - 1;
    let lookup = Lookup {
        below: sign_position,
        table: &table,
        sign_position,
    };
    let counts = sums(matrix, scale, lookup, axis)?;
    let flips = match axis {
        Axis::Rows => &mut scale.row_flips,
        Axis::Columns => &mut scale.col_flips,
    };
    let mut positive = 0;
    for (flip, [all, negative, ..]) in flips.iter_mut().zip(counts) {
        *flip ^= i8::from(2 * negative > all);
        positive += negative.max(all - negative);
    }
    Ok(positive)
}
