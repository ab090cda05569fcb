// The hash that names the bytes of a whole tensor, XXH3-128: is a base the one that a stream was
// made from? Two kernels, and no step that waits for the host:
//
//   content_sums    per 1024 bytes: the sums of a block, which depend on its bytes alone
//   content_check   one warp: the chain from block to block, the last bytes, the comparison
//
// Bytes are at least 241: shorter ones are hashed in another way, by the host.
#include "bits.cuh"

constexpr uint32_t BLOCK_BYTES = 1024;
constexpr uint32_t STRIPE_BYTES = 64;
constexpr uint32_t LANES_OF_HASH = 8;
constexpr uint32_t SUM_WARPS = 4;
constexpr uint64_t PRIME32_1 = 0x9E3779B1, PRIME32_2 = 0x85EBCA77, PRIME32_3 = 0xC2B2AE3D;
constexpr uint64_t PRIME64_1 = 0x9E3779B185EBCA87ull, PRIME64_2 = 0xC2B2AE3D27D4EB4Full;
constexpr uint64_t PRIME64_3 = 0x165667B19E3779F9ull, PRIME64_4 = 0x85EBCA77C2B2AE63ull;
constexpr uint64_t PRIME64_5 = 0x27D4EB2F165667C5ull;

constexpr uint32_t SECRET_BYTES = 192;
__device__ const uint8_t SECRET[SECRET_BYTES] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

__device__ __forceinline__ uint64_t secret(uint32_t at) { return load_bytes(SECRET + at, 8); }

// What a lane adds for 8 of the 64 bytes of a stripe: `mine`, its neighbour's are `other`.
__device__ __forceinline__ uint64_t stripe_part(uint64_t mine, uint64_t other, uint64_t key) {
    const uint64_t keyed = mine ^ key;
    return other + (keyed & 0xffffffff) * (keyed >> 32);
}

// The sums over stripes `0..stripes`, of at most 16; lanes 8 apart have the same.
__device__ __forceinline__ uint64_t sum_stripes(const uint8_t* from, uint32_t stripes) {
    const uint32_t lane = lane_id() % LANES_OF_HASH;
    const bool wide = reinterpret_cast<uintptr_t>(from) % 8 == 0;
    uint64_t sum = 0;
    for (uint32_t batch = 0; batch < stripes; batch += 4) {
        const uint32_t stripe = batch + lane_id() / LANES_OF_HASH;
        const uint8_t* at = from + stripe * STRIPE_BYTES + 8 * lane;
        uint64_t word = 0;
        if (stripe < stripes)
            word = wide ? *reinterpret_cast<const uint64_t*>(at) : load_bytes(at, 8);
        const uint64_t other = __shfl_xor_sync(ALL_LANES, word, 1);
        if (stripe < stripes) sum += stripe_part(word, other, secret(8 * (stripe + lane)));
    }
    sum += __shfl_xor_sync(ALL_LANES, sum, 8);
    return sum + __shfl_xor_sync(ALL_LANES, sum, 16);
}

extern "C" __global__ void __launch_bounds__(32 * SUM_WARPS, 1)
    content_sums(const uint8_t* data, uint64_t* sums, uint64_t blocks) {
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * SUM_WARPS;
    for (uint64_t block = blockIdx.x * SUM_WARPS + threadIdx.x / 32; block < blocks;
         block += step) {
        const uint64_t sum = sum_stripes(data + block * BLOCK_BYTES, BLOCK_BYTES / STRIPE_BYTES);
        if (lane_id() < LANES_OF_HASH) sums[block * LANES_OF_HASH + lane_id()] = sum;
    }
}

// Four of the eight lanes' pairs, multiplied and folded; lanes 2p and 2p + 1 have pair p.
__device__ __forceinline__ uint64_t merge(uint64_t sum, uint32_t secret_at, uint64_t start) {
    const uint64_t mine = sum ^ secret(secret_at + 8 * (lane_id() % LANES_OF_HASH));
    const uint64_t other = __shfl_xor_sync(ALL_LANES, mine, 1);
    uint64_t folded = (mine * other) ^ __umul64hi(mine, other);
    folded += __shfl_xor_sync(ALL_LANES, folded, 2);
    folded += __shfl_xor_sync(ALL_LANES, folded, 4);
    uint64_t hash = start + folded;
    hash ^= hash >> 37;
    hash *= 0x165667919E3779F9ull;
    return hash ^ hash >> 32;
}

extern "C" __global__ void __launch_bounds__(32, 1)
    content_check(const uint8_t* data, uint64_t bytes, const uint64_t* sums, uint64_t low,
                  uint64_t high, uint32_t tensor, Status* status) {
    const uint32_t lane = lane_id() % LANES_OF_HASH, group = lane_id() / LANES_OF_HASH;
    const uint64_t first[LANES_OF_HASH] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3,
                                           PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
    uint64_t sum = first[0];
#pragma unroll
    for (uint32_t i = 1; i < LANES_OF_HASH; i++)
        if (lane == i) sum = first[i];
    const uint64_t key = secret(SECRET_BYTES - STRIPE_BYTES + 8 * lane);
    // The last bytes are a block of their own, even where they fill one.
    const uint64_t blocks = (bytes - 1) / BLOCK_BYTES;
    uint64_t next = group < blocks ? sums[lane_id()] : 0;
    for (uint64_t batch = 0; batch < blocks; batch += 4) {
        const uint64_t now = next;
        if (batch + 4 + group < blocks) next = sums[(batch + 4) * LANES_OF_HASH + lane_id()];
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint64_t of_block = __shfl_sync(ALL_LANES, now, i * LANES_OF_HASH + lane);
            if (batch + i >= blocks) continue;
            sum += of_block;
            sum = (sum ^ sum >> 47 ^ key) * PRIME32_1;
        }
    }
    const uint8_t* const rest = data + blocks * BLOCK_BYTES;
    const uint32_t left = static_cast<uint32_t>(bytes - blocks * BLOCK_BYTES);
    sum += sum_stripes(rest, (left - 1) / STRIPE_BYTES);
    const uint64_t word = load_bytes(data + bytes - STRIPE_BYTES + 8 * lane, 8);
    const uint64_t other = __shfl_xor_sync(ALL_LANES, word, 1);
    sum += stripe_part(word, other, secret(SECRET_BYTES - STRIPE_BYTES - 7 + 8 * lane));

    const uint64_t found_low = merge(sum, 11, bytes * PRIME64_1);
    const uint64_t found_high = merge(sum, SECRET_BYTES - STRIPE_BYTES - 11, ~(bytes * PRIME64_2));
    if (lane_id() == 0 && (found_low != low || found_high != high) &&
        atomicCAS(&status->error, 0u, static_cast<uint32_t>(ERROR_CONTENT)) == 0) {
        status->tensor = tensor;
        status->number = 0;
    }
}
