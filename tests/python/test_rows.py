"""`c[rows]` is what the framework gives for `x[rows]`."""

from typing import Any

import numpy as np
import pytest
import torch

import neuzip_rs as nz
from tests.python.samples import WEIGHTS, Sample, assert_same, bits, contents, torch_tensor

KEYS: list[Any] = [
    0,
    6,
    -1,
    -7,
    np.int64(3),
    torch.tensor(2),
    slice(None),
    slice(2, 5),
    slice(-3, None),
    slice(5, 2),
    slice(100, 200),
    slice(None, None, 2),
    slice(1, 6, 3),
    (),
    (3,),
    (slice(1, 4), 2),
    (slice(1, 4), slice(None, None, 2)),
    (-2, slice(1, 3)),
    (2, 3),
    (2, 3, 1),
    (slice(0, 2), ..., 0),
    ...,
    (..., 1),
    (Ellipsis, 0, 0),
    None,
    (None, 2),
    [0, 3],
    (slice(1, 3), [0, 2]),
    True,
    slice(None, None, -1),
    slice(5, 1, -2),
    (slice(None, None, -3), 1),
]


@pytest.mark.parametrize("shape", [(7,), (7, 5), (7, 5, 2)])
@pytest.mark.parametrize("key", KEYS, ids=repr)
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_rows(key: Sample, shape: tuple[int, ...]) -> None:
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    t = torch.from_numpy(x)
    try:
        expected = x[key]
    except IndexError:
        with pytest.raises(IndexError):
            nz.compress(x)[key]
        with pytest.raises(IndexError):
            nz.compress(t)[key]
        return
    found = nz.compress(x)[key]
    assert type(found) is type(expected)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert (found == expected).all()
    tensor = nz.compress(t)[key]
    assert type(tensor) is torch.Tensor
    assert torch.equal(tensor, torch.from_numpy(np.array(expected)))


@pytest.mark.parametrize("key", [7, -8, (7, 0), 2**70])
def test_rows_out_of_range(key: Sample) -> None:
    for x in (np.zeros((7, 2)), torch.zeros(7, 2)):
        with pytest.raises(IndexError):
            nz.compress(x)[key]


def test_rows_of_no_dimensions() -> None:
    c = nz.compress(torch.tensor(3.0))
    for key in (0, slice(None), (0,)):
        with pytest.raises(IndexError):
            c[key]
    assert c[...].item() == 3
    assert c[()].item() == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float32", "int64", "bool"])
def test_rows_of_several_chunks(dtype: str) -> None:
    shape = (1000, 333)
    x = torch_tensor(dtype, shape, contents("weights", dtype, 333_000, 5))
    c = nz.compress(x)
    for key in (0, 999, slice(400, 420), slice(10, 990, 300), slice(0, 1000, 3), slice(7, 7)):
        assert bits(c[key]) == bits(x[key])
    assert bits(c[::-400]) == bits(x[[999, 599, 199]])


def test_rows_of_bytes() -> None:
    data = bytes(range(200))
    c = nz.compress(data)
    for key in (slice(3, 9), slice(None), slice(-5, None), slice(0, 50, 7), slice(None, None, -3)):
        assert_same(c[key], data[key])
    assert c[3] == 3
    assert c[-1] == 199
    for wrong in (200, -201):
        with pytest.raises(IndexError):
            c[wrong]
    for wrong in ((1, 2), None, [1], ...):
        with pytest.raises(TypeError):
            c[wrong]
    elements = nz.compress(data, dtype="float32")
    assert elements[1] == data[4:8]
    assert elements[2:4] == data[8:16]
    assert elements[::-25] == data[196:200] + data[96:100]


def test_rows_of_a_stream() -> None:
    c = nz.CompressedTensor.from_bytes(bytes(nz.compress(WEIGHTS)))
    assert_same(c[3:5].view(np.int16), WEIGHTS[3:5].view(torch.int16).numpy())
