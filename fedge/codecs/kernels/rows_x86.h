/* Rows of 16 whole numbers in one vector of 256 bits, with AVX2 and with AVX-512 alike. What rows_*.h define is listed
 * in rows.h. */

enum { PARTS = 1 };

/* Compilers would make a - (b - c) of a difference that is needed anyway one of more operations. */
#define KEEP(x) __asm__("" : "+v"(x))

typedef uint16_t Narrow __attribute__((vector_size(32)));
typedef uint32_t UnsignedWide __attribute__((vector_size(32)));
typedef int32_t Wide __attribute__((vector_size(32)));
typedef float Reals __attribute__((vector_size(32)));
typedef uint8_t Octets __attribute__((vector_size(32)));

INLINE Narrow negated_by(Narrow x, Narrow signs) {
    return (Narrow)_mm256_sign_epi16((__m256i)x, (__m256i)signs);
}

INLINE Narrow halved(Narrow x, int times) {
    return (Narrow)_mm256_mulhrs_epi16((__m256i)x, _mm256_set1_epi16((int16_t)(1 << (15 - times))));
}

INLINE Narrow magnitudes(Narrow x) { return (Narrow)_mm256_abs_epi16((__m256i)x); }

INLINE void interleave(Narrow *a, Narrow *b, int numbers) {
    __m256i x = (__m256i)*a, y = (__m256i)*b, low, high;
    if (numbers == 1)
        low = _mm256_unpacklo_epi16(x, y), high = _mm256_unpackhi_epi16(x, y);
    else if (numbers == 2)
        low = _mm256_unpacklo_epi32(x, y), high = _mm256_unpackhi_epi32(x, y);
    else
        low = _mm256_unpacklo_epi64(x, y), high = _mm256_unpackhi_epi64(x, y);
    *a = (Narrow)low, *b = (Narrow)high;
}

INLINE void exchange_parts(Narrow *a, Narrow *b) {
    __m256i x = (__m256i)*a, y = (__m256i)*b;
    *a = (Narrow)_mm256_permute2x128_si256(x, y, 0x20), *b = (Narrow)_mm256_permute2x128_si256(x, y, 0x31);
}

INLINE Narrow rounded(Reals low, Reals high) {
    return (Narrow)_mm256_packs_epi32(_mm256_cvtps_epi32((__m256)low), _mm256_cvtps_epi32((__m256)high));
}

INLINE Reals with_sign(float x, Wide signs) {
    return (Reals)_mm256_blendv_ps(_mm256_set1_ps(x), _mm256_set1_ps(-x), (__m256)signs);
}

/* Eight of them from memory: a conversion from the upper half of a register takes three times as long. */
INLINE __m256d weighted(__m256d sum, const float *x, double weight) {
    return _mm256_add_pd(sum, _mm256_mul_pd(_mm256_cvtps_pd(_mm_loadu_ps(x)), _mm256_set1_pd(weight)));
}

INLINE void add_reals_to_floats(float *sum, const float *x, double weight) {
    UNROLL for (int l = 0; l < 8; l += 4)
        _mm_storeu_ps(sum + l, _mm256_cvtpd_ps(weighted(_mm256_cvtps_pd(_mm_loadu_ps(sum + l)), x + l, weight)));
}

INLINE void add_reals_to_doubles(double *sum, const float *x, double weight) {
    UNROLL for (int l = 0; l < 8; l += 4) _mm256_storeu_pd(sum + l, weighted(_mm256_loadu_pd(sum + l), x + l, weight));
}

INLINE Wide sums_of_pairs(Narrow x, int differences) {
    __m256i factors = differences ? _mm256_set1_epi32(-0xffff) : _mm256_set1_epi16(1);
    return (Wide)_mm256_madd_epi16((__m256i)x, factors);
}

INLINE void transpose_wide(Wide *x) {
    __m256i t[8];
    UNROLL for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32((__m256i)x[i], (__m256i)x[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32((__m256i)x[i], (__m256i)x[i + 1]);
    }
    UNROLL for (int i = 0; i < 8; i += 4)
        UNROLL for (int j = 0; j < 2; j++) {
            x[i + 2 * j] = (Wide)_mm256_unpacklo_epi64(t[i + j], t[i + j + 2]);
            x[i + 2 * j + 1] = (Wide)_mm256_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    UNROLL for (int c = 0; c < 4; c++) {
        __m256i a = (__m256i)x[c], b = (__m256i)x[4 + c];
        x[c] = (Wide)_mm256_permute2x128_si256(a, b, 0x20), x[4 + c] = (Wide)_mm256_permute2x128_si256(a, b, 0x31);
    }
}

INLINE Wide add_pairs(Wide sum, Narrow a, Narrow b) {
    return (Wide)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16((__m256i)a, (__m256i)b));
}

INLINE Octets narrowed(Narrow low, Narrow high, int count) {
    return (Octets)_mm256_packus_epi16(_mm256_srai_epi16((__m256i)low, count), _mm256_srai_epi16((__m256i)high, count));
}

INLINE Octets negative(Narrow low, Narrow high) {
    return (Octets)_mm256_cmpgt_epi8(_mm256_setzero_si256(), _mm256_packs_epi16((__m256i)low, (__m256i)high));
}

INLINE void widen(Octets low, Octets high, Narrow *a, Narrow *b) {
    *a = (Narrow)_mm256_unpacklo_epi8((__m256i)low, (__m256i)high);
    *b = (Narrow)_mm256_unpackhi_epi8((__m256i)low, (__m256i)high);
}

/* The low four bits of a byte tell which. */
INLINE Octets look_up_octets(const uint8_t *table, Octets index) {
    __m256i entries = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
    return (Octets)_mm256_shuffle_epi8(entries, (__m256i)index);
}

/* Levels are found by cells of 16, none of which holds two thresholds: how many lie below a cell and its own one if it
 * has one, and its threshold, or 0. */
typedef struct {
    uint8_t first[16], threshold[16], value[16];
} Rule;

INLINE Rule rule_of(int width) {
    Rule rule;
    int half = 1 << (width - 1), below = 0;
    for (int k = 0; k < 16; k++) {
        int inside = below < half - 1 && WHOLE_THRESHOLDS[width - 1][below] < 16 * (k + 1);
        rule.threshold[k] = inside ? WHOLE_THRESHOLDS[width - 1][below] : 0;
        rule.first[k] = (uint8_t)(below - !inside), below += inside;
        rule.value[k] = WHOLE_LEVELS[width - 1][k % half];
    }
    return rule;
}

INLINE Octets level_of(const Rule *rule, Octets magnitude, int width) {
    if (width == 2) return (Octets)(magnitude >= WHOLE_THRESHOLDS[1][0]) & 1;
    Octets cell = (Octets)((Narrow)magnitude >> 4) & 15;
    return look_up_octets(rule->first, cell) - (Octets)(magnitude >= look_up_octets(rule->threshold, cell));
}

INLINE Octets value_of_level(const Rule *rule, Octets level, int width) {
    (void)width;
    return look_up_octets(rule->value, level);
}

/* What a code stands for, in two bytes. */
typedef struct {
    uint8_t low[16], high[16];
} CodeValues;

INLINE CodeValues code_values(int width) {
    CodeValues values;
    int half = 1 << (width - 1);
    for (int k = 0; k < 16; k++) {
        int code = k % (2 * half), level = WHOLE_LEVELS[width - 1][code < half ? half - 1 - code : code - half];
        if (code < half) level = -level;
        values.low[k] = (uint8_t)level, values.high[k] = (uint8_t)(level >> 8);
    }
    return values;
}

INLINE Octets low_bytes_of(const CodeValues *values, Octets codes, int width) {
    (void)width;
    return look_up_octets(values->low, codes);
}

INLINE Octets high_bytes_of(const CodeValues *values, Octets codes, int width) {
    (void)width;
    return look_up_octets(values->high, codes);
}
