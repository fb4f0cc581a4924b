/* EDEN's hot loops, included once per instruction set after one of the vectors_*.h, which define
 *
 *     Floats, Ints        vectors of W numbers of 32 bits
 *     transpose           of a W × W tile in W vectors
 *     larger              of two Ints, one by one
 *     count_above         count + 1 where a > b
 *     Table, look_up      table[index], of 16 entries; look_up_8 takes the index modulo 8
 *     load_codes, ..      W bytes to Ints and back
 *     add_to_floats, ..   sum + weight·x in double, rounded to the sum's type
 *     Sums, add_products  16 sums in double, in the order of lanes, and y·q added to them
 *     STRIP               columns that are transposed together
 *     FEW_CELLS, cells    whether look_up is one instruction; the cell of a place among 16, the last if beyond
 *
 * `twin.py` is the same program in NumPy and the one to read first; every constant, every order of additions and every
 * byte follows `rotation.py`, `packing.py`, `lloyd.py` and `twin.py`, and tests hold both together. What keeps the bits
 * equal on every machine: float32 additions and subtractions in one fixed order, sums in double over 16 lanes, no
 * contraction (-ffp-contract=off) but of exact products, no reassociation (never -ffast-math).
 *
 * A block of 4096 floats stays in the first cache from its first pass to its last. The order of passes is made for
 * that: a strip of columns is transformed and transposed before the next one is touched. Lines of the next block are
 * asked for all along, a few per step, so that memory works while the arithmetic does.
 */

typedef uint64_t Words __attribute__((vector_size(4 * W)));

enum { PER_ROW = SIDE / W, PER_STRIP = STRIP / W, LINE = 64 };

INLINE Floats load(const float *from) {
    Floats x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE Ints load_ints(const uint32_t *from) {
    Ints x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store(float *to, Floats x) { memcpy(to, &x, sizeof x); }

INLINE Floats all(float value) { return value - (Floats){0}; }

/* x, negated where the highest bit of `signs` is set. */
INLINE Floats negate(Floats x, Ints signs) { return (Floats)((Ints)x ^ (signs & INT32_MIN)); }

/* What is going to be read or written soon, asked for one line at a time. */
typedef struct {
    uintptr_t next;
    int writes;
} Ahead;

INLINE void ask(Ahead *ahead, int lines) {
    UNROLL for (int k = 0; k < lines; k++) {
        if (ahead->writes)
            __builtin_prefetch((const void *)(ahead->next + (uintptr_t)(k * LINE)), 1, 3);
        else
            __builtin_prefetch((const void *)(ahead->next + (uintptr_t)(k * LINE)), 0, 2);
    }
    ahead->next += (uintptr_t)(lines * LINE);
}

/* ---- rotation ----------------------------------------------------------------------------------------------- */

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

#include "tail.h"

/* ---- quantization ------------------------------------------------------------------------------------------- */

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
    memcpy(lane, sums, sizeof lane);
    total = lane[0];
    for (int l = 1; l < LANES; l++) total += lane[l];
    return total;
}

/* <y, y> in double; reads whole groups of 16. */
INLINE double energy_of(const float *y, int n) {
    Sums sums;
    memset(&sums, 0, sizeof sums);
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
    Sums sums;
    Ints largest = {0};
    memset(&sums, 0, sizeof sums);
    for (int i = 0; i < BLOCK; i += LANES) {
        add_products(&sums, y + i, y + i);
        UNROLL for (int l = 0; l < LANES; l += W) largest = larger(largest, (Ints)load(next + i + l) & INT32_MAX);
    }
    *peak = 0;
    for (int l = 0; l < W; l++) *peak = (uint32_t)largest[l] > *peak ? (uint32_t)largest[l] : *peak;
    return total_of(&sums);
}

/* ---- packing ------------------------------------------------------------------------------------------------ */

/* One plane of `bits` bits: see packing.py. Rows of full blocks are as long as the plane; a tail's last row may be
 * shorter. */
INLINE void pack_plane(const uint8_t *codes, int n, int bits, int shift, uint8_t *to) {
    int length = (n * bits + 7) / 8, fields = 8 / bits, whole = n == fields * length ? length : 0, l = 0;
    uint8_t mask = (uint8_t)((1 << bits) - 1);
    for (; l + (int)sizeof(Words) <= whole; l += (int)sizeof(Words)) {
        Words packed = {0};
        UNROLL for (int j = 0; j < fields; j++) {
            Words row;
            memcpy(&row, codes + j * length + l, sizeof row);
            packed |= ((row >> shift) & (mask * 0x0101010101010101u)) << (bits * j);
        }
        memcpy(to + l, &packed, sizeof packed);
    }
    for (; l < length; l++) {
        uint32_t packed = 0;
        for (int j = 0; j < fields && j * length + l < n; j++)
            packed |= (uint32_t)((codes[j * length + l] >> shift) & mask) << (bits * j);
        to[l] = (uint8_t)packed;
    }
}

INLINE void unpack_plane(const uint8_t *from, int n, int bits, int shift, uint8_t *codes) {
    int length = (n * bits + 7) / 8, fields = 8 / bits, whole = n == fields * length ? length : 0, l = 0;
    uint8_t mask = (uint8_t)((1 << bits) - 1);
    for (; l + (int)sizeof(Words) <= whole; l += (int)sizeof(Words)) {
        Words packed;
        memcpy(&packed, from + l, sizeof packed);
        UNROLL for (int j = 0; j < fields; j++) {
            Words row = {0}, field = ((packed >> (bits * j)) & (mask * 0x0101010101010101u)) << shift;
            if (shift) memcpy(&row, codes + j * length + l, sizeof row);
            row |= field;
            memcpy(codes + j * length + l, &row, sizeof row);
        }
    }
    for (; l < length; l++)
        for (int j = 0; j < fields && j * length + l < n; j++) {
            uint32_t field = (uint32_t)((from[l] >> (bits * j)) & mask) << shift;
            codes[j * length + l] = (uint8_t)(field | (shift ? codes[j * length + l] : 0u));
        }
}

INLINE void unpack(const uint8_t *from, int n, int width, uint8_t *codes) {
    int shift = 0;
    if (width & 8) unpack_plane(from, n, 8, shift, codes), from += n, shift += 8;
    if (width & 4) unpack_plane(from, n, 4, shift, codes), from += (n * 4 + 7) / 8, shift += 4;
    if (width & 2) unpack_plane(from, n, 2, shift, codes), from += (n * 2 + 7) / 8, shift += 2;
    if (width & 1) unpack_plane(from, n, 1, shift, codes);
}

INLINE void pack(const uint8_t *codes, int n, int width, uint8_t *to) {
    int shift = 0;
    if (width & 8) pack_plane(codes, n, 8, shift, to), to += n, shift += 8;
    if (width & 4) pack_plane(codes, n, 4, shift, to), to += (n * 4 + 7) / 8, shift += 4;
    if (width & 2) pack_plane(codes, n, 2, shift, to), to += (n * 2 + 7) / 8, shift += 2;
    if (width & 1) pack_plane(codes, n, 1, shift, to);
}

/* ---- encoding ----------------------------------------------------------------------------------------------- */

/* Quantize and pack y into `to`; return <y, Q(y)>. Quantized numbers are kept only until they are multiplied, a few
 * hundred at a time: the first cache holds them, and the product's additions wait while the quantizer works. */
INLINE double send(const Job *job, float *y, float inverse_sigma, Run run, uint8_t *to) {
    enum { STEP = 16 * LANES };
    uint8_t codes[BLOCK + LANES] __attribute__((aligned(LINE)));
    float q[STEP + 2 * LANES] __attribute__((aligned(LINE)));
    Sums sums;
    Part parts[2];
    int count = parts_of(run, parts), sent = run.high + run.low, done = 0, held = 0; /* entries multiplied, waiting */
    memset(&sums, 0, sizeof sums);
    for (int p = 0; p < count; p++) {
        Part part = parts[p];
        for (int at = 0; at < part.count; at += STEP) {
            int n = part.count - at < STEP ? part.count - at : STEP, k = 0;
            quantize(job, y + done + held, inverse_sigma, n, part.width, part.width - run.width, codes + at, q + held);
            for (held += n; held >= LANES; held -= LANES, k += LANES) add_products(&sums, y + done + k, q + k);
            if (held) memcpy(q, q + k, sizeof(float) * LANES);
            done += k;
        }
        pack(codes, part.count, part.width, to);
        to += packed_bytes(part.count, part.width);
    }
    if (held) {
        memset(y + sent, 0, sizeof(float) * LANES);
        memset(q + held, 0, sizeof(float) * LANES);
        add_products(&sums, y + done, q);
    }
    return total_of(&sums);
}

/* Write one block's codes to `to` and return its scale, divided by the headroom; -1 if it is not finite. `peak` is the
 * block's own and becomes that of the block behind `next`, if there is one. */
INLINE double encode_block(const Job *job, const float *x, int n, Run run, uint64_t block, uint8_t *to,
                           const float *next, uint32_t *peak) {
    float a[BLOCK + LANES] __attribute__((aligned(LINE))), b[BLOCK + LANES] __attribute__((aligned(LINE)));
    if (*peak >= 0x7f800000u) return -1;
    int shift = 127 - (int)(*peak >> 23), sent = run.high + run.low;
    shift = shift > 126 ? 126 : shift < -126 ? -126 : shift;
    float factor = float_of((uint32_t)(127 + shift) << 23);
    double length = 1, energy;
    if (n == BLOCK) {
        uint32_t lanes[2][2 * WORDS_PER_SET] __attribute__((aligned(LINE)));
        Ahead ahead = {(uintptr_t)next, 0};
        make_lanes(lanes[0], job->base, SETS_PER_BLOCK * block);
        make_lanes(lanes[1], job->base, SETS_PER_BLOCK * block + 1);
        square(x, b, lanes[0], factor, &ahead);
        square(b, a, lanes[1], 1.0f, &ahead);
        length = BLOCK;
        energy = next ? energy_and_peak(a, next, peak) : energy_of(a, BLOCK);
    } else {
        for (int i = 0; i < n; i++) a[i] = x[i] * factor;
        rotate_tail(a, b, n, job->base, SETS_PER_BLOCK * block);
        memset(a + n, 0, sizeof(float) * LANES);
        energy = energy_of(a, n);
    }
    double product = send(job, a, energy > 0 ? (float)(1 / sqrt(energy / n)) : 0.0f, run, to);
    if (sent < n) {
        memset(a + sent, 0, sizeof(float) * LANES);
        energy = energy_of(a, sent) * ((double)n / sent);
    }
    double scale = product > 0 ? ldexp(energy / (product * length * HEADROOM), -shift) : 0.0;
    if (scale > FLT_MAX) scale = FLT_MAX;
    if (scale == 0) memset(to, 0, (size_t)run_bytes(run));
    return scale;
}

static void pack_scales(Job *job) {
    uint8_t *to = job->payload + 1;
    double most = 0;
    for (Py_ssize_t k = 0; k < job->scale_count; k++) most = job->scales[k] > most ? job->scales[k] : most;
    float top = (float)(job->scale_count == 1 ? most : most * (MANTISSA / (2.0 * MANTISSA - 1)));
    memcpy(to, &top, 4);
    if (job->scale_count == 1) return;
    for (Py_ssize_t k = 0; k < job->scale_count; k++) {
        uint16_t code = 0;
        if (top > 0 && job->scales[k] > 0) {
            int exponent;
            double fraction = frexp(job->scales[k] / (double)top, &exponent);
            double dither = (double)(word(job->scale_base, (uint64_t)k) >> 11) * 0x1p-53;
            double position = ((30 + exponent) + (2 * fraction - 1)) * MANTISSA;
            double rounded = floor(position + dither);
            code = rounded < 0 ? 0 : rounded > 65535 ? 65535 : (uint16_t)rounded;
        }
        memcpy(to + 4 + 2 * k, &code, 2);
    }
}

ISA static void encode(Job *job) {
    uint8_t *to = job->payload + 1 + job->scale_bytes;
    Py_ssize_t full_bytes = run_bytes(job->full_run);
    job->payload[0] = VERSION;
    uint32_t peak = 0;
    for (Py_ssize_t k = 0; k < job->scale_count; k++) {
        int n = k < job->blocks ? BLOCK : job->tail;
        Run run = k < job->blocks ? job->full_run : job->tail_run;
        const float *x = job->x + k * BLOCK, *next = k + 1 < job->blocks ? x + BLOCK : NULL;
        if (k == 0 || k == job->blocks) peak = peak_of(x, n);
        job->scales[k] = encode_block(job, x, n, run, (uint64_t)k, to + k * full_bytes, next, &peak);
        if (job->scales[k] < 0) return;
    }
    const float *raw = job->x + job->size - job->raw;
    for (int i = 0; i < job->raw; i++)
        if (!isfinite(raw[i])) return;
    memcpy(to + job->blocks * full_bytes + run_bytes(job->tail_run), raw, sizeof(float) * (size_t)job->raw);
    if (job->scale_count) pack_scales(job);
    job->finite = 1;
}

/* ---- decoding ----------------------------------------------------------------------------------------------- */

static double scale_of(const Job *job, uint64_t block) {
    float top;
    uint16_t code;
    memcpy(&top, job->data + 1, 4);
    if (job->scale_count == 1) return top;
    memcpy(&code, job->data + 5 + 2 * block, 2);
    return code ? (double)top * ldexp(1 + (code % MANTISSA) / (double)MANTISSA, code / MANTISSA - 31) : 0.0;
}

/* Zero what was not received; return sent/received, each coordinate counted by its E[z Q(z)]. */
static double drop_lost(const Job *job, float *q, Run run, const uint8_t *received) {
    double came = 0, sent = 0;
    Part parts[2];
    int count = parts_of(run, parts);
    for (int p = 0; p < count; p++) {
        int arrived = 0;
        for (int i = parts[p].start; i < parts[p].start + parts[p].count; i++) {
            q[i] = received[i] ? q[i] : 0.0f;
            arrived += received[i] != 0;
        }
        came += arrived * job->gains[parts[p].width - 1];
        sent += parts[p].count * job->gains[parts[p].width - 1];
    }
    return came > 0 ? sent / came : 0.0;
}

/* Hand over n decoded coordinates from number `first` on. */
INLINE void deliver(const Job *job, const float *x, Py_ssize_t first, int n) {
    if (job->target == INTO_FLOATS) {
        memcpy((float *)job->out + first, x, sizeof(float) * (size_t)n);
    } else if (job->target == ONTO_FLOATS) {
        float *sum = (float *)job->out + first;
        for (int i = 0; i < n; i++) sum[i] = (float)((double)sum[i] + job->weight * (double)x[i]);
    } else {
        double *sum = (double *)job->out + first;
        for (int i = 0; i < n; i++) sum[i] += job->weight * (double)x[i];
    }
}

/* Negate, scale and hand over a whole block, from its last rows on (as in first_stages). */
INLINE void deliver_block(const float *x, uint32_t *lanes, float scale, void *out, Target target, double weight) {
    float *floats = out;
    double *doubles = out;
    for (int row = BLOCK - 2 * SIDE; row >= 0; row -= 2 * SIDE)
        UNROLL for (int l = 0; l < 2 * SIDE; l += W) {
            Ints signs = load_ints(lanes + l), next = signs << 1;
            Floats y = negate(load(x + row + l), signs) * scale;
            memcpy(lanes + l, &next, sizeof next);
            if (target == INTO_FLOATS) store(floats + row + l, y);
            if (target == ONTO_FLOATS) add_to_floats(floats + row + l, y, weight);
            if (target == ONTO_DOUBLES) add_to_doubles(doubles + row + l, y, weight);
        }
}

/* Decode a full block whose dequantized coordinates are in `a` to number `first` of `out`. */
INLINE void decode_full(const Job *job, float *a, float *b, float s, uint64_t block, void *out, Target target) {
    uint32_t lanes[2][2 * WORDS_PER_SET] __attribute__((aligned(LINE)));
    Ahead ahead = {(uintptr_t)out, 1};
    make_lanes(lanes[0], job->base, SETS_PER_BLOCK * block);
    make_lanes(lanes[1], job->base, SETS_PER_BLOCK * block + 1);
    square(a, b, NULL, 1.0f, &ahead);
    square(b, a, lanes[1], 1.0f, &ahead);
    deliver_block(a, lanes[0], s, out, target, job->weight);
}

/* Decode what decode_full does not: tails, zeros, and scales so large that coordinates may have to be clipped. */
ISA static void decode_other(const Job *job, float *a, float *b, float s, int n, uint64_t block) {
    if (s == 0)
        memset(a, 0, sizeof(float) * (size_t)n);
    else if (n == BLOCK) {
        decode_full(job, a, b, 1.0f, block, a, INTO_FLOATS);
    } else {
        unrotate_tail(a, b, n, job->base, SETS_PER_BLOCK * block);
    }
    for (int i = 0; i < n; i++) a[i] *= s;
    if (s > 0x1p100f)
        for (int i = 0; i < n; i++) a[i] = a[i] > FLT_MAX ? FLT_MAX : a[i] < -FLT_MAX ? -FLT_MAX : a[i];
    deliver(job, a, (Py_ssize_t)block * BLOCK, n);
}

INLINE void decode_block(const Job *job, const uint8_t *from, int n, Run run, uint64_t block) {
    float a[BLOCK + LANES] __attribute__((aligned(LINE))), b[BLOCK + LANES] __attribute__((aligned(LINE)));
    uint8_t codes[BLOCK + LANES] __attribute__((aligned(LINE)));
    double scale = scale_of(job, block);
    Part parts[2];
    int count = parts_of(run, parts), sent = run.high + run.low;
    for (int p = 0; p < count; p++) {
        Part part = parts[p];
        unpack(from, part.count, part.width, codes);
        dequantize(codes, job->levels[part.width - run.width], part.count, part.width, a + part.start);
        from += packed_bytes(part.count, part.width);
    }
    if (sent < BLOCK) memset(a + sent, 0, sizeof(float) * (size_t)(BLOCK - sent));
    if (job->received) scale *= drop_lost(job, a, run, job->received + block * BLOCK);
    float s = (float)(scale < FLT_MAX ? scale : FLT_MAX), *floats = (float *)job->out + block * BLOCK;
    if (n != BLOCK || s == 0 || s > 0x1p100f)
        decode_other(job, a, b, s, n, block);
    else if (job->target == INTO_FLOATS)
        decode_full(job, a, b, s, block, floats, INTO_FLOATS);
    else if (job->target == ONTO_FLOATS)
        decode_full(job, a, b, s, block, floats, ONTO_FLOATS);
    else
        decode_full(job, a, b, s, block, (double *)job->out + block * BLOCK, ONTO_DOUBLES);
}

ISA static void decode(Job *job) {
    const uint8_t *from = job->data + 1 + job->scale_bytes;
    Py_ssize_t full_bytes = run_bytes(job->full_run);
    for (Py_ssize_t k = 0; k < job->scale_count; k++) {
        int full = k < job->blocks;
        Run run = full ? job->full_run : job->tail_run;
        if (k == 0 || k == job->blocks) make_levels(job, run, (float)(full ? HEADROOM / BLOCK : HEADROOM));
        decode_block(job, from + k * full_bytes, full ? BLOCK : job->tail, run, (uint64_t)k);
    }
}
