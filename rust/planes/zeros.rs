//! Trailing zeros of whole sub-blocks of a raw plane, byte plane by byte plane.
//!
//! A shift of fields by `z` bits moves byte planes by `z / 8` places and bits between neighbours by
//! `z % 8`. So a sub-block as it is stored becomes one without trailing zeros, and back, without its
//! fields ever being words, and the fast way needs to know nothing of trailing zeros.
//! Place in docs/format.md: "Trailing zeros". The functions on words in `raw.rs` are the oracle.

use std::cmp::Ordering;

use super::raw::{TrailingZeros, check_tail, raw_len};
use crate::constants::SUB_BLOCK;
use crate::error::Result;
use crate::simd::{Kernels, Task};

/// A sub-block of `count` fields of `bits` bits.
#[derive(Clone, Copy)]
struct Block<'a> {
    bytes: &'a [u8],
    count: usize,
    bits: u32,
}

impl<'a> Block<'a> {
    fn byte_planes(self) -> usize {
        (self.bits / 8) as usize
    }

    /// The bits above the last byte plane, as they are packed.
    fn packed(self) -> &'a [u8] {
        &self.bytes[self.byte_planes() * self.count..]
    }

    /// Unpacks the bits above the last byte plane, one field a byte; nothing if there are none.
    fn tops(self, kernels: Kernels, buffer: &mut [u8; SUB_BLOCK]) -> &[u8] {
        if self.bits.is_multiple_of(8) {
            return &[];
        }
        let tops = &mut buffer[..self.count];
        kernels.unpack_bits(self.packed(), self.bits % 8, tops);
        tops
    }

    /// Eight bits of all fields, those from `8 * number` on, if the fields have any there.
    fn plane<'b>(self, number: usize, tops: &'b [u8]) -> Option<&'b [u8]>
    where
        'a: 'b,
    {
        match number.cmp(&self.byte_planes()) {
            Ordering::Less => Some(&self.bytes[number * self.count..(number + 1) * self.count]),
            Ordering::Equal => Some(tops).filter(|tops| !tops.is_empty()),
            Ordering::Greater => None,
        }
    }
}

impl TrailingZeros {
    /// Writes to `out` what the sub-block `stored`, which lacks `zeros` bits, is with them.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] when the bits after the last field are not zero. Both have the length
    /// that [`raw_len`] gives for `count` fields; the caller has checked it.
    pub(crate) fn restore_block(
        self,
        kernels: Kernels,
        (stored, zeros): (&[u8], u32),
        count: usize,
        out: &mut [u8],
    ) -> Result<()> {
        let from = Block {
            bytes: stored,
            count,
            bits: self.bits - zeros,
        };
        check_tail(from.packed(), count, from.bits % 8)?;
        self.shift_block(kernels, from, out, self.bits, |plane| Shift {
            above: plane.checked_sub((zeros / 8) as usize),
            below: plane.checked_sub((zeros / 8) as usize + 1),
            up: zeros % 8,
        });
        Ok(())
    }

    /// Takes `zeros` bits out of every field of `block`, a sub-block of `count` fields; returns how many
    /// bytes are left of it. `copy` is room to work in.
    pub(crate) fn remove_block(
        self,
        kernels: Kernels,
        (block, zeros): (&mut [u8], u32),
        count: usize,
        copy: &mut Vec<u8>,
    ) -> usize {
        let bits = self.bits - zeros;
        let len = raw_len(count, bits);
        if zeros > 0 {
            copy.clear();
            copy.extend_from_slice(block);
            let from = Block {
                bytes: copy,
                count,
                bits: self.bits,
            };
            // Down by `zeros` is up by whole bytes less `zeros`.
            let planes = zeros.div_ceil(8) as usize;
            self.shift_block(kernels, from, &mut block[..len], bits, |plane| Shift {
                above: Some(plane + planes),
                below: (plane + planes).checked_sub(1),
                up: (8 - zeros % 8) % 8,
            });
        }
        len
    }

    /// Trailing zeros that all `count` fields of a sub-block share.
    pub(crate) fn count_block(self, kernels: Kernels, block: &[u8], count: usize) -> u32 {
        let block = Block {
            bytes: block,
            count,
            bits: self.bits,
        };
        let mut any = 0;
        for number in 0..self.bits.div_ceil(8) as usize {
            let mut buffer = [0; SUB_BLOCK];
            let tops = if number == block.byte_planes() {
                block.tops(kernels, &mut buffer)
            } else {
                &[]
            };
            let plane = block.plane(number, tops).unwrap_or_default();
            any |= u64::from(kernels.run(AnyBit(plane))) << (8 * number);
            if any >> u32::from(self.sign_is_last) != 0 {
                break;
            }
        }
        self.count(&[any])
    }

    /// Moves the bits of all fields from one sub-block to another with fields of `bits` bits; a sign in
    /// the lowest bit stays where it is.
    fn shift_block(
        self,
        kernels: Kernels,
        from: Block<'_>,
        out: &mut [u8],
        bits: u32,
        shift: impl Fn(usize) -> Shift,
    ) {
        let (count, byte_planes) = (from.count, (bits / 8) as usize);
        let (planes, packed) = out.split_at_mut(byte_planes * count);
        let mut planes = planes.chunks_exact_mut(count.max(1));
        let (mut old_tops, mut new_tops) = ([0; SUB_BLOCK], [0; SUB_BLOCK]);
        let tops = from.tops(kernels, &mut old_tops);
        for number in 0..bits.div_ceil(8) as usize {
            let to = planes.next().unwrap_or(&mut new_tops[..count]);
            let Shift { above, below, up } = shift(number);
            let sign = |plane: usize| u8::from(self.sign_is_last && plane == 0);
            let source = |plane: Option<usize>| {
                let plane = plane?;
                Some((from.plane(plane, tops)?, !sign(plane)))
            };
            kernels.run(ShiftPlane {
                above: source(above),
                below: source(below).filter(|_| up > 0),
                up,
                sign: from.plane(0, tops).filter(|_| sign(number) > 0),
                to,
            });
        }
        if !bits.is_multiple_of(8) {
            kernels.pack_bits(&new_tops[..count], bits % 8, packed);
        }
    }
}

/// Where the eight bits of a byte plane come from: the lower ones of `above`, `up` bits up, and the
/// `up` top ones of `below`.
struct Shift {
    above: Option<usize>,
    below: Option<usize>,
    up: u32,
}

/// One byte plane of a shifted sub-block. Planes that are not there are zero; those that are come with
/// the bits of them that count.
struct ShiftPlane<'a> {
    above: Option<(&'a [u8], u8)>,
    below: Option<(&'a [u8], u8)>,
    up: u32,
    /// Bytes whose lowest bit is that of the result.
    sign: Option<&'a [u8]>,
    to: &'a mut [u8],
}

impl Task for ShiftPlane<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self {
            above,
            below,
            up,
            sign,
            to,
        } = self;
        match above {
            Some((above, mask)) => {
                for (to, above) in to.iter_mut().zip(above) {
                    *to = (above & mask) << up;
                }
            }
            None => to.fill(0),
        }
        if let Some((below, mask)) = below {
            for (to, below) in to.iter_mut().zip(below) {
                *to |= (below & mask) >> (8 - up);
            }
        }
        if let Some(sign) = sign {
            for (to, sign) in to.iter_mut().zip(sign) {
                *to |= sign & 1;
            }
        }
    }
}

/// Which bits are set in any of the bytes.
struct AnyBit<'a>(&'a [u8]);

impl Task for AnyBit<'_> {
    type Output = u8;

    #[inline(always)]
    fn run(self) -> u8 {
        self.0.iter().fold(0, |any, byte| any | byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planes::raw::{pack, unpack};
    use crate::planes::words::low_mask;
    use crate::simd::SimdTier;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_are_as_the_oracle_writes_them(
            fields in prop::collection::vec(any::<u64>(), 1..300),
            bits in 1_u32..=64, zeros in 0_u32..64, sign_is_last: bool,
        ) {
            let rule = TrailingZeros { bits, sign_is_last };
            let sign = u64::from(sign_is_last);
            let count = fields.len();
            let mut fields: Vec<u64> = fields
                .iter()
                .map(|f| (f & low_mask(bits) & !(low_mask(zeros) << sign)) | f & sign)
                .collect();
            let mut whole = Vec::new();
            pack(Kernels::scalar(), &fields, bits, &mut whole);
            let zeros = rule.count(&fields);
            rule.remove(&mut fields, zeros);
            let mut stored = Vec::new();
            pack(Kernels::scalar(), &fields, bits - zeros, &mut stored);
            for kernels in SimdTier::ALL.into_iter().filter_map(Kernels::new) {
                prop_assert_eq!(rule.count_block(kernels, &whole, count), zeros);
                let (mut block, mut copy) = (whole.clone(), Vec::new());
                let len = rule.remove_block(kernels, (&mut block, zeros), count, &mut copy);
                prop_assert_eq!(&block[..len], &stored[..]);
                let mut back = vec![0xa5; whole.len()];
                rule.restore_block(kernels, (&stored, zeros), count, &mut back).unwrap();
                prop_assert_eq!(&back, &whole);
                let mut words = vec![0_u64; count];
                unpack(kernels, &back, bits, &mut words).unwrap();
                rule.remove(&mut words, zeros);
                prop_assert_eq!(&words, &fields);
            }
        }
    }

    #[test]
    fn bits_after_the_last_field_are_refused() {
        let rule = TrailingZeros {
            bits: 15,
            sign_is_last: false,
        };
        let restored = rule.restore_block(Kernels::scalar(), (&[0x80], 8), 1, &mut [0; 2]);
        assert!(restored.is_err());
    }
}
