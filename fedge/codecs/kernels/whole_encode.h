/* From a block to its codes: see whole.h. */

/* <x, x>: 64 columns summed from the first row to the last, then halves of the sums added to each other down to eight, in
 * float32; these in order in float64. */
PHASE double energy_of_block(const float *x) {
    enum { SUMS = SIDE / WIDE / PARTS };
    float column[SIDE];
    double total = 0;
    for (int part = 0; part < SIDE; part += SUMS * WIDE) {
        Reals sums[SUMS] = {{0}};
        for (int row = 0; row < SIDE; row++)
            UNROLL for (int k = 0; k < SUMS; k++) {
                Reals one = load_reals(x + row * SIDE + part + k * WIDE);
                sums[k] += one * one;
            }
        memcpy(column + part, sums, sizeof sums);
    }
    for (int half = SIDE / 2; half >= 8; half /= 2)
        for (int k = 0; k < half; k++) column[k] += column[k + half];
    for (int k = 0; k < 8; k++) total += (double)column[k];
    return total;
}

/* Between -1/2 and 1/2, of 16-bit lanes. */
INLINE void make_chances(const uint16_t *lanes, float *chances) {
    for (int l = 0; l < 4 * SIDE; l++) chances[l] = (float)lanes[l] * 0x1p-16f - 32767.5f / 65536;
}

/* Eight rows of 64, 16 columns of them: `factor` times x, rounded up or down by a chance for every column of four rows in
 * turn; signs, and the stages of bits 6 to 8 of the index. What is in a row says bits 2, 3, 1, 0 then. */
INLINE void begin_rows(const float *x, float factor, const float *chances, Signs *signs, int last, int16_t *to) {
    Narrow y[8 * PARTS];
    UNROLL for (int i = 7; i >= 0; i--) {
        const float *from = x + i * SIDE, *chance = chances + i % 4 * SIDE;
        UNROLL for (int p = 0; p < PARTS; p++) {
            Reals low = load_reals(from + p * WIDE) * factor + load_reals(chance + p * WIDE);
            Reals high = load_reals(from + 8 + p * WIDE) * factor + load_reals(chance + 8 + p * WIDE);
            y[i * PARTS + p] = rounded(low, high);
        }
        flip_row(y + i * PARTS, &signs[i % 4], last ? i / 4 : 2 + i / 4);
    }
    stage_of_rows(y, 8, 1), stage_of_rows(y, 8, 2), stage_of_rows(y, 8, 4);
    store_rows(to, 1, 8, y);
}

/* What begin_rows does, and the stages of bits 9 to 11, halved on the way. */
PHASE void first_upper_stages(const float *x, float factor, const uint16_t *lanes, const float *chances, int16_t *to) {
    for (int column = 0; column < SIDE; column += ROW) {
        int16_t z[SIDE * ROW] __attribute__((aligned(LINE)));
        Signs signs[4];
        UNROLL for (int i = 0; i < 4; i++) signs[i] = load_signs(lanes + i * SIDE + column);
        for (int row = SIDE - 8; row; row -= 8)
            begin_rows(x + row * SIDE + column, factor, chances + column, signs, 0, z + row * ROW);
        begin_rows(x + column, factor, chances + column, signs, 1, z);
        for (int row = 0; row < 8; row++) {
            Narrow y[8 * PARTS];
            load_rows(z + row * ROW, 8, 8, y);
            stage_of_rows(y, 8, 1);
            halve_rows(y, 8, 1);
            stage_of_rows(y, 8, 2), stage_of_rows(y, 8, 4);
            store_rows(to + row * SIDE + column, 8 * SIDE / ROW, 8, y);
        }
    }
}

/* The stages of bits 5 to 0. What is in a row says bits 3, 6, 5, 4 then. Asks for 128 lines. */
PHASE void first_lower_stages(int16_t *x, Ahead *ahead) {
    for (int at = 0; at < BLOCK; at += 8 * ROW) {
        Narrow y[8 * PARTS];
        ask(ahead, 4);
        load_rows(x + at, 1, 8, y);
        stage_of_rows(y, 8, 2), stage_of_rows(y, 8, 1);
        interleave_rows(y, 8, 1, 1), stage_of_rows(y, 8, 1);
        interleave_rows(y, 8, 2, 2), stage_of_rows(y, 8, 2);
        interleave_rows(y, 8, 4, 4), stage_of_rows(y, 8, 4);
        UNROLL for (int k = 0; k < 8; k += 2) exchange_pair(y, k, k + 1);
        UNROLL for (int k = 0; k < 8; k++) store_rows(x + at + turned_round(k) * ROW, 1, 1, y + k * PARTS);
    }
}

/* Signs, and the stages of bits 8 to 11, halved on the way. Asks for 64 lines. */
PHASE void second_upper_stages(int16_t *x, const uint16_t *lanes, Ahead *ahead) {
    for (int group = 0; group < 16; group++) {
        Narrow y[16 * PARTS];
        ask(ahead, 4);
        Signs signs = load_signs(lanes + group * ROW);
        UNROLL for (int four = 12; four >= 0; four -= 4) {
            UNROLL for (int k = four + 3; k >= four; k--) {
                load_rows(x + (k * 16 + group) * ROW, 1, 1, y + k * PARTS);
                halve_rows(y + k * PARTS, 1, 1);
                flip_row(y + k * PARTS, &signs, k);
                halve_rows(y + k * PARTS, 1, 1);
            }
            quad(y, four, 1, 2);
            halve_rows(y + four * PARTS, 4, 1);
        }
        UNROLL for (int k = 0; k < 4; k++) {
            quad(y, k, 4, 8);
            UNROLL for (int l = k; l < 16; l += 4) {
                halve_rows(y + l * PARTS, 1, 1);
                store_rows(x + (l * 16 + group) * ROW, 1, 1, y + l * PARTS);
            }
        }
    }
}

/* Those of the other eight, halved twice on the way. What is in a row says bits 7, 2, 1, 0 then, and rows bits 11 to 8, 3,
 * 6, 5, 4. Asks for 64 lines. */
PHASE void second_lower_stages(int16_t *x, Ahead *ahead) {
    for (int at = 0; at < BLOCK; at += 16 * ROW) {
        Narrow y[16 * PARTS];
        ask(ahead, 4);
        UNROLL for (int k = 0; k < 8; k += 2) {
            UNROLL for (int l = 0; l < 4; l++) {
                int row = k + l / 2 * 8 + l % 2;
                load_rows(x + at + turned_round(row) * ROW, 1, 1, y + row * PARTS);
            }
            quad(y, k, 1, 8);
            halve_rows(y + k * PARTS, 2, 2), halve_rows(y + (k + 8) * PARTS, 2, 2);
        }
        UNROLL for (int half = 0; half < 16; half += 8) {
            quad(y, half, 2, 4), quad(y, half + 1, 2, 4);
            stages_within(y + half * PARTS);
        }
        UNROLL for (int k = 0; k < 8; k++) {
            exchange_pair(y, k, k + 8);
            store_rows(x + at + k * ROW, 1, 1, y + k * PARTS);
            store_rows(x + at + (k + 8) * ROW, 1, 1, y + (k + 8) * PARTS);
        }
    }
}

/* The codes of 2·NARROW numbers, whose bits above the width may be anything, but of one bit are that bit eight times;
 * |y|·level is added to the sum. */
INLINE Octets codes_of_rows(const int16_t *y, int width, const Rule *rule, Wide *sum) {
    Narrow low = load_narrow(y), high = load_narrow(y + ROW), small = magnitudes(low), large = magnitudes(high);
    Narrow of_small = (Narrow){0} + WHOLE_LEVELS[0][0], of_large = of_small;
    Octets level = {0}, zeros = {0}, half = zeros + (uint8_t)(width > 1 ? 1 << (width - 1) : 0xff);
    if (width > 1) {
        level = level_of(rule, narrowed(small, large, 6), width);
        widen(value_of_level(rule, level, width), zeros, &of_small, &of_large);
    }
    *sum = add_pairs(add_pairs(*sum, small, of_small), large, of_large);
    return (level + half) ^ negative(low, high);
}

INLINE int64_t quantize_whole_to(int width, const int16_t *y, uint8_t *to) {
    Rule rule = rule_of(width);
    Octets mask = (Octets){0} + (uint8_t)((1 << width) - 1);
    Wide sum = {0};
    int64_t total = 0;
    for (int group = 0; group < 16; group++)
        for (int row = 0; row < rows_of(width); row++)
            for (int p = 0; p < PARTS; p++) {
                const int16_t *from = y + (group * 16 + 2 * row) * ROW + p * NARROW;
                Octets packed = {0};
                UNROLL for (int k = 8 / rows_of(width) - 1; k >= 0; k--) {
                    Octets codes = codes_of_rows(from + 2 * rows_of(width) * k * ROW, width, &rule, &sum);
                    if (width == 1)
                        packed |= codes & (uint8_t)(1 << k);
                    else
                        packed = (Octets)((Narrow)packed << width) | (codes & mask);
                }
                memcpy(to + place_of(row, group, p), &packed, sizeof packed);
            }
    for (int l = 0; l < WIDE; l++) total += sum[l];
    return total;
}

/* Write the codes of a rotated block; return Σ |y|·level. */
PHASE int64_t quantize_whole(int width, const int16_t *y, uint8_t *to) {
    uint8_t codes[BLOCK] __attribute__((aligned(LINE)));
    int64_t product;
    if (width == 1) return quantize_whole_to(1, y, to);
    if (width == 2) return quantize_whole_to(2, y, to);
    if (width == 4) return quantize_whole_to(4, y, to);
    product = quantize_whole_to(3, y, codes);
    pack(codes, BLOCK, 3, to);
    return product;
}

/* Rotate a full block and write its codes; return its scale, divided by the headroom: 0 if its energy is not one that
 * float32 can be trusted with. */
INLINE double encode_whole_to(const Job *job, const float *x, uint64_t block, uint8_t *to) {
    int16_t y[BLOCK] __attribute__((aligned(LINE)));
    uint16_t lanes[2][4 * SIDE] __attribute__((aligned(LINE)));
    float chances[4 * SIDE] __attribute__((aligned(LINE)));
    Ahead ahead = {(uintptr_t)x + sizeof(float) * BLOCK};
    double energy = energy_of_block(x), norm = sqrt(energy);
    if (!(energy >= 0x1p-60 && energy <= 0x1p100)) return 0;
    for (int k = 0; k < 2; k++) make_short_lanes(lanes[k], job, SETS_PER_BLOCK * block + (uint64_t)k);
    make_chances(lanes[1], chances);
    first_upper_stages(x, (float)(WHOLE_NORM / 32 / norm), lanes[0], chances, y);
    first_lower_stages(y, &ahead);
    second_upper_stages(y, lanes[1], &ahead);
    second_lower_stages(y, &ahead);
    int64_t product = quantize_whole(job->full_run.width, y, to);
    return product > 0 ? norm * (WHOLE_NORM * WHOLE_ONE / HEADROOM * WHOLE_NOISE) / (double)product : 0.0;
}

/* The same for any numbers; -1 if they are not finite. */
ISA static double encode_whole(const Job *job, const float *x, uint64_t block, uint8_t *to) {
    float scaled[BLOCK] __attribute__((aligned(LINE)));
    ask_all(to, run_bytes(job->full_run));
    double scale = encode_whole_to(job, x, block, to);
    if (scale > 0) return scale;
    uint32_t peak = peak_of(x, BLOCK);
    if (peak >= 0x7f800000u) return -1;
    int shift = 127 - (int)(peak >> 23);
    shift = shift > 126 ? 126 : shift < -126 ? -126 : shift;
    for (int i = 0; i < BLOCK; i++) scaled[i] = x[i] * float_of((uint32_t)(127 + shift) << 23);
    scale = ldexp(encode_whole_to(job, scaled, block, to), -shift);
    if (scale > FLT_MAX) scale = FLT_MAX;
    if (scale == 0) memset(to, 0, (size_t)run_bytes(job->full_run));
    return scale;
}
