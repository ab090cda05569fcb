//! The closed-form fit of scale offsets: the mean magnitude of every row, then of every column after
//! the rows have been scaled.
//!
//! Integers only: magnitudes become 32-bit fixed point below the largest exponent, so that sums do
//! not depend on their order. Measured in docs/design.md; the mean of `|w|` is near the maximum
//! likelihood fit, means of `log2 |w|` and root mean squares are worse.

use super::histogram::jitter;
use super::log2::{LOG2_FRACTION_BITS, log2};
use crate::dtype::FloatFields;
use crate::planes::scale::ScaleOffsets;
use crate::planes::words::{Word, low_mask, with_word};

/// Offsets are steps of `2^-OCTAVE_LOG2` octaves, fewer where the mantissa has fewer bits.
const OCTAVE_LOG2: u32 = 3;

/// A tensor seen as a matrix: element `i` is in row `i / columns`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) fields: FloatFields,
    pub(crate) columns: usize,
    /// Elements looked at per row and per column.
    pub(crate) sample: usize,
}

/// The offsets of both axes; a candidate takes one of them or both.
#[derive(Clone, Debug)]
pub(crate) struct AxisFit {
    pub(crate) rows: Vec<i8>,
    /// Columns, after the rows have been scaled.
    pub(crate) cols: Vec<i8>,
    /// Columns alone.
    pub(crate) cols_alone: Vec<i8>,
}

impl Matrix<'_> {
    fn element_bytes(&self) -> usize {
        self.fields.element_bits as usize / 8
    }

    fn elements(&self) -> usize {
        self.bytes.len() / self.element_bytes()
    }

    fn unit_log2(&self) -> u32 {
        OCTAVE_LOG2.min(self.fields.mantissa_bits)
    }

    /// The offsets for one choice of axes.
    pub(crate) fn offsets(&self, rows: &[i8], cols: &[i8]) -> ScaleOffsets {
        let shift = self.fields.mantissa_bits - self.unit_log2();
        ScaleOffsets {
            columns: self.columns,
            shift,
            rows: rows.to_vec(),
            cols: cols.to_vec(),
        }
    }

    /// Fits both axes.
    pub(crate) fn fit(&self) -> AxisFit {
        with_word!(self.element_bytes(), W => self.fit_words::<W>())
    }

    fn fit_words<W: Word>(&self) -> AxisFit {
        let (elements, columns) = (self.elements(), self.columns);
        let rows = elements.div_ceil(columns);
        let top = self.largest_exponent::<W>();
        let picked = sample_line(columns, self.sample);
        let mut row_means = Vec::with_capacity(rows);
        for row in 0..rows {
            let first = row * columns;
            let (mut sum, mut count) = (0_u64, 0_u64);
            for &column in picked.iter().filter(|&&column| first + column < elements) {
                sum += self.fixed_point::<W>(first + column, top);
                count += 1;
            }
            row_means.push(mean(sum, count));
        }
        let rows_fit = self.offsets_of(&row_means);

        let mut sums = vec![(0_u64, 0_u64, 0_u64); columns];
        for row in sample_line(rows, self.sample) {
            let scale = rows_fit[row];
            let first = row * columns;
            for (column, (scaled, plain, count)) in sums.iter_mut().enumerate() {
                if first + column >= elements {
                    break;
                }
                let value = self.fixed_point::<W>(first + column, top);
                *plain += value;
                *scaled += self.unscale(value, scale);
                *count += 1;
            }
        }
        let scaled: Vec<u64> = sums
            .iter()
            .map(|&(scaled, _, count)| mean(scaled, count))
            .collect();
        let plain: Vec<u64> = sums
            .iter()
            .map(|&(_, plain, count)| mean(plain, count))
            .collect();
        AxisFit {
            rows: rows_fit,
            cols: self.offsets_of(&scaled),
            cols_alone: self.offsets_of(&plain),
        }
    }

    /// Exponent and mantissa with its implicit bit.
    #[inline]
    fn parts<W: Word>(&self, element: usize) -> (u64, u64) {
        let FloatFields {
            exponent_bits,
            mantissa_bits,
            ..
        } = self.fields;
        let mut word = [W::default()];
        W::load(
            &self.bytes[element * W::BYTES..(element + 1) * W::BYTES],
            &mut word,
        );
        let word = word[0].widen();
        let exponent = word >> mantissa_bits & low_mask(exponent_bits);
        let mantissa = word & low_mask(mantissa_bits);
        let implicit = u64::from(exponent > 0) << mantissa_bits;
        (exponent.max(1), mantissa | implicit)
    }

    /// The largest finite exponent among a sample of elements.
    fn largest_exponent<W: Word>(&self) -> u64 {
        let infinite = low_mask(self.fields.exponent_bits);
        let step = (self.elements() / 65536).max(1);
        (0..self.elements() / step)
            .map(|index| index * step + jitter(index, step))
            .map(|element| self.parts::<W>(element).0)
            .filter(|&exponent| exponent != infinite)
            .max()
            .unwrap_or(1)
    }

    /// The magnitude in fixed point, at most 32 bits and 0 for what is far below `top` or not finite.
    #[inline]
    fn fixed_point<W: Word>(&self, element: usize, top: u64) -> u64 {
        let (exponent, mantissa) = self.parts::<W>(element);
        let leading = self.fields.mantissa_bits;
        let aligned = if leading <= 31 {
            mantissa << (31 - leading)
        } else {
            mantissa >> (leading - 31)
        };
        if exponent <= top {
            aligned.checked_shr((top - exponent) as u32).unwrap_or(0)
        } else if exponent == low_mask(self.fields.exponent_bits) {
            0
        } else {
            // Rare: the sample has missed this exponent.
            aligned << (exponent - top).min(8)
        }
    }

    /// `value` divided by `2^(offset / 2^unit_log2)`.
    fn unscale(&self, value: u64, offset: i8) -> u64 {
        // 2^(-i/8) in 16-bit fixed point.
        const FRACTIONS: [u64; 8] = [65536, 60097, 55109, 50535, 46341, 42495, 38968, 35734];
        let eighths = i32::from(offset) << (OCTAVE_LOG2 - self.unit_log2());
        let fraction = (value * FRACTIONS[(eighths & 7) as usize]) >> 16;
        let octaves = eighths >> 3;
        // A sum of 2^20 values of 43 bits still fits.
        if octaves >= 0 {
            fraction.checked_shr(octaves as u32).unwrap_or(0)
        } else {
            fraction << (-octaves).min(11)
        }
    }

    /// Logarithms of the means less their median, in units of the offsets.
    fn offsets_of(&self, means: &[u64]) -> Vec<i8> {
        let logs: Vec<i64> = means.iter().map(|&mean| log2(mean) as i64).collect();
        let mut known: Vec<i64> = logs
            .iter()
            .zip(means)
            .filter(|&(_, &mean)| mean > 0)
            .map(|(&log, _)| log)
            .collect();
        if known.is_empty() {
            return vec![0; means.len()];
        }
        let middle = known.len() / 2;
        let (_, &mut median, _) = known.select_nth_unstable(middle);
        let unit_log2 = LOG2_FRACTION_BITS - self.unit_log2();
        let half = 1 << (unit_log2 - 1);
        logs.iter()
            .zip(means)
            .map(|(&log, &mean)| {
                let offset = (log - median + half) >> unit_log2;
                if mean == 0 {
                    0
                } else {
                    offset.clamp(-127, 127) as i8
                }
            })
            .collect()
    }
}

/// At most `sample` of `count` rows or columns, spread without a period.
fn sample_line(count: usize, sample: usize) -> Vec<usize> {
    let step = count.div_ceil(sample);
    (0..count.div_ceil(step))
        .map(|index| index * step + jitter(index, step))
        .filter(|&position| position < count)
        .collect()
}

/// The mean with eight fraction bits, which the logarithm of small means needs.
fn mean(sum: u64, count: u64) -> u64 {
    (u128::from(sum) << 8)
        .checked_div(u128::from(count))
        .unwrap_or(0) as u64
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
        }
        .fit();
        for r in 0..rows {
            let expected = 8.0 * (row_scale(r) - row_scale(2));
            assert!((f32::from(fit.rows[r]) - expected).abs() <= 1.0, "row {r}");
        }
        for c in 0..columns {
            let expected = 8.0 * (col_scale(c) - col_scale(1));
            assert!(
                (f32::from(fit.cols[c]) - expected).abs() <= 1.0,
                "column {c}"
            );
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
        }
        .fit();
        assert_eq!(fit.cols_alone.len(), 6);
    }
}
