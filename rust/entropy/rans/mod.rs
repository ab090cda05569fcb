//! The 64-lane, byte-renormalised rANS coder "r8".

mod decode;
mod encode;
mod spec;

pub(crate) use decode::Decoder;
pub(crate) use encode::encode;
pub(crate) use spec::Spec;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constants::STATES_BYTES;
    use crate::error::Result;
    use proptest::prelude::*;

    fn decode(
        spec: &Spec,
        states: &[u8; STATES_BYTES],
        stream: &[u8],
        indices: &mut [u8],
    ) -> Result<()> {
        let mut decoder = Decoder::new(spec, states, stream)?;
        let (begin, end) = indices.split_at_mut(indices.len() / 128 * 64);
        decoder.fill(begin)?;
        decoder.fill(end)?;
        decoder.finish()
    }

    /// A legal table over `count` symbols and symbols drawn from it.
    fn table_and_indices() -> impl Strategy<Value = (Vec<(u8, u8)>, Vec<u8>)> {
        (2_usize..=64, any::<u64>(), 0_usize..3000, 0_u32..4).prop_map(|(count, seed, n, skew)| {
            let mut random = seed | 1;
            let mut next = move || {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (random >> 33) as usize
            };
            let mut frequencies = vec![1_usize; count];
            let favourite = next() % count;
            for _ in count..256 {
                let pick = if next() % 4 < skew as usize {
                    favourite
                } else {
                    next() % count
                };
                frequencies[pick] += usize::from(frequencies[pick] < 255);
            }
            while frequencies.iter().sum::<usize>() < 256 {
                let pick = next() % count;
                frequencies[pick] += usize::from(frequencies[pick] < 255);
            }
            let table: Vec<(u8, u8)> = frequencies
                .iter()
                .enumerate()
                .map(|(i, &f)| (i as u8, f as u8))
                .collect();
            let indices = (0..n)
                .map(|_| {
                    let mut slot = next() % 256;
                    let mut index = 0;
                    while slot >= frequencies[index] {
                        slot -= frequencies[index];
                        index += 1;
                    }
                    index as u8
                })
                .collect();
            (table, indices)
        })
    }

    /// The decoder written as the format describes it: no tables, no fast path.
    fn naive_decode(table: &[(u8, u8)], states: &[u8], stream: &[u8], n: usize) -> Vec<u8> {
        let mut state: Vec<u32> = (0..64)
            .map(|lane| u32::from(states[lane]) + 256 * u32::from(states[64 + lane]))
            .collect();
        let mut bytes = stream.iter();
        let mut decoded = Vec::new();
        for i in 0..n {
            let x = state[i % 64];
            let (mut slot, mut entry) = (x % 256, 0);
            while slot >= u32::from(table[entry].1) {
                slot -= u32::from(table[entry].1);
                entry += 1;
            }
            decoded.push(table[entry].0);
            let mut x = u32::from(table[entry].1) * (x / 256) + slot;
            if x < 256 {
                x = 256 * x + u32::from(*bytes.next().unwrap());
            }
            state[i % 64] = x;
        }
        assert!(bytes.next().is_none());
        assert!(state.iter().all(|&x| x == 256));
        decoded
    }

    proptest! {
        #[test]
        fn roundtrip_against_the_naive_decoder((table, indices) in table_and_indices()) {
            let spec = Spec::new(table.iter().copied());
            let mut stream = Vec::new();
            let states = encode(&spec, &indices, &mut stream);
            prop_assert_eq!(&naive_decode(&table, &states, &stream, indices.len()), &indices);
            let mut decoded = vec![0; indices.len()];
            decode(&spec, &states, &stream, &mut decoded).unwrap();
            prop_assert_eq!(decoded, indices);
        }

        #[test]
        fn damage_is_an_error_or_other_symbols(
            (table, indices) in table_and_indices(), at: prop::sample::Index, flip in 1_u8..=255,
        ) {
            let spec = Spec::new(table.iter().copied());
            let mut stream = Vec::new();
            let states = encode(&spec, &indices, &mut stream);
            let mut decoded = vec![0; indices.len()];
            for cut in 0..stream.len().min(80) {
                prop_assert!(decode(&spec, &states, &stream[..cut], &mut decoded).is_err());
            }
            if !stream.is_empty() {
                let position = at.index(stream.len());
                stream[position] ^= flip;
                let result = decode(&spec, &states, &stream, &mut decoded);
                prop_assert!(result.is_err() || decoded != indices);
            }
        }
    }
}
