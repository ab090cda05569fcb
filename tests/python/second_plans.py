"""Streams that the format page allows, by what is special in them: what `encode` is to write."""

from collections.abc import Iterable
from random import Random

from tests.python import second_decoder as page
from tests.python.second_decoder import (
    CODED,
    CONSTANT,
    IN_CONTEXTS,
    RAW,
    Contexts,
    Model,
    OffsetList,
    Plane,
    ScaleOffsets,
    Table,
)
from tests.python.second_encoder import Plan, fit_table, invent


def coded(width: int, base: int = 0, *, escape: bool = True) -> Plane:
    """A coded plane whose table `invent` makes."""
    return Plane(CODED, width, table=Table(base, escape, []))


def in_contexts(
    width: int, source: int, *, count: int, listed: int, first: int = 0, escape: bool = False
) -> Plane:
    """A plane coded in contexts whose tables `invent` makes, over `listed` indices."""
    frequencies = [[0] * listed for _ in range(count)]
    return Plane(IN_CONTEXTS, width, contexts=Contexts(source, first, 1, escape, frequencies))


def raw(width: int) -> Plane:
    return Plane(RAW, width)


def constant(width: int, value: int) -> Plane:
    return Plane(CONSTANT, width, value)


def one(width: int) -> Plane:
    return constant(width, 1)


def scaled(log2_size: int, planes: list[Plane], sign: int = 0) -> Model:
    return Model(log2_size, planes, sign, scaled=True)


def offset_list(lowest: int, width: int, count: int, seed: int = 1) -> OffsetList:
    rng = Random(seed)
    highest = min((1 << width) - 1, 127 - lowest)
    return OffsetList(lowest, width, [rng.randint(0, highest) for _ in range(count)])


def chunks(nbytes: int, storages: Iterable[int], log2_chunk: int = 12) -> list[int]:
    """As many storages as there are chunks, over and over."""
    kinds = list(storages)
    return [kinds[i % len(kinds)] for i in range(-(-nbytes // (1 << log2_chunk)))]


def one_model(model: Model, nbytes: int, *, dtype: int = 1, log2_chunk: int = 12) -> Plan:
    plan = Plan(dtype=dtype, models=[model], log2_chunk=log2_chunk)
    plan.storages = chunks(nbytes, [2], log2_chunk)
    return invent(plan, nbytes, Random(nbytes))


def scaled_plan(offsets: ScaleOffsets, nbytes: int, model: Model, *, dtype: int = 1) -> Plan:
    plan = Plan(dtype=dtype, models=[model], offsets=offsets, storages=chunks(nbytes, [2]))
    return invent(plan, nbytes, Random(nbytes))


def _phases() -> dict[str, Plan]:
    found = {}
    for log2_size in (1, 2, 3):
        for phase in range(1 << log2_size):
            model = Model(log2_size, [coded(8), raw((8 << log2_size) - 8)], 0, phase)
            name = f"elements of {1 << log2_size} bytes, phase {phase}"
            found[name] = one_model(model, 4096 + 777)
    several = [
        Model(2, [coded(8, 100), raw(24)], 0, 3),
        Model(1, [constant(1, 1), coded(8, 250), raw(7)], 15, 1),
        Model(3, [coded(12, 4000), raw(52)], 30, 7),
        Model(0, [coded(4), raw(4)], 7),
    ]
    nbytes = 8 * 4096 - 2048 + 5
    plan = Plan(models=several, storages=[2, 0, 3, 1, 4, 5, 2, 4])
    return found | {"several models": invent(plan, nbytes, Random(1))}


def _many_models() -> dict[str, Plan]:
    found = {}
    for count in (254, 255, 4096):
        models = [Model(0, [constant(8, i % 256)], 7) for i in range(count)]
        models[-1] = Model(1, [coded(8), raw(8)], 0)
        storages = [count + 1, 2, 1, 0, count, count + 1]
        plan = Plan(models=models, storages=storages)
        found[f"{count} models"] = invent(plan, 5 * 4096 + 301, Random(count))
    return found


def _planes() -> dict[str, Plan]:
    found = {}
    for width in range(1, 17):
        model = Model(2, [raw(3), coded(width, (1 << width) - 1), raw(29 - width)], 31)
        found[f"{width} bits with escapes"] = one_model(model, 4096 + 1111)
        model = Model(2, [raw(3), coded(width, escape=False), raw(29 - width)], 2)
        found[f"{width} bits without escapes"] = one_model(model, 2001)
    sixteen = [f(w) for w in (1, 5, 3, 7) for f in (coded, raw, one, coded)]
    found["16 planes"] = one_model(Model(3, sixteen, 17), 5000)
    found["64 raw bits"] = one_model(Model(3, [raw(64)], 40), 5000)
    found["64 constant bits"] = one_model(Model(3, [constant(64, (1 << 64) - 5)], 40), 5000)
    found["eight planes of one bit"] = one_model(Model(0, [coded(1)] * 8, 3), 1000)
    found["four wide planes"] = one_model(Model(3, [coded(16, 9 << i) for i in range(4)], 0), 5000)
    for sign in (1, 5, 7, 8, 14, 15):
        found[f"sign at {sign}"] = one_model(Model(1, [coded(7), raw(9)], sign), 3001)
    for width in (1, 7, 8, 9, 15, 16, 17, 24, 31, 33, 57, 63):
        model = Model(3, [raw(64 - width), raw(width)], 63)
        found[f"{width} raw bits"] = one_model(model, 8 * 77 + 3)
    return found


def _tables() -> dict[str, Plan]:
    found = {}
    all_symbols = bytes(x % 64 - 56 & 255 for x in Random(1).randbytes(3000))
    full = fit_table(all_symbols, 8, 200)
    escaping = fit_table(all_symbols, 8, 200, escape=True)
    assert len(full.entries) == len(escaping.entries) == 64
    for name, table in (("64 entries", full), ("64 entries, one the escape", escaping)):
        model = Model(0, [Plane(CODED, 8, table=table)], 7)
        found[name] = Plan(all_symbols, models=[model], storages=[2])
    everything = Table(7, True, [(63, 255), (5, 1)])
    model = Model(0, [Plane(CODED, 8, table=everything)], 7)
    found["nearly all escaped"] = Plan(all_symbols, models=[model], storages=[2])
    return found


def _trailing_zeros() -> dict[str, Plan]:
    found = {}
    for sign in (0, 1, 6, 31):
        model = Model(2, [coded(8), raw(24)], sign, trailing_zeros=True)
        for most in (64, 5, 0):
            plan = one_model(model, 6 * 16384 + 3001, log2_chunk=15)
            plan.most_zeros = most
            found[f"sign at {sign}, up to {most} trailing zeros"] = plan
    table = fit_table([0x41], 8, 0x41)
    model = Model(2, [Plane(CODED, 8, table=table), raw(24)], 31, trailing_zeros=True)
    data = bytes.fromhex("00000041") * 300
    found["all bits are trailing zeros"] = Plan(data, models=[model], storages=[2])
    model = Model(0, [raw(8)], 0, trailing_zeros=True)
    found["trailing zeros of bytes"] = one_model(model, 5 * 4096 - 1, log2_chunk=13)
    return found


def _scale_offsets() -> dict[str, Plan]:
    found = {}
    for axes in (1, 2, 3):
        for columns, width in ((1, 3), (7, 8), (64, 0), (100, 1), (2222, 5), (2500, 8)):
            rows = -(-2500 // columns)
            offsets = ScaleOffsets(columns, axes, 7)
            if axes & page.ROWS:
                offsets.by_row = offset_list(-100, width, rows)
            if axes & page.COLUMNS:
                offsets.by_column = offset_list(-3, 8 - width, columns)
            name = f"{columns} columns, axes {axes}, offsets of {width} bits"
            model = scaled(1, [coded(8), raw(8)])
            found[name] = scaled_plan(offsets, 5001, model)
    for shift in (0, 14, 15, 16, 63):
        offsets = ScaleOffsets(11, 3, shift, offset_list(-128, 8, 228), offset_list(127, 0, 11))
        model = scaled(1, [coded(9), raw(7)], 7)
        found[f"shift {shift}"] = scaled_plan(offsets, 5001, model, dtype=1)
    for log2_size in (0, 2, 3):
        elements, bits = 5000 >> log2_size, 8 << log2_size
        offsets = ScaleOffsets(9, 3, 2, offset_list(-1, 2, -(-elements // 9)), offset_list(0, 4, 9))
        model = scaled(log2_size, [coded(5), raw(bits - 5)], bits - 1)
        model.trailing_zeros = True
        found[f"scaled, {1 << log2_size} bytes"] = scaled_plan(offsets, 5000, model, dtype=10)
    offsets = ScaleOffsets(3, 1, 3, offset_list(-4, 3, 2001))
    models = [
        Model(1, [raw(16)], 3, 1),
        scaled(1, [coded(6), raw(10)]),
        scaled(1, [coded(9), raw(7)], 7),
        Model(3, [coded(16), raw(48)], 0, 5),
    ]
    plan = Plan(models=models, offsets=offsets, storages=[3, 4, 2])
    found["scaled and other models"] = invent(plan, 12006, Random(1))
    plan = Plan(b"nothing", models=models, offsets=ScaleOffsets(3, 1, 3, OffsetList(5)))
    plan.storages = [0]
    found["scaled models that are not used"] = plan
    many = ScaleOffsets(1, 1, 3, OffsetList(5, 0, [0] * 65536))
    plan = Plan(bytes(65536), models=[scaled(0, [raw(8)])], offsets=many, log2_chunk=16)
    plan.storages = [1]
    found["65536 offsets of width 0"] = plan
    return found


def _contexts() -> dict[str, Plan]:
    found = {}
    for count, first in ((1, 0), (4, 3), (16, 100), (16, 250), (3, 255)):
        planes = [coded(8, 90), in_contexts(2, 1, count=count, listed=4, first=first), raw(6)]
        found[f"{count} contexts from {first}"] = one_model(Model(1, planes, 0), 4096 + 999)
    planes = [
        *(one(1), coded(9, 500), raw(3)),
        in_contexts(12, 2, count=5, listed=20, first=505, escape=True),
        in_contexts(4, 4, count=16, listed=17, first=4090, escape=True),
        raw(3),
    ]
    found["contexts from contexts"] = one_model(Model(2, planes, 9), 9001)
    for axes in (48, 16, 32):
        offsets = ScaleOffsets(37, axes, 0)
        rows = -(-5000 // 37)
        count = 1
        if axes & page.ROW_CLASSES:
            offsets.row_classes, count = offset_list(0, 2, rows), count + 3
        if axes & page.COLUMN_CLASSES:
            offsets.column_classes, count = offset_list(1, 1, 37), count + 2
        planes = [in_contexts(6, 0, count=count, listed=30, escape=True), raw(2)]
        found[f"classes, axes {axes}"] = scaled_plan(offsets, 5000, scaled(0, planes))
    for axes in (4, 8, 12, 15, 63):
        offsets = ScaleOffsets(37, axes, 3)
        rows = -(-2500 // 37)
        if axes & page.ROWS:
            offsets.by_row = offset_list(-9, 4, rows)
        if axes & page.COLUMNS:
            offsets.by_column = offset_list(-9, 4, 37)
        if axes & page.ROW_FLIPS:
            offsets.row_flips = offset_list(0, 1, rows)
        if axes & page.COLUMN_FLIPS:
            offsets.column_flips = offset_list(0, 1, 37, seed=5)
        planes = [coded(9, 90), raw(7)]
        if axes == 63:
            offsets.row_classes, offsets.column_classes = OffsetList(), OffsetList(2, 0)
            offsets.row_classes = offset_list(0, 3, rows)
            planes = [in_contexts(8, 0, count=16, listed=40), in_contexts(3, 1, count=9, listed=8)]
            planes.append(raw(5))
        found[f"flips, axes {axes}"] = scaled_plan(offsets, 5000, scaled(1, planes, 4))
    return found


def _shapes() -> dict[str, Plan]:
    found = {}
    for log2_chunk in (12, 13, 14):
        for nbytes in (
            *(1, 63, 64, 65, 127, 128, 129, 1000, 4095, 4096, 4097),
            *(8191, 8192, 8193, 12289, 16384, 20000),
        ):
            model = Model(0, [coded(5), raw(3)], 0)
            plan = one_model(model, nbytes, log2_chunk=log2_chunk)
            found[f"{nbytes} bytes in chunks of 2^{log2_chunk}"] = plan
    for nbytes in range(12):
        model = Model(2, [coded(9), raw(23)], 5, 3, trailing_zeros=True)
        plan = Plan(models=[model], storages=chunks(nbytes, [2]))
        found[f"{nbytes} bytes, phase 3"] = invent(plan, nbytes, Random(nbytes))
        plan = Plan(Random(1).randbytes(nbytes), models=[model], storages=chunks(nbytes, [0]))
        found[f"{nbytes} raw bytes"] = plan
        plan = Plan(b"\7" * nbytes, storages=chunks(nbytes, [1]))
        found[f"{nbytes} constant bytes"] = plan
    found["chunks of 2^26"] = Plan(b"abc", storages=[0], log2_chunk=26)
    found["no dimensions"] = Plan(b"abcd", dtype=11, shape=(), storages=[0])
    found["255 dimensions"] = Plan(b"abcd", dtype=11, shape=(1,) * 255, storages=[0])
    found["overflow times 0"] = Plan(b"", dtype=15, shape=((1 << 64) - 1, 1 << 63, 0))
    found["raw and constant"] = Plan(
        bytes(4096) + Random(1).randbytes(4096) + b"abc" * 4, storages=[1, 0, 0]
    )
    found["constant at the end"] = Plan(bytes(4096 + 5), storages=[0, 1])
    return found


def legal_plans() -> dict[str, Plan]:
    return (
        _phases()
        | _many_models()
        | _planes()
        | _tables()
        | _trailing_zeros()
        | _scale_offsets()
        | _contexts()
        | _shapes()
    )
