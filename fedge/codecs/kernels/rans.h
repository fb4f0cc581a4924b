/* The range coder: `rans.py` in C. Instruction sets with vectors for rows of 16 lanes bring a rans_*.h with
 *
 *     ROWS_TOGETHER         how many codes encode_rows takes at a time, a multiple of 16
 *     Rows                  what it needs beside CodeJob; begin_encoding_rows and begin_decoding_rows make it
 *     encode_rows           so many codes, backwards; writes up to 16 bytes below where it stops
 *     decode_rows           whole rows, while there are 32 bytes left for each; returns how many codes
 *
 * Everything else goes one code at a time. One branch in four on whether a lane is full or empty would be guessed wrong
 * at 4 bits, so words are written and read whether they count or not; but a single lane waits for itself, and a good
 * guess takes no time. */

#ifndef ROWS_TOGETHER
#define ROWS_TOGETHER (BLOCK + 1) /* more than there are: nothing goes by rows */

typedef struct {
    char none;
} Rows;

INLINE void begin_encoding_rows(Rows *rows) { rows->none = 0; }

INLINE void begin_decoding_rows(Rows *rows) { rows->none = 0; }

INLINE uint8_t *encode_rows(CodeJob *job, Rows *rows, const uint8_t *symbols, int n, uint8_t *to) {
    (void)job, (void)rows, (void)symbols, (void)n;
    return to;
}

INLINE int decode_rows(CodeJob *job, const Rows *rows, const uint32_t *slots, uint8_t *symbols, int n) {
    (void)job, (void)rows, (void)slots, (void)symbols, (void)n;
    return 0;
}
#endif

/* `guess` whether the lane is full, or go without a branch. */
INLINE uint32_t encode_one(uint32_t x, uint32_t reciprocal, uint32_t packed, uint8_t **to, int guess) {
    uint32_t complement = packed & 0xfff, bias = (packed >> 12) & 0x1fff, quotient;
    uint32_t full = x >= (TOTAL_FREQUENCY - complement) << (31 - PRECISION);
    uint16_t word = (uint16_t)x;
    if (!guess || full) {
        memcpy(*to - sizeof word, &word, sizeof word);
        *to -= full * sizeof word;
        x = full ? x >> 16 : x;
    }
    quotient = (uint32_t)(((uint64_t)x * reciprocal) >> 32) >> (packed >> 25);
    return x + bias + quotient * complement;
}

/* Codes first .. n - 1, first a multiple of `lanes`, backwards. */
INLINE uint8_t *encode_lanes(CodeJob *job, const uint8_t *symbols, int first, int n, int lanes, uint8_t *to) {
    const uint32_t *reciprocal = job->reciprocal, *packed = job->packed;
    uint32_t x[MOST_LANES];
    for (; n % lanes; n--) {
        uint32_t *state = &job->states[(n - 1) % lanes];
        *state = encode_one(*state, reciprocal[symbols[n - 1]], packed[symbols[n - 1]], &to, 1);
    }
    UNROLL for (int l = 0; l < lanes; l++) x[l] = job->states[l];
    for (int i = n - lanes; i >= first; i -= lanes)
        UNROLL for (int l = lanes; l-- > 0;)
            x[l] = encode_one(x[l], reciprocal[symbols[i + l]], packed[symbols[i + l]], &to, lanes == 1);
    UNROLL for (int l = 0; l < lanes; l++) job->states[l] = x[l];
    return to;
}

/* Codes of one block, backwards; writes towards lower addresses from `to`, returns where it stopped. */
ISA static uint8_t *encode_symbols(CodeJob *job, Rows *rows, const uint8_t *symbols, int n, uint8_t *to) {
    if (job->lanes == 1) return encode_lanes(job, symbols, 0, n, 1, to);
    if (job->lanes == 4) return encode_lanes(job, symbols, 0, n, 4, to);
    int in_rows = n - n % ROWS_TOGETHER;
    to = encode_lanes(job, symbols, in_rows, n, 16, to);
    return in_rows ? encode_rows(job, rows, symbols, in_rows, to) : to;
}

INLINE uint32_t decode_one(uint32_t x, const uint32_t *slots, uint8_t *symbol) {
    uint32_t slot = slots[x & (TOTAL_FREQUENCY - 1)];
    *symbol = (uint8_t)slot;
    return (slot >> 20) * (x >> PRECISION) + ((slot >> 8) & 0xfff);
}

/* As many rows from code i on as there are words for in any case; returns how far it came. */
INLINE int decode_lanes(CodeJob *job, const uint32_t *slots, uint8_t *symbols, int i, int n, int lanes) {
    const uint8_t *from = job->from;
    uint32_t x[MOST_LANES];
    UNROLL for (int l = 0; l < lanes; l++) x[l] = job->states[l];
    for (; i + lanes <= n && job->end - from >= 2 * lanes; i += lanes)
        UNROLL for (int l = 0; l < lanes; l++) {
            uint16_t word;
            x[l] = decode_one(x[l], slots, symbols + i + l);
            uint32_t empty = x[l] < LOWEST_STATE;
            memcpy(&word, from, sizeof word);
            x[l] = empty ? x[l] << 16 | word : x[l];
            from += empty * sizeof word;
        }
    UNROLL for (int l = 0; l < lanes; l++) job->states[l] = x[l];
    job->from = from;
    return i;
}

/* Codes of one block; 0 if the words end before. */
ISA static int decode_symbols(CodeJob *job, const Rows *rows, const uint32_t *slots, uint8_t *symbols, int n) {
    int lanes = job->lanes, i = 0;
    if (lanes == 1) i = decode_lanes(job, slots, symbols, 0, n, 1);
    if (lanes == 4) i = decode_lanes(job, slots, symbols, 0, n, 4);
    if (lanes == 16) i = decode_lanes(job, slots, symbols, decode_rows(job, rows, slots, symbols, n), n, 16);
    for (; i < n; i += lanes) {
        int row = n - i < lanes ? n - i : lanes;
        for (int l = 0; l < row; l++) {
            job->states[l] = decode_one(job->states[l], slots, symbols + i + l);
            if (job->states[l] < LOWEST_STATE) {
                uint16_t word;
                if (job->end - job->from < (Py_ssize_t)sizeof word) return 0;
                memcpy(&word, job->from, sizeof word);
                job->from += sizeof word;
                job->states[l] = job->states[l] << 16 | word;
            }
        }
    }
    return 1;
}
