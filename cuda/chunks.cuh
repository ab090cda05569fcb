// A chunk stored in any way: one warp decodes it and compares its hash. The twin of
// rust/container/stream.rs and rust/chunk/records.rs.
#pragma once

#include "delta.cuh"

// Copies `count` bytes that a warp reads and writes 16 at a time where both sides are aligned.
__device__ inline void copy(uint8_t* to, const uint8_t* from, uint32_t count) {
    uint32_t done = 0;
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 == 0) {
        for (uint32_t i = lane_id(); i < count / 16; i += 32)
            reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
        done = count / 16 * 16;
    }
    for (uint32_t i = done + lane_id(); i < count; i += 32) to[i] = from[i];
}

__device__ inline bool decode_raw(const Output out, const uint8_t* payload, uint32_t payload_bytes,
                                  uint32_t bytes) {
    if (payload_bytes < bytes || payload_bytes - bytes >= ALIGNMENT) return false;
    if (!is_padding(payload, bytes, payload_bytes)) return false;
    if (out.record_bytes == 0) {
        copy(out.bytes, payload, bytes);
    } else {
        for (uint32_t i = lane_id(); i < bytes; i += 32) *out.at(i) = payload[i];
    }
    return true;
}

__device__ inline void fill(uint8_t* to, const uint8_t* pattern, uint32_t count) {
    uint32_t done = 0;
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(pattern)) % 16 == 0) {
        const uint4 words = *reinterpret_cast<const uint4*>(pattern);
        for (uint32_t i = lane_id(); i < count / 16; i += 32)
            reinterpret_cast<uint4*>(to)[i] = words;
        done = count / 16 * 16;
    }
    for (uint32_t i = done + lane_id(); i < count; i += 32) to[i] = pattern[i % 16];
}

__device__ inline bool decode_records(const uint8_t* plan, const Records& records,
                                      const Chunk& chunk, PlanesRoom& room) {
    const uint32_t lane = lane_id();
    const uint8_t* payload = reinterpret_cast<const uint8_t*>(chunk.payload);
    uint8_t* const out = reinterpret_cast<uint8_t*>(chunk.out);
    const uint32_t record = records.record_bytes;
    const uint32_t into = static_cast<uint32_t>(chunk.first % record);
    const uint32_t before = min(into ? record - into : 0, chunk.bytes);
    const uint32_t whole = (chunk.bytes - before) / record;
    const uint32_t edge_bytes = chunk.bytes - whole * record;
    Cursor cursor{payload, chunk.payload_bytes, 0, true};
    const uint32_t lengths = cursor.take(4 * records.classes);
    const uint32_t storages = cursor.take(records.classes);
    const uint32_t edges = cursor.take(edge_bytes);
    cursor.align();
    if (!cursor.good) return false;
    for (uint32_t i = lane; i < edge_bytes; i += 32)
        out[i < before ? i : i + whole * record] = payload[edges + i];
    for (uint32_t of = 0; of < records.classes; of++) {
        const RecordsClass& part = records.of[of];
        const uint32_t length = load_word(payload + lengths + 4 * of);
        const uint32_t storage = payload[storages + of];
        const uint32_t begin = cursor.take(length);
        if (!cursor.good || length % ALIGNMENT || storage > 1 || (storage == 1 && !part.model))
            return false;
        const Output to{out + before, record, part.bytes,
                        reinterpret_cast<const uint16_t*>(
                            plan + static_cast<uint64_t>(part.positions) * ALIGNMENT)};
        const uint32_t bytes = whole * part.bytes;
        const bool good =
            storage == 0 ? decode_raw(to, payload + begin, length, bytes)
                         : decode_planes(plan,
                                         *reinterpret_cast<const Model*>(
                                             plan + static_cast<uint64_t>(part.model) * ALIGNMENT),
                                         payload + begin, length, bytes, 0, to, room);
        if (!good) return false;
        __syncwarp();
    }
    return cursor.position == chunk.payload_bytes;
}

__device__ inline Error decode_chunk(const uint8_t* plan, const Chunk& chunk, PlanesRoom& room) {
    const uint8_t* payload = reinterpret_cast<const uint8_t*>(chunk.payload);
    const uint8_t* section = plan + static_cast<uint64_t>(chunk.model) * ALIGNMENT;
    uint8_t* const bytes = reinterpret_cast<uint8_t*>(chunk.out);
    const Output out{bytes, 0, 0, nullptr};
    bool good = true;
    switch (chunk.kind) {
        case CHUNK_RAW:
            good = decode_raw(out, payload, chunk.payload_bytes, chunk.bytes);
            break;
        case CHUNK_CONSTANT:
            good = chunk.payload_bytes == ALIGNMENT;
            if (good) fill(bytes, payload, chunk.bytes);
            break;
        case CHUNK_MODEL:
            good = decode_planes(plan, *reinterpret_cast<const Model*>(section), payload,
                                 chunk.payload_bytes, chunk.bytes, chunk.first, out, room);
            break;
        case CHUNK_RECORDS:
            good = decode_records(plan, *reinterpret_cast<const Records*>(section), chunk, room);
            break;
        case CHUNK_DELTA:
            good = decode_delta(plan, *reinterpret_cast<const Delta*>(section), chunk);
            break;
        case CHUNK_FILL:
            fill(bytes, section, chunk.bytes);
            break;
        case CHUNK_COPY:
            copy(bytes, reinterpret_cast<const uint8_t*>(chunk.base), chunk.bytes);
            break;
        default:
            good = false;
    }
    if (!good) return ERROR_PAYLOAD;
    if (!(chunk.flags & CHUNK_VERIFY)) return ERROR_NONE;
    __syncwarp();
    return hash_of(bytes, chunk.bytes) == chunk.hash ? ERROR_NONE : ERROR_HASH;
}
