//! One suite for every tier, against naive code. Buffers end (or begin) at a forbidden page.

mod coder;
mod cut;
pub(crate) mod guard_page;
mod naive;

use proptest::prelude::*;

use super::{Kernels, SimdTier, bits};
use crate::chunk::{ChunkHash, chunk_hash};
use crate::constants::{ESCAPE, LANES, MAX_SYMBOLS, SLOTS};
use crate::planes::words::{Word, with_word};
use coder::{check_decode, check_encode, check_every_frequency, decode_case};
use cut::{check_cut, cut_case};
use guard_page::{Edge, Guarded};
use naive::Entries;

/// A small generator, so that large inputs cost proptest nothing.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
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

/// What stands behind every output and must stay.
pub(crate) const CANARY: u8 = 0xa5;

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

/// Tables of bytes and words, which a tier may leave to its caller, or the rest of them.
fn check_look_up<W: Word + std::fmt::Debug>(kernels: Kernels, len: usize, seed: u64) {
    let mut random = Random::new(seed);
    let tables: [[u8; 256]; 2] =
        std::array::from_fn(|_| std::array::from_fn(|_| random.next() as u8));
    let at = Guarded::copy_of(&random.bytes(len), random.edge());
    let mut out = [(); 2].map(|()| Guarded::copy_of(&vec![CANARY; len], Edge::End));
    let [first, second] = &mut out;
    let done = kernels.look_up_bytes([&tables[0], &tables[1]], &at, [first, second]);
    for (out, table) in out.iter().zip(&tables) {
        for (i, &byte) in out.iter().enumerate() {
            let expected = if i < done {
                table[usize::from(at[i])]
            } else {
                CANARY
            };
            assert_eq!(byte, expected);
        }
    }
    let table: [W; 16] = std::array::from_fn(|_| W::truncate(random.next() << 24 ^ random.next()));
    let at: Vec<u8> = at.iter().map(|&at| at % 16).collect();
    let mut out = vec![W::truncate(3); len];
    let done = kernels.look_up_words(&table, &at, &mut out);
    for (i, &word) in out.iter().enumerate() {
        let expected = if i < done {
            table[usize::from(at[i])]
        } else {
            W::truncate(3)
        };
        assert_eq!(word, expected);
    }
}

/// Fields of widths of their own, some low bits of which are elsewhere.
fn check_fields<W: Word + std::fmt::Debug>(kernels: Kernels, len: usize, seed: u64) {
    let mut random = Random::new(seed);
    let low_bits = random.below(W::BITS.min(40) as usize) as u32;
    let most = (W::BITS - low_bits).min(25) as usize;
    let widths: Vec<u8> = (0..len)
        .map(|_| low_bits as u8 + random.below(most + 1) as u8)
        .collect();
    let begin = random.below(50);
    let bits: usize = widths
        .iter()
        .map(|&w| usize::from(w) - low_bits as usize)
        .sum();
    let more = [0, 8, 64][random.below(3)];
    let bytes = random.bytes((begin + bits).div_ceil(8) + more);
    let bytes = Guarded::copy_of(&bytes, random.edge());
    let mut out = vec![W::truncate(3); len];
    let (done, end) = kernels.unpack_fields(&bytes, begin, (&widths, low_bits), &mut out);
    let mut position = begin;
    for (i, &word) in out.iter().enumerate() {
        let mut expected = W::truncate(3);
        if i < done {
            let bit = |bit: usize| u64::from(bytes[bit / 8] >> (bit % 8) & 1);
            let width = usize::from(widths[i]) - low_bits as usize;
            let field = (0..width).fold(0, |field, at| field | bit(position + at) << at);
            expected = W::truncate(field) << low_bits;
            position += width;
        }
        assert_eq!(word, expected);
    }
    assert_eq!(end, position);
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

/// The hash of everything, in pieces.
fn check_hash(kernels: Kernels, len: usize, fill: Option<u8>, seed: u64) {
    let mut random = Random::new(seed);
    let bytes = fill.map_or_else(|| random.bytes(len), |fill| vec![fill; len]);
    let bytes = Guarded::copy_of(&bytes, random.edge());
    assert_eq!(chunk_hash(kernels, &bytes), naive::hash(&bytes));
    let mut hash = ChunkHash::default();
    let mut rest = &bytes[..];
    while rest.len() >= 8 {
        let (piece, later) = rest.split_at(8 * random.below(rest.len() / 8 + 1));
        kernels.hash(&mut hash, piece);
        rest = later;
    }
    assert_eq!(hash.finish(rest), naive::hash(&bytes));
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
                fn decodes_whole_elements(case in cut_case()) {
                    run(|kernels| check_cut(kernels, &case));
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
                fn looks_up(len in 0_usize..700, width in 0_usize..4, seed: u64) {
                    run(|kernels| with_word!(1 << width, W => {
                        check_look_up::<W>(kernels, len, seed);
                        check_fields::<W>(kernels, len, seed);
                    }));
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
    avx2: SimdTier::Avx2,
    neon: SimdTier::Neon,
    scalar: SimdTier::Scalar,
}

#[test]
fn every_tier_goes_through_the_suite() {
    assert_eq!(STAMPED, SimdTier::ALL);
}
