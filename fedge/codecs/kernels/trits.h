/* Codes with a trit: quantizing to 3·2^w levels, and planes of five trits to a byte. See packing.py and lloyd.py. */

/* Quantize y·inverse_sigma to 3, 6 or 12 levels, given by code in `levels`. Works on whole vectors, like
 * quantize_narrow. */
INLINE void quantize_few(const float *y, float inverse_sigma, int n, int count, const float *t, const float *levels,
                         uint8_t *codes, float *q) {
    Table by_code = load_table(levels);
    Floats threshold[5] = {{0}};
    int positive = (count - 1) / 2;
    UNROLL for (int j = 0; j < 5; j++)
        if (j < positive) threshold[j] = all(t[j]);
    for (int i = 0; i < n; i += W) {
        Floats z = load(y + i) * inverse_sigma, magnitude = (Floats)((Ints)z & INT32_MAX);
        Ints code = (Ints){0} + count / 2, sign = (Ints)z >> 31;
        UNROLL for (int j = 0; j < 5; j++)
            if (j < positive) code = count_above(code, magnitude, threshold[j]);
        code = (code ^ sign) + (sign & count); /* count - 1 - code where z is negative */
        store(q + i, look_up(by_code, code));
        store_codes(codes + i, code);
    }
}

/* The same for any number of levels, by way of a table. */
INLINE void quantize_many(const float *restrict y, float inverse_sigma, int n, int count, const Grid *grid,
                          const float *restrict levels, uint8_t *restrict codes, float *restrict q) {
    float per_unit = grid->per_unit, last = (float)grid->last;
    for (int i = 0; i < n; i++) {
        float z = y[i] * inverse_sigma, magnitude = fabsf(z), place = magnitude * per_unit;
        int32_t cell = (int32_t)(place < last ? place : last);
        int code = count / 2 + grid->below[cell] + (magnitude > grid->inside[cell]);
        codes[i] = (uint8_t)(bits_of(z) >> 31 ? count - 1 - code : code);
    }
    for (int i = 0; i < n; i++) q[i] = levels[codes[i]];
}

INLINE void quantize_trits(const float *y, float inverse_sigma, int n, int width, const float *tables,
                           const Grid *grid, const float *levels, uint8_t *codes, float *q) {
    const float *t = thresholds_of(tables, width);
    switch (width - TRIT) {
        case 1: quantize_few(y, inverse_sigma, n, 3, t, levels, codes, q); break;
        case 2: quantize_few(y, inverse_sigma, n, 6, t, levels, codes, q); break;
        case 3: quantize_few(y, inverse_sigma, n, 12, t, levels, codes, q); break;
        default: quantize_many(y, inverse_sigma, n, levels_of(width), grid, levels, codes, q);
    }
}

typedef uint16_t Pairs __attribute__((vector_size(4 * W))); /* of bytes */

/* Rows of the plane are `length` bytes; the last one may be shorter, `last`, by up to four. Whole vectors begin at
 * 0, sizeof(Pairs), .., and where the last one ends with that row, on bytes that are packed twice; what lies behind is
 * left to single bytes. */
INLINE int next_vector(int l, int last) {
    int step = (int)sizeof(Pairs);
    return l + step < last && l + 2 * step > last ? last - step : l + step;
}

/* A number below 243, five trits, as a fraction of 256. */
INLINE uint32_t fraction_of(uint32_t number) { return number + ((55 * number + 1023) >> 10); }

INLINE void pack_trits(const uint8_t *codes, int n, int shift, uint8_t *to) {
    int length = (n + 4) / 5, last = n - 4 * length, l = 0;
    for (; l + (int)sizeof(Pairs) <= last; l = next_vector(l, last)) {
        Pairs number = {0}, even, odd;
        UNROLL for (int j = 0; j < 5; j++) {
            Pairs row;
            memcpy(&row, codes + j * length + l, sizeof row);
            number = number * 3 + ((row >> shift) & 0x0303);
        }
        even = number & 255, odd = number >> 8;
        number += ((even * 55 + 1023) >> 10) | ((odd * 55 + 1023) >> 10 << 8);
        memcpy(to + l, &number, sizeof number);
    }
    for (; l < length; l++) {
        uint32_t number = 0;
        for (int j = 0; j < 5; j++)
            number = 3 * number + (j * length + l < n ? (uint32_t)codes[j * length + l] >> shift : 0);
        to[l] = (uint8_t)fraction_of(number);
    }
}

INLINE void unpack_trits(const uint8_t *from, int n, int shift, uint8_t *codes) {
    int length = (n + 4) / 5, last = n - 4 * length, l = 0;
    for (; l + (int)sizeof(Pairs) <= last; l = next_vector(l, last)) {
        Pairs packed, even, odd;
        memcpy(&packed, from + l, sizeof packed);
        even = packed & 255, odd = packed >> 8;
        UNROLL for (int j = 0; j < 5; j++) {
            Pairs row = {0};
            even *= 3, odd *= 3;
            if (shift) memcpy(&row, codes + j * length + l, sizeof row);
            row |= ((even >> 8) | (odd & 0xff00)) << shift;
            memcpy(codes + j * length + l, &row, sizeof row);
            even &= 255, odd &= 255;
        }
    }
    for (; l < length; l++) {
        uint32_t fraction = from[l];
        for (int j = 0; j < 5 && j * length + l < n; j++) {
            fraction *= 3;
            uint32_t trit = (fraction >> 8) << shift;
            codes[j * length + l] = (uint8_t)(trit | (shift ? codes[j * length + l] : 0u));
            fraction &= 255;
        }
    }
}
