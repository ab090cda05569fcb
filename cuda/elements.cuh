// Elements of a tensor, one by one, scale offsets taken off them, and the widths of what they are
// cut into.
#pragma once

#include "bits.cuh"
#include "encode_layout.cuh"

__device__ __forceinline__ uint64_t load_element(const uint8_t* data, uint64_t i, uint32_t log2) {
    switch (log2) {
        case 0:
            return data[i];
        case 1:
            return reinterpret_cast<const uint16_t*>(data)[i];
        case 2:
            return reinterpret_cast<const uint32_t*>(data)[i];
        default:
            return reinterpret_cast<const uint64_t*>(data)[i];
    }
}

__device__ __forceinline__ bool is_constant(uint32_t sign) { return sign >= SIGN_POSITIVE; }

// Mantissa bits below the symbol, and bits of the raw plane.
__device__ __forceinline__ uint32_t mantissa_left(const EncodeTensor& tensor) {
    return tensor.mantissa_bits - tensor.model.joint;
}
__device__ __forceinline__ uint32_t raw_bits(const EncodeTensor& tensor) {
    return mantissa_left(tensor) + (tensor.model.sign == SIGN_RAW);
}
__device__ __forceinline__ uint32_t symbol_bits(const EncodeTensor& tensor) {
    return tensor.exponent_bits + tensor.model.joint + (tensor.model.sign == SIGN_FIRST);
}

// log2 of the steps of offsets in an octave: eight of them, fewer where the mantissa has fewer
// bits.
__device__ __forceinline__ uint32_t octave_log2(uint32_t mantissa_bits) {
    return min(mantissa_bits, 3u);
}

// The scale offsets of a tensor: those of one view, of the axes that the model takes, or none.
struct Offsets {
    const int8_t* rows;
    const int8_t* columns;
    uint64_t width, reciprocal, magnitude;
    uint32_t shift;

    // Where an element is in the matrix.
    struct Place {
        uint64_t row, column;
    };

    __device__ Offsets(const EncodeTensor& tensor, uint32_t scale)
        : rows(nullptr), columns(nullptr), width(1), reciprocal(0), magnitude(0), shift(0) {
        if (!(scale & AXES)) return;
        const EncodeView& view =
            reinterpret_cast<const EncodeView*>(tensor.view)[scale / (AXES + 1)];
        if (scale & AXIS_ROWS) rows = reinterpret_cast<const int8_t*>(view.row_offsets);
        if (scale & AXIS_COLUMNS) columns = reinterpret_cast<const int8_t*>(view.column_offsets);
        width = view.columns;
        reciprocal = view.reciprocal;
        magnitude = low_mask((8u << tensor.element_log2) - 1);
        shift = tensor.mantissa_bits - octave_log2(tensor.mantissa_bits);
    }
    __device__ __forceinline__ bool any() const { return rows || columns; }
    __device__ __forceinline__ Place place(uint64_t element) const {
        // The product is one too many at most.
        uint64_t row = __umul64hi(element, reciprocal);
        if (row * width > element) row--;
        return {row, element - row * width};
    }
    __device__ __forceinline__ void next(Place& at) const {
        if (++at.column == width) at = {at.row + 1, 0};
    }
    __device__ __forceinline__ uint64_t subtract(uint64_t x, const Place& at) const {
        const int32_t offset = (rows ? rows[at.row] : 0) + (columns ? columns[at.column] : 0);
        const uint64_t moved = x - (static_cast<uint64_t>(static_cast<int64_t>(offset)) << shift);
        return (x & ~magnitude) | (moved & magnitude);
    }
    // An element of the tensor without its offset.
    __device__ __forceinline__ uint64_t element(const uint8_t* data, uint64_t i,
                                                uint32_t log2) const {
        const uint64_t x = load_element(data, i, log2);
        return any() ? subtract(x, place(i)) : x;
    }
};
