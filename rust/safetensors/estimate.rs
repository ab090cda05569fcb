//! What compressing a plain file would give, tensor by tensor, without writing anything.

use std::collections::HashMap;

use super::bundles::Plan;
use super::repeats::find_repeats;
use super::writer::Source;
use super::{Catalog, SafetensorsFile};
use crate::codec::{Tensor, write_external};
use crate::container::explain::Share;
use crate::container::external::External;
use crate::error::{Error, Result};
use crate::parallel::{Ahead, in_order};
use crate::{CompressOptions, Explanation, Stream, Threads, estimate, write_reference};

/// Tensors that may be looked at at once; what is known of them takes no memory worth counting.
const AHEAD: Ahead = Ahead {
    per_thread: 2,
    besides: 2,
};

/// What is known of a tensor without those before it.
enum Found {
    Explained(Explanation),
    /// It repeats the tensor of this number.
    Repeat(usize),
    /// It is the first of a bundle, which is this.
    Bundle(Explanation),
    /// It is a later one of a bundle: the bundle's first tensor, and where it begins behind that.
    Bundled {
        owner: usize,
        start: u64,
    },
}

impl SafetensorsFile {
    /// Explains each tensor of a plain file as [`crate::files::compress_file`] would store it, in the order of
    /// the data; repeated tensors too, and with a catalog those that other files have. `progress` is told the original bytes that are done.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a compressed file, whatever `progress` returns.
    pub fn estimate(
        &self,
        catalog: Option<(&Catalog, &str)>,
        options: &CompressOptions,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Vec<Explanation>> {
        if self.is_compressed() {
            return Err(Error::InvalidArgument(
                "it is compressed already".to_owned(),
            ));
        }
        self.settle(self.estimate_all(catalog, options, progress), false)
    }

    fn estimate_all(
        &self,
        catalog: Option<(&Catalog, &str)>,
        options: &CompressOptions,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Vec<Explanation>> {
        let header = self.header();
        let sources: Vec<Source<'_>> = (0..header.len())
            .map(|index| Ok(Source::of_header(header, index, self.plain(index)?)))
            .collect::<Result<_>>()?;
        let mut repeats = find_repeats(&sources, options.threads, &mut || progress(0))?;
        let externals = match catalog {
            Some((catalog, name)) => catalog.externals(name, sources.len()),
            None => vec![None; sources.len()],
        };
        let bundles = Plan::new(&sources, header, &mut repeats, &externals)?;
        let external = |index: usize| externals[index].as_ref();
        let one_thread = CompressOptions {
            threads: Threads::new(1),
            ..options.clone()
        };
        let mut open: HashMap<usize, Explanation> = HashMap::new();
        let mut done = 0;
        let mut explanations: Vec<Explanation> = Vec::with_capacity(sources.len());
        in_order(
            options.threads,
            AHEAD,
            &mut Vec::new(),
            (0..sources.len()).map(|index| Ok((1, index))),
            |index, (): &mut ()| {
                let Source {
                    dtype, shape, data, ..
                } = &sources[index];
                let repeat = repeats[index].filter(|it| external(it.first).is_none());
                let found = if let Some(external) = external(index) {
                    Found::Explained(elsewhere(&sources[index], external)?)
                } else if let Some((owner, start)) = bundles.place(index) {
                    Found::Bundled { owner, start }
                } else if let Some(bundle) = bundles.gather(&sources, index) {
                    let Tensor {
                        data, dtype, shape, ..
                    } = bundle.tensor();
                    Found::Bundle(estimate(data, dtype, shape, &one_thread)?)
                } else if let Some(repeat) = repeat {
                    Found::Repeat(repeat.first)
                } else {
                    Found::Explained(estimate(data, *dtype, shape, &one_thread)?)
                };
                Ok((index, found))
            },
            |(index, found), ()| {
                let bytes = sources[index].data.len() as u64;
                explanations.push(match found {
                    Found::Explained(explained) => explained,
                    Found::Repeat(first) => {
                        let first_bytes = if bundles.is_bundled(first) {
                            u64::MAX
                        } else {
                            explanations[first].stored_bytes
                        };
                        let name = header.name(first);
                        match repeated(&sources[index], name, first_bytes)? {
                            Some(reference) => reference,
                            None => explanations[first].clone(),
                        }
                    }
                    Found::Bundle(explained) => {
                        let share = Share {
                            start: 0,
                            bytes,
                            total: explained.original_bytes,
                        };
                        let shared = explained.shared(share);
                        open.insert(index, explained);
                        shared
                    }
                    Found::Bundled { owner, start } => {
                        let explained = open.get(&owner).ok_or(Error::Interrupted)?;
                        explained.shared(Share {
                            start,
                            bytes,
                            total: explained.original_bytes,
                        })
                    }
                });
                done += sources[index].data.len() as u64;
                progress(done)
            },
        )?;
        Ok(explanations)
    }
}

/// A tensor of which another file has the bytes.
fn elsewhere(source: &Source<'_>, external: &External) -> Result<Explanation> {
    let stream = write_external(source.dtype, &source.shape, external.clone())?;
    Stream::parse(&stream)?.explain(None)
}

/// A repeat is stored as a reference if that is shorter than what it repeats.
fn repeated(source: &Source<'_>, name: &str, first_bytes: u64) -> Result<Option<Explanation>> {
    let reference = write_reference(source.dtype, &source.shape, name, 0)?.len() as u64;
    let shorter = reference < first_bytes;
    Ok(shorter.then(|| {
        let original = source.data.len() as u64;
        Explanation::of_header_only(original, reference, "reference", Some(name.to_owned()))
    }))
}
