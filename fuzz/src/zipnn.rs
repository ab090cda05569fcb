//! Files as zipnn writes them, taken apart and put together again: its format has no checksums, but each
//! frame repeats its lengths, and a change that leaves them wrong gets no further than the index.

use arbitrary::{Result, Unstructured};

use super::content::Random;
use super::mutate::Mutation;

const FIXED_BYTES: usize = 32;
const STREAMING: usize = 13;
const CHUNK_LOG2: usize = 14;

/// A plane's chunks: how each is stored, and its bytes.
type Plane = Vec<(u8, Vec<u8>)>;

/// A frame in parts.
#[derive(Clone)]
pub struct Frame {
    fixed: Vec<u8>,
    /// What a tensor's header has besides.
    shape: Vec<u8>,
    planes: Vec<Plane>,
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
}

impl Frame {
    /// The frame that the bytes begin with, and its length.
    fn of(bytes: &[u8]) -> Option<(Self, usize)> {
        let fixed = bytes.get(..FIXED_BYTES)?.to_vec();
        let len = usize::try_from(number(&fixed[24..])).ok()?;
        let mut rest = bytes.get(FIXED_BYTES..len)?;
        let shape = if matches!(fixed[8], 2 | 3) {
            let mut end = 1;
            for _ in 0..*rest.first()? {
                end += 1 + usize::from(*rest.get(end)?);
            }
            let (shape, behind) = rest.split_at_checked(end)?;
            rest = behind;
            shape.to_vec()
        } else {
            Vec::new()
        };
        let planes = planes_of(fixed[15]);
        let chunk_log2 = match planes {
            1 => fixed[CHUNK_LOG2].min(17),
            _ => fixed[CHUNK_LOG2],
        };
        let chunks = number(&fixed[16..24]).div_ceil(1_u64.checked_shl(chunk_log2.into())?);
        let chunks = usize::try_from(chunks).ok().filter(|&n| n <= 1 << 16)?;
        let kinds = rest.split_off(..chunks * planes)?;
        let ends = rest.split_off(..8 * chunks * planes)?;
        let mut made = Vec::new();
        for plane in 0..planes {
            let mut start = 0;
            let mut parts = Vec::new();
            for at in plane * chunks..(plane + 1) * chunks {
                let end = usize::try_from(number(&ends[8 * at..8 * at + 8])).ok()?;
                parts.push((kinds[at], rest.get(start..end)?.to_vec()));
                start = end;
            }
            rest = &rest[start..];
            made.push(parts);
        }
        let planes = made;
        let frame = Self {
            fixed,
            shape,
            planes,
        };
        Some((frame, len))
    }

    /// The frame with the index and the length that it needs.
    fn put(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        out.extend_from_slice(&self.fixed);
        out.extend_from_slice(&self.shape);
        out.extend(self.planes.iter().flatten().map(|part| part.0));
        for plane in &self.planes {
            let mut end = 0;
            for (_, stored) in plane {
                end += stored.len() as u64;
                out.extend_from_slice(&end.to_le_bytes());
            }
        }
        for (_, stored) in self.planes.iter().flatten() {
            out.extend_from_slice(stored);
        }
        let len = (out.len() - begin) as u64;
        if let Some(place) = out.get_mut(begin + 24..begin + 32) {
            place.copy_from_slice(&len.to_le_bytes());
        }
    }
}

/// How many bytes an element of the type has, each a plane of its own.
fn planes_of(dtype: u8) -> usize {
    match dtype {
        1 | 2 => 4,
        29 | 30 => 1,
        _ => 2,
    }
}

/// The frames that fill a file.
pub fn frames_of(mut file: &[u8]) -> Option<Vec<Frame>> {
    let mut frames = Vec::new();
    while !file.is_empty() {
        let (frame, len) = Frame::of(file)?;
        frames.push(frame);
        file = &file[len..];
    }
    Some(frames)
}

fn written(frames: &[Frame]) -> Vec<u8> {
    let mut file = Vec::new();
    for frame in frames {
        frame.put(&mut file);
    }
    file
}

/// Changes a file in parts; the rest of it follows, now and then not.
pub fn mutated(file: &[u8], random: &mut Random, mutation: Mutation) -> Option<Vec<u8>> {
    let mut frames = frames_of(file).filter(|frames| !frames.is_empty())?;
    let count = frames.len();
    let which = random.below(count);
    match random.below(10) {
        0 if count > 1 => {
            frames.remove(which);
        }
        1 => {
            for frame in &mut frames {
                frame.fixed[STREAMING] |= 128;
            }
            let copy = frames[which].clone();
            frames.insert(random.below(count + 1), copy);
        }
        2 => {
            mutation(&mut frames[which].fixed, FIXED_BYTES, FIXED_BYTES);
            frames[which].fixed.resize(FIXED_BYTES, 0);
        }
        3 => super::mutate::change(&mut frames[which].shape, mutation),
        4 => {
            // Another length, of which the last chunks may be none.
            let length = number(&frames[which].fixed[16..24]);
            let length = length.wrapping_add_signed([-1, 1, 2, -4][random.below(4)]);
            frames[which].fixed[16..24].copy_from_slice(&length.to_le_bytes());
        }
        _ => {
            let planes = &mut frames[which].planes;
            let plane = random.below(planes.len());
            let parts = &mut planes[plane];
            let at = random.below(parts.len());
            if let Some((kind, stored)) = parts.get_mut(at) {
                match random.below(6) {
                    0 => *kind ^= 1,
                    1 => {
                        // A single symbol, for all of the plane.
                        *kind = 1;
                        stored.truncate(1);
                    }
                    2 => {
                        // The table of weights and the lengths of the four streams.
                        let front = stored.len().min(140);
                        let mut head: Vec<u8> = stored.drain(..front).collect();
                        super::mutate::change(&mut head, mutation);
                        stored.splice(..0, head);
                    }
                    _ => {
                        let before = stored.len();
                        super::mutate::change(stored, mutation);
                        if random.below(4) > 0 {
                            stored.resize(before, 0);
                        }
                    }
                }
            }
        }
    }
    Some(written(&frames))
}

/// A legal file of planes that are raw or of one symbol, and what it decodes to.
pub fn drawn(u: &mut Unstructured<'_>) -> Result<(Vec<u8>, Vec<u8>)> {
    let (mut frames, mut original) = (Vec::new(), Vec::new());
    let count = u.int_in_range(1..=3)?;
    for _ in 0..count {
        let (dtype, grouping) = *u.choose(&[(1, 220), (4, 10), (6, 10), (30, 10)])?;
        let planes = planes_of(dtype);
        let moved = planes > 1 && dtype != 4 && u.ratio(1, 2)?;
        let chunk_log2 = u.int_in_range(2..=10_u8)?;
        let len = u.int_in_range(0..=4_usize << chunk_log2)?;
        let mut random = Random::new(u.arbitrary()?);
        let mut fixed = vec![0; FIXED_BYTES];
        fixed[..6].copy_from_slice(&[b'Z', b'N', 0, 5, 4, grouping]);
        fixed[6] = u8::from(moved);
        fixed[8] = 1;
        fixed[STREAMING] = if count > 1 { 128 } else { 0 };
        fixed[CHUNK_LOG2..16].copy_from_slice(&[chunk_log2, dtype]);
        fixed[16..24].copy_from_slice(&(len as u64).to_le_bytes());
        let mut parts = vec![Plane::new(); planes];
        for start in (0..len).step_by(1 << chunk_log2) {
            let chunk = (len - start).min(1 << chunk_log2);
            let symbols: Vec<Option<u8>> = (0..planes)
                .map(|_| (random.below(3) == 0).then(|| random.next() as u8))
                .collect();
            let bytes: Vec<u8> = (0..chunk)
                .map(|i| symbols[i % planes].unwrap_or_else(|| (random.next() >> 24) as u8))
                .collect();
            for (plane, parts) in parts.iter_mut().enumerate() {
                let whole: Vec<u8> = bytes.iter().skip(plane).step_by(planes).copied().collect();
                parts.push(match symbols[plane] {
                    Some(symbol) if !whole.is_empty() => (1, vec![symbol]),
                    _ => (0, whole),
                });
            }
            original.extend(if moved {
                unmoved(&bytes, planes)
            } else {
                bytes
            });
        }
        frames.push(Frame {
            fixed,
            shape: Vec::new(),
            planes: parts,
        });
    }
    Ok((written(&frames), original))
}

/// Puts the sign, which stands between exponent and mantissa, back to the top: word by word of four bytes,
/// as zipnn does, so that what is left at the end stays.
fn unmoved(bytes: &[u8], planes: usize) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let whole = bytes.len() / 4 * 4;
    for element in out[..whole].chunks_exact_mut(planes) {
        let (high, next) = (element[planes - 1], element[planes - 2]);
        element[planes - 1] = next & 0x80 | high >> 1;
        element[planes - 2] = next & 0x7f | high << 7;
    }
    out
}
