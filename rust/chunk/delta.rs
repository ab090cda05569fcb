//! A chunk next to the same chunk of the base: classes from the base, then symbols and raw bits.
//!
//! ```text
//! [32 bits] stream bytes, [32 bits] escapes | zero padding to 16
//! [128 bytes] states
//! per low byte that all classes have raw: one byte per element
//! the other raw bits of each element, one after the other | zero bits to a byte
//! stream; escapes, byte plane by byte plane | zero padding to 16
//! ```
//! How many raw bits an element has follows from the base alone, so that a decoder knows where each one's
//! begin before it has decoded a symbol. Place in docs/format.md: "Delta chunk".

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use super::keep_if_shorter;
use super::payload::Payload;
use crate::constants::{ALIGNMENT, ESCAPE, STATES_BYTES, SUB_BLOCK};
use crate::entropy::rans::{ContextSpec, Decoder, Encoder, EscapedValues};
use crate::error::{Error, Result};
use crate::model::delta::DeltaModel;
use crate::planes::delta::DeltaCut;
use crate::planes::words::{Word, low_mask, with_word};
use crate::simd::{Kernels, Task};

/// Bytes in front of the states.
const HEAD_BYTES: usize = ALIGNMENT;
/// Bytes that are loaded for the raw bits of an element.
const LOAD_BYTES: usize = 8;

/// A delta model with its tables built.
#[derive(Debug)]
pub(crate) struct DeltaCoder<'a> {
    kernels: Kernels,
    model: &'a DeltaModel,
    cut: DeltaCut,
    spec: ContextSpec,
}

/// Parts of the chunk at hand. Kept between chunks: fresh memory is slower than the coder.
#[derive(Debug, Default)]
struct Scratch {
    classes: Vec<u8>,
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
    pub(crate) fn new(kernels: Kernels, model: &'a DeltaModel) -> Self {
        let tables = model
            .classes
            .iter()
            .map(|class| class.table.slot_order().into_iter());
        Self {
            kernels,
            model,
            cut: DeltaCut::new(model),
            spec: ContextSpec::new(tables),
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
                encoder.encode_contexts(&self.spec, classes, indices);
                self.write_payload(scratch, payload);
                keep_if_shorter(chunk, payload);
            }
        });
    }

    fn write_payload(&self, scratch: &Scratch, payload: &mut Payload) {
        let stream = scratch.encoder.stream();
        payload.extend_from_slice(&(stream.len() as u32).to_le_bytes());
        payload.extend_from_slice(&(scratch.escapes.len() as u32).to_le_bytes());
        payload.pad();
        payload.extend_from_slice(&scratch.encoder.states());
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
        payload.pad();
    }

    /// Decodes a chunk without looking at its hash; `base` is as long as `out`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the payload is not one this model can have written.
    pub(crate) fn decode(&self, payload: &[u8], base: &[u8], out: &mut [u8]) -> Result<()> {
        SCRATCH.with_borrow_mut(|scratch| {
            with_word!(self.model.element_bytes, W => {
                let classes = &mut scratch.classes;
                let word = PhantomData;
                self.kernels.run(Join::<W> { coder: self, payload, base, out, classes, word })
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
        let (model, cut) = (coder.model, &coder.cut);
        let (dropped, low_bytes) = (model.dropped_bits, model.low_bytes());
        scratch.clear(low_bytes);
        let mut bits_lost = 0;
        for (&new, &old) in W::split(chunk).iter().zip(W::split(base)) {
            let [new, old] = [new, old].map(|bytes| W::from_bytes(bytes).widen());
            bits_lost |= new & low_mask(dropped);
            let old = old >> dropped;
            let class = cut.class(old);
            let (symbol, raw) = cut.split(class, new >> dropped, old);
            let index = cut.index(class, symbol).unwrap_or_else(|| {
                scratch.escapes.push(symbol);
                // Seen below if the class has no escape.
                bits_lost |= u64::from(!cut.has_escape(class));
                ESCAPE
            });
            scratch.classes.push(class);
            scratch.indices.push(index);
            for (byte, plane) in scratch.low[..low_bytes].iter_mut().enumerate() {
                plane.push((raw >> (8 * byte)) as u8);
            }
            let above = cut.raw_bits(class) - 8 * low_bytes as u32;
            scratch.bits.push(raw >> (8 * low_bytes), above);
        }
        scratch.bits.finish();
        bits_lost == 0
    }
}

impl Scratch {
    fn clear(&mut self, low_bytes: usize) {
        self.classes.clear();
        self.indices.clear();
        self.escapes.clear();
        self.bits.clear();
        if self.low.len() < low_bytes {
            self.low.resize_with(low_bytes, Vec::new);
        }
        self.low.iter_mut().for_each(Vec::clear);
    }
}

/// A little-endian bit string being written.
#[derive(Debug, Default)]
struct BitWriter {
    bytes: Vec<u8>,
    /// Bits that do not fill a byte yet.
    waiting: u64,
    count: u32,
}

impl BitWriter {
    fn clear(&mut self) {
        self.bytes.clear();
        (self.waiting, self.count) = (0, 0);
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends at most 56 bits; those above are zero.
    #[inline(always)]
    fn push(&mut self, bits: u64, count: u32) {
        self.waiting |= bits << self.count;
        self.count += count;
        let whole = self.count / 8;
        if whole > 0 {
            self.bytes
                .extend_from_slice(&self.waiting.to_le_bytes()[..whole as usize]);
            self.waiting >>= 8 * whole;
            self.count %= 8;
        }
    }

    fn finish(&mut self) {
        if self.count > 0 {
            self.bytes.push(self.waiting as u8);
        }
    }
}

/// Puts elements together, sub-block by sub-block.
struct Join<'a, W> {
    coder: &'a DeltaCoder<'a>,
    payload: &'a [u8],
    base: &'a [u8],
    out: &'a mut [u8],
    classes: &'a mut Vec<u8>,
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
            classes,
            ..
        } = self;
        let (model, cut) = (coder.model, &coder.cut);
        let (dropped, low_bytes) = (model.dropped_bits, model.low_bytes());
        let count = out.len() / W::BYTES;
        // What there was is written over.
        classes.resize(count, 0);
        let mut bits = 0;
        for (class, &old) in classes.iter_mut().zip(W::split(base)) {
            *class = cut.class(W::from_bytes(old).widen() >> dropped);
            bits += cut.raw_bits(*class) as usize - 8 * low_bytes;
        }
        let layout = Layout::new(payload, count, model, bits)?;
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
        let mut indices = [0; SUB_BLOCK];
        let elements = W::split_mut(out);
        let blocks = elements
            .chunks_mut(SUB_BLOCK)
            .zip(classes.chunks(SUB_BLOCK));
        for (block, ((elements, classes), base)) in
            blocks.zip(W::split(base).chunks(SUB_BLOCK)).enumerate()
        {
            let indices = &mut indices[..elements.len()];
            decoder.fill_contexts(&coder.spec, classes, indices)?;
            let low = Low {
                planes: &payload[layout.low.clone()],
                count,
                low_bytes,
                start: block * SUB_BLOCK,
            };
            let parts = (&*classes, &*indices, base, low);
            if cut.integers {
                join_block::<W, true>(coder, parts, &mut bits, &mut escapes, elements)?;
            } else {
                join_block::<W, false>(coder, parts, &mut bits, &mut escapes, elements)?;
            }
        }
        if escapes.used != escapes.count {
            return Err(Error::corrupt("too few or too many escapes"));
        }
        decoder.finish()
    }
}

/// Bytes of the raw bits that every class has.
#[derive(Clone, Copy)]
struct Low<'a> {
    planes: &'a [u8],
    /// Elements of the chunk.
    count: usize,
    low_bytes: usize,
    /// First element of the block.
    start: usize,
}

/// Classes, indices, base elements and low bytes of a block.
type Parts<'a, W> = (&'a [u8], &'a [u8], &'a [<W as Word>::Bytes], Low<'a>);

#[inline(always)]
fn join_block<W: Word, const INTEGERS: bool>(
    coder: &DeltaCoder<'_>,
    (classes, indices, base, low): Parts<'_, W>,
    bits: &mut BitReader<'_>,
    escapes: &mut Escapes<'_>,
    out: &mut [W::Bytes],
) -> Result<()> {
    let (cut, dropped) = (&coder.cut, coder.model.dropped_bits);
    let low_bits = 8 * low.low_bytes as u32;
    let elements = out.iter_mut().zip(classes).zip(indices).zip(base);
    for (i, (((out, &class), &index), &old)) in elements.enumerate() {
        let symbol = if index == ESCAPE {
            let symbol = escapes.next();
            if !cut.is_in_range(class, symbol) {
                return Err(Error::corrupt("an escaped symbol is out of range"));
            }
            symbol
        } else {
            cut.symbol(class, index)
        };
        let mut raw = bits.take(cut.raw_bits(class) - low_bits) << low_bits;
        for byte in 0..low.low_bytes {
            let plane = u64::from(low.planes[byte * low.count + low.start + i]);
            raw |= plane << (8 * byte);
        }
        let old = W::from_bytes(old).widen() >> dropped;
        let element = cut.join::<INTEGERS>(class, symbol, raw, old) << dropped;
        *out = W::truncate(element).to_bytes();
    }
    Ok(())
}

/// A little-endian bit string being read, whose length has been checked.
struct BitReader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl BitReader<'_> {
    /// The next bits, at most 56; zeros past the end.
    #[inline(always)]
    fn take(&mut self, count: u32) -> u64 {
        let rest = self.bytes.get(self.position / 8..).unwrap_or_default();
        let word = rest.first_chunk::<LOAD_BYTES>().map_or_else(
            || {
                rest.iter()
                    .rev()
                    .fold(0, |word, &byte| word << 8 | u64::from(byte))
            },
            |bytes| u64::from_le_bytes(*bytes),
        );
        let bits = word >> (self.position % 8) & low_mask(count);
        self.position += count as usize;
        bits
    }
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
    fn new(payload: &[u8], count: usize, model: &DeltaModel, bits: usize) -> Result<Self> {
        let number = |at: usize| {
            let bytes = payload.get(at..at + 4).unwrap_or_default();
            bytes
                .iter()
                .rev()
                .fold(0, |n, &byte| n << 8 | usize::from(byte))
        };
        let (stream_len, escape_count) = (number(0), number(4));
        let mut position = HEAD_BYTES;
        let mut take = |len: Option<usize>| {
            let end = len
                .and_then(|len| position.checked_add(len))
                .filter(|&end| end <= payload.len())
                .ok_or_else(|| Error::corrupt("a chunk is too short for its parts"))?;
            Ok::<_, Error>(std::mem::replace(&mut position, end)..end)
        };
        let layout = Self {
            states: take(Some(STATES_BYTES))?,
            low: take(count.checked_mul(model.low_bytes()))?,
            bits: take(Some(bits.div_ceil(8)))?,
            stream: take(Some(stream_len))?,
            escapes: take(escape_count.checked_mul(model.escape_bytes()))?,
            escape_count,
        };
        let is_zero = |range: Range<usize>| payload[range].iter().all(|&byte| byte == 0);
        let last = payload[layout.bits.clone()].last().copied().unwrap_or(0);
        let tail_is_zero = bits.is_multiple_of(8) || last >> (bits % 8) == 0;
        if payload.len() != position.next_multiple_of(ALIGNMENT) {
            return Err(Error::corrupt("a chunk is longer than its parts"));
        }
        if !(is_zero(8..HEAD_BYTES) && is_zero(position..payload.len()) && tail_is_zero) {
            return Err(Error::corrupt("padding inside a chunk is not zero"));
        }
        Ok(layout)
    }
}
