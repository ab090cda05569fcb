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
    // All elements are the same: there are no payloads. `index` begins with the element.
    ENCODE_CONSTANT = 2,
};

// Where the sign is.
enum EncodeSign : uint32_t {
    // Below the mantissa.
    SIGN_RAW = 0,
    // The lowest bit of the symbol.
    SIGN_FIRST = 1,
    // Nowhere: all elements have the same one.
    SIGN_POSITIVE = 2,
    SIGN_NEGATIVE = 3,
};

enum EncodeTrait : uint32_t {
    // There are positive ones, and negative ones.
    TRAIT_POSITIVE = 1,
    TRAIT_NEGATIVE = 2,
    TRAIT_SIGNS = 3,
    // They are not all the same.
    TRAIT_VARIES = 4,
};

// Which lists of scale offsets there are: a bit for each axis.
constexpr uint32_t AXIS_ROWS = 1, AXIS_COLUMNS = 2, AXES = 3;

// The model of a tensor: a table over `base`, its entries in the order of their slots. Without
// entries the symbol is `base` in all elements, and nothing is coded.
struct EncodeModel {
    uint32_t state;
    uint32_t base;
    uint32_t escape;
    uint32_t entries;
    // Mantissa bits in the symbol.
    uint32_t joint;
    uint32_t sign;
    // Whether sub-blocks leave out the zeros that their mantissas end with.
    uint32_t trailing_zeros;
    // The EncodeView whose offsets are subtracted times 4, and the axes; 0: none are.
    uint32_t scale;
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
    // Matrices that it can be seen as, at the level `default`.
    uint8_t views;
    // Room for the plan to decode it: a Chunk for each chunk, two Models, SLOTS words, SLOTS Slots;
    // if it has views, a Scale, and offsets of rows and of columns, each rounded up to 16 bytes,
    // then those of columns as words of 16 bits, or 32 for elements of four bytes and more. 0:
    // none.
    uint64_t plan;
    // What elements are like: of EncodeTrait.
    uint32_t traits;
    // Of an element; complex ones are two floats.
    uint32_t item_bytes;
    // Its EncodeViews.
    uint64_t view;
    EncodeModel model;
};

// A tensor seen as a matrix, and the offsets that its rows and columns would have.
struct EncodeView {
    uint64_t columns;
    uint64_t rows;
    // 2^64 / columns, rounded up.
    uint64_t reciprocal;
    // Room for the offsets, signed bytes.
    uint64_t row_offsets;
    uint64_t column_offsets;
    // Room for a sum of magnitudes, 64 bits, for each column; then for so many numbers as there can
    // be stripes: the rows that each was looked at in.
    uint64_t sums;
    // What follows is found on the device. The mean logarithm of the rows' means, the share of a
    // deviation from it that is no noise, and the variance that a mean of one element would have.
    int64_t usual;
    int64_t row_share;
    int64_t noise;
    // One of so many neighbouring rows is looked at, and how many that are; runs of columns side by
    // side, one of which is looked at in a row; one of so many rows counts for the columns.
    uint64_t row_step;
    uint64_t visited;
    uint64_t stripes;
    uint64_t column_step;
    // Bytes with the offsets of no axis, of rows, of columns, and of both; all bits set: not tried.
    uint64_t estimate[AXES + 1];
    // The exponent of the largest magnitudes.
    uint32_t top;
    // What is fitted, and later what is worth trying.
    uint32_t axes;
    // The least and the largest offset of rows and of columns, plus OFFSET_BIAS.
    uint32_t low[2];
    uint32_t high[2];
    uint32_t tensor;
    uint32_t reserved;
};
constexpr uint32_t OFFSET_BIAS = 128;

struct EncodeChunk {
    uint64_t data;
    // Room for the counts of trailing zeros, the states, the raw plane, and so many bytes as there
    // are elements for each of the stream and the bytes of escapes; each rounded up to 16.
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
    uint32_t raw_bytes;
    // The smallest escaped symbol, and 2^16 times the bits of a difference.
    uint32_t escapes_head;
};

static_assert(sizeof(EncodeModel) == 160 && sizeof(EncodeTensor) == 232);
static_assert(sizeof(EncodeView) == 168 && sizeof(EncodeChunk) == 64);
