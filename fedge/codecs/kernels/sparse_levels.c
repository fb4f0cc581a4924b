/* M22's levels: Lloyd's steps over bins, Newton's linear systems, and the sums and fractions behind incomplete gamma functions.
 *
 * Sums, products and quotients in the order in which the NumPy code beside each caller takes them, so that both give the
 * same bits. The GIL is released in every loop.
 */

#include "sparse.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

static void release(Py_buffer *buffers, int count) {
    for (int i = 0; i < count; i++)
        if (buffers[i].obj) PyBuffer_Release(&buffers[i]);
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

/* tridiagonal(lower, diagonal, upper, x, n): of systems of n unknowns, double [m·n] each, x is the right side and becomes
 * the solution, by elimination from the first row down. */
PyObject *fedge_tridiagonal(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer b[4] = {{0}};
    Py_ssize_t n;
    if (!PyArg_ParseTuple(args, "y*y*y*w*n", &b[0], &b[1], &b[2], &b[3], &n)) return NULL;
    Py_ssize_t numbers = b[3].len / 8;
    int sound = n > 0 && b[3].len % 8 == 0 && numbers % n == 0;
    for (int i = 0; i < 3; i++) sound = sound && b[i].len == b[3].len;
    double *factor = sound ? malloc(8 * (size_t)(numbers ? n : 1)) : NULL;
    if (!sound) PyErr_SetString(PyExc_ValueError, "expected systems of n unknowns");
    if (sound && !factor) sound = 0, PyErr_NoMemory();
    if (sound) {
        Py_BEGIN_ALLOW_THREADS
        const double *lower = b[0].buf, *diagonal = b[1].buf, *upper = b[2].buf;
        double *x = b[3].buf, *end = x + b[3].len / 8;
        for (; x < end; x += n, lower += n, diagonal += n, upper += n) {
            double pivot = diagonal[0];
            x[0] /= pivot;
            for (Py_ssize_t j = 1; j < n; j++) {
                factor[j - 1] = upper[j - 1] / pivot;
                pivot = diagonal[j] - lower[j] * factor[j - 1];
                x[j] = (x[j] - lower[j] * x[j - 1]) / pivot;
            }
            for (Py_ssize_t j = n - 2; j >= 0; j--) x[j] -= factor[j] * x[j + 1];
        }
        Py_END_ALLOW_THREADS
    }
    free(factor);
    release(b, 4);
    if (!sound) return NULL;
    Py_RETURN_NONE;
}

/* gamma_series(a, x, total, epsilon): Σ_n x^n/(a (a + 1) ... (a + n)) of double [n], until no term is more than epsilon
 * of its sum. */
PyObject *fedge_gamma_series(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer b[3] = {{0}};
    double epsilon;
    if (!PyArg_ParseTuple(args, "y*y*w*d", &b[0], &b[1], &b[2], &epsilon)) return NULL;
    Py_ssize_t n = b[0].len / 8;
    const double *a = b[0].buf, *x = b[1].buf;
    double *total = b[2].buf, *term = malloc(16 * (size_t)n + 16), *at = term + n;
    int sound = b[1].len == b[0].len && b[2].len == b[0].len;
    if (!sound) PyErr_SetString(PyExc_ValueError, "expected as many of each");
    if (sound && !term) sound = 0, PyErr_NoMemory();
    if (sound) {
        Py_BEGIN_ALLOW_THREADS
        int more = n > 0;
        for (Py_ssize_t i = 0; i < n; i++) {
            at[i] = a[i];
            term[i] = total[i] = 1.0 / a[i];
            more |= term[i] > epsilon * total[i];
        }
        while (more) {
            more = 0;
            for (Py_ssize_t i = 0; i < n; i++) {
                at[i] += 1.0;
                term[i] *= x[i] / at[i];
                total[i] += term[i];
                more |= term[i] > epsilon * total[i];
            }
        }
        Py_END_ALLOW_THREADS
    }
    free(term);
    release(b, 3);
    if (!sound) return NULL;
    Py_RETURN_NONE;
}

/* gamma_fraction(a, x, h, tiny, near): Lentz's evaluation of the continued fraction of double [n], until no factor is
 * further than `near` from 1. */
PyObject *fedge_gamma_fraction(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer buffers[3] = {{0}};
    double tiny, near;
    if (!PyArg_ParseTuple(args, "y*y*w*dd", &buffers[0], &buffers[1], &buffers[2], &tiny, &near)) return NULL;
    Py_ssize_t n = buffers[0].len / 8;
    const double *a = buffers[0].buf, *x = buffers[1].buf;
    double *h = buffers[2].buf, *b = malloc(24 * (size_t)n + 24), *c = b + n, *d = c + n;
    int sound = buffers[1].len == buffers[0].len && buffers[2].len == buffers[0].len;
    if (!sound) PyErr_SetString(PyExc_ValueError, "expected as many of each");
    if (sound && !b) sound = 0, PyErr_NoMemory();
    if (sound) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < n; i++) {
            b[i] = x[i] + 1.0 - a[i];
            c[i] = 1.0 / tiny;
            h[i] = d[i] = 1.0 / b[i];
        }
        int more = n > 0;
        for (double step = 1.0; more; step += 1.0) {
            more = 0;
            for (Py_ssize_t i = 0; i < n; i++) {
                double numerator = step * (a[i] - step);
                b[i] += 2.0;
                d[i] = 1.0 / (numerator * d[i] + b[i]);
                c[i] = numerator / c[i] + b[i];
                double factor = c[i] * d[i];
                h[i] *= factor;
                more |= fabs(factor - 1.0) > near;
            }
        }
        Py_END_ALLOW_THREADS
    }
    free(b);
    release(buffers, 3);
    if (!sound) return NULL;
    Py_RETURN_NONE;
}
