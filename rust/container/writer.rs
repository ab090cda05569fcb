//! Writing a tensor stream: chunks in order, with bounded memory, the prelude filled in at the end.
//!
//! Place in docs/format.md: "Tensor stream".

use std::io::{Seek, SeekFrom, Write};

use super::index::{ChunkEntry, Storage, is_packed};
use super::prelude::{Body, Chunked, TensorType, prelude_len, write_prelude};
use crate::chunk::{ModelEncoder, constant_pattern};
use crate::constants::ALIGNMENT;
use crate::error::Result;
use crate::options::Threads;
use crate::parallel::{self, Ahead};
use crate::plan::Plan;

/// Original bytes that a thread encodes in one go.
const GROUP_BYTES: usize = 512 << 10;
/// What may wait to be written, in original bytes.
const AHEAD: Ahead = Ahead {
    per_thread: 2 << 20,
    besides: 2 << 20,
};

/// The element that `data` repeats, if it repeats one.
pub(crate) fn constant_element(data: &[u8], itemsize: usize) -> Option<&[u8]> {
    let element = data.get(..itemsize)?;
    (data[itemsize..] == data[..data.len() - itemsize]).then_some(element)
}

/// A tensor about to be written.
pub(crate) struct StreamWriter<'a> {
    pub(crate) tensor: &'a TensorType,
    pub(crate) data: &'a [u8],
    pub(crate) plan: &'a Plan,
    pub(crate) threads: Threads,
}

impl StreamWriter<'_> {
    fn chunk_bytes(&self) -> usize {
        1 << self.plan.chunked.chunk_log2
    }

    /// Writes the stream at the current position of `out` and returns its length.
    pub(crate) fn write<W: Write + Seek>(
        &self,
        out: &mut W,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<u64> {
        let chunked = &self.plan.chunked;
        let body = Body::Chunked(chunked.clone());
        let coders: Vec<ModelEncoder<'_>> = chunked
            .models
            .iter()
            .map(|model| ModelEncoder::new(model, chunked.scale.as_ref()))
            .collect();
        let chunks = self.data.len().div_ceil(self.chunk_bytes());
        if chunks <= 1 {
            return self.write_single(out, &body, &coders, progress);
        }

        let begin = out.stream_position()?;
        let head = prelude_len(self.tensor, &body, chunks)?.next_multiple_of(ALIGNMENT);
        out.seek(SeekFrom::Start(begin + head as u64))?;
        let mut entries = Vec::with_capacity(chunks);
        let group = (GROUP_BYTES / self.chunk_bytes()).max(1);
        let groups = (0..chunks).step_by(group);
        parallel::in_order(
            self.threads,
            AHEAD,
            groups.map(|first| Ok((group * self.chunk_bytes(), first))),
            |first, (): &mut ()| {
                let numbers = first..chunks.min(first + group);
                let encode = |number| self.encode_chunk(&coders, number, true);
                Ok(numbers.map(encode).collect::<Vec<_>>())
            },
            |encoded, ()| {
                for (entry, payload) in encoded {
                    out.write_all(&payload)?;
                    entries.push(entry);
                }
                progress(self.data.len().min(entries.len() * self.chunk_bytes()) as u64)
            },
        )?;
        let end = out.stream_position()?;
        let mut prelude = write_prelude(self.tensor, &body, &entries);
        prelude.resize(head, 0);
        out.seek(SeekFrom::Start(begin))?;
        out.write_all(&prelude)?;
        out.seek(SeekFrom::Start(end))?;
        Ok(end - begin)
    }

    /// Streams of at most one chunk need no second visit to their prelude.
    fn write_single<W: Write>(
        &self,
        out: &mut W,
        body: &Body,
        coders: &[ModelEncoder<'_>],
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<u64> {
        let mut entries = Vec::new();
        let mut payload = Vec::new();
        if !self.data.is_empty() {
            let (entry, bytes) = self.encode_chunk(coders, 0, false);
            entries.push(entry);
            payload = bytes;
        }
        let packed = entries
            .first()
            .is_none_or(|entry| is_packed(1, entry.storage));
        // A model that was not used after all need not be stored.
        let unused = Body::Chunked(Chunked {
            chunk_log2: self.plan.chunked.chunk_log2,
            models: Vec::new(),
            scale: None,
        });
        let mut stream = write_prelude(self.tensor, if packed { &unused } else { body }, &entries);
        if !packed {
            stream.resize(stream.len().next_multiple_of(ALIGNMENT), 0);
        }
        stream.append(&mut payload);
        out.write_all(&stream)?;
        progress(self.data.len() as u64)?;
        Ok(stream.len() as u64)
    }

    /// Encodes one chunk; `align` pads raw payloads.
    fn encode_chunk(
        &self,
        coders: &[ModelEncoder<'_>],
        number: usize,
        align: bool,
    ) -> (ChunkEntry, Vec<u8>) {
        let start = number * self.chunk_bytes();
        let chunk = &self.data[start..self.data.len().min(start + self.chunk_bytes())];
        let mut payload = Vec::new();
        let mut storage = Storage::Raw;
        if let Some(pattern) = constant_pattern(chunk) {
            storage = Storage::Constant;
            payload.extend_from_slice(&pattern);
        } else if let Some(model) = self.plan.model_of(number) {
            let first = start / self.plan.chunked.models[model].element_bytes;
            if coders[model].encode(chunk, first, &mut payload) {
                storage = Storage::Model(model);
            }
        }
        if storage == Storage::Raw {
            payload.extend_from_slice(chunk);
            if align {
                payload.resize(payload.len().next_multiple_of(ALIGNMENT), 0);
            }
        }
        (ChunkEntry::new(chunk, storage, payload.len()), payload)
    }
}
