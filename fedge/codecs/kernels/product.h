/* The Python side of FedLite's hot loops, `product.c` and `indices.c`: entries for the module's table of methods. */

#ifndef FEDGE_PRODUCT_H
#define FEDGE_PRODUCT_H

#include <Python.h>

/* Whether to use vectors of eight; both ways give the same bits. */
void fedge_product_use_wide(int wide);

PyObject *fedge_nearest(PyObject *module, PyObject *args);
PyObject *fedge_kmeans(PyObject *module, PyObject *args);
PyObject *fedge_pack_bits(PyObject *module, PyObject *args);
PyObject *fedge_unpack_bits(PyObject *module, PyObject *args);
PyObject *fedge_encode_indices(PyObject *module, PyObject *args);
PyObject *fedge_decode_indices(PyObject *module, PyObject *args);

#endif
