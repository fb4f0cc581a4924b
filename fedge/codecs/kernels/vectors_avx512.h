/* Sixteen floats at a time. What every vectors_*.h defines is listed in kernels.h. */

#include <immintrin.h>

#define W 16
#if defined(__clang__)
#define ISA __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#else
#define ISA __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#endif
#define INLINE static inline ISA __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef int16_t Shorts __attribute__((vector_size(64)));

INLINE Shorts larger_short(Shorts a, Shorts b) { return (Shorts)_mm512_max_epi16((__m512i)a, (__m512i)b); }

INLINE Shorts magnitude_short(Shorts x) { return (Shorts)_mm512_abs_epi16((__m512i)x); }

INLINE Ints count_above(Ints count, Floats a, Floats b) {
    __mmask16 above = _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
    return (Ints)_mm512_mask_add_epi32((__m512i)count, above, (__m512i)count, _mm512_set1_epi32(1));
}

#define FUSED_DISTANCES 15

/* a - b, on another unit than additions where the two have their own. */
INLINE Floats difference(Floats a, Floats b) {
    return (Floats)_mm512_fmsub_ps((__m512)a, _mm512_set1_ps(1), (__m512)b);
}

INLINE Ints larger(Ints a, Ints b) { return (Ints)_mm512_max_epi32((__m512i)a, (__m512i)b); }

INLINE void transpose(Floats *x) {
    __m512 r[16], t[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps((__m512)x[i], (__m512)x[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps((__m512)x[i], (__m512)x[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4)
        UNROLL for (int j = 0; j < 2; j++) {
            __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + j + 2]);
            r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    UNROLL for (int c = 0; c < 4; c++) {
        __m512 a = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88), b = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
        __m512 d = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd), e = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
        x[c] = (Floats)_mm512_shuffle_f32x4(a, b, 0x88), x[8 + c] = (Floats)_mm512_shuffle_f32x4(a, b, 0xdd);
        x[4 + c] = (Floats)_mm512_shuffle_f32x4(d, e, 0x88), x[12 + c] = (Floats)_mm512_shuffle_f32x4(d, e, 0xdd);
    }
}

INLINE void exchange_halves(Floats *x) { (void)x; }

/* table[index] for tables of 16. */
typedef struct {
    __m512 all;
} Table;

INLINE Table load_table(const float *from) { return (Table){_mm512_loadu_ps(from)}; }

INLINE Floats look_up(Table table, Ints index) { return (Floats)_mm512_permutexvar_ps((__m512i)index, table.all); }

INLINE Ints shift_left(Ints x, int count) {
    return (Ints)_mm512_sllv_epi32((__m512i)x, _mm512_set1_epi32(count));
}

INLINE Ints load_codes(const uint8_t *from) {
    return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from));
}

INLINE void store_codes(uint8_t *to, Ints codes) {
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8((__m512i)codes));
}

INLINE __m512d doubles(const float *from) { return _mm512_cvtps_pd(_mm256_loadu_ps(from)); }

INLINE __m512d sum_of_8(__m512d sum, const float *x, double weight) {
    return _mm512_add_pd(sum, _mm512_mul_pd(doubles(x), _mm512_set1_pd(weight)));
}

INLINE void add_to_floats(float *sum, const float *x, double weight) {
    UNROLL for (int l = 0; l < W; l += 8)
        _mm256_storeu_ps(sum + l, _mm512_cvtpd_ps(sum_of_8(doubles(sum + l), x + l, weight)));
}

INLINE void add_to_doubles(double *sum, const float *x, double weight) {
    UNROLL for (int l = 0; l < W; l += 8) _mm512_storeu_pd(sum + l, sum_of_8(_mm512_loadu_pd(sum + l), x + l, weight));
}

typedef struct {
    __m512d low, high;
} Sums;

/* Products of two float32 are exact in double. They are not fused with the additions, which wait for each other and
 * often take less time than a fused one. */
INLINE void add_products(Sums *sums, const float *y, const float *q) {
    __m512d a = _mm512_cvtps_pd(_mm256_loadu_ps(y)), b = _mm512_cvtps_pd(_mm256_loadu_ps(y + 8));
    __m512d c = _mm512_cvtps_pd(_mm256_loadu_ps(q)), d = _mm512_cvtps_pd(_mm256_loadu_ps(q + 8));
    sums->low = _mm512_add_pd(sums->low, _mm512_mul_pd(a, c));
    sums->high = _mm512_add_pd(sums->high, _mm512_mul_pd(b, d));
}

INLINE void add_squares(Sums *sums, const float *y) {
    __m512d a = _mm512_cvtps_pd(_mm256_loadu_ps(y)), b = _mm512_cvtps_pd(_mm256_loadu_ps(y + 8));
    sums->low = _mm512_add_pd(sums->low, _mm512_mul_pd(a, a));
    sums->high = _mm512_add_pd(sums->high, _mm512_mul_pd(b, b));
}

INLINE void store_sums(double *to, const Sums *sums) {
    _mm512_storeu_pd(to, sums->low);
    _mm512_storeu_pd(to + 8, sums->high);
}
