//! Compressing and decoding on one thread through the public API: 1 MiB that stays in the cache,
//! and 64 MiB that does not.
//!
//! `cargo bench` runs all of it in some minutes, `cargo bench -- cold::decode.*bfloat16` a part;
//! `NEUZIP_SIMD=avx2 cargo bench` pins a tier. Compared with other compressors and on real weights:
//! `make bench`. Here the weights are drawn from a normal distribution and cut to each type.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::unwrap_used,
    reason = "values are cut to types on purpose, and a benchmark that fails shall stop"
)]

use std::fmt;

use divan::Bencher;
use divan::counter::BytesCount;
use neuzip_rs::{CompressOptions, DecompressOptions, Dtype, Level, Stream, Threads, compress};

const DTYPES: [Dtype; 7] = [
    Dtype::Bfloat16,
    Dtype::Float16,
    Dtype::Float32,
    Dtype::Float64,
    Dtype::Float8E4m3fn,
    Dtype::Float8E5m2,
    Dtype::Int8,
];
const LEVELS: [Level; 3] = [Level::Fast, Level::Default, Level::Max];
const COLUMNS: usize = 1024;
const HOT_BYTES: usize = 1 << 20;
const COLD_BYTES: usize = 64 << 20;

fn main() {
    divan::main();
}

/// What is compressed, and how.
#[derive(Clone, Copy)]
struct Case {
    dtype: Dtype,
    level: Level,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Fast => "fast",
            Level::Default => "default",
            Level::Max => "max",
        };
        write!(f, "{} {level}", self.dtype.name())
    }
}

impl Case {
    fn all() -> impl Iterator<Item = Self> {
        let every = |dtype| LEVELS.map(|level| Self { dtype, level });
        DTYPES.into_iter().flat_map(every)
    }

    fn compress(self, data: &[u8]) -> Vec<u8> {
        let columns = COLUMNS.min(data.len() / self.dtype.itemsize());
        let rows = data.len() / self.dtype.itemsize() / columns;
        let options = CompressOptions {
            level: self.level,
            threads: Threads::new(1),
            ..CompressOptions::default()
        };
        compress(data, self.dtype, &[rows as u64, columns as u64], &options).unwrap()
    }
}

/// What is decoded: `max` is left out, any decoder is the same for all levels.
fn decoded() -> impl Iterator<Item = Case> {
    Case::all().filter(|case| case.level != Level::Max)
}

/// Weights of a standard deviation of 0.02 as elements of a type; after 1 MiB they repeat, which
/// no stage of the codec can notice.
fn weights(dtype: Dtype, len: usize) -> Vec<u8> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut data = Vec::with_capacity(len);
    while data.len() < HOT_BYTES.min(len) {
        let value = 0.02 * random.normal();
        let bits = match dtype.float_fields() {
            Some(fields) => cut(value, fields.exponent_bits, fields.mantissa_bits),
            // Small integers, as quantized weights are.
            None => ((value * 1000.0) as i64).cast_unsigned(),
        };
        data.extend_from_slice(&bits.to_le_bytes()[..dtype.itemsize()]);
    }
    while data.len() < len {
        data.extend_from_within(..HOT_BYTES.min(len - data.len()));
    }
    data
}

/// A float of other widths, cut off instead of rounded; what is too small becomes zero. FP8 gets
/// its values scaled, as quantizers do, so that they fill its range.
fn cut(value: f64, exponent_bits: u32, mantissa_bits: u32) -> u64 {
    let scaled = if exponent_bits + mantissa_bits < 8 {
        value * 1000.0
    } else {
        value
    };
    let double = scaled.to_bits();
    let sign = double >> 63;
    let bias = (1_u64 << (exponent_bits - 1)) - 1;
    let exponent = ((double >> 52 & 0x7ff) + bias).saturating_sub(1023);
    let mantissa = (double & ((1 << 52) - 1)) >> (52 - mantissa_bits);
    let magnitude = if exponent == 0 {
        0
    } else {
        exponent << mantissa_bits | mantissa
    };
    sign << (exponent_bits + mantissa_bits) | magnitude
}

/// xorshift*, enough for weights.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Roughly normal, scale 1.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

fn bench_compress(bencher: Bencher<'_, '_>, case: Case, len: usize) {
    let data = weights(case.dtype, len);
    bencher
        .counter(BytesCount::new(len))
        .bench_local(|| case.compress(&data));
}

fn bench_decode(bencher: Bencher<'_, '_>, case: Case, len: usize, verify: bool) {
    let data = weights(case.dtype, len);
    let packed = case.compress(&data);
    let options = DecompressOptions {
        verify,
        threads: Threads::new(1),
        ..DecompressOptions::default()
    };
    let mut out = vec![0xa5; len];
    let mut decode = || {
        let stream = Stream::parse(&packed).unwrap();
        stream.decode_into(0, &mut out, &options).unwrap();
    };
    decode();
    bencher.counter(BytesCount::new(len)).bench_local(decode);
    assert_eq!(out, data, "{case} did not come back");
}

fn bench_memcpy(bencher: Bencher<'_, '_>, len: usize) {
    let data = weights(Dtype::Bfloat16, len);
    let mut out = vec![0xa5; len];
    bencher.counter(BytesCount::new(len)).bench_local(|| {
        divan::black_box(&mut out).copy_from_slice(divan::black_box(&data));
    });
}

#[divan::bench_group(sample_count = 30, sample_size = 1)]
mod hot {
    use super::{Bencher, Case, HOT_BYTES, decoded};

    #[divan::bench]
    fn memcpy(bencher: Bencher<'_, '_>) {
        super::bench_memcpy(bencher, HOT_BYTES);
    }

    #[divan::bench(args = Case::all())]
    fn compress(bencher: Bencher<'_, '_>, case: Case) {
        super::bench_compress(bencher, case, HOT_BYTES);
    }

    #[divan::bench(args = decoded())]
    fn decode(bencher: Bencher<'_, '_>, case: Case) {
        super::bench_decode(bencher, case, HOT_BYTES, true);
    }

    #[divan::bench(args = decoded())]
    fn decode_unverified(bencher: Bencher<'_, '_>, case: Case) {
        super::bench_decode(bencher, case, HOT_BYTES, false);
    }
}

#[divan::bench_group(sample_count = 7, sample_size = 1)]
mod cold {
    use super::{Bencher, COLD_BYTES, Case, decoded};

    #[divan::bench]
    fn memcpy(bencher: Bencher<'_, '_>) {
        super::bench_memcpy(bencher, COLD_BYTES);
    }

    #[divan::bench(args = decoded())]
    fn compress(bencher: Bencher<'_, '_>, case: Case) {
        super::bench_compress(bencher, case, COLD_BYTES);
    }

    #[divan::bench(args = decoded())]
    fn decode(bencher: Bencher<'_, '_>, case: Case) {
        super::bench_decode(bencher, case, COLD_BYTES, true);
    }

    #[divan::bench(args = decoded())]
    fn decode_unverified(bencher: Bencher<'_, '_>, case: Case) {
        super::bench_decode(bencher, case, COLD_BYTES, false);
    }
}
