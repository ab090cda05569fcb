// What a tensor of floats is stored with at the level `fast`; no step waits for the host:
//
//   encode_traits    per chunk: the signs that there are and whether elements differ, which mostly
//                    is known after a few
//   encode_plan      per tensor: counts of a fixed sample, and the table they give
//
// encode_choose.cu has what follows encode_traits at the level `default`, encode.cu what comes
// then.
#include "sample.cuh"

constexpr uint32_t WARPS = 4;
constexpr uint32_t ALL_TRAITS = TRAIT_SIGNS | TRAIT_VARIES;

struct PlanRoom {
    uint32_t counts[1 << MAX_EXPONENT_BITS];
    uint32_t zeros[65];
    FitRoom fit;
};

// Finds the signs of a tensor, and whether its elements differ. A warp goes on only while it has
// seen one sign or one element, and no other warp more.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
    encode_traits(EncodeTensor* tensors, const EncodeChunk* chunks, uint32_t count) {
    const uint32_t warp = threadIdx.x / 32;
    for (uint32_t number = blockIdx.x + gridDim.x * warp; number < count;
         number += gridDim.x * WARPS) {
        EncodeTensor& tensor = tensors[chunks[number].tensor];
        const uint8_t* data = reinterpret_cast<const uint8_t*>(chunks[number].data);
        const uint8_t* first = reinterpret_cast<const uint8_t*>(tensor.data);
        const uint32_t log2 = tensor.element_log2, sign_at = (8u << log2) - 1;
        const uint32_t elements = chunks[number].bytes >> log2;
        // Complex elements are two; chunks begin with whole ones.
        const uint32_t part = (tensor.item_bytes >> log2) - 1;
        uint32_t seen = *static_cast<volatile uint32_t*>(&tensor.traits);
        seen = __shfl_sync(ALL_LANES, seen, 0);
        for (uint32_t i = lane_id(); seen != ALL_TRAITS && i - lane_id() < elements; i += 32) {
            uint32_t mine = 0;
            if (i < elements) {
                const uint64_t x = load_element(data, i, log2);
                mine = x >> sign_at ? TRAIT_NEGATIVE : TRAIT_POSITIVE;
                if (x != load_element(first, i & part, log2)) mine |= TRAIT_VARIES;
            }
            seen |= __reduce_or_sync(ALL_LANES, mine);
        }
        if (lane_id() == 0) atomicOr(&tensor.traits, seen);
        __syncwarp();
    }
}

extern "C" __global__ void __launch_bounds__(PLAN_THREADS, 1) encode_plan(EncodeTensor* tensors) {
    __shared__ PlanRoom room;
    EncodeTensor& tensor = tensors[blockIdx.x];
    const uint64_t elements = tensor.bytes >> tensor.element_log2;
    const uint64_t step = sample_step(elements, TABLE_ELEMENTS);
    const uint32_t bits = tensor.exponent_bits, below = tensor.mantissa_bits;
    for (uint32_t i = threadIdx.x; i < 1u << bits; i += PLAN_THREADS) room.counts[i] = 0;
    for (uint32_t i = threadIdx.x; i < 65; i += PLAN_THREADS) room.zeros[i] = 0;
    if (threadIdx.x == 0) begin_model(tensor);
    __syncthreads();
    if (needs_no_table(tensor)) return;

    look_at_sample(tensor, Offsets(tensor, 0), TABLE_ELEMENTS, room.zeros, [&](uint64_t x) {
        atomicAdd(&room.counts[x >> below & ((1u << bits) - 1)], 1u);
    });
    __syncthreads();
    if (threadIdx.x) return;

    uint64_t total = 0;
    for (uint32_t i = 0; i < 65; i++) total += room.zeros[i];
    EncodeModel model = {};
    model.sign = sign_of(tensor.traits & TRAIT_SIGNS);
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
            const uint64_t bytes = multiply_divide(cost, elements, total) / (8 * ONE_BIT) +
                                   plane_overhead(tensor, model) + wire_bytes(tensor, model);
            model.state = bytes * 1024 < tensor.bytes * WORTHWHILE ? ENCODE_CUT : ENCODE_RAW;
        }
    }
    tensor.model = model;
}
