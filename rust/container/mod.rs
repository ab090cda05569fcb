//! Streams and files: headers, indexes, checksums, readers and writers.

pub(crate) mod atomic;
pub(crate) mod device;
pub(crate) mod explain;
pub(crate) mod external;
pub(crate) mod file;
pub(crate) mod index;
pub(crate) mod info;
pub(crate) mod kind;
#[cfg(unix)]
mod lost_pages;
pub(crate) mod mapped;
pub(crate) mod memory;
pub(crate) mod output;
pub(crate) mod pieces;
pub(crate) mod prelude;
pub(crate) mod read_ahead;
pub(crate) mod stream;
pub(crate) mod writer;
