//! Escaped symbols as they lie in a payload: the smallest one, and how far above it each of them is.
//!
//! Escapes of floats are a few octaves of small exponents. Their differences from the smallest take
//! five or six bits, where a whole symbol with a mantissa bit takes nine (docs/design.md). Place in
//! docs/format.md: "Coded plane".

use crate::error::{Error, Result};

/// Bytes before the differences: the smallest symbol, and bits per difference.
pub(crate) const HEAD_BYTES: usize = 4;

/// Differences that fill whole bytes whatever their width.
const GROUP: usize = 8;

/// Bytes of the differences of so many escapes; `None` if there are more than can be.
fn differences_len(count: usize, width: usize) -> Option<usize> {
    Some(count.checked_mul(width)?.div_ceil(8))
}

/// Bytes of all parts, which begin at the start of `part`; `None` if it is too short for the head.
pub(crate) fn len(part: &[u8], count: usize) -> Option<usize> {
    let &[_, _, width, _] = part.first_chunk()?;
    differences_len(count, width.into())?.checked_add(HEAD_BYTES)
}

/// The smallest symbol and bits per difference for these escapes.
fn head(escapes: &[u16]) -> Option<(u16, usize)> {
    let smallest = *escapes.iter().min()?;
    let most = escapes.iter().max()? - smallest;
    Some((smallest, (u16::BITS - most.leading_zeros()).max(1) as usize))
}

/// Writes `escapes` with `extend`, which makes room for so many bytes; nothing if there are none.
pub(crate) fn write<'p>(escapes: &[u16], extend: impl FnOnce(usize) -> &'p mut [u8]) {
    let Some((smallest, width)) = head(escapes) else {
        return;
    };
    let Some(differences) = differences_len(escapes.len(), width) else {
        return;
    };
    let (head, bits) = extend(HEAD_BYTES + differences).split_at_mut(HEAD_BYTES);
    head.copy_from_slice(&(u32::from(smallest) | (width as u32) << 16).to_le_bytes());
    for (bytes, group) in bits.chunks_mut(width).zip(escapes.chunks(GROUP)) {
        let word = group.iter().rev().fold(0_u128, |word, &escape| {
            word << width | u128::from(escape - smallest)
        });
        bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
    }
}

/// The `count` escaped symbols in `part`, each of `bits` bits.
///
/// # Errors
/// [`Error::Corrupt`] for a symbol or a difference that is wider than the plane, or too few bytes.
pub(crate) fn read(bits: u32, part: &[u8], count: usize) -> Result<Vec<u16>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let too_wide = || Error::corrupt("an escaped symbol is out of range");
    let Some((&[low, high, width, reserved], differences)) = part.split_first_chunk() else {
        return Err(Error::corrupt("the escapes are cut off"));
    };
    let (smallest, width) = (u16::from_le_bytes([low, high]), usize::from(width));
    if width == 0 || width > bits as usize || reserved != 0 {
        return Err(too_wide());
    }
    if differences_len(count, width) != Some(differences.len()) {
        return Err(Error::corrupt("the escapes are cut off"));
    }
    let mut escapes = vec![0; count];
    let mask = (1_u128 << width) - 1;
    let (mut all, mut any, mut least) = (0, 0, u32::MAX);
    for (group, bytes) in escapes.chunks_mut(GROUP).zip(differences.chunks(width)) {
        let mut word = [0; size_of::<u128>()];
        word[..bytes.len()].copy_from_slice(bytes);
        let mut word = u128::from_le_bytes(word);
        for escape in group {
            let difference = (word & mask) as u32;
            let symbol = u32::from(smallest) + difference;
            (all, any, least) = (all | symbol, any | difference, least.min(difference));
            *escape = symbol as u16;
            word >>= width;
        }
        if word != 0 {
            return Err(Error::corrupt("bits after the escapes are not zero"));
        }
    }
    if all >> bits != 0 {
        return Err(too_wide());
    }
    if least != 0 || (width > 1 && any >> (width - 1) == 0) {
        return Err(Error::corrupt("the escapes have more bits than they need"));
    }
    Ok(escapes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(escapes: &[u16]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(escapes, |len| {
            bytes.resize(len, 0xa5);
            &mut bytes
        });
        bytes
    }

    proptest! {
        #[test]
        fn written_escapes_are_read_back(
            bits in 1_u32..=16,
            escapes in proptest::collection::vec(any::<u16>(), 0..100),
        ) {
            let escapes: Vec<u16> = escapes.iter().map(|&e| e >> (16 - bits)).collect();
            let bytes = written(&escapes);
            if !escapes.is_empty() {
                prop_assert_eq!(len(&bytes, escapes.len()), Some(bytes.len()));
            }
            prop_assert_eq!(read(bits, &bytes, escapes.len()).unwrap(), escapes);
        }

        #[test]
        fn any_bytes_are_read_or_refused(
            bits in 1_u32..=16,
            part in proptest::collection::vec(any::<u8>(), 0..40),
            width in 0_u8..18,
            count in 0_usize..40,
        ) {
            let mut part = part;
            if let Some(byte) = part.get_mut(2) {
                *byte = width;
            }
            if let Ok(escapes) = read(bits, &part, count) {
                prop_assert_eq!(escapes.len(), count);
                prop_assert!(escapes.iter().all(|&escape| u32::from(escape) >> bits == 0));
            }
        }
    }

    #[test]
    fn neighbours_take_few_bits() {
        let escapes: Vec<u16> = (300..332).collect();
        assert_eq!(written(&escapes).len(), HEAD_BYTES + 32 * 5 / 8);
        assert_eq!(written(&[511]).len(), HEAD_BYTES + 1);
    }

    #[test]
    fn what_no_encoder_writes_is_refused() {
        let good = written(&[3, 9, 5]);
        assert_eq!(read(4, &good, 3).unwrap(), [3, 9, 5]);
        let refused = |change: fn(&mut Vec<u8>), bits, count| {
            let mut bytes = good.clone();
            change(&mut bytes);
            read(bits, &bytes, count).unwrap_err();
        };
        refused(|bytes| bytes[2] = 0, 4, 3);
        refused(|bytes| bytes[2] = 5, 4, 3);
        refused(|bytes| bytes[3] = 1, 4, 3);
        refused(|bytes| bytes[5] |= 0x80, 4, 3);
        refused(|bytes| bytes.truncate(5), 4, 3);
        refused(|bytes| bytes.truncate(3), 4, 3);
        refused(|bytes| bytes[0] = 250, 4, 3);
        refused(|_| (), 3, 3);
        refused(|_| (), 4, 9);
        refused(|_| (), 4, usize::MAX);
        // None is the smallest; bits more than have to be.
        read(4, &[2, 0, 3, 0, 0b1111_1001, 0], 3).unwrap_err();
        read(4, &[3, 0, 2, 0, 0b00_0100], 3).unwrap_err();
        assert_eq!(read(4, &[3, 0, 1, 0, 0b010], 3).unwrap(), [3, 4, 3]);
    }
}
