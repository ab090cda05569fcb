//! Tensors made of few bytes of input.

use arbitrary::{Arbitrary, Result, Unstructured};
use neuzip_rs::{Dtype, Level};

/// A small generator: large tensors cost the fuzzer eight bytes.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, end: usize) -> usize {
        ((self.next() >> 16) % end.max(1) as u64) as usize
    }
}

/// A run of elements of one kind.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Run {
    Noise,
    Zero,
    /// The same element again and again.
    Same(u64),
    /// Bytes of the input.
    Bytes([u8; 16]),
    /// Weights, times two to the power of the argument.
    Weights(i8),
    /// Weights with so many low bits zero.
    Coarse(u8),
    /// Few values, from a number on.
    Few(u64, u8),
    /// Rows and columns of different scales.
    Lines(u8, u8),
    /// Not a number, infinities, subnormals, the largest.
    Special,
    Counting(u32),
}

/// How a tensor was made, and how it is to be compressed.
pub struct Case {
    pub data: Vec<u8>,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub level: Level,
    pub chunk_log2: Option<u32>,
    pub hint: Option<Dtype>,
}

/// The bits of a float of this width near a value: the top ones of a double, with fewer exponents.
fn float_bits(dtype: Dtype, value: f64) -> Option<u64> {
    let fields = dtype.float_fields()?;
    let bits = value.to_bits();
    let bias = (1_i64 << (fields.exponent_bits - 1)) - 1;
    let largest = (1_i64 << fields.exponent_bits) - 1;
    let exponent = ((bits >> 52 & 0x7ff) as i64 - 1023 + bias).clamp(0, largest) as u64;
    let mantissa = (bits & ((1 << 52) - 1)) >> (52 - fields.mantissa_bits.min(52));
    let sign = bits >> 63;
    Some(
        (sign << fields.exponent_bits | exponent) << fields.mantissa_bits
            | mantissa & ((1 << fields.mantissa_bits) - 1),
    )
}

/// `count` elements of `dtype`, in lines of `columns`.
pub fn tensor(
    u: &mut Unstructured<'_>,
    dtype: Dtype,
    count: usize,
    columns: usize,
) -> Result<Vec<u8>> {
    let itemsize = dtype.itemsize();
    // Complex numbers are two floats.
    let part = dtype
        .float_fields()
        .map_or(itemsize, |fields| fields.element_bits as usize / 8)
        .clamp(1, 8);
    let parts = count * itemsize / part;
    let runs: Vec<(Run, u16)> = (0..u.int_in_range(1..=6)?)
        .map(|_| Ok((Run::arbitrary(u)?, u16::arbitrary(u)?)))
        .collect::<Result<_>>()?;
    let mut random = Random::new(u64::arbitrary(u)?);
    let mut data = Vec::with_capacity(count * itemsize);
    let (mut run, mut left) = (0, usize::from(runs[0].1));
    for i in 0..parts {
        if left == 0 && runs.len() > 1 {
            run = (run + 1) % runs.len();
            left = usize::from(runs[run].1).max(1);
        }
        left = left.saturating_sub(1);
        let noise = random.next();
        let weight = ((0..4).map(|k| noise >> (16 * k) & 0xffff).sum::<u64>() as f64 / 65536.0
            - 2.0)
            * 0.035;
        let float = |value: f64| float_bits(dtype, value).unwrap_or((value * 1000.0) as i64 as u64);
        let bits = match runs[run].0 {
            Run::Noise => noise,
            Run::Zero => 0,
            Run::Same(bits) => bits,
            Run::Bytes(bytes) => {
                u64::from_le_bytes(std::array::from_fn(|k| bytes[(i * part + k) % 16]))
            }
            Run::Weights(scale) => float(weight * 2_f64.powi(i32::from(scale))),
            Run::Coarse(zeros) => float(weight) >> (zeros % 64) << (zeros % 64),
            Run::Few(first, spread) => first.wrapping_add(noise % (u64::from(spread) + 1)),
            Run::Lines(rows, across) => {
                let row = i / columns.max(1) % (usize::from(rows) + 1);
                let column = i % columns.max(1) % (usize::from(across) + 1);
                float(weight * 2_f64.powi(row as i32 - column as i32))
            }
            Run::Special => {
                let values = [
                    f64::NAN,
                    f64::INFINITY,
                    -0.0,
                    f64::MIN_POSITIVE,
                    f64::MAX,
                    1e-42,
                ];
                if noise.is_multiple_of(5) {
                    noise >> 8
                } else {
                    float(values[(noise >> 32) as usize % 6])
                }
            }
            Run::Counting(step) => (i as u64).wrapping_mul(u64::from(step)),
        };
        data.extend_from_slice(&bits.to_le_bytes()[..part]);
    }
    Ok(data)
}

pub fn dtype(u: &mut Unstructured<'_>) -> Result<Dtype> {
    let usual = [
        Dtype::Bfloat16,
        Dtype::Float16,
        Dtype::Float32,
        Dtype::Float64,
        Dtype::Float8E4m3fn,
        Dtype::Uint8,
    ];
    if u.ratio(2, 3)? {
        return u.choose(&usual).copied();
    }
    u.choose(Dtype::ALL).copied()
}

/// Counts around which something changes, or any.
pub fn count(u: &mut Unstructured<'_>, most: usize) -> Result<usize> {
    let edge: usize = *u.choose(&[0, 64, 128, 1024, 2048, 4096, 8192, 12288, 16384])?;
    let near = edge + u.int_in_range(0..=6)?;
    let any = u.int_in_range(0..=most)?;
    Ok(if u.ratio(1, 3)? {
        any
    } else {
        near.saturating_sub(3)
    }
    .min(most))
}

impl Case {
    pub fn new(u: &mut Unstructured<'_>) -> Result<Self> {
        let dtype = dtype(u)?;
        let count = count(u, 65536 / dtype.itemsize())?;
        let columns = (*u.choose(&[1, 3, 16, 64, 65, 100, 384])?).min(count.max(1));
        let rows = count / columns;
        let mut data = tensor(u, dtype, rows * columns, columns)?;
        let shape = vec![rows as u64, columns as u64];
        let level = *u.choose(&[Level::Fast, Level::Default, Level::Max])?;
        let chunk_log2 = u.ratio(3, 4)?.then_some(u.int_in_range(12..=16)?);
        if u.ratio(1, 4)? {
            // Raw bytes that begin and end anywhere.
            let front = u.int_in_range(0..=data.len().min(17))?;
            data.drain(..front);
            let back = u.int_in_range(0..=data.len().min(17))?;
            data.truncate(data.len() - back);
            let hint = u.ratio(1, 2)?.then_some(dtype);
            let shape = vec![data.len() as u64];
            return Ok(Self {
                data,
                dtype: Dtype::Uint8,
                shape,
                level,
                chunk_log2,
                hint,
            });
        }
        Ok(Self {
            data,
            dtype,
            shape,
            level,
            chunk_log2,
            hint: None,
        })
    }
}
