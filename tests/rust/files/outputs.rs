//! Kinds, limits, progress, and what is left behind after an error.

use std::fs;
use std::io;

use neuzip_rs::files::{
    ContentKind, StreamCompressor, StreamDecompressor, compress_file, content_kind,
    decompress_file, verify_file,
};
use neuzip_rs::{CompressOptions, DecompressOptions, Dtype, Error};

use crate::support::{Place, compress, decompress, noise, small_model, verify};

#[test]
fn kinds_are_told_apart_and_nothing_is_compressed_twice() {
    let place = Place::new();
    let tensor = neuzip_rs::compress(&[5; 64], Dtype::Float32, &[16], &CompressOptions::default());
    let model = small_model(1);
    let cases = [
        (model.clone(), ContentKind::Safetensors),
        (place.compressed(&model), ContentKind::NeuzipSafetensors),
        (place.compressed(b"text"), ContentKind::NeuzipFile),
        (tensor.unwrap(), ContentKind::NeuzipTensor),
        (b"text".to_vec(), ContentKind::Other),
        (Vec::new(), ContentKind::Other),
    ];
    for (bytes, kind) in cases {
        let path = place.put("file", &bytes);
        assert_eq!(content_kind(&path).unwrap(), kind);
        let (compressed, restored) = (place.path("again"), place.path("restored"));
        if kind.is_compressed() {
            let refused = compress(&path, &compressed).unwrap_err();
            assert!(refused.to_string().contains("already compressed"));
            verify(&path).unwrap();
            decompress(&path, &restored).unwrap();
        } else {
            assert!(matches!(
                decompress(&path, &restored),
                Err(Error::Corrupt(_))
            ));
            assert!(matches!(verify(&path), Err(Error::Corrupt(_))));
        }
    }
    assert_eq!(fs::read(place.path("restored")).unwrap(), [5; 64]);
}

#[test]
fn an_error_keeps_what_was_there_and_leaves_nothing() {
    let place = Place::new();
    let src = place.put("a", &small_model(1));
    let compressed = place.path("b");
    compress(&src, &compressed).unwrap();
    let kept = place.put("c", b"precious");
    let options = CompressOptions::default();
    for overwrite in [false, true] {
        let mut calls = 0;
        let stopped = compress_file(&src, &kept, &options, overwrite, &mut |_, _| {
            calls += 1;
            if calls > 1 {
                Err(Error::Interrupted)
            } else {
                Ok(())
            }
        });
        match stopped.unwrap_err() {
            Error::Interrupted => assert!(overwrite),
            Error::Io(error) => {
                assert!(!overwrite);
                assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            }
            other => panic!("{other}"),
        }
    }
    let mut damaged = fs::read(&compressed).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    let damaged = place.put("d", &damaged);
    assert!(matches!(
        decompress(&damaged, &kept),
        Err(Error::Corrupt(_))
    ));
    let error = decompress(&damaged, &kept).unwrap_err().to_string();
    assert!(
        error.contains("\"other\"") && error.contains(damaged.to_str().unwrap()),
        "{error}"
    );
    assert_eq!(fs::read(&kept).unwrap(), b"precious");
    assert_eq!(place.names(), ["a", "b", "c", "d"]);
}

#[test]
fn limits_are_checked_before_anything_is_written() {
    let place = Place::new();
    for original in [small_model(1), b"text".repeat(100)] {
        let src = place.put("compressed", &place.compressed(&original));
        let restored = place.path("restored");
        let length = original.len() as u64;
        let limited = |limit| {
            let options = DecompressOptions::default();
            decompress_file(&src, &restored, &options, true, Some(limit), &mut |_, _| {
                Ok(())
            })
        };
        let Err(Error::OutputTooLarge { needed, limit }) = limited(length - 1) else {
            panic!("exceeded");
        };
        assert_eq!((needed, limit), (length, length - 1));
        assert!(!restored.exists());
        limited(length).unwrap();
        fs::remove_file(restored).unwrap();
    }
    let compressed = place.compressed(&[0; 100]);
    let mut stream = StreamDecompressor::new(DecompressOptions::default(), Some(99));
    assert!(matches!(
        stream.feed(&compressed),
        Err(Error::OutputTooLarge { .. })
    ));
    assert!(matches!(stream.feed(&[]), Err(Error::InvalidArgument(_))));
}

#[test]
fn progress_goes_up_to_the_total() {
    let place = Place::new();
    for original in [small_model(1), noise(3 << 20, 1)] {
        let (src, dst) = (place.put("original", &original), place.path("compressed"));
        let mut seen = Vec::new();
        let mut watch = |done, total| {
            seen.push((done, total));
            Ok(())
        };
        compress_file(&src, &dst, &CompressOptions::default(), true, &mut watch).unwrap();
        verify_file(&dst, &DecompressOptions::default(), &mut watch).unwrap();
        let total = original.len() as u64;
        assert!(seen.iter().all(|&(done, of)| done <= total && of == total));
        assert_eq!(seen.iter().filter(|&&(done, _)| done == 0).count(), 2);
        assert_eq!(seen.last(), Some(&(total, total)));
    }
}

#[test]
fn a_finished_compressor_is_finished() {
    let mut compressor = StreamCompressor::new(CompressOptions::default());
    let empty = compressor.finish().unwrap();
    assert_eq!(empty.len(), 8 + 1 + 16);
    assert!(compressor.feed(b"more").is_err());
    assert!(compressor.finish().is_err());
    let mut decompressor = StreamDecompressor::new(DecompressOptions::default(), None);
    assert!(decompressor.feed(&empty).unwrap().is_empty());
    decompressor.finish().unwrap();
    assert!(decompressor.feed(b"more").is_err());
}
