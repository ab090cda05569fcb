// Any model, plane by plane: one warp decodes one payload, 64 lanes as two states per thread.
// Thread t has the elements whose numbers are t modulo 32, from the first plane to the last, in
// registers: 256 elements at a time. Tables are read through the cache. The twin of
// rust/chunk/planes.rs.
#pragma once

#include "escapes.cuh"

// Elements of a batch that a thread holds.
constexpr uint32_t BATCH = 8;

// What a warp knows of one plane of the payload.
struct PlaneRoom {
    // Of a raw plane: where its sub-block begins. Of a coded one: where its stream begins.
    uint32_t position;
    uint32_t stream_bytes, used;
    Escapes escapes;
    // How many escapes have been taken.
    uint32_t escapes_used;
    uint16_t states[LANES];
};

struct PlanesRoom {
    PlaneRoom plane[MAX_PLANES];
};

// Where decoded bytes go: one after the other, or to their places in records.
struct Output {
    uint8_t* bytes;
    // 0: one after the other.
    uint32_t record_bytes;
    uint32_t class_bytes;
    const uint16_t* positions;

    __device__ __forceinline__ uint8_t* at(uint32_t i) const {
        if (record_bytes == 0) return bytes + i;
        return bytes + static_cast<uint64_t>(i / class_bytes) * record_bytes +
               positions[i % class_bytes];
    }
    __device__ __forceinline__ void put(uint32_t i, uint64_t value, uint32_t count) const {
        if (record_bytes == 0 && reinterpret_cast<uintptr_t>(bytes + i) % count == 0) {
            if (count == 1) bytes[i] = static_cast<uint8_t>(value);
            if (count == 2) *reinterpret_cast<uint16_t*>(bytes + i) = static_cast<uint16_t>(value);
            if (count == 4) *reinterpret_cast<uint32_t*>(bytes + i) = static_cast<uint32_t>(value);
            if (count == 8) *reinterpret_cast<uint64_t*>(bytes + i) = value;
            return;
        }
        for (uint32_t byte = 0; byte < count; byte++)
            *at(i + byte) = static_cast<uint8_t>(value >> (8 * byte));
    }
};

__device__ __forceinline__ uint32_t raw_bytes(uint32_t count, uint32_t width) {
    return count * (width / 8) + (count * (width % 8) + 7) / 8;
}

// One step of a coded plane for the symbols `first + lane` and, in the second half, `first + 32 +
// lane` that `active` says there are. `slots` are those of each symbol's context.
struct Symbols {
    Slot slot[2];
};

__device__ __forceinline__ Slot load_slot(const Slot* table, uint32_t slot) {
    const uint2 words = __ldg(reinterpret_cast<const uint2*>(table) + slot);
    return {static_cast<uint16_t>(words.x), static_cast<uint16_t>(words.x >> 16),
            static_cast<uint16_t>(words.y), static_cast<uint16_t>(words.y >> 16)};
}

// Takes the two states of a thread one symbol further; `used` counts the bytes of the stream that
// have been taken, also those that are not there.
__device__ __forceinline__ Symbols step(uint32_t state[2], const Slot* const table[2],
                                        const bool active[2], const uint8_t* stream,
                                        uint32_t stream_bytes, uint32_t& used) {
    const uint32_t below = (1u << lane_id()) - 1;
    Symbols symbols{};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (active[half]) {
            const Slot slot = load_slot(table[half], state[half] % SLOTS);
            symbols.slot[half] = slot;
            state[half] = slot.frequency * (state[half] / SLOTS) + slot.offset;
        }
        const bool takes = active[half] && state[half] < STATE_LOW;
        const uint32_t takers = __ballot_sync(ALL_LANES, takes);
        if (takes) {
            const uint32_t at = used + __popc(takers & below);
            state[half] = state[half] << 8 | (at < stream_bytes ? stream[at] : 0);
        }
        used += __popc(takers);
    }
    return symbols;
}

__device__ __forceinline__ int list_entry(const uint8_t* plan, uint32_t offset, uint64_t i) {
    return offset ? reinterpret_cast<const int8_t*>(plan +
                                                    static_cast<uint64_t>(offset) * ALIGNMENT)[i]
                  : 0;
}

// What element `i` of the tensor has from its row and column.
struct Line {
    uint64_t offset;
    uint32_t flip;
    uint32_t context;
};

__device__ inline Line line_of(const uint8_t* plan, const Scale& scale, uint64_t i) {
    const bool small = (i | scale.columns) >> 32 == 0;
    const uint64_t row =
        small ? static_cast<uint32_t>(i) / static_cast<uint32_t>(scale.columns) : i / scale.columns;
    const uint64_t column = i - row * scale.columns;
    const int64_t offset =
        list_entry(plan, scale.list[0], row) + list_entry(plan, scale.list[1], column);
    return {static_cast<uint64_t>(offset) << scale.shift,
            static_cast<uint32_t>(list_entry(plan, scale.list[2], row) ^
                                  list_entry(plan, scale.list[3], column)),
            static_cast<uint32_t>(list_entry(plan, scale.list[4], row) +
                                  list_entry(plan, scale.list[5], column))};
}

// A payload that is being taken apart from front to back.
struct Cursor {
    const uint8_t* payload;
    uint32_t end;
    uint32_t position;
    bool good;

    // Begin of the next `count` bytes, if there are so many.
    __device__ __forceinline__ uint32_t take(uint64_t count) {
        const uint32_t begin = position;
        good = good && count <= end - position;
        if (good) position += static_cast<uint32_t>(count);
        return begin;
    }
    __device__ __forceinline__ void align() {
        if (!good) return;
        const uint32_t begin = position;
        take(aligned(position) - position);
        good = good && is_padding(payload, begin, position);
    }
};

// Decodes a payload of a model into `bytes` bytes; false if the model cannot have written it.
__device__ inline bool decode_planes(const uint8_t* plan, const Model& model,
                                     const uint8_t* payload, uint32_t payload_bytes, uint32_t bytes,
                                     uint64_t first, const Output out, PlanesRoom& room) {
    const uint32_t lane = lane_id();
    const uint32_t element_bytes = 1u << model.element_log2;
    const uint32_t element_bits = 8 * element_bytes;
    const uint32_t phase = model.phase;
    const uint32_t count = bytes < phase ? 0 : (bytes - phase) >> model.element_log2;
    const uint32_t blocks = (count + SUB_BLOCK - 1) / SUB_BLOCK;
    const bool trailing = model.flags & MODEL_TRAILING_ZEROS;
    const Scale* scale =
        model.flags & MODEL_SCALED
            ? reinterpret_cast<const Scale*>(plan + static_cast<uint64_t>(model.scale) * ALIGNMENT)
            : nullptr;
    const bool sign_is_last = model.sign_position == 0;
    const uint32_t last = model.planes - 1;

    // The parts.
    Cursor cursor{payload, payload_bytes, 0, true};
    const uint32_t heads = cursor.take(static_cast<uint64_t>(model.coded) * HEAD_BYTES);
    const uint32_t zeros = cursor.take(trailing ? blocks : 0);
    const uint32_t edge_bytes = bytes - count * element_bytes;
    const uint32_t edges = cursor.take(edge_bytes);
    cursor.align();
    const uint32_t states = cursor.take(static_cast<uint64_t>(model.coded) * STATES_BYTES);
    if (!cursor.good) return false;
    const uint32_t last_width = model.plane[last].width;
    uint32_t last_raw_bytes = 0;
    if (trailing) {
        bool good = true;
        for (uint32_t block = lane; block < blocks; block += 32) {
            const uint32_t missing = payload[zeros + block];
            const uint32_t size = min(count - block * SUB_BLOCK, SUB_BLOCK);
            good &= missing + sign_is_last <= last_width;
            if (good) last_raw_bytes += raw_bytes(size, last_width - missing);
        }
        if (!__all_sync(ALL_LANES, good)) return false;
        last_raw_bytes = static_cast<uint32_t>(warp_sum(last_raw_bytes));
    }
    __syncwarp();
    for (uint32_t p = 0; p < model.planes; p++) {
        if (model.plane[p].mode != RAW) continue;
        const uint32_t width = model.plane[p].width;
        const uint64_t whole =
            static_cast<uint64_t>(count / SUB_BLOCK) * raw_bytes(SUB_BLOCK, width);
        const uint64_t size =
            trailing && p == last ? last_raw_bytes : whole + raw_bytes(count % SUB_BLOCK, width);
        const uint32_t begin = cursor.take(size);
        cursor.align();
        if (lane == 0) room.plane[p].position = begin;
    }
    bool good = true;
    uint32_t coded = 0;
    for (uint32_t p = 0; p < model.planes && cursor.good; p++) {
        const Plane& plane = model.plane[p];
        if (plane.mode != CODED && plane.mode != CONTEXTS) continue;
        const uint32_t stream_bytes = load_word(payload + heads + coded * HEAD_BYTES);
        const uint32_t escapes = load_word(payload + heads + coded * HEAD_BYTES + 4);
        PlaneRoom& mine = room.plane[p];
        const uint32_t stream = cursor.take(stream_bytes);
        cursor.align();
        if (!cursor.good || escapes > count || (escapes && !plane.escape)) return false;
        Escapes found;
        uint32_t end;
        if (!read_escapes(payload, payload_bytes, cursor.position, escapes, plane.width, found,
                          end))
            return false;
        cursor.position = end;
        if (lane == 0) {
            mine.position = stream;
            mine.stream_bytes = stream_bytes;
            mine.used = 0;
            mine.escapes = found;
            mine.escapes_used = 0;
        }
        const uint8_t* of_plane = payload + states + coded * STATES_BYTES;
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t of_lane = lane + 32 * half;
            const uint32_t state = of_plane[of_lane] | of_plane[LANES + of_lane] << 8;
            good &= state >= STATE_LOW;
            mine.states[of_lane] = static_cast<uint16_t>(state);
        }
        coded++;
    }
    if (!cursor.good || cursor.position != payload_bytes) return false;
    if (!__all_sync(ALL_LANES, good)) return false;
    __syncwarp();

    for (uint32_t i = lane; i < edge_bytes; i += 32) {
        const uint32_t head = min(phase, bytes);
        *out.at(i < head ? i : i + count * element_bytes) = payload[edges + i];
    }

    for (uint32_t block = 0; block < blocks; block++) {
        const uint32_t start = block * SUB_BLOCK;
        const uint32_t size = min(count - start, SUB_BLOCK);
        const uint32_t missing = trailing ? payload[zeros + block] : 0;
        for (uint32_t batch = 0; batch < size; batch += 32 * BATCH) {
            uint64_t words[BATCH] = {};
            for (uint32_t p = 0; p < model.planes; p++) {
                const Plane& plane = model.plane[p];
                const uint32_t width = plane.width;
                PlaneRoom& mine = room.plane[p];
                if (plane.mode == CONSTANT) {
#pragma unroll
                    for (uint32_t j = 0; j < BATCH; j++)
                        words[j] = (width == 64 ? 0 : words[j] << width) | plane.value;
                } else if (plane.mode == RAW) {
                    const uint32_t less = p == last ? missing : 0;
                    const uint32_t stored = width - less;
                    const uint8_t* raw = payload + mine.position;
                    const uint32_t whole = stored / 8, rest = stored % 8;
#pragma unroll
                    for (uint32_t j = 0; j < BATCH; j++) {
                        const uint32_t i = batch + 32 * j + lane;
                        uint64_t field = 0;
                        if (i < size) {
                            for (uint32_t byte = 0; byte < whole; byte++)
                                field |= static_cast<uint64_t>(raw[byte * size + i]) << (8 * byte);
                            if (rest)
                                field |= load_bits(raw + whole * size,
                                                   static_cast<uint64_t>(i) * rest, rest)
                                         << (8 * whole);
                        }
                        if (less) {
                            const uint64_t sign = sign_is_last ? field & 1 : 0;
                            const uint64_t above = sign_is_last ? field & ~1ull : field;
                            field = (less == 64 ? 0 : above << less) | sign;
                        }
                        words[j] = (width == 64 ? 0 : words[j] << width) | field;
                    }
                } else {
                    uint32_t state[2] = {mine.states[lane], mine.states[32 + lane]};
                    const Slot* const tables = reinterpret_cast<const Slot*>(
                        plan + static_cast<uint64_t>(plane.table) * ALIGNMENT);
                    uint32_t used = mine.used, escapes_used = mine.escapes_used;
                    const uint32_t below = (1u << lane) - 1;
#pragma unroll
                    for (uint32_t j = 0; j < BATCH; j += 2) {
                        bool active[2];
                        const Slot* table[2] = {tables, tables};
#pragma unroll
                        for (uint32_t half = 0; half < 2; half++) {
                            const uint32_t i = batch + 32 * (j + half) + lane;
                            active[half] = i < size;
                            if (plane.mode == CONTEXTS && active[half]) {
                                uint32_t context;
                                if (plane.source == 0) {
                                    context = scale
                                                  ? line_of(plan, *scale, first + start + i).context
                                                  : 0;
                                } else {
                                    const uint32_t unused = 32 - plane.source_width;
                                    const uint32_t symbol = static_cast<uint32_t>(
                                        words[j + half] >> (plane.source - 1));
                                    const int above =
                                        static_cast<int>((symbol - plane.source_first) << unused) >>
                                        unused;
                                    context = static_cast<uint32_t>(max(above, 0));
                                }
                                table[half] += min(context, plane.contexts - 1u) * SLOTS;
                            }
                        }
                        const Symbols symbols = step(state, table, active, payload + mine.position,
                                                     mine.stream_bytes, used);
#pragma unroll
                        for (uint32_t half = 0; half < 2; half++) {
                            const bool escaped = active[half] && symbols.slot[half].escape;
                            uint32_t symbol = symbols.slot[half].symbol;
                            const uint32_t escaping = __ballot_sync(ALL_LANES, escaped);
                            if (escaped) {
                                const uint32_t at = escapes_used + __popc(escaping & below);
                                symbol = mine.escapes.symbol(at);
                            }
                            escapes_used += __popc(escaping);
                            words[j + half] = words[j + half] << width | symbol;
                        }
                    }
                    __syncwarp();
                    mine.states[lane] = static_cast<uint16_t>(state[0]);
                    mine.states[32 + lane] = static_cast<uint16_t>(state[1]);
                    mine.used = used;
                    mine.escapes_used = escapes_used;
                    __syncwarp();
                }
            }
            // Signs back to the top, offsets added.
            const uint32_t p = model.sign_position;
            const uint64_t magnitude = low_mask(element_bits - 1);
#pragma unroll
            for (uint32_t j = 0; j < BATCH; j++) {
                const uint32_t i = batch + 32 * j + lane;
                if (i >= size) continue;
                const uint64_t y = words[j];
                uint64_t sign = y >> p & 1;
                uint64_t v = (y >> p >> 1) << p | (y & low_mask(p));
                if (scale) {
                    const Line line = line_of(plan, *scale, first + start + i);
                    v = (v + line.offset) & magnitude;
                    sign ^= line.flip;
                }
                out.put(phase + (start + i) * element_bytes, sign << (element_bits - 1) | v,
                        element_bytes);
            }
        }
        // On to the next sub-block. Bits of the last byte that are not used are zero.
        __syncwarp();
        for (uint32_t p = 0; p < model.planes; p++) {
            if (model.plane[p].mode != RAW) continue;
            const uint32_t stored = model.plane[p].width - (p == last ? missing : 0);
            const uint32_t end = room.plane[p].position + raw_bytes(size, stored);
            const uint32_t used = size * (stored % 8) % 8;
            if (used && payload[end - 1] >> used) return false;
            __syncwarp();
            if (lane == 0) room.plane[p].position = end;
        }
        __syncwarp();
    }

    for (uint32_t p = 0; p < model.planes; p++) {
        if (model.plane[p].mode != CODED && model.plane[p].mode != CONTEXTS) continue;
        const PlaneRoom& mine = room.plane[p];
        good &= mine.used == mine.stream_bytes && mine.escapes_used == mine.escapes.count;
        good &= mine.states[lane] == STATE_LOW && mine.states[32 + lane] == STATE_LOW;
    }
    return __all_sync(ALL_LANES, good);
}
