//! Elements as integers: little-endian loads and stores, and the move of the sign bit.

/// Reads elements of 1, 2, 4 or 8 bytes into `words`.
///
/// `bytes` holds exactly `words.len()` elements.
pub(crate) fn load(bytes: &[u8], element_bytes: usize, words: &mut [u64]) {
    debug_assert_eq!(bytes.len(), words.len() * element_bytes);
    match element_bytes {
        1 => load_as(bytes, words, |[a]: [u8; 1]| u64::from(a)),
        2 => load_as(bytes, words, |b| u64::from(u16::from_le_bytes(b))),
        4 => load_as(bytes, words, |b| u64::from(u32::from_le_bytes(b))),
        _ => load_as(bytes, words, u64::from_le_bytes),
    }
}

/// Writes the low bytes of `words` as elements; the inverse of [`load`].
pub(crate) fn store(words: &[u64], element_bytes: usize, bytes: &mut [u8]) {
    debug_assert_eq!(bytes.len(), words.len() * element_bytes);
    match element_bytes {
        1 => store_as(words, bytes, |w| [w as u8]),
        2 => store_as(words, bytes, |w| (w as u16).to_le_bytes()),
        4 => store_as(words, bytes, |w| (w as u32).to_le_bytes()),
        _ => store_as(words, bytes, u64::to_le_bytes),
    }
}

fn load_as<const N: usize>(bytes: &[u8], words: &mut [u64], read: impl Fn([u8; N]) -> u64) {
    for (word, chunk) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = read(*chunk);
    }
}

fn store_as<const N: usize>(words: &[u64], bytes: &mut [u8], write: impl Fn(u64) -> [u8; N]) {
    for (&word, chunk) in words.iter().zip(bytes.as_chunks_mut().0) {
        *chunk = write(word);
    }
}

/// A mask of the low `bits` bits, for `bits` up to 64.
pub(crate) const fn low_mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// Moves the top one of `element_bits` bits down to `position`, the bits it passes go up by one.
pub(crate) fn lower_sign(words: &mut [u64], element_bits: u32, position: u32) {
    let top = element_bits - 1;
    if position == top {
        return;
    }
    let below = low_mask(position);
    let magnitude = low_mask(top);
    for word in words {
        let sign = *word >> top & 1;
        *word = (*word & magnitude & !below) << 1 | sign << position | *word & below;
    }
}

/// The inverse of [`lower_sign`].
pub(crate) fn raise_sign(words: &mut [u64], element_bits: u32, position: u32) {
    let top = element_bits - 1;
    if position == top {
        return;
    }
    let below = low_mask(position);
    for word in words {
        let sign = *word >> position & 1;
        *word = sign << top | (*word >> 1 & !below) | *word & below;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_sign_moves_and_returns(
            word: u64, log2_bytes in 0_u32..4, position in 0_u32..64,
        ) {
            let bits = 8 << log2_bytes;
            let position = position % bits;
            let word = word & low_mask(bits);
            let mut moved = [word];
            lower_sign(&mut moved, bits, position);
            prop_assert_eq!(moved[0] >> position & 1, word >> (bits - 1));
            prop_assert_eq!(moved[0] & !low_mask(bits), 0);
            raise_sign(&mut moved, bits, position);
            prop_assert_eq!(moved[0], word);
        }

        #[test]
        fn load_and_store_are_inverse(bytes: [u8; 48], log2_bytes in 0_u32..4) {
            let size = 1 << log2_bytes;
            let mut words = vec![0; 48 / size];
            load(&bytes, size, &mut words);
            let mut back = [0; 48];
            store(&words, size, &mut back);
            prop_assert_eq!(back, bytes);
        }
    }

    #[test]
    fn position_zero_is_a_rotation() {
        let mut words = [0x8001];
        lower_sign(&mut words, 16, 0);
        assert_eq!(words, [0x0003]);
    }
}
