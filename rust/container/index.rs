//! The index of a chunked stream: per chunk its payload length, how it is stored, and its hash.
//!
//! Stored as columns, so that a reader can take one without the others; the length of a single
//! chunk is what follows the prelude and is not stored. Place in docs/format.md: "Index".

use crate::constants::{ALIGNMENT, HASH_BYTES};
use crate::error::{Error, Result};
use crate::little_endian;

/// How a chunk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    /// The original bytes.
    Raw,
    /// A repeated 16-byte pattern.
    Constant,
    /// The planes of the model with this number.
    Model(usize),
}

impl Storage {
    fn from_id(id: usize) -> Self {
        match id {
            0 => Self::Raw,
            1 => Self::Constant,
            model => Self::Model(model - 2),
        }
    }

    fn id(self) -> usize {
        match self {
            Self::Raw => 0,
            Self::Constant => 1,
            Self::Model(model) => model + 2,
        }
    }
}

/// What the index says of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkEntry {
    pub(crate) payload_len: u32,
    pub(crate) storage: Storage,
    pub(crate) hash: u64,
}

/// Whether the only chunk of a stream is stored without alignment: the payloads of tiny tensors.
pub(crate) fn is_packed(chunks: usize, first: Storage) -> bool {
    chunks == 1 && !matches!(first, Storage::Model(_))
}

/// Bytes of one storage id.
const fn id_bytes(models: usize) -> usize {
    if models + 2 <= 1 << 8 { 1 } else { 2 }
}

const fn length_bytes(chunks: usize) -> usize {
    if chunks > 1 { 4 } else { 0 }
}

/// Bytes of an index; `None` above what memory can address.
pub(crate) fn index_len(chunks: usize, models: usize) -> Option<usize> {
    chunks.checked_mul(length_bytes(chunks) + id_bytes(models) + HASH_BYTES)
}

pub(crate) fn write_index(entries: &[ChunkEntry], models: usize, out: &mut Vec<u8>) {
    if length_bytes(entries.len()) > 0 {
        out.extend(
            entries
                .iter()
                .flat_map(|entry| entry.payload_len.to_le_bytes()),
        );
    }
    for entry in entries {
        out.extend_from_slice(&(entry.storage.id() as u16).to_le_bytes()[..id_bytes(models)]);
    }
    out.extend(entries.iter().flat_map(|entry| entry.hash.to_le_bytes()));
}

fn unknown_model(chunk: usize) -> Error {
    Error::corrupt(format!("chunk {chunk} names an unknown model"))
}

/// A checked index, read in place.
#[derive(Clone, Debug)]
pub(crate) struct Index<'a> {
    chunks: usize,
    models: usize,
    bytes: &'a [u8],
    /// Position of every payload from the start of the payload area, and its end.
    starts: Vec<u64>,
}

impl<'a> Index<'a> {
    /// Checks an index against the `payload_area` bytes that follow the prelude and its padding.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for an unknown model, a misaligned length, or lengths whose sum is not the area.
    pub(crate) fn new(
        bytes: &'a [u8],
        chunks: usize,
        models: usize,
        payload_area: u64,
    ) -> Result<Self> {
        let mut index = Self::unchecked(bytes, chunks, models);
        index
            .starts
            .try_reserve_exact(chunks + 1)
            .map_err(|_| Error::AllocationFailed {
                bytes: chunks as u64 * 8,
            })?;
        let mut position = 0_u64;
        index.starts.push(0);
        for chunk in 0..chunks {
            if index.id(chunk) >= models + 2 {
                return Err(unknown_model(chunk));
            }
            position += match index.stored_len(chunk) {
                Some(len) if (len as usize).is_multiple_of(ALIGNMENT) => u64::from(len),
                Some(_) => return Err(Error::corrupt(format!("chunk {chunk} is not aligned"))),
                None => payload_area,
            };
            index.starts.push(position);
        }
        if position != payload_area {
            return Err(Error::corrupt(format!(
                "the chunks take {position} bytes, but {payload_area} bytes follow the header"
            )));
        }
        Ok(index)
    }

    fn unchecked(bytes: &'a [u8], chunks: usize, models: usize) -> Self {
        Self {
            chunks,
            models,
            bytes,
            starts: Vec::new(),
        }
    }

    /// How the only chunk of a stream is stored, which decides whether its payload is aligned.
    pub(crate) fn single_storage(bytes: &'a [u8], models: usize) -> Result<Storage> {
        let id = Self::unchecked(bytes, 1, models).id(0);
        if id < models + 2 {
            Ok(Storage::from_id(id))
        } else {
            Err(unknown_model(0))
        }
    }

    /// Whether a packed stream has the payload that its only chunk of `chunk_len` bytes needs.
    pub(crate) fn fits_packed(&self, payload_len: usize, chunk_len: u64) -> bool {
        match self.storage(0) {
            Storage::Raw => payload_len as u64 == chunk_len,
            Storage::Constant => payload_len == ALIGNMENT,
            // A delta's, which says itself how long it is.
            Storage::Model(_) => true,
        }
    }

    /// Number of chunks.
    pub(crate) fn len(&self) -> usize {
        self.chunks
    }

    /// Where the payload of a chunk lies in the payload area.
    pub(crate) fn payload(&self, chunk: usize) -> std::ops::Range<usize> {
        self.starts[chunk] as usize..self.starts[chunk + 1] as usize
    }

    pub(crate) fn storage(&self, chunk: usize) -> Storage {
        Storage::from_id(self.id(chunk))
    }

    pub(crate) fn hash(&self, chunk: usize) -> u64 {
        let column = self.chunks * (length_bytes(self.chunks) + id_bytes(self.models));
        self.number(column + chunk * HASH_BYTES, HASH_BYTES)
    }

    fn stored_len(&self, chunk: usize) -> Option<u32> {
        (length_bytes(self.chunks) > 0).then(|| self.number(chunk * 4, 4) as u32)
    }

    fn id(&self, chunk: usize) -> usize {
        let width = id_bytes(self.models);
        self.number(
            self.chunks * length_bytes(self.chunks) + chunk * width,
            width,
        ) as usize
    }

    fn number(&self, position: usize, width: usize) -> u64 {
        little_endian::number(&self.bytes[position..position + width])
    }
}
