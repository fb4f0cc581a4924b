/* M22's hot loops: what is large enough, which cell it is in, and the gaps between what is kept (`m22/subset.py`).
 *
 * All of it is integers and comparisons, so the NumPy code beside each caller gives the same numbers; only the sums of
 * `cells` are added in another order. Nothing here depends on the instruction set. The GIL is released in every loop.
 */

#include "sparse.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_LOW_BITS = 31, MOST_LEVELS = 128, WAYS = 4 };

static void release(Py_buffer *buffers, int count) {
    for (int i = 0; i < count; i++)
        if (buffers[i].obj) PyBuffer_Release(&buffers[i]);
}

/* largest(values, threshold, positions, places, found): values uint32 [n], their lowest 31 bits compared; positions
 * int64 [n], or None for 0, 1, ..; returns how many. */
PyObject *fedge_largest(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer b[4] = {{0}};
    unsigned int threshold;
    Py_ssize_t found = -1;
    if (!PyArg_ParseTuple(args, "y*Iz*w*w*", &b[0], &threshold, &b[3], &b[1], &b[2])) return NULL;
    Py_ssize_t n = b[0].len / 4;
    const uint32_t *values = b[0].buf;
    int64_t *places = b[1].buf;
    uint32_t *taken = b[2].buf;
    const int64_t *positions = b[3].buf;
    /* The loop writes one entry beyond what it keeps, so there is room for one more. */
    if (b[1].len != 8 * (n + 1) || b[2].len != 4 * (n + 1) || (positions && b[3].len != 8 * n))
        PyErr_SetString(PyExc_ValueError, "expected room for every value and one more");
    else {
        Py_BEGIN_ALLOW_THREADS
        found = 0;
        for (Py_ssize_t i = 0; i < n; i++) {
            places[found] = positions ? positions[i] : i;
            taken[found] = values[i];
            found += (values[i] & 0x7FFFFFFFu) >= threshold;
        }
        Py_END_ALLOW_THREADS
    }
    release(b, 4);
    return found < 0 ? NULL : PyLong_FromSsize_t(found);
}

/* bins(values, lowest, shift, bins, counts): which bin (bits - lowest) >> shift the lowest 31 bits of uint32 [n] are in,
 * and how many each bin has; counts int64 begin at zero. */
PyObject *fedge_bins(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer b[3] = {{0}};
    unsigned int lowest;
    int shift, sound = 0;
    if (!PyArg_ParseTuple(args, "y*Iiw*w*", &b[0], &lowest, &shift, &b[1], &b[2])) return NULL;
    Py_ssize_t n = b[0].len / 4, count = b[2].len / 8;
    const uint32_t *values = b[0].buf;
    uint16_t *bins = b[1].buf;
    int64_t *counts = b[2].buf;
    if (b[1].len != 2 * n || count < 1 || count > 65536 || shift < 0 || shift > 31)
        PyErr_SetString(PyExc_ValueError, "expected one bin a value, and 1 to 65536 counts");
    else {
        sound = 1;
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < n; i++) {
            uint32_t bin = ((values[i] & 0x7FFFFFFFu) - lowest) >> shift;
            if (bin >= (uint32_t)count) {
                sound = 0;
                break;
            }
            bins[i] = (uint16_t)bin;
            counts[bin]++;
        }
        Py_END_ALLOW_THREADS
        if (!sound) PyErr_SetString(PyExc_ValueError, "a value is in no bin");
    }
    release(b, 3);
    if (!sound) return NULL;
    Py_RETURN_NONE;
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

static void find_cells(const float *values, Py_ssize_t k, const float *edge, int edges, uint8_t *cells) {
    switch (edges) {
    case 0: memset(cells, 0, (size_t)k); break;
    case 1: cells_by(values, k, edge, 1, cells); break;
    case 3: cells_by(values, k, edge, 3, cells); break;
    case 7: cells_by(values, k, edge, 7, cells); break;
    case 15: cells_by(values, k, edge, 15, cells); break;
    default: cells_by_halves(values, k, edge, edges, cells);
    }
}

/* cells(values, edges, cells, counts, sums): of magnitudes of float32 [k], how many of the ascending double edges each
 * is above, and count and sum of every cell. */
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
        double count_of[WAYS][MOST_LEVELS] = {{0}}, sum_of[WAYS][MOST_LEVELS] = {{0}};
        float nearest[MOST_LEVELS];
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t e = 0; e < edges; e++) nearest[e] = at_most(edge[e]);
        find_cells(values, k, nearest, (int)edges, cells);
        for (Py_ssize_t i = 0; i < k; i++) {
            count_of[i % WAYS][cells[i]] += 1.0;
            sum_of[i % WAYS][cells[i]] += (double)fabsf(values[i]);
        }
        for (Py_ssize_t c = 0; c <= edges; c++) {
            counts[c] = count_of[0][c] + count_of[1][c] + count_of[2][c] + count_of[3][c];
            sums[c] = sum_of[0][c] + sum_of[1][c] + sum_of[2][c] + sum_of[3][c];
        }
        Py_END_ALLOW_THREADS
        done = 1;
    }
    release(b, 5);
    if (!done) return NULL;
    Py_RETURN_NONE;
}

/* above(cells, level, places, rest): where cells uint8 [k] are above a level, and those cells; returns how many. */
PyObject *fedge_above(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer b[3] = {{0}};
    int level;
    Py_ssize_t found = -1;
    if (!PyArg_ParseTuple(args, "y*iw*w*", &b[0], &level, &b[1], &b[2])) return NULL;
    Py_ssize_t k = b[0].len;
    const uint8_t *cells = b[0].buf;
    int64_t *places = b[1].buf;
    uint8_t *rest = b[2].buf;
    if (b[1].len != 8 * (k + 1) || b[2].len != k + 1)
        PyErr_SetString(PyExc_ValueError, "expected room for every cell and one more");
    else {
        Py_BEGIN_ALLOW_THREADS
        found = 0;
        for (Py_ssize_t i = 0; i < k; i++) {
            places[found] = i;
            rest[found] = cells[i];
            found += cells[i] > level;
        }
        Py_END_ALLOW_THREADS
    }
    release(b, 3);
    return found < 0 ? NULL : PyLong_FromSsize_t(found);
}

/* Ascending places from 0, one by one: what a list of them needs to be coded. */
static int ascends(const int64_t *places, Py_ssize_t k) {
    int64_t last = -1;
    int sound = 1;
    for (Py_ssize_t i = 0; i < k; i++) sound &= places[i] > last, last = places[i];
    return sound;
}

typedef struct {
    int64_t count, high[3]; /* gaps, and the sums of their quotients by 2^r, 2^(r+1), 2^(r+2) */
} Gaps;

static inline void add_gap(Gaps *gaps, int64_t gap, int low_bits) {
    int64_t quotient = gap >> low_bits;
    gaps->count++;
    gaps->high[0] += quotient, gaps->high[1] += quotient >> 1, gaps->high[2] += quotient >> 2;
}

static Gaps gaps_of(const int64_t *place, Py_ssize_t k, int low_bits) {
    Gaps gaps = {k, {0, 0, 0}};
    int64_t last = -1;
    for (Py_ssize_t i = 0; i < k; i++) {
        int64_t quotient = (place[i] - last - 1) >> low_bits;
        gaps.high[0] += quotient, gaps.high[1] += quotient >> 1, gaps.high[2] += quotient >> 2;
        last = place[i];
    }
    return gaps;
}

/* Of the others: behind every run of places the first has that run for a gap, and those next to it have none. */
static Gaps gaps_of_others(const int64_t *place, Py_ssize_t k, int low_bits, int64_t size) {
    Gaps gaps = {0, {0, 0, 0}};
    int64_t last = -1, run = 0;
    for (Py_ssize_t i = 0; i < k; i++) {
        int64_t between = place[i] - last - 1;
        if (between) {
            add_gap(&gaps, run, low_bits);
            gaps.count += between - 1;
            run = 0;
        }
        run++;
        last = place[i];
    }
    if (size - last - 1 > 0) {
        add_gap(&gaps, run, low_bits);
        gaps.count += size - last - 2;
    }
    return gaps;
}

/* gap_bytes(places, low_bits, others_below): bytes of both streams for the gaps between int64 [k], or between all others
 * below a number that is not 0, with low_bits, one more and two more. */
PyObject *fedge_gap_bytes(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer places = {0};
    int low_bits;
    long long below;
    if (!PyArg_ParseTuple(args, "y*iL", &places, &low_bits, &below)) return NULL;
    Py_ssize_t k = places.len / 8;
    if (low_bits < 0 || low_bits > MOST_LOW_BITS - 2 || places.len % 8) {
        PyErr_SetString(PyExc_ValueError, "expected 0 to 29 low bits and int64 places");
        release(&places, 1);
        return NULL;
    }
    Gaps gaps;
    long long length[3];
    Py_BEGIN_ALLOW_THREADS
    gaps = below ? gaps_of_others(places.buf, k, low_bits, below) : gaps_of(places.buf, k, low_bits);
    Py_END_ALLOW_THREADS
    for (int r = 0; r < 3; r++)
        length[r] = (gaps.count * (low_bits + r) + 7) / 8 + (gaps.count + gaps.high[r] + 7) / 8;
    release(&places, 1);
    return Py_BuildValue("LLL", length[0], length[1], length[2]);
}

/* pack_gaps(places, low_bits, size_bytes): both streams. */
PyObject *fedge_pack_gaps(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer places = {0};
    int low_bits;
    Py_ssize_t expected;
    PyObject *data = NULL;
    if (!PyArg_ParseTuple(args, "y*in", &places, &low_bits, &expected)) return NULL;
    Py_ssize_t k = places.len / 8;
    const int64_t *place = places.buf;
    if (low_bits < 0 || low_bits > MOST_LOW_BITS || places.len % 8 || !ascends(place, k))
        PyErr_SetString(PyExc_ValueError, "expected 0 to 31 low bits and ascending int64 places");
    else {
        Py_ssize_t low_bytes = (k * low_bits + 7) / 8;
        /* Quotients add up to (last place + 1 - k) >> low_bits at most, and every gap ends with a one. */
        int64_t most = k ? (place[k - 1] + 1 - k) / ((int64_t)1 << low_bits) + k : 0;
        Py_ssize_t room = low_bytes + (Py_ssize_t)(most + 7) / 8;
        uint8_t *memory = calloc((size_t)room + 8, 1);
        int64_t high = 0;
        if (!memory) {
            release(&places, 1);
            return PyErr_NoMemory();
        }
        Py_BEGIN_ALLOW_THREADS
        uint64_t held = 0, mask = ((uint64_t)1 << low_bits) - 1;
        int have = 0;
        int64_t last = -1;
        uint8_t *to = memory, *ones = memory + low_bytes;
        for (Py_ssize_t i = 0; i < k; i++) {
            uint64_t gap = (uint64_t)(place[i] - last - 1);
            last = place[i];
            held |= (gap & mask) << have;
            have += low_bits;
            for (; have >= 8; have -= 8, held >>= 8) *to++ = (uint8_t)held;
            high += (int64_t)(gap >> low_bits);
            ones[high >> 3] |= (uint8_t)(1 << (high & 7));
            high++;
        }
        if (have > 0) *to = (uint8_t)held;
        Py_END_ALLOW_THREADS
        Py_ssize_t length = low_bytes + (Py_ssize_t)(high + 7) / 8;
        if (length != expected)
            PyErr_Format(PyExc_ValueError, "the gaps take %zd bytes, not %zd", length, expected);
        else
            data = PyBytes_FromStringAndSize((const char *)memory, length);
        free(memory);
    }
    release(&places, 1);
    return data;
}

/* unpack_gaps(data, start, low_bits, size, places): fill int64 [k]; returns where the streams end, or -1 if they do not
 * hold k places below size. */
PyObject *fedge_unpack_gaps(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer b[2] = {{0}};
    Py_ssize_t start, size, end = -1;
    int low_bits;
    if (!PyArg_ParseTuple(args, "y*ninw*", &b[0], &start, &low_bits, &size, &b[1])) return NULL;
    const uint8_t *data = b[0].buf;
    int64_t *places = b[1].buf;
    Py_ssize_t k = b[1].len / 8, length = b[0].len;
    if (low_bits < 0 || low_bits > MOST_LOW_BITS || start < 0 || start > length || size < 0) {
        PyErr_SetString(PyExc_ValueError, "expected 0 to 31 low bits and a place in the data");
        release(b, 2);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    if (k <= (8 * (int64_t)(length - start)) / (low_bits ? low_bits : 1) || low_bits == 0) {
        Py_ssize_t low_bytes = (k * low_bits + 7) / 8, i = 0;
        const uint8_t *low = data + start, *high = data + start + low_bytes;
        int64_t bits = 8 * (int64_t)(length - start - low_bytes), at = 0, last = -1;
        uint64_t held = 0, mask = ((uint64_t)1 << low_bits) - 1;
        int have = 0, sound = bits >= 0;
        for (; sound && i < k; i++) {
            int64_t from = at;
            while (at < bits && !(high[at >> 3] >> (at & 7))) at = (at | 7) + 1;
            if (at >= bits) break;
            at += __builtin_ctz((unsigned)high[at >> 3] >> (at & 7));
            while (have < low_bits) held |= (uint64_t)*low++ << have, have += 8;
            last += (int64_t)(((uint64_t)(at - from) << low_bits) | (held & mask)) + 1;
            held >>= low_bits, have -= low_bits;
            if (last >= size) break;
            places[i] = last;
            at++;
        }
        if (sound && i == k) {
            /* What is left of the last byte must be zeros. */
            int left = (int)(at & 7);
            if (!left || !(high[at >> 3] >> left)) end = start + low_bytes + (Py_ssize_t)((at + 7) / 8);
        }
    }
    Py_END_ALLOW_THREADS
    release(b, 2);
    return PyLong_FromSsize_t(end);
}

/* lloyd(x, mass, moment, levels, steps): x double [n] ascending, mass and moment [n + 1] sums from its first entry on. */
PyObject *fedge_lloyd(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer b[4] = {{0}};
    int steps, done = 0;
    if (!PyArg_ParseTuple(args, "y*y*y*w*i", &b[0], &b[1], &b[2], &b[3], &steps)) return NULL;
    Py_ssize_t n = b[0].len / 8, levels = b[3].len / 8;
    const double *x = b[0].buf, *mass = b[1].buf, *moment = b[2].buf;
    double *level = b[3].buf;
    if (b[1].len != 8 * (n + 1) || b[2].len != 8 * (n + 1) || levels < 1)
        PyErr_SetString(PyExc_ValueError, "expected sums for every place and one more");
    else {
        Py_BEGIN_ALLOW_THREADS
        for (int step = 0; step < steps; step++) {
            Py_ssize_t from = 0;
            double below = level[0];
            for (Py_ssize_t j = 0; j < levels; j++) {
                Py_ssize_t to = from;
                if (j + 1 == levels)
                    to = n;
                else
                    for (double edge = (level[j + 1] + level[j]) / 2; to < n && x[to] < edge;) to++;
                double inside = mass[to] - mass[from];
                double mean = inside > 0 ? (moment[to] - moment[from]) / inside : level[j];
                level[j] = below = j && mean < below ? below : mean;
                from = to;
            }
        }
        Py_END_ALLOW_THREADS
        done = 1;
    }
    release(b, 4);
    if (!done) return NULL;
    Py_RETURN_NONE;
}
