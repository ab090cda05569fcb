//! Which delta model a tensor gets next to its base, and what it is estimated to take.
//!
//! Pairs of elements are sampled and sorted by the key of the base's element, and cut into ranges of
//! keys. The raw bits of a range follow from how large its differences are. Neighbouring ranges then join
//! into groups that share a relation and a table, as long as that makes the estimate smaller: raw bits take
//! out the scale, so that differences of other octaves are often distributed alike. Integers only: the same
//! tensors give the same model everywhere.

use super::context_table::ContextTable;
use super::delta::{DeltaClass, DeltaModel, Relation};
use super::log2::log2;
use super::normalize::{ONE_BIT, normalize};
use super::sample::Sample;
use super::select::Input;
use crate::constants::{ESCAPE, MAX_CONTEXTS, MAX_DELTA_RAW_BITS, SLOTS};
use crate::dtype::{Dtype, FloatFields};
use crate::planes::words::{Word, low_mask, with_word};

/// Pairs that classes are found with, and that the tables are made from.
const SEARCH_PAIRS: usize = 1 << 14;
const TABLE_PAIRS: usize = 1 << 16;
/// Ranges of keys that the search begins with at most, and the fewest pairs in one.
const MAX_RANGES: usize = 64;
const MIN_RANGE_PAIRS: usize = 96;
/// Bits of a key. Half octaves of a BF16 or FP32 take nine, of which the highest is hardly ever set.
const KEY_BITS: u32 = 8;
/// By how many bits the symbols of three quarters of the differences differ: from a few symbols up to a
/// good part of a table.
const SPREAD_BITS: std::ops::RangeInclusive<u32> = 2..=5;
/// Most mantissa bits in the symbol of the relation context.
const JOINT_BITS: u32 = 2;
/// Symbols of a table besides the escape.
const WINDOW: usize = ESCAPE as usize;
/// Differences that are counted apart, from `-NEAREST` on; those beyond are escapes.
const NEAREST: i64 = 128;
/// About what a class takes in the model; what a table takes besides its frequencies; and what a frequency
/// takes: 4 bits.
const CLASS_BYTES: u64 = 3;
const TABLE_BYTES: u64 = 2;
const FREQUENCIES_PER_BYTE: u64 = 1;
/// A symbol below a quarter of a slot is cheaper as an escape.
const MIN_SHARE: u64 = 4 * SLOTS as u64;

/// A model and what the chunks are estimated to take with it, in bytes.
pub(crate) struct DeltaCandidate {
    pub(crate) model: DeltaModel,
    pub(crate) bytes: u64,
}

/// What is known of the elements.
#[derive(Clone, Copy)]
struct Elements {
    bytes: usize,
    /// Bits that are not dropped.
    kept: u32,
    key_shift: u32,
    /// Mantissa bits that are not dropped; `None` for integers.
    mantissa: Option<u32>,
}

/// An element and its base element, dropped bits taken off.
#[derive(Clone, Copy)]
struct Pair {
    key: u8,
    /// Whether the signs differ.
    other_sign: bool,
    /// Magnitude of the new element.
    magnitude: u64,
    /// The difference, with its sign.
    difference: i64,
}

/// The best delta model of a tensor; `None` where there is none.
pub(crate) fn select_delta(input: &Input<'_>, base: &[u8], dtype: Dtype) -> Option<DeltaCandidate> {
    let elements = Elements::of(input.bytes, dtype);
    let total = (input.bytes.len() / elements.bytes) as u64;
    let search = |limit| {
        let pairs = elements.pairs(input.bytes, base, input.effort(limit));
        Search {
            elements,
            exact: pairs.len() as u64 == total,
            pairs,
            total,
        }
    };
    let found = search(SEARCH_PAIRS);
    let groups = found.groups()?;
    if found.exact {
        found.candidate(&groups, input)
    } else {
        search(TABLE_PAIRS).candidate(&groups, input)
    }
}

impl Elements {
    fn of(data: &[u8], dtype: Dtype) -> Self {
        let float: Option<FloatFields> = dtype.float_fields();
        let bits = float.map_or(dtype.itemsize() as u32 * 8, |fields| fields.element_bits);
        let bytes = (bits / 8) as usize;
        let dropped = float.map_or(0, |fields| {
            with_word!(bytes, W => shared_zeros::<W>(data)).min(fields.mantissa_bits)
        });
        let (kept, mantissa) = (bits - dropped, float.map(|f| f.mantissa_bits - dropped));
        // As fine as a byte can be, but no finer than half octaves of a float.
        let finest = (kept - 1).saturating_sub(KEY_BITS);
        let key_shift = mantissa.map_or(finest, |bits| finest.min(bits.saturating_sub(1)));
        Self {
            bytes,
            kept,
            key_shift,
            mantissa,
        }
    }

    fn pairs(self, data: &[u8], base: &[u8], limit: usize) -> Vec<Pair> {
        let dropped = self.bytes as u32 * 8 - self.kept;
        let words = |bytes| {
            let sample = Sample::new(bytes, self.bytes, 0, limit);
            let mut words: Vec<u64> = Vec::new();
            with_word!(self.bytes, W => sample.for_each_run::<W>(None, |run| {
                words.extend(run.iter().map(|word| word.widen() >> dropped));
            }));
            words
        };
        let (new, old) = (words(data), words(base));
        let mut pairs: Vec<Pair> = new
            .into_iter()
            .zip(old)
            .map(|(n, o)| self.pair(n, o))
            .collect();
        // Stable, so that equal keys keep their order whatever sorts them.
        pairs.sort_by_key(|pair| pair.key);
        pairs
    }

    fn pair(self, new: u64, old: u64) -> Pair {
        let top = self.kept - 1;
        let mask = low_mask(top);
        let other_sign = (new ^ old) >> top;
        let difference = if self.mantissa.is_some() {
            (new & mask ^ other_sign.wrapping_neg()).wrapping_sub(old & mask)
        } else {
            new.wrapping_sub(old)
        };
        let unused = 64 - self.kept;
        Pair {
            key: ((old & mask) >> self.key_shift) as u8,
            other_sign: other_sign == 1,
            magnitude: new & mask,
            difference: (difference << unused).cast_signed() >> unused,
        }
    }
}

/// Trailing zero bits that all elements share.
fn shared_zeros<W: Word>(data: &[u8]) -> u32 {
    let mut any = 0;
    for block in W::split(data).chunks(1024) {
        for &element in block {
            any |= W::from_bytes(element).widen();
        }
        if any & 1 == 1 {
            break;
        }
    }
    any.trailing_zeros().min(W::BITS)
}

/// A way to make symbols of pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// [`Relation::Difference`] or, for integers, [`Relation::Integer`]: the bits by which symbols spread.
    Difference(u32),
    /// [`Relation::Context`]: mantissa bits in the symbol.
    Context(u32),
}

/// Neighbouring keys that have the same number of raw bits.
struct Range {
    first_key: u8,
    pairs: u64,
    /// Bits that three quarters of the differences take.
    typical: u32,
}

/// Neighbouring ranges that share a table.
struct Group {
    ranges: Vec<Range>,
    /// Histogram of the symbols for every way.
    counts: Vec<Histogram>,
    way: Way,
    /// What the pairs of the whole tensor take, with the classes and the table, in bytes.
    size: u64,
}

struct Search {
    elements: Elements,
    /// Sorted by key.
    pairs: Vec<Pair>,
    /// Elements of the whole tensor.
    total: u64,
    /// Whether the pairs are all there are.
    exact: bool,
}

impl Elements {
    /// The ways there are.
    fn ways(self) -> Vec<Way> {
        let contexts = self
            .mantissa
            .map_or(0..0, |bits| 0..bits.min(JOINT_BITS) + 1);
        let differences = SPREAD_BITS.map(Way::Difference);
        let ways = differences.chain(contexts.map(Way::Context));
        ways.filter(|&way| self.raw_bits(way, 0) <= MAX_DELTA_RAW_BITS)
            .collect()
    }

    fn raw_bits(self, way: Way, typical: u32) -> u32 {
        match way {
            Way::Difference(spread) => {
                let most = (self.kept - 1).min(MAX_DELTA_RAW_BITS);
                typical.saturating_sub(spread).min(most)
            }
            Way::Context(joint) => self.mantissa.unwrap_or(0) - joint,
        }
    }

    fn relation(self, way: Way) -> Relation {
        match (way, self.mantissa) {
            (Way::Context(_), _) => Relation::Context,
            (Way::Difference(_), Some(_)) => Relation::Difference,
            (Way::Difference(_), None) => Relation::Integer,
        }
    }

    fn no_counts(self, way: Way) -> Histogram {
        match way {
            Way::Difference(_) => Histogram::new(-NEAREST, 2 * NEAREST as usize),
            // Exponent, what of the mantissa is not raw, and the sign.
            Way::Context(_) => Histogram::new(0, 1 << (self.kept - self.raw_bits(way, 0))),
        }
    }
}

impl Search {
    /// Groups of ranges; `None` if there are too many classes whatever is done.
    fn groups(&self) -> Option<Vec<Group>> {
        let mut most = MAX_RANGES;
        while most > 0 {
            let groups = self.joined(self.ranges(most));
            let classes = groups
                .iter()
                .map(|group| self.classes(group).len())
                .sum::<usize>();
            if classes <= MAX_CONTEXTS {
                return Some(groups);
            }
            most /= 2;
        }
        None
    }

    /// Joins neighbours while that makes the estimate smaller.
    fn joined(&self, ranges: Vec<Group>) -> Vec<Group> {
        let mut groups = ranges;
        let gain = |a: &Group, b: &Group| {
            let apart = a.size.saturating_add(b.size).cast_signed();
            let (_, together) = self.best_way(&sum(a, b), &a.ranges.iter().chain(&b.ranges));
            apart.saturating_sub_unsigned(together)
        };
        let mut gains: Vec<i64> = groups.windows(2).map(|w| gain(&w[0], &w[1])).collect();
        loop {
            let best = (0..gains.len()).max_by_key(|&at| (gains[at], std::cmp::Reverse(at)));
            let Some(at) = best.filter(|&at| gains[at] >= 0) else {
                return groups;
            };
            let second = groups.remove(at + 1);
            gains.remove(at);
            let first = &mut groups[at];
            first.counts = sum(first, &second);
            first.ranges.extend(second.ranges);
            (first.way, first.size) = self.best_way(&first.counts, &first.ranges.iter());
            if at < gains.len() {
                gains[at] = gain(&groups[at], &groups[at + 1]);
            }
            if at > 0 {
                gains[at - 1] = gain(&groups[at - 1], &groups[at]);
            }
        }
    }

    /// Ranges of keys with enough pairs to judge by, at most about so many, each a group of its own.
    fn ranges(&self, most: usize) -> Vec<Group> {
        let least = (self.pairs.len() / most).max(MIN_RANGE_PAIRS);
        let mut groups = Vec::new();
        let mut rest = self.pairs.as_slice();
        while !rest.is_empty() {
            let mut count = least.min(rest.len());
            let last_key = rest[count - 1].key;
            count += rest[count..].partition_point(|pair| pair.key <= last_key);
            if rest.len() - count < least {
                count = rest.len();
            }
            let (pairs, later) = rest.split_at(count);
            let first_key = if groups.is_empty() { 0 } else { pairs[0].key };
            let range = Range {
                first_key,
                pairs: count as u64,
                typical: typical_bits(pairs),
            };
            let counts = self.elements.ways().into_iter().map(|way| {
                let mut counts = self.elements.no_counts(way);
                let raw_bits = self.elements.raw_bits(way, range.typical);
                counts.add_pairs(pairs, way, raw_bits);
                counts
            });
            let counts: Vec<Histogram> = counts.collect();
            let (way, size) = self.best_way(&counts, &std::iter::once(&range));
            groups.push(Group {
                ranges: vec![range],
                counts,
                way,
                size,
            });
            rest = later;
        }
        groups
    }

    /// The cheapest way for ranges that share a table, and what they then take.
    fn best_way<'r>(
        &self,
        counts: &[Histogram],
        ranges: &(impl Iterator<Item = &'r Range> + Clone),
    ) -> (Way, u64) {
        let elements = self.elements;
        let size = |(way, counts): (Way, &Histogram)| {
            let raw_bits = ranges
                .clone()
                .map(|range| elements.raw_bits(way, range.typical));
            let most = raw_bits.clone().max().unwrap_or(0);
            let mut classes: Vec<u32> = raw_bits.clone().collect();
            classes.dedup();
            let listed = counts.listed();
            if !counts.fits(&listed, elements.kept - most) {
                return (way, u64::MAX >> 2);
            }
            let (cost, table) = counts.estimate(&listed, self.escape_bits(), self.exact);
            let raw: u64 = ranges
                .clone()
                .zip(raw_bits)
                .map(|(r, bits)| r.pairs * u64::from(bits))
                .sum();
            let cost = cost + raw * ONE_BIT;
            let stored = table + classes.len() as u64 * CLASS_BYTES;
            (
                way,
                Input::total(cost, self.pairs.len() as u64, self.total as usize) + stored,
            )
        };
        let sizes = elements.ways().into_iter().zip(counts).map(size);
        sizes
            .min_by_key(|&(_, size)| size)
            .unwrap_or((Way::Difference(0), u64::MAX >> 2))
    }

    /// Bits that an escaped symbol takes at most.
    fn escape_bits(&self) -> u64 {
        u64::from(self.elements.kept.div_ceil(8) * 8)
    }

    /// First key and raw bits of the classes of a group.
    fn classes(&self, group: &Group) -> Vec<(u8, u32)> {
        let raw_bits = |range: &Range| self.elements.raw_bits(group.way, range.typical);
        let mut classes: Vec<(u8, u32)> = group
            .ranges
            .iter()
            .map(|range| (range.first_key, raw_bits(range)))
            .collect();
        classes.dedup_by_key(|&mut (_, raw_bits)| raw_bits);
        classes
    }

    /// The model of groups that may have been found with other pairs, and its size.
    fn candidate(&self, groups: &[Group], input: &Input<'_>) -> Option<DeltaCandidate> {
        let mut bytes = input.plane_overhead();
        let mut model = DeltaModel {
            element_bytes: self.elements.bytes,
            dropped_bits: self.elements.bytes as u32 * 8 - self.elements.kept,
            key_shift: self.elements.key_shift,
            classes: Vec::new(),
        };
        let classes: Vec<Vec<(u8, u32)>> = groups.iter().map(|group| self.classes(group)).collect();
        let keys: Vec<u8> = classes
            .iter()
            .flatten()
            .map(|&(first_key, _)| first_key)
            .collect();
        let mut next_keys = keys.into_iter().skip(1);
        for (group, classes) in groups.iter().zip(&classes) {
            let mut counts = self.elements.no_counts(group.way);
            let mut raw = 0;
            for &(first_key, raw_bits) in classes {
                let place = |key: u8| self.pairs.partition_point(|pair| pair.key < key);
                let end = next_keys.next().map_or(self.pairs.len(), place);
                let pairs = &self.pairs[place(first_key)..end];
                counts.add_pairs(pairs, group.way, raw_bits);
                raw += pairs.len() as u64 * u64::from(raw_bits);
            }
            let listed = counts.listed();
            let (cost, stored) = counts.estimate(&listed, self.escape_bits(), self.exact);
            let cost = cost + raw * ONE_BIT;
            bytes += Input::total(cost, self.pairs.len() as u64, self.total as usize);
            bytes += stored + CLASS_BYTES * classes.len() as u64;
            let widest = classes
                .iter()
                .map(|&(_, raw_bits)| self.elements.kept - raw_bits)
                .max()?;
            let table = counts.table(&listed, widest, self.exact)?;
            for &(first_key, raw_bits) in classes {
                model.classes.push(DeltaClass {
                    first_key,
                    relation: self.elements.relation(group.way),
                    raw_bits,
                    table: table.with_bits(self.elements.kept - raw_bits).ok()?,
                });
            }
        }
        let model = model.validated().ok()?;
        Some(DeltaCandidate { model, bytes })
    }
}

/// Bits that three quarters of the differences take.
fn typical_bits(pairs: &[Pair]) -> u32 {
    let mut lengths = [0_usize; 65];
    for pair in pairs {
        lengths[(64 - pair.difference.unsigned_abs().leading_zeros()) as usize] += 1;
    }
    let mut left = pairs.len() * 3 / 4;
    let typical = lengths.iter().position(|&count| {
        let found = count > left;
        left = left.saturating_sub(count);
        found
    });
    typical.unwrap_or(0) as u32
}

/// The counts of two groups together.
fn sum(a: &Group, b: &Group) -> Vec<Histogram> {
    let both = a.counts.iter().zip(&b.counts);
    both.map(|(a, b)| {
        let counts = a.counts.iter().zip(&b.counts).map(|(a, b)| a + b);
        Histogram {
            counts: counts.collect(),
            first: a.first,
            beyond: a.beyond + b.beyond,
        }
    })
    .collect()
}

/// Histogram of neighbouring symbols.
struct Histogram {
    counts: Vec<u32>,
    /// The symbol of the first count.
    first: i64,
    /// Symbols elsewhere.
    beyond: u64,
}

/// Where the symbols with slots of their own begin among the counts, and their counts: 0 for a symbol that is
/// cheaper escaped.
type Listed = (usize, Vec<u64>);

impl Histogram {
    fn new(first: i64, count: usize) -> Self {
        Self {
            counts: vec![0; count],
            first,
            beyond: 0,
        }
    }

    /// Histogram the symbols of pairs.
    fn add_pairs(&mut self, pairs: &[Pair], way: Way, raw_bits: u32) {
        for pair in pairs {
            self.add(match way {
                Way::Difference(_) => pair.difference >> raw_bits,
                Way::Context(_) => {
                    (pair.magnitude >> raw_bits << 1 | u64::from(pair.other_sign)).cast_signed()
                }
            });
        }
    }

    fn add(&mut self, symbol: i64) {
        let place = usize::try_from(symbol.wrapping_sub(self.first)).ok();
        match place.and_then(|place| self.counts.get_mut(place)) {
            Some(count) => *count += 1,
            None => self.beyond += 1,
        }
    }

    fn total(&self) -> u64 {
        self.counts
            .iter()
            .map(|&count| u64::from(count))
            .sum::<u64>()
            + self.beyond
    }

    /// The best window.
    fn listed(&self) -> Listed {
        let counts = &self.counts;
        let used = |&count: &u32| count > 0;
        let begin = counts.iter().position(used).unwrap_or(0);
        let end = counts.iter().rposition(used).map_or(0, |last| last + 1);
        let mut start = begin;
        if end.saturating_sub(begin) > WINDOW {
            let sum = |part: &[u32]| part.iter().map(|&count| u64::from(count)).sum::<u64>();
            let mut mass = sum(&counts[begin..begin + WINDOW]);
            let mut best = mass;
            for at in begin + 1..=end - WINDOW {
                mass += u64::from(counts[at + WINDOW - 1]);
                mass -= u64::from(counts[at - 1]);
                if mass > best {
                    (best, start) = (mass, at);
                }
            }
        }
        let total = self.total();
        let keep = |&count: &u32| {
            let count = u64::from(count);
            if count * MIN_SHARE >= total { count } else { 0 }
        };
        let window = &counts[start..end.min(start + WINDOW).max(start)];
        let listed: Vec<u64> = window.iter().map(keep).collect();
        // Symbols without slots at the ends need not be stored.
        let first = listed.iter().position(|&count| count > 0).unwrap_or(0);
        let last = listed.iter().rposition(|&count| count > 0).unwrap_or(0);
        let listed = listed.get(first..=last).unwrap_or_default().to_vec();
        (start + first, listed)
    }

    /// The symbol of the first listed one.
    fn base(&self, start: usize) -> i64 {
        self.first + start as i64
    }

    /// Whether symbols of this width can be those listed, all of them different.
    fn fits(&self, (start, listed): &Listed, bits: u32) -> bool {
        if bits > 16 {
            return true;
        }
        let (base, half) = (self.base(*start), 1_i64 << (bits - 1));
        // Symbols of the relation context are counted from 0 on.
        let most = if self.first == 0 { 2 * half } else { half };
        listed.len() as i64 <= 2 * half && base >= -half && base < most
    }

    /// About what [`Histogram::table`] makes the counted symbols cost, in 1/65536 bit, and the bytes of the
    /// table in the model.
    fn estimate(&self, (_, listed): &Listed, escape_bits: u64, exact: bool) -> (u64, u64) {
        let total = self.total();
        let mass: u64 = listed.iter().sum();
        let escaped = total - mass;
        let has_escape = escaped > 0 || !exact;
        if listed.len() == 1 && !has_escape || total == 0 {
            return (0, TABLE_BYTES + 2);
        }
        let log_total = log2(total);
        let slots = |count: u64| (count * SLOTS as u64).max(total);
        let (mut cost, mut needed) = (0, 0);
        for &count in listed.iter().filter(|&&count| count > 0) {
            cost += count * (log_total - log2(count)).min(8 * ONE_BIT);
            needed += slots(count);
        }
        if has_escape {
            needed += slots(escaped);
            cost +=
                escaped * ((log_total - log2(escaped)).min(8 * ONE_BIT) + escape_bits * ONE_BIT);
        }
        // All slots together are more than there are: every symbol gets fewer.
        cost += total * (log2(needed) - log_total).saturating_sub(8 * ONE_BIT);
        (
            cost,
            TABLE_BYTES + listed.len() as u64 / FREQUENCIES_PER_BYTE,
        )
    }

    /// A table for the counts; every symbol can be coded if the counts are `exact`, or if not.
    fn table(&self, (start, listed): &Listed, bits: u32, exact: bool) -> Option<ContextTable> {
        let escaped = self.total() - listed.iter().sum::<u64>();
        let has_escape = escaped > 0 || !exact;
        let unused = 64 - bits;
        let base = self.base(*start) << unused >> unused;
        let weights: Vec<u64> = listed.iter().copied().filter(|&count| count > 0).collect();
        if weights.is_empty() {
            // Nothing was counted: all the sample had is escaped.
            return ContextTable::new(bits, 0, vec![1], SLOTS as u16 - 1).ok();
        }
        if weights.len() == 1 && !has_escape {
            return ContextTable::new(bits, base, vec![SLOTS as u16], 0).ok();
        }
        let escape_weight = has_escape.then(|| escaped.max(1));
        let all: Vec<u64> = weights.into_iter().chain(escape_weight).collect();
        let mut slots = normalize(&all).into_iter().map(|f| f as u16);
        let frequencies = listed
            .iter()
            .map(|&count| {
                if count > 0 {
                    slots.next().unwrap_or(0)
                } else {
                    0
                }
            })
            .collect();
        let escape = slots.next().unwrap_or(0);
        ContextTable::new(bits, base, frequencies, escape).ok()
    }
}
