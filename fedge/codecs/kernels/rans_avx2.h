/* Sixteen lanes of the range coder in two vectors of eight: rans.h.
 *
 * What a code stands for does not depend on states, so it is looked up apart from them, 32 codes at a time and byte by
 * byte: one shuffle looks up 32 codes in 16 entries, and to gather eight numbers from memory takes longer than ten of
 * them. Which words go where is a table too, by which of eight lanes take part. */

#define ROWS_TOGETHER 32

enum { QUARTER = 16, QUARTERS = 2 * MOST_LEVELS / QUARTER };

/* A table of up to 64 numbers: byte p of number 16·q + j, exclusive-or that of number 16·(q - 1) + j. */
typedef struct {
    uint8_t byte[4][QUARTERS][QUARTER];
} Planes;

typedef struct {
    Planes reciprocal, packed;
    int klass;                      /* whose planes these are */
    uint8_t to_the_end[256][16];    /* brings the words of some of eight lanes behind those of the others */
    uint8_t from_the_start[256][32]; /* brings the first of eight words to some of eight lanes, which they fill below */
} Rows;

INLINE __m128i half(const uint8_t *from) { return _mm_loadu_si128((const __m128i *)from); }

INLINE __m256i whole(const void *from) { return _mm256_loadu_si256((const __m256i *)from); }

INLINE __m256i both_halves(const uint8_t *from) { return _mm256_broadcastsi128_si256(half(from)); }

/* ---- encoding ----------------------------------------------------------------------------------------------- */

ISA static void begin_encoding_rows(Rows *rows) {
    rows->klass = -1;
    memset(rows->to_the_end, 0x80, sizeof rows->to_the_end);
    for (int mask = 0; mask < 256; mask++)
        for (int lane = 8, at = 8; lane-- > 0;)
            if (mask >> lane & 1) {
                at--;
                rows->to_the_end[mask][2 * at] = (uint8_t)(2 * lane);
                rows->to_the_end[mask][2 * at + 1] = (uint8_t)(2 * lane + 1);
            }
}

ISA static void make_planes(Planes *planes, const uint32_t *table) {
    for (int p = 0; p < 4; p++)
        for (int code = 0; code < 2 * MOST_LEVELS; code++) {
            uint32_t before = code < QUARTER ? 0 : table[code - QUARTER];
            planes->byte[p][code / QUARTER][code % QUARTER] = (uint8_t)((table[code] ^ before) >> (8 * p));
        }
}

/* Numbers of 32 codes as four vectors, of codes 0 .. 3 and 4 .. 7, 8 .. 11 and 12 .. 15 of both halves of `index`. */
INLINE void look_up_32(const Planes *planes, const __m256i *index, int quarters, __m256i *found) {
    __m256i byte[4];
    UNROLL for (int p = 0; p < 4; p++) {
        byte[p] = _mm256_shuffle_epi8(both_halves(planes->byte[p][0]), index[0]);
        UNROLL for (int q = 1; q < quarters; q++)
            byte[p] = _mm256_xor_si256(byte[p], _mm256_shuffle_epi8(both_halves(planes->byte[p][q]), index[q]));
    }
    __m256i low[2] = {_mm256_unpacklo_epi8(byte[0], byte[1]), _mm256_unpackhi_epi8(byte[0], byte[1])};
    __m256i high[2] = {_mm256_unpacklo_epi8(byte[2], byte[3]), _mm256_unpackhi_epi8(byte[2], byte[3])};
    UNROLL for (int h = 0; h < 2; h++) {
        found[2 * h] = _mm256_unpacklo_epi16(low[h], high[h]);
        found[2 * h + 1] = _mm256_unpackhi_epi16(low[h], high[h]);
    }
}

/* Eight lanes that have room: x <- 4096·⌊x/f⌋ + x mod f + start. */
INLINE __m256i push(__m256i x, __m256i reciprocal, __m256i packed) {
    __m256i complement = _mm256_and_si256(packed, _mm256_set1_epi32(0xfff));
    __m256i bias = _mm256_and_si256(_mm256_srli_epi32(packed, 12), _mm256_set1_epi32(0x1fff));
    __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(x, reciprocal), 32);
    __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), _mm256_srli_epi64(reciprocal, 32));
    __m256i quotient = _mm256_srlv_epi32(_mm256_blend_epi32(even, odd, 0xaa), _mm256_srli_epi32(packed, 25));
    return _mm256_add_epi32(_mm256_add_epi32(x, bias), _mm256_mullo_epi32(quotient, complement));
}

/* All ones where x >= 2^19·f. */
INLINE __m256i full_lanes(__m256i x, __m256i packed) {
    __m256i complement = _mm256_srli_epi32(_mm256_slli_epi32(packed, 20), 1);
    return _mm256_cmpgt_epi32(x, _mm256_xor_si256(complement, _mm256_set1_epi32(INT32_MAX)));
}

/* A row of 16 codes; lanes 0 .. 3 and 8 .. 11 are in x[0], the others in x[1]: so they come out of a pack in order.
 * Writes up to 16 bytes below where it stops. */
INLINE uint8_t *encode_row(const Rows *rows, __m256i *x, const __m256i *reciprocal, const __m256i *packed, uint8_t *to) {
    __m256i full[2], zero = _mm256_setzero_si256();
    UNROLL for (int v = 0; v < 2; v++) full[v] = full_lanes(x[v], packed[v]);
    __m256i both = _mm256_packs_epi32(full[0], full[1]);
    uint32_t lanes = (uint32_t)_mm256_movemask_epi8(_mm256_packs_epi16(both, both));
    uint32_t low = lanes & 0xff, high = lanes >> 16 & 0xff;
    __m256i words = _mm256_packus_epi32(_mm256_blend_epi16(x[0], zero, 0xaa), _mm256_blend_epi16(x[1], zero, 0xaa));
    __m128i upper = _mm_shuffle_epi8(_mm256_extracti128_si256(words, 1), half(rows->to_the_end[high]));
    __m128i lower = _mm_shuffle_epi8(_mm256_castsi256_si128(words), half(rows->to_the_end[low]));
    _mm_storeu_si128((__m128i *)(to - 16), upper);
    to -= 2 * __builtin_popcount(high);
    _mm_storeu_si128((__m128i *)(to - 16), lower);
    to -= 2 * __builtin_popcount(low);
    UNROLL for (int v = 0; v < 2; v++)
        x[v] = push(_mm256_blendv_epi8(x[v], _mm256_srli_epi32(x[v], 16), full[v]), reciprocal[v], packed[v]);
    return to;
}

/* n codes, of a class that has up to 16·quarters. */
INLINE uint8_t *encode_pairs(const Rows *rows, uint32_t *states, const uint8_t *symbols, int n, int quarters,
                             uint8_t *to) {
    __m256i low = whole(states), high = whole(states + 8);
    __m256i x[2] = {_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)};
    for (int i = n - 32; i >= 0; i -= 32) {
        __m256i index[QUARTERS], reciprocal[4], packed[4];
        index[0] = _mm256_permute4x64_epi64(whole(symbols + i), 0xd8); /* the first halves of both rows come first */
        UNROLL for (int q = 1; q < quarters; q++)
            index[q] = _mm256_sub_epi8(index[0], _mm256_set1_epi8((char)(QUARTER * q)));
        look_up_32(&rows->reciprocal, index, quarters, reciprocal);
        look_up_32(&rows->packed, index, quarters, packed);
        to = encode_row(rows, x, reciprocal + 2, packed + 2, to);
        to = encode_row(rows, x, reciprocal, packed, to);
    }
    _mm256_storeu_si256((__m256i *)states, _mm256_permute2x128_si256(x[0], x[1], 0x20));
    _mm256_storeu_si256((__m256i *)(states + 8), _mm256_permute2x128_si256(x[0], x[1], 0x31));
    return to;
}

PHASE uint8_t *encode_rows(CodeJob *job, Rows *rows, const uint8_t *symbols, int n, uint8_t *to) {
    if (rows->klass != job->coded_class) {
        rows->klass = job->coded_class;
        make_planes(&rows->reciprocal, job->reciprocal);
        make_planes(&rows->packed, job->packed);
    }
    int quarters = 2 * job->last[job->coded_class] / QUARTER + 1;
    if (quarters == 1) return encode_pairs(rows, job->states, symbols, n, 1, to);
    if (quarters == 2) return encode_pairs(rows, job->states, symbols, n, 2, to);
    if (quarters == 3) return encode_pairs(rows, job->states, symbols, n, 3, to);
    return encode_pairs(rows, job->states, symbols, n, 4, to);
}

/* ---- decoding ----------------------------------------------------------------------------------------------- */

ISA static void begin_decoding_rows(Rows *rows) {
    memset(rows->from_the_start, 0x80, sizeof rows->from_the_start);
    for (int mask = 0; mask < 256; mask++)
        for (int lane = 0, at = 0; lane < 8; lane++)
            if (mask >> lane & 1) {
                rows->from_the_start[mask][4 * lane] = (uint8_t)(2 * at);
                rows->from_the_start[mask][4 * lane + 1] = (uint8_t)(2 * at + 1);
                at++;
            }
}

/* Eight lanes that have popped their codes take words; `from` has 16 bytes. */
INLINE __m256i refill(const Rows *rows, __m256i x, const uint8_t **from) {
    __m256i low = _mm256_cmpgt_epi32(_mm256_set1_epi32(LOWEST_STATE), x);
    uint32_t lanes = (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(low));
    __m256i words = _mm256_shuffle_epi8(both_halves(*from), whole(rows->from_the_start[lanes]));
    *from += 2 * __builtin_popcount(lanes);
    return _mm256_or_si256(_mm256_blendv_epi8(x, _mm256_slli_epi32(x, 16), low), words);
}

INLINE __m256i pop(__m256i x, __m256i slot) {
    __m256i rest = _mm256_and_si256(_mm256_srli_epi32(slot, 8), _mm256_set1_epi32(0xfff));
    __m256i above = _mm256_mullo_epi32(_mm256_srli_epi32(slot, 20), _mm256_srli_epi32(x, PRECISION));
    return _mm256_add_epi32(above, rest);
}

INLINE __m256i slots_at(const uint32_t *slots, __m256i x) {
    return _mm256_i32gather_epi32((const int *)slots, _mm256_and_si256(x, _mm256_set1_epi32(TOTAL_FREQUENCY - 1)), 4);
}

/* As many rows of the n codes as can be read without a look at where the words end; returns how many codes. */
PHASE int decode_rows(CodeJob *job, const Rows *rows, const uint32_t *slots, uint8_t *symbols, int n) {
    const uint8_t *from = job->from;
    __m256i x[2] = {whole(job->states), whole(job->states + 8)};
    int i = 0;
    for (; i + 16 <= n && job->end - from >= 32; i += 16) {
        __m256i slot[2], byte = _mm256_set1_epi32(0xff);
        UNROLL for (int v = 0; v < 2; v++) slot[v] = slots_at(slots, x[v]);
        UNROLL for (int v = 0; v < 2; v++) x[v] = refill(rows, pop(x[v], slot[v]), &from);
        __m256i codes = _mm256_packus_epi32(_mm256_and_si256(slot[0], byte), _mm256_and_si256(slot[1], byte));
        codes = _mm256_permute4x64_epi64(codes, 0xd8);
        __m128i both = _mm_packus_epi16(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
        _mm_storeu_si128((__m128i *)(symbols + i), both);
    }
    _mm256_storeu_si256((__m256i *)job->states, x[0]);
    _mm256_storeu_si256((__m256i *)(job->states + 8), x[1]);
    job->from = from;
    return i;
}
