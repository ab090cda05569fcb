//! The tensors of a directory of plain files, and which of them need not be stored a second time.
//!
//! A tensor is stored as a reference to another file if an earlier file, in the order the directory is
//! compressed in, has the same bytes, or float32 elements under the same name and of the same shape that
//! its own elements are rounded from. As almost no tensor has a double, each is first sampled; only what
//! agrees in its sample is hashed whole, and only equal hashes are compared. Invariants: references lead to earlier
//! files, in the same folder or below, and to tensors that are stored themselves; memory is for names and
//! numbers only.
//!
//! Place in docs/format-files.md: "References to other files".

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::SafetensorsFile;
use super::casts::cast;
use super::dtype::ElementType;
use super::repeats::sample;
use crate::container::external::{Derivation, External, is_inner_name};
use crate::container::writer::constant_element;
use crate::error::Result;
use crate::parallel::{Ahead, in_order};
use crate::{Dtype, Threads, content_hash};

/// Tensors below this size are stored again: the names in a reference take about as much.
const LEAST_BYTES: usize = 256;
/// Exceptions of a tensor that is rounded from another one: at most one in so many elements, and so many.
const ELEMENTS_PER_EXCEPTION: usize = 64;
const MOST_EXCEPTIONS: usize = 1 << 16;
/// Elements that are rounded and compared in one go.
const STEP: usize = 1 << 16;
/// Tensors that may be hashed at once.
const AHEAD: Ahead = Ahead {
    per_thread: 2,
    besides: 2,
};

/// Where a tensor stands: the number of its file, and its own in the order of the data.
type Place = (usize, usize);

/// Numbers and bits of elements.
type Exceptions = Vec<(u64, u16)>;

/// See the module documentation.
pub struct Catalog {
    root: PathBuf,
    names: Vec<String>,
    /// What tensors are stored as instead of their bytes.
    externals: HashMap<Place, External>,
    /// Tensors that others may refer to, by length and sample, in order.
    held: HashMap<(usize, u128), Vec<Place>>,
}

impl Catalog {
    /// Looks at the plain files `names` of the directory `root`, given in the order in which they are
    /// compressed. `progress` is called now and then and may stop the work by an error.
    ///
    /// # Errors
    /// [`crate::Error::Io`] and [`crate::Error::Corrupt`] for files that cannot be read.
    pub fn new(
        root: &Path,
        names: Vec<String>,
        threads: Threads,
        progress: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Self> {
        let mut catalog = Self {
            root: root.to_path_buf(),
            names,
            externals: HashMap::new(),
            held: HashMap::new(),
        };
        let files = catalog.open_all()?;
        let mut alike: HashMap<(usize, u128), Vec<Place>> = HashMap::new();
        for (number, file) in files.iter().enumerate() {
            for index in 0..file.header().len() {
                let data = file.plain(index)?;
                // A constant tensor takes less than a reference to it.
                if data.len() >= LEAST_BYTES && !is_constant(file, index, data) {
                    let key = (data.len(), sample(data));
                    alike.entry(key).or_default().push((number, index));
                    progress()?;
                }
            }
        }
        let hashes = hash_all(&files, &alike, threads, progress)?;
        let mut first_in_file: HashMap<Place, Place> = HashMap::new();
        for places in alike.values() {
            catalog.find_doubles(&files, places, &hashes, &mut first_in_file)?;
        }
        let first = |place: Place| first_in_file.get(&place).copied().unwrap_or(place);
        catalog.find_casts(&files, &first, threads, progress)?;
        // What repeats a rounded tensor of its own file comes about as that one does.
        for (&place, first) in &first_in_file {
            if same_type(&files[place.0], place.1, first.1)
                && let Some(external) = catalog.externals.get(first).cloned()
            {
                catalog.externals.insert(place, external);
            }
        }
        let first = |place: Place| first_in_file.get(&place).copied().unwrap_or(place);
        for (key, places) in alike {
            let held =
                |&place: &Place| first(place) == place && !catalog.externals.contains_key(&place);
            catalog
                .held
                .insert(key, places.into_iter().filter(held).collect());
        }
        Ok(catalog)
    }

    fn open_all(&self) -> Result<Vec<SafetensorsFile>> {
        let open = |name: &String| SafetensorsFile::open(&self.root.join(name));
        self.names.iter().map(open).collect()
    }

    /// What the tensors of a file are stored as instead of their bytes, in the order of the data.
    #[must_use]
    pub fn externals(&self, name: &str, tensors: usize) -> Vec<Option<External>> {
        let number = self.names.iter().position(|known| known == name);
        let external = |index| self.externals.get(&(number?, index)).cloned();
        (0..tensors).map(external).collect()
    }

    /// How the file `from` calls the file `to`, if it may refer to it.
    fn path_between(&self, from: &str, to: usize) -> Option<String> {
        let folder = from.rfind('/').map_or("", |end| &from[..=end]);
        let path = self.names[to].strip_prefix(folder)?;
        is_inner_name(path).then(|| path.to_owned())
    }

    /// Among tensors whose samples agree, finds those that earlier files have.
    fn find_doubles(
        &mut self,
        files: &[SafetensorsFile],
        places: &[Place],
        hashes: &HashMap<Place, u128>,
        first_in_file: &mut HashMap<Place, Place>,
    ) -> Result<()> {
        let mut held: HashMap<u128, Vec<Place>> = HashMap::new();
        for &place in places {
            let Some(&content_hash) = hashes.get(&place) else {
                continue;
            };
            let data = files[place.0].plain(place.1)?;
            let mut found = None;
            for &(file, index) in held.get(&content_hash).into_iter().flatten() {
                let path = if file == place.0 {
                    Some(String::new())
                } else {
                    self.path_between(&self.names[place.0], file)
                };
                // The comparison makes a crafted collision harmless.
                if let Some(path) = path
                    && files[file].plain(index)? == data
                {
                    found = Some(((file, index), path));
                    break;
                }
            }
            match found {
                Some((first, path)) if path.is_empty() => {
                    first_in_file.insert(place, first);
                }
                Some(((file, index), path)) => {
                    let external = External {
                        derivation: Derivation::Same,
                        content_hash,
                        start: 0,
                        name: files[file].header().name(index).to_owned(),
                        file: path,
                        exceptions: Vec::new(),
                    };
                    self.externals.insert(place, external);
                }
                None => held.entry(content_hash).or_default().push(place),
            }
        }
        Ok(())
    }

    /// Finds tensors that are rounded from others of the same name and shape.
    fn find_casts(
        &mut self,
        files: &[SafetensorsFile],
        first: &(dyn Fn(Place) -> Place + Sync),
        threads: Threads,
        progress: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut candidates: BTreeMap<Place, (Place, String)> = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            for index in 0..file.header().len() {
                // Of tied tensors any may have the name that counts; the first is what is stored.
                let (place, stored) = ((number, index), first((number, index)));
                if narrow_type(file, index).is_some()
                    && same_type(file, index, stored.1)
                    && file.header().tensor_bytes(index) as usize >= LEAST_BYTES
                    && !self.externals.contains_key(&stored)
                    && !candidates.contains_key(&stored)
                    && let Some(twin) = self.wide_twin(files, first, place)
                {
                    candidates.insert(stored, twin);
                }
            }
        }
        let mut found = Vec::new();
        in_order(
            threads,
            AHEAD,
            &mut Vec::new(),
            candidates.into_iter().map(|candidate| Ok((1, candidate))),
            |(place, (wide, path)), (): &mut ()| {
                let cast = find_cast(&files[wide.0], wide.1, &files[place.0], place.1)?;
                Ok((place, wide, path, cast))
            },
            |(place, wide, path, cast), ()| {
                found.extend(cast.map(|cast| (place, wide, path, cast)));
                progress()
            },
        )?;
        for (place, (file, index), path, (derivation, exceptions)) in found {
            let external = External {
                derivation,
                content_hash: content_hash(files[place.0].plain(place.1)?),
                start: 0,
                name: files[file].header().name(index).to_owned(),
                file: path,
                exceptions,
            };
            self.externals.insert(place, external);
        }
        Ok(())
    }

    /// The float32 tensor of an earlier file with the name and shape of a narrower one.
    fn wide_twin(
        &self,
        files: &[SafetensorsFile],
        first: &(dyn Fn(Place) -> Place + Sync),
        (number, index): Place,
    ) -> Option<(Place, String)> {
        let header = files[number].header();
        (0..number).find_map(|other| {
            let path = self.path_between(&self.names[number], other)?;
            let theirs = files[other].header();
            let twin = theirs.find(header.name(index))?;
            let wide = first((other, twin));
            let fits = theirs.element(twin) == ElementType::F32
                && theirs.shape(twin) == header.shape(index)
                && theirs.element(wide.1) == ElementType::F32
                && !self.externals.contains_key(&wide);
            fits.then_some((wide, path))
        })
    }

    /// Bytes of a tensor that `data`, a part of the file `from`, repeats: as what to refer to, without
    /// the hash.
    pub(crate) fn find_range(
        &self,
        from: &str,
        data: &[u8],
        open: &mut HashMap<usize, SafetensorsFile>,
    ) -> Result<Option<(String, String)>> {
        if data.len() < LEAST_BYTES {
            return Ok(None);
        }
        let places = self.held.get(&(data.len(), sample(data)));
        for &(number, index) in places.into_iter().flatten() {
            let Some(path) = self.path_between(from, number) else {
                continue;
            };
            let file = match open.entry(number) {
                std::collections::hash_map::Entry::Occupied(file) => file.into_mut(),
                std::collections::hash_map::Entry::Vacant(place) => {
                    place.insert(SafetensorsFile::open(&self.root.join(&self.names[number]))?)
                }
            };
            if file.plain(index)? == data {
                return Ok(Some((file.header().name(index).to_owned(), path)));
            }
        }
        Ok(None)
    }
}

fn is_constant(file: &SafetensorsFile, index: usize, data: &[u8]) -> bool {
    let itemsize = file
        .header()
        .element(index)
        .stream_dtype()
        .map_or(1, Dtype::itemsize);
    constant_element(data, itemsize).is_some()
}

/// The hashes of all tensors that may have a double.
fn hash_all(
    files: &[SafetensorsFile],
    alike: &HashMap<(usize, u128), Vec<Place>>,
    threads: Threads,
    progress: &mut dyn FnMut() -> Result<()>,
) -> Result<HashMap<Place, u128>> {
    let mut hashes = HashMap::new();
    in_order(
        threads,
        AHEAD,
        &mut Vec::new(),
        alike
            .values()
            .filter(|places| places.len() > 1)
            .flatten()
            .map(|&place| Ok((1, place))),
        |place, (): &mut ()| Ok((place, content_hash(files[place.0].plain(place.1)?))),
        |(place, hash), ()| {
            hashes.insert(place, hash);
            progress()
        },
    )?;
    Ok(hashes)
}

/// Whether two tensors have the same elements and shape.
fn same_type(file: &SafetensorsFile, a: usize, b: usize) -> bool {
    let header = file.header();
    header.element(a) == header.element(b) && header.shape(a) == header.shape(b)
}

fn narrow_type(file: &SafetensorsFile, index: usize) -> Option<Dtype> {
    let dtype = file.header().element(index).stream_dtype();
    dtype.filter(|dtype| matches!(dtype, Dtype::Bfloat16 | Dtype::Float16))
}

/// How the narrow tensor comes from the wide one, and where it does not.
fn find_cast(
    wide: &SafetensorsFile,
    wide_index: usize,
    narrow: &SafetensorsFile,
    narrow_index: usize,
) -> Result<Option<(Derivation, Exceptions)>> {
    let Some(dtype) = narrow_type(narrow, narrow_index) else {
        return Ok(None);
    };
    let (wide, narrow) = (wide.plain(wide_index)?, narrow.plain(narrow_index)?);
    let derivations = match dtype {
        Dtype::Bfloat16 => &[Derivation::Rounded, Derivation::Truncated][..],
        _ => &[Derivation::Rounded],
    };
    let exceptions = |derivation| exceptions(derivation, dtype, wide, narrow);
    let found = derivations
        .iter()
        .filter_map(|&it| Some((it, exceptions(it)?)));
    Ok(found.min_by_key(|(_, exceptions)| exceptions.len()))
}

/// Elements that are not what the derivation gives; `None` if they are too many.
fn exceptions(
    derivation: Derivation,
    dtype: Dtype,
    wide: &[u8],
    narrow: &[u8],
) -> Option<Exceptions> {
    let limit = MOST_EXCEPTIONS.min(narrow.len() / 2 / ELEMENTS_PER_EXCEPTION);
    let mut found = Vec::new();
    let mut buffer = vec![0; 2 * STEP];
    let steps = wide.chunks(4 * STEP).zip(narrow.chunks(2 * STEP));
    for (step, (wide, narrow)) in steps.enumerate() {
        let expected = &mut buffer[..narrow.len()];
        cast(derivation, dtype, wide, expected);
        if expected == narrow {
            continue;
        }
        let pairs = narrow
            .as_chunks::<2>()
            .0
            .iter()
            .zip(expected.as_chunks::<2>().0);
        for (number, (element, expected)) in pairs.enumerate() {
            if element != expected {
                found.push(((step * STEP + number) as u64, u16::from_le_bytes(*element)));
            }
        }
        if found.len() > limit {
            return None;
        }
    }
    Some(found)
}

/// The parts of a file that repeat tensors, and what they repeat.
#[derive(Default)]
pub(crate) struct RangePlan {
    /// In ascending order, without overlaps: name of the tensor and of the file.
    pub(crate) ranges: Vec<(Range<usize>, String, String)>,
}

impl RangePlan {
    /// Looks for `ranges` of the file `name` among the tensors of a catalog.
    pub(crate) fn new(
        catalog: &Catalog,
        name: &str,
        data: &[u8],
        mut ranges: Vec<Range<usize>>,
        progress: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Self> {
        ranges.sort_by_key(|range| range.start);
        let (mut found, mut open, mut end) = (Vec::new(), HashMap::new(), 0);
        for range in ranges {
            // What another program wrote may be any numbers.
            let Some(bytes) = data.get(range.clone()).filter(|_| range.start >= end) else {
                continue;
            };
            if let Some((tensor, file)) = catalog.find_range(name, bytes, &mut open)? {
                end = range.end;
                found.push((range, tensor, file));
            }
            progress()?;
        }
        Ok(Self { ranges: found })
    }

    /// Bytes that need not be stored.
    pub(crate) fn bytes(&self) -> usize {
        self.ranges.iter().map(|(range, ..)| range.len()).sum()
    }
}
