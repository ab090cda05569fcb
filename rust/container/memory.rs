//! A stream written to memory: appended past the caches, its prelude filled in at the end.

use std::io::{self, Seek, SeekFrom, Write};

use crate::constants::PAST_CACHE_BYTES;
use crate::huge_pages::advised_vec;
use crate::simd::Kernels;

/// A growing vector that is written like a file.
///
/// Invariant: `position <= bytes.len()`, but for the room left for a prelude, which is filled with zeros.
pub(crate) struct Memory {
    bytes: Vec<u8>,
    position: usize,
    kernels: Kernels,
    past_cache: bool,
}

impl Memory {
    /// Room for the stream of so many original bytes.
    ///
    /// Growing step by step would copy the result and touch its pages twice. Pages that are not
    /// written to are never there.
    pub(crate) fn new(original_len: usize, kernels: Kernels) -> Self {
        Self {
            bytes: advised_vec(original_len + original_len / 128 + 4096),
            position: 0,
            kernels,
            past_cache: original_len >= PAST_CACHE_BYTES,
        }
    }

    /// What was written.
    pub(crate) fn into_vec(mut self) -> Vec<u8> {
        if self.past_cache {
            self.kernels.fence();
        }
        self.bytes.shrink_to_fit();
        self.bytes
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let inside = (self.bytes.len() - self.position).min(bytes.len());
        let (over, new) = bytes.split_at(inside);
        self.bytes[self.position..self.position + inside].copy_from_slice(over);
        self.bytes
            .try_reserve(new.len())
            .map_err(|_| io::ErrorKind::OutOfMemory)?;
        if self.past_cache {
            self.kernels.append_past_cache(new, &mut self.bytes);
        } else {
            self.bytes.extend_from_slice(new);
        }
        self.position += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Memory {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(target) => Some(target),
            SeekFrom::End(offset) => (self.bytes.len() as u64).checked_add_signed(offset),
            SeekFrom::Current(offset) => (self.position as u64).checked_add_signed(offset),
        };
        let target = target
            .and_then(|target| usize::try_from(target).ok())
            .ok_or(io::ErrorKind::InvalidInput)?;
        if let Some(growth) = target.checked_sub(self.bytes.len()) {
            self.bytes
                .try_reserve(growth)
                .map_err(|_| io::ErrorKind::OutOfMemory)?;
            self.bytes.resize(target, 0);
        }
        self.position = target;
        Ok(target as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_here_and_there(out: &mut (impl Write + Seek)) {
        let writes: [(u64, &[u8]); 4] = [
            (100, &[1; 5]),
            (105, &[2; 200]),
            (3, &[3; 120]),
            (290, &[5; 300]),
        ];
        for (position, bytes) in writes {
            out.seek(SeekFrom::Start(position)).unwrap();
            out.write_all(bytes).unwrap();
            out.write_all(&[4; 7]).unwrap();
        }
    }

    #[test]
    fn behaves_like_a_file() {
        for original_len in [0, PAST_CACHE_BYTES] {
            let mut memory = Memory::new(original_len, Kernels::scalar());
            let mut file = io::Cursor::new(Vec::new());
            write_here_and_there(&mut memory);
            write_here_and_there(&mut file);
            assert_eq!(memory.into_vec(), file.into_inner());
        }
    }
}
