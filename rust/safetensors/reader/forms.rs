//! What a file says of its tensors without decoding them: where and how they are stored, and which other
//! files they need.
//!
//! Place in docs/format-files.md: "Bundled tensors", "Repeated tensors" and "Deltas".

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{SafetensorsFile, base_entry, is_alone};
use crate::container::explain::Share;
use crate::error::{Error, Result};
use crate::safetensors::bundles::Member;
use crate::{DecompressOptions, Explanation, StreamInfo};

/// What stands in a file for a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredForm {
    /// Its bytes.
    Plain,
    /// A stream that holds all that it takes to decode it.
    Stream,
    /// A reference to the stream of tensor `first`, whose decoded bytes have this hash.
    Repeat {
        /// Number of the other tensor.
        first: usize,
        /// [`crate::content_hash`] of the bytes.
        content_hash: u128,
    },
    /// A part of a stream that several tensors share.
    Bundled(BundledForm),
    /// A stream that needs another file.
    Elsewhere,
}

/// Where a tensor lies in a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundledForm {
    /// Number of the tensor that has the stream of the bundle.
    pub owner: usize,
    /// Its first byte in the decoded bundle.
    pub start: u64,
    /// Decoded bytes of the bundle.
    pub total: u64,
    /// If the tensor is stored as a repeat of the bundled one: [`crate::content_hash`] of its bytes.
    pub content_hash: Option<u128>,
}

impl SafetensorsFile {
    /// Bytes that tensor `index` takes in this file: of a bundle its share.
    #[must_use]
    pub fn stored_bytes(&self, index: usize) -> u64 {
        let stored = self.stored_header();
        match self.member(index) {
            None => stored.tensor_bytes(index),
            Some(member) => self
                .share(index, member)
                .of(stored.tensor_bytes(member.owner)),
        }
    }

    /// The part of its bundle that tensor `index` is.
    fn share(&self, index: usize, member: Member) -> Share {
        Share {
            start: member.start,
            bytes: self.header.tensor_bytes(index),
            total: member.total,
        }
    }

    /// The first tensor of the bundle that tensor `index` is in, if it is in one: that has the stream.
    #[must_use]
    pub fn bundle(&self, index: usize) -> Option<usize> {
        self.member(index).map(|member| member.owner)
    }

    /// Where in the file tensor `index` is stored: the first byte, and behind the last one.
    #[must_use]
    pub fn stored_range(&self, index: usize) -> std::ops::Range<u64> {
        let offsets = self.stored_header().offsets(index);
        let start = self.data_at as u64;
        start + offsets.start..start + offsets.end
    }

    /// How tensor `index` is stored, for readers that decode without this one.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the stream is damaged.
    pub fn stored_form(&self, index: usize) -> Result<StoredForm> {
        if !self.is_compressed() {
            return Ok(StoredForm::Plain);
        }
        let bundled = |member: Member, content_hash| {
            StoredForm::Bundled(BundledForm {
                owner: member.owner,
                start: member.start,
                total: member.total,
                content_hash,
            })
        };
        let stream = self.stream(index)?;
        if let Some(member) = self.member(index) {
            return Ok(bundled(member, None));
        }
        let Some(reference) = stream.reference() else {
            return Ok(if is_alone(&stream) {
                StoredForm::Stream
            } else {
                StoredForm::Elsewhere
            });
        };
        let Some(first) = self.header.find(reference.name) else {
            return Ok(StoredForm::Elsewhere);
        };
        let target = self.stream(first)?;
        let same_type = target.dtype() == stream.dtype();
        Ok(match self.member(first) {
            Some(member)
                if same_type && self.header.tensor_bytes(first) == stream.original_len() =>
            {
                bundled(member, Some(reference.content_hash))
            }
            None if same_type && target.shape() == stream.shape() && is_alone(&target) => {
                StoredForm::Repeat {
                    first,
                    content_hash: reference.content_hash,
                }
            }
            _ => StoredForm::Elsewhere,
        })
    }

    /// The other files that tensors refer to, in the order of their names; with `check` each tensor
    /// referred to is looked for.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a stream is damaged, [`Error::BaseMismatch`] if one refers to nothing.
    pub fn references(&self, check: bool) -> Result<BTreeSet<String>> {
        let mut files = BTreeSet::new();
        if self.is_compressed() {
            for index in 0..self.header.len() {
                let stream = self.stream(index)?;
                if let Some(external) = stream.external() {
                    if check {
                        self.content(index, &DecompressOptions::default())?;
                    }
                    files.insert(external.file.clone());
                }
            }
        }
        Ok(files)
    }

    /// What is known about the stream of tensor `index`; `None` for a plain file.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the stream is damaged.
    pub fn info(&self, index: usize) -> Result<Option<StreamInfo>> {
        if !self.is_compressed() {
            return Ok(None);
        }
        let info = self.stream(index).map(|stream| Some(stream.info()));
        self.settle(info, true)
    }

    /// Where the bits of tensor `index` of a compressed file go.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a plain file, [`Error::Corrupt`] if the stream is damaged.
    pub fn explain(
        &self,
        index: usize,
        measure: Option<&DecompressOptions>,
    ) -> Result<Explanation> {
        if !self.is_compressed() {
            return Err(Error::InvalidArgument("it is not compressed".to_owned()));
        }
        let explained = self.stream(index).and_then(|stream| {
            let explained = stream.explain(measure);
            explained.map_err(|error| self.named(index, error))
        });
        let explained = self.settle(explained, true)?;
        Ok(match self.member(index) {
            None => explained,
            Some(member) => explained.shared(self.share(index, member)),
        })
    }

    /// The name of the tensor that tensor `index` is stored as a repeat of.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the stream is damaged.
    pub fn repeats(&self, index: usize) -> Result<Option<String>> {
        if !self.is_compressed() {
            return Ok(None);
        }
        let stream = self.stream(index)?;
        Ok(stream
            .reference()
            .map(|reference| reference.name.to_owned()))
    }

    /// What the file says of its base: its identity, then where it was, if that was recorded.
    #[must_use]
    pub fn base(&self) -> Option<&str> {
        let file = self.compressed.as_ref()?;
        base_entry(&file.outer, &self.header)
    }

    /// The files that the base was found in, and those that they need in turn.
    #[must_use]
    pub fn base_files(&self) -> Vec<PathBuf> {
        let compressed = self.compressed.as_ref();
        compressed.map_or_else(Vec::new, |compressed| compressed.base.files())
    }

    /// Checks that every base tensor that is needed is there and the right one.
    ///
    /// # Errors
    /// [`Error::BaseMismatch`] if not, [`Error::Corrupt`] for damage, whatever `progress` returns.
    pub fn check_base(
        &self,
        options: &DecompressOptions,
        progress: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        // Tensors of a plain file have no base.
        let compressed = if self.is_compressed() {
            self.header.len()
        } else {
            0
        };
        let checked = (0..compressed).try_for_each(|index| {
            match self.bundle(index) {
                None => drop(self.content(index, options)?),
                Some(owner) if owner == index => drop(self.stream(index)?),
                Some(_) => {}
            }
            progress()
        });
        self.settle(checked, true)
    }
}
