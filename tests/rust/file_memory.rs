//! Memory that the file layer allocates: bounded whatever the size of a file, and in proportion to the
//! input as long as no checksum has vouched for more.
//!
//! One test, because the counter is one for the whole process.

#![allow(unsafe_code, reason = "an allocator cannot be written without it")]
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::{self, File};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use neuzip_rs::files::{compress_file, content_kind, decompress_file, verify_file};
use neuzip_rs::safetensors::SafetensorsFile;
use neuzip_rs::{CompressOptions, DecompressOptions, Threads};

/// Counts the bytes that are allocated, and remembers the most there were.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise that `pointer` came from `alloc` is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that `work` had allocated at once.
fn peak(work: impl FnOnce()) -> usize {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    work();
    PEAK.load(Relaxed) - before
}

const MIB: usize = 1 << 20;

/// A `.safetensors` header in front of `data_bytes` zeros, as a sparse file.
fn sparse(path: &std::path::Path, json: &str, data_bytes: u64) {
    fs::write(
        path,
        [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat(),
    )
    .unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(8 + json.len() as u64 + data_bytes).unwrap();
}

#[test]
fn memory_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let threads = Threads::new(2);
    let compress = CompressOptions {
        threads,
        ..CompressOptions::default()
    };
    let decompress = DecompressOptions {
        threads,
        ..DecompressOptions::default()
    };

    // Large files of both kinds, of which little is constant, so that chunks are really decoded.
    let large = 160 * MIB as u64;
    let model = format!(
        r#"{{"a":{{"dtype":"BF16","shape":[{}],"data_offsets":[0,{large}]}}}}"#,
        large / 2
    );
    sparse(&path("a.safetensors"), &model, large);
    sparse(&path("b.bin"), "no model", large);
    for name in ["a.safetensors", "b.bin"] {
        let mut file = File::options().write(true).open(path(name)).unwrap();
        for step in 0..large / 4096 {
            use std::io::{Seek, SeekFrom, Write};
            file.seek(SeekFrom::Start(1000 + step * 4096)).unwrap();
            file.write_all(&step.to_le_bytes()).unwrap();
        }
        let (src, dst, back) = (path(name), path("compressed"), path("restored"));
        let used = peak(|| {
            compress_file(&src, &dst, &compress, true, &mut |_, _| Ok(())).unwrap();
        });
        assert!(used < 64 * MIB, "compress {name}: {used}");
        let used = peak(|| {
            decompress_file(&dst, &back, &decompress, true, None, &mut |_, _| Ok(())).unwrap();
        });
        assert!(used < 64 * MIB, "decompress {name}: {used}");
        let used = peak(|| {
            verify_file(&dst, &decompress, &mut |_, _| Ok(())).unwrap();
        });
        assert!(used < 64 * MIB, "verify {name}: {used}");
    }

    // Headers that are as expensive as headers can be.
    let many = |item: fn(usize) -> String| {
        let items: Vec<String> = (0..60_000).map(item).collect();
        items.join(",")
    };
    let tensors = many(|i| {
        format!(
            r#""{i:x}":{{"dtype":"U8","shape":[],"data_offsets":[{i},{}]}}"#,
            i + 1
        )
    });
    let dimensions = format!(
        r#""a":{{"dtype":"U8","shape":[0{}],"data_offsets":[0,0]}}"#,
        ",1".repeat(254)
    );
    let dimensions: Vec<String> = (0..6000)
        .map(|i| dimensions.replacen('a', &format!("{i:x}"), 1))
        .collect();
    let metadata = format!(
        r#""__metadata__":{{{}}}"#,
        many(|i| format!(r#""{i:x}":"""#))
    );
    let braces = format!(r#""a":{{"x":"{}"}}"#, "{".repeat(3 * MIB));
    let escaped = format!(
        r#""{}\n":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
        "x".repeat(3 * MIB)
    );
    let cases = [
        (tensors, 60_000),
        (dimensions.join(","), 0),
        (metadata, 0),
        (braces, 0),
        (escaped, 0),
    ];
    for (number, (json, data_bytes)) in cases.into_iter().enumerate() {
        let path = path("hostile");
        sparse(&path, &format!("{{{json}}}"), data_bytes);
        let input = usize::try_from(fs::metadata(&path).unwrap().len()).unwrap();
        let used = peak(|| {
            let kind = content_kind(&path).unwrap();
            let opened = SafetensorsFile::open(&path);
            assert_eq!(
                opened.is_ok(),
                kind.name() == "safetensors",
                "case {number}"
            );
        });
        assert!(used < MIB + 2 * input, "case {number}: {used} for {input}");
    }
}
