//! Reading a plain header, strictly: JSON that the safetensors package would read, and a little less.
//!
//! Refused beyond what the package refuses: repeated keys (it keeps the last), a header that does not
//! begin with `{`, tensors of more than 255 dimensions, and tensors given as JSON arrays. Such a file
//! is compressed like any other file. Unknown keys inside a tensor's object are skipped, as there.
//!
//! Place in docs/format-files.md: "The plain header".

use std::ops::Range;

use super::dtype::ElementType;
use super::header::{
    Entry, Header, LENGTH_BYTES, MAX_HEADER_BYTES, METADATA_KEY, read_shape, stored_text,
};
use super::json::{ARRAY, OBJECT, Reader};
use crate::error::{Error, Result};
use crate::varint::write_varint;

/// The shortest tensor of a header, `"":{"dtype":"U8","shape":[],"data_offsets":[0,1]},`, and so how
/// many there can be.
const MIN_ENTRY_BYTES: usize = 50;

impl Header {
    /// Reads the header in front of a whole file; returns it and where the data begins.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the file breaks a rule of the format.
    pub fn of_file(file: &[u8]) -> Result<(Self, usize)> {
        let json = json_of_file(file)?;
        let header = Self::parse(json)?;
        let data_at = LENGTH_BYTES + json.len();
        let data_bytes = (file.len() - data_at) as u64;
        if header.data_bytes() != data_bytes {
            return Err(Error::corrupt(format!(
                "the header describes {} bytes of data, the file has {data_bytes}",
                header.data_bytes()
            )));
        }
        Ok((header, data_at))
    }

    /// Reads the JSON of a header, with its padding.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it breaks a rule of the format.
    pub fn parse(json: &[u8]) -> Result<Self> {
        if json.len() > MAX_HEADER_BYTES || json.first() != Some(&b'{') {
            return Err(Error::corrupt("not a safetensors header"));
        }
        let mut builder = Builder::default();
        let braces = json.split(|&byte| byte == b'{').count();
        let count = braces.min(json.len() / MIN_ENTRY_BYTES + 1);
        builder
            .entries
            .try_reserve_exact(count)
            .and_then(|()| builder.arena.try_reserve_exact(json.len()))
            .map_err(|_| Error::AllocationFailed {
                bytes: json.len() as u64,
            })?;
        builder.read(json)?;
        builder.finish()
    }
}

/// The JSON of the header in front of a file.
pub(crate) fn json_of_file(file: &[u8]) -> Result<&[u8]> {
    let (length, rest) = file
        .split_first_chunk::<LENGTH_BYTES>()
        .ok_or_else(|| Error::corrupt("too short for a safetensors header"))?;
    let length = u64::from_le_bytes(*length);
    let length = usize::try_from(length)
        .ok()
        .filter(|&length| length <= MAX_HEADER_BYTES)
        .ok_or_else(|| Error::corrupt("not a safetensors header"))?;
    rest.get(..length)
        .ok_or_else(|| Error::corrupt("the safetensors header is cut off"))
}

/// Collects what the visitors find.
#[derive(Default)]
struct Builder {
    arena: Vec<u8>,
    entries: Vec<Entry>,
    metadata: Option<Range<usize>>,
}

impl Builder {
    /// Establishes the invariants of [`Header`].
    fn finish(mut self) -> Result<Header> {
        // Stable, so that empty tensors at one offset keep the order of the JSON.
        self.entries.sort_by_key(|entry| (entry.begin, entry.end));
        let mut by_name: Vec<u32> = Vec::new();
        by_name
            .try_reserve_exact(self.entries.len())
            .map_err(|_| Error::AllocationFailed {
                bytes: self.entries.len() as u64,
            })?;
        by_name.extend((0_u32..).take(self.entries.len()));
        let Self {
            arena,
            entries,
            metadata,
        } = self;
        let mut header = Header {
            arena,
            entries,
            by_name,
            metadata,
        };
        header.check_layout()?;
        let mut by_name = std::mem::take(&mut header.by_name);
        by_name.sort_unstable_by(|&a, &b| header.name(a as usize).cmp(header.name(b as usize)));
        for pair in by_name.windows(2) {
            let name = header.name(pair[0] as usize);
            if name == header.name(pair[1] as usize) {
                return Err(Error::corrupt(format!("two tensors are called {name:?}")));
            }
        }
        header.by_name = by_name;
        header.check_metadata()?;
        Ok(header)
    }
}

impl Header {
    fn check_layout(&self) -> Result<()> {
        let mut expected = 0;
        for (index, entry) in self.entries.iter().enumerate() {
            let wrong = |what: &str| {
                Err(Error::corrupt(format!(
                    "tensor {:?}: {what}",
                    self.name(index)
                )))
            };
            if entry.begin != expected {
                return wrong("its data does not follow that of the tensor before");
            }
            let start = entry.arena_at as usize + entry.name_bytes as usize;
            let shape = read_shape(&self.arena, start, entry.rank);
            let Some(bytes) = entry.element.tensor_bytes(shape.into_iter()) else {
                return wrong("its type and shape give no valid size");
            };
            if entry.end.checked_sub(entry.begin) != Some(bytes) {
                return wrong("its data has not the size of its type and shape");
            }
            expected = entry.end;
        }
        Ok(())
    }

    fn check_metadata(&self) -> Result<()> {
        let Range { start, end } = self.metadata.clone().unwrap_or_default();
        // Positions instead of strings: four bytes for a pair that takes at least six of JSON.
        let mut keys: Vec<u32> = Vec::new();
        let mut position = start;
        while position < end {
            keys.try_reserve(1)
                .map_err(|_| Error::AllocationFailed { bytes: 4 })?;
            keys.push(position as u32);
            stored_text(&self.arena, &mut position);
            stored_text(&self.arena, &mut position);
        }
        let key = |position: u32| stored_text(&self.arena, &mut (position as usize));
        keys.sort_unstable_by_key(|&position| key(position));
        match keys.windows(2).find(|pair| key(pair[0]) == key(pair[1])) {
            Some(pair) => Err(Error::corrupt(format!(
                "metadata key {:?} is repeated",
                key(pair[0])
            ))),
            None => Ok(()),
        }
    }
}

impl Builder {
    /// Reads the object of the whole header.
    fn read(&mut self, json: &[u8]) -> Result<()> {
        let mut reader = Reader::new(json)?;
        let mut more = reader.enter(OBJECT)?;
        while more {
            let arena_at = self.arena.len();
            reader.string(&mut self.arena)?;
            reader.colon()?;
            if self.arena[arena_at..] == *METADATA_KEY.as_bytes() {
                self.arena.truncate(arena_at);
                self.read_metadata(&mut reader)?;
            } else {
                let entry = self.read_tensor(&mut reader, arena_at)?;
                self.entries.push(entry);
            }
            more = reader.another(OBJECT)?;
        }
        reader.end()
    }

    fn read_metadata(&mut self, reader: &mut Reader<'_>) -> Result<()> {
        if self.metadata.is_some() {
            return Err(reader.error("__metadata__ is repeated"));
        }
        let start = self.arena.len();
        let mut more = reader.enter(OBJECT)?;
        while more {
            counted_string(reader, &mut self.arena)?;
            reader.colon()?;
            counted_string(reader, &mut self.arena)?;
            more = reader.another(OBJECT)?;
        }
        self.metadata = Some(start..self.arena.len());
        Ok(())
    }

    /// Reads the object of the tensor whose name ends the arena; its shape is appended.
    fn read_tensor(&mut self, reader: &mut Reader<'_>, arena_at: usize) -> Result<Entry> {
        let arena = &mut self.arena;
        let name_bytes = arena.len() - arena_at;
        let (mut element, mut rank, mut offsets) = (None, None, None);
        let mut more = reader.enter(OBJECT)?;
        while more {
            let field = taken_string(reader, arena, Field::of_name)?;
            reader.colon()?;
            let repeated = match field {
                Field::Dtype => element.replace(read_element(reader, arena)?).is_some(),
                Field::Shape => rank.replace(read_dimensions(reader, arena)?).is_some(),
                Field::DataOffsets => offsets.replace(read_offsets(reader)?).is_some(),
                Field::Unknown => {
                    reader.skip()?;
                    false
                }
            };
            if repeated {
                return Err(reader.error("a key of a tensor is repeated"));
            }
            more = reader.another(OBJECT)?;
        }
        let (Some(element), Some(rank), Some([begin, end])) = (element, rank, offsets) else {
            return Err(reader.error("a tensor lacks dtype, shape or data_offsets"));
        };
        // The arena is no longer than the JSON, which has at most 100 MB.
        let (arena_at, name_bytes) = (arena_at as u32, name_bytes as u32);
        Ok(Entry {
            arena_at,
            name_bytes,
            rank,
            element,
            begin,
            end,
        })
    }
}

/// A key of a tensor's object.
enum Field {
    Dtype,
    Shape,
    DataOffsets,
    Unknown,
}

impl Field {
    fn of_name(name: &str) -> Self {
        match name {
            "dtype" => Self::Dtype,
            "shape" => Self::Shape,
            "data_offsets" => Self::DataOffsets,
            _ => Self::Unknown,
        }
    }
}

/// Reads a string, using the end of the arena as scratch space.
fn taken_string<T>(
    reader: &mut Reader<'_>,
    arena: &mut Vec<u8>,
    meaning: impl FnOnce(&str) -> T,
) -> Result<T> {
    let start = arena.len();
    reader.string(arena)?;
    let meaning = meaning(std::str::from_utf8(&arena[start..]).unwrap_or_default());
    arena.truncate(start);
    Ok(meaning)
}

/// Reads a string into the arena, with its length in front.
fn counted_string(reader: &mut Reader<'_>, arena: &mut Vec<u8>) -> Result<()> {
    let start = arena.len();
    reader.string(arena)?;
    let bytes = arena.len() - start;
    write_varint(arena, bytes as u64);
    let prefix = arena.len() - start - bytes;
    arena[start..].rotate_right(prefix);
    Ok(())
}

fn read_element(reader: &mut Reader<'_>, arena: &mut Vec<u8>) -> Result<ElementType> {
    let element = taken_string(reader, arena, ElementType::from_name)?;
    element.ok_or_else(|| reader.error("an unknown dtype"))
}

/// Reads a list of dimensions into the arena; returns their number.
fn read_dimensions(reader: &mut Reader<'_>, arena: &mut Vec<u8>) -> Result<u8> {
    let mut rank = 0_u8;
    let mut more = reader.enter(ARRAY)?;
    while more {
        write_varint(arena, reader.unsigned()?);
        rank = rank
            .checked_add(1)
            .ok_or_else(|| reader.error("a tensor has more than 255 dimensions"))?;
        more = reader.another(ARRAY)?;
    }
    Ok(rank)
}

fn read_offsets(reader: &mut Reader<'_>) -> Result<[u64; 2]> {
    let mut offsets = [0; 2];
    let mut more = reader.enter(ARRAY)?;
    for offset in &mut offsets {
        if !more {
            return Err(reader.error("data_offsets has not two numbers"));
        }
        *offset = reader.unsigned()?;
        more = reader.another(ARRAY)?;
    }
    if more {
        Err(reader.error("data_offsets has more than two numbers"))
    } else {
        Ok(offsets)
    }
}
