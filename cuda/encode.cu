// Encodes tensors of floats as the CPU does, byte for byte: one coded plane of exponents, and what
// else its symbols have, above one raw plane of mantissa and sign. No step waits for the host:
//
//   encode_signs     per chunk: the signs that there are, which mostly is known after a few
//   elements encode_plan      per tensor: counts of a fixed sample, and the table they give
//   encode_chunks    per chunk: symbols, raw bits, hash; the coder from the end to the beginning;
//                    into scratch memory
//   encode_offsets   per tensor: where each payload begins
//   encode_gather    per chunk: the parts of the payload, one after the other
//   encode_publish   per tensor: the plan by which decode.cu reads what has been encoded
//
// Those from encode_chunks to encode_gather take a range of the chunks: scratch memory is used
// again by the next.
//
// What the CPU would store in another form is left to it (EncodeModel.state says so), unless the
// tensor has room for a plan: it stays on the device then, in a form that the device can make.
#include "escapes.cuh"
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

// One of so many runs is in the sample; 1: all of them.
__device__ __forceinline__ uint64_t sample_step(uint64_t elements) {
    return max(elements / TABLE_ELEMENTS, static_cast<uint64_t>(1));
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

__device__ __forceinline__ bool is_constant(uint32_t sign) { return sign >= SIGN_POSITIVE; }

// Mantissa bits below the symbol, and bits of the raw plane.
__device__ __forceinline__ uint32_t mantissa_left(const EncodeTensor& tensor) {
    return tensor.mantissa_bits - tensor.model.joint;
}
__device__ __forceinline__ uint32_t raw_bits(const EncodeTensor& tensor) {
    return mantissa_left(tensor) + (tensor.model.sign == SIGN_RAW);
}
__device__ __forceinline__ uint32_t symbol_bits(const EncodeTensor& tensor) {
    return tensor.exponent_bits + tensor.model.joint + (tensor.model.sign == SIGN_FIRST);
}

// What the raw bits of a sample take, in 1/2^16 bits; says in the model whether trailing zeros are
// left out.
__device__ inline uint64_t cost_of_raw(const EncodeTensor& tensor, const uint32_t* zeros,
                                       uint64_t total, EncodeModel& model) {
    const uint32_t left = tensor.mantissa_bits - model.joint;
    const uint64_t width = left + (model.sign == SIGN_RAW);
    uint64_t saved = 0;
    for (uint32_t i = 0; i < 65; i++) saved += static_cast<uint64_t>(min(i, left)) * zeros[i];
    const uint64_t per_block = (total + SUB_BLOCK - 1) / SUB_BLOCK * 8;
    model.trailing_zeros = width > 0 && zeros[0] != total && saved > per_block;
    return (total * width - (model.trailing_zeros ? saved - per_block : 0)) * ONE_BIT;
}

// What a model takes in the prelude.
__device__ inline uint64_t wire_bytes(const EncodeTensor& tensor, const EncodeModel& model) {
    const bool has_raw = tensor.mantissa_bits - model.joint + (model.sign == SIGN_RAW) > 0;
    const uint64_t base = model.base < 128 ? 1 : model.base < 16384 ? 2 : 3;
    return 3 + (is_constant(model.sign) ? 3 : 0) + 2 + base + 1 + 2 * model.entries +
           (has_raw ? 2 : 0);
}

struct PlanRoom {
    uint32_t counts[1 << MAX_EXPONENT_BITS];
    uint32_t zeros[65];
    FitRoom fit;
};

// Calls `look(x)` for the elements of the sample that tables are made from, and counts in `zeros`
// how many zeros the mantissas of a run end with. All threads of a block call it.
template <class Look>
__device__ __forceinline__ void look_at_sample(const EncodeTensor& tensor, uint32_t* zeros,
                                               Look look) {
    const uint8_t* data = reinterpret_cast<const uint8_t*>(tensor.data);
    const uint64_t elements = tensor.bytes >> tensor.element_log2;
    const uint64_t step = sample_step(elements);
    const uint32_t run = step == 1 ? SUB_BLOCK : RUN;
    const uint32_t below = tensor.mantissa_bits;
    const uint64_t runs = ((elements + run - 1) / run + step - 1) / step;
    for (uint64_t number = threadIdx.x / 32; number < runs; number += PLAN_THREADS / 32) {
        const uint64_t start = (number * step + jitter(number, step)) * run;
        if (start >= elements) continue;
        const uint32_t length =
            static_cast<uint32_t>(min(elements - start, static_cast<uint64_t>(run)));
        uint64_t any = 0;
        for (uint32_t i = lane_id(); i < length; i += 32) {
            const uint64_t x = load_element(data, start + i, tensor.element_log2);
            any |= x;
            look(x);
        }
        const uint32_t mantissa =
            __reduce_or_sync(ALL_LANES, static_cast<uint32_t>(any & low_mask(below)));
        const uint32_t upper =
            __reduce_or_sync(ALL_LANES, static_cast<uint32_t>((any & low_mask(below)) >> 32));
        const uint64_t shared = static_cast<uint64_t>(upper) << 32 | mantissa;
        const uint32_t ending = shared ? static_cast<uint32_t>(__ffsll(shared)) - 1 : below;
        if (lane_id() == 0) atomicAdd(&zeros[ending], length);
    }
}

// Finds the signs of a tensor. A warp goes on only while it has seen one sign, and no other warp
// both.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
    encode_signs(EncodeTensor* tensors, const EncodeChunk* chunks, uint32_t count) {
    const uint32_t warp = threadIdx.x / 32;
    for (uint32_t number = blockIdx.x + gridDim.x * warp; number < count;
         number += gridDim.x * WARPS) {
        EncodeTensor& tensor = tensors[chunks[number].tensor];
        const uint8_t* data = reinterpret_cast<const uint8_t*>(chunks[number].data);
        const uint32_t log2 = tensor.element_log2, sign_at = (8u << log2) - 1;
        const uint32_t elements = chunks[number].bytes >> log2;
        uint32_t seen = *static_cast<volatile uint32_t*>(&tensor.signs);
        seen = __shfl_sync(ALL_LANES, seen, 0);
        for (uint32_t i = lane_id(); seen != 3 && i - lane_id() < elements; i += 32) {
            const uint32_t mine =
                i < elements ? 1u << (load_element(data, i, log2) >> sign_at) : 0u;
            seen |= __reduce_or_sync(ALL_LANES, mine);
        }
        if (lane_id() == 0) atomicOr(&tensor.signs, seen);
        __syncwarp();
    }
}

extern "C" __global__ void __launch_bounds__(PLAN_THREADS, 1) encode_plan(EncodeTensor* tensors) {
    __shared__ PlanRoom room;
    EncodeTensor& tensor = tensors[blockIdx.x];
    const uint8_t* data = reinterpret_cast<const uint8_t*>(tensor.data);
    const uint64_t elements = tensor.bytes >> tensor.element_log2;
    const uint64_t step = sample_step(elements);
    const uint32_t bits = tensor.exponent_bits, below = tensor.mantissa_bits;
    for (uint32_t i = threadIdx.x; i < 1u << bits; i += PLAN_THREADS) room.counts[i] = 0;
    for (uint32_t i = threadIdx.x; i < 65; i += PLAN_THREADS) room.zeros[i] = 0;
    if (threadIdx.x == 0) {
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

    look_at_sample(tensor, room.zeros, [&](uint64_t x) {
        atomicAdd(&room.counts[x >> below & ((1u << bits) - 1)], 1u);
    });
    __syncthreads();
    if (threadIdx.x) return;

    uint64_t total = 0;
    for (uint32_t i = 0; i < 65; i++) total += room.zeros[i];
    EncodeModel model = {};
    model.state = tensor.plan ? ENCODE_RAW : ENCODE_HOST;
    model.sign = tensor.signs == 1 ? SIGN_POSITIVE : tensor.signs == 2 ? SIGN_NEGATIVE : SIGN_RAW;
    const uint64_t raw_cost = cost_of_raw(tensor, room.zeros, total, model);
    {
        Counts counts{room.counts, 0, 1u << bits, bits};
        if (counts.length > MAX_SYMBOLS) {
            // Large alphabets are counted between the smallest and the largest magnitude.
            uint32_t begin, end;
            counts.used(begin, end);
            counts = Counts{room.counts + begin, begin, end - begin, bits};
        }
        uint64_t cost;
        if (fit(counts, step == 1, room.fit, model, cost)) {
            cost += raw_cost;
            const uint64_t chunk = 1ull << tensor.chunk_log2;
            const uint64_t bytes =
                multiply_divide(cost, elements, total) / (8 * ONE_BIT) +
                (tensor.bytes + chunk - 1) / chunk * (STATES_BYTES + HEAD_BYTES) +
                wire_bytes(tensor, model);
            model.state = bytes * 1024 < tensor.bytes * WORTHWHILE ? ENCODE_CUT : ENCODE_RAW;
        }
    }
    tensor.model = model;
}

// Ways to cut: none, one or two mantissa bits in the symbol, each without and with the sign.
constexpr uint32_t WAYS = 6;
constexpr uint32_t MAX_JOINT = 2;
// Of the types with the longest exponents but FP64, which the host takes.
constexpr uint32_t MAX_COUNTED_BITS = 8 + MAX_JOINT;
// Counts of all ways together.
constexpr uint32_t WAY_COUNTS = (1 << MAX_COUNTED_BITS) * 21 / 4;
// Cuts are fitted exactly while their estimates are within a 512th of the best.
constexpr uint32_t CLOSE_CUTS_LOG2 = 9;

struct ChooseRoom {
    // Of positive and of negative elements by exponent and joint bits.
    uint32_t counts[2 << MAX_COUNTED_BITS];
    uint32_t folded[WAY_COUNTS];
    uint32_t zeros[65];
    // The first and the last magnitude counted.
    uint32_t first, last;
    FitRoom fit[WAYS];
    EncodeModel model[WAYS];
    // Bytes; all bits set for a way that is none.
    uint64_t estimate[WAYS];
    uint64_t bytes[WAYS];
    uint32_t constant;
};

extern "C" __global__ void __launch_bounds__(PLAN_THREADS, 1) encode_choose(EncodeTensor* tensors) {
    __shared__ ChooseRoom room;
    EncodeTensor& tensor = tensors[blockIdx.x];
    const uint64_t elements = tensor.bytes >> tensor.element_log2;
    const bool exact = sample_step(elements) == 1;
    const uint32_t limit = min(static_cast<uint32_t>(tensor.mantissa_bits), MAX_JOINT);
    const uint32_t bits = tensor.exponent_bits + limit, below = tensor.mantissa_bits - limit;
    for (uint32_t i = threadIdx.x; i < 2u << bits; i += PLAN_THREADS) room.counts[i] = 0;
    for (uint32_t i = threadIdx.x; i < 65; i += PLAN_THREADS) room.zeros[i] = 0;
    for (uint32_t i = threadIdx.x; i < WAYS; i += PLAN_THREADS)
        room.estimate[i] = room.bytes[i] = ~0ull;
    if (threadIdx.x == 0) {
        tensor.model.state = ENCODE_RAW;
        tensor.payload_bytes = 0;
        room.constant = 0;
    }
    __syncthreads();
    if (tensor.bytes < MIN_MODEL_BYTES) return;
    look_at_sample(tensor, room.zeros, [&](uint64_t x) {
        atomicAdd(&room.counts[x >> below & ((2u << bits) - 1)], 1u);
    });
    __syncthreads();
    if (threadIdx.x == 0) {
        // From the smallest to the largest magnitude, in whole exponents.
        uint32_t first = 0, last = (1u << bits) - 1;
        while (first < last && !room.counts[first] && !room.counts[first + (1u << bits)]) first++;
        while (last > first && !room.counts[last] && !room.counts[last + (1u << bits)]) last--;
        room.first = first >> limit << limit;
        room.last = last | ((1u << limit) - 1);
    }
    __syncthreads();

    // Each warp looks at a way.
    const uint32_t way = threadIdx.x / 32;
    const uint32_t joint = way / 2;
    const bool with_sign = way % 2;
    const bool possible = way < WAYS && joint <= limit && !(with_sign && tensor.signs != 3);
    const uint32_t fold = limit - (possible ? joint : 0);
    const uint32_t length = (room.last - room.first + 1) >> fold << with_sign;
    // Ways with more joint bits come first.
    uint32_t place = 0;
    for (uint32_t other = WAYS - 1; other > way; other--)
        place += (1u << tensor.exponent_bits) << (other / 2 + other % 2);
    uint32_t* const counts = room.folded + (possible ? place : 0);
    Counts it{counts, (room.first >> fold) << with_sign, length,
              tensor.exponent_bits + joint + with_sign};
    uint64_t total = 0;
    EncodeModel model = {};
    model.state = ENCODE_CUT;
    model.joint = joint;
    model.sign = with_sign           ? SIGN_FIRST
                 : tensor.signs == 1 ? SIGN_POSITIVE
                 : tensor.signs == 2 ? SIGN_NEGATIVE
                                     : SIGN_RAW;
    uint64_t raw_cost = 0;
    const uint64_t chunk = 1ull << tensor.chunk_log2;
    const uint64_t overhead = (tensor.bytes + chunk - 1) / chunk * (STATES_BYTES + HEAD_BYTES);
    if (possible) {
        for (uint32_t i = lane_id(); i < length; i += 32) {
            const uint32_t from = room.first + ((i >> with_sign) << fold);
            uint32_t sum = 0;
            for (uint32_t k = from; k < from + (1u << fold); k++) {
                const uint32_t positive = room.counts[k], negative = room.counts[k + (1u << bits)];
                sum += !with_sign ? positive + negative : i % 2 ? negative : positive;
            }
            counts[i] = sum;
        }
        __syncwarp();
        // Small alphabets are seen whole, as they may be complete.
        const uint32_t all = 1u << it.bits;
        if (all <= MAX_SYMBOLS && length < all) {
            const uint32_t low = lane_id() < all ? lane_id() - it.first : ~0u;
            const uint32_t high = lane_id() + 32 < all ? lane_id() + 32 - it.first : ~0u;
            const uint32_t mine[2] = {low < length ? counts[low] : 0,
                                      high < length ? counts[high] : 0};
            __syncwarp();
            if (lane_id() < all) counts[lane_id()] = mine[0];
            if (lane_id() + 32 < all) counts[lane_id() + 32] = mine[1];
            __syncwarp();
            it = Counts{counts, 0, all, it.bits};
        }
        if (lane_id() == 0) {
            for (uint32_t i = 0; i < 65; i++) total += room.zeros[i];
            raw_cost = cost_of_raw(tensor, room.zeros, total, model);
            uint64_t cost;
            uint32_t listed;
            if (estimate(it, exact, cost, listed)) {
                // Constant symbols are no plane that is coded: rare, and left to the host.
                if (listed <= 1) room.constant = 1;
                room.estimate[way] =
                    multiply_divide(cost + raw_cost, elements, total) / (8 * ONE_BIT) + overhead +
                    2 * listed;
            }
        }
    }
    __syncthreads();
    if (possible && lane_id() == 0) {
        uint64_t least = ~0ull, cost;
        for (uint32_t i = 0; i < WAYS; i++) least = min(least, room.estimate[i]);
        if (room.estimate[way] != ~0ull &&
            room.estimate[way] <= least + (least >> CLOSE_CUTS_LOG2) &&
            fit(it, exact, room.fit[way], model, cost)) {
            room.bytes[way] = multiply_divide(cost + raw_cost, elements, total) / (8 * ONE_BIT) +
                              overhead + wire_bytes(tensor, model);
            room.model[way] = model;
        }
    }
    __syncthreads();
    if (threadIdx.x) return;
    uint32_t best = 0;
    for (uint32_t i = 1; i < WAYS; i++)
        if (room.bytes[i] < room.bytes[best]) best = i;
    if (room.constant) {
        tensor.model.state = ENCODE_HOST;
    } else if (room.bytes[best] != ~0ull && room.bytes[best] * 1024 < tensor.bytes * WORTHWHILE) {
        tensor.model = room.model[best];
    }
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
__device__ inline uint32_t shared_zeros(const uint8_t* data, uint32_t begin, uint32_t size,
                                        uint32_t element_log2, uint32_t left) {
    uint64_t any = 0;
    for (uint32_t i = lane_id(); i < size; i += 32)
        any |= load_element(data, begin + i, element_log2);
    any &= low_mask(left);
    const uint32_t low = __reduce_or_sync(ALL_LANES, static_cast<uint32_t>(any));
    const uint32_t high = __reduce_or_sync(ALL_LANES, static_cast<uint32_t>(any >> 32));
    const uint64_t shared = static_cast<uint64_t>(high) << 32 | low;
    return shared ? static_cast<uint32_t>(__ffsll(shared)) - 1 : left;
}

// Takes the elements apart, from the first to the last; false if a symbol cannot be represented.
__device__ inline bool split_chunk(const EncodeTensor& tensor, const EncodeRoom& room,
                                   const uint8_t* data, uint32_t count, const Scratch& scratch,
                                   uint32_t& escapes, uint32_t& head, uint32_t& raw_bytes) {
    const Cut cut(tensor);
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
                zeros = shared_zeros(data, block, size, tensor.element_log2, cut.left);
                if (lane_id() == 0) scratch.zeros[block / SUB_BLOCK] = static_cast<uint8_t>(zeros);
                width = full_width - zeros;
            }
            raw_bytes += raw_length(size, width);
        }
        const uint32_t whole = width / 8, rest = width % 8;
        const uint32_t first = batch + 8 * lane_id();
        uint32_t symbols[8], escaped = 0;
        uint64_t top = 0;
#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            const uint32_t i = first + j;
            if (i >= count) continue;
            const uint64_t x = load_element(data, i, tensor.element_log2);
            symbols[j] = cut.symbol(x);
            const uint64_t raw = cut.raw(x, zeros);
            const uint32_t index = cut.entry(room, symbols[j]);
            if (index == UNLISTED || (cut.escape && index == ESCAPE)) escaped |= 1u << j;
            for (uint32_t byte = 0; byte < whole; byte++)
                raw_block[byte * size + (i - block)] = static_cast<uint8_t>(raw >> (8 * byte));
            if (rest) top |= raw >> (8 * whole) << (rest * j);
        }
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
// its room.
__device__ inline uint32_t encode_stream(const EncodeTensor& tensor, const EncodeRoom& room,
                                         const uint8_t* data, uint32_t count,
                                         const Scratch& scratch) {
    const Cut cut(tensor);
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
                const uint64_t x = load_element(data, i, tensor.element_log2);
                const uint32_t index = cut.entry(room, cut.symbol(x));
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
        uint32_t stream_bytes = 0, escapes = 0, of_escapes = 0, raw_bytes = 0;
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
            const Scratch scratch(chunk.scratch, elements, raw_bits(tensor));
            if (split_chunk(tensor, room, data, elements, scratch, escapes, of_escapes,
                            raw_bytes)) {
                stream_bytes = encode_stream(tensor, room, data, elements, scratch);
                const uint32_t length = aligned(HEAD_BYTES + zeros_bytes(tensor, elements)) +
                                        STATES_BYTES + aligned(raw_bytes) + aligned(stream_bytes) +
                                        aligned(escapes_bytes(escapes, of_escapes >> 16));
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
        const Scratch scratch(chunk.scratch, elements, raw_bits(tensor));
        const uint32_t head = HEAD_BYTES + zeros_bytes(tensor, elements);
        for (uint32_t i = lane; i < aligned(head); i += 32) {
            const uint32_t word = i < 4 ? chunk.stream_bytes : chunk.escapes;
            to[i] = i < HEAD_BYTES ? static_cast<uint8_t>(word >> (8 * (i % 4)))
                    : i < head     ? scratch.zeros[i - HEAD_BYTES]
                                   : 0;
        }
        to = append(to + aligned(head), scratch.states, STATES_BYTES);
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

extern "C" __global__ void __launch_bounds__(PUBLISH_THREADS, 1)
    encode_publish(const EncodeTensor* tensors, const EncodeChunk* chunks) {
    const EncodeTensor& tensor = tensors[blockIdx.x];
    if (!tensor.plan) return;
    uint8_t* const plan = reinterpret_cast<uint8_t*>(tensor.plan);
    const uint32_t bits = symbol_bits(tensor), raw_width = raw_bits(tensor);
    const uint32_t sign = tensor.model.sign;
    // Models for decode_cut and decode_any, then the table of each.
    const uint32_t models = tensor.chunks * static_cast<uint32_t>(sizeof(Chunk));
    const uint32_t cut_table = models + 2 * static_cast<uint32_t>(sizeof(Model));
    const uint32_t table = cut_table + SLOTS * 4;
    const bool is_cut =
        tensor.element_log2 <= 2 && !is_constant(sign) && !tensor.model.trailing_zeros;
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
        model.coded = 1;
        model.cut_shift = static_cast<uint8_t>(cut ? shift : 0);
        model.flags = tensor.model.trailing_zeros ? MODEL_TRAILING_ZEROS : 0;
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
        coded.mode = CODED;
        coded.width = static_cast<uint8_t>(bits);
        coded.escape = static_cast<uint8_t>(tensor.model.escape);
        coded.table = cut ? 0 : table / ALIGNMENT;
        coded.cut_table = cut ? cut_table / ALIGNMENT : 0;
        if (raw_width) {
            model.plane[planes].mode = RAW;
            model.plane[planes++].width = static_cast<uint8_t>(raw_width);
        }
        model.planes = static_cast<uint8_t>(planes);
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
