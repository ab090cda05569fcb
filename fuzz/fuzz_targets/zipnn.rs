#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| neuzip_rs_fuzz::targets::zipnn(data));
libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    neuzip_rs_fuzz::mutate::zipnn(data, size, max_size, seed, libfuzzer_sys::fuzzer_mutate)
});
