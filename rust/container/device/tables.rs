//! What chunks of a plan refer to: models, tables, scale offsets, record layouts, deltas.

use super::wire::{DELTA_BYTES, MODEL_BYTES, PLANE_BYTES, RECORDS_BYTES, cut_slot, slot};
use crate::constants::{ALIGNMENT, ESCAPE, SLOTS};
use crate::model::contexts::{ContextSource, ContextTables};
use crate::model::delta::{DeltaModel, Relation};
use crate::model::frequency_table::FrequencyTable;
use crate::model::records::Records;
use crate::model::{Model, Plane, PlaneMode};
use crate::planes::scale::ScaleOffsets;

/// Widest symbol of the fast kernel, whose slots have one bit more for the escape.
const MAX_CUT_BITS: u32 = 15;
/// `COLUMN_BIAS` of cuda/layout.cuh.
const COLUMN_BIAS: u64 = 128;
/// Elements that a thread of the fast kernel puts together at a time: they share a row.
const CUT_ELEMENTS: usize = 8;

/// Whether the fast kernel knows this form of model: a coded plane above a raw one.
pub(super) fn is_cut(model: &Model, scale: Option<&ScaleOffsets>) -> bool {
    let planes = model.planes.as_slice();
    let [
        Plane {
            mode: PlaneMode::Coded(_),
            bits,
        },
        Plane {
            mode: PlaneMode::Raw,
            ..
        },
    ] = planes
    else {
        return false;
    };
    let scale = scale.filter(|_| model.scaled);
    model.element_bytes <= 4
        && *bits <= MAX_CUT_BITS
        && model.phase == 0
        && !model.trailing_zeros
        && scale.is_none_or(|scale| {
            !scale.has_flips()
                && scale.columns.is_multiple_of(CUT_ELEMENTS)
                && i32::try_from(scale.columns).is_ok()
                && i32::try_from(scale.rows.len()).is_ok()
        })
}

/// How far symbols are shifted to their place in 16-bit elements whose sign was the lowest bit, below at most
/// seven others: the top bit, the sign's, is free for the escape. 0: they are not.
fn cut_shift(model: &Model) -> u32 {
    match model.planes.as_slice() {
        [_, raw]
            if model.element_bytes == 2
                && model.sign_position == 0
                && (2..=8).contains(&raw.bits) =>
        {
            raw.bits - 1
        }
        _ => 0,
    }
}

/// The part of a plan behind its chunks.
pub(super) struct Sections {
    bytes: Vec<u8>,
    start: usize,
}

/// Places of what has been pushed are in units of [`ALIGNMENT`] bytes.
type Offset = u32;

impl Sections {
    pub(super) fn after(start: usize) -> Self {
        Self {
            bytes: Vec::new(),
            start,
        }
    }

    pub(super) fn end(&self) -> usize {
        self.start + self.bytes.len()
    }

    pub(super) fn append_to(self, out: &mut Vec<u8>) {
        out.extend(self.bytes);
    }

    pub(super) fn push(&mut self, section: &[u8]) -> Offset {
        let offset = self.end() / ALIGNMENT;
        self.bytes.extend_from_slice(section);
        self.bytes
            .resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        offset as Offset
    }

    /// `scale`: the scale offsets for elements of up to two bytes, and for longer ones.
    pub(super) fn model(
        &mut self,
        model: &Model,
        scale: Option<(Offset, Offset)>,
        fast: bool,
    ) -> Offset {
        let flags = u8::from(model.trailing_zeros) | u8::from(model.scaled) << 1;
        let mut bytes = vec![
            model.element_bytes.trailing_zeros() as u8,
            model.phase as u8,
            model.sign_position as u8,
            flags,
            model.planes.len() as u8,
            model.coded_planes().count() as u8,
            if fast { cut_shift(model) as u8 } else { 0 },
            0,
        ];
        let (narrow, wide) = scale.filter(|_| model.scaled).unwrap_or_default();
        let scale = if model.element_bytes > 2 {
            wide
        } else {
            narrow
        };
        bytes.extend(scale.to_le_bytes());
        bytes.extend([0; 4]);
        for number in 0..model.planes.len() {
            let plane = self.plane(&model.planes, number, fast.then(|| cut_shift(model)));
            bytes.extend(plane);
        }
        bytes.resize(MODEL_BYTES, 0);
        self.push(&bytes)
    }

    fn plane(&mut self, planes: &[Plane], number: usize, fast: Option<u32>) -> [u8; PLANE_BYTES] {
        let plane = &planes[number];
        let mut bytes = [0; PLANE_BYTES];
        let (mode, value, contexts) = match &plane.mode {
            PlaneMode::Raw => (0, 0, 0),
            PlaneMode::Constant(value) => (1, *value, 0),
            PlaneMode::Coded(_) => (2, 0, 0),
            PlaneMode::Contexts(tables) => (3, 0, tables.contexts() as u8),
        };
        let head = [
            mode,
            plane.bits as u8,
            u8::from(plane.has_escape()),
            contexts,
        ];
        bytes[..4].copy_from_slice(&head);
        let (mut table, mut cut_table) = (0, 0);
        match &plane.mode {
            PlaneMode::Coded(listed) => match fast {
                Some(shift) => cut_table = self.push(&cut_slots(listed, shift)),
                None => table = self.push(&slots(listed)),
            },
            PlaneMode::Contexts(tables) => {
                table = self.push(&context_slots(tables));
                if let ContextSource::Plane { plane, first } = tables.source() {
                    let plane = usize::from(plane);
                    let between = planes[plane + 1..number].iter().map(|plane| plane.bits);
                    bytes[4] = between.sum::<u32>() as u8 + 1;
                    bytes[5] = planes[plane].bits as u8;
                    bytes[6..8].copy_from_slice(&first.to_le_bytes());
                }
            }
            PlaneMode::Raw | PlaneMode::Constant(_) => {}
        }
        bytes[8..12].copy_from_slice(&table.to_le_bytes());
        bytes[12..16].copy_from_slice(&cut_table.to_le_bytes());
        bytes[16..].copy_from_slice(&value.to_le_bytes());
        bytes
    }

    pub(super) fn scale(&mut self, scale: &ScaleOffsets) -> (Offset, Offset) {
        let lists = [
            &scale.rows,
            &scale.cols,
            &scale.row_flips,
            &scale.col_flips,
            &scale.row_classes,
            &scale.col_classes,
        ];
        let offsets = lists.map(|list| {
            let bytes: Vec<u8> = list.iter().map(|&entry| entry.cast_unsigned()).collect();
            if bytes.is_empty() {
                0
            } else {
                self.push(&bytes)
            }
        });
        // The fast kernel takes 16-bit words for elements of one and two bytes, 32-bit words for longer ones.
        let mut head = |words: Vec<u8>| {
            let words = self.push(&words);
            let mut bytes = (scale.columns as u64).to_le_bytes().to_vec();
            bytes.extend(scale.shift.to_le_bytes());
            bytes.extend(offsets.iter().flat_map(|offset| offset.to_le_bytes()));
            bytes.extend(words.to_le_bytes());
            bytes.extend([0; 8]);
            self.push(&bytes)
        };
        (
            head(biased(
                one_load(scale.column_words::<u16>(scale.shift)),
                scale.shift,
            )),
            head(one_load(scale.column_words::<u32>(scale.shift))),
        )
    }

    pub(super) fn records(&mut self, records: &Records, models: &[Model]) -> Offset {
        let mut bytes = (records.record_bytes() as u32).to_le_bytes().to_vec();
        bytes.extend((records.models.len() as u32).to_le_bytes());
        bytes.extend([0; 8]);
        for (class, model) in records.models.iter().enumerate() {
            let places: Vec<u8> = (0_u16..)
                .zip(&records.class_of)
                .filter(|&(_, &of)| usize::from(of) == class)
                .flat_map(|(place, _)| place.to_le_bytes())
                .collect();
            let model = model.map_or(0, |model| self.model(&models[model], None, false));
            let class_bytes = records.class_bytes(class) as u32;
            for number in [model, class_bytes, self.push(&places), 0] {
                bytes.extend(number.to_le_bytes());
            }
        }
        bytes.resize(RECORDS_BYTES, 0);
        self.push(&bytes)
    }

    pub(super) fn delta(&mut self, model: &DeltaModel) -> Offset {
        let tables: Vec<u8> = model
            .classes
            .iter()
            .flat_map(|class| {
                let entries = class.table.slot_order();
                spread(entries, |index| (u16::from(index), index == ESCAPE), slot)
            })
            .collect();
        let table = self.push(&tables);
        let mut bytes = vec![
            model.element_bytes.trailing_zeros() as u8,
            model.dropped_bits as u8,
            model.key_shift as u8,
            model.classes.len() as u8,
            model.least_raw_bits() as u8,
            0,
            0,
            0,
        ];
        bytes.extend(table.to_le_bytes());
        bytes.extend([0; 4]);
        for class in &model.classes {
            let relation = match class.relation {
                Relation::Context => 0,
                Relation::Difference => 1,
                Relation::Integer => 2,
            };
            let escape = u8::from(class.table.has_escape());
            bytes.extend([class.first_key, relation, class.raw_bits as u8, escape]);
            bytes.extend([0; 4]);
            bytes.extend(class.table.base().to_le_bytes());
        }
        bytes.resize(DELTA_BYTES, 0);
        self.push(&bytes)
    }
}

/// Words of columns, or the zeros of one load if there are none.
fn one_load(mut words: Vec<u8>) -> Vec<u8> {
    words.resize(words.len().max(ALIGNMENT), 0);
    words
}

/// Words of columns with [`COLUMN_BIAS`] added to their offsets, so that the fast kernel adds none that is
/// negative.
fn biased(mut words: Vec<u8>, shift: u32) -> Vec<u8> {
    let bias = (COLUMN_BIAS << shift) as u16;
    for word in words.as_chunks_mut::<2>().0 {
        *word = u16::from_le_bytes(*word).wrapping_add(bias).to_le_bytes();
    }
    words
}

/// All slots of a table whose entries, index and frequency, are in slot order.
fn spread<const N: usize>(
    entries: Vec<(u8, u16)>,
    symbol: impl Fn(u8) -> (u16, bool),
    form: impl Fn(u16, usize, u16, bool) -> [u8; N],
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SLOTS * N);
    for (index, frequency) in entries {
        let (symbol, escape) = symbol(index);
        for offset in 0..usize::from(frequency) {
            bytes.extend(form(frequency, offset, symbol, escape));
        }
    }
    bytes
}

fn entries(table: &FrequencyTable) -> Vec<(u8, u16)> {
    let entries = table.entries().iter();
    entries
        .map(|entry| (entry.index, u16::from(entry.frequency)))
        .collect()
}

fn symbol_of(table: &FrequencyTable) -> impl Fn(u8) -> (u16, bool) {
    |index| (table.symbol(index), table.has_escape() && index == ESCAPE)
}

fn slots(table: &FrequencyTable) -> Vec<u8> {
    spread(entries(table), symbol_of(table), slot)
}

fn cut_slots(table: &FrequencyTable, shift: u32) -> Vec<u8> {
    let symbol = symbol_of(table);
    let placed = |index| {
        let (symbol, escape) = symbol(index);
        (symbol << shift, escape)
    };
    spread(entries(table), placed, cut_slot)
}

fn context_slots(tables: &ContextTables) -> Vec<u8> {
    let symbol = |index| (tables.symbol(index), tables.has_escape() && index == ESCAPE);
    let spread = |entries| spread(entries, symbol, slot);
    tables.slot_orders().flat_map(spread).collect()
}
