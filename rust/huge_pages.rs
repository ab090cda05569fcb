//! Advice to the system to use huge pages for large results.
//!
//! Most of the time that a fresh result takes beyond its decoding goes into page faults, one for every
//! 4 KiB, where the system gives huge pages only to those who ask. numpy asks for its arrays; torch,
//! `bytes` and Rust's vectors do not. Invariants: only memory that was just allocated for a result is
//! advised, never a caller's; no byte changes; a system that does not take the advice is no error.
//!
//! Place in docs/format.md: none.

#![allow(unsafe_code, reason = "advice about memory has no safe form")]

/// Results below this size are not worth a call to the system; numpy draws the line there too.
pub(crate) const MIN_BYTES: usize = 4 << 20;
/// A multiple of every page size in use.
#[cfg(target_os = "linux")]
const PAGE_BYTES: usize = 64 << 10;

/// Asks for huge pages for the pages that lie wholly inside `len` bytes of fresh memory at `pointer`.
#[cfg(target_os = "linux")]
pub(crate) fn advise(pointer: *const u8, len: usize) {
    if len < MIN_BYTES {
        return;
    }
    let skipped = pointer.align_offset(PAGE_BYTES);
    let whole = len.saturating_sub(skipped) / PAGE_BYTES * PAGE_BYTES;
    // A kernel without huge pages refuses, and the result only takes longer.
    // SAFETY: MADV_HUGEPAGE changes no byte and no mapping, only which pages the kernel will choose
    // for addresses that are touched later; for addresses that are not mapped it returns an error.
    let _ignored = unsafe {
        libc::madvise(
            pointer.wrapping_add(skipped).cast_mut().cast(),
            whole,
            libc::MADV_HUGEPAGE,
        )
    };
}

/// Only Linux takes such advice.
#[cfg(not(target_os = "linux"))]
pub(crate) fn advise(_pointer: *const u8, _len: usize) {}

/// An empty vector with room for `len` bytes, advised if that is much; without room if there is none.
pub(crate) fn advised_vec(len: usize) -> Vec<u8> {
    let mut vec = Vec::new();
    if len >= MIN_BYTES && vec.try_reserve_exact(len).is_ok() {
        advise(vec.as_ptr(), vec.capacity());
    }
    vec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_changes_no_byte() {
        let bytes: Vec<u8> = (0..6_000_001_u32).map(|i| (i >> 7) as u8).collect();
        let copy = bytes.clone();
        for cut in [0, 1, 4095, 65_537, 5_999_999] {
            advise(bytes[cut..].as_ptr(), bytes.len() - cut);
        }
        assert!(bytes == copy);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn advised_memory_may_have_huge_pages() {
        let vec = advised_vec(64 << 20);
        let middle = vec.as_ptr() as usize + (32 << 20);
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        let flags = maps.lines().find_map(|line| {
            let hex = |text| usize::from_str_radix(text, 16);
            let range = line.split(' ').next().and_then(|word| word.split_once('-'));
            if let Some((Ok(begin), Ok(end))) = range.map(|(begin, end)| (hex(begin), hex(end))) {
                inside = (begin..end).contains(&middle);
            }
            line.strip_prefix("VmFlags:").filter(|_| inside)
        });
        // "hg" is the flag of MADV_HUGEPAGE; kernels built without huge pages refuse it.
        let built_without = !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
        assert!(built_without || flags.unwrap().split(' ').any(|flag| flag == "hg"));
    }

    #[test]
    fn room_that_cannot_be_had_is_no_error() {
        // Of 32 bits a half may be had.
        let too_much = usize::MAX >> u32::from(usize::BITS == 64);
        assert_eq!(advised_vec(too_much).capacity(), 0);
        assert_eq!(advised_vec(MIN_BYTES - 1).capacity(), 0);
        assert!(advised_vec(MIN_BYTES).capacity() >= MIN_BYTES);
    }
}
