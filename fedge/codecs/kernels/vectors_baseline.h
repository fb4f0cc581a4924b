/* Four floats at a time: SSE2, NEON, or whatever the compiler makes of it. What every vectors_*.h defines is listed in
 * kernels.h. */

#define W 4
#define ISA
#define INLINE static inline __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));
typedef int16_t Shorts __attribute__((vector_size(16)));

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#endif
#endif
#ifndef SHUFFLE
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (Ints){i, j, k, l})
#endif

INLINE Shorts larger_short(Shorts a, Shorts b) { return (a & (a > b)) | (b & ~(a > b)); }

INLINE Shorts magnitude_short(Shorts x) { return (x ^ (x >> 15)) - (x >> 15); }

INLINE Ints count_above(Ints count, Floats a, Floats b) { return count - (Ints)(a > b); }

#define FUSED_DISTANCES 0

INLINE Floats difference(Floats a, Floats b) { return a - b; }

INLINE Ints larger(Ints a, Ints b) { return (a & (a > b)) | (b & ~(a > b)); }

INLINE void transpose(Floats *x) {
    Floats ab = SHUFFLE(x[0], x[1], 0, 4, 1, 5), AB = SHUFFLE(x[0], x[1], 2, 6, 3, 7);
    Floats cd = SHUFFLE(x[2], x[3], 0, 4, 1, 5), CD = SHUFFLE(x[2], x[3], 2, 6, 3, 7);
    x[0] = SHUFFLE(ab, cd, 0, 1, 4, 5), x[1] = SHUFFLE(ab, cd, 2, 3, 6, 7);
    x[2] = SHUFFLE(AB, CD, 0, 1, 4, 5), x[3] = SHUFFLE(AB, CD, 2, 3, 6, 7);
}

INLINE void exchange_halves(Floats *x) { (void)x; }

/* table[index] for tables of 16. */
typedef struct {
    const float *all;
} Table;

INLINE Table load_table(const float *from) { return (Table){from}; }

INLINE Floats look_up(Table table, Ints index) {
    return (Floats){table.all[index[0]], table.all[index[1]], table.all[index[2]], table.all[index[3]]};
}

INLINE Ints shift_left(Ints x, int count) { return x << count; }

INLINE Ints load_codes(const uint8_t *from) { return (Ints){from[0], from[1], from[2], from[3]}; }

INLINE void store_codes(uint8_t *to, Ints codes) {
    for (int l = 0; l < W; l++) to[l] = (uint8_t)codes[l];
}

INLINE void add_to_floats(float *sum, const float *x, double weight) {
    for (int l = 0; l < W; l++) sum[l] = (float)((double)sum[l] + weight * (double)x[l]);
}

INLINE void add_to_doubles(double *sum, const float *x, double weight) {
    for (int l = 0; l < W; l++) sum[l] += weight * (double)x[l];
}

typedef struct {
    double lane[LANES];
} Sums;

INLINE void add_products(Sums *sums, const float *y, const float *q) {
    for (int l = 0; l < LANES; l++) sums->lane[l] += (double)y[l] * (double)q[l];
}

INLINE void add_squares(Sums *sums, const float *y) { add_products(sums, y, y); }

INLINE void store_sums(double *to, const Sums *sums) { memcpy(to, sums, sizeof *sums); }
