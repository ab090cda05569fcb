// What a tensor of floats is stored with at the level `default`, after encode_traits: the twin of
// rust/model/select.rs. No step waits for the host:
//
//   encode_probe     per view: a small part of the matrix, and which axes are worth fitting
//   encode_rows      per row: its offset, and what it adds to the sums of the columns
//   encode_columns   per view: the offsets of its columns, and which axes are worth trying
//   encode_estimate  per view and choice of axes: about what the tensor would take
//   encode_choose    per tensor: the smallest of these, the phase of its offsets, and the table
//
// The first four are for tensors that are seen as matrices.
#include "scale.cuh"

// Rows of the probe, and columns in groups of neighbours; it takes one of so many elements at most.
constexpr uint64_t PROBE_ROWS = 128;
constexpr uint64_t PROBE_GROUPS = 16;
constexpr uint64_t PROBE_GROUP_COLUMNS = 16;
constexpr uint64_t PROBE_PART = 8;

struct ProbeRoom {
    int32_t logs[PROBE_ROWS];
    int32_t differences[PROBE_ROWS];
    uint64_t columns[PROBE_GROUPS * PROBE_GROUP_COLUMNS];
    int32_t column_logs[PROBE_GROUPS * PROBE_GROUP_COLUMNS];
    uint64_t start[PROBE_GROUPS];
    SpreadRoom spread;
    uint32_t top;
};
static_assert(PROBE_GROUPS * PROBE_GROUP_COLUMNS == PLAN_THREADS && PROBE_ROWS <= PLAN_THREADS);

extern "C" __global__ void __launch_bounds__(PLAN_THREADS, 1)
    encode_probe(const EncodeTensor* tensors, EncodeView* views) {
    __shared__ ProbeRoom room;
    EncodeView& view = views[blockIdx.x];
    const EncodeTensor& tensor = tensors[view.tensor];
    const uint8_t* data = reinterpret_cast<const uint8_t*>(tensor.data);
    const uint64_t one = 1, zero = 0;
    const uint64_t groups = max(min(view.columns / PROBE_GROUP_COLUMNS, PROBE_GROUPS), one);
    const uint64_t group_step = divide_up(view.columns, PROBE_GROUP_COLUMNS) / groups;
    const uint64_t group_columns = min(PROBE_GROUP_COLUMNS, view.columns);
    const uint32_t width = static_cast<uint32_t>(groups * group_columns);
    const uint64_t wanted = max(min(view_elements(view) / PROBE_PART / width, PROBE_ROWS), one);
    const uint64_t row_step = divide_up(view.rows, wanted);
    const uint32_t rows = static_cast<uint32_t>(divide_up(view.rows, row_step));
    const uint64_t last_start =
        view.columns > PROBE_GROUP_COLUMNS ? view.columns - PROBE_GROUP_COLUMNS : zero;
    room.columns[threadIdx.x] = 0;
    if (threadIdx.x < groups)
        room.start[threadIdx.x] =
            min((threadIdx.x * group_step + jitter(threadIdx.x, group_step)) * PROBE_GROUP_COLUMNS,
                last_start);
    if (threadIdx.x == 0) room.top = 1;
    __syncthreads();
    const auto element = [&](uint32_t row, uint32_t i) {
        const uint64_t at = min(row * row_step + jitter(row, row_step), view.rows - 1);
        const uint32_t columns = static_cast<uint32_t>(group_columns);
        return load_element(data, at * view.columns + room.start[i / columns] + i % columns,
                            tensor.element_log2);
    };
    const uint32_t warp = threadIdx.x / 32;
    uint32_t top = 1;
    for (uint32_t row = warp; row < rows; row += PLAN_THREADS / 32)
        for (uint32_t i = lane_id(); i < width; i += 32)
            top = max(top, FixedPoint(tensor, 1).exponent(element(row, i)));
    top = __reduce_max_sync(ALL_LANES, top);
    if (lane_id() == 0) atomicMax(&room.top, top);
    __syncthreads();
    // Room for what the probe has missed.
    const FixedPoint fixed(tensor, min(room.top + 1, (1u << tensor.exponent_bits) - 1));
    const uint32_t half = width / 2;
    for (uint32_t row = warp; row < rows; row += PLAN_THREADS / 32) {
        uint64_t left = 0, right = 0;
        for (uint32_t i = lane_id(); i < width; i += 32)
            (i < half ? left : right) += fixed.magnitude(element(row, i));
        left = warp_sum(left);
        right = warp_sum(right);
        const bool counts = left && right;
        if (lane_id() == 0) {
            room.logs[row] =
                counts ? static_cast<int32_t>(log_of_mean(left + right, width)) : NO_LOG;
            room.differences[row] = counts ? static_cast<int32_t>(log_of_mean(left, half) -
                                                                  log_of_mean(right, width - half))
                                           : NO_LOG;
        }
        if (!counts) continue;
        // Each row counts the same, whatever its scale: 2^24 is its mean.
        const uint64_t mean = (left + right) / width;
        const uint64_t factor =
            min((1ull << 40) / max(mean, static_cast<uint64_t>(1 << 8)), 1ull << 31);
        for (uint32_t i = lane_id(); i < width; i += 32)
            atomicAdd(&room.columns[i], fixed.magnitude(element(row, i)) * factor >> 16);
    }
    __syncthreads();
    room.column_logs[threadIdx.x] = threadIdx.x < width && room.columns[threadIdx.x]
                                        ? static_cast<int32_t>(log2_of(room.columns[threadIdx.x]))
                                        : NO_LOG;
    const Spread of_rows = spread_of(room.logs, rows, room.spread);
    const uint64_t counted = room.spread.known;
    __syncthreads();
    const Spread of_halves = spread_of(room.differences, rows, room.spread);
    const Spread of_columns = spread_of(room.column_logs, width, room.spread);
    if (threadIdx.x == 0) {
        // Two halves of `width / 2` elements differ by twice the variance of a half.
        const int64_t noise = of_halves.variance / 4 * width;
        const int64_t row_variance = of_rows.variance - noise / width;
        const int64_t column_variance =
            of_columns.variance - noise / static_cast<int64_t>(max(counted, one));
        view.top = fixed.top;
        view.usual = of_rows.median;
        view.noise = noise;
        view.axes = (can_pay(row_variance, view.columns) ? AXIS_ROWS : 0) |
                    (can_pay(column_variance, view.rows) ? AXIS_COLUMNS : 0);
        choose_runs(view);
        const int64_t per_row = static_cast<int64_t>(view.columns / view.stripes);
        view.row_share = view.axes & AXIS_ROWS ? share_of(row_variance, noise / per_row) : 0;
        for (uint32_t axis = 0; axis < 2; axis++) {
            const bool fitted = view.axes >> axis & 1;
            view.low[axis] = fitted ? ~0u : OFFSET_BIAS;
            view.high[axis] = fitted ? 0 : OFFSET_BIAS;
        }
    }
    __syncthreads();
    if (!(view.axes & AXIS_COLUMNS)) return;
    uint64_t* const sums = reinterpret_cast<uint64_t*>(view.sums);
    for (uint64_t i = threadIdx.x; i < view.columns + view.stripes; i += PLAN_THREADS) sums[i] = 0;
}

constexpr uint32_t ROW_THREADS = 128;

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1)
    encode_rows(const EncodeTensor* tensors, EncodeView* views, uint32_t count) {
    const uint64_t warps = gridDim.x * (ROW_THREADS / 32);
    const uint64_t warp = blockIdx.x * (ROW_THREADS / 32) + threadIdx.x / 32;
    // Warps take turns through all views, so that none has more to do than others.
    uint64_t before = 0;
    for (uint32_t number = 0; number < count; number++) {
        EncodeView& view = views[number];
        const bool fits_rows = view.axes & AXIS_ROWS, fits_columns = view.axes & AXIS_COLUMNS;
        if (!fits_rows && !fits_columns) continue;
        const EncodeTensor& tensor = tensors[view.tensor];
        const uint8_t* data = reinterpret_cast<const uint8_t*>(tensor.data);
        const FixedPoint fixed(tensor, view.top);
        uint64_t* const sums = reinterpret_cast<uint64_t*>(view.sums);
        // Short runs leave lanes to other rows.
        const uint64_t widest = divide_up(view.columns, view.stripes);
        uint32_t team = 32;
        while (team > 1 && team / 2 >= widest) team /= 2;
        const uint32_t teams = 32 / team, place = lane_id() % team;
        const uint64_t units = divide_up(view.visited, teams);
        uint32_t low = ~0u, high = 0;
        for (uint64_t unit = (warp + warps - before % warps) % warps; unit < units; unit += warps) {
            const uint64_t index = unit * teams + lane_id() / team;
            const uint64_t row = index * view.row_step + jitter(index, view.row_step);
            const bool active = index < view.visited && row < view.rows;
            const uint64_t stripe = jitter(index, view.stripes);
            const uint64_t begin = stripe_start(view, stripe);
            const uint64_t length = active ? stripe_start(view, stripe + 1) - begin : 0;
            const uint64_t from = row * view.columns + begin;
            int32_t offset = 0;
            if (fits_rows) {
                uint64_t sum = 0;
                for (uint64_t i = place; i < length; i += team)
                    sum += fixed.magnitude(load_element(data, from + i, tensor.element_log2));
                for (uint32_t step = team / 2; step; step /= 2)
                    sum += __shfl_xor_sync(ALL_LANES, sum, step);
                if (sum) {
                    const int64_t log = log_of_mean(sum, length) - view.usual;
                    offset = offset_of((log * view.row_share) >> SHARE_BITS, tensor.mantissa_bits);
                }
                if (active && place == 0)
                    reinterpret_cast<int8_t*>(view.row_offsets)[index] =
                        static_cast<int8_t>(offset);
                if (active) {
                    low = min(low, OFFSET_BIAS + offset);
                    high = max(high, OFFSET_BIAS + offset);
                }
            }
            if (!fits_columns || !active || index % view.column_step) continue;
            const uint64_t factor = factor_of(offset, tensor.mantissa_bits);
            for (uint64_t i = place; i < length; i += team)
                atomicAdd(
                    &sums[begin + i],
                    fixed.magnitude(load_element(data, from + i, tensor.element_log2)) * factor >>
                        FACTOR_BITS);
            if (place == 0) atomicAdd(&sums[view.columns + stripe], static_cast<uint64_t>(1));
        }
        before += units;
        __syncwarp();
        low = __reduce_min_sync(ALL_LANES, low);
        high = __reduce_max_sync(ALL_LANES, high);
        if (fits_rows && lane_id() == 0 && high) {
            atomicMin(&view.low[0], low);
            atomicMax(&view.high[0], high);
        }
    }
}

constexpr uint32_t DIGIT_BITS = 9;
// Logarithms of sums plus this are positive and below 2^(3 * DIGIT_BITS).
constexpr uint64_t LOG_BIAS = 1 << 24;

struct ColumnsRoom {
    SpreadRoom spread;
    uint64_t rows;
    uint32_t digits[1 << DIGIT_BITS];
    uint64_t rank, prefix;
    uint32_t low, high;
};

// Offsets of the columns from their sums.
__device__ inline void fit_columns(EncodeView& view, const EncodeTensor& tensor,
                                   ColumnsRoom& room) {
    uint64_t* const sums = reinterpret_cast<uint64_t*>(view.sums);
    uint64_t rows = 0, known = 0, sum = 0;
    for (uint64_t i = threadIdx.x; i < view.stripes; i += PLAN_THREADS)
        rows += sums[view.columns + i];
    // Sums become logarithms; 0 for what has none.
    for (uint64_t column = threadIdx.x; column < view.columns; column += PLAN_THREADS) {
        if (!sums[column]) continue;
        const uint64_t stripe = ((column + 1) * view.stripes - 1) / view.columns;
        const int64_t log = log_of_mean(sums[column], sums[view.columns + stripe]);
        sums[column] = LOG_BIAS + log;
        known++;
        sum += log;
    }
    add_to(&room.rows, rows);
    add_to(&room.spread.known, known);
    add_to(&room.spread.sum, sum);
    __syncthreads();
    known = room.spread.known;
    if (threadIdx.x == 0) room.rank = known / 2;
    const int64_t mean = LOG_BIAS + mean_of(room.spread.sum, max(known, static_cast<uint64_t>(1)));
    uint64_t low = 0, high = 0;
    for (uint64_t column = threadIdx.x; column < view.columns; column += PLAN_THREADS) {
        if (!sums[column]) continue;
        const int64_t from_mean = static_cast<int64_t>(sums[column]) - mean;
        const uint64_t square = from_mean * from_mean;
        low += square & 0xffffffffu;
        high += square >> 32;
    }
    add_to(&room.spread.low, low);
    add_to(&room.spread.high, high);
    // The median, digit by digit.
    for (uint32_t digit = 3; known && digit-- > 0;) {
        for (uint32_t i = threadIdx.x; i < 1u << DIGIT_BITS; i += PLAN_THREADS) room.digits[i] = 0;
        __syncthreads();
        const uint64_t prefix = room.prefix;
        for (uint64_t column = threadIdx.x; column < view.columns; column += PLAN_THREADS)
            if (sums[column] && sums[column] >> (DIGIT_BITS * (digit + 1)) == prefix)
                atomicAdd(
                    &room.digits[sums[column] >> (DIGIT_BITS * digit) & ((1u << DIGIT_BITS) - 1)],
                    1u);
        __syncthreads();
        if (threadIdx.x == 0) {
            uint32_t value = 0;
            while (room.rank >= room.digits[value]) room.rank -= room.digits[value++];
            room.prefix = prefix << DIGIT_BITS | value;
        }
        __syncthreads();
    }
    const int64_t median = known ? static_cast<int64_t>(room.prefix) : 0;
    const int64_t variance = known ? variance_of(room.spread.low, room.spread.high, known) : 0;
    const int64_t looks = static_cast<int64_t>(room.rows / view.stripes);
    const int64_t noise = view.noise / max(looks, static_cast<int64_t>(1));
    const int64_t share = share_of(variance - noise, noise);
    int8_t* const offsets = reinterpret_cast<int8_t*>(view.column_offsets);
    uint32_t least = ~0u, most = 0;
    for (uint64_t column = threadIdx.x; column < view.columns; column += PLAN_THREADS) {
        const int64_t log = static_cast<int64_t>(sums[column]) - median;
        const int32_t offset =
            sums[column] ? offset_of((log * share) >> SHARE_BITS, tensor.mantissa_bits) : 0;
        offsets[column] = static_cast<int8_t>(offset);
        least = min(least, OFFSET_BIAS + offset);
        most = max(most, OFFSET_BIAS + offset);
    }
    atomicMin(&room.low, least);
    atomicMax(&room.high, most);
    __syncthreads();
    if (threadIdx.x == 0) {
        view.low[1] = room.low;
        view.high[1] = room.high;
    }
}

extern "C" __global__ void __launch_bounds__(PLAN_THREADS, 1)
    encode_columns(const EncodeTensor* tensors, EncodeView* views) {
    __shared__ ColumnsRoom room;
    EncodeView& view = views[blockIdx.x];
    const EncodeTensor& tensor = tensors[view.tensor];
    const uint32_t axes = view.axes;
    if (threadIdx.x == 0) {
        room = ColumnsRoom{};
        room.low = ~0u;
    }
    __syncthreads();
    if (axes & AXIS_COLUMNS) fit_columns(view, tensor, room);
    // Which axes are worth trying: small tensors have no time to compare them all.
    const bool small = view_elements(view) < SMALL_ELEMENTS;
    uint32_t useful = 0;
    for (uint32_t axis = 0; axis < 2; axis++) {
        __syncthreads();
        if (!(axes >> axis & 1)) continue;
        if (!small) {
            const bool all_zeros = view.low[axis] == OFFSET_BIAS && view.high[axis] == OFFSET_BIAS;
            useful |= all_zeros ? 0 : 1u << axis;
            continue;
        }
        if (threadIdx.x == 0) room.spread = SpreadRoom{};
        __syncthreads();
        const uint64_t count = axis == 0 ? view.rows : view.columns;
        const int8_t* const offsets =
            reinterpret_cast<const int8_t*>(axis == 0 ? view.row_offsets : view.column_offsets);
        int64_t sum = 0, squares = 0;
        for (uint64_t i = threadIdx.x; i < count; i += PLAN_THREADS) {
            sum += offsets[i];
            squares += offsets[i] * offsets[i];
        }
        add_to(&room.spread.sum, sum);
        add_to(&room.spread.low, squares);
        __syncthreads();
        if (offsets_pay(static_cast<int64_t>(room.spread.sum), room.spread.low, count,
                        view_elements(view), tensor.mantissa_bits))
            useful |= 1u << axis;
    }
    __syncthreads();
    if (threadIdx.x == 0) view.axes = useful;
}

// Ways to cut: none, one or two mantissa bits in the symbol, each without and with the sign.
constexpr uint32_t WAYS = 6;
constexpr uint32_t MAX_JOINT = 2;
// Mantissa bits that are counted, at most: as many as offsets have steps.
constexpr uint32_t MAX_COUNTED = 3;
// Exponents of more bits than this are counted in the memory of the block's own room.
constexpr uint32_t MAX_SHARED_BITS = 8 + MAX_COUNTED;
// Cuts are fitted exactly while their estimates are within a 512th of the best.
constexpr uint32_t CLOSE_CUTS_LOG2 = 9;
// Where octaves lie changes the order of cuts by less than a 64th.
constexpr uint32_t KEPT_CUTS_LOG2 = 6;
// Elements that offsets are compared on.
constexpr uint64_t SEARCH_ELEMENTS = 1 << 13;
constexpr uint32_t PHASES = (1 << MAX_COUNTED) - 1;
constexpr uint32_t PLAN_WARPS = PLAN_THREADS / 32;
static_assert(WAYS <= PLAN_WARPS && PHASES <= PLAN_WARPS);
constexpr uint64_t NONE = ~0ull;

struct CutsRoom {
    // Of positive and of negative elements by exponent and leading mantissa bits.
    uint32_t counts[2 << MAX_SHARED_BITS];
    uint32_t zeros[65];
    // The first and the last magnitude counted.
    uint32_t first, last;
    uint32_t signs;
    // Bytes of each way, or phase; all bits set for what is none.
    uint64_t estimate[PLAN_WARPS];
};

// The counts of a sample, and what ways to cut would take.
struct Cuts {
    const EncodeTensor& tensor;
    CutsRoom& room;
    uint32_t* counts;
    // Room for the counts of the symbols of a way, for each warp.
    uint32_t* folded;
    uint32_t counted, bits;
    uint64_t elements, total;
    bool exact;

    // `memory` is the block's own, 5 * 2^(3 + exponent bits) words of 8 bytes.
    __device__ Cuts(const EncodeTensor& of, CutsRoom& shared, uint32_t* memory)
        : tensor(of),
          room(shared),
          counted(octave_log2(of.mantissa_bits)),
          bits(of.exponent_bits + counted),
          elements(of.bytes >> of.element_log2),
          total(0) {
        counts = bits <= MAX_SHARED_BITS ? room.counts : memory;
        folded = memory + (2u << bits) + (threadIdx.x / 32 << (of.exponent_bits + MAX_COUNTED));
    }

    // Counts a sample; all threads of the block do.
    __device__ void count(const Offsets& offsets, uint64_t limit) {
        exact = sample_step(elements, limit) == 1;
        const uint32_t below = tensor.mantissa_bits - counted;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < 2u << bits; i += PLAN_THREADS) counts[i] = 0;
        for (uint32_t i = threadIdx.x; i < 65; i += PLAN_THREADS) room.zeros[i] = 0;
        if (threadIdx.x < PLAN_WARPS) room.estimate[threadIdx.x] = NONE;
        if (threadIdx.x == 0) {
            room.first = ~0u;
            room.last = room.signs = 0;
        }
        __syncthreads();
        look_at_sample(tensor, offsets, limit, room.zeros, [&](uint64_t x) {
            atomicAdd(&counts[x >> below & ((2u << bits) - 1)], 1u);
        });
        __syncthreads();
        uint32_t first = ~0u, last = 0, signs = 0;
        for (uint32_t i = threadIdx.x; i < 1u << bits; i += PLAN_THREADS) {
            const uint32_t mine = (counts[i] ? 1 : 0) | (counts[i + (1u << bits)] ? 2 : 0);
            if (!mine) continue;
            first = min(first, i);
            last = max(last, i);
            signs |= mine;
        }
        atomicMin(&room.first, first);
        atomicMax(&room.last, last);
        atomicOr(&room.signs, signs);
        __syncthreads();
        // In whole exponents.
        if (threadIdx.x == 0) {
            room.first = room.first >> counted << counted;
            room.last |= (1u << counted) - 1;
        }
        total = 0;
        for (uint32_t i = 0; i < 65; i++) total += room.zeros[i];
        __syncthreads();
    }

    __device__ uint32_t joint_limit() const {
        return min(static_cast<uint32_t>(tensor.mantissa_bits), MAX_JOINT);
    }
    // Whether a tensor with these signs can be cut in some way.
    __device__ bool is_possible(uint32_t way, uint32_t signs) const {
        return way < WAYS && way / 2 <= joint_limit() && !(way % 2 && signs != 3);
    }
    __device__ EncodeModel form(uint32_t way, uint32_t signs) const {
        EncodeModel model = {};
        model.state = ENCODE_CUT;
        model.joint = way / 2;
        model.sign = way % 2 ? SIGN_FIRST : sign_of(signs);
        return model;
    }

    // The counts of the symbols of a way, all magnitudes less by some of the lowest steps counted.
    // A warp does it.
    __device__ Counts symbols(uint32_t way, int32_t lowered) const {
        const uint32_t with_sign = way % 2, fold = counted - way / 2, all = 1u << bits;
        // As many magnitudes, in whole exponents; all of them where some wrap.
        int32_t first = static_cast<int32_t>(room.first) - lowered;
        uint32_t end = first + room.last + 1 - room.first;
        if (first < 0 || end > all) {
            first = 0;
            end = all;
        }
        const uint32_t begin = static_cast<uint32_t>(first) >> counted << counted;
        end = ((end - 1) | ((1u << counted) - 1)) + 1;
        Counts it{folded, (begin >> fold) << with_sign, (end - begin) >> fold << with_sign,
                  tensor.exponent_bits + way / 2 + with_sign};
        // Small alphabets are seen whole, as they may be complete.
        uint32_t shift = 0;
        if (1u << it.bits <= MAX_SYMBOLS) {
            shift = it.first;
            it.length = 1u << it.bits;
            it.first = 0;
        }
        for (uint32_t i = lane_id(); i < it.length; i += 32) {
            const uint32_t from = begin + ((i - shift) >> with_sign << fold);
            uint32_t sum = 0;
            if (i >= shift && from < end)
                for (uint32_t k = from; k < from + (1u << fold); k++) {
                    const uint32_t at = (k + lowered) & (all - 1);
                    const uint32_t positive = counts[at], negative = counts[at + all];
                    sum += !with_sign ? positive + negative : i % 2 ? negative : positive;
                }
            folded[i] = sum;
        }
        __syncwarp();
        return it;
    }

    __device__ uint64_t bytes_of(uint64_t cost) const {
        return multiply_divide(cost, elements, total) / (8 * ONE_BIT);
    }

    // About what a way takes; a warp asks for it, and its first lane is told.
    __device__ uint64_t estimated(uint32_t way, uint32_t signs, int32_t lowered) const {
        const Counts it = symbols(way, lowered);
        uint64_t cost, bytes = NONE;
        uint32_t listed;
        if (lane_id() == 0 && estimate(it, exact, cost, listed)) {
            EncodeModel model = form(way, signs);
            bytes = bytes_of(cost + cost_of_raw(tensor, room.zeros, total, model));
            // Constant symbols are no plane that is coded.
            model.entries = listed > 1 ? listed : 0;
            bytes += plane_overhead(tensor, model) + 2 * model.entries;
        }
        __syncwarp();
        return bytes;
    }

    // Estimates the ways that are possible, and of `kept`: a warp for each.
    __device__ void estimate_ways(uint32_t signs, int32_t lowered, uint32_t kept) {
        const uint32_t way = threadIdx.x / 32;
        __syncthreads();
        const bool asked = is_possible(way, signs) && (kept >> way & 1);
        const uint64_t bytes = asked ? estimated(way, signs, lowered) : NONE;
        if (lane_id() == 0) room.estimate[way] = bytes;
        __syncthreads();
    }
    __device__ uint32_t best_of(uint32_t count) const {
        uint32_t best = 0;
        for (uint32_t i = 1; i < count; i++)
            if (room.estimate[i] < room.estimate[best]) best = i;
        return best;
    }
};

// About what each tensor takes with the offsets of a view, for each choice of axes.
extern "C" __global__ void __launch_bounds__(PLAN_THREADS, 1)
    encode_estimate(const EncodeTensor* tensors, EncodeView* views, uint32_t count, uint8_t* memory,
                    uint64_t memory_bytes) {
    __shared__ CutsRoom room;
    for (uint32_t item = blockIdx.x; item < count * (AXES + 1); item += gridDim.x) {
        EncodeView& view = views[item / (AXES + 1)];
        const uint32_t axes = item % (AXES + 1);
        const EncodeTensor& tensor = tensors[view.tensor];
        const EncodeView* const own = reinterpret_cast<const EncodeView*>(tensor.view);
        const bool small = view_elements(view) < SMALL_ELEMENTS;
        bool wanted = axes && (small ? axes == view.axes : (axes & view.axes) == axes);
        // Without offsets once, and only if there are others.
        for (uint32_t i = 0; !axes && &view == own && i < tensor.views; i++)
            wanted |= own[i].axes != 0;
        uint64_t bytes = NONE;
        if (wanted) {
            Cuts cuts(tensor, room,
                      reinterpret_cast<uint32_t*>(memory + blockIdx.x * memory_bytes));
            const uint32_t number = static_cast<uint32_t>(&view - own);
            cuts.count(Offsets(tensor, number * (AXES + 1) + axes),
                       small ? TABLE_ELEMENTS : SEARCH_ELEMENTS);
            cuts.estimate_ways(room.signs, 0, ~0u);
            bytes = room.estimate[cuts.best_of(WAYS)];
            if (axes && bytes != NONE) bytes += offsets_bytes(view, axes);
            __syncthreads();
        }
        if (threadIdx.x == 0) view.estimate[axes] = bytes;
    }
}

// The view and the axes with the smallest estimate, as EncodeModel.scale has it. The first of
// equals wins: no offsets before any.
__device__ inline uint32_t best_offsets(const EncodeTensor& tensor) {
    const EncodeView* const views = reinterpret_cast<const EncodeView*>(tensor.view);
    uint64_t least = tensor.views ? views[0].estimate[0] : NONE;
    uint32_t best = 0;
    constexpr uint32_t ORDER[AXES] = {AXES, AXIS_ROWS, AXIS_COLUMNS};
    for (uint32_t number = 0; number < tensor.views; number++)
        for (uint32_t i = 0; i < AXES; i++)
            if (views[number].estimate[ORDER[i]] < least) {
                least = views[number].estimate[ORDER[i]];
                best = number * (AXES + 1) + ORDER[i];
            }
    return best;
}

struct ChooseRoom {
    CutsRoom cuts;
    FitRoom fit[WAYS];
    EncodeModel model[WAYS];
    uint64_t bytes[WAYS];
    // What the best way would take at other phases.
    uint64_t lowered[PLAN_WARPS];
};

// Takes so many steps off all offsets together that the estimate is the smallest: exponents change
// at octaves, and where those lie among the magnitudes is free to choose. Returns the steps.
__device__ inline int32_t settle_phase(Cuts& cuts, ChooseRoom& room, uint32_t signs) {
    const int32_t half = 1 << cuts.counted >> 1;
    const uint32_t best = cuts.best_of(WAYS), phases = (1u << cuts.counted) - 1;
    const uint64_t least = room.cuts.estimate[best];
    const uint32_t warp = threadIdx.x / 32;
    uint32_t kept = 0;
    for (uint32_t way = 0; way < WAYS; way++)
        kept |= (room.cuts.estimate[way] <= least + (least >> KEPT_CUTS_LOG2) ? 1u : 0u) << way;
    const auto steps = [=](uint32_t number) {
        const int32_t step = 1 - half + static_cast<int32_t>(number);
        return step < 0 ? step : step + 1;
    };
    const uint64_t bytes =
        warp < phases && least != NONE ? cuts.estimated(best, signs, steps(warp)) : NONE;
    if (lane_id() == 0) room.lowered[warp] = bytes;
    __syncthreads();
    uint32_t lowest = 0;
    for (uint32_t i = 1; i < phases; i++)
        if (room.lowered[i] < room.lowered[lowest]) lowest = i;
    if (room.lowered[lowest] >= least) return 0;
    cuts.estimate_ways(signs, steps(lowest), kept);
    return steps(lowest);
}

// Adds to offsets, as far as they can be stored.
__device__ inline void add_to_offsets(const EncodeTensor& tensor, uint32_t scale, int32_t steps) {
    const EncodeView& view = reinterpret_cast<const EncodeView*>(tensor.view)[scale / (AXES + 1)];
    const bool rows = scale & AXIS_ROWS;
    int8_t* const offsets =
        reinterpret_cast<int8_t*>(rows ? view.row_offsets : view.column_offsets);
    const uint64_t count = rows ? view.rows : view.columns;
    for (uint64_t i = threadIdx.x; i < count; i += PLAN_THREADS)
        offsets[i] = static_cast<int8_t>(max(min(offsets[i] + steps, 127), -128));
}

extern "C" __global__ void __launch_bounds__(PLAN_THREADS, 1)
    encode_choose(EncodeTensor* tensors, uint32_t count, uint8_t* memory, uint64_t memory_bytes) {
    __shared__ ChooseRoom room;
    for (uint32_t number = blockIdx.x; number < count; number += gridDim.x) {
        EncodeTensor& tensor = tensors[number];
        if (threadIdx.x == 0) begin_model(tensor);
        if (needs_no_table(tensor)) continue;
        const uint32_t signs = tensor.traits & TRAIT_SIGNS, scale = best_offsets(tensor);
        Cuts cuts(tensor, room.cuts,
                  reinterpret_cast<uint32_t*>(memory + blockIdx.x * memory_bytes));
        cuts.count(Offsets(tensor, scale), TABLE_ELEMENTS);
        cuts.estimate_ways(signs, 0, ~0u);
        const int32_t phase = scale ? settle_phase(cuts, room, signs) : 0;

        const uint32_t way = threadIdx.x / 32;
        const uint64_t least = room.cuts.estimate[cuts.best_of(WAYS)];
        const bool close = way < WAYS && room.cuts.estimate[way] != NONE &&
                           room.cuts.estimate[way] <= least + (least >> CLOSE_CUTS_LOG2);
        if (way < WAYS && lane_id() == 0) room.bytes[way] = NONE;
        __syncwarp();
        if (close) {
            const Counts it = cuts.symbols(way, phase);
            EncodeModel model = cuts.form(way, signs);
            uint64_t cost;
            if (lane_id() == 0) {
                const uint64_t raw = cost_of_raw(tensor, room.cuts.zeros, cuts.total, model);
                if (fit(it, cuts.exact, room.fit[way], model, cost)) {
                    room.bytes[way] = cuts.bytes_of(cost + raw) + plane_overhead(tensor, model) +
                                      wire_bytes(tensor, model);
                    room.model[way] = model;
                }
            }
        }
        __syncthreads();
        uint32_t best = 0;
        for (uint32_t i = 1; i < WAYS; i++)
            if (room.bytes[i] < room.bytes[best]) best = i;
        const bool made =
            room.bytes[best] != NONE && room.bytes[best] * 1024 < tensor.bytes * WORTHWHILE;
        if (threadIdx.x == 0 && made) {
            tensor.model = room.model[best];
            tensor.model.scale = scale;
        }
        if (made && phase) add_to_offsets(tensor, scale, phase);
        __syncthreads();
    }
}
