//! What the indices of a coded plane stand for: a value of one or two bytes, or an escaped value.
//!
//! The coder knows nothing of floats: its caller says which value each index has, so that a decoder
//! can put bits where they belong in the element without another pass.

use crate::constants::{ESCAPE, LANES, MAX_SYMBOLS};

/// A decoded value: a byte, or two where the caller's values are wider.
pub(crate) trait Value: Copy + Default {
    /// Whether the high byte exists.
    const WIDE: bool;
    fn from_bytes(low: u8, high: u8) -> Self;
}

impl Value for u8 {
    const WIDE: bool = false;
    fn from_bytes(low: u8, _: u8) -> Self {
        low
    }
}

impl Value for u16 {
    const WIDE: bool = true;
    fn from_bytes(low: u8, high: u8) -> Self {
        Self::from_le_bytes([low, high])
    }
}

/// The value of every index.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(crate) struct ValueMap {
    pub(crate) low: [u8; MAX_SYMBOLS],
    pub(crate) high: [u8; MAX_SYMBOLS],
    /// Whether index 63 stands for the next escaped value.
    pub(crate) escape: bool,
}

impl ValueMap {
    /// The value of `index`, which is not the escape.
    pub(crate) fn value(&self, index: u8) -> [u8; 2] {
        let index = usize::from(index) & (MAX_SYMBOLS - 1);
        [self.low[index], self.high[index]]
    }

    pub(crate) fn is_escape(&self, index: u8) -> bool {
        self.escape && index == ESCAPE
    }
}

/// The escaped values of a plane, in order.
///
/// Invariant: both lists have `count + 64` bytes, so that 64 can be read from any number up to `count`.
#[derive(Debug, Default)]
pub(crate) struct EscapedValues {
    low: Vec<u8>,
    high: Vec<u8>,
    count: usize,
}

impl EscapedValues {
    pub(crate) const fn none() -> Self {
        Self {
            low: Vec::new(),
            high: Vec::new(),
            count: 0,
        }
    }

    pub(crate) fn new(values: impl ExactSizeIterator<Item = u16>) -> Self {
        let count = values.len();
        if count == 0 {
            return Self::default();
        }
        let (mut low, mut high) = (vec![0; count + LANES], vec![0; count + LANES]);
        for (i, value) in values.enumerate() {
            [low[i], high[i]] = value.to_le_bytes();
        }
        Self { low, high, count }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Low and high bytes, [`LANES`] more than there are values, for kernels.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(crate) fn padded(&self) -> [&[u8]; 2] {
        const NONE: &[u8] = &[0; LANES];
        if self.count == 0 {
            [NONE, NONE]
        } else {
            [&self.low, &self.high]
        }
    }

    /// Value number `position`; 0 past the end.
    pub(crate) fn get(&self, position: usize) -> [u8; 2] {
        let byte = |list: &[u8]| list.get(position).copied().unwrap_or(0);
        [byte(&self.low), byte(&self.high)]
    }
}
