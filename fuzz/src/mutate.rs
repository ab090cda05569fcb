//! Mutations that keep lengths, padding, sums and checksums right, so that they reach what is behind.

use neuzip_rs::Stream;
use xxhash_rust::xxh3::Xxh3;

use super::content::Random;
use super::wire::{self, Head, Parts};
use super::zipnn;

/// libFuzzer's own mutation: of a buffer's first bytes, within the buffer; returns how many there are then.
pub type Mutation = fn(&mut [u8], usize, usize) -> usize;

/// Mutates a vector, which grows by a quarter at most.
pub(super) fn change(bytes: &mut Vec<u8>, mutation: Mutation) {
    let (size, room) = (bytes.len(), bytes.len() + bytes.len() / 4 + 16);
    bytes.resize(room, 0);
    let size = mutation(bytes, size, room).min(room);
    bytes.truncate(size);
}

/// One byte loses what another one gains: slots of a table, lengths of parts.
fn shift(bytes: &mut [u8], random: &mut Random) {
    if bytes.is_empty() {
        return;
    }
    let by = [1, 1, 16, 4][random.below(4)];
    let (from, to) = (random.below(bytes.len()), random.below(bytes.len()));
    bytes[from] = bytes[from].wrapping_sub(by);
    bytes[to] = bytes[to].wrapping_add(by);
}

/// Swaps, repeats or leaves out a piece of whole 16 bytes.
fn rearrange(bytes: &mut Vec<u8>, random: &mut Random) -> isize {
    let blocks = bytes.len() / 16;
    if blocks < 2 {
        return 0;
    }
    let len = 16 * (1 + random.below(blocks.min(8)));
    let places = (bytes.len() - len) / 16 + 1;
    let (from, to) = (16 * random.below(places), 16 * random.below(places));
    match random.below(4) {
        0 => {
            bytes.drain(from..from + len);
            -(len as isize)
        }
        1 => {
            let piece = bytes[from..from + len].to_vec();
            bytes.splice(to..to, piece);
            len as isize
        }
        2 => {
            bytes.splice(to..to, std::iter::repeat_n(0, len));
            len as isize
        }
        _ => {
            bytes.copy_within(from..from + len, to);
            0
        }
    }
}

/// Lets the length of a chunk follow that of the payloads.
fn lengthen(parts: &mut Parts, by: isize, random: &mut Random) {
    let Some((index, chunks)) = parts.index().filter(|&(_, chunks)| chunks > 1) else {
        return;
    };
    let at = index + 4 * random.below(chunks);
    if let Some(length) = parts.fields.get_mut(at..at + 4) {
        let old = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
        let new = old.wrapping_add_signed(by as i32);
        length.copy_from_slice(&new.to_le_bytes());
    }
}

/// Sets the features to those that the reader wants, if there are any.
fn repair_features(parts: &mut Parts) {
    let Some(head) = Head::of(&parts.fields) else {
        return;
    };
    let rest = parts.fields.split_off(head.features_end);
    let with = |features: u64| Parts {
        fields: [wire::varint(features), rest.clone()].concat(),
        ..parts.clone()
    };
    let fits = |features: &u64| Stream::parse(&with(*features).sealed()).is_ok();
    let features = (0..1 << 9).find(fits).unwrap_or(head.features);
    *parts = with(features);
}

fn stream_of(stream: &[u8], random: &mut Random, mutation: Mutation) -> Vec<u8> {
    let Some(mut parts) = Parts::of(stream) else {
        let mut bytes = stream.to_vec();
        change(&mut bytes, mutation);
        return bytes;
    };
    match random.below(16) {
        0 => {
            let mut bytes = stream.to_vec();
            change(&mut bytes, mutation);
            return bytes;
        }
        1 => parts.padded ^= true,
        2..=6 => change(&mut parts.fields, mutation),
        7 | 8 => shift(&mut parts.fields, random),
        9 => {
            let by = rearrange(&mut parts.payloads, random);
            lengthen(&mut parts, by, random);
        }
        10 => shift(&mut parts.payloads, random),
        11 => {
            // The lengths of the parts of a payload, and its states.
            let front = parts.payloads.len().min(160);
            let mut head: Vec<u8> = parts.payloads.drain(..front).collect();
            change(&mut head, mutation);
            head.resize(front, 0);
            parts.payloads.splice(..0, head);
        }
        12 => lengthen(&mut parts, [-16, 16, 1][random.below(3)], random),
        _ => {
            let before = parts.payloads.len();
            change(&mut parts.payloads, mutation);
            if random.below(4) > 0 {
                parts.payloads.resize(before, 0);
            }
        }
    }
    if random.below(8) == 0 {
        repair_features(&mut parts);
    }
    parts.sealed()
}

fn put(data: &mut [u8], max_size: usize, bytes: &[u8]) -> usize {
    let len = bytes.len().min(max_size).min(data.len());
    data[..len].copy_from_slice(&bytes[..len]);
    len
}

/// A tensor stream.
pub fn stream(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    mutation: Mutation,
) -> usize {
    let mut random = Random::new(u64::from(seed));
    let bytes = stream_of(&data[..size], &mut random, mutation);
    put(data, max_size, &bytes)
}

/// The streams of a `.nz` file, if it has an end.
pub fn frames_of(file: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut rest = file.strip_prefix(&wire::FILE_MAGIC)?;
    let mut frames = Vec::new();
    loop {
        let (len, taken) = wire::take_varint(rest)?;
        let len = usize::try_from(len).ok()?;
        if len == 0 {
            return Some(frames);
        }
        let end = taken.checked_add(len)?;
        frames.push(rest.get(taken..end)?.to_vec());
        rest = &rest[end..];
    }
}

/// The file of these frames, with the end record it needs.
pub fn framed(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = wire::FILE_MAGIC.to_vec();
    let (mut original, mut checksums) = (0_u64, Xxh3::new());
    for frame in frames {
        wire::put_varint(&mut file, frame.len() as u64);
        file.extend_from_slice(frame);
        if let Ok(stream) = Stream::parse(frame) {
            original = original.wrapping_add(stream.original_len());
            checksums.update(&stream.prelude_checksum().to_le_bytes());
        }
    }
    file.push(0);
    file.extend_from_slice(&original.to_le_bytes());
    file.extend_from_slice(&checksums.digest().to_le_bytes());
    file
}

/// A `.nz` file.
pub fn frames(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    mutation: Mutation,
) -> usize {
    let mut random = Random::new(u64::from(seed));
    let found = frames_of(&data[..size]).filter(|_| random.below(6) > 0);
    let Some(mut frames) = found else {
        return mutation(data, size, max_size);
    };
    let count = frames.len();
    match random.below(8) {
        0 if count > 0 => {
            frames.remove(random.below(count));
        }
        1 if count > 0 => {
            let copy = frames[random.below(count)].clone();
            frames.insert(random.below(count + 1), copy);
        }
        2 if count > 1 => frames.swap(random.below(count), random.below(count)),
        _ if count > 0 => {
            let which = random.below(count);
            frames[which] = stream_of(&frames[which], &mut random, mutation);
        }
        _ => frames.push(wire::prelude(&[0, 1, 1, 1, 1, 7])),
    }
    let bytes = framed(&frames);
    put(data, max_size, &bytes)
}

/// A `.safetensors` file: its header as a text, the data behind it.
fn split(file: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let len = u64::from_le_bytes(file.get(..8)?.try_into().ok()?);
    let end = usize::try_from(len).ok()?.checked_add(8)?;
    Some((file.get(8..end)?.to_vec(), file[end..].to_vec()))
}

fn joined(json: &[u8], data: &[u8]) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes(), json, data].concat()
}

/// Pieces of headers that mean something.
const WORDS: [&str; 16] = [
    r#""__metadata__":{"a":"b"},"#,
    r#""neuzip.header":"","#,
    r#""neuzip.base":"00000000000000000000000000000000 ../x","#,
    r#""dtype":"BF16""#,
    r#""F32""#,
    r#""F4""#,
    r#""shape":[2,3]"#,
    r#""data_offsets":[0,0]"#,
    "18446744073709551615",
    "1e3",
    r"\u0041",
    r"\ud800",
    "[[[[[[[[[[",
    "null",
    "-0",
    "  \n\t",
];

/// Changes a header, and keeps the lengths in it in step with the data now and then.
fn change_json(json: &mut Vec<u8>, random: &mut Random, mutation: Mutation) {
    match random.below(5) {
        0 => {
            let at = random.below(json.len() + 1);
            let word = WORDS[random.below(WORDS.len())].bytes();
            json.splice(at..at, word);
        }
        1 => {
            // Another digit.
            let digits: Vec<usize> = (0..json.len())
                .filter(|&at| json[at].is_ascii_digit())
                .collect();
            if !digits.is_empty() {
                json[digits[random.below(digits.len())]] = b'0' + random.below(10) as u8;
            }
        }
        2 => {
            // A piece once more, or no more.
            let (a, b) = (random.below(json.len() + 1), random.below(json.len() + 1));
            let piece = json[a.min(b)..a.max(b)].to_vec();
            if random.below(2) == 0 {
                json.drain(a.min(b)..a.max(b));
            } else {
                let at = random.below(json.len() + 1);
                json.splice(at..at, piece);
            }
        }
        3 => json.extend(std::iter::repeat_n(b' ', random.below(16))),
        _ => change(json, mutation),
    }
}

/// Changes the header and the data of a `.safetensors` file by `edit`, which says whether it could; any
/// other file, and one of eight, is left to libFuzzer.
fn edited(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    mutation: Mutation,
    edit: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>, &mut Random) -> bool,
) -> usize {
    let mut random = Random::new(u64::from(seed));
    let parts = split(&data[..size]).filter(|_| random.below(8) > 0);
    if let Some((mut json, mut content)) = parts
        && edit(&mut json, &mut content, &mut random)
    {
        let bytes = joined(&json, &content);
        return put(data, max_size, &bytes);
    }
    mutation(data, size, max_size)
}

/// A plain `.safetensors` file.
pub fn plain(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    mutation: Mutation,
) -> usize {
    edited(
        data,
        size,
        max_size,
        seed,
        mutation,
        |json, content, random| {
            if random.below(2) == 0 {
                change_json(json, random, mutation);
            } else {
                let before = content.len();
                change(content, mutation);
                if random.below(8) > 0 {
                    content.resize(before, 0);
                }
            }
            true
        },
    )
}

/// A compressed `.safetensors` file: streams keep their lengths, so that the header still fits.
pub fn safetensors(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    mutation: Mutation,
) -> usize {
    edited(
        data,
        size,
        max_size,
        seed,
        mutation,
        |json, content, random| {
            if random.below(3) == 0 {
                change_json(json, random, mutation);
                return true;
            }
            let begins: Vec<usize> = (0..content.len())
                .filter(|&at| content[at..].starts_with(&wire::MAGIC))
                .collect();
            if begins.is_empty() {
                return false;
            }
            let which = random.below(begins.len());
            let end = begins.get(which + 1).copied().unwrap_or(content.len());
            let range = begins[which]..end;
            let mut stream = stream_of(&content[range.clone()], random, mutation);
            if let Some(mut parts) = Parts::of(&stream).filter(|_| stream.len() != range.len()) {
                // Payloads take up what the fields have left.
                let wanted = (parts.payloads.len() + range.len()).saturating_sub(stream.len());
                parts.payloads.resize(wanted, 0);
                stream = parts.sealed();
            }
            stream.resize(range.len(), 0);
            content.splice(range, stream);
            true
        },
    )
}

/// A file of zipnn.
pub fn zipnn(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    mutation: Mutation,
) -> usize {
    let mut random = Random::new(u64::from(seed));
    let alone = random.below(6) == 0;
    let made = (!alone).then(|| zipnn::mutated(&data[..size], &mut random, mutation));
    match made.flatten() {
        Some(bytes) => put(data, max_size, &bytes),
        None => mutation(data, size, max_size),
    }
}
