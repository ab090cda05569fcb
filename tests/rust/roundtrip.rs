//! Whatever goes in comes out, bit for bit, for every dtype, length, level and chunk size.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::unwrap_used,
    reason = "generated data is cut to size on purpose, and a failed unwrap is a failed test"
)]

use neuzip_rs::{CompressOptions, DecompressOptions, Dtype, Level, Stream, Threads, compress};
use proptest::prelude::*;

fn decompress(stream: &[u8]) -> Vec<u8> {
    let stream = Stream::parse(stream).unwrap();
    let mut out = vec![0xa5; stream.original_len() as usize];
    stream
        .decode_into(0, &mut out, &DecompressOptions::default())
        .unwrap();
    out
}

/// A small generator, so that large inputs cost proptest nothing.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Roughly normal, scale 1.
    fn normal(&mut self) -> f64 {
        (0..12)
            .map(|_| (self.next() >> 11) as f64 / (1_u64 << 53) as f64)
            .sum::<f64>()
            - 6.0
    }
}

#[derive(Clone, Copy, Debug)]
enum Content {
    Noise,
    Weights,
    RowScales,
    Positive,
    Upcast,
    Sparse,
    FewValues,
    Constant,
    Mixed,
}

fn element(dtype: Dtype, value: f64, random: &mut Random) -> Vec<u8> {
    let single = value as f32;
    match dtype {
        Dtype::Bfloat16 => ((single.to_bits() >> 16) as u16).to_le_bytes().to_vec(),
        Dtype::Float16 => half(single).to_le_bytes().to_vec(),
        Dtype::Float32 => single.to_le_bytes().to_vec(),
        Dtype::Complex64 => [single.to_le_bytes(), (-single).to_le_bytes()].concat(),
        Dtype::Float64 => value.to_le_bytes().to_vec(),
        other if other.itemsize() == 1 => vec![(half(single) >> 8) as u8],
        other => {
            let integer = (value * 1000.0) as i64;
            let mut bytes = integer.to_le_bytes().to_vec();
            bytes.resize(16, random.next() as u8);
            bytes.truncate(other.itemsize());
            bytes
        }
    }
}

/// FP32 to FP16, truncating; good enough to make realistic bits.
fn half(value: f32) -> u16 {
    let bits = value.to_bits();
    let exponent = ((bits >> 23 & 0xff) as i32 - 112).clamp(0, 30) as u16;
    ((bits >> 31) as u16 * 0x8000) | (exponent << 10) | (bits >> 13 & 0x3ff) as u16
}

fn tensor(dtype: Dtype, content: Content, count: usize, columns: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed | 1);
    let constant = random.normal();
    (0..count)
        .flat_map(|i| {
            let noise = random.normal() * 0.02;
            let value = match content {
                Content::Noise => {
                    return (0..dtype.itemsize()).map(|_| random.next() as u8).collect();
                }
                Content::Weights => noise,
                Content::RowScales => {
                    noise * 2_f64.powi((i / columns % 7) as i32 - (i % columns % 5) as i32)
                }
                Content::Positive => noise.abs(),
                Content::Upcast => f64::from(f32::from_bits((noise as f32).to_bits() & !0x1fff)),
                Content::Sparse => {
                    if random.next().is_multiple_of(4) {
                        noise
                    } else {
                        0.0
                    }
                }
                Content::FewValues => [0.5, -0.25, 1.0, 0.0][(random.next() % 4) as usize],
                Content::Constant => constant,
                Content::Mixed => match i / 40_000 % 3 {
                    0 => noise,
                    1 => 0.0,
                    _ => f64::from_bits(random.next()),
                },
            };
            element(dtype, value, &mut random)
        })
        .collect()
}

fn content() -> impl Strategy<Value = Content> {
    prop::sample::select(vec![
        Content::Noise,
        Content::Weights,
        Content::RowScales,
        Content::Positive,
        Content::Upcast,
        Content::Sparse,
        Content::FewValues,
        Content::Constant,
        Content::Mixed,
    ])
}

fn level() -> impl Strategy<Value = Level> {
    prop::sample::select(vec![Level::Fast, Level::Default, Level::Max])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn typed_tensors(
        dtype in prop::sample::select(Dtype::ALL),
        content in content(),
        level in level(),
        rows in 0_usize..200,
        columns in 1_usize..700,
        chunk_log2 in prop::option::of(12_u32..=18),
        seed: u64,
    ) {
        let data = tensor(dtype, content, rows * columns, columns, seed);
        let shape = [rows as u64, columns as u64];
        let options = |threads| CompressOptions {
            level,
            chunk_bytes: chunk_log2.map(|log2| 1 << log2),
            threads: Threads::new(threads),
            ..CompressOptions::default()
        };
        let stream = compress(&data, dtype, &shape, &options(1)).unwrap();
        prop_assert_eq!(&compress(&data, dtype, &shape, &options(3)).unwrap(), &stream);
        prop_assert!(stream.len() <= data.len() + data.len() / 1000 + 64 + data.len() / 4096 * 14);
        prop_assert!(decompress(&stream) == data);
        let parsed = Stream::parse(&stream).unwrap();
        prop_assert_eq!(parsed.dtype(), dtype);
        prop_assert_eq!(parsed.shape(), &shape);
    }

    #[test]
    fn bytes_of_any_length(
        length in 0_usize..300_000,
        hint in prop::option::of(prop::sample::select(Dtype::ALL)),
        offset in 0_usize..8,
        content in content(),
        seed: u64,
    ) {
        let dtype = hint.unwrap_or(Dtype::Float32);
        let mut data = vec![7; offset];
        data.extend(tensor(dtype, content, length / dtype.itemsize() + 1, 100, seed));
        data.truncate(length);
        let options = CompressOptions { hint, ..CompressOptions::default() };
        let shape = [data.len() as u64];
        let stream = compress(&data, Dtype::Uint8, &shape, &options).unwrap();
        prop_assert!(stream.len() <= data.len() + data.len() / 1000 + 64);
        prop_assert!(decompress(&stream) == data);
    }

    #[test]
    fn ranges(content in content(), start in 0_usize..400_000, len in 0_usize..300_000, seed: u64) {
        let data = tensor(Dtype::Bfloat16, content, 200_000, 500, seed);
        let stream = compress(&data, Dtype::Bfloat16, &[400, 500], &CompressOptions::default()).unwrap();
        let stream = Stream::parse(&stream).unwrap();
        let start = start.min(data.len());
        let mut out = vec![0; len.min(data.len() - start)];
        stream.decode_into(start as u64, &mut out, &DecompressOptions::default()).unwrap();
        prop_assert!(out == data[start..start + out.len()]);
        let mut beyond = vec![0; data.len() - start + 1];
        let result = stream.decode_into(start as u64, &mut beyond, &DecompressOptions::default());
        prop_assert!(result.is_err());
    }
}

#[test]
fn every_pattern_of_the_small_floats() {
    for dtype in [
        Dtype::Bfloat16,
        Dtype::Float16,
        Dtype::Float8E4m3fn,
        Dtype::Float8E5m2,
    ] {
        let data: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let count = (data.len() / dtype.itemsize()) as u64;
        for level in [Level::Fast, Level::Default, Level::Max] {
            let options = CompressOptions {
                level,
                ..CompressOptions::default()
            };
            let stream = compress(&data, dtype, &[count], &options).unwrap();
            assert!(decompress(&stream) == data);
        }
    }
}

#[test]
fn all_patterns_among_skewed_weights() {
    // The table is made for the weights; every other pattern must survive as an escape.
    let mut data = tensor(Dtype::Bfloat16, Content::Weights, 1 << 20, 1024, 5);
    for (i, pattern) in (0..=u16::MAX).enumerate() {
        data[32 * i..32 * i + 2].copy_from_slice(&pattern.to_le_bytes());
    }
    let stream = compress(
        &data,
        Dtype::Bfloat16,
        &[1024, 1024],
        &CompressOptions::default(),
    )
    .unwrap();
    assert!(stream.len() < data.len() * 3 / 4);
    assert!(decompress(&stream) == data);
}

#[test]
fn small_headers() {
    for shape in [[10, 10], [1, 300], [16, 16]] {
        let count = shape.iter().product::<u64>() as usize;
        let data = tensor(Dtype::Float32, Content::Weights, count, 10, 1);
        let stream = compress(&data, Dtype::Float32, &shape, &CompressOptions::default()).unwrap();
        assert!(
            stream.len() <= data.len() + 32,
            "{} {}",
            stream.len(),
            data.len()
        );
    }
}

#[test]
fn wrong_arguments() {
    let options = CompressOptions::default();
    assert!(compress(&[0; 7], Dtype::Float32, &[2], &options).is_err());
    assert!(compress(&[0; 8], Dtype::Float32, &[3], &options).is_err());
    assert!(compress(&[0; 8], Dtype::Float32, &[u64::MAX, 2], &options).is_err());
    for chunk_bytes in [0, 1, 2048, 5000, 1 << 27] {
        let options = CompressOptions {
            chunk_bytes: Some(chunk_bytes),
            ..options.clone()
        };
        assert!(compress(&[0, 1, 2, 3], Dtype::Uint8, &[4], &options).is_err());
    }
}
