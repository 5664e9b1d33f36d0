// Layer norm with modulation, RMS norm, group norm with SiLU, gated residuals, and their gradients.

#include <vector>

#include "guarded.h"
#include "threads.h"
#include "vectors.h"

namespace {

// Mean and sum of squared deviations, block by block (Chan, Golub and LeVeque 1983): exact as two passes, read once.
void mean_and_variance(const float* x, i64 count, float& mean, float& variance) {
    double total = 0, deviation = 0, done = 0;
    for (i64 start = 0; start < count; start += 4096) {
        i64 n = std::min<i64>(4096, count - start);
        const float* block = x + start;
        vec s{};
        for_row(n, [&](i64 j, i64 m) { s += load_n(block + j, m); });
        float centre = sum(s) / n;
        vec squares{}, rest{};
        for_row(n, [&](i64 j, i64 m) {
            if (m == LANES) {
                vec v = load(block + j) - centre;
                squares += v * v;
            } else {
                for (i64 i = 0; i < m; i++) rest[0] += (block[j + i] - centre) * (block[j + i] - centre);
            }
        });
        double delta = centre - total, all = done + n;
        deviation += sum(squares) + rest[0] + delta * delta * done * n / all;
        total += delta * n / all;
        done = all;
    }
    mean = float(total), variance = float(deviation / count);
}

inline vec sigmoid(vec z) { return 1.0f / (1.0f + vexp(-z)); }

}  // namespace

extern "C" {

int32_t ppsd3_layer_norm(const float* x, const float* shift, const float* scale, float* out, float* mean, float* rstd,
                         int64_t batch, int64_t tokens, int64_t width, float epsilon) {
    return guarded([&] {
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
    });
}

int32_t ppsd3_layer_norm_backward(const float* x, const float* scale, const float* mean, const float* rstd,
                                  const float* dout, float* dx, float* dshift, float* dscale, int64_t batch,
                                  int64_t tokens, int64_t width) {
    return guarded([&] {
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
    });
}

int32_t ppsd3_gated_residual(const float* residual, const float* gate, const float* x, float* out, int64_t batch,
                             int64_t tokens, int64_t width) {
    return guarded([&] {
        share_rows(batch * tokens, threads_for(batch * tokens * width), [&](i64 first, i64 last, int) {
            for (i64 i = first; i < last; i++) {
                const float *row = x + i * width, *row_residual = residual + i * width;
                const float* row_gate = gate + i / tokens * width;
                float* row_out = out + i * width;
                for_row(width, [&](i64 j, i64 n) {
                    store_n(row_out + j, load_n(row_residual + j, n) + load_n(row_gate + j, n) * load_n(row + j, n), n);
                });
            }
        });
    });
}

int32_t ppsd3_gated_residual_backward(const float* gate, const float* x, const float* dout, float* dx, float* dgate,
                                      int64_t batch, int64_t tokens, int64_t width) {
    return guarded([&] {
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
    });
}

int32_t ppsd3_rms_norm(const float* x, const float* weight, float* out, int64_t rows, int64_t width, float epsilon) {
    return guarded([&] {
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
    });
}

int32_t ppsd3_rms_norm_backward(const float* x, const float* weight, const float* dout, float* dx, float* dweight,
                                int64_t rows, int64_t width, float epsilon) {
    return guarded([&] {
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
    });
}

int32_t ppsd3_group_norm(const float* x, const float* weight, const float* bias, float* y, float* moments,
                         int64_t batch, int64_t channels, int64_t positions, int64_t groups, bool silu, float epsilon) {
    return guarded([&] {
        float *mean = moments, *rstd = moments + batch * groups;
        i64 size = channels / groups;
        share_tasks(batch * groups, threads_for(batch * channels * positions * 4), [&](i64 task) {
            float variance;
            mean_and_variance(x + task * size * positions, size * positions, mean[task], variance);
            rstd[task] = 1.0f / std::sqrt(variance + epsilon);
            for (i64 i = 0; i < size; i++) {
                i64 channel = task % groups * size + i, at = (task * size + i) * positions;
                float factor = rstd[task] * weight[channel], offset = bias[channel] - mean[task] * factor;
                for_row(positions, [&](i64 j, i64 n) {
                    vec z = load_n(x + at + j, n) * factor + offset;
                    store_n(y + at + j, silu ? z * sigmoid(z) : z, n);
                });
            }
        });
    });
}

int32_t ppsd3_group_norm_backward(const float* x, const float* weight, const float* bias, const float* moments,
                                  const float* dy, float* dx, float* dweight, float* dbias, int64_t batch,
                                  int64_t channels, int64_t positions, int64_t groups, bool silu) {
    return guarded([&] {
        const float *mean = moments, *rstd = moments + batch * groups;
        i64 size = channels / groups;
        std::vector<float> sums(2 * batch * channels);  // per image and channel: of dz * normal, of dz
        share_tasks(batch * groups, threads_for(batch * channels * positions * 8), [&](i64 task) {
            float m = mean[task], r = rstd[task], c1 = 0, c2 = 0;
            for (i64 i = 0; i < size; i++) {
                i64 channel = task % groups * size + i, at = (task * size + i) * positions;
                float factor = r * weight[channel], offset = bias[channel] - m * factor;
                vec plain{}, weighted{};
                for_row(positions, [&](i64 j, i64 n) {
                    vec v = load_n(x + at + j, n), dz = load_n(dy + at + j, n);
                    if (silu) {
                        vec z = v * factor + offset, s = sigmoid(z);
                        dz *= s + z * s * (1.0f - s);
                        store_n(dx + at + j, dz, n);
                    }
                    plain += dz;  // lanes beyond the row are zero: dy is
                    weighted += dz * ((v - m) * r);
                });
                float total = sum(plain), total_weighted = sum(weighted);
                sums[2 * (task * size + i)] = total_weighted, sums[2 * (task * size + i) + 1] = total;
                c1 += weight[channel] * total, c2 += weight[channel] * total_weighted;
            }
            c1 /= size * positions, c2 /= size * positions;
            const float* dz = silu ? dx : dy;
            for (i64 i = 0; i < size; i++) {
                i64 channel = task % groups * size + i, at = (task * size + i) * positions;
                // dx = r (weight dz - c1 - normal c2)
                float a = r * weight[channel], b = -r * r * c2, c = -r * c1 + r * r * c2 * m;
                for_row(positions, [&](i64 j, i64 n) {
                    store_n(dx + at + j, load_n(dz + at + j, n) * a + (load_n(x + at + j, n) * b + c), n);
                });
            }
        });
        for (i64 c = 0; c < channels; c++) {
            dweight[c] = dbias[c] = 0;
            for (i64 n = 0; n < batch; n++) {
                dweight[c] += sums[2 * (n * channels + c)];
                dbias[c] += sums[2 * (n * channels + c) + 1];
            }
        }
    });
}

}  // extern "C"
