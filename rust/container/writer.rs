//! Writing a tensor stream: chunks in order, with bounded memory, the prelude filled in at the end.
//!
//! Place in docs/format.md: "Tensor stream".

use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;

use super::index::{ChunkEntry, Storage, is_packed};
use super::prelude::{Body, Chunked, Delta, TensorType, prelude_len, write_prelude};
use crate::chunk::{
    DeltaCoder, EncodeJob, ModelEncoder, Payload, chunk_hash, constant_pattern, encode_records,
};
use crate::constants::{ALIGNMENT, UNIT_BYTES};
use crate::error::Result;
use crate::options::Threads;
use crate::parallel::{self, Ahead};
use crate::plan::Plan;
use crate::simd::Kernels;

/// What may wait to be written, in original bytes.
const AHEAD: Ahead = Ahead {
    per_thread: 2 * UNIT_BYTES,
    besides: 2 * UNIT_BYTES,
};

/// The element that `data` repeats, if it repeats one.
pub(crate) fn constant_element(data: &[u8], itemsize: usize) -> Option<&[u8]> {
    let element = data.get(..itemsize)?;
    // The last one first: padding may repeat an element for long.
    if !data.ends_with(element) {
        return None;
    }
    (data[itemsize..] == data[..data.len() - itemsize]).then_some(element)
}

/// A tensor about to be written.
pub(crate) struct StreamWriter<'a> {
    pub(crate) tensor: &'a TensorType,
    pub(crate) data: &'a [u8],
    /// What a delta is taken from, as long as `data`; empty otherwise.
    pub(crate) base: &'a [u8],
    pub(crate) plan: &'a Plan,
    pub(crate) threads: Threads,
    pub(crate) kernels: Kernels,
}

/// What chunks are encoded with.
struct Encoders<'a> {
    models: Vec<ModelEncoder<'a>>,
    /// The only model of a delta.
    delta: Option<DeltaCoder<'a>>,
}

/// Buffers that one tensor leaves for the next: fresh ones would cost page faults for every byte.
#[derive(Default)]
pub(crate) struct Spare(Vec<Unit>);

/// Chunks that are encoded together, and what comes of them.
#[derive(Default)]
struct Unit {
    entries: Vec<ChunkEntry>,
    payloads: Vec<Payload>,
}

impl<'a> StreamWriter<'a> {
    fn chunk_bytes(&self) -> usize {
        1 << self.plan.chunked.chunk_log2
    }

    fn encoders(&self) -> Encoders<'a> {
        let chunked = &self.plan.chunked;
        let several = self.data.len() > self.chunk_bytes();
        let encoder = |model| ModelEncoder::new(self.kernels, model, chunked.scale.as_ref());
        let delta = |delta: &'a Delta| DeltaCoder::new(self.kernels, &delta.model, several);
        Encoders {
            models: chunked.models.iter().map(encoder).collect(),
            delta: chunked.delta.as_ref().map(delta),
        }
    }

    /// Writes the stream at the current position of `out` and returns its length.
    pub(crate) fn write<W: Write + Seek>(
        &self,
        out: &mut W,
        spare: &mut Spare,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<u64> {
        let chunked = &self.plan.chunked;
        let body = Body::Chunked(chunked.clone());
        let coders = &self.encoders();
        let chunks = self.data.len().div_ceil(self.chunk_bytes());
        if chunks <= 1 {
            return self.write_single(out, spare, &body, coders, progress);
        }

        let begin = out.stream_position()?;
        let head = prelude_len(self.tensor, &body, chunks)?.next_multiple_of(ALIGNMENT);
        out.seek(SeekFrom::Start(begin + head as u64))?;
        let mut entries = Vec::with_capacity(chunks);
        let per_unit = (UNIT_BYTES / self.chunk_bytes()).max(1);
        let unit_chunks = |unit: usize| unit * per_unit..chunks.min((unit + 1) * per_unit);
        parallel::in_order(
            self.threads,
            AHEAD,
            &mut spare.0,
            (0..chunks.div_ceil(per_unit)).map(|number| Ok((UNIT_BYTES, number))),
            |number, unit: &mut Unit| {
                self.encode_unit(coders, unit_chunks(number), unit);
                Ok(number)
            },
            |number, unit| {
                for (entry, payload) in unit.entries.iter().zip(&unit.payloads) {
                    self.write_payload(entry, entries.len(), payload, out)?;
                    entries.push(*entry);
                }
                let done = unit_chunks(number).end * self.chunk_bytes();
                progress(self.data.len().min(done) as u64)
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
        spare: &mut Spare,
        body: &Body,
        coders: &Encoders<'_>,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<u64> {
        let mut unit = spare.0.pop().unwrap_or_default();
        unit.entries.clear();
        if !self.data.is_empty() {
            self.encode_unit(coders, 0..1, &mut unit);
        }
        let entries = &mut unit.entries;
        let packed = entries
            .first()
            .is_none_or(|entry| is_packed(1, entry.storage));
        if let Some(entry) = entries
            .first_mut()
            .filter(|entry| entry.storage == Storage::Raw)
        {
            entry.payload_len = self.data.len() as u32;
        }
        // A model that was not used after all need not be stored.
        let unused = Body::Chunked(Chunked {
            chunk_log2: self.plan.chunked.chunk_log2,
            models: Vec::new(),
            records: Vec::new(),
            scale: None,
            delta: None,
        });
        let mut stream = write_prelude(self.tensor, if packed { &unused } else { body }, entries);
        if !packed && self.plan.chunked.delta.is_none() {
            stream.resize(stream.len().next_multiple_of(ALIGNMENT), 0);
        }
        match entries.first().map(|entry| entry.storage) {
            None => {}
            Some(Storage::Raw) => stream.extend_from_slice(self.data),
            Some(_) => stream.extend_from_slice(unit.payloads[0].bytes()),
        }
        out.write_all(&stream)?;
        spare.0.push(unit);
        progress(self.data.len() as u64)?;
        Ok(stream.len() as u64)
    }

    fn chunk(&self, number: usize) -> &[u8] {
        let start = number * self.chunk_bytes();
        &self.data[start..self.data.len().min(start + self.chunk_bytes())]
    }

    /// Encodes chunks, neighbours with the same model together.
    fn encode_unit(&self, coders: &Encoders<'_>, chunks: Range<usize>, unit: &mut Unit) {
        unit.entries.clear();
        unit.payloads.resize_with(chunks.len(), Payload::default);
        let mut jobs: Vec<EncodeJob<'_>> = Vec::with_capacity(chunks.len());
        let mut model_of_jobs = None;
        let at_once = self.kernels.encode_interleave();
        for number in chunks.clone() {
            let chunk = self.chunk(number);
            let payload = std::mem::take(&mut unit.payloads[number - chunks.start]);
            let constant = constant_pattern(chunk);
            let model = self.plan.model_of(number).filter(|_| constant.is_none());
            let fits = |job: &EncodeJob<'_>| job.chunk.len() == chunk.len();
            if jobs.len() == at_once || model != model_of_jobs || !jobs.last().is_none_or(fits) {
                self.encode_jobs(coders, model_of_jobs, &mut jobs, unit);
            }
            model_of_jobs = model;
            let start = (number + at_once) * self.chunk_bytes();
            let next = self.data.get(start..).unwrap_or_default();
            let mut job = EncodeJob {
                chunk,
                next: &next[..next.len().min(chunk.len())],
                first: model.map_or(0, |model| {
                    number * self.chunk_bytes() / self.plan.chunked.element_bytes(model)
                }),
                payload,
                hash: 0,
            };
            job.payload.clear();
            if let Some(pattern) = constant {
                job.payload.extend_from_slice(&pattern);
            }
            jobs.push(job);
        }
        self.encode_jobs(coders, model_of_jobs, &mut jobs, unit);
    }

    /// Encodes chunks of one model, or of none: constant or raw.
    fn encode_jobs(
        &self,
        coders: &Encoders<'_>,
        model: Option<usize>,
        jobs: &mut Vec<EncodeJob<'_>>,
        unit: &mut Unit,
    ) {
        match model {
            Some(model) if self.plan.chunked.records(model).is_some() => {
                for job in &mut *jobs {
                    if let Some(records) = self.plan.chunked.records(model) {
                        // What is counted are bytes.
                        let start = job.first;
                        encode_records(self.kernels, records, &coders.models, start, job);
                    }
                }
            }
            Some(model) if coders.delta.is_none() => coders.models[model].encode(jobs),
            _ => {
                for job in &mut *jobs {
                    job.hash = chunk_hash(self.kernels, job.chunk);
                    if let (Some(delta), Some(model)) = (&coders.delta, model) {
                        let start = job.first * self.plan.chunked.element_bytes(model);
                        let base = &self.base[start..start + job.chunk.len()];
                        delta.encode(job.chunk, base, &mut job.payload);
                    }
                }
            }
        }
        for job in jobs.drain(..) {
            let (storage, payload_len) = match model {
                _ if job.payload.is_empty() => {
                    (Storage::Raw, job.chunk.len().next_multiple_of(ALIGNMENT))
                }
                Some(model) => (Storage::Model(model), job.payload.len()),
                None => (Storage::Constant, job.payload.len()),
            };
            let slot = unit.entries.len();
            unit.entries.push(ChunkEntry {
                payload_len: payload_len as u32,
                storage,
                hash: job.hash,
            });
            unit.payloads[slot] = job.payload;
        }
    }

    fn write_payload<W: Write>(
        &self,
        entry: &ChunkEntry,
        number: usize,
        payload: &Payload,
        out: &mut W,
    ) -> Result<()> {
        if entry.storage == Storage::Raw {
            let chunk = self.chunk(number);
            out.write_all(chunk)?;
            out.write_all(&[0; ALIGNMENT][..entry.payload_len as usize - chunk.len()])?;
        } else {
            for part in payload.parts() {
                out.write_all(part)?;
            }
        }
        Ok(())
    }
}

/// Encodes single chunks of a tensor, to see what they would take.
pub(super) struct ChunkSizer<'a> {
    coders: Encoders<'a>,
    writer: StreamWriter<'a>,
    unit: Unit,
}

impl<'a> ChunkSizer<'a> {
    pub(super) fn new(writer: StreamWriter<'a>) -> Self {
        Self {
            coders: writer.encoders(),
            writer,
            unit: Unit::default(),
        }
    }

    /// How a chunk would be stored, and its payload unless that is the chunk itself.
    pub(super) fn encode(&mut self, chunk: usize) -> (Storage, &[u8]) {
        let Self { writer, unit, .. } = self;
        writer.encode_unit(&self.coders, chunk..chunk + 1, unit);
        (unit.entries[0].storage, unit.payloads[0].bytes())
    }
}
