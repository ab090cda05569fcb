//! Elements as integers: little-endian loads and stores, and the move of the sign bit.
//!
//! Everything is generic over the element's own width, so that the compiler vectorises each loop.

use std::ops::{BitAnd, BitOr, BitXor, Not, Shl, Shr};

/// An unsigned integer as wide as an element.
pub(crate) trait Word:
    Copy
    + Default
    + Eq
    + BitAnd<Output = Self>
    + BitOr<Output = Self>
    + BitXor<Output = Self>
    + Not<Output = Self>
    + Shl<u32, Output = Self>
    + Shr<u32, Output = Self>
{
    /// Width in bits.
    const BITS: u32;
    /// Width in bytes.
    const BYTES: usize = Self::BITS as usize / 8;
    /// The element as it is stored.
    type Bytes: Copy;
    /// Little-endian elements of a byte slice; bytes after the last whole one are left out.
    fn split(bytes: &[u8]) -> &[Self::Bytes];
    /// Like [`Word::split`], to write on.
    fn split_mut(bytes: &mut [u8]) -> &mut [Self::Bytes];
    /// Elements as the bytes they are.
    fn as_bytes_mut(elements: &mut [Self::Bytes]) -> &mut [u8];
    fn from_bytes(bytes: Self::Bytes) -> Self;
    fn to_bytes(self) -> Self::Bytes;
    /// Keeps the low bits of a wider number.
    fn truncate(wide: u64) -> Self;
    /// The same number, wider.
    fn widen(self) -> u64;
    fn wrapping_add(self, other: Self) -> Self;
    fn wrapping_sub(self, other: Self) -> Self;
    /// The smaller of two numbers.
    fn smaller(self, other: Self) -> Self;
    /// The larger of two numbers.
    fn larger(self, other: Self) -> Self;
    fn low_byte(self) -> u8;
    /// Rotates right by one bit.
    fn rotate_right_one(self) -> Self;

    /// Reads the elements of `bytes`, as many as `words` has.
    #[inline(always)]
    fn load(bytes: &[u8], words: &mut [Self]) {
        debug_assert_eq!(bytes.len(), words.len() * Self::BYTES);
        for (word, bytes) in words.iter_mut().zip(Self::split(bytes)) {
            *word = Self::from_bytes(*bytes);
        }
    }

    /// Writes elements; the inverse of [`Word::load`].
    #[inline(always)]
    fn store(words: &[Self], bytes: &mut [u8]) {
        debug_assert_eq!(bytes.len(), words.len() * Self::BYTES);
        for (word, bytes) in words.iter().zip(Self::split_mut(bytes)) {
            *bytes = word.to_bytes();
        }
    }

    /// The low `bits` bits set, for `bits` up to the width.
    #[inline(always)]
    fn mask(bits: u32) -> Self {
        Self::truncate(low_mask(bits))
    }

    /// Shifts left by 1 to the full width.
    #[inline(always)]
    fn make_room(self, bits: u32) -> Self {
        self << (bits - 1) << 1
    }
}

macro_rules! word {
    ($($int:ty),*) => { $(
        impl Word for $int {
            const BITS: u32 = <$int>::BITS;
            type Bytes = [u8; size_of::<$int>()];
            #[inline(always)]
            fn split(bytes: &[u8]) -> &[Self::Bytes] {
                bytes.as_chunks().0
            }
            #[inline(always)]
            fn split_mut(bytes: &mut [u8]) -> &mut [Self::Bytes] {
                bytes.as_chunks_mut().0
            }
            #[inline(always)]
            fn as_bytes_mut(elements: &mut [Self::Bytes]) -> &mut [u8] {
                elements.as_flattened_mut()
            }
            #[inline(always)]
            fn from_bytes(bytes: Self::Bytes) -> Self {
                Self::from_le_bytes(bytes)
            }
            #[inline(always)]
            fn to_bytes(self) -> Self::Bytes {
                self.to_le_bytes()
            }
            #[inline(always)]
            fn truncate(wide: u64) -> Self {
                wide as Self
            }
            #[inline(always)]
            fn widen(self) -> u64 {
                u64::from(self)
            }
            #[inline(always)]
            fn wrapping_add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn wrapping_sub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            #[inline(always)]
            fn smaller(self, other: Self) -> Self {
                self.min(other)
            }
            #[inline(always)]
            fn larger(self, other: Self) -> Self {
                self.max(other)
            }
            #[inline(always)]
            fn low_byte(self) -> u8 {
                self as u8
            }
            #[inline(always)]
            fn rotate_right_one(self) -> Self {
                self.rotate_right(1)
            }
        }
    )* };
}

word!(u8, u16, u32, u64);

/// Calls a function that is generic over [`Word`] with the type of this many bytes.
macro_rules! with_word {
    ($element_bytes:expr, $word:ident => $call:expr) => {
        match $element_bytes {
            1 => {
                type $word = u8;
                $call
            }
            2 => {
                type $word = u16;
                $call
            }
            4 => {
                type $word = u32;
                $call
            }
            _ => {
                type $word = u64;
                $call
            }
        }
    };
}
pub(crate) use with_word;

/// A mask of the low `bits` bits, for `bits` up to 64.
#[inline(always)]
pub(crate) const fn low_mask(bits: u32) -> u64 {
    if bits >= 64 {
        u64::MAX
    } else {
        (1 << bits) - 1
    }
}

/// Moves the top bit down to `position`; the bits it passes go up by one.
#[inline(always)]
pub(crate) fn lower_sign<W: Word>(words: &mut [W], position: u32) {
    let top = W::BITS - 1;
    if position == top {
        return;
    }
    let below = W::mask(position);
    for word in words {
        // Shifting out the sign leaves the magnitude one bit up.
        *word = ((*word & !below) << 1) | ((*word >> top) << position) | (*word & below);
    }
}

/// The inverse of [`lower_sign`].
#[inline(always)]
pub(crate) fn raise_sign<W: Word>(words: &mut [W], position: u32) {
    let top = W::BITS - 1;
    if position == top {
        return;
    }
    let below = W::mask(position);
    for word in words {
        let sign = (*word >> position) << top;
        *word = sign | ((*word >> 1) & !below) | (*word & below);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sign_moves_and_returns<W: Word + std::fmt::Debug>(wide: u64, position: u32) {
        let word = W::truncate(wide);
        let position = position % W::BITS;
        let mut moved = [word];
        lower_sign(&mut moved, position);
        assert_eq!((moved[0] >> position) & W::mask(1), word >> (W::BITS - 1));
        raise_sign(&mut moved, position);
        assert_eq!(moved[0], word);
    }

    fn load_and_store<W: Word>(bytes: &[u8; 48]) {
        let mut words = vec![W::default(); 48 / W::BYTES];
        W::load(bytes, &mut words);
        let mut back = [0; 48];
        W::store(&words, &mut back);
        assert_eq!(&back, bytes);
    }

    proptest! {
        #[test]
        fn the_sign_moves_and_returns(wide: u64, position in 0_u32..64) {
            sign_moves_and_returns::<u8>(wide, position);
            sign_moves_and_returns::<u16>(wide, position);
            sign_moves_and_returns::<u32>(wide, position);
            sign_moves_and_returns::<u64>(wide, position);
        }

        #[test]
        fn load_and_store_are_inverse(bytes: [u8; 48]) {
            load_and_store::<u8>(&bytes);
            load_and_store::<u16>(&bytes);
            load_and_store::<u32>(&bytes);
            load_and_store::<u64>(&bytes);
        }
    }

    #[test]
    fn position_zero_is_a_rotation() {
        let mut words = [0x8001_u16];
        lower_sign(&mut words, 0);
        assert_eq!(words, [0x0003]);
    }
}
