//! What compressing a plain file would give, tensor by tensor, without writing anything.

use super::repeats::find_repeats;
use super::writer::Source;
use super::{Catalog, SafetensorsFile};
use crate::codec::write_external;
use crate::container::external::External;
use crate::error::{Error, Result};
use crate::parallel::{Ahead, in_order};
use crate::{CompressOptions, Explanation, Stream, Threads, estimate, write_reference};

/// Tensors that may be looked at at once; what is known of them takes no memory worth counting.
const AHEAD: Ahead = Ahead {
    per_thread: 2,
    besides: 2,
};

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
        let repeats = find_repeats(&sources, options.threads, &mut || progress(0))?;
        let externals = catalog.map_or_else(Vec::new, |(catalog, name)| {
            catalog.externals(name, sources.len())
        });
        let external = |index: usize| externals.get(index).and_then(Option::as_ref);
        let one_thread = CompressOptions {
            threads: Threads::new(1),
            ..options.clone()
        };
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
                // A repeat waits for what it repeats.
                let repeat = repeats[index].filter(|it| external(it.first).is_none());
                let explained = match (external(index), repeat) {
                    (Some(external), _) => Ok(elsewhere(&sources[index], external)?),
                    (None, Some(repeat)) => Err((index, repeat.first)),
                    (None, None) => Ok(estimate(data, *dtype, shape, &one_thread)?),
                };
                Ok((index, explained))
            },
            |(index, explained), ()| {
                explanations.push(match explained {
                    Ok(explained) => explained,
                    Err((index, first)) => {
                        repeated(&sources[index], header.name(first), &explanations[first])?
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
fn repeated(source: &Source<'_>, name: &str, first: &Explanation) -> Result<Explanation> {
    let reference = write_reference(source.dtype, &source.shape, name, 0)?.len() as u64;
    if reference >= first.stored_bytes {
        return Ok(first.clone());
    }
    Ok(Explanation::of_header_only(
        source.data.len() as u64,
        reference,
        "reference",
        Some(name.to_owned()),
    ))
}
