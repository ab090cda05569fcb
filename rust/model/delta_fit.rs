//! Which delta model a tensor gets next to its base, and what it is estimated to take.
//!
//! Pairs of elements are sampled and sorted by the key of the base's element. Neighbouring keys then
//! join into classes as long as that makes the estimate smaller, each class with the relation and the
//! raw bits that suit it best. Integers only: the same tensors give the same model everywhere.

use super::context_table::ContextTable;
use super::delta::{DeltaClass, DeltaModel, Relation};
use super::log2::log2;
use super::normalize::{ONE_BIT, normalize};
use super::sample::Sample;
use super::select::Input;
use crate::constants::{ESCAPE, MAX_DELTA_RAW_BITS, SLOTS};
use crate::dtype::{Dtype, FloatFields};
use crate::options::Level;
use crate::planes::words::{Word, low_mask, with_word};

/// Pairs that classes are found with, and that the tables are made from.
const SEARCH_PAIRS: usize = 1 << 14;
const TABLE_PAIRS: usize = 1 << 16;
/// Ranges of keys that the search begins with at most, and the fewest pairs in one.
const MAX_RANGES: usize = 48;
const MIN_RANGE_PAIRS: usize = 96;
/// Classes: each more costs the decoder some cache.
const CLASSES: usize = 8;
const MAX_CLASSES: usize = 16;
/// Bits of a key. Half octaves of a BF16 or FP32 take nine, of which the highest is hardly ever set.
const KEY_BITS: u32 = 8;
/// Symbols of a table besides the escape.
const WINDOW: usize = ESCAPE as usize;
/// Differences that are counted apart, from `-NEAREST` on; those beyond are escapes.
const NEAREST: i64 = 256;
/// About what a class takes besides its frequencies, and what a frequency takes: 4 bits.
const CLASS_BYTES: u64 = 5;
const FREQUENCIES_PER_BYTE: u64 = 2;
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
    let pairs = elements.pairs(input.bytes, base, input.effort(SEARCH_PAIRS));
    let total = (input.bytes.len() / elements.bytes) as u64;
    let search = Search {
        elements,
        pairs: &pairs,
        total,
        exact: pairs.len() as u64 == total,
    };
    let most = if input.level == Level::Max {
        MAX_CLASSES
    } else {
        CLASSES
    };
    let classes = search.classes(most);
    if search.exact {
        return search.candidate(&classes, input);
    }
    let pairs = elements.pairs(input.bytes, base, input.effort(TABLE_PAIRS));
    let exact = pairs.len() as u64 == total;
    let search = Search {
        pairs: &pairs,
        exact,
        ..search
    };
    let classes = search.recount(&classes);
    search.candidate(&classes, input)
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

/// How a class is coded, and what its counted pairs then take, in 1/65536 bit.
#[derive(Clone, Copy)]
struct Way {
    relation: Relation,
    raw_bits: u32,
    cost: u64,
    /// Bytes of the class and its table in the model.
    stored: u64,
}

/// A range of pairs of neighbouring keys.
#[derive(Clone, Copy)]
struct Range {
    first_key: u8,
    begin: usize,
    end: usize,
    way: Way,
}

struct Search<'a> {
    elements: Elements,
    pairs: &'a [Pair],
    /// Elements of the whole tensor.
    total: u64,
    /// Whether the pairs are all there are.
    exact: bool,
}

impl Search<'_> {
    /// Classes of keys, at most so many.
    fn classes(&self, most: usize) -> Vec<Range> {
        let mut ranges = self.ranges();
        let joined = |a: &Range, b: &Range| self.way(a.begin, b.end);
        let mut pairs: Vec<Way> = ranges.windows(2).map(|w| joined(&w[0], &w[1])).collect();
        while ranges.len() > 1 {
            let size = |way: &Way| self.size(way);
            let gain = |at: usize| {
                let apart = size(&ranges[at].way) + size(&ranges[at + 1].way);
                apart.cast_signed() - size(&pairs[at]).cast_signed()
            };
            let best = (0..pairs.len()).max_by_key(|&at| (gain(at), std::cmp::Reverse(at)));
            let Some(at) = best.filter(|&at| gain(at) >= 0 || ranges.len() > most) else {
                break;
            };
            let second = ranges.remove(at + 1);
            ranges[at].end = second.end;
            ranges[at].way = pairs.remove(at);
            if at < pairs.len() {
                pairs[at] = joined(&ranges[at], &ranges[at + 1]);
            }
            if at > 0 {
                pairs[at - 1] = joined(&ranges[at - 1], &ranges[at]);
            }
        }
        ranges
    }

    /// Ranges of keys with enough pairs to judge by.
    fn ranges(&self) -> Vec<Range> {
        let least = (self.pairs.len() / MAX_RANGES).max(MIN_RANGE_PAIRS);
        let mut ranges: Vec<Range> = Vec::new();
        let mut begin = 0;
        while begin < self.pairs.len() {
            let mut end = (begin + least).min(self.pairs.len());
            let last_key = self.pairs[end - 1].key;
            end += self.pairs[end..].partition_point(|pair| pair.key <= last_key);
            if self.pairs.len() - end < least {
                end = self.pairs.len();
            }
            let first_key = if begin == 0 { 0 } else { self.pairs[begin].key };
            let way = self.way(begin, end);
            ranges.push(Range {
                first_key,
                begin,
                end,
                way,
            });
            begin = end;
        }
        ranges
    }

    /// The same classes with the pairs of this search, and without those that have none.
    fn recount(&self, classes: &[Range]) -> Vec<Range> {
        let mut ranges = Vec::new();
        for (number, class) in classes.iter().enumerate() {
            let begin = self
                .pairs
                .partition_point(|pair| pair.key < class.first_key);
            let next = classes.get(number + 1);
            let end = next.map_or(self.pairs.len(), |next| {
                self.pairs.partition_point(|pair| pair.key < next.first_key)
            });
            if begin < end {
                let first_key = if ranges.is_empty() {
                    0
                } else {
                    class.first_key
                };
                ranges.push(Range {
                    first_key,
                    begin,
                    end,
                    way: self.way(begin, end),
                });
            }
        }
        ranges
    }

    /// What a class takes of the whole tensor, in bytes.
    fn size(&self, way: &Way) -> u64 {
        Input::total(way.cost, self.pairs.len() as u64, self.total as usize) + way.stored
    }

    /// The cheapest way to code the pairs of a range.
    fn way(&self, begin: usize, end: usize) -> Way {
        let pairs = &self.pairs[begin..end];
        let differences = self.difference_raw_bits(pairs).map(|raw_bits| {
            let relation = match self.elements.mantissa {
                Some(_) => Relation::Difference,
                None => Relation::Integer,
            };
            (relation, raw_bits)
        });
        let contexts = self.elements.mantissa.into_iter().flat_map(|mantissa| {
            (mantissa.saturating_sub(2)..=mantissa)
                .rev()
                .map(|bits| (Relation::Context, bits))
        });
        differences
            .chain(contexts)
            .filter(|&(_, raw_bits)| raw_bits <= MAX_DELTA_RAW_BITS)
            .map(|(relation, raw_bits)| {
                let counts = self.count(pairs, relation, raw_bits);
                let (cost, stored) = counts.estimate(self.escape_bits(raw_bits), self.exact);
                Way {
                    relation,
                    raw_bits,
                    cost: cost + pairs.len() as u64 * u64::from(raw_bits) * ONE_BIT,
                    stored,
                }
            })
            .min_by_key(|way| self.size(way))
            .unwrap_or(Way {
                relation: Relation::Difference,
                raw_bits: 0,
                cost: u64::MAX >> 1,
                stored: 0,
            })
    }

    /// Numbers of raw bits worth trying for differences: those that spread the middle half of them
    /// over a few symbols up to a good part of the table.
    fn difference_raw_bits(&self, pairs: &[Pair]) -> impl Iterator<Item = u32> + use<> {
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
        let typical = typical.unwrap_or(0) as u32;
        let most = self.elements.kept - 1;
        (typical.saturating_sub(5)..=typical.saturating_sub(2)).filter(move |&bits| bits <= most)
    }

    fn escape_bits(&self, raw_bits: u32) -> u64 {
        u64::from((self.elements.kept - raw_bits).div_ceil(8) * 8)
    }

    fn count(&self, pairs: &[Pair], relation: Relation, raw_bits: u32) -> Counts {
        let bits = self.elements.kept - raw_bits;
        if relation == Relation::Context {
            // Exponent, what of the mantissa is not raw, and the sign.
            let mut counts = vec![0; 1 << bits];
            for pair in pairs {
                counts
                    [(pair.magnitude >> raw_bits << 1) as usize | usize::from(pair.other_sign)] +=
                    1;
            }
            return Counts {
                counts,
                first: 0,
                beyond: 0,
            };
        }
        let mut counts = vec![0; 2 * NEAREST as usize];
        let mut beyond = 0;
        for pair in pairs {
            let symbol = (pair.difference >> raw_bits) + NEAREST;
            match usize::try_from(symbol)
                .ok()
                .and_then(|symbol| counts.get_mut(symbol))
            {
                Some(count) => *count += 1,
                None => beyond += 1,
            }
        }
        Counts {
            counts,
            first: -NEAREST,
            beyond,
        }
    }

    /// The model of the classes, and its size.
    fn candidate(&self, classes: &[Range], input: &Input<'_>) -> Option<DeltaCandidate> {
        let mut bytes = 0;
        let mut model = DeltaModel {
            element_bytes: self.elements.bytes,
            dropped_bits: self.elements.bytes as u32 * 8 - self.elements.kept,
            key_shift: self.elements.key_shift,
            classes: Vec::new(),
        };
        for class in classes {
            bytes += self.size(&class.way);
            let Way {
                relation, raw_bits, ..
            } = class.way;
            let counts = self.count(&self.pairs[class.begin..class.end], relation, raw_bits);
            let escape_bits = self.escape_bits(raw_bits);
            let table = counts.table(self.elements.kept - raw_bits, escape_bits, self.exact)?;
            model.classes.push(DeltaClass {
                first_key: class.first_key,
                relation,
                raw_bits,
                table,
            });
        }
        let model = model.validated().ok()?;
        bytes += input.plane_overhead();
        Some(DeltaCandidate { model, bytes })
    }
}

/// Counts of neighbouring symbols.
struct Counts {
    counts: Vec<u32>,
    /// The symbol of the first count.
    first: i64,
    /// Symbols elsewhere.
    beyond: u64,
}

impl Counts {
    fn total(&self) -> u64 {
        self.counts
            .iter()
            .map(|&count| u64::from(count))
            .sum::<u64>()
            + self.beyond
    }

    /// The counts with slots of their own in the best window: where they begin, and the counts, 0 for
    /// symbols that are cheaper escaped.
    fn listed(&self) -> (usize, Vec<u64>) {
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

    /// About what [`Counts::table`] makes the counted symbols cost, in 1/65536 bit, and the bytes of the
    /// class in the model.
    fn estimate(&self, escape_bits: u64, exact: bool) -> (u64, u64) {
        let (_, listed) = self.listed();
        let total = self.total();
        let mass: u64 = listed.iter().sum();
        let escaped = total - mass;
        let log_total = log2(total);
        let cost: u64 = listed
            .iter()
            .filter(|&&count| count > 0)
            .map(|&count| count * (log_total - log2(count)).min(8 * ONE_BIT))
            .sum();
        let has_escape = escaped > 0 || !exact;
        let slots = |count: u64| (count * SLOTS as u64).max(total);
        let mut needed: u64 = listed
            .iter()
            .filter(|&&count| count > 0)
            .map(|&c| slots(c))
            .sum();
        if listed.len() == 1 && !has_escape {
            return (0, CLASS_BYTES);
        }
        let mut cost = cost;
        if has_escape {
            needed += slots(escaped);
            cost +=
                escaped * ((log_total - log2(escaped)).min(8 * ONE_BIT) + escape_bits * ONE_BIT);
        }
        // All slots together are more than there are: every symbol gets fewer.
        cost += total * (log2(needed) - log_total).saturating_sub(8 * ONE_BIT);
        (
            cost,
            CLASS_BYTES + listed.len() as u64 / FREQUENCIES_PER_BYTE,
        )
    }

    /// A table for the counts; every symbol can be coded if the counts are `exact`, or if not.
    fn table(&self, bits: u32, escape_bits: u64, exact: bool) -> Option<ContextTable> {
        debug_assert!(escape_bits >= u64::from(bits));
        let (start, listed) = self.listed();
        let escaped = self.total() - listed.iter().sum::<u64>();
        let has_escape = escaped > 0 || !exact;
        let base = (self.first + start as i64).cast_unsigned() & low_mask(bits);
        let weights: Vec<u64> = listed.iter().copied().filter(|&count| count > 0).collect();
        if weights.is_empty() {
            return None;
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
