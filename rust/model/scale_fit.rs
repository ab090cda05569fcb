//! The closed-form fit of scale offsets: the mean magnitude of every row, then of every column after
//! the rows have been scaled.
//!
//! One pass: every row is looked at in one run of neighbouring columns, and the runs of all rows
//! together look at every column. Integers only, and sums that do not depend on their order, so that
//! the fit is the same on every machine. Measured in docs/design.md; the mean of `|w|` is near the
//! maximum likelihood fit, means of `log2 |w|` and root mean squares are worse.

use std::marker::PhantomData;
use std::ops::Range;

use super::line_runs::Runs;
use super::log2::{LOG2_FRACTION_BITS, log2};
use super::sample::jitter;
use super::scale_probe::{Probe, SHARE_BITS, Spread, share};
use crate::dtype::FloatFields;
use crate::error::Result;
use crate::options::Threads;
use crate::parallel;
use crate::planes::scale::ScaleOffsets;
use crate::planes::words::{Word, with_word};
use crate::simd::{Kernels, Task, fetch};

/// Offsets are steps of `2^-OCTAVE_LOG2` octaves, fewer where the mantissa has fewer bits.
const OCTAVE_LOG2: u32 = 3;
/// Largest offset: a phase of up to half an octave may be added to it.
pub(super) const LARGEST: i64 = i8::MAX as i64 - (1 << OCTAVE_LOG2 >> 1);
/// Rows whose runs are fetched before the first of them is summed.
const ROWS_AHEAD: usize = 16;
/// Elements that an axis is fitted on altogether, at least.
const MIN_SAMPLE: usize = 1 << 16;

/// log2 of the steps in an octave.
pub(super) fn octave_log2(fields: FloatFields) -> u32 {
    OCTAVE_LOG2.min(fields.mantissa_bits)
}

/// A tensor seen as a matrix: element `i` is in row `i / columns`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) fields: FloatFields,
    pub(crate) columns: usize,
    /// Elements looked at per row and per column, at least.
    pub(crate) sample: usize,
    pub(crate) threads: Threads,
    pub(crate) kernels: Kernels,
}

/// The offsets of both axes; a candidate takes one of them or both.
///
/// An axis that cannot pay for its offsets is empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct AxisFit {
    pub(crate) rows: Vec<i8>,
    /// Columns, after the rows have been scaled.
    pub(crate) cols: Vec<i8>,
}

/// Sums of the magnitudes of scaled rows, per column.
struct ColumnSums {
    sums: Vec<u64>,
    /// Rows that each stripe was looked at in.
    rows: Vec<u64>,
}

impl ColumnSums {
    fn add(&mut self, other: &Self) {
        for (sums, more) in [(&mut self.sums, &other.sums), (&mut self.rows, &other.rows)] {
            sums.iter_mut().zip(more).for_each(|(sum, add)| *sum += add);
        }
    }
}

/// Looking at some of the rows.
struct FitRows<'a, W> {
    matrix: &'a Matrix<'a>,
    visited: Range<usize>,
    runs: Runs,
    probe: &'a Probe,
    row_share: i64,
    word: PhantomData<W>,
}

impl<W: Word> Task for FitRows<'_, W> {
    type Output = (Vec<i8>, ColumnSums);

    #[inline(always)]
    fn run(self) -> Self::Output {
        let (runs, probe) = (self.runs, self.probe);
        self.matrix
            .fit_rows::<W>(self.visited, runs, probe, self.row_share)
    }
}

/// Adds magnitudes times `factor / 2^FACTOR_BITS` to the sums of their columns.
#[inline(always)]
fn add_to_columns(magnitudes: &[u32], factor: u32, sums: &mut [u64]) {
    for (&value, sum) in magnitudes.iter().zip(sums) {
        *sum += (u64::from(value) * u64::from(factor)) >> FACTOR_BITS;
    }
}

const FACTOR_BITS: u32 = 20;

impl Matrix<'_> {
    pub(super) fn element_bytes(&self) -> usize {
        self.fields.element_bits as usize / 8
    }

    fn elements(&self) -> usize {
        self.bytes.len() / self.element_bytes()
    }

    pub(super) fn rows(&self) -> usize {
        self.elements().div_ceil(self.columns)
    }

    fn unit_log2(&self) -> u32 {
        octave_log2(self.fields)
    }

    /// The offsets for one choice of axes.
    pub(crate) fn offsets(&self, rows: &[i8], cols: &[i8]) -> ScaleOffsets {
        let shift = self.fields.mantissa_bits - self.unit_log2();
        ScaleOffsets {
            columns: self.columns,
            shift,
            rows: rows.to_vec(),
            cols: cols.to_vec(),
            ..ScaleOffsets::default()
        }
    }

    /// Whether the offsets of an axis save more than they take, as far as they themselves say.
    pub(super) fn pays(&self, axis: &[i8]) -> bool {
        let (mut sum, mut squares) = (0_i64, 0_i64);
        for &offset in axis {
            let offset = i64::from(offset);
            (sum, squares) = (sum + offset, squares + offset * offset);
        }
        // A spread of scales with variance v, in octaves squared, costs (ln 2) v bits an element, near enough.
        let count = axis.len().max(1) as i64;
        let variance = squares * count - sum * sum;
        let saved = i128::from(variance) * 45426 * self.elements() as i128;
        let unit = i128::from(count * count) << (16 + 2 * self.unit_log2());
        // An offset takes about three bits.
        saved > unit * 3 * i128::from(count)
    }

    /// Fits both axes.
    ///
    /// # Errors
    /// When the threads asked for cannot be had.
    pub(crate) fn fit(&self) -> Result<AxisFit> {
        with_word!(self.element_bytes(), W => self.fit_words::<W>())
    }

    fn fit_words<W: Word>(&self) -> Result<AxisFit> {
        let rows = self.rows();
        let probe = Probe::new::<W>(self);
        let (fit_rows, fit_cols) = probe.axes_that_pay(rows, self.columns);
        if !fit_rows && !fit_cols {
            return Ok(AxisFit::default());
        }
        let per_column = if fit_cols {
            self.sample
                .max(MIN_SAMPLE.min(self.elements()) / self.columns)
        } else {
            1
        };
        let per_row = self.sample.max(MIN_SAMPLE.min(self.elements()) / rows);
        let runs = Runs::new(rows, self.columns, fit_rows, per_row, per_column);
        let per_row = (self.columns / runs.stripes) as u64;
        let row_share = if fit_rows {
            share(probe.row_variance, probe.noise / per_row as i64)
        } else {
            0
        };
        let tasks = parallel::thread_count(self.threads)?;
        let parts = parallel::map(self.threads, tasks, |task| {
            let visited = runs.rows * task / tasks..runs.rows * (task + 1) / tasks;
            let task = FitRows {
                matrix: self,
                visited,
                runs,
                probe: &probe,
                row_share,
                word: PhantomData::<W>,
            };
            self.kernels.run(task)
        })?;
        let mut rows_fit = Vec::with_capacity(runs.rows);
        let mut parts = parts.into_iter();
        let Some((offsets, mut sums)) = parts.next() else {
            return Ok(AxisFit::default());
        };
        rows_fit.extend(offsets);
        for (offsets, more) in parts {
            rows_fit.extend(offsets);
            sums.add(&more);
        }
        if !fit_rows {
            rows_fit.clear();
        }
        let cols = if fit_cols {
            self.column_offsets(&sums, runs, probe.noise)
        } else {
            Vec::new()
        };
        Ok(AxisFit {
            rows: rows_fit,
            cols,
        })
    }

    /// What there is of a run of columns in a row.
    #[inline(always)]
    pub(super) fn bytes_of_run<W: Word>(&self, row: usize, run: &Range<usize>) -> &[u8] {
        let first = row * self.columns;
        let end = self.elements().min(first + run.end);
        let start = end.min(first + run.start);
        &self.bytes[start * W::BYTES..end * W::BYTES]
    }

    /// Offsets of some rows, and what they add to the sums of the columns.
    #[inline(always)]
    fn fit_rows<W: Word>(
        &self,
        visited: Range<usize>,
        runs: Runs,
        probe: &Probe,
        row_share: i64,
    ) -> (Vec<i8>, ColumnSums) {
        let widest = self.columns.div_ceil(runs.stripes);
        let mut words = vec![W::default(); widest];
        let mut magnitudes = vec![0; widest];
        let mut offsets = Vec::with_capacity(visited.len());
        let mut sums = ColumnSums {
            sums: vec![0; self.columns],
            rows: vec![0; runs.stripes],
        };
        // Divisions would take as long as the sum of a short run.
        let stripes: Vec<_> = (0..runs.stripes).map(|i| runs.columns_of(i)).collect();
        let all_rows = self.rows();
        let run_of = |index: usize| {
            let row = index * runs.row_step + jitter(index, runs.row_step);
            if row < all_rows {
                self.bytes_of_run::<W>(row, &stripes[runs.stripe(index)])
            } else {
                &[]
            }
        };
        let mut until_column =
            (runs.column_step - visited.start % runs.column_step) % runs.column_step;
        // A ring of runs on their way into the cache, so that each place is computed once.
        let mut ring: [&[u8]; ROWS_AHEAD] = [&[]; ROWS_AHEAD];
        let mut next = visited.clone();
        for (slot, index) in ring.iter_mut().zip(&mut next) {
            *slot = run_of(index);
            fetch(slot);
        }
        for index in visited.clone() {
            let slot = &mut ring[(index - visited.start) % ROWS_AHEAD];
            let bytes = *slot;
            if let Some(ahead) = next.next() {
                *slot = run_of(ahead);
                fetch(slot);
            }
            let elements = W::split(bytes);
            let sum = probe.fixed.sum::<W>(elements);
            let offset = if sum > 0 {
                let log = log_of_mean(sum, elements.len() as u64) - probe.usual;
                self.offset((log * row_share) >> SHARE_BITS)
            } else {
                0
            };
            offsets.push(offset);
            let for_columns = until_column == 0;
            until_column = if for_columns {
                runs.column_step
            } else {
                until_column
            } - 1;
            if for_columns && !elements.is_empty() {
                let stripe = runs.stripe(index);
                let magnitudes = &mut magnitudes[..elements.len()];
                let words = &mut words[..elements.len()];
                W::load(bytes, words);
                probe.fixed.magnitudes(words, magnitudes);
                sums.rows[stripe] += 1;
                let of_run = &mut sums.sums[stripes[stripe].clone()];
                add_to_columns(magnitudes, self.factor(offset), of_run);
            }
        }
        (offsets, sums)
    }

    /// The factor that takes a row's offset away, with [`FACTOR_BITS`].
    fn factor(&self, offset: i8) -> u32 {
        // 2^(-i/8) with FACTOR_BITS.
        const FRACTIONS: [u32; 8] = [
            1_048_576, 961_548, 881_744, 808_563, 741_455, 679_917, 623_487, 571_740,
        ];
        let eighths = i32::from(offset) << (OCTAVE_LOG2 - self.unit_log2());
        let fraction = FRACTIONS[(eighths & 7) as usize];
        let octaves = eighths >> 3;
        // A sum of 2^20 magnitudes of 43 bits still fits.
        if octaves >= 0 {
            fraction >> octaves
        } else {
            fraction << (-octaves).min(11)
        }
    }

    /// A logarithm as an offset.
    fn offset(&self, log: i64) -> i8 {
        let unit_log2 = LOG2_FRACTION_BITS - self.unit_log2();
        ((log + (1 << (unit_log2 - 1))) >> unit_log2).clamp(-LARGEST, LARGEST) as i8
    }

    fn column_offsets(&self, columns: &ColumnSums, runs: Runs, noise: i64) -> Vec<i8> {
        let sums = &columns.sums;
        let mut logs = Vec::with_capacity(sums.len());
        for (stripe, &rows) in columns.rows.iter().enumerate() {
            let of_stripe = &sums[runs.columns_of(stripe)];
            logs.extend(of_stripe.iter().map(|&sum| log_of_mean(sum, rows)));
        }
        let known = logs.iter().zip(sums).filter(|&(_, &sum)| sum > 0);
        let spread = Spread::of(known.map(|(&log, _)| log).collect());
        let rows = columns.rows.iter().sum::<u64>() as i64 / runs.stripes as i64;
        let noise = noise / rows.max(1);
        let share = share(spread.variance - noise, noise);
        let offset = |(&log, &sum)| {
            if sum > 0 {
                self.offset(((log - spread.median) * share) >> SHARE_BITS)
            } else {
                0
            }
        };
        logs.iter().zip(sums).map(offset).collect()
    }
}

/// log2 of a mean, as [`log2`] gives it.
pub(super) fn log_of_mean(sum: u64, count: u64) -> i64 {
    log2(sum) as i64 - log2(count) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;

    #[test]
    fn scales_of_rows_and_columns_are_found() {
        let (rows, columns) = (40, 300);
        let row_scale = |r: usize| (r % 5) as f32;
        let col_scale = |c: usize| -((c % 3) as f32);
        let bytes: Vec<u8> = (0..rows * columns)
            .flat_map(|i| {
                let (r, c) = (i / columns, i % columns);
                let noise = ((i * 7919) % 1000) as f32 / 1000.0 + 0.5;
                (noise * 2_f32.powf(row_scale(r) + col_scale(c))).to_le_bytes()
            })
            .collect();
        let fields = Dtype::Float32.float_fields().unwrap();
        let fit = Matrix {
            bytes: &bytes,
            fields,
            columns,
            sample: 256,
            threads: Threads::new(1),
            kernels: Kernels::scalar(),
        }
        .fit()
        .unwrap();
        for r in 0..rows {
            let expected = 8.0 * (row_scale(r) - row_scale(2));
            let found = f32::from(fit.rows[r]) - f32::from(fit.rows[2]);
            assert!((found - expected).abs() <= 1.0, "row {r}");
        }
        for c in 0..columns {
            let expected = 8.0 * (col_scale(c) - col_scale(1));
            let found = f32::from(fit.cols[c]) - f32::from(fit.cols[1]);
            assert!((found - expected).abs() <= 1.0, "column {c}");
        }
    }

    #[test]
    fn zeros_infinities_and_nans_do_no_harm() {
        let values = [
            0.0,
            f32::INFINITY,
            f32::NAN,
            -0.0,
            f32::MIN_POSITIVE,
            f32::MAX,
        ];
        let bytes: Vec<u8> = values
            .iter()
            .cycle()
            .take(600)
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let fields = Dtype::Float32.float_fields().unwrap();
        let fit = Matrix {
            bytes: &bytes,
            fields,
            columns: 6,
            sample: 256,
            threads: Threads::new(1),
            kernels: Kernels::scalar(),
        }
        .fit()
        .unwrap();
        assert_eq!(fit.cols.len() % 6, 0);
    }
}
