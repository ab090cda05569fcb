//! Element types as the safetensors format spells them.
//!
//! Invariants: the order of the variants is the order by which the safetensors package sorts tensors
//! (ascending alignment), so it must never change.
//!
//! Place in docs/format-files.md: "Element types".

use crate::Dtype;

macro_rules! element_types {
    ($( $variant:ident = $name:literal, $bits:literal, $stream:expr; )*) => {
        /// A type a `.safetensors` header can name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ElementType {
            $( #[doc = concat!("`", $name, "`, ", $bits, " bits per element.")] $variant, )*
        }

        impl ElementType {
            /// Every type, by ascending alignment.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )* ];

            /// The spelling in a header.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $name, )* }
            }

            /// Bits per element; less than a byte for packed types.
            #[must_use]
            pub const fn bits(self) -> u64 {
                match self { $( Self::$variant => $bits, )* }
            }

            /// The element type of the tensor's stream, if streams have one of the same layout.
            #[must_use]
            pub const fn stream_dtype(self) -> Option<Dtype> {
                match self { $( Self::$variant => $stream, )* }
            }
        }
    };
}

element_types! {
    Bool = "BOOL", 8, Some(Dtype::Bool);
    F4 = "F4", 4, None;
    F6E2m3 = "F6_E2M3", 6, None;
    F6E3m2 = "F6_E3M2", 6, None;
    U8 = "U8", 8, Some(Dtype::Uint8);
    I8 = "I8", 8, Some(Dtype::Int8);
    F8E5m2 = "F8_E5M2", 8, Some(Dtype::Float8E5m2);
    F8E4m3 = "F8_E4M3", 8, Some(Dtype::Float8E4m3fn);
    F8E8m0 = "F8_E8M0", 8, Some(Dtype::Float8E8m0fnu);
    F8E4m3fnuz = "F8_E4M3FNUZ", 8, Some(Dtype::Float8E4m3fnuz);
    F8E5m2fnuz = "F8_E5M2FNUZ", 8, Some(Dtype::Float8E5m2fnuz);
    I16 = "I16", 16, Some(Dtype::Int16);
    U16 = "U16", 16, Some(Dtype::Uint16);
    F16 = "F16", 16, Some(Dtype::Float16);
    Bf16 = "BF16", 16, Some(Dtype::Bfloat16);
    I32 = "I32", 32, Some(Dtype::Int32);
    U32 = "U32", 32, Some(Dtype::Uint32);
    F32 = "F32", 32, Some(Dtype::Float32);
    C64 = "C64", 64, Some(Dtype::Complex64);
    F64 = "F64", 64, Some(Dtype::Float64);
    I64 = "I64", 64, Some(Dtype::Int64);
    U64 = "U64", 64, Some(Dtype::Uint64);
}

impl ElementType {
    /// The type with this spelling.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|element| element.name() == name)
    }

    /// Bytes of a tensor of this type and shape; `None` when that is no whole number of bytes or
    /// does not fit 64 bits.
    #[must_use]
    pub fn tensor_bytes(self, mut shape: impl Iterator<Item = u64>) -> Option<u64> {
        // The product of elements first, as the safetensors package checks it: a shape such as
        // [2^63, 4, 0] overflows there and must not be accepted here.
        let elements = shape.try_fold(1_u64, u64::checked_mul)?;
        let bits = elements.checked_mul(self.bits())?;
        (bits % 8 == 0).then_some(bits / 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_sizes_agree_with_the_stream_type() {
        for &element in ElementType::ALL {
            assert_eq!(ElementType::from_name(element.name()), Some(element));
            if let Some(dtype) = element.stream_dtype() {
                assert_eq!(dtype.itemsize() as u64 * 8, element.bits());
            }
        }
        assert_eq!(ElementType::from_name("bf16"), None);
    }

    #[test]
    fn tensor_bytes_counts_bits_and_refuses_overflow() {
        let bytes =
            |element: ElementType, shape: &[u64]| element.tensor_bytes(shape.iter().copied());
        assert_eq!(bytes(ElementType::F4, &[2, 3]), Some(3));
        assert_eq!(bytes(ElementType::F4, &[3]), None);
        assert_eq!(bytes(ElementType::F6E2m3, &[4]), Some(3));
        assert_eq!(bytes(ElementType::F64, &[]), Some(8));
        assert_eq!(bytes(ElementType::F64, &[0, 7]), Some(0));
        assert_eq!(bytes(ElementType::F64, &[1 << 61, 1]), None);
        assert_eq!(bytes(ElementType::U8, &[1 << 63, 4, 0]), None);
    }
}
