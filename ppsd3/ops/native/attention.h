// What the kernels of attention share: where tokens are.

#pragma once

#include <algorithm>

#include "interface.h"
#include "threads.h"
#include "vectors.h"

static const float LOG2_E = 1.44269504088896341f, LN_2 = 0.69314718055994531f;

static inline i64 padded(i64 n) { return (n + LANES - 1) / LANES * LANES; }

// f(row, s) for the rows first .. first+count of one head, s from 0.
template <class F>
static inline void for_tokens(const Tokens& x, const Shape& n, i64 b, i64 head, i64 first, i64 count, F f) {
    i64 s = 0;
    for (int piece = 0; piece < 2; piece++) {
        i64 skipped = piece ? x.rows[0] : 0, end = std::min(count, skipped + x.rows[piece] - first);
        if (s >= end) continue;
        float* row = x.base[piece] + (b * x.rows[piece] + first + s - skipped) * x.stride[piece] + head * n.dim;
        for (; s < end; s++, row += x.stride[piece]) f(row, s);
    }
}

// Into how many tasks a head's queries are cut: one, unless that leaves threads idle. Each packs all keys, so they are long.
static inline i64 parts_of_head(const Shape& n, int threads) {
    i64 heads = n.batch * n.heads;
    return heads % threads && heads < 8 * threads ? std::max<i64>(1, std::min<i64>(threads, n.queries / 256)) : 1;
}
