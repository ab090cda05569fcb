//! The body of a stream whose bytes stand in a tensor of another file.
//!
//! ```text
//! [8 bits]   how: 0 the same bytes, 1 rounded to the nearest, 2 cut off
//! [128 bits] XXH3-128 of the original bytes
//! [varint]   first byte in the other tensor
//! [varint]   length [name of the tensor]   [varint] length [name of the file]
//! 1 and 2:   [varint] exceptions; per exception [varint] elements before it, [itemsize bytes] element
//! ```
//! Invariants of every [`External`], read or built:
//! 1. the file is named relative to the folder of the file with the stream, and lies in it or below;
//! 2. a rounded or cut-off tensor is of float16 or bfloat16 (cut off: bfloat16), and begins at byte 0;
//! 3. exceptions come in ascending order, inside the tensor.
//!
//! Place in docs/format.md: "External body".

use super::prelude::TensorType;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::varint::{read_varint, write_varint};

/// Longest name of a file.
const MAX_FILE_NAME: usize = 4096;

/// How a tensor's bytes come from those of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Derivation {
    /// They are the same.
    Same,
    /// Each element is a float32 of the other one rounded to the nearest, ties to even.
    Rounded,
    /// Each element is a float32 of the other one without its lower half.
    Truncated,
}

/// Bytes that stand in a tensor of another file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// How they come from it.
    pub derivation: Derivation,
    /// [`crate::content_hash`] of the bytes.
    pub content_hash: u128,
    /// First byte in the other tensor.
    pub start: u64,
    /// Name of the tensor.
    pub name: String,
    /// Name of the file.
    pub file: String,
    /// Elements that are not what the derivation gives: their numbers and bits.
    pub exceptions: Vec<(u64, u16)>,
}

impl Derivation {
    fn code(self) -> u8 {
        match self {
            Self::Same => 0,
            Self::Rounded => 1,
            Self::Truncated => 2,
        }
    }

    fn of_code(code: u8) -> Result<Self> {
        match code {
            0 => Ok(Self::Same),
            1 => Ok(Self::Rounded),
            2 => Ok(Self::Truncated),
            _ => Err(Error::UnsupportedVersion(format!("derivation {code}"))),
        }
    }

    /// Whether elements of this type can come about so.
    fn can_give(self, dtype: Dtype) -> bool {
        match self {
            Self::Same => true,
            Self::Rounded => matches!(dtype, Dtype::Bfloat16 | Dtype::Float16),
            Self::Truncated => dtype == Dtype::Bfloat16,
        }
    }

    /// Whether the other tensor has other elements than this one.
    pub(crate) fn is_cast(self) -> bool {
        self != Self::Same
    }
}

/// Whether a name leads to a file in the same folder or below, on every system.
pub(crate) fn is_inner_name(file: &str) -> bool {
    let part = |part: &str| !matches!(part, "" | "." | "..");
    let forbidden = |c: char| matches!(c, '\\' | ':') || c.is_control();
    file.len() <= MAX_FILE_NAME && file.split('/').all(part) && !file.contains(forbidden)
}

impl External {
    /// For people: `"w" of a.safetensors, rounded, 3 elements apart`.
    pub(crate) fn described(&self) -> String {
        let how = match self.derivation {
            Derivation::Same => "",
            Derivation::Rounded => ", rounded",
            Derivation::Truncated => ", cut off",
        };
        let apart = match self.exceptions.len() {
            0 => String::new(),
            count => format!(" but for {count} elements"),
        };
        format!("{} of {}{how}{apart}", self.name, self.file)
    }

    fn validated(self, tensor: &TensorType) -> Result<Self> {
        let fail = |what: &str| Err(Error::corrupt(format!("reference: {what}")));
        if !is_inner_name(&self.file) {
            return fail(&format!("{:?} is no file of the same folder", self.file));
        }
        if self.derivation.is_cast() && (self.start > 0 || !self.derivation.can_give(tensor.dtype))
        {
            return fail("the elements cannot come about so");
        }
        if self.start.checked_add(tensor.byte_len()).is_none() {
            return fail("the range is too far out");
        }
        Ok(self)
    }

    pub(crate) fn read_from(
        bytes: &[u8],
        position: &mut usize,
        tensor: &TensorType,
    ) -> Result<Self> {
        let cut = || Error::corrupt("the header is cut off");
        let take = |position: &mut usize, len: usize| {
            let end = position.checked_add(len).ok_or_else(cut)?;
            let taken = bytes.get(*position..end).ok_or_else(cut)?;
            *position = end;
            Ok::<&[u8], Error>(taken)
        };
        let derivation = Derivation::of_code(take(position, 1)?[0])?;
        let hash = take(position, 16)?.first_chunk().ok_or_else(cut)?;
        let content_hash = u128::from_le_bytes(*hash);
        let start = read_varint(bytes, position)?;
        let text = |position: &mut usize| {
            let len = usize::try_from(read_varint(bytes, position)?).map_err(|_| cut())?;
            String::from_utf8(take(position, len)?.to_vec())
                .map_err(|_| Error::corrupt("a name is not UTF-8"))
        };
        let (name, file) = (text(position)?, text(position)?);
        let mut exceptions = Vec::new();
        if derivation.is_cast() {
            let count = read_varint(bytes, position)?;
            let elements = tensor.byte_len() / 2;
            let mut next = 0_u64;
            for _ in 0..count {
                let gap = read_varint(bytes, position)?;
                let index = next.checked_add(gap).filter(|&index| index < elements);
                let index = index.ok_or_else(|| Error::corrupt("an exception is out of range"))?;
                let element = take(position, 2)?;
                exceptions.push((index, u16::from_le_bytes([element[0], element[1]])));
                next = index + 1;
            }
        }
        let external = Self {
            derivation,
            content_hash,
            start,
            name,
            file,
            exceptions,
        };
        external.validated(tensor)
    }

    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        out.push(self.derivation.code());
        out.extend_from_slice(&self.content_hash.to_le_bytes());
        write_varint(out, self.start);
        for text in [&self.name, &self.file] {
            write_varint(out, text.len() as u64);
            out.extend_from_slice(text.as_bytes());
        }
        if self.derivation.is_cast() {
            write_varint(out, self.exceptions.len() as u64);
            let mut next = 0;
            for &(index, element) in &self.exceptions {
                write_varint(out, index - next);
                out.extend_from_slice(&element.to_le_bytes());
                next = index + 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn roundtrip_and_truncation(
            derivation in prop::sample::select(vec![Derivation::Same, Derivation::Rounded, Derivation::Truncated]),
            content_hash: u128, start in 0_u64..1 << 40, name in ".{0,12}",
            file in "[a-z]{1,5}(/[a-z.]{2,5}x){0,2}",
            exceptions in prop::collection::btree_map(0_u64..1000, any::<u16>(), 0..20),
        ) {
            let cast = derivation.is_cast();
            let external = External {
                derivation, content_hash, name, file,
                start: if cast { 0 } else { start },
                exceptions: if cast { exceptions.into_iter().collect() } else { Vec::new() },
            };
            let tensor = TensorType::new(Dtype::Bfloat16, &[1000]).unwrap();
            let mut bytes = Vec::new();
            external.write_to(&mut bytes);
            let mut position = 0;
            prop_assert_eq!(&External::read_from(&bytes, &mut position, &tensor).unwrap(), &external);
            prop_assert_eq!(position, bytes.len());
            for cut in 0..bytes.len() {
                prop_assert!(External::read_from(&bytes[..cut], &mut 0, &tensor).is_err());
            }
        }
    }

    #[test]
    fn names_that_lead_away_are_refused() {
        let long = "x".repeat(5000);
        for name in [
            "",
            "/etc/x",
            "../x",
            "a/../../x",
            "a//b",
            "./x",
            "a/.",
            "c:x",
            "a\\..\\x",
            "a\0b",
            &long,
        ] {
            assert!(!is_inner_name(name), "{name:?}");
        }
        for name in [
            "model.safetensors",
            "a/b.safetensors",
            "..x",
            "ü.safetensors",
        ] {
            assert!(is_inner_name(name), "{name:?}");
        }
    }

    #[test]
    fn illegal_references_are_refused() {
        let tensor = |dtype| TensorType::new(dtype, &[4]).unwrap();
        let external = External {
            derivation: Derivation::Rounded,
            content_hash: 0,
            start: 0,
            name: "w".to_owned(),
            file: "a".to_owned(),
            exceptions: vec![(3, 7)],
        };
        let read = |external: &External, dtype| {
            let mut bytes = Vec::new();
            external.write_to(&mut bytes);
            External::read_from(&bytes, &mut 0, &tensor(dtype))
        };
        assert!(read(&external, Dtype::Float16).is_ok());
        assert!(read(&external, Dtype::Float32).is_err());
        assert!(
            read(
                &External {
                    start: 2,
                    ..external.clone()
                },
                Dtype::Float16
            )
            .is_err()
        );
        assert!(
            read(
                &External {
                    exceptions: vec![(4, 7)],
                    ..external.clone()
                },
                Dtype::Float16
            )
            .is_err()
        );
        assert!(
            read(
                &External {
                    file: "../a".to_owned(),
                    ..external.clone()
                },
                Dtype::Float16
            )
            .is_err()
        );
        let cut_off = External {
            derivation: Derivation::Truncated,
            ..external
        };
        assert!(read(&cut_off, Dtype::Bfloat16).is_ok());
        assert!(read(&cut_off, Dtype::Float16).is_err());
    }
}
