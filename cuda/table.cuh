// From counts to a frequency table, in integers: the twin of rust/model/normalize.rs and
// rust/model/log2.rs. One thread does it: a table has at most 64 entries.
#pragma once

#include "encode_layout.cuh"

constexpr uint32_t LOG2_FRACTION_BITS = 16;
constexpr uint64_t ONE_BIT = 1ull << LOG2_FRACTION_BITS;
// A symbol below a quarter of a slot is cheaper as an escape.
constexpr uint64_t MIN_SHARE = 4 * SLOTS;

// log2(1 + i/256) for `i` from 0 to 256, with LOG2_FRACTION_BITS.
struct MantissaLogs {
    uint32_t of[257];
};

// One bit of each result per squaring of `x / 2^31`, which is in [1, 2].
__device__ constexpr MantissaLogs mantissa_logs() {
    MantissaLogs logs = {};
    for (uint64_t i = 0; i < 256; i++) {
        uint64_t x = (256 + i) << 23;
        for (uint32_t bit = 0; bit < LOG2_FRACTION_BITS; bit++) {
            x = (x * x) >> 31;
            logs.of[i] = logs.of[i] << 1 | static_cast<uint32_t>(x >> 32);
            x >>= x >> 32;
        }
    }
    logs.of[256] = 1u << LOG2_FRACTION_BITS;
    return logs;
}

__device__ constexpr MantissaLogs MANTISSA_LOGS = mantissa_logs();

// `log2(x) * 2^16`, interpolated between 256 steps; 0 for 0.
__device__ inline uint64_t log2_of(uint64_t x) {
    if (x == 0) return 0;
    const uint32_t exponent = 63 - __clzll(x);
    const uint64_t mantissa = x << (63 - exponent);
    const uint64_t index = mantissa >> 55 & 0xff;
    const uint64_t fraction = mantissa >> 39 & 0xffff;
    const uint64_t low = MANTISSA_LOGS.of[index], high = MANTISSA_LOGS.of[index + 1];
    return (static_cast<uint64_t>(exponent) << LOG2_FRACTION_BITS) + low +
           (((high - low) * fraction) >> 16);
}

__device__ inline uint64_t slot_cost(uint64_t frequency) {
    return log2_of(SLOTS) - log2_of(frequency);
}

// Counts of the symbols `first..first + length` of `2^bits`; all others are zero.
struct Counts {
    const uint32_t* counts;
    uint32_t first;
    uint32_t length;
    uint32_t bits;

    __device__ bool whole() const { return length == 1u << bits; }
    __device__ uint64_t total() const {
        uint64_t sum = 0;
        for (uint32_t i = 0; i < length; i++) sum += counts[i];
        return sum;
    }
    // From the first symbol that was counted to behind the last one.
    __device__ void used(uint32_t& begin, uint32_t& end) const {
        begin = 0;
        while (begin < length && counts[begin] == 0) begin++;
        end = length;
        while (end > begin && counts[end - 1] == 0) end--;
        if (end == begin) begin = end = 0;
    }
};

// The start of the window of `width` symbols with the most mass. Only a whole alphabet wraps.
__device__ inline uint32_t best_window(const Counts& it, uint32_t width, uint64_t& mass) {
    uint32_t begin, end;
    it.used(begin, end);
    uint32_t start = 0, steps;
    if (it.whole()) {
        if (it.length <= width) {
            mass = it.total();
            return 0;
        }
        steps = it.length;
    } else {
        start = begin;
        width = min(width, end - begin);
        steps = end - begin - width + 1;
    }
    mass = 0;
    if (it.whole() && end - begin <= width) {
        for (uint32_t i = begin; i < end; i++) mass += it.counts[i];
        return begin;
    }
    for (uint32_t i = start; i < start + width; i++) mass += it.counts[i];
    uint64_t now = mass;
    uint32_t best = start;
    for (uint32_t i = 1; i < steps; i++) {
        now += it.counts[(start + i + width - 1) % it.length];
        now -= it.counts[start + i - 1];
        if (now > mass) {
            mass = now;
            best = start + i;
        }
    }
    return best;
}

// Calls `visit` with the number and the count of each symbol of a window.
template <class Visit>
__device__ __forceinline__ void visit_window(const Counts& it, uint32_t start, uint32_t width,
                                             Visit visit) {
    for (uint32_t i = 0; i < width; i++) {
        uint32_t at = start + i;
        if (at >= it.length) {
            at -= it.length;
            if (!it.whole() || at >= start) break;
        }
        visit(i, it.counts[at]);
    }
}

// What one more slot gains a symbol, plus one; 0 for one that can have no more.
__device__ inline uint64_t gain(uint64_t weight, uint32_t f) {
    return f < SLOTS - 1 ? weight * (log2_of(f + 1) - log2_of(f)) + 1 : 0;
}
// What one slot less costs a symbol; all bits set for one that can have no fewer.
__device__ inline uint64_t loss(uint64_t weight, uint32_t f) {
    return f > 1 ? weight * (log2_of(f) - log2_of(f - 1)) : ~0ull;
}

// Frequencies of 1 to 255 that sum to 256. `values` is room for as many numbers as there are
// weights.
__device__ inline void normalize(const uint64_t* weights, uint32_t count, uint32_t* frequencies,
                                 uint64_t* values) {
    uint64_t total = 0;
    for (uint32_t i = 0; i < count; i++) total += weights[i];
    if (total == 0) total = 1;
    uint32_t sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t share = weights[i] * SLOTS / total;
        frequencies[i] = share < 1           ? 1
                         : share > SLOTS - 1 ? SLOTS - 1
                                             : static_cast<uint32_t>(share);
        sum += frequencies[i];
    }
    const bool grows = sum < SLOTS;
    for (uint32_t i = 0; i < count; i++)
        values[i] = grows ? gain(weights[i], frequencies[i]) : loss(weights[i], frequencies[i]);
    while (sum != SLOTS) {
        uint32_t pick = 0;
        for (uint32_t i = 1; i < count; i++)
            if (grows ? values[i] > values[pick] : values[i] < values[pick]) pick = i;
        if (values[pick] == (grows ? 0 : ~0ull)) break;
        frequencies[pick] += grows ? 1 : -1;
        sum += grows ? 1 : -1;
        values[pick] =
            grows ? gain(weights[pick], frequencies[pick]) : loss(weights[pick], frequencies[pick]);
    }
}

// Bits that an escaped symbol takes if escapes are between the first symbol that was counted and
// the last.
__device__ inline uint64_t escaped_bits(const Counts& it) {
    uint32_t begin, end;
    it.used(begin, end);
    const uint32_t most = end > begin ? end - begin - 1 : 0;
    return min(max(most ? 32 - __clz(most) : 0, 1), static_cast<int>(it.bits));
}

// Working memory of a fit.
struct FitRoom {
    uint64_t weights[MAX_SYMBOLS];
    uint64_t values[MAX_SYMBOLS];
    uint32_t frequencies[MAX_SYMBOLS];
    uint8_t index[MAX_SYMBOLS];
};

// A table over the best window, with or without an escape for what it leaves out; false if there is
// none.
__device__ inline bool fit_window(const Counts& it, bool escape, FitRoom& room, EncodeModel& model,
                                  uint64_t& cost) {
    const uint64_t total = it.total();
    const uint32_t width = escape ? ESCAPE : MAX_SYMBOLS;
    uint64_t mass;
    const uint32_t start = best_window(it, width, mass);
    if (!escape && mass < total) return false;
    uint32_t count = 0;
    uint64_t listed = 0;
    visit_window(it, start, width, [&](uint32_t i, uint64_t n) {
        if (n == 0 || (escape && n * MIN_SHARE < total)) return;
        room.weights[count] = n;
        room.index[count++] = static_cast<uint8_t>(i);
        listed += n;
    });
    const uint64_t escaped = total - listed;
    if (escape) {
        room.weights[count] = escaped ? escaped : 1;
        room.index[count++] = ESCAPE;
    }
    if (count < 2) return false;
    normalize(room.weights, count, room.frequencies, room.values);
    cost = 0;
    for (uint32_t i = 0; i < count; i++) cost += room.weights[i] * slot_cost(room.frequencies[i]);
    if (escape) cost += escaped * escaped_bits(it) * ONE_BIT;
    // Large frequencies first, equal ones by index: entries are listed by index.
    for (uint32_t i = 0; i < count; i++) {
        uint32_t rank = 0;
        for (uint32_t j = 0; j < count; j++)
            rank += room.frequencies[j] > room.frequencies[i] ||
                    (room.frequencies[j] == room.frequencies[i] && j < i);
        model.index[rank] = room.index[i];
        model.frequency[rank] = static_cast<uint8_t>(room.frequencies[i]);
    }
    model.base = it.first + start;
    model.escape = escape;
    model.entries = count;
    return true;
}

// The better of both tables, or none if all symbols are one and known to be. False if there is
// neither.
__device__ inline bool fit(const Counts& it, bool exact, FitRoom& room, EncodeModel& model,
                           uint64_t& cost) {
    bool complete = it.whole() && it.length <= MAX_SYMBOLS;
    for (uint32_t i = 0; complete && i < it.length; i++) complete = it.counts[i] > 0;
    exact |= complete;
    uint32_t begin, end;
    it.used(begin, end);
    if (end == begin) return false;
    if (end - begin == 1 && exact) {
        model.base = it.first + begin;
        model.escape = model.entries = 0;
        cost = 0;
        return true;
    }
    const bool without = exact && fit_window(it, false, room, model, cost);
    if (without) {
        // An escape takes a slot, as does a single rare symbol.
        const uint64_t total = it.total();
        uint32_t rare = 0;
        for (uint32_t i = 0; i < it.length; i++)
            rare += it.counts[i] > 0 && it.counts[i] * MIN_SHARE < total;
        if (rare < 2) return true;
    }
    EncodeModel other = model;
    uint64_t other_cost;
    if (fit_window(it, true, room, other, other_cost) && (!without || other_cost < cost)) {
        model = other;
        cost = other_cost;
        return true;
    }
    return without;
}

// About what `fit` would find: the cost of the counted symbols, and how many of them get slots.
// Slots may be fractions here, but none is below one, and all of them have to fit. False if nothing
// was counted.
__device__ inline bool estimate(const Counts& it, bool exact, uint64_t& cost, uint32_t& listed) {
    const uint64_t total = it.total();
    if (total == 0) return false;
    bool complete = it.whole() && it.length <= MAX_SYMBOLS;
    for (uint32_t i = 0; complete && i < it.length; i++) complete = it.counts[i] > 0;
    uint64_t mass;
    uint32_t width = MAX_SYMBOLS, start = best_window(it, width, mass);
    const bool fits = (exact || complete) && mass == total;
    if (!fits) {
        width = ESCAPE;
        start = best_window(it, width, mass);
    }
    const uint64_t log_total = log2_of(total);
    uint64_t listed_mass = 0, slots = 0;
    cost = 0;
    listed = 0;
    visit_window(it, start, width, [&](uint32_t, uint64_t n) {
        if (n == 0 || n * MIN_SHARE < total) return;
        listed++;
        listed_mass += n;
        slots += max(n * SLOTS, total);
        cost += n * min(log_total - log2_of(n), 8 * ONE_BIT);
    });
    const uint64_t escaped = total - listed_mass;
    if (exact && listed == 1 && escaped == 0) {
        cost = 0;
        return true;
    }
    if (escaped || !fits) {
        listed++;
        slots += max(escaped * SLOTS, total);
        cost += escaped * min(log_total - log2_of(escaped), 8 * ONE_BIT);
        cost += escaped * escaped_bits(it) * ONE_BIT;
    }
    // All slots together are more than there are: every symbol gets fewer.
    const uint64_t more = log2_of(slots) - log_total;
    cost += more > 8 * ONE_BIT ? total * (more - 8 * ONE_BIT) : 0;
    return true;
}
