//! Legal streams of any model, with what they decode to: a slow encoder written from docs/format.md.
//!
//! The fuzzer draws models, tables, scales and layouts; symbols come from a small generator, by slots,
//! so that every table suits its symbols. The package's encoder writes few of these forms.

use arbitrary::{Arbitrary, Result, Unstructured};
use neuzip_rs::Dtype;

use super::content::Random;
use super::wire::{self, Parts};

/// What a target is about; other parts of a model are plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Raw,
    Constant,
    Coded,
    Contexts,
    Scaled,
    Zeros,
    Records,
}

pub struct Legal {
    pub stream: Vec<u8>,
    pub original: Vec<u8>,
}

const LANES: usize = 64;
const SUB_BLOCK: usize = 4096;
const ESCAPE: u8 = 63;
const SCALE_OFFSETS: u64 = 1;
const WIDE_SYMBOLS: u64 = 1 << 1;
const TRAILING_ZEROS: u64 = 1 << 2;
const CONTEXTS: u64 = 1 << 5;
const SIGN_FLIPS: u64 = 1 << 6;
const RECORDS: u64 = 1 << 8;

fn mask(bits: u32) -> u64 {
    u64::MAX.checked_shr(64 - bits).unwrap_or(0)
}

/// Symbols and how many slots they have, in the order of the slots; `None` is the escape.
#[derive(Clone, Debug)]
struct Slots(Vec<(Option<u64>, u32)>);

impl Slots {
    /// First slot and frequency of a symbol, or of the escape.
    fn find(&self, symbol: Option<u64>) -> Option<(u32, u32)> {
        let mut first = 0;
        for &(other, frequency) in &self.0 {
            if other == symbol && frequency > 0 {
                return Some((first, frequency));
            }
            first += frequency;
        }
        None
    }

    /// A symbol for the coder and the value it stands for, by one of several tastes.
    fn draw(&self, width: u32, taste: u8, random: &mut Random) -> (Option<u64>, u64) {
        let used: Vec<_> = self.0.iter().filter(|entry| entry.1 > 0).collect();
        let entry = match taste % 5 {
            // As often as they have slots.
            0 | 1 => {
                let (slot, mut first) = (random.below(256) as u32, 0);
                let found = used.iter().find(|entry| {
                    first += entry.1;
                    slot < first
                });
                **found.unwrap_or(&used[0])
            }
            2 => *used[random.below(used.len())],
            // The rarest: a byte of the stream for each.
            3 => **used.iter().min_by_key(|entry| entry.1).unwrap_or(&used[0]),
            _ => **used
                .iter()
                .find(|entry| entry.0.is_none())
                .unwrap_or(&used[0]),
        };
        (
            entry.0,
            entry.0.unwrap_or_else(|| random.next() & mask(width)),
        )
    }
}

/// `count` numbers that sum to 256, from `least` on, none above 255.
fn shares(u: &mut Unstructured<'_>, count: usize, least: u32) -> Result<Vec<u32>> {
    let mut shares = vec![least; count];
    let mut left = 256 - least * count as u32;
    for share in &mut shares {
        let room = left.min(255 - *share);
        let more = if u.ratio(1, 2)? {
            u.int_in_range(0..=room)?
        } else {
            room.min(4)
        };
        *share += more;
        left -= more;
    }
    for share in &mut shares {
        let more = left.min(255 - *share);
        *share += more;
        left -= more;
    }
    Ok(shares)
}

#[derive(Clone, Debug)]
enum Mode {
    Raw,
    Constant(u64),
    Coded(Slots),
    /// Source (0: classes), first symbol, tables.
    Contexts(u8, u64, Vec<Slots>),
}

#[derive(Clone, Debug)]
struct Plane {
    width: u32,
    mode: Mode,
    /// The fields behind the width.
    wire: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Model {
    size: usize,
    phase: usize,
    sign: u32,
    zeros: bool,
    scaled: bool,
    planes: Vec<Plane>,
}

fn coded_plane(u: &mut Unstructured<'_>, width: u32) -> Result<Plane> {
    let symbols = (1_usize << width.min(6)).min(64);
    let escape = u.ratio(1, 2)?;
    let most = if escape { symbols.min(63) } else { symbols };
    let listed = u.int_in_range(if escape { 1 } else { 2 }..=most)?;
    let base = u64::arbitrary(u)? & mask(width);
    // Distinct indices, in any order: a step through all of them.
    let start = u.int_in_range(0..=most - 1)?;
    let step = *u.choose(&[1, 1, 3, 5, 7])?;
    let mut indices: Vec<u8> = Vec::new();
    let mut at = start;
    while indices.len() < listed {
        if !indices.contains(&(at as u8)) {
            indices.push(at as u8);
            at += step - 1;
        }
        at = (at + 1) % most;
    }
    if escape {
        let place = u.int_in_range(0..=indices.len())?;
        indices.insert(place, ESCAPE);
    }
    let frequencies = shares(u, indices.len(), 1)?;
    let mut wire = wire::varint(base);
    wire.push(indices.len() as u8 | u8::from(escape) << 7);
    let mut slots = Vec::new();
    for (&index, &frequency) in indices.iter().zip(&frequencies) {
        wire.extend([index, frequency as u8]);
        let symbol = (base + u64::from(index)) & mask(width);
        slots.push(((!(escape && index == ESCAPE)).then_some(symbol), frequency));
    }
    Ok(Plane {
        width,
        mode: Mode::Coded(Slots(slots)),
        wire,
    })
}

/// `above` are the planes that contexts may come from: their number and width.
fn contexts_plane(
    u: &mut Unstructured<'_>,
    width: u32,
    above: &[(usize, u32)],
    classes: Option<usize>,
) -> Result<Plane> {
    let by_class = classes.is_some() && (above.is_empty() || u.ratio(1, 2)?);
    let mut wire = Vec::new();
    let (source, first) = if by_class {
        wire.push(0);
        (0, 0)
    } else {
        let &(number, source_width) = u.choose(above)?;
        let first = u64::arbitrary(u)? & mask(source_width);
        wire.push(number as u8 + 1);
        wire::put_varint(&mut wire, first);
        (number as u8 + 1, first)
    };
    let least = if by_class { classes.unwrap_or(1) } else { 1 };
    let contexts = u.int_in_range(least..=16)?;
    let escape = u.ratio(1, 2)?;
    let symbols = (1_usize << width.min(6)).min(if escape { 63 } else { 64 });
    let listed = u.int_in_range(if escape { 1 } else { 2 }..=symbols)? + usize::from(escape);
    let base = u64::arbitrary(u)? & mask(width);
    wire.push(contexts as u8);
    wire::put_varint(&mut wire, base);
    wire.push(listed as u8 | u8::from(escape) << 7);
    let mut tables = Vec::new();
    for _ in 0..contexts {
        let frequencies = shares(u, listed, 0)?;
        wire.extend(frequencies.iter().map(|&frequency| frequency as u8));
        let mut slots: Vec<(usize, u32)> = frequencies.into_iter().enumerate().collect();
        // The largest first, of equal ones the lower index: the sort is stable.
        slots.sort_by_key(|&(_, frequency)| std::cmp::Reverse(frequency));
        let symbol = |index: usize| {
            let escapes = escape && index == listed - 1;
            (!escapes).then_some((base + index as u64) & mask(width))
        };
        let slots = slots
            .into_iter()
            .map(|(index, frequency)| (symbol(index), frequency));
        tables.push(Slots(slots.collect()));
    }
    Ok(Plane {
        width,
        mode: Mode::Contexts(source, first, tables),
        wire,
    })
}

/// A width for a plane with `left` bits to go.
fn width_of(u: &mut Unstructured<'_>, left: u32, most: u32) -> Result<u32> {
    let usual = *u.choose(&[left, 8, 7, 1, 9, 16, 5, 3])?;
    let any = u.int_in_range(1..=left)?;
    Ok(if u.ratio(2, 3)? { usual } else { any }.clamp(1, left.min(most)))
}

impl Model {
    fn draw(
        u: &mut Unstructured<'_>,
        kind: Kind,
        size: usize,
        phased: bool,
        classes: Option<usize>,
    ) -> Result<Self> {
        let bits = 8 * size as u32;
        let sign = *u.choose(&[0, 0, bits - 1, bits / 2, 5.min(bits - 1)])?;
        let scaled = kind == Kind::Scaled;
        let zeros = kind == Kind::Zeros || (kind == Kind::Scaled && u.ratio(1, 4)?);
        let mut planes: Vec<Plane> = Vec::new();
        let mut left = bits;
        let mut in_contexts = 0;
        while left > 0 {
            let number = planes.len();
            let above: Vec<(usize, u32)> = planes
                .iter()
                .enumerate()
                .filter(|(_, plane)| matches!(plane.mode, Mode::Coded(_) | Mode::Contexts(..)))
                .map(|(number, plane)| (number, plane.width))
                .collect();
            let last_one = number == 14;
            let mode = match u.int_in_range(0..=9)? {
                0..=5 => kind,
                6 => Kind::Raw,
                7 => Kind::Constant,
                _ => Kind::Coded,
            };
            let can_be_in_contexts = in_contexts < 2 && (!above.is_empty() || classes.is_some());
            let plane = match mode {
                _ if last_one => Plane {
                    width: left,
                    mode: Mode::Raw,
                    wire: Vec::new(),
                },
                Kind::Contexts | Kind::Scaled if can_be_in_contexts && u.ratio(2, 3)? => {
                    in_contexts += 1;
                    let width = width_of(u, left, 16)?;
                    contexts_plane(u, width, &above, classes)?
                }
                Kind::Coded | Kind::Contexts | Kind::Scaled | Kind::Records => {
                    let width = width_of(u, left, 16)?;
                    coded_plane(u, width)?
                }
                Kind::Constant => {
                    let width = width_of(u, left, 64)?;
                    let value = u64::arbitrary(u)? & mask(width);
                    Plane {
                        width,
                        mode: Mode::Constant(value),
                        wire: wire::varint(value),
                    }
                }
                Kind::Raw | Kind::Zeros => {
                    let width = width_of(u, left, 64)?;
                    Plane {
                        width,
                        mode: Mode::Raw,
                        wire: Vec::new(),
                    }
                }
            };
            left -= plane.width;
            planes.push(plane);
        }
        if zeros {
            // The last one must be raw.
            let width = planes.last().map_or(bits, |plane| plane.width);
            planes.pop();
            planes.push(Plane {
                width,
                mode: Mode::Raw,
                wire: Vec::new(),
            });
        }
        let phase = if phased && !scaled {
            u.int_in_range(0..=size - 1)?
        } else {
            0
        };
        Ok(Self {
            size,
            phase,
            sign,
            zeros,
            scaled,
            planes,
        })
    }

    fn write_to(&self, out: &mut Vec<u8>) {
        let log2 = self.size.trailing_zeros() as u8;
        let flags = u8::from(self.zeros) << 5 | u8::from(self.scaled) << 6;
        out.extend([log2 | (self.phase as u8) << 2 | flags, self.sign as u8]);
        out.push(self.planes.len() as u8);
        for plane in &self.planes {
            let mode = match plane.mode {
                Mode::Raw => 0,
                Mode::Constant(_) => 1,
                Mode::Coded(_) => 2,
                Mode::Contexts(..) => 3,
            };
            out.extend([mode, plane.width as u8]);
            out.extend_from_slice(&plane.wire);
        }
    }

    fn features(&self) -> u64 {
        let mut features = if self.zeros { TRAILING_ZEROS } else { 0 };
        for plane in &self.planes {
            features |= match plane.mode {
                Mode::Coded(_) if plane.width > 8 => WIDE_SYMBOLS,
                Mode::Contexts(..) if plane.width > 8 => WIDE_SYMBOLS | CONTEXTS,
                Mode::Contexts(..) => CONTEXTS,
                _ => 0,
            };
        }
        features
    }
}

/// A list of rows or columns, and its wire form.
fn list(
    u: &mut Unstructured<'_>,
    count: usize,
    lowest: i64,
    most: i64,
) -> Result<(Vec<i64>, Vec<u8>)> {
    let width = u.int_in_range(0..=8)?;
    let lowest = if lowest < 0 {
        i64::from(u.int_in_range(lowest as i8..=most as i8)?)
    } else {
        u.int_in_range(0..=most)?
    };
    let mut random = Random::new(u64::from(u16::arbitrary(u)?));
    let room = (most - lowest).min((1 << width) - 1);
    let excess: Vec<u64> = (0..count)
        .map(|_| random.below(room as usize + 1) as u64)
        .collect();
    let mut bytes = vec![lowest as i8 as u8, width as u8];
    pack(&excess, width, &mut bytes);
    Ok((excess.iter().map(|&x| lowest + x as i64).collect(), bytes))
}

#[derive(Clone, Debug, Default)]
struct Scale {
    columns: usize,
    shift: u32,
    lists: [Option<Vec<i64>>; 6],
    wire: Vec<u8>,
}

impl Scale {
    fn draw(u: &mut Unstructured<'_>, elements: usize) -> Result<Self> {
        let any = u.int_in_range(1..=elements)?;
        let columns = (*u.choose(&[any, 1, 64, 100, 128, 384, elements])?).clamp(1, elements);
        let present = u.int_in_range(1..=63_u8)?;
        let shift = *u.choose(&[0, 1, 7, 10, 23, 52, 63, 6])?;
        let mut scale = Self {
            columns,
            shift,
            ..Self::default()
        };
        wire::put_varint(&mut scale.wire, columns as u64);
        scale.wire.extend([present, shift as u8]);
        for which in 0..6 {
            if present >> which & 1 == 0 {
                continue;
            }
            let count = if which % 2 == 0 {
                elements.div_ceil(columns)
            } else {
                columns
            };
            // Rows and columns of class 7 make class 14: no more than the tables there can be.
            let (lowest, most) = [(-128, 127), (0, 1), (0, 7)][which / 2];
            let (entries, bytes) = list(u, count, lowest, most)?;
            scale.lists[which] = Some(entries);
            scale.wire.extend(bytes);
        }
        Ok(scale)
    }

    /// Sum of the entries of a row and a column.
    fn at(&self, first: usize, element: usize) -> i64 {
        let entry =
            |list: &Option<Vec<i64>>, line: usize| list.as_ref().map_or(0, |list| list[line]);
        entry(&self.lists[first], element / self.columns)
            + entry(&self.lists[first + 1], element % self.columns)
    }

    fn classes(&self) -> usize {
        let most = |which: usize| {
            self.lists[which]
                .iter()
                .flatten()
                .max()
                .map_or(0, |&class| class as usize)
        };
        most(4) + most(5) + 1
    }

    fn has_flips(&self) -> bool {
        self.lists[2].is_some() || self.lists[3].is_some()
    }
}

/// Fields of a raw plane in one sub-block.
fn pack(values: &[u64], width: u32, out: &mut Vec<u8>) {
    for byte in 0..width / 8 {
        out.extend(values.iter().map(|value| (value >> (8 * byte)) as u8));
    }
    let rest = width % 8;
    if rest == 0 {
        return;
    }
    let mut bits = vec![0_u8; (values.len() * rest as usize).div_ceil(8)];
    for (i, value) in values.iter().enumerate() {
        let top = value >> (width - rest) & mask(rest);
        for bit in 0..rest as usize {
            let place = i * rest as usize + bit;
            bits[place / 8] |= ((top >> bit & 1) as u8) << (place % 8);
        }
    }
    out.extend(bits);
}

/// A chunk of `len` bytes that the model can store: its payload and its bytes.
fn model_chunk(
    model: &Model,
    scale: Option<&Scale>,
    (first, len): (usize, usize),
    taste: u8,
    random: &mut Random,
) -> (Vec<u8>, Vec<u8>) {
    let bits = 8 * model.size as u32;
    let count = len.saturating_sub(model.phase) / model.size;
    let edges = len - count * model.size;
    let blocks = count.div_ceil(SUB_BLOCK);
    let last = model.planes.len() - 1;
    let sign_is_last = model.sign == 0;
    let last_width = model.planes[last].width;
    let zeros: Vec<u32> = (0..blocks)
        .map(|_| {
            let most = last_width - u32::from(sign_is_last);
            if random.below(3) == 0 {
                most
            } else {
                random.below(most as usize + 1) as u32
            }
        })
        .collect();
    // What each element has in each plane, and what the coder is told.
    let mut fields = vec![vec![0_u64; count]; model.planes.len()];
    let mut symbols = vec![Vec::new(); model.planes.len()];
    for i in 0..count {
        for (number, plane) in model.planes.iter().enumerate() {
            let class = || scale.map_or(0, |scale| scale.at(4, first + i) as usize);
            let table = match &plane.mode {
                Mode::Raw => {
                    let mut value = random.next() & mask(plane.width);
                    if model.zeros && number == last {
                        let sign = u64::from(sign_is_last);
                        let kept = value & sign;
                        let z = zeros[i / SUB_BLOCK];
                        let cut = z + u32::from(sign_is_last);
                        value = value
                            .checked_shr(cut)
                            .unwrap_or(0)
                            .checked_shl(cut)
                            .unwrap_or(0);
                        value = value & mask(plane.width) | kept;
                    }
                    fields[number][i] = value;
                    continue;
                }
                Mode::Constant(value) => {
                    fields[number][i] = *value;
                    continue;
                }
                Mode::Coded(slots) => slots,
                Mode::Contexts(0, _, tables) => &tables[class()],
                Mode::Contexts(source, begin, tables) => {
                    let source = usize::from(*source) - 1;
                    let width = model.planes[source].width;
                    let distance = fields[source][i].wrapping_sub(*begin) & mask(width);
                    // As a number with a sign.
                    let distance = (distance << (64 - width)).cast_signed() >> (64 - width);
                    &tables[distance.clamp(0, tables.len() as i64 - 1) as usize]
                }
            };
            let (symbol, value) = table.draw(plane.width, taste, random);
            fields[number][i] = value;
            symbols[number].push((table.find(symbol).expect("it was drawn"), symbol, value));
        }
    }
    let mut original = Vec::with_capacity(len);
    original.extend((0..len.min(model.phase)).map(|_| random.next() as u8));
    for i in 0..count {
        let mut y = 0_u64;
        for (plane, fields) in model.planes.iter().zip(&fields) {
            y = y.checked_shl(plane.width).unwrap_or(0) | fields[i];
        }
        let sign_at = model.sign;
        let mut sign = y >> sign_at & 1;
        let above = y.checked_shr(sign_at + 1).unwrap_or(0);
        let mut value = above << sign_at | y & mask(sign_at);
        if let Some(scale) = scale.filter(|_| model.scaled) {
            let offset = (scale.at(0, first + i) as u64).wrapping_shl(scale.shift);
            let offset = if scale.shift > 63 { 0 } else { offset };
            value = value.wrapping_add(offset) & mask(bits - 1);
            sign ^= scale.at(2, first + i) as u64 & 1;
        }
        let element = sign << (bits - 1) | value;
        original.extend_from_slice(&element.to_le_bytes()[..model.size]);
    }
    let behind = len - original.len();
    original.extend((0..behind).map(|_| random.next() as u8));
    let mut head = Vec::new();
    let mut coded = Vec::new();
    for (number, plane) in model.planes.iter().enumerate() {
        if !matches!(plane.mode, Mode::Coded(_) | Mode::Contexts(..)) {
            continue;
        }
        let (states, stream) = encode(&symbols[number]);
        let escaped: Vec<u64> = symbols[number]
            .iter()
            .filter(|symbol| symbol.1.is_none())
            .map(|symbol| symbol.2)
            .collect();
        head.extend((stream.len() as u32).to_le_bytes());
        head.extend((escaped.len() as u32).to_le_bytes());
        coded.push((states, stream, escaped));
    }
    if model.zeros {
        head.extend(zeros.iter().map(|&z| z as u8));
    }
    if edges > 0 {
        let inside = model.phase.min(len)..model.phase.min(len) + count * model.size;
        head.extend_from_slice(&original[..inside.start]);
        head.extend_from_slice(&original[inside.end..]);
    }
    let mut payload = head;
    wire::align(&mut payload);
    for (states, ..) in &coded {
        payload.extend_from_slice(states);
    }
    for (number, plane) in model.planes.iter().enumerate() {
        if !matches!(plane.mode, Mode::Raw) {
            continue;
        }
        for (block, values) in fields[number].chunks(SUB_BLOCK).enumerate() {
            if model.zeros && number == last {
                let (z, kept) = (zeros[block], u64::from(sign_is_last));
                let shrunk = |value: &u64| {
                    let high = (value >> kept).checked_shr(z).unwrap_or(0) << kept;
                    high | value & kept
                };
                let values: Vec<u64> = values.iter().map(shrunk).collect();
                pack(&values, plane.width - z, &mut payload);
            } else {
                pack(values, plane.width, &mut payload);
            }
        }
        wire::align(&mut payload);
    }
    for (_, stream, escaped) in &coded {
        payload.extend_from_slice(stream);
        wire::align(&mut payload);
        write_escaped(escaped, &mut payload);
        wire::align(&mut payload);
    }
    (payload, original)
}

fn write_escaped(escaped: &[u64], out: &mut Vec<u8>) {
    let (Some(&least), Some(&most)) = (escaped.iter().min(), escaped.iter().max()) else {
        return;
    };
    let bits = (u64::BITS - (most - least).leading_zeros()).max(1);
    out.extend((least as u16).to_le_bytes());
    out.extend([bits as u8, 0]);
    let mut string = vec![0_u8; (escaped.len() * bits as usize).div_ceil(8)];
    for (i, value) in escaped.iter().enumerate() {
        for bit in 0..bits as usize {
            let place = i * bits as usize + bit;
            string[place / 8] |= (((value - least) >> bit & 1) as u8) << (place % 8);
        }
    }
    out.extend(string);
}

type Symbol = ((u32, u32), Option<u64>, u64);

/// States and stream of symbols, whose slots are known.
fn encode(symbols: &[Symbol]) -> (Vec<u8>, Vec<u8>) {
    let mut states = [256_u32; LANES];
    let mut stream = Vec::new();
    for (i, &((first, frequency), ..)) in symbols.iter().enumerate().rev() {
        let state = &mut states[i % LANES];
        if *state >= 256 * frequency {
            stream.push(*state as u8);
            *state >>= 8;
        }
        *state = *state / frequency * 256 + first + *state % frequency;
    }
    stream.reverse();
    let low = states.iter().map(|&state| state as u8);
    let high = states.iter().map(|&state| (state >> 8) as u8);
    (low.chain(high).collect(), stream)
}

/// The class of each byte of a record, and the model of each class.
struct Layout {
    classes: Vec<u8>,
    models: Vec<Option<usize>>,
}

impl Layout {
    fn draw(u: &mut Unstructured<'_>, models: usize) -> Result<Self> {
        let count = u.int_in_range(1..=4_u8)?;
        let mut classes = Vec::new();
        for class in 0..count {
            let run = *u.choose(&[1, 2, 3, 16, 64, 100, 700])?;
            classes.extend(std::iter::repeat_n(class, run));
        }
        for _ in 0..u.int_in_range(0..=3)? {
            let class = u.int_in_range(0..=count - 1)?;
            classes.extend(std::iter::repeat_n(class, u.int_in_range(1..=9)?));
        }
        if classes.len() == 1 {
            classes.push(0);
        }
        let model = |u: &mut Unstructured<'_>| {
            Ok(if u.ratio(1, 4)? {
                None
            } else {
                Some(u.int_in_range(0..=models - 1)?)
            })
        };
        let models = (0..count).map(|_| model(u)).collect::<Result<_>>()?;
        Ok(Self { classes, models })
    }

    fn write_to(&self, out: &mut Vec<u8>) {
        wire::put_varint(out, self.classes.len() as u64);
        wire::put_varint(out, self.models.len() as u64);
        for model in &self.models {
            wire::put_varint(out, model.map_or(0, |model| model as u64 + 1));
        }
        for run in self.classes.chunk_by(|a, b| a == b) {
            wire::put_varint(out, run.len() as u64);
            wire::put_varint(out, u64::from(run[0]));
        }
    }

    fn chunk(
        &self,
        models: &[Model],
        (start, len): (usize, usize),
        taste: u8,
        random: &mut Random,
    ) -> (Vec<u8>, Vec<u8>) {
        let size = self.classes.len();
        let before = (start.next_multiple_of(size) - start).min(len);
        let records = (len - before) / size;
        let mut parts = Vec::new();
        for (class, model) in self.models.iter().enumerate() {
            let own = self
                .classes
                .iter()
                .filter(|&&of| usize::from(of) == class)
                .count();
            let with_model = model.filter(|_| random.below(5) > 0);
            let (mut payload, bytes) = if let Some(model) = with_model {
                model_chunk(&models[model], None, (0, records * own), taste, random)
            } else {
                let bytes: Vec<u8> = (0..records * own).map(|_| random.next() as u8).collect();
                (bytes.clone(), bytes)
            };
            wire::align(&mut payload);
            parts.push((payload, bytes, with_model.is_some()));
        }
        let mut original: Vec<u8> = (0..before).map(|_| random.next() as u8).collect();
        let mut taken = vec![0; parts.len()];
        for _ in 0..records {
            for &class in &self.classes {
                let class = usize::from(class);
                original.push(parts[class].1[taken[class]]);
                taken[class] += 1;
            }
        }
        let behind = original.len();
        original.extend((behind..len).map(|_| random.next() as u8));
        let mut payload = Vec::new();
        for part in &parts {
            payload.extend((part.0.len() as u32).to_le_bytes());
        }
        payload.extend(parts.iter().map(|part| u8::from(part.2)));
        payload.extend_from_slice(&original[..before]);
        payload.extend_from_slice(&original[behind..]);
        wire::align(&mut payload);
        for part in parts {
            payload.extend(part.0);
        }
        (payload, original)
    }
}

/// A legal stream of the kind, and what it decodes to.
pub fn build(u: &mut Unstructured<'_>, kind: Kind) -> Result<Legal> {
    let scaled_size = 1_usize << u.int_in_range(0..=3)?;
    let log2 = u.int_in_range(12..=15)?;
    let chunk_bytes = 1_usize << log2;
    let dtype = if kind == Kind::Scaled || u.ratio(1, 3)? {
        *u.choose(&[
            Dtype::Bfloat16,
            Dtype::Float32,
            Dtype::Float64,
            Dtype::Complex128,
            Dtype::Int8,
        ])?
    } else {
        Dtype::Uint8
    };
    let itemsize = dtype.itemsize();
    let whole_chunks = u.int_in_range(0..=3)? * chunk_bytes;
    let edge = *u.choose(&[0, 64, 128, 1024, 4096, 8192])? + u.int_in_range(0..=70)?;
    let some = if u.ratio(1, 2)? {
        u.int_in_range(1..=chunk_bytes)?
    } else {
        edge.min(chunk_bytes)
    };
    let bytes = ((whole_chunks + some) / itemsize * itemsize).max(itemsize);
    let scale = if kind == Kind::Scaled && bytes >= scaled_size {
        Some(Scale::draw(u, bytes / scaled_size)?)
    } else {
        None
    };
    let mut models = Vec::new();
    for _ in 0..u.int_in_range(1..=3)? {
        let size = if kind == Kind::Scaled {
            scaled_size
        } else {
            1 << u.int_in_range(0..=3)?
        };
        let kind = if kind == Kind::Scaled && scale.is_none() {
            Kind::Coded
        } else {
            kind
        };
        let classes = scale.as_ref().map(Scale::classes);
        models.push(Model::draw(u, kind, size, dtype == Dtype::Uint8, classes)?);
    }
    let layouts = if kind == Kind::Records {
        (0..u.int_in_range(1..=2)?)
            .map(|_| Layout::draw(u, models.len()))
            .collect::<Result<_>>()?
    } else {
        Vec::new()
    };
    let mut random = Random::new(u64::arbitrary(u)?);
    let taste = u8::arbitrary(u)?;
    let chunks = bytes.div_ceil(chunk_bytes);
    let (mut original, mut payloads) = (Vec::new(), Vec::new());
    let (mut lengths, mut storages, mut hashes) = (Vec::new(), Vec::new(), Vec::new());
    let mut packed = false;
    for number in 0..chunks {
        let start = number * chunk_bytes;
        let len = chunk_bytes.min(bytes - start);
        let storage = match u.int_in_range(0..=9)? {
            0 => 0,
            1 => 1,
            2..=6 if !layouts.is_empty() => {
                2 + models.len() + u.int_in_range(0..=layouts.len() - 1)?
            }
            _ => 2 + u.int_in_range(0..=models.len() - 1)?,
        };
        packed = chunks == 1 && storage < 2;
        let (mut payload, chunk) = match storage {
            0 => {
                let chunk: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
                (chunk.clone(), chunk)
            }
            1 => {
                let pattern: Vec<u8> = (0..16).map(|_| random.next() as u8).collect();
                let chunk = pattern.iter().copied().cycle().take(len).collect();
                (pattern, chunk)
            }
            model if model < 2 + models.len() => {
                let model = &models[model - 2];
                let first = start / model.size;
                model_chunk(model, scale.as_ref(), (first, len), taste, &mut random)
            }
            layout => {
                let layout: &Layout = &layouts[layout - 2 - models.len()];
                layout.chunk(&models, (start, len), taste, &mut random)
            }
        };
        if chunks > 1 {
            wire::align(&mut payload);
        }
        lengths.extend((payload.len() as u32).to_le_bytes());
        storages.push(storage as u8);
        hashes.extend(wire::chunk_hash(&chunk).to_le_bytes());
        payloads.extend(payload);
        original.extend(chunk);
    }
    let mut features = models
        .iter()
        .map(Model::features)
        .fold(0, |all, bits| all | bits);
    features |= if scale.is_some() { SCALE_OFFSETS } else { 0 };
    features |= if scale.as_ref().is_some_and(Scale::has_flips) {
        SIGN_FLIPS
    } else {
        0
    };
    features |= if layouts.is_empty() { 0 } else { RECORDS };
    let mut fields = wire::varint(features);
    let code = Dtype::ALL.iter().position(|&other| other == dtype);
    fields.extend([code.unwrap_or_default() as u8, 1]);
    wire::put_varint(&mut fields, (bytes / itemsize) as u64);
    fields.extend([wire::CHUNKED, log2 as u8]);
    wire::put_varint(&mut fields, models.len() as u64);
    for model in &models {
        model.write_to(&mut fields);
    }
    if !layouts.is_empty() {
        wire::put_varint(&mut fields, layouts.len() as u64);
        for layout in &layouts {
            layout.write_to(&mut fields);
        }
    }
    if let Some(scale) = &scale {
        fields.extend_from_slice(&scale.wire);
    }
    if chunks > 1 {
        fields.extend(lengths);
    }
    fields.extend(storages);
    fields.extend(hashes);
    let stream = Parts {
        fields,
        payloads,
        padded: !packed,
    }
    .sealed();
    Ok(Legal { stream, original })
}
