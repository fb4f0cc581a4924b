/* The Python side of M22's hot loops, `sparse.c`: entries for the module's table of methods. */

#ifndef FEDGE_SPARSE_H
#define FEDGE_SPARSE_H

#include <Python.h>

PyObject *fedge_largest(PyObject *module, PyObject *args);
PyObject *fedge_bins(PyObject *module, PyObject *args);
PyObject *fedge_cells(PyObject *module, PyObject *args);
PyObject *fedge_above(PyObject *module, PyObject *args);
PyObject *fedge_gap_bytes(PyObject *module, PyObject *args);
PyObject *fedge_pack_gaps(PyObject *module, PyObject *args);
PyObject *fedge_unpack_gaps(PyObject *module, PyObject *args);
PyObject *fedge_lloyd(PyObject *module, PyObject *args);

#endif
