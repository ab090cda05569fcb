//! The header of a `.safetensors` file: which tensor lies where.
//!
//! A header is a JSON object that maps names to `{"dtype", "shape", "data_offsets"}`, with an optional
//! `__metadata__` of strings, padded with spaces. Invariants of a [`Header`], established by
//! `parse::parse` and by nobody else:
//! 1. names are unique, and so are metadata keys;
//! 2. entries are sorted by offset, the first begins at 0 and each begins where the one before ended;
//! 3. each entry's length is what its type and shape take.
//!
//! Names, shapes and metadata share one arena, encoded no longer than in the JSON itself. Together with
//! 36 bytes for an entry whose JSON takes at least 50, a header never takes more than about twice the
//! memory of its JSON, whatever a hostile file puts there; no checksum protects the outer header.
//!
//! Place in docs/format-files.md: "The plain header".

use std::ops::Range;

use super::dtype::ElementType;
use crate::error::{Error, Result};
use crate::varint::read_varint;

/// Width of the length in front of the header.
pub(crate) const LENGTH_BYTES: usize = 8;
/// Longest header the safetensors package reads.
pub(crate) const MAX_HEADER_BYTES: usize = 100_000_000;
/// The one key that is no tensor.
pub(crate) const METADATA_KEY: &str = "__metadata__";
/// What the safetensors package pads its headers to.
pub(crate) const PLAIN_ALIGNMENT: usize = 8;

/// One tensor. `arena_at` fits 32 bits because the arena is no longer than the longest header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Where the name begins in the arena; the shape follows it, one varint per dimension.
    pub(super) arena_at: u32,
    pub(super) name_bytes: u32,
    pub(super) rank: u8,
    pub(super) element: ElementType,
    pub(super) begin: u64,
    pub(super) end: u64,
}

/// A checked header.
#[derive(Debug)]
pub struct Header {
    pub(super) arena: Vec<u8>,
    pub(super) entries: Vec<Entry>,
    /// Indices of `entries`, sorted by name.
    pub(super) by_name: Vec<u32>,
    /// Arena range of the metadata: key and value in turn, each a varint length and the bytes.
    pub(super) metadata: Option<Range<usize>>,
}

impl Header {
    /// Number of tensors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no tensors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Name of tensor `index`; tensors are counted in the order of their data.
    #[must_use]
    pub fn name(&self, index: usize) -> &str {
        let entry = &self.entries[index];
        text(
            &self.arena,
            entry.arena_at as usize,
            entry.name_bytes as usize,
        )
    }

    /// Element type of tensor `index`.
    #[must_use]
    pub fn element(&self, index: usize) -> ElementType {
        self.entries[index].element
    }

    /// Shape of tensor `index`.
    #[must_use]
    pub fn shape(&self, index: usize) -> Vec<u64> {
        let entry = &self.entries[index];
        let start = entry.arena_at as usize + entry.name_bytes as usize;
        read_shape(&self.arena, start, entry.rank)
    }

    /// Where the bytes of tensor `index` lie in the data section.
    #[must_use]
    pub fn offsets(&self, index: usize) -> Range<u64> {
        let entry = &self.entries[index];
        entry.begin..entry.end
    }

    /// Bytes of tensor `index`.
    #[must_use]
    pub fn tensor_bytes(&self, index: usize) -> u64 {
        let entry = &self.entries[index];
        entry.end - entry.begin
    }

    /// Bytes of the data section.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.entries.last().map_or(0, |entry| entry.end)
    }

    /// The tensor called `name`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<usize> {
        let found = self
            .by_name
            .binary_search_by(|&index| self.name(index as usize).cmp(name));
        found.ok().map(|position| self.by_name[position] as usize)
    }

    /// Whether there is a `__metadata__` object, even an empty one.
    #[must_use]
    pub fn has_metadata(&self) -> bool {
        self.metadata.is_some()
    }

    /// The metadata, in the order of the file.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        let range = self.metadata.clone().unwrap_or_default();
        let (mut position, end) = (range.start, range.end);
        std::iter::from_fn(move || {
            (position < end).then(|| {
                let key = stored_text(&self.arena, &mut position);
                (key, stored_text(&self.arena, &mut position))
            })
        })
    }

    /// The metadata value of `key`.
    #[must_use]
    pub fn metadata_value(&self, key: &str) -> Option<&str> {
        self.metadata()
            .find(|&(name, _)| name == key)
            .map(|(_, value)| value)
    }
}

/// Reads a shape stored by the parser.
pub(super) fn read_shape(arena: &[u8], mut position: usize, rank: u8) -> Vec<u64> {
    // Written by `write_varint` into a private arena, so reading cannot fail.
    (0..rank)
        .map(|_| read_varint(arena, &mut position).unwrap_or_default())
        .collect()
}

/// Reads a string stored by the parser with its length in front.
pub(super) fn stored_text<'a>(arena: &'a [u8], position: &mut usize) -> &'a str {
    let bytes = read_varint(arena, position).unwrap_or_default() as usize;
    let start = *position;
    *position += bytes;
    text(arena, start, bytes)
}

fn text(arena: &[u8], start: usize, bytes: usize) -> &str {
    // Only whole strings are stored, so this is always UTF-8; the check costs less than unsafe code.
    std::str::from_utf8(&arena[start..start + bytes]).unwrap_or_default()
}

/// A tensor as a header describes it, for writing.
pub(crate) struct Described<'a> {
    pub(crate) name: &'a str,
    pub(crate) element: ElementType,
    pub(crate) shape: &'a [u64],
    pub(crate) bytes: u64,
}

/// Writes a header as the safetensors package does: no spaces, `__metadata__` first, tensors in the
/// order of their data, without padding.
///
/// # Errors
/// [`Error::InvalidArgument`] if the data would be longer than 64 bits can say.
pub(crate) fn write_json<'a>(
    metadata: Option<&[(&str, &str)]>,
    tensors: impl Iterator<Item = Described<'a>>,
) -> Result<Vec<u8>> {
    let mut json = vec![b'{'];
    if let Some(metadata) = metadata {
        json.extend_from_slice(b"\"__metadata__\":{");
        for (key, value) in metadata {
            quote(&mut json, key)?;
            json.push(b':');
            quote(&mut json, value)?;
            json.push(b',');
        }
        close(&mut json, b'}');
        json.push(b',');
    }
    let mut begin = 0_u64;
    for Described {
        name,
        element,
        shape,
        bytes,
    } in tensors
    {
        let end = begin
            .checked_add(bytes)
            .ok_or_else(|| Error::InvalidArgument("the tensors exceed 2^64 bytes".into()))?;
        quote(&mut json, name)?;
        json.extend_from_slice(
            format!(":{{\"dtype\":\"{}\",\"shape\":[", element.name()).as_bytes(),
        );
        for dimension in shape {
            json.extend_from_slice(format!("{dimension},").as_bytes());
        }
        close(&mut json, b']');
        json.extend_from_slice(format!(",\"data_offsets\":[{begin},{end}]}},").as_bytes());
        begin = end;
    }
    close(&mut json, b'}');
    Ok(json)
}

/// Ends a list: the comma after its last item gives way to the bracket.
fn close(json: &mut Vec<u8>, bracket: u8) {
    if json.last() == Some(&b',') {
        json.pop();
    }
    json.push(bracket);
}

/// Appends a JSON string, escaped by the same library that the safetensors package uses.
fn quote(json: &mut Vec<u8>, string: &str) -> Result<()> {
    serde_json::to_writer(json, string)
        .map_err(|error| Error::InvalidArgument(format!("{string:?}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_compact() {
        let tensors = [
            Described {
                name: "a,",
                element: ElementType::F32,
                shape: &[2, 3],
                bytes: 24,
            },
            Described {
                name: "é\n\u{1}\"",
                element: ElementType::Bool,
                shape: &[],
                bytes: 1,
            },
        ];
        let json = write_json(Some(&[("k", "v"), ("l", "")]), tensors.into_iter()).unwrap();
        assert_eq!(
            String::from_utf8(json).unwrap(),
            concat!(
                r#"{"__metadata__":{"k":"v","l":""},"#,
                r#""a,":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"#,
                r#""é\n\u0001\"":{"dtype":"BOOL","shape":[],"data_offsets":[24,25]}}"#
            )
        );
        assert_eq!(write_json(None, std::iter::empty()).unwrap(), b"{}");
        assert_eq!(
            write_json(Some(&[]), std::iter::empty()).unwrap(),
            br#"{"__metadata__":{}}"#
        );
    }
}
