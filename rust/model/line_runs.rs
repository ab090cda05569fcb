//! Which part of a matrix scale offsets are fitted on: runs of columns in rows.

use std::ops::Range;

use super::sample::jitter;

/// Elements of one row that are looked at without a gap, at least.
const MIN_RUN: usize = 32;
/// Rows that a column's sum may have before it could overflow.
const MAX_COLUMN_ROWS: usize = 1 << 20;

/// Which columns are looked at in which row.
#[derive(Clone, Copy)]
pub(super) struct Runs {
    pub(super) columns: usize,
    /// Rows that are looked at, one of `row_step` neighbours.
    pub(super) rows: usize,
    pub(super) row_step: usize,
    /// Runs side by side that cover a row.
    pub(super) stripes: usize,
    /// One of so many of these rows counts for the columns.
    pub(super) column_step: usize,
}

impl Runs {
    /// `per_row` elements of every row if `each_row`, and `per_column` of every column at least.
    pub(super) fn new(
        rows: usize,
        columns: usize,
        each_row: bool,
        per_row: usize,
        per_column: usize,
    ) -> Self {
        let row_step = if each_row {
            1
        } else {
            // Enough rows that no single one counts for much.
            (rows / per_column.saturating_mul(4)).max(1)
        };
        let visited = rows.div_ceil(row_step);
        let for_columns = per_column.saturating_mul(columns).div_ceil(visited);
        let wanted = if each_row {
            per_row.max(for_columns)
        } else {
            for_columns
        };
        let stripes = (columns / wanted.max(MIN_RUN)).max(1);
        Self {
            columns,
            rows: visited,
            row_step,
            stripes,
            column_step: (visited / stripes / per_column.min(MAX_COLUMN_ROWS)).max(1),
        }
    }

    pub(super) fn stripe(self, index: usize) -> usize {
        jitter(index, self.stripes)
    }

    pub(super) fn columns_of(self, stripe: usize) -> Range<usize> {
        stripe * self.columns / self.stripes..(stripe + 1) * self.columns / self.stripes
    }
}
