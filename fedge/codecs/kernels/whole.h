/* Blocks that are rotated in whole numbers: `whole.py` in C, the same bytes and the same floats. Included by kernels.h.
 *
 * What is done to a place of the block (see there) is done to rows by the upper eight of its bits, and by the lower four
 * to the numbers in a row. Every pass loads rows, does as many stages as registers hold, and may exchange bits of the rows
 * it holds and of the numbers in them, so that the next pass finds others in the upper ones. All is exact but where it says
 * so: the order of stages is free.
 */

#include "rows.h"

/* The lanes of 16 bits of one set (rotation.py). */
INLINE void make_short_lanes(uint16_t *lanes, const Job *job, uint64_t set) {
    uint32_t whole[2 * WORDS_PER_SET];
    make_lanes(whole, job->base, set);
    memcpy(lanes, whole, sizeof whole);
}

/* Rows 2r and 2r + 1 of a group have their codes in one row of the plane (pack.h), r / rows fields to the left. Codes of
 * three bits have two planes; here they are bytes. */
INLINE int rows_of(int width) { return width == 3 ? 8 : width; }

INLINE int place_of(int row, int group, int part) { return (row * 16 + group) * 2 * ROW + part * 2 * NARROW; }

#include "whole_encode.h"
#include "whole_decode.h"
