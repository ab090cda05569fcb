//! Records in bytes of unknown kind: how long they are, and which of their bytes are alike.
//!
//! Quantised models repeat blocks of scales, minima and small numbers. For each length that blocks may
//! have, the bytes are counted by their place in the record; the length is the one whose places, each
//! with counts of its own, would take least. Places with like counts then share a class: as many classes as pay for
//! their coder states. Counts are of half bytes: quantised numbers have four bits, or are seen well enough by four.
//! Everything is an integer, so that the same input gives the same records everywhere.
//!
//! Most bytes have no records, and those that have keep them: a few records of each length show whether
//! there is anything to look for, and a segment keeps the length of the one before, finds its classes
//! on a part of its records, and cuts them as before if they are the same.
//!
//! Place in docs/format.md: "Records".

use std::sync::LazyLock;

use super::log2::log2;
use super::records::{MAX_CLASSES, RECORD_BYTES};
use super::select::Input;
use super::select_bytes::{Kind, best_kind};
use super::{Model, normalize::ONE_BIT};
use crate::constants::STATES_BYTES;
use crate::options::Level;

/// Lengths of the blocks of GGUF files, and of what other formats have that is not a power of two.
const BLOCK_BYTES: [usize; 19] = [
    17, 18, 20, 22, 24, 34, 36, 40, 54, 56, 66, 82, 84, 110, 136, 144, 176, 210, 292,
];
/// Bytes that lengths are compared on; `max` takes all there are.
const SEARCH_BYTES: usize = 1 << 15;
/// Records of each length that are looked at first, and the lengths that are then compared on more bytes.
const PROBE_RECORDS: usize = 64;
/// As neighbours at so many places: small tensors may lie before those that are quantised.
const PROBE_PLACES: usize = 4;
const PROBED_LENGTHS: usize = 6;
/// What the places of those records must save together: noise saves nothing.
const PROBE_GAIN: u64 = 64 * ONE_BIT;
/// One of so many records of a segment shows its classes where the length is known, as neighbours of so many.
const PART_LOG2: u32 = 2;
const PART_RECORDS: usize = 64;
/// The length is kept while what records take grows by no more than a 256th.
const KEPT_WITHIN_LOG2: u32 = 8;
/// Bytes in which repetitions are looked for, and the longest distance.
const REPEAT_BYTES: usize = 1 << 14;
const MAX_DISTANCE: usize = 1 << 12;
/// The most frequent distances that are tried.
const DISTANCES: usize = 4;
/// Below this size the coder states of some classes take what records save.
const MIN_BYTES: usize = 1 << 13;
/// Records pay if they save a 256th, which is more than estimates are off.
const SAVED_LOG2: u32 = 8;
/// Rounds in which places change to the class that suits them best.
const ROUNDS: usize = 4;
/// Values of a half byte.
const HALF: usize = 16;

/// Counts of the upper and of the lower half of bytes.
type Counts = [[u32; HALF]; 2];

/// Records that a segment is made of.
#[derive(Clone, Debug)]
pub(crate) struct RecordsPlan {
    /// The class of each byte of a record.
    pub(crate) class_of: Vec<u8>,
    /// The model of each class, `None` for raw.
    pub(crate) models: Vec<Option<Model>>,
    /// About what they take.
    pub(crate) bytes: u64,
}

/// What is known of the records from the segment before.
#[derive(Clone, Debug)]
pub(crate) enum Period {
    Unknown,
    None,
    Known(Box<Layout>),
}

/// Records without their tables.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    class_of: Vec<u8>,
    /// How each class is cut, `None` for raw.
    kinds: Vec<Option<Kind>>,
    /// What they took, in 1/65536 of the segment.
    share: u64,
}

impl Period {
    /// The records of a segment, as long as those of the one before, if they take about as much.
    pub(crate) fn again(&mut self, input: &Input<'_>, start: usize) -> Option<RecordsPlan> {
        let Self::Known(layout) = self else {
            return None;
        };
        if input.level == Level::Max {
            return None;
        }
        let places = count_part(input.bytes, start, layout.class_of.len());
        let class_of = classify(&places, overhead(input) >> PART_LOG2);
        if class_of != layout.class_of {
            layout.class_of = class_of;
            layout.kinds.clear();
        }
        let plan = layout.plan(input, start)?;
        let limit = layout.share + (layout.share >> KEPT_WITHIN_LOG2);
        (share(plan.bytes, input) <= limit).then_some(plan)
    }

    /// The records of a segment that begins at byte `start` of the tensor, if they take less than
    /// `size` bytes.
    pub(crate) fn records(
        &mut self,
        input: &Input<'_>,
        start: usize,
        size: u64,
    ) -> Option<RecordsPlan> {
        let record_bytes = match self {
            Self::None => return None,
            Self::Known(layout) => Some(layout.class_of.len()),
            Self::Unknown if input.level == Level::Fast || input.bytes.len() < MIN_BYTES => None,
            Self::Unknown => find_period(input, start, size),
        };
        let found = record_bytes.and_then(|bytes| plan_records(input, start, bytes, size));
        let (layout, plan) = found.unzip();
        *self = layout.map_or(Self::None, |layout| Self::Known(Box::new(layout)));
        plan
    }
}

/// Bytes as a part of the input, in 1/65536.
fn share(bytes: u64, input: &Input<'_>) -> u64 {
    (bytes << 16) / input.bytes.len().max(1) as u64
}

/// The length of records whose places would take least, if that is less than `size`.
fn find_period(input: &Input<'_>, start: usize, size: u64) -> Option<usize> {
    let all = input.level == Level::Max;
    let searched = if all { usize::MAX } else { SEARCH_BYTES };
    let bytes = &input.bytes[..input.bytes.len().min(searched)];
    let mut lengths = BLOCK_BYTES.to_vec();
    if all {
        lengths.extend(distances(input.bytes));
    } else {
        lengths = promising(bytes, start, lengths);
    }
    let limit = u128::from(size) * bytes.len() as u128 / input.bytes.len().max(1) as u128;
    let costs = lengths.into_iter().map(|length| {
        let counts = count_places(bytes, start, length);
        (counts.iter().map(cost).sum::<u64>(), length)
    });
    let (cost, length) = costs.min()?;
    (u128::from(cost) < limit * u128::from(8 * ONE_BIT)).then_some(length)
}

/// The lengths whose places differ in a few records already, the clearest of them.
fn promising(bytes: &[u8], start: usize, lengths: Vec<usize>) -> Vec<usize> {
    let mut gains: Vec<(u64, usize)> = lengths
        .into_iter()
        .map(|length| {
            let run = bytes.len().min(PROBE_RECORDS / PROBE_PLACES * length);
            let mut places = vec![[[0; HALF]; 2]; length];
            for place in 0..PROBE_PLACES {
                let at = (bytes.len() - run) * place / (PROBE_PLACES - 1);
                add_places(&bytes[at..at + run], start + at, &mut places);
            }
            let lengths = code_lengths(&sum(places.iter()));
            let gain = |(counts, lengths): (&[u32; HALF], &[u64; HALF])| {
                coded_half(counts, lengths).saturating_sub(table_cost(counts))
            };
            let halves = places.iter().flat_map(|counts| counts.iter().zip(&lengths));
            let gain: u64 = halves.map(gain).sum();
            // The same number of records of each length: what counts is the gain per byte.
            (
                if gain < PROBE_GAIN {
                    0
                } else {
                    gain / length as u64
                },
                length,
            )
        })
        .filter(|&(gain, _)| gain > 0)
        .collect();
    gains.sort_unstable_by_key(|&(gain, length)| (std::cmp::Reverse(gain), length));
    gains.truncate(PROBED_LENGTHS);
    gains.into_iter().map(|(_, length)| length).collect()
}

/// The distances at which bytes are equal most often.
fn distances(bytes: &[u8]) -> Vec<usize> {
    let bytes = &bytes[..bytes.len().min(REPEAT_BYTES + MAX_DISTANCE)];
    let mut counts: Vec<(usize, usize)> = (*RECORD_BYTES.start()..=MAX_DISTANCE)
        .filter(|distance| distance + REPEAT_BYTES <= bytes.len())
        .map(|distance| {
            // Sums of at most 128 fit bytes, in which they are quick.
            let pairs = bytes[..REPEAT_BYTES]
                .chunks(128)
                .zip(bytes[distance..].chunks(128));
            let equal = |(a, b): (&[u8], &[u8])| {
                let pairs = a.iter().zip(b);
                usize::from(pairs.map(|(a, b)| u8::from(a == b)).sum::<u8>())
            };
            (pairs.map(equal).sum(), distance)
        })
        .collect();
    counts.sort_by_key(|&(count, distance)| (std::cmp::Reverse(count), distance));
    counts
        .into_iter()
        .take(DISTANCES)
        .map(|(_, distance)| distance)
        .collect()
}

/// Counts by the place in records that begin with the tensor.
fn count_places(bytes: &[u8], start: usize, record_bytes: usize) -> Vec<Counts> {
    let mut counts = vec![[[0; HALF]; 2]; record_bytes];
    add_places(bytes, start, &mut counts);
    counts
}

/// [`count_places`] of one in `2^PART_LOG2` records.
fn count_part(bytes: &[u8], start: usize, record_bytes: usize) -> Vec<Counts> {
    let mut counts = vec![[[0; HALF]; 2]; record_bytes];
    let run = PART_RECORDS * record_bytes;
    for (number, bytes) in bytes.chunks(run).enumerate().step_by(1 << PART_LOG2) {
        add_places(bytes, start + number * run, &mut counts);
    }
    counts
}

fn add_places(bytes: &[u8], start: usize, counts: &mut [Counts]) {
    let record_bytes = counts.len();
    let (first, second) = bytes.split_at((record_bytes - start % record_bytes).min(bytes.len()));
    let mut add = |place: usize, byte: u8| {
        let [upper, lower] = &mut counts[place];
        upper[usize::from(byte >> 4)] += 1;
        lower[usize::from(byte & 15)] += 1;
    };
    for (place, &byte) in (start % record_bytes..).zip(first) {
        add(place, byte);
    }
    for record in second.chunks(record_bytes) {
        for (place, &byte) in record.iter().enumerate() {
            add(place, byte);
        }
    }
}

/// What the counted bytes take with tables of their own, in units of [`ONE_BIT`], and half a bit for each bit that was learnt.
fn cost(counts: &Counts) -> u64 {
    counts.iter().map(half_cost).sum()
}

/// `count * log2(count)`.
fn count_times_log2(count: u32) -> u64 {
    static SMALL: LazyLock<[u64; 1024]> = LazyLock::new(|| {
        let mut products = [0; 1024];
        for (count, product) in products.iter_mut().enumerate() {
            *product = count as u64 * log2(count as u64);
        }
        products
    });
    let known = SMALL.get(count as usize).copied();
    known.unwrap_or_else(|| u64::from(count) * log2(count.into()))
}

fn half_cost(counts: &[u32; HALF]) -> u64 {
    let total: u64 = counts.iter().map(|&count| u64::from(count)).sum();
    table_cost(counts).min(total * 4 * ONE_BIT)
}

fn table_cost(counts: &[u32; HALF]) -> u64 {
    let total: u64 = counts.iter().map(|&count| u64::from(count)).sum();
    let used = counts.iter().filter(|&&count| count > 0).count() as u64;
    let own = counts
        .iter()
        .map(|&count| count_times_log2(count))
        .sum::<u64>();
    (total * log2(total)).saturating_sub(own) + used.saturating_sub(1) * log2(total) / 2
}

fn add(to: &mut Counts, from: &Counts) {
    for (to, from) in to.iter_mut().flatten().zip(from.iter().flatten()) {
        *to += from;
    }
}

fn sum<'a>(all: impl Iterator<Item = &'a Counts>) -> Counts {
    let mut sum = [[0; HALF]; 2];
    all.for_each(|counts| add(&mut sum, counts));
    sum
}

fn sum_class(places: &[Counts], class_of: &[u8], class: usize) -> Counts {
    let of_class = places
        .iter()
        .zip(class_of)
        .filter(|&(_, &of)| usize::from(of) == class);
    sum(of_class.map(|(counts, _)| counts))
}

/// Gives each place of the record a class.
fn classify(places: &[Counts], overhead: u64) -> Vec<u8> {
    // Places of like cost begin together.
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by_key(|&place| (cost(&places[place]), place));
    let classes = places.len().min(MAX_CLASSES);
    let mut class_of = vec![0; places.len()];
    for (rank, &place) in order.iter().enumerate() {
        class_of[place] = (rank * classes / places.len()) as u8;
    }
    for _ in 0..ROUNDS {
        let lengths: Vec<[[u64; HALF]; 2]> = (0..classes)
            .map(|class| code_lengths(&sum_class(places, &class_of, class)))
            .collect();
        for (place, counts) in places.iter().enumerate() {
            let best = (0..classes).min_by_key(|&class| coded(counts, &lengths[class]));
            class_of[place] = best.unwrap_or(0) as u8;
        }
    }
    merge_classes(places, &mut class_of, overhead);
    class_of
}

/// Bits that each value takes in a class.
fn code_lengths(counts: &Counts) -> [[u64; HALF]; 2] {
    counts.map(|counts| {
        // Values that did not occur may, at other places.
        let total: u64 = counts.iter().map(|&count| u64::from(count) + 1).sum();
        counts.map(|count| log2(total) - log2(u64::from(count) + 1))
    })
}

fn coded(counts: &Counts, lengths: &[[u64; HALF]; 2]) -> u64 {
    let halves = counts.iter().zip(lengths);
    halves
        .map(|(counts, lengths)| coded_half(counts, lengths))
        .sum()
}

fn coded_half(counts: &[u32; HALF], lengths: &[u64; HALF]) -> u64 {
    let values = counts.iter().zip(lengths);
    values
        .map(|(&count, &length)| u64::from(count) * length)
        .sum()
}

/// Joins classes while that costs less than the coder states of one, and numbers them from 0.
fn merge_classes(places: &[Counts], class_of: &mut [u8], overhead: u64) {
    let used = (0..MAX_CLASSES).filter(|&class| class_of.contains(&(class as u8)));
    let mut classes: Vec<(u8, Counts, u64)> = used
        .map(|class| {
            let counts = sum_class(places, class_of, class);
            (class as u8, counts, cost(&counts))
        })
        .collect();
    // What joining two costs; in the row of the later one.
    let more = |classes: &[(u8, Counts, u64)], a: usize, b: usize| {
        let mut both = classes[a].1;
        add(&mut both, &classes[b].1);
        cost(&both).saturating_sub(classes[a].2 + classes[b].2)
    };
    let mut pairs: Vec<Vec<u64>> = (0..classes.len())
        .map(|b| (0..b).map(|a| more(&classes, a, b)).collect())
        .collect();
    loop {
        let all = pairs.iter().enumerate();
        let all =
            all.flat_map(|(b, row)| row.iter().enumerate().map(move |(a, &more)| (more, a, b)));
        let Some((_, a, b)) = all.min().filter(|&(more, ..)| more < overhead) else {
            break;
        };
        let (gone, counts, _) = classes.remove(b);
        pairs.remove(b);
        for row in &mut pairs[b..] {
            row.remove(b);
        }
        add(&mut classes[a].1, &counts);
        classes[a].2 = cost(&classes[a].1);
        for other in 0..classes.len() {
            if other != a {
                let (first, second) = (other.min(a), other.max(a));
                pairs[second][first] = more(&classes, first, second);
            }
        }
        let kept = classes[a].0;
        class_of
            .iter_mut()
            .filter(|class| **class == gone)
            .for_each(|class| *class = kept);
    }
    for class in class_of {
        let number = classes.iter().position(|(of, ..)| of == class);
        *class = number.unwrap_or(0) as u8;
    }
}

/// Records of a known length, if they take less than `size` bytes.
fn plan_records(
    input: &Input<'_>,
    start: usize,
    record_bytes: usize,
    size: u64,
) -> Option<(Layout, RecordsPlan)> {
    if input.chunk_bytes < 4 * record_bytes {
        return None;
    }
    let places = count_places(input.bytes, start, record_bytes);
    let mut layout = Layout {
        class_of: classify(&places, overhead(input)),
        kinds: Vec::new(),
        share: 0,
    };
    let plan = layout.plan(input, start)?;
    layout.share = share(plan.bytes, input);
    (plan.bytes + (size >> SAVED_LOG2) < size).then_some((layout, plan))
}

/// What a class more takes, in units of [`ONE_BIT`]: two planes in each chunk, and their tables.
fn overhead(input: &Input<'_>) -> u64 {
    let chunks = input.bytes.len().div_ceil(input.chunk_bytes) as u64;
    (chunks * 2 * (STATES_BYTES as u64 + 8) + 80) * 8 * ONE_BIT
}

impl Layout {
    /// Tables for each class; how to cut it is searched if it is not known.
    fn plan(&mut self, input: &Input<'_>, start: usize) -> Option<RecordsPlan> {
        let chunks = input.bytes.len().div_ceil(input.chunk_bytes) as u64;
        let class_of = &self.class_of;
        let classes = 1 + usize::from(class_of.iter().copied().max()?);
        let records = super::records::Records {
            class_of: class_of.clone(),
            models: vec![None; classes],
        };
        let record_bytes = class_of.len();
        let span = records.span(start, input.bytes.len());
        let body = &input.bytes[span.before..][..span.records * record_bytes];
        // Records at the ends of chunks are stored raw; lengths, padding, and runs of classes.
        let mut total =
            chunks * (record_bytes as u64 + 13 * classes as u64 + 16) + 4 * classes as u64;
        total += 2 * class_of.chunk_by(|a, b| a == b).count() as u64;
        let mut models = Vec::with_capacity(classes);
        let mut bytes = Vec::with_capacity(body.len());
        let mut wire = Vec::new();
        for class in 0..classes {
            bytes.clear();
            records.gather(class, body, &mut bytes);
            let inner = Input {
                bytes: &bytes,
                chunk_bytes: bytes.len().div_ceil(chunks.max(1) as usize).max(1),
                ..*input
            };
            if self.kinds.len() == class {
                self.kinds.push(best_kind(&inner));
            }
            let best = self.kinds[class].and_then(|kind| kind.candidate(&inner, usize::MAX));
            let best = best.filter(|best| inner.is_worthwhile(best.bytes));
            total += best.as_ref().map_or(bytes.len() as u64, |best| best.bytes);
            // Tables; places in it were counted before.
            wire.clear();
            if let Some(best) = &best {
                best.model.write_to(&mut wire);
            }
            total += wire.len() as u64;
            models.push(best.map(|best| best.model));
        }
        Some(RecordsPlan {
            class_of: records.class_of,
            models,
            bytes: total,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Threads;
    use crate::simd::Kernels;

    fn noise(len: usize, mut seed: u64) -> Vec<u8> {
        let mut next = || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    /// Noise in which the first byte of each record, or some more of a long one, is one of four values.
    fn blocks(len: usize, record_bytes: usize) -> Vec<u8> {
        let mut bytes = noise(len, 7);
        for record in bytes.chunks_mut(record_bytes) {
            let few = record.len().min(record_bytes.div_ceil(16));
            for byte in &mut record[..few] {
                *byte = 0x2c + *byte % 4;
            }
        }
        bytes
    }

    fn input(bytes: &[u8]) -> Input<'_> {
        Input {
            bytes,
            chunk_bytes: bytes.len(),
            level: Level::Default,
            threads: Threads::new(1),
            kernels: Kernels::scalar(),
        }
    }

    #[test]
    fn noise_promises_nothing() {
        for seed in 0..20 {
            let bytes = noise(SEARCH_BYTES, seed);
            assert!(promising(&bytes, 0, BLOCK_BYTES.to_vec()).is_empty());
        }
    }

    #[test]
    fn every_length_is_found_in_a_few_records() {
        for record_bytes in BLOCK_BYTES {
            let bytes = blocks(1 << 17, record_bytes);
            let mut period = Period::Unknown;
            let found = period.records(&input(&bytes), 0, bytes.len() as u64);
            let found = found.map_or(0, |plan| plan.class_of.len());
            // Multiples of a length show the same.
            assert!(
                found > 0 && found.is_multiple_of(record_bytes),
                "{record_bytes}: {found}"
            );
        }
    }

    #[test]
    fn records_go_on_at_any_place_and_end_with_them() {
        let bytes = blocks(3 << 17, 18);
        let segments: Vec<&[u8]> = bytes.chunks(1 << 17).collect();
        let mut period = Period::Unknown;
        let first = period.records(&input(segments[0]), 0, 1 << 17).unwrap();
        let again = period.again(&input(segments[1]), 1 << 17).unwrap();
        assert_eq!(again.class_of, first.class_of);
        let other = noise(1 << 17, 3);
        assert!(period.again(&input(&other), 2 << 17).is_none());
    }
}
