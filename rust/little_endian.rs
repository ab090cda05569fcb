//! Little-endian numbers of a width that the data gives.

/// The number that up to eight bytes are.
#[inline]
pub(crate) fn number(bytes: &[u8]) -> u64 {
    let high_to_low = bytes.iter().rev();
    high_to_low.fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_of_any_width() {
        assert_eq!(number(&[]), 0);
        assert_eq!(number(&[1, 2]), 0x201);
        assert_eq!(number(&[0xff; 8]), u64::MAX);
    }
}
