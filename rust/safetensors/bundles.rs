//! Small tensors that share a stream.
//!
//! A stream of its own costs a tensor of a few kilobytes a prelude, a table and 64 states, and the
//! encoder a plan. So small tensors of one type and alike in shape are bundled: the first one's entry in
//! the outer header has the stream of all, and the entry of each later one is empty and says in its
//! shape whose stream that is.
//!
//! ```text
//! "a": shape [n]       a stream: of `a` alone, or of `a` and all that name it
//! "b": shape [0, 4, 8] no bytes: those from 8 on in the stream of the tensor that is number 4
//! ```
//! Invariants: besides any one tensor a bundle holds at most [`MAX_OTHERS`] original bytes, so that reading
//! one costs no more than that; it is named by later tensors only, and names none, so that there are no circles;
//! members follow each other without gaps in the order of the data, so that none overlap. What is
//! bundled depends on types, shapes and bytes alone, not on the level or the threads.
//!
//! Place in docs/format-files.md: "Bundled tensors".

use std::collections::HashMap;
use std::sync::{Arc, Mutex, TryLockError};

use super::dtype::ElementType;
use super::header::Header;
use super::repeats::Repeat;
use super::writer::Source;
use crate::codec::Tensor;
use crate::container::external::External;
use crate::container::writer::constant_element;
use crate::error::{Error, Result};
use crate::{Dtype, write_reference};

/// Original bytes of a bundle besides those of its smallest tensor, and of any tensor in one, at most.
const MAX_OTHERS: u64 = 1 << 16;
/// Constant tensors from this size on take less on their own.
const LEAST_CONSTANT_BYTES: usize = 64;
/// A repeat is stored as a reference if it has so many times the bytes that the reference takes.
const REFERENCE_FACTOR: usize = 2;
/// Decoded bundles that are kept, 4 MiB at most. Threads read in several places at once, and bundles of
/// different shapes alternate.
const KEPT: usize = 32;

/// Where in the bundle of tensor `owner` another tensor lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) owner: usize,
    pub(super) start: u64,
    /// Bytes of the bundle.
    pub(super) total: u64,
}

/// How large a bundle is.
#[derive(Clone, Copy)]
struct Size {
    total: u64,
    /// Of its tensors.
    smallest: u64,
}

impl Size {
    fn of(bytes: u64) -> Self {
        Self {
            total: bytes,
            smallest: bytes,
        }
    }

    /// With one more tensor, unless that makes it too large.
    fn with(self, bytes: u64) -> Option<Self> {
        let total = self.total.checked_add(bytes)?;
        let smallest = self.smallest.min(bytes);
        (total - smallest <= MAX_OTHERS).then_some(Self { total, smallest })
    }
}

/// The bundles of a compressed file.
#[derive(Debug)]
pub(super) struct Bundles {
    /// For each tensor; empty if there are no bundles.
    members: Vec<Option<Member>>,
    decoded: Mutex<Vec<(Key, Arc<Vec<u8>>)>>,
}

/// Which tensor's bundle, and whether its hash was checked.
type Key = (usize, bool);

impl Bundles {
    /// Reads the outer header, in which names and types have been checked.
    pub(super) fn of_headers(outer: &Header, header: &Header) -> Result<Self> {
        let mut members: Vec<Option<Member>> = Vec::new();
        let mut sizes: HashMap<usize, Size> = HashMap::new();
        for index in 0..outer.len() {
            let damaged =
                |what: &str| Error::corrupt(format!("tensor {:?} {what}", outer.name(index)));
            let (owner, start) = match outer.shape(index)[..] {
                [_] => continue,
                [0, owner, start] => (owner, start),
                _ => return Err(damaged("is not stored as bytes")),
            };
            let owner = usize::try_from(owner)
                .ok()
                .filter(|&owner| owner < index && outer.shape(owner).len() == 1)
                .filter(|&owner| header.element(owner) == header.element(index))
                .ok_or_else(|| damaged("is in no bundle"))?;
            let size = sizes
                .entry(owner)
                .or_insert_with(|| Size::of(header.tensor_bytes(owner)));
            if start != size.total {
                return Err(damaged("is not where its bundle goes on"));
            }
            *size = size
                .with(header.tensor_bytes(index))
                .ok_or_else(|| damaged("is in too large a bundle"))?;
            members.resize(outer.len(), None);
            members[index] = Some(Member {
                owner,
                start,
                total: 0,
            });
        }
        for owner in sizes.keys() {
            members[*owner] = Some(Member {
                owner: *owner,
                start: 0,
                total: 0,
            });
        }
        for member in members.iter_mut().flatten() {
            member.total = sizes[&member.owner].total;
        }
        Ok(Self {
            members,
            decoded: Mutex::default(),
        })
    }

    /// Where tensor `index` is, if it is bundled.
    pub(super) fn member(&self, index: usize) -> Option<Member> {
        self.members.get(index).copied().flatten()
    }

    /// The bytes of the bundle of tensor `owner`, decoded by `decode` if they are not at hand.
    pub(super) fn bytes(
        &self,
        owner: usize,
        verify: bool,
        decode: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<Arc<Vec<u8>>> {
        let key = (owner, verify);
        let known = self.kept(|kept| {
            let found = kept.iter().find(|(of, _)| *of == key);
            found.map(|(_, bytes)| bytes.clone())
        });
        if let Some(bytes) = known.flatten() {
            return Ok(bytes);
        }
        let bytes = Arc::new(decode()?);
        self.kept(|kept| {
            if kept.len() == KEPT {
                kept.remove(0);
            }
            kept.push((key, bytes.clone()));
        });
        Ok(bytes)
    }

    /// Nobody waits for what is kept: a process that forked may have left it locked.
    fn kept<T>(&self, act: impl FnOnce(&mut Vec<(Key, Arc<Vec<u8>>)>) -> T) -> Option<T> {
        match self.decoded.try_lock() {
            Ok(mut kept) => Some(act(&mut kept)),
            Err(TryLockError::Poisoned(kept)) => Some(act(&mut kept.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Tensors in one bundle are alike in this: type, and all dimensions but the first, so that their rows
/// lie below each other; none for what has no rows.
type Kind<'a> = (ElementType, Dtype, Option<&'a [u64]>);

/// Which tensors a writer bundles.
#[derive(Default)]
pub(super) struct Plan {
    /// For each tensor; empty if there are no bundles.
    roles: Vec<Role>,
}

/// What a tensor is to a bundle.
#[derive(Clone, Default)]
enum Role {
    #[default]
    Alone,
    /// The first one: all of them, and their bytes.
    First(Vec<usize>, usize),
    /// A later one: the first one, and where it begins.
    Later(usize, u64),
}

/// The tensors of a bundle as one.
pub(super) struct Gathered {
    data: Vec<u8>,
    dtype: Dtype,
    shape: Vec<u64>,
}

impl Plan {
    /// Bundles tensors that are not stored by reference. Repeats that take less in a bundle are taken
    /// out of `repeats`.
    pub(super) fn new(
        sources: &[Source<'_>],
        header: &Header,
        repeats: &mut [Option<Repeat>],
        externals: &[Option<External>],
    ) -> Result<Self> {
        let mut roles = vec![Role::Alone; sources.len()];
        let mut open: HashMap<Kind<'_>, (usize, Size)> = HashMap::new();
        for (index, source) in sources.iter().enumerate() {
            if externals[index].is_some() || !is_small(source) {
                continue;
            }
            if let Some(Repeat { first, .. }) = repeats[index] {
                let reference =
                    write_reference(source.dtype, &source.shape, header.name(first), 0)?;
                if source.data.len() >= REFERENCE_FACTOR * reference.len() {
                    continue;
                }
                repeats[index] = None;
            }
            let rows = (source.shape.len() > 1).then(|| &source.shape[1..]);
            let bytes = source.data.len() as u64;
            let kind = (source.element, source.dtype, rows);
            let begun = open.get(&kind).copied();
            let joined = begun.and_then(|(first, size)| Some((first, size, size.with(bytes)?)));
            let Some((first, before, size)) = joined else {
                open.insert(kind, (index, Size::of(bytes)));
                continue;
            };
            open.insert(kind, (first, size));
            roles[index] = Role::Later(first, before.total);
            if let Role::First(members, total) = &mut roles[first] {
                members.push(index);
                *total = size.total as usize;
            } else {
                roles[first] = Role::First(vec![first, index], size.total as usize);
            }
        }
        Ok(Self { roles })
    }

    /// The first one of the bundle that tensor `index` is a later one of, and where it begins there.
    pub(super) fn place(&self, index: usize) -> Option<(usize, u64)> {
        match self.roles.get(index) {
            Some(&Role::Later(first, start)) => Some((first, start)),
            _ => None,
        }
    }

    /// Whether the tensor is in a bundle.
    pub(super) fn is_bundled(&self, index: usize) -> bool {
        !matches!(self.roles.get(index), None | Some(Role::Alone))
    }

    /// The bundle whose first tensor is `first`, if it is one's.
    pub(super) fn gather(&self, sources: &[Source<'_>], first: usize) -> Option<Gathered> {
        let Some(Role::First(members, total)) = self.roles.get(first) else {
            return None;
        };
        let Source { dtype, shape, .. } = &sources[first];
        let mut gathered = Gathered {
            data: Vec::with_capacity(*total),
            dtype: *dtype,
            shape: shape.clone(),
        };
        let mut rows = 0;
        for &member in members {
            gathered.data.extend_from_slice(sources[member].data);
            rows += sources[member].shape.first().copied().unwrap_or(1);
        }
        match gathered.shape.first_mut() {
            Some(dimension) => *dimension = rows,
            None => gathered.shape.push(rows),
        }
        Some(gathered)
    }

    /// Original bytes of the stream that stands at tensor `index`.
    pub(super) fn stream_bytes(&self, sources: &[Source<'_>], index: usize) -> usize {
        match self.roles.get(index) {
            Some(Role::Later(..)) => 0,
            Some(Role::First(_, total)) => *total,
            Some(Role::Alone) | None => sources[index].data.len(),
        }
    }
}

impl Gathered {
    pub(super) fn tensor(&self) -> Tensor<'_> {
        Tensor {
            data: &self.data,
            base: None,
            dtype: self.dtype,
            shape: &self.shape,
        }
    }
}

fn is_small(source: &Source<'_>) -> bool {
    let bytes = source.data.len();
    (1..=MAX_OTHERS as usize).contains(&bytes)
        && source.element.stream_dtype().is_some()
        && (bytes < LEAST_CONSTANT_BYTES
            || constant_element(source.data, source.dtype.itemsize()).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_count_all_but_the_smallest() {
        let size = Size::of(MAX_OTHERS).with(MAX_OTHERS).unwrap();
        assert_eq!((size.total, size.smallest), (2 * MAX_OTHERS, MAX_OTHERS));
        assert!(size.with(1).is_none());
        assert!(Size::of(MAX_OTHERS).with(1).is_some());
        assert!(Size::of(MAX_OTHERS + 1).with(1).is_none());
        assert!(Size::of(u64::MAX).with(u64::MAX).is_none());
    }

    #[test]
    fn what_is_decoded_is_kept_for_a_while() {
        let bundles = Bundles {
            members: Vec::new(),
            decoded: Mutex::default(),
        };
        let get = |owner, verify| {
            let mut decoded = false;
            let bytes = bundles.bytes(owner, verify, || {
                decoded = true;
                Ok(vec![owner as u8])
            });
            assert_eq!(bytes.unwrap()[..], [owner as u8]);
            decoded
        };
        assert!(get(0, false));
        assert!(!get(0, false));
        // What was not checked does not count as checked.
        assert!(get(0, true));
        for owner in 1..KEPT - 1 {
            assert!(get(owner, true));
        }
        assert!(!get(0, true));
        assert!(get(KEPT, true));
        assert!(get(0, false));
        // An error is not kept.
        let failed = bundles.bytes(99, true, || Err(Error::corrupt("")));
        assert!(failed.is_err());
        assert!(get(99, true));
        // Whoever holds the lock, nobody waits.
        let _held = bundles.decoded.lock();
        assert!(get(99, true));
    }
}
