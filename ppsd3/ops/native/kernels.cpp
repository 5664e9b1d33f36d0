// Native CPU kernels of the transformer: float32, row-major, forward and backward.
//
// Plain C functions on raw pointers, so that no header of Paddle's is needed and any C++14 compiler with GCC vector
// extensions (GCC, clang) builds them in seconds.
//
// Legend: B batch, S tokens, D width, h heads, d head width, T = product of the leading axes.

#include "attention.h"

fork_type runtime_fork = nullptr;
int (*runtime_max_threads)() = nullptr;

// -------------------------------------------------------------------------------------------------------- gelu

static inline vec gelu_slope(vec x) {
    vec x2 = x * x;
    vec s = 1.0f / (1.0f + vexp(-GELU_TWO_C * x * (1.0f + GELU_CUBIC * x2)));
    return s + x * s * (1.0f - s) * GELU_TWO_C * (1.0f + 3.0f * GELU_CUBIC * x2);
}

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
    i64 width = n.width();
    for_tokens(x, n, b, head, first, count, [&](const float* row, i64 s) {
        for_row(n.dim, [&](i64 j, i64 m) {
            __builtin_prefetch(row + n.dim + j);  // the next head's
            store(out + s * width + j, load_n(row + j, m) * scale);
        });
    });
}

static void unpack(const float* packed, const Shape& n, i64 b, i64 head, i64 count, float scale, const Tokens& x) {
    i64 width = n.width();
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
        multiply(rows, padded(std::min(PANEL, columns - j)), width, a, width, 1, panels + j * width, PANEL, out + j, KEY_BLOCK,
                 false);
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
    i64 width = n.width();
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
    i64 width = n.width(), query_size = n.queries * width, key_size = n.keys * width;
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

// ---------------------------------------------------------------------------------------------------- interface

extern "C" {

int ppsd3_lanes() { return LANES; }
int ppsd3_threads() { return max_threads(); }

// fork: GOMP_parallel; threads: omp_get_max_threads, both of the runtime that Paddle set its thread number in.
void ppsd3_set_runtime(void* fork, void* threads) {
    runtime_fork = reinterpret_cast<fork_type>(fork);
    runtime_max_threads = reinterpret_cast<int (*)()>(threads);
}

// x[T, D] += bias[D], in place.
void ppsd3_add_bias(float* x, const float* bias, i64 rows, i64 width) {
    share_rows(rows, threads_for(rows * width), [&](i64 first, i64 last, int) {
        for (i64 i = first; i < last; i++) {
            float* row = x + i * width;
            for_row(width, [&](i64 j, i64 n) { store_n(row + j, load_n(row + j, n) + load_n(bias + j, n), n); });
        }
    });
}

// out[D] = sum over T of x[T, D].
void ppsd3_column_sum(const float* x, float* out, i64 rows, i64 width) {
    int threads = int(std::max<i64>(1, std::min<i64>(threads_for(rows * width), rows)));
    std::vector<float> partial(threads * width, 0.0f);
    share_rows(rows, threads, [&](i64 first, i64 last, int member) {
        float* total = partial.data() + member * width;
        i64 i = first;
        for (; i + 4 <= last; i += 4) {
            const float* row = x + i * width;
            for_row(width, [&](i64 j, i64 n) {
                vec s = load_n(row + j, n) + load_n(row + width + j, n);
                s += load_n(row + 2 * width + j, n) + load_n(row + 3 * width + j, n);
                store_n(total + j, load_n(total + j, n) + s, n);
            });
        }
        for (; i < last; i++)
            for_row(width, [&](i64 j, i64 n) {
                store_n(total + j, load_n(total + j, n) + load_n(x + i * width + j, n), n);
            });
    });
    add_parts(partial.data(), threads, width, out);
}

// out = gelu(x + bias); x becomes x + bias, which the backward needs, unless out is x. bias may be null.
void ppsd3_gelu(float* x, const float* bias, float* out, i64 rows, i64 width) {
    share_rows(rows, threads_for(rows * width * 8), [&](i64 first, i64 last, int) {
        for (i64 i = first; i < last; i++) {
            float *row = x + i * width, *row_out = out + i * width;
            for_row(width, [&](i64 j, i64 n) {
                vec y = load_n(row + j, n);
                if (bias) {
                    y += load_n(bias + j, n);
                    if (x != out) store_n(row + j, y, n);
                }
                store_n(row_out + j, gelu(y), n);
            });
        }
    });
}

// dx = dout * gelu'(x), and dbias[D] = sum over T of dx where dbias is not null.
void ppsd3_gelu_backward(const float* x, const float* dout, float* dx, float* dbias, i64 rows, i64 width) {
    int threads = int(std::max<i64>(1, std::min<i64>(threads_for(rows * width * 8), rows)));
    std::vector<float> partial(dbias ? threads * width : 0, 0.0f);
    share_rows(rows, threads, [&](i64 first, i64 last, int member) {
        float* total = dbias ? partial.data() + member * width : nullptr;
        for (i64 i = first; i < last; i++) {
            const float *row = x + i * width, *row_dout = dout + i * width;
            float* row_dx = dx + i * width;
            for_row(width, [&](i64 j, i64 n) {
                vec g = load_n(row_dout + j, n) * gelu_slope(load_n(row + j, n));
                store_n(row_dx + j, g, n);
                if (total) store_n(total + j, load_n(total + j, n) + g, n);
            });
        }
    });
    if (dbias) add_parts(partial.data(), threads, width, dbias);
}

// out = layer_norm(x) * (1 + scale) + shift; x [B, S, D], shift and scale [B, D] or both null.
// mean and rstd [B, S] are kept for the backward unless null.
void ppsd3_layer_norm(const float* x, const float* shift, const float* scale, float* out, float* mean, float* rstd,
                      i64 batch, i64 tokens, i64 width, float epsilon) {
    share_rows(batch * tokens, threads_for(batch * tokens * width * 2), [&](i64 first, i64 last, int) {
        for (i64 i = first; i < last; i++) {
            const float *row = x + i * width, *row_shift = nullptr, *row_scale = nullptr;
            float* row_out = out + i * width;
            if (shift) row_shift = shift + i / tokens * width, row_scale = scale + i / tokens * width;
            vec s{};
            for_row(width, [&](i64 j, i64 n) { s += load_n(row + j, n); });
            float average = sum(s) / width;
            vec squares{};
            i64 j = 0;
            for (; j + LANES <= width; j += LANES) {
                vec c = load(row + j) - average;
                squares += c * c;
            }
            float variance = sum(squares);
            for (; j < width; j++) variance += (row[j] - average) * (row[j] - average);
            float r = 1.0f / std::sqrt(variance / width + epsilon);
            for_row(width, [&](i64 j, i64 n) {
                vec y = (load_n(row + j, n) - average) * r;
                if (shift) y = y * (1.0f + load_n(row_scale + j, n)) + load_n(row_shift + j, n);
                store_n(row_out + j, y, n);
            });
            if (mean) mean[i] = average, rstd[i] = r;
        }
    });
}

// Gradients of ppsd3_layer_norm; scale, dshift and dscale are null without modulation.
void ppsd3_layer_norm_backward(const float* x, const float* scale, const float* mean, const float* rstd,
                               const float* dout, float* dx, float* dshift, float* dscale, i64 batch, i64 tokens,
                               i64 width) {
    // one batch item's tokens are summed by one thread each, or by several where there are fewer items than threads
    int threads = threads_for(batch * tokens * width * 4);
    i64 parts = std::min<i64>(tokens, std::max<i64>(1, (threads + batch - 1) / batch));
    std::vector<float> partial(scale && parts > 1 ? 2 * batch * parts * width : 0);
    share_rows(batch * parts, threads, [&](i64 first, i64 last, int) {
        for (i64 task = first; task < last; task++) {
            i64 b = task / parts, part = task % parts;
            float *sum_shift = nullptr, *sum_scale = nullptr;
            if (scale) {
                sum_shift = parts > 1 ? partial.data() + 2 * task * width : dshift + b * width;
                sum_scale = parts > 1 ? sum_shift + width : dscale + b * width;
                std::fill(sum_shift, sum_shift + width, 0.0f);
                std::fill(sum_scale, sum_scale + width, 0.0f);
            }
            const float* row_scale = scale ? scale + b * width : nullptr;
            for (i64 s = tokens * part / parts; s < tokens * (part + 1) / parts; s++) {
                i64 i = b * tokens + s;
                const float *row = x + i * width, *row_dout = dout + i * width;
                float* row_dx = dx + i * width;
                float m = mean[i], r = rstd[i];
                vec plain{}, weighted{};
                for_row(width, [&](i64 j, i64 n) {
                    vec dy = load_n(row_dout + j, n), normal = (load_n(row + j, n) - m) * r, g = dy;
                    if (row_scale) {
                        store_n(sum_shift + j, load_n(sum_shift + j, n) + dy, n);
                        store_n(sum_scale + j, load_n(sum_scale + j, n) + dy * normal, n);
                        g = dy * (1.0f + load_n(row_scale + j, n));
                    }
                    plain += g;  // lanes beyond the row are zero: dy is
                    weighted += g * normal;
                });
                float c1 = sum(plain) / width, c2 = sum(weighted) / width;
                for_row(width, [&](i64 j, i64 n) {
                    vec g = load_n(row_dout + j, n), normal = (load_n(row + j, n) - m) * r;
                    if (row_scale) g = g * (1.0f + load_n(row_scale + j, n));
                    store_n(row_dx + j, (g - c1 - normal * c2) * r, n);
                });
            }
        }
    });
    if (partial.empty()) return;
    for (i64 b = 0; b < batch; b++) {
        for (i64 j = 0; j < width; j++) dshift[b * width + j] = dscale[b * width + j] = 0;
        for (i64 part = 0; part < parts; part++) {
            const float* p = partial.data() + 2 * (b * parts + part) * width;
            for (i64 j = 0; j < width; j++) dshift[b * width + j] += p[j], dscale[b * width + j] += p[width + j];
        }
    }
}

// out = residual + gate * x; residual, x [B, S, D], gate [B, D].
void ppsd3_gated_residual(const float* residual, const float* gate, const float* x, float* out, i64 batch, i64 tokens,
                          i64 width) {
    share_rows(batch * tokens, threads_for(batch * tokens * width), [&](i64 first, i64 last, int) {
        for (i64 i = first; i < last; i++) {
            const float *row = x + i * width, *row_residual = residual + i * width, *row_gate = gate + i / tokens * width;
            float* row_out = out + i * width;
            for_row(width, [&](i64 j, i64 n) {
                store_n(row_out + j, load_n(row_residual + j, n) + load_n(row_gate + j, n) * load_n(row + j, n), n);
            });
        }
    });
}

// dx = gate * dout, dgate = sum over S of dout * x.
void ppsd3_gated_residual_backward(const float* gate, const float* x, const float* dout, float* dx, float* dgate,
                                   i64 batch, i64 tokens, i64 width) {
    int threads = threads_for(batch * tokens * width * 2);
    i64 parts = std::min<i64>(tokens, std::max<i64>(1, (threads + batch - 1) / batch));
    std::vector<float> partial(batch * parts * width, 0.0f);
    share_rows(batch * parts, threads, [&](i64 first, i64 last, int) {
        for (i64 task = first; task < last; task++) {
            i64 b = task / parts, part = task % parts;
            float* total = partial.data() + task * width;
            const float* row_gate = gate + b * width;
            for (i64 s = tokens * part / parts; s < tokens * (part + 1) / parts; s++) {
                i64 offset = (b * tokens + s) * width;
                for_row(width, [&](i64 j, i64 n) {
                    vec dy = load_n(dout + offset + j, n);
                    store_n(dx + offset + j, dy * load_n(row_gate + j, n), n);
                    store_n(total + j, load_n(total + j, n) + dy * load_n(x + offset + j, n), n);
                });
            }
        }
    });
    for (i64 b = 0; b < batch; b++) add_parts(partial.data() + b * parts * width, parts, width, dgate + b * width);
}

// out = x / sqrt(mean(x^2) + epsilon) * weight, row by row; x [T, d], weight [d].
void ppsd3_rms_norm(const float* x, const float* weight, float* out, i64 rows, i64 width, float epsilon) {
    share_rows(rows, threads_for(rows * width * 2), [&](i64 first, i64 last, int) {
        for (i64 i = first; i < last; i++) {
            const float* row = x + i * width;
            vec s{};
            for_row(width, [&](i64 j, i64 n) {
                vec v = load_n(row + j, n);
                s += v * v;
            });
            float r = 1.0f / std::sqrt(sum(s) / width + epsilon);
            for_row(width, [&](i64 j, i64 n) {
                store_n(out + i * width + j, load_n(row + j, n) * r * load_n(weight + j, n), n);
            });
        }
    });
}

// Gradients of ppsd3_rms_norm.
void ppsd3_rms_norm_backward(const float* x, const float* weight, const float* dout, float* dx, float* dweight, i64 rows,
                             i64 width, float epsilon) {
    int threads = int(std::max<i64>(1, std::min<i64>(threads_for(rows * width * 4), rows)));
    std::vector<float> partial(threads * width, 0.0f);
    share_rows(rows, threads, [&](i64 first, i64 last, int member) {
        float* total = partial.data() + member * width;
        for (i64 i = first; i < last; i++) {
            const float *row = x + i * width, *row_dout = dout + i * width;
            vec squares{}, products{};
            for_row(width, [&](i64 j, i64 n) {
                vec v = load_n(row + j, n);
                squares += v * v;
                products += v * load_n(row_dout + j, n) * load_n(weight + j, n);
            });
            float r = 1.0f / std::sqrt(sum(squares) / width + epsilon);
            float c = sum(products) / width * r * r * r;
            for_row(width, [&](i64 j, i64 n) {
                vec v = load_n(row + j, n), dy = load_n(row_dout + j, n);
                store_n(dx + i * width + j, dy * load_n(weight + j, n) * r - v * c, n);
                store_n(total + j, load_n(total + j, n) + dy * v * r, n);
            });
        }
    });
    add_parts(partial.data(), threads, width, dweight);
}

// out = softmax(scale q k^T + bias) v. lse [B, h, queries] (log of the softmax's denominators) is kept unless null. bias
// [queries, keys], or null, is bias_batch numbers further for each batch item and bias_head for each head.
void ppsd3_attention(const Shape* shape, const Tokens* q, const Tokens* k, const Tokens* v, const Tokens* out, float* lse,
                     float scale, const float* bias, i64 bias_batch, i64 bias_head) {
    const Shape n = *shape;
    i64 heads = n.batch * n.heads, width = n.width();
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
}

void ppsd3_attention_backward(const Shape* shape, const Tokens* q, const Tokens* k, const Tokens* v, const Tokens* out,
                              const Tokens* dout, const float* lse, const Tokens* dq, const Tokens* dk, const Tokens* dv,
                              float scale) {
    const Shape n = *shape;
    i64 heads = n.batch * n.heads;
    share_tasks(heads, threads_for(heads * n.queries * n.keys * n.dim / 8), [&](i64 task) {
        attend_backward(n, *q, *k, *v, *out, *dout, lse, *dq, *dk, *dv, task / n.heads, task % n.heads, scale);
    });
}

}  // extern "C"
