/* The Python side of EDEN's hot loops: checks, memory, and the choice among the copies in `avx512.c`, `avx2.c` and
 * `baseline.c`, which are `kernels.h` compiled for each instruction set. Nothing is global but that choice, and the GIL
 * is released while they run.
 */

#include "job.h"

static const Kernels *const ALL[] = {
#if defined(__x86_64__)
    &fedge_avx512,
    &fedge_avx2,
#endif
    &fedge_baseline,
};
static const Kernels *kernels;

static int choose(const char *name) {
    for (size_t k = 0; k < sizeof ALL / sizeof *ALL; k++)
        if ((!name || !strcmp(name, ALL[k]->name)) && ALL[k]->runs_here()) {
            kernels = ALL[k];
            return 1;
        }
    return 0;
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
        if (width >= 4 && width <= MAX_WIDTH) make_grid(&job->grids[wide], job->tables, width);
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
             "decode(data, out, size, target, weight, seed, width, high, low, tail_width, tail_high, tail_low,\n"
             "       tables, gains, received)\n"
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
    Run *full = &job.full_run, *tail = &job.tail_run;
    if (!PyArg_ParseTuple(args, "y*w*nidKiiiiiiy*y*z*", &data, &out, &size, &target, &job.weight, &seed, &full->width,
                          &full->high, &full->low, &tail->width, &tail->high, &tail->low, &tables, &gains, &received))
        return NULL;
    Py_ssize_t item = target == ONTO_DOUBLES ? (Py_ssize_t)sizeof(double) : (Py_ssize_t)sizeof(float), actual = -1;
    if (size < 0 || out.len % item || out.len / item != size || target < INTO_FLOATS || target > ONTO_DOUBLES)
        PyErr_Format(PyExc_ValueError, "%zd coordinates do not fit %zd bytes", size, out.len);
    else
        actual = prepare(&job, size, &tables, seed);
    job.data = data.buf, job.out = out.buf, job.gains = gains.buf, job.received = received.buf;
    job.target = (Target)target;
    if (actual >= 0 && (actual != data.len || gains.len != (Py_ssize_t)(MAX_WIDTH * sizeof(double)) ||
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
