/* Levels and sums of a rotated vector: see lloyd.py and twin.py. */

/* Quantize z = y·inverse_sigma to `width` <= 4 bits; q becomes the centroids. Works on whole vectors: up to W - 1
 * entries behind the n-th are read from y and overwritten in codes and q. */
INLINE void quantize_narrow(const float *y, float inverse_sigma, int n, int width, const float *tables,
                            const Grid *grid, const float *levels, uint8_t *codes, float *q) {
    const float *t = thresholds_of(tables, width);
    int half = 1 << (width - 1);
    Table by_code = load_table(levels), positive = load_table(levels + (half & 8)); /* index modulo 8 */
    Table below = load_table((const float *)grid->below), inside = load_table(grid->inside);
    Floats threshold[7] = {{0}};
    UNROLL for (int j = 0; j < 7; j++)
        if (j < half - 1) threshold[j] = all(t[j]);
    for (int i = 0; i < n; i += W) {
        Floats z = load(y + i) * inverse_sigma, magnitude = (Floats)((Ints)z & INT32_MAX);
        Ints code = (Ints){0} + half;
        if (FEW_CELLS && width == 4) {
            Ints cell = cells(magnitude * grid->per_unit);
            code = count_above((Ints)look_up(below, cell) | half, magnitude, look_up(inside, cell));
        } else {
            UNROLL for (int j = 0; j < 7; j++)
                if (j < half - 1) code = count_above(code, magnitude, threshold[j]);
        }
        if (!FEW_CELLS) store(q + i, negate(look_up_8(positive, code), (Ints)z));
        code ^= ((Ints)z >> 31) & (2 * half - 1);
        if (FEW_CELLS) store(q + i, look_up(by_code, code));
        store_codes(codes + i, code);
    }
}

/* The code of a number from the level m of its magnitude and the bit of its sign. */
INLINE uint8_t code_of(uint32_t m, float z, int half) {
    uint32_t negative = bits_of(z) >> 31;
    return (uint8_t)(((uint32_t)half + m) ^ ((0u - negative) & (2u * (uint32_t)half - 1u)));
}

/* The same for any width, by way of a table. */
INLINE void quantize_wide(const float *restrict y, float inverse_sigma, int n, int half, const Grid *grid,
                          const float *restrict levels, uint8_t *restrict codes, float *restrict q) {
    float per_unit = grid->per_unit, last = (float)grid->last;
    for (int i = 0; i < n; i++) {
        float z = y[i] * inverse_sigma, magnitude = fabsf(z), place = magnitude * per_unit;
        int32_t cell = (int32_t)(place < last ? place : last);
        uint32_t m = (uint32_t)grid->below[cell] + (magnitude > grid->inside[cell]);
        codes[i] = code_of(m, z, half);
    }
    for (int i = 0; i < n; i++) q[i] = levels[codes[i]];
}

INLINE void quantize(const Job *job, const float *y, float inverse_sigma, int n, int width, int wide, uint8_t *codes,
                     float *q) {
    const float *tables = job->tables, *levels = job->levels[wide];
    const Grid *grid = &job->grids[wide];
    switch (width) {
        case 1: quantize_narrow(y, inverse_sigma, n, 1, tables, grid, levels, codes, q); break;
        case 2: quantize_narrow(y, inverse_sigma, n, 2, tables, grid, levels, codes, q); break;
        case 3: quantize_narrow(y, inverse_sigma, n, 3, tables, grid, levels, codes, q); break;
        case 4: quantize_narrow(y, inverse_sigma, n, 4, tables, grid, levels, codes, q); break;
        default: quantize_wide(y, inverse_sigma, n, 1 << (width - 1), grid, levels, codes, q);
    }
}

/* Works on whole vectors, like quantize_narrow. */
INLINE void dequantize(const uint8_t *codes, const float *levels, int n, int width, float *q) {
    if (width > 4) {
        for (int i = 0; i < n; i++) q[i] = levels[codes[i]];
        return;
    }
    Table table = load_table(levels);
    for (int i = 0; i < n; i += W) store(q + i, look_up(table, load_codes(codes + i)));
}

/* The 16 sums, added in the order of lanes. */
INLINE double total_of(const Sums *sums) {
    double lane[LANES], total;
    store_sums(lane, sums);
    total = lane[0];
    for (int l = 1; l < LANES; l++) total += lane[l];
    return total;
}

/* <y, y> in double; reads whole groups of 16. */
INLINE double energy_of(const float *y, int n) {
    Sums sums = {0};
    for (int i = 0; i < n; i += LANES) add_products(&sums, y + i, y + i);
    return total_of(&sums);
}

/* The bits of the largest magnitude. */
INLINE uint32_t peak_of(const float *x, int n) {
    uint32_t peak = 0;
    for (int i = 0; i < n; i++) {
        uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
        peak = magnitude > peak ? magnitude : peak;
    }
    return peak;
}

/* energy_of a block and peak_of the block behind `next`: each alone would wait, one for additions, one for memory. */
INLINE double energy_and_peak(const float *y, const float *next, uint32_t *peak) {
    Sums sums = {0};
    Ints largest = {0};
    for (int i = 0; i < BLOCK; i += LANES) {
        add_products(&sums, y + i, y + i);
        UNROLL for (int l = 0; l < LANES; l += W) largest = larger(largest, (Ints)load(next + i + l) & INT32_MAX);
    }
    *peak = 0;
    for (int l = 0; l < W; l++) *peak = (uint32_t)largest[l] > *peak ? (uint32_t)largest[l] : *peak;
    return total_of(&sums);
}
