//! Adding up, field by field, what the chunks of a tensor take, and counting the values in some of them.

use std::ops::Range;

use super::names::field_name;
use super::{FieldUse, ScaleUse};
use crate::chunk::{plane_bytes, records_layout};
use crate::container::index::Storage;
use crate::container::prelude::Chunked;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::model::histogram::table_entropy;
use crate::model::{Model, Plane, PlaneMode};
use crate::planes::scale::ScaleOffsets;
use crate::planes::words::{Word, lower_sign, with_word};

/// Values of fields up to this width are counted as they are, wider ones byte by byte.
const COUNTED_BITS: u32 = 16;

/// Adds up chunks by field.
pub(super) struct Tally<'a> {
    dtype: Dtype,
    chunked: &'a Chunked,
    rows: Vec<(FieldUse, Histogram)>,
    /// The row of each plane of each model.
    places: Vec<Vec<usize>>,
    scaled: bool,
}

/// Counts of the values of one field, or of each of its bytes.
#[derive(Default)]
struct Histogram(Vec<Vec<u64>>);

impl Histogram {
    fn add(&mut self, value: u64, bits: u32) {
        let (step, parts) = if bits <= COUNTED_BITS {
            (bits, 1)
        } else {
            (8, bits.div_ceil(8))
        };
        if self.0.is_empty() {
            self.0 = vec![vec![0; 1 << step]; parts as usize];
        }
        for (part, counts) in self.0.iter_mut().enumerate() {
            let shifted = value >> (step * part as u32).min(63);
            counts[(shifted & ((1 << step) - 1)) as usize] += 1;
        }
    }

    /// In bits per value.
    fn entropy(&self) -> Option<f64> {
        if self.0.is_empty() {
            return None;
        }
        let entropy = |counts: &Vec<u64>| {
            let total = counts.iter().sum::<u64>() as f64;
            let cost = |&count: &u64| -(count as f64) * (count as f64 / total).log2();
            counts
                .iter()
                .filter(|&&count| count > 0)
                .map(cost)
                .sum::<f64>()
                / total
        };
        // Not -0.0, which the sum of nothing is.
        Some(self.0.iter().map(entropy).sum::<f64>() + 0.0)
    }
}

impl<'a> Tally<'a> {
    pub(super) fn new(dtype: Dtype, chunked: &'a Chunked) -> Self {
        let mut tally = Self {
            dtype,
            chunked,
            rows: Vec::new(),
            places: Vec::new(),
            scaled: false,
        };
        for model in &chunked.models {
            let places = (0..model.planes.len()).map(|plane| tally.row_of_plane(model, plane));
            let places = places.collect();
            tally.places.push(places);
        }
        tally
    }

    fn row_of_plane(&mut self, model: &Model, number: usize) -> usize {
        let plane = &model.planes[number];
        let is_last = number + 1 == model.planes.len();
        let mode = match plane.mode {
            PlaneMode::Constant(_) => "constant",
            PlaneMode::Coded(_) => "coded",
            PlaneMode::Contexts(_) => "coded in contexts",
            PlaneMode::Raw if is_last && model.trailing_zeros => "raw without trailing zeros",
            PlaneMode::Raw => "raw",
        };
        let row = self.row(field_name(self.dtype, model, number), mode, plane.bits);
        self.rows[row].0.table_bits = self.rows[row].0.table_bits.or(table_bits(plane));
        row
    }

    fn row(&mut self, name: String, mode: &'static str, bits: u32) -> usize {
        let alike = |(it, _): &(FieldUse, Histogram)| it.name == name && it.mode == mode;
        self.rows.iter().position(alike).unwrap_or_else(|| {
            let field = FieldUse {
                name,
                mode,
                bits,
                elements: 0,
                bytes: 0,
                overhead: 0,
                table_bits: None,
                entropy_bits: None,
            };
            self.rows.push((field, Histogram::default()));
            self.rows.len() - 1
        })
    }

    /// The row for chunks without a model.
    fn whole_row(&mut self, storage: Storage) -> usize {
        let mode = if storage == Storage::Raw {
            "raw"
        } else {
            "constant"
        };
        self.row("whole chunks".to_owned(), mode, 8)
    }

    pub(super) fn add(
        &mut self,
        storage: Storage,
        chunk: Range<usize>,
        payload: &[u8],
    ) -> Result<()> {
        let chunk_len = chunk.len();
        let Storage::Model(number) = storage else {
            let row = self.whole_row(storage);
            let field = &mut self.rows[row].0;
            field.elements += chunk_len as u64;
            field.bytes += if storage == Storage::Raw {
                chunk_len as u64
            } else {
                payload.len() as u64
            };
            return Ok(());
        };
        if self.chunked.delta.is_some() {
            let row = self.row("next to the base".to_owned(), "delta", 8);
            let field = &mut self.rows[row].0;
            field.elements += chunk_len as u64;
            field.bytes += payload.len() as u64;
            return Ok(());
        }
        if let Some(records) = self.chunked.records(number) {
            let layout = records_layout(records, chunk.start, chunk_len, payload)?;
            let count = records.span(chunk.start, chunk_len).records;
            for (class, (payload, model)) in layout.classes.into_iter().enumerate() {
                let len = count * records.class_bytes(class);
                match model {
                    None => self.add(Storage::Raw, 0..len, payload)?,
                    Some(model) => self.add(Storage::Model(model), 0..len, payload)?,
                }
            }
            return Ok(());
        }
        let model = &self.chunked.models[number];
        self.scaled |= model.scaled;
        let sizes = plane_bytes(model, chunk_len, payload)?;
        for (&row, size) in self.places[number].iter().zip(sizes) {
            let field = &mut self.rows[row].0;
            field.elements += model.elements(chunk_len) as u64;
            field.bytes += (size.content + size.overhead) as u64;
            field.overhead += size.overhead as u64;
        }
        Ok(())
    }

    /// Counts the values in a chunk that begins at byte `start` of the tensor.
    pub(super) fn measure(&mut self, storage: Storage, start: usize, chunk: &[u8]) {
        let Storage::Model(number) = storage else {
            let row = self.whole_row(storage);
            let histogram = &mut self.rows[row].1;
            for &byte in chunk {
                histogram.add(byte.into(), 8);
            }
            return;
        };
        if self.chunked.delta.is_some() {
            return;
        }
        if let Some(records) = self.chunked.records(number) {
            let span = records.span(start, chunk.len());
            let body = &chunk[span.before..][..span.records * records.record_bytes()];
            for (class, model) in records.models.iter().enumerate() {
                let mut bytes = Vec::new();
                records.gather(class, body, &mut bytes);
                // Classes that are not stored with their model are seldom enough.
                self.measure(model.map_or(Storage::Raw, Storage::Model), 0, &bytes);
            }
            return;
        }
        let model = &self.chunked.models[number];
        let scale = self.chunked.scale.as_ref().filter(|_| model.scaled);
        with_word!(model.element_bytes, W => {
            let words = prepared::<W>(model, scale, start / W::BYTES, chunk);
            let mut below = W::BITS;
            for (plane, &row) in model.planes.iter().zip(&self.places[number]) {
                below -= plane.bits;
                let (mask, histogram) = (W::mask(plane.bits), &mut self.rows[row].1);
                for &word in &words {
                    histogram.add(((word >> below) & mask).widen(), plane.bits);
                }
            }
        });
    }

    pub(super) fn scale(&self) -> Option<ScaleUse> {
        let scale = self.chunked.scale.as_ref().filter(|_| self.scaled)?;
        Some(ScaleUse {
            columns: scale.columns,
            rows: scale.rows.len(),
            cols: scale.cols.len(),
            bytes: scale.wire_len() as u64,
        })
    }

    /// The fields that occur, in the order of the models.
    pub(super) fn fields(&self) -> Vec<FieldUse> {
        let fields = self.rows.iter().map(|(field, histogram)| FieldUse {
            entropy_bits: histogram.entropy(),
            ..field.clone()
        });
        fields.filter(|field| field.elements > 0).collect()
    }
}

/// The elements of a chunk as they are when they are cut into planes.
fn prepared<W: Word>(
    model: &Model,
    scale: Option<&ScaleOffsets>,
    first: usize,
    chunk: &[u8],
) -> Vec<W> {
    let mut words = vec![W::default(); model.elements(chunk.len())];
    if let Some(bytes) = chunk.get(model.phase..model.phase + words.len() * W::BYTES) {
        W::load(bytes, &mut words);
    }
    if let Some(scale) = scale {
        scale.subtract(&mut words, first);
    }
    lower_sign(&mut words, model.sign_position);
    words
}

fn table_bits(plane: &Plane) -> Option<f64> {
    match &plane.mode {
        PlaneMode::Coded(table) => Some(table_entropy(table.entries().iter().map(|e| e.frequency))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_entropy_is_within_the_width(values in prop::collection::vec(any::<u64>(), 1..300), bits in 1_u32..=64) {
            let mut histogram = Histogram::default();
            let mask = crate::planes::words::low_mask(bits);
            for value in &values {
                histogram.add(value & mask, bits);
            }
            let entropy = histogram.entropy().unwrap();
            prop_assert!(entropy >= -1e-9 && entropy <= f64::from(bits) + 1e-9);
        }
    }
}
