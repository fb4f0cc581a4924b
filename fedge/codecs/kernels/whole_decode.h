/* From codes to a block: see whole.h. */

/* The rest of a group's stages, of the lower eight bits of the place; those of rows next to each other are done. */
INLINE void finish_group(Narrow *y, int16_t *to) {
    UNROLL for (int k = 0; k < 2; k++) quad(y, k, 4, 8), quad(y, k + 2, 4, 8);
    UNROLL for (int k = 0; k < 8; k++) exchange_pair(y, k, k + 8);
    UNROLL for (int half = 0; half < 16; half += 8) {
        Narrow *z = y + half * PARTS;
        interleave_rows(z, 8, 1, 1), stage_of_rows(z, 8, 1);
        interleave_rows(z, 8, 2, 2), stage_of_rows(z, 8, 2);
        interleave_rows(z, 8, 4, 4), stage_of_rows(z, 8, 4);
        UNROLL for (int k = half; k < half + 8; k++) store_rows(to + turned_round(k) * ROW, 1, 1, y + k * PARTS);
    }
}

INLINE void lower_stages_of_codes(int width, const uint8_t *codes, int16_t *to) {
    CodeValues values = code_values(width);
    Octets mask = (Octets){0} + (uint8_t)((1 << width) - 1);
    for (int group = 0; group < 16; group++, to += 16 * ROW) {
        Narrow y[16 * PARTS];
        UNROLL for (int r = 0; r < 8; r++) {
            UNROLL for (int p = 0; p < PARTS; p++) {
                Octets bytes = load_octets(codes + place_of(r % rows_of(width), group, p));
                bytes = (Octets)((Narrow)bytes >> (r / rows_of(width) * width)) & mask;
                widen(low_bytes_of(&values, bytes, width), high_bytes_of(&values, bytes, width), y + 2 * r * PARTS + p,
                      y + (2 * r + 1) * PARTS + p);
            }
            if (r % 2) quad(y, 2 * r - 2, 1, 2);
        }
        finish_group(y, to);
    }
}

INLINE void lower_stages_of_words(const int16_t *words, int16_t *to) {
    for (int group = 0; group < 16; group++, to += 16 * ROW) {
        Narrow y[16 * PARTS];
        UNROLL for (int r = 0; r < 8; r++) {
            load_rows(words + place_of(r, group, 0), 1, 2, y + 2 * r * PARTS);
            exchange_halves_of_rows(y, 2 * r, 2 * r + 1);
            if (r % 2) quad(y, 2 * r - 2, 1, 2);
        }
        finish_group(y, to);
    }
}

/* The first stages of a block that is decoded: from its codes, of which those not received count as zero, if any are
 * missing. */
PHASE void lower_stages(int width, const uint8_t *from, const uint8_t *received, int16_t *to) {
    uint8_t codes[BLOCK] __attribute__((aligned(LINE)));
    int16_t words[BLOCK] __attribute__((aligned(LINE)));
    int half = 1 << (width - 1);
    if (width == 3 || received) unpack(from, BLOCK, width, codes), from = codes;
    if (received) {
        for (int i = 0; i < BLOCK; i++) {
            int16_t level = WHOLE_LEVELS[width - 1][codes[i] < half ? half - 1 - codes[i] : codes[i] - half];
            words[i] = (int16_t)(!received[i] ? 0 : codes[i] < half ? -level : level);
        }
        lower_stages_of_words(words, to);
    } else if (width == 1)
        lower_stages_of_codes(1, from, to);
    else if (width == 2)
        lower_stages_of_codes(2, from, to);
    else if (width == 3)
        lower_stages_of_codes(3, from, to);
    else
        lower_stages_of_codes(4, from, to);
}

/* The stages of the highest four bits of the place, and signs. */
PHASE void upper_stages_and_signs(int16_t *x, const uint16_t *lanes) {
    for (int group = 0; group < 16; group++) {
        Narrow y[16 * PARTS];
        Signs signs = load_signs(lanes + group * ROW);
        UNROLL for (int k = 0; k < 4; k++) {
            UNROLL for (int l = k; l < 16; l += 4) load_rows(x + (l * 16 + group) * ROW, 1, 1, y + l * PARTS);
            quad(y, k, 4, 8);
        }
        UNROLL for (int four = 12; four >= 0; four -= 4) {
            quad(y, four, 1, 2);
            UNROLL for (int k = four + 3; k >= four; k--) {
                flip_row(y + k * PARTS, &signs, k);
                store_rows(x + (k * 16 + group) * ROW, 1, 1, y + k * PARTS);
            }
        }
    }
}

/* Of bits 4, then 2, 1, 0, then 3, 6, 5, in 32 bits from here on; numbers come to lie where their index says. Asks for 64
 * lines. */
PHASE void widening_stages(const int16_t *x, int32_t *to, Ahead *ahead) {
    for (int at = 0; at < BLOCK; at += 8 * ROW)
        for (int odd = 0; odd < 2; odd++) {
            Wide y[8 * PARTS];
            ask(ahead, 1);
            UNROLL for (int k = 0; k < 8; k++)
                UNROLL for (int p = 0; p < PARTS; p++)
                    y[k * PARTS + p] = sums_of_pairs(load_narrow(x + at + k * ROW + p * NARROW), odd);
            stage_of_wide(y, 8 * PARTS, PARTS), stage_of_wide(y, 8 * PARTS, 2 * PARTS), stage_of_wide(y, 8 * PARTS, 4 * PARTS);
            transpose_wide(y);
            stage_of_wide(y, 8 * PARTS, PARTS), stage_of_wide(y, 8 * PARTS, 2 * PARTS), stage_of_wide(y, 8 * PARTS, 4 * PARTS);
            UNROLL for (int k = 0; k < 8; k++) { /* the bits of k are 3, 6, 5 */
                int place = k / 2 % 2 * SIDE + (k % 2 * 4 + odd * 2 + k / 4) * COLUMN;
                UNROLL for (int p = 0; p < PARTS; p++) store_wide(to + at + place + p * WIDE, y[k * PARTS + p]);
            }
        }
}

/* Of bits 10 and 11. Asks for 64 lines. */
PHASE void mixing_stages(int32_t *x, Ahead *ahead) {
    for (int at = 0; at < 16 * SIDE; at += WIDE) {
        Wide y[4];
        if (at % (2 * COLUMN) == 0) ask(ahead, 1);
        UNROLL for (int k = 0; k < 4; k++) y[k] = load_wide(x + at + k * 16 * SIDE);
        stage_of_wide(y, 4, 1), stage_of_wide(y, 4, 2);
        UNROLL for (int k = 0; k < 4; k++) store_wide(x + at + k * 16 * SIDE, y[k]);
    }
}

/* Hand over WIDE numbers; `plainly` into float32 or, with weight 1, onto it: see deliver_block. */
INLINE void deliver_reals(Target target, int plainly, Reals x, float *floats, double *doubles, double weight) {
    float here[WIDE];
    if (plainly) {
        if (target == ONTO_FLOATS) x += load_reals(floats);
        memcpy(floats, &x, sizeof x);
        return;
    }
    memcpy(here, &x, sizeof x); /* from memory to double: rows_*.h */
    if (target == ONTO_FLOATS) add_reals_to_floats(floats, here, weight);
    if (target == ONTO_DOUBLES) add_reals_to_doubles(doubles, here, weight);
}

/* Of bits 7, 8, 9; then signs and the scale, and to `out`. Asks for 128 lines, of doubles for 256. */
INLINE void finishing_stages_to(Target target, int plainly, const int32_t *x, const uint16_t *lanes, float scale,
                                void *out, double weight, Ahead *ahead) {
    uint32_t signs[4 * SIDE] __attribute__((aligned(LINE)));
    for (int at = 0; at < 4 * SIDE; at += ROW)
        UNROLL for (int p = 0; p < PARTS; p++) {
            Narrow low = {0}, high = load_narrow(lanes + at + p * NARROW);
            interleave(&low, &high, 1);
            store_narrow(signs + at + p * WIDE, low), store_narrow(signs + at + 8 + p * WIDE, high);
        }
    for (int row = 0; row < SIDE; row += row % 2 ? 15 : 1)
        for (int column = 0; column < SIDE; column += WIDE) {
            Wide y[8], here[2];
            int at = row * SIDE + column;
            if (column % COLUMN == 0) ask(ahead, target == ONTO_DOUBLES ? 4 : 2);
            UNROLL for (int k = 0; k < 2; k++) {
                Wide both = load_wide(signs + (row % 2 + 2 * k) * SIDE + column);
                here[k] = (Wide)((UnsignedWide)both << (12 - row / 16 * 4));
            }
            UNROLL for (int k = 0; k < 8; k++) y[k] = load_wide(x + at + 2 * k * SIDE);
            stage_of_wide(y, 8, 1), stage_of_wide(y, 8, 2), stage_of_wide(y, 8, 4);
            UNROLL for (int k = 7; k >= 0; k--) {
                Reals z = __builtin_convertvector(y[k], Reals) * with_sign(scale, here[k % 2]);
                int to = at + 2 * k * SIDE;
                here[k % 2] = (Wide)((UnsignedWide)here[k % 2] + (UnsignedWide)here[k % 2]);
                deliver_reals(target, plainly, z, (float *)out + to, (double *)out + to, weight);
            }
        }
}

PHASE void finishing_stages(Target target, const int32_t *x, const uint16_t *lanes, float scale, void *out,
                            double weight, Ahead *ahead) {
    if (target == INTO_FLOATS) finishing_stages_to(INTO_FLOATS, 1, x, lanes, scale, out, weight, ahead);
    if (target == ONTO_FLOATS && weight == 1) finishing_stages_to(ONTO_FLOATS, 1, x, lanes, scale, out, weight, ahead);
    if (target == ONTO_FLOATS && weight != 1) finishing_stages_to(ONTO_FLOATS, 0, x, lanes, scale, out, weight, ahead);
    if (target == ONTO_DOUBLES) finishing_stages_to(ONTO_DOUBLES, 0, x, lanes, scale, out, weight, ahead);
}

/* Decode a full block, times `factor`, to `out`. */
INLINE void decode_whole(const Job *job, const uint8_t *from, const uint8_t *received, uint64_t block, float factor,
                         Target target, void *out) {
    int16_t y[BLOCK] __attribute__((aligned(LINE)));
    int32_t x[BLOCK] __attribute__((aligned(LINE)));
    uint16_t lanes[2][4 * SIDE] __attribute__((aligned(LINE)));
    Ahead ahead = {(uintptr_t)out + BLOCK * (target == ONTO_DOUBLES ? sizeof(double) : sizeof(float))};
    for (int k = 0; k < 2; k++) make_short_lanes(lanes[k], job, SETS_PER_BLOCK * block + (uint64_t)k);
    lower_stages(job->full_run.width, from, received, y);
    upper_stages_and_signs(y, lanes[1]);
    widening_stages(y, x, &ahead);
    mixing_stages(x, &ahead);
    finishing_stages(target, x, lanes[0], factor, out, job->weight, &ahead);
}
