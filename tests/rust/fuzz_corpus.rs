//! The corpus of the fuzz targets, and everything that they ever found, without libFuzzer.
//!
//! `fuzz/corpus/TARGET/` has small inputs that reach what the target reaches, `fuzz/crashes/TARGET/` those that
//! once failed. Each is given to its target, which panics on a finding.

#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test"
)]

#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

fn inputs(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn replay(target: &str) -> usize {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let (_, run) = fuzz::targets::ALL
        .into_iter()
        .find(|(name, _)| *name == target)
        .expect("a target of this name");
    let mut failed = Vec::new();
    let mut count = 0;
    for kind in ["corpus", "crashes"] {
        for path in inputs(&root.join(kind).join(target)) {
            let input = fs::read(&path).unwrap();
            count += 1;
            if catch_unwind(AssertUnwindSafe(|| run(&input))).is_err() {
                failed.push(path);
            }
        }
    }
    assert!(failed.is_empty(), "{target}: {failed:?}");
    count
}

macro_rules! replayed {
    ($($target:ident)*) => {
        $(
            #[test]
            fn $target() {
                assert!(replay(stringify!($target)) > 0, "no corpus");
            }
        )*

        /// No target is forgotten here.
        #[test]
        fn all_targets() {
            let here = [$(stringify!($target)),*];
            assert_eq!(here, fuzz::targets::ALL.map(|(name, _)| name));
        }
    };
}

replayed! {
    header index table
    plane_raw plane_constant plane_coded plane_contexts plane_scaled plane_zeros
    records delta container safetensors_rewrite safetensors_read roundtrip differential
    zipnn
}

/// Inputs that nobody has thought about, of every length and from a generator: a smoke test of the targets
/// that also runs where libFuzzer does not.
#[test]
fn inputs_from_a_generator() {
    for (name, run) in fuzz::targets::ALL {
        // The emulation and files are slow.
        let count = if matches!(name, "differential" | "delta" | "roundtrip") {
            3
        } else {
            12
        };
        for seed in 0..count {
            let mut random = fuzz::content::Random::new(seed);
            let len = random.below(600);
            let input: Vec<u8> = (0..len).map(|_| (random.next() >> 24) as u8).collect();
            run(&input);
        }
    }
}
