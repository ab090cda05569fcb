//! Unsigned LEB128 numbers, canonical: the shortest encoding is the only one.

use crate::error::{Error, Result};

/// Appends `value`.
pub(crate) fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes that [`write_varint`] appends for `value`.
pub(crate) const fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Reads a number at `*position` and moves past it.
///
/// # Errors
/// [`Error::Corrupt`] past the end of `bytes`, above 64 bits, or for a padded encoding.
pub(crate) fn read_varint(bytes: &[u8], position: &mut usize) -> Result<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes
            .get(*position)
            .ok_or_else(|| Error::corrupt("a number is cut off"))?;
        *position += 1;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && byte > 1 {
            return Err(Error::corrupt("a number has more than 64 bits"));
        }
        value |= bits << shift;
        if byte < 0x80 {
            if byte == 0 && shift > 0 {
                return Err(Error::corrupt("a number is padded with zero bytes"));
            }
            return Ok(value);
        }
    }
    Err(Error::corrupt("a number has more than 64 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn roundtrip(value: u64, shift in 0_u32..64) {
            let value = value >> shift;
            let mut bytes = Vec::new();
            write_varint(&mut bytes, value);
            prop_assert_eq!(bytes.len(), varint_len(value));
            for cut in 0..bytes.len() {
                prop_assert!(read_varint(&bytes[..cut], &mut 0).is_err());
            }
            let mut position = 0;
            prop_assert_eq!(read_varint(&bytes, &mut position).unwrap(), value);
            prop_assert_eq!(position, bytes.len());
        }
    }

    #[test]
    fn padded_and_oversized_numbers_are_rejected() {
        assert!(read_varint(&[0x80, 0], &mut 0).is_err());
        assert!(read_varint(&[0xff; 11], &mut 0).is_err());
        let mut over = [0xff; 10];
        over[9] = 2;
        assert!(read_varint(&over, &mut 0).is_err());
    }
}
