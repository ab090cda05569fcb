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

/// Sets the flips of the axes to the majority of signs; `false` if they do not pay.
///
/// # Errors
/// When the threads asked for cannot be had.
pub(super) fn flip(matrix: &Matrix<'_>, scale: &mut ScaleOffsets, axes: &[Axis]) -> Result<bool> {
    let mut lines = 0;
    for axis in axes {
        let (flips, count) = match axis {
            Axis::Rows => (&mut scale.row_flips, matrix.rows()),
            Axis::Columns => (&mut scale.col_flips, matrix.columns),
        };
        *flips = vec![0; count];
        lines += count as u64;
    }
    let elements = matrix.bytes.len() / matrix.element_bytes();
    let (mut pays, mut before) = (false, 0);
    for round in 0..ROUNDS {
        let mut positive = 0;
        for &axis in axes {
            positive = flip_axis(matrix, scale, axis)?;
        }
        let saved = elements as u64 - entropy(positive, elements as u64);
        pays = saved > lines;
        if positive == before || axes.len() == 1 || (round > 1 && !pays) {
            break;
        }
        before = positive;
    }
    Ok(pays)
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
