// What lies where: the numbers of the tensor stream (docs/format.md) and the plan that the host
// makes of its preludes (rust/container/device/). The host has verified and parsed the preludes;
// what the device reads of a stream is the payloads of its chunks.
//
// A plan is one block of memory: the chunks, one after the other, then what they refer to by
// offsets in units of 16 bytes from the beginning of the plan. An offset of 0 means that there is
// none.
#pragma once

#include "platform.cuh"

// --- docs/format.md ------------------------------------------------------------------------------

constexpr uint32_t LANES = 64;
constexpr uint32_t SLOTS = 256;
constexpr uint32_t STATE_LOW = 256;
constexpr uint32_t STATES_BYTES = 2 * LANES;
constexpr uint32_t HEAD_BYTES = 8;
constexpr uint32_t SUB_BLOCK = 4096;
constexpr uint32_t ALIGNMENT = 16;
constexpr uint32_t MAX_PLANES = 16;
constexpr uint32_t MAX_CONTEXTS = 16;
constexpr uint32_t MAX_CLASSES = 16;

constexpr uint64_t HASH_MULTIPLIER = 0x9FB21C641E98DF25ull;
constexpr uint32_t HASH_KEY_LOW = 0x9E3779B9u, HASH_KEY_HIGH = 0x85EBCA6Bu;
constexpr uint32_t HASH_STEP_LOW = 0xC2B2AE35u, HASH_STEP_HIGH = 0x27D4EB2Fu;

enum PlaneMode : uint8_t { RAW = 0, CONSTANT = 1, CODED = 2, CONTEXTS = 3 };
enum Relation : uint8_t { RELATION_CONTEXT = 0, RELATION_DIFFERENCE = 1, RELATION_INTEGER = 2 };

// --- the plan ------------------------------------------------------------------------------------

// How the bytes of a chunk come about.
enum ChunkKind : uint8_t {
    // The payload, and in streams of several chunks zero bytes up to a multiple of 16.
    CHUNK_RAW = 0,
    // The 16 bytes of the payload, repeated.
    CHUNK_CONSTANT = 1,
    // The planes of a Model.
    CHUNK_MODEL = 2,
    // The classes of Records.
    CHUNK_RECORDS = 3,
    // Next to the base, by a Delta.
    CHUNK_DELTA = 4,
    // The 16 bytes of the plan at `model`, repeated.
    CHUNK_FILL = 5,
    // The bytes of the base.
    CHUNK_COPY = 6,
};

enum ChunkFlag : uint8_t {
    // The hash of the decoded bytes is compared.
    CHUNK_VERIFY = 1,
    // The stream has several chunks: payloads are padded.
    CHUNK_ALIGNED = 2,
    // decode_cut takes it, decode_any all others.
    CHUNK_CUT = 4,
};

// A chunk to decode. Pointers are addresses in the memory of the device; `payload` and `out` count
// from what the launch says.
struct Chunk {
    uint64_t payload;
    uint64_t out;
    // Of the chunk's own bytes in the base.
    uint64_t base;
    uint64_t hash;
    // Number of its first element in the tensor; for records, of its first byte.
    uint64_t first;
    uint32_t payload_bytes;
    uint32_t bytes;
    uint32_t model;
    uint8_t kind;
    uint8_t flags;
    uint16_t reserved;
    // For messages: number of the tensor in the launch, and of the chunk in the tensor.
    uint32_t tensor;
    uint32_t number;
};

// A slot of a table: what decode_any looks up.
struct Slot {
    // Frequency, and slot number less the first slot of the symbol.
    uint16_t frequency;
    uint16_t offset;
    // Of deltas: the index.
    uint16_t symbol;
    uint16_t escape;
};

struct Plane {
    uint8_t mode;
    uint8_t width;
    uint8_t escape;
    // Tables, if it is coded in contexts.
    uint8_t contexts;
    // Contexts come from a plane whose lowest bit is so many bits above this plane's highest one,
    // plus 1; 0: they are the classes of the lines.
    uint8_t source;
    uint8_t source_width;
    uint16_t source_first;
    // Of Slots, SLOTS per context.
    uint32_t table;
    // Of the fast kernel: SLOTS words.
    uint32_t cut_table;
    uint64_t value;
};

// Words of 16 bits have the offsets of columns plus this, so that none is negative.
constexpr uint32_t COLUMN_BIAS = 128;

enum ModelFlag : uint8_t { MODEL_TRAILING_ZEROS = 1, MODEL_SCALED = 2 };

struct Model {
    uint8_t element_log2;
    uint8_t phase;
    uint8_t sign_position;
    uint8_t flags;
    uint8_t planes;
    uint8_t coded;
    // The fast kernel's table has symbols shifted by so much.
    uint8_t cut_shift;
    uint8_t reserved;
    // The Scale, if the model is scaled.
    uint32_t scale;
    uint32_t reserved_too;
    Plane plane[MAX_PLANES];
};

// Lists in the order of docs/format.md: offsets, flips and classes, of rows and of columns.
struct Scale {
    uint64_t columns;
    uint32_t shift;
    // Of signed bytes.
    uint32_t list[6];
    // Of the fast kernel: the offsets of the columns as they are added, words of 16 or 32 bits,
    // those of 16 with COLUMN_BIAS added to the offset. Without a list of columns there are 16
    // bytes.
    uint32_t column_words;
    uint32_t reserved[2];
};

struct RecordsClass {
    // Its Model; 0: stored raw.
    uint32_t model;
    uint32_t bytes;
    // Of 16-bit numbers: where its bytes stand in a record.
    uint32_t positions;
    uint32_t reserved;
};

struct Records {
    uint32_t record_bytes;
    uint32_t classes;
    uint32_t reserved[2];
    RecordsClass of[MAX_CLASSES];
};

struct DeltaClass {
    uint8_t first_key;
    uint8_t relation;
    uint8_t raw_bits;
    uint8_t escape;
    uint32_t reserved;
    uint64_t base;
};

struct Delta {
    uint8_t element_log2;
    uint8_t dropped_bits;
    uint8_t key_shift;
    uint8_t classes;
    uint8_t least_raw_bits;
    uint8_t reserved[3];
    // Of Slots, SLOTS per class.
    uint32_t table;
    uint32_t reserved_too;
    DeltaClass of[MAX_CONTEXTS];
};

// What went wrong first. The host reads it when it is asked to.
struct Status {
    uint32_t error;
    uint32_t tensor;
    uint32_t number;
    uint32_t reserved;
};

enum Error : uint32_t {
    ERROR_NONE = 0,
    // A payload is not one that its model can have written.
    ERROR_PAYLOAD = 1,
    // The decoded bytes are not those that were compressed.
    ERROR_HASH = 2,
    // The bytes of a whole tensor, such as a base, are others than expected.
    ERROR_CONTENT = 3,
};

#define OFFSET(type, field, at) static_assert(OFFSET_OF(type, field) == (at), #field)
OFFSET(Chunk, payload, 0);
OFFSET(Chunk, out, 8);
OFFSET(Chunk, base, 16);
OFFSET(Chunk, hash, 24);
OFFSET(Chunk, first, 32);
OFFSET(Chunk, payload_bytes, 40);
OFFSET(Chunk, bytes, 44);
OFFSET(Chunk, model, 48);
OFFSET(Chunk, kind, 52);
OFFSET(Chunk, flags, 53);
OFFSET(Chunk, tensor, 56);
OFFSET(Chunk, number, 60);
OFFSET(Slot, symbol, 4);
OFFSET(Plane, source, 4);
OFFSET(Plane, source_first, 6);
OFFSET(Plane, table, 8);
OFFSET(Plane, cut_table, 12);
OFFSET(Plane, value, 16);
OFFSET(Model, planes, 4);
OFFSET(Model, scale, 8);
OFFSET(Model, plane, 16);
OFFSET(Scale, shift, 8);
OFFSET(Scale, list, 12);
OFFSET(Scale, column_words, 36);
OFFSET(Records, of, 16);
OFFSET(RecordsClass, positions, 8);
OFFSET(Delta, table, 8);
OFFSET(Delta, of, 16);
OFFSET(DeltaClass, base, 8);
static_assert(sizeof(Chunk) == 64 && sizeof(Slot) == 8 && sizeof(Plane) == 24);
static_assert(sizeof(Model) == 400 && sizeof(Scale) == 48 && sizeof(Records) == 272);
static_assert(sizeof(Delta) == 272 && sizeof(Status) == 16);
#undef OFFSET
