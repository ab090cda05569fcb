//! Bit strings of narrow fields, portable: eight fields of `width` bits fill `width` bytes.

use crate::planes::words::low_mask;

/// Bytes that `count` fields of `width` bits take.
pub(super) const fn packed_len(count: usize, width: u32) -> usize {
    (count * width as usize).div_ceil(8)
}

/// `packed` holds all fields, which start at its first bit.
pub(super) fn unpack(packed: &[u8], width: u32, fields: &mut [u8]) {
    let bundles = packed.chunks(width as usize);
    for (group, bytes) in fields.chunks_mut(8).zip(bundles) {
        let mut bundle = [0; 8];
        bundle[..bytes.len()].copy_from_slice(bytes);
        let mut bundle = u64::from_le_bytes(bundle);
        for field in group {
            *field = (bundle & low_mask(width)) as u8;
            bundle >>= width;
        }
    }
}

/// `packed` has exactly the length of the fields.
pub(super) fn pack(fields: &[u8], width: u32, packed: &mut [u8]) {
    for (group, bytes) in fields.chunks(8).zip(packed.chunks_mut(width as usize)) {
        let mut bundle = 0_u64;
        for (i, &field) in group.iter().enumerate() {
            bundle |= (u64::from(field) & low_mask(width)) << (i as u32 * width);
        }
        bytes.copy_from_slice(&bundle.to_le_bytes()[..bytes.len()]);
    }
}
