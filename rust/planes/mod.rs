//! Elements to planes and back: the reversible rearrangement before entropy coding.

pub(crate) mod coded;
pub(crate) mod contexts;
pub(crate) mod cut;
pub(crate) mod delta;
pub(crate) mod escapes;
pub(crate) mod raw;
pub(crate) mod scale;
pub(crate) mod symbols;
pub(crate) mod words;
pub(crate) mod zeros;
