/* Entropy-coded blocks: `block_codes.py` in C, byte by byte and float by float. Included after kernels.h, whose rotation
 * it uses, and after the rans_*.h of the instruction set, if it has one. */

#include "rans.h"

/* ---- quantization ------------------------------------------------------------------------------------------- */

/* How the coordinates of one block become codes: k = round(y·inverse) within bounds, then h - lowest | low bits. */
typedef struct {
    float inverse, least, most;
    int half, low, last;
} Ruler;

static Ruler ruler_of(const CodeJob *job, Py_ssize_t k) {
    int low = job->low[k], half = (1 << low) >> 1, last = job->last[job->klass[k]], most = last << low;
    return (Ruler){job->scale[k], (float)(-most - half), (float)(most + (half ? half - 1 : 0)), half, low, last};
}

INLINE Floats within(Floats x, Floats least, Floats most) {
    Ints under = x < least, over = x > most;
    Ints bits = ((Ints)x & ~under) | ((Ints)least & under);
    return (Floats)((bits & ~over) | ((Ints)most & over));
}

/* Works on whole vectors: up to W - 1 entries behind the n-th are read from y and written to all outputs. Adding and
 * subtracting 1.5·2^23 rounds to the nearest integer, ties to even. */
INLINE void count_steps(const float *y, Ruler ruler, int n, uint8_t *symbols, uint8_t *rest, float *multiples) {
    Floats magic = all(12582912.0f);
    Ints mask = (Ints){0} + ((1 << ruler.low) - 1);
    for (int i = 0; i < n; i += W) {
        Floats scaled = within(load(y + i) * ruler.inverse, all(ruler.least), all(ruler.most));
        Floats rounded = (scaled + magic) - magic;
        Ints level = __builtin_convertvector(rounded, Ints) + ruler.half;
        store(multiples + i, rounded);
        store_codes(symbols + i, (level >> ruler.low) + ruler.last);
        if (ruler.low) store_codes(rest + i, level & mask);
    }
}

INLINE void values_of(const uint8_t *symbols, const uint8_t *rest, Ruler ruler, float unit, int n, float *a) {
    for (int i = 0; i < n; i += W) {
        Ints level = ((load_codes(symbols + i) - ruler.last) << ruler.low) - ruler.half;
        if (ruler.low) level += load_codes(rest + i);
        store(a + i, __builtin_convertvector(level, Floats) * unit);
    }
}

/* ---- blocks ------------------------------------------------------------------------------------------------- */

/* The energies of runs of coordinates: 16 sums in double, as everywhere. */
ISA static void energies(const float *x, const int64_t *sizes, Py_ssize_t count, double *found) {
    for (Py_ssize_t k = 0; k < count; k++) {
        Sums sums;
        int64_t i = 0;
        memset(&sums, 0, sizeof sums);
        for (; i + LANES <= sizes[k]; i += LANES) {
            __builtin_prefetch(x + i + 512, 0, 2);
            add_squares(&sums, x + i);
        }
        if (i < sizes[k]) {
            float rest[LANES] = {0};
            memcpy(rest, x + i, sizeof(float) * (size_t)(sizes[k] - i));
            add_squares(&sums, rest);
        }
        found[k] = total_of(&sums);
        x += sizes[k];
    }
}

/* <y, q>; reads whole groups of 16. */
INLINE double product_of(const float *y, const float *q, int n) {
    Sums sums;
    memset(&sums, 0, sizeof sums);
    for (int i = 0; i < n; i += LANES) add_products(&sums, y + i, q + i);
    return total_of(&sums);
}

/* Rotate block k into a. */
INLINE void rotate_coded(const CodeJob *job, Py_ssize_t k, float *a, float *b) {
    int n = (int)job->sizes[k];
    uint64_t number = (uint64_t)job->numbers[k];
    const float *x = job->x + job->starts[k];
    if (n == BLOCK) {
        Ahead ahead = {(uintptr_t)(k ? job->x + job->starts[k - 1] : x)};
        rotate(x, a, job->factor[k], job->base, number, &ahead);
    } else {
        for (int i = 0; i < n; i++) a[i] = x[i] * job->factor[k];
        rotate_tail(a, b, n, job->base, SETS_PER_BLOCK * number);
    }
}

/* From the last block to the first, because the range coder works backwards. */
ISA static void encode_codes(CodeJob *job) {
    uint8_t *to = job->end_of_words;
    Rows rows;
    if (job->lanes == 16) begin_encoding_rows(&rows);
    for (Py_ssize_t k = job->blocks - 1; k >= 0; k--) {
        float a[BLOCK + LANES] __attribute__((aligned(LINE))), b[BLOCK + LANES] __attribute__((aligned(LINE)));
        uint8_t symbols[BLOCK + LANES] __attribute__((aligned(LINE))), rest[BLOCK + LANES] __attribute__((aligned(LINE)));
        int n = (int)job->sizes[k];
        rotate_coded(job, k, a, b);
        Ruler ruler = ruler_of(job, k);
        memset(a + n, 0, sizeof(float) * LANES);
        count_steps(a, ruler, n, symbols, rest, b);
        memset(b + n, 0, sizeof(float) * LANES);
        job->products[k] = product_of(a, b, n);
        if (ruler.low) pack(rest, n, ruler.low, job->low_bits + job->low_starts[k]);
        make_coins(job, job->klass[k]);
        to = make_room(job, to);
        if (!to) break;
        to = encode_symbols(job, &rows, symbols, n, to);
    }
    job->words = to;
}

/* Zero what was not received; return sent/received. */
static double drop_unreceived(float *a, int n, const uint8_t *received) {
    int came = 0;
    for (int i = 0; i < n; i++) a[i] = received[i] ? a[i] : 0.0f, came += received[i] != 0;
    return came ? (double)n / came : 0.0;
}

/* All codes to `symbols`, before a coordinate is written: 0 if the payload ends before them. */
ISA static int read_codes(CodeJob *job) {
    Rows rows;
    if (job->lanes == 16) begin_decoding_rows(&rows);
    for (Py_ssize_t k = 0; k < job->blocks; k++) {
        const uint32_t *slots = slots_of(job, job->klass[k]);
        if (!slots || !decode_symbols(job, &rows, slots, job->symbols + job->symbol_starts[k], (int)job->sizes[k]))
            return 0;
    }
    return 1;
}

/* Hand over one block that is no full one, or that may have to be clipped. */
ISA static void deliver_other(const CodeJob *job, float *x, Py_ssize_t first, int n, float factor) {
    for (int i = 0; i < n; i++) {
        x[i] *= factor;
        if (fabsf(factor) > 0x1p100f) x[i] = x[i] > FLT_MAX ? FLT_MAX : x[i] < -FLT_MAX ? -FLT_MAX : x[i];
    }
    Job as = {.out = job->out, .target = job->target, .weight = job->weight};
    deliver(&as, x, first, n);
}

/* Undo the rotation of a full block in `a` and hand it over. */
ISA static void finish_full(const CodeJob *job, float *a, uint64_t number, Py_ssize_t first, float factor) {
    uint32_t lanes[2 * WORDS_PER_SET] __attribute__((aligned(LINE)));
    uintptr_t out = (uintptr_t)job->out + (uintptr_t)first * (job->target == ONTO_DOUBLES ? sizeof(double) : sizeof(float));
    Ahead ahead = {out};
    unrotate(a, job->base, number, &ahead);
    make_lanes(lanes, job->base, SETS_PER_BLOCK * number);
    if (fabsf(factor) > 0x1p100f) {
        deliver_block(INTO_FLOATS, a, lanes, 1.0f, a, 1.0);
        deliver_other(job, a, first, BLOCK, factor);
    } else
        deliver_block(job->target, a, lanes, factor, (void *)out, job->weight);
}

/* Undo the rotation of block k, whose decoded coordinates, but for their multiplier, are in a, and hand it over. */
INLINE void finish_coded(const CodeJob *job, Py_ssize_t k, float *a, float *b) {
    int n = (int)job->sizes[k];
    uint64_t number = (uint64_t)job->numbers[k];
    Py_ssize_t first = (Py_ssize_t)job->starts[k];
    float factor = job->scale[k];
    if (job->received) {
        double more = drop_unreceived(a, n, job->received + first), scaled = more > 0 ? factor * more : 0.0;
        factor = (float)(scaled > FLT_MAX ? FLT_MAX : scaled < -FLT_MAX ? -FLT_MAX : scaled);
    }
    if (n == BLOCK) {
        finish_full(job, a, number, first, factor);
    } else {
        unrotate_tail(a, b, n, job->base, SETS_PER_BLOCK * number);
        deliver_other(job, a, first, n, factor);
    }
}

/* The blocks whose codes were read, into or onto `out`. */
ISA static void decode_codes(CodeJob *job) {
    for (Py_ssize_t k = 0; k < job->blocks; k++) {
        float a[BLOCK + LANES] __attribute__((aligned(LINE))), b[BLOCK + LANES] __attribute__((aligned(LINE)));
        uint8_t rest[BLOCK + LANES] __attribute__((aligned(LINE)));
        int n = (int)job->sizes[k];
        Ruler ruler = ruler_of(job, k);
        if (ruler.low) unpack(job->low_bits + job->low_starts[k], n, ruler.low, rest);
        values_of(job->symbols + job->symbol_starts[k], rest, ruler, n == BLOCK ? 1.0f / BLOCK : 1.0f, n, a);
        finish_coded(job, k, a, b);
    }
}
