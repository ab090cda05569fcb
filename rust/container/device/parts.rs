//! What goes in front of payloads that the device has encoded.
//!
//! The device makes one kind of model of floats: a coded or constant plane of exponents above a raw plane of mantissa
//! and, mostly, sign, with scale offsets or without.
//! Place in docs/format.md: "Tensor stream".

use super::super::index::{ChunkEntry, Storage, is_packed};
use super::super::prelude::{Body, Chunked, TensorType, write_prelude};
use crate::constants::{ALIGNMENT, CHUNK_LOG2};
use crate::dtype::{Dtype, FloatFields};
use crate::error::{Error, Result};
use crate::model::frequency_table::{Entry, FrequencyTable};
use crate::model::{Model, Plane};
use crate::planes::scale::ScaleOffsets;

/// The model: mantissa bits in the symbol, where the sign is, whether trailing zeros are left out; then the table of
/// the symbols: base, whether it has an escape, and index and frequency in slot order; none of them if all symbols are
/// the base.
pub type EncodedModel = (u32, u32, bool, u64, bool, Vec<(u8, u8)>);

/// Scale offsets of a matrix: its columns, log2 of the unit, and signed bytes for rows and for columns.
pub type EncodedScale = (u64, u32, Vec<u8>, Vec<u8>);

/// `EncodeSign` of `cuda/encode_layout.cuh`.
const SIGN_RAW: u32 = 0;
const SIGN_FIRST: u32 = 1;
const SIGN_POSITIVE: u32 = 2;
const SIGN_NEGATIVE: u32 = 3;

/// What the device says of a chunk: payload length, storage (0 raw, 1 constant, 2 the model), hash.
pub type EncodedChunk = (u32, u8, u64);

/// The stream of a tensor of one element: what [`crate::compress`] makes.
///
/// # Errors
/// [`Error::InvalidArgument`] for an element of another length.
pub fn assemble_constant(dtype: Dtype, shape: &[u64], element: &[u8]) -> Result<Vec<u8>> {
    if element.len() != dtype.itemsize() {
        return Err(Error::InvalidArgument(
            "encoded parts: an element of another type".to_owned(),
        ));
    }
    let tensor = TensorType::new(dtype, shape)?;
    Ok(write_prelude(
        &tensor,
        &Body::Constant(element.to_vec()),
        &[],
    ))
}

/// The beginning of a stream, up to its payloads: what [`crate::compress`] makes at the levels `fast` and `default`.
///
/// # Errors
/// [`Error::InvalidArgument`] for parts that make no stream.
pub fn assemble(
    dtype: Dtype,
    shape: &[u64],
    chunk_log2: u32,
    made: Option<EncodedModel>,
    scale: Option<EncodedScale>,
    chunks: &[EncodedChunk],
) -> Result<Vec<u8>> {
    let fail = |what: &str| Err(Error::InvalidArgument(format!("encoded parts: {what}")));
    let tensor = TensorType::new(dtype, shape)?;
    let models: Vec<Model> = match (made, dtype.float_fields()) {
        (None, _) => Vec::new(),
        (Some(made), Some(fields)) => vec![model(fields, made, scale.is_some())?],
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
    let scale = match scale {
        Some(scale) if !models.is_empty() => Some(offsets(scale)?),
        _ => None,
    };
    let single = entries.first().filter(|_| entries.len() == 1);
    let packed = entries.is_empty() || single.is_some_and(|entry| is_packed(1, entry.storage));
    let chunked = Chunked {
        chunk_log2,
        models: if packed { Vec::new() } else { models },
        records: Vec::new(),
        scale: scale.filter(|_| !packed),
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

fn offsets((columns, shift, rows, cols): EncodedScale) -> Result<ScaleOffsets> {
    let columns = usize::try_from(columns).ok().filter(|&columns| columns > 0);
    let signed = |list: Vec<u8>| list.into_iter().map(u8::cast_signed).collect::<Vec<i8>>();
    match columns {
        Some(columns) if !(rows.is_empty() && cols.is_empty()) => Ok(ScaleOffsets {
            columns,
            shift,
            rows: signed(rows),
            cols: signed(cols),
            ..ScaleOffsets::default()
        }),
        _ => Err(Error::InvalidArgument(
            "encoded parts: no scale offsets".to_owned(),
        )),
    }
}

fn model(fields: FloatFields, made: EncodedModel, scaled: bool) -> Result<Model> {
    let (joint, sign, trailing_zeros, base, escape, listed) = made;
    let fail = || Error::InvalidArgument("encoded parts: no model".to_owned());
    let left = fields.mantissa_bits.checked_sub(joint).ok_or_else(fail)?;
    let symbol_bits = fields.exponent_bits + joint + u32::from(sign == SIGN_FIRST);
    let raw_bits = left + u32::from(sign == SIGN_RAW);
    let symbols = if listed.is_empty() {
        Plane::constant(symbol_bits, base)
    } else {
        let entries = listed.into_iter();
        let entries = entries.map(|(index, frequency)| Entry { index, frequency });
        Plane::coded(FrequencyTable::new(
            symbol_bits,
            base,
            escape,
            entries.collect(),
        )?)
    };
    let mut planes = Vec::new();
    let sign_position = match sign {
        SIGN_RAW => 0,
        SIGN_FIRST => left,
        SIGN_POSITIVE | SIGN_NEGATIVE => {
            planes.push(Plane::constant(1, u64::from(sign == SIGN_NEGATIVE)));
            fields.element_bits - 1
        }
        _ => return Err(fail()),
    };
    planes.push(symbols);
    if raw_bits > 0 {
        planes.push(Plane::raw(raw_bits));
    }
    Model {
        element_bytes: fields.element_bits as usize / 8,
        phase: 0,
        sign_position,
        trailing_zeros,
        scaled,
        planes,
    }
    .validated()
}
