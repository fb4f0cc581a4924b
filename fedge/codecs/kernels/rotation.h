/* Random rotations of full blocks: see rotation.py. */

/* One Hadamard stage of n vectors. */
INLINE void stage(Floats *x, int n, int distance) {
    UNROLL for (int k = 0; k < n / 2; k++) {
        int i = k / distance * 2 * distance + k % distance;
        Floats a = x[i], b = x[i + distance];
        x[i] = a + b, x[i + distance] = a - b;
    }
}

INLINE void hadamard_of_vectors(Floats *x, int n) {
    stage(x, n, 1), stage(x, n, 2);
    if (n > 4) stage(x, n, 4);
    if (n > 8) stage(x, n, 8);
}

INLINE void make_lanes(uint32_t *lanes, uint64_t base, uint64_t set) {
    base += set * WORDS_PER_SET * GAMMA;
    for (int w = 0; w < WORDS_PER_SET; w++, base += GAMMA) {
        uint64_t z = word(base, 0);
        memcpy(lanes + 2 * w, &z, sizeof z);
    }
}

/* Rows in groups of 8: multiply by `factor`, negate by the signs in `lanes` if there are any, stages 1, 2, 4. Bit j
 * of a lane belongs to rows 2j and 2j + 1; going down from the last row, the next bit is always the highest. */
INLINE void first_stages(const float *from, float *strip, const uint32_t *lanes, float factor, Ahead *ahead) {
    Ints even[PER_STRIP] = {0}, odd[PER_STRIP] = {0};
    UNROLL for (int v = 0; v < PER_STRIP; v++)
        if (lanes) even[v] = load_ints(lanes + v * W), odd[v] = load_ints(lanes + SIDE + v * W);
    for (int row = SIDE - 8; row >= 0; row -= 8) {
        ask(ahead, STRIP / 8);
        UNROLL for (int v = 0; v < PER_STRIP; v++) {
            Floats x[8];
            UNROLL for (int i = 0; i < 8; i++) {
                x[i] = load(from + (row + i) * SIDE + v * W) * factor;
                if (lanes) x[i] = negate(x[i], (i & 1 ? odd[v] : even[v]) << (3 - i / 2));
            }
            hadamard_of_vectors(x, 8);
            UNROLL for (int i = 0; i < 8; i++) store(strip + (row + i) * STRIP + v * W, x[i]);
            even[v] <<= 4, odd[v] <<= 4;
        }
    }
}

/* Stages 8, 16, 32 of a strip. */
INLINE void last_stages(float *strip) {
    for (int at = 0; at < 8 * STRIP; at += W) {
        Floats x[8];
        UNROLL for (int i = 0; i < 8; i++) x[i] = load(strip + at + i * 8 * STRIP);
        hadamard_of_vectors(x, 8);
        UNROLL for (int i = 0; i < 8; i++) store(strip + at + i * 8 * STRIP, x[i]);
    }
}

/* Transpose a strip into STRIP rows of `to` and do their stages 1, 2, .., STRIP/2. */
INLINE void turn(const float *strip, float *to, Ahead *ahead) {
    for (int row = 0; row < SIDE; row += W) {
        Floats x[STRIP];
        ask(ahead, STRIP * W / 64);
        UNROLL for (int v = 0; v < PER_STRIP; v++) {
            UNROLL for (int i = 0; i < W; i++) x[v * W + i] = load(strip + (row + i) * STRIP + v * W);
            transpose(x + v * W);
        }
        hadamard_of_vectors(x, STRIP);
        UNROLL for (int i = 0; i < STRIP; i++) store(to + i * SIDE + row, x[i]);
    }
}

/* Stages STRIP, .., 32 of a block. */
INLINE void finish_columns(float *x) {
    enum { ROWS = SIDE / STRIP };
    for (int at = 0; at < STRIP * SIDE; at += W) {
        Floats y[ROWS];
        UNROLL for (int i = 0; i < ROWS; i++) y[i] = load(x + at + i * STRIP * SIDE);
        hadamard_of_vectors(y, ROWS);
        UNROLL for (int i = 0; i < ROWS; i++) store(x + at + i * STRIP * SIDE, y[i]);
    }
}

/* to = H'·(signs · factor · from), H' = C·T·C. Asks for 128 lines. */
INLINE void square(const float *from, float *to, const uint32_t *lanes, float factor, Ahead *ahead) {
    float strip[SIDE * STRIP] __attribute__((aligned(LINE)));
    for (int column = 0; column < SIDE; column += STRIP) {
        first_stages(from + column, strip, lanes ? lanes + column : NULL, factor, ahead);
        last_stages(strip);
        turn(strip, to + column * SIDE, ahead);
    }
    finish_columns(to);
}
