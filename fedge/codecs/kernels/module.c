/* The Python side of EDEN's hot loops (directions are in `spherical.c`, M22's in `sparse*.c`,
 * FedLite's in `product.c` and `indices.c`): checks,
 * memory, and the choice among the copies in `avx512.c`, `avx2.c` and
 * `baseline.c`, which are `kernels.h` compiled for each instruction set. Nothing is global but that choice, and the GIL
 * is released while they run.
 */

#include "job.h"
#include "product.h"
#include "spherical_entries.h"
#include "sparse.h"

static const Kernels *const ALL[] = {
#if defined(__x86_64__)
    &fedge_avx512,
    &fedge_avx2,
#endif
    &fedge_baseline,
};
static const Kernels *kernels;

const Kernels *fedge_kernels(void) { return kernels; }

static int choose(const char *name) {
    for (size_t k = 0; k < sizeof ALL / sizeof *ALL; k++)
        if ((!name || !strcmp(name, ALL[k]->name)) && ALL[k]->runs_here()) {
            kernels = ALL[k];
            fedge_product_use_wide(kernels != &fedge_baseline);
            return 1;
        }
    return 0;
}

/* Cells so narrow that none holds two thresholds. */
static void make_grid(Grid *grid, const float *tables, int width) {
    const float *t = thresholds_of(tables, width);
    int count = levels_of(width) / 2 - 1, seen = 0;
    float gap = t[0];
    for (int j = 1; j < count; j++) gap = t[j] - t[j - 1] < gap ? t[j] - t[j - 1] : gap;
    grid->per_unit = 1.02f / gap;
    for (int cell = 0; cell < MAX_CELLS; cell++) {
        grid->below[cell] = seen, grid->inside[cell] = INFINITY, grid->last = cell;
        if (seen < count && t[seen] * grid->per_unit < (float)(cell + 1)) grid->inside[cell] = t[seen++];
    }
}

static int valid_run(Run run, int n) {
    return run.width >= 1 && run.width <= WIDTHS && run.wide >= 1 && run.wide <= WIDTHS && run.high >= 0 &&
           run.low >= 0 && run.high <= n && run.low <= n - run.high;
}

/* Cut the vector up and check that every length fits; returns the payload's length, -1 with an error set. */
static Py_ssize_t prepare(Job *job, Py_ssize_t size, const Py_buffer *tables, uint64_t seed) {
    int rest = (int)(size % BLOCK);
    job->size = size;
    job->blocks = size / BLOCK;
    if (job->version == WITH_TRITS && rest > 0 && rest < SMALLEST_ROTATED && job->blocks) {
        job->blocks--;
        job->tail_count = 2, job->tails[0] = (BLOCK + rest + 1) / 2, job->tails[1] = (BLOCK + rest) / 2;
    } else {
        job->tail_count = rest >= SMALLEST_ROTATED, job->tails[0] = job->tail_count ? rest : 0;
        job->raw = rest - job->tails[0];
    }
    job->scale_count = job->blocks + job->tail_count;
    job->scale_bytes = job->scale_count == 0 ? 0 : job->scale_count == 1 ? 4 : 4 + 2 * job->scale_count;
    job->base = word(seed, 0);
    job->scale_base = word(seed, 1);
    job->tables = tables->buf;
    if (tables->len != (Py_ssize_t)(2 * TABLE * sizeof(float))) {
        PyErr_Format(PyExc_ValueError, "tables must be %d float32", 2 * TABLE);
        return -1;
    }
    int valid = valid_run(job->full_run, BLOCK);
    for (int k = 0; k < MOST_TAILS; k++) valid &= valid_run(job->tail_runs[k], job->tails[k]);
    if (job->version == WHOLE)
        valid &= job->blocks > 0 && job->full_run.low == BLOCK && job->full_run.width <= MOST_WHOLE_BITS;
    else
        valid &= job->version == WIDTHS_ALONE || job->version == WITH_TRITS;
    if (!valid) {
        PyErr_SetString(PyExc_ValueError, "a run does not fit its block, or the version is none");
        return -1;
    }
    return 1 + job->scale_bytes + job->blocks * run_bytes(job->full_run) + run_bytes(job->tail_runs[0]) +
           run_bytes(job->tail_runs[1]) + (Py_ssize_t)sizeof(float) * job->raw;
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
        int width = wide ? job->full_run.wide : job->full_run.width;
        if (levels_of(width) > 16) make_grid(&job->grids[wide], job->tables, width);
    }
    make_levels(job, job->full_run, 1.0f);
    for (int k = 0; k < MOST_TAILS; k++) make_levels(job, job->tail_runs[k], 1.0f);
    Py_BEGIN_ALLOW_THREADS
    kernels->encode(job);
    Py_END_ALLOW_THREADS
    free(job->scales);
    if (job->finite) return data;
    Py_DECREF(data);
    Py_RETURN_NONE;
}

/* Levels and grids are made once for all blocks. */
static int same_widths(Run a, Run b) { return a.width == b.width && a.wide == b.wide; }

PyDoc_STRVAR(encode_doc,
             "encode(x, seed, size_bytes, version, full, tail, last, tables)\n"
             "Return the payload, or None if a coordinate is not finite. `full`, `tail` and `last` are runs (width, wide,\n"
             "high, low) of full blocks and of up to two tails: plan.py.");

static PyObject *encode(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer x, tables;
    unsigned long long seed;
    Py_ssize_t expected, actual;
    PyObject *result = NULL;
    Job job;
    memset(&job, 0, sizeof job);
    Run *full = &job.full_run, *tail = &job.tail_runs[0], *last = &job.tail_runs[1];
    if (!PyArg_ParseTuple(args, "y*Kni(iiii)(iiii)(iiii)y*", &x, &seed, &expected, &job.version, &full->width,
                          &full->wide, &full->high, &full->low, &tail->width, &tail->wide, &tail->high, &tail->low,
                          &last->width, &last->wide, &last->high, &last->low, &tables))
        return NULL;
    actual = prepare(&job, x.len / (Py_ssize_t)sizeof(float), &tables, seed);
    job.x = x.buf;
    if (actual >= 0 && (actual != expected || x.len % (Py_ssize_t)sizeof(float) ||
                        (job.tail_count && !same_widths(*tail, *full)) ||
                        (job.tail_count > 1 && !same_widths(*last, *full))))
        PyErr_Format(PyExc_ValueError, "the payload would have %zd bytes, not %zd", actual, expected);
    else if (actual >= 0)
        result = encode_checked(&job, expected);
    PyBuffer_Release(&x);
    PyBuffer_Release(&tables);
    return result;
}

PyDoc_STRVAR(decode_doc,
             "decode(data, out, size, target, weight, seed, version, full, tail, last, tables, gains, received)\n"
             "Decode the rotated blocks into or onto `out`; raw coordinates are left alone. Target 0: out = x in\n"
             "float32; 1, 2: out += weight * x, computed in float64, for float32 and float64 `out`. `received` is\n"
             "bool in block order, or None.");

static PyObject *decode(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer data, out, tables, gains, received = {0};
    unsigned long long seed;
    Py_ssize_t size;
    int target;
    Job job;
    memset(&job, 0, sizeof job);
    Run *full = &job.full_run, *tail = &job.tail_runs[0], *last = &job.tail_runs[1];
    if (!PyArg_ParseTuple(args, "y*w*nidKi(iiii)(iiii)(iiii)y*y*z*", &data, &out, &size, &target, &job.weight, &seed,
                          &job.version, &full->width, &full->wide, &full->high, &full->low, &tail->width, &tail->wide,
                          &tail->high, &tail->low, &last->width, &last->wide, &last->high, &last->low, &tables, &gains,
                          &received))
        return NULL;
    Py_ssize_t item = target == ONTO_DOUBLES ? (Py_ssize_t)sizeof(double) : (Py_ssize_t)sizeof(float), actual = -1;
    if (size < 0 || out.len % item || out.len / item != size || target < INTO_FLOATS || target > ONTO_DOUBLES)
        PyErr_Format(PyExc_ValueError, "%zd coordinates do not fit %zd bytes", size, out.len);
    else
        actual = prepare(&job, size, &tables, seed);
    job.data = data.buf, job.out = out.buf, job.gains = gains.buf, job.received = received.buf;
    job.target = (Target)target;
    if (actual >= 0 && (actual != data.len || gains.len != (Py_ssize_t)(WIDTHS * sizeof(double)) ||
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

/* ---- entropy-coded blocks ----------------------------------------------------------------------------------- */

enum { ARRAYS = 8 };

/* Take the arrays of block_codes.py, in this order, and check that they fit each other; 0 with an error set. */
static int take_blocks(CodeJob *job, Py_buffer *array, Py_ssize_t coordinates, Py_ssize_t *low_bytes) {
    static const Py_ssize_t item[ARRAYS] = {8, 8, 8, 4, 4, 1, 1, 2};
    Py_ssize_t count = array[0].len / 8;
    if (!one_entry_a_block(array, item, ARRAYS - 1, count)) return 0;
    job->blocks = count;
    job->starts = array[0].buf, job->sizes = array[1].buf, job->numbers = array[2].buf;
    job->factor = array[3].buf, job->scale = array[4].buf;
    job->low = array[5].buf, job->klass = array[6].buf, job->frequencies = array[7].buf;
    Py_ssize_t classes = array[7].len / (2 * MOST_LEVELS);
    int64_t *low_starts = malloc(sizeof *low_starts * 2 * (size_t)(count + 1)), coded = 0;
    if (!low_starts) return PyErr_NoMemory(), 0;
    int64_t *symbol_starts = low_starts + count + 1;
    job->low_starts = low_starts, job->symbol_starts = symbol_starts;
    *low_bytes = 0;
    for (Py_ssize_t k = 0; k < count; k++) {
        int64_t size = job->sizes[k], start = job->starts[k];
        if (size < SMALLEST_ROTATED || size > BLOCK || start < 0 || start > coordinates - size || job->low[k] > 8 ||
            job->klass[k] >= classes || classes > MOST_CLASSES) {
            PyErr_SetString(PyExc_ValueError, "a block does not fit the vector");
            return 0;
        }
        low_starts[k] = *low_bytes;
        *low_bytes += packed_bytes((int)size, job->low[k]);
        symbol_starts[k] = coded;
        coded += size;
    }
    symbol_starts[count] = coded;
    return 1;
}

static void count_levels(CodeJob *job, Py_ssize_t classes, uint8_t *last) {
    for (Py_ssize_t c = 0; c < classes; c++) {
        last[c] = 0;
        for (int h = 1; h < MOST_LEVELS; h++)
            if (job->frequencies[c * MOST_LEVELS + h]) last[c] = (uint8_t)h;
    }
    job->last = last;
}

static PyObject *encode_checked_codes(CodeJob *job, Py_ssize_t low_bytes) {
    Py_ssize_t coded = (Py_ssize_t)job->symbol_starts[job->blocks], states = 4 * job->lanes;
    Py_ssize_t room = coded / 8 * 5 + ROOM_OF_A_BLOCK; /* steps of 2^-2.5 take 4.6 bits; make_room finds more */
    PyObject *data = NULL;
    job->low_bits = malloc((size_t)low_bytes + 1), job->room = malloc((size_t)room), job->coded_class = -1;
    job->words = NULL, job->end_of_words = job->room + room;
    for (int l = 0; l < MOST_LANES; l++) job->states[l] = LOWEST_STATE;
    if (job->low_bits && job->room) {
        Py_BEGIN_ALLOW_THREADS
        kernels->encode_codes(job);
        Py_END_ALLOW_THREADS
    }
    if (!job->words) {
        PyErr_NoMemory();
    } else if ((data = PyBytes_FromStringAndSize(NULL, low_bytes + states + (job->end_of_words - job->words)))) {
        char *to = PyBytes_AsString(data);
        memcpy(to, job->low_bits, (size_t)low_bytes);
        memcpy(to + low_bytes, job->states, (size_t)states);
        memcpy(to + low_bytes + states, job->words, (size_t)(job->end_of_words - job->words));
    }
    free(job->low_bits);
    free(job->room);
    return data;
}

PyDoc_STRVAR(encode_codes_doc,
             "encode_codes(x, seed, lanes, starts, sizes, numbers, factor, inverse, low, klass, frequencies, products)\n"
             "Return low bits, states and words of the blocks: block_codes.py.");

static PyObject *encode_codes(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer x = {0}, products = {0}, array[ARRAYS] = {{0}};
    unsigned long long seed;
    PyObject *result = NULL;
    uint8_t last[MOST_CLASSES];
    Py_ssize_t low_bytes;
    CodeJob job;
    memset(&job, 0, sizeof job);
    if (!PyArg_ParseTuple(args, "y*Kiy*y*y*y*y*y*y*y*w*", &x, &seed, &job.lanes, &array[0], &array[1], &array[2],
                          &array[3], &array[4], &array[5], &array[6], &array[7], &products))
        return NULL;
    job.x = x.buf;
    job.products = products.buf;
    job.base = word(seed, 0);
    if (job.lanes != 1 && job.lanes != 4 && job.lanes != MOST_LANES)
        PyErr_Format(PyExc_ValueError, "expected 1, 4 or 16 lanes, got %d", job.lanes);
    else if (products.len != array[0].len)
        PyErr_SetString(PyExc_ValueError, "expected room for one product a block");
    else if (take_blocks(&job, array, x.len / 4, &low_bytes)) {
        count_levels(&job, array[7].len / (2 * MOST_LEVELS), last);
        result = encode_checked_codes(&job, low_bytes);
    }
    free((void *)job.low_starts);
    release(&x, 1);
    release(&products, 1);
    release(array, ARRAYS);
    return result;
}

/* Returns 0 if the words do not end where the codes do: nothing was written then. */
static int decode_checked_codes(CodeJob *job, const Py_buffer *data, Py_ssize_t low_bytes) {
    int sound = 1;
    /* Whole vectors are written, a little beyond the last code. */
    job->symbols = malloc((size_t)job->symbol_starts[job->blocks] + BLOCK);
    if (!job->symbols) return PyErr_NoMemory(), 0;
    job->low_bits = data->buf;
    memcpy(job->states, (const uint8_t *)data->buf + low_bytes, 4 * (size_t)job->lanes);
    job->from = (const uint8_t *)data->buf + low_bytes + 4 * job->lanes;
    job->end = (const uint8_t *)data->buf + data->len;
    for (int l = 0; l < job->lanes; l++) sound &= job->states[l] >= LOWEST_STATE && job->states[l] >> 31 == 0;
    Py_BEGIN_ALLOW_THREADS
    sound = sound && kernels->read_codes(job) && job->from == job->end;
    for (int l = 0; l < job->lanes; l++) sound &= job->states[l] == LOWEST_STATE;
    if (sound) kernels->decode_codes(job);
    Py_END_ALLOW_THREADS
    for (int c = 0; c < MOST_CLASSES; c++) free(job->slots[c]);
    free(job->symbols);
    return sound;
}

PyDoc_STRVAR(decode_codes_doc,
             "decode_codes(data, out, target, weight, seed, lanes, starts, sizes, numbers, factor, multiplier, low, klass,\n"
             "             frequencies, received)\n"
             "Decode the blocks into or onto `out`; what is in no block is left alone. Targets are those of `decode`.\n"
             "Returns whether `data` ended where the codes do; if not, `out` is as it was.");

static PyObject *decode_codes(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer data = {0}, out = {0}, received = {0}, array[ARRAYS] = {{0}};
    unsigned long long seed;
    uint8_t last[MOST_CLASSES];
    Py_ssize_t low_bytes;
    int sound = 0, target;
    CodeJob job;
    memset(&job, 0, sizeof job);
    if (!PyArg_ParseTuple(args, "y*w*idKiy*y*y*y*y*y*y*y*z*", &data, &out, &target, &job.weight, &seed, &job.lanes,
                          &array[0], &array[1], &array[2], &array[3], &array[4], &array[5], &array[6], &array[7],
                          &received))
        return NULL;
    Py_ssize_t coordinates = out.len / (target == ONTO_DOUBLES ? 8 : 4);
    job.out = out.buf, job.received = received.buf, job.target = (Target)target;
    job.base = word(seed, 0);
    if ((job.lanes != 1 && job.lanes != 4 && job.lanes != MOST_LANES) || target < INTO_FLOATS || target > ONTO_DOUBLES ||
        (received.buf && received.len != coordinates))
        PyErr_SetString(PyExc_ValueError, "expected 1, 4 or 16 lanes, a target of 0 to 2 and a mask that fits");
    else if (take_blocks(&job, array, coordinates, &low_bytes) && data.len >= low_bytes + 4 * job.lanes) {
        count_levels(&job, array[7].len / (2 * MOST_LEVELS), last);
        sound = decode_checked_codes(&job, &data, low_bytes);
    }
    free((void *)job.low_starts);
    release(&data, 1);
    release(&out, 1);
    release(&received, 1);
    release(array, ARRAYS);
    if (PyErr_Occurred()) return NULL;
    return PyBool_FromLong(sound);
}

PyDoc_STRVAR(energies_doc,
             "energies(x, sizes, found, more_sizes, more_found)\n"
             "Write the energy of every run of `sizes` coordinates to `found`, and the same for other runs over the same\n"
             "coordinates, each as soon as they are in the cache.");

/* Whether runs cover no more than `left` coordinates. */
static int runs_fit(const Py_buffer *sizes, const Py_buffer *found, Py_ssize_t left) {
    const int64_t *size = sizes->buf;
    for (Py_ssize_t k = 0; k < sizes->len / 8 && left >= 0; k++) left = size[k] < 0 || size[k] > left ? -1 : left - size[k];
    return left >= 0 && found->len == sizes->len;
}

static void all_energies(const float *x, const Py_buffer *sizes, double *found, const Py_buffer *more, double *more_found) {
    const int64_t *size = sizes->buf, *other = more->buf;
    Py_ssize_t count = sizes->len / 8, others = more->len / 8, j = 0;
    const float *y = x;
    for (Py_ssize_t k = 0; k < count; k++) {
        kernels->energies(x, size + k, 1, found + k);
        x += size[k];
        Py_ssize_t first = j;
        const float *from = y;
        while (j < others && other[j] <= x - y) y += other[j++];
        kernels->energies(from, other + first, j - first, more_found + first);
    }
    kernels->energies(y, other + j, others - j, more_found + j);
}

static PyObject *energies(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer x = {0}, sizes = {0}, found = {0}, more = {0}, more_found = {0};
    if (!PyArg_ParseTuple(args, "y*y*w*y*w*", &x, &sizes, &found, &more, &more_found)) return NULL;
    if (!runs_fit(&sizes, &found, x.len / 4) || !runs_fit(&more, &more_found, x.len / 4))
        PyErr_SetString(PyExc_ValueError, "runs do not fit the vector");
    else {
        Py_BEGIN_ALLOW_THREADS
        all_energies(x.buf, &sizes, found.buf, &more, more_found.buf);
        Py_END_ALLOW_THREADS
    }
    release(&x, 1);
    release(&sizes, 1);
    release(&found, 1);
    release(&more, 1);
    release(&more_found, 1);
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
    {"encode_codes", encode_codes, METH_VARARGS, encode_codes_doc},
    {"decode_codes", decode_codes, METH_VARARGS, decode_codes_doc},
    {"energies", energies, METH_VARARGS, energies_doc},
    {"encode_directions", fedge_encode_directions, METH_VARARGS, "see spherical.c"},
    {"decode_directions", fedge_decode_directions, METH_VARARGS, "see spherical.c"},
    {"measure", fedge_measure, METH_VARARGS, "measure(values, bins, counts, lows); see sparse.c"},
    {"between", fedge_between, METH_VARARGS, "between(values, least, below, found); see sparse.c"},
    {"select", fedge_select, METH_VARARGS, "select(values, least, bitmap, taken); see sparse.c"},
    {"above", fedge_above, METH_VARARGS, "above(cells, level, bitmap, rest); see sparse.c"},
    {"cells", fedge_cells, METH_VARARGS, "cells(values, edges, cells, counts, sums); see sparse.c"},
    {"gap_bytes", fedge_gap_bytes, METH_VARARGS, "gap_bytes(bitmap, size, others, low_bits); see sparse_gaps.c"},
    {"pack_gaps", fedge_pack_gaps, METH_VARARGS, "pack_gaps(bitmap, size, others, low_bits, size_bytes); see sparse_gaps.c"},
    {"unpack_gaps", fedge_unpack_gaps, METH_VARARGS, "unpack_gaps(data, start, low_bits, size, places); see sparse_gaps.c"},
    {"lloyd", fedge_lloyd, METH_VARARGS, "lloyd(x, mass, moment, levels, steps); see sparse_levels.c"},
    {"tridiagonal", fedge_tridiagonal, METH_VARARGS, "tridiagonal(lower, diagonal, upper, x, n); see sparse_levels.c"},
    {"gamma_series", fedge_gamma_series, METH_VARARGS, "gamma_series(a, x, total, epsilon); see sparse_levels.c"},
    {"gamma_fraction", fedge_gamma_fraction, METH_VARARGS, "gamma_fraction(a, x, h, tiny, near); see sparse_levels.c"},
    {"nearest", fedge_nearest, METH_VARARGS, "nearest(x, start, n, s, centroids, index); see product.c"},
    {"kmeans", fedge_kmeans, METH_VARARGS, "kmeans(x, start, n, s, centroids, spares, iterations); see product.c"},
    {"pack_bits", fedge_pack_bits, METH_VARARGS, "pack_bits(codes, bits); see indices.c"},
    {"unpack_bits", fedge_unpack_bits, METH_VARARGS, "unpack_bits(data, bits, codes); see indices.c"},
    {"encode_indices", fedge_encode_indices, METH_VARARGS, "encode_indices(index, q, groups, bits, shared); see indices.c"},
    {"decode_indices", fedge_decode_indices, METH_VARARGS, "decode_indices(data, q, groups, bits, shared, index); see indices.c"},
    {"isa", isa, METH_NOARGS, "isa()\nReturn the name of the instruction set in use."},
    {"use_isa", use_isa, METH_VARARGS, "use_isa(name)\nUse 'avx512', 'avx2' or 'baseline' if this CPU can; says if."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", "The hot loops of EDEN, M22 and FedLite; see twin.py, m22/sparse.py and product.py.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) {
    choose(NULL);
    return PyModule_Create(&definition);
}
