//! Plans for decoding on a GPU: `device_plan`.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::buffers::Bytes;
use super::errors::to_py;
use crate::container::device::{Placement, plan};
use crate::container::stream::Stream;

/// A stream, and the addresses of its first byte, of the tensor and of the base on the device.
type Placed<'py> = (Bound<'py, PyAny>, u64, u64, Option<u64>);

/// The plan that the kernels take, and how many chunks the fast one and the other one have in it.
#[pyfunction]
#[pyo3(signature = (streams, *, verify = true))]
fn device_plan<'py>(
    py: Python<'py>,
    streams: Vec<Placed<'py>>,
    verify: bool,
) -> PyResult<(Bound<'py, PyBytes>, usize, usize)> {
    let mut placed = Vec::with_capacity(streams.len());
    for (stream, address, out, base) in &streams {
        let placement = Placement {
            stream: *address,
            out: *out,
            base: *base,
        };
        placed.push((Bytes::new(stream)?, placement));
    }
    let made = py.detach(|| {
        let mut streams = Vec::with_capacity(placed.len());
        for (bytes, placement) in &placed {
            streams.push((Stream::parse(bytes.as_slice())?, *placement));
        }
        plan(&streams, verify)
    });
    let made = made.map_err(to_py)?;
    let bytes = PyBytes::new(py, &made.bytes);
    Ok((bytes, made.cut_chunks, made.any_chunks))
}

pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(device_plan, m)?)
}
