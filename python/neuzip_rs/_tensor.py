"""`compress` and `decompress` for one array."""

from functools import partial
from typing import TYPE_CHECKING, Final

from neuzip_rs import _arrays, _native, _rows
from neuzip_rs._arguments import check_level, check_limit, check_threads
from neuzip_rs._arrays import Array, Device
from neuzip_rs._dtypes import ITEMSIZE, element_count, parse_dtype
from neuzip_rs._errors import BaseMismatchError, OutputTooLargeError
from neuzip_rs._native import CompressedTensor

if TYPE_CHECKING:
    from typing_extensions import Buffer

_compress: Final = _native.compress
_stream_header: Final = _native.stream_header
_decompress_into: Final = _native.decompress_into


def compress(
    x: Array,
    *,
    dtype: object = None,
    level: str = "default",
    base: object = None,
    threads: int | None = None,
) -> CompressedTensor:
    """Compresses an array without losing a bit.

    Args:
        x: A torch tensor, numpy array (ml_dtypes too), cupy array, any object with DLPack or the
            buffer protocol, or bytes. It may have any shape and strides; it is never modified.
        dtype: What raw bytes hold ("bfloat16", `torch.bfloat16`, `numpy.float32`, ...), which
            compresses them better. An array knows its own type, and only that may be named.
        level: "fast", "default" or "max", which is smaller, slow to make and slower to decode.
            Floats on a CUDA device are compressed there by "fast" and "default", if CuPy is
            installed.
        base: An array of the same type and shape that `x` is close to, such as the checkpoint
            before, or that array compressed. Where it makes the result smaller, the difference is
            stored, and `decompress` needs the same base; `CompressedTensor.base_hash` tells.
        threads: How many threads may work, by default `NEUZIP_NUM_THREADS` or every core; with 1
            the calling thread does everything. The bytes do not depend on it.

    Returns:
        The compressed tensor: the bytes to store, with the shape, type and framework at hand.

    Raises:
        TypeError: If `x` cannot be compressed (object, sparse, quantized, ...).
        ValueError: If an argument has a value it cannot have.
        OutputTooLargeError: If there is no memory for a base that has to be decoded.
    """
    if base is None and dtype is None and level in {"fast", "default"} and _encodes(x):
        from neuzip_rs.cuda._encode import can_encode, compress_many

        if can_encode(x, level):
            return compress_many([x], level=level)[0]
    source = _arrays.describe(x)
    if dtype is not None:
        source = _with_dtype(source, parse_dtype(dtype))
    if level != "default":
        check_level(level)
    if threads is not None:
        check_threads(threads)
    data, name, shape, framework, hint = source
    return _compress(
        data,
        name,
        shape,
        level=level,
        threads=threads,
        framework=framework,
        hint=hint,
        base=None if base is None else _base_to_compress(source, base, dtype),
    )


def decompress(
    c: "CompressedTensor | Buffer",
    *,
    out: Array = None,
    base: object = None,
    device: Device = None,
    framework: str | None = None,
    dtype: object = None,
    threads: int | None = None,
    verify: bool = True,
    max_output_size: int | None = None,
) -> Array:
    """Restores an array, bit for bit.

    Args:
        c: What `compress` returned, or its bytes.
        out: An array of the same type, shape and framework, or a writable buffer of the right
            number of bytes, to decode into. After an error its contents are undefined.
        base: The base the tensor was compressed against, or that base compressed; ignored where
            none is needed.
        device: Where to put the result, for torch and cupy; by default the CPU (cupy: its device).
            On a CUDA device it is decoded there, if CuPy is installed (`neuzip_rs[cuda12]` or
            `[cuda13]`); a base should be on it as well then.
        framework: "torch", "numpy", "cupy" or "bytes"; by default that of the array that was
            compressed. Plain bytes do not remember it: they become a numpy array.
        dtype: The element type to see the same bits as: one of the same width, or any type for raw
            bytes (one-dimensional uint8) whose length it divides. `bytes` become an array then.
        threads: How many threads may work, by default `NEUZIP_NUM_THREADS` or every core.
        verify: Check the hash of everything decoded.
        max_output_size: The most bytes the result may have. A few bytes may legally stand for a
            huge constant tensor: set this for input you do not trust.

    Returns:
        `out` if it was given, else a new array. A type numpy does not have is ml_dtypes' if that
        can be imported, else it becomes uint8 of shape + (itemsize,).

    Raises:
        CorruptDataError: If the bytes are damaged, or not compressed by neuzip_rs.
        UnsupportedVersionError: If they need a newer release.
        BaseMismatchError: If the tensor cannot be decoded without its base, or `base` is another.
        OutputTooLargeError: If the result exceeds `max_output_size` or the memory there is.
        ValueError: If an argument contradicts the tensor; TypeError if it has the wrong type.
    """
    source: CompressedTensor | Buffer
    if isinstance(c, CompressedTensor):
        source, remembered = c, c.framework
        name, shape, nbytes = c.dtype, c.shape, c.original_nbytes
    else:
        source, remembered = _as_bytes(c), None
        name, shape, nbytes = _stream_header(source)
    if max_output_size is not None:
        check_limit(max_output_size)
        if nbytes > max_output_size:
            message = f"the tensor has {nbytes} bytes, more than max_output_size={max_output_size}"
            raise OutputTooLargeError(message)
    if threads is not None:
        check_threads(threads)
    target = (remembered or "numpy") if framework is None else framework
    if device is not None and out is None and dtype is None and _decodes_on(device, target, base):
        from neuzip_rs.cuda._decode import decompress_one

        return decompress_one(source, target, device, base, verify=verify)
    base_data = None if base is None else _base_to_decompress(source, base)
    if dtype is not None:
        name, shape = _reinterpret(name, shape, parse_dtype(dtype))
        if framework is None and target == "bytes":
            target = "numpy"
    if out is not None:
        return _decompress_out(
            source, out, name, shape, framework, device, threads, verify, base_data
        )
    adapter = _arrays.adapter_for(target)
    if device is not None:
        device = adapter.check_device(device)
    # As `_arrays.decoded`, whose calls are an eighth of the time that a kilobyte takes.
    result, buffer = _arrays.make_room(adapter.allocate, name, shape)
    try:
        _decompress_into(source, buffer, verify=verify, threads=threads, fresh=True, base=base_data)
    except BaseException:
        _arrays.abandon(buffer)
        raise
    return adapter.finish(result, device)


def decode_rows(c: CompressedTensor, key: _rows.Key) -> Array:
    """`c[key]`: decodes only the rows of the first dimension that `key` touches.

    Rows of compressed `bytes` are their elements: a slice gives bytes, an index of plain bytes an
    int. A tensor that needs a base is decompressed whole instead: the base cannot be named here.
    """

    def read(buffer: "Buffer", start: int) -> None:
        _decompress_into(c, buffer, start=start, fresh=True)

    if c.framework == "bytes":
        return _rows.decode_bytes(c.dtype, c.shape, key, read)
    adapter = _arrays.adapter_for(c.framework or "numpy")
    return _rows.decode_rows(adapter, c.dtype, c.shape, key, read)


def _decodes_on(device: Device, framework: str, base: object) -> bool:
    """Whether the device is one that decodes by itself, and the base (if any) is on it as well."""
    is_cuda = isinstance(device, int) or str(device).partition(":")[0] == "cuda"
    if not is_cuda or framework not in {"torch", "cupy"}:
        return False
    if base is not None and not str(getattr(base, "device", "cpu")).startswith(("cuda", "<CUDA")):
        return False
    from neuzip_rs.cuda import is_available

    return is_available()


def _encodes(x: Array) -> bool:
    """Whether `x` is on a device that encodes by itself."""
    if not str(getattr(x, "device", "cpu")).startswith(("cuda", "<CUDA")):
        return False
    from neuzip_rs.cuda import is_available

    return is_available()


def _as_bytes(data: Array) -> "Buffer":
    """The bytes of a stream, which may also come as an array of bytes."""
    if isinstance(data, (bytes, bytearray)):
        return data
    try:
        view = memoryview(data)
    except TypeError:
        source = _arrays.describe(data)
        if source.dtype != "uint8":
            message = f"expected a CompressedTensor or its bytes, not an array of {source.dtype}"
            raise TypeError(message) from None
        return source.data
    return view.cast("B") if view.c_contiguous and view.nbytes else view.tobytes()


def _decompress_out(
    source: "CompressedTensor | Buffer",
    out: Array,
    dtype: str,
    shape: tuple[int, ...],
    framework: str | None,
    device: Device,
    threads: int | None,
    verify: bool,
    base: "Buffer | None",
) -> Array:
    importer = _arrays.adapter_of(out)
    if framework is not None and importer is not _arrays.adapter_for(framework):
        message = f"out must be of framework={framework!r}, not {type(out).__qualname__}"
        raise ValueError(message)
    buffer, finish = importer.writable(out, dtype, shape)
    if device is not None:
        where = str(getattr(out, "device", "cpu"))
        if where.removesuffix(":0") != str(device).removesuffix(":0"):
            message = f"out must be on device={str(device)!r}, not {where!r}"
            raise ValueError(message)
    _decompress_into(source, buffer, verify=verify, threads=threads, base=base)
    if finish is not None:
        finish()
    return out


def _with_dtype(source: _arrays.Source, dtype: str) -> _arrays.Source:
    if source.framework != "bytes":
        if dtype != source.dtype:
            message = (
                f"dtype names the elements of raw bytes; x has dtype {source.dtype}, not {dtype}"
            )
            raise ValueError(message)
        return source
    elements, remainder = divmod(source.shape[0], ITEMSIZE[dtype])
    if remainder:
        return source._replace(hint=dtype)
    return source._replace(dtype=dtype, shape=(elements,))


def _base_to_compress(source: _arrays.Source, base: object, dtype: object) -> "Buffer":
    """The bytes of a base, which must be of the type and shape of what is compressed."""
    other = _describe_base(base)
    if dtype is not None and not isinstance(base, CompressedTensor):
        other = _with_dtype(other, parse_dtype(dtype))
    if other.dtype != source.dtype:
        message = f"base must have dtype {source.dtype} like x, not {other.dtype}"
        raise ValueError(message)
    if tuple(other.shape) != tuple(source.shape):
        message = f"base must have shape {tuple(source.shape)} like x, not {tuple(other.shape)}"
        raise ValueError(message)
    return other.data


def _base_to_decompress(source: "CompressedTensor | Buffer", base: object) -> "Buffer | None":
    """The bytes of a base; None if the stream needs no base."""
    needed = source if isinstance(source, CompressedTensor) else CompressedTensor.from_bytes(source)
    if needed.base_hash is None:
        return None
    other = _describe_base(base)
    # Plain bytes know neither type nor shape: their length and their hash must do.
    alike = other.dtype == needed.dtype and tuple(other.shape) == needed.shape
    if not alike and other.framework != "bytes":
        message = (
            f"the base has dtype {needed.dtype} and shape {needed.shape}, "
            f"not {other.dtype} and {tuple(other.shape)}"
        )
        raise BaseMismatchError(message)
    return other.data


def _describe_base(base: object) -> _arrays.Source:
    """Views a base as bytes; one that is compressed is decoded."""
    if not isinstance(base, CompressedTensor):
        return _arrays.describe(base)
    read = partial(_decompress_into, base, fresh=True)
    data = _arrays.decoded(_arrays.adapter_for("bytes"), "uint8", (base.original_nbytes,), read)
    return _arrays.Source(data, base.dtype, base.shape, base.framework or "numpy")


def _reinterpret(dtype: str, shape: tuple[int, ...], wanted: str) -> tuple[str, tuple[int, ...]]:
    width = ITEMSIZE[wanted]
    if width == ITEMSIZE[dtype]:
        return wanted, shape
    if dtype == "uint8" and len(shape) == 1 and shape[0] % width == 0:
        return wanted, (shape[0] // width,)
    message = (
        f"dtype must be {dtype} or as wide, not {wanted}, for a tensor of shape {shape} "
        f"and {element_count(shape) * ITEMSIZE[dtype]} bytes"
    )
    raise ValueError(message)
