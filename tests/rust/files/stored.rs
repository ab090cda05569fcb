//! What compressed `.safetensors` hold.

use std::fs;

use neuzip_rs::safetensors::{ElementType, MemoryTensor, SafetensorsFile, write_bytes, write_file};
use neuzip_rs::{CompressOptions, Dtype, Error};

use crate::support::{Place, decompress, noise, read_all, safetensors, small_model, verify, whole};

#[test]
fn the_compressed_file_is_a_valid_safetensors_with_the_same_names() {
    let place = Place::new();
    let compressed = place.compressed(&small_model(1));
    let length = u64::from_le_bytes(compressed[..8].try_into().unwrap()) as usize;
    assert_eq!((8 + length) % 16, 0);
    let outer: serde_json::Value = serde_json::from_slice(&compressed[8..8 + length]).unwrap();
    let outer = outer.as_object().unwrap();
    let names: Vec<_> = outer.keys().map(String::as_str).collect();
    let expected = [
        "__metadata__",
        "embed",
        "empty",
        "head",
        "bias",
        "scale",
        "packed",
        "other",
    ];
    assert_eq!(names, expected);
    let mut end = 0;
    for tensor in outer.values().skip(1) {
        assert_eq!(tensor["dtype"], "U8");
        assert_eq!(tensor["data_offsets"][0], end);
        end = tensor["data_offsets"][1].as_u64().unwrap();
        assert_eq!(tensor["shape"].as_array().unwrap().len(), 1);
    }
    assert_eq!(8 + length as u64 + end, compressed.len() as u64);
    assert_eq!(outer["__metadata__"]["format"], "pt");
    assert_eq!(outer["__metadata__"]["é"], "\n");
}

#[test]
fn repeated_tensors_are_stored_once() {
    let place = Place::new();
    let path = place.put("compressed", &place.compressed(&small_model(1)));
    let file = SafetensorsFile::open(&path).unwrap();
    let index = |name: &str| file.header().find(name).unwrap();
    let repeats = |name: &str| file.repeats(index(name)).unwrap();
    assert_eq!(repeats("head").as_deref(), Some("embed"));
    assert_eq!(repeats("embed"), None);
    assert_eq!(repeats("other"), None);
    assert!(file.stored_bytes(index("head")) < 100);
    assert!(file.stored_bytes(index("embed")) > 200);
}

#[test]
fn another_dtype_or_shape_is_no_repeat() {
    let bytes = noise(4096, 3);
    let original = safetensors(
        "",
        &[
            ("a", "BF16", &[2048], &bytes),
            ("b", "F16", &[2048], &bytes),
            ("c", "BF16", &[2, 1024], &bytes),
        ],
    );
    let place = Place::new();
    let path = place.put("compressed", &place.compressed(&original));
    let file = SafetensorsFile::open(&path).unwrap();
    assert!((0..3).all(|index| file.repeats(index).unwrap().is_none()));
    assert!(verify(&path).is_ok());
}

#[test]
fn a_repeat_of_something_else_is_noticed() {
    let place = Place::new();
    let [mine, theirs] = [1, 11].map(|seed| place.compressed(&small_model(seed)));
    let path = place.put("compressed", &mine);
    let file = SafetensorsFile::open(&path).unwrap();
    let stored = file.stored_bytes(0) as usize;
    let data_at = 8 + u64::from_le_bytes(mine[..8].try_into().unwrap()) as usize;
    drop(file);
    // Both files have equal headers, so the first stream of one is sound in the other.
    assert_eq!(mine.len(), theirs.len());
    let mut spliced = mine.clone();
    spliced[data_at..data_at + stored].copy_from_slice(&theirs[data_at..data_at + stored]);
    let path = place.put("spliced", &spliced);
    assert!(matches!(verify(&path), Err(Error::BaseMismatch(_))));
    assert!(matches!(read_all(&path), Err(Error::BaseMismatch(_))));
    assert!(decompress(&path, &place.path("restored")).is_err());
    assert!(!place.path("restored").exists());
}

#[test]
fn memory_and_file_give_the_same() {
    let place = Place::new();
    let weight = noise(1 << 16, 2);
    let tensors = || {
        let tensor = |name: &str, element, shape: &[u64], data, dtype| MemoryTensor {
            name: name.into(),
            element,
            shape: shape.to_vec(),
            data,
            dtype,
        };
        vec![
            tensor(
                "b",
                ElementType::Bf16,
                &[1 << 15],
                &weight[..],
                Dtype::Bfloat16,
            ),
            tensor(
                "a",
                ElementType::Bf16,
                &[2, 1 << 14],
                &weight[..],
                Dtype::Bfloat16,
            ),
            tensor("z", ElementType::F32, &[0], &[], Dtype::Float32),
            tensor(
                "c",
                ElementType::U8,
                &[2, 16],
                &weight[..32],
                Dtype::Complex128,
            ),
        ]
    };
    let metadata = || Some(vec![("k".to_owned(), "v".to_owned())]);
    let options = CompressOptions::default();
    let path = place.path("file");
    write_file(&path, tensors(), metadata(), &options, &mut |_, _| Ok(())).unwrap();
    let bytes = write_bytes(tensors(), metadata(), &options, &mut |_, _| Ok(())).unwrap();
    assert!(fs::read(&path).unwrap() == bytes);
    decompress(&path, &place.path("plain")).unwrap();
    let json = concat!(
        r#"{"__metadata__":{"k":"v"},"z":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"#,
        r#""a":{"dtype":"BF16","shape":[2,16384],"data_offsets":[0,65536]},"#,
        r#""b":{"dtype":"BF16","shape":[32768],"data_offsets":[65536,131072]},"#,
        r#""c":{"dtype":"U8","shape":[2,16],"data_offsets":[131072,131104]}}"#,
    );
    let json = format!("{json:<width$}", width = json.len().next_multiple_of(8));
    let expected = whole(&json, &[&weight[..], &weight, &weight[..32]].concat());
    assert!(fs::read(place.path("plain")).unwrap() == expected);
}

#[test]
fn impossible_tensors_are_arguments_gone_wrong() {
    let write = |tensors, metadata| {
        write_bytes(
            tensors,
            metadata,
            &CompressOptions::default(),
            &mut |_, _| Ok(()),
        )
    };
    let tensor = |name: &str, element, shape: &[u64], dtype| MemoryTensor {
        name: name.into(),
        element,
        shape: shape.to_vec(),
        data: &[0; 8],
        dtype,
    };
    let good = || tensor("a", ElementType::F32, &[2], Dtype::Float32);
    let reserved = Some(vec![("neuzip.header".to_owned(), String::new())]);
    let repeated = Some(vec![
        ("k".to_owned(), String::new()),
        ("k".to_owned(), String::new()),
    ]);
    for (tensors, metadata) in [
        (vec![good(), good()], None),
        (vec![good()], reserved),
        (vec![good()], repeated),
        (
            vec![tensor(
                "__metadata__",
                ElementType::F32,
                &[2],
                Dtype::Float32,
            )],
            None,
        ),
        (
            vec![tensor("a", ElementType::F32, &[3], Dtype::Float32)],
            None,
        ),
        (
            vec![tensor("a", ElementType::F4, &[15], Dtype::Uint8)],
            None,
        ),
        (
            vec![tensor("a", ElementType::F32, &[2], Dtype::Int32)],
            None,
        ),
        (
            vec![tensor("a", ElementType::U8, &[8], Dtype::Complex128)],
            None,
        ),
        (
            vec![tensor(
                "a",
                ElementType::U8,
                &[vec![8], vec![1; 255]].concat(),
                Dtype::Uint8,
            )],
            None,
        ),
    ] {
        assert!(matches!(
            write(tensors, metadata),
            Err(Error::InvalidArgument(_))
        ));
    }
    assert!(write(vec![good()], None).is_ok());
}
