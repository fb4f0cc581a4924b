/* M22's subsets as gaps between what is listed (`m22/subset.py`): what they take, and both ends of their bytes.
 *
 * All of it is integers, so the NumPy code beside each caller gives the same bytes. A bitmap has thing i at bit i mod 8
 * of byte i/8, and zeros behind the last thing. The GIL is released in every loop.
 */

#include "sparse.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_LOW_BITS = 31 };

static void release(Py_buffer *buffers, int count) {
    for (int i = 0; i < count; i++)
        if (buffers[i].obj) PyBuffer_Release(&buffers[i]);
}

/* Word w of the things listed: those in the bitmap, or all others of `size`. */
static inline uint64_t listed(const uint8_t *bitmap, Py_ssize_t w, Py_ssize_t size, int others) {
    uint64_t word = 0;
    Py_ssize_t left = size - 64 * w;
    if (left >= 64)
        memcpy(&word, bitmap + 8 * w, 8);
    else
        memcpy(&word, bitmap + 8 * w, (size_t)((left + 7) / 8));
    if (others) word = ~word;
    return left >= 64 ? word : word & (((uint64_t)1 << left) - 1);
}

/* gap_bytes(bitmap, size, others, low_bits): bytes of both streams for the gaps between what is listed, with low_bits,
 * one more and two more. */
PyObject *fedge_gap_bytes(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer b = {0};
    int others, low_bits;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "y*npi", &b, &size, &others, &low_bits)) return NULL;
    if (low_bits < 0 || low_bits > MOST_LOW_BITS - 2 || size < 0 || b.len != (size + 7) / 8) {
        PyErr_SetString(PyExc_ValueError, "expected 0 to 29 low bits and a bit for each thing");
        release(&b, 1);
        return NULL;
    }
    int64_t count = 0, high[3] = {0, 0, 0};
    Py_BEGIN_ALLOW_THREADS
    int64_t last = -1;
    for (Py_ssize_t w = 0; 64 * w < size; w++)
        for (uint64_t word = listed(b.buf, w, size, others); word; word &= word - 1) {
            int64_t place = 64 * (int64_t)w + __builtin_ctzll(word), quotient = (place - last - 1) >> low_bits;
            count++, last = place;
            high[0] += quotient, high[1] += quotient >> 1, high[2] += quotient >> 2;
        }
    Py_END_ALLOW_THREADS
    long long length[3];
    for (int r = 0; r < 3; r++) length[r] = (count * (low_bits + r) + 7) / 8 + (count + high[r] + 7) / 8;
    release(&b, 1);
    return Py_BuildValue("LLL", length[0], length[1], length[2]);
}

static void store(uint8_t *to, uint64_t word) {
    for (int k = 0; k < 8; k++) to[k] = (uint8_t)(word >> 8 * k);
}

/* pack_gaps(bitmap, size, others, low_bits, size_bytes): both streams. */
PyObject *fedge_pack_gaps(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer b = {0};
    int others, low_bits;
    Py_ssize_t size, expected;
    PyObject *data = NULL;
    if (!PyArg_ParseTuple(args, "y*npin", &b, &size, &others, &low_bits, &expected)) return NULL;
    if (low_bits < 0 || low_bits > MOST_LOW_BITS || size < 0 || b.len != (size + 7) / 8) {
        PyErr_SetString(PyExc_ValueError, "expected 0 to 31 low bits and a bit for each thing");
        release(&b, 1);
        return NULL;
    }
    int64_t count = 0;
    for (Py_ssize_t w = 0; 64 * w < size; w++) count += __builtin_popcountll(listed(b.buf, w, size, others));
    /* Quotients add up to (size - count) >> low_bits at most, every gap ends with a one, and whole words are written. */
    Py_ssize_t low_bytes = (Py_ssize_t)(count * low_bits + 7) / 8;
    Py_ssize_t most = (Py_ssize_t)(((size - count) >> low_bits) + count);
    uint8_t *low = calloc((size_t)low_bytes + 16, 1), *ones = calloc((size_t)(most / 8) + 16, 1);
    Py_ssize_t length = 0;
    if (low && ones) {
        Py_BEGIN_ALLOW_THREADS
        uint64_t held = 0, word_of_ones = 0, mask = ((uint64_t)1 << low_bits) - 1;
        int have = 0;
        int64_t last = -1, high = 0, filling = 0;
        uint8_t *to = low;
        for (Py_ssize_t w = 0; 64 * w < size; w++)
            for (uint64_t word = listed(b.buf, w, size, others); word; word &= word - 1) {
                int64_t place = 64 * (int64_t)w + __builtin_ctzll(word);
                uint64_t gap = (uint64_t)(place - last - 1);
                last = place;
                held |= (gap & mask) << have;
                have += low_bits;
                if (have >= 32) {
                    for (int k = 0; k < 4; k++) *to++ = (uint8_t)(held >> 8 * k);
                    held >>= 32, have -= 32;
                }
                high += (int64_t)(gap >> low_bits);
                if (high >> 6 != filling) {
                    store(ones + 8 * filling, word_of_ones);
                    word_of_ones = 0, filling = high >> 6;
                }
                word_of_ones |= (uint64_t)1 << (high & 63);
                high++;
            }
        store(to, held);
        store(ones + 8 * filling, word_of_ones);
        length = low_bytes + (Py_ssize_t)(high + 7) / 8;
        Py_END_ALLOW_THREADS
        if (length != expected)
            PyErr_Format(PyExc_ValueError, "the gaps take %zd bytes, not %zd", length, expected);
        else if ((data = PyBytes_FromStringAndSize(NULL, length))) {
            char *bytes = PyBytes_AsString(data);
            memcpy(bytes, low, (size_t)low_bytes);
            memcpy(bytes + low_bytes, ones, (size_t)(length - low_bytes));
        }
    } else
        PyErr_NoMemory();
    free(low);
    free(ones);
    release(&b, 1);
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
