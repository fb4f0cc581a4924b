/* Rows of 16 whole numbers in two vectors of 128 bits. What rows_*.h define is listed in rows.h. */

enum { PARTS = 2 };

#define KEEP(x) (void)(x)

typedef uint16_t Narrow __attribute__((vector_size(16)));
typedef uint32_t UnsignedWide __attribute__((vector_size(16)));
typedef int32_t Wide __attribute__((vector_size(16)));
typedef float Reals __attribute__((vector_size(16)));
typedef uint8_t Octets __attribute__((vector_size(16)));
typedef int8_t SignedOctets __attribute__((vector_size(16)));

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE_NARROW(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define SHUFFLE_OCTETS(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#ifndef SHUFFLE_NARROW
#define SHUFFLE_NARROW(a, b, ...) __builtin_shuffle(a, b, (Narrow){__VA_ARGS__})
#define SHUFFLE_OCTETS(a, b, ...) __builtin_shuffle(a, b, (Octets){__VA_ARGS__})
#endif

INLINE Narrow minus_where(Narrow x, Narrow mask) { return (x ^ mask) - mask; }

INLINE Narrow below_zero(Narrow x) { return (Narrow)((Shorts)x >> 15); }

INLINE Narrow negated_by(Narrow x, Narrow signs) { return minus_where(x, below_zero(signs)); }

INLINE Narrow magnitudes(Narrow x) { return minus_where(x, below_zero(x)); }

INLINE Narrow halved(Narrow x, int times) {
    return (Narrow)((Shorts)x >> times) + ((Narrow)((Shorts)x >> (times - 1)) & 1);
}

INLINE void interleave(Narrow *a, Narrow *b, int numbers) {
    Narrow x = *a, y = *b;
    if (numbers == 1) {
        *a = SHUFFLE_NARROW(x, y, 0, 8, 1, 9, 2, 10, 3, 11), *b = SHUFFLE_NARROW(x, y, 4, 12, 5, 13, 6, 14, 7, 15);
    } else if (numbers == 2) {
        *a = SHUFFLE_NARROW(x, y, 0, 1, 8, 9, 2, 3, 10, 11), *b = SHUFFLE_NARROW(x, y, 4, 5, 12, 13, 6, 7, 14, 15);
    } else {
        *a = SHUFFLE_NARROW(x, y, 0, 1, 2, 3, 8, 9, 10, 11), *b = SHUFFLE_NARROW(x, y, 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

INLINE void exchange_parts(Narrow *a, Narrow *b) { (void)a, (void)b; }

/* To the nearest, which adding 1.5·2^23 does; the sum's low bits are the integer. */
INLINE Narrow rounded(Reals low, Reals high) {
    Narrow a = (Narrow)(low + 12582912.0f), b = (Narrow)(high + 12582912.0f);
    return SHUFFLE_NARROW(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
}

INLINE Reals with_sign(float x, Wide signs) { return (Reals)((Wide)(x - (Reals){0}) ^ (signs & INT32_MIN)); }

INLINE void add_reals_to_floats(float *sum, const float *x, double weight) { add_to_floats(sum, x, weight); }

INLINE void add_reals_to_doubles(double *sum, const float *x, double weight) { add_to_doubles(sum, x, weight); }

INLINE Wide sums_of_pairs(Narrow x, int differences) {
    Wide low = (Wide)((UnsignedWide)x << 16) >> 16, high = (Wide)x >> 16;
    return differences ? low - high : low + high;
}

INLINE void transpose_part(Wide *a, Wide *b, Wide *c, Wide *d) {
    Wide ab = SHUFFLE(*a, *b, 0, 4, 1, 5), AB = SHUFFLE(*a, *b, 2, 6, 3, 7);
    Wide cd = SHUFFLE(*c, *d, 0, 4, 1, 5), CD = SHUFFLE(*c, *d, 2, 6, 3, 7);
    *a = SHUFFLE(ab, cd, 0, 1, 4, 5), *b = SHUFFLE(ab, cd, 2, 3, 6, 7);
    *c = SHUFFLE(AB, CD, 0, 1, 4, 5), *d = SHUFFLE(AB, CD, 2, 3, 6, 7);
}

INLINE void transpose_wide(Wide *x) {
    UNROLL for (int k = 0; k < 16; k += 8)
        UNROLL for (int p = k; p < k + 2; p++) transpose_part(x + p, x + p + 2, x + p + 4, x + p + 6);
    UNROLL for (int k = 0; k < 8; k += 2) {
        Wide y = x[k + 1];
        x[k + 1] = x[8 + k], x[8 + k] = y;
    }
}

INLINE Wide add_pairs(Wide sum, Narrow a, Narrow b) {
    Wide low = ((Wide)((UnsignedWide)a << 16) >> 16) * ((Wide)((UnsignedWide)b << 16) >> 16);
    return sum + low + ((Wide)a >> 16) * ((Wide)b >> 16);
}

INLINE Octets narrowed(Narrow low, Narrow high, int count) {
    Shorts a = (Shorts)low >> count, b = (Shorts)high >> count;
    a &= a > 0, b &= b > 0;
    a |= a > 255, b |= b > 255;
    return SHUFFLE_OCTETS((Octets)a, (Octets)b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}

INLINE Octets negative(Narrow low, Narrow high) {
    Octets tops = SHUFFLE_OCTETS((Octets)low, (Octets)high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return (Octets)((SignedOctets)tops < 0);
}

INLINE void widen(Octets low, Octets high, Narrow *a, Narrow *b) {
    *a = (Narrow)SHUFFLE_OCTETS(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    *b = (Narrow)SHUFFLE_OCTETS(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

typedef struct {
    int width;
} Rule, CodeValues;

INLINE Rule rule_of(int width) { return (Rule){width}; }

INLINE CodeValues code_values(int width) { return (CodeValues){width}; }

INLINE Octets level_of(const Rule *rule, Octets magnitude, int width) {
    Octets level = {0};
    (void)rule;
    for (int k = 0; k < (1 << (width - 1)) - 1; k++) level -= (Octets)(magnitude >= WHOLE_THRESHOLDS[width - 1][k]);
    return level;
}

INLINE Octets value_of_level(const Rule *rule, Octets level, int width) {
    const uint8_t *values = WHOLE_LEVELS[width - 1];
    Octets value = (Octets){0} + values[0];
    (void)rule;
    for (int k = 1; k < 1 << (width - 1); k++) value += (Octets)(level >= (uint8_t)k) & (uint8_t)(values[k] - values[k - 1]);
    return value;
}

/* All bits set where a code is in the lower half. */
INLINE Octets lower(Octets codes, int width) { return (Octets)(codes < (uint8_t)(1 << (width - 1))); }

INLINE Octets low_bytes_of(const CodeValues *values, Octets codes, int width) {
    Octets mask = lower(codes, width), level = (codes ^ mask) & (uint8_t)((1 << (width - 1)) - 1);
    return (value_of_level(values, level, width) ^ mask) - mask;
}

INLINE Octets high_bytes_of(const CodeValues *values, Octets codes, int width) {
    (void)values;
    return lower(codes, width);
}
