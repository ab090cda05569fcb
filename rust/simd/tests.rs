//! One suite for every tier, against naive code. Buffers end (or begin) at a forbidden page.

mod guard_page;
mod naive;

use proptest::prelude::*;

use super::{Kernels, SimdTier, bits};
use crate::chunk::chunk_hash;
use crate::constants::{ESCAPE, LANES, MAX_SYMBOLS, SLOTS};
use crate::entropy::rans::{Decoder, Encoder, EscapedValues, Spec, Value, ValueMap};
use guard_page::{Edge, Guarded};
use naive::Entries;

/// A small generator, so that large inputs cost proptest nothing.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    fn edge(&mut self) -> Edge {
        [Edge::Start, Edge::End][self.below(2)]
    }

    /// States that a stream may begin with.
    fn states(&mut self) -> [u16; LANES] {
        std::array::from_fn(|_| 256 + self.below(65536 - 256) as u16)
    }

    /// A legal table of `count` entries, whose frequencies are alike, or mostly 1.
    fn entries(&mut self, count: usize, skewed: bool, escape: bool) -> Entries {
        let mut indices: Vec<u8> = (0..MAX_SYMBOLS as u8).collect();
        for i in 0..count {
            let other = i + self.below(MAX_SYMBOLS - i);
            indices.swap(i, other);
        }
        if escape && !indices[..count].contains(&ESCAPE) {
            indices[self.below(count)] = ESCAPE;
        }
        let mut frequencies = vec![1; count];
        for _ in count..SLOTS {
            let entry = if skewed { 0 } else { self.below(count) };
            frequencies[entry] += 1;
        }
        let at = self.below(count);
        frequencies.swap(0, at);
        let entries = indices.iter().zip(frequencies);
        entries
            .map(|(&index, frequency)| (index, frequency as u8))
            .collect()
    }
}

fn bytes_of(states: &[u16; LANES]) -> [[u8; LANES]; 2] {
    [
        states.map(|state| state as u8),
        states.map(|state| (state >> 8) as u8),
    ]
}

fn spec_of(entries: &[(u8, u8)]) -> Spec {
    Spec::new(entries.iter().copied())
}

/// Streams of several decoders of one table, as hostile as the caller of a kernel allows.
#[derive(Clone, Debug)]
struct DecodeCase {
    entries: Entries,
    escape: bool,
    escaped: Vec<Vec<u16>>,
    groups: usize,
    seed: u64,
}

fn decode_case() -> impl Strategy<Value = DecodeCase> {
    let sizes = (2..=MAX_SYMBOLS, 1_usize..=8, 0_usize..20);
    (sizes, any::<(bool, bool)>(), any::<u64>()).prop_map(
        |((count, decoders, groups), (skewed, escape), seed)| {
            let mut random = Random::new(seed);
            let mut escaped = || {
                let count = [0, 5, 64, 300][random.below(4)];
                let count = random.below(count + 1);
                (0..count).map(|_| random.next() as u16).collect()
            };
            DecodeCase {
                escaped: (0..decoders).map(|_| escaped()).collect(),
                entries: random.entries(count, skewed, escape),
                escape,
                groups,
                seed: random.next(),
            }
        },
    )
}

/// What stands behind every output and must stay.
const CANARY: u8 = 0xa5;

fn check_decode<V: Value + PartialEq + std::fmt::Debug>(kernels: Kernels, case: &DecodeCase) {
    let mut random = Random::new(case.seed);
    let count = LANES * case.groups;
    let table: [u16; 64] = std::array::from_fn(|_| random.next() as u16);
    let map = ValueMap {
        low: table.map(|value| value as u8),
        high: table.map(|value| (value >> 8) as u8),
        escape: case.escape,
    };
    let canary = V::from_bytes(CANARY, CANARY);
    let states: Vec<_> = case.escaped.iter().map(|_| random.states()).collect();
    let streams: Vec<Guarded> = states
        .iter()
        .map(|_| {
            let more = [0, 1, 63, 500][random.below(4)];
            Guarded::copy_of(&random.bytes(count + more), random.edge())
        })
        .collect();
    let escapes: Vec<EscapedValues> = case
        .escaped
        .iter()
        .map(|values| EscapedValues::new(values.iter().copied()))
        .collect();
    let before: Vec<usize> = states.iter().map(|_| random.below(80)).collect();
    let mut decoders: Vec<Decoder<'_>> = (0..states.len())
        .map(|i| {
            let [low, high] = bytes_of(&states[i]);
            Decoder {
                low,
                high,
                stream: &streams[i],
                escapes: &escapes[i],
                used: before[i],
            }
        })
        .collect();
    let mut outputs = vec![vec![canary; count + 3]; states.len()];
    // Outputs that begin anywhere.
    let skip = random.below(4);
    let mut out: Vec<&mut [V]> = outputs.iter_mut().map(|out| &mut out[skip..]).collect();
    kernels.decode_groups(
        &spec_of(&case.entries),
        &map,
        &mut decoders,
        &mut out,
        case.groups,
    );

    for (i, decoder) in decoders.iter().enumerate() {
        let mut states = states[i];
        let (indices, taken) = naive::decode(&case.entries, &mut states, &streams[i], count);
        let mut used = before[i];
        let values = naive::values(&indices, &table, case.escape, &case.escaped[i], &mut used);
        let split = |value: u16| V::from_bytes(value as u8, (value >> 8) as u8);
        let mut expected = vec![canary; count + 3];
        for (to, value) in expected[skip..].iter_mut().zip(values) {
            *to = split(value);
        }
        assert_eq!(outputs[i], expected);
        assert_eq!([decoder.low, decoder.high], bytes_of(&states));
        assert_eq!(decoder.stream, &streams[i][taken..]);
        assert_eq!(decoder.used, used);
    }
}

/// Encodes with several encoders at once and decodes what comes of it.
fn check_encode(kernels: Kernels, entries: &[(u8, u8)], encoders: usize, groups: usize, seed: u64) {
    let mut random = Random::new(seed);
    let (spec, count) = (spec_of(entries), LANES * groups);
    let indices: Vec<Guarded> = (0..encoders)
        .map(|_| {
            let some = (0..count).map(|_| entries[random.below(entries.len())].0);
            Guarded::copy_of(&some.collect::<Vec<_>>(), random.edge())
        })
        .collect();
    let lists: Vec<&[u8]> = indices.iter().map(|list| &list[..]).collect();
    let states: Vec<_> = lists.iter().map(|_| random.states()).collect();
    let mut encoders: Vec<Encoder> = states
        .iter()
        .map(|states| {
            let [low, high] = bytes_of(states);
            let cursor = count + LANES + [0, 7][random.below(2)];
            Encoder {
                low,
                high,
                room: vec![CANARY; cursor + [0, 1, 90][random.below(3)]],
                cursor,
            }
        })
        .collect();
    let ends: Vec<usize> = encoders.iter().map(|encoder| encoder.cursor).collect();
    kernels.encode_groups(&spec, &mut encoders, &lists);

    for (i, encoder) in encoders.iter().enumerate() {
        let mut after = states[i];
        let emitted = naive::encode(entries, &mut after, lists[i]);
        assert_eq!(encoder.cursor, ends[i] - emitted.len());
        let (stream, behind) = encoder.room[encoder.cursor..].split_at(emitted.len());
        assert_eq!(stream, emitted);
        assert!(behind.iter().all(|&byte| byte == CANARY));
        assert_eq!([encoder.low, encoder.high], bytes_of(&after));
        let (back, taken) = naive::decode(entries, &mut after, stream, count);
        assert_eq!((&back[..], taken), (lists[i], stream.len()));
        assert_eq!(after, states[i]);
    }
}

/// Every frequency with every state that can meet it, in both directions.
fn check_every_frequency(kernels: Kernels) {
    let no_escapes = EscapedValues::default();
    let identity = ValueMap {
        low: std::array::from_fn(|index| index as u8),
        high: [0; MAX_SYMBOLS],
        escape: false,
    };
    let states: Vec<u16> = (256..=u16::MAX).collect();
    let indices = [9; LANES];
    for frequency in 1..=255 {
        let entries = [(40, (SLOTS - usize::from(frequency)) as u8), (9, frequency)];
        let spec = spec_of(&entries);
        for states in states.as_chunks::<LANES>().0 {
            let [low, high] = bytes_of(states);
            let room = vec![0; 2 * LANES];
            let cursor = room.len();
            let mut encoder = [Encoder {
                low,
                high,
                room,
                cursor,
            }];
            kernels.encode_groups(&spec, &mut encoder, &[&indices]);
            let [encoder] = encoder;
            let mut after = *states;
            let emitted = naive::encode(&entries, &mut after, &indices);
            assert_eq!([encoder.low, encoder.high], bytes_of(&after), "{frequency}");
            assert_eq!(encoder.room[encoder.cursor..], emitted);

            let mut decoder = [Decoder {
                low,
                high,
                stream: &[0x5a; LANES],
                escapes: &no_escapes,
                used: 0,
            }];
            let mut out = [0_u8; LANES];
            kernels.decode_groups(&spec, &identity, &mut decoder, &mut [&mut out], 1);
            let mut after = *states;
            let (expected, taken) = naive::decode(&entries, &mut after, &[0x5a; LANES], LANES);
            let [decoder] = decoder;
            assert_eq!(out[..], expected);
            assert_eq!([decoder.low, decoder.high], bytes_of(&after), "{frequency}");
            assert_eq!(decoder.stream.len(), LANES - taken);
        }
    }
}

fn check_index(kernels: Kernels, len: usize, seed: u64) {
    let mut random = Random::new(seed);
    let table: [u8; 64] =
        std::array::from_fn(|_| 63 - random.below(64).min(random.below(64)) as u8);
    let offsets: Vec<u8> = (0..len).map(|_| random.below(64) as u8).collect();
    let mut indices = Guarded::copy_of(&offsets, random.edge());
    let mut escapes = vec![u64::MAX; len.div_ceil(64)];
    kernels.index(&table, &mut indices, &mut escapes);
    let expected: Vec<u8> = offsets.iter().map(|&at| table[usize::from(at)]).collect();
    assert_eq!(indices[..], expected);
    for (number, mask) in escapes.iter().enumerate() {
        for lane in 0..64 {
            let index = expected.get(64 * number + lane);
            assert_eq!(mask >> lane & 1 == 1, index == Some(&ESCAPE));
        }
    }
}

fn check_bits(kernels: Kernels, len: usize, width: u32, seed: u64) {
    let mut random = Random::new(seed);
    let packed_len = bits::packed_len(len, width);
    let wide = Guarded::copy_of(&random.bytes(len), random.edge());
    let mut packed = Guarded::copy_of(&vec![CANARY; packed_len], random.edge());
    kernels.pack_bits(&wide, width, &mut packed);
    assert_eq!(packed[..], naive::pack(&wide, width));

    let more = [0, 0, 1, 200][random.below(4)];
    let packed = Guarded::copy_of(&random.bytes(packed_len + more), random.edge());
    let mut fields = Guarded::copy_of(&vec![CANARY; len], random.edge());
    kernels.unpack_bits(&packed, width, &mut fields);
    assert_eq!(fields[..], naive::unpack(&packed, width, len));
}

fn check_copy(kernels: Kernels, len: usize, seed: u64) {
    let mut random = Random::new(seed);
    for alignment in 0..64 {
        let from = Guarded::copy_of(&random.bytes(alignment + len), Edge::End);
        let mut to = Guarded::copy_of(&vec![CANARY; 64 + len], random.edge());
        let at = random.below(65);
        kernels.copy_past_cache(&from[alignment..], &mut to[at..at + len]);
        assert_eq!(to[at..at + len], from[alignment..]);
        to[at..at + len].fill(CANARY);
        assert!(to.iter().all(|&byte| byte == CANARY));
    }
}

fn check_hash(kernels: Kernels, len: usize, fill: Option<u8>, seed: u64) {
    let mut random = Random::new(seed);
    let bytes = fill.map_or_else(|| random.bytes(len), |fill| vec![fill; len]);
    let bytes = Guarded::copy_of(&bytes, random.edge());
    assert_eq!(chunk_hash(kernels, &bytes), naive::hash(&bytes));
}

/// Applies the suite to each tier; a tier that this machine lacks is left out.
macro_rules! suite {
    ($($name:ident: $tier:expr,)*) => {
        const STAMPED: &[SimdTier] = &[$($tier),*];

        $(mod $name {
            use super::*;

            fn run(check: impl FnOnce(Kernels)) {
                match Kernels::new($tier) {
                    Some(kernels) => check(kernels),
                    None => eprintln!("{} is not available here", $tier.name()),
                }
            }

            proptest! {
                #[test]
                fn decodes(case in decode_case(), wide: bool) {
                    run(|kernels| if wide {
                        check_decode::<u16>(kernels, &case);
                    } else {
                        check_decode::<u8>(kernels, &case);
                    });
                }

                #[test]
                fn encodes(
                    count in 2..=MAX_SYMBOLS, skewed: bool, encoders in 1_usize..=8,
                    groups in 0_usize..20, seed: u64,
                ) {
                    let entries = Random::new(seed).entries(count, skewed, false);
                    run(|kernels| check_encode(kernels, &entries, encoders, groups, seed));
                }

                #[test]
                fn indexes(len in 0_usize..700, seed: u64) {
                    run(|kernels| check_index(kernels, len, seed));
                }

                #[test]
                fn packs_and_unpacks(len in 0_usize..700, width in 1_u32..=7, seed: u64) {
                    run(|kernels| check_bits(kernels, len, width, seed));
                }

                #[test]
                fn hashes(len in 0_usize..3000, fill: Option<u8>, seed: u64) {
                    run(|kernels| check_hash(kernels, len, fill, seed));
                }
            }

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(64))]

                #[test]
                fn copies(len in 0_usize..1000, seed: u64) {
                    run(|kernels| check_copy(kernels, len, seed));
                }
            }

            #[test]
            fn every_frequency_with_every_state() {
                run(check_every_frequency);
            }

            #[test]
            fn hashes_of_long_chunks() {
                for len in [1 << 17, (1 << 20) + 3] {
                    run(|kernels| check_hash(kernels, len, Some(0xff), 1));
                    run(|kernels| check_hash(kernels, len, None, 2));
                }
            }
        })*
    };
}

suite! {
    avx512: SimdTier::Avx512,
    scalar: SimdTier::Scalar,
}

#[test]
fn every_tier_goes_through_the_suite() {
    assert_eq!(STAMPED, SimdTier::ALL);
}
