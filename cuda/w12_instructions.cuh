// Instructions that CUDA C++ has no function for, each next to what the emulation runs instead.
#pragma once

#include "platform.cuh"

namespace w12 {

// Loads what is read once: past the first-level cache, which is left to the inputs. Not through the
// read-only path, whose loads compilers put off behind barriers.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
#ifdef CUDA_EMULATION
    return *from;
#else
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
#endif
}

// Has 16 bytes copied to shared memory while the thread goes on, or zeros written if not `inside`.
__device__ __forceinline__ void copy_ahead(uint4* to, const uint4* from, bool inside) {
#ifdef CUDA_EMULATION
    *to = inside ? *from : make_uint4(0, 0, 0, 0);
#else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(
                     static_cast<uint32_t>(__cvta_generic_to_shared(to))),
                 "l"(from), "r"(inside ? 16 : 0)
                 : "memory");
#endif
}

// Waits for the thread's own copies.
__device__ __forceinline__ void await_copies() {
#ifndef CUDA_EMULATION
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// (a & b) | c in one operation; compilers make three of two such in a row, where they see them.
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
#ifdef CUDA_EMULATION
    return (a & b) | c;
#else
    uint32_t result;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
#endif
}

// sums += weights x inputs for one fragment: 16 rows, 16 columns, 8 inputs; `mma.m16n8k16` of BF16
// with sums in FP32. Lane = 4 * g + t holds the weights of rows g (0, 2) and g + 8 (1, 3), two
// columns each, of input g the same columns, and the sums of rows g (0, 1) and g + 8 (2, 3) for
// inputs 2 * t and 2 * t + 1.
//
// A tensor core adds the 16 products and the sum in an order and with a rounding of its own. The
// emulation adds the products in FP64, lane t = 0 first and within it columns in order, and then
// rounds the sum once.
__device__ __forceinline__ void multiply_fragment(float (&sums)[4], const uint32_t* weights,
                                                  uint32_t inputs0, uint32_t inputs1) {
#ifdef CUDA_EMULATION
    struct Operands {
        uint32_t weights[4], inputs[2];
    };
    Operands all[32];
    emulation::gather(
        Operands{{weights[0], weights[1], weights[2], weights[3]}, {inputs0, inputs1}}, all);
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const auto value = [](uint32_t pair, uint32_t half) {
        return static_cast<double>(__uint_as_float(pair >> (16 * half) << 16));
    };
    for (uint32_t i = 0; i < 4; i++) {
        double products = 0;
        for (uint32_t from = 0; from < 4; from++)
            for (uint32_t k = 0; k < 4; k++) {
                const uint32_t row = all[4 * g + from].weights[i / 2 + k / 2 * 2];
                const uint32_t input = all[4 * (2 * t + i % 2) + from].inputs[k / 2];
                products += value(row, k % 2) * value(input, k % 2);
            }
        sums[i] = static_cast<float>(sums[i] + products);
    }
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "r"(inputs0),
          "r"(inputs1));
#endif
}

}  // namespace w12
