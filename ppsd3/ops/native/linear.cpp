// What goes with a linear layer's product: bias, GELU, their gradients.

#include <vector>

#include "guarded.h"
#include "threads.h"
#include "vectors.h"

static vec gelu_slope(vec x) {
    vec x2 = x * x;
    vec s = 1.0f / (1.0f + vexp(-GELU_TWO_C * x * (1.0f + GELU_CUBIC * x2)));
    return s + x * s * (1.0f - s) * GELU_TWO_C * (1.0f + 3.0f * GELU_CUBIC * x2);
}

extern "C" {

int32_t ppsd3_add_bias(float* x, const float* bias, int64_t rows, int64_t width) {
    return guarded([&] {
        share_rows(rows, threads_for(rows * width), [&](i64 first, i64 last, int) {
            for (i64 i = first; i < last; i++) {
                float* row = x + i * width;
                for_row(width, [&](i64 j, i64 n) { store_n(row + j, load_n(row + j, n) + load_n(bias + j, n), n); });
            }
        });
    });
}

int32_t ppsd3_column_sum(const float* x, float* out, int64_t rows, int64_t width) {
    return guarded([&] {
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
    });
}

int32_t ppsd3_gelu(float* x, const float* bias, float* out, int64_t rows, int64_t width) {
    return guarded([&] {
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
    });
}

int32_t ppsd3_gelu_backward(const float* x, const float* dout, float* dx, float* dbias, int64_t rows, int64_t width) {
    return guarded([&] {
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
    });
}

}  // extern "C"
