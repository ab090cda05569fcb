//! Which rows and columns have their signs turned, so that most signs are positive.
//!
//! Gradients and what optimizers make of them are sums of a few outer products, whose signs are those of
//! a row times those of a column. Majorities of columns and rows in turn find them, as power iteration
//! finds a singular vector.

use super::lines::{Axis, LANES, Lookup, sums};
use super::scale_fit::Matrix;
use crate::error::Result;
use crate::planes::scale::ScaleOffsets;

/// Rounds over the axes at most.
const ROUNDS: usize = 8;

/// Sets the flips of the axes to the majority of signs.
///
/// # Errors
/// When the threads asked for cannot be had.
pub(super) fn flip(matrix: &Matrix<'_>, scale: &mut ScaleOffsets, axes: &[Axis]) -> Result<()> {
    for axis in axes {
        match axis {
            Axis::Rows => scale.row_flips = vec![0; matrix.rows()],
            Axis::Columns => scale.col_flips = vec![0; matrix.columns],
        }
    }
    let rounds = if axes.len() > 1 { ROUNDS } else { 1 };
    for _ in 0..rounds {
        let mut turned = 0;
        for &axis in axes {
            turned += flip_axis(matrix, scale, axis)?;
        }
        if turned == 0 {
            break;
        }
    }
    Ok(())
}

/// Returns how many lines were turned.
fn flip_axis(matrix: &Matrix<'_>, scale: &mut ScaleOffsets, axis: Axis) -> Result<usize> {
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
    let mut turned = 0;
    for (flip, counts) in flips.iter_mut().zip(counts) {
        if 2 * counts[1] > counts[0] {
            *flip ^= 1;
            turned += 1;
        }
    }
    Ok(turned)
}
