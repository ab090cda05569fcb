//! Element types: their wire codes, names and bit fields.

use crate::error::{Error, Result};

/// The bit fields of a float, from the top: one sign bit, the exponent, the mantissa.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloatFields {
    /// Width of the whole element, a multiple of 8.
    pub element_bits: u32,
    /// Width of the exponent.
    pub exponent_bits: u32,
    /// Width of the stored mantissa.
    pub mantissa_bits: u32,
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "the table below has None for integers"
)]
const fn fields(element_bits: u32, exponent_bits: u32) -> Option<FloatFields> {
    let mantissa_bits = element_bits - 1 - exponent_bits;
    Some(FloatFields {
        element_bits,
        exponent_bits,
        mantissa_bits,
    })
}

macro_rules! dtypes {
    ($( $variant:ident = $code:literal, $name:literal, $bytes:literal, $float:expr; )*) => {
        /// Type of a tensor's elements.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Dtype {
            $( #[doc = concat!("`", $name, "`, ", $bytes, " byte(s) per element.")] $variant = $code, )*
        }

        impl Dtype {
            /// Every type, in the order of the wire codes.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )* ];

            /// The name numpy or `ml_dtypes` gives the type.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $name, )* }
            }

            /// Bytes per element.
            #[must_use]
            pub const fn itemsize(self) -> usize {
                match self { $( Self::$variant => $bytes, )* }
            }

            /// The bit fields of the float (for complex types: of one part), `None` for integers.
            #[must_use]
            pub const fn float_fields(self) -> Option<FloatFields> {
                match self { $( Self::$variant => $float, )* }
            }

            /// Reads a wire code.
            pub(crate) const fn from_code(code: u8) -> Option<Self> {
                match code { $( $code => Some(Self::$variant), )* _ => None }
            }
        }
    };
}

dtypes! {
    Bool = 0, "bool", 1, None;
    Uint8 = 1, "uint8", 1, None;
    Int8 = 2, "int8", 1, None;
    Uint16 = 3, "uint16", 2, None;
    Int16 = 4, "int16", 2, None;
    Uint32 = 5, "uint32", 4, None;
    Int32 = 6, "int32", 4, None;
    Uint64 = 7, "uint64", 8, None;
    Int64 = 8, "int64", 8, None;
    Float16 = 9, "float16", 2, fields(16, 5);
    Bfloat16 = 10, "bfloat16", 2, fields(16, 8);
    Float32 = 11, "float32", 4, fields(32, 8);
    Float64 = 12, "float64", 8, fields(64, 11);
    Complex32 = 13, "complex32", 4, fields(16, 5);
    Complex64 = 14, "complex64", 8, fields(32, 8);
    Complex128 = 15, "complex128", 16, fields(64, 11);
    Float8E4m3fn = 16, "float8_e4m3fn", 1, fields(8, 4);
    Float8E4m3fnuz = 17, "float8_e4m3fnuz", 1, fields(8, 4);
    Float8E5m2 = 18, "float8_e5m2", 1, fields(8, 5);
    Float8E5m2fnuz = 19, "float8_e5m2fnuz", 1, fields(8, 5);
    Float8E8m0fnu = 20, "float8_e8m0fnu", 1, None;
    Float8E4m3 = 21, "float8_e4m3", 1, fields(8, 4);
    Float8E4m3b11fnuz = 22, "float8_e4m3b11fnuz", 1, fields(8, 4);
    Float8E3m4 = 23, "float8_e3m4", 1, fields(8, 3);
    Float4E2m1fn = 24, "float4_e2m1fn", 1, None;
    Float4E2m1fnX2 = 25, "float4_e2m1fn_x2", 1, None;
    Float6E2m3fn = 26, "float6_e2m3fn", 1, None;
    Float6E3m2fn = 27, "float6_e3m2fn", 1, None;
    Int4 = 28, "int4", 1, None;
    Uint4 = 29, "uint4", 1, None;
    Int2 = 30, "int2", 1, None;
    Uint2 = 31, "uint2", 1, None;
    Int1 = 32, "int1", 1, None;
    Uint1 = 33, "uint1", 1, None;
    Bcomplex32 = 34, "bcomplex32", 4, fields(16, 8);
}

impl Dtype {
    /// The type with this numpy or `ml_dtypes` name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there is none.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|dtype| dtype.name() == name)
            .ok_or_else(|| Error::InvalidArgument(format!("unknown dtype {name:?}")))
    }

    /// The wire code.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_are_unique_and_invertible() {
        for &dtype in Dtype::ALL {
            assert_eq!(Dtype::from_code(dtype.code()), Some(dtype));
            assert_eq!(Dtype::from_name(dtype.name()).unwrap(), dtype);
        }
        assert_eq!(Dtype::from_code(Dtype::ALL.len() as u8), None);
        assert!(Dtype::from_name("float31").is_err());
    }

    #[test]
    fn float_fields_fill_the_element() {
        for &dtype in Dtype::ALL {
            if let Some(f) = dtype.float_fields() {
                assert_eq!(1 + f.exponent_bits + f.mantissa_bits, f.element_bits);
                assert_eq!(dtype.itemsize() as u32 * 8 % f.element_bits, 0);
            }
        }
    }
}
