// Encodes tensors of floats as the CPU does at the level `fast`, byte for byte: one coded plane of
// exponents above one raw plane of mantissa and sign. No step waits for the host:
//
//   encode_plan      per tensor: counts of a fixed sample, and the table they give
//   encode_chunks    per chunk: symbols, raw bits, hash; the coder from the end to the beginning;
//                    into scratch memory
//   encode_offsets   per tensor: where each payload begins
//   encode_gather    per chunk: the parts of the payload, one after the other
//   encode_publish   per tensor: the plan by which decode.cu reads what has been encoded
//
// The three in the middle take a range of the chunks: scratch memory is used again by the next.
//
// What the CPU would store in another form is left to it (EncodeModel.state says so), unless the
// tensor has room for a plan: it stays on the device then, in a form that the device can make.
#include "bits.cuh"
#include "table.cuh"

// Elements that a table is made from, and of a run of a sample.
constexpr uint64_t TABLE_ELEMENTS = 1 << 16;
constexpr uint32_t RUN = 128;
// Below this size a tensor is stored raw.
constexpr uint64_t MIN_MODEL_BYTES = 2048;
// A model must take less than 99.5 % of the raw size, in 1/1024.
constexpr uint64_t WORTHWHILE = 1019;
constexpr uint32_t MAX_EXPONENT_BITS = 11;
constexpr uint32_t PLAN_THREADS = 256;
constexpr uint32_t WARPS = 4;
constexpr uint32_t PUBLISH_THREADS = 128;

__device__ __forceinline__ uint64_t load_element(const uint8_t* data, uint64_t i, uint32_t log2) {
    switch (log2) {
        case 0:
            return data[i];
        case 1:
            return reinterpret_cast<const uint16_t*>(data)[i];
        case 2:
            return reinterpret_cast<const uint32_t*>(data)[i];
        default:
            return reinterpret_cast<const uint64_t*>(data)[i];
    }
}

// Which of `step` neighbouring runs number `index` of a sample is.
__device__ __forceinline__ uint64_t jitter(uint64_t index, uint64_t step) {
    const uint64_t hash = ((index + 1) * 0x9e3779b97f4a7c15ull) >> 32;
    return __umul64hi(hash << 32, step);
}

// a * b / c, rounded down, for results below 2^64.
__device__ inline uint64_t multiply_divide(uint64_t a, uint64_t b, uint64_t c) {
    uint64_t high = __umul64hi(a, b), low = a * b, quotient = 0;
    for (int bit = 0; bit < 64; bit++) {
        const bool carry = high >> 63;
        high = high << 1 | low >> 63;
        low <<= 1;
        quotient <<= 1;
        if (carry || high >= c) {
            high -= c;
            quotient |= 1;
        }
    }
    return quotient;
}

// What a model takes in the prelude.
__device__ inline uint64_t wire_bytes(const EncodeModel& model) {
    const uint64_t base = model.base < 128 ? 1 : model.base < 16384 ? 2 : 3;
    return 3 + 2 + base + 1 + 2 * model.entries + 2;
}

struct PlanRoom {
    uint32_t counts[1 << MAX_EXPONENT_BITS];
    uint32_t negative;
    uint32_t zeros[65];
    FitRoom fit;
};

extern "C" __global__ void __launch_bounds__(PLAN_THREADS, 1) encode_plan(EncodeTensor* tensors) {
    __shared__ PlanRoom room;
    EncodeTensor& tensor = tensors[blockIdx.x];
    const uint8_t* data = reinterpret_cast<const uint8_t*>(tensor.data);
    const uint64_t elements = tensor.bytes >> tensor.element_log2;
    const uint64_t step = max(elements / TABLE_ELEMENTS, static_cast<uint64_t>(1));
    const uint32_t run = step == 1 ? SUB_BLOCK : RUN;
    const uint32_t bits = tensor.exponent_bits, below = tensor.mantissa_bits;
    for (uint32_t i = threadIdx.x; i < 1u << bits; i += PLAN_THREADS) room.counts[i] = 0;
    for (uint32_t i = threadIdx.x; i < 65; i += PLAN_THREADS) room.zeros[i] = 0;
    if (threadIdx.x == 0) {
        room.negative = 0;
        tensor.model.state = ENCODE_RAW;
        tensor.payload_bytes = 0;
    }
    __syncthreads();
    if (tensor.bytes < MIN_MODEL_BYTES) {
        // Larger constant tensors have one sign, and are found below.
        const uint64_t first = elements ? load_element(data, 0, tensor.element_log2) : 0;
        bool same = elements > 0;
        for (uint64_t i = threadIdx.x; i < elements; i += PLAN_THREADS)
            same &= load_element(data, i, tensor.element_log2) == first;
        const bool varies = __syncthreads_or(!same);
        if (threadIdx.x == 0 && !varies && !tensor.plan) tensor.model.state = ENCODE_HOST;
        return;
    }

    const uint64_t runs = ((elements + run - 1) / run + step - 1) / step;
    for (uint64_t number = threadIdx.x / 32; number < runs; number += PLAN_THREADS / 32) {
        const uint64_t start = (number * step + jitter(number, step)) * run;
        if (start >= elements) continue;
        const uint32_t length =
            static_cast<uint32_t>(min(elements - start, static_cast<uint64_t>(run)));
        uint32_t negative = 0;
        uint64_t any = 0;
        for (uint32_t i = lane_id(); i < length; i += 32) {
            const uint64_t x = load_element(data, start + i, tensor.element_log2);
            const uint64_t top = x >> below;
            any |= x;
            negative += static_cast<uint32_t>(top >> bits);
            atomicAdd(&room.counts[top & ((1u << bits) - 1)], 1u);
        }
        const uint32_t mantissa =
            __reduce_or_sync(ALL_LANES, static_cast<uint32_t>(any & low_mask(below)));
        const uint32_t upper =
            __reduce_or_sync(ALL_LANES, static_cast<uint32_t>((any & low_mask(below)) >> 32));
        const uint64_t shared = static_cast<uint64_t>(upper) << 32 | mantissa;
        const uint32_t zeros = shared ? static_cast<uint32_t>(__ffsll(shared)) - 1 : below;
        if (lane_id() == 0) atomicAdd(&room.zeros[zeros], length);
        atomicAdd(&room.negative, negative);
    }
    __syncthreads();
    if (threadIdx.x) return;

    uint64_t total = 0, saved = 0;
    for (uint32_t i = 0; i < 65; i++) {
        total += room.zeros[i];
        saved += static_cast<uint64_t>(min(i, below)) * room.zeros[i];
    }
    EncodeModel model = {};
    model.state = tensor.plan ? ENCODE_RAW : ENCODE_HOST;
    const uint64_t per_block = (total + SUB_BLOCK - 1) / SUB_BLOCK * 8;
    const bool one_sign = room.negative == 0 || room.negative == total;
    if (tensor.plan || (!one_sign && (room.zeros[0] == total || saved <= per_block))) {
        Counts counts{room.counts, 0, 1u << bits, bits};
        if (counts.length > MAX_SYMBOLS) {
            // Large alphabets are counted between the smallest and the largest magnitude.
            uint32_t begin, end;
            counts.used(begin, end);
            counts = Counts{room.counts + begin, begin, end - begin, bits};
        }
        uint64_t cost;
        if (fit(counts, step == 1, room.fit, model, cost)) {
            cost += total * (below + 1) * ONE_BIT;
            const uint64_t chunk = 1ull << tensor.chunk_log2;
            const uint64_t bytes =
                multiply_divide(cost, elements, total) / (8 * ONE_BIT) +
                (tensor.bytes + chunk - 1) / chunk * (STATES_BYTES + HEAD_BYTES) +
                wire_bytes(model);
            model.state = bytes * 1024 < tensor.bytes * WORTHWHILE ? ENCODE_CUT : ENCODE_RAW;
        }
    }
    tensor.model = model;
}

// A symbol's slots, and what divides by their number.
struct Symbol {
    uint16_t frequency;
    uint16_t start;
    uint32_t reciprocal;
};

struct EncodeRoom {
    // By offset from the base; the last one is the escape, if there is one.
    Symbol symbol[MAX_SYMBOLS];
};

// The places in the scratch memory of a chunk.
struct Scratch {
    uint8_t* states;
    uint8_t* raw;
    uint8_t* stream;
    uint8_t* low;
    uint8_t* high;
    uint32_t raw_bytes;

    __device__ Scratch(uint64_t at, uint32_t count, uint32_t raw_width) {
        const uint32_t rest = count % SUB_BLOCK;
        raw_bytes = count / SUB_BLOCK * (SUB_BLOCK / 8 * raw_width) + rest * (raw_width / 8) +
                    (rest * (raw_width % 8) + 7) / 8;
        states = reinterpret_cast<uint8_t*>(at);
        raw = states + STATES_BYTES;
        stream = raw + aligned(raw_bytes);
        low = stream + aligned(count);
        high = low + aligned(count);
    }
};

// Whether 16 bytes are repeated through the chunk.
__device__ inline bool is_constant(const uint8_t* data, uint32_t bytes) {
    if (bytes < ALIGNMENT) return false;
    bool same = true;
    for (uint32_t i = lane_id(); i < bytes && same; i += 32) same = data[i] == data[i % ALIGNMENT];
    return __all_sync(ALL_LANES, same);
}

constexpr uint32_t UNLISTED = 0xff;

// The table entry of an element, and its raw bits; the escape, if there is one, for a symbol that
// is not listed.
__device__ __forceinline__ uint32_t split(const EncodeTensor& tensor, const EncodeRoom& room,
                                          uint64_t x, uint32_t& symbol, uint64_t& raw) {
    const uint32_t raw_width = tensor.mantissa_bits + 1u;
    symbol = static_cast<uint32_t>(x >> tensor.mantissa_bits) & ((1u << tensor.exponent_bits) - 1);
    raw = (x << 1 & low_mask(raw_width)) | x >> ((8u << tensor.element_log2) - 1);
    const uint32_t index = (symbol - tensor.model.base) & ((1u << tensor.exponent_bits) - 1);
    const bool listed = index < MAX_SYMBOLS && room.symbol[index].frequency &&
                        !(tensor.model.escape && index == ESCAPE);
    return listed ? index : tensor.model.escape ? ESCAPE : UNLISTED;
}

// Takes the elements apart, from the first to the last; false if a symbol cannot be represented.
__device__ inline bool split_chunk(const EncodeTensor& tensor, const EncodeRoom& room,
                                   const uint8_t* data, uint32_t count, const Scratch& scratch,
                                   uint32_t& escapes) {
    const uint32_t raw_width = tensor.mantissa_bits + 1u;
    const uint32_t whole = raw_width / 8, rest = raw_width % 8;
    escapes = 0;
    for (uint32_t batch = 0; batch < count; batch += 256) {
        const uint32_t block = batch / SUB_BLOCK * SUB_BLOCK;
        const uint32_t size = min(count - block, SUB_BLOCK);
        uint8_t* raw_block = scratch.raw + block / 8 * raw_width;
        const uint32_t first = batch + 8 * lane_id();
        uint32_t symbols[8], escaped = 0;
        uint64_t top = 0;
#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            const uint32_t i = first + j;
            if (i >= count) continue;
            uint64_t raw;
            const uint32_t index =
                split(tensor, room, load_element(data, i, tensor.element_log2), symbols[j], raw);
            if (index == UNLISTED || (tensor.model.escape && index == ESCAPE)) escaped |= 1u << j;
            for (uint32_t byte = 0; byte < whole; byte++)
                raw_block[byte * size + (i - block)] = static_cast<uint8_t>(raw >> (8 * byte));
            top |= raw >> (8 * whole) << (rest * j);
        }
        if (rest) {
            uint8_t* string = raw_block + whole * size;
            const uint32_t at = (first - block) / 8 * rest, end = (size * rest + 7) / 8;
            for (uint32_t byte = 0; byte < rest && at + byte < end; byte++)
                string[at + byte] = static_cast<uint8_t>(top >> (8 * byte));
        }
        if (__any_sync(ALL_LANES, escaped && !tensor.model.escape)) return false;
        if (!__any_sync(ALL_LANES, escaped)) continue;
        uint32_t total;
        uint32_t at = escapes + exclusive_sum(__popc(escaped), total);
        escapes += total;
#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            if (!(escaped >> j & 1)) continue;
            scratch.low[at] = static_cast<uint8_t>(symbols[j]);
            if (tensor.exponent_bits > 8) scratch.high[at] = static_cast<uint8_t>(symbols[j] >> 8);
            at++;
        }
    }
    return true;
}

// Codes the symbols, from the last to the first; returns the bytes of the stream, which end with
// its room.
__device__ inline uint32_t encode_stream(const EncodeTensor& tensor, const EncodeRoom& room,
                                         const uint8_t* data, uint32_t count,
                                         const Scratch& scratch) {
    const uint32_t lane = lane_id(), below = (1u << lane) - 1;
    uint32_t state[2] = {STATE_LOW, STATE_LOW};
    uint32_t cursor = aligned(count);
    for (uint32_t group = (count + LANES - 1) / LANES; group-- > 0;) {
        bool emits[2];
        uint32_t takers[2];
        Symbol symbols[2];
        bool active[2];
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t i = group * LANES + 2 * lane + half;
            active[half] = i < count;
            emits[half] = false;
            if (active[half]) {
                uint32_t symbol;
                uint64_t raw;
                const uint32_t index =
                    split(tensor, room, load_element(data, i, tensor.element_log2), symbol, raw);
                symbols[half] = room.symbol[index % MAX_SYMBOLS];
                emits[half] = state[half] >= static_cast<uint32_t>(symbols[half].frequency) << 8;
            }
            takers[half] = __ballot_sync(ALL_LANES, emits[half]);
        }
        cursor -= __popc(takers[0]) + __popc(takers[1]);
        const uint32_t at = cursor + __popc(takers[0] & below) + __popc(takers[1] & below);
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            if (!active[half]) continue;
            uint32_t x = state[half];
            if (emits[half]) {
                scratch.stream[at + (half && emits[0])] = static_cast<uint8_t>(x);
                x >>= 8;
            }
            const uint32_t quotient =
                static_cast<uint32_t>((static_cast<uint64_t>(x) * symbols[half].reciprocal) >> 24);
            const uint32_t remainder = x - quotient * symbols[half].frequency;
            state[half] = (quotient << 8) + symbols[half].start + remainder;
        }
    }
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        scratch.states[2 * lane + half] = static_cast<uint8_t>(state[half]);
        scratch.states[LANES + 2 * lane + half] = static_cast<uint8_t>(state[half] >> 8);
    }
    return aligned(count) - cursor;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
    encode_chunks(const EncodeTensor* tensors, EncodeChunk* chunks, uint32_t first,
                  uint32_t count) {
    __shared__ EncodeRoom rooms[WARPS];
    const uint32_t warp = threadIdx.x / 32;
    EncodeRoom& room = rooms[warp];
    for (uint32_t number = blockIdx.x + gridDim.x * warp; number < count;
         number += gridDim.x * WARPS) {
        EncodeChunk& chunk = chunks[first + number];
        const EncodeTensor& tensor = tensors[chunk.tensor];
        const EncodeModel& model = tensor.model;
        const uint8_t* data = reinterpret_cast<const uint8_t*>(chunk.data);
        const uint32_t padded = aligned(chunk.bytes);
        // A stream of one raw chunk is not padded.
        uint32_t storage = 0, payload_bytes = tensor.chunks > 1 ? padded : chunk.bytes;
        uint32_t stream_bytes = 0, escapes = 0;
        if (model.state != ENCODE_HOST && is_constant(data, chunk.bytes)) {
            storage = 1;
            payload_bytes = ALIGNMENT;
        } else if (model.state == ENCODE_CUT) {
            for (uint32_t i = lane_id(); i < MAX_SYMBOLS; i += 32) room.symbol[i] = Symbol{0, 0, 0};
            __syncwarp();
            uint32_t start = 0;
            for (uint32_t entry = 0; entry < model.entries; entry++) {
                const uint32_t frequency = model.frequency[entry];
                if (lane_id() == 0)
                    room.symbol[model.index[entry]] =
                        Symbol{static_cast<uint16_t>(frequency), static_cast<uint16_t>(start),
                               (1u << 24) / frequency + 1};
                start += frequency;
            }
            __syncwarp();
            const uint32_t elements = chunk.bytes >> tensor.element_log2;
            const Scratch scratch(chunk.scratch, elements, tensor.mantissa_bits + 1u);
            if (split_chunk(tensor, room, data, elements, scratch, escapes)) {
                stream_bytes = encode_stream(tensor, room, data, elements, scratch);
                const uint32_t length = ALIGNMENT + STATES_BYTES + aligned(scratch.raw_bytes) +
                                        aligned(stream_bytes) +
                                        aligned(escapes) * (tensor.exponent_bits > 8 ? 2 : 1);
                if (length < padded) {
                    storage = 2;
                    payload_bytes = length;
                }
            }
        }
        const uint64_t hash = hash_of(data, chunk.bytes);
        if (lane_id() == 0) {
            chunk.hash = hash;
            chunk.storage = storage;
            chunk.payload_bytes = payload_bytes;
            chunk.stream_bytes = stream_bytes;
            chunk.escapes = escapes;
        }
        __syncwarp();
    }
}

extern "C" __global__ void __launch_bounds__(32, 1)
    encode_offsets(EncodeTensor* tensors, EncodeChunk* chunks, uint32_t first, uint32_t count) {
    EncodeTensor& tensor = tensors[blockIdx.x];
    const uint32_t begin = max(first, tensor.first_chunk);
    const uint32_t end = min(first + count, tensor.first_chunk + tensor.chunks);
    uint64_t offset = tensor.payload_bytes;
    for (uint32_t batch = begin; batch < end; batch += 32) {
        const uint32_t number = batch + lane_id();
        const bool active = number < end;
        EncodeChunk& chunk = chunks[active ? number : begin];
        uint32_t total;
        const uint32_t before = exclusive_sum(active ? chunk.payload_bytes : 0, total);
        if (active) chunk.offset = offset + before;
        offset += total;
    }
    __syncwarp();
    if (lane_id() == 0) tensor.payload_bytes = offset;
}

// Copies bytes and fills up with zeros to a multiple of 16; returns where that is.
__device__ inline uint8_t* append(uint8_t* to, const uint8_t* from, uint32_t bytes) {
    for (uint32_t i = lane_id(); i < aligned(bytes); i += 32) to[i] = i < bytes ? from[i] : 0;
    return to + aligned(bytes);
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
    encode_gather(const EncodeTensor* tensors, const EncodeChunk* chunks, uint32_t first,
                  uint32_t count) {
    const uint32_t warp = threadIdx.x / 32, lane = lane_id();
    for (uint32_t number = blockIdx.x + gridDim.x * warp; number < count;
         number += gridDim.x * WARPS) {
        const EncodeChunk& chunk = chunks[first + number];
        const EncodeTensor& tensor = tensors[chunk.tensor];
        if (tensor.model.state == ENCODE_HOST) continue;
        const uint8_t* data = reinterpret_cast<const uint8_t*>(chunk.data);
        uint8_t* to = reinterpret_cast<uint8_t*>(tensor.out) + chunk.offset;
        if (chunk.storage != 2) {
            const uint32_t bytes = min(chunk.payload_bytes, chunk.bytes);
            for (uint32_t i = lane; i < chunk.payload_bytes; i += 32)
                to[i] = i < bytes ? data[i] : 0;
            continue;
        }
        const uint32_t elements = chunk.bytes >> tensor.element_log2;
        const Scratch scratch(chunk.scratch, elements, tensor.mantissa_bits + 1u);
        for (uint32_t i = lane; i < ALIGNMENT; i += 32) {
            const uint32_t word = i < 4 ? chunk.stream_bytes : i < 8 ? chunk.escapes : 0;
            to[i] = static_cast<uint8_t>(word >> (8 * (i % 4)));
        }
        to = append(to + ALIGNMENT, scratch.states, STATES_BYTES);
        to = append(to, scratch.raw, scratch.raw_bytes);
        to =
            append(to, scratch.stream + aligned(elements) - chunk.stream_bytes, chunk.stream_bytes);
        to = append(to, scratch.low, chunk.escapes);
        if (tensor.exponent_bits > 8) append(to, scratch.high, chunk.escapes);
    }
}

// The slots of a table, each in the form `write` gives it: what rust/container/device/tables.rs
// spreads out on the host.
template <class Write>
__device__ __forceinline__ void spread(const EncodeModel& model, uint32_t bits, Write write) {
    for (uint32_t slot = threadIdx.x; slot < SLOTS; slot += PUBLISH_THREADS) {
        uint32_t entry = 0, start = 0;
        while (entry + 1 < model.entries && slot >= start + model.frequency[entry])
            start += model.frequency[entry++];
        const uint32_t index = model.index[entry];
        const uint32_t symbol = (model.base + index) & ((1u << bits) - 1);
        write(slot, model.frequency[entry], slot - start, symbol, model.escape && index == ESCAPE);
    }
}

extern "C" __global__ void __launch_bounds__(PUBLISH_THREADS, 1)
    encode_publish(const EncodeTensor* tensors, const EncodeChunk* chunks) {
    const EncodeTensor& tensor = tensors[blockIdx.x];
    if (!tensor.plan) return;
    uint8_t* const plan = reinterpret_cast<uint8_t*>(tensor.plan);
    const uint32_t bits = tensor.exponent_bits, raw_width = tensor.mantissa_bits + 1u;
    // Models for decode_cut and decode_any, then the table of each.
    const uint32_t models = tensor.chunks * static_cast<uint32_t>(sizeof(Chunk));
    const uint32_t cut_table = models + 2 * static_cast<uint32_t>(sizeof(Model));
    const uint32_t table = cut_table + SLOTS * 4;
    const bool is_cut = tensor.element_log2 <= 2;
    const uint32_t shift =
        tensor.element_log2 == 1 && raw_width >= 2 && raw_width <= 8 ? raw_width - 1 : 0;
    for (uint32_t number = threadIdx.x; number < tensor.chunks; number += PUBLISH_THREADS) {
        const EncodeChunk& from = chunks[tensor.first_chunk + number];
        const uint64_t start = static_cast<uint64_t>(number) << tensor.chunk_log2;
        const bool cut = from.storage == 2 && is_cut && from.bytes > 0 &&
                         from.bytes % (SUB_BLOCK << tensor.element_log2) == 0;
        Chunk& chunk = reinterpret_cast<Chunk*>(plan)[number];
        chunk.payload = from.offset;
        chunk.out = start;
        chunk.base = 0;
        chunk.hash = from.hash;
        chunk.first = start >> tensor.element_log2;
        chunk.payload_bytes = from.payload_bytes;
        chunk.bytes = from.bytes;
        chunk.model = from.storage == 2
                          ? (models + (cut ? 0 : static_cast<uint32_t>(sizeof(Model)))) / ALIGNMENT
                          : 0;
        chunk.kind = from.storage == 0   ? CHUNK_RAW
                     : from.storage == 1 ? CHUNK_CONSTANT
                                         : CHUNK_MODEL;
        chunk.flags =
            CHUNK_VERIFY | (tensor.chunks > 1 ? CHUNK_ALIGNED : 0) | (cut ? CHUNK_CUT : 0);
        chunk.reserved = 0;
        chunk.tensor = 0;
        chunk.number = number;
    }
    if (tensor.model.state != ENCODE_CUT) return;
    for (uint32_t of = threadIdx.x; of < 2; of += PUBLISH_THREADS) {
        const bool cut = of == 0;
        Model& model = reinterpret_cast<Model*>(plan + models)[of];
        model = Model{};
        model.element_log2 = tensor.element_log2;
        model.planes = 2;
        model.coded = 1;
        model.cut_shift = static_cast<uint8_t>(cut ? shift : 0);
        model.plane[0].mode = CODED;
        model.plane[0].width = static_cast<uint8_t>(bits);
        model.plane[0].escape = static_cast<uint8_t>(tensor.model.escape);
        model.plane[0].table = cut ? 0 : table / ALIGNMENT;
        model.plane[0].cut_table = cut ? cut_table / ALIGNMENT : 0;
        model.plane[1].mode = RAW;
        model.plane[1].width = static_cast<uint8_t>(raw_width);
    }
    uint32_t* const words = reinterpret_cast<uint32_t*>(plan + cut_table);
    spread(tensor.model, bits,
           [=](uint32_t slot, uint32_t frequency, uint32_t offset, uint32_t symbol, bool escape) {
               words[slot] = (escape ? 1u << 15 : symbol << shift) | frequency << 16 | offset << 24;
           });
    Slot* const slots = reinterpret_cast<Slot*>(plan + table);
    spread(tensor.model, bits,
           [=](uint32_t slot, uint32_t frequency, uint32_t offset, uint32_t symbol, bool escape) {
               slots[slot] = Slot{static_cast<uint16_t>(frequency), static_cast<uint16_t>(offset),
                                  static_cast<uint16_t>(symbol), static_cast<uint16_t>(escape)};
           });
}
