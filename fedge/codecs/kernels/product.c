/* FedLite's K-means: which centroid is nearest, and Lloyd's iteration. `product.py` has the same in NumPy.
 *
 * Vectors are columns: coordinate k of vector i is x[k * stride + i], so that as many vectors as fit go through one
 * instruction. Every score is a float sum in the order of k, each product and each sum rounded on its own; every mean is
 * a double sum in the order of i. So the width of vectors changes nothing, and the twin has the same bits. The GIL is
 * released in every loop.
 */

#include "product.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_CENTROIDS = 256, PER_VECTOR = 8, TOGETHER = 4, AT_ONCE = PER_VECTOR * TOGETHER };

typedef float Floats __attribute__((vector_size(4 * PER_VECTOR)));
typedef int32_t Ints __attribute__((vector_size(4 * PER_VECTOR)));

#define INLINE static inline __attribute__((always_inline))

static int use_wide;

void fedge_product_use_wide(int wide) { use_wide = wide; }

typedef struct {
    const float *x; /* the first vector */
    Py_ssize_t stride, n;
    int s, centroids;
    float *c, *bias; /* centroids one after another; where two are compared, the hyperplane between them */
} Clusters;

/* Scores of AT_ONCE vectors: bias + x.c */
INLINE void scores(const float *x, Py_ssize_t stride, int s, const float *c, float bias, Floats *score) {
    for (int v = 0; v < TOGETHER; v++) score[v] = (Floats){0} + bias;
    for (int k = 0; k < s; k++, x += stride)
        for (int v = 0; v < TOGETHER; v++) {
            Floats one;
            memcpy(&one, x + v * PER_VECTOR, sizeof one);
            score[v] += one * c[k];
        }
}

INLINE void nearest_of_all(const Clusters *job, uint8_t *index) {
    for (Py_ssize_t i = 0; i < job->n; i += AT_ONCE) {
        Floats best[TOGETHER], score[TOGETHER];
        Ints at[TOGETHER] = {{0}};
        int32_t found[AT_ONCE];
        scores(job->x + i, job->stride, job->s, job->c, job->bias[0], best);
        if (job->centroids == 2)
            for (int v = 0; v < TOGETHER; v++) at[v] = (best[v] > (Floats){0}) & 1;
        else
            for (int l = 1; l < job->centroids; l++) {
                scores(job->x + i, job->stride, job->s, job->c + l * job->s, job->bias[l], score);
                for (int v = 0; v < TOGETHER; v++) {
                    Ints nearer = score[v] > best[v];
                    at[v] = (at[v] & ~nearer) | (l & nearer);
                    best[v] = (Floats)(((Ints)best[v] & ~nearer) | ((Ints)score[v] & nearer));
                }
            }
        memcpy(found, at, sizeof found);
        for (int j = 0; j < AT_ONCE && i + j < job->n; j++) index[i + j] = (uint8_t)found[j];
    }
}

#if defined(__x86_64__)
static __attribute__((target("avx2"))) void nearest_wide(const Clusters *job, uint8_t *index) {
    nearest_of_all(job, index);
}
#endif

static void nearest_narrow(const Clusters *job, uint8_t *index) { nearest_of_all(job, index); }

static double half_square(const float *c, int s) {
    double sum = 0;
    for (int k = 0; k < s; k++) sum += (double)c[k] * (double)c[k];
    return sum / 2;
}

/* What the centroids `from` are compared by: themselves and -|c|^2/2, or the hyperplane between two. */
static void prepare(Clusters *job, const float *from) {
    if (job->centroids == 2) {
        for (int k = 0; k < job->s; k++) job->c[k] = from[job->s + k] - from[k];
        job->bias[0] = (float)(half_square(from, job->s) - half_square(from + job->s, job->s));
        return;
    }
    memcpy(job->c, from, sizeof(float) * (size_t)job->centroids * (size_t)job->s);
    for (int l = 0; l < job->centroids; l++) job->bias[l] = -(float)half_square(from + l * job->s, job->s);
}

static void find_nearest(Clusters *job, const float *from, uint8_t *index) {
    prepare(job, from);
    if (job->centroids == 1)
        memset(index, 0, (size_t)job->n);
#if defined(__x86_64__)
    else if (use_wide)
        nearest_wide(job, index);
#endif
    else
        nearest_narrow(job, index);
}

/* Move every centroid to the mean of its vectors; one without vectors to a spare one, if there is one left. */
static void step(const Clusters *job, float *c, const uint8_t *index, double *sums, int64_t *counts,
                 const int64_t *spare, Py_ssize_t spares, Py_ssize_t *used) {
    int s = job->s;
    memset(sums, 0, sizeof(double) * (size_t)job->centroids * (size_t)s);
    memset(counts, 0, sizeof(int64_t) * (size_t)job->centroids);
    for (Py_ssize_t i = 0; i < job->n; i++) {
        double *sum = sums + index[i] * (Py_ssize_t)s;
        counts[index[i]]++;
        for (int k = 0; k < s; k++) sum[k] += (double)job->x[k * job->stride + i];
    }
    for (int l = 0; l < job->centroids; l++) {
        if (counts[l])
            for (int k = 0; k < s; k++) c[l * s + k] = (float)(sums[l * (Py_ssize_t)s + k] / (double)counts[l]);
        else if (*used < spares) {
            for (int k = 0; k < s; k++) c[l * s + k] = job->x[k * job->stride + spare[*used]];
            ++*used;
        }
    }
}

static void release(Py_buffer *buffers, int count) {
    for (int i = 0; i < count; i++)
        if (buffers[i].obj) PyBuffer_Release(&buffers[i]);
}

/* Check that columns start .. start + n - 1 can be read AT_ONCE at a time, and make room; 0 with an error set. */
static int begin(Clusters *job, const Py_buffer *x, Py_ssize_t start, Py_ssize_t n, int s, Py_ssize_t c_bytes) {
    Py_ssize_t floats = x->len / 4, read = (n + AT_ONCE - 1) / AT_ONCE * AT_ONCE;
    if (s < 1 || floats % s || start < 0 || n < 1 || start > floats / s || read > floats / s - start ||
        c_bytes % (4 * (Py_ssize_t)s) || c_bytes / 4 / s < 1 || c_bytes / 4 / s > MOST_CENTROIDS) {
        PyErr_SetString(PyExc_ValueError, "expected 1 to 256 centroids, and vectors with 32 columns behind the last");
        return 0;
    }
    *job = (Clusters){(const float *)x->buf + start, floats / s, n, s, (int)(c_bytes / 4 / s), NULL, NULL};
    job->c = malloc((size_t)c_bytes);
    job->bias = malloc(sizeof(float) * MOST_CENTROIDS);
    if (job->c && job->bias) return 1;
    free(job->c), free(job->bias);
    PyErr_NoMemory();
    return 0;
}

/* nearest(x, start, n, s, centroids, index): x float32 [s, stride], centroids float32 [L, s]; fills index uint8 [n]. */
PyObject *fedge_nearest(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer b[3] = {{0}};
    Py_ssize_t start, n;
    int s, done = 0;
    Clusters job;
    if (!PyArg_ParseTuple(args, "y*nniy*w*", &b[0], &start, &n, &s, &b[1], &b[2])) return NULL;
    if (b[2].len != n)
        PyErr_SetString(PyExc_ValueError, "expected room for one index a vector");
    else if (begin(&job, &b[0], start, n, s, b[1].len)) {
        Py_BEGIN_ALLOW_THREADS
        find_nearest(&job, b[1].buf, b[2].buf);
        Py_END_ALLOW_THREADS
        free(job.c), free(job.bias);
        done = 1;
    }
    release(b, 3);
    if (!done) return NULL;
    Py_RETURN_NONE;
}

static int spares_fit(const int64_t *spare, Py_ssize_t spares, Py_ssize_t n) {
    for (Py_ssize_t i = 0; i < spares; i++)
        if (spare[i] < 0 || spare[i] >= n) return 0;
    return 1;
}

/* kmeans(x, start, n, s, centroids, spares, iterations): move float32 centroids [L, s] in place; spares int64, below n. */
PyObject *fedge_kmeans(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer b[3] = {{0}};
    Py_ssize_t start, n;
    int s, iterations, done = 0;
    Clusters job;
    if (!PyArg_ParseTuple(args, "y*nniw*y*i", &b[0], &start, &n, &s, &b[1], &b[2], &iterations)) return NULL;
    if (!spares_fit(b[2].buf, b[2].len / 8, n))
        PyErr_SetString(PyExc_ValueError, "expected spare vectors among those given");
    else if (begin(&job, &b[0], start, n, s, b[1].len)) {
        uint8_t *index = malloc((size_t)n);
        double *sums = malloc(sizeof(double) * (size_t)job.centroids * (size_t)s);
        int64_t counts[MOST_CENTROIDS];
        done = index && sums;
        Py_ssize_t used = 0;
        Py_BEGIN_ALLOW_THREADS
        for (int i = 0; done && i < iterations; i++) {
            find_nearest(&job, b[1].buf, index);
            step(&job, b[1].buf, index, sums, counts, b[2].buf, b[2].len / 8, &used);
        }
        Py_END_ALLOW_THREADS
        free(index), free(sums), free(job.c), free(job.bias);
        if (!done) PyErr_NoMemory();
    }
    release(b, 3);
    if (!done) return NULL;
    Py_RETURN_NONE;
}
