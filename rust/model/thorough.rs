//! What the level `max` tries after the closed form: offsets one by one, signs, classes of lines.
//!
//! Every step is kept only if it is estimated to make the tensor smaller.

use super::classes;
use super::flips::flips;
use super::float_cut::FloatLayout;
use super::refine::refine;
use super::scale_fit::Matrix;
use super::select::{Candidate, Input, MIN_SCALED_ELEMENTS, scale_estimate, views};
use crate::error::Result;
use crate::planes::scale::ScaleOffsets;

/// The matrix that offsets belong to, or the one that is cut after the first dimension.
fn matrix_of<'a>(
    input: &'a Input<'_>,
    layout: FloatLayout,
    shape: &[u64],
    scale: Option<&ScaleOffsets>,
) -> Option<Matrix<'a>> {
    let elements = input.bytes.len() * 8 / layout.fields.element_bits as usize;
    let columns = match scale {
        Some(scale) => scale.columns,
        None => *views(shape, elements, input.level).first()?,
    };
    Some(input.matrix(layout, columns))
}

/// Refined offsets and flips, where they make the estimate smaller.
///
/// # Errors
/// When the threads asked for cannot be had.
pub(super) fn improve(
    input: &Input<'_>,
    layout: FloatLayout,
    shape: &[u64],
    (mut size, mut best): (u64, Option<ScaleOffsets>),
) -> Result<Option<ScaleOffsets>> {
    let Some(matrix) = matrix_of(input, layout, shape, best.as_ref()) else {
        return Ok(best);
    };
    let mut keep = |scale: ScaleOffsets, best: &mut Option<ScaleOffsets>| {
        let with = scale_estimate(input, layout, Some(&scale));
        if with < size {
            (size, *best) = (with, Some(scale));
        }
    };
    if let Some(mut scale) = best.clone() {
        refine(&matrix, &mut scale)?;
        keep(scale, &mut best);
    }
    let without = best.clone().unwrap_or_else(|| matrix.offsets(&[], &[]));
    for scale in flips(&matrix, &without)? {
        keep(scale, &mut best);
    }
    Ok(best)
}

/// The candidate with classes of rows or columns, where they make it smaller.
///
/// # Errors
/// When the threads asked for cannot be had.
pub(super) fn with_classes(
    input: &Input<'_>,
    layout: FloatLayout,
    shape: &[u64],
    (candidate, scale): (Candidate, Option<ScaleOffsets>),
) -> Result<(Candidate, Option<ScaleOffsets>)> {
    let elements = input.bytes.len() * 8 / layout.fields.element_bits as usize;
    let matrix = matrix_of(input, layout, shape, scale.as_ref());
    let Some(matrix) = matrix.filter(|_| elements >= MIN_SCALED_ELEMENTS) else {
        return Ok((candidate, scale));
    };
    let lines = scale.clone().unwrap_or_else(|| matrix.offsets(&[], &[]));
    let found = classes::with_classes(&matrix, &candidate, &lines)?;
    Ok(match found {
        Some((candidate, classes)) => (candidate, Some(classes)),
        None => (candidate, scale),
    })
}
