/* Codes of 1 to 8 bits, packed without a gap: see packing.py. */

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
    if (n == BLOCK) return; /* nothing is left of whole words, which gcc does not see, and warns */
    for (; l < length; l++)
        for (int j = 0; j < fields && j * length + l < n; j++) {
            uint32_t field = (uint32_t)((from[l] >> (bits * j)) & mask) << shift;
            codes[j * length + l] = (uint8_t)(field | (shift ? codes[j * length + l] : 0u));
        }
}

INLINE void unpack(const uint8_t *from, int n, int width, uint8_t *codes) {
    int shift = 0, trits = width > TRIT;
    if (trits) width -= TRIT + 1;
    if (width & 8) unpack_plane(from, n, 8, shift, codes), from += n, shift += 8;
    if (width & 4) unpack_plane(from, n, 4, shift, codes), from += (n * 4 + 7) / 8, shift += 4;
    if (width & 2) unpack_plane(from, n, 2, shift, codes), from += (n * 2 + 7) / 8, shift += 2;
    if (width & 1) unpack_plane(from, n, 1, shift, codes), from += (n + 7) / 8, shift++;
    if (trits) unpack_trits(from, n, shift, codes);
}

INLINE void pack(const uint8_t *codes, int n, int width, uint8_t *to) {
    int shift = 0, trits = width > TRIT;
    if (trits) width -= TRIT + 1;
    if (width & 8) pack_plane(codes, n, 8, shift, to), to += n, shift += 8;
    if (width & 4) pack_plane(codes, n, 4, shift, to), to += (n * 4 + 7) / 8, shift += 4;
    if (width & 2) pack_plane(codes, n, 2, shift, to), to += (n * 2 + 7) / 8, shift += 2;
    if (width & 1) pack_plane(codes, n, 1, shift, to), to += (n + 7) / 8, shift++;
    if (trits) pack_trits(codes, n, shift, to);
}
