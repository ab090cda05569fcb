// Kernels that use each thing the emulation offers, for the tests of the emulation itself.
#include "platform.cuh"

// Sums per warp by shuffles, per block through shared memory, and over the grid by an atomic.
extern "C" __global__ void sums(const uint32_t* values, int count, uint32_t* warps,
                                uint32_t* total) {
    __shared__ uint32_t of_warp[32];
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t sum = i < static_cast<uint32_t>(count) ? values[i] : 0;
    for (int step = 16; step; step /= 2) sum += __shfl_down_sync(ALL_LANES, sum, step);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t block = 0;
        for (uint32_t warp = 0; warp < blockDim.x / 32; warp++) {
            warps[blockIdx.x * (blockDim.x / 32) + warp] = of_warp[warp];
            block += of_warp[warp];
        }
        atomicAdd(total, block);
    }
}

// The stable partition of each warp's values by their lowest bit: ballots rank the lanes.
extern "C" __global__ void partition(uint32_t* values) {
    DYNAMIC_SHARED(uint32_t, room);
    const uint32_t lane = threadIdx.x % 32;
    uint32_t* warp = room + threadIdx.x / 32 * 32;
    const uint32_t value = values[blockIdx.x * blockDim.x + threadIdx.x];
    const uint32_t odd = __ballot_sync(ALL_LANES, value & 1);
    const uint32_t below = (1u << lane) - 1;
    const uint32_t to = value & 1 ? __popc(~odd) + __popc(odd & below) : __popc(~odd & below);
    warp[to] = value;
    __syncwarp();
    values[blockIdx.x * blockDim.x + threadIdx.x] = warp[lane];
}

// Reads what another thread of the block writes, without a barrier: wrong, and seen to be.
extern "C" __global__ void race(uint32_t* out) {
    __shared__ uint32_t room[64];
    room[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = room[63 - threadIdx.x];
}

// Half of the warp never comes.
extern "C" __global__ void deadlock(uint32_t* out) {
    if (threadIdx.x < 16) out[threadIdx.x] = __ballot_sync(ALL_LANES, 1);
}
