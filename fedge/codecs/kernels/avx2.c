#include "job.h"

#if defined(__x86_64__)

#include "vectors_avx2.h"
#include "rows_x86.h"

#include "kernels.h"
#include "rans_avx2.h"
#include "codes.h"
#include "spherical.h"

static int runs_here(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}

const Kernels fedge_avx2 = {"avx2", runs_here, encode, decode, energies, encode_codes, read_codes, decode_codes,
                            encode_directions, decode_directions};

#endif
