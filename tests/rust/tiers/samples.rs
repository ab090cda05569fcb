//! Tensors that take every path: scales, constant signs, escapes, trailing zeros, tails.

use neuzip_rs::Dtype;
use proptest::prelude::*;

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
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        ((self.next() >> 8) % end as u64) as usize
    }

    /// Four uniform numbers added, of deviation 0.02: enough like weights.
    fn weight(&mut self) -> f64 {
        let parts = self.next();
        let sum: u64 = (0..4).map(|part| parts >> (16 * part) & 0xffff).sum();
        (sum as f64 / 65536.0 - 2.0) * 0.035
    }
}

/// What a tensor is filled with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Content {
    Noise,
    Weights,
    /// Rows and columns of different scales.
    Scales,
    /// The sign of the row times that of the column, mostly.
    Signs,
    /// Every third row and column spread more widely.
    Classes,
    Positive,
    Negative,
    /// Where the first bit of the mantissa goes with the exponent.
    NearOne,
    /// Where the leading bits of the mantissa are low in every second octave and high in the others.
    Octaves,
    /// Weights, and now and then any pattern: NaN, infinities, subnormals.
    Rare,
    /// As if upcast from `BFloat16`.
    Upcast,
    /// Mantissas with so many trailing zeros, in sub-blocks of 4096 elements, that they differ.
    Precisions,
    Sparse,
    FewValues,
    /// Weights, a constant and noise, 4096 elements of each.
    Mixed,
}

pub(crate) const CONTENTS: [Content; 15] = [
    Content::Noise,
    Content::Weights,
    Content::Scales,
    Content::Signs,
    Content::Classes,
    Content::Positive,
    Content::Negative,
    Content::NearOne,
    Content::Octaves,
    Content::Rare,
    Content::Upcast,
    Content::Precisions,
    Content::Sparse,
    Content::FewValues,
    Content::Mixed,
];

/// The types whose cuts differ.
pub(crate) const DTYPES: [Dtype; 11] = [
    Dtype::Bfloat16,
    Dtype::Float16,
    Dtype::Float32,
    Dtype::Float64,
    Dtype::Float8E4m3fn,
    Dtype::Float8E5m2,
    Dtype::Int8,
    Dtype::Int16,
    Dtype::Int32,
    Dtype::Int64,
    Dtype::Uint8,
];

pub(crate) fn content() -> impl Strategy<Value = Content> {
    prop::sample::select(&CONTENTS[..])
}

/// The top bits of an FP32 number, with an exponent of `exponent_bits` and less precision.
fn narrow(value: f32, exponent_bits: u32, mantissa_bits: u32) -> u32 {
    let bits = value.to_bits();
    let zero = (1 << (exponent_bits - 1)) - 1;
    let largest = (1 << exponent_bits) - 2;
    let exponent = ((bits >> 23 & 0xff) as i32 - 127 + zero).clamp(0, largest) as u32;
    let mantissa = bits >> (23 - mantissa_bits) & ((1 << mantissa_bits) - 1);
    ((bits >> 31) << exponent_bits | exponent) << mantissa_bits | mantissa
}

fn element(dtype: Dtype, value: f64, out: &mut Vec<u8>) {
    let single = value as f32;
    match dtype {
        Dtype::Bfloat16 => out.extend(((single.to_bits() >> 16) as u16).to_le_bytes()),
        Dtype::Float16 => out.extend((narrow(single, 5, 10) as u16).to_le_bytes()),
        Dtype::Float32 => out.extend(single.to_le_bytes()),
        Dtype::Float64 => out.extend(value.to_le_bytes()),
        Dtype::Float8E4m3fn => out.push(narrow(single, 4, 3) as u8),
        Dtype::Float8E5m2 => out.push(narrow(single, 5, 2) as u8),
        other => {
            let integer = (value * 1000.0) as i64;
            out.extend(&integer.to_le_bytes()[..other.itemsize()]);
        }
    }
}

/// A number with the trailing zeros of its sub-block; the seed says which cut it suits.
fn precision(weight: f64, i: usize, (row, column): (usize, usize), seed: u64) -> f64 {
    const ZEROS: [u32; 12] = [0, 16, 13, 0, 0, 23, 8, 1, 0, 0, 0, 20];
    let (first, suits) = (seed % 12, seed / 12 % 4);
    let zeros = ZEROS[(i / 4096 + first as usize) % 12];
    let value = match suits {
        0 => weight,
        1 => weight.abs(),
        2 => 1.0 + weight,
        _ => weight * 2_f64.powi((row % 7) as i32 - (column % 5) as i32),
    };
    f64::from(f32::from_bits((value as f32).to_bits() >> zeros << zeros))
}

/// A tensor of `count` elements in rows of `columns`.
pub(crate) fn tensor(
    dtype: Dtype,
    content: Content,
    count: usize,
    columns: usize,
    seed: u64,
) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut data = Vec::with_capacity(count * dtype.itemsize());
    for i in 0..count {
        let weight = random.weight();
        let noise = match content {
            Content::Noise => true,
            Content::Rare => random.below(100) == 0,
            Content::Mixed => i / 4096 % 3 == 2,
            _ => false,
        };
        if noise {
            data.extend((0..dtype.itemsize()).map(|_| (random.next() >> 20) as u8));
            continue;
        }
        let value = match content {
            Content::Scales => {
                weight * 2_f64.powi((i / columns % 7) as i32 - (i % columns % 5) as i32)
            }
            Content::Signs => {
                let line_sign = |line: usize| if line * 7919 % 13 < 6 { -1.0 } else { 1.0 };
                let usual = if random.below(12) == 0 { -1.0 } else { 1.0 };
                weight.abs() * usual * line_sign(i / columns) * line_sign(i % columns)
            }
            Content::Classes if (i / columns).is_multiple_of(3) => weight.powi(5) * 1e7,
            Content::Positive => weight.abs(),
            Content::Negative => -weight.abs(),
            Content::NearOne => 1.0 + weight,
            Content::Octaves => {
                let octave = random.below(8) as i32;
                let low = (random.below(1000) as f64 / 1000.0).powi(4);
                let mantissa = if octave % 2 == 0 { low } else { 0.999 - low };
                weight.signum() * (1.0 + mantissa) * 2_f64.powi(octave - 6)
            }
            Content::Upcast => f64::from(f32::from_bits((weight as f32).to_bits() & !0xffff)),
            Content::Precisions => precision(weight, i, (i / columns, i % columns), seed),
            Content::Sparse if random.below(4) > 0 => 0.0,
            Content::FewValues => [0.5, -0.25, 1.0, 0.0][random.below(4)],
            Content::Mixed if i / 4096 % 3 == 1 => 1.0,
            _ => weight,
        };
        element(dtype, value, &mut data);
    }
    data
}
