//! Compressing and restoring gives the same bytes, in pieces and in parts too.

use std::fs;

use neuzip_rs::files::{
    ContentKind, StreamCompressor, StreamDecompressor, compress_file, content_kind,
};
use neuzip_rs::safetensors::{ElementType, SafetensorsFile};
use neuzip_rs::{CompressOptions, DecompressOptions, Level};
use proptest::prelude::*;

use crate::support::{
    FRAME_BYTES, Place, compress, decompress, noise, read_all, small_model, verify, whole,
};

#[derive(Debug, Clone)]
struct Model {
    json: String,
    data: Vec<u8>,
}

/// Spaces, the order of keys and names are whatever JSON allows.
fn arbitrary_model() -> impl Strategy<Value = Model> {
    let tensor = (
        proptest::sample::select(ElementType::ALL),
        proptest::collection::vec(0_u64..5, 0..4),
        any::<[bool; 3]>(),
        0_u8..3,
    );
    let metadata = proptest::option::of(proptest::collection::btree_map(".{0,6}", ".*", 0..3));
    let tensors = proptest::collection::btree_map(".{0,8}", tensor, 0..6);
    let space = "[ \n\t]{0,2}";
    (tensors, metadata, space, any::<u64>(), "[ ]{0,9}").prop_map(
        |(mut tensors, metadata, space, seed, padding)| {
            tensors.remove("__metadata__");
            let (mut fields, mut data) = (Vec::new(), Vec::new());
            for (name, (element, mut shape, order, content)) in tensors {
                let Some(bytes) = element.tensor_bytes(shape.iter().copied()).or_else(|| {
                    shape.push(4);
                    element.tensor_bytes(shape.iter().copied())
                }) else {
                    continue;
                };
                let begin = data.len();
                let bytes = usize::try_from(bytes).unwrap();
                data.extend(match content {
                    0 => vec![7; bytes],
                    1 => noise(bytes, 1),
                    _ => noise(bytes, seed ^ begin as u64),
                });
                let mut keys = [
                    format!("{space}\"dtype\":{space}\"{}\"", element.name()),
                    format!("\"shape\"{space}:{shape:?}"),
                    format!("\"data_offsets\":[{begin},{space}{}]{space}", data.len()),
                ];
                keys.rotate_left(order.iter().filter(|&&up| up).count());
                let name = serde_json::to_string(&name).unwrap();
                fields.push(format!("{name}{space}:{{{}}}", keys.join(",")));
            }
            // The order of the JSON is not that of the data.
            fields.reverse();
            if let Some(metadata) = metadata {
                let pairs: Vec<String> = metadata
                    .iter()
                    .map(|(k, v)| format!("{:?}:{space}{:?}", Json(k), Json(v)))
                    .collect();
                let at = fields.len() / 2;
                fields.insert(at, format!("\"__metadata__\":{{{}}}", pairs.join(",")));
            }
            Model {
                json: format!("{{{space}{}}}{padding}", fields.join(",")),
                data,
            }
        },
    )
}

/// Prints a string as JSON.
struct Json<'a>(&'a str);

impl std::fmt::Debug for Json<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&serde_json::to_string(self.0).unwrap())
    }
}

proptest! {
    #[test]
    fn roundtrip_of_any_valid_safetensors(model in arbitrary_model(), cut in any::<[u16; 2]>()) {
        let place = Place::new();
        let original = whole(&model.json, &model.data);
        let plain = place.put("plain", &original);
        prop_assert_eq!(content_kind(&plain).unwrap(), ContentKind::Safetensors, "{}", model.json);
        let compressed = place.path("compressed");
        compress(&plain, &compressed).unwrap();
        prop_assert_eq!(content_kind(&compressed).unwrap(), ContentKind::NeuzipSafetensors);
        let lengths = (fs::metadata(&compressed).unwrap().len(), original.len() as u64);
        prop_assert_eq!(verify(&compressed).unwrap(), lengths);
        let restored = place.path("restored");
        prop_assert_eq!(decompress(&compressed, &restored).unwrap(), lengths);
        prop_assert!(fs::read(&restored).unwrap() == original);

        let tensors = read_all(&compressed).unwrap();
        prop_assert_eq!(&tensors, &read_all(&plain).unwrap());
        let file = SafetensorsFile::open(&compressed).unwrap();
        for (index, (_, bytes)) in tensors.iter().enumerate() {
            let [start, length] = cut.map(usize::from);
            let start = start % (bytes.len() + 1);
            let length = length % (bytes.len() - start + 1);
            let mut part = vec![0; length];
            file.read_into(index, start as u64, &mut part, &DecompressOptions::default(), &mut |_| Ok(()))
                .unwrap();
            prop_assert!(part == bytes[start..start + length]);
        }
    }

    #[test]
    fn roundtrip_of_any_bytes(bytes: Vec<u8>, repeat in 1_usize..500) {
        let place = Place::new();
        let original = bytes.repeat(repeat);
        let compressed = place.compressed(&original);
        let source = place.put("compressed", &compressed);
        prop_assert_eq!(content_kind(&source).unwrap(), ContentKind::NeuzipFile);
        decompress(&source, &place.path("restored")).unwrap();
        prop_assert!(fs::read(place.path("restored")).unwrap() == original);
    }

}

proptest! {
    // Frames are large, so each case is.
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn pieces_do_not_matter(cuts in proptest::collection::vec(1_usize..9_000_000, 1..6)) {
        let mut original = vec![3; FRAME_BYTES * 2 + 5];
        original[FRAME_BYTES + 1] = 4;
        let expected = Place::new().compressed(&original);
        let mut compressor = StreamCompressor::new(CompressOptions::default());
        let mut sizes = cuts.iter().cycle();
        let (mut compressed, mut rest) = (Vec::new(), &original[..]);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
            compressed.extend(compressor.feed(now).unwrap());
            rest = later;
        }
        compressed.extend(compressor.finish().unwrap());
        prop_assert!(compressed == expected);
        let mut decompressor = StreamDecompressor::new(DecompressOptions::default(), None);
        let (mut restored, mut rest) = (Vec::new(), &compressed[..]);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(1 + sizes.next().unwrap() % 97));
            restored.extend(decompressor.feed(now).unwrap());
            rest = later;
        }
        decompressor.finish().unwrap();
        prop_assert!(restored == original);
    }
}

#[test]
fn frames_at_their_borders() {
    for length in [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1] {
        let place = Place::new();
        let mut original = vec![9; length];
        if let Some(last) = original.last_mut() {
            *last = 8;
        }
        let source = place.put("compressed", &place.compressed(&original));
        decompress(&source, &place.path("restored")).unwrap();
        assert!(
            fs::read(place.path("restored")).unwrap() == original,
            "{length}"
        );
        assert_eq!(verify(&source).unwrap().1, length as u64);
    }
}

#[test]
fn determinism_of_threads_and_levels() {
    let original = small_model(5);
    let place = Place::new();
    let src = place.put("original", &original);
    for level in [Level::Fast, Level::Default, Level::Max] {
        let results: Vec<Vec<u8>> = [1, 2, 5]
            .into_iter()
            .map(|threads| {
                let threads = neuzip_rs::Threads::new(threads);
                let options = CompressOptions {
                    level,
                    threads,
                    ..CompressOptions::default()
                };
                let dst = place.path("compressed");
                compress_file(&src, &dst, &options, true, &mut |_, _| Ok(())).unwrap();
                fs::read(dst).unwrap()
            })
            .collect();
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
