//! A chunk next to the same chunk of the base: classes from the base, then symbols and raw bits.
//!
//! ```text
//! [128 bytes] states
//! [32 bits] stream bytes, [32 bits] escapes
//! per low byte that all classes have raw: one byte per element
//! the other raw bits of each element, one after the other | zero bits to a byte
//! stream; escapes, byte plane by byte plane | zero padding to 16 if the stream has several chunks
//! ```
//! How many raw bits an element has follows from the base alone, so that a decoder knows where each one's
//! begin before it has decoded a symbol. Place in docs/format.md: "Delta chunk".

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use super::keep_if_shorter;
use super::payload::Payload;
use crate::constants::{ALIGNMENT, ESCAPE, STATES_BYTES};
use crate::entropy::rans::{ContextSpec, Decoder, Encoder, EscapedValues};
use crate::error::{Error, Result};
use crate::little_endian;
use crate::model::delta::DeltaModel;
use crate::planes::delta::{BLOCK, Block, DeltaCut};
use crate::planes::words::{Word, with_word};
use crate::simd::{Kernels, Task};

/// Bytes of the two counts behind the states.
const HEAD_BYTES: usize = 8;
/// Fields that are joined before they are appended, if they all fit into one push.
const FIELDS: usize = 4;
/// The most bits that are appended at a time.
const MOST_PUSHED_BITS: u32 = 56;
/// Widest field that is in 32 bits from the byte on that it begins in.
const WINDOW_BITS: u32 = 25;
/// Bytes that are loaded or stored for the raw bits of an element.
const WORD_BYTES: usize = 8;

/// A delta model with its tables built.
#[derive(Debug)]
pub(crate) struct DeltaCoder<'a> {
    kernels: Kernels,
    aligned: bool,
    model: &'a DeltaModel,
    cut: DeltaCut,
    /// The most raw bits of a class.
    most_raw_bits: u32,
    spec: ContextSpec,
    /// Whether the table of a class has an escape.
    escapes: Vec<bool>,
}

/// Parts of the chunk at hand. Kept between chunks: fresh memory is slower than the coder.
#[derive(Debug, Default)]
struct Scratch {
    classes: Vec<u8>,
    raw_bits: Vec<u8>,
    indices: Vec<u8>,
    escapes: Vec<u64>,
    low: Vec<Vec<u8>>,
    bits: BitWriter,
    encoder: Encoder,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<'a> DeltaCoder<'a> {
    /// `aligned`: payloads are padded to a multiple of 16, as they are in streams of several chunks.
    pub(crate) fn new(kernels: Kernels, model: &'a DeltaModel, aligned: bool) -> Self {
        let tables = model
            .classes
            .iter()
            .map(|class| class.table.slot_order().into_iter());
        Self {
            kernels,
            aligned,
            model,
            cut: DeltaCut::new(model),
            most_raw_bits: model
                .classes
                .iter()
                .map(|class| class.raw_bits)
                .max()
                .unwrap_or(0),
            spec: ContextSpec::new(tables),
            escapes: model
                .classes
                .iter()
                .map(|class| class.table.has_escape())
                .collect(),
        }
    }

    /// Encodes a chunk; leaves the payload empty if the model cannot represent it or gains nothing.
    ///
    /// `base` is as long as `chunk`.
    pub(crate) fn encode(&self, chunk: &[u8], base: &[u8], payload: &mut Payload) {
        payload.clear();
        SCRATCH.with_borrow_mut(|scratch| {
            let possible = with_word!(self.model.element_bytes, W => {
                self.kernels.run(Split::<W> { coder: self, chunk, base, scratch, word: PhantomData })
            });
            if possible {
                let Scratch { classes, indices, encoder, .. } = &mut *scratch;
                encoder.encode_contexts(self.kernels, &self.spec, classes, indices);
                self.write_payload(scratch, payload);
                keep_if_shorter(chunk, payload);
            }
        });
    }

    fn write_payload(&self, scratch: &Scratch, payload: &mut Payload) {
        let stream = scratch.encoder.stream();
        payload.extend_from_slice(&scratch.encoder.states());
        payload.extend_from_slice(&(stream.len() as u32).to_le_bytes());
        payload.extend_from_slice(&(scratch.escapes.len() as u32).to_le_bytes());
        for plane in &scratch.low[..self.model.low_bytes()] {
            payload.extend_from_slice(plane);
        }
        payload.extend_from_slice(scratch.bits.bytes());
        payload.extend_from_slice(stream);
        for byte in 0..self.model.escape_bytes() {
            let part = payload.extend_stale(scratch.escapes.len());
            for (to, escape) in part.iter_mut().zip(&scratch.escapes) {
                *to = escape.to_le_bytes()[byte];
            }
        }
        if self.aligned {
            payload.pad();
        }
    }

    /// Decodes a chunk without looking at its hash; `base` is as long as `out`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the payload is not one this model can have written.
    pub(crate) fn decode(&self, payload: &[u8], base: &[u8], out: &mut [u8]) -> Result<()> {
        SCRATCH.with_borrow_mut(|scratch| {
            with_word!(self.model.element_bytes, W => {
                let word = PhantomData;
                self.kernels.run(Join::<W> { coder: self, payload, base, out, scratch, word })
            })
        })
    }
}

/// Takes elements apart; `false` when a symbol cannot be represented.
struct Split<'a, W> {
    coder: &'a DeltaCoder<'a>,
    chunk: &'a [u8],
    base: &'a [u8],
    scratch: &'a mut Scratch,
    word: PhantomData<W>,
}

impl<W: Word> Task for Split<'_, W> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let Self {
            coder,
            chunk,
            base,
            scratch,
            ..
        } = self;
        let (cut, low_bytes) = (&coder.cut, coder.model.low_bytes());
        let (new, old) = (W::split(chunk), W::split(base));
        scratch.clear(low_bytes, new.len());
        let Scratch {
            classes,
            raw_bits,
            indices,
            escapes,
            low,
            bits,
            ..
        } = scratch;
        let mut block = Block::<W>::default();
        let starts = (0..).step_by(BLOCK);
        for (start, (new, old)) in starts.zip(new.chunks(BLOCK).zip(old.chunks(BLOCK))) {
            let range = start..start + new.len();
            let classes = &mut classes[range.clone()];
            let raw_bits = &mut raw_bits[range.clone()];
            let indices = &mut indices[range];
            cut.classify::<W>(coder.kernels, old, classes, raw_bits);
            let lost = cut.split(
                coder.kernels,
                (new, old),
                (classes, raw_bits),
                &mut block,
                indices,
            );
            if lost != W::default() {
                return false;
            }
            let escaped = for_each_escape(indices, |i| {
                if !coder.escapes[usize::from(classes[i])] {
                    return Err(());
                }
                escapes.push(block.symbols[i].widen());
                Ok(())
            });
            if escaped.is_err() {
                return false;
            }
            for (byte, plane) in low[..low_bytes].iter_mut().enumerate() {
                let raw = block.raw[..new.len()].iter();
                plane.extend(raw.map(|&raw| (raw >> (8 * byte as u32)).low_byte()));
            }
            let low_bits = 8 * low_bytes as u32;
            let most = coder.most_raw_bits - low_bits;
            bits.push_fields((&block.raw[..new.len()], raw_bits), low_bits, most);
        }
        bits.finish();
        true
    }
}

impl Scratch {
    fn clear(&mut self, low_bytes: usize, count: usize) {
        // What there was is written over.
        self.classes.resize(count, 0);
        self.raw_bits.resize(count, 0);
        self.indices.resize(count, 0);
        self.escapes.clear();
        self.bits.clear();
        if self.low.len() < low_bytes {
            self.low.resize_with(low_bytes, Vec::new);
        }
        self.low.iter_mut().for_each(Vec::clear);
    }
}

/// Calls `visit` with the place of every escape among indices below 64, until there is an error.
#[inline(always)]
fn for_each_escape<E>(
    indices: &[u8],
    mut visit: impl FnMut(usize) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    let (words, rest) = indices.as_chunks::<8>();
    for (number, &word) in words.iter().enumerate() {
        // The top bit of a byte stays clear where it is the escape; none carries into the next one.
        let others = (u64::from_le_bytes(word) ^ (ONES * u64::from(ESCAPE))) + ONES * 0x7f;
        let mut found = !others & (ONES << 7);
        while found != 0 {
            visit(8 * number + found.trailing_zeros() as usize / 8)?;
            found &= found - 1;
        }
    }
    let at = 8 * words.len();
    (at..)
        .zip(rest)
        .filter(|(_, index)| **index == ESCAPE)
        .try_for_each(|(i, _)| visit(i))
}

/// A little-endian bit string being written.
#[derive(Debug, Default)]
struct BitWriter {
    /// Longer than the string by a store.
    room: Vec<u8>,
    /// Whole bytes of the string.
    len: usize,
    /// Bits that do not fill a byte yet.
    waiting: u64,
    count: u32,
}

impl BitWriter {
    fn clear(&mut self) {
        (self.len, self.waiting, self.count) = (0, 0, 0);
    }

    fn bytes(&self) -> &[u8] {
        &self.room[..self.len]
    }

    /// Appends at most [`MOST_PUSHED_BITS`]; those above are zero.
    #[inline(always)]
    fn push(&mut self, bits: u64, count: u32) {
        self.waiting |= bits << self.count;
        self.count += count;
        if self.room.len() < self.len + WORD_BYTES {
            self.room.resize((2 * self.room.len()).max(1 << 12), 0);
        }
        let whole = self.count / 8;
        self.room[self.len..self.len + WORD_BYTES].copy_from_slice(&self.waiting.to_le_bytes());
        self.len += whole as usize;
        self.waiting >>= 8 * whole;
        self.count %= 8;
    }

    /// Appends fields without their low bits; the widest has `most` bits then.
    #[inline(always)]
    fn push_fields<W: Word>(&mut self, (fields, widths): (&[W], &[u8]), low_bits: u32, most: u32) {
        let part =
            |(&field, &width): (&W, &u8)| (field.widen() >> low_bits, u32::from(width) - low_bits);
        let mut done = 0;
        if FIELDS as u32 * most <= MOST_PUSHED_BITS {
            // Several to a push, as each push waits for the one before.
            let (fields, widths) = (
                fields.as_chunks::<FIELDS>().0,
                widths.as_chunks::<FIELDS>().0,
            );
            let (mut words, mut counts) = ([0; BLOCK / FIELDS], [0; BLOCK / FIELDS]);
            let joined = words.iter_mut().zip(&mut counts).zip(fields).zip(widths);
            for (((word, count), fields), widths) in joined {
                for (bits, width) in fields.iter().zip(widths).map(part) {
                    *word |= bits << *count;
                    *count += width;
                }
            }
            for (&word, &count) in words.iter().zip(&counts).take(fields.len()) {
                self.push(word, count);
            }
            done = fields.len() * FIELDS;
        }
        for (bits, count) in fields[done..].iter().zip(&widths[done..]).map(part) {
            self.push(bits, count);
        }
    }

    fn finish(&mut self) {
        // The last push has stored them.
        self.len += usize::from(self.count > 0);
    }
}

/// Puts elements together, block by block.
struct Join<'a, W> {
    coder: &'a DeltaCoder<'a>,
    payload: &'a [u8],
    base: &'a [u8],
    out: &'a mut [u8],
    scratch: &'a mut Scratch,
    word: PhantomData<W>,
}

impl<W: Word> Task for Join<'_, W> {
    type Output = Result<()>;

    #[inline(always)]
    fn run(self) -> Result<()> {
        let Self {
            coder,
            payload,
            base,
            out,
            scratch,
            ..
        } = self;
        let (cut, low_bytes) = (&coder.cut, coder.model.low_bytes());
        let (base, out) = (W::split(base), W::split_mut(out));
        let count = out.len();
        let Scratch {
            classes, raw_bits, ..
        } = scratch;
        // What there was is written over.
        classes.resize(count, 0);
        raw_bits.resize(count, 0);
        let mut total = 0;
        for (base, (classes, raw_bits)) in base
            .chunks(BLOCK)
            .zip(classes.chunks_mut(BLOCK).zip(raw_bits.chunks_mut(BLOCK)))
        {
            cut.classify::<W>(coder.kernels, base, classes, raw_bits);
            // A block has few enough bits for 32-bit sums.
            total += raw_bits.iter().map(|&bits| u32::from(bits)).sum::<u32>() as usize;
        }
        let layout = Layout::new(payload, count, coder, total - 8 * low_bytes * count)?;
        let none = EscapedValues::none();
        let states = payload[layout.states.clone()].try_into();
        let states = states.map_err(|_| Error::corrupt("the coder states are cut off"))?;
        let mut decoder = Decoder::new(states, (&payload[layout.stream.clone()], 0), &none)?;
        let mut escapes = Escapes {
            planes: &payload[layout.escapes.clone()],
            count: layout.escape_count,
            used: 0,
        };
        let mut bits = BitReader {
            bytes: &payload[layout.bits.start..],
            position: 0,
        };
        let low = &payload[layout.low.clone()];
        let mut block = Block::<W>::default();
        let mut indices = [0; BLOCK];
        for start in (0..count).step_by(BLOCK) {
            let range = start..count.min(start + BLOCK);
            let (base, out) = (&base[range.clone()], &mut out[range.clone()]);
            let (classes, raw_bits) = (&classes[range.clone()], &raw_bits[range.clone()]);
            let indices = &mut indices[..range.len()];
            decoder.fill_contexts(coder.kernels, &coder.spec, classes, indices)?;
            let widths = (raw_bits, 8 * low_bytes as u32);
            bits.fill(coder.kernels, widths, coder.most_raw_bits, &mut block.raw);
            for byte in 0..low_bytes {
                let plane = &low[byte * count..][range.clone()];
                for (raw, &value) in block.raw.iter_mut().zip(plane) {
                    *raw = *raw | W::truncate(u64::from(value)) << (8 * byte as u32);
                }
            }
            cut.join(
                coder.kernels,
                base,
                (classes, raw_bits, indices),
                &mut block,
                out,
            );
            for_each_escape(indices, |i| {
                let symbol = escapes.next();
                if !cut.is_in_range(raw_bits[i], symbol) {
                    return Err(Error::corrupt("an escaped symbol is out of range"));
                }
                out[i] = cut.join_one(&block, i, raw_bits[i], symbol);
                Ok(())
            })?;
        }
        if escapes.used != escapes.count {
            return Err(Error::corrupt("too few or too many escapes"));
        }
        decoder.finish()
    }
}

/// A little-endian bit string being read, whose length has been checked.
struct BitReader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl BitReader<'_> {
    /// Reads the raw bits of a block's elements above the `low_bits` that lie elsewhere.
    #[inline(always)]
    fn fill<W: Word>(
        &mut self,
        kernels: Kernels,
        (raw_bits, low_bits): (&[u8], u32),
        most: u32,
        raw: &mut [W; BLOCK],
    ) {
        let mut done = 0;
        if most - low_bits <= WINDOW_BITS {
            (done, self.position) =
                kernels.unpack_fields(self.bytes, self.position, (raw_bits, low_bits), raw);
        }
        let (raw_bits, raw) = (&raw_bits[done..], &mut raw[done..]);
        let mut position = self.position;
        for (raw, &count) in raw.iter_mut().zip(raw_bits) {
            let count = u32::from(count) - low_bits;
            let rest = self.bytes.get(position / 8..).unwrap_or_default();
            // There is always something behind the string; only short chunks end within a word of it.
            let word = rest
                .first_chunk()
                .map_or_else(|| load_short(rest), |&b| u64::from_le_bytes(b));
            let bits = word >> (position % 8) & !(u64::MAX << count);
            *raw = W::truncate(bits << low_bits);
            position += count as usize;
        }
        self.position = position;
    }
}

/// Fewer bytes than a word has.
#[cold]
fn load_short(bytes: &[u8]) -> u64 {
    little_endian::number(bytes)
}

/// Escaped symbols, byte plane by byte plane.
struct Escapes<'a> {
    planes: &'a [u8],
    count: usize,
    used: usize,
}

impl Escapes<'_> {
    /// The next one; 0 past the end, which the number used will show.
    fn next(&mut self) -> u64 {
        let number = self.used;
        self.used += 1;
        if number >= self.count {
            return 0;
        }
        let bytes = self
            .planes
            .chunks_exact(self.count)
            .map(|plane| plane[number]);
        // The parts are byte planes: the bytes of a symbol do not lie together.
        bytes
            .rev()
            .fold(0, |symbol, byte| symbol << 8 | u64::from(byte))
    }
}

/// Where the parts of a payload lie; all ranges are inside it.
struct Layout {
    states: Range<usize>,
    low: Range<usize>,
    bits: Range<usize>,
    stream: Range<usize>,
    escapes: Range<usize>,
    escape_count: usize,
}

impl Layout {
    fn new(payload: &[u8], count: usize, coder: &DeltaCoder<'_>, bits: usize) -> Result<Self> {
        let model = coder.model;
        let number = |at: usize| {
            let bytes = payload
                .get(STATES_BYTES + at..STATES_BYTES + at + 4)
                .unwrap_or_default();
            little_endian::number(bytes) as usize
        };
        let (stream_len, escape_count) = (number(0), number(4));
        let mut position = 0_usize;
        let mut take = |len: Option<usize>| {
            let end = len
                .and_then(|len| position.checked_add(len))
                .filter(|&end| end <= payload.len())
                .ok_or_else(|| Error::corrupt("a chunk is too short for its parts"))?;
            Ok::<_, Error>(std::mem::replace(&mut position, end)..end)
        };
        let states = take(Some(STATES_BYTES))?;
        take(Some(HEAD_BYTES))?;
        let layout = Self {
            states,
            low: take(count.checked_mul(model.low_bytes()))?,
            bits: take(Some(bits.div_ceil(8)))?,
            stream: take(Some(stream_len))?,
            escapes: take(escape_count.checked_mul(model.escape_bytes()))?,
            escape_count,
        };
        let is_zero = |range: Range<usize>| payload[range].iter().all(|&byte| byte == 0);
        let last = payload[layout.bits.clone()].last().copied().unwrap_or(0);
        let tail_is_zero = bits.is_multiple_of(8) || last >> (bits % 8) == 0;
        let alignment = if coder.aligned { ALIGNMENT } else { 1 };
        if payload.len() != position.next_multiple_of(alignment) {
            return Err(Error::corrupt("a chunk is longer than its parts"));
        }
        if !(is_zero(position..payload.len()) && tail_is_zero) {
            return Err(Error::corrupt("padding inside a chunk is not zero"));
        }
        Ok(layout)
    }
}
