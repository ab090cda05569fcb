//! A small part of a matrix, looked at before scale offsets are fitted: whether rows and columns have
//! scales of their own at all, and how much of a mean is noise.
//!
//! Variances are those of binary logarithms, in units of 2^-32. Integers only.

use std::marker::PhantomData;

use super::fixed_point::FixedPoint;
use super::log2::{LOG2_FRACTION_BITS, log2};
use super::sample::jitter;
use super::scale_fit::{Matrix, log_of_mean};
use crate::planes::words::Word;
use crate::simd::Task;

/// Rows of the probe, and columns in groups of neighbours.
const ROWS: usize = 128;
const GROUPS: usize = 16;
const GROUP_COLUMNS: usize = 16;
/// The probe of a matrix takes at most one of so many elements.
const PART: usize = 8;
/// Fraction bits of a [`share`].
pub(super) const SHARE_BITS: u32 = 16;

/// Median and variance of logarithms.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spread {
    /// The usual one stays as it is where most are alike, and with it the steps of the exponent.
    pub(super) median: i64,
    pub(super) variance: i64,
}

impl Spread {
    pub(super) fn of(mut logs: Vec<i64>) -> Self {
        if logs.is_empty() {
            return Self::default();
        }
        let mean = logs.iter().sum::<i64>() / logs.len() as i64;
        // Logarithms are below 2^22 in size, and there are less than 2^48 of them: sums of 2^16 squares fit.
        let square = |log: &i64| (log - mean) * (log - mean);
        let squares: i128 = logs
            .chunks(1 << 16)
            .map(|logs| i128::from(logs.iter().map(square).sum::<i64>()))
            .sum();
        let middle = logs.len() / 2;
        Self {
            median: *logs.select_nth_unstable(middle).1,
            variance: (squares / logs.len() as i128) as i64,
        }
    }
}

/// The part of an observed deviation that is not noise, with [`SHARE_BITS`].
pub(super) fn share(variance: i64, noise: i64) -> i64 {
    let (variance, noise) = (i128::from(variance.max(0)), i128::from(noise.max(0)));
    ((variance << SHARE_BITS) / (variance + noise).max(1)) as i64
}

/// See the module documentation.
pub(super) struct Probe {
    pub(super) fixed: FixedPoint,
    /// The mean of the logarithms of the rows' means.
    pub(super) usual: i64,
    /// Variance of the rows' logarithms, without noise.
    pub(super) row_variance: i64,
    column_variance: i64,
    /// Variance that a mean of one element would have.
    pub(super) noise: i64,
}

/// The making of a [`Probe`].
struct Look<'a, W> {
    matrix: &'a Matrix<'a>,
    word: PhantomData<W>,
}

impl<W: Word> Task for Look<'_, W> {
    type Output = Probe;

    #[inline(always)]
    fn run(self) -> Probe {
        Probe::look::<W>(self.matrix)
    }
}

impl Probe {
    pub(super) fn new<W: Word>(matrix: &Matrix<'_>) -> Self {
        matrix.kernels.run(Look::<W> {
            matrix,
            word: PhantomData,
        })
    }

    #[inline(always)]
    fn look<W: Word>(matrix: &Matrix<'_>) -> Self {
        let (rows, columns) = (matrix.rows(), matrix.columns);
        let groups = (columns / GROUP_COLUMNS).clamp(1, GROUPS);
        let group_step = columns.div_ceil(GROUP_COLUMNS) / groups;
        let width = groups * GROUP_COLUMNS.min(columns);
        let wanted = (rows * columns / PART / width).clamp(1, ROWS);
        let row_step = rows.div_ceil(wanted);
        let mut words = Vec::with_capacity(wanted * width);
        for index in 0..rows.div_ceil(row_step) {
            let row = (index * row_step + jitter(index, row_step)).min(rows - 1);
            let begin = words.len();
            for group in 0..groups {
                let start = (group * group_step + jitter(group, group_step)) * GROUP_COLUMNS;
                let start = start.min(columns.saturating_sub(GROUP_COLUMNS));
                let run = start..columns.min(start + GROUP_COLUMNS);
                let bytes = matrix.bytes_of_run::<W>(row, &run);
                let elements = W::split(bytes).iter().copied();
                words.extend(elements.map(W::from_bytes));
            }
            if words.len() - begin < width {
                words.truncate(begin); // the last row may be cut short
            }
        }
        let mut fixed = FixedPoint::new(matrix.fields);
        let top = words
            .iter()
            .fold(1, |top, &word| fixed.exponent(word).max(top));
        // Room for what the probe has missed.
        fixed.top = (top + 1).min(fixed.exponent_mask);
        let mut magnitudes = vec![0; words.len()];
        fixed.magnitudes(&words, &mut magnitudes);
        Self::of_magnitudes(fixed, &magnitudes, width)
    }

    #[inline(always)]
    fn of_magnitudes(fixed: FixedPoint, magnitudes: &[u32], width: usize) -> Self {
        let sum = |part: &[u32]| part.iter().map(|&value| u64::from(value)).sum::<u64>();
        let half = width / 2;
        let mut columns = vec![0_u64; width];
        let mut logs = Vec::with_capacity(ROWS);
        let mut differences = Vec::with_capacity(ROWS);
        for row in magnitudes.chunks_exact(width) {
            let (left, right) = (sum(&row[..half]), sum(&row[half..]));
            if left == 0 || right == 0 {
                continue;
            }
            let mean = (left + right) / width as u64;
            logs.push(log_of_mean(left + right, width as u64));
            differences
                .push(log_of_mean(left, half as u64) - log_of_mean(right, (width - half) as u64));
            // Each row counts the same, whatever its scale: 2^24 is its mean.
            let factor = ((1_u64 << 40) / mean.max(1 << 8)).min(1 << 31);
            for (column, &value) in columns.iter_mut().zip(row) {
                *column += (u64::from(value) * factor) >> 16;
            }
        }
        let counted = logs.len() as i64;
        let rows = Spread::of(logs);
        let of_halves = Spread::of(differences);
        // Two halves of `width / 2` elements differ by twice the variance of a half.
        let noise = of_halves.variance / 4 * width as i64;
        let column_logs = columns
            .iter()
            .filter(|&&sum| sum > 0)
            .map(|&sum| log2(sum) as i64);
        let of_columns = Spread::of(column_logs.collect());
        Self {
            fixed,
            usual: rows.median,
            row_variance: rows.variance - noise / width as i64,
            column_variance: of_columns.variance - noise / counted.max(1),
            noise,
        }
    }

    /// Whether offsets of rows and of columns can save more than they take.
    pub(super) fn axes_that_pay(&self, rows: usize, columns: usize) -> (bool, bool) {
        let pays = |variance: i64, length: usize| {
            // A spread of scales with variance v costs (ln 2) v bits an element, near enough.
            let saved = (i128::from(variance) * 45426) >> 16;
            let one_bit = 1 << (2 * LOG2_FRACTION_BITS);
            saved * length as i128 > 2 * one_bit && saved * 700 > one_bit
        };
        (
            pays(self.row_variance, columns),
            pays(self.column_variance, rows),
        )
    }
}
