// Encodes tensors of floats as the CPU does, byte for byte: one coded plane of exponents, and what
// else its symbols have, above one raw plane of mantissa and sign, with scale offsets or without.
// No step waits for the host. encode_plan.cu and encode_choose.cu have said what each tensor is
// stored with (EncodeModel):
//
//   encode_chunks    per chunk: symbols, raw bits, hash; the coder from the end to the beginning;
//                    into scratch memory
//   encode_offsets   per tensor: where each payload begins
//   encode_gather    per chunk: the parts of the payload, one after the other
//   encode_publish   per tensor: the plan by which decode.cu reads what has been encoded
//
// Those from encode_chunks to encode_gather take a range of the chunks: scratch memory is used
// again by the next.
#include "elements.cuh"
#include "escapes.cuh"

constexpr uint32_t WARPS = 4;
constexpr uint32_t PUBLISH_THREADS = 128;

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

__device__ __forceinline__ uint32_t raw_length(uint32_t fields, uint32_t width) {
    return fields * (width / 8) + (fields * (width % 8) + 7) / 8;
}

// The places in the scratch memory of a chunk.
struct Scratch {
    uint8_t* zeros;
    uint8_t* states;
    uint8_t* raw;
    uint8_t* stream;
    uint8_t* low;
    uint8_t* high;

    __device__ Scratch(uint64_t at, uint32_t count, uint32_t raw_width) {
        const uint32_t blocks = (count + SUB_BLOCK - 1) / SUB_BLOCK;
        zeros = reinterpret_cast<uint8_t*>(at);
        states = zeros + aligned(blocks);
        raw = states + STATES_BYTES;
        stream = raw + aligned(count / SUB_BLOCK * raw_length(SUB_BLOCK, raw_width) +
                               raw_length(count % SUB_BLOCK, raw_width));
        low = stream + aligned(count);
        high = low + aligned(count);
    }
};

// Bytes of the counts of trailing zeros.
__device__ __forceinline__ uint32_t zeros_bytes(const EncodeTensor& tensor, uint32_t elements) {
    return tensor.model.trailing_zeros ? (elements + SUB_BLOCK - 1) / SUB_BLOCK : 0;
}

// Whether 16 bytes are repeated through the chunk.
__device__ inline bool is_constant(const uint8_t* data, uint32_t bytes) {
    if (bytes < ALIGNMENT) return false;
    bool same = true;
    for (uint32_t i = lane_id(); i < bytes && same; i += 32) same = data[i] == data[i % ALIGNMENT];
    return __all_sync(ALL_LANES, same);
}

constexpr uint32_t UNLISTED = 0xff;

// How the elements of a tensor are taken apart.
struct Cut {
    uint64_t magnitude;
    uint32_t sign_at, left, sign, symbol_mask, base, escape;

    __device__ explicit Cut(const EncodeTensor& tensor)
        : magnitude(low_mask((8u << tensor.element_log2) - 1)),
          sign_at((8u << tensor.element_log2) - 1),
          left(mantissa_left(tensor)),
          sign(tensor.model.sign),
          symbol_mask((1u << symbol_bits(tensor)) - 1),
          base(tensor.model.base),
          escape(tensor.model.escape) {}

    __device__ __forceinline__ uint32_t symbol(uint64_t x) const {
        const uint32_t top = static_cast<uint32_t>((x & magnitude) >> left);
        return sign == SIGN_FIRST ? top << 1 | static_cast<uint32_t>(x >> sign_at) : top;
    }
    // The raw bits less `zeros` that the mantissa ends with.
    __device__ __forceinline__ uint64_t raw(uint64_t x, uint32_t zeros) const {
        const uint64_t field = (x & low_mask(left)) >> zeros;
        return sign == SIGN_RAW ? field << 1 | x >> sign_at : field;
    }
    // The table entry of a symbol: the escape, if there is one, for one that is not listed.
    __device__ __forceinline__ uint32_t entry(const EncodeRoom& room, uint32_t symbol) const {
        const uint32_t index = (symbol - base) & symbol_mask;
        const bool listed =
            index < MAX_SYMBOLS && room.symbol[index].frequency && !(escape && index == ESCAPE);
        return listed ? index : escape ? ESCAPE : UNLISTED;
    }
};

// The zeros that the mantissas of a sub-block end with.
__device__ inline uint32_t shared_zeros(const EncodeTensor& tensor, const Offsets& offsets,
                                        uint64_t begin, uint32_t size, uint32_t left) {
    const uint8_t* data = reinterpret_cast<const uint8_t*>(tensor.data);
    uint64_t any = 0;
    for (uint32_t i = lane_id(); i < size; i += 32)
        any |= offsets.element(data, begin + i, tensor.element_log2);
    any &= low_mask(left);
    const uint32_t low = __reduce_or_sync(ALL_LANES, static_cast<uint32_t>(any));
    const uint32_t high = __reduce_or_sync(ALL_LANES, static_cast<uint32_t>(any >> 32));
    const uint64_t shared = static_cast<uint64_t>(high) << 32 | low;
    return shared ? static_cast<uint32_t>(__ffsll(shared)) - 1 : left;
}

// Takes elements from `origin` on apart, from the first to the last, and leaves the table entry of
// each where the stream will be; false if a symbol cannot be represented.
__device__ inline bool split_chunk(const EncodeTensor& tensor, const EncodeRoom& room,
                                   uint64_t origin, uint32_t count, const Scratch& scratch,
                                   uint32_t& escapes, uint32_t& head, uint32_t& raw_bytes) {
    const Cut cut(tensor);
    const Offsets offsets(tensor, tensor.model.scale);
    const uint8_t* data = reinterpret_cast<const uint8_t*>(tensor.data);
    const uint32_t full_width = raw_bits(tensor);
    const bool two_bytes = symbol_bits(tensor) > 8;
    escapes = raw_bytes = 0;
    uint32_t zeros = 0, width = full_width, size = 0, smallest = ~0u, largest = 0;
    uint8_t* raw_block = scratch.raw;
    for (uint32_t batch = 0; batch < count; batch += 256) {
        const uint32_t block = batch / SUB_BLOCK * SUB_BLOCK;
        if (batch == block) {
            raw_block = scratch.raw + raw_bytes;
            size = min(count - block, SUB_BLOCK);
            if (tensor.model.trailing_zeros) {
                zeros = shared_zeros(tensor, offsets, origin + block, size, cut.left);
                if (lane_id() == 0) scratch.zeros[block / SUB_BLOCK] = static_cast<uint8_t>(zeros);
                width = full_width - zeros;
            }
            raw_bytes += raw_length(size, width);
        }
        const uint32_t whole = width / 8, rest = width % 8;
        const uint32_t first = batch + 8 * lane_id();
        uint32_t symbols[8], escaped = 0;
        uint64_t top = 0, entries = 0;
        Offsets::Place place = {};
        if (offsets.any()) place = offsets.place(origin + first);
#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            const uint32_t i = first + j;
            if (i >= count) continue;
            uint64_t x = load_element(data, origin + i, tensor.element_log2);
            if (offsets.any()) {
                x = offsets.subtract(x, place);
                offsets.next(place);
            }
            symbols[j] = cut.symbol(x);
            const uint64_t raw = cut.raw(x, zeros);
            const uint32_t index = cut.entry(room, symbols[j]);
            entries |= static_cast<uint64_t>(index) << (8 * j);
            if (index == UNLISTED || (cut.escape && index == ESCAPE)) escaped |= 1u << j;
            for (uint32_t byte = 0; byte < whole; byte++)
                raw_block[byte * size + (i - block)] = static_cast<uint8_t>(raw >> (8 * byte));
            if (rest) top |= raw >> (8 * whole) << (rest * j);
        }
        if (first < count) *reinterpret_cast<uint64_t*>(scratch.stream + first) = entries;
        if (rest) {
            uint8_t* string = raw_block + whole * size;
            const uint32_t at = (first - block) / 8 * rest, end = (size * rest + 7) / 8;
            for (uint32_t byte = 0; byte < rest && at + byte < end; byte++)
                string[at + byte] = static_cast<uint8_t>(top >> (8 * byte));
        }
        if (__any_sync(ALL_LANES, escaped && !cut.escape)) return false;
        if (!__any_sync(ALL_LANES, escaped)) continue;
        uint32_t total;
        uint32_t at = escapes + exclusive_sum(__popc(escaped), total);
        escapes += total;
#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            if (!(escaped >> j & 1)) continue;
            smallest = min(smallest, symbols[j]);
            largest = max(largest, symbols[j]);
            scratch.low[at] = static_cast<uint8_t>(symbols[j]);
            if (two_bytes) scratch.high[at] = static_cast<uint8_t>(symbols[j] >> 8);
            at++;
        }
    }
    head = escapes ? escapes_head(smallest, largest) : 0;
    return true;
}

// Codes the symbols, from the last to the first; returns the bytes of the stream, which end with
// its room. It grows towards the entries that are still to be coded: none takes more than a byte.
__device__ inline uint32_t encode_stream(const EncodeRoom& room, uint32_t count,
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
                symbols[half] = room.symbol[scratch.stream[i] % MAX_SYMBOLS];
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
        uint32_t stream_bytes = 0, escapes = 0, of_escapes = 0, raw_bytes = 0;
        if (model.state == ENCODE_CONSTANT) {
            payload_bytes = 0;
        } else if (is_constant(data, chunk.bytes)) {
            storage = 1;
            payload_bytes = ALIGNMENT;
        } else if (model.state == ENCODE_CUT) {
            // The only symbol, if it is not coded, is the base.
            for (uint32_t i = lane_id(); i < MAX_SYMBOLS; i += 32)
                room.symbol[i] = Symbol{i == 0 && model.entries == 0, 0, 0};
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
            const Scratch scratch(chunk.scratch, elements, raw_bits(tensor));
            const uint64_t origin = static_cast<uint64_t>(first + number - tensor.first_chunk)
                                    << (tensor.chunk_log2 - tensor.element_log2);
            if (split_chunk(tensor, room, origin, elements, scratch, escapes, of_escapes,
                            raw_bytes)) {
                __syncwarp();
                if (model.entries) stream_bytes = encode_stream(room, elements, scratch);
                const uint32_t length =
                    aligned((model.entries ? HEAD_BYTES : 0) + zeros_bytes(tensor, elements)) +
                    (model.entries ? STATES_BYTES : 0) + aligned(raw_bytes) +
                    aligned(stream_bytes) + aligned(escapes_bytes(escapes, of_escapes >> 16));
                if (length < padded) {
                    storage = 2;
                    payload_bytes = length;
                }
            }
        }
        const uint64_t hash = model.state == ENCODE_CONSTANT ? 0 : hash_of(data, chunk.bytes);
        if (lane_id() == 0) {
            chunk.hash = hash;
            chunk.storage = storage;
            chunk.payload_bytes = payload_bytes;
            chunk.stream_bytes = stream_bytes;
            chunk.escapes = escapes;
            chunk.escapes_head = of_escapes;
            chunk.raw_bytes = raw_bytes;
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
        if (tensor.model.state == ENCODE_CONSTANT) continue;
        const uint8_t* data = reinterpret_cast<const uint8_t*>(chunk.data);
        uint8_t* to = reinterpret_cast<uint8_t*>(tensor.out) + chunk.offset;
        if (chunk.storage != 2) {
            const uint32_t bytes = min(chunk.payload_bytes, chunk.bytes);
            for (uint32_t i = lane; i < chunk.payload_bytes; i += 32)
                to[i] = i < bytes ? data[i] : 0;
            continue;
        }
        const uint32_t elements = chunk.bytes >> tensor.element_log2;
        const Scratch scratch(chunk.scratch, elements, raw_bits(tensor));
        const uint32_t words = tensor.model.entries ? HEAD_BYTES : 0;
        const uint32_t head = words + zeros_bytes(tensor, elements);
        for (uint32_t i = lane; i < aligned(head); i += 32) {
            const uint32_t word = i < 4 ? chunk.stream_bytes : chunk.escapes;
            to[i] = i < words  ? static_cast<uint8_t>(word >> (8 * (i % 4)))
                    : i < head ? scratch.zeros[i - words]
                               : 0;
        }
        to += aligned(head);
        if (words) to = append(to, scratch.states, STATES_BYTES);
        to = append(to, scratch.raw, chunk.raw_bytes);
        to =
            append(to, scratch.stream + aligned(elements) - chunk.stream_bytes, chunk.stream_bytes);
        write_escapes(to, chunk.escapes_head, scratch.low,
                      symbol_bits(tensor) > 8 ? scratch.high : nullptr, chunk.escapes);
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

// The Scale of a tensor, its lists, and the words that decode_cut adds.
__device__ inline void publish_scale(const EncodeTensor& tensor, const Offsets& offsets,
                                     uint8_t* plan, uint32_t at) {
    const EncodeView& view =
        reinterpret_cast<const EncodeView*>(tensor.view)[tensor.model.scale / (AXES + 1)];
    const uint64_t counts[2] = {offsets.rows ? view.rows : 0, offsets.columns ? view.columns : 0};
    const int8_t* const lists[2] = {offsets.rows, offsets.columns};
    uint64_t places[3] = {at + sizeof(Scale), 0, 0};
    for (uint32_t axis = 0; axis < 2; axis++) {
        for (uint64_t i = threadIdx.x; i < counts[axis]; i += PUBLISH_THREADS)
            plan[places[axis] + i] = static_cast<uint8_t>(lists[axis][i]);
        places[axis + 1] = places[axis] + (counts[axis] + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    const bool narrow = tensor.element_log2 < 2;
    // Without a list they are those of one load.
    const uint64_t words = counts[1] ? counts[1] : narrow ? 8 : 4;
    for (uint64_t i = threadIdx.x; i < words; i += PUBLISH_THREADS) {
        const int32_t offset =
            (counts[1] ? lists[1][i] : 0) + (narrow ? static_cast<int32_t>(COLUMN_BIAS) : 0);
        const uint32_t word = static_cast<uint32_t>(offset) << min(offsets.shift, 31u);
        if (narrow)
            reinterpret_cast<uint16_t*>(plan + places[2])[i] = static_cast<uint16_t>(word);
        else
            reinterpret_cast<uint32_t*>(plan + places[2])[i] = word;
    }
    if (threadIdx.x) return;
    Scale scale = {};
    scale.columns = offsets.width;
    scale.shift = offsets.shift;
    for (uint32_t axis = 0; axis < 2; axis++)
        scale.list[axis] = counts[axis] ? static_cast<uint32_t>(places[axis] / ALIGNMENT) : 0;
    scale.column_words = static_cast<uint32_t>(places[2] / ALIGNMENT);
    *reinterpret_cast<Scale*>(plan + at) = scale;
}

extern "C" __global__ void __launch_bounds__(PUBLISH_THREADS, 1)
    encode_publish(const EncodeTensor* tensors, const EncodeChunk* chunks) {
    const EncodeTensor& tensor = tensors[blockIdx.x];
    if (!tensor.plan) return;
    uint8_t* const plan = reinterpret_cast<uint8_t*>(tensor.plan);
    const bool is_constant_tensor = tensor.model.state == ENCODE_CONSTANT;
    const uint32_t bits = symbol_bits(tensor), raw_width = raw_bits(tensor);
    const uint32_t sign = tensor.model.sign;
    // Models for decode_cut and decode_any, then the table of each.
    const uint32_t models = tensor.chunks * static_cast<uint32_t>(sizeof(Chunk));
    const uint32_t cut_table = models + 2 * static_cast<uint32_t>(sizeof(Model));
    const uint32_t table = cut_table + SLOTS * 4;
    const uint32_t scale_at = table + SLOTS * static_cast<uint32_t>(sizeof(Slot));
    const Offsets offsets(tensor, tensor.model.scale);
    const bool is_scaled = tensor.model.state == ENCODE_CUT && offsets.any();
    // What rust/container/device/tables.rs says of models for decode_cut.
    const bool is_cut = tensor.element_log2 <= 2 && !is_constant(sign) && tensor.model.entries &&
                        raw_width && !tensor.model.trailing_zeros &&
                        (!is_scaled || (offsets.width % 8 == 0 && offsets.width <= 0x7fffffff));
    const uint32_t shift =
        tensor.element_log2 == 1 && sign == SIGN_RAW && raw_width >= 2 && raw_width <= 8
            ? raw_width - 1
            : 0;
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
        chunk.model = is_constant_tensor ? models / ALIGNMENT
                      : from.storage == 2
                          ? (models + (cut ? 0 : static_cast<uint32_t>(sizeof(Model)))) / ALIGNMENT
                          : 0;
        chunk.kind = is_constant_tensor  ? CHUNK_FILL
                     : from.storage == 0 ? CHUNK_RAW
                     : from.storage == 1 ? CHUNK_CONSTANT
                                         : CHUNK_MODEL;
        chunk.flags = (is_constant_tensor ? 0 : CHUNK_VERIFY) |
                      (tensor.chunks > 1 ? CHUNK_ALIGNED : 0) | (cut ? CHUNK_CUT : 0);
        chunk.reserved = 0;
        chunk.tensor = 0;
        chunk.number = number;
    }
    if (is_constant_tensor && threadIdx.x < ALIGNMENT)
        plan[models + threadIdx.x] = tensor.model.index[threadIdx.x % tensor.item_bytes];
    if (tensor.model.state != ENCODE_CUT) return;
    for (uint32_t of = threadIdx.x; of < 2; of += PUBLISH_THREADS) {
        const bool cut = of == 0;
        Model& model = reinterpret_cast<Model*>(plan + models)[of];
        model = Model{};
        model.element_log2 = tensor.element_log2;
        model.coded = tensor.model.entries > 0;
        model.cut_shift = static_cast<uint8_t>(cut ? shift : 0);
        model.flags =
            static_cast<uint8_t>((tensor.model.trailing_zeros ? MODEL_TRAILING_ZEROS : 0) |
                                 (is_scaled ? MODEL_SCALED : 0));
        model.scale = is_scaled ? scale_at / ALIGNMENT : 0;
        model.sign_position =
            static_cast<uint8_t>(is_constant(sign)    ? (8u << tensor.element_log2) - 1
                                 : sign == SIGN_FIRST ? raw_width
                                                      : 0);
        uint32_t planes = 0;
        if (is_constant(sign)) {
            model.plane[planes].mode = CONSTANT;
            model.plane[planes].width = 1;
            model.plane[planes++].value = sign == SIGN_NEGATIVE;
        }
        Plane& coded = model.plane[planes++];
        coded.mode = tensor.model.entries ? CODED : CONSTANT;
        coded.width = static_cast<uint8_t>(bits);
        coded.escape = static_cast<uint8_t>(tensor.model.escape);
        coded.table = cut ? 0 : table / ALIGNMENT;
        coded.cut_table = cut ? cut_table / ALIGNMENT : 0;
        coded.value = tensor.model.entries ? 0 : tensor.model.base;
        if (raw_width) {
            model.plane[planes].mode = RAW;
            model.plane[planes++].width = static_cast<uint8_t>(raw_width);
        }
        model.planes = static_cast<uint8_t>(planes);
    }
    if (is_scaled) publish_scale(tensor, offsets, plan, scale_at);
    if (tensor.model.entries == 0) return;
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
