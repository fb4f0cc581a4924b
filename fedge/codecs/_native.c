/* EDEN's hot loops. `twin.py` is the same program in NumPy and the one to read first; every constant, every order of
 * additions and every byte here follows `rotation.py`, `packing.py`, `lloyd.py` and `twin.py`, and tests hold both together.
 *
 * What keeps the bits equal on every machine: float32 additions and subtractions in one fixed order, sums in double
 * over 16 lanes, no contraction (-ffp-contract=off), no reassociation (never -ffast-math).
 *
 * All loops are plain C that compilers vectorize. On x86 the two entry points are compiled once per instruction set
 * and chosen when the module is loaded. Nothing is global but that choice, and the GIL is released while they run.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0
#error "float32 arithmetic must round to float32 after every operation; the NumPy twin is used instead"
#endif
#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "written for little-endian machines; the NumPy twin is used instead"
#endif

typedef float Float4 __attribute__((vector_size(16)));
typedef float Float8 __attribute__((vector_size(32)));
typedef double Double8 __attribute__((vector_size(64)));

#define INLINE static inline __attribute__((always_inline))

enum {
    BLOCK = 4096,
    SIDE = 64,
    WORDS_PER_SET = 64,
    SETS_PER_BLOCK = 2,
    TAIL_ROUNDS = 3,
    LAST_RIFFLES = 3,
    SMALLEST_ROTATED = 32,
    LANES = 16,
    MANTISSA = 2048,
    MAX_WIDTH = 8,
    TABLE = 255,     /* entries of the tables of widths 1..8: 1 + 2 + 4 + .. + 128 */
    MAX_CELLS = 512, /* of the grid that finds a level */
    VERSION = 1,
};

static const double HEADROOM = 32.0;
static const uint64_t GAMMA = 0x9E3779B97F4A7C15u;

typedef struct {
    int width, high, low; /* `high` codes of width + 1 bits, then `low` codes of width bits */
} Run;

typedef struct {
    int start, count, width;
} Part;

typedef struct {
    float per_unit;
    int last;
    int32_t below[MAX_CELLS];
    float inside[MAX_CELLS];
} Grid;

typedef struct {
    const float *x; /* encode: input */
    float *out;     /* decode: output */
    const uint8_t *data;
    uint8_t *payload;
    const uint8_t *received; /* decode: one byte per coordinate in block order, or NULL */
    const double *gains;
    const float *tables;
    double *scales;
    Py_ssize_t size, blocks, scale_count, scale_bytes;
    int tail, raw, finite;
    Run full_run, tail_run;
    uint64_t base, scale_base; /* streams of signs and of the rounding of scales */
    Grid grids[2];
    float levels[2][256]; /* centroids of both widths by code; when decoding, times what the rotation leaves */
} Job;

/* ---- small things ------------------------------------------------------------------------------------------- */

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE uint64_t word(uint64_t seed, uint64_t index) {
    uint64_t z = seed + (index + 1) * GAMMA;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

INLINE const float *centroids_of(const float *tables, int width) { return tables + (1 << (width - 1)) - 1; }
INLINE const float *thresholds_of(const float *tables, int width) { return centroids_of(tables, width) + TABLE; }

INLINE int parts_of(Run run, Part parts[2]) {
    int count = 0;
    if (run.high) parts[count++] = (Part){0, run.high, run.width + 1};
    if (run.low) parts[count++] = (Part){run.high, run.low, run.width};
    return count;
}

static Py_ssize_t packed_bytes(int count, int width) {
    Py_ssize_t total = 0;
    for (int bits = 8; bits; bits /= 2)
        if (width & bits) total += (count * bits + 7) / 8;
    return total;
}

static Py_ssize_t run_bytes(Run run) {
    return packed_bytes(run.high, run.width + 1) + packed_bytes(run.low, run.width);
}

/* ---- rotation ----------------------------------------------------------------------------------------------- */

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#endif
#endif
#ifndef SHUFFLE
typedef int32_t Index4 __attribute__((vector_size(16)));
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (Index4){i, j, k, l})
#endif

/* Three Hadamard stages (distances 1, 2, 4 in units of `stride`) on 8 rows of `width` entries. */
INLINE void radix8(float *x, int stride, int width) {
    for (int l = 0; l < width; l++) {
        float a[8], b[8];
        for (int j = 0; j < 8; j++) a[j] = x[j * stride + l];
        for (int j = 0; j < 8; j += 2) b[j] = a[j] + a[j + 1], b[j + 1] = a[j] - a[j + 1];
        for (int j = 0; j < 8; j++) a[j] = j & 2 ? b[j - 2] - b[j] : b[j] + b[j + 2];
        for (int j = 0; j < 4; j++) b[j] = a[j] + a[j + 4], b[j + 4] = a[j] - a[j + 4];
        for (int j = 0; j < 8; j++) x[j * stride + l] = b[j];
    }
}

/* C: H_64 on every column of a 64 × 64 matrix. */
INLINE void columns(float *x) {
    for (int g = 0; g < SIDE; g += 8) radix8(x + g * SIDE, SIDE, SIDE);
    for (int g = 0; g < 8; g++) radix8(x + g * SIDE, 8 * SIDE, SIDE);
}

INLINE void transpose(const float *restrict from, float *restrict to) {
    for (int i = 0; i < SIDE; i += 4)
        for (int j = 0; j < SIDE; j += 4) {
            Float4 a, b, c, d;
            memcpy(&a, from + (i + 0) * SIDE + j, 16);
            memcpy(&b, from + (i + 1) * SIDE + j, 16);
            memcpy(&c, from + (i + 2) * SIDE + j, 16);
            memcpy(&d, from + (i + 3) * SIDE + j, 16);
            Float4 ab = SHUFFLE(a, b, 0, 4, 1, 5), AB = SHUFFLE(a, b, 2, 6, 3, 7);
            Float4 cd = SHUFFLE(c, d, 0, 4, 1, 5), CD = SHUFFLE(c, d, 2, 6, 3, 7);
            a = SHUFFLE(ab, cd, 0, 1, 4, 5), b = SHUFFLE(ab, cd, 2, 3, 6, 7);
            c = SHUFFLE(AB, CD, 0, 1, 4, 5), d = SHUFFLE(AB, CD, 2, 3, 6, 7);
            memcpy(to + (j + 0) * SIDE + i, &a, 16);
            memcpy(to + (j + 1) * SIDE + i, &b, 16);
            memcpy(to + (j + 2) * SIDE + i, &c, 16);
            memcpy(to + (j + 3) * SIDE + i, &d, 16);
        }
}

/* H' = C·T·C: from `x` by way of itself into `y`. */
INLINE void square(float *restrict x, float *restrict y) {
    columns(x);
    transpose(x, y);
    columns(y);
}

/* `value`, negated if bit j of `lane` is set. */
INLINE float negated(float value, uint32_t lane, int j) {
    return float_of(bits_of(value) ^ ((lane << (31 - j)) & 0x80000000u));
}

/* to = from · factor, negated where sign set number `set` says so. n is a multiple of 128, or 64 or 32. */
INLINE void flip(const float *from, float *to, int n, float factor, uint64_t base, uint64_t set) {
    uint32_t lanes[2 * WORDS_PER_SET];
    for (int w = 0; w < WORDS_PER_SET; w++) {
        uint64_t z = word(base, set * WORDS_PER_SET + (uint64_t)w);
        lanes[2 * w] = (uint32_t)z, lanes[2 * w + 1] = (uint32_t)(z >> 32);
    }
    for (int j = 0; 128 * j < n; j++) {
        const float *source = from + 128 * j;
        float *target = to + 128 * j;
        if (n >= 128)
            for (int l = 0; l < 128; l++) target[l] = negated(source[l] * factor, lanes[l], j);
        else
            for (int l = 0; l < n; l++) target[l] = negated(source[l] * factor, lanes[l], j);
    }
}

INLINE void butterfly(float *restrict low, float *restrict high, int n) {
    for (int j = 0; j < n; j++) {
        float a = low[j], b = high[j];
        low[j] = a + b, high[j] = a - b;
    }
}

/* Normalized H_n in natural order, n a power of two and at least 32. */
INLINE void hadamard(float *x, int n) {
    float norm = (float)(1 / sqrt((double)n));
    for (int i = 0; i < n; i += 8) radix8(x + i, 1, 1);
    for (int distance = 8; distance < n; distance *= 2)
        for (int i = 0; i < n; i += 2 * distance)
            butterfly(x + i, x + i + distance, distance);
    for (int i = 0; i < n; i++) x[i] *= norm;
}

INLINE int power_below(int n) {
    int power = SMALLEST_ROTATED;
    while (2 * power <= n) power *= 2;
    return power;
}

/* Even entries, then odd ones. */
INLINE void riffle(float *x, float *other, int n) {
    int even = (n + 1) / 2;
    memcpy(other, x, sizeof(float) * (size_t)n);
    for (int i = 0; i < even; i++) x[i] = other[2 * i];
    for (int i = 0; i < n / 2; i++) x[even + i] = other[2 * i + 1];
}

INLINE void unriffle(float *x, float *other, int n) {
    int even = (n + 1) / 2;
    memcpy(other, x, sizeof(float) * (size_t)n);
    for (int i = 0; i < even; i++) x[2 * i] = other[i];
    for (int i = 0; i < n / 2; i++) x[2 * i + 1] = other[even + i];
}

INLINE void rotate_tail(float *x, float *other, int n, uint64_t base, uint64_t set) {
    int power = power_below(n);
    for (int round = 0; round < TAIL_ROUNDS; round++) {
        for (int first = 0;; first = n - power) {
            flip(x + first, x + first, power, 1.0f, base, set++);
            hadamard(x + first, power);
            if (first == n - power) break;
        }
        riffle(x, other, n);
    }
    for (int k = 0; k < LAST_RIFFLES; k++) riffle(x, other, n);
}

INLINE void unrotate_tail(float *x, float *other, int n, uint64_t base, uint64_t set) {
    int power = power_below(n);
    set += (uint64_t)(n > power ? 2 * TAIL_ROUNDS : TAIL_ROUNDS);
    for (int k = 0; k < LAST_RIFFLES; k++) unriffle(x, other, n);
    for (int round = 0; round < TAIL_ROUNDS; round++) {
        unriffle(x, other, n);
        for (int first = n - power;; first = 0) {
            hadamard(x + first, power);
            flip(x + first, x + first, power, 1.0f, base, --set);
            if (first == 0) break;
        }
    }
}

/* ---- quantization ------------------------------------------------------------------------------------------- */

/* The code of a number from the level m of its magnitude and the bit of its sign. */
INLINE uint8_t code_of(uint32_t m, float z, int half) {
    uint32_t negative = bits_of(z) >> 31;
    return (uint8_t)(((uint32_t)half + m) ^ ((0u - negative) & (2u * (uint32_t)half - 1u)));
}

INLINE void quantize_by_counting(const float *restrict y, float inverse_sigma, int n, int half, const float *t,
                                 uint8_t *restrict codes) {
    for (int i = 0; i < n; i++) {
        float z = y[i] * inverse_sigma, magnitude = fabsf(z);
        uint32_t m = 0;
        for (int j = 0; j < half - 1; j++) m += magnitude > t[j];
        codes[i] = code_of(m, z, half);
    }
}

INLINE void quantize_by_grid(const float *restrict y, float inverse_sigma, int n, int half, const Grid *grid,
                             uint8_t *restrict codes) {
    float per_unit = grid->per_unit, last = (float)grid->last;
    for (int i = 0; i < n; i++) {
        float z = y[i] * inverse_sigma, magnitude = fabsf(z), place = magnitude * per_unit;
        int32_t cell = (int32_t)(place < last ? place : last);
        uint32_t m = (uint32_t)grid->below[cell] + (magnitude > grid->inside[cell]);
        codes[i] = code_of(m, z, half);
    }
}

/* Quantize y·inverse_sigma. */
INLINE void quantize(const float *y, float inverse_sigma, int n, int width, const float *tables, const Grid *grid,
                     uint8_t *codes) {
    const float *t = thresholds_of(tables, width);
    switch (width) {
        case 1: quantize_by_counting(y, inverse_sigma, n, 1, t, codes); break;
        case 2: quantize_by_counting(y, inverse_sigma, n, 2, t, codes); break;
        case 3: quantize_by_counting(y, inverse_sigma, n, 4, t, codes); break;
        case 4: quantize_by_counting(y, inverse_sigma, n, 8, t, codes); break;
        default: quantize_by_grid(y, inverse_sigma, n, 1 << (width - 1), grid, codes);
    }
}

INLINE void dequantize(const uint8_t *restrict codes, const float *restrict levels, int n, float *restrict q) {
    for (int i = 0; i < n; i++) q[i] = levels[codes[i]];
}

/* All centroids of the widths of `run` times `factor`, indexed by code. */
static void make_levels(Job *job, Run run, float factor) {
    Part parts[2];
    int count = parts_of(run, parts);
    for (int p = 0; p < count; p++) {
        int width = parts[p].width, half = 1 << (width - 1);
        const float *c = centroids_of(job->tables, width);
        float *levels = job->levels[width - run.width];
        for (int j = 0; j < half; j++) levels[half + j] = c[j] * factor, levels[half - 1 - j] = -c[j] * factor;
    }
}

/* Cells so narrow that none holds two thresholds. */
static void make_grid(Grid *grid, const float *tables, int width) {
    const float *t = thresholds_of(tables, width);
    int count = (1 << (width - 1)) - 1, seen = 0;
    float gap = t[0];
    for (int j = 1; j < count; j++) gap = t[j] - t[j - 1] < gap ? t[j] - t[j - 1] : gap;
    grid->per_unit = 1.02f / gap;
    for (int cell = 0; cell < MAX_CELLS; cell++) {
        grid->below[cell] = seen, grid->inside[cell] = INFINITY, grid->last = cell;
        if (seen < count && t[seen] * grid->per_unit < (float)(cell + 1)) grid->inside[cell] = t[seen++];
    }
}

/* <y, q> in double over 16 lanes, lanes added in order; reads whole groups of 16. */
INLINE double dot(const float *y, const float *q, int n) {
    Double8 low = {0}, high = {0};
    for (int i = 0; i < n; i += LANES) {
        Float8 a, b, c, d;
        memcpy(&a, y + i, sizeof a), memcpy(&b, y + i + 8, sizeof b);
        memcpy(&c, q + i, sizeof c), memcpy(&d, q + i + 8, sizeof d);
        low += __builtin_convertvector(a, Double8) * __builtin_convertvector(c, Double8);
        high += __builtin_convertvector(b, Double8) * __builtin_convertvector(d, Double8);
    }
    double total = low[0];
    for (int l = 1; l < 8; l++) total += low[l];
    for (int l = 0; l < 8; l++) total += high[l];
    return total;
}

/* ---- packing ------------------------------------------------------------------------------------------------ */

INLINE uint8_t *pack(const uint8_t *restrict codes, int n, int width, uint8_t *restrict to) {
    for (int bits = 8, shift = 0; bits; bits /= 2) {
        if (!(width & bits)) continue;
        int length = (n * bits + 7) / 8;
        uint8_t mask = (uint8_t)((1 << bits) - 1);
        for (int j = 0; j * length < n; j++) {
            int count = n - j * length < length ? n - j * length : length;
            const uint8_t *from = codes + j * length;
            if (j == 0)
                for (int l = 0; l < count; l++) to[l] = (uint8_t)(from[l] >> shift) & mask;
            else
                for (int l = 0; l < count; l++) to[l] |= (uint8_t)((uint8_t)((from[l] >> shift) & mask) << (bits * j));
        }
        to += length, shift += bits;
    }
    return to;
}

INLINE const uint8_t *unpack(const uint8_t *restrict from, int n, int width, uint8_t *restrict codes) {
    memset(codes, 0, (size_t)n);
    for (int bits = 8, shift = 0; bits; bits /= 2) {
        if (!(width & bits)) continue;
        int length = (n * bits + 7) / 8;
        uint8_t mask = (uint8_t)((1 << bits) - 1);
        for (int j = 0; j * length < n; j++) {
            int count = n - j * length < length ? n - j * length : length;
            uint8_t *to = codes + j * length;
            for (int l = 0; l < count; l++) to[l] |= (uint8_t)((uint8_t)((from[l] >> (bits * j)) & mask) << shift);
        }
        from += length, shift += bits;
    }
    return from;
}

/* ---- encoding ----------------------------------------------------------------------------------------------- */

/* Write one block's codes to `to` and return its scale, divided by the headroom; -1 if it is not finite. */
INLINE double encode_block(const Job *job, const float *x, int n, Run run, uint64_t block, uint8_t *to) {
    float a[BLOCK + LANES], b[BLOCK + LANES];
    uint8_t codes[BLOCK];
    uint32_t peak = 0;
    for (int i = 0; i < n; i++) {
        uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
        peak = magnitude > peak ? magnitude : peak;
    }
    if (peak >= 0x7f800000u) return -1;
    int shift = 127 - (int)(peak >> 23);
    shift = shift > 126 ? 126 : shift < -126 ? -126 : shift;
    float factor = float_of((uint32_t)(127 + shift) << 23);
    double length = 1;
    if (n == BLOCK) {
        flip(x, a, BLOCK, factor, job->base, SETS_PER_BLOCK * block);
        square(a, b);
        flip(b, b, BLOCK, 1.0f, job->base, SETS_PER_BLOCK * block + 1);
        square(b, a);
        length = BLOCK;
    } else {
        for (int i = 0; i < n; i++) a[i] = x[i] * factor;
        rotate_tail(a, b, n, job->base, SETS_PER_BLOCK * block);
        memset(a + n, 0, sizeof(float) * LANES);
    }
    double energy = dot(a, a, n);
    float inverse_sigma = energy > 0 ? (float)(1 / sqrt(energy / n)) : 0.0f;
    int sent = run.high + run.low;
    Part parts[2];
    int count = parts_of(run, parts);
    uint8_t *end = to;
    for (int p = 0; p < count; p++) {
        Part part = parts[p];
        int wide = part.width - run.width;
        quantize(a + part.start, inverse_sigma, part.count, part.width, job->tables, &job->grids[wide], codes);
        dequantize(codes, job->levels[wide], part.count, b + part.start);
        end = pack(codes, part.count, part.width, end);
    }
    memset(a + sent, 0, sizeof(float) * LANES);
    memset(b + sent, 0, sizeof(float) * LANES);
    double product = dot(a, b, sent);
    if (sent < n) energy = dot(a, a, sent) * ((double)n / sent);
    double scale = product > 0 ? ldexp(energy / (product * length * HEADROOM), -shift) : 0.0;
    if (scale > FLT_MAX) scale = FLT_MAX;
    if (scale == 0) memset(to, 0, (size_t)(end - to));
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

INLINE void encode_all(Job *job) {
    uint8_t *to = job->payload + 1 + job->scale_bytes;
    Py_ssize_t full_bytes = run_bytes(job->full_run);
    job->payload[0] = VERSION;
    for (Py_ssize_t k = 0; k < job->scale_count; k++) {
        int n = k < job->blocks ? BLOCK : job->tail;
        Run run = k < job->blocks ? job->full_run : job->tail_run;
        job->scales[k] = encode_block(job, job->x + k * BLOCK, n, run, (uint64_t)k, to + k * full_bytes);
        if (job->scales[k] < 0) return;
    }
    const float *raw = job->x + job->size - job->raw;
    for (int i = 0; i < job->raw; i++)
        if (!isfinite(raw[i])) return;
    memcpy(to + job->blocks * full_bytes + run_bytes(job->tail_run), raw, sizeof(float) * (size_t)job->raw);
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
INLINE double drop_lost(const Job *job, float *q, Run run, const uint8_t *received) {
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

INLINE void decode_block(const Job *job, const uint8_t *from, int n, Run run, uint64_t block, float *out) {
    float a[BLOCK], b[BLOCK];
    uint8_t codes[BLOCK];
    double scale = scale_of(job, block);
    Part parts[2];
    int count = parts_of(run, parts), sent = run.high + run.low;
    for (int p = 0; p < count; p++) {
        from = unpack(from, parts[p].count, parts[p].width, codes);
        dequantize(codes, job->levels[parts[p].width - run.width], parts[p].count, a + parts[p].start);
    }
    memset(a + sent, 0, sizeof(float) * (size_t)(BLOCK - sent));
    if (job->received) scale *= drop_lost(job, a, run, job->received + block * BLOCK);
    float s = (float)(scale < FLT_MAX ? scale : FLT_MAX);
    if (s == 0) {
        memset(out, 0, sizeof(float) * (size_t)n);
        return;
    }
    if (n == BLOCK) {
        square(a, b);
        flip(b, b, BLOCK, 1.0f, job->base, SETS_PER_BLOCK * block + 1);
        square(b, a);
        flip(a, a, BLOCK, 1.0f, job->base, SETS_PER_BLOCK * block);
    } else {
        unrotate_tail(a, b, n, job->base, SETS_PER_BLOCK * block);
    }
    for (int i = 0; i < n; i++) out[i] = a[i] * s;
    if (s > 0x1p100f)
        for (int i = 0; i < n; i++) out[i] = out[i] > FLT_MAX ? FLT_MAX : out[i] < -FLT_MAX ? -FLT_MAX : out[i];
}

INLINE void decode_all(Job *job) {
    const uint8_t *from = job->data + 1 + job->scale_bytes;
    Py_ssize_t full_bytes = run_bytes(job->full_run);
    for (Py_ssize_t k = 0; k < job->scale_count; k++) {
        int full = k < job->blocks;
        Run run = full ? job->full_run : job->tail_run;
        if (k == 0 || k == job->blocks) make_levels(job, run, (float)(full ? HEADROOM / BLOCK : HEADROOM));
        decode_block(job, from + k * full_bytes, full ? BLOCK : job->tail, run, (uint64_t)k, job->out + k * BLOCK);
    }
}

/* ---- one copy per instruction set ------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    void (*encode)(Job *), (*decode)(Job *);
} Kernels;

#define KERNELS(isa, attribute)                                                    \
    attribute static void encode_##isa(Job *job) { encode_all(job); }              \
    attribute static void decode_##isa(Job *job) { decode_all(job); }

KERNELS(baseline, )
#if defined(__x86_64__)
KERNELS(avx2, __attribute__((target("avx2"))))
#if defined(__clang__)
KERNELS(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))))
#else
KERNELS(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))))
#endif
#endif

static const Kernels ALL[] = {
#if defined(__x86_64__)
    {"avx512", encode_avx512, decode_avx512},
    {"avx2", encode_avx2, decode_avx2},
#endif
    {"baseline", encode_baseline, decode_baseline},
};
static const Kernels *kernels;

static int runs_here(const char *name) {
#if defined(__x86_64__)
    if (!strcmp(name, "avx2")) return __builtin_cpu_supports("avx2");
    if (!strcmp(name, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return !strcmp(name, "baseline");
}

static int choose(const char *name) {
    for (size_t k = 0; k < sizeof ALL / sizeof *ALL; k++)
        if ((!name || !strcmp(name, ALL[k].name)) && runs_here(ALL[k].name)) {
            kernels = &ALL[k];
            return 1;
        }
    return 0;
}

/* ---- the Python side ------------------------------------------------------------------------------------------- */

static int valid_run(Run run, int n) {
    return run.width >= 1 && run.width <= MAX_WIDTH && run.high >= 0 && run.low >= 0 && run.high <= n &&
           run.low <= n - run.high && (run.high == 0 || run.width < MAX_WIDTH);
}

/* Cut the vector up and check that every length fits; returns the payload's length, -1 with an error set. */
static Py_ssize_t prepare(Job *job, Py_ssize_t size, const Py_buffer *tables, uint64_t seed) {
    int rest = (int)(size % BLOCK);
    job->size = size;
    job->blocks = size / BLOCK;
    job->tail = rest >= SMALLEST_ROTATED ? rest : 0;
    job->raw = rest - job->tail;
    job->scale_count = job->blocks + (job->tail > 0);
    job->scale_bytes = job->scale_count == 0 ? 0 : job->scale_count == 1 ? 4 : 4 + 2 * job->scale_count;
    job->base = word(seed, 0);
    job->scale_base = word(seed, 1);
    job->tables = tables->buf;
    if (tables->len != (Py_ssize_t)(2 * TABLE * sizeof(float))) {
        PyErr_SetString(PyExc_ValueError, "tables must be 510 float32");
        return -1;
    }
    if (!valid_run(job->full_run, BLOCK) || !valid_run(job->tail_run, job->tail)) {
        PyErr_SetString(PyExc_ValueError, "a run does not fit its block");
        return -1;
    }
    return 1 + job->scale_bytes + job->blocks * run_bytes(job->full_run) + run_bytes(job->tail_run) +
           (Py_ssize_t)sizeof(float) * job->raw;
}

static PyObject *encode_checked(Job *job, Py_ssize_t expected) {
    PyObject *data = PyBytes_FromStringAndSize(NULL, expected);
    job->scales = malloc(sizeof(double) * (size_t)(job->scale_count + 1));
    if (!data || !job->scales) {
        free(job->scales);
        Py_XDECREF(data);
        return PyErr_NoMemory();
    }
    job->payload = (uint8_t *)PyBytes_AsString(data);
    for (int wide = 0; wide < 2; wide++) {
        int width = job->full_run.width + wide;
        if (width > 4 && width <= MAX_WIDTH) make_grid(&job->grids[wide], job->tables, width);
    }
    make_levels(job, job->full_run, 1.0f);
    make_levels(job, job->tail_run, 1.0f);
    Py_BEGIN_ALLOW_THREADS
    kernels->encode(job);
    Py_END_ALLOW_THREADS
    free(job->scales);
    if (job->finite) return data;
    Py_DECREF(data);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(encode_doc, "encode(x, seed, size_bytes, width, high, low, tail_width, tail_high, tail_low, tables)\n"
                         "Return the payload, or None if a coordinate is not finite.");

static PyObject *encode(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer x, tables;
    unsigned long long seed;
    Py_ssize_t expected, actual;
    PyObject *result = NULL;
    Job job;
    memset(&job, 0, sizeof job);
    Run *full = &job.full_run, *tail = &job.tail_run;
    if (!PyArg_ParseTuple(args, "y*Kniiiiiiy*", &x, &seed, &expected, &full->width, &full->high, &full->low,
                          &tail->width, &tail->high, &tail->low, &tables))
        return NULL;
    actual = prepare(&job, x.len / (Py_ssize_t)sizeof(float), &tables, seed);
    job.x = x.buf;
    if (actual >= 0 && (actual != expected || x.len % (Py_ssize_t)sizeof(float) ||
                        (job.tail && tail->width != full->width)))
        PyErr_Format(PyExc_ValueError, "the payload would have %zd bytes, not %zd", actual, expected);
    else if (actual >= 0)
        result = encode_checked(&job, expected);
    PyBuffer_Release(&x);
    PyBuffer_Release(&tables);
    return result;
}

PyDoc_STRVAR(decode_doc,
             "decode(data, out, seed, width, high, low, tail_width, tail_high, tail_low, tables, gains, received)\n"
             "Decode the rotated blocks into `out`, float32; raw coordinates are left alone. `received` is bool in\n"
             "block order, or None.");

static PyObject *decode(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer data, out, tables, gains, received = {0};
    unsigned long long seed;
    Job job;
    memset(&job, 0, sizeof job);
    Run *full = &job.full_run, *tail = &job.tail_run;
    if (!PyArg_ParseTuple(args, "y*w*Kiiiiiiy*y*z*", &data, &out, &seed, &full->width, &full->high, &full->low,
                          &tail->width, &tail->high, &tail->low, &tables, &gains, &received))
        return NULL;
    Py_ssize_t actual = prepare(&job, out.len / (Py_ssize_t)sizeof(float), &tables, seed);
    job.data = data.buf, job.out = out.buf, job.gains = gains.buf, job.received = received.buf;
    if (actual >= 0 && (actual != data.len || out.len % (Py_ssize_t)sizeof(float) ||
                        gains.len != (Py_ssize_t)(MAX_WIDTH * sizeof(double)) ||
                        (received.buf && received.len != job.size)))
        PyErr_Format(PyExc_ValueError, "expected %zd bytes and buffers that fit them, got %zd", actual, data.len);
    else if (actual >= 0) {
        Py_BEGIN_ALLOW_THREADS
        kernels->decode(&job);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    PyBuffer_Release(&tables);
    PyBuffer_Release(&gains);
    if (received.obj) PyBuffer_Release(&received);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

static PyObject *isa(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    return PyUnicode_FromString(kernels->name);
}

static PyObject *use_isa(PyObject *Py_UNUSED(module), PyObject *args) {
    const char *name;
    if (!PyArg_ParseTuple(args, "s", &name)) return NULL;
    return PyBool_FromLong(choose(name));
}

static PyMethodDef methods[] = {
    {"encode", encode, METH_VARARGS, encode_doc},
    {"decode", decode, METH_VARARGS, decode_doc},
    {"isa", isa, METH_NOARGS, "isa()\nReturn the name of the instruction set in use."},
    {"use_isa", use_isa, METH_VARARGS, "use_isa(name)\nUse 'avx512', 'avx2' or 'baseline' if this CPU can; says if."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", "EDEN's hot loops; see twin.py.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) {
    choose(NULL);
    return PyModule_Create(&definition);
}
