/* Blocks that travel as directions, from Python: checks and memory; the loops are in `spherical.h`.
 *
 *     encode_directions(x, seed, starts, sizes, numbers, factor, scale, groups, signs, words, products)
 *     decode_directions(words, out, target, weight, seed, starts, sizes, numbers, factor, scale, groups, signs, received)
 *
 * Arrays have an entry a block, as those of encode_codes have: block_codes.py. `words` is as long as all groups take.
 */

#include "spherical_entries.h"

enum { ARRAYS = 7, WIDEST_VECTOR = 64 };

/* Take the arrays, in this order, and check that they fit each other and `words`; 0 with an error set. */
static int take_blocks(CodeJob *job, const Py_buffer *array, Py_ssize_t coordinates, const Py_buffer *words) {
    static const Py_ssize_t item[ARRAYS - 1] = {8, 8, 8, 4, 4, 8};
    Py_ssize_t count = array[0].len / 8;
    if (!one_entry_a_block(array, item, ARRAYS - 1, count)) return 0;
    job->blocks = count;
    job->starts = array[0].buf, job->sizes = array[1].buf, job->numbers = array[2].buf;
    job->factor = array[3].buf, job->scale = array[4].buf, job->groups = array[5].buf, job->signs = array[6].buf;
    job->said = words->buf;
    int64_t *symbol_starts = malloc(sizeof *symbol_starts * (size_t)(count + 1)), groups = 0;
    if (!symbol_starts) return PyErr_NoMemory(), 0;
    job->symbol_starts = symbol_starts;
    for (Py_ssize_t k = 0; k < count; k++) {
        int64_t size = job->sizes[k], start = job->starts[k], cut = job->groups[k];
        if (size < SMALLEST_ROTATED || size > BLOCK || start < 0 || start > coordinates - size || cut < 1 ||
            size < SHORTEST_GROUP * cut || size > LONGEST_GROUP * cut) {
            PyErr_SetString(PyExc_ValueError, "a block does not fit the vector, or its groups do not fit it");
            return 0;
        }
        symbol_starts[k] = groups;
        groups += cut;
    }
    symbol_starts[count] = groups;
    if (words->len == 2 * groups && array[6].len == 2 * DIRECTIONS) return 1;
    PyErr_Format(PyExc_ValueError, "expected %lld words and %d signs", (long long)groups, DIRECTIONS);
    return 0;
}

PyObject *fedge_encode_directions(PyObject *module, PyObject *args) {
    Py_buffer x = {0}, words = {0}, products = {0}, array[ARRAYS] = {{0}};
    unsigned long long seed;
    CodeJob job;
    (void)module;
    memset(&job, 0, sizeof job);
    if (!PyArg_ParseTuple(args, "y*Ky*y*y*y*y*y*y*w*w*", &x, &seed, &array[0], &array[1], &array[2], &array[3], &array[4],
                          &array[5], &array[6], &words, &products))
        return NULL;
    job.x = x.buf, job.products = products.buf, job.base = word(seed, 0);
    if (products.len != array[0].len)
        PyErr_SetString(PyExc_ValueError, "expected room for one product a block");
    else if (take_blocks(&job, array, x.len / 4, &words)) {
        job.room = aligned_alloc(WIDEST_VECTOR, 2 * LONGEST_GROUP * WIDEST_VECTOR);
        if (!job.room) PyErr_NoMemory();
        Py_BEGIN_ALLOW_THREADS
        if (job.room) fedge_kernels()->encode_directions(&job);
        Py_END_ALLOW_THREADS
        free(job.room);
    }
    free((void *)job.symbol_starts);
    release(&x, 1);
    release(&words, 1);
    release(&products, 1);
    release(array, ARRAYS);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

PyObject *fedge_decode_directions(PyObject *module, PyObject *args) {
    Py_buffer words = {0}, out = {0}, received = {0}, array[ARRAYS] = {{0}};
    unsigned long long seed;
    int target;
    CodeJob job;
    (void)module;
    memset(&job, 0, sizeof job);
    if (!PyArg_ParseTuple(args, "y*w*idKy*y*y*y*y*y*y*z*", &words, &out, &target, &job.weight, &seed, &array[0], &array[1],
                          &array[2], &array[3], &array[4], &array[5], &array[6], &received))
        return NULL;
    Py_ssize_t coordinates = out.len / (target == ONTO_DOUBLES ? 8 : 4);
    job.out = out.buf, job.received = received.buf, job.target = (Target)target, job.base = word(seed, 0);
    if (target < INTO_FLOATS || target > ONTO_DOUBLES || (received.buf && received.len != coordinates))
        PyErr_SetString(PyExc_ValueError, "expected a target of 0 to 2 and a mask that fits");
    else if (take_blocks(&job, array, coordinates, &words)) {
        Py_BEGIN_ALLOW_THREADS
        fedge_kernels()->decode_directions(&job);
        Py_END_ALLOW_THREADS
    }
    free((void *)job.symbol_starts);
    release(&words, 1);
    release(&out, 1);
    release(&received, 1);
    release(array, ARRAYS);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}
