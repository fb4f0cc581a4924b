/* Levels and sums of a rotated vector: see lloyd.py and twin.py. */

/* Quantize y·inverse_sigma to `width` <= 4 bits; q becomes the centroids. Works on whole vectors: up to W - 1 entries
 * behind the n-th are read from y and overwritten in codes and q. */
INLINE void quantize_narrow(const float *y, float inverse_sigma, int n, int width, const float *tables,
                            const float *levels, uint8_t *codes, float *q) {
    const float *t = thresholds_of(tables, width);
    Table by_code = load_table(levels);
    Floats threshold[7] = {{0}};
    int half = 1 << (width - 1);
    UNROLL for (int j = 0; j < 7; j++)
        if (j < half - 1) threshold[j] = all(t[j]);
    for (int i = 0; i < n; i += W) {
        Floats z = load(y + i) * inverse_sigma, magnitude = (Floats)((Ints)z & INT32_MAX);
        Ints level = (Ints){0} + half;
        UNROLL for (int j = 0; j < 7; j++)
            if (j < half - 1) level = count_above(level, magnitude, threshold[j]);
        Ints code = (level ^ (Ints)z >> 31) & (2 * half - 1);
        store_codes(codes + i, code);
        store(q + i, look_up(by_code, code));
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
        case 1: quantize_narrow(y, inverse_sigma, n, 1, tables, levels, codes, q); break;
        case 2: quantize_narrow(y, inverse_sigma, n, 2, tables, levels, codes, q); break;
        case 3: quantize_narrow(y, inverse_sigma, n, 3, tables, levels, codes, q); break;
        case 4: quantize_narrow(y, inverse_sigma, n, 4, tables, levels, codes, q); break;
        default:
            if (width > TRIT)
                quantize_trits(y, inverse_sigma, n, width, tables, grid, levels, codes, q);
            else
                quantize_wide(y, inverse_sigma, n, 1 << (width - 1), grid, levels, codes, q);
    }
}

/* Works on whole vectors, like quantize_narrow. */
INLINE void dequantize(const uint8_t *codes, const float *levels, int n, int width, float *q) {
    if (levels_of(width) > 16) {
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

/* Sums of products over a block: entry i in column i mod 32, 16 rows of them (a run) in float32, runs in double, columns
 * in order. Enough columns for additions not to wait for each other, enough rows for few conversions. */
enum { COLUMNS = 32, RUN = 16 * COLUMNS };

typedef struct {
    Floats column[COLUMNS / W];
} RunSums;

typedef struct {
    double column[COLUMNS];
} BlockSums;

INLINE void add_run(BlockSums *sums, const RunSums *run) {
    float column[COLUMNS];
    memcpy(column, run, sizeof column);
    for (int c = 0; c < COLUMNS; c++) sums->column[c] += (double)column[c];
}

INLINE double sum_of(const BlockSums *sums) {
    double total = sums->column[0];
    for (int c = 1; c < COLUMNS; c++) total += sums->column[c];
    return total;
}

INLINE void add_products_of_run(BlockSums *sums, const float *y, const float *q) {
    RunSums run = {{{0}}};
    for (int i = 0; i < RUN; i += COLUMNS)
        UNROLL for (int v = 0; v < COLUMNS / W; v++) run.column[v] += load(y + i + v * W) * load(q + i + v * W);
    add_run(sums, &run);
}

/* <y, y>; entries from n to the end of a run become zero. */
INLINE double energy_of(float *y, int n) {
    BlockSums sums = {{0}};
    memset(y + n, 0, sizeof(float) * (size_t)(-n & (RUN - 1)));
    for (int i = 0; i < n; i += RUN) add_products_of_run(&sums, y + i, y + i);
    return sum_of(&sums);
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

typedef struct {
    double energy; /* of a block y: <y, y> */
    uint32_t peak; /* of the block behind `next` */
} Measures;

/* Both in one walk over two blocks: each alone would wait, for additions or for memory. */
PHASE Measures measure(const float *y, const float *next) {
    BlockSums squares = {{0}};
    Ints largest[COLUMNS / W] = {{0}};
    Measures found = {0};
    for (int run = 0; run < BLOCK / RUN; run++) {
        RunSums square = {{{0}}};
        for (int row = 0; row < RUN / COLUMNS; row++, y += COLUMNS, next += COLUMNS)
            UNROLL for (int v = 0; v < COLUMNS / W; v++) {
                Floats x = load(y + v * W);
                square.column[v] += x * x;
                largest[v] = larger(largest[v], (Ints)load(next + v * W) & INT32_MAX);
            }
        add_run(&squares, &square);
    }
    for (int c = 0; c < COLUMNS; c++) {
        uint32_t peak = (uint32_t)largest[c / W][c % W];
        found.peak = peak > found.peak ? peak : found.peak;
    }
    found.energy = sum_of(&squares);
    return found;
}
