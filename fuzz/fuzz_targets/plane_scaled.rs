#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| neuzip_rs_fuzz::targets::plane_scaled(data));
