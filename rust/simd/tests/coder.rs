//! The entropy coder: both directions, hostile streams, every frequency.

use proptest::prelude::*;

use super::guard_page::{Edge, Guarded};
use super::naive::{self, Entries};
use super::{CANARY, Random};
use crate::constants::{LANES, MAX_SYMBOLS, SLOTS};
use crate::entropy::rans::{Decoder, Encoder, EscapedValues, Spec, Value, ValueMap};
use crate::simd::Kernels;

pub(super) fn bytes_of(states: &[u16; LANES]) -> [[u8; LANES]; 2] {
    [
        states.map(|state| state as u8),
        states.map(|state| (state >> 8) as u8),
    ]
}

pub(super) fn spec_of(entries: &[(u8, u8)]) -> Spec {
    Spec::new(entries.iter().copied())
}

/// Streams of several decoders of one table, as hostile as the caller of a kernel allows.
#[derive(Clone, Debug)]
pub(super) struct DecodeCase {
    entries: Entries,
    escape: bool,
    escaped: Vec<Vec<u16>>,
    groups: usize,
    seed: u64,
}

pub(super) fn decode_case() -> impl Strategy<Value = DecodeCase> {
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

pub(super) fn check_decode<V: Value + PartialEq + std::fmt::Debug>(
    kernels: Kernels,
    case: &DecodeCase,
) {
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
    let ahead = Guarded::copy_of(&random.bytes(200), Edge::End);
    let mut decoders: Vec<Decoder<'_>> = (0..states.len())
        .map(|i| {
            let [low, high] = bytes_of(&states[i]);
            Decoder {
                low,
                high,
                stream: &streams[i],
                escapes: &escapes[i],
                used: before[i],
                beyond: 0,
                ahead: &ahead,
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
pub(super) fn check_encode(
    kernels: Kernels,
    entries: &[(u8, u8)],
    encoders: usize,
    groups: usize,
    seed: u64,
) {
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
                ahead: (0, 0),
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
pub(super) fn check_every_frequency(kernels: Kernels) {
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
                ahead: (0, 0),
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
                ..Decoder::default()
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
