//! Rounding float32 to narrower floats, bit for bit the same everywhere.
//!
//! Place in docs/format.md: "External body".

use crate::container::external::Derivation;
use crate::dtype::Dtype;

/// To bfloat16, to the nearest, ties to even; a NaN keeps its sign and upper bits and becomes quiet.
fn to_bfloat16(wide: u32) -> u16 {
    if wide & 0x7fff_ffff > 0x7f80_0000 {
        return (wide >> 16) as u16 | 0x40;
    }
    // The largest sum rounds up to infinity and no further.
    (wide.wrapping_add(0x7fff + (wide >> 16 & 1)) >> 16) as u16
}

/// To float16 in the same way.
fn to_float16(wide: u32) -> u16 {
    let (sign, magnitude) = ((wide >> 16 & 0x8000) as u16, wide & 0x7fff_ffff);
    let rounded = match magnitude {
        0x7f80_0001.. => 0x7e00 | magnitude >> 13 & 0x3ff,
        // From 2^16 on.
        0x4780_0000.. => 0x7c00,
        // Normal numbers: the exponent's bias goes from 127 to 15.
        0x3880_0000.. => {
            let rebiased = magnitude - (112 << 23);
            (rebiased + 0xfff + (rebiased >> 13 & 1)) >> 13
        }
        // Multiples of 2^-24.
        0x3300_0000.. => {
            let mantissa = magnitude & 0x7f_ffff | 0x80_0000;
            let shift = 126 - (magnitude >> 23);
            (mantissa + (1 << (shift - 1)) - 1 + (mantissa >> shift & 1)) >> shift
        }
        _ => 0,
    };
    sign | rounded as u16
}

/// The elements that `derivation` makes of float32 elements.
pub(super) fn cast(derivation: Derivation, to: Dtype, wide: &[u8], narrow: &mut [u8]) {
    let convert = match (derivation, to) {
        (Derivation::Truncated, _) => |wide: u32| (wide >> 16) as u16,
        (_, Dtype::Float16) => to_float16,
        _ => to_bfloat16,
    };
    let (wide, narrow) = (wide.as_chunks::<4>().0, narrow.as_chunks_mut::<2>().0);
    for (to, from) in narrow.iter_mut().zip(wide) {
        *to = convert(u32::from_le_bytes(*from)).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The value of a float with these fields, exactly.
    fn value(float: u16, exponent_bits: u32) -> f64 {
        let mantissa_bits = 15 - exponent_bits;
        let bias = (1 << (exponent_bits - 1)) - 1;
        let exponent = i32::from(float & 0x7fff) >> mantissa_bits;
        let mantissa =
            f64::from(float & ((1 << mantissa_bits) - 1)) / f64::from(1 << mantissa_bits);
        let value = match exponent {
            0 => mantissa * 2_f64.powi(1 - bias),
            _ => (1.0 + mantissa) * 2_f64.powi(exponent - bias),
        };
        if float >> 15 == 1 { -value } else { value }
    }

    /// No neighbour is nearer, and none as near is even.
    fn is_nearest(wide: u32, narrow: u16, exponent_bits: u32) {
        let exact = f64::from(f32::from_bits(wide));
        let distance = |bits: u16| (value(bits, exponent_bits) - exact).abs();
        for neighbour in [narrow.wrapping_sub(1), narrow.wrapping_add(1)] {
            if neighbour >> 15 == narrow >> 15 {
                let (near, far) = (distance(narrow), distance(neighbour));
                assert!(
                    near < far || near <= far && narrow & 1 == 0,
                    "{wide:#x} {narrow:#x}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn rounding_is_to_the_nearest(bits: u32, near in 0_u32..1 << 29) {
            // Half of the cases in the range of float16.
            for wide in [bits, 0x3300_0000_u32.wrapping_add(near)] {
                if f32::from_bits(wide).is_nan() {
                    prop_assert!(to_bfloat16(wide) & 0x7fff > 0x7f80);
                    prop_assert!(to_float16(wide) & 0x7fff > 0x7c00);
                    continue;
                }
                prop_assert_eq!(u32::from(to_bfloat16(wide) >> 15), wide >> 31);
                // Infinity takes the place of the value after the largest one.
                is_nearest(wide, to_bfloat16(wide), 8);
                if f32::from_bits(wide).abs() < 65536.0 {
                    is_nearest(wide, to_float16(wide), 5);
                } else {
                    prop_assert_eq!(to_float16(wide) & 0x7fff, 0x7c00);
                }
            }
        }
    }

    #[test]
    fn ties_and_borders() {
        let float16 = |x: f32| to_float16(x.to_bits());
        assert_eq!(float16(65519.0), 0x7bff);
        assert_eq!(float16(65520.0), 0x7c00);
        assert_eq!(float16(2_f32.powi(-25)), 0);
        assert_eq!(float16(2_f32.powi(-25) * 1.0001), 1);
        assert_eq!(float16(-0.0), 0x8000);
        assert_eq!(float16(f32::NEG_INFINITY), 0xfc00);
        assert_eq!(to_bfloat16(0x7f7f_ffff), 0x7f80);
        assert_eq!(to_bfloat16(0x3f80_8000), 0x3f80);
        assert_eq!(to_bfloat16(0x3f81_8000), 0x3f82);
    }
}
