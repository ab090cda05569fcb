//! `cuda/decode.cu` on the CPU: built with g++ and `tests/cuda_emulation` when it is first asked for.
//!
//! As tests/python/cuda does it. Streams and outputs end at forbidden pages, because the kernels are not
//! compiled with a sanitizer.

#![cfg(unix)]
#![allow(
    unsafe_code,
    reason = "a library that was built a moment ago is loaded and called"
)]

use std::ffi::{CString, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex};

use neuzip_rs::{Placement, Stream, device_plan};

use super::guard_page::{Edge, Guarded};

/// `emulate_NAME` of the emulation: the launch, and a pointer to each argument.
type Emulate = unsafe extern "C" fn(*const c_uint, *mut *mut c_void) -> c_int;

struct Kernels {
    cut: Emulate,
    any: Emulate,
}

/// The folder with `cuda/`: that of the crate, or the one around the fuzz crate.
fn root() -> Option<PathBuf> {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_folder
        .ancestors()
        .find(|folder| folder.join("cuda/decode.cu").exists())
        .map(Path::to_path_buf)
}

const WRAPPERS: &str = r#"
extern "C" int emulate_decode_cut(const unsigned* launch, void** arguments) {
  return emulation::launch(decode_cut, *reinterpret_cast<const emulation::Launch*>(launch), arguments);
}
extern "C" int emulate_decode_any(const unsigned* launch, void** arguments) {
  return emulation::launch(decode_any, *reinterpret_cast<const emulation::Launch*>(launch), arguments);
}
"#;

/// One at a time: the emulation has one GPU. `None` where there is no g++.
static KERNELS: LazyLock<Option<Mutex<Kernels>>> = LazyLock::new(|| build().map(Mutex::new));

fn build() -> Option<Kernels> {
    Command::new("g++").arg("--version").output().ok()?;
    let root = root()?;
    let folder = tempfile::tempdir().ok()?;
    let (source, library) = (
        folder.path().join("decode.cpp"),
        folder.path().join("decode.so"),
    );
    let cuda = root.join("cuda");
    let program = format!(
        "#include \"{}\"\n{WRAPPERS}",
        cuda.join("decode.cu").display()
    );
    std::fs::write(&source, program).ok()?;
    let built = Command::new("g++")
        .args([
            "-std=c++17",
            "-O2",
            "-g",
            "-fPIC",
            "-shared",
            "-DCUDA_EMULATION",
        ])
        .args([
            "-U_FORTIFY_SOURCE",
            "-fno-strict-aliasing",
            "-w",
            "-x",
            "c++",
        ])
        .arg(&source)
        .arg(format!("-I{}", cuda.display()))
        .arg(format!("-I{}", root.join("tests/cuda_emulation").display()))
        .arg("-o")
        .arg(&library)
        .status()
        .expect("g++ runs");
    assert!(built.success(), "the emulated kernels do not compile");
    let name = CString::new(library.to_str()?).ok()?;
    // SAFETY: the names are C strings; the library is never closed.
    unsafe {
        let handle = libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        assert!(!handle.is_null(), "the emulated kernels do not load");
        let find = |name: &std::ffi::CStr| {
            let found = libc::dlsym(handle, name.as_ptr());
            assert!(!found.is_null(), "{name:?} is missing");
            // The wrappers above have this type.
            std::mem::transmute::<*mut c_void, Emulate>(found)
        };
        Some(Kernels {
            cut: find(c"emulate_decode_cut"),
            any: find(c"emulate_decode_any"),
        })
    }
}

/// Whether there are kernels to compare with.
pub fn is_available() -> bool {
    KERNELS.is_some()
}

/// A copy that ends at a forbidden page but for the bytes that make its address a multiple of 16, behind
/// `shift` bytes.
fn placed(bytes: &[u8], shift: usize) -> (Guarded, usize) {
    let len = (shift + bytes.len()).next_multiple_of(16);
    let mut memory = Guarded::zeroed(len, Edge::End);
    memory[shift..shift + bytes.len()].copy_from_slice(bytes);
    let address = memory.as_ptr() as usize + shift;
    (memory, address)
}

/// What the kernels make of a stream: its bytes, or nothing if they refuse it.
///
/// # Panics
/// If threads wait for each other for ever.
pub fn decode(
    stream: &Stream<'_>,
    bytes: &[u8],
    verify: bool,
    shift: usize,
    seed: u32,
) -> Option<Vec<u8>> {
    let kernels = KERNELS.as_ref()?.lock().expect("no panic in the emulation");
    let original = stream.original_len() as usize;
    let (_stream_memory, stream_at) = placed(bytes, shift);
    let (out, out_at) = placed(&vec![0x5a; original], shift);
    let placement = Placement {
        stream: stream_at as u64,
        out: out_at as u64,
        base: None,
    };
    let plan = device_plan(&[(stream.clone(), placement)], verify).ok()?;
    let (plan_memory, _) = placed(&plan.bytes, 0);
    let mut status = [0_u32; 4];
    for (kernel, first, count, block) in [
        (kernels.cut, 0, plan.cut_chunks, 32),
        (kernels.any, plan.cut_chunks, plan.any_chunks, 128),
    ] {
        if count == 0 {
            continue;
        }
        let launch: [c_uint; 8] = [3, 1, 1, block, 1, 1, 0, seed];
        let mut plan_at = plan_memory.as_ptr();
        let (mut first, mut count) = (first as u32, count as u32);
        // The plan has whole addresses: nothing is added to them.
        let (mut payloads, mut out) = (0_u64, 0_u64);
        let mut status_at = status.as_mut_ptr();
        let mut arguments: [*mut c_void; 6] = [
            (&raw mut plan_at).cast(),
            (&raw mut first).cast(),
            (&raw mut count).cast(),
            (&raw mut payloads).cast(),
            (&raw mut out).cast(),
            (&raw mut status_at).cast(),
        ];
        // SAFETY: the arguments are those of both kernels, the plan is for these addresses, whose memory
        // outlives the launch.
        let deadlock = unsafe { kernel(launch.as_ptr(), arguments.as_mut_ptr()) };
        assert_eq!(deadlock, 0, "threads wait for each other for ever");
    }
    (status[0] == 0).then(|| out[shift..shift + original].to_vec())
}
