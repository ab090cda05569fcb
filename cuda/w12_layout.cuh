// W12: BF16 weights in 12 bits for the products of cuda/w12_linear.cu. A layout of the running
// program, made on the device from decoded weights; no file holds it.
//
// A weight keeps its sign and mantissa as they are, and of its exponent the distance to `base`, 0
// to 15. Weights whose exponent is outside of that window are escapes: they lie in the tile as
// zero bits, and their pattern in a list. 12 bits, not an entropy code, because a product with one
// vector leaves about 5 integer operations for each weight (docs/gpu.md).
//
// A tile is 16 rows of 64 columns, 1536 bytes: three times 16 bytes for each lane of a warp.
//
//     bytes    0..511    raw words of fragments 0 and 1   (16 bytes of lane 0, of lane 1, ...)
//     bytes  512..1023   raw words of fragments 2 and 3
//     bytes 1024..1535   code words of fragments 0 to 3
//
// A fragment is what one `mma.m16n8k16` multiplies: 16 x 16 weights, of which each lane holds four
// pairs. A product does not care for the order of the columns, so they are dealt such that a lane
// has eight neighbouring ones of a row in two fragments, and its inputs are 16-byte loads.
// Lane = 4 * g + t has, in fragment f, in this order:
//
//     pair 0: row g      columns c, c + 1        with c = 32 * (f / 2) + 8 * t + 4 * (f % 2)
//     pair 1: row g + 8  columns c, c + 1
//     pair 2: row g      columns c + 2, c + 3
//     pair 3: row g + 8  columns c + 2, c + 3
//
// Two pairs share a raw word: the first has sign and mantissa where BF16 has them, the second
// likewise but rotated right by 8, which are exactly the bits between. a and b are the pairs, ' is
// for the half in the upper 16 bits:
//
//     31   30   24  23   22   16  15   14   8  7    6    0
//     sa'  mb       sb'  ma'      sa   mb'     sb   ma
//
// The code word holds the eight 4-bit distances, so that those of pairs 0 and 1 lie where raw word
// 0 leaves the exponent's low bits free (bits 7..10 and 23..26, and these rotated by 8), and those
// of pairs 2 and 3 four bits below. One rotation by 4 serves both pairs of a raw word and one by 8
// each second pair: 11 operations for eight weights, with the exponent's upper bits set.
//
// Tiles lie row of tiles by row of tiles, and `starts[tile]` says where the escapes of a tile
// begin; there is one more start than tiles. An escape: the pattern in the upper 16 bits, its place
// in the tile in the lower 10, as `256 * fragment + 8 * lane + 2 * pair + half`. Rows and columns
// that fill up tiles are zero bits and no escapes.
#pragma once

#include "platform.cuh"
#include "w12_instructions.cuh"

namespace w12 {

constexpr uint32_t LANES = 32;
constexpr uint32_t TILE_ROWS = 16;
constexpr uint32_t TILE_COLUMNS = 64;
constexpr uint32_t TILE_WEIGHTS = TILE_ROWS * TILE_COLUMNS;
constexpr uint32_t FRAGMENTS = 4;
constexpr uint32_t PAIRS = 4;  // of a lane in a fragment
constexpr uint32_t TILE_VECTORS = 3 * LANES;
constexpr uint32_t WINDOW = 16;  // exponents

static_assert(sizeof(uint4) == 16, "loads are of 16 bytes");
static_assert(TILE_WEIGHTS * 12 == TILE_VECTORS * sizeof(uint4) * 8, "12 bits for a weight");
static_assert(LANES * FRAGMENTS * PAIRS * 2 == TILE_WEIGHTS, "each weight has one place");

// Of a pair of BF16 patterns: sign and mantissa, and the exponent's low four bits.
constexpr uint32_t KEPT = 0x807f807fu;
constexpr uint32_t DISTANCES = 0x07800780u;
constexpr uint32_t KEPT_TURNED = 0x7f807f80u;
constexpr uint32_t DISTANCES_TURNED = 0x80078007u;
// One in the exponents of a pair.
constexpr uint32_t EXPONENT_STEP = 0x00800080u;

__device__ __forceinline__ uint32_t turn_left_8(uint32_t x) { return __byte_perm(x, 0, 0x2103); }
__device__ __forceinline__ uint32_t turn_right_8(uint32_t x) { return __byte_perm(x, 0, 0x0321); }
__device__ __forceinline__ uint32_t turn_left_4(uint32_t x) { return __funnelshift_l(x, x, 4); }
__device__ __forceinline__ uint32_t turn_right_4(uint32_t x) { return __funnelshift_r(x, x, 4); }

// What is set above the four bits of a distance.
struct Heads {
    uint32_t plain, turned;
};

// The smallest multiple of 16 that is no less than base: exponents with these upper bits differ
// from the true ones by `lift(base)`, 0 to 15, the same for all. Upwards, so that subnormal
// escapes stay exact.
__device__ __forceinline__ uint32_t lift(uint32_t base) { return (0u - base) & 15; }

__device__ __forceinline__ Heads lifted_heads(uint32_t base) {
    const uint32_t plain = (base + lift(base)) * EXPONENT_STEP;
    return {plain, turn_right_8(plain)};
}

// The four pairs of a lane in one fragment, with the upper bits of `heads` in all exponents.
__device__ __forceinline__ void join_fragment(uint32_t raw0, uint32_t raw1, uint32_t code,
                                              Heads heads, uint32_t* pairs) {
    const uint32_t turned = turn_left_4(code);
    pairs[0] = and_or(raw0, KEPT, and_or(code, DISTANCES, heads.plain));
    pairs[2] = and_or(raw1, KEPT, and_or(turned, DISTANCES, heads.plain));
    const uint32_t second = and_or(code, DISTANCES_TURNED, heads.turned);
    const uint32_t fourth = and_or(turned, DISTANCES_TURNED, heads.turned);
    pairs[1] = turn_left_8(and_or(raw0, KEPT_TURNED, second));
    pairs[3] = turn_left_8(and_or(raw1, KEPT_TURNED, fourth));
}

// The inverse, for pairs whose exponents are distances.
__device__ __forceinline__ void split_fragment(const uint32_t* pairs, uint32_t& raw0,
                                               uint32_t& raw1, uint32_t& code) {
    raw0 = (pairs[0] & KEPT) | turn_right_8(pairs[1] & KEPT);
    raw1 = (pairs[2] & KEPT) | turn_right_8(pairs[3] & KEPT);
    code = (pairs[0] & DISTANCES) | turn_right_8(pairs[1] & DISTANCES) |
           turn_right_4((pairs[2] & DISTANCES) | turn_right_8(pairs[3] & DISTANCES));
}

// What a lane holds of a tile.
struct Lane {
    uint4 raw0, raw1, code;
};

__device__ __forceinline__ void join_tile(const Lane& lane, Heads heads,
                                          uint32_t (&pairs)[FRAGMENTS * PAIRS]) {
    join_fragment(lane.raw0.x, lane.raw0.y, lane.code.x, heads, pairs);
    join_fragment(lane.raw0.z, lane.raw0.w, lane.code.y, heads, pairs + 4);
    join_fragment(lane.raw1.x, lane.raw1.y, lane.code.z, heads, pairs + 8);
    join_fragment(lane.raw1.z, lane.raw1.w, lane.code.w, heads, pairs + 12);
}

// Escapes are patched through shared memory: each lane puts its pairs down, one lane for each
// escape overwrites the pattern, and each lane takes its pairs up again. That costs the same for 1
// and for 32 escapes of a tile.
struct Patch {
    uint4 fragments[FRAGMENTS][LANES];
};
static_assert(sizeof(Patch) == TILE_WEIGHTS * 2, "places count halves of words");

// `start` points to where the tile's escapes begin, `escape` is the lane's own of the first 32;
// `pattern_of` says what to write for one.
template <class PatternOf>
__device__ __forceinline__ void patch_tile(Patch& patch, const uint32_t* escapes,
                                           const uint32_t* start, uint32_t count, uint32_t escape,
                                           PatternOf pattern_of,
                                           uint32_t (&pairs)[FRAGMENTS * PAIRS]) {
    const uint32_t lane = threadIdx.x % LANES;
    uint16_t* patterns = reinterpret_cast<uint16_t*>(&patch);
#pragma unroll
    for (uint32_t f = 0; f < FRAGMENTS; f++)
        patch.fragments[f][lane] =
            make_uint4(pairs[4 * f], pairs[4 * f + 1], pairs[4 * f + 2], pairs[4 * f + 3]);
    __syncwarp();
#pragma unroll 1
    for (uint32_t i = lane; i < count; i += LANES) {
        if (i >= LANES) escape = __ldg(escapes + (__ldg(start) + i));
        patterns[escape % TILE_WEIGHTS] = static_cast<uint16_t>(pattern_of(escape >> 16));
    }
    __syncwarp();
#pragma unroll
    for (uint32_t f = 0; f < FRAGMENTS; f++) {
        const uint4 patched = patch.fragments[f][lane];
        pairs[4 * f] = patched.x, pairs[4 * f + 1] = patched.y;
        pairs[4 * f + 2] = patched.z, pairs[4 * f + 3] = patched.w;
    }
}

}  // namespace w12
