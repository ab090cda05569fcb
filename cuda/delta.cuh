// A chunk next to the same chunk of its base. Which table and how many raw bits an element has
// follows from the base alone. The twin of rust/chunk/delta.rs and rust/planes/delta.rs.
#pragma once

#include "planes.cuh"

// The parts of an element that the base decides.
struct Relative {
    uint64_t old;
    uint32_t of;
};

__device__ __forceinline__ Relative relate(const Delta& delta, const uint8_t* base, uint32_t i) {
    const uint32_t element_bytes = 1u << delta.element_log2;
    const uint32_t kept = 8 * element_bytes - delta.dropped_bits;
    const uint8_t* from = base + static_cast<uint64_t>(i) * element_bytes;
    uint64_t word;
    if (reinterpret_cast<uintptr_t>(base) % element_bytes == 0) {
        word = element_bytes == 1   ? *from
               : element_bytes == 2 ? *reinterpret_cast<const uint16_t*>(from)
               : element_bytes == 4 ? *reinterpret_cast<const uint32_t*>(from)
                                    : *reinterpret_cast<const uint64_t*>(from);
    } else {
        word = load_bytes(from, element_bytes);
    }
    const uint64_t old = (word >> delta.dropped_bits) & low_mask(kept);
    const uint32_t key =
        static_cast<uint32_t>((old & low_mask(kept - 1)) >> delta.key_shift) & 0xff;
    uint32_t of = 0;
    for (uint32_t next = 1; next < delta.classes; next++) of += delta.of[next].first_key <= key;
    return {old, of};
}

__device__ __forceinline__ uint64_t join(const Delta& delta, uint64_t symbol, uint32_t raw_bits,
                                         uint64_t raw, uint64_t old, uint32_t relation) {
    const uint32_t kept = 8 * (1u << delta.element_log2) - delta.dropped_bits;
    const uint64_t magnitude = low_mask(kept - 1);
    const uint64_t word = symbol << raw_bits | raw;
    if (relation == RELATION_INTEGER) return (word + old) & low_mask(kept);
    uint64_t sign, v;
    if (relation == RELATION_CONTEXT) {
        sign = symbol & 1;
        v = symbol >> 1 << raw_bits | raw;
    } else {
        const uint64_t sum = (word + (old & magnitude)) & low_mask(kept);
        sign = sum >> (kept - 1);
        v = sum ^ (0 - sign);
    }
    return ((sign << (kept - 1)) ^ (old & ~magnitude)) | (v & magnitude);
}

// Decodes a payload; false if the model cannot have written it.
__device__ inline bool decode_delta(const uint8_t* plan, const Delta& delta, const Chunk& chunk) {
    const uint32_t lane = lane_id();
    const uint32_t below = (1u << lane) - 1;
    const uint8_t* payload = reinterpret_cast<const uint8_t*>(chunk.payload);
    const uint8_t* base = reinterpret_cast<const uint8_t*>(chunk.base);
    const uint32_t element_bytes = 1u << delta.element_log2;
    const uint32_t count = chunk.bytes >> delta.element_log2;
    const uint32_t kept = 8 * element_bytes - delta.dropped_bits;
    const uint32_t low_bytes = delta.least_raw_bits / 8;
    const uint32_t escape_bytes = (kept - delta.least_raw_bits + 7) / 8;

    uint64_t string_bits = 0;
    for (uint32_t i = lane; i < count; i += 32)
        string_bits += delta.of[relate(delta, base, i).of].raw_bits - 8 * low_bytes;
    string_bits = warp_sum(string_bits);

    Cursor cursor{payload, chunk.payload_bytes, 0, true};
    const uint32_t states = cursor.take(STATES_BYTES);
    const uint32_t head = cursor.take(HEAD_BYTES);
    if (!cursor.good) return false;
    const uint32_t stream_bytes = load_word(payload + head);
    const uint32_t escapes = load_word(payload + head + 4);
    const uint32_t low = cursor.take(static_cast<uint64_t>(count) * low_bytes);
    const uint32_t string = cursor.take((string_bits + 7) / 8);
    const uint32_t stream = cursor.take(stream_bytes);
    const uint32_t escaped_at = cursor.take(static_cast<uint64_t>(escapes) * escape_bytes);
    if (chunk.flags & CHUNK_ALIGNED) cursor.align();
    if (!cursor.good || cursor.position != chunk.payload_bytes) return false;
    if (string_bits % 8 && payload[string + string_bits / 8] >> (string_bits % 8)) return false;

    bool good = true;
    uint32_t state[2];
    for (uint32_t half = 0; half < 2; half++) {
        const uint32_t of_lane = lane + 32 * half;
        state[half] = payload[states + of_lane] | payload[states + LANES + of_lane] << 8;
        good &= state[half] >= STATE_LOW;
    }
    if (!__all_sync(ALL_LANES, good)) return false;

    const Slot* const tables =
        reinterpret_cast<const Slot*>(plan + static_cast<uint64_t>(delta.table) * ALIGNMENT);
    const Output out{reinterpret_cast<uint8_t*>(chunk.out), 0, 0, nullptr};
    uint32_t used = 0, escapes_used = 0;
    uint64_t position = 0;
    for (uint32_t group = 0; group < count; group += LANES) {
        Relative relative[2];
        bool active[2];
        const Slot* table[2];
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t i = group + 32 * half + lane;
            active[half] = i < count;
            relative[half] = active[half] ? relate(delta, base, i) : Relative{0, 0};
            table[half] = tables + relative[half].of * SLOTS;
        }
        const Symbols symbols = step(state, table, active, payload + stream, stream_bytes, used);
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t i = group + 32 * half + lane;
            const DeltaClass& of = delta.of[relative[half].of];
            const uint32_t in_string = active[half] ? of.raw_bits - 8 * low_bytes : 0;
            uint32_t total;
            const uint64_t at_bit = position + exclusive_sum(in_string, total);
            position += total;
            const bool escaped = active[half] && symbols.slot[half].escape;
            const uint32_t escaping = __ballot_sync(ALL_LANES, escaped);
            const uint32_t rank = escapes_used + __popc(escaping & below);
            escapes_used += __popc(escaping);
            if (!active[half]) continue;
            uint64_t symbol = of.base + symbols.slot[half].symbol;
            if (escaped) {
                symbol = 0;
                if (rank < escapes)
                    for (uint32_t byte = 0; byte < escape_bytes; byte++)
                        symbol |= static_cast<uint64_t>(payload[escaped_at + byte * escapes + rank])
                                  << (8 * byte);
                good &= symbol <= low_mask(kept - of.raw_bits);
            }
            uint64_t raw =
                in_string ? load_bits(payload + string, at_bit, in_string) << (8 * low_bytes) : 0;
            for (uint32_t byte = 0; byte < low_bytes; byte++)
                raw |= static_cast<uint64_t>(payload[low + byte * count + i]) << (8 * byte);
            const uint64_t x =
                join(delta, symbol, of.raw_bits, raw, relative[half].old, of.relation);
            out.put(i * element_bytes, x << delta.dropped_bits, element_bytes);
        }
    }
    good &= used == stream_bytes && escapes_used == escapes;
    good &= state[0] == STATE_LOW && state[1] == STATE_LOW;
    return __all_sync(ALL_LANES, good);
}
