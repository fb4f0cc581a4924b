/* Sixteen lanes of the range coder in one vector: rans.h. */

#define ROWS_TOGETHER 16

typedef struct {
    __m512i reciprocal[4], packed[4];
} Coins;

typedef struct {
    char none;
} Rows;

INLINE void begin_encoding_rows(Rows *rows) { rows->none = 0; }

INLINE void begin_decoding_rows(Rows *rows) { rows->none = 0; }

INLINE Coins load_coins(const uint32_t *reciprocal, const uint32_t *packed) {
    Coins coins;
    UNROLL for (int i = 0; i < 4; i++) {
        coins.reciprocal[i] = _mm512_loadu_si512(reciprocal + 16 * i);
        coins.packed[i] = _mm512_loadu_si512(packed + 16 * i);
    }
    return coins;
}

/* table[index] for tables of 64. */
INLINE __m512i look_up_64(const __m512i *table, __m512i index) {
    __m512i low = _mm512_permutex2var_epi32(table[0], index, table[1]);
    __m512i high = _mm512_permutex2var_epi32(table[2], index, table[3]);
    return _mm512_mask_blend_epi32(_mm512_test_epi32_mask(index, _mm512_set1_epi32(32)), low, high);
}

INLINE Ints encode_row(Ints states, Ints symbols, const Coins *coins, uint8_t **to) {
    __m512i x = (__m512i)states, reciprocal = look_up_64(coins->reciprocal, (__m512i)symbols);
    __m512i packed = look_up_64(coins->packed, (__m512i)symbols);
    __m512i complement = _mm512_and_si512(packed, _mm512_set1_epi32(0xfff));
    __m512i bias = _mm512_and_si512(_mm512_srli_epi32(packed, 12), _mm512_set1_epi32(0x1fff));
    __m512i shift = _mm512_srli_epi32(packed, 25);
    __m512i most = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(TOTAL_FREQUENCY), complement), 31 - PRECISION);
    __mmask16 full = _mm512_cmpge_epu32_mask(x, most);
    int count = __builtin_popcount(full);
    *to -= 2 * count;
    _mm256_mask_storeu_epi16(*to, (__mmask16)((1u << count) - 1),
                             _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, x)));
    x = _mm512_mask_srli_epi32(x, full, x, 16);
    __m512i even = _mm512_srli_epi64(_mm512_mul_epu32(x, reciprocal), 32);
    __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), _mm512_srli_epi64(reciprocal, 32));
    __m512i quotient = _mm512_srlv_epi32(_mm512_mask_blend_epi32(0xaaaa, even, odd), shift);
    return (Ints)_mm512_add_epi32(_mm512_add_epi32(x, bias), _mm512_mullo_epi32(quotient, complement));
}

ISA static uint8_t *encode_rows(CodeJob *job, Rows *rows, const uint8_t *symbols, int n, uint8_t *to) {
    (void)rows;
    Coins coins = load_coins(job->reciprocal, job->packed);
    Ints x = load_ints(job->states);
    for (int i = n; i; i -= 16) x = encode_row(x, load_codes(symbols + i - 16), &coins, &to);
    memcpy(job->states, &x, sizeof x);
    return to;
}

/* Reads 32 bytes at `from`, of which it uses what it needs. */
INLINE Ints decode_row(Ints states, const uint32_t *slots, uint8_t *symbols, const uint8_t **from) {
    __m512i x = (__m512i)states;
    __m512i slot = _mm512_i32gather_epi32(_mm512_and_si512(x, _mm512_set1_epi32(TOTAL_FREQUENCY - 1)), slots, 4);
    _mm_storeu_si128((__m128i *)symbols, _mm512_cvtepi32_epi8(slot));
    __m512i rest = _mm512_and_si512(_mm512_srli_epi32(slot, 8), _mm512_set1_epi32(0xfff));
    x = _mm512_add_epi32(_mm512_mullo_epi32(_mm512_srli_epi32(slot, 20), _mm512_srli_epi32(x, PRECISION)), rest);
    __mmask16 low = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(LOWEST_STATE));
    __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)*from));
    *from += 2 * __builtin_popcount(low);
    return (Ints)_mm512_mask_or_epi32(x, low, _mm512_slli_epi32(x, 16), _mm512_maskz_expand_epi32(low, words));
}

ISA static int decode_rows(CodeJob *job, const Rows *rows, const uint32_t *slots, uint8_t *symbols, int n) {
    (void)rows;
    const uint8_t *from = job->from;
    int i = 0;
    Ints x = load_ints(job->states);
    /* A row reads at most 16 words. */
    for (; i + 16 <= n && job->end - from >= 32; i += 16) x = decode_row(x, slots, symbols + i, &from);
    memcpy(job->states, &x, sizeof x);
    job->from = from;
    return i;
}
