// Decodes tensor streams: many tensors in one launch, one warp per chunk.
//
// `chunks` lie at the beginning of `plan`, those of decode_cut first. The grid may have any size: warps take
// chunks that are a grid apart, first one from each block, so that few chunks spread over all processors.
#include "chunks.cuh"

constexpr uint32_t ANY_WARPS = 4;

// Every chunk that the format has.
extern "C" __global__ void __launch_bounds__(32 * ANY_WARPS, 1)
    decode_any(const uint8_t* plan, uint32_t first, uint32_t count, Status* status) {
    __shared__ PlanesRoom rooms[ANY_WARPS];
    const uint32_t warp = threadIdx.x / 32;
    for (uint32_t number = blockIdx.x + gridDim.x * warp; number < count; number += gridDim.x * ANY_WARPS) {
        const Chunk& chunk = reinterpret_cast<const Chunk*>(plan)[first + number];
        report(status, chunk, decode_chunk(plan, chunk, rooms[warp]));
        __syncwarp();
    }
}
