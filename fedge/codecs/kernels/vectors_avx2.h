/* Eight floats at a time. What every vectors_*.h defines is listed in kernels.h. */

#include <immintrin.h>

#define W 8
#define ISA __attribute__((target("avx2,fma,bmi2")))
#define INLINE static inline ISA __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
typedef int16_t Shorts __attribute__((vector_size(32)));

INLINE Shorts larger_short(Shorts a, Shorts b) { return (Shorts)_mm256_max_epi16((__m256i)a, (__m256i)b); }

INLINE Shorts magnitude_short(Shorts x) { return (Shorts)_mm256_abs_epi16((__m256i)x); }

INLINE Ints count_above(Ints count, Floats a, Floats b) { return count - (Ints)(a > b); }

#define FUSED_DISTANCES 2

/* a - b, on another unit than additions where the two have their own. */
INLINE Floats difference(Floats a, Floats b) {
    return (Floats)_mm256_fmsub_ps((__m256)a, _mm256_set1_ps(1), (__m256)b);
}

INLINE Ints larger(Ints a, Ints b) { return (Ints)_mm256_max_epi32((__m256i)a, (__m256i)b); }

INLINE void transpose(Floats *x) {
    __m256 t[8];
    UNROLL for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps((__m256)x[i], (__m256)x[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps((__m256)x[i], (__m256)x[i + 1]);
    }
    UNROLL for (int i = 0; i < 8; i += 4)
        UNROLL for (int j = 0; j < 2; j++) {
            __m256d a = _mm256_castps_pd(t[i + j]), b = _mm256_castps_pd(t[i + j + 2]);
            x[i + 2 * j] = (Floats)_mm256_unpacklo_pd(a, b);
            x[i + 2 * j + 1] = (Floats)_mm256_unpackhi_pd(a, b);
        }
}

INLINE void exchange_halves(Floats *x) {
    UNROLL for (int c = 0; c < 4; c++) {
        __m256 a = (__m256)x[c], b = (__m256)x[4 + c];
        x[c] = (Floats)_mm256_permute2f128_ps(a, b, 0x20);
        x[4 + c] = (Floats)_mm256_permute2f128_ps(a, b, 0x31);
    }
}

/* table[index] for tables of 16. */
typedef struct {
    __m256 low, high;
} Table;

INLINE Table load_table(const float *from) { return (Table){_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }

INLINE Floats look_up(Table table, Ints index) {
    __m256 low = _mm256_permutevar8x32_ps(table.low, (__m256i)index);
    __m256 high = _mm256_permutevar8x32_ps(table.high, (__m256i)index);
    return (Floats)_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32((__m256i)index, 28)));
}

INLINE Ints shift_left(Ints x, int count) {
    return (Ints)_mm256_sllv_epi32((__m256i)x, _mm256_set1_epi32(count));
}

INLINE Ints load_codes(const uint8_t *from) {
    return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
}

INLINE void store_codes(uint8_t *to, Ints codes) {
    __m128i low = _mm256_castsi256_si128((__m256i)codes), high = _mm256_extracti128_si256((__m256i)codes, 1);
    __m128i words = _mm_packus_epi32(low, high);
    _mm_storel_epi64((__m128i *)to, _mm_packus_epi16(words, words));
}

/* Four of them, from memory: a conversion from the upper half of a register takes three times as long. */
INLINE __m256d doubles(const float *from) { return _mm256_cvtps_pd(_mm_loadu_ps(from)); }

INLINE __m256d sum_of_4(__m256d sum, const float *x, double weight) {
    return _mm256_add_pd(sum, _mm256_mul_pd(doubles(x), _mm256_set1_pd(weight)));
}

INLINE void add_to_floats(float *sum, const float *x, double weight) {
    UNROLL for (int l = 0; l < W; l += 4) _mm_storeu_ps(sum + l, _mm256_cvtpd_ps(sum_of_4(doubles(sum + l), x + l, weight)));
}

INLINE void add_to_doubles(double *sum, const float *x, double weight) {
    UNROLL for (int l = 0; l < W; l += 4)
        _mm256_storeu_pd(sum + l, sum_of_4(_mm256_loadu_pd(sum + l), x + l, weight));
}

typedef struct {
    __m256d a, b, c, d;
} Sums;

/* Products of two float32 are exact in double, so that fusing them changes no bit. Sums wait for each other either way;
 * plain additions would also wait for conversions, with which they share their units. */
INLINE __m256d add_product(__m256d sum, __m256d a, __m256d b) { return _mm256_fmadd_pd(a, b, sum); }

INLINE void add_products(Sums *sums, const float *y, const float *q) {
    sums->a = add_product(sums->a, doubles(y), doubles(q));
    sums->b = add_product(sums->b, doubles(y + 4), doubles(q + 4));
    sums->c = add_product(sums->c, doubles(y + 8), doubles(q + 8));
    sums->d = add_product(sums->d, doubles(y + 12), doubles(q + 12));
}

INLINE void add_squares(Sums *sums, const float *y) {
    __m256d a = doubles(y), b = doubles(y + 4), c = doubles(y + 8), d = doubles(y + 12);
    sums->a = add_product(sums->a, a, a), sums->b = add_product(sums->b, b, b);
    sums->c = add_product(sums->c, c, c), sums->d = add_product(sums->d, d, d);
}

INLINE void store_sums(double *to, const Sums *sums) {
    _mm256_storeu_pd(to, sums->a);
    _mm256_storeu_pd(to + 4, sums->b);
    _mm256_storeu_pd(to + 8, sums->c);
    _mm256_storeu_pd(to + 12, sums->d);
}
