//! Models of every form that has a fast way: what the scalar tier writes comes back from all tiers, and
//! damage has the same outcome.

#![allow(clippy::struct_excessive_bools, reason = "a model has many switches")]

use proptest::prelude::*;

use super::{DecodeJob, EncodeJob, ModelCoder, ModelEncoder, chunk_hash};
use crate::constants::{MAX_SYMBOLS, SLOTS, SUB_BLOCK};
use crate::model::contexts::{ContextSource, ContextTables};
use crate::model::frequency_table::{Entry, FrequencyTable};
use crate::model::{Model, Plane, PlaneMode};
use crate::planes::scale::ScaleOffsets;
use crate::planes::words::{Word, low_mask, raise_sign, with_word};
use crate::simd::tests::guard_page::{Edge, Guarded};
use crate::simd::tests::{CANARY, Random};
use crate::simd::{Kernels, SimdTier};

/// What a model and its chunks are made of.
#[derive(Clone, Debug)]
struct Case {
    element_log2: u32,
    constant_bits: u32,
    first_bits: u32,
    second_bits: u32,
    /// Contexts of the second symbol.
    contexts: usize,
    /// Classes of lines, or one table.
    classes: Option<usize>,
    escape: bool,
    skewed: bool,
    sign: Sign,
    trailing_zeros: bool,
    columns: usize,
    /// Which lists there are, if the model is scaled.
    lists: Option<u8>,
    shift: u32,
    count: usize,
    chunks: usize,
    past_cache: bool,
    seed: u64,
}

#[derive(Clone, Copy, Debug)]
enum Sign {
    Rotated,
    InSymbols,
    Anywhere,
}

fn case() -> impl Strategy<Value = Case> {
    let sign = prop::sample::select(vec![Sign::Rotated, Sign::InSymbols, Sign::Anywhere]);
    (
        (0_u32..4, 0_u32..3, 2_u32..=10, 0_u32..=4, 1_usize..=16),
        (
            prop::option::of(1_usize..=16),
            any::<[bool; 4]>(),
            sign,
            prop::option::of(1_u8..64),
            0_u32..40,
        ),
        prop::sample::select(vec![1_usize, 3, 63, 64, 65, 100, 128, 300]),
        prop_oneof![500_usize..3000, 4000_usize..9000],
        1_usize..=3,
        any::<u64>(),
    )
        .prop_map(|(planes, forms, columns, count, chunks, seed)| {
            let (element_log2, constant_bits, first_bits, second_bits, contexts) = planes;
            let (classes, [escape, skewed, trailing_zeros, past_cache], sign, lists, shift) = forms;
            let bits = 8 << element_log2;
            let constant_bits = constant_bits.min(bits - 2).min(6);
            let first_bits = first_bits.min(bits - constant_bits);
            let second_bits = second_bits.min(bits - constant_bits - first_bits);
            // Chunks that are decoded together have lengths that keep the alignment of their outputs.
            let count = if chunks > 1 {
                count.next_multiple_of(64)
            } else {
                count
            };
            Case {
                element_log2,
                constant_bits,
                first_bits,
                second_bits,
                contexts,
                classes,
                escape: escape && first_bits > 2,
                skewed,
                sign,
                trailing_zeros,
                columns,
                lists: if classes.is_some() {
                    Some(lists.unwrap_or(0x30))
                } else {
                    lists
                },
                shift,
                count,
                chunks,
                past_cache,
                seed,
            }
        })
}

/// Frequencies that sum to 256, none of them above 255; some may be zero.
fn frequencies(random: &mut Random, count: usize, skewed: bool) -> Vec<u8> {
    let mut list = vec![0_u8; count];
    let favourite = random.below(count);
    list[(favourite + 1) % count] = 1;
    for _ in 1..SLOTS {
        let at = if skewed && random.below(4) > 0 {
            favourite
        } else {
            random.below(count)
        };
        let at = if list[at] == u8::MAX {
            (at + 1) % count
        } else {
            at
        };
        list[at] += 1;
    }
    list
}

/// An index that is drawn as often as its frequency says.
fn draw(random: &mut Random, table: impl Iterator<Item = (u8, u8)>) -> u8 {
    let mut slot = random.below(SLOTS);
    for (index, frequency) in table {
        if slot < usize::from(frequency) {
            return index;
        }
        slot -= usize::from(frequency);
    }
    unreachable!("frequencies sum to 256")
}

struct Sample {
    model: Model,
    scale: Option<ScaleOffsets>,
    chunks: Vec<Vec<u8>>,
}

impl Case {
    fn bits(&self) -> u32 {
        8 << self.element_log2
    }

    fn raw_bits(&self) -> u32 {
        self.bits() - self.constant_bits - self.first_bits - self.second_bits
    }

    fn first(&self, random: &mut Random) -> Plane {
        let bits = self.first_bits;
        let base = random.next() & low_mask(bits);
        let symbols = (1_usize << bits).min(MAX_SYMBOLS - usize::from(self.escape));
        let count = 2 + random.below(symbols - 1);
        let Some(classes) = self.classes else {
            let mut list = frequencies(random, count, self.skewed);
            let spare = list.iter().position(|&f| f > 1).unwrap_or(0);
            if self.escape {
                list[spare] -= 1;
            }
            let entries = (0..).zip(list).filter(|&(_, frequency)| frequency > 0);
            let mut entries: Vec<Entry> = entries
                .map(|(index, frequency)| Entry { index, frequency })
                .collect();
            if self.escape {
                let (index, frequency) = (63, 1);
                entries.insert(random.below(entries.len() + 1), Entry { index, frequency });
            }
            return Plane::coded(FrequencyTable::new(bits, base, self.escape, entries).unwrap());
        };
        let listed = count + usize::from(self.escape);
        let tables = (0..classes).map(|_| frequencies(random, listed, self.skewed));
        let tables = tables.collect();
        let tables = ContextTables::new((bits, base, self.escape), ContextSource::Lines, tables);
        Plane::contexts(tables.unwrap())
    }

    fn second(&self, random: &mut Random, plane: u8) -> Plane {
        let bits = self.second_bits;
        let base = random.next() & low_mask(bits);
        let first = (random.next() & low_mask(self.first_bits)) as u16;
        let count = 2 + random.below((1 << bits) - 1);
        let tables = (0..self.contexts).map(|_| frequencies(random, count, self.skewed));
        let tables = tables.collect();
        let source = ContextSource::Plane { plane, first };
        Plane::contexts(ContextTables::new((bits, base, false), source, tables).unwrap())
    }

    fn scale(&self, random: &mut Random) -> Option<ScaleOffsets> {
        let lists = self.lists?;
        let elements = self.count * self.chunks;
        let rows = elements.div_ceil(self.columns);
        let mut list = |number: usize, count: usize, limit: usize| -> Vec<i8> {
            let entry = |_| match limit {
                0 => random.next() as i8,
                limit => random.below(limit) as i8,
            };
            let is_there = lists >> number & 1 == 1;
            (0..if is_there { count } else { 0 }).map(entry).collect()
        };
        let classes = self.classes.unwrap_or(1);
        Some(ScaleOffsets {
            columns: self.columns,
            shift: self.shift,
            rows: list(0, rows, 0),
            cols: list(1, self.columns, 0),
            row_flips: list(2, rows, 2),
            col_flips: list(3, self.columns, 2),
            // Both together stay below the number of classes.
            row_classes: list(4, rows, classes.div_ceil(2)),
            col_classes: list(5, self.columns, classes / 2 + 1),
        })
    }

    fn sample(&self) -> Sample {
        let mut random = Random::new(self.seed);
        let mut planes = Vec::new();
        let constant = random.next() & low_mask(self.constant_bits);
        if self.constant_bits > 0 {
            let mode = PlaneMode::Constant(constant);
            let bits = self.constant_bits;
            planes.push(Plane { bits, mode });
        }
        planes.push(self.first(&mut random));
        if self.second_bits > 0 {
            planes.push(self.second(&mut random, planes.len() as u8 - 1));
        }
        let raw_bits = self.raw_bits();
        if raw_bits > 0 {
            planes.push(Plane::raw(raw_bits));
        }
        let sign_position = match self.sign {
            Sign::Rotated => 0,
            Sign::InSymbols => raw_bits + random.below((self.bits() - raw_bits) as usize) as u32,
            Sign::Anywhere => random.below(self.bits() as usize) as u32,
        };
        let scale = self.scale(&mut random);
        let model = Model {
            element_bytes: 1 << self.element_log2,
            phase: 0,
            sign_position,
            trailing_zeros: self.trailing_zeros && raw_bits > 0,
            scaled: scale.is_some(),
            planes,
        };
        let model = model.validated().unwrap();
        let chunks = (0..self.chunks).map(|chunk| {
            let first = chunk * self.count;
            with_word!(model.element_bytes, W => self.chunk::<W>(&model, scale.as_ref(), first, constant, &mut random))
        });
        let chunks = chunks.collect();
        Sample {
            model,
            scale,
            chunks,
        }
    }

    fn chunk<W: Word>(
        &self,
        model: &Model,
        scale: Option<&ScaleOffsets>,
        first: usize,
        constant: u64,
        random: &mut Random,
    ) -> Vec<u8> {
        let mut classes = vec![0; self.count];
        if let Some(scale) = scale {
            scale.classes(first, &mut classes);
        }
        let planes = &model.planes[usize::from(self.constant_bits > 0)..];
        let mut zeros = 0;
        let word = |i: usize| {
            if i.is_multiple_of(SUB_BLOCK) {
                zeros = if random.below(2) == 0 {
                    random.below(self.raw_bits() as usize + 1)
                } else {
                    0
                };
            }
            let symbol = match &planes[0].mode {
                PlaneMode::Coded(table) => {
                    let entries = table.entries().iter();
                    let index = draw(random, entries.map(|entry| (entry.index, entry.frequency)));
                    let escaped = self.escape && index == 63;
                    if escaped {
                        random.next() as u16
                    } else {
                        table.symbol(index)
                    }
                }
                PlaneMode::Contexts(tables) => {
                    let table = tables.tables().nth(classes[i].into()).unwrap();
                    let index = draw(random, table);
                    let escaped = self.escape && index == 63;
                    if escaped {
                        random.next() as u16
                    } else {
                        tables.symbol(index)
                    }
                }
                _ => unreachable!("the first symbol is coded"),
            };
            let symbol = u64::from(symbol) & low_mask(self.first_bits);
            let mut word = constant << self.first_bits | symbol;
            if let Some(PlaneMode::Contexts(tables)) = planes.get(1).map(|plane| &plane.mode) {
                let ContextSource::Plane { first, .. } = tables.source() else {
                    unreachable!("contexts of the second symbol are first ones")
                };
                // By docs/format.md.
                let (size, half) = (1_i64 << self.first_bits, 1_i64 << (self.first_bits - 1));
                let above = (symbol as i64 - i64::from(first)).rem_euclid(size);
                let above = if above >= half { above - size } else { above };
                let context = above.clamp(0, tables.contexts() as i64 - 1);
                let index = draw(random, tables.tables().nth(context as usize).unwrap());
                word = word << self.second_bits | u64::from(tables.symbol(index));
            }
            let raw = random.next() & low_mask(self.raw_bits()) & !(low_mask(zeros as u32) << 1);
            W::truncate(if self.raw_bits() == 64 {
                raw
            } else {
                word << self.raw_bits() | raw
            })
        };
        let mut words: Vec<W> = (0..self.count).map(word).collect();
        raise_sign(&mut words, model.sign_position);
        if let Some(scale) = scale {
            scale.add(&mut words, first);
        }
        let mut bytes = vec![0; self.count * W::BYTES];
        W::store(&words, &mut bytes);
        bytes
    }
}

/// Decodes all chunks in one call, to an odd address; the bytes, if there is no error.
fn decode(
    kernels: Kernels,
    case: &Case,
    sample: &Sample,
    payloads: &[usize],
    bytes: &[u8],
    hashes: Option<&[u64]>,
) -> Option<Vec<u8>> {
    let coder = ModelCoder::new(kernels, &sample.model, sample.scale.as_ref());
    let len = sample.chunks[0].len();
    let skip = case.seed as usize % 65;
    let mut out = vec![CANARY; skip + len * case.chunks + 64];
    let mut start = 0;
    let mut jobs = Vec::new();
    for (chunk, out) in out[skip..]
        .chunks_exact_mut(len)
        .take(case.chunks)
        .enumerate()
    {
        jobs.push(DecodeJob {
            payload: &bytes[start..start + payloads[chunk]],
            readable: &bytes[start..],
            first: chunk * case.count,
            out,
            hash: hashes.map(|hashes| hashes[chunk]),
        });
        start += payloads[chunk];
    }
    let result = coder.decode(&mut jobs, case.past_cache);
    let (front, rest) = out.split_at(skip);
    let (decoded, behind) = rest.split_at(len * case.chunks);
    assert!(front.iter().chain(behind).all(|&byte| byte == CANARY));
    result.ok().map(|()| decoded.to_vec())
}

fn tiers() -> impl Iterator<Item = Kernels> {
    SimdTier::ALL.into_iter().filter_map(Kernels::new)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn models_with_contexts_come_back_from_every_tier(case in case()) {
        let sample = case.sample();
        let encode = |kernels| {
            let encoder = ModelEncoder::new(kernels, &sample.model, sample.scale.as_ref());
            let job = |(number, chunk)| EncodeJob {
                chunk,
                first: number * case.count,
                ..EncodeJob::default()
            };
            let chunks = sample.chunks.iter().map(|chunk| &chunk[..]);
            let mut jobs: Vec<EncodeJob<'_>> = chunks.enumerate().map(job).collect();
            encoder.encode(&mut jobs);
            jobs
        };
        let written = encode(Kernels::scalar());
        // Chunks that do not become smaller have no payload.
        prop_assume!(written.iter().all(|job| !job.payload.is_empty()));
        let payloads: Vec<usize> = written.iter().map(|job| job.payload.len()).collect();
        let bytes = written.iter().flat_map(|job| job.payload.parts().concat());
        let mut bytes = Guarded::copy_of(&bytes.collect::<Vec<_>>(), Edge::End);
        let hashes: Vec<u64> = sample
            .chunks
            .iter()
            .map(|chunk| chunk_hash(Kernels::scalar(), chunk))
            .collect();
        let original = sample.chunks.concat();
        for kernels in tiers() {
            for (job, expected) in encode(kernels).iter().zip(&written) {
                prop_assert_eq!(job.payload.parts().concat(), expected.payload.parts().concat());
            }
            let back = decode(kernels, &case, &sample, &payloads, &bytes, Some(&hashes));
            prop_assert!(back.as_ref() == Some(&original), "{:?}", kernels.tier());
        }
        let mut random = Random::new(!case.seed);
        for _ in 0..8 {
            let at = random.below(bytes.len());
            let before = bytes[at];
            bytes[at] = random.next() as u8;
            let scalar = decode(Kernels::scalar(), &case, &sample, &payloads, &bytes, None);
            for kernels in tiers() {
                let outcome = decode(kernels, &case, &sample, &payloads, &bytes, None);
                prop_assert!(outcome == scalar, "{:?}, byte {}", kernels.tier(), at);
            }
            bytes[at] = before;
        }
    }
}
