// y = x W^T + bias for W in W12 and up to 32 rows of x, without W ever being in memory as BF16.
//
// A block multiplies `row_warps` rows of tiles with a slice of the columns; its warps share both:
// warp w has row of tiles w % row_warps, and of the slice every (WARPS / row_warps)-th tile. The
// rows of x, for the slice, lie in shared memory in the order in which lanes want them. Sums of
// warps are added in the order of columns, and so are those of slices, by the block of the last
// slice that is ready: the result is the same in every run.
//
// Memory is all that costs: a warp has the tiles of its next DEPTH steps on their way into
// registers, their escapes too, and no step waits for an address that a step before has loaded.
#include "w12_instructions.cuh"
#include "w12_layout.cuh"

namespace {

using namespace w12;

constexpr uint32_t WARPS = 8;
constexpr uint32_t THREADS = WARPS * LANES;
constexpr uint32_t DEPTH = 3;
constexpr uint32_t INPUTS = 8;  // that one mma multiplies

struct Weights {
    const uint4* tiles;
    const uint32_t* starts;
    const uint32_t* escapes;
    uint32_t rows, columns, base;
};

// x rows lie `stride` patterns apart, each at a multiple of 16 bytes and zero from `columns` to
// the next multiple of 8.
struct Product {
    const uint16_t* x;
    uint32_t stride, batch;
    const uint16_t* bias;  // of each row of W, or null
    uint16_t* y;           // batch x rows
    uint32_t row_warps_log2, slice_tiles;
    float* partial;     // of each slice and group of rows of tiles; null with one slice
    uint32_t* tickets;  // of each group: how many slices are ready; zero before and after
};

// As numpy lays them out in python/neuzip_rs/cuda/w12.py.
static_assert(sizeof(Weights) == 40 && sizeof(Product) == 56, "no hidden gaps");

// 2^lift times a pattern, exactly: infinities, NaN and zeros stay. What would leave the range is
// infinite; the host packs no such matrix.
__device__ __forceinline__ uint32_t lifted(uint32_t pattern, uint32_t lift) {
    const uint32_t sign = pattern & 0x8000, magnitude = pattern & 0x7fff;
    const uint32_t exponent = magnitude >> 7;
    if (exponent == 255) return pattern;
    if (exponent) return sign | min(magnitude + (lift << 7), 0x7f80u);
    const uint32_t to_normal = __clz(magnitude) - 24;  // 8 and more for zero
    if (lift < to_normal) return sign | magnitude << lift;
    return magnitude ? sign | ((magnitude << to_normal) + ((lift - to_normal) << 7)) : sign;
}

__device__ __forceinline__ float value_of(uint16_t pattern) {
    return __uint_as_float(static_cast<uint32_t>(pattern) << 16);
}

// To the nearest, ties to even.
__device__ __forceinline__ uint16_t rounded(float value) {
    const uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// A tile on its way.
struct Step {
    Lane lane;
    uint32_t count, escape;  // the lane's own of the first 32 escapes
};

// Has columns [first, first + 64 * tiles) of x copied to shared memory: for each tile the first,
// then the second eight columns of lanes t = 0 to 3, of all rows of x.
__device__ __forceinline__ void send_for_inputs(const Product& product, uint32_t columns,
                                                uint32_t first, uint32_t tiles, uint4* inputs) {
    const uint32_t vectors = tiles * (TILE_COLUMNS / 8);  // of a row
    // From one vector of a thread to its next, without a division.
    const uint32_t more_rows = THREADS / vectors, more = THREADS % vectors;
    uint32_t row = threadIdx.x / vectors, i = threadIdx.x % vectors;
    while (row < product.batch) {
        const uint32_t column = first + 8 * i;
        const bool inside = column < columns;
        const uint16_t* from =
            product.x + static_cast<size_t>(row) * product.stride + (inside ? column : 0);
        copy_ahead(inputs + (i / 4 * product.batch + row) * 4 + i % 4,
                   reinterpret_cast<const uint4*>(from), inside);
        row += more_rows, i += more;
        if (i >= vectors) i -= vectors, row++;
    }
}

template <uint32_t INPUT_TILES>
__device__ __forceinline__ void multiply(const Weights& weights, const Product& product,
                                         uint4* inputs) {
    __shared__ Patch patches[WARPS];
    const uint32_t lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    const uint32_t g = lane / 4, t = lane % 4;
    const uint32_t row_warps = 1u << product.row_warps_log2;
    const uint32_t tile_rows = (weights.rows + TILE_ROWS - 1) / TILE_ROWS;
    const uint32_t tile_columns = (weights.columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    const uint32_t tile_row = blockIdx.x * row_warps + warp % row_warps;
    const uint32_t part = warp >> product.row_warps_log2, parts = WARPS >> product.row_warps_log2;
    const uint32_t slice = blockIdx.y * product.slice_tiles;
    const uint32_t slice_tiles = min(product.slice_tiles, tile_columns - slice);

    uint32_t left = tile_row < tile_rows && part < slice_tiles
                        ? (slice_tiles - part + parts - 1) / parts
                        : 0;  // steps
    const size_t tile = static_cast<size_t>(tile_row) * tile_columns + slice + part;
    const uint4* next = weights.tiles + tile * TILE_VECTORS + lane;
    const uint32_t* next_start = weights.starts + tile;
    uint32_t first = 0, end = 0;  // escapes of the next step that is not yet on its way

    const auto send_for_starts = [&](bool wanted) {
        if (wanted) first = __ldg(next_start), end = __ldg(next_start + 1);
        next_start += parts;
    };
    const auto send_for_tile = [&](Step& step) {
        step.lane = {load_once(next), load_once(next + LANES), load_once(next + 2 * LANES)};
        next += parts * TILE_VECTORS;
    };
    const auto send_for_escapes = [&](Step& step, uint32_t first, uint32_t end) {
        step.count = end - first;
        step.escape = lane < step.count ? __ldg(weights.escapes + (first + lane)) : 0;
    };

    // First what waits for nothing, behind the barriers what waits for starts; without the first
    // barrier, compilers put loads off behind the waiting.
    send_for_inputs(product, weights.columns, slice * TILE_COLUMNS, slice_tiles, inputs);
    Step ring[DEPTH];
    uint32_t firsts[DEPTH], ends[DEPTH];
#pragma unroll
    for (uint32_t i = 0; i < DEPTH; i++) {
        send_for_starts(i < left);
        firsts[i] = first, ends[i] = end;
        if (i < left) send_for_tile(ring[i]);
    }
    send_for_starts(DEPTH < left);
    __syncwarp();
    await_copies();
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < DEPTH; i++)
        if (i < left) send_for_escapes(ring[i], firsts[i], ends[i]);

    const Heads heads = lifted_heads(weights.base);
    const uint32_t up = lift(weights.base);
    float sums[INPUT_TILES][4] = {};
    const uint4* input = inputs + (2 * part * product.batch + g) * 4 + t;
    const auto take = [&](Step& step) {
        uint32_t pairs[FRAGMENTS * PAIRS];
        join_tile(step.lane, heads, pairs);
        const uint32_t count = step.count, escape = step.escape;
        if (left > DEPTH) {
            send_for_tile(step);
            send_for_escapes(step, first, end);
        }
        send_for_starts(left > DEPTH + 1);
        left--;
        if (count)
            patch_tile(
                patches[warp], weights.escapes, next_start - (DEPTH + 2) * parts, count, escape,
                [up](uint32_t pattern) { return lifted(pattern, up); }, pairs);
#pragma unroll
        for (uint32_t half = 0; half < 2; half++)
#pragma unroll
            for (uint32_t n = 0; n < INPUT_TILES; n++) {
                uint4 in = make_uint4(0, 0, 0, 0);
                if (INPUTS * n + g < product.batch)
                    in = input[(half * product.batch + INPUTS * n) * 4];
                multiply_fragment(sums[n], pairs + 8 * half, in.x, in.y);
                multiply_fragment(sums[n], pairs + 8 * half + 4, in.z, in.w);
            }
        input += 8 * parts * product.batch;
    };
    while (left)
#pragma unroll
        for (uint32_t k = 0; k < DEPTH; k++)
            if (left) take(ring[k]);

    // Of each warp 16 rows for each input; a patch has room for 32 inputs.
    float* of_warps = reinterpret_cast<float*>(patches);
    constexpr uint32_t WARP_SUMS = sizeof(Patch) / sizeof(float);
    static_assert(INPUT_TILES * INPUTS * TILE_ROWS <= WARP_SUMS, "sums lie where patches were");
    __syncwarp();
#pragma unroll
    for (uint32_t n = 0; n < INPUT_TILES; n++)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            of_warps[warp * WARP_SUMS + (INPUTS * n + 2 * t + i % 2) * TILE_ROWS + g + i / 2 * 8] =
                sums[n][i];
    __syncthreads();

    const uint32_t group_rows_log2 = product.row_warps_log2 + 4;
    const uint32_t group_rows = 1u << group_rows_log2;
    static_assert(TILE_ROWS == 1 << 4, "rows of a group are a power of two");
    const uint32_t group_sums = group_rows * product.batch;
    const size_t slice_sums = static_cast<size_t>(gridDim.x) * group_sums;
    float* partial = product.partial + static_cast<size_t>(blockIdx.x) * group_sums;
    const float scale = __uint_as_float((127 - up) << 23);
    const auto finish = [&](uint32_t i, float sum) {
        const uint32_t row = blockIdx.x * group_rows + (i & (group_rows - 1));
        if (row >= weights.rows) return;
        sum *= scale;
        if (product.bias) sum += value_of(product.bias[row]);
        product.y[static_cast<size_t>((i >> group_rows_log2)) * weights.rows + row] = rounded(sum);
    };
    for (uint32_t i = threadIdx.x; i < group_sums; i += THREADS) {
        const uint32_t row = i & (group_rows - 1);
        const float* from = of_warps + row / TILE_ROWS * WARP_SUMS +
                            (i >> group_rows_log2) * TILE_ROWS + row % TILE_ROWS;
        float sum = from[0];
        for (uint32_t p = 1; p < parts; p++) sum += from[p * row_warps * WARP_SUMS];
        if (gridDim.y == 1)
            finish(i, sum);
        else
            partial[blockIdx.y * slice_sums + i] = sum;
    }
    if (gridDim.y == 1) return;

    __threadfence();
    __syncthreads();
    if (!__syncthreads_or(threadIdx.x == 0 &&
                          atomicAdd(product.tickets + blockIdx.x, 1u) == gridDim.y - 1))
        return;
    __threadfence();
    for (uint32_t i = threadIdx.x; i < group_sums; i += THREADS) {
        const volatile float* from = partial + i;
        float sum = from[0];
        for (uint32_t s = 1; s < gridDim.y; s++) sum += from[s * slice_sums];
        finish(i, sum);
    }
    if (threadIdx.x == 0) product.tickets[blockIdx.x] = 0;
}

}  // namespace

// For up to 8, 16 and 32 rows of x.

extern "C" __global__ void __launch_bounds__(256, 2)
    w12_linear_8(Weights weights, Product product) {
    DYNAMIC_SHARED(uint4, inputs);
    multiply<1>(weights, product, inputs);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    w12_linear_16(Weights weights, Product product) {
    DYNAMIC_SHARED(uint4, inputs);
    multiply<2>(weights, product, inputs);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    w12_linear_32(Weights weights, Product product) {
    DYNAMIC_SHARED(uint4, inputs);
    multiply<4>(weights, product, inputs);
}
