//! The model that a file's deltas were taken from: its tensors by name, plain or decoded.
//!
//! A compressed file says in the metadata entry `neuzip.base` which model that was, and may say where
//! it lies:
//!
//! ```text
//! [32 hexadecimal digits]  identity
//! [space][path]            relative to the folder of the file, with slashes; may be absent
//! ```
//! Neither is trusted: each stream has the hash of the base tensor it needs. So a base that was found
//! under another name, or that has more tensors than it had, will do.
//!
//! A base may be a delta itself. Invariants: no file is its own base, however many lie between; a chain
//! has at most [`MAX_CHAIN`] files.
//!
//! Place in docs/format-files.md: "Deltas".

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::dtype::ElementType;
use super::parts::Content;
use super::reader::SafetensorsFile;
use crate::container::kind::ContentKind;
use crate::container::mapped::{Mapped, at};
use crate::error::{Error, Result, try_zeroed};
use crate::varint::write_varint;
use crate::{DecompressOptions, Stream, content_hash};

/// The metadata key of the base.
pub(crate) const BASE_KEY: &str = "neuzip.base";
/// Files that a tensor may have to be decoded from.
const MAX_CHAIN: usize = 256;
/// Digits of an identity.
const IDENTITY_DIGITS: usize = 32;

/// The tensors of a model, from one `.safetensors` file or from all in a directory.
pub struct BaseModel {
    files: Vec<SafetensorsFile>,
    /// File and number of each tensor.
    places: HashMap<String, (usize, usize)>,
}

impl BaseModel {
    /// Opens the file or the directory at `path`; files may be plain or compressed.
    ///
    /// # Errors
    /// [`Error::Io`] naming what cannot be read, [`Error::Corrupt`] for what is no `.safetensors`.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_in(path, &[])
    }

    /// Opens a base of the files at `descendants`.
    fn open_in(path: &Path, descendants: &[PathBuf]) -> Result<Self> {
        let mut maps = Vec::new();
        if path.is_dir() {
            let entries = std::fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
            let entries = entries.map_err(at(path))?;
            let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
            paths.sort();
            for path in paths.into_iter().filter(|path| path.is_file()) {
                let map = Mapped::open(&path)?;
                if is_safetensors(&map) {
                    maps.push(map);
                }
            }
            if maps.is_empty() {
                let message = format!("{}: no .safetensors file in it", path.display());
                return Err(Error::BaseMismatch(message));
            }
        } else {
            maps.push(Mapped::open(path)?);
        }
        let mut model = Self {
            files: Vec::new(),
            places: HashMap::new(),
        };
        for map in maps {
            let named = |error: Error| error.within(&path.display().to_string());
            let file = SafetensorsFile::of_descendants(map, None, descendants).map_err(named)?;
            for index in 0..file.header().len() {
                let name = file.header().name(index).to_owned();
                // Of files in a directory the first by name counts.
                model
                    .places
                    .entry(name)
                    .or_insert((model.files.len(), index));
            }
            model.files.push(file);
        }
        Ok(model)
    }

    /// The files that the tensors are in, and those that these need in turn.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let with_bases = |file: &SafetensorsFile| {
            let mut files = file.base_files();
            files.push(file.map().path().to_owned());
            files
        };
        self.files.iter().flat_map(with_bases).collect()
    }

    /// The bytes of the tensor of a name, if there is one of that element type and shape.
    pub(super) fn tensor(
        &self,
        name: &str,
        element: ElementType,
        shape: &[u64],
        options: &DecompressOptions,
    ) -> Result<Option<Cow<'_, [u8]>>> {
        let Some(&(file, index)) = self.places.get(name) else {
            return Ok(None);
        };
        let file = &self.files[file];
        let header = file.header();
        if header.element(index) != element || header.shape(index) != shape {
            return Ok(None);
        }
        Self::bytes(file, index, options).map(Some)
    }

    fn bytes<'a>(
        file: &'a SafetensorsFile,
        index: usize,
        options: &DecompressOptions,
    ) -> Result<Cow<'a, [u8]>> {
        if let Content::Plain(bytes) = file.content(index, options)? {
            return Ok(Cow::Borrowed(bytes));
        }
        let mut bytes = try_zeroed(file.header().tensor_bytes(index) as usize)?;
        file.read_into(index, 0, &mut bytes, options, &mut |_| Ok(()))?;
        Ok(Cow::Owned(bytes))
    }

    /// See [`SafetensorsFile::settle`].
    pub(crate) fn settle<T>(&self, result: Result<T>, is_vouched_for: bool) -> Result<T> {
        self.files.iter().fold(result, |result, file| {
            file.settle_with(result, is_vouched_for)
        })
    }

    /// A hash of all names and decoded tensors: the same for a plain and a compressed model, for one
    /// file and for many. `progress` is called after each tensor and may stop the work by an error.
    ///
    /// # Errors
    /// Those of decoding the model and of `progress`.
    pub fn identity(
        &self,
        options: &DecompressOptions,
        progress: &mut dyn FnMut() -> Result<()>,
    ) -> Result<u128> {
        let mut places: Vec<_> = self.places.iter().collect();
        places.sort();
        let mut listed = Vec::new();
        for (name, &(file, index)) in places {
            let bytes = Self::bytes(&self.files[file], index, options)?;
            write_varint(&mut listed, name.len() as u64);
            listed.extend_from_slice(name.as_bytes());
            listed.extend_from_slice(&content_hash(&bytes).to_le_bytes());
            progress()?;
        }
        Ok(content_hash(&listed))
    }
}

fn is_safetensors(map: &Mapped) -> bool {
    matches!(
        ContentKind::of(map.bytes()),
        ContentKind::Safetensors | ContentKind::NeuzipSafetensors
    )
}

/// A base to compress against.
#[derive(Clone, Copy)]
pub struct BaseChoice<'a> {
    /// Where the tensors are.
    pub model: &'a BaseModel,
    /// Where a reader finds the model: a path relative to the folder of the compressed file.
    pub path: Option<&'a str>,
}

impl BaseChoice<'_> {
    /// Refuses to replace a file that the base is in, or needs: neither could be restored.
    pub(crate) fn check_target(&self, target: &Path) -> Result<()> {
        let Ok(target) = target.canonicalize() else {
            return Ok(());
        };
        let is_target = |file: &PathBuf| file.canonicalize().is_ok_and(|file| file == target);
        if self.model.files().iter().any(is_target) {
            return Err(Error::InvalidArgument(format!(
                "{} is not replaced by a difference from itself",
                target.display()
            )));
        }
        Ok(())
    }

    /// The metadata entry of a file with deltas.
    pub(super) fn entry(
        &self,
        options: &DecompressOptions,
        progress: &mut dyn FnMut() -> Result<()>,
    ) -> Result<String> {
        let mut entry = format!("{:032x}", self.model.identity(options, progress)?);
        if let Some(path) = self.path {
            entry.push(' ');
            entry.push_str(path);
        }
        Ok(entry)
    }
}

/// What a compressed file knows of its base.
pub(super) enum FileBase {
    /// It needs none.
    None,
    /// It was not found: why.
    Missing(String),
    Found(Box<FoundBase>),
}

/// The bytes of a base tensor that had to be decoded.
type Decoded = Arc<Cow<'static, [u8]>>;

/// An open base.
pub(super) struct FoundBase {
    model: BaseModel,
    /// Tensors whose base has the right hash.
    checked: Mutex<HashSet<usize>>,
    /// The base tensor that was decoded last, for the tensor of this number: readers that ask for one
    /// piece after the other need it again.
    recent: Mutex<Option<(usize, Decoded)>>,
}

impl FileBase {
    /// The base of the file at `path`: the one that is named, or the one that the file's `entry` leads to.
    pub(super) fn find(
        entry: Option<&str>,
        named: Option<&Path>,
        path: &Path,
        descendants: &[PathBuf],
    ) -> Result<Self> {
        let found = |model| {
            Self::Found(Box::new(FoundBase {
                model,
                checked: Mutex::default(),
                recent: Mutex::default(),
            }))
        };
        if let Some(named) = named {
            return BaseModel::open(named).map(found);
        }
        let Some(entry) = entry else {
            return Ok(Self::None);
        };
        let (identity, recorded) = entry.split_once(' ').unwrap_or((entry, ""));
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if identity.len() != IDENTITY_DIGITS || !identity.bytes().all(is_digit) {
            return Err(Error::corrupt(format!(
                "the metadata key {BASE_KEY:?} is damaged"
            )));
        }
        let here = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if descendants.contains(&here) || descendants.len() >= MAX_CHAIN {
            let message = "leads back to it, or through too many files".to_owned();
            return Ok(Self::Missing(message));
        }
        let descendants: Vec<PathBuf> = [descendants, &[here]].concat();
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut places = candidates(recorded)
            .into_iter()
            .map(|place| folder.join(place));
        Ok(match places.find(|place| place.exists()) {
            None if recorded.is_empty() => {
                Self::Missing(format!("model {identity}, was not named"))
            }
            None => Self::Missing(format!("{recorded} (model {identity}), is not there")),
            Some(place) => match BaseModel::open_in(&place, &descendants) {
                Ok(model) => found(model),
                Err(error) => Self::Missing(format!("{recorded}, cannot be read: {error}")),
            },
        })
    }

    /// The files that the base is in, and those of their bases.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Found(found) => found.model.files(),
            _ => Vec::new(),
        }
    }

    /// See [`SafetensorsFile::settle`].
    pub(super) fn settle<T>(&self, result: Result<T>, is_vouched_for: bool) -> Result<T> {
        match self {
            Self::Found(base) => base.model.settle(result, is_vouched_for),
            Self::None | Self::Missing(_) => result,
        }
    }

    /// Gives a stream its base tensor, whose hash is compared. Streams that need none stay as they are.
    pub(super) fn attach<'a>(
        &'a self,
        file: &SafetensorsFile,
        index: usize,
        stream: Stream<'a>,
        options: &DecompressOptions,
    ) -> Result<Stream<'a>> {
        let Some(hash) = stream.base_hash() else {
            return Ok(stream);
        };
        let header = file.header();
        let place = format!("tensor {:?}", header.name(index));
        let mismatch = |what: &str| Error::BaseMismatch(what.to_owned()).within(&place);
        let base = match self {
            Self::Found(base) => base,
            Self::Missing(why) => {
                return Err(mismatch(&format!("it is a delta, and its base, {why}")));
            }
            Self::None => return Err(mismatch("it is a delta; name its base")),
        };
        let recent = lock(&base.recent).clone();
        if let Some((_, bytes)) = recent.filter(|(of, _)| *of == index) {
            return stream.with_checked_base(bytes);
        }
        let (element, shape) = (header.element(index), header.shape(index));
        let bytes = base
            .model
            .tensor(header.name(index), element, &shape, options)
            .map_err(|error| match error {
                Error::Corrupt(what) => mismatch(&format!("its base is damaged: {what}")),
                other => other.within(&place),
            })?
            .ok_or_else(|| mismatch("the base has no such tensor of this dtype and shape"))?;
        let checked = lock(&base.checked).contains(&index);
        if !(checked && matches!(bytes, Cow::Borrowed(_))) && content_hash(&bytes) != hash {
            return Err(mismatch(
                "the base is not the one it was compressed against",
            ));
        }
        lock(&base.checked).insert(index);
        match bytes {
            Cow::Borrowed(bytes) => stream.with_checked_base(Arc::new(Cow::Borrowed(bytes))),
            Cow::Owned(bytes) => {
                let bytes: Decoded = Arc::new(Cow::Owned(bytes));
                *lock(&base.recent) = Some((index, bytes.clone()));
                stream.with_checked_base(bytes)
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a base may lie that was recorded as `path`: there, or under the name that it, or a folder above
/// it, had before it was compressed or has since. None for what is no relative path.
fn candidates(path: &str) -> Vec<PathBuf> {
    let path = Path::new(path);
    let legal = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::ParentDir);
    if path.as_os_str().is_empty() || !path.components().all(legal) {
        return Vec::new();
    }
    let mut places = vec![path.to_owned()];
    let parts: Vec<Component<'_>> = path.components().collect();
    for (number, part) in parts.iter().enumerate() {
        let Component::Normal(name) = part else {
            continue;
        };
        let name = name.to_string_lossy();
        let is_last = number + 1 == parts.len();
        let renamed =
            |from: &str, to: &str| name.strip_suffix(from).map(|stem| stem.to_owned() + to);
        let file = [
            (".nz.safetensors", ".safetensors"),
            (".safetensors", ".nz.safetensors"),
        ];
        let file = file
            .iter()
            .filter(|_| is_last)
            .filter_map(|(from, to)| renamed(from, to));
        let folder = [renamed("-nz", ""), renamed("", "-nz")]
            .into_iter()
            .flatten();
        for name in file.chain(folder) {
            let name = Path::new(&name).as_os_str();
            let changed = (0..)
                .zip(&parts)
                .map(|(i, part)| if i == number { name } else { part.as_os_str() });
            places.push(changed.collect());
        }
    }
    places
}
