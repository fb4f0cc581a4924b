/* Random rotations of full blocks: see rotation.py.
 *
 * H' = C·T·C runs in place on one copy of the block, which stays in the first cache, in passes that load a vector once
 * and do as many stages as the registers hold:
 *
 *     turn_tiles    the first stages of C inside tiles of W × W, then every tile is transposed where it is
 *     mix           the later stages of C, then all of the second C
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

/* Where turn_tiles takes a block from: floats, or codes of `bits` = 1, 2 or 4 bits in one plane (pack.h). `levels` has 16
 * entries, which repeat every 2^bits. */
typedef struct {
    const float *floats;
    const uint8_t *codes;
    int bits, shift;
    Table levels;
} Source;

/* The source from a tile's first row and column on; the row is a multiple of W. */
INLINE Source tile_of(Source source, int row, int column) {
    int rows = 8 * source.bits; /* in one field of the bytes */
    if (!source.bits) {
        source.floats += row * SIDE + column;
    } else {
        source.codes += row % rows * SIDE + column;
        source.shift = row / rows * source.bits;
    }
    return source;
}

/* W numbers of row i of a tile. */
INLINE Floats fetch(const Source *tile, int i) {
    if (!tile->bits) return load(tile->floats + i * SIDE);
    int rows = 8 * tile->bits, shift = tile->shift + i / rows * tile->bits;
    Ints codes = load_codes(tile->codes + i % rows * SIDE) >> shift;
    return tile->bits < 4 ? look_up_4(tile->levels, codes) : look_up(tile->levels, codes);
}

/* The next bit of every lane comes first: an addition, because shifts have fewer units. */
INLINE Ints twice(Ints lanes) { return (Ints)((Unsigned)lanes + (Unsigned)lanes); }

/* Multiply by `factor`, negate by the signs in `lanes` if there are any, stages 1, .., W/2, transpose each tile. Bit j
 * of a lane belongs to rows 2j and 2j + 1. */
INLINE void turn_tiles(Source from, float *to, const uint32_t *lanes, float factor, int turned, Ahead *ahead) {
    for (int down = 0; down < SIDE; down += W) {
        Ints even = {0}, odd = {0};
        if (lanes && turned) even = load_ints(lanes + down), odd = load_ints(lanes + SIDE + down);
        for (int step = 0; step < SIDE; step += W) {
            int right = turned ? SIDE - W - step : step; /* the last row first: its bits are the highest */
            Source source = tile_of(from, down, right);
            float *turned_tile = to + down * SIDE + right;
            Floats x[W];
            if (lanes && !turned) {
                even = load_ints(lanes + right) << (32 - W / 2 - down / 2);
                odd = load_ints(lanes + SIDE + right) << (32 - W / 2 - down / 2);
            }
            ask(ahead, W * W / 32);
            UNROLL for (int i = W - 2; i >= 0; i -= 2) {
                x[i] = fetch(&source, i) * factor, x[i + 1] = fetch(&source, i + 1) * factor;
                if (!lanes) continue;
                x[i] = negate(x[i], even), x[i + 1] = negate(x[i + 1], odd);
                even = twice(even), odd = twice(odd);
            }
            hadamard_of_vectors(x, W);
            transpose(x);
            UNROLL for (int i = 0; i < W; i++) store(turned_tile + i * SIDE, x[i]);
        }
    }
}

/* Where vector n lies, if vectors are numbered so that the stages after turn_tiles are those of distance 1, 2, 4, .. */
INLINE int place(int n, int turned) {
    int high = n % TILES, low = n / TILES % W, last = n / (TILES * W);
    return (turned ? high + last * SIDE : high * SIDE + last) * W + low * SIDE;
}

/* Stages distance, .., distance·radix/2. */
INLINE void mix(float *x, int distance, int radix, int turned) {
    for (int group = 0; group < VECTORS; group += distance * radix)
        for (int n = group; n < group + distance; n++) {
            Floats y[16];
            float *at = x + place(n, turned);
            UNROLL for (int k = 0; k < radix; k++) y[k] = load(at + place(k * distance, turned));
            hadamard_of_vectors(y, radix);
            UNROLL for (int k = 0; k < radix; k++) store(at + place(k * distance, turned), y[k]);
        }
}

/* All stages that turn_tiles leaves. */
INLINE void mix_all(float *to, int turned) {
    if (W == 16) {
        mix(to, 1, 16, turned), mix(to, 16, 16, turned);
    } else if (W == 8) {
        mix(to, 1, 8, turned), mix(to, 8, 8, turned), mix(to, 64, 8, turned);
    } else {
        mix(to, 1, 16, turned), mix(to, 16, 8, turned), mix(to, 128, 8, turned);
    }
}

INLINE Source floats(const float *from) { return (Source){.floats = from}; }

INLINE Source packed(const uint8_t *codes, int bits, const float *levels) {
    return (Source){.codes = codes, .bits = bits, .levels = load_table(levels)};
}

/* Both rotations of rotation.py: y = rotate(factor·x). Asks for 256 lines. */
PHASE void rotate(const float *x, float *y, float factor, uint64_t base, uint64_t block, Ahead *ahead) {
    uint32_t lanes[2 * WORDS_PER_SET] __attribute__((aligned(LINE)));
    make_lanes(lanes, base, SETS_PER_BLOCK * block);
    turn_tiles(floats(x), y, lanes, factor, 0, ahead);
    mix_all(y, 0);
    make_lanes(lanes, base, SETS_PER_BLOCK * block + 1);
    turn_tiles(floats(y), y, lanes, 1.0f, 1, ahead);
    mix_all(y, 1);
}

/* rotation.py's unrotate but for the last signs, from codes (see Source) or, without, from x itself. Asks for 256 lines. */
PHASE void unrotate(const uint8_t *codes, int width, const float *levels, float *x, uint64_t base, uint64_t block,
                     Ahead *ahead) {
    uint32_t lanes[2 * WORDS_PER_SET] __attribute__((aligned(LINE)));
    if (!codes)
        turn_tiles(floats(x), x, NULL, 1.0f, 0, ahead);
    else if (width == 1)
        turn_tiles(packed(codes, 1, levels), x, NULL, 1.0f, 0, ahead);
    else if (width == 2)
        turn_tiles(packed(codes, 2, levels), x, NULL, 1.0f, 0, ahead);
    else
        turn_tiles(packed(codes, 4, levels), x, NULL, 1.0f, 0, ahead);
    mix_all(x, 0);
    make_lanes(lanes, base, SETS_PER_BLOCK * block + 1);
    turn_tiles(floats(x), x, lanes, 1.0f, 1, ahead);
    mix_all(x, 1);
}
