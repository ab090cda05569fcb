// What a kernel may rely on: fixed-width integers, and the few things that CUDA and its emulation
// spell differently. NVRTC brings no standard headers.
#pragma once

#ifdef CUDA_EMULATION
#include "cuda_emulation.h"
#define OFFSET_OF(type, field) __builtin_offsetof(type, field)
#else
using int8_t = signed char;
using int16_t = short;
using int32_t = int;
using int64_t = long long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
using uintptr_t = unsigned long long;
// What offsetof is to the front end of NVRTC, which has no stddef.h.
#define OFFSET_OF(type, field) __INTADDR__(&(static_cast<type*>(nullptr))->field)
// Shared memory whose size the launch gives.
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif

constexpr uint32_t ALL_LANES = 0xffffffffu;
