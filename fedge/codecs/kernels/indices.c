/* Which centroid, as bytes: packed, or through an adaptive range coder. `indices.py` has the same in Python and says
 * what the models are. All of it is integers. The GIL is released in every loop.
 */

#include "product.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { NODES = 256, SCALE = 1 << 16, LEAST = 64, MOST_SEEN = 255, OWN_WEIGHT = 3, SHARED_WEIGHT = 6, GROUP_WEIGHT = 2 };

static void release(Py_buffer *buffers, int count) {
    for (int i = 0; i < count; i++)
        if (buffers[i].obj) PyBuffer_Release(&buffers[i]);
}

/* pack_bits(codes, bits): codes uint8 [n], the first in the lowest bits of the first byte. */
PyObject *fedge_pack_bits(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer codes = {0};
    int bits;
    if (!PyArg_ParseTuple(args, "y*i", &codes, &bits)) return NULL;
    if (bits < 0 || bits > 8) {
        PyErr_SetString(PyExc_ValueError, "expected 0 to 8 bits");
        release(&codes, 1);
        return NULL;
    }
    Py_ssize_t n = codes.len, length = n / 8 * bits + (n % 8 * bits + 7) / 8;
    uint8_t *memory = malloc((size_t)length + 1), *to = memory;
    const uint8_t *from = codes.buf;
    PyObject *data = NULL;
    if (memory) {
        Py_BEGIN_ALLOW_THREADS
        uint32_t held = 0, mask = (1u << bits) - 1;
        int have = 0;
        for (Py_ssize_t i = 0; bits && i < n; i++) {
            held |= (from[i] & mask) << have;
            have += bits;
            if (have >= 8) *to++ = (uint8_t)held, held >>= 8, have -= 8;
        }
        if (have) *to = (uint8_t)held;
        Py_END_ALLOW_THREADS
        data = PyBytes_FromStringAndSize((const char *)memory, length);
        free(memory);
    } else
        PyErr_NoMemory();
    release(&codes, 1);
    return data;
}

/* unpack_bits(data, bits, codes): fill uint8 [n]. */
PyObject *fedge_unpack_bits(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer b[2] = {{0}};
    int bits, done = 0;
    if (!PyArg_ParseTuple(args, "y*iw*", &b[0], &bits, &b[1])) return NULL;
    Py_ssize_t n = b[1].len;
    if (bits < 0 || bits > 8 || b[0].len != n / 8 * bits + (n % 8 * bits + 7) / 8)
        PyErr_SetString(PyExc_ValueError, "expected 0 to 8 bits, and as many bytes as the codes take");
    else {
        const uint8_t *from = b[0].buf;
        uint8_t *to = b[1].buf;
        Py_BEGIN_ALLOW_THREADS
        uint32_t held = 0, mask = (1u << bits) - 1;
        int have = 0;
        for (Py_ssize_t i = 0; i < n; i++) {
            if (have < bits) held |= (uint32_t)*from++ << have, have += 8;
            to[i] = (uint8_t)(held & mask);
            held >>= bits, have -= bits;
        }
        Py_END_ALLOW_THREADS
        done = 1;
    }
    release(b, 2);
    if (!done) return NULL;
    Py_RETURN_NONE;
}

typedef struct {
    uint8_t *at, *end; /* of what is written or read */
    uint64_t low;
    uint32_t range, code;
    Py_ssize_t held; /* bytes that a carry may still change, the first of them `first` */
    uint8_t first;
    int broken, writes, started;
} Coder;

static void put(Coder *coder, uint8_t byte) {
    if (coder->at == coder->end)
        coder->broken = 1;
    else
        *coder->at++ = byte;
}

static void shift(Coder *coder) {
    if (coder->low < 0xFF000000u || coder->low >> 32) {
        uint8_t carry = (uint8_t)(coder->low >> 32);
        if (coder->started) put(coder, (uint8_t)(coder->first + carry)); /* the very first one is always zero */
        for (; coder->held; coder->held--) put(coder, (uint8_t)(0xFF + carry));
        coder->first = (uint8_t)(coder->low >> 24), coder->started = 1;
    } else
        coder->held++;
    coder->low = (coder->low & 0x00FFFFFFu) << 8;
}

static uint8_t take(Coder *coder) {
    if (coder->at < coder->end) return *coder->at++;
    coder->broken = 1;
    return 0;
}

/* Write `bit`, or read one, that is 1 with probability p / SCALE. */
static int code_bit(Coder *coder, int bit, uint32_t p) {
    p = p < LEAST ? LEAST : p > SCALE - LEAST ? SCALE - LEAST : p;
    uint32_t bound = (coder->range >> 16) * p;
    if (!coder->writes) bit = coder->code < bound;
    if (bit)
        coder->range = bound;
    else {
        coder->low += coder->writes ? bound : 0;
        coder->code -= coder->writes ? 0 : bound;
        coder->range -= bound;
    }
    for (; coder->range < 1u << 24; coder->range <<= 8)
        if (coder->writes)
            shift(coder);
        else
            coder->code = coder->code << 8 | take(coder);
    return bit;
}

typedef struct {
    uint16_t p[NODES];
    uint8_t seen[NODES];
} Model;

static void adapt(Model *model, int node, int bit, int weight, const uint16_t *rates) {
    int32_t p = model->p[node], off = (bit ? SCALE - 1 : 0) - p;
    model->p[node] = (uint16_t)(p + ((off * (int32_t)rates[model->seen[node] + weight]) >> 16));
    if (model->seen[node] < MOST_SEEN) model->seen[node]++;
}

static void begin_models(Model *group, Model *own) {
    for (int node = 0; node < NODES; node++) group->p[node] = own->p[node] = SCALE / 2;
    memset(group->seen, 0, sizeof group->seen);
}

/* All indices, position by position; 0 if a group's or a position's numbers run out. */
static int code_all(Coder *coder, uint8_t *index, Py_ssize_t q, Py_ssize_t per, Py_ssize_t groups, int bits,
                    const uint8_t *shared) {
    Model group, own;
    uint16_t rates[MOST_SEEN + SHARED_WEIGHT + 1];
    int nodes = 1 << bits, weight = shared ? SHARED_WEIGHT : OWN_WEIGHT;
    for (int n = 0; n < (int)(sizeof rates / sizeof *rates); n++) rates[n] = (uint16_t)(n < 2 ? 32768 : SCALE / n);
    for (Py_ssize_t j = 0, before = -1; j < q && !coder->broken; j++) {
        if (j * groups / q != before) begin_models(&group, &own), before = j * groups / q;
        for (int node = 1; node < nodes; node++)
            own.p[node] = shared ? (uint16_t)(256 * shared[j * (nodes - 1) + node - 1] + 128)
                                 : (uint16_t)((group.p[node] + own.p[node]) / 2);
        memset(own.seen, 0, sizeof own.seen);
        for (Py_ssize_t i = j * per; i < (j + 1) * per; i++) {
            int node = 1;
            for (int b = bits - 1; b >= 0; b--) {
                int bit = code_bit(coder, index[i] >> b & 1, own.p[node]);
                adapt(&own, node, bit, weight, rates);
                adapt(&group, node, bit, GROUP_WEIGHT, rates);
                node = 2 * node + bit;
            }
            if (!coder->writes) index[i] = (uint8_t)(node - nodes);
        }
    }
    return !coder->broken;
}

static int shapes_fit(const Py_buffer *index, Py_ssize_t q, Py_ssize_t groups, int bits, const Py_buffer *shared) {
    if (bits >= 1 && bits <= 8 && q >= 1 && index->len >= q && index->len % q == 0 && groups >= 1 && groups <= q &&
        q <= 1 << 24 && (!shared->buf || shared->len == q * ((1 << bits) - 1)))
        return 1;
    PyErr_SetString(PyExc_ValueError, "expected 1 to 8 bits, the same number of indices at every position, and a model");
    return 0;
}

/* encode_indices(index, q, groups, bits, shared): index uint8 [q, B], shared uint8 [q, 2^bits - 1] or None. */
PyObject *fedge_encode_indices(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer b[2] = {{0}};
    Py_ssize_t q, groups;
    int bits;
    PyObject *data = NULL;
    if (!PyArg_ParseTuple(args, "y*nniz*", &b[0], &q, &groups, &bits, &b[1])) return NULL;
    if (shapes_fit(&b[0], q, groups, bits, &b[1])) {
        Py_ssize_t room = b[0].len * bits * 2 + 16; /* no bit takes more than ten */
        uint8_t *memory = malloc((size_t)room);
        int done = memory != NULL;
        Coder coder = {memory, memory + room, 0, 0xFFFFFFFFu, 0, 0, 0, 0, 1, 0};
        Py_BEGIN_ALLOW_THREADS
        done = done && code_all(&coder, b[0].buf, q, b[0].len / q, groups, bits, b[1].buf);
        for (int i = 0; done && i < 5; i++) shift(&coder);
        Py_END_ALLOW_THREADS
        if (done)
            data = PyBytes_FromStringAndSize((const char *)memory, coder.at - memory);
        else
            PyErr_NoMemory();
        free(memory);
    }
    release(b, 2);
    return data;
}

/* decode_indices(data, q, groups, bits, shared, index): fill index uint8 [q, B]; returns whether data ends as it must. */
PyObject *fedge_decode_indices(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer b[3] = {{0}};
    Py_ssize_t q, groups;
    int bits, sound = -1;
    if (!PyArg_ParseTuple(args, "y*nniz*w*", &b[0], &q, &groups, &bits, &b[1], &b[2])) return NULL;
    if (shapes_fit(&b[2], q, groups, bits, &b[1])) {
        uint8_t *from = b[0].buf;
        Coder coder = {from, from + b[0].len, 0, 0xFFFFFFFFu, 0, 0, 0, 0, 0, 0};
        Py_BEGIN_ALLOW_THREADS
        for (int i = 0; i < 4; i++) coder.code = coder.code << 8 | take(&coder);
        sound = code_all(&coder, b[2].buf, q, b[2].len / q, groups, bits, b[1].buf);
        sound = sound && coder.at == coder.end && coder.code == 0;
        Py_END_ALLOW_THREADS
    }
    release(b, 3);
    return sound < 0 ? NULL : PyBool_FromLong(sound);
}
