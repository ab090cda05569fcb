// CUDA C++ on the CPU: a host compiler builds the very same .cu file, and its kernels run here.
//
// One fiber per thread of a block, one block after the other. A fiber runs until it meets the
// others in a collective (a warp intrinsic or __syncthreads) and goes on when all have come. The
// order in which threads get their turn is shuffled by the seed of the launch, and shared memory
// holds garbage when a block begins, so that a forgotten barrier or initialisation shows.
// Collectives count generations per lane: a lane may be one ahead of its neighbours, so the values
// of the last two generations are kept.
//
// Blocks run in ascending order and to their end: a block may wait for what lower blocks do, not
// for higher ones. Not modelled: memory order, divergence within a collective of named lanes that
// never comes (it is reported as a deadlock), and speed.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
// One block at a time: static memory is the memory of the block. Its own section, so that it can be
// filled.
#define __shared__ static __attribute__((section("cuda_shared")))
// Shared memory whose size the launch gives: CUDA says `extern __shared__`.
#define DYNAMIC_SHARED(type, name) \
    type* const name = reinterpret_cast<type*>(emulation::dynamic_shared.data())

struct uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct uint3 {
    unsigned x, y, z;
};
struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulation {

constexpr unsigned WARP = 32;
constexpr size_t STACK_BYTES = 256 << 10;
// No value that a collective carries is larger.
constexpr size_t VALUE_BYTES = 64;

struct Warp {
    alignas(16) unsigned char values[2][WARP][VALUE_BYTES];
    unsigned arrived[WARP];
};

struct Fiber {
    ucontext_t start;
    jmp_buf here;
    uint3 thread;
    unsigned linear, generation, barrier;
    bool started, done, stuck;
};

inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline std::vector<uint4> dynamic_shared;
inline Fiber* current;
inline jmp_buf scheduler;
inline unsigned barrier_arrived, barrier_generation, barrier_count;
inline bool progress;
inline void (*body)(void*);
inline void* body_arguments;

// Back to the scheduler, because a collective is not complete.
inline void yield() {
    current->stuck = true;
    if (!_setjmp(current->here)) _longjmp(scheduler, 1);
}

inline void enter() {
    body(body_arguments);
    current->done = true;
    _longjmp(scheduler, 1);
}

// The values that the lanes of `mask` bring along, in lane order.
template <class T>
const unsigned char (*exchange(uint32_t mask, const T& value)) [VALUE_BYTES] {
    static_assert(sizeof(T) <= VALUE_BYTES && std::is_trivially_copyable_v<T>);
    Warp& warp = warps[current->linear / WARP];
    const unsigned lane = current->linear % WARP;
    const unsigned generation = current->generation++;
    if (!(mask >> lane & 1)) {
        std::fprintf(stderr, "cuda_emulation: lane %u is not in its own mask %08x\n", lane, mask);
        std::abort();
    }
    std::memcpy(warp.values[generation & 1][lane], &value, sizeof(T));
    warp.arrived[lane] = generation + 1;
    progress = true;
    for (;;) {
        bool all = true;
        for (unsigned i = 0; i < WARP; i++)
            all &= !(mask >> i & 1) || warp.arrived[i] >= generation + 1;
        if (all) return warp.values[generation & 1];
        yield();
    }
}

template <class T>
T value_of(const unsigned char (*values)[VALUE_BYTES], unsigned lane) {
    T value;
    std::memcpy(&value, values[lane % WARP], sizeof(T));
    return value;
}

// What every lane of a full warp brought along: for the emulation of other collectives, such as
// mma.
template <class T>
void gather(const T& value, T (&all)[WARP]) {
    const auto values = exchange(0xffffffffu, value);
    for (unsigned lane = 0; lane < WARP; lane++) all[lane] = value_of<T>(values, lane);
}

}  // namespace emulation

inline uint3 blockIdx_emulated, blockDim_emulated, gridDim_emulated;
#define blockIdx blockIdx_emulated
#define blockDim blockDim_emulated
#define gridDim gridDim_emulated
#define threadIdx (emulation::current->thread)
constexpr int warpSize = 32;

// --- warp collectives ----------------------------------------------------------------------------

template <class T, class Pick>
T emulated_shuffle(uint32_t mask, T value, int width, Pick pick) {
    const unsigned lane = emulation::current->linear % emulation::WARP;
    const auto values = emulation::exchange(mask, value);
    const int begin = static_cast<int>(lane) / width * width;
    const int from = pick(static_cast<int>(lane) - begin);
    return from < 0 || from >= width ? value : emulation::value_of<T>(values, begin + from);
}
template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32) {
    return emulated_shuffle(mask, value, width, [=](int) { return source & (width - 1); });
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32) {
    return emulated_shuffle(mask, value, width,
                            [=](int lane) { return lane - static_cast<int>(delta); });
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32) {
    return emulated_shuffle(mask, value, width,
                            [=](int lane) { return lane + static_cast<int>(delta); });
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32) {
    return emulated_shuffle(mask, value, width, [=](int lane) { return lane ^ bits; });
}
template <class T, class Combine>
T emulated_reduce(uint32_t mask, T value, Combine combine) {
    const auto values = emulation::exchange(mask, value);
    bool first = true;
    T result{};
    for (unsigned lane = 0; lane < emulation::WARP; lane++)
        if (mask >> lane & 1) {
            const T other = emulation::value_of<T>(values, lane);
            result = first ? other : combine(result, other);
            first = false;
        }
    return result;
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
    const auto values = emulation::exchange(mask, predicate != 0);
    uint32_t ballot = 0;
    for (unsigned lane = 0; lane < emulation::WARP; lane++)
        if (mask >> lane & 1)
            ballot |= static_cast<uint32_t>(emulation::value_of<bool>(values, lane)) << lane;
    return ballot;
}
inline int __any_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(uint32_t mask, int predicate) {
    return __ballot_sync(mask, predicate) == mask;
}
inline void __syncwarp(uint32_t mask = 0xffffffffu) { emulation::exchange(mask, 0); }
inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t value) {
    return emulated_reduce(mask, value, [](uint32_t a, uint32_t b) { return a + b; });
}
inline uint32_t __reduce_min_sync(uint32_t mask, uint32_t value) {
    return emulated_reduce(mask, value, [](uint32_t a, uint32_t b) { return a < b ? a : b; });
}
inline uint32_t __reduce_max_sync(uint32_t mask, uint32_t value) {
    return emulated_reduce(mask, value, [](uint32_t a, uint32_t b) { return a > b ? a : b; });
}
inline uint32_t __reduce_or_sync(uint32_t mask, uint32_t value) {
    return emulated_reduce(mask, value, [](uint32_t a, uint32_t b) { return a | b; });
}
inline uint32_t __reduce_and_sync(uint32_t mask, uint32_t value) {
    return emulated_reduce(mask, value, [](uint32_t a, uint32_t b) { return a & b; });
}
inline uint32_t __match_any_sync(uint32_t mask, uint32_t value) {
    const auto values = emulation::exchange(mask, value);
    uint32_t same = 0;
    for (unsigned lane = 0; lane < emulation::WARP; lane++)
        if (mask >> lane & 1)
            same |= static_cast<uint32_t>(emulation::value_of<uint32_t>(values, lane) == value)
                    << lane;
    return same;
}

inline void __syncthreads() {
    using namespace emulation;
    const unsigned generation = barrier_generation;
    progress = true;
    if (++barrier_arrived == barrier_count) {
        barrier_arrived = 0;
        barrier_generation++;
        return;
    }
    while (barrier_generation == generation) yield();
}
inline int __syncthreads_or(int predicate) {
    static int any[2];
    int& mine = any[emulation::barrier_generation >> 1 & 1];
    mine |= predicate != 0;
    __syncthreads();
    const int result = mine;
    __syncthreads();
    mine = 0;
    return result;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) {}
[[noreturn]] inline void __trap() { std::abort(); }

// --- arithmetic ----------------------------------------------------------------------------------

inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __popcll(uint64_t x) { return __builtin_popcountll(x); }
inline int __clz(uint32_t x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(uint64_t x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(uint32_t x) { return __builtin_ffs(static_cast<int>(x)); }
inline int __ffsll(uint64_t x) { return __builtin_ffsll(static_cast<int64_t>(x)); }
inline uint32_t __brev(uint32_t x) {
    uint32_t y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1) << (31 - i);
    return y;
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint64_t>(a) * b >> 32; }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
    return static_cast<unsigned __int128>(a) * b >> 64;
}
inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t shift) {
    return static_cast<uint32_t>(((static_cast<uint64_t>(high) << 32 | low) << (shift & 31)) >> 32);
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
    return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t pick = selector >> (4 * i) & 15;
        uint32_t byte = bytes >> (8 * (pick & 7)) & 255;
        if (pick & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << (8 * i);
    }
    return result;
}
inline uint32_t __dp4a(uint32_t a, uint32_t b, uint32_t c) {
    for (int i = 0; i < 32; i += 8) c += (a >> i & 255) * (b >> i & 255);
    return c;
}
template <class T>
T emulated_bits(uint32_t bits) {
    T value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline float __uint_as_float(uint32_t bits) { return emulated_bits<float>(bits); }
inline float __int_as_float(int bits) { return emulated_bits<float>(static_cast<uint32_t>(bits)); }
inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
template <class T>
T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
    return a < b ? b : a;
}

// --- memory --------------------------------------------------------------------------------------

template <class T>
T __ldg(const T* p) {
    return *p;
}
template <class T>
T __ldcs(const T* p) {
    return *p;
}
template <class T>
void __stcs(T* p, T value) {
    *p = value;
}
template <class T, class V, class Change>
T emulated_atomic(T* p, V value, Change change) {
    const T before = *p;
    *p = change(before, static_cast<T>(value));
    return before;
}
template <class T, class V>
T atomicAdd(T* p, V value) {
    return emulated_atomic(p, value, [](T a, T b) { return static_cast<T>(a + b); });
}
template <class T, class V>
T atomicOr(T* p, V value) {
    return emulated_atomic(p, value, [](T a, T b) { return static_cast<T>(a | b); });
}
template <class T, class V>
T atomicMin(T* p, V value) {
    return emulated_atomic(p, value, [](T a, T b) { return b < a ? b : a; });
}
template <class T, class V>
T atomicMax(T* p, V value) {
    return emulated_atomic(p, value, [](T a, T b) { return a < b ? b : a; });
}
template <class T, class V>
T atomicExch(T* p, V value) {
    return emulated_atomic(p, value, [](T, T b) { return b; });
}
template <class T, class V, class W>
T atomicCAS(T* p, V expected, W value) {
    const T before = *p;
    if (before == static_cast<T>(expected)) *p = static_cast<T>(value);
    return before;
}

// --- launches ------------------------------------------------------------------------------------

extern "C" {
extern unsigned char __start_cuda_shared[] __attribute__((weak));
extern unsigned char __stop_cuda_shared[] __attribute__((weak));
}

namespace emulation {

struct Launch {
    unsigned grid[3], block[3], shared_bytes, seed;
};

// Runs a block; false if its threads wait for each other for ever.
inline bool run_block(unsigned threads, uint32_t& random) {
    std::vector<unsigned> order(threads);
    for (unsigned i = 0; i < threads; i++) order[i] = i;
    for (unsigned i = threads; random && i > 1; i--) {
        random = random * 1664525u + 1013904223u;
        std::swap(order[i - 1], order[(random >> 8) % i]);
    }
    for (unsigned live = threads; live;) {
        progress = false;
        for (const unsigned next : order) {
            Fiber& fiber = fibers[next];
            if (fiber.done) continue;
            current = &fiber;
            fiber.stuck = false;
            if (!_setjmp(scheduler)) {
                if (fiber.started) _longjmp(fiber.here, 1);
                fiber.started = true;
                setcontext(&fiber.start);
            }
            // A warp may go on after the death of lanes that no later mask names.
            if (current->done) {
                live--;
                progress = true;
                if (--barrier_count && barrier_arrived == barrier_count) {
                    barrier_arrived = 0;
                    barrier_generation++;
                }
            }
        }
        if (!progress) return false;
    }
    return true;
}

inline char* stacks(unsigned threads) {
    static char* memory;
    static unsigned room;
    if (room < threads) {
        void* fresh = mmap(nullptr, threads * STACK_BYTES, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (fresh == MAP_FAILED) std::abort();
        memory = static_cast<char*>(fresh);
        room = threads;
    }
    return memory;
}

// Runs a grid; 0, or 1 if threads wait for each other for ever.
inline int run_grid(const Launch& launch, void (*kernel)(void*), void* arguments) {
    const unsigned threads = launch.block[0] * launch.block[1] * launch.block[2];
    blockDim = {launch.block[0], launch.block[1], launch.block[2]};
    gridDim = {launch.grid[0], launch.grid[1], launch.grid[2]};
    body = kernel;
    body_arguments = arguments;
    dynamic_shared.resize((launch.shared_bytes + 15) / 16);
    char* const memory = stacks(threads);
    uint32_t random = launch.seed;
    for (unsigned z = 0; z < gridDim.z; z++)
        for (unsigned y = 0; y < gridDim.y; y++)
            for (unsigned x = 0; x < gridDim.x; x++) {
                blockIdx = {x, y, z};
                fibers.assign(threads, Fiber{});
                warps.assign((threads + WARP - 1) / WARP, Warp{});
                barrier_arrived = 0;
                barrier_count = threads;
                std::memset(dynamic_shared.data(), 0xa5, dynamic_shared.size() * 16);
                if (__start_cuda_shared)
                    std::memset(__start_cuda_shared, 0xa5,
                                __stop_cuda_shared - __start_cuda_shared);
                for (unsigned i = 0; i < threads; i++) {
                    Fiber& fiber = fibers[i];
                    fiber.linear = i;
                    fiber.thread = {i % blockDim.x, i / blockDim.x % blockDim.y,
                                    i / (blockDim.x * blockDim.y)};
                    getcontext(&fiber.start);
                    fiber.start.uc_stack.ss_sp = memory + i * STACK_BYTES;
                    fiber.start.uc_stack.ss_size = STACK_BYTES;
                    makecontext(&fiber.start, enter, 0);
                }
                if (!run_block(threads, random)) return 1;
            }
    return 0;
}

template <class... A, size_t... I>
int launch_with(void (*kernel)(A...), const Launch& launch, void** pointers,
                std::index_sequence<I...>) {
    struct Call {
        void (*kernel)(A...);
        std::tuple<A...> arguments;
    } call{kernel, {*static_cast<std::remove_const_t<A>*>(pointers[I])...}};
    return run_grid(
        launch,
        [](void* it) {
            std::apply(static_cast<Call*>(it)->kernel, static_cast<Call*>(it)->arguments);
        },
        &call);
}

// As cuLaunchKernel: one pointer to each argument.
template <class... A>
int launch(void (*kernel)(A...), const Launch& launch, void** pointers) {
    return launch_with(kernel, launch, pointers, std::index_sequence_for<A...>{});
}

}  // namespace emulation
