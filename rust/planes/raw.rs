//! Raw planes: the bits that are not worth coding, laid out so that every decoder can load them wide.
//!
//! A sub-block of `m` fields of `w` bits is stored as `w / 8` byte planes of `m` bytes, the lowest
//! bits first, then the remaining `w mod 8` top bits of each field as one little-endian bit string.
//! Place in docs/format.md: "Raw plane" and "Trailing zeros".

use super::words::{Word, low_mask};
use crate::error::{Error, Result};
use crate::simd::Kernels;

/// Bytes that `count` fields of `bits` bits take.
pub(crate) const fn raw_len(count: usize, bits: u32) -> usize {
    count * (bits / 8) as usize + (count * (bits % 8) as usize).div_ceil(8)
}

/// Appends fields of `bits` bits; bits above are ignored.
#[inline(always)]
pub(crate) fn pack<W: Word>(kernels: Kernels, fields: &[W], bits: u32, out: &mut Vec<u8>) {
    let (whole, rest) = (bits / 8, bits % 8);
    for byte in 0..whole {
        out.extend(fields.iter().map(|&field| (field >> (8 * byte)).low_byte()));
    }
    if rest == 0 {
        return;
    }
    for fields in fields.chunks(TILE) {
        let mut tops = [0; TILE];
        let tops = &mut tops[..fields.len()];
        for (top, &field) in tops.iter_mut().zip(fields) {
            *top = (field >> (8 * whole)).low_byte();
        }
        let begin = out.len();
        out.resize(begin + raw_len(tops.len(), rest), 0);
        kernels.pack_bits(tops, rest, &mut out[begin..]);
    }
}

/// Reads what [`pack`] wrote.
///
/// # Errors
/// [`Error::Corrupt`] when the bits after the last field are not zero. `bytes` has the length
/// [`raw_len`] gives; the caller has checked it.
#[inline(always)]
pub(crate) fn unpack<W: Word>(
    kernels: Kernels,
    bytes: &[u8],
    bits: u32,
    fields: &mut [W],
) -> Result<()> {
    let count = fields.len();
    let (whole, rest) = ((bits / 8) as usize, bits % 8);
    if whole == 0 {
        fields.fill(W::default());
    }
    for byte in 0..whole {
        let plane = &bytes[byte * count..(byte + 1) * count];
        for (field, &value) in fields.iter_mut().zip(plane) {
            let value = W::truncate(u64::from(value)) << (8 * byte as u32);
            *field = if byte == 0 { value } else { *field | value };
        }
    }
    if rest == 0 {
        return Ok(());
    }
    let packed = &bytes[whole * count..];
    check_tail(packed, count, rest)?;
    let packed = packed.chunks(raw_len(TILE, rest));
    for (fields, packed) in fields.chunks_mut(TILE).zip(packed) {
        let mut tops = [0; TILE];
        let tops = &mut tops[..fields.len()];
        kernels.unpack_bits(packed, rest, tops);
        for (field, &top) in fields.iter_mut().zip(&*tops) {
            *field = *field | W::truncate(u64::from(top)) << (8 * whole as u32);
        }
    }
    Ok(())
}

/// Fields whose packed bits are handled at a time, a multiple of 64.
const TILE: usize = 512;

/// Checks that the bits after the last of `count` fields of `width` bits are zero.
pub(crate) fn check_tail(packed: &[u8], count: usize, width: u32) -> Result<()> {
    let used = count * width as usize % 8;
    let clean = used == 0 || packed.last().is_none_or(|&last| last >> used == 0);
    if clean {
        Ok(())
    } else {
        Err(Error::corrupt("a raw plane has bits after its last field"))
    }
}

/// Which bits of a field count for trailing zeros: all, or all above a sign in the lowest bit.
#[derive(Clone, Copy)]
pub(crate) struct TrailingZeros {
    /// Width of the field.
    pub(crate) bits: u32,
    /// Whether bit 0 is a sign, which stays.
    pub(crate) sign_is_last: bool,
}

impl TrailingZeros {
    /// Largest count there can be.
    pub(crate) fn limit(self) -> u32 {
        self.bits - u32::from(self.sign_is_last)
    }

    /// Trailing zeros that all `fields` share.
    #[inline(always)]
    pub(crate) fn count<W: Word>(self, fields: &[W]) -> u32 {
        let sign_bits = u32::from(self.sign_is_last);
        let any = fields.iter().fold(W::default(), |any, &field| any | field);
        ((any.widen() & low_mask(self.bits)) >> sign_bits)
            .trailing_zeros()
            .min(self.limit())
    }

    /// Takes `zeros` zero bits out of every field.
    #[inline(always)]
    pub(crate) fn remove<W: Word>(self, fields: &mut [W], zeros: u32) {
        if zeros == 0 {
            return;
        }
        let sign = W::mask(u32::from(self.sign_is_last));
        for field in fields {
            *field = (*field >> (zeros - 1) >> 1) & !sign | *field & sign;
        }
    }

    /// The inverse of [`TrailingZeros::remove`].
    #[inline(always)]
    pub(crate) fn restore<W: Word>(self, fields: &mut [W], zeros: u32) {
        if zeros == 0 {
            return;
        }
        let sign = W::mask(u32::from(self.sign_is_last));
        for field in fields {
            *field = (*field & !sign) << (zeros - 1) << 1 | *field & sign;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn roundtrip(fields in prop::collection::vec(any::<u64>(), 0..200), bits in 0_u32..=64) {
            let fields: Vec<u64> = fields.iter().map(|field| field & low_mask(bits)).collect();
            let mut bytes = Vec::new();
            pack(Kernels::scalar(), &fields, bits, &mut bytes);
            prop_assert_eq!(bytes.len(), raw_len(fields.len(), bits));
            let mut back = vec![1_u64; fields.len()];
            unpack(Kernels::scalar(), &bytes, bits, &mut back).unwrap();
            prop_assert_eq!(back, fields);
        }

        #[test]
        fn trailing_zeros_are_removed_and_restored(
            fields in prop::collection::vec(any::<u64>(), 1..50),
            bits in 1_u32..=64, zeros in 0_u32..64, sign_is_last: bool,
        ) {
            let rule = TrailingZeros { bits, sign_is_last };
            let sign = u64::from(sign_is_last);
            let fields: Vec<u64> = fields
                .iter()
                .map(|f| (f & low_mask(bits) & !(low_mask(zeros) << sign)) | f & sign)
                .collect();
            let counted = rule.count(&fields);
            prop_assert!(counted >= zeros.min(rule.limit()));
            let mut changed = fields.clone();
            rule.remove(&mut changed, counted);
            prop_assert!(changed.iter().all(|f| f & !low_mask(bits - counted) == 0));
            rule.restore(&mut changed, counted);
            prop_assert_eq!(changed, fields);
        }
    }

    #[test]
    fn bits_after_the_last_field_are_refused() {
        assert!(unpack(Kernels::scalar(), &[0b1000_0000], 7, &mut [0_u8]).is_err());
    }
}
