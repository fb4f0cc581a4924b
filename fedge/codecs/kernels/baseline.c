#include "job.h"

#include "vectors_baseline.h"
#include "rows_baseline.h"

#include "kernels.h"
#include "codes.h"
#include "spherical.h"

static int runs_here(void) {
    return 1;
}

const Kernels fedge_baseline = {"baseline", runs_here, encode, decode, energies, encode_codes, read_codes, decode_codes,
                                encode_directions, decode_directions};
