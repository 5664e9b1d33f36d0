// Softmax attention on vectors, and its gradients.

#include "attention.h"

#include "guarded.h"
#include "scratch.h"

// ----------------------------------------------------------------------------------------------- small matrices

// C[M, N] (+)= A[M, K] B[K, N]. A is read number by number, so its transpose is as good; N is whole vectors.
template <int ROWS, int VECTORS>
static inline void tile(i64 depth, const float* a, i64 a_row, i64 a_column, const float* b, i64 ldb, float* c, i64 ldc,
                        bool add) {
    vec acc[ROWS][VECTORS];
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < VECTORS; j++) acc[i][j] = add ? load(c + i * ldc + j * LANES) : vec{};
    for (i64 k = 0; k < depth; k++) {
        vec row[VECTORS];
        for (int j = 0; j < VECTORS; j++) row[j] = load(b + k * ldb + j * LANES);
        for (int i = 0; i < ROWS; i++) {
            vec x = splat(a[i * a_row + k * a_column]);
            for (int j = 0; j < VECTORS; j++) acc[i][j] += x * row[j];
        }
    }
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < VECTORS; j++) store(c + i * ldc + j * LANES, acc[i][j]);
}

template <int VECTORS>
static void panel(i64 rows, i64 depth, const float* a, i64 a_row, i64 a_column, const float* b, i64 ldb, float* c,
                  i64 ldc, bool add) {
    i64 i = 0;
    for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
        tile<TILE_ROWS, VECTORS>(depth, a + i * a_row, a_row, a_column, b, ldb, c + i * ldc, ldc, add);
    a += i * a_row, c += i * ldc;
    switch (rows - i) {
        case 5: tile<5, VECTORS>(depth, a, a_row, a_column, b, ldb, c, ldc, add); break;
        case 4: tile<4, VECTORS>(depth, a, a_row, a_column, b, ldb, c, ldc, add); break;
        case 3: tile<3, VECTORS>(depth, a, a_row, a_column, b, ldb, c, ldc, add); break;
        case 2: tile<2, VECTORS>(depth, a, a_row, a_column, b, ldb, c, ldc, add); break;
        case 1: tile<1, VECTORS>(depth, a, a_row, a_column, b, ldb, c, ldc, add); break;
    }
}

static void multiply(i64 rows, i64 columns, i64 depth, const float* a, i64 a_row, i64 a_column, const float* b, i64 ldb,
                     float* c, i64 ldc, bool add) {
    i64 j = 0, step = TILE_VECTORS * LANES;
    for (; j + step <= columns; j += step)
        panel<TILE_VECTORS>(rows, depth, a, a_row, a_column, b + j, ldb, c + j, ldc, add);
    switch ((columns - j) / LANES) {
#if TILE_VECTORS > 2
        case 3: panel<3>(rows, depth, a, a_row, a_column, b + j, ldb, c + j, ldc, add); break;
        case 2: panel<2>(rows, depth, a, a_row, a_column, b + j, ldb, c + j, ldc, add); break;
#endif
        case 1: panel<1>(rows, depth, a, a_row, a_column, b + j, ldb, c + j, ldc, add); break;
    }
}

// --------------------------------------------------------------------------------------------------- attention

static const i64 QUERY_BLOCK = 8 * TILE_ROWS, KEY_BLOCK = 512;  // scores of a block: 98 KB, in the second cache
static const i64 PANEL = TILE_VECTORS * LANES;                  // divides KEY_BLOCK

// Rows of one head, contiguous, zero-padded to whole vectors, times `scale`.
static void pack(const Tokens& x, const Shape& n, i64 b, i64 head, i64 first, i64 count, float scale, float* out) {
    i64 width = padded(n.dim);
    for_tokens(x, n, b, head, first, count, [&](const float* row, i64 s) {
        for_row(n.dim, [&](i64 j, i64 m) {
            __builtin_prefetch(row + n.dim + j);  // the next head's
            store(out + s * width + j, load_n(row + j, m) * scale);
        });
    });
}

static void unpack(const float* packed, const Shape& n, i64 b, i64 head, i64 count, float scale, const Tokens& x) {
    i64 width = padded(n.dim);
    for_tokens(x, n, b, head, 0, count, [&](float* row, i64 s) {
        for_row(n.dim, [&](i64 j, i64 m) { store_n(row + j, load(packed + s * width + j) * scale, m); });
    });
}

// Packed rows -> one [width, PANEL] matrix for each PANEL of them, zero beyond the last row: a panel is small and without
// gaps, so it stays in the first cache.
static void transpose_panels(const float* packed, i64 rows, i64 width, float* out) {
    for (i64 first = 0; first < rows; first += PANEL, out += width * PANEL) {
        i64 count = std::min(PANEL, rows - first);
        const float* block = packed + first * width;
        for (i64 c = 0; c < width; c++) {
            float* line = out + c * PANEL;
            for (i64 s = 0; s < count; s++) line[s] = block[s * width + c];
            for (i64 s = count; s < PANEL; s++) line[s] = 0;
        }
    }
}

static i64 panels_size(i64 rows, i64 width) { return (rows + PANEL - 1) / PANEL * PANEL * width; }

// out[rows][KEY_BLOCK] = a[rows][width] times the first `columns` of what transpose_panels made.
static void multiply_panels(i64 rows, i64 columns, i64 width, const float* a, const float* panels, float* out) {
    for (i64 j = 0; j < columns; j += PANEL)
        multiply(rows, padded(std::min(PANEL, columns - j)), width, a, width, 1, panels + j * width, PANEL, out + j,
                 KEY_BLOCK, false);
}

// One row of scores s[0..count) -> 2^(s - maximum), with the running maximum and sum of online softmax
// (Milakov and Gimelshein 2018). Returns the factor that what was accumulated before must be multiplied with.
static inline float softmax_row(float* s, i64 count, float& maximum, float& total) {
    i64 full = padded(count);
    for (i64 j = count; j < full; j++) s[j] = -1e30f;
    vec top = load(s);
    for (i64 j = LANES; j < full; j += LANES) top = vmax(top, load(s + j));
    float highest = std::max(maximum, maximum_of(top));
    vec added{};
    for (i64 j = 0; j < full; j += LANES) {
        vec p = vexp2_negative(load(s + j) - highest);
        store(s + j, p);
        added += p;
    }
    float rescale = maximum == highest ? 1.0f : total == 0 ? 0.0f : std::exp2(maximum - highest);
    total = total * rescale + sum(added);
    maximum = highest;
    return rescale;
}

// softmax(scale q k^T + bias) v for the queries first .. last of one head; keys and values are in `keys_t` and `values`.
static void attend(const Shape& n, const Tokens& q, const Tokens& out, float* lse, i64 b, i64 head, i64 first, i64 last,
                   float scale, const float* bias, const float* keys_t, const float* values, float* queries,
                   float* scores, float* sums) {
    i64 width = padded(n.dim);
    for (i64 i0 = first; i0 < last; i0 += QUERY_BLOCK) {
        i64 rows = std::min(QUERY_BLOCK, last - i0);
        float maximum[QUERY_BLOCK], total[QUERY_BLOCK];
        std::fill(maximum, maximum + rows, -INFINITY);
        std::fill(total, total + rows, 0.0f);
        pack(q, n, b, head, i0, rows, scale * LOG2_E, queries);  // for powers of 2
        for (i64 j0 = 0; j0 < n.keys; j0 += KEY_BLOCK) {
            i64 count = std::min(KEY_BLOCK, n.keys - j0);
            multiply_panels(rows, count, width, queries, keys_t + j0 * width, scores);
            for (i64 i = 0; i < rows; i++) {
                if (bias) {
                    float* row = scores + i * KEY_BLOCK;
                    const float* added = bias + (i0 + i) * n.keys + j0;
                    for_row(count, [&](i64 j, i64 m) {
                        store_n(row + j, load_n(row + j, m) + LOG2_E * load_n(added + j, m), m);
                    });
                }
                float rescale = softmax_row(scores + i * KEY_BLOCK, count, maximum[i], total[i]);
                if (j0 && rescale != 1.0f)
                    for (i64 j = 0; j < width; j += LANES)
                        store(sums + i * width + j, load(sums + i * width + j) * rescale);
            }
            multiply(rows, width, count, scores, KEY_BLOCK, 1, values + j0 * width, width, sums, width, j0 > 0);
        }
        for_tokens(out, n, b, head, i0, rows, [&](float* row, i64 i) {
            float factor = 1.0f / total[i];
            for_row(n.dim, [&](i64 j, i64 m) { store_n(row + j, load(sums + i * width + j) * factor, m); });
            if (lse) lse[(b * n.heads + head) * n.queries + i0 + i] = maximum[i] * LN_2 + std::log(total[i]);
        });
    }
}

// Gradients of one head. The probabilities are computed again from q, k and the saved log-sum-exp
// (FlashAttention-2, algorithm 2), in blocks of keys and, inside, of queries.
static void attend_backward(const Shape& n, const Tokens& q, const Tokens& k, const Tokens& v, const Tokens& out,
                            const Tokens& dout, const float* lse, const Tokens& dq, const Tokens& dk, const Tokens& dv,
                            i64 b, i64 head, float scale) {
    i64 width = padded(n.dim), query_size = n.queries * width, key_size = n.keys * width;
    i64 block_size = panels_size(n.keys, width);
    scratch.reset(3 * query_size + 4 * key_size + 2 * block_size + 2 * QUERY_BLOCK * KEY_BLOCK + n.queries);
    float *queries = scratch.take(query_size), *gradients = scratch.take(query_size), *sum_q = scratch.take(query_size);
    float *keys = scratch.take(key_size), *values = scratch.take(key_size);
    float *sum_k = scratch.take(key_size), *sum_v = scratch.take(key_size);
    float *keys_t = scratch.take(block_size), *values_t = scratch.take(block_size);
    float *p = scratch.take(QUERY_BLOCK * KEY_BLOCK), *ds = scratch.take(QUERY_BLOCK * KEY_BLOCK);
    float* delta = scratch.take(n.queries);  // sum over d of dout * out, one per query

    pack(q, n, b, head, 0, n.queries, scale, queries);
    pack(dout, n, b, head, 0, n.queries, 1, gradients);
    pack(k, n, b, head, 0, n.keys, 1, keys);
    pack(v, n, b, head, 0, n.keys, 1, values);
    transpose_panels(keys, n.keys, width, keys_t);
    transpose_panels(values, n.keys, width, values_t);
    lse += (b * n.heads + head) * n.queries;
    for_tokens(out, n, b, head, 0, n.queries, [&](const float* row, i64 i) {
        vec s{};
        for_row(n.dim, [&](i64 j, i64 m) { s += load_n(row + j, m) * load(gradients + i * width + j); });
        delta[i] = sum(s);
    });

    for (i64 j0 = 0; j0 < n.keys; j0 += KEY_BLOCK) {
        i64 count = std::min(KEY_BLOCK, n.keys - j0), full = padded(count);
        for (i64 i0 = 0; i0 < n.queries; i0 += QUERY_BLOCK) {
            i64 rows = std::min(QUERY_BLOCK, n.queries - i0);
            const float *block_q = queries + i0 * width, *block_g = gradients + i0 * width;
            multiply_panels(rows, count, width, block_q, keys_t + j0 * width, p);
            multiply_panels(rows, count, width, block_g, values_t + j0 * width, ds);
            for (i64 i = 0; i < rows; i++) {
                float *row_p = p + i * KEY_BLOCK, *row_ds = ds + i * KEY_BLOCK, shift = lse[i0 + i], d = delta[i0 + i];
                for (i64 j = 0; j < full; j += LANES) {
                    vec probability = vexp(load(row_p + j) - shift);
                    store(row_p + j, probability);
                    store(row_ds + j, probability * (load(row_ds + j) - d));
                }
            }
            multiply(count, width, rows, p, 1, KEY_BLOCK, block_g, width, sum_v + j0 * width, width, i0 > 0);
            multiply(count, width, rows, ds, 1, KEY_BLOCK, block_q, width, sum_k + j0 * width, width, i0 > 0);
            multiply(rows, width, count, ds, KEY_BLOCK, 1, keys + j0 * width, width, sum_q + i0 * width, width, j0 > 0);
        }
    }
    unpack(sum_q, n, b, head, n.queries, scale, dq);
    unpack(sum_k, n, b, head, n.keys, 1, dk);
    unpack(sum_v, n, b, head, n.keys, 1, dv);
}

extern "C" {

int32_t ppsd3_attention(const Shape* shape, const Tokens* q, const Tokens* k, const Tokens* v, const Tokens* out,
                        float* lse, float scale, const float* bias, int64_t bias_batch, int64_t bias_head) {
    return guarded([&] {
        const Shape n = *shape;
        i64 heads = n.batch * n.heads, width = padded(n.dim);
        int threads = threads_for(heads * n.queries * n.keys * n.dim / 8);
        i64 parts = parts_of_head(n, threads);
        share_tasks(heads * parts, threads, [&](i64 task) {
            i64 b = task / parts / n.heads, head = task / parts % n.heads, part = task % parts;
            i64 key_size = n.keys * width, block_size = panels_size(n.keys, width);
            scratch.reset(key_size + block_size + 2 * QUERY_BLOCK * width + QUERY_BLOCK * KEY_BLOCK);
            float *values = scratch.take(key_size), *keys_t = scratch.take(block_size);
            float *queries = scratch.take(QUERY_BLOCK * width), *sums = scratch.take(QUERY_BLOCK * width);
            float* scores = scratch.take(QUERY_BLOCK * KEY_BLOCK);
            pack(*k, n, b, head, 0, n.keys, 1, values);  // where the values go next: keys are only needed transposed
            transpose_panels(values, n.keys, width, keys_t);
            pack(*v, n, b, head, 0, n.keys, 1, values);
            attend(n, *q, *out, lse, b, head, n.queries * part / parts, n.queries * (part + 1) / parts, scale,
                   bias ? bias + b * bias_batch + head * bias_head : nullptr, keys_t, values, queries, scores, sums);
        });
    });
}

int32_t ppsd3_attention_backward(const Shape* shape, const Tokens* q, const Tokens* k, const Tokens* v,
                                 const Tokens* out, const Tokens* dout, const float* lse, const Tokens* dq,
                                 const Tokens* dk, const Tokens* dv, float scale) {
    return guarded([&] {
        const Shape n = *shape;
        i64 heads = n.batch * n.heads;
        share_tasks(heads, threads_for(heads * n.queries * n.keys * n.dim / 8), [&](i64 task) {
            attend_backward(n, *q, *k, *v, *out, *dout, lse, *dq, *dk, *dv, task / n.heads, task % n.heads, scale);
        });
    });
}

}  // extern "C"
