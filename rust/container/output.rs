//! Writing an output file so that the system can take it quickly.
//!
//! Bytes are collected and written in blocks of 2 MiB at multiples of 2 MiB, for which the page cache
//! uses pages of that size; in smaller steps the same bytes take several times as long. Every few blocks
//! the system is asked to begin writing to the disk, so that the sync at the end finds little left.
//! Invariants: what is written and where is what the caller wrote; nothing is durable before the sync.
//!
//! Place in docs/format-files.md: none.

#![allow(unsafe_code, reason = "starting to write back has no safe form")]

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

/// Bytes written at once, and the alignment of the end of a write.
const BLOCK_BYTES: u64 = 2 << 20;
/// Bytes between two requests to begin writing back.
const WRITE_BACK_BYTES: u64 = 4 * BLOCK_BYTES;

/// A file that is written mostly from front to back.
pub(crate) struct Output<'a> {
    file: &'a mut File,
    /// Bytes that belong at `position`.
    waiting: Vec<u8>,
    position: u64,
    /// Where the part begins that the system was not asked to write back.
    dirty_from: u64,
}

impl<'a> Output<'a> {
    /// Writes to a new file.
    pub(crate) fn new(file: &'a mut File) -> Self {
        Self {
            file,
            waiting: Vec::new(),
            position: 0,
            dirty_from: 0,
        }
    }

    fn write_waiting(&mut self) -> io::Result<()> {
        self.file.write_all(&self.waiting)?;
        self.position += self.waiting.len() as u64;
        self.waiting.clear();
        if self.position.saturating_sub(self.dirty_from) >= WRITE_BACK_BYTES {
            begin_write_back(self.file, self.dirty_from, self.position);
            self.dirty_from = self.position;
        }
        Ok(())
    }
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let block_end = (self.position / BLOCK_BYTES + 1) * BLOCK_BYTES;
        let room = (block_end - self.position) as usize - self.waiting.len();
        let now = bytes.len().min(room);
        self.waiting
            .try_reserve(now)
            .map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.waiting.extend_from_slice(&bytes[..now]);
        if now == room {
            self.write_waiting()?;
        }
        Ok(now)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_waiting()?;
        self.file.flush()
    }
}

impl Seek for Output<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.write_waiting()?;
        self.position = self.file.seek(to)?;
        Ok(self.position)
    }

    fn stream_position(&mut self) -> io::Result<u64> {
        Ok(self.position + self.waiting.len() as u64)
    }
}

/// Asks the system to begin writing a range of the file to the disk, without waiting for it.
#[cfg(target_os = "linux")]
fn begin_write_back(file: &File, from: u64, to: u64) {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open as long as `file` is borrowed, and the call changes no memory.
    // File systems that cannot do it refuse, and the sync at the end does all.
    let _ignored = unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            from as libc::off64_t,
            (to - from) as libc::off64_t,
            libc::SYNC_FILE_RANGE_WRITE,
        )
    };
}

/// Other systems begin when they like.
#[cfg(not(target_os = "linux"))]
fn begin_write_back(_file: &File, _from: u64, _to: u64) {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of many lengths, with a second visit to the beginning as writers of headers make it.
    fn act(out: &mut (impl Write + Seek)) {
        out.seek(SeekFrom::Start(1000)).unwrap();
        let mut at = 1000;
        for length in [0, 1, 70_000, 2 << 20, 3, (9 << 20) + 5, 4095, (2 << 20) - 1] {
            let bytes: Vec<u8> = (0..length).map(|i| (i * 31 + length) as u8).collect();
            out.write_all(&bytes).unwrap();
            at += length as u64;
            assert_eq!(out.stream_position().unwrap(), at);
        }
        out.seek(SeekFrom::Start(0)).unwrap();
        out.write_all(b"head").unwrap();
        out.seek(SeekFrom::Current(96)).unwrap();
        out.write_all(b"more").unwrap();
        out.seek(SeekFrom::End(0)).unwrap();
        out.write_all(b"end").unwrap();
        out.flush().unwrap();
    }

    #[test]
    fn writes_what_a_file_would_hold() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, plain) = (folder.path().join("ours"), folder.path().join("plain"));
        act(&mut Output::new(&mut File::create(&ours).unwrap()));
        act(&mut File::create(&plain).unwrap());
        assert!(std::fs::read(ours).unwrap() == std::fs::read(plain).unwrap());
    }
}
