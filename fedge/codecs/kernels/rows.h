/* Rows of 16 whole numbers of 16 bits, of which a block has 256: what whole.h is written in, and includes. One of the
 * rows_*.h comes before, which define
 *
 *     PARTS               vectors that make a row
 *     KEEP                do nothing to a vector, which compilers do not know
 *     Narrow, Octets      a vector of whole numbers of 16 bits, of 8; Wide, UnsignedWide, Reals, of half as many of 32.
 *                         Narrow has no sign, so that sums may wrap; what is done to it takes it for signed
 *     negated_by          x, negated where the highest bit of `signs` is set; no number of them is 0
 *     halved              x / 2^times, to the nearest integer, up if it lies between two
 *     magnitudes          |x|
 *     interleave          the low half of two vectors, and the high half, so many numbers of either in turn
 *     exchange_parts      the second 128 bits of a row for the first of another, where a row is one vector
 *     rounded             two Reals to whole numbers
 *     with_sign           x, or -x where the highest bit of `signs` is set
 *     add_reals_to_..     so many sums + weight·x in double, rounded to the sum's type
 *     sums_of_pairs       of neighbours, to Wide; or differences
 *     transpose_wide      of 8 × 8
 *     add_pairs           sum + a·b, of two neighbours each
 *     narrowed            two vectors / 2^count to bytes of 0 to 255
 *     negative            bytes with all bits set where two vectors are less than zero
 *     widen               two vectors from low and high bytes: the opposite of narrowed
 *     Rule, level_of      the level of a magnitude in bytes; value_of_level, what it stands for
 *     CodeValues, ..      what a code stands for, its low and its high bytes
 *
 * `interleave`, `rounded`, `narrowed`, `negative` and `widen` do it to every 128 bits by themselves.
 */

enum { ROW = 16, NARROW = ROW / PARTS, WIDE = NARROW / 2, COLUMN = 8 };

INLINE Narrow load_narrow(const void *from) {
    Narrow x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store_narrow(void *to, Narrow x) { memcpy(to, &x, sizeof x); }

INLINE Octets load_octets(const uint8_t *from) {
    Octets x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE Reals load_reals(const float *from) {
    Reals x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE Wide load_wide(const void *from) {
    Wide x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store_wide(void *to, Wide x) { memcpy(to, &x, sizeof x); }

INLINE void load_rows(const int16_t *from, int apart, int n, Narrow *x) {
    UNROLL for (int k = 0; k < n; k++)
        UNROLL for (int p = 0; p < PARTS; p++) x[k * PARTS + p] = load_narrow(from + k * apart * ROW + p * NARROW);
}

INLINE void store_rows(int16_t *to, int apart, int n, const Narrow *x) {
    UNROLL for (int k = 0; k < n; k++)
        UNROLL for (int p = 0; p < PARTS; p++) store_narrow(to + k * apart * ROW + p * NARROW, x[k * PARTS + p]);
}

/* One stage of n rows. */
INLINE void stage_of_rows(Narrow *x, int n, int distance) {
    n *= PARTS, distance *= PARTS;
    UNROLL for (int k = 0; k < n / 2; k++) {
        int i = k / distance * 2 * distance + k % distance;
        Narrow a = x[i], b = x[i + distance];
        x[i] = a + b, x[i + distance] = a - b;
        KEEP(x[i + distance]);
    }
}

INLINE void stage_of_wide(Wide *x, int n, int distance) {
    UNROLL for (int k = 0; k < n / 2; k++) {
        int i = k / distance * 2 * distance + k % distance;
        Wide a = x[i], b = x[i + distance];
        x[i] = a + b, x[i + distance] = a - b;
        KEEP(x[i + distance]);
    }
}

/* Two stages of four rows of x: k, .. `near` apart and two of them `far`. Compilers leave the order as it is written, so
 * that of quads keeps what is needed at a time in registers. */
INLINE void quad(Narrow *x, int k, int near, int far) {
    UNROLL for (int p = 0; p < PARTS; p++) {
        Narrow a = x[k * PARTS + p], b = x[(k + near) * PARTS + p], c = x[(k + far) * PARTS + p];
        Narrow d = x[(k + near + far) * PARTS + p], e = a + b, f = a - b, g = c + d, h = c - d;
        KEEP(f);
        KEEP(h);
        x[k * PARTS + p] = e + g, x[(k + near) * PARTS + p] = f + h;
        x[(k + far) * PARTS + p] = e - g, x[(k + near + far) * PARTS + p] = f - h;
    }
}

/* Rows `distance` apart exchange numbers, so many at a time: what was said by a bit of the row is said by one of the
 * place in it, and the other way round. */
INLINE void interleave_rows(Narrow *x, int n, int distance, int numbers) {
    UNROLL for (int k = 0; k < n / 2; k++) {
        int i = k / distance * 2 * distance + k % distance;
        UNROLL for (int p = 0; p < PARTS; p++)
            interleave(x + i * PARTS + p, x + (i + distance) * PARTS + p, numbers);
    }
}

/* Two rows exchange halves. */
INLINE void exchange_halves_of_rows(Narrow *x, int i, int k) {
    if (PARTS == 1) {
        exchange_parts(x + i, x + k);
    } else {
        Narrow second = x[i * PARTS + 1];
        x[i * PARTS + 1] = x[k * PARTS], x[k * PARTS] = second;
    }
}

/* One stage of two rows, of which halves are exchanged before. */
INLINE void exchange_pair(Narrow *x, int i, int k) {
    exchange_halves_of_rows(x, i, k);
    UNROLL for (int p = 0; p < PARTS; p++) {
        Narrow a = x[i * PARTS + p], b = x[k * PARTS + p];
        x[i * PARTS + p] = a + b, x[k * PARTS + p] = a - b;
        KEEP(x[k * PARTS + p]);
    }
}

/* k with the lower three of its four bits in the opposite order. */
INLINE int turned_round(int k) { return (k & 8) | (k & 1) << 2 | (k & 2) | (k & 4) >> 2; }

/* All numbers of 8 rows for all bits of their places. */
INLINE void stages_within(Narrow *x) {
    interleave_rows(x, 8, 4, 1), stage_of_rows(x, 8, 4);
    interleave_rows(x, 8, 2, 2), stage_of_rows(x, 8, 2);
    interleave_rows(x, 8, 1, 4), stage_of_rows(x, 8, 1);
}

/* The signs of 16 rows, a row of 16-bit lanes: those of row 15 first, by their highest bit. They are never all zeros, which
 * negated_by takes for no number at all: so those of row 0 are kept apart. */
typedef struct {
    Narrow next[PARTS], last[PARTS];
} Signs;

INLINE Signs load_signs(const uint16_t *lanes) {
    Signs signs;
    UNROLL for (int p = 0; p < PARTS; p++) {
        Narrow here = load_narrow(lanes + p * NARROW);
        signs.next[p] = here | 1, signs.last[p] = here << 15 | 1;
    }
    return signs;
}

INLINE void flip_row(Narrow *x, Signs *signs, int row) {
    UNROLL for (int p = 0; p < PARTS; p++) {
        x[p] = negated_by(x[p], row ? signs->next[p] : signs->last[p]);
        if (row > 1) signs->next[p] += signs->next[p];
    }
}

INLINE void halve_rows(Narrow *x, int n, int times) {
    UNROLL for (int k = 0; k < n * PARTS; k++) x[k] = halved(x[k], times);
}

