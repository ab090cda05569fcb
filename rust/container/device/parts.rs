//! What goes in front of payloads that the device has encoded.
//!
//! The device makes one kind of model: a coded plane of exponents above a raw plane of mantissa and sign.
//! Place in docs/format.md: "Tensor stream".

use super::super::index::{ChunkEntry, Storage, is_packed};
use super::super::prelude::{Body, Chunked, TensorType, write_prelude};
use crate::constants::{ALIGNMENT, CHUNK_LOG2};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::model::frequency_table::{Entry, FrequencyTable};
use crate::model::{Model, Plane};

/// The table of the exponents: base, whether it has an escape, and index and frequency in slot order.
pub type Table = (u64, bool, Vec<(u8, u8)>);

/// What the device says of a chunk: payload length, storage (0 raw, 1 constant, 2 the model), hash.
pub type EncodedChunk = (u32, u8, u64);

/// The beginning of a stream, up to its payloads: what [`crate::compress`] makes at the level `fast`.
///
/// # Errors
/// [`Error::InvalidArgument`] for parts that make no stream.
pub fn assemble(
    dtype: Dtype,
    shape: &[u64],
    chunk_log2: u32,
    table: Option<Table>,
    chunks: &[EncodedChunk],
) -> Result<Vec<u8>> {
    let fail = |what: &str| Err(Error::InvalidArgument(format!("encoded parts: {what}")));
    let tensor = TensorType::new(dtype, shape)?;
    let models: Vec<Model> = match (table, dtype.float_fields()) {
        (None, _) => Vec::new(),
        (Some(table), Some(fields)) => {
            vec![model(fields.exponent_bits, fields.element_bits, table)?]
        }
        (Some(_), None) => return fail("a table without floats"),
    };
    let mut entries = Vec::with_capacity(chunks.len());
    for &(payload_len, storage, hash) in chunks {
        let storage = match storage {
            0 => Storage::Raw,
            1 => Storage::Constant,
            2 if !models.is_empty() => Storage::Model(0),
            _ => return fail("a chunk without a model"),
        };
        entries.push(ChunkEntry {
            payload_len,
            storage,
            hash,
        });
    }
    if !CHUNK_LOG2.contains(&chunk_log2) {
        return fail("a length that chunks do not have");
    }
    let single = entries.first().filter(|_| entries.len() == 1);
    let packed = entries.is_empty() || single.is_some_and(|entry| is_packed(1, entry.storage));
    let chunked = Chunked {
        chunk_log2,
        models: if packed { Vec::new() } else { models },
        records: Vec::new(),
        scale: None,
        delta: None,
    };
    if chunked.chunks(tensor.byte_len()) != entries.len() as u64 {
        return fail("another number of chunks");
    }
    let mut stream = write_prelude(&tensor, &Body::Chunked(chunked), &entries);
    if !packed {
        stream.resize(stream.len().next_multiple_of(ALIGNMENT), 0);
    }
    Ok(stream)
}

fn model(exponent_bits: u32, element_bits: u32, (base, escape, listed): Table) -> Result<Model> {
    let entries = listed.into_iter();
    let entries = entries.map(|(index, frequency)| Entry { index, frequency });
    let table = FrequencyTable::new(exponent_bits, base, escape, entries.collect())?;
    Model {
        element_bytes: element_bits as usize / 8,
        phase: 0,
        sign_position: 0,
        trailing_zeros: false,
        scaled: false,
        planes: vec![
            Plane::coded(table),
            Plane::raw(element_bits - exponent_bits),
        ],
    }
    .validated()
}
