//! The 64-lane, byte-renormalised rANS coder "r8".

mod contexts;
mod decode;
mod encode;
mod spec;
mod tables;
mod values;

pub(crate) use contexts::ContextSpec;
#[cfg(target_arch = "x86_64")]
pub(crate) use contexts::FewSymbols;
pub(crate) use decode::{Decoder, MAX_DECODERS, PADDED_GROUPS};
pub(crate) use encode::Encoder;
pub(crate) use spec::Spec;
pub(crate) use tables::{FirstTables, FirstValues, SecondTables};
pub(crate) use values::{EscapedValues, Value, ValueMap};
