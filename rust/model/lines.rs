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
use crate::planes::words::{Word, lower_sign, with_word};
use crate::simd::Task;

/// What is counted at once for a line.
pub(super) const LANES: usize = 8;

/// Rows whose entries can be added in 32 bits: entries are below 2^14.
const ROWS_TO_FLUSH: usize = 1 << 17;

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
    /// One entry for each value of these bits, a power of two of them; their numbers are below 2^14.
    pub(super) table: &'a [[u32; LANES]],
    /// Where the sign stands when they are looked at.
    pub(super) sign_position: u32,
}

/// What is done with the elements of some rows.
struct Pass<'a, W> {
    matrix: &'a Matrix<'a>,
    scale: &'a ScaleOffsets,
    rows: Range<usize>,
    axis: Axis,
    sign_position: u32,
    word: PhantomData<W>,
}

impl<W: Word> Pass<'_, W> {
    /// The first element of every block.
    fn blocks(&self) -> impl Iterator<Item = usize> + use<W> {
        let elements = self.matrix.bytes.len() / W::BYTES;
        let end = elements.min(self.rows.end * self.matrix.columns);
        (self.rows.start * self.matrix.columns..end).step_by(SUB_BLOCK)
    }

    /// Elements from `first` on, offsets and flips taken away and the sign lowered.
    #[inline(always)]
    fn load<'b>(&self, first: usize, buffer: &'b mut [W; SUB_BLOCK]) -> &'b [W] {
        let elements = self.matrix.bytes.len() / W::BYTES;
        let end = elements.min(self.rows.end * self.matrix.columns);
        let words = &mut buffer[..SUB_BLOCK.min(end - first)];
        let bytes = &self.matrix.bytes[first * W::BYTES..][..words.len() * W::BYTES];
        W::load(bytes, words);
        self.scale.subtract(words, first);
        lower_sign(words, self.sign_position);
        words
    }

    /// Lines of the result.
    fn lines(&self) -> usize {
        match self.axis {
            Axis::Rows => self.rows.len(),
            Axis::Columns => self.matrix.columns,
        }
    }
}

/// Adds up what a [`Lookup`] says.
struct Sums<'a, W> {
    pass: Pass<'a, W>,
    lookup: Lookup<'a>,
}

impl<W: Word> Task for Sums<'_, W> {
    type Output = Vec<[u64; LANES]>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let Self { pass, lookup } = self;
        let columns = pass.matrix.columns;
        let mask = lookup.table.len() - 1;
        let mut sums = vec![[0_u64; LANES]; pass.lines()];
        // Sums of columns are kept in half as many bits until they could overflow.
        let mut recent = match pass.axis {
            Axis::Rows => Vec::new(),
            Axis::Columns => vec![[0_u32; LANES]; columns],
        };
        let mut flushed = pass.rows.start;
        let mut buffer = [W::default(); SUB_BLOCK];
        for first in pass.blocks() {
            if pass.axis == Axis::Columns && first / columns > flushed + ROWS_TO_FLUSH {
                flush(&mut recent, &mut sums);
                flushed = first / columns;
            }
            let words = pass.load(first, &mut buffer);
            let mut start = 0;
            while start < words.len() {
                let (row, column) = ((first + start) / columns, (first + start) % columns);
                let end = words.len().min(start + columns - column);
                if pass.axis == Axis::Rows {
                    let mut sum = [0; LANES];
                    for &word in &words[start..end] {
                        let entry = (word >> lookup.below).widen() as usize & mask;
                        add(&mut sum, &lookup.table[entry]);
                    }
                    let total = &mut sums[row - pass.rows.start];
                    total
                        .iter_mut()
                        .zip(sum)
                        .for_each(|(to, more)| *to += u64::from(more));
                } else {
                    for (sum, &word) in recent[column..].iter_mut().zip(&words[start..end]) {
                        let entry = (word >> lookup.below).widen() as usize & mask;
                        add(sum, &lookup.table[entry]);
                    }
                }
                start = end;
            }
        }
        flush(&mut recent, &mut sums);
        sums
    }
}

#[inline(always)]
fn add(sum: &mut [u32; LANES], more: &[u32; LANES]) {
    for lane in 0..LANES {
        sum[lane] += more[lane];
    }
}

/// Moves sums where there is more room.
#[inline(always)]
fn flush(recent: &mut [[u32; LANES]], sums: &mut [[u64; LANES]]) {
    for (recent, sums) in recent.iter_mut().zip(sums) {
        for lane in 0..LANES {
            sums[lane] += u64::from(std::mem::take(&mut recent[lane]));
        }
    }
}

/// Which of a few kinds an element is, by some of its bits.
#[derive(Clone, Copy)]
pub(super) struct Kinds<'a> {
    /// Position of the lowest of these bits.
    pub(super) below: u32,
    /// The kind for each value of these bits, a power of two of them.
    pub(super) of_bits: &'a [u8],
    pub(super) count: usize,
    /// Where the sign stands when they are looked at.
    pub(super) sign_position: u32,
}

/// Counts how many elements of every line are of each kind.
struct Counts<'a, W> {
    pass: Pass<'a, W>,
    kinds: Kinds<'a>,
}

impl<W: Word> Task for Counts<'_, W> {
    type Output = Vec<u32>;

    #[inline(always)]
    fn run(self) -> Vec<u32> {
        let Self { pass, kinds } = self;
        let columns = pass.matrix.columns;
        let mask = kinds.of_bits.len() - 1;
        let mut counts = vec![0; pass.lines() * kinds.count];
        let mut buffer = [W::default(); SUB_BLOCK];
        for first in pass.blocks() {
            let words = pass.load(first, &mut buffer);
            let mut start = 0;
            while start < words.len() {
                let (row, column) = ((first + start) / columns, (first + start) % columns);
                let end = words.len().min(start + columns - column);
                let (line, step) = match pass.axis {
                    Axis::Rows => (row - pass.rows.start, 0),
                    Axis::Columns => (column, kinds.count),
                };
                let mut at = line * kinds.count;
                for &word in &words[start..end] {
                    let symbol = (word >> kinds.below).widen() as usize & mask;
                    counts[at + usize::from(kinds.of_bits[symbol])] += 1;
                    at += step;
                }
                start = end;
            }
        }
        counts
    }
}

/// The ranges of rows that threads look at.
fn row_ranges(matrix: &Matrix<'_>) -> Result<Vec<Range<usize>>> {
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
        with_word!(matrix.element_bytes(), W => matrix.kernels.run(Sums::<W> {
            pass: Pass {
                matrix,
                scale,
                rows: ranges[part].clone(),
                axis,
                sign_position: lookup.sign_position,
                word: PhantomData,
            },
            lookup,
        }))
    })?;
    Ok(joined(parts, axis, |sum, more| {
        sum.iter_mut()
            .zip(more)
            .for_each(|(sum, more)| *sum += more);
    }))
}

/// How many elements of every row or of every column are of each kind, line by line.
///
/// # Errors
/// When the threads asked for cannot be had.
pub(super) fn counts(
    matrix: &Matrix<'_>,
    scale: &ScaleOffsets,
    kinds: Kinds<'_>,
    axis: Axis,
) -> Result<Vec<u32>> {
    let ranges = row_ranges(matrix)?;
    let parts = parallel::map(matrix.threads, ranges.len(), |part| {
        with_word!(matrix.element_bytes(), W => matrix.kernels.run(Counts::<W> {
            pass: Pass {
                matrix,
                scale,
                rows: ranges[part].clone(),
                axis,
                sign_position: kinds.sign_position,
                word: PhantomData,
            },
            kinds,
        }))
    })?;
    Ok(joined(parts, axis, |sum, more| *sum += more))
}

/// The results for ranges of rows as one: side by side for rows, added up for columns.
fn joined<T>(parts: Vec<Vec<T>>, axis: Axis, add: impl Fn(&mut T, T)) -> Vec<T> {
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_default();
    for part in parts {
        match axis {
            Axis::Rows => total.extend(part),
            Axis::Columns => total
                .iter_mut()
                .zip(part)
                .for_each(|(sum, more)| add(sum, more)),
        }
    }
    total
}
