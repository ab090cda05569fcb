//! The targets: each takes bytes and panics on a finding.

use std::fs;
use std::path::Path;

use arbitrary::{Arbitrary, Result as Drawn, Unstructured};
use neuzip_rs::files::{
    StreamCompressor, StreamDecompressor, compress_file, content_kind, decompress_file, references,
    verify_file,
};
use neuzip_rs::safetensors::{Header, SafetensorsFile};
use neuzip_rs::zipnn as reader;
use neuzip_rs::{
    CompressOptions, DecompressOptions, Dtype, Level, SimdTier, Stream, Threads, compress,
    compress_delta, content_hash,
};

use super::content::{self, Case};
use super::legal::{self, Kind};
use super::oracle::{about_data, agree, options, pinned, tiers};
use super::wire::{self, Parts};
use super::{gpu, mutate, zipnn as znn};

/// What a target does.
pub type Target = fn(&[u8]);

/// Every target, by name.
pub const ALL: [(&str, Target); 17] = [
    ("header", header),
    ("index", index),
    ("table", table),
    ("plane_raw", plane_raw),
    ("plane_constant", plane_constant),
    ("plane_coded", plane_coded),
    ("plane_contexts", plane_contexts),
    ("plane_scaled", plane_scaled),
    ("plane_zeros", plane_zeros),
    ("records", records),
    ("delta", delta),
    ("container", container),
    ("safetensors_rewrite", safetensors_rewrite),
    ("safetensors_read", safetensors_read),
    ("roundtrip", roundtrip),
    ("differential", differential),
    ("zipnn", zipnn),
];

/// Preludes: what is accepted is consistent.
pub fn header(data: &[u8]) {
    for bytes in [data.to_vec(), Parts::of(data).unwrap_or_default().sealed()] {
        let Some(stream) = about_data(Stream::parse(&bytes)) else {
            continue;
        };
        let info = stream.info();
        let itemsize = stream.dtype().itemsize() as u64;
        let elements = stream
            .shape()
            .iter()
            .try_fold(1, |n: u64, &dim| n.checked_mul(dim));
        let elements = if stream.shape().contains(&0) {
            Some(0)
        } else {
            elements
        };
        assert_eq!(elements.map(|n| n * itemsize), Some(stream.original_len()));
        assert!(!format!("{info:?}").is_empty());
        about_data(stream.explain(None));
        let mut out = vec![0; stream.original_len().min(4096) as usize];
        about_data(stream.decode_into(0, &mut out, &options(SimdTier::Scalar, false)));
    }
}

/// Fields of a prelude up to the index, for bytes in chunks of 4096 and a raw model.
fn plain_head(original: usize, models: u64) -> Vec<u8> {
    let mut fields = vec![0, 1, 1];
    wire::put_varint(&mut fields, original as u64);
    fields.extend([wire::CHUNKED, 12]);
    wire::put_varint(&mut fields, models);
    for _ in 0..models {
        fields.extend([0, 7, 1, 0, 8]);
    }
    fields
}

/// The index: lengths, storages and hashes of any kind around payloads of any length.
pub fn index(data: &[u8]) {
    let _ = draw_index(&mut Unstructured::new(data));
}

fn draw_index(u: &mut Unstructured<'_>) -> Drawn<()> {
    let chunks = u.int_in_range(0..=6_usize)?;
    let last = u.int_in_range(1..=4096_usize)?;
    let original = (chunks * 4096).saturating_sub(last % 4096);
    let models = *u.choose(&[0, 1, 3, 254, 255, 300])?;
    let mut fields = plain_head(original, models);
    let (mut lengths, mut storages, mut hashes) =
        (Vec::<u8>::new(), Vec::<u8>::new(), Vec::<u8>::new());
    let mut area = 0_u64;
    for _ in 0..chunks {
        let length = match u.int_in_range(0..=7)? {
            0 => u32::arbitrary(u)?,
            1 => u32::MAX - u.int_in_range(0..=31)?,
            2 => 16,
            3 => u.int_in_range(0..=300)?,
            _ => *u.choose(&[4096, 4112, 16, 0, 2048])?,
        };
        area += u64::from(length);
        lengths.extend(length.to_le_bytes());
        let storage: u16 = if u.ratio(1, 8)? {
            u16::arbitrary(u)?
        } else {
            u.int_in_range(0..=models as u16 + 2)?
        };
        let wide = models > 254;
        storages.extend(&storage.to_le_bytes()[..if wide { 2 } else { 1 }]);
        hashes.extend(u64::arbitrary(u)?.to_le_bytes());
    }
    if chunks > 1 {
        fields.extend(lengths);
    }
    fields.extend(storages);
    fields.extend(hashes);
    if u.ratio(1, 16)? {
        fields.pop();
    }
    let length = match u.int_in_range(0..=3)? {
        0 => u.int_in_range(0..=40_000)?,
        _ => area,
    };
    let mut payloads = vec![0; length.min(40_000) as usize];
    let given = u.bytes(u.len().min(payloads.len()))?;
    payloads[..given.len()].copy_from_slice(given);
    let padded = u.ratio(9, 10).unwrap_or(true) && !payloads.is_empty();
    agree(
        &Parts {
            fields,
            payloads,
            padded,
        }
        .sealed(),
        None,
    );
    Ok(())
}

/// Frequency tables, context tables and those of deltas, of any bytes, with something to decode.
pub fn table(data: &[u8]) {
    let _ = draw_table(&mut Unstructured::new(data));
}

fn draw_table(u: &mut Unstructured<'_>) -> Drawn<()> {
    let width = u.int_in_range(1..=16_u8)?;
    let (size_log2, element) = if width <= 8 { (0, 8) } else { (1, 16) };
    let base = [0x5a_u8; 512];
    let count = 512_u64 >> size_log2;
    let dtype = [Dtype::Uint8, Dtype::Uint16][usize::from(size_log2)];
    let head = |features: u64| {
        let mut fields = wire::varint(features);
        fields.extend([dtype.code_of_format(), 1]);
        wire::put_varint(&mut fields, count);
        fields
    };
    let wide = if width > 8 { 2 } else { 0 };
    let kind = u.int_in_range(0..=2)?;
    let mut fields = match kind {
        0 => {
            let mut fields = head(wide);
            fields.extend([wire::CHUNKED, 12, 1, size_log2, 0]);
            fields.push(if width < element { 2 } else { 1 });
            fields.extend([2, width]);
            fields
        }
        1 => {
            // A plane for the contexts to come from, and the tables of the plane below.
            let low = element - width.div_ceil(2);
            let mut fields = head(32 | if low > 8 { 2 } else { 0 });
            fields.extend([wire::CHUNKED, 12, 1, size_log2, 0, 2]);
            fields.extend([2, width.div_ceil(2), 0, 2, 0, 128, 1, 128]);
            fields.extend([3, low]);
            fields
        }
        _ => {
            let mut fields = head(16);
            fields.push(wire::DELTA);
            fields.extend(content_hash(&base).to_le_bytes());
            fields.extend([12, size_log2]);
            fields
        }
    };
    let length = u.int_in_range(0..=160_usize)?;
    fields.extend(u.bytes(length.min(u.len()))?);
    if kind == 0 && width < element {
        fields.extend([0, element - width]);
    }
    // The index: the first model.
    fields.push(2);
    fields.extend([0; 8]);
    let payloads = u.bytes(u.len())?.to_vec();
    let parts = Parts {
        fields,
        payloads,
        padded: kind < 2,
    };
    agree(&parts.sealed(), Some(&base));
    Ok(())
}

/// The codes of docs/format.md are the order of [`Dtype::ALL`].
trait FormatCode {
    fn code_of_format(self) -> u8;
}

impl FormatCode for Dtype {
    fn code_of_format(self) -> u8 {
        let place = Self::ALL.iter().position(|&dtype| dtype == self);
        place.expect("every type is listed") as u8
    }
}

/// Legal streams of a kind are decoded by every tier, damaged ones by all or none.
fn plane(kind: Kind, data: &[u8]) {
    let mut u = Unstructured::new(data);
    let Ok(made) = legal::build(&mut u, kind) else {
        return;
    };
    let decoded = agree(&made.stream, None);
    assert!(
        decoded.as_ref() == Some(&made.original),
        "a legal stream is refused or decoded to something else"
    );
    let verified = Stream::parse(&made.stream).expect("it was parsed a moment ago");
    for tier in tiers() {
        let mut out = vec![0; made.original.len()];
        let decoded = verified.decode_into(0, &mut out, &options(tier, true));
        assert!(
            decoded.is_ok() && out == made.original,
            "{tier:?}: {decoded:?}"
        );
    }
    if let Ok(damaged) = damage(&mut u, &made.stream) {
        agree(&damaged, None);
    }
}

/// Changes a stream in a few places and seals it again.
fn damage(u: &mut Unstructured<'_>, stream: &[u8]) -> Drawn<Vec<u8>> {
    let Some(mut parts) = Parts::of(stream) else {
        return Err(arbitrary::Error::IncorrectFormat);
    };
    for _ in 0..u.int_in_range(1..=4)? {
        let bytes = if u.ratio(1, 2)? {
            &mut parts.fields
        } else {
            &mut parts.payloads
        };
        if bytes.is_empty() {
            continue;
        }
        let near = u.ratio(1, 2)?;
        let most = if near {
            bytes.len().min(256)
        } else {
            bytes.len()
        } - 1;
        let at = u.int_in_range(0..=most)?;
        match u.int_in_range(0..=3)? {
            0 => bytes[at] = u8::arbitrary(u)?,
            1 => bytes[at] ^= 1 << u.int_in_range(0..=7)?,
            2 => {
                let to = u.int_in_range(0..=most)?;
                bytes[at] = bytes[at].wrapping_sub(1);
                bytes[to] = bytes[to].wrapping_add(1);
            }
            _ => bytes[at] = bytes[at].wrapping_add(16),
        }
    }
    Ok(parts.sealed())
}

pub fn plane_raw(data: &[u8]) {
    plane(Kind::Raw, data);
}

pub fn plane_constant(data: &[u8]) {
    plane(Kind::Constant, data);
}

pub fn plane_coded(data: &[u8]) {
    plane(Kind::Coded, data);
}

pub fn plane_contexts(data: &[u8]) {
    plane(Kind::Contexts, data);
}

pub fn plane_scaled(data: &[u8]) {
    plane(Kind::Scaled, data);
}

pub fn plane_zeros(data: &[u8]) {
    plane(Kind::Zeros, data);
}

pub fn records(data: &[u8]) {
    plane(Kind::Records, data);
}

/// What is compressed next to a base comes back, from every tier the same; damage as ever.
pub fn delta(data: &[u8]) {
    let _ = draw_delta(&mut Unstructured::new(data));
}

fn draw_delta(u: &mut Unstructured<'_>) -> Drawn<()> {
    let dtype = content::dtype(u)?;
    let count = content::count(u, 32768 / dtype.itemsize())?;
    let old = content::tensor(u, dtype, count, 64)?;
    let mut new = old.clone();
    let step = u.int_in_range(0..=3)?;
    let seed = u64::arbitrary(u)?;
    let mut random = content::Random::new(seed);
    if step == 3 {
        new = content::tensor(u, dtype, count, 64)?;
    } else {
        // A few bits of the low bytes of each element, or of some.
        let bits = u.int_in_range(1..=10)?;
        let rare = u.int_in_range(1..=20)?;
        for element in new.chunks_exact_mut(dtype.itemsize()) {
            if step > 0 && random.below(rare) == 0 {
                let mut number = [0; 16];
                number[..element.len()].copy_from_slice(element);
                let change = random.next() & ((1 << bits) - 1);
                let number = u128::from_le_bytes(number).wrapping_add(u128::from(change));
                element.copy_from_slice(&number.to_le_bytes()[..element.len()]);
            }
        }
    }
    let options = CompressOptions {
        level: *u.choose(&[Level::Fast, Level::Default, Level::Max])?,
        chunk_bytes: Some(1 << u.int_in_range(12..=15)?),
        ..CompressOptions::default()
    };
    let made = |tier| {
        compress_delta(&new, &old, dtype, &[count as u64], &pinned(&options, tier))
            .expect("the lengths are right")
    };
    let stream = made(SimdTier::Scalar);
    for tier in tiers() {
        assert!(made(tier) == stream, "{tier:?} writes other bytes");
    }
    assert!(agree(&stream, Some(&old)).as_ref() == Some(&new));
    if Stream::parse(&stream).is_ok_and(|stream| stream.base_hash().is_some()) && !old.is_empty() {
        let mut other = old.clone();
        other[0] ^= 1;
        let parsed = Stream::parse(&stream).expect("it was parsed a moment ago");
        assert!(parsed.with_base(other).is_err());
    }
    let damaged = damage(u, &stream)?;
    agree(&damaged, Some(&old));
    Ok(())
}

/// What is compressed comes back, whatever the type, the level and the chunks; tiers write the same.
pub fn roundtrip(data: &[u8]) {
    let Ok(case) = Case::new(&mut Unstructured::new(data)) else {
        return;
    };
    let options = CompressOptions {
        level: case.level,
        chunk_bytes: case.chunk_log2.map(|log2| 1 << log2),
        hint: case.hint,
        ..CompressOptions::default()
    };
    let made = |tier| {
        compress(&case.data, case.dtype, &case.shape, &pinned(&options, tier))
            .expect("the lengths are right")
    };
    let stream = made(SimdTier::Scalar);
    for tier in tiers() {
        assert!(made(tier) == stream, "{tier:?} writes other bytes");
    }
    let parsed = Stream::parse(&stream).expect("it was written a moment ago");
    assert_eq!(
        (parsed.dtype(), parsed.shape()),
        (case.dtype, &case.shape[..])
    );
    assert!(agree(&stream, None).as_ref() == Some(&case.data));
    // A length, a storage and a hash for each chunk, which is more than promised where smaller ones are asked for.
    let index = case.chunk_log2.map_or(0, |log2| case.data.len() >> log2) * 13;
    let most = case.data.len() + case.data.len() / 1000 + 64 + index;
    assert!(
        stream.len() <= most,
        "{} became {}",
        case.data.len(),
        stream.len()
    );
}

/// Streams: what is accepted and what comes out is the same for all tiers and the kernels of the GPU.
pub fn differential(data: &[u8]) {
    let decoded = agree(data, None);
    let Ok(stream) = Stream::parse(data) else {
        return;
    };
    // The emulation takes milliseconds for a chunk.
    if !gpu::is_available() || stream.original_len() > 1 << 16 {
        return;
    }
    let shift = if data.len().is_multiple_of(3) {
        data.len() % 16
    } else {
        0
    };
    let found = gpu::decode(&stream, data, false, shift, data.len() as u32 % 4);
    assert!(
        found == decoded,
        "the emulated GPU differs: it accepts {}, the CPU {}",
        found.is_some(),
        decoded.is_some()
    );
    let mut verified = vec![0; stream.original_len() as usize];
    let accepted = stream.decode_into(0, &mut verified, &options(SimdTier::Scalar, true));
    let found = gpu::decode(&stream, data, true, shift, 1);
    assert!(
        found == accepted.ok().map(|()| verified),
        "the emulated GPU, with hashes"
    );
}

/// `.nz` files: read as a whole, as they arrive and from a file, with the same result.
pub fn container(data: &[u8]) {
    let one_thread = DecompressOptions {
        threads: Threads::new(1),
        ..DecompressOptions::default()
    };
    let decompressed = |piece: usize| {
        let mut reader = StreamDecompressor::new(one_thread, Some(1 << 20));
        let mut out = Vec::new();
        for piece in data.chunks(piece.max(1)) {
            match reader.feed(piece) {
                Ok(bytes) => out.extend(bytes),
                Err(error) => return Err(error),
            }
        }
        reader.finish().map(|()| out)
    };
    let too_large =
        |error: &neuzip_rs::Error| matches!(error, neuzip_rs::Error::OutputTooLarge { .. });
    let whole = match decompressed(data.len()) {
        Err(error) if too_large(&error) => return,
        whole => about_data(whole),
    };
    for piece in [1, 7, 100] {
        let pieces = decompressed(piece).ok();
        assert!(pieces == whole, "in pieces of {piece}");
    }
    if !data.starts_with(&wire::FILE_MAGIC[..7]) {
        assert!(whole.is_none(), "foreign bytes are accepted");
        return;
    }
    with_folder(|folder| {
        let (src, dst) = (folder.join("x.nz"), folder.join("x"));
        fs::write(&src, data).expect("room for a file");
        let file = decompress_file(&src, &dst, &one_thread, true, Some(1 << 20), &mut |_, _| {
            Ok(())
        });
        let file = match file {
            Err(error) if too_large(&error) => return,
            file => about_data(file),
        };
        let restored = file.map(|_| fs::read(&dst).expect("it was written"));
        assert!(restored == whole, "from a file");
        let verified = verify_file(&src, &one_thread, &mut |_, _| Ok(()));
        assert_eq!(about_data(verified).is_some(), whole.is_some(), "verified");
        about_data(references(&src, true));
    });
    if let Some(original) = whole.filter(|original| !original.is_empty()) {
        // Written again it is the same file, whatever the frames were.
        let mut writer = StreamCompressor::new(CompressOptions {
            threads: Threads::new(1),
            ..CompressOptions::default()
        });
        let mut file = writer.feed(&original).expect("nothing to refuse");
        file.extend(writer.finish().expect("nothing to refuse"));
        assert!(mutate::frames_of(&file).is_some());
        let mut reader = StreamDecompressor::new(one_thread, None);
        assert!(reader.feed(&file).expect("it was written a moment ago") == original);
    }
}

/// Runs with a folder that is empty and in memory, where there is one.
fn with_folder(run: impl FnOnce(&Path)) {
    let shared = Path::new("/dev/shm");
    let folder = if shared.is_dir() {
        tempfile::tempdir_in(shared)
    } else {
        tempfile::tempdir()
    };
    run(folder.expect("a temporary folder").path());
}

const QUIET: fn(u64, u64) -> neuzip_rs::Result<()> = |_, _| Ok(());

/// Any bytes are compressed as the file they seem to be, and come back.
pub fn safetensors_rewrite(data: &[u8]) {
    about_data(Header::of_file(data));
    with_folder(|folder| {
        let (src, dst) = (folder.join("x"), folder.join("x.nz"));
        fs::write(&src, data).expect("room for a file");
        let kind = content_kind(&src).expect("the file is there");
        let options = CompressOptions {
            level: if data.len().is_multiple_of(2) {
                Level::Fast
            } else {
                Level::Default
            },
            chunk_bytes: Some(4096),
            threads: Threads::new(1),
            ..CompressOptions::default()
        };
        let made = compress_file(&src, &dst, &options, true, &mut QUIET.clone());
        if kind.is_compressed() {
            assert!(made.is_err(), "a compressed file is compressed again");
            return;
        }
        let (original, compressed) = made.expect("any file can be compressed");
        assert_eq!(original, data.len() as u64);
        let stored = fs::read(&dst).expect("it was written");
        assert_eq!(compressed, stored.len() as u64);
        assert!(
            content_kind(&dst)
                .expect("the file is there")
                .is_compressed()
        );
        let back = folder.join("back");
        let one_thread = self::options(SimdTier::Scalar, true);
        decompress_file(&dst, &back, &one_thread, true, None, &mut QUIET.clone())
            .expect("it was written a moment ago");
        assert!(
            fs::read(&back).expect("it was written") == data,
            "other bytes come back"
        );
    });
}

/// Compressed `.safetensors` files: reading tensors, verifying and restoring agree.
pub fn safetensors_read(data: &[u8]) {
    with_folder(|folder| {
        let (src, dst) = (
            folder.join("x.nz.safetensors"),
            folder.join("x.safetensors"),
        );
        fs::write(&src, data).expect("room for a file");
        let one_thread = options(SimdTier::Scalar, true);
        let too_large = matches!(
            decompress_file(
                &src,
                &dst,
                &one_thread,
                true,
                Some(1 << 20),
                &mut QUIET.clone()
            ),
            Err(neuzip_rs::Error::OutputTooLarge { .. })
        );
        if too_large {
            return;
        }
        let kind = content_kind(&src).expect("the file is there");
        let file = about_data(SafetensorsFile::open(&src));
        let restored = decompress_file(&src, &dst, &one_thread, true, None, &mut QUIET.clone());
        if !kind.is_compressed() {
            assert!(restored.is_err(), "a plain file is decompressed");
            return;
        }
        let restored = about_data(restored).map(|_| fs::read(&dst).expect("it was written"));
        let verified = about_data(verify_file(&src, &one_thread, &mut QUIET.clone()));
        assert_eq!(
            verified.is_some(),
            restored.is_some(),
            "verified and restored"
        );
        let Some(file) = file else {
            // Streams and `.nz` files are restored by the same function.
            assert!(restored.is_none() || Header::of_file(data).is_err());
            return;
        };
        let Some((header, begin)) = restored
            .as_deref()
            .map(|bytes| Header::of_file(bytes).expect("the original was valid"))
        else {
            read_all(&file);
            return;
        };
        let tensors = read_all(&file);
        let content = &restored.as_deref().expect("it was restored")[begin..];
        for (index, tensor) in tensors.into_iter().enumerate() {
            let range = header.offsets(index);
            let expected = &content[range.start as usize..range.end as usize];
            assert!(tensor.as_deref() == Some(expected), "tensor {index}");
        }
    });
}

/// Each tensor, if it can be read, and a part of it.
fn read_all(file: &SafetensorsFile) -> Vec<Option<Vec<u8>>> {
    let options = options(SimdTier::Scalar, true);
    let header = file.header();
    let mut tensors = Vec::new();
    for index in 0..header.len() {
        about_data(file.info(index));
        let len = header.tensor_bytes(index).min(1 << 20) as usize;
        let mut bytes = vec![0; len];
        let read = about_data(file.read_into(index, 0, &mut bytes, &options, &mut |_| Ok(())));
        let (start, end) = (len / 3, len - len / 5);
        let mut part = vec![0; end - start];
        let read_part = file.read_into(index, start as u64, &mut part, &options, &mut |_| Ok(()));
        if read.is_some() && about_data(read_part).is_some() {
            assert!(part == bytes[start..end], "a part of tensor {index}");
        }
        tensors.push(read.map(|()| bytes));
    }
    tensors
}

/// Files of zipnn: read in memory and from a file, by one thread and by several, with the same result;
/// never more than the limit. What is drawn from the input decodes to what was meant.
pub fn zipnn(data: &[u8]) {
    read_zipnn(data);
    if let Ok((file, original)) = znn::drawn(&mut Unstructured::new(data)) {
        assert!(
            read_zipnn(&file).as_ref() == Some(&original),
            "a legal file is refused or decoded to something else"
        );
    }
}

fn read_zipnn(data: &[u8]) -> Option<Vec<u8>> {
    const LIMIT: u64 = 1 << 20;
    let decompressed = |threads, limit| {
        reader::decompress(data, Threads::new(threads), Some(limit), &mut QUIET.clone())
    };
    let header = about_data(reader::header(data));
    let whole = match decompressed(1, LIMIT) {
        Err(neuzip_rs::Error::OutputTooLarge { needed, limit }) => {
            assert!(needed > limit && limit == LIMIT);
            return None;
        }
        whole => about_data(whole),
    };
    let again = about_data(decompressed(3, LIMIT));
    assert!(again == whole, "with several threads");
    with_folder(|folder| {
        let (src, dst) = (folder.join("x.znn"), folder.join("x"));
        fs::write(&src, data).expect("room for a file");
        let one = Threads::new(1);
        let done = reader::decompress_file(&src, &dst, one, true, Some(LIMIT), &mut QUIET.clone());
        let restored = about_data(done).map(|_| fs::read(&dst).expect("it was written"));
        assert!(restored == whole, "from a file");
        assert_eq!(dst.exists(), whole.is_some(), "something is left behind");
    });
    let header = header.filter(|_| whole.is_some());
    if let (Some(header), Some(whole)) = (header, &whole) {
        let len = whole.len() as u64;
        assert!(len == header.original_bytes || (header.streaming && len > header.original_bytes));
        if len > 0 {
            assert!(decompressed(1, len - 1).is_err(), "the limit is ignored");
        }
        assert!(decompressed(1, len).is_ok(), "the limit is what there is");
    }
    whole
}
