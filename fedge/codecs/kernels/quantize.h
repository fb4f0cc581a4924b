/* Levels and sums of a rotated vector: see lloyd.py and twin.py. */

/* Whether a level is looked up by cells and not compared with every threshold; what it is too large by then. */
#define BY_CELLS(width) (LOOKS_UP && (width) == 4)
enum { FLOAT_OF_CELL = 0x4b000000 };

/* What quantizing W numbers to up to 4 bits takes. They are not multiplied by inverse_sigma: thresholds are scaled. */
typedef struct {
    Table by_code, positive, inside;
    Floats threshold[7];
    float most, per_cell;
} Quantizer;

/* The largest y for which y·inverse_sigma, rounded, is not above t. Two roundings move it by less than two places. */
INLINE float scaled(float t, float inverse_sigma) {
    uint32_t near = bits_of(t / inverse_sigma) - 2;
    float found = float_of(near);
    for (uint32_t k = 1; k <= 4; k++) {
        float y = float_of(near + k);
        found = y * inverse_sigma <= t ? y : found;
    }
    return found;
}

INLINE Floats magnitude_of(Floats x) { return (Floats)((Ints)x & INT32_MAX); }

INLINE Quantizer quantizer_of(const float *tables, const float *levels, float inverse_sigma, int width) {
    const float *t = thresholds_of(tables, width);
    int half = 1 << (width - 1);
    float thresholds[7], inside[16];
    for (int j = 0; j < half - 1; j++) thresholds[j] = scaled(t[j], inverse_sigma);
    Quantizer quantizer = {.by_code = load_table(levels), .positive = load_table(levels + (half & 8))};
    UNROLL for (int j = 0; j < 7; j++)
        if (j < half - 1) quantizer.threshold[j] = all(thresholds[j]);
    if (BY_CELLS(width)) {
        for (int j = 0; j < 16; j++) inside[j] = j % 8 < 7 ? thresholds[j % 8] : -1.0f;
        quantizer.inside = load_table(inside);
        quantizer.most = 2.2f / inverse_sigma, quantizer.per_cell = inverse_sigma / 0.3f;
    }
    return quantizer;
}

/* Where a level is looked for: at 4 bits in one of eight cells, each what rounds to the same multiple of 0.3 sigma.
 * Cells 1 to 7 hold one threshold each, cell 0 none: all of it is above the -1 that is looked up there. A sum with 2^23
 * is rounded to an integer, which its low bits are, here from 7 to 14: FLOAT_OF_CELL + 7 + cell. Other roundings move
 * the cells' ends, but not far enough to pass a threshold. */
INLINE Ints cell_of(const Quantizer *quantizer, Floats magnitude, int width) {
    if (!BY_CELLS(width)) return (Ints){0} + (1 << (width - 1));
    return (Ints)multiply_add(smaller(magnitude, quantizer->most), quantizer->per_cell, 0x1p23f + 7);
}

/* 2^(width-1), plus how many thresholds are less than the magnitude, plus FLOAT_OF_CELL if BY_CELLS. */
INLINE Ints level_of(const Quantizer *quantizer, Floats magnitude, Ints cell, int width) {
    int half = 1 << (width - 1);
    if (BY_CELLS(width)) return count_above(cell, magnitude, look_up_high(quantizer->inside, cell));
    UNROLL for (int j = 0; j < 7; j++)
        if (j < half - 1) cell = count_above(cell, magnitude, quantizer->threshold[j]);
    return cell;
}

/* What makes a level a code, by exclusive or: its complement where x is negative, and without FLOAT_OF_CELL. */
INLINE Ints by_sign(Floats x, int width) {
    return BY_CELLS(width) ? complement(FLOAT_OF_CELL, x) : (Ints)x >> 31;
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
    Quantizer quantizer = quantizer_of(tables, levels, inverse_sigma, width);
    for (int i = 0; i < n; i += W) {
        Floats x = load(y + i), magnitude = magnitude_of(x);
        Ints level = level_of(&quantizer, magnitude, cell_of(&quantizer, magnitude, width), width);
        Ints code = (level ^ (Ints)x >> 31) & ((1 << width) - 1);
        store_codes(codes + i, code);
        Floats centroid = centroid_of(&quantizer, ONE_TABLE ? code : level, width);
        store(q + i, ONE_TABLE ? centroid : negate(centroid, (Ints)x));
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
 * width; pack drops them. Where signs would have to be given back to centroids, <|y|, |q|> is as good. Products are
 * added at once where four vectors are a row of sums; elsewhere y becomes |y|, and two loops, if they are long enough,
 * are faster than one with twice the registers. */
INLINE double quantize_block_to(int width, float *y, float inverse_sigma, const float *tables,
                                const float *levels, uint8_t *codes) {
    enum { AT_ONCE = 4 * W == COLUMNS, STEP = AT_ONCE ? RUN : 2 * RUN };
    float q[STEP] __attribute__((aligned(LINE)));
    Quantizer quantizer = quantizer_of(tables, levels, inverse_sigma, width);
    BlockSums sums = {{0}};
    for (int at = 0; at < BLOCK; at += STEP) {
        RunSums run = {{{0}}};
        for (int i = 0; i < STEP; i += 4 * W) {
            float *row = y + at + i;
            Floats magnitude[4];
            Ints code[4], level[4];
            UNROLL for (int v = 0; v < 4; v++) {
                Floats x = load(row + v * W);
                magnitude[v] = magnitude_of(x);
                if (!AT_ONCE) code[v] = by_sign(x, width);
                if (!AT_ONCE && !ONE_TABLE) store(row + v * W, magnitude[v]);
                level[v] = cell_of(&quantizer, magnitude[v], width);
            }
            UNROLL for (int v = 0; v < 4; v++) level[v] = level_of(&quantizer, magnitude[v], level[v], width);
            UNROLL for (int v = 0; v < 4; v++) {
                if (AT_ONCE) code[v] = by_sign(load(row + v * W), width); /* not before: sums take registers */
                code[v] ^= level[v];
                Floats centroid = centroid_of(&quantizer, ONE_TABLE ? code[v] : level[v], width);
                if (AT_ONCE)
                    run.column[v % (COLUMNS / W)] += magnitude[v] * centroid;
                else
                    store(q + i + v * W, centroid);
            }
            store_codes_4(codes + at + i, code);
        }
        if (AT_ONCE)
            add_run(&sums, &run);
        else
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
