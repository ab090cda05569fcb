// Decodes tensor streams: many tensors in one launch, one warp per chunk.
//
// Chunks lie at the beginning of `plan`. Each kernel passes over those of the other one, so that
// both can be given the same range of a plan that was made on the device. The grid may have any
// size: warps take chunks that are a grid apart, first one from each block, so that few chunks
// spread over all processors.
//
// `payloads` and `out` are added to the addresses in the plan: 0 where it has whole ones, and else
// where the payloads of the one tensor and its elements are.
#include "chunks.cuh"
#include "cut.cuh"

constexpr uint32_t ANY_WARPS = 4;

__device__ __forceinline__ Chunk place(const uint8_t* plan, uint32_t number, uint64_t payloads,
                                       uint64_t out) {
    Chunk chunk = reinterpret_cast<const Chunk*>(plan)[number];
    chunk.payload += payloads;
    chunk.out += out;
    return chunk;
}

// Chunks of the usual cut of floats.
extern "C" __global__ void __launch_bounds__(32, 16)
    decode_cut(const uint8_t* plan, uint32_t first, uint32_t count, uint64_t payloads, uint64_t out,
               Status* status) {
    __shared__ CutRoom room;
    uint32_t in_room = 0;
    for (uint32_t number = blockIdx.x; number < count; number += gridDim.x) {
        const Chunk chunk = place(plan, first + number, payloads, out);
        if (!(chunk.flags & CHUNK_CUT)) continue;
        const Model& model =
            *reinterpret_cast<const Model*>(plan + static_cast<uint64_t>(chunk.model) * ALIGNMENT);
        const bool scaled = model.flags & MODEL_SCALED;
        const uint32_t shift = scaled ? reinterpret_cast<const Scale*>(
                                            plan + static_cast<uint64_t>(model.scale) * ALIGNMENT)
                                            ->shift
                                      : 0;
        const uint32_t raw_width =
            model.cut_shift && shift <= MOST_FOLDED_SHIFT ? model.plane[1].width : 0;
        if (chunk.model != in_room) {
            const uint4* table = reinterpret_cast<const uint4*>(
                plan + static_cast<uint64_t>(model.plane[0].cut_table) * ALIGNMENT);
            const bool folded = scaled && (raw_width == 7 || raw_width == 8);
            const uint32_t bias = folded ? folded_bias(shift) : 0;
            for (uint32_t i = lane_id(); i < SLOTS / 4; i += 32) {
                const uint4 slots = __ldg(table + i);
                reinterpret_cast<uint4*>(room.table)[i] = {less(slots.x, bias), less(slots.y, bias),
                                                           less(slots.z, bias),
                                                           less(slots.w, bias)};
            }
            in_room = chunk.model;
        }
        const Error error =
            model.element_log2 == 0    ? decode_cut_chunk<1, 0, true>(plan, model, chunk, room)
            : model.element_log2 == 2  ? decode_cut_chunk<4, 0, true>(plan, model, chunk, room)
            : raw_width == 8 && scaled ? decode_cut_chunk<2, 8, true>(plan, model, chunk, room)
            : raw_width == 7 && scaled ? decode_cut_chunk<2, 7, true>(plan, model, chunk, room)
            : raw_width == 8           ? decode_cut_chunk<2, 8, false>(plan, model, chunk, room)
            : raw_width == 7           ? decode_cut_chunk<2, 7, false>(plan, model, chunk, room)
                                       : decode_cut_chunk<2, 0, true>(plan, model, chunk, room);
        report(status, chunk, error);
        __syncwarp();
    }
}

// Every chunk that the format has.
extern "C" __global__ void __launch_bounds__(32 * ANY_WARPS, 1)
    decode_any(const uint8_t* plan, uint32_t first, uint32_t count, uint64_t payloads, uint64_t out,
               Status* status) {
    __shared__ PlanesRoom rooms[ANY_WARPS];
    const uint32_t warp = threadIdx.x / 32;
    for (uint32_t number = blockIdx.x + gridDim.x * warp; number < count;
         number += gridDim.x * ANY_WARPS) {
        const Chunk chunk = place(plan, first + number, payloads, out);
        if (chunk.flags & CHUNK_CUT) continue;
        report(status, chunk, decode_chunk(plan, chunk, rooms[warp]));
        __syncwarp();
    }
}
