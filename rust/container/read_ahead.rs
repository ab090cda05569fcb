//! Asks the system for the parts of a mapped file that will be decoded next.
//!
//! A map is read by page faults, and a thread that waits for the disk decodes nothing. So a reader that
//! goes through a file says where it is, and the bytes of a window in front of it are asked for, which
//! the system does while it decodes. Invariants: no byte changes and no error comes of it; no more is
//! asked for than the caller is going to read in all; pages that are there already cost a look at a few.
//!
//! Place in docs/format-files.md: none.

#![allow(
    unsafe_code,
    reason = "asking which pages are in memory has no safe form"
)]

use std::ops::Range;

use super::mapped::Mapped;

/// How far in front of the reader: 30 milliseconds of a disk that gives 1 GB/s.
const WINDOW_BYTES: usize = 32 << 20;
/// What is asked for at a time.
const STEP_BYTES: usize = 4 << 20;

/// A reader's place in a file, and what it has asked for.
pub(crate) struct ReadAhead<'a> {
    map: &'a Mapped,
    window: usize,
    asked: Range<usize>,
}

impl<'a> ReadAhead<'a> {
    /// A reader that will read `total` bytes of the file.
    pub(crate) fn new(map: &'a Mapped, total: u64) -> Self {
        let window = usize::try_from(total).map_or(WINDOW_BYTES, |it| it.min(WINDOW_BYTES));
        Self {
            map,
            window,
            asked: 0..0,
        }
    }

    /// Tells that the bytes from `position` on are about to be read.
    pub(crate) fn reached(&mut self, position: u64) {
        if let Some(range) = self.next(position) {
            self.map.will_need(range);
        }
    }

    /// What to ask for now.
    fn next(&mut self, position: u64) -> Option<Range<usize>> {
        let len = self.map.bytes().len();
        let position = usize::try_from(position).map_or(len, |it| it.min(len));
        if !self.asked.contains(&position) {
            self.asked = position..position;
        }
        let end = position.saturating_add(self.window).min(len);
        let missing = end.saturating_sub(self.asked.end);
        // The rest of the file may be less than a step, and so may the window.
        let is_step = missing >= STEP_BYTES.min(self.window) || end == len;
        if missing == 0 || !is_step {
            return None;
        }
        let range = self.asked.end..end;
        self.asked = position..end;
        Some(range)
    }
}

/// Whether the pages of some bytes are in memory, as far as the first, the middle and the last one tell.
#[cfg(target_os = "linux")]
pub(super) fn is_in_memory(bytes: &[u8]) -> bool {
    // SAFETY: sysconf reads no memory of ours.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let places = [0, bytes.len() / 2, bytes.len().saturating_sub(1)];
    places.into_iter().all(|place| {
        let Some(byte) = bytes.get(place) else {
            return true;
        };
        let address = std::ptr::from_ref(byte);
        let start = address.wrapping_sub(address as usize % page);
        let mut state = 0_u8;
        // SAFETY: mincore writes one byte for the one page that is asked about, which is mapped because
        // `bytes` lies in it; the page itself is not touched.
        let asked = unsafe { libc::mincore(start.cast_mut().cast(), 1, &raw mut state) };
        asked == 0 && state & 1 == 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a reader that goes from `0` on asks for every byte once, and before it is there.
    #[test]
    fn asks_for_each_byte_once_and_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let len = 3 * WINDOW_BYTES + 12345;
        std::fs::File::create(&path)
            .unwrap()
            .set_len(len as u64)
            .unwrap();
        let map = Mapped::open(&path).unwrap();
        let mut reader = ReadAhead::new(&map, u64::MAX);
        let (mut asked, mut calls) = (0, 0);
        for position in (0..len).step_by(700_001) {
            if let Some(range) = reader.next(position as u64) {
                assert_eq!(range.start, asked);
                assert!(range.end > range.start);
                asked = range.end;
                calls += 1;
            }
            assert!(asked >= (position + WINDOW_BYTES - STEP_BYTES).min(len));
            assert!(asked <= position + WINDOW_BYTES);
        }
        assert_eq!(asked, len);
        assert!(calls < len / STEP_BYTES + 2);
        // Elsewhere it begins again.
        assert_eq!(reader.next(5).map(|it| it.start), Some(5));
        assert_eq!(reader.next(u64::MAX), None);
    }

    #[test]
    fn asks_for_no_more_than_will_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let bytes: Vec<u8> = (0..9_000_000_u32).map(|i| (i >> 5) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let map = Mapped::open(&path).unwrap();
        let mut reader = ReadAhead::new(&map, 5000);
        assert_eq!(reader.next(70_000), Some(70_000..75_000));
        assert_eq!(reader.next(71_000), None);
        reader.reached(80_000);
        ReadAhead::new(&map, u64::MAX).reached(0);
        assert!(map.bytes() == bytes);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pages_that_were_touched_are_in_memory() {
        let touched = vec![1_u8; 100_000];
        assert!(is_in_memory(&touched) && is_in_memory(&[]));
        let fresh = memmap2::MmapMut::map_anon(1 << 20).unwrap();
        assert!(!is_in_memory(&fresh));
    }
}
