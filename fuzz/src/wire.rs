//! Checksums, lengths and padding of docs/format.md, so that forged streams reach what lies behind them.

use neuzip_rs::Dtype;
use xxhash_rust::xxh3::xxh3_64;

/// Magic and version.
pub const MAGIC: [u8; 4] = [0x89, b'N', b'Z', 1];
/// Magic and version of `.nz` files.
pub const FILE_MAGIC: [u8; 8] = [0x89, b'N', b'Z', b'F', 0x0D, 0x0A, 0x1A, 0x01];
pub const CHUNKED: u8 = 0;
pub const DELTA: u8 = 3;

pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn varint(value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, value);
    out
}

/// A number of any encoding, and how many bytes it takes.
pub fn take_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for (at, &byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(7 * at as u32)?;
        if byte < 0x80 {
            return Some((value, at + 1));
        }
    }
    None
}

pub fn align(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(16), 0);
}

/// A stream cut into the fields between the length of the prelude and its checksum, and the payloads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    pub fields: Vec<u8>,
    pub payloads: Vec<u8>,
    /// Whether there is padding between them.
    pub padded: bool,
}

impl Parts {
    /// Cuts a stream up, if it is one at all.
    pub fn of(stream: &[u8]) -> Option<Self> {
        let rest = stream.strip_prefix(&MAGIC)?;
        let (len, taken) = take_varint(rest)?;
        let len = usize::try_from(len).ok()?;
        let fields = stream.get(4 + taken..len.checked_sub(4)?)?.to_vec();
        let behind = stream.get(len..)?;
        let padding = len.next_multiple_of(16) - len;
        let zeros = |padding: &[u8]| padding.iter().all(|&byte| byte == 0);
        let padded = behind.get(..padding).is_some_and(zeros) && !behind[padding..].is_empty();
        let payloads = behind[if padded { padding } else { 0 }..].to_vec();
        Some(Self {
            fields,
            payloads,
            padded,
        })
    }

    /// The stream, with the length and the checksum it needs.
    pub fn sealed(&self) -> Vec<u8> {
        let mut stream = prelude(&self.fields);
        if self.padded {
            align(&mut stream);
        }
        stream.extend_from_slice(&self.payloads);
        stream
    }

    /// Where the index begins in the fields and how many chunks it has, if the body is a chunked one.
    pub fn index(&self) -> Option<(usize, usize)> {
        let head = Head::of(&self.fields)?;
        let chunks = head.chunks?;
        // A byte for the storage: few streams have more than 254 models.
        let width = if chunks > 1 { 13 } else { 9 };
        Some((
            self.fields.len().checked_sub(chunks.checked_mul(width)?)?,
            chunks,
        ))
    }
}

/// The first fields of a prelude.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    pub features: u64,
    /// Original bytes.
    pub original: u64,
    /// Original bytes of a chunk, and chunks, of a body that has them.
    pub chunk_bytes: Option<u64>,
    pub chunks: Option<usize>,
    /// Where the features end.
    pub features_end: usize,
}

impl Head {
    pub fn of(fields: &[u8]) -> Option<Self> {
        let (features, features_end) = take_varint(fields)?;
        let mut at = features_end;
        let itemsize = Dtype::ALL.get(usize::from(*fields.get(at)?))?.itemsize() as u64;
        let dims = *fields.get(at + 1)?;
        at += 2;
        let mut original = itemsize;
        for _ in 0..dims {
            let (dim, taken) = take_varint(fields.get(at..)?)?;
            original = original.checked_mul(dim)?;
            at += taken;
        }
        let log2_at = match *fields.get(at)? {
            CHUNKED => Some(at + 1),
            DELTA => Some(at + 17),
            _ => None,
        };
        let log2 = match log2_at {
            Some(at) => Some(*fields.get(at)?).filter(|log2| (12..=26).contains(log2)),
            None => None,
        };
        let chunk_bytes = log2.map(|log2| 1_u64 << log2);
        Some(Self {
            features,
            original,
            chunk_bytes,
            chunks: chunk_bytes.map(|bytes| original.div_ceil(bytes) as usize),
            features_end,
        })
    }
}

/// A prelude of these fields, from the magic to the checksum.
pub fn prelude(fields: &[u8]) -> Vec<u8> {
    let fixed = MAGIC.len() + fields.len() + 4;
    let len = (fixed + 1..fixed + 11)
        .find(|&len| len == fixed + varint(len as u64).len())
        .unwrap_or(fixed);
    let mut out = MAGIC.to_vec();
    put_varint(&mut out, len as u64);
    out.extend_from_slice(fields);
    let checksum = xxh3_64(&out) as u32;
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// The chunk hash of docs/format.md.
pub fn chunk_hash(bytes: &[u8]) -> u64 {
    let (mut products, mut words) = (0_u64, 0_u64);
    for (i, word) in bytes.chunks(8).enumerate() {
        let mut padded = [0; 8];
        padded[..word.len()].copy_from_slice(word);
        let (word, i) = (u64::from_le_bytes(padded), i as u32);
        let a = (word as u32)
            .wrapping_add(0x9E37_79B9)
            .wrapping_add(i.wrapping_mul(0xC2B2_AE35));
        let b = ((word >> 32) as u32)
            .wrapping_add(0x85EB_CA6B)
            .wrapping_add(i.wrapping_mul(0x27D4_EB2F));
        products = products.wrapping_add(u64::from(a) * u64::from(b));
        words = words.wrapping_add(u64::from(a) | u64::from(b) << 32);
    }
    let sum = (bytes.len() as u64).wrapping_add(words);
    products.wrapping_add(0x9FB2_1C64_1E98_DF25_u64.wrapping_mul(sum))
}

/// The stream with the chunk hashes of `original`, if it has chunks.
pub fn with_hashes_of(stream: &[u8], original: &[u8]) -> Option<Vec<u8>> {
    let mut parts = Parts::of(stream)?;
    let head = Head::of(&parts.fields)?;
    let hashes: Vec<u8> = original
        .chunks(usize::try_from(head.chunk_bytes?).ok()?)
        .flat_map(|chunk| chunk_hash(chunk).to_le_bytes())
        .collect();
    let at = parts.fields.len().checked_sub(hashes.len())?;
    parts.fields[at..].copy_from_slice(&hashes);
    let sealed = parts.sealed();
    // Padding that was empty must not appear.
    (sealed.len() == stream.len()).then_some(sealed)
}
