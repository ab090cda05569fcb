// What the kernels that encode read and write. The host fills in what is known of a tensor before
// its data is: the rest is found on the device.
#pragma once

#include "layout.cuh"

constexpr uint32_t MAX_SYMBOLS = 64;
constexpr uint32_t ESCAPE = 63;

enum EncodeState : uint32_t {
    // All chunks are stored raw.
    ENCODE_RAW = 0,
    // One coded plane above one raw plane.
    ENCODE_CUT = 1,
    // The CPU would choose a form that the device does not make: constant, of one sign, with
    // trailing zeros.
    ENCODE_HOST = 2,
};

// The model of a tensor: a table over `base`, its entries in the order of their slots.
struct EncodeModel {
    uint32_t state;
    uint32_t base;
    uint32_t escape;
    uint32_t entries;
    uint8_t index[MAX_SYMBOLS];
    uint8_t frequency[MAX_SYMBOLS];
};

struct EncodeTensor {
    uint64_t data;
    uint64_t bytes;
    // Room for its payloads, one after the other: the tensor's length, each chunk rounded up to 16.
    uint64_t out;
    uint64_t payload_bytes;
    uint32_t first_chunk;
    uint32_t chunks;
    uint32_t chunk_log2;
    uint8_t element_log2;
    uint8_t exponent_bits;
    uint8_t mantissa_bits;
    uint8_t reserved;
    // Room for the plan to decode it: a Chunk for each chunk, two Models, SLOTS words, SLOTS Slots.
    // 0: the tensor goes to the host, and has the bytes that the CPU gives it.
    uint64_t plan;
    EncodeModel model;
};

struct EncodeChunk {
    uint64_t data;
    // Room for the states, the raw plane, and so many bytes as there are elements for each of the
    // stream and the bytes of escapes; each rounded up to 16.
    uint64_t scratch;
    uint64_t hash;
    // Of the payload, from the first one of the tensor.
    uint64_t offset;
    uint32_t bytes;
    uint32_t tensor;
    uint32_t payload_bytes;
    // As in the index: 0 raw, 1 constant, 2 the model.
    uint32_t storage;
    uint32_t stream_bytes;
    uint32_t escapes;
    uint32_t reserved[2];
};

static_assert(sizeof(EncodeModel) == 144 && sizeof(EncodeTensor) == 200 &&
              sizeof(EncodeChunk) == 64);
