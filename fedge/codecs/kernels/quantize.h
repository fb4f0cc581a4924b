/* Levels and sums of a rotated vector: see lloyd.py and twin.py. */

/* What quantizing W numbers to up to 4 bits takes. */
typedef struct {
    Table by_code, positive, inside;
    Floats threshold[7];
} Quantizer;

INLINE Quantizer quantizer_of(const float *tables, const float *levels, int width) {
    const float *t = thresholds_of(tables, width);
    int half = 1 << (width - 1);
    float inside[16];
    for (int j = 0; j < 16; j++) inside[j] = j >= 8 && j < 15 ? t[j - 8] : INFINITY;
    Quantizer quantizer = {.by_code = load_table(levels), .positive = load_table(levels + (half & 8))};
    if (LOOKS_UP && width == 4) quantizer.inside = load_table(inside);
    UNROLL for (int j = 0; j < 7; j++)
        if (j < half - 1) quantizer.threshold[j] = all(t[j]);
    return quantizer;
}

/* |z|, as far as thresholds can tell; `positive` if z is known to be. */
INLINE Floats magnitude_of(Floats z, int width, int positive) {
    if (LOOKS_UP && width == 4) return magnitude_below(z, 3.0f, positive);
    return positive ? z : (Floats)((Ints)z & INT32_MAX);
}

/* Where a level is looked for: at 4 bits in one of eight cells, numbered 8 to 15, of which each but the last holds one
 * threshold. A cell is the highest bits of a float between 2^-125 and 2^-123 that grows with the magnitude; rounding
 * moves the cells' ends, but not far enough to pass a threshold. */
INLINE Ints cell_of(Floats magnitude, int width) {
    if (LOOKS_UP && width == 4) return (Ints)multiply_add(magnitude, 0x1.cp-126f, 0x1p-125f) >> 21;
    return (Ints){0} + (1 << (width - 1));
}

/* 2^(width-1), plus how many thresholds are less than the magnitude. */
INLINE Ints level_of(const Quantizer *quantizer, Floats magnitude, Ints cell, int width) {
    int half = 1 << (width - 1);
    if (LOOKS_UP && width == 4) return count_above(cell, magnitude, look_up_high(quantizer->inside, cell));
    UNROLL for (int j = 0; j < 7; j++)
        if (j < half - 1) cell = count_above(cell, magnitude, quantizer->threshold[j]);
    return cell;
}

/* The centroid of a level, or of a code where one table holds all. */
INLINE Floats centroid_of(const Quantizer *quantizer, Ints level, int width) {
    if (ONE_TABLE) return look_up(quantizer->by_code, level);
    return width <= 2 ? look_up_4(quantizer->positive, level) : look_up_8(quantizer->positive, level);
}

/* Quantize y·inverse_sigma to `width` <= 4 bits; q becomes the centroids. Works on whole vectors: up to W - 1 entries
 * behind the n-th are read from y and overwritten in codes and q. */
INLINE void quantize_narrow(const float *y, float inverse_sigma, int n, int width, const float *tables,
                            const float *levels, uint8_t *codes, float *q) {
    Quantizer quantizer = quantizer_of(tables, levels, width);
    for (int i = 0; i < n; i += W) {
        Floats z = load(y + i) * inverse_sigma, magnitude = magnitude_of(z, width, 0);
        Ints level = level_of(&quantizer, magnitude, cell_of(magnitude, width), width);
        Ints code = (level ^ (Ints)z >> 31) & ((1 << width) - 1);
        store_codes(codes + i, code);
        Floats centroid = centroid_of(&quantizer, ONE_TABLE ? code : level, width);
        store(q + i, ONE_TABLE ? centroid : negate(centroid, (Ints)z));
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
    double energy, product; /* of a block y: <y, y>, and <y, Q(y)> if Q(y) is ±level */
    uint32_t peak;          /* of the block behind `next` */
} Measures;

INLINE Measures measure_with(int with_product, const float *y, float level, const float *next) {
    BlockSums squares = {{0}}, products = {{0}};
    Ints largest[COLUMNS / W] = {{0}};
    Measures found = {0};
    for (int run = 0; run < BLOCK / RUN; run++) {
        RunSums square = {{{0}}}, product = {{{0}}};
        for (int row = 0; row < RUN / COLUMNS; row++, y += COLUMNS, next += COLUMNS)
            UNROLL for (int v = 0; v < COLUMNS / W; v++) {
                Floats x = load(y + v * W);
                square.column[v] += x * x;
                if (with_product) product.column[v] += (Floats)((Ints)x & INT32_MAX) * level;
                largest[v] = larger(largest[v], (Ints)load(next + v * W) & INT32_MAX);
            }
        add_run(&squares, &square);
        if (with_product) add_run(&products, &product);
    }
    for (int c = 0; c < COLUMNS; c++) {
        uint32_t peak = (uint32_t)largest[c / W][c % W];
        found.peak = peak > found.peak ? peak : found.peak;
    }
    found.energy = sum_of(&squares), found.product = sum_of(&products);
    return found;
}

/* All that one walk over a block can tell. Each alone would wait, for additions or for memory. */
PHASE Measures measure(int with_product, const float *y, float level, const float *next) {
    return with_product ? measure_with(1, y, level, next) : measure_with(0, y, level, next);
}

/* Four vectors take every step together, or the long way of one holds up the others. Codes may have bits above the
 * width; pack drops them. Where signs would have to be given back to centroids, <|y|, |q|> is as good: y becomes |y|. */
INLINE double quantize_block_to(int width, float *y, float inverse_sigma, const float *tables,
                                const float *levels, uint8_t *codes) {
    enum { STEP = 1024 }; /* long enough for two loops to be faster than one with twice the registers */
    float q[STEP] __attribute__((aligned(LINE)));
    Quantizer quantizer = quantizer_of(tables, levels, width);
    BlockSums sums = {{0}};
    for (int at = 0; at < BLOCK; at += STEP) {
        for (int i = 0; i < STEP; i += 4 * W) {
            Floats z[4];
            Ints code[4], level[4];
            UNROLL for (int v = 0; v < 4; v++) {
                float *here = y + at + i + v * W;
                Floats x = load(here), positive = (Floats)((Ints)x & INT32_MAX);
                code[v] = (Ints)x >> 31;
                if (!ONE_TABLE) store(here, positive);
                z[v] = magnitude_of((ONE_TABLE ? x : positive) * inverse_sigma, width, !ONE_TABLE);
                level[v] = cell_of(z[v], width);
            }
            UNROLL for (int v = 0; v < 4; v++) level[v] = level_of(&quantizer, z[v], level[v], width);
            UNROLL for (int v = 0; v < 4; v++) {
                code[v] ^= level[v];
                store(q + i + v * W, centroid_of(&quantizer, ONE_TABLE ? code[v] : level[v], width));
            }
            store_codes_4(codes + at + i, code);
        }
        for (int k = 0; k < STEP; k += RUN) add_products_of_run(&sums, y + at + k, q + k);
    }
    return sum_of(&sums);
}

/* Quantize a whole block to 2 to 4 bits; return <y, q>. Overwrites y. */
PHASE double quantize_block(const Job *job, float *y, float inverse_sigma, int width, uint8_t *codes) {
    const float *tables = job->tables, *levels = job->levels[0];
    if (width == 2) return quantize_block_to(2, y, inverse_sigma, tables, levels, codes);
    if (width == 3) return quantize_block_to(3, y, inverse_sigma, tables, levels, codes);
    return quantize_block_to(4, y, inverse_sigma, tables, levels, codes);
}
