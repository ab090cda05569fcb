// BF16 weights to W12 and back, exactly, for all 65,536 patterns. A warp takes a tile at a time.
//
// Packing is three launches: counts of exponents, of which the host takes the window; escapes of
// each tile, whose running sum are the starts; tiles and escapes.
#include "w12_layout.cuh"

namespace {

using namespace w12;

constexpr uint32_t WARPS = 8;
constexpr uint32_t EXPONENTS = 256;

// Weights as rows of `columns` patterns, without gaps.
struct Matrix {
    const uint16_t* patterns;
    uint32_t rows, columns;

    // Whether groups of eight columns begin at multiples of 16 bytes.
    __device__ bool aligned() const {
        return columns % 8 == 0 && reinterpret_cast<uintptr_t>(patterns) % 16 == 0;
    }
};

__device__ __forceinline__ uint32_t tiles_of(uint32_t columns) {
    return columns / TILE_COLUMNS + (columns % TILE_COLUMNS != 0);
}

// Where the eight columns of a lane begin that are in fragments 2 * half and 2 * half + 1.
__device__ __forceinline__ uint32_t column_of(uint32_t tile_column, uint32_t half, uint32_t lane) {
    return tile_column * TILE_COLUMNS + 32 * half + 8 * (lane % 4);
}

// The pairs of a lane, and `filler` outside of the matrix.
__device__ __forceinline__ void load_pairs(const Matrix& matrix, uint32_t tile_row,
                                           uint32_t tile_column, uint32_t filler,
                                           uint32_t (&pairs)[FRAGMENTS * PAIRS]) {
    const uint32_t lane = threadIdx.x % LANES;
    const bool aligned = matrix.aligned();
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t lower = i % 2, half = i / 2;
        const uint32_t row = tile_row * TILE_ROWS + lane / 4 + 8 * lower;
        const uint32_t column = column_of(tile_column, half, lane);
        const uint16_t* from = matrix.patterns + static_cast<size_t>(row) * matrix.columns + column;
        uint32_t four[4];
        if (aligned && row < matrix.rows && column < matrix.columns) {
            const uint4 loaded = __ldcs(reinterpret_cast<const uint4*>(from));
            four[0] = loaded.x, four[1] = loaded.y, four[2] = loaded.z, four[3] = loaded.w;
        } else {
#pragma unroll
            for (uint32_t k = 0; k < 4; k++) {
                const bool inside = row < matrix.rows;
                const uint32_t low =
                    inside && column + 2 * k < matrix.columns ? from[2 * k] : filler;
                const uint32_t high =
                    inside && column + 2 * k + 1 < matrix.columns ? from[2 * k + 1] : filler;
                four[k] = low | high << 16;
            }
        }
        pairs[8 * half + lower] = four[0];
        pairs[8 * half + 2 + lower] = four[1];
        pairs[8 * half + 4 + lower] = four[2];
        pairs[8 * half + 6 + lower] = four[3];
    }
}

__device__ __forceinline__ void store_pairs(uint16_t* out, uint32_t rows, uint32_t columns,
                                            uint32_t tile_row, uint32_t tile_column,
                                            const uint32_t (&pairs)[FRAGMENTS * PAIRS]) {
    const uint32_t lane = threadIdx.x % LANES;
    const bool aligned = Matrix{out, rows, columns}.aligned();
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t lower = i % 2, half = i / 2;
        const uint32_t row = tile_row * TILE_ROWS + lane / 4 + 8 * lower;
        const uint32_t column = column_of(tile_column, half, lane);
        if (row >= rows || column >= columns) continue;
        uint16_t* to = out + static_cast<size_t>(row) * columns + column;
        const uint32_t four[4] = {pairs[8 * half + lower], pairs[8 * half + 2 + lower],
                                  pairs[8 * half + 4 + lower], pairs[8 * half + 6 + lower]};
        if (aligned) {
            *reinterpret_cast<uint4*>(to) = make_uint4(four[0], four[1], four[2], four[3]);
        } else {
#pragma unroll
            for (uint32_t k = 0; k < 8; k++)
                if (column + k < columns)
                    to[k] = static_cast<uint16_t>(four[k / 2] >> (16 * (k % 2)));
        }
    }
}

// Turns exponents into distances, escapes into zero bits; one bit for each escape.
__device__ __forceinline__ uint32_t take_escapes(uint32_t base,
                                                 uint32_t (&pairs)[FRAGMENTS * PAIRS]) {
    uint32_t escaped = 0;
#pragma unroll
    for (uint32_t i = 0; i < FRAGMENTS * PAIRS; i++) {
        const uint32_t low = ((pairs[i] >> 7) & 255) - base;
        const uint32_t high = ((pairs[i] >> 23) & 255) - base;
        escaped |= static_cast<uint32_t>(low >= WINDOW) << (2 * i);
        escaped |= static_cast<uint32_t>(high >= WINDOW) << (2 * i + 1);
        pairs[i] = (low < WINDOW ? (pairs[i] & 0x807f) | low << 7 : 0) |
                   (high < WINDOW ? (pairs[i] & 0x807f0000) | high << 23 : 0);
    }
    return escaped;
}

}  // namespace

// Adds to `counts` how many patterns there are of each exponent. Each lane has counters of its
// own, in a bank of its own: most weights have one of few exponents.
extern "C" __global__ void __launch_bounds__(256)
    w12_histogram(const uint16_t* patterns, uint64_t count, uint64_t* counts) {
    __shared__ uint32_t counters[EXPONENTS][LANES];
    const uint32_t lane = threadIdx.x % LANES;
    for (uint32_t i = threadIdx.x; i < EXPONENTS * LANES; i += blockDim.x)
        counters[i / LANES][i % LANES] = 0;
    __syncthreads();
    const auto add = [&](uint32_t pattern) { atomicAdd(&counters[pattern >> 7 & 255][lane], 1u); };

    const uint64_t thread = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint64_t threads = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    const bool aligned = reinterpret_cast<uintptr_t>(patterns) % 16 == 0;
    const uint64_t vectors = aligned ? count / 8 : 0;
    for (uint64_t i = thread; i < vectors; i += threads) {
        const uint4 eight = __ldcs(reinterpret_cast<const uint4*>(patterns) + i);
        const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) add(words[k]), add(words[k] >> 16);
    }
    for (uint64_t i = vectors * 8 + thread; i < count; i += threads) add(patterns[i]);
    __syncthreads();

    for (uint32_t exponent = threadIdx.x; exponent < EXPONENTS; exponent += blockDim.x) {
        uint64_t sum = 0;
        // Every thread begins in another bank.
        for (uint32_t i = 0; i < LANES; i++) sum += counters[exponent][(i + exponent) % LANES];
        if (sum) atomicAdd(reinterpret_cast<unsigned long long*>(counts + exponent), sum);
    }
}

// How many escapes each tile has.
extern "C" __global__ void __launch_bounds__(256)
    w12_count(const uint16_t* patterns, uint32_t rows, uint32_t columns, uint32_t base,
              uint32_t* counts) {
    const Matrix matrix{patterns, rows, columns};
    const uint32_t tile_columns = tiles_of(columns);
    const uint32_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS * tile_columns;
    for (uint32_t tile = blockIdx.x * WARPS + threadIdx.x / LANES; tile < tiles;
         tile += gridDim.x * WARPS) {
        uint32_t pairs[FRAGMENTS * PAIRS];
        load_pairs(matrix, tile / tile_columns, tile % tile_columns, base << 7, pairs);
        const uint32_t count = __reduce_add_sync(ALL_LANES, __popc(take_escapes(base, pairs)));
        if (threadIdx.x % LANES == 0) counts[tile] = count;
    }
}

// Writes tiles and escapes; the escapes of a tile in the order of lanes, then of places.
extern "C" __global__ void __launch_bounds__(256)
    w12_pack(const uint16_t* patterns, uint32_t rows, uint32_t columns, uint32_t base,
             const uint32_t* starts, uint4* tiles_out, uint32_t* escapes) {
    const Matrix matrix{patterns, rows, columns};
    const uint32_t lane = threadIdx.x % LANES;
    const uint32_t tile_columns = tiles_of(columns);
    const uint32_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS * tile_columns;
    for (uint32_t tile = blockIdx.x * WARPS + threadIdx.x / LANES; tile < tiles;
         tile += gridDim.x * WARPS) {
        uint32_t original[FRAGMENTS * PAIRS], pairs[FRAGMENTS * PAIRS];
        load_pairs(matrix, tile / tile_columns, tile % tile_columns, base << 7, original);
#pragma unroll
        for (uint32_t i = 0; i < FRAGMENTS * PAIRS; i++) pairs[i] = original[i];
        const uint32_t escaped = take_escapes(base, pairs);

        uint32_t through = __popc(escaped);  // this lane's and those of lanes below
#pragma unroll
        for (uint32_t step = 1; step < LANES; step *= 2) {
            const uint32_t below = __shfl_up_sync(ALL_LANES, through, step);
            if (lane >= step) through += below;
        }
        uint32_t* to = escapes + starts[tile] + through - __popc(escaped);
#pragma unroll
        for (uint32_t i = 0; i < 2 * FRAGMENTS * PAIRS; i++)
            if (escaped >> i & 1) {
                const uint32_t pattern = original[i / 2] >> (16 * (i % 2)) & 0xffff;
                *to++ = pattern << 16 | (i / 8 * 256 + lane * 8 + i % 8);
            }

        uint4 raw0, raw1, code;
        split_fragment(pairs, raw0.x, raw0.y, code.x);
        split_fragment(pairs + 4, raw0.z, raw0.w, code.y);
        split_fragment(pairs + 8, raw1.x, raw1.y, code.z);
        split_fragment(pairs + 12, raw1.z, raw1.w, code.w);
        uint4* out = tiles_out + static_cast<size_t>(tile) * TILE_VECTORS + lane;
        out[0] = raw0;
        out[LANES] = raw1;
        out[2 * LANES] = code;
    }
}

// Writes rows `16 * first_tile_row` and on, `rows` of them, as BF16 to `out`.
extern "C" __global__ void __launch_bounds__(256)
    w12_unpack(const uint4* tiles_in, const uint32_t* starts, const uint32_t* escapes,
               uint32_t first_tile_row, uint32_t rows, uint32_t columns, uint32_t base,
               uint16_t* out) {
    __shared__ Patch patches[WARPS];
    const uint32_t lane = threadIdx.x % LANES;
    const uint32_t tile_columns = tiles_of(columns);
    const uint32_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS * tile_columns;
    for (uint32_t tile = blockIdx.x * WARPS + threadIdx.x / LANES; tile < tiles;
         tile += gridDim.x * WARPS) {
        const size_t source = static_cast<size_t>(first_tile_row) * tile_columns + tile;
        const uint4* in = tiles_in + source * TILE_VECTORS + lane;
        const Lane own{__ldcs(in), __ldcs(in + LANES), __ldcs(in + 2 * LANES)};
        const uint32_t* start = starts + source;
        const uint32_t first = __ldg(start), count = __ldg(start + 1) - first;

        uint32_t pairs[FRAGMENTS * PAIRS];
        join_tile(own, Heads{0, 0}, pairs);
#pragma unroll
        for (uint32_t i = 0; i < FRAGMENTS * PAIRS; i++) pairs[i] += base * EXPONENT_STEP;
        if (count)
            patch_tile(
                patches[threadIdx.x / LANES], escapes, start, count,
                lane < count ? __ldg(escapes + first + lane) : 0,
                [](uint32_t pattern) { return pattern; }, pairs);
        store_pairs(out, rows, columns, tile / tile_columns, tile % tile_columns, pairs);
    }
}
