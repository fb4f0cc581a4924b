/* Blocks whose groups travel as directions: `spherical.py` in C, the same words and the same floats. Included after
 * codes.h.
 *
 * Groups of coordinates lie side by side, one in each lane of 16 bits, so that a Hadamard transform of all of them is
 * additions of whole vectors. All sums are exact, so their order is free: the longest distances come first, with the
 * signs, and the last two stages are never written. Of a ± b the larger magnitude is |a| + |b|, and only where a lane
 * has found more than before is it asked which of them it was.
 */

enum { GROUPS = 2 * W }; /* that are searched together */

#define SMALLEST_PEAK 0x1p-100f /* of a group that is not taken for zeros */

INLINE Shorts chosen(Shorts where, Shorts yes, Shorts no) { return (where & yes) | (~where & no); }

INLINE int any(Shorts x) {
    uint64_t words[sizeof x / 8], all = 0;
    memcpy(words, &x, sizeof x);
    UNROLL for (size_t k = 0; k < sizeof x / 8; k++) all |= words[k];
    return all != 0;
}

/* Two stages, of distances 2·near and near, on rows near apart. */
INLINE void butterflies(Shorts *x, int near, Shorts a, Shorts b, Shorts c, Shorts d) {
    Shorts e = a + c, f = b + d, g = a - c, h = b - d;
    x[0] = e + f, x[near] = e - f, x[2 * near] = g + h, x[3 * near] = g - h;
}

/* Signs, and the two stages of the longest distances. */
INLINE void first_stages(const Shorts *z, const int16_t *signs, int n, Shorts *x) {
    int near = n / 4;
    for (int i = 0; i < near; i++) {
        Shorts y[4];
        UNROLL for (int k = 0; k < 4; k++) y[k] = z[i + k * near] * signs[i + k * near];
        butterflies(x + i, near, y[0], y[1], y[2], y[3]);
    }
}

/* All stages but those of the distances 2 and 1. n is 16 to 1024. */
INLINE void most_stages(const Shorts *z, const int16_t *signs, int n, Shorts *x) {
    int distance = n / 8;
    first_stages(z, signs, n, x);
    for (; distance >= 8; distance /= 4)
        for (int i = 0; i < n; i += 2 * distance)
            for (int l = i; l < i + distance / 2; l++)
                butterflies(x + l, distance / 2, x[l], x[l + distance / 2], x[l + distance], x[l + distance / 2 * 3]);
    if (distance == 4)
        for (int i = 0; i < n; i += 8)
            UNROLL for (int l = i; l < i + 4; l++) {
                Shorts a = x[l], b = x[l + 4];
                x[l] = a + b, x[l + 4] = a - b;
            }
}

/* The largest magnitude after the last two stages. */
INLINE Shorts highest(const Shorts *x, int n) {
    Shorts most = {0};
    for (int i = 0; i < n; i += 4) {
        most = larger_short(most, magnitude_short(x[i] + x[i + 2]) + magnitude_short(x[i + 1] + x[i + 3]));
        most = larger_short(most, magnitude_short(x[i] - x[i + 2]) + magnitude_short(x[i + 1] - x[i + 3]));
    }
    return most;
}

/* The first row whose magnitude that is. */
INLINE Shorts row_of(Shorts most, Shorts *x, int n) {
    Shorts row = {0};
    for (int i = n - 4; i >= 0; i -= 4) {
        butterflies(x + i, 1, x[i], x[i + 1], x[i + 2], x[i + 3]);
        for (int k = 3; k >= 0; k--) row = chosen(magnitude_short(x[i + k]) == most, (Shorts){0} + (int16_t)(i + k), row);
    }
    return row;
}

/* The nearest direction to each group, but for its sign: n·j + r. */
INLINE Shorts nearest_at(const Shorts *z, const int16_t *signs, int n, Shorts *x) {
    Shorts best = (Shorts){0} - 1, found = {0};
    for (int first = 0; first < DIRECTIONS; first += n) {
        most_stages(z, signs + first, n, x);
        Shorts most = highest(x, n), better = most > best;
        if (!any(better)) continue;
        found = chosen(better, row_of(most, x, n) + (int16_t)first, found);
        best = larger_short(most, best);
    }
    return found;
}

PHASE Shorts nearest_of(const Shorts *z, const int16_t *signs, int n, Shorts *x) {
    if (n == 16) return nearest_at(z, signs, 16, x);
    if (n == 32) return nearest_at(z, signs, 32, x);
    if (n == 64) return nearest_at(z, signs, 64, x);
    return nearest_at(z, signs, n, x);
}

/* What a word says of the first `count` coordinates of its group, ±1. */
INLINE void say(uint32_t word, const int16_t *signs, int n, int count, float *to) {
    uint32_t index = word >> 1, r = index & (uint32_t)(n - 1);
    signs += index - r;
    for (int i = 0; i < count; i++) {
        uint32_t odd = (uint32_t)__builtin_parity(r & (uint32_t)i) + word + (uint32_t)(signs[i] < 0);
        to[i] = odd & 1 ? -1.0f : 1.0f;
    }
}

/* The words of a block y of `size` coordinates, and what they say, `q`. */
ISA static void find_words(const CodeJob *job, const float *y, int size, int groups, uint8_t *words, float *q) {
    int n = order_of(size, groups);
    Shorts *z = (Shorts *)job->room, *x = z + LONGEST_GROUP; /* too much for the stack of a thread */
    for (int group = 0; group < groups; group += GROUPS) {
        int together = groups - group < GROUPS ? groups - group : GROUPS;
        memset(z, 0, sizeof *z * (size_t)n);
        for (int l = 0; l < together; l++) {
            int start = edge_of(group + l, size, groups), count = edge_of(group + l + 1, size, groups) - start;
            float peak = 0;
            for (int i = start; i < start + count; i++) peak = fabsf(y[i]) > peak ? fabsf(y[i]) : peak;
            float scale = (float)(INT16_MAX / n - 1) / (peak > SMALLEST_PEAK ? peak : 1.0f);
            for (int i = 0; i < count; i++)
                ((int16_t *)(z + i))[l] = (int16_t)((y[start + i] * scale + 12582912.0f) - 12582912.0f);
        }
        Shorts found = nearest_of(z, job->signs, n, x);
        for (int l = 0; l < together; l++) {
            int start = edge_of(group + l, size, groups), count = edge_of(group + l + 1, size, groups) - start;
            uint16_t word = (uint16_t)(2 * found[l]);
            int sum = 0;
            say(word, job->signs, n, count, q + start);
            for (int i = 0; i < count; i++) sum += q[start + i] > 0 ? z[i][l] : -z[i][l];
            if (sum < 0) {
                word++;
                for (int i = start; i < start + count; i++) q[i] = -q[i];
            }
            memcpy(words + 2 * (group + l), &word, 2);
        }
    }
}

ISA static void encode_directions(CodeJob *job) {
    for (Py_ssize_t k = 0; k < job->blocks; k++) {
        float a[BLOCK + LANES] __attribute__((aligned(LINE))), b[BLOCK + LANES] __attribute__((aligned(LINE)));
        int n = (int)job->sizes[k];
        rotate_coded(job, k, a, b);
        find_words(job, a, n, (int)job->groups[k], job->said + 2 * job->symbol_starts[k], b);
        memset(a + n, 0, sizeof(float) * LANES);
        memset(b + n, 0, sizeof(float) * LANES);
        job->products[k] = product_of(a, b, n);
    }
}

ISA static void decode_directions(CodeJob *job) {
    for (Py_ssize_t k = 0; k < job->blocks; k++) {
        float a[BLOCK + LANES] __attribute__((aligned(LINE))), b[BLOCK + LANES] __attribute__((aligned(LINE)));
        int size = (int)job->sizes[k], groups = (int)job->groups[k], n = order_of(size, groups);
        float unit = size == BLOCK ? 1.0f / BLOCK : 1.0f;
        for (int group = 0; group < groups; group++) {
            int start = edge_of(group, size, groups), count = edge_of(group + 1, size, groups) - start;
            uint16_t word;
            memcpy(&word, job->said + 2 * (job->symbol_starts[k] + group), 2);
            say(word, job->signs, n, count, a + start);
        }
        for (int i = 0; i < size; i++) a[i] *= unit;
        finish_coded(job, k, a, b);
    }
}
