// What scale offsets are fitted with, in integers: the twin of rust/model/fixed_point.rs,
// scale_probe.rs, line_runs.rs and scale_fit.rs.
#pragma once

#include "sample.cuh"

// Largest offset: a phase of up to half an octave may be added to it.
constexpr int64_t LARGEST_OFFSET = 123;
// Elements per row and per column that offsets are fitted on, and on an axis altogether, at least.
constexpr uint64_t LINE_SAMPLE = 128;
constexpr uint64_t MIN_AXIS_SAMPLE = 1 << 16;
// Elements of one row that are looked at without a gap, at least.
constexpr uint64_t MIN_LINE_RUN = 32;
// Rows that a column's sum may have before it could overflow.
constexpr uint64_t MAX_COLUMN_ROWS = 1 << 20;
// Tensors below this size are counted whole, and tried with one choice of axes for each view.
constexpr uint64_t SMALL_ELEMENTS = 1 << 14;
constexpr uint32_t SHARE_BITS = 16;
constexpr uint32_t FACTOR_BITS = 20;

__device__ __forceinline__ uint64_t divide_up(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

__device__ __forceinline__ uint64_t view_elements(const EncodeView& view) {
    return view.rows * view.columns;
}

// Magnitudes of floats in 32-bit fixed point, so that sums do not depend on their order: 0 for what
// is far below `top` or not finite.
struct FixedPoint {
    uint32_t dropped, kept, exponent_bits, exponent_mask, top;

    __device__ FixedPoint(const EncodeTensor& tensor, uint32_t largest)
        : dropped(tensor.mantissa_bits - min(static_cast<uint32_t>(tensor.mantissa_bits), 7u)),
          kept(min(static_cast<uint32_t>(tensor.mantissa_bits), 7u)),
          exponent_bits(tensor.exponent_bits),
          exponent_mask((1u << tensor.exponent_bits) - 1),
          top(largest) {}

    // The exponent, that of infinities and subnormals taken for the smallest.
    __device__ __forceinline__ uint32_t exponent(uint64_t x) const {
        const uint32_t found = static_cast<uint32_t>(x >> dropped >> kept) & exponent_mask;
        return found == exponent_mask ? 1 : max(found, 1u);
    }
    __device__ __forceinline__ uint32_t magnitude(uint64_t x) const {
        const uint32_t leading = static_cast<uint32_t>(x >> dropped);
        const uint32_t found = leading >> kept & exponent_mask;
        if (found == exponent_mask) return 0;
        const uint32_t mantissa = (leading & ((1u << kept) - 1)) | (found > 0 ? 1u << kept : 0);
        const uint32_t lowest = top > 32 ? top - 31 : 1;
        const uint32_t depth = top - min(max(found, lowest), top);
        return (mantissa << (31 - kept)) >> depth;
    }
};

__device__ __forceinline__ int64_t log_of_mean(uint64_t sum, uint64_t count) {
    return static_cast<int64_t>(log2_of(sum)) - static_cast<int64_t>(log2_of(count));
}

// The part of an observed deviation that is no noise, with SHARE_BITS.
__device__ inline int64_t share_of(int64_t variance, int64_t noise) {
    const uint64_t known = variance > 0 ? variance : 0, other = noise > 0 ? noise : 0;
    return (known << SHARE_BITS) / max(known + other, static_cast<uint64_t>(1));
}

// A logarithm as an offset.
__device__ __forceinline__ int32_t offset_of(int64_t log, uint32_t mantissa_bits) {
    const uint32_t unit = LOG2_FRACTION_BITS - octave_log2(mantissa_bits);
    const int64_t offset = (log + (1ll << (unit - 1))) >> unit;
    return static_cast<int32_t>(max(min(offset, LARGEST_OFFSET), -LARGEST_OFFSET));
}

// The factor that takes a row's offset away, with FACTOR_BITS.
__device__ inline uint32_t factor_of(int32_t offset, uint32_t mantissa_bits) {
    // 2^(-i/8).
    constexpr uint32_t FRACTIONS[8] = {1048576, 961548, 881744, 808563,
                                       741455,  679917, 623487, 571740};
    const int32_t eighths = offset * (1 << (3 - octave_log2(mantissa_bits)));
    const uint32_t fraction = FRACTIONS[eighths & 7];
    const int32_t octaves = eighths >> 3;
    // A sum of 2^20 magnitudes of 43 bits still fits.
    return octaves >= 0 ? fraction >> octaves : fraction << min(-octaves, 11);
}

// Sums of a block: the threads of a warp add up, warps take turns at memory.
__device__ __forceinline__ void add_to(uint64_t* sum, uint64_t value) {
    const uint64_t all = warp_sum(value);
    if (lane_id() == 0) atomicAdd(sum, all);
}

// Median and variance of logarithms, the latter in units of 2^-32.
struct Spread {
    int64_t median, variance;
};
struct SpreadRoom {
    uint64_t known, sum, low, high;
    int64_t median;
};

// The variance from sums of squares whose lower and upper 32 bits were added up apart.
__device__ inline int64_t variance_of(uint64_t low, uint64_t high, uint64_t count) {
    const uint64_t lower = (high << 32) + low;
    return divide_wide((high >> 32) + (lower < low), lower, count);
}

__device__ __forceinline__ int64_t mean_of(uint64_t sum, uint64_t count) {
    return static_cast<int64_t>(sum) / static_cast<int64_t>(count);
}

// What a logarithm is that there is none of.
constexpr int32_t NO_LOG = -0x7fffffff - 1;

// The spread of up to PLAN_THREADS logarithms; all threads of a block ask for it.
__device__ inline Spread spread_of(const int32_t* logs, uint32_t count, SpreadRoom& room) {
    if (threadIdx.x == 0) room = SpreadRoom{};
    __syncthreads();
    const bool mine = threadIdx.x < count && logs[threadIdx.x] != NO_LOG;
    const int32_t log = mine ? logs[threadIdx.x] : 0;
    add_to(&room.known, mine);
    add_to(&room.sum, static_cast<uint64_t>(static_cast<int64_t>(log)));
    __syncthreads();
    const uint64_t known = room.known;
    if (known == 0) {
        __syncthreads();
        return {0, 0};
    }
    const int64_t from_mean = log - mean_of(room.sum, known);
    const uint64_t square = mine ? from_mean * from_mean : 0;
    add_to(&room.low, square & 0xffffffffu);
    add_to(&room.high, square >> 32);
    uint32_t rank = 0;
    for (uint32_t i = 0; mine && i < count; i++)
        rank += logs[i] != NO_LOG && (logs[i] < log || (logs[i] == log && i < threadIdx.x));
    if (mine && rank == known / 2) room.median = log;
    __syncthreads();
    const Spread found{room.median, variance_of(room.low, room.high, known)};
    __syncthreads();
    return found;
}

// Whether offsets of lines of so many elements can save more than they take.
__device__ inline bool can_pay(int64_t variance, uint64_t length) {
    // A spread of scales with variance v costs (ln 2) v bits an element, near enough.
    const int64_t saved = (variance * 45426) >> 16;
    constexpr uint64_t ONE = 1ull << (2 * LOG2_FRACTION_BITS);
    if (saved <= 0) return false;
    const bool much = __umul64hi(saved, length) || static_cast<uint64_t>(saved) * length > 2 * ONE;
    return much && static_cast<uint64_t>(saved) * 700 > ONE;
}

// Which part of the matrix offsets are fitted on: `per_row` elements of every row that counts, and
// `per_column` of every column, at least.
__device__ inline void choose_runs(EncodeView& view) {
    const bool rows = view.axes & AXIS_ROWS, columns = view.axes & AXIS_COLUMNS;
    const uint64_t least = min(MIN_AXIS_SAMPLE, view_elements(view));
    const uint64_t per_column = columns ? max(LINE_SAMPLE, least / view.columns) : 1;
    const uint64_t per_row = max(LINE_SAMPLE, least / view.rows), one = 1;
    view.row_step = rows ? 1 : max(view.rows / (4 * per_column), one);
    view.visited = divide_up(view.rows, view.row_step);
    const uint64_t for_columns = divide_up(per_column * view.columns, view.visited);
    const uint64_t wanted = rows ? max(per_row, for_columns) : for_columns;
    view.stripes = max(view.columns / max(wanted, MIN_LINE_RUN), one);
    view.column_step = max(view.visited / view.stripes / min(per_column, MAX_COLUMN_ROWS), one);
}

// The first column of a stripe.
__device__ __forceinline__ uint64_t stripe_start(const EncodeView& view, uint64_t stripe) {
    return stripe * view.columns / view.stripes;
}

// Whether the offsets of a list with these sums save more than they take, as far as they themselves
// say.
__device__ inline bool offsets_pay(int64_t sum, uint64_t squares, uint64_t count, uint64_t elements,
                                   uint32_t mantissa_bits) {
    const uint64_t variance = squares * count - static_cast<uint64_t>(sum * sum);
    const uint64_t unit = count * count << (16 + 2 * octave_log2(mantissa_bits));
    const uint64_t saved = variance * 45426;
    // An offset takes about three bits.
    return __umul64hi(saved, elements) || saved * elements > unit * 3 * count;
}

// Bytes that the offsets of some axes take in the prelude.
__device__ inline uint64_t offsets_bytes(const EncodeView& view, uint32_t axes) {
    uint64_t bytes = 2, columns = view.columns;
    do bytes++;
    while (columns >>= 7);
    for (uint32_t axis = 0; axis < 2; axis++) {
        if (!(axes >> axis & 1)) continue;
        const uint64_t count = axis == 0 ? view.rows : view.columns;
        const uint32_t width = max(32u - __clz(view.high[axis] - view.low[axis]),
                                   static_cast<uint32_t>(count > 1 << 16));
        bytes += 2 + count * (width / 8) + (count * (width % 8) + 7) / 8;
    }
    return bytes;
}
