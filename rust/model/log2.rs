//! Binary logarithms in integers, so that every choice is the same on every machine.

/// Fraction bits of the results: a result is `log2(x) * 2^16`, rounded down.
pub(crate) const LOG2_FRACTION_BITS: u32 = 16;

/// `log2(1 + i/256)` for `i` in `0..=256`, with [`LOG2_FRACTION_BITS`].
static MANTISSA_LOG2: [u32; 257] = mantissa_table();

const fn mantissa_table() -> [u32; 257] {
    let mut table = [0; 257];
    let mut i = 0;
    while i <= 256 {
        table[i] = log2_by_squaring((256 + i as u64) << 23);
        i += 1;
    }
    table
}

/// log2 of `x / 2^31` for `x` in `[2^31, 2^32]`: one result bit per squaring.
const fn log2_by_squaring(mut x: u64) -> u32 {
    let mut result = 0;
    let mut bit = 0;
    while bit < LOG2_FRACTION_BITS {
        if x >= 1 << 32 {
            return 1 << LOG2_FRACTION_BITS;
        }
        x = (x * x) >> 31;
        result <<= 1;
        if x >= 1 << 32 {
            result |= 1;
            x >>= 1;
        }
        bit += 1;
    }
    result
}

/// `log2(x) * 2^16`, interpolated in the stored table; 0 for `x = 0`.
pub(crate) fn log2(x: u64) -> u64 {
    if x == 0 {
        return 0;
    }
    let exponent = x.ilog2();
    let mantissa = x << (63 - exponent); // leading one at bit 63
    let index = ((mantissa >> 55) & 0xff) as usize;
    let fraction = u64::from((mantissa >> 39) as u16);
    let (low, high) = (
        u64::from(MANTISSA_LOG2[index]),
        u64::from(MANTISSA_LOG2[index + 1]),
    );
    (u64::from(exponent) << LOG2_FRACTION_BITS) + low + (((high - low) * fraction) >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_to_the_real_logarithm() {
        for x in (1..100_000_u64).chain([u64::MAX, 1 << 63, (1 << 40) - 1]) {
            let expected = (x as f64).log2() * 65536.0;
            assert!(
                (log2(x) as f64 - expected).abs() < 3.0,
                "{x}: {} {expected}",
                log2(x)
            );
        }
        assert_eq!(log2(0), 0);
        assert_eq!(log2(1), 0);
        assert_eq!(log2(1 << 20), 20 << 16);
    }

    #[test]
    fn never_falls() {
        assert!((1..300_000_u64).is_sorted_by_key(log2));
    }
}
