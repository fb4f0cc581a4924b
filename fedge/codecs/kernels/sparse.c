/* M22's passes over the coordinates: how large they are, which are kept, and which cell each is in (`m22/sparse.py`).
 *
 * All of it is integers and comparisons, and sums in an order that the NumPy code beside each caller keeps, so both give
 * the same bits. Nothing here depends on the instruction set. The GIL is released in every loop.
 */

#include "sparse.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { BIN_SHIFT = 15, BINS = 1 << 16, EXPONENT_SHIFT = 23, EXPONENTS = 256, MANY = 1 << 18, MOST_LEVELS = 128, WAYS = 4 };
enum { BLOCK = 64, CROWDED = 16, TABLE_BITS = 11, AT_ONCE = 2048 };

#define MAGNITUDE 0x7FFFFFFFu

static void release(Py_buffer *buffers, int count) {
    for (int i = 0; i < count; i++)
        if (buffers[i].obj) PyBuffer_Release(&buffers[i]);
}

/* Bit i of what 64 flags of 0 or 1 become is flag i. */
static inline uint64_t bits_of(const uint8_t *flags) {
    uint64_t bits = 0;
    for (int k = 0; k < 8; k++) {
        uint64_t eight;
        memcpy(&eight, flags + 8 * k, 8);
        bits |= ((eight * 0x0102040810204080u) >> 56) << (8 * k);
    }
    return bits;
}

static inline void store_bits(uint8_t *bitmap, uint64_t bits, Py_ssize_t things) {
    for (int k = 0; 8 * k < things; k++) bitmap[k] = (uint8_t)(bits >> 8 * k);
}

/* measure(values, bins, counts, lows): of the lowest 31 bits of uint32 [n], which bins of 2^15 are used, ascending, how
 * many there are in each, and the sums of their lowest 15 bits; returns how many bins. */
PyObject *fedge_measure(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer b[4] = {{0}};
    Py_ssize_t found = -1;
    if (!PyArg_ParseTuple(args, "y*w*w*w*", &b[0], &b[1], &b[2], &b[3])) return NULL;
    Py_ssize_t n = b[0].len / 4;
    const uint32_t *values = b[0].buf;
    uint32_t *bins = b[1].buf;
    int64_t *counts = b[2].buf, *lows = b[3].buf;
    uint64_t *held = NULL;
    if (b[1].len != 4 * BINS || b[2].len != 8 * BINS || b[3].len != 8 * BINS)
        PyErr_SetString(PyExc_ValueError, "expected room for 65536 bins");
    /* A count and a sum of low bits in one number, so one addition does for both. */
    else if (n >= (Py_ssize_t)1 << 24)
        PyErr_SetString(PyExc_ValueError, "expected fewer than 2^24 values");
    else if (!(held = calloc(BINS, 8)))
        PyErr_NoMemory();
    else {
        uint8_t used[EXPONENTS];
        Py_BEGIN_ALLOW_THREADS
        const uint64_t one = (uint64_t)1 << 40;
        for (Py_ssize_t i = 0; i < n; i++) {
            uint32_t magnitude = values[i] & MAGNITUDE;
            held[magnitude >> BIN_SHIFT] += one | (magnitude & ((1 << BIN_SHIFT) - 1));
        }
        /* Of a few values, look at the bins of their exponents only. */
        memset(used, n >= MANY, EXPONENTS);
        for (Py_ssize_t i = 0; i < n && n < MANY; i++) used[(values[i] & MAGNITUDE) >> EXPONENT_SHIFT] = 1;
        found = 0;
        for (uint32_t e = 0; e < EXPONENTS; e++)
            for (uint32_t bin = e << 8; used[e] && bin < (e + 1) << 8; bin++) {
                uint64_t both = held[bin];
                if (both) {
                    bins[found] = bin;
                    counts[found] = (int64_t)(both >> 40);
                    lows[found++] = (int64_t)(both & (one - 1));
                }
            }
        Py_END_ALLOW_THREADS
    }
    free(held);
    release(b, 4);
    return found < 0 ? NULL : PyLong_FromSsize_t(found);
}

static inline uint64_t reach(const uint32_t *values, Py_ssize_t things, uint32_t least) {
    uint8_t flags[BLOCK] = {0};
    if (things == BLOCK)
        for (int i = 0; i < BLOCK; i++) flags[i] = (int32_t)(values[i] & MAGNITUDE) >= (int32_t)least;
    else
        for (Py_ssize_t i = 0; i < things; i++) flags[i] = (int32_t)(values[i] & MAGNITUDE) >= (int32_t)least;
    return bits_of(flags);
}

/* between(values, least, below, found): the lowest 31 bits of uint32 [n] that are at least one and below another number;
 * returns how many. */
PyObject *fedge_between(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer b[2] = {{0}};
    unsigned int least, below;
    Py_ssize_t count = -1;
    if (!PyArg_ParseTuple(args, "y*IIw*", &b[0], &least, &below, &b[1])) return NULL;
    Py_ssize_t n = b[0].len / 4, room = b[1].len / 4;
    const uint32_t *values = b[0].buf;
    uint32_t *found = b[1].buf;
    if (least > below || below > MAGNITUDE)
        PyErr_SetString(PyExc_ValueError, "expected bounds of 31 bits that ascend");
    else {
        Py_BEGIN_ALLOW_THREADS
        count = 0;
        for (Py_ssize_t from = 0; from < n && count <= room; from += BLOCK) {
            Py_ssize_t things = n - from < BLOCK ? n - from : BLOCK;
            uint8_t flags[BLOCK] = {0};
            const uint32_t *here = values + from;
            int32_t width = (int32_t)(below - least);
            if (things == BLOCK)
                for (int i = 0; i < BLOCK; i++) {
                    int32_t away = (int32_t)(here[i] & MAGNITUDE) - (int32_t)least;
                    flags[i] = (away >= 0) & (away < width);
                }
            else
                for (Py_ssize_t i = 0; i < things; i++) {
                    int32_t away = (int32_t)(here[i] & MAGNITUDE) - (int32_t)least;
                    flags[i] = (away >= 0) & (away < width);
                }
            for (uint64_t bits = bits_of(flags); bits; bits &= bits - 1) {
                if (count < room) found[count] = here[__builtin_ctzll(bits)] & MAGNITUDE;
                count++;
            }
        }
        Py_END_ALLOW_THREADS
        if (count > room) count = -1, PyErr_SetString(PyExc_ValueError, "expected room for all of them");
    }
    release(b, 2);
    return count < 0 ? NULL : PyLong_FromSsize_t(count);
}

/* Where many of 64 are taken: write all and move on by those that are. */
static Py_ssize_t take_most(const uint32_t *here, uint64_t bits, uint32_t *taken, Py_ssize_t found) {
    for (int from = 0; from < BLOCK; from += 8, bits >>= 8) {
        const uint32_t *eight = here + from;
        uint32_t *to = taken + found;
        if ((bits & 255) == 255)
            memcpy(to, eight, 32), to += 8;
        else
            for (int i = 0; i < 8; i++) *to = eight[i], to += bits >> i & 1;
        found = to - taken;
    }
    return found;
}

/* select(values, least, bitmap, taken): which of uint32 [n] have lowest 31 bits of at least a number, and those, uint32
 * with room for n; returns how many. */
PyObject *fedge_select(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer b[3] = {{0}};
    unsigned int least;
    Py_ssize_t found = -1;
    if (!PyArg_ParseTuple(args, "y*Iw*w*", &b[0], &least, &b[1], &b[2])) return NULL;
    Py_ssize_t n = b[0].len / 4;
    const uint32_t *values = b[0].buf;
    uint8_t *bitmap = b[1].buf;
    uint32_t *taken = b[2].buf;
    if (b[1].len != (n + 7) / 8 || b[2].len != 4 * n || least > MAGNITUDE)
        PyErr_SetString(PyExc_ValueError, "expected a bit and room for each value");
    else {
        Py_BEGIN_ALLOW_THREADS
        found = 0;
        for (Py_ssize_t from = 0; from < n; from += BLOCK) {
            Py_ssize_t things = n - from < BLOCK ? n - from : BLOCK;
            const uint32_t *here = values + from;
            uint64_t bits = reach(here, things, least);
            store_bits(bitmap + from / 8, bits, things);
            if (things == BLOCK && __builtin_popcountll(bits) > CROWDED)
                found = take_most(here, bits, taken, found);
            else
                for (; bits; bits &= bits - 1) taken[found++] = here[__builtin_ctzll(bits)];
        }
        Py_END_ALLOW_THREADS
    }
    release(b, 3);
    return found < 0 ? NULL : PyLong_FromSsize_t(found);
}

/* above(cells, level, bitmap, rest): which of uint8 [k] are above a level, and those, with room for k; returns how many. */
PyObject *fedge_above(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer b[3] = {{0}};
    int level;
    Py_ssize_t found = -1;
    if (!PyArg_ParseTuple(args, "y*iw*w*", &b[0], &level, &b[1], &b[2])) return NULL;
    Py_ssize_t k = b[0].len;
    const uint8_t *cells = b[0].buf;
    uint8_t *bitmap = b[1].buf, *rest = b[2].buf;
    if (b[1].len != (k + 7) / 8 || b[2].len != k || level < 0 || level > 255)
        PyErr_SetString(PyExc_ValueError, "expected a bit and room for each cell");
    else {
        Py_BEGIN_ALLOW_THREADS
        found = 0;
        for (Py_ssize_t from = 0; from < k; from += BLOCK) {
            Py_ssize_t things = k - from < BLOCK ? k - from : BLOCK;
            uint8_t flags[BLOCK] = {0};
            if (things == BLOCK)
                for (int i = 0; i < BLOCK; i++) flags[i] = cells[from + i] > (uint8_t)level;
            else
                for (Py_ssize_t i = 0; i < things; i++) flags[i] = cells[from + i] > (uint8_t)level;
            store_bits(bitmap + from / 8, bits_of(flags), things);
            uint8_t *to = rest + found;
            for (Py_ssize_t i = 0; i < things; i++) *to = cells[from + i], to += flags[i];
            found = to - rest;
        }
        Py_END_ALLOW_THREADS
    }
    release(b, 3);
    return found < 0 ? NULL : PyLong_FromSsize_t(found);
}

/* The largest float32 that is not above `edge`: a float32 is above the one exactly when it is above the other. */
static float at_most(double edge) {
    float near = (float)edge;
    return (double)near > edge ? nextafterf(near, -INFINITY) : near;
}

/* Inlined for each number of edges that few levels have, so that the inner loop is no loop. */
static inline __attribute__((always_inline)) void cells_by(const float *values, Py_ssize_t k, const float *edge,
                                                           int edges, uint8_t *cells) {
    for (Py_ssize_t i = 0; i < k; i++) {
        float x = fabsf(values[i]);
        int cell = 0;
        for (int e = 0; e < edges; e++) cell += x > edge[e];
        cells[i] = (uint8_t)cell;
    }
}

static void cells_by_halves(const float *values, Py_ssize_t k, const float *edge, int edges, uint8_t *cells) {
    for (Py_ssize_t i = 0; i < k; i++) {
        float x = fabsf(values[i]);
        int low = 0;
        for (int high = edges; low < high;) {
            int middle = (low + high) / 2;
            if (x > edge[middle])
                low = middle + 1;
            else
                high = middle;
        }
        cells[i] = (uint8_t)low;
    }
}

/* How cells are found: by a table over the bits between the first edge and the last where none of its entries has two
 * edges. */
typedef struct {
    const float *edge;
    int edges, by_table, shift;
    int32_t first, last;
    struct {
        uint32_t edge, below;
    } table[1 << TABLE_BITS];
} Finder;

static void make_finder(Finder *finder, const float *edge, int edges) {
    uint32_t key[MOST_LEVELS];
    int next = 0;
    finder->edge = edge, finder->edges = edges, finder->by_table = 0;
    finder->shift = finder->first = finder->last = 0;
    if (edges < 8) return;
    memcpy(key, edge, 4 * (size_t)edges);
    if (key[0] > MAGNITUDE) return; /* negative, -0 too */
    while (((key[edges - 1] >> finder->shift) - (key[0] >> finder->shift)) >> TABLE_BITS) finder->shift++;
    finder->first = (int32_t)(key[0] >> finder->shift);
    finder->last = (int32_t)(key[edges - 1] >> finder->shift) - finder->first;
    for (int32_t at = 0; at <= finder->last; at++) {
        finder->table[at].below = (uint32_t)next;
        finder->table[at].edge = MAGNITUDE;
        if (next < edges && (int32_t)(key[next] >> finder->shift) - finder->first == at)
            finder->table[at].edge = key[next++];
        if (next < edges && (int32_t)(key[next] >> finder->shift) - finder->first <= at) return;
    }
    finder->by_table = 1;
}

static void cells_by_table(const Finder *finder, const float *values, Py_ssize_t k, uint8_t *cells) {
    int32_t first = finder->first, last = finder->last;
    for (Py_ssize_t i = 0; i < k; i++) {
        uint32_t x;
        memcpy(&x, values + i, 4);
        x &= MAGNITUDE;
        int32_t at = (int32_t)(x >> finder->shift) - first;
        at = at < 0 ? 0 : at > last ? last : at;
        cells[i] = (uint8_t)(finder->table[at].below + (x > finder->table[at].edge));
    }
}

static void find_cells(const Finder *finder, const float *values, Py_ssize_t k, uint8_t *cells) {
    switch (finder->edges) {
    case 0: memset(cells, 0, (size_t)k); break;
    case 1: cells_by(values, k, finder->edge, 1, cells); break;
    case 3: cells_by(values, k, finder->edge, 3, cells); break;
    case 7: cells_by(values, k, finder->edge, 7, cells); break;
    default:
        if (finder->by_table)
            cells_by_table(finder, values, k, cells);
        else
            cells_by_halves(values, k, finder->edge, finder->edges, cells);
    }
}

/* cells(values, edges, cells, counts, sums): of magnitudes of float32 [k], how many of the ascending double edges each
 * is above, and count and sum of every cell: those of places 0, 4, 8, .. first, then those of 1, 5, .. and so on. */
PyObject *fedge_cells(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer b[5] = {{0}};
    int done = 0;
    if (!PyArg_ParseTuple(args, "y*y*w*w*w*", &b[0], &b[1], &b[2], &b[3], &b[4])) return NULL;
    Py_ssize_t k = b[0].len / 4, edges = b[1].len / 8;
    const float *values = b[0].buf;
    const double *edge = b[1].buf;
    uint8_t *cells = b[2].buf;
    double *counts = b[3].buf, *sums = b[4].buf;
    if (edges >= MOST_LEVELS || b[2].len != k || b[3].len != 8 * (edges + 1) || b[4].len != 8 * (edges + 1))
        PyErr_SetString(PyExc_ValueError, "expected one cell a value, and one count and sum a cell");
    else {
        /* Neighbours are often in one cell: sums of their own keep each from waiting for the one before. */
        struct {
            double count, sum;
        } of[WAYS][MOST_LEVELS] = {{{0}}};
        float nearest[MOST_LEVELS];
        Finder finder;
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t e = 0; e < edges; e++) nearest[e] = at_most(edge[e]);
        make_finder(&finder, nearest, (int)edges);
        for (Py_ssize_t from = 0; from < k; from += AT_ONCE) {
            Py_ssize_t to = k - from < AT_ONCE ? k : from + AT_ONCE;
            find_cells(&finder, values + from, to - from, cells + from);
            for (Py_ssize_t i = from; i < to; i++) {
                of[i % WAYS][cells[i]].count += 1.0;
                of[i % WAYS][cells[i]].sum += (double)fabsf(values[i]);
            }
        }
        for (Py_ssize_t c = 0; c <= edges; c++) {
            counts[c] = of[0][c].count + of[1][c].count + of[2][c].count + of[3][c].count;
            sums[c] = of[0][c].sum + of[1][c].sum + of[2][c].sum + of[3][c].sum;
        }
        Py_END_ALLOW_THREADS
        done = 1;
    }
    release(b, 5);
    if (!done) return NULL;
    Py_RETURN_NONE;
}
