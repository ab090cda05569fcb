//! Where libraries are not loaded as on Unix, there is no emulation.

use neuzip_rs::Stream;

pub fn is_available() -> bool {
    false
}

pub fn decode(_: &Stream<'_>, _: &[u8], _: bool, _: usize, _: u32) -> Option<Vec<u8>> {
    None
}
