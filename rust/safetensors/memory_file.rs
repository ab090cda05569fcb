//! A file in memory whose growth can fail instead of ending the process.
//!
//! Invariants: as for a file, a gap left by a seek reads as zeros.
//!
//! Place in docs/format-files.md: none.

use std::io::{self, Seek, SeekFrom, Write};

/// Bytes that are written and sought like a file.
#[derive(Default)]
pub(super) struct MemoryFile {
    bytes: Vec<u8>,
    position: usize,
}

impl MemoryFile {
    /// What was written.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl Write for MemoryFile {
    fn write(&mut self, written: &[u8]) -> io::Result<usize> {
        let end = self
            .position
            .checked_add(written.len())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        if let Some(growth) = end.checked_sub(self.bytes.len()) {
            self.bytes
                .try_reserve(growth)
                .map_err(|_| io::ErrorKind::OutOfMemory)?;
            self.bytes.resize(end, 0);
        }
        self.bytes[self.position..end].copy_from_slice(written);
        self.position = end;
        Ok(written.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for MemoryFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(offset) => (self.position as u64).checked_add_signed(offset),
            SeekFrom::End(offset) => (self.bytes.len() as u64).checked_add_signed(offset),
        };
        let target = target.ok_or(io::ErrorKind::InvalidInput)?;
        self.position = usize::try_from(target).map_err(|_| io::ErrorKind::OutOfMemory)?;
        Ok(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn act(out: &mut (impl Write + Seek)) -> u64 {
        out.seek(SeekFrom::Start(3)).unwrap();
        out.write_all(b"abcdef").unwrap();
        out.seek(SeekFrom::Start(0)).unwrap();
        out.write_all(b"12").unwrap();
        out.seek(SeekFrom::Current(2)).unwrap();
        out.write_all(b"X").unwrap();
        out.seek(SeekFrom::End(1)).unwrap();
        out.write_all(b"end").unwrap();
        assert!(out.seek(SeekFrom::Current(-99)).is_err());
        out.stream_position().unwrap()
    }

    #[test]
    fn behaves_like_a_file() {
        let mut memory = MemoryFile::default();
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(act(&mut memory), act(&mut file));
        file.rewind().unwrap();
        let mut expected = Vec::new();
        io::Read::read_to_end(&mut file, &mut expected).unwrap();
        assert_eq!(memory.into_bytes(), expected);
    }
}
