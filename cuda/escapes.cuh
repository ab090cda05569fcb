// Escaped symbols of a payload: the smallest one, bits per difference, and how far above the
// smallest each of them is. The twin of rust/planes/escapes.rs.
#pragma once

#include "bits.cuh"

// The smallest symbol and bits per difference come before the differences.
constexpr uint32_t ESCAPES_HEAD = 4;

// Bytes of all parts; there are at most as many escapes as elements in a chunk.
__device__ __forceinline__ uint32_t escapes_bytes(uint32_t count, uint32_t width) {
    return count ? ESCAPES_HEAD + (count * width + 7) / 8 : 0;
}

struct Escapes {
    const uint8_t* differences;
    uint32_t smallest, width, count;

    // Symbol number `i`; 0 past the end.
    __device__ __forceinline__ uint32_t symbol(uint32_t i) const {
        if (i >= count) return 0;
        return smallest + static_cast<uint32_t>(load_bits(differences, i * width, width));
    }
};

// Reads the head of `count` escaped symbols of `symbol_bits` bits at `position` of a payload; `end`
// is where they and the zeros behind them end. False for what no encoder writes; all lanes ask
// together.
__device__ __forceinline__ bool read_escapes(const uint8_t* payload, uint32_t payload_bytes,
                                             uint32_t position, uint32_t count,
                                             uint32_t symbol_bits, Escapes& escapes,
                                             uint32_t& end) {
    escapes = Escapes{payload + position + ESCAPES_HEAD, 0, 0, count};
    end = position;
    if (count == 0) return true;
    if (position > payload_bytes || payload_bytes - position < ESCAPES_HEAD) return false;
    const uint32_t head = load_word(payload + position);
    escapes.smallest = head & 0xffff;
    escapes.width = head >> 16;
    if (escapes.width == 0 || escapes.width > symbol_bits) return false;
    const uint32_t bytes = escapes_bytes(count, escapes.width);
    if (payload_bytes - position < bytes) return false;
    end = aligned(position + bytes);
    if (end > payload_bytes) return false;
    const uint32_t spare = count * escapes.width % 8;
    bool good = spare == 0 || payload[position + bytes - 1] >> spare == 0;
    uint32_t any = 0;
    bool smallest = false;
    for (uint32_t i = lane_id(); i < count; i += 32) {
        const uint32_t difference = escapes.symbol(i) - escapes.smallest;
        good &= (escapes.smallest + difference) >> symbol_bits == 0;
        any |= difference;
        smallest |= difference == 0;
    }
    // No encoder takes more bits than it needs.
    good &= escapes.width == 1 || __reduce_or_sync(ALL_LANES, any) >> (escapes.width - 1) != 0;
    good &= __any_sync(ALL_LANES, smallest) != 0;
    return __all_sync(ALL_LANES, good) && is_padding(payload, position + bytes, end);
}

// The head of escaped symbols: the smallest of all lanes, and the bits of the largest difference.
__device__ inline uint32_t escapes_head(uint32_t smallest, uint32_t largest) {
    for (int step = 16; step; step /= 2) {
        smallest = min(smallest, __shfl_xor_sync(ALL_LANES, smallest, step));
        largest = max(largest, __shfl_xor_sync(ALL_LANES, largest, step));
    }
    const uint32_t most = largest - smallest;
    return smallest | (most ? 32 - __clz(most) : 1) << 16;
}

// Writes `count` symbols, given by their low and high bytes, with zeros up to a multiple of 16.
__device__ inline void write_escapes(uint8_t* to, uint32_t head, const uint8_t* low,
                                     const uint8_t* high, uint32_t count) {
    const uint32_t smallest = head & 0xffff, width = head >> 16;
    for (uint32_t i = lane_id(); i < aligned(escapes_bytes(count, width)); i += 32) {
        if (i < ESCAPES_HEAD) {
            to[i] = static_cast<uint8_t>(head >> (8 * i));
            continue;
        }
        const uint32_t first_bit = 8 * (i - ESCAPES_HEAD);
        uint32_t byte = 0;
        for (uint32_t j = first_bit / width; j < count && j * width < first_bit + 8; j++) {
            const uint32_t difference = (low[j] | (high ? high[j] << 8 : 0)) - smallest;
            const uint32_t at = j * width;
            byte |=
                at < first_bit ? difference >> (first_bit - at) : difference << (at - first_bit);
        }
        to[i] = static_cast<uint8_t>(byte);
    }
}
