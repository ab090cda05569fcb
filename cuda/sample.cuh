// What tables are made from: fixed samples of a tensor, the twin of rust/model/sample.rs; and what
// the form that is chosen costs apart from its symbols, as rust/model/float_cut.rs has it.
#pragma once

#include "elements.cuh"
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

// Which of `step` neighbouring runs number `index` of a sample is.
__device__ __forceinline__ uint64_t jitter(uint64_t index, uint64_t step) {
    const uint64_t hash = ((index + 1) * 0x9e3779b97f4a7c15ull) >> 32;
    return __umul64hi(hash << 32, step);
}

// One of so many runs is in a sample of about `limit` elements; 1: all of them.
__device__ __forceinline__ uint64_t sample_step(uint64_t elements, uint64_t limit) {
    return max(elements / limit, static_cast<uint64_t>(1));
}

// A number of 128 bits divided by `c`, rounded down, for results below 2^64.
__device__ inline uint64_t divide_wide(uint64_t high, uint64_t low, uint64_t c) {
    uint64_t quotient = 0;
#pragma unroll 1
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

// a * b / c, rounded down, for results below 2^64.
__device__ inline uint64_t multiply_divide(uint64_t a, uint64_t b, uint64_t c) {
    return divide_wide(__umul64hi(a, b), a * b, c);
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
    return 3 + (is_constant(model.sign) ? 3 : 0) + 2 + base +
           (model.entries ? 1 + 2 * model.entries : 0) + (has_raw ? 2 : 0);
}

// States and heads of the coded plane, if there is one, in every chunk.
__device__ inline uint64_t plane_overhead(const EncodeTensor& tensor, const EncodeModel& model) {
    const uint64_t chunk = 1ull << tensor.chunk_log2;
    return model.entries ? (tensor.bytes + chunk - 1) / chunk * (STATES_BYTES + HEAD_BYTES) : 0;
}

__device__ __forceinline__ uint32_t sign_of(uint32_t signs) {
    return signs == TRAIT_POSITIVE   ? SIGN_POSITIVE
           : signs == TRAIT_NEGATIVE ? SIGN_NEGATIVE
                                     : SIGN_RAW;
}

// Whether all elements of a tensor are one.
__device__ __forceinline__ bool is_one_element(const EncodeTensor& tensor) {
    return tensor.bytes && !(tensor.traits & TRAIT_VARIES);
}

// Whether a tensor is stored without looking for a table.
__device__ __forceinline__ bool needs_no_table(const EncodeTensor& tensor) {
    return tensor.bytes < MIN_MODEL_BYTES || is_one_element(tensor);
}

// The model of a tensor before anything is known, and that of one that needs no table.
__device__ inline void begin_model(EncodeTensor& tensor) {
    tensor.model = EncodeModel{};
    tensor.payload_bytes = 0;
    if (!is_one_element(tensor)) return;
    tensor.model.state = ENCODE_CONSTANT;
    for (uint32_t i = 0; i < tensor.item_bytes; i++)
        tensor.model.index[i] = reinterpret_cast<const uint8_t*>(tensor.data)[i];
}

// Calls `look(x)` for the elements of a sample of about `limit`, offsets taken off, and counts in
// `zeros` how many zeros the mantissas of a run end with. All threads of a block call it.
template <class Look>
__device__ __forceinline__ void look_at_sample(const EncodeTensor& tensor, const Offsets& offsets,
                                               uint64_t limit, uint32_t* zeros, Look look) {
    const uint8_t* data = reinterpret_cast<const uint8_t*>(tensor.data);
    const uint64_t elements = tensor.bytes >> tensor.element_log2;
    const uint64_t step = sample_step(elements, limit);
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
            const uint64_t x = offsets.element(data, start + i, tensor.element_log2);
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
