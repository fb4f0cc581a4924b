#include "job.h"

#if defined(__x86_64__)

#include "vectors_avx512.h"
#include "rows_x86.h"

#include "kernels.h"
#include "rans_avx512.h"
#include "codes.h"
#include "spherical.h"

static int runs_here(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

const Kernels fedge_avx512 = {"avx512", runs_here, encode, decode, energies, encode_codes, read_codes, decode_codes,
                              encode_directions, decode_directions};

#endif
