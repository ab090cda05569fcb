//! A chunk of records: the bytes of each class are a payload of their own.
//!
//! ```text
//! per class: [32 bits] payload length   per class: [8 bits] storage: 0 raw, 1 the model of the class
//! the bytes before the first whole record and after the last one       | zero padding to 16
//! per class: payload; raw: the bytes                                    | zero padding to 16
//! ```
//! Place in docs/format.md: "Records".

use std::cell::RefCell;

use super::payload::Payload;
use super::{
    DecodeJob, EncodeJob, ModelCoder, ModelEncoder, chunk_hash, decode_raw, keep_if_shorter,
};
use crate::constants::ALIGNMENT;
use crate::error::{Error, Result};
use crate::little_endian;
use crate::model::records::Records;
use crate::simd::Kernels;

const RAW: u8 = 0;
const MODEL: u8 = 1;

thread_local! {
    static SCRATCH: RefCell<(Vec<u8>, Payload)> = RefCell::default();
}

/// Encodes the chunk that begins at byte `start` of the tensor; leaves the payload empty if that gains
/// nothing.
pub(crate) fn encode_records(
    kernels: Kernels,
    records: &Records,
    coders: &[ModelEncoder<'_>],
    start: usize,
    job: &mut EncodeJob<'_>,
) {
    let EncodeJob { chunk, payload, .. } = job;
    let span = records.span(start, chunk.len());
    let (before, rest) = chunk.split_at(span.before);
    let (body, after) = rest.split_at(span.records * records.record_bytes());
    let classes = records.models.len();
    payload.clear();
    payload.extend_stale(5 * classes).fill(0);
    payload.extend_from_slice(before);
    payload.extend_from_slice(after);
    payload.pad();
    SCRATCH.with_borrow_mut(|(bytes, part)| {
        for (class, model) in records.models.iter().enumerate() {
            bytes.clear();
            records.gather(class, body, bytes);
            let mut inner = EncodeJob {
                chunk: bytes,
                payload: std::mem::take(part),
                ..EncodeJob::default()
            };
            inner.payload.clear();
            if let Some(model) = model {
                coders[*model].encode(std::slice::from_mut(&mut inner));
            }
            *part = inner.payload;
            let begin = payload.len();
            let storage = if part.is_empty() {
                payload.extend_from_slice(bytes);
                payload.pad();
                RAW
            } else {
                payload.extend_from_slice(part.bytes());
                MODEL
            };
            let len = (payload.len() - begin) as u32;
            let head = payload.bytes_mut();
            head[4 * class..4 * class + 4].copy_from_slice(&len.to_le_bytes());
            head[4 * classes + class] = storage;
        }
    });
    keep_if_shorter(chunk, payload);
    job.hash = chunk_hash(kernels, job.chunk);
}

/// The parts of a payload: edge bytes, and for each class its payload and whether it is a model's.
pub(crate) struct RecordsLayout<'p> {
    pub(crate) edges: &'p [u8],
    pub(crate) classes: Vec<(&'p [u8], Option<usize>)>,
}

/// Takes a payload apart.
///
/// # Errors
/// [`Error::Corrupt`] when it is not one of these records.
pub(crate) fn records_layout<'p>(
    records: &Records,
    start: usize,
    chunk_len: usize,
    payload: &'p [u8],
) -> Result<RecordsLayout<'p>> {
    let cut = || Error::corrupt("a chunk of records is too short for its parts");
    let span = records.span(start, chunk_len);
    let edge_bytes = chunk_len - span.records * records.record_bytes();
    let classes = records.models.len();
    let front = 5 * classes + edge_bytes;
    let (head, mut rest) = payload
        .split_at_checked(front.next_multiple_of(ALIGNMENT))
        .ok_or_else(cut)?;
    if head[front..].iter().any(|&byte| byte != 0) {
        return Err(Error::corrupt("padding inside a chunk is not zero"));
    }
    let mut parts = Vec::with_capacity(classes);
    for (class, model) in records.models.iter().enumerate() {
        let len = little_endian::number(&head[4 * class..4 * class + 4]) as usize;
        let (part, later) = rest.split_at_checked(len).ok_or_else(cut)?;
        rest = later;
        if !len.is_multiple_of(ALIGNMENT) {
            return Err(Error::corrupt("a class of bytes is not aligned"));
        }
        parts.push((
            part,
            match (head[4 * classes + class], *model) {
                (RAW, _) => None,
                (MODEL, Some(model)) => Some(model),
                _ => return Err(Error::corrupt("a class of bytes has no such storage")),
            },
        ));
    }
    if !rest.is_empty() {
        return Err(Error::corrupt(
            "a chunk of records is longer than its parts",
        ));
    }
    Ok(RecordsLayout {
        edges: &head[5 * classes..front],
        classes: parts,
    })
}

/// Decodes the chunk that begins at byte `start` of the tensor, without looking at its hash.
pub(crate) fn decode_records<'a, 'c: 'a>(
    records: &Records,
    coder: impl Fn(usize) -> &'a ModelCoder<'c>,
    start: usize,
    payload: &[u8],
    chunk: &mut [u8],
) -> Result<()> {
    let layout = records_layout(records, start, chunk.len(), payload)?;
    let span = records.span(start, chunk.len());
    let (before, rest) = chunk.split_at_mut(span.before);
    let (body, after) = rest.split_at_mut(span.records * records.record_bytes());
    before.copy_from_slice(&layout.edges[..span.before]);
    after.copy_from_slice(&layout.edges[span.before..]);
    SCRATCH.with_borrow_mut(|(bytes, _)| {
        for (class, (payload, model)) in layout.classes.into_iter().enumerate() {
            bytes.resize(span.records * records.class_bytes(class), 0);
            match model {
                None => decode_raw(payload, bytes)?,
                Some(model) => {
                    let job = DecodeJob {
                        payload,
                        readable: payload,
                        first: 0,
                        out: bytes,
                        hash: None,
                    };
                    let decoded = coder(model).decode(&mut [job], false);
                    decoded.map_err(|(_, error)| error)?;
                }
            }
            records.scatter(class, bytes, body);
        }
        Ok(())
    })
}
