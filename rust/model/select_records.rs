//! Records in bytes of unknown kind: how long they are, and which of their bytes are alike.
//!
//! Quantised models repeat blocks of scales, minima and small numbers. For each length that blocks may
//! have, the bytes are counted by their place in the record; the length is the one whose places, each
//! with counts of its own, would take least. Places with like counts then share a class: as many classes as pay for
//! their coder states. Counts are of half bytes: quantised numbers have four bits, or are seen well enough by four.
//! Everything is an integer, so that the same input gives the same records everywhere.
//!
//! Place in docs/format.md: "Records".

use super::log2::log2;
use super::records::{MAX_CLASSES, RECORD_BYTES};
use super::select::Input;
use super::select_bytes::best_of_bytes;
use super::{Model, normalize::ONE_BIT};
use crate::constants::STATES_BYTES;
use crate::options::Level;

/// Lengths of the blocks of GGUF files, and of what other formats have that is not a power of two.
const BLOCK_BYTES: [usize; 19] = [
    17, 18, 20, 22, 24, 34, 36, 40, 54, 56, 66, 82, 84, 110, 136, 144, 176, 210, 292,
];
/// Bytes that lengths are compared on; `max` takes all there are.
const SEARCH_BYTES: usize = 1 << 15;
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
#[derive(Clone, Copy, Debug)]
pub(crate) enum Period {
    Unknown,
    None,
    Bytes(usize),
}

impl Period {
    /// The records of a segment that begins at byte `start` of the tensor, if they take less than
    /// `size` bytes.
    pub(crate) fn records(
        &mut self,
        input: &Input<'_>,
        start: usize,
        size: u64,
    ) -> Option<RecordsPlan> {
        let record_bytes = match *self {
            Self::None => return None,
            Self::Bytes(known) => Some(known),
            Self::Unknown if input.level == Level::Fast || input.bytes.len() < MIN_BYTES => None,
            Self::Unknown => find_period(input, start, size),
        };
        let plan = record_bytes.and_then(|bytes| plan_records(input, start, bytes, size));
        *self = match (record_bytes, &plan) {
            (Some(bytes), Some(_)) => Self::Bytes(bytes),
            _ => Self::None,
        };
        plan
    }
}

/// The length of records whose places would take least, if that is less than `size`.
fn find_period(input: &Input<'_>, start: usize, size: u64) -> Option<usize> {
    let all = input.level == Level::Max;
    let searched = if all { usize::MAX } else { SEARCH_BYTES };
    let bytes = &input.bytes[..input.bytes.len().min(searched)];
    let mut lengths = BLOCK_BYTES.to_vec();
    if all {
        lengths.extend(distances(input.bytes));
    }
    let limit = u128::from(size) * bytes.len() as u128 / input.bytes.len().max(1) as u128;
    let costs = lengths.into_iter().map(|length| {
        let counts = count_places(bytes, start, length);
        (counts.iter().map(cost).sum::<u64>(), length)
    });
    let (cost, length) = costs.min()?;
    (u128::from(cost) < limit * u128::from(8 * ONE_BIT)).then_some(length)
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
    counts
}

/// What the counted bytes take with tables of their own, in units of [`ONE_BIT`], and half a bit for each bit that was learnt.
fn cost(counts: &Counts) -> u64 {
    counts.iter().map(half_cost).sum()
}

fn half_cost(counts: &[u32; HALF]) -> u64 {
    let total: u64 = counts.iter().map(|&count| u64::from(count)).sum();
    let used = counts.iter().filter(|&&count| count > 0).count() as u64;
    let own = counts
        .iter()
        .map(|&count| u64::from(count) * log2(count.into()))
        .sum::<u64>();
    let coded =
        (total * log2(total)).saturating_sub(own) + used.saturating_sub(1) * log2(total) / 2;
    coded.min(total * 4 * ONE_BIT)
}

fn add(to: &mut Counts, from: &Counts) {
    for (to, from) in to.iter_mut().flatten().zip(from.iter().flatten()) {
        *to += from;
    }
}

fn sum(places: &[Counts], class_of: &[u8], class: usize) -> Counts {
    let mut sum = [[0; HALF]; 2];
    for (counts, _) in places
        .iter()
        .zip(class_of)
        .filter(|&(_, &of)| usize::from(of) == class)
    {
        add(&mut sum, counts);
    }
    sum
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
            .map(|class| code_lengths(&sum(places, &class_of, class)))
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
    let values = counts.iter().flatten().zip(lengths.iter().flatten());
    values
        .map(|(&count, &length)| u64::from(count) * length)
        .sum()
}

/// Joins classes while that costs less than the coder states of one, and numbers them from 0.
fn merge_classes(places: &[Counts], class_of: &mut [u8], overhead: u64) {
    let mut classes: Vec<(u8, Counts)> = (0..MAX_CLASSES)
        .filter(|&class| class_of.contains(&(class as u8)))
        .map(|class| (class as u8, sum(places, class_of, class)))
        .collect();
    loop {
        let mut best: Option<(u64, usize, usize)> = None;
        for (a, (_, first)) in classes.iter().enumerate() {
            for (b, (_, second)) in classes.iter().enumerate().skip(a + 1) {
                let mut both = *first;
                add(&mut both, second);
                let more = cost(&both).saturating_sub(cost(first) + cost(second));
                if more < overhead && best.is_none_or(|(least, ..)| more < least) {
                    best = Some((more, a, b));
                }
            }
        }
        let Some((_, a, b)) = best else { break };
        let (gone, counts) = classes.remove(b);
        add(&mut classes[a].1, &counts);
        let kept = classes[a].0;
        class_of
            .iter_mut()
            .filter(|class| **class == gone)
            .for_each(|class| *class = kept);
    }
    for class in class_of {
        let number = classes.iter().position(|(of, _)| of == class);
        *class = number.unwrap_or(0) as u8;
    }
}

/// Records of a known length, if they take less than `size` bytes.
fn plan_records(
    input: &Input<'_>,
    start: usize,
    record_bytes: usize,
    size: u64,
) -> Option<RecordsPlan> {
    let chunks = input.bytes.len().div_ceil(input.chunk_bytes) as u64;
    if input.chunk_bytes < 4 * record_bytes {
        return None;
    }
    let places = count_places(input.bytes, start, record_bytes);
    // Two planes in each chunk, and their tables.
    let overhead = (chunks * 2 * (STATES_BYTES as u64 + 8) + 80) * 8 * ONE_BIT;
    let class_of = classify(&places, overhead);
    let classes = 1 + usize::from(class_of.iter().copied().max()?);
    let records = super::records::Records {
        class_of,
        models: vec![None; classes],
    };
    let span = records.span(start, input.bytes.len());
    let body = &input.bytes[span.before..][..span.records * record_bytes];
    // Records at the ends of chunks are stored raw; lengths, padding, and runs of classes.
    let mut total = chunks * (record_bytes as u64 + 13 * classes as u64 + 16) + 4 * classes as u64;
    total += 2 * records.class_of.chunk_by(|a, b| a == b).count() as u64;
    let mut models = Vec::with_capacity(classes);
    for class in 0..classes {
        let mut bytes = Vec::with_capacity(span.records * records.class_bytes(class));
        records.gather(class, body, &mut bytes);
        let inner = Input {
            bytes: &bytes,
            chunk_bytes: bytes.len().div_ceil(chunks.max(1) as usize).max(1),
            ..*input
        };
        let best = best_of_bytes(&inner);
        total += best.as_ref().map_or(bytes.len() as u64, |best| best.bytes);
        // Tables; places in it were counted before.
        total += best.as_ref().map_or(0, |best| {
            let mut wire = Vec::new();
            best.model.write_to(&mut wire);
            wire.len() as u64
        });
        models.push(best.map(|best| best.model));
    }
    (total + (size >> SAVED_LOG2) < size).then_some(RecordsPlan {
        class_of: records.class_of,
        models,
        bytes: total,
    })
}
