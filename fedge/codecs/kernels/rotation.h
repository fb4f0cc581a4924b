/* Random rotations of full blocks: see rotation.py.
 *
 * H' = C·T·C runs in place on one copy of the block, which stays in the first cache, in passes that load a vector once
 * and do as many stages as the registers hold:
 *
 *     turn_tiles    the first stages of C inside tiles of W × W, then every tile is transposed where it is
 *     mix           the later stages of C, then all of the second C
 *
 * The last part of transposing, the exchange of halves of vectors, is left to the pass that needs it, which has more of
 * the units that shuffle to spare.
 *
 * The tiles themselves are not exchanged: after one H' the block is `turned`, its entry (W·P + q, W·S + l) lying where
 * (W·S + q, W·P + l) belongs. A second H' turns it back. So a rotation begins and ends in natural order, and no pass
 * moves numbers for the sake of moving them.
 */

enum { TILES = SIDE / W, VECTORS = BLOCK / W };

/* One Hadamard stage of n vectors. Where additions and fused ones have units of their own, two of each work at a time;
 * but a fused one takes longer, so that it pays in some stages only. */
INLINE void stage(Floats *x, int n, int distance) {
    UNROLL for (int k = 0; k < n / 2; k++) {
        int i = k / distance * 2 * distance + k % distance;
        Floats a = x[i], b = x[i + distance];
        x[i] = a + b, x[i + distance] = distance & FUSED_DISTANCES ? difference(a, b) : a - b;
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

/* The next bit of every lane comes first: an addition, because shifts have fewer units. */
INLINE Ints twice(Ints lanes) { return (Ints)((Unsigned)lanes + (Unsigned)lanes); }

/* A tile in registers: stages 1, .., W/2, then transposed but for halves. */
INLINE void turn(Floats *x) {
    hadamard_of_vectors(x, W);
    transpose(x);
}

/* Multiply by `factor`, negate by the signs in `lanes` if there are any, which uses them up, and turn each tile. Bit j
 * of a lane belongs to rows 2j and 2j + 1: the last row comes first, its bits are the highest. Tiles are taken so that
 * signs stay in registers from one to the next. But where a tile is half a line wide, `from` is read by rows of tiles:
 * a column of them would take all ways of a quarter of the first cache's sets, and every line twice. */
INLINE void turn_tiles(const float *from, float *to, uint32_t *lanes, float factor, int turned, Ahead *ahead) {
    int by_rows = !turned && 2 * W * (int)sizeof(float) == LINE;
    for (int outer = 0; outer < SIDE; outer += W) {
        Ints even = {0}, odd = {0};
        if (lanes && !by_rows) even = load_ints(lanes + outer), odd = load_ints(lanes + SIDE + outer);
        for (int inner = SIDE - W; inner >= 0; inner -= W) {
            int row = turned ? outer : by_rows ? SIDE - W - outer : inner, column = turned || by_rows ? inner : outer;
            int corner = row * SIDE + column;
            Floats x[W];
            ask(ahead, W * W / 32);
            if (lanes && by_rows) even = load_ints(lanes + inner), odd = load_ints(lanes + SIDE + inner);
            UNROLL for (int i = W - 2; i >= 0; i -= 2) {
                x[i] = load(from + corner + i * SIDE) * factor, x[i + 1] = load(from + corner + (i + 1) * SIDE) * factor;
                if (!lanes) continue;
                x[i] = negate(x[i], even), x[i + 1] = negate(x[i + 1], odd);
                even = twice(even), odd = twice(odd);
            }
            if (lanes && by_rows) store_ints(lanes + inner, even), store_ints(lanes + SIDE + inner, odd);
            turn(x);
            UNROLL for (int i = 0; i < W; i++) store(to + corner + i * SIDE, x[i]);
        }
    }
}

/* Where vector n lies, if vectors are numbered so that the stages after turn_tiles are those of distance 1, 2, 4, .. */
INLINE int place(int n, int turned) {
    int high = n % TILES, low = n / TILES % W, last = n / (TILES * W);
    return (turned ? high + last * SIDE : high * SIDE + last) * W + low * SIDE;
}

/* Stages distance, .., distance·radix/2, of tiles whose halves are exchanged first if they are `halved`. */
INLINE void mix(float *x, int distance, int radix, int turned, int halved) {
    for (int group = 0; group < VECTORS; group += distance * radix)
        for (int n = group; n < group + distance; n++) {
            Floats y[16];
            float *at = x + place(n, turned);
            UNROLL for (int k = 0; k < radix; k++) y[k] = load(at + place(k * distance, turned));
            if (halved) exchange_halves(y);
            hadamard_of_vectors(y, radix);
            UNROLL for (int k = 0; k < radix; k++) store(at + place(k * distance, turned), y[k]);
        }
}

/* All stages that turn_tiles leaves. */
INLINE void mix_all(float *to, int turned) {
    if (W == 16) {
        mix(to, 1, 16, turned, 0), mix(to, 16, 16, turned, 0);
    } else if (W == 8) {
        mix(to, 1, 8, turned, 0), mix(to, 8, 8, turned, 1), mix(to, 64, 8, turned, 0);
    } else {
        mix(to, 1, 16, turned, 0), mix(to, 16, 8, turned, 0), mix(to, 128, 8, turned, 0);
    }
}

/* Both rotations of rotation.py: y = rotate(factor·x). Asks for 256 lines, or at W = 4 for none. */
PHASE void rotate(const float *x, float *y, float factor, uint64_t base, uint64_t block, Ahead *ahead) {
    uint32_t lanes[2 * WORDS_PER_SET] __attribute__((aligned(LINE)));
    make_lanes(lanes, base, SETS_PER_BLOCK * block);
    turn_tiles(x, y, lanes, factor, 0, ahead);
    mix_all(y, 0);
    make_lanes(lanes, base, SETS_PER_BLOCK * block + 1);
    turn_tiles(y, y, lanes, 1.0f, 1, ahead);
    mix_all(y, 1);
}

/* rotation.py's unrotate but for the last signs. Asks for 256 lines, or at W = 4 for none. */
PHASE void unrotate(float *x, uint64_t base, uint64_t block, Ahead *ahead) {
    uint32_t lanes[2 * WORDS_PER_SET] __attribute__((aligned(LINE)));
    turn_tiles(x, x, NULL, 1.0f, 0, ahead);
    mix_all(x, 0);
    make_lanes(lanes, base, SETS_PER_BLOCK * block + 1);
    turn_tiles(x, x, lanes, 1.0f, 1, ahead);
    mix_all(x, 1);
}
