// Bit fields, sums over a warp, and the hash of a chunk.
#pragma once

#include "layout.cuh"

__device__ __forceinline__ uint64_t low_mask(uint32_t bits) {
    return bits >= 64 ? ~0ull : (1ull << bits) - 1;
}

__device__ __forceinline__ uint32_t aligned(uint32_t position) {
    return (position + ALIGNMENT - 1) & ~(ALIGNMENT - 1);
}

__device__ __forceinline__ uint32_t lane_id() { return threadIdx.x % 32; }

__device__ __forceinline__ uint64_t warp_sum(uint64_t value) {
    for (int step = 16; step; step /= 2) value += __shfl_xor_sync(ALL_LANES, value, step);
    return value;
}

// Sum over the lanes below this one; `total` is that over all.
__device__ __forceinline__ uint32_t exclusive_sum(uint32_t value, uint32_t& total) {
    uint32_t sum = value;
    for (int step = 1; step < 32; step *= 2) {
        const uint32_t below = __shfl_up_sync(ALL_LANES, sum, step);
        if (lane_id() >= static_cast<uint32_t>(step)) sum += below;
    }
    total = __shfl_sync(ALL_LANES, sum, 31);
    return sum - value;
}

// Bytes `0..count` of a little-endian number.
__device__ __forceinline__ uint64_t load_bytes(const uint8_t* from, uint32_t count) {
    uint64_t value = 0;
    for (uint32_t i = 0; i < count; i++) value |= static_cast<uint64_t>(from[i]) << (8 * i);
    return value;
}

__device__ __forceinline__ uint32_t load_word(const uint8_t* from) {
    return static_cast<uint32_t>(load_bytes(from, 4));
}

// `bits` bits, at most 56, at bit `position` of a bit string; no byte behind the last of them is
// read.
__device__ __forceinline__ uint64_t load_bits(const uint8_t* string, uint64_t position,
                                              uint32_t bits) {
    const uint32_t skip = position % 8;
    const uint32_t bytes = (skip + bits + 7) / 8;
    return (load_bytes(string + position / 8, bytes) >> skip) & low_mask(bits);
}

// The chunk hash, word by word in any order.
struct ChunkHash {
    uint64_t products = 0, sum = 0;

    __device__ __forceinline__ void add(uint32_t low, uint32_t high, uint32_t key_low,
                                        uint32_t key_high) {
        const uint32_t a = low + key_low, b = high + key_high;
        products += static_cast<uint64_t>(a) * b;
        sum += static_cast<uint64_t>(b) << 32 | a;
    }
    __device__ __forceinline__ void add(uint64_t word, uint32_t number) {
        add(static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32),
            HASH_KEY_LOW + number * HASH_STEP_LOW, HASH_KEY_HIGH + number * HASH_STEP_HIGH);
    }
    // The hash of all lanes' words together.
    __device__ __forceinline__ uint64_t finish(uint32_t bytes) const {
        return warp_sum(products) + HASH_MULTIPLIER * (bytes + warp_sum(sum));
    }
};

// The hash of bytes that a warp has written and synchronised.
__device__ inline uint64_t hash_of(const uint8_t* bytes, uint32_t count) {
    ChunkHash hash;
    const bool wide = reinterpret_cast<uintptr_t>(bytes) % 8 == 0;
    for (uint32_t number = lane_id(); number < (count + 7) / 8; number += 32) {
        const uint32_t rest = count - number * 8;
        const uint64_t word = wide && rest >= 8
                                  ? reinterpret_cast<const uint64_t*>(bytes)[number]
                                  : load_bytes(bytes + number * 8, rest < 8 ? rest : 8);
        hash.add(word, number);
    }
    return hash.finish(count);
}

// Remembers the first error of a launch.
__device__ __forceinline__ void report(Status* status, const Chunk& chunk, Error error) {
    if (lane_id() == 0 && error != ERROR_NONE &&
        atomicCAS(&status->error, 0u, static_cast<uint32_t>(error)) == 0) {
        status->tensor = chunk.tensor;
        status->number = chunk.number;
    }
}

// Whether bytes `begin..end` of a payload are zeros; all lanes of a warp ask together.
__device__ __forceinline__ bool is_padding(const uint8_t* payload, uint32_t begin, uint32_t end) {
    bool clean = true;
    for (uint32_t i = begin + lane_id(); i < end; i += 32) clean &= payload[i] == 0;
    return __all_sync(ALL_LANES, clean);
}
