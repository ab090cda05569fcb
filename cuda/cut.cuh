// The fast way, for the usual cut of floats: one coded plane above one raw plane, in whole
// sub-blocks, with or without scale offsets of rows and columns. The host says which chunks are of
// this form.
//
// A warp decodes 512 symbols at a time into shared memory; thread t has lanes 2t and 2t + 1. Then
// each thread puts 8 neighbouring elements together, twice, from wide loads, and stores and hashes
// them. A block is one warp, so that all of its shared memory is at addresses that the compiler
// knows, and no two warps ever wait for each other. The stream goes through a ring of two pages of
// 512 bytes, of which a batch of symbols uses one at most; the first page is there twice, before
// and behind the second, so that no read wraps around. The twin of rust/chunk/cut.rs.
#pragma once

#include "escapes.cuh"

constexpr uint32_t TILE = 512;
constexpr uint32_t PAGE = 512;
// Of a slot's symbol: it is the escape.
constexpr uint32_t ESCAPE_BIT = 0x8000;

struct CutRoom {
    uint32_t table[SLOTS];
    uint16_t symbols[TILE];
    uint4 ring[3 * PAGE / 16];
};

// How elements are put together.
struct Cut {
    uint32_t raw_width;
    uint32_t sign_position;
    // Symbols come from the table shifted to their place in the element.
    bool placed;
};

// Bits of `mask` from `a`, others from `b`: one LOP3.
__device__ __forceinline__ uint32_t pick(uint32_t mask, uint32_t a, uint32_t b) {
    return (a & mask) | (b & ~mask);
}

// Eight fields of `rest` bits, 1 to 7 of them, at number `i` (a multiple of 8) of a bit string.
// Only words that have some of these bits are read.
__device__ __forceinline__ uint2 load_fields(const uint8_t* string, uint32_t i, uint32_t rest) {
    const uint8_t* from = string + i / 8 * rest;
    const uint32_t skip = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(from)) % 4;
    const uint32_t* words = reinterpret_cast<const uint32_t*>(from - skip);
    const uint32_t w0 = __ldg(words);
    const uint32_t w1 = skip + rest > 4 ? __ldg(words + 1) : 0;
    const uint32_t w2 = skip + rest > 8 ? __ldg(words + 2) : 0;
    return {__funnelshift_r(w0, w1, 8 * skip), __funnelshift_r(w1, w2, 8 * skip)};
}

// The raw bits of eight elements from number `i` of a sub-block on, two to a word.
__device__ __forceinline__ void load_pairs(const Cut& cut, const uint8_t* block, uint32_t i,
                                           uint32_t raw[4]) {
    const uint32_t whole = cut.raw_width / 8, rest = cut.raw_width % 8;
    if (whole) {
        const uint2 bytes = __ldg(reinterpret_cast<const uint2*>(block + i));
        raw[0] = __byte_perm(bytes.x, 0, 0x4140);
        raw[1] = __byte_perm(bytes.x, 0, 0x4342);
        raw[2] = __byte_perm(bytes.y, 0, 0x4140);
        raw[3] = __byte_perm(bytes.y, 0, 0x4342);
    } else {
        raw[0] = raw[1] = raw[2] = raw[3] = 0;
    }
    if (rest) {
        uint2 fields = load_fields(block + whole * SUB_BLOCK, i, rest);
        const uint32_t mask = ((1u << rest) - 1) * 0x00010001u;
#pragma unroll
        for (uint32_t pair = 0; pair < 4; pair++) {
            const uint32_t both = pick(0x0000ffffu, fields.x, fields.x << (16 - rest));
            raw[pair] |= (both & mask) << (8 * whole);
            fields.x = __funnelshift_r(fields.x, fields.y, 2 * rest);
            fields.y >>= 2 * rest;
        }
    }
}

// The raw fields of eight elements, of at most eight bits, one to a byte, with other bits above
// them.
__device__ __forceinline__ uint2 load_byte_fields(const Cut& cut, const uint8_t* block,
                                                  uint32_t i) {
    const uint32_t rest = cut.raw_width;
    if (rest == 8) return __ldg(reinterpret_cast<const uint2*>(block + i));
    const uint2 fields = load_fields(block, i, rest);
    const uint32_t four[2] = {fields.x, __funnelshift_r(fields.x, fields.y, 4 * rest)};
    uint32_t bytes[2];
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        const uint32_t two = pick(0x0000ffffu, four[half], four[half] << (16 - 2 * rest));
        bytes[half] = pick(0x00ff00ffu, two, two << (8 - rest));
    }
    return {bytes[0], bytes[1]};
}

// Where a thread finds the raw fields of its elements where the raw plane is one string of fields
// of 7 or 8 bits: 32 threads side by side have 8 fields each, and then the next 256.
template <uint32_t WIDTH>
struct Fields {
    static_assert(WIDTH == 7 || WIDTH == 8, "others are taken apart in another way");
    const uint8_t* from;
    uint32_t skip;

    __device__ __forceinline__ explicit Fields(const uint8_t* plane)
        : from(plane + lane_id() * WIDTH), skip(0) {
        if (WIDTH == 7) {
            // Words begin at multiples of 4: planes do, and so does all that threads go on by.
            skip = lane_id() * WIDTH % 4;
            from -= skip;
            skip *= 8;
        }
    }
    // The fields of half `half` of a tile, from the lowest bit on, with other bits above them.
    __device__ __forceinline__ uint2 load(uint32_t half) const {
        const uint8_t* const at = from + half * 32 * WIDTH;
        if (WIDTH == 8) return __ldg(reinterpret_cast<const uint2*>(at));
        const uint32_t* const words = reinterpret_cast<const uint32_t*>(at);
        const uint32_t w0 = __ldg(words), w1 = __ldg(words + 1);
        // Only what has some of the bits is read.
        const uint32_t w2 = skip >= 16 ? __ldg(words + 2) : 0;
        return {__funnelshift_r(w0, w1, skip), __funnelshift_r(w1, w2, skip)};
    }
    __device__ __forceinline__ void go_on() { from += TILE / 8 * WIDTH; }
    // Two to a word, each field's lowest bit, the sign, at the top and the others at the bottom;
    // other bits between them. A field of which the sign is the highest bit of a byte has the
    // others in the byte above: each is shifted to where that is so, and two bytes of it are taken.
    __device__ __forceinline__ static void spread(const uint2 raw, uint32_t x[4]) {
        if (WIDTH == 8) {
            const uint32_t a = raw.x << 7, b = __funnelshift_l(raw.x, raw.y, 7), c = raw.y >> 25;
            x[0] = __byte_perm(a, 0, 0x1201);
            x[1] = __byte_perm(a, b, 0x3423);
            x[2] = __byte_perm(b, 0, 0x1201);
            x[3] = __byte_perm(b, c, 0x3423);
        } else {
            const uint32_t fourth = __funnelshift_r(raw.x, raw.y, 21);
            x[0] = __byte_perm(raw.x << 7, raw.x, 0x4501);
            x[1] = __byte_perm(raw.x << 1, raw.x << 2, 0x6712);
            x[2] = __byte_perm(fourth, raw.y << 4, 0x4501);
            x[3] = __byte_perm(raw.y << 5, raw.y << 6, 0x6712);
        }
    }
};

// The raw bits of eight elements of four bytes: two or three byte planes, and a bit string.
__device__ __forceinline__ void load_words(const Cut& cut, const uint8_t* block, uint32_t i,
                                           uint32_t raw[8]) {
    const uint32_t whole = cut.raw_width / 8, rest = cut.raw_width % 8;
    const uint2 first = __ldg(reinterpret_cast<const uint2*>(block + i));
    const uint2 second = __ldg(reinterpret_cast<const uint2*>(block + SUB_BLOCK + i));
    uint2 third{0, 0};
    if (whole > 2) third = __ldg(reinterpret_cast<const uint2*>(block + 2 * SUB_BLOCK + i));
#pragma unroll
    for (uint32_t j = 0; j < 8; j++) {
        const uint32_t a = j < 4 ? first.x : first.y, b = j < 4 ? second.x : second.y;
        const uint32_t low = __byte_perm(a, b, (j % 4) | (j % 4 + 4) << 4);
        const uint32_t c = j < 4 ? third.x : third.y;
        raw[j] = __byte_perm(low, c, 0x7010 | (j % 4 + 4) << 8) & 0x00ffffffu;
    }
    if (rest) {
        uint2 fields = load_fields(block + whole * SUB_BLOCK, i, rest);
        const uint32_t mask = (1u << rest) - 1;
#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            raw[j] |= (fields.x & mask) << (8 * whole);
            fields.x = __funnelshift_r(fields.x, fields.y, rest);
            fields.y >>= rest;
        }
    }
}

// Scale offsets of a thread's next eight elements: their row and column, 32 * 8 elements further
// each time. Where there are none of rows or of columns, all lines are line 0.
struct Lines {
    const int8_t* rows;
    const uint8_t* columns;
    uint32_t width, shift;
    uint32_t row, column;
    uint32_t more_rows, more_columns, one_row, word_bytes;

    __device__ __forceinline__ Lines(const uint8_t* plan, const Scale& scale, uint64_t first,
                                     uint32_t bytes)
        // What is reserved is 0.
        : rows(reinterpret_cast<const int8_t*>(
              scale.list[0] ? plan + static_cast<uint64_t>(scale.list[0]) * ALIGNMENT
                            : reinterpret_cast<const uint8_t*>(scale.reserved))),
          columns(plan + static_cast<uint64_t>(scale.column_words) * ALIGNMENT),
          // A model without scale offsets has no Scale: whatever is read must not be divided by.
          width(max(static_cast<uint32_t>(scale.columns), 1u)),
          shift(scale.shift),
          one_row(scale.list[0] != 0),
          word_bytes(scale.list[1] ? bytes : 0) {
        const uint64_t i = first + 8 * lane_id();
        row = static_cast<uint32_t>(i / width) * one_row;
        column = static_cast<uint32_t>(i % width);
        more_rows = 8 * 32 / width * one_row;
        more_columns = 8 * 32 % width;
    }
    // An offset at its place in an element.
    __device__ __forceinline__ uint32_t placed(int offset) const {
        return shift < 32 ? static_cast<uint32_t>(offset) << shift : 0;
    }
    // The words of four columns of four bytes, or of eight of two.
    __device__ __forceinline__ uint4 words(uint32_t more) const {
        return __ldg(
            reinterpret_cast<const uint4*>(columns + static_cast<uint64_t>(column) * word_bytes) +
            (word_bytes ? more : 0));
    }
    __device__ __forceinline__ void go_on() {
        row += more_rows;
        column += more_columns;
        if (column >= width) {
            column -= width;
            row += one_row;
        }
    }
};

// Adds scale offsets to the magnitudes of pairs of elements, modulo 2^(bits - 1).
__device__ __forceinline__ void add_to_pairs(const Lines& lines, uint32_t magnitude,
                                             uint32_t x[4]) {
    const int offset = lines.rows[lines.row] - static_cast<int>(COLUMN_BIAS);
    const uint32_t row = (lines.placed(offset) & (magnitude & 0xffff)) * 0x00010001u;
    const uint4 columns = lines.words(0);
    const uint32_t of[4] = {columns.x, columns.y, columns.z, columns.w};
#pragma unroll
    for (uint32_t pair = 0; pair < 4; pair++) {
        // Sums of two magnitudes stay within their 16 bits.
        const uint32_t offset = ((of[pair] & magnitude) + row) & magnitude;
        x[pair] = pick(magnitude, (x[pair] & magnitude) + offset, x[pair]);
    }
}

__device__ __forceinline__ void add_to_words(const Lines& lines, uint32_t x[8]) {
    const uint32_t magnitude = 0x7fffffffu;
    const uint32_t row = lines.placed(lines.rows[lines.row]);
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        const uint4 columns = lines.words(half);
        const uint32_t of[4] = {columns.x, columns.y, columns.z, columns.w};
#pragma unroll
        for (uint32_t j = 4 * half; j < 4 * half + 4; j++)
            x[j] = pick(magnitude, x[j] + row + of[j % 4], x[j]);
    }
}

// The hash of a thread's words: eight elements, then those 32 * 8 elements further.
struct RunningHash {
    ChunkHash hash;
    uint32_t key_low, key_high;

    __device__ __forceinline__ explicit RunningHash(uint32_t element_bytes)
        : key_low(HASH_KEY_LOW + lane_id() * element_bytes * HASH_STEP_LOW),
          key_high(HASH_KEY_HIGH + lane_id() * element_bytes * HASH_STEP_HIGH) {}
    // Word number `j` of the eight elements.
    __device__ __forceinline__ void add(uint32_t j, uint32_t low, uint32_t high) {
        hash.add(low, high, key_low + j * HASH_STEP_LOW, key_high + j * HASH_STEP_HIGH);
    }
    __device__ __forceinline__ void go_on(uint32_t element_bytes) {
        key_low += 32 * element_bytes * HASH_STEP_LOW;
        key_high += 32 * element_bytes * HASH_STEP_HIGH;
    }
};

// Stores and hashes eight elements of two bytes.
__device__ __forceinline__ void store_pairs(const uint32_t x[4], uint8_t* out, RunningHash& hash) {
    hash.add(0, x[0], x[1]);
    hash.add(1, x[2], x[3]);
    __stcs(reinterpret_cast<uint4*>(out), uint4{x[0], x[1], x[2], x[3]});
}

// Units of scale offsets for which two offsets and a magnitude stay within 16 bits together.
constexpr uint32_t MOST_FOLDED_SHIFT = 4;

// What is taken off symbols at their place, so that both offsets can be added as positive ones.
__device__ __forceinline__ uint32_t folded_bias(uint32_t shift) { return 2 * COLUMN_BIAS << shift; }

// A slot, or a symbol at its place, with less in its symbol.
__device__ __forceinline__ uint32_t less(uint32_t slot, uint32_t bias) {
    return pick(0x7fffu, slot - bias, slot);
}

// Puts eight elements together from placed symbols and fields of known width, and stores them. With
// scale offsets symbols are less by `folded_bias`.
template <uint32_t WIDTH, bool SCALED>
__device__ __forceinline__ void put_fields(const uint2 raw, const uint4 symbols, const Lines& lines,
                                           uint8_t* out, RunningHash& hash) {
    constexpr uint32_t MANTISSA = ((1u << (WIDTH - 1)) - 1) * 0x00010001u;
    constexpr uint32_t SIGN = 0x80008000u;
    const uint32_t of[4] = {symbols.x, symbols.y, symbols.z, symbols.w};
    uint32_t x[4];
    Fields<WIDTH>::spread(raw, x);
    if (SCALED) {
        const uint32_t unit = 0x00010001u << lines.shift;
        uint32_t row = static_cast<uint32_t>(lines.rows[lines.row]) * unit + COLUMN_BIAS * unit;
        // Compilers would multiply for each pair.
        asm("" : "+r"(row));
        const uint4 columns = lines.words(0);
        const uint32_t more[4] = {columns.x, columns.y, columns.z, columns.w};
#pragma unroll
        for (uint32_t pair = 0; pair < 4; pair++)
            x[pair] = pick(SIGN, x[pair], ((x[pair] & MANTISSA) | of[pair]) + more[pair] + row);
    } else {
#pragma unroll
        for (uint32_t pair = 0; pair < 4; pair++)
            x[pair] = (x[pair] & (MANTISSA | SIGN)) | of[pair];
    }
    store_pairs(x, out, hash);
}

// Puts eight elements together and stores them at `out`; `i` is the number of the first in its
// sub-block.
template <uint32_t BYTES>
__device__ __forceinline__ void put_together(const Cut& cut, const uint8_t* block, uint32_t i,
                                             const uint4 symbols, bool scaled, const Lines& lines,
                                             uint8_t* out, RunningHash& hash) {
    const uint32_t pairs[4] = {symbols.x, symbols.y, symbols.z, symbols.w};
    const uint32_t p = cut.sign_position;
    if constexpr (BYTES <= 2) {
        constexpr uint32_t TOP = 8 * BYTES - 1;
        const uint32_t sign = 0x00010001u << TOP;
        const uint32_t below = ((1u << p) - 1) * 0x00010001u;
        uint32_t x[4];
        if (BYTES == 2 && cut.placed) {
            // Raw fields of at most eight bits, the sign lowest: as bytes, whose bits above the
            // field the mask drops in the end.
            const uint2 raw = load_byte_fields(cut, block, i);
            const uint32_t keep = ((1u << (cut.raw_width - 1)) - 1) * 0x00010001u | sign;
#pragma unroll
            for (uint32_t pair = 0; pair < 4; pair++) {
                const uint32_t bytes = pair < 2 ? raw.x : raw.y;
                const uint32_t both =
                    __byte_perm(bytes >> 1, bytes << 7, pair % 2 ? 0x7362 : 0x5140);
                x[pair] = (both & keep) | pairs[pair];
            }
        } else {
            load_pairs(cut, block, i, x);
#pragma unroll
            for (uint32_t pair = 0; pair < 4; pair++) {
                const uint32_t y = x[pair] | pairs[pair] << cut.raw_width;
                x[pair] = pick(sign, y << (TOP - p), pick(below, y, y >> 1));
            }
        }
        if (scaled) add_to_pairs(lines, BYTES == 2 ? 0x7fff7fffu : 0x007f007fu, x);
        if constexpr (BYTES == 2) {
            store_pairs(x, out, hash);
        } else {
            const uint2 packed{__byte_perm(x[0], x[1], 0x6420), __byte_perm(x[2], x[3], 0x6420)};
            hash.add(0, packed.x, packed.y);
            __stcs(reinterpret_cast<uint2*>(out), packed);
        }
    } else {
        const uint32_t below = (1u << p) - 1;
        uint32_t x[8];
        load_words(cut, block, i, x);
#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            const uint32_t symbol = j % 2 ? pairs[j / 2] >> 16 : pairs[j / 2] & 0xffff;
            const uint32_t y = x[j] | symbol << cut.raw_width;
            x[j] = pick(0x80000000u, y << (31 - p), pick(below, y, y >> 1));
        }
        if (scaled) add_to_words(lines, x);
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) hash.add(j, x[2 * j], x[2 * j + 1]);
        __stcs(reinterpret_cast<uint4*>(out), uint4{x[0], x[1], x[2], x[3]});
        __stcs(reinterpret_cast<uint4*>(out) + 1, uint4{x[4], x[5], x[6], x[7]});
    }
}

// 16 bytes of the stream, zeros behind its end.
__device__ __forceinline__ uint4 load_page(const uint8_t* stream, uint32_t stream_bytes,
                                           uint32_t page) {
    const uint32_t at = page * PAGE + lane_id() * 16;
    return at < stream_bytes ? __ldg(reinterpret_cast<const uint4*>(stream + at))
                             : uint4{0, 0, 0, 0};
}

__device__ __forceinline__ void store_page(CutRoom& room, uint32_t page, uint4 bytes) {
    room.ring[page % 2 * 32 + lane_id()] = bytes;
    if (page % 2 == 0) room.ring[64 + lane_id()] = bytes;
}

// Where the ring begins, as `renormalise` counts: an address in shared memory, in the emulation 0.
__device__ __forceinline__ uint32_t ring_address(const CutRoom& room) {
#ifdef CUDA_EMULATION
    (void)room;
    return 0;
#else
    return static_cast<uint32_t>(__cvta_generic_to_shared(room.ring));
#endif
}

// Stores the low 16 bits. Two neighbours are not to become one store, which would take a step to
// join them.
__device__ __forceinline__ void store_half(uint16_t* to, uint32_t value) {
#ifdef CUDA_EMULATION
    *to = static_cast<uint16_t>(value);
#else
    asm volatile("st.volatile.shared.u16 [%0], %1;" ::"r"(
                     static_cast<uint32_t>(__cvta_generic_to_shared(to))),
                 "h"(static_cast<uint16_t>(value)));
#endif
}

// States below 256 take the next bytes of the ring, in the order of the lanes, from byte `at` on,
// which moves on. A state `x` is left in two parts: the number of its next slot, and above that
// what __dp4a multiplies.
//
// Written out, because compilers compare each state twice and move what could be loaded in place:
// the decoder is bound by the number of its instructions.
__device__ __forceinline__ void renormalise(uint32_t x0, uint32_t x1, uint32_t below,
                                            const uint8_t* ring, uint32_t& at, uint32_t& low0,
                                            uint32_t& low1, uint32_t& high0, uint32_t& high1) {
#ifdef CUDA_EMULATION
    const bool takes0 = x0 < STATE_LOW, takes1 = x1 < STATE_LOW;
    const uint32_t takers0 = __ballot_sync(ALL_LANES, takes0);
    const uint32_t takers1 = __ballot_sync(ALL_LANES, takes1);
    const uint32_t mine = at + __popc(takers0 & below) + __popc(takers1 & below);
    at = __shfl_sync(ALL_LANES, mine + takes0 + takes1, 31);
    low0 = takes0 ? ring[mine] : x0 % SLOTS;
    low1 = takes1 ? ring[mine + takes0] : x1 % SLOTS;
    high0 = __byte_perm(x0, 1, takes0 ? 0x4055 : 0x4155);
    high1 = __byte_perm(x1, 1, takes1 ? 0x4055 : 0x4155);
#else
    asm volatile(
        "{\n"
        ".reg .pred p, q;\n"
        ".reg .b32 m, n, a, b;\n"
        "setp.lt.u32 p, %5, 256;\n"
        "setp.lt.u32 q, %6, 256;\n"
        "vote.sync.ballot.b32 m, p, 0xffffffff;\n"
        "vote.sync.ballot.b32 n, q, 0xffffffff;\n"
        "and.b32 a, m, %7;\n"
        "and.b32 b, n, %7;\n"
        "popc.b32 a, a;\n"
        "popc.b32 b, b;\n"
        "add.u32 a, a, b;\n"
        "add.u32 a, a, %4;\n"
        "ld.shared.u8 %0, [a];\n"
        "@p add.u32 a, a, 1;\n"
        "ld.shared.u8 %1, [a];\n"
        "@q add.u32 a, a, 1;\n"
        "shfl.sync.idx.b32 %4, a, 31, 31, 0xffffffff;\n"
        "@!p and.b32 %0, %5, 255;\n"
        "@!q and.b32 %1, %6, 255;\n"
        "selp.b32 m, 0x4055, 0x4155, p;\n"
        "prmt.b32 %2, %5, 1, m;\n"
        "selp.b32 n, 0x4055, 0x4155, q;\n"
        "prmt.b32 %3, %6, 1, n;\n"
        "}"
        : "=&r"(low0), "=&r"(low1), "=&r"(high0), "=&r"(high1), "+r"(at)
        : "r"(x0), "r"(x1), "r"(below)
        : "memory");
#endif
}

// Puts escaped values, from number `used` on, in place of the escapes of a tile; returns how many
// there were.
__device__ __noinline__ uint32_t patch(CutRoom& room, Escapes escapes, uint32_t used,
                                       uint32_t shift, uint32_t bias) {
    const uint32_t below = (1u << lane_id()) - 1;
    uint32_t met = 0;
    for (uint32_t i = lane_id(); i < TILE; i += 32) {
        const bool escaped = room.symbols[i] & ESCAPE_BIT;
        const uint32_t escaping = __ballot_sync(ALL_LANES, escaped);
        const uint32_t at = used + met + __popc(escaping & below);
        if (escaped)
            room.symbols[i] = static_cast<uint16_t>(less(escapes.symbol(at) << shift, bias));
        met += __popc(escaping);
    }
    __syncwarp();
    return met;
}

// Decodes a chunk in whose room the table of its model is.
//
// What is frequent has a variant of its own: RAW_WIDTH is the width of the raw plane if it is known
// (0: any), of placed symbols; SCALED says that there may be scale offsets, and with a known width
// that there are, in units of at most 2^MOST_FOLDED_SHIFT, and that symbols in the room are less by
// `folded_bias`.
template <uint32_t BYTES, uint32_t RAW_WIDTH, bool SCALED>
__device__ __forceinline__ Error decode_cut_chunk(const uint8_t* plan, const Model& model,
                                                  const Chunk& chunk, CutRoom& room) {
    const uint32_t lane = lane_id();
    const uint32_t below = (1u << lane) - 1;
    const uint8_t* const payload = reinterpret_cast<const uint8_t*>(chunk.payload);
    const uint32_t width = model.plane[0].width;
    const uint32_t count = chunk.bytes / BYTES;
    const Cut cut{RAW_WIDTH ? RAW_WIDTH : model.plane[1].width,
                  RAW_WIDTH ? 0u : model.sign_position, RAW_WIDTH != 0 || model.cut_shift != 0};

    // The parts: head, states, raw plane, stream, escapes.
    const uint64_t raw_at = ALIGNMENT + STATES_BYTES;
    const uint64_t stream_at = raw_at + static_cast<uint64_t>(count / 8) * cut.raw_width;
    if (chunk.payload_bytes < stream_at) return ERROR_PAYLOAD;
    const uint4 head = __ldg(reinterpret_cast<const uint4*>(payload));
    const uint32_t stream_bytes = head.x;
    const uint64_t escapes_at = stream_at + ((static_cast<uint64_t>(stream_bytes) + 15) & ~15ull);
    if ((head.z | head.w) != 0 || escapes_at > chunk.payload_bytes || head.y > count ||
        (head.y && !model.plane[0].escape))
        return ERROR_PAYLOAD;
    Escapes escapes;
    uint32_t end;
    if (!read_escapes(payload, chunk.payload_bytes, escapes_at, head.y, width, escapes, end) ||
        end != chunk.payload_bytes)
        return ERROR_PAYLOAD;
    bool good = is_padding(payload, stream_at + stream_bytes, escapes_at);
    const uint8_t* const states = payload + ALIGNMENT;
    // A state is the number of its next slot, and in byte 2 of a word, below a 1, what is above
    // that.
    uint32_t low0 = states[2 * lane], low1 = states[2 * lane + 1];
    uint32_t high0 = 1u << 24 | states[LANES + 2 * lane] << 16;
    uint32_t high1 = 1u << 24 | states[LANES + 2 * lane + 1] << 16;
    const uint32_t at_rest = 1u << 24 | STATE_LOW / 256 << 16;
    good &= high0 >= at_rest && high1 >= at_rest;
    if (!__all_sync(ALL_LANES, good)) return ERROR_PAYLOAD;

    const uint8_t* const stream = payload + stream_at;
    store_page(room, 0, load_page(stream, stream_bytes, 0));
    store_page(room, 1, load_page(stream, stream_bytes, 1));
    uint4 next = load_page(stream, stream_bytes, 2);
    uint32_t pages = 2, cursor = 0, escapes_used = 0;
    const bool scaled = SCALED && (RAW_WIDTH != 0 || model.flags & MODEL_SCALED);
    Lines lines(
        plan,
        *reinterpret_cast<const Scale*>(plan + static_cast<uint64_t>(model.scale) * ALIGNMENT),
        scaled ? chunk.first : 0, BYTES == 4 ? 4 : 2);
    const uint32_t bias = SCALED && RAW_WIDTH ? folded_bias(lines.shift) : 0;
    RunningHash hash(BYTES);
    uint8_t* out = reinterpret_cast<uint8_t*>(chunk.out) + lane * 8 * BYTES;
    const uint8_t* block = payload + raw_at;
    Fields<RAW_WIDTH ? RAW_WIDTH : 8> fields(block);
    const uint8_t* const ring = reinterpret_cast<const uint8_t*>(room.ring);
    __syncwarp();

    for (uint32_t start = 0; start < count; start += TILE) {
        if (pages <= cursor / PAGE + 1) {
            store_page(room, pages, next);
            pages++;
            next = load_page(stream, stream_bytes, pages);
            __syncwarp();
        }
        const uint32_t begin = ring_address(room) + cursor % (2 * PAGE);
        uint32_t at = begin;
#pragma unroll
        for (uint32_t group = 0; group < TILE / LANES; group++) {
            const uint32_t slot0 = room.table[low0], slot1 = room.table[low1];
            store_half(room.symbols + group * LANES + 2 * lane, slot0);
            store_half(room.symbols + group * LANES + 2 * lane + 1, slot1);
            // frequency * (x / 256) + offset: bytes 2 and 3 of the slot.
            const uint32_t x0 = __dp4a(slot0, high0, 0u), x1 = __dp4a(slot1, high1, 0u);
            renormalise(x0, x1, below, ring, at, low0, low1, high0, high1);
        }
        cursor += at - begin;
        __syncwarp();
        uint4 symbols[2];
        const uint4* const ready = reinterpret_cast<const uint4*>(room.symbols) + lane;
        symbols[0] = ready[0];
        symbols[1] = ready[32];
        const uint32_t flags = symbols[0].x | symbols[0].y | symbols[0].z | symbols[0].w |
                               symbols[1].x | symbols[1].y | symbols[1].z | symbols[1].w;
        if (__any_sync(ALL_LANES, flags & (ESCAPE_BIT * 0x00010001u))) {
            escapes_used += patch(room, escapes, escapes_used, model.cut_shift, bias);
            symbols[0] = ready[0];
            symbols[1] = ready[32];
        }
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            if constexpr (RAW_WIDTH != 0) {
                put_fields<RAW_WIDTH, SCALED>(fields.load(half), symbols[half], lines, out, hash);
            } else {
                const uint32_t i = start % SUB_BLOCK + half * 256 + lane * 8;
                put_together<BYTES>(cut, block, i, symbols[half], scaled, lines, out, hash);
            }
            out += 256 * BYTES;
            hash.go_on(BYTES);
            if (scaled) lines.go_on();
        }
        if (RAW_WIDTH != 0)
            fields.go_on();
        else if (start % SUB_BLOCK == SUB_BLOCK - TILE)
            block += SUB_BLOCK / 8 * cut.raw_width;
        __syncwarp();
    }
    good = cursor == stream_bytes && escapes_used == head.y && low0 == 0 && low1 == 0 &&
           high0 == at_rest && high1 == at_rest;
    if (!__all_sync(ALL_LANES, good)) return ERROR_PAYLOAD;
    if (!(chunk.flags & CHUNK_VERIFY)) return ERROR_NONE;
    return hash.hash.finish(chunk.bytes) == chunk.hash ? ERROR_NONE : ERROR_HASH;
}
