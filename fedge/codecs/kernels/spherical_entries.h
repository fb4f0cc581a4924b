/* The Python side of blocks that travel as directions, `spherical.c`: entries for the module's table of methods. */

#ifndef FEDGE_SPHERICAL_ENTRIES_H
#define FEDGE_SPHERICAL_ENTRIES_H

#include "job.h"

/* The copy of the hot loops in use. */
const Kernels *fedge_kernels(void);

PyObject *fedge_encode_directions(PyObject *module, PyObject *args);
PyObject *fedge_decode_directions(PyObject *module, PyObject *args);

#endif
