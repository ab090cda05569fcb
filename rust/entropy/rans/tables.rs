//! Tables of symbols in contexts, in the forms that vectors look them up in.
//!
//! A first symbol has one [`Spec`] or several, one for each class of lines, and the same values for all of
//! them. Second symbols are few: 2 to 16 in each of at most 16 contexts. A vector finds the place of a
//! symbol in the slot order of its context by halves, one comparison of the slot with the last slot
//! before the other half at a time; all tables are then looked up at `context << steps | place`.
//!
//! Invariant of [`SecondTables`]: places from `contexts << steps` on, and those of symbols without slots,
//! are never reached by a slot.

use super::spec::Spec;
use crate::constants::MAX_SYMBOLS;

/// Places that all contexts have together at most.
const PLACES: usize = 256;
/// log2 of the places that a context has at least, and at most.
const STEPS: std::ops::RangeInclusive<u32> = 2..=4;

/// First symbols.
#[derive(Clone, Debug)]
pub(crate) struct FirstTables {
    /// One table for each class of lines, or only one.
    pub(crate) classes: Vec<Spec>,
    pub(crate) values: FirstValues,
}

/// What the index of a first symbol stands for.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct FirstValues {
    pub(crate) low: [u8; MAX_SYMBOLS],
    pub(crate) high: [u8; MAX_SYMBOLS],
    /// Where the context of the second symbol begins in its tables.
    pub(crate) context: [u8; MAX_SYMBOLS],
    /// Whether index 63 stands for the next escaped symbol.
    pub(crate) escape: bool,
}

/// Second symbols.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct SecondTables {
    /// For each step the last slot before the place so many halves further.
    pub(crate) last_before: [[u8; PLACES]; 4],
    pub(crate) frequency: [u8; PLACES],
    pub(crate) start: [u8; PLACES],
    /// Bytes of the value.
    pub(crate) low: [u8; PLACES],
    pub(crate) high: [u8; PLACES],
    /// log2 of the places of a context, 2 to 4.
    pub(crate) steps: u32,
    /// Parts of 64 places that are in use: 1, 2 or 4.
    pub(crate) blocks: usize,
}

impl SecondTables {
    /// Tables from the entries of each context in slot order, index and frequency; `value` gives the low
    /// and the high byte for an index.
    ///
    /// The caller guarantees at most 16 contexts of indices below 16, with frequencies of 1 to 255 that
    /// sum to 256.
    pub(crate) fn new(contexts: &[Vec<(u8, u16)>], value: impl Fn(u8) -> [u8; 2]) -> Self {
        let most = contexts.iter().map(Vec::len).max().unwrap_or(1);
        let steps = most.next_power_of_two().ilog2();
        let steps = steps.clamp(*STEPS.start(), *STEPS.end());
        let mut tables = Self {
            last_before: [[u8::MAX; PLACES]; 4],
            frequency: [1; PLACES],
            start: [0; PLACES],
            low: [0; PLACES],
            high: [0; PLACES],
            steps,
            blocks: (contexts.len() << steps).div_ceil(64).next_power_of_two(),
        };
        let mut last_before = [u8::MAX; PLACES];
        for (context, entries) in contexts.iter().enumerate() {
            let mut start = 0;
            for (place, &(index, frequency)) in ((context << steps)..).zip(entries) {
                // No slot is after the last one: where a context begins no comparison comes.
                last_before[place] = (start as u8).wrapping_sub(1);
                tables.frequency[place] = frequency as u8;
                tables.start[place] = start as u8;
                [tables.low[place], tables.high[place]] = value(index);
                start += frequency;
            }
        }
        for (step, table) in tables.last_before.iter_mut().enumerate() {
            let further = last_before.iter().skip(1 << step);
            table
                .iter_mut()
                .zip(further)
                .for_each(|(to, &last)| *to = last);
        }
        tables
    }
}
