//! Passes over all elements of a matrix that add something up for every row and column.
//!
//! Sums are of integers, so that no result depends on the order or the number of threads.

use std::marker::PhantomData;
use std::ops::Range;

use super::scale_fit::Matrix;
use crate::constants::SUB_BLOCK;
use crate::error::Result;
use crate::parallel;
use crate::planes::scale::ScaleOffsets;
use crate::planes::words::{Word, with_word};
use crate::simd::Task;

/// What is counted at once for a line.
pub(super) const LANES: usize = 8;

/// Rows or columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    Rows,
    Columns,
}

/// What an element adds to the sums of its line: looked up by some of its bits.
#[derive(Clone, Copy)]
pub(super) struct Lookup<'a> {
    /// Position of the lowest of these bits.
    pub(super) below: u32,
    /// One entry for each value of these bits, a power of two.
    pub(super) table: &'a [[u32; LANES]],
    /// Where the sign stands when they are looked at.
    pub(super) sign_position: u32,
}

struct Pass<'a, W> {
    matrix: &'a Matrix<'a>,
    scale: &'a ScaleOffsets,
    lookup: Lookup<'a>,
    axis: Axis,
    rows: Range<usize>,
    word: PhantomData<W>,
}

impl<W: Word> Task for Pass<'_, W> {
    type Output = Vec<[u64; LANES]>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let Self {
            matrix,
            scale,
            lookup,
            axis,
            rows,
            ..
        } = self;
        let columns = matrix.columns;
        let mask = lookup.table.len() - 1;
        let mut sums = match axis {
            Axis::Rows => vec![[0; LANES]; rows.len()],
            Axis::Columns => vec![[0; LANES]; columns],
        };
        for_each_block::<W>(
            matrix,
            scale,
            &rows,
            lookup.sign_position,
            |first, words| {
                let mut start = 0;
                while start < words.len() {
                    let (row, column) = ((first + start) / columns, (first + start) % columns);
                    let end = words.len().min(start + columns - column);
                    let part = &words[start..end];
                    let entry =
                        |word: W| &lookup.table[(word >> lookup.below).widen() as usize & mask];
                    match axis {
                        Axis::Rows => {
                            let mut sum = [0_u64; LANES];
                            for &word in part {
                                add(&mut sum, entry(word));
                            }
                            let total = &mut sums[row - rows.start];
                            total.iter_mut().zip(sum).for_each(|(to, add)| *to += add);
                        }
                        Axis::Columns => {
                            for (sum, &word) in sums[column..].iter_mut().zip(part) {
                                add(sum, entry(word));
                            }
                        }
                    }
                    start = end;
                }
            },
        );
        sums
    }
}

#[inline(always)]
fn add(sum: &mut [u64; LANES], more: &[u32; LANES]) {
    for (to, &add) in sum.iter_mut().zip(more) {
        *to += u64::from(add);
    }
}

/// Calls `visit` with the elements of some rows, offsets and flips taken away and the sign lowered.
#[inline(always)]
pub(super) fn for_each_block<W: Word>(
    matrix: &Matrix<'_>,
    scale: &ScaleOffsets,
    rows: &Range<usize>,
    sign_position: u32,
    mut visit: impl FnMut(usize, &[W]),
) {
    let elements = matrix.bytes.len() / W::BYTES;
    let end = elements.min(rows.end * matrix.columns);
    let mut buffer = [W::default(); SUB_BLOCK];
    for first in (rows.start * matrix.columns..end).step_by(SUB_BLOCK) {
        let words = &mut buffer[..SUB_BLOCK.min(end - first)];
        let bytes = &matrix.bytes[first * W::BYTES..][..words.len() * W::BYTES];
        W::load(bytes, words);
        scale.subtract(words, first);
        crate::planes::words::lower_sign(words, sign_position);
        visit(first, words);
    }
}

/// The ranges of rows that threads look at.
pub(super) fn row_ranges(matrix: &Matrix<'_>) -> Result<Vec<Range<usize>>> {
    let (rows, parts) = (matrix.rows(), parallel::thread_count(matrix.threads)?);
    let part = |index: usize| rows * index / parts..rows * (index + 1) / parts;
    Ok((0..parts).map(part).collect())
}

/// Sums over all elements of every row or of every column, elements taken as `scale` leaves them.
///
/// # Errors
/// When the threads asked for cannot be had.
pub(super) fn sums(
    matrix: &Matrix<'_>,
    scale: &ScaleOffsets,
    lookup: Lookup<'_>,
    axis: Axis,
) -> Result<Vec<[u64; LANES]>> {
    let ranges = row_ranges(matrix)?;
    let parts = parallel::map(matrix.threads, ranges.len(), |part| {
        with_word!(matrix.element_bytes(), W => matrix.kernels.run(Pass::<W> {
            matrix,
            scale,
            lookup,
            axis,
            rows: ranges[part].clone(),
            word: PhantomData,
        }))
    })?;
    if axis == Axis::Rows {
        return Ok(parts.concat());
    }
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_default();
    for part in parts {
        for (to, more) in total.iter_mut().zip(part) {
            to.iter_mut().zip(more).for_each(|(to, more)| *to += more);
        }
    }
    Ok(total)
}
