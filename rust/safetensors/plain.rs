//! The plain file that the safetensors package would write for tensors in memory.
//!
//! Invariants: tensors are sorted by element type, most aligned first, then by name; the header is
//! padded with spaces to 8 bytes. The package writes metadata in the order of a randomised hash table,
//! which differs from run to run; here it is sorted by key, one of the orders it could have chosen.
//!
//! Place in docs/format-files.md: "The plain header".

use super::dtype::ElementType;
use super::embedded::HEADER_KEY;
use super::header::{Described, Header, MAX_HEADER_BYTES, PLAIN_ALIGNMENT, write_json};
use super::writer::{Source, stream_form};
use crate::Dtype;
use crate::error::{Error, Result};

/// A tensor in memory.
pub struct MemoryTensor<'a> {
    /// Its name in the file.
    pub name: String,
    /// Its type as the header says it.
    pub element: ElementType,
    /// Its shape in elements of that type.
    pub shape: Vec<u64>,
    /// Its bytes.
    pub data: &'a [u8],
    /// The element type of its stream. It differs from what `element` says only for bytes (`U8`) that
    /// hold elements of a type safetensors lacks.
    pub dtype: Dtype,
}

/// A plain file whose data has not been put together.
pub(super) struct PlainFile<'a> {
    pub(super) json: Vec<u8>,
    pub(super) header: Header,
    pub(super) sources: Vec<Source<'a>>,
}

impl<'a> PlainFile<'a> {
    /// Lays `tensors` out as the safetensors package does.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for repeated or reserved names, sizes that contradict types and
    /// shapes, and headers that are too long.
    pub(super) fn of_tensors(
        mut tensors: Vec<MemoryTensor<'a>>,
        metadata: Option<Vec<(String, String)>>,
    ) -> Result<Self> {
        tensors.sort_by(|a, b| b.element.cmp(&a.element).then_with(|| a.name.cmp(&b.name)));
        let mut metadata = metadata;
        if let Some(pairs) = &mut metadata {
            pairs.sort();
        }
        let pairs: Option<Vec<(&str, &str)>> = metadata.as_ref().map(|pairs| {
            pairs
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .collect()
        });
        if pairs.iter().flatten().any(|&(key, _)| key == HEADER_KEY) {
            return Err(Error::InvalidArgument(format!(
                "metadata key {HEADER_KEY:?} is reserved"
            )));
        }
        let sources = tensors.iter().map(source).collect::<Result<Vec<_>>>()?;
        let described = tensors.iter().map(|tensor| Described {
            name: &tensor.name,
            element: tensor.element,
            shape: &tensor.shape,
            bytes: tensor.data.len() as u64,
        });
        let mut json = write_json(pairs.as_deref(), described)?;
        json.resize(json.len().next_multiple_of(PLAIN_ALIGNMENT), b' ');
        if json.len() > MAX_HEADER_BYTES {
            return Err(Error::InvalidArgument(format!(
                "the header would take {} bytes, more than a .safetensors file may have",
                json.len()
            )));
        }
        // Reading it back finds whatever the caller got wrong: repeated names and keys.
        let header = Header::parse(&json).map_err(|error| match error {
            Error::Corrupt(what) => Error::InvalidArgument(what),
            other => other,
        })?;
        Ok(Self {
            json,
            header,
            sources,
        })
    }
}

fn source<'a>(tensor: &MemoryTensor<'a>) -> Result<Source<'a>> {
    let MemoryTensor {
        name,
        element,
        shape,
        data,
        dtype,
    } = tensor;
    let invalid = |what: String| Err(Error::InvalidArgument(format!("tensor {name:?}: {what}")));
    let bytes = data.len() as u64;
    if element.tensor_bytes(shape.iter().copied()) != Some(bytes) {
        return invalid(format!(
            "{bytes} bytes do not fit {} of shape {shape:?}",
            element.name()
        ));
    }
    if shape.len() > usize::from(u8::MAX) {
        return invalid("more than 255 dimensions".into());
    }
    let (own, own_shape) = stream_form(*element, shape, bytes);
    if *dtype == own {
        return Ok(Source {
            element: *element,
            dtype: own,
            shape: own_shape,
            data,
        });
    }
    let itemsize = dtype.itemsize() as u64;
    if *element != ElementType::U8 || !bytes.is_multiple_of(itemsize) {
        return invalid(format!(
            "a stream of {} cannot stand for {}",
            dtype.name(),
            element.name()
        ));
    }
    Ok(Source {
        element: *element,
        dtype: *dtype,
        shape: vec![bytes / itemsize],
        data,
    })
}
