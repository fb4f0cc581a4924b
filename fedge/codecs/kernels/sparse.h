/* The Python side of M22's hot loops: entries for the module's table of methods, by the file they are in. */

#ifndef FEDGE_SPARSE_H
#define FEDGE_SPARSE_H

#include <Python.h>

/* sparse.c */
PyObject *fedge_measure(PyObject *module, PyObject *args);
PyObject *fedge_between(PyObject *module, PyObject *args);
PyObject *fedge_select(PyObject *module, PyObject *args);
PyObject *fedge_above(PyObject *module, PyObject *args);
PyObject *fedge_cells(PyObject *module, PyObject *args);

/* sparse_gaps.c */
PyObject *fedge_gap_bytes(PyObject *module, PyObject *args);
PyObject *fedge_pack_gaps(PyObject *module, PyObject *args);
PyObject *fedge_unpack_gaps(PyObject *module, PyObject *args);

/* sparse_levels.c */
PyObject *fedge_lloyd(PyObject *module, PyObject *args);
PyObject *fedge_tridiagonal(PyObject *module, PyObject *args);
PyObject *fedge_gamma_series(PyObject *module, PyObject *args);
PyObject *fedge_gamma_fraction(PyObject *module, PyObject *args);

#endif
