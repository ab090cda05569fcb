//! Raw planes: the bits that are not worth coding, laid out so that every decoder can load them wide.
//!
//! A sub-block of `m` fields of `w` bits is stored as `w / 8` byte planes of `m` bytes, the lowest
//! bits first, then the remaining `w mod 8` top bits of each field as one little-endian bit string.
//! Place in docs/format.md: "Raw plane" and "Trailing zeros".

use super::words::{Word, low_mask};
use crate::error::{Error, Result};

/// Bytes that `count` fields of `bits` bits take.
pub(crate) const fn raw_len(count: usize, bits: u32) -> usize {
    count * (bits / 8) as usize + (count * (bits % 8) as usize).div_ceil(8)
}

/// Appends fields of `bits` bits; bits above are ignored.
pub(crate) fn pack<W: Word>(fields: &[W], bits: u32, out: &mut Vec<u8>) {
    let whole = bits / 8;
    for byte in 0..whole {
        out.extend(
            fields
                .iter()
                .map(|&field| (field >> (8 * byte)).widen() as u8),
        );
    }
    let rest = bits % 8;
    if rest == 0 {
        return;
    }
    // Eight fields of `rest` bits fill `rest` bytes.
    for group in fields.chunks(8) {
        let mut bundle = 0_u64;
        for (i, &field) in group.iter().enumerate() {
            bundle |= ((field >> (8 * whole)).widen() & low_mask(rest)) << (i as u32 * rest);
        }
        let len = (group.len() * rest as usize).div_ceil(8);
        out.extend_from_slice(&bundle.to_le_bytes()[..len]);
    }
}

/// Reads what [`pack`] wrote.
///
/// # Errors
/// [`Error::Corrupt`] when the bits after the last field are not zero. `bytes` has the length
/// [`raw_len`] gives; the caller has checked it.
pub(crate) fn unpack<W: Word>(bytes: &[u8], bits: u32, fields: &mut [W]) -> Result<()> {
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
    let shift = 8 * whole as u32;
    let packed = bytes[whole * count..].chunks(rest as usize);
    for (group, bundle_bytes) in fields.chunks_mut(8).zip(packed) {
        let mut bundle = [0; 8];
        bundle[..bundle_bytes.len()].copy_from_slice(bundle_bytes);
        let mut bundle = u64::from_le_bytes(bundle);
        for field in group {
            *field = *field | (W::truncate(bundle & low_mask(rest)) << shift);
            bundle >>= rest;
        }
        if bundle != 0 {
            return Err(Error::corrupt("a raw plane has bits after its last field"));
        }
    }
    Ok(())
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
    pub(crate) fn count<W: Word>(self, fields: &[W]) -> u32 {
        let sign_bits = u32::from(self.sign_is_last);
        let any = fields.iter().fold(W::default(), |any, &field| any | field);
        ((any.widen() & low_mask(self.bits)) >> sign_bits)
            .trailing_zeros()
            .min(self.limit())
    }

    /// Takes `zeros` zero bits out of every field.
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
            pack(&fields, bits, &mut bytes);
            prop_assert_eq!(bytes.len(), raw_len(fields.len(), bits));
            let mut back = vec![1_u64; fields.len()];
            unpack(&bytes, bits, &mut back).unwrap();
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
        assert!(unpack(&[0b1000_0000], 7, &mut [0_u8]).is_err());
    }
}
