/* The rotation of a last block of 32 to 4095 coordinates. It costs little behind full blocks, so it is plain C that
 * compilers vectorize. */

/* Three Hadamard stages (distances 1, 2, 4 in units of `stride`) on 8 rows of `width` entries. */
INLINE void radix8(float *x, int stride, int width) {
    for (int l = 0; l < width; l++) {
        float a[8], b[8];
        for (int j = 0; j < 8; j++) a[j] = x[j * stride + l];
        for (int j = 0; j < 8; j += 2) b[j] = a[j] + a[j + 1], b[j + 1] = a[j] - a[j + 1];
        for (int j = 0; j < 8; j++) a[j] = j & 2 ? b[j - 2] - b[j] : b[j] + b[j + 2];
        for (int j = 0; j < 4; j++) b[j] = a[j] + a[j + 4], b[j + 4] = a[j] - a[j + 4];
        for (int j = 0; j < 8; j++) x[j * stride + l] = b[j];
    }
}

/* `value`, negated if bit j of `lane` is set. */
INLINE float negated(float value, uint32_t lane, int j) {
    return float_of(bits_of(value) ^ ((lane << (31 - j)) & 0x80000000u));
}

/* Negate where sign set number `set` says so. n is a multiple of 128, or 64 or 32. */
INLINE void flip(float *x, int n, uint64_t base, uint64_t set) {
    uint32_t lanes[2 * WORDS_PER_SET];
    make_lanes(lanes, base, set);
    for (int j = 0; 128 * j < n; j++) {
        float *row = x + 128 * j;
        if (n >= 128)
            for (int l = 0; l < 128; l++) row[l] = negated(row[l], lanes[l], j);
        else
            for (int l = 0; l < n; l++) row[l] = negated(row[l], lanes[l], j);
    }
}

INLINE void butterfly(float *restrict low, float *restrict high, int n) {
    for (int j = 0; j < n; j++) {
        float a = low[j], b = high[j];
        low[j] = a + b, high[j] = a - b;
    }
}

/* Normalized H_n in natural order, n a power of two and at least 32. */
INLINE void hadamard(float *x, int n) {
    float norm = (float)(1 / sqrt((double)n));
    for (int i = 0; i < n; i += 8) radix8(x + i, 1, 1);
    for (int distance = 8; distance < n; distance *= 2)
        for (int i = 0; i < n; i += 2 * distance)
            butterfly(x + i, x + i + distance, distance);
    for (int i = 0; i < n; i++) x[i] *= norm;
}

INLINE int power_below(int n) {
    int power = SMALLEST_ROTATED;
    while (2 * power <= n) power *= 2;
    return power;
}

/* Even entries, then odd ones. */
INLINE void riffle(float *x, float *other, int n) {
    int even = (n + 1) / 2;
    memcpy(other, x, sizeof(float) * (size_t)n);
    for (int i = 0; i < even; i++) x[i] = other[2 * i];
    for (int i = 0; i < n / 2; i++) x[even + i] = other[2 * i + 1];
}

INLINE void unriffle(float *x, float *other, int n) {
    int even = (n + 1) / 2;
    memcpy(other, x, sizeof(float) * (size_t)n);
    for (int i = 0; i < even; i++) x[2 * i] = other[i];
    for (int i = 0; i < n / 2; i++) x[2 * i + 1] = other[even + i];
}

INLINE void rotate_tail(float *x, float *other, int n, uint64_t base, uint64_t set) {
    int power = power_below(n);
    for (int round = 0; round < TAIL_ROUNDS; round++) {
        for (int first = 0;; first = n - power) {
            flip(x + first, power, base, set++);
            hadamard(x + first, power);
            if (first == n - power) break;
        }
        riffle(x, other, n);
    }
    for (int k = 0; k < LAST_RIFFLES; k++) riffle(x, other, n);
}

INLINE void unrotate_tail(float *x, float *other, int n, uint64_t base, uint64_t set) {
    int power = power_below(n);
    set += (uint64_t)(n > power ? 2 * TAIL_ROUNDS : TAIL_ROUNDS);
    for (int k = 0; k < LAST_RIFFLES; k++) unriffle(x, other, n);
    for (int round = 0; round < TAIL_ROUNDS; round++) {
        unriffle(x, other, n);
        for (int first = n - power;; first = 0) {
            hadamard(x + first, power);
            flip(x + first, power, base, --set);
            if (first == 0) break;
        }
    }
}

