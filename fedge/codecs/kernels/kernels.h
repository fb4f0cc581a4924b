/* EDEN's hot loops, included once per instruction set after one of the vectors_*.h, which define
 *
 *     Floats, Ints        vectors of W numbers of 32 bits; Shorts, of 2·W whole numbers of 16
 *     difference          a - b, which a butterfly takes at FUSED_DISTANCES: a sum of 1, 2, 4, 8
 *     transpose           of a W × W tile in W vectors, but for what exchange_halves does: with vectors n and n + W/2
 *     larger              of two Ints, one by one; larger_short, of two Shorts; magnitude_short, of one
 *     count_above         count + 1 where a > b
 *     Table, look_up      table[index], of 16 entries
 *     shift_left          Ints, all by as many bits; not by the instruction for that, which uses two units
 *     load_codes, ..      W bytes to Ints and back
 *     add_to_floats, ..   W sums + weight·x in double, rounded to the sum's type
 *     Sums, add_products  16 sums in double, in the order of lanes, and y·q added to them; add_squares, y·y
 *
 * `twin.py` is the same program in NumPy and the one to read first; every constant, every order of additions and every
 * byte follows `rotation.py`, `packing.py`, `lloyd.py`, `whole.py` and `twin.py`, and tests hold both together. What keeps bits
 * equal on every machine: float32 additions and subtractions in one fixed order, sums in columns and lanes, no
 * contraction (-ffp-contract=off) but of exact products, no reassociation (never -ffast-math).
 *
 * A block of 4096 floats stays in the first cache from its first pass to its last. Lines of the blocks to come
 * are asked for along the way, a few per step, so that memory works while the arithmetic does.
 */

typedef uint64_t Words __attribute__((vector_size(4 * W)));
typedef uint32_t Unsigned __attribute__((vector_size(4 * W)));

enum { LINE = 64 };

INLINE Floats load(const float *from) {
    Floats x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE Ints load_ints(const void *from) {
    Ints x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store(float *to, Floats x) { memcpy(to, &x, sizeof x); }

INLINE void store_ints(void *to, Ints x) { memcpy(to, &x, sizeof x); }

INLINE Floats all(float value) { return value - (Floats){0}; }

/* x, negated where the highest bit of `signs` is set. */
INLINE Floats negate(Floats x, Ints signs) { return (Floats)((Ints)x ^ (signs & INT32_MIN)); }

/* What is going to be read or written soon, asked for one line at a time. */
typedef struct {
    uintptr_t next;
} Ahead;

INLINE void ask(Ahead *ahead, int lines) {
    UNROLL for (int k = 0; k < lines; k++) __builtin_prefetch((const void *)(ahead->next + (uintptr_t)(k * LINE)));
    ahead->next += (uintptr_t)(lines * LINE);
}

INLINE void ask_all(const uint8_t *from, Py_ssize_t size) {
    for (Py_ssize_t k = 0; k < size; k += LINE) __builtin_prefetch((const void *)((uintptr_t)from + (uintptr_t)k));
}

/* A part of the work on a block that is compiled by itself, so that it has all registers to itself. */
#define PHASE static ISA __attribute__((noinline))

#include "rotation.h"
#include "tail.h"
#include "trits.h"
#include "quantize.h"
#include "pack.h"
#include "whole.h"

/* ---- encoding ----------------------------------------------------------------------------------------------- */

/* Quantize and pack y into `to`; return <y, Q(y)>. Quantized numbers are kept only until they are multiplied, a few
 * hundred at a time: the first cache holds them. Entries behind those sent become zero, to the end of a run. */
INLINE double send(const Job *job, float *y, float inverse_sigma, Run run, uint8_t *to) {
    uint8_t codes[BLOCK + LANES] __attribute__((aligned(LINE)));
    float q[2 * RUN + LANES] __attribute__((aligned(LINE)));
    BlockSums sums = {{0}};
    Part parts[2];
    int count = parts_of(run, parts), sent = run.high + run.low, done = 0, held = 0; /* entries multiplied, waiting */
    for (int p = 0; p < count; p++) {
        Part part = parts[p];
        for (int at = 0; at < part.count; at += RUN) {
            int n = part.count - at < RUN ? part.count - at : RUN;
            quantize(job, y + done + held, inverse_sigma, n, part.width, part.wide, codes + at, q + held);
            held += n;
            if (held < RUN) continue;
            add_products_of_run(&sums, y + done, q);
            done += RUN, held -= RUN;
            memcpy(q, q + RUN, sizeof(float) * (size_t)held);
        }
        pack(codes, part.count, part.width, to);
        to += packed_bytes(part.count, part.width);
    }
    if (held) {
        memset(y + sent, 0, sizeof(float) * (size_t)(RUN - held));
        memset(q + held, 0, sizeof(float) * (size_t)(RUN - held));
        add_products_of_run(&sums, y + done, q);
    }
    return sum_of(&sums);
}

/* Write one block's codes to `to` and return its scale, divided by the headroom; -1 if it is not finite. `peak` is the
 * block's own and becomes that of the block behind `next`, if there is one. */
INLINE double encode_block(const Job *job, const float *x, int n, Run run, uint64_t block, uint8_t *to,
                           const float *next, uint32_t *peak) {
    float a[BLOCK + LANES] __attribute__((aligned(LINE))), b[BLOCK + LANES] __attribute__((aligned(LINE)));
    if (*peak >= 0x7f800000u) return -1;
    int shift = 127 - (int)(*peak >> 23), sent = run.high + run.low;
    shift = shift > 126 ? 126 : shift < -126 ? -126 : shift;
    float factor = float_of((uint32_t)(127 + shift) << 23);
    double length = 1, energy;
    if (n == BLOCK) {
        Ahead ahead = {(uintptr_t)x + 2 * sizeof(float) * BLOCK};
        ask_all(to, run_bytes(run));
        rotate(x, a, factor, job->base, block, &ahead);
        length = BLOCK;
        Measures found = measure(a, next ? next : a);
        energy = found.energy, *peak = found.peak;
    } else {
        for (int i = 0; i < n; i++) a[i] = x[i] * factor;
        rotate_tail(a, b, n, job->base, SETS_PER_BLOCK * signs_of(job, (Py_ssize_t)block));
        energy = energy_of(a, n);
    }
    double product = send(job, a, energy > 0 ? (float)(1 / sqrt(energy / n)) : 0.0f, run, to);
    if (sent < n) energy = energy_of(a, sent) * ((double)n / sent);
    double scale = product > 0 ? ldexp(energy / (product * length * HEADROOM), -shift) : 0.0;
    if (scale > FLT_MAX) scale = FLT_MAX;
    if (scale == 0) memset(to, 0, (size_t)run_bytes(run));
    return scale;
}

static void pack_scales(Job *job) {
    uint8_t *to = job->payload + 1;
    double most = 0;
    for (Py_ssize_t k = 0; k < job->scale_count; k++) most = job->scales[k] > most ? job->scales[k] : most;
    float top = (float)(job->scale_count == 1 ? most : most * (MANTISSA / (2.0 * MANTISSA - 1)));
    memcpy(to, &top, 4);
    if (job->scale_count == 1) return;
    for (Py_ssize_t k = 0; k < job->scale_count; k++) {
        uint16_t code = 0;
        if (top > 0 && job->scales[k] > 0) {
            int exponent;
            double fraction = frexp(job->scales[k] / (double)top, &exponent);
            double dither = (double)(word(job->scale_base, (uint64_t)k) >> 11) * 0x1p-53;
            double position = ((30 + exponent) + (2 * fraction - 1)) * MANTISSA;
            double rounded = floor(position + dither);
            code = rounded < 0 ? 0 : rounded > 65535 ? 65535 : (uint16_t)rounded;
        }
        memcpy(to + 4 + 2 * k, &code, 2);
    }
}

INLINE int is_whole(const Job *job, Py_ssize_t block) { return job->version == WHOLE && block < job->blocks; }

ISA static void encode(Job *job) {
    uint8_t *to = job->payload + 1 + job->scale_bytes;
    job->payload[0] = (uint8_t)job->version;
    uint32_t peak = 0;
    for (Py_ssize_t k = 0; k < job->scale_count; k++) {
        int n = size_of(job, k);
        Run run = run_of(job, k);
        const float *x = job->x + start_of(job, k), *next = k + 1 < job->blocks ? x + BLOCK : NULL;
        if (is_whole(job, k)) {
            job->scales[k] = encode_whole(job, x, (uint64_t)k, to);
        } else {
            if (k == 0 || k >= job->blocks) peak = peak_of(x, n);
            job->scales[k] = encode_block(job, x, n, run, (uint64_t)k, to, next, &peak);
        }
        if (job->scales[k] < 0) return;
        to += run_bytes(run);
    }
    const float *raw = job->x + job->size - job->raw;
    for (int i = 0; i < job->raw; i++)
        if (!isfinite(raw[i])) return;
    memcpy(to, raw, sizeof(float) * (size_t)job->raw);
    if (job->scale_count) pack_scales(job);
    job->finite = 1;
}

/* ---- decoding ----------------------------------------------------------------------------------------------- */

static double scale_of(const Job *job, uint64_t block) {
    float top;
    uint16_t code;
    memcpy(&top, job->data + 1, 4);
    if (job->scale_count == 1) return top;
    memcpy(&code, job->data + 5 + 2 * block, 2);
    return code ? (double)top * ldexp(1 + (code % MANTISSA) / (double)MANTISSA, code / MANTISSA - 31) : 0.0;
}

/* Zero what was not received; return sent/received, each coordinate counted by its E[z Q(z)]. */
static double drop_lost(const Job *job, float *q, Run run, const uint8_t *received) {
    double came = 0, sent = 0;
    Part parts[2];
    int count = parts_of(run, parts);
    for (int p = 0; p < count; p++) {
        int arrived = 0;
        for (int i = parts[p].start; i < parts[p].start + parts[p].count; i++) {
            q[i] = received[i] ? q[i] : 0.0f;
            arrived += received[i] != 0;
        }
        came += arrived * job->gains[parts[p].width - 1];
        sent += parts[p].count * job->gains[parts[p].width - 1];
    }
    return came > 0 ? sent / came : 0.0;
}

/* Hand over n decoded coordinates from number `first` on. */
INLINE void deliver(const Job *job, const float *x, Py_ssize_t first, int n) {
    if (job->target == INTO_FLOATS) {
        memcpy((float *)job->out + first, x, sizeof(float) * (size_t)n);
    } else if (job->target == ONTO_FLOATS) {
        float *sum = (float *)job->out + first;
        for (int i = 0; i < n; i++) sum[i] = (float)((double)sum[i] + job->weight * (double)x[i]);
    } else {
        double *sum = (double *)job->out + first;
        for (int i = 0; i < n; i++) sum[i] += job->weight * (double)x[i];
    }
}

/* Negate, scale and hand over a whole block, which is overwritten. */
INLINE void deliver_block_to(Target target, int plainly, float *x, const uint32_t *lanes, float scale, void *out,
                             double weight) {
    float *floats = out;
    double *doubles = out;
    for (int row = 0; row < BLOCK; row += 2 * SIDE) {
        UNROLL for (int l = 0; l < 2 * SIDE; l += W) {
            Floats y = negate(load(x + row + l), shift_left(load_ints(lanes + l), 31 - row / (2 * SIDE))) * scale;
            if (plainly && target == ONTO_FLOATS) y += load(floats + row + l);
            store(plainly ? floats + row + l : x + row + l, y);
        }
        if (plainly) continue;
        UNROLL for (int l = row; l < row + 2 * SIDE; l += W) {
            if (target == ONTO_FLOATS) add_to_floats(floats + l, x + l, weight);
            if (target == ONTO_DOUBLES) add_to_doubles(doubles + l, x + l, weight);
        }
    }
}

/* With weight 1 a float32 sum is added to in float32: what double gives and float32 then rounds is the same, because 53
 * bits are at least 2·24 + 2 (Figueroa, When is double rounding innocuous?, SIGNUM 1995). */
PHASE void deliver_block(Target target, float *x, const uint32_t *lanes, float scale, void *out, double weight) {
    if (target == INTO_FLOATS) deliver_block_to(INTO_FLOATS, 1, x, lanes, scale, out, weight);
    if (target == ONTO_FLOATS && weight == 1) deliver_block_to(ONTO_FLOATS, 1, x, lanes, scale, out, weight);
    if (target == ONTO_FLOATS && weight != 1) deliver_block_to(ONTO_FLOATS, 0, x, lanes, scale, out, weight);
    if (target == ONTO_DOUBLES) deliver_block_to(ONTO_DOUBLES, 0, x, lanes, scale, out, weight);
}

/* Decode a full block to `out` from dequantized coordinates in a. */
ISA static void decode_full(const Job *job, float *a, float s, uint64_t block, void *out, Target target) {
    uint32_t lanes[2 * WORDS_PER_SET] __attribute__((aligned(LINE)));
    Ahead ahead = {(uintptr_t)out + BLOCK * (target == ONTO_DOUBLES ? sizeof(double) : sizeof(float))};
    unrotate(a, job->base, block, &ahead);
    make_lanes(lanes, job->base, SETS_PER_BLOCK * block);
    deliver_block(target, a, lanes, s, out, job->weight);
}

/* Decode what decode_full does not: tails, zeros, and scales so large that coordinates may have to be clipped. */
ISA static void decode_other(const Job *job, float *a, float *b, float s, int n, uint64_t block) {
    if (s == 0)
        memset(a, 0, sizeof(float) * (size_t)n);
    else if (n == BLOCK) {
        decode_full(job, a, 1.0f, block, a, INTO_FLOATS);
    } else {
        unrotate_tail(a, b, n, job->base, SETS_PER_BLOCK * signs_of(job, (Py_ssize_t)block));
    }
    for (int i = 0; i < n; i++) a[i] *= s;
    if (s > 0x1p100f)
        for (int i = 0; i < n; i++) a[i] = a[i] > FLT_MAX ? FLT_MAX : a[i] < -FLT_MAX ? -FLT_MAX : a[i];
    deliver(job, a, start_of(job, (Py_ssize_t)block), n);
}

ISA static void decode_block(const Job *job, const uint8_t *from, int n, Run run, uint64_t block) {
    float a[BLOCK + LANES] __attribute__((aligned(LINE))), b[BLOCK + LANES] __attribute__((aligned(LINE)));
    uint8_t codes[BLOCK + LANES] __attribute__((aligned(LINE)));
    double scale = scale_of(job, block);
    Part parts[2];
    int count = parts_of(run, parts), sent = run.high + run.low;
    ask_all(from + run_bytes(run), run_bytes(run));
    for (int p = 0; p < count; p++) {
        Part part = parts[p];
        unpack(from, part.count, part.width, codes);
        dequantize(codes, job->levels[part.wide], part.count, part.width, a + part.start);
        from += packed_bytes(part.count, part.width);
    }
    if (sent < BLOCK) memset(a + sent, 0, sizeof(float) * (size_t)(BLOCK - sent));
    Py_ssize_t first = start_of(job, (Py_ssize_t)block);
    if (job->received) scale *= drop_lost(job, a, run, job->received + first);
    float s = (float)(scale < FLT_MAX ? scale : FLT_MAX);
    uint8_t *out = (uint8_t *)job->out + (size_t)first * (job->target == ONTO_DOUBLES ? sizeof(double) : sizeof(float));
    if (n != BLOCK || s == 0 || s > 0x1p100f)
        decode_other(job, a, b, s, n, block);
    else
        decode_full(job, a, s, block, out, job->target);
}

/* Decode a full block of whole numbers, by way of a block of its own where coordinates may have to be clipped. */
ISA static void decode_whole_block(const Job *job, const uint8_t *from, uint64_t block) {
    float a[BLOCK] __attribute__((aligned(LINE)));
    Py_ssize_t first = start_of(job, (Py_ssize_t)block);
    const uint8_t *received = job->received ? job->received + first : NULL;
    double scale = scale_of(job, block);
    ask_all(from + run_bytes(job->full_run), run_bytes(job->full_run));
    if (received) {
        int came = 0;
        for (int i = 0; i < BLOCK; i++) came += received[i] != 0;
        scale = came ? scale * ((double)BLOCK / came) : 0.0;
    }
    float s = (float)(scale < FLT_MAX ? scale : FLT_MAX);
    if (s >= 0x1p-100f && s <= 0x1p100f) {
        uint8_t *out = (uint8_t *)job->out + (size_t)first * (job->target == ONTO_DOUBLES ? sizeof(double) : sizeof(float));
        decode_whole(job, from, received, block, s * WHOLE_UNIT, job->target, out);
        return;
    }
    decode_whole(job, from, received, block, WHOLE_UNIT, INTO_FLOATS, a);
    for (int i = 0; i < BLOCK; i++) {
        a[i] = s == 0 ? 0.0f : a[i] * s;
        a[i] = a[i] > FLT_MAX ? FLT_MAX : a[i] < -FLT_MAX ? -FLT_MAX : a[i];
    }
    deliver(job, a, first, BLOCK);
}

ISA static void decode(Job *job) {
    const uint8_t *from = job->data + 1 + job->scale_bytes;
    for (Py_ssize_t k = 0; k < job->scale_count; k++) {
        int full = k < job->blocks;
        Run run = run_of(job, k);
        if (is_whole(job, k)) {
            decode_whole_block(job, from, (uint64_t)k);
        } else {
            if (k == 0 || !full) make_levels(job, run, (float)(full ? HEADROOM / BLOCK : HEADROOM));
            decode_block(job, from, size_of(job, k), run, (uint64_t)k);
        }
        from += run_bytes(run);
    }
}
