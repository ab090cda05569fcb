//! Entropy coding of symbol planes. Knows nothing of floats, models or files.

pub(crate) mod rans;
