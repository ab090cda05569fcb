//! Finding tensors that repeat an earlier one bit for bit: tied weights.
//!
//! Almost no tensor repeats another, so each is first sampled; only tensors whose samples agree are
//! hashed whole, and only tensors whose hashes agree are compared. Invariants: a repeat is equal in
//! type, shape and every byte to the tensor it names, which comes earlier and repeats none itself.
//!
//! Place in docs/format-files.md: "Repeated tensors".

use std::collections::HashMap;

use super::writer::Source;
use crate::error::Result;
use crate::parallel::{Ahead, in_order};
use crate::{Threads, content_hash};

/// Bytes sampled at the beginning, in the middle and at the end.
const SAMPLE_BYTES: usize = 256;
/// Tensors that may be hashed at once; their hashes take no memory.
const AHEAD: Ahead = Ahead {
    per_thread: 4,
    besides: 4,
};

/// A tensor that holds the same as an earlier one.
#[derive(Clone, Copy)]
pub(super) struct Repeat {
    pub(super) first: usize,
    pub(super) content_hash: u128,
}

/// Finds the repeats among `sources`, in their order. `progress` is called now and then and may stop
/// it by an error.
pub(super) fn find_repeats(
    sources: &[Source<'_>],
    threads: Threads,
    progress: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<Option<Repeat>>> {
    let mut alike: HashMap<_, Vec<usize>> = HashMap::new();
    for (index, source) in sources.iter().enumerate() {
        if !source.data.is_empty() {
            let kind = (
                source.element,
                source.dtype,
                source.shape.as_slice(),
                source.data.len(),
            );
            alike
                .entry((kind, sample(source.data)))
                .or_default()
                .push(index);
            // A sample of a file that is not in memory waits for the disk.
            progress()?;
        }
    }
    let groups: Vec<Vec<usize>> = alike.into_values().filter(|it| it.len() > 1).collect();
    let mut hashes = vec![0; sources.len()];
    in_order(
        threads,
        AHEAD,
        &mut Vec::new(),
        groups.iter().flatten().map(|&index| Ok((1, index))),
        |index, (): &mut ()| Ok((index, content_hash(sources[index].data))),
        |(index, hash), ()| {
            hashes[index] = hash;
            progress()
        },
    )?;
    let mut repeats = vec![None; sources.len()];
    for group in groups {
        let mut firsts: HashMap<u128, usize> = HashMap::new();
        for index in group {
            let content_hash = hashes[index];
            let first = *firsts.entry(content_hash).or_insert(index);
            // The comparison makes a crafted collision harmless.
            if first != index && sources[first].data == sources[index].data {
                repeats[index] = Some(Repeat {
                    first,
                    content_hash,
                });
                progress()?;
            }
        }
    }
    Ok(repeats)
}

/// The hash of the beginning, the middle and the end.
pub(super) fn sample(data: &[u8]) -> u128 {
    if data.len() <= 3 * SAMPLE_BYTES {
        return content_hash(data);
    }
    let middle = data.len() / 2;
    let mut sampled = Vec::with_capacity(3 * SAMPLE_BYTES);
    sampled.extend_from_slice(&data[..SAMPLE_BYTES]);
    sampled.extend_from_slice(&data[middle..middle + SAMPLE_BYTES]);
    sampled.extend_from_slice(&data[data.len() - SAMPLE_BYTES..]);
    content_hash(&sampled)
}
