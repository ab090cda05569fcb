//! Putting a payload together from planes that are coded already.

use super::layout::{self, ChunkShape};
use crate::constants::{ALIGNMENT, STATES_BYTES};
use crate::entropy::rans::Encoder;
use crate::planes::escapes;

/// Streams from this length on stay in the room that they were encoded in; it is made anew for each tensor.
const APART_BYTES: usize = 1 << 15;

/// A payload in the making. Its memory is kept and not cleared between chunks.
///
/// A stream may lie apart, in the room that it was encoded in: a copy less, as whoever writes the payload
/// can take it from there.
///
/// Invariants: `len <= memory.len()`, `stream <= room.len()`, `before <= len` while a stream lies apart.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    memory: Vec<u8>,
    len: usize,
    room: Vec<u8>,
    /// Where in the room the stream begins, which ends with it; at its end there is none.
    stream: usize,
    /// Bytes of the memory that come before the stream.
    before: usize,
}

impl Payload {
    pub(crate) fn clear(&mut self) {
        self.len = 0;
        self.stream = self.room.len();
    }

    pub(crate) fn len(&self) -> usize {
        self.len + self.room.len() - self.stream
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What follows each other in the payload.
    pub(crate) fn parts(&self) -> [&[u8]; 3] {
        let stream = &self.room[self.stream..];
        let before = if stream.is_empty() { 0 } else { self.before };
        let (first, last) = self.memory[..self.len].split_at(before);
        [first, stream, last]
    }

    /// All of it, put together if that has not been done.
    pub(crate) fn bytes(&mut self) -> &[u8] {
        let stream = self.room.len() - self.stream;
        if stream > 0 {
            let end = self.len;
            self.extend_stale(stream);
            self.memory
                .copy_within(self.before..end, self.before + stream);
            let place = &mut self.memory[self.before..self.before + stream];
            place.copy_from_slice(&self.room[self.stream..]);
            self.stream = self.room.len();
        }
        &self.memory[..self.len]
    }

    /// Appends a stream, the end of `room` from `stream` on, by taking the room for an old one.
    fn append_apart(&mut self, room: &mut Vec<u8>, stream: usize) {
        debug_assert_eq!(
            self.stream,
            self.room.len(),
            "one stream lies apart at most"
        );
        std::mem::swap(&mut self.room, room);
        (self.stream, self.before) = (stream, self.len);
    }

    /// What lies in one piece: all of it, or without the stream that lies apart.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }

    /// Appends room for `len` bytes, which the caller fills: there are old bytes in it.
    pub(super) fn extend_stale(&mut self, len: usize) -> &mut [u8] {
        let begin = self.len;
        self.len += len;
        if self.memory.len() < self.len {
            self.memory.resize(self.len.next_power_of_two(), 0);
        }
        &mut self.memory[begin..self.len]
    }

    pub(crate) fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.extend_stale(bytes.len()).copy_from_slice(bytes);
    }

    /// Takes the last `len` bytes away.
    pub(super) fn shorten(&mut self, len: usize) {
        self.len -= len;
    }

    /// Appends zero bytes up to a multiple of [`ALIGNMENT`].
    pub(crate) fn pad(&mut self) {
        let padding = self.len().next_multiple_of(ALIGNMENT) - self.len();
        self.extend_stale(padding).fill(0);
    }
}

/// Appends head, zero counts, edge bytes and room for the states, whose position is returned.
pub(super) fn write_front(
    shape: ChunkShape<'_>,
    chunk: &[u8],
    zeros: &[u8],
    payload: &mut Payload,
) -> usize {
    let model = shape.model;
    let planes = model.coded_planes().count();
    payload.extend_stale(planes * layout::HEAD_BYTES);
    payload.extend_from_slice(zeros);
    let body = model.phase + shape.elements() * model.element_bytes;
    payload.extend_from_slice(&chunk[..model.phase.min(chunk.len())]);
    payload.extend_from_slice(&chunk[body.min(chunk.len())..]);
    payload.pad();
    let states = payload.len();
    payload.extend_stale(planes * STATES_BYTES);
    states
}

/// Fills in the zero counts, for which [`write_front`] has made room.
pub(super) fn write_zeros(shape: ChunkShape<'_>, zeros: &[u8], payload: &mut Payload) {
    let begin = shape.model.tables().count() * layout::HEAD_BYTES;
    payload.bytes_mut()[begin..begin + zeros.len()].copy_from_slice(zeros);
}

/// Appends the stream and the escapes of coded plane `index`; fills in its head, and its states among
/// those that begin at `states`.
pub(super) fn write_coded(
    index: usize,
    states: usize,
    encoder: &mut Encoder,
    escaped: &[u16],
    payload: &mut Payload,
) {
    let stream_len = encoder.stream().len();
    if index == 0 && stream_len >= APART_BYTES {
        payload.append_apart(&mut encoder.room, encoder.cursor);
    } else {
        payload.extend_from_slice(encoder.stream());
    }
    payload.pad();
    escapes::write(escaped, |len| payload.extend_stale(len));
    payload.pad();
    let payload = payload.bytes_mut();
    let head = index * layout::HEAD_BYTES;
    payload[head..head + 4].copy_from_slice(&(stream_len as u32).to_le_bytes());
    payload[head + 4..head + 8].copy_from_slice(&(escaped.len() as u32).to_le_bytes());
    let states = states + index * STATES_BYTES;
    payload[states..states + STATES_BYTES].copy_from_slice(&encoder.states());
}
