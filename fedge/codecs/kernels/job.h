/* What the Python side hands to the kernels, and the few functions both need. */

#ifndef FEDGE_JOB_H
#define FEDGE_JOB_H

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

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

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
    TRIT = 8,        /* widths 1..8 are bits; 9..15 a trit above 0..6 bits: packing.py */
    WIDTHS = 15,
    TABLE = 446,     /* entries of the tables of all widths: 1 + 2 + 4 + .. + 128, 2 + 3 + 6 + 12 + .. + 96 */
    BITS_TABLE = 255,
    MAX_CELLS = 512, /* of the grid that finds a level */
    WIDTHS_ALONE = 1, /* versions: plan.py */
    WITH_TRITS = 4,
    WHOLE = 7,
    MOST_WHOLE_BITS = 4,
    MOST_TAILS = 2,
    NUMBERS_OF_A_TAIL = 3,
};

static const double HEADROOM = 32.0;

/* Of blocks in whole numbers (whole.py): rotated numbers have a root mean square of 4064, levels a unit of 64,
 * and rounding adds a share to the energy that only makes scales smaller. */
static const double WHOLE_NORM = 4064.0 * SIDE, WHOLE_ONE = 64, WHOLE_NOISE = 1 + 1.2e-5;
static const float WHOLE_UNIT = 32.0f / 64 / BLOCK; /* what is decoded, times a scale */
static const uint8_t WHOLE_LEVELS[MOST_WHOLE_BITS][8] = {{51}, {29, 97}, {16, 49, 87, 139}, {8, 24, 41, 59, 79, 102, 130, 171}};
static const uint8_t WHOLE_THRESHOLDS[MOST_WHOLE_BITS][7] = {{0}, {62}, {32, 67, 111}, {16, 33, 51, 70, 92, 118, 153}};

static const uint64_t GAMMA = 0x9E3779B97F4A7C15u;

typedef struct {
    int width, wide, high, low; /* `high` codes of `wide`, then `low` codes of `width` */
} Run;

typedef struct {
    int start, count, width, wide;
} Part;

typedef struct {
    float per_unit;
    int last;
    int32_t below[MAX_CELLS];
    float inside[MAX_CELLS];
} Grid;

typedef enum {
    INTO_FLOATS,    /* out = x */
    ONTO_FLOATS,    /* out = out + weight·x, computed in double */
    ONTO_DOUBLES,
} Target;

typedef struct {
    const float *x; /* encode: input */
    void *out;      /* decode: output, or a running sum */
    Target target;
    double weight;
    const uint8_t *data;
    uint8_t *payload;
    const uint8_t *received; /* decode: one byte per coordinate in block order, or NULL */
    const double *gains;
    const float *tables;
    double *scales;
    Py_ssize_t size, blocks, scale_count, scale_bytes;
    int version, tail_count, tails[MOST_TAILS], raw, finite;
    Run full_run, tail_runs[MOST_TAILS];
    uint64_t base, scale_base; /* streams of signs and of the rounding of scales */
    Grid grids[2];
    float levels[2][256]; /* centroids of both widths by code; when decoding, times what the rotation leaves */
} Job;

enum {
    PRECISION = 12, /* of frequencies: gaussian.py */
    TOTAL_FREQUENCY = 1 << PRECISION,
    MOST_LEVELS = 32,
    MOST_CLASSES = 128,
    MOST_LANES = 16,
    LOWEST_STATE = 1 << 15,
    ROOM_OF_A_BLOCK = 2 * BLOCK + 64,
    DIRECTIONS = 1 << 15, /* of a group of SHORTEST_GROUP to LONGEST_GROUP coordinates: spherical.py */
    SHORTEST_GROUP = 16,
    LONGEST_GROUP = 1024,
};

/* Blocks that are entropy coded, one entry a block in every array: block_codes.py. */
typedef struct {
    const float *x;         /* encode: all coordinates, in sending order */
    void *out;              /* decode: output, or a running sum */
    Target target;
    double weight;
    uint8_t *symbols;       /* decode: codes counted from -last, block after block */
    const uint8_t *received; /* decode: one byte per coordinate, or NULL */
    Py_ssize_t blocks;
    const int64_t *starts, *sizes, *numbers, *low_starts, *symbol_starts;
    const float *factor, *scale; /* scale: inverse steps, or what decoded multiples are worth */
    double *products;            /* encode: <rotated, multiples> */
    const uint8_t *low, *klass;
    const uint16_t *frequencies; /* [class][MOST_LEVELS], by magnitude */
    const uint8_t *last;         /* [class] */
    uint64_t base;
    int lanes;
    uint32_t states[MOST_LANES];
    uint8_t *low_bits;
    uint8_t *room, *words, *end_of_words; /* encode: words are written backwards; NULL if there was no memory; of
                                             directions, `room` is for the search */
    const uint8_t *from, *end;                /* decode: words still to read */
    int coded_class;                          /* encode: whose these are, by code counted from -last */
    uint32_t reciprocal[2 * MOST_LEVELS], packed[2 * MOST_LEVELS]; /* 4096 - f | bias << 12 | shift << 25 */
    uint32_t *slots[MOST_CLASSES];            /* decode: per slot  code | (slot - start) << 8 | f << 20 */
    const int64_t *groups;                    /* directions: how many groups each block has; symbol_starts counts them */
    const int16_t *signs;                     /* [DIRECTIONS], ±1: spherical.py */
    uint8_t *said;                            /* words u16, group after group */
} CodeJob;

/* Whether each of `arrays` has `count` entries of so many bytes; 0 with an error set. */
static inline int one_entry_a_block(const Py_buffer *array, const Py_ssize_t *item, int arrays, Py_ssize_t count) {
    for (int i = 0; i < arrays; i++)
        if (array[i].len != count * item[i]) {
            PyErr_SetString(PyExc_ValueError, "expected one entry a block in every array");
            return 0;
        }
    return 1;
}

static inline void release(Py_buffer *buffers, int count) {
    for (int i = 0; i < count; i++)
        if (buffers[i].obj) PyBuffer_Release(&buffers[i]);
}

/* Of a block in `groups`: where group k begins, and the power of two that the longest fits in. */
static inline int edge_of(int k, int size, int groups) { return (int)((int64_t)k * size / groups); }

static inline int order_of(int size, int groups) {
    int longest = (size + groups - 1) / groups, order = SHORTEST_GROUP;
    while (order < longest) order *= 2;
    return order;
}

/* Make room below `to` for the words of one more block: a code takes at most one. Returns where `to` is now, or NULL.
 * Room for the worst case of all blocks would be four times as much as is used, and new pages every time. */
static inline uint8_t *make_room(CodeJob *job, uint8_t *to) {
    size_t written = (size_t)(job->end_of_words - to), size = (size_t)(job->end_of_words - job->room);
    if (size - written >= ROOM_OF_A_BLOCK) return to;
    uint8_t *room = malloc(2 * size);
    if (!room) return NULL;
    memcpy(room + 2 * size - written, to, written);
    free(job->room);
    job->room = room, job->end_of_words = room + 2 * size;
    return job->end_of_words - written;
}

/* Frequency and start of every code of a class, in order; returns how many. */
static inline int spread(const CodeJob *job, int klass, uint32_t *frequency, uint32_t *start) {
    int last = job->last[klass];
    uint32_t sum = 0;
    for (int code = 0; code <= 2 * last; code++) {
        frequency[code] = job->frequencies[klass * MOST_LEVELS + (code < last ? last - code : code - last)];
        start[code] = sum, sum += frequency[code];
    }
    return 2 * last + 1;
}

/* What replaces the division by f: x / f = (x·reciprocal >> 32) >> shift for x < 2^31. */
static inline void make_coins(CodeJob *job, int klass) {
    uint32_t frequency[2 * MOST_LEVELS], start[2 * MOST_LEVELS];
    if (job->coded_class == klass) return;
    job->coded_class = klass;
    int count = spread(job, klass, frequency, start);
    for (int code = 0; code < count; code++) {
        uint32_t f = frequency[code], shift = 0, bias = start[code];
        while (f > (1u << shift)) shift++;
        if (f < 2) {
            job->reciprocal[code] = ~0u, bias += TOTAL_FREQUENCY - 1;
        } else {
            job->reciprocal[code] = (uint32_t)((((uint64_t)1 << (shift + 31)) + f - 1) / f), shift--;
        }
        job->packed[code] = (TOTAL_FREQUENCY - f) | bias << 12 | shift << 25;
    }
}

/* The table of a class, made when it is first asked for; NULL without memory. */
static inline const uint32_t *slots_of(CodeJob *job, int klass) {
    uint32_t frequency[2 * MOST_LEVELS], start[2 * MOST_LEVELS], *slots = job->slots[klass];
    if (slots) return slots;
    job->slots[klass] = slots = malloc(sizeof *slots * TOTAL_FREQUENCY);
    if (!slots) return NULL;
    int count = spread(job, klass, frequency, start);
    for (int code = 0; code < count; code++)
        for (uint32_t j = 0; j < frequency[code]; j++)
            slots[start[code] + j] = (uint32_t)code | j << 8 | frequency[code] << 20;
    return slots;
}

/* One compiled copy of the hot loops. */
typedef struct {
    const char *name;
    int (*runs_here)(void);
    void (*encode)(Job *), (*decode)(Job *);
    void (*energies)(const float *, const int64_t *, Py_ssize_t, double *);
    void (*encode_codes)(CodeJob *);
    int (*read_codes)(CodeJob *);
    void (*decode_codes)(CodeJob *);
    void (*encode_directions)(CodeJob *), (*decode_directions)(CodeJob *);
} Kernels;

extern const Kernels fedge_avx512, fedge_avx2, fedge_baseline;

static inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Word number `index` of the stream `seed`: fedge.seeds. */
static inline uint64_t word(uint64_t seed, uint64_t index) {
    uint64_t z = seed + (index + 1) * GAMMA;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static inline int levels_of(int width) { return width <= TRIT ? 1 << width : 3 << (width - TRIT - 1); }

static inline const float *centroids_of(const float *tables, int width) {
    return tables + levels_of(width) / 2 - 1 + (width <= TRIT ? 0 : BITS_TABLE);
}

static inline const float *thresholds_of(const float *tables, int width) { return centroids_of(tables, width) + TABLE; }

static inline int parts_of(Run run, Part parts[2]) {
    int count = 0;
    if (run.high) parts[count++] = (Part){0, run.high, run.wide, 1};
    if (run.low) parts[count++] = (Part){run.high, run.low, run.width, 0};
    return count;
}

static inline Py_ssize_t packed_bytes(int count, int width) {
    Py_ssize_t total = width <= TRIT ? 0 : (count + 4) / 5;
    for (int bits = 8, below = width <= TRIT ? width : width - TRIT - 1; bits; bits /= 2)
        if (below & bits) total += (count * bits + 7) / 8;
    return total;
}

static inline Py_ssize_t run_bytes(Run run) {
    return packed_bytes(run.high, run.wide) + packed_bytes(run.low, run.width);
}

/* Of rotated block number k: its size, its first coordinate, the number its signs are drawn with, its codes. */
static inline int size_of(const Job *job, Py_ssize_t k) {
    return k < job->blocks ? BLOCK : job->tails[k - job->blocks];
}

static inline Py_ssize_t start_of(const Job *job, Py_ssize_t k) {
    return k <= job->blocks ? k * BLOCK : job->blocks * BLOCK + job->tails[0];
}

static inline uint64_t signs_of(const Job *job, Py_ssize_t k) {
    return (uint64_t)(k <= job->blocks ? k : k + NUMBERS_OF_A_TAIL - 1);
}

static inline Run run_of(const Job *job, Py_ssize_t k) {
    return k < job->blocks ? job->full_run : job->tail_runs[k - job->blocks];
}

/* All centroids of the widths of `run` times `factor`, indexed by code, over and over up to 16 entries. */
static inline void make_levels(Job *job, Run run, float factor) {
    Part parts[2];
    int count = parts_of(run, parts);
    for (int p = 0; p < count; p++) {
        int count = levels_of(parts[p].width), half = count / 2;
        const float *c = centroids_of(job->tables, parts[p].width);
        float *levels = job->levels[parts[p].wide];
        for (int j = 0; j < count - half; j++)
            levels[count - 1 - half - j] = -c[j] * factor, levels[half + j] = c[j] * factor; /* a zero last: +0 */
        for (int j = count; j < 16; j++) levels[j] = levels[j - count];
    }
}

#endif
