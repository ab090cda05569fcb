//! Several tables for one coded stream: a context number per symbol says which one it takes.
//!
//! The coder is that of [`super`], lanes, states, renormalisation and all; only the lookup of a slot
//! depends on the context as well. Contexts are known to the decoder before the symbol is: they come
//! from a base element ([`crate::planes::delta`]) or from a plane that was decoded before.
//!
//! Deviation from the coder with one table: a table of one symbol gives it all 256 slots, so that it
//! takes no bits and changes no state.
//!
//! Invariants: contexts are below [`MAX_CONTEXTS`]; every context that is used has a table whose
//! frequencies sum to 256, and every index that is encoded has a frequency in it.
//!
//! Place in docs/format.md: "Delta chunk". Paper: J. Duda (arXiv 1311.2540).

use super::decode::Decoder;
use super::encode::Encoder;
use super::spec::Symbol;
use crate::constants::{LANES, MAX_CONTEXTS, MAX_SYMBOLS, SLOTS, STATE_LOW};
use crate::error::{Error, Result};
use crate::simd::{Kernels, Task};

/// What the decoder looks up for a slot of a context, in one word: loops over it become vectors.
///
/// The frequency is in the low 16 bits, then the slot number less the first slot of the symbol, and the
/// index in the top 8.
#[derive(Clone, Copy, Debug, Default)]
#[repr(transparent)]
pub(crate) struct Slot(u32);

impl Slot {
    fn new(frequency: u16, offset: usize, index: u8) -> Self {
        Self(u32::from(frequency) | (offset as u32) << 16 | u32::from(index) << 24)
    }

    #[inline(always)]
    fn index(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// The state after the symbol, before it takes a byte: at most 256 * 255 + 255.
    #[inline(always)]
    fn next(self, state: u16) -> u16 {
        let offset = (self.0 >> 16) as u16 & 0xff;
        (self.0 as u16)
            .wrapping_mul(state >> 8)
            .wrapping_add(offset)
    }
}

/// The tables of all contexts.
#[derive(Clone, Debug)]
pub(crate) struct ContextSpec {
    slots: Box<[Slot; MAX_CONTEXTS * SLOTS]>,
    symbols: Box<[Symbol; MAX_CONTEXTS * MAX_SYMBOLS]>,
    /// The same for vectors of 16 bytes, if no context has more than 16 symbols.
    #[cfg(target_arch = "x86_64")]
    few: Option<Box<FewSymbols>>,
}

/// Tables of at most 16 symbols in each context, in slot order: a row for each place, an entry for each
/// context.
#[derive(Clone, Debug, Default)]
#[cfg(target_arch = "x86_64")]
pub(crate) struct FewSymbols {
    /// Places of the contexts with the most symbols.
    pub(crate) places: usize,
    /// The index of the first place.
    pub(crate) first: [u8; MAX_CONTEXTS],
    /// The last slot before the second place and so on; 255 from the end of the context on.
    pub(crate) last_before: [[u8; MAX_CONTEXTS]; FEW - 1],
    /// What has to be added to the index of the place before.
    pub(crate) step: [[u8; MAX_CONTEXTS]; FEW - 1],
}

/// The most symbols that are few.
#[cfg(target_arch = "x86_64")]
const FEW: usize = 16;

#[cfg(target_arch = "x86_64")]
impl FewSymbols {
    /// Adds the entries of a context in slot order; `false` if they are too many, or one has all slots.
    fn add(&mut self, context: usize, entries: &[(u8, u16)]) -> bool {
        if entries.len() > FEW || entries.len() < 2 {
            return false;
        }
        self.places = self.places.max(entries.len());
        self.first[context] = entries[0].0;
        let mut end = 0;
        let rows = self.last_before.iter_mut().zip(&mut self.step);
        for (place, (last_before, step)) in rows.enumerate() {
            end += entries.get(place).map_or(0, |entry| entry.1);
            last_before[context] = (end - 1) as u8;
            let next = entries.get(place + 1);
            step[context] = next.map_or(0, |next| next.0.wrapping_sub(entries[place].0));
        }
        true
    }
}

impl ContextSpec {
    /// Gives out the slots of each table in the order of its entries, index and frequency.
    ///
    /// The caller guarantees at most [`MAX_CONTEXTS`] tables of distinct indices below 64 whose
    /// frequencies sum to 256.
    pub(crate) fn new<T: Iterator<Item = (u8, u16)>>(tables: impl Iterator<Item = T>) -> Self {
        let mut spec = Self {
            slots: Box::new([Slot::default(); MAX_CONTEXTS * SLOTS]),
            symbols: Box::new([Symbol::default(); MAX_CONTEXTS * MAX_SYMBOLS]),
            #[cfg(target_arch = "x86_64")]
            few: None,
        };
        #[cfg(target_arch = "x86_64")]
        let mut few = Some(Box::<FewSymbols>::default());
        for (context, table) in tables.enumerate() {
            let entries: Vec<_> = table.filter(|&(_, frequency)| frequency > 0).collect();
            #[cfg(target_arch = "x86_64")]
            {
                few = few.and_then(|mut few| few.add(context, &entries).then_some(few));
            }
            let mut start = 0;
            for (index, frequency) in entries {
                let end = start + usize::from(frequency);
                let slots = &mut spec.slots[context * SLOTS..][start..end];
                for (offset, slot) in slots.iter_mut().enumerate() {
                    *slot = Slot::new(frequency, offset, index);
                }
                spec.symbols[context * MAX_SYMBOLS + usize::from(index)] = Symbol {
                    frequency,
                    start: start as u16,
                    reciprocal: (1 << 24) / u32::from(frequency) + 1,
                };
                start = end;
            }
            debug_assert_eq!(start, SLOTS);
        }
        #[cfg(target_arch = "x86_64")]
        {
            spec.few = few;
        }
        spec
    }

    /// Tables of few symbols, if these are.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn few(&self) -> Option<&FewSymbols> {
        self.few.as_deref()
    }

    /// What the decoder looks up, 256 slots for each of the contexts.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn slot_words(&self) -> &[Slot; MAX_CONTEXTS * SLOTS] {
        &self.slots
    }
}

impl Encoder {
    /// Encodes a whole plane; `contexts` has as many entries as `indices`.
    pub(crate) fn encode_contexts(
        &mut self,
        kernels: Kernels,
        spec: &ContextSpec,
        contexts: &[u8],
        indices: &[u8],
    ) {
        self.begin(indices.len());
        let whole = indices.len() / LANES * LANES;
        self.push_contexts(spec, &contexts[whole..], &indices[whole..]);
        kernels.run(PushGroups {
            encoder: self,
            spec,
            contexts: &contexts[..whole],
            indices: &indices[..whole],
        });
    }

    /// The scalar steps: symbols from the last to the first, which belongs to lane 0.
    fn push_contexts(&mut self, spec: &ContextSpec, contexts: &[u8], indices: &[u8]) {
        let lanes = contexts.iter().zip(indices).enumerate().rev();
        for (i, (&context, &index)) in lanes {
            let lane = i % LANES;
            let symbol = spec.symbol(context, index);
            let state = u16::from_le_bytes([self.low[lane], self.high[lane]]);
            let (state, emit) = symbol.push(u32::from(state));
            // The byte is always written and only kept if it is needed.
            self.room[self.cursor - 1] = self.low[lane];
            self.cursor -= usize::from(emit);
            [self.low[lane], self.high[lane]] = (state as u16).to_le_bytes();
        }
    }
}

impl ContextSpec {
    #[inline(always)]
    fn symbol(&self, context: u8, index: u8) -> Symbol {
        let entry = usize::from(context) * MAX_SYMBOLS + usize::from(index);
        let symbol = self.symbols[entry % (MAX_CONTEXTS * MAX_SYMBOLS)];
        debug_assert!(
            symbol.frequency > 0,
            "symbol {index} of {context} has no slot"
        );
        symbol
    }
}

impl Symbol {
    /// The state with the symbol in it, and whether its low byte goes into the stream before.
    #[inline(always)]
    fn push(self, state: u32) -> (u32, bool) {
        let frequency = u32::from(self.frequency);
        let emit = state >= frequency << 8;
        let x = if emit { state >> 8 } else { state };
        // No more than 256 f - 1, so that the product is below 2^32 for every f up to 256.
        let quotient = x.wrapping_mul(self.reciprocal) >> 24;
        let remainder = x.wrapping_sub(quotient.wrapping_mul(frequency));
        ((quotient << 8) + u32::from(self.start) + remainder, emit)
    }
}

/// Whole groups of 64 symbols, the last one first: the same steps for all lanes, in loops that become
/// vectors.
struct PushGroups<'a> {
    encoder: &'a mut Encoder,
    spec: &'a ContextSpec,
    contexts: &'a [u8],
    indices: &'a [u8],
}

impl Task for PushGroups<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { encoder, spec, .. } = self;
        let mut states: [u32; LANES] = std::array::from_fn(|lane| {
            u32::from(u16::from_le_bytes([encoder.low[lane], encoder.high[lane]]))
        });
        let (room, mut cursor) = (&mut encoder.room[..], encoder.cursor);
        let contexts = self.contexts.as_chunks::<LANES>().0;
        let indices = self.indices.as_chunks::<LANES>().0;
        let mut symbols = [Symbol::default(); LANES];
        let (mut bytes, mut emitted) = ([0; LANES], [0; LANES]);
        for (contexts, indices) in contexts.iter().zip(indices).rev() {
            for ((symbol, &context), &index) in symbols.iter_mut().zip(contexts).zip(indices) {
                *symbol = spec.symbol(context, index);
            }
            for lane in 0..LANES {
                let (state, emit) = symbols[lane].push(states[lane]);
                (bytes[lane], emitted[lane]) = (states[lane] as u8, u8::from(emit));
                states[lane] = state;
            }
            // `begin` has made room for a byte of each symbol and 64 more.
            let room = &mut room[cursor - LANES..cursor];
            let mut free = LANES;
            for (&byte, &emit) in bytes.iter().zip(&emitted).rev() {
                room[(free - 1) % LANES] = byte;
                free -= usize::from(emit);
            }
            cursor -= LANES - free;
        }
        encoder.cursor = cursor;
        for (lane, state) in states.iter().enumerate() {
            [encoder.low[lane], encoder.high[lane]] = (*state as u16).to_le_bytes();
        }
    }
}

impl Decoder<'_> {
    /// Decodes the next indices; all calls but the last take a multiple of 64.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the stream is too short.
    #[inline(always)]
    pub(crate) fn fill_contexts(
        &mut self,
        kernels: Kernels,
        spec: &ContextSpec,
        contexts: &[u8],
        indices: &mut [u8],
    ) -> Result<()> {
        let mut done = 0;
        loop {
            // A group takes at most 64 bytes: so many need no check.
            let groups = ((contexts.len() - done) / LANES).min(self.safe_groups());
            let (contexts, indices) = (&contexts[done..], &mut indices[done..]);
            let decoded = kernels.decode_contexts(spec, self, contexts, indices, groups);
            if decoded == 0 {
                return self.fill_scalar(spec, contexts, indices);
            }
            done += LANES * decoded;
        }
    }

    #[inline(always)]
    fn fill_scalar(
        &mut self,
        spec: &ContextSpec,
        contexts: &[u8],
        indices: &mut [u8],
    ) -> Result<()> {
        let mut states: [u16; LANES] =
            std::array::from_fn(|lane| u16::from_le_bytes([self.low[lane], self.high[lane]]));
        let groups = contexts.chunks(LANES).zip(indices.chunks_mut(LANES));
        for (contexts, indices) in groups {
            let whole = contexts
                .first_chunk::<LANES>()
                .zip(indices.first_chunk_mut::<LANES>());
            let used = if let (Some(ahead), Some((contexts, indices))) =
                (self.stream.first_chunk(), whole)
            {
                step_group(spec, &mut states, ahead, contexts, indices)
            } else {
                // The end of the plane or of the stream: from a padded copy.
                let left = self.stream.len().min(LANES);
                let mut ahead = [0; LANES];
                ahead[..left].copy_from_slice(&self.stream[..left]);
                step_lanes(spec, &mut states, &ahead, contexts, indices)
            };
            self.stream = self
                .stream
                .get(used..)
                .ok_or_else(|| Error::corrupt("a coded plane ends too early"))?;
        }
        for (lane, state) in states.iter().enumerate() {
            [self.low[lane], self.high[lane]] = state.to_le_bytes();
        }
        Ok(())
    }
}

#[inline(always)]
fn slot(spec: &ContextSpec, state: u16, context: u8) -> Slot {
    let entry = usize::from(context) * SLOTS + usize::from(state as u8);
    spec.slots[entry % (MAX_CONTEXTS * SLOTS)]
}

/// One symbol for each lane, step by step for all of them; returns the bytes used of `ahead`.
#[inline(always)]
fn step_group(
    spec: &ContextSpec,
    states: &mut [u16; LANES],
    ahead: &[u8; LANES],
    contexts: &[u8; LANES],
    indices: &mut [u8; LANES],
) -> usize {
    let mut slots = [Slot::default(); LANES];
    for ((slot_of_lane, &state), &context) in slots.iter_mut().zip(&*states).zip(contexts) {
        *slot_of_lane = slot(spec, state, context);
    }
    let mut refill = 0_u64;
    for lane in 0..LANES {
        indices[lane] = slots[lane].index();
        states[lane] = slots[lane].next(states[lane]);
        refill |= u64::from(states[lane] < STATE_LOW) << lane;
    }
    let used = refill.count_ones() as usize;
    for &byte in &ahead[..used] {
        let lane = refill.trailing_zeros() as usize % LANES;
        states[lane] = states[lane] << 8 | u16::from(byte);
        refill &= refill.wrapping_sub(1);
    }
    used
}

/// The same, lane by lane, where not all lanes have a symbol.
fn step_lanes(
    spec: &ContextSpec,
    states: &mut [u16; LANES],
    ahead: &[u8; LANES],
    contexts: &[u8],
    indices: &mut [u8],
) -> usize {
    let mut used = 0;
    for ((state, &context), index) in states.iter_mut().zip(contexts).zip(indices) {
        let slot = slot(spec, *state, context);
        *index = slot.index();
        *state = slot.next(*state);
        if *state < STATE_LOW {
            // `used` grows at most once per lane.
            *state = *state << 8 | u16::from(ahead[used % LANES]);
            used += 1;
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::rans::EscapedValues;
    use crate::simd::SimdTier;
    use proptest::prelude::*;

    const TABLES: [&[(u8, u16)]; 4] = [
        &[(5, 256)],
        &[(0, 255), (1, 1)],
        &[(7, 100), (0, 0), (63, 56), (1, 100)],
        &[(1, 128), (2, 64), (3, 32), (4, 32)],
    ];

    fn spec() -> ContextSpec {
        ContextSpec::new(TABLES.iter().map(|table| table.iter().copied()))
    }

    /// Lane by lane, which every tier does alike.
    fn encode(contexts: &[u8], indices: &[u8]) -> Encoder {
        let mut encoder = Encoder::default();
        encoder.begin(indices.len());
        encoder.push_contexts(&spec(), contexts, indices);
        for kernels in SimdTier::ALL.into_iter().filter_map(Kernels::new) {
            let mut other = Encoder::default();
            other.encode_contexts(kernels, &spec(), contexts, indices);
            assert_eq!(other.stream(), encoder.stream(), "{:?}", kernels.tier());
            assert_eq!(other.states(), encoder.states(), "{:?}", kernels.tier());
        }
        encoder
    }

    /// What every tier decodes, which is the same.
    fn decode(encoder: &Encoder, stream: &[u8], contexts: &[u8], step: usize) -> Result<Vec<u8>> {
        let on = |kernels: Kernels| {
            let none = EscapedValues::none();
            let mut decoder = Decoder::new(&encoder.states(), (stream, 0), &none)?;
            let mut indices = vec![0; contexts.len()];
            for (contexts, indices) in contexts.chunks(step).zip(indices.chunks_mut(step)) {
                decoder.fill_contexts(kernels, &spec(), contexts, indices)?;
            }
            decoder.finish()?;
            Ok(indices)
        };
        let scalar = on(Kernels::scalar());
        for kernels in SimdTier::ALL.into_iter().filter_map(Kernels::new) {
            let indices: Result<Vec<u8>> = on(kernels);
            assert_eq!(
                indices.as_ref().ok(),
                scalar.as_ref().ok(),
                "{:?}",
                kernels.tier()
            );
        }
        scalar
    }

    proptest! {
        #[test]
        fn roundtrip_and_truncation(
            picks in prop::collection::vec((0_u8..4, any::<prop::sample::Index>()), 0..700),
            groups in 1_usize..5,
        ) {
            let contexts: Vec<u8> = picks.iter().map(|&(context, _)| context).collect();
            let listed = |context: u8| TABLES[usize::from(context)].iter().filter(|e| e.1 > 0);
            let indices: Vec<u8> = picks
                .iter()
                .map(|(context, pick)| {
                    let listed: Vec<_> = listed(*context).collect();
                    listed[pick.index(listed.len())].0
                })
                .collect();
            let encoder = encode(&contexts, &indices);
            let stream = encoder.stream();
            prop_assert_eq!(&decode(&encoder, stream, &contexts, 64 * groups).unwrap(), &indices);
            if !stream.is_empty() {
                let cut = &stream[..stream.len() - 1];
                prop_assert!(decode(&encoder, cut, &contexts, 64).is_err());
            }
            let longer = [stream, &[0]].concat();
            prop_assert!(decode(&encoder, &longer, &contexts, 64).is_err());
        }
    }

    #[test]
    fn a_table_of_one_symbol_takes_no_bits() {
        let encoder = encode(&[0; 1000], &[5; 1000]);
        assert!(encoder.stream().is_empty());
    }

    #[test]
    fn the_reciprocal_of_all_slots_is_exact() {
        let reciprocal = (1_u64 << 24) / 256 + 1;
        for x in 0..1 << 16_u64 {
            assert_eq!((x * reciprocal) >> 24, x / 256);
        }
    }

    #[test]
    fn quotients_are_exact_in_32_bits() {
        for frequency in 1..=256_u32 {
            let reciprocal = (1 << 24) / frequency + 1;
            for x in 0..256 * frequency {
                let product = x.checked_mul(reciprocal).expect("fits");
                assert_eq!(product >> 24, x / frequency, "{x} / {frequency}");
            }
        }
    }
}
