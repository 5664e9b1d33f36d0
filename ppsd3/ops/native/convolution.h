// What the convolutions share: windows of an image, the shape of a register tile, the size of a task.

#pragma once

#include "vectors.h"

const int BLOCK = 8;  // output channels whose weights lie together
#if LANES == 16 || defined(__aarch64__)
const int ROWS = 8;  // output channels of a register tile: 8 x 3 of 32 registers accumulate
#else
const int ROWS = 4;  // 4 x 3 of 16
#endif
const int VECTORS = 3;

// out[r][c] = image[y0 + r step][x0 + c step], zero outside of the image.
static inline void copy_window(const float* image, i64 height, i64 width, i64 y0, i64 x0, i64 step, i64 rows,
                               i64 columns, float* out) {
    i64 first = x0 < 0 ? (-x0 + step - 1) / step : 0;
    i64 last = std::min(columns, x0 >= width ? 0 : (width - x0 + step - 1) / step);
    for (i64 r = 0; r < rows; r++, out += columns) {
        i64 y = y0 + r * step;
        if (y < 0 || y >= height || last <= first) {
            std::memset(out, 0, columns * sizeof(float));
            continue;
        }
        const float* row = image + y * width + x0;
        for (i64 c = 0; c < first; c++) out[c] = 0;
        if (step == 1) std::memcpy(out + first, row + first, (last - first) * sizeof(float));
        else
            for (i64 c = first; c < last; c++) out[c] = row[c * step];
        for (i64 c = last; c < columns; c++) out[c] = 0;
    }
}

// Rows per task: an input of at most `limit`, in what `per_row` counts, and tasks for all threads.
static inline i64 rows_per_task(i64 rows, i64 batch, i64 per_row, int threads, i64 limit, i64 least) {
    i64 fitting = std::max<i64>(1, limit / per_row);
    if (batch < 4 * threads) fitting = std::min(fitting, std::max<i64>(least, rows * batch / (4 * threads)));
    i64 tasks = (rows + fitting - 1) / fitting;
    return (rows + tasks - 1) / tasks;
}

// Whether a convolution of so many input channels is Winograd's: fewer do not pay for the transforms.
static inline bool by_winograd(i64 kernel, i64 stride, i64 channels) {
    return kernel == 3 && stride == 1 && channels >= 8;
}

// winograd.cpp: y = conv(x, weight, 3x3, padded by 1) + bias (or null), in the second form of x upsampled by 2. The weight
// is [out, in, 3, 3]; `transposed`, it is [in, out, 3, 3] with its taps in reverse order, which is the gradient by x.
// `added`, if not null, is [B, out, H, W] and added to y.
void winograd_conv2d(const float* x, const float* weight, const float* bias, const float* added, float* y, i64 batch,
                     i64 in, i64 height, i64 width, i64 out, bool transposed);
void winograd_upsample_conv2d(const float* x, const float* weight, const float* bias, float* y, i64 batch, i64 in,
                              i64 height, i64 width, i64 out);
