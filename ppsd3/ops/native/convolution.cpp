// Native CPU kernels of the autoencoder: float32, [B, C, H, W], forward and backward.
//
// 3x3 convolutions of stride 1 are Winograd's (winograd.cpp) but for very few channels. The others (3x3 with stride 2
// padded at the right and bottom, 1x1) and the gradients by weights are direct: a task copies some rows of one image,
// padded, into scratch memory. With a row pitch that includes the padding, every tap (ky, kx) is a constant offset from
// the output's flat position, so vectors run over positions without regard to where rows end; what is computed in the
// padding columns is not copied out. Stride 2 is the same after sorting pixels by parity. A 3x3 convolution after
// nearest upsampling by 2 is four 2x2 convolutions of the small image, one for each parity of row and column, with sums
// of the weights: 4/9 of the work.

#include "convolution.h"

#include <vector>

#include "guarded.h"
#include "scratch.h"
#include "threads.h"

namespace {

// --------------------------------------------------------------------------------------------- windows of an image

// image[y0 + r step][x0 + c step] = rows of `in`, which are `pitch` apart, plus `added` (or null), an image of the same
// size; what lies outside of the image is left out.
void paste_window(const float* in, i64 pitch, i64 rows, const float* added, float* image, i64 height, i64 width, i64 y0,
                  i64 x0, i64 step) {
    i64 columns = (width - x0 + step - 1) / step;
    rows = std::min(rows, (height - y0 + step - 1) / step);
    for (i64 r = 0; r < rows; r++, in += pitch) {
        i64 at = (y0 + r * step) * width + x0;
        float* row = image + at;
        if (added)
            for (i64 c = 0; c < columns; c++) row[c * step] = in[c] + added[at + c * step];
        else if (step == 1) std::memcpy(row, in, columns * sizeof(float));
        else
            for (i64 c = 0; c < columns; c++) row[c * step] = in[c];
    }
}

// ------------------------------------------------------------------------------------------------------ convolution

const i64 CHUNK = 98304;  // floats of input that a task holds: a good part of a core's second-level cache

struct Taps {
    int count = 0;
    i64 offset[16];  // from an output's flat position to the input's
    int weight[16];  // index in the kernel
    void add(i64 at, int index) { offset[count] = at, weight[count++] = index; }
};

// [out, in, kernel] (or, transposed, [in, out, kernel]) -> [block of out][in][tap][BLOCK], zero beyond `out`.
std::vector<float> pack_weights(const float* weight, i64 out, i64 in, i64 kernel, const Taps& taps, bool transposed) {
    std::vector<float> packed((out + BLOCK - 1) / BLOCK * in * taps.count * BLOCK, 0.0f);
    for (i64 o = 0; o < out; o++)
        for (i64 i = 0; i < in; i++) {
            const float* from = weight + (transposed ? i * out + o : o * in + i) * kernel;
            float* to = packed.data() + ((o / BLOCK * in + i) * taps.count) * BLOCK + o % BLOCK;
            for (int t = 0; t < taps.count; t++) to[t * BLOCK] = from[taps.weight[t]];
        }
    return packed;
}

// A 3x3 kernel after nearest upsampling by 2, as four 2x2 kernels on the small image, for even and odd rows and columns
// of the result. On one axis the taps are, in this order: of even rows the pixel before (w0) and the pixel (w1 + w2),
// of odd rows the pixel (w0 + w1) and the one after (w2). Both axes: 4 x 4.
void fold(const float* kernel, float* folded) {
    auto axis = [](const float* w, int step, float* out, int out_step) {
        out[0] = w[0], out[out_step] = w[step] + w[2 * step];
        out[2 * out_step] = w[0] + w[step], out[3 * out_step] = w[2 * step];
    };
    float rows[12];
    for (int x = 0; x < 3; x++) axis(kernel + x, 3, rows + x, 3);
    for (int y = 0; y < 4; y++) axis(rows + 3 * y, 1, folded + 4 * y, 1);
}

// The transposed map, for gradients.
void unfold(const float* folded, float* kernel) {
    auto axis = [](const float* in, int step, float* w, int w_step) {
        w[0] = in[0] + in[2 * step], w[w_step] = in[step] + in[2 * step], w[2 * w_step] = in[step] + in[3 * step];
    };
    float rows[12];
    for (int y = 0; y < 4; y++) axis(folded + 4 * y, 1, rows + 3 * y, 1);
    for (int x = 0; x < 3; x++) axis(rows + x, 3, kernel + x, 3);
}

std::vector<float> fold_all(const float* weight, i64 kernels) {
    std::vector<float> folded(kernels * 16);
    for (i64 k = 0; k < kernels; k++) fold(weight + k * 9, folded.data() + k * 16);
    return folded;
}

// out[o][q] = bias[o] + sum over channels i and taps t of weight[i][t][o] in[i][q + offset[t]].
template <int R, int V>
void correlate_tile(i64 channels, const Taps& taps, const float* in, i64 plane, const float* weight, const float* bias,
                    float* out, i64 out_plane) {
    vec acc[R][V];
    for (int o = 0; o < R; o++)
        for (int v = 0; v < V; v++) acc[o][v] = splat(bias[o]);
    for (i64 i = 0; i < channels; i++, in += plane)
        for (int t = 0; t < taps.count; t++, weight += BLOCK) {
            vec x[V];
            for (int v = 0; v < V; v++) x[v] = load(in + taps.offset[t] + v * LANES);
            for (int o = 0; o < R; o++) {
                vec w = splat(weight[o]);
                for (int v = 0; v < V; v++) acc[o][v] += w * x[v];
            }
        }
    for (int o = 0; o < R; o++)
        for (int v = 0; v < V; v++) store(out + o * out_plane + v * LANES, acc[o][v]);
}

template <int R>
void correlate_rows(i64 positions, i64 channels, const Taps& taps, const float* in, i64 plane, const float* weight,
                    const float* bias, float* out, i64 out_plane) {
    i64 q = 0, vectors = (positions + LANES - 1) / LANES;
    for (; vectors >= VECTORS; vectors -= VECTORS, q += VECTORS * LANES)
        correlate_tile<R, VECTORS>(channels, taps, in + q, plane, weight, bias, out + q, out_plane);
    if (vectors == 2) correlate_tile<R, 2>(channels, taps, in + q, plane, weight, bias, out + q, out_plane);
    if (vectors == 1) correlate_tile<R, 1>(channels, taps, in + q, plane, weight, bias, out + q, out_plane);
}

// One block of output channels (`count` of them matter) at `positions` flat positions.
void correlate(i64 count, i64 positions, i64 channels, const Taps& taps, const float* in, i64 plane,
               const float* weight, const float* bias, float* out, i64 out_plane) {
    for (i64 o = 0; o < count; o += ROWS, weight += ROWS, bias += ROWS, out += ROWS * out_plane) {
        if (ROWS > 4 && count - o <= 4)
            correlate_rows<4>(positions, channels, taps, in, plane, weight, bias, out, out_plane);
        else correlate_rows<ROWS>(positions, channels, taps, in, plane, weight, bias, out, out_plane);
    }
}

struct Geometry {
    i64 batch, in, height, width, out, kernel, stride;
    i64 out_height() const { return stride == 1 ? height : height / 2; }
    i64 out_width() const { return stride == 1 ? width : width / 2; }
    i64 work() const { return batch * in * out * out_height() * out_width() * kernel * kernel; }
};

// The passes that make up one convolution or one gradient by its input: each computes the pixels of `image` whose
// coordinates are (y, x) modulo `step`, from the same packed input.
struct Pass {
    Taps taps;
    i64 y = 0, x = 0;
    std::vector<float> weight;
};

// `rows` of `pitch` positions, `chunk` rows per task; pack(image index, first row, rows, buffer) fills the `channels`
// planes of a task's input.
template <class Pack>
void convolve(i64 batch, i64 channels, i64 plane, i64 rows, i64 chunk, i64 pitch, int threads,
              const std::vector<Pass>& passes, i64 step, const float* bias, const float* added, float* result, i64 out,
              i64 height, i64 width, const Pack& pack) {
    i64 chunks = (rows + chunk - 1) / chunk, blocks = (out + BLOCK - 1) / BLOCK;
    std::vector<float> padded_bias(blocks * BLOCK, 0.0f);
    if (bias) std::memcpy(padded_bias.data(), bias, out * sizeof(float));
    share_tasks(batch * chunks, threads, [&](i64 task) {
        i64 n = task / chunks, first = task % chunks * chunk, count = std::min(chunk, rows - first);
        i64 slack = VECTORS * LANES, out_plane = count * pitch + slack;
        scratch.reset(channels * plane + slack + BLOCK * out_plane);
        float *in = scratch.take(channels * plane + slack), *sums = scratch.take(BLOCK * out_plane);
        pack(n, first, count, in);
        std::memset(in + channels * plane, 0, slack * sizeof(float));
        for (const Pass& pass : passes)
            for (i64 block = 0; block < blocks; block++) {
                i64 o = block * BLOCK, some = std::min<i64>(BLOCK, out - o);
                correlate(some, count * pitch, channels, pass.taps, in, plane,
                          pass.weight.data() + o * channels * pass.taps.count, padded_bias.data() + o, sums, out_plane);
                for (i64 i = 0; i < some; i++) {
                    i64 at = (n * out + o + i) * height * width;
                    paste_window(sums + i * out_plane, pitch, count, added ? added + at : nullptr, result + at, height,
                                 width, first * step + pass.y, pass.x, step);
                }
            }
    });
}

// ---------------------------------------------------------------------------------- gradient of a convolution's weight

#if LANES == 16 || defined(__aarch64__)
const int WIDE = 2, GROUP_WIDE = 4, GROUP = 8;  // vectors of output channels, input channels: 24 accumulators
#else
const int WIDE = 1, GROUP_WIDE = 4, GROUP = 4;
#endif

// total[i][kx][o] += sum over rows and x of in[i][row stride][x stride + kx] dout[row][x][o].
template <int V, int N, int K, int STRIDE>
void weight_tile(i64 some, i64 rows, i64 columns, const float* in, i64 plane, i64 pitch, const float* dout,
                 float* total) {
    vec acc[N][K][V];
    i64 at[N];
    for (int i = 0; i < N; i++) at[i] = std::min<i64>(i, some - 1) * plane;
    for (int i = 0; i < N; i++)
        for (int k = 0; k < K; k++)
            for (int v = 0; v < V; v++) acc[i][k][v] = vec{};
    for (i64 r = 0; r < rows; r++) {
        const float* row = in + r * STRIDE * pitch;
        for (i64 x = 0; x < columns; x++, row += STRIDE, dout += V * LANES) {
            vec d[V];
            for (int v = 0; v < V; v++) d[v] = load(dout + v * LANES);
            for (int i = 0; i < N; i++)
                for (int k = 0; k < K; k++) {
                    vec s = splat(row[at[i] + k]);
                    for (int v = 0; v < V; v++) acc[i][k][v] += s * d[v];
                }
        }
    }
    for (int i = 0; i < N; i++) {
        if (i >= some) break;
        for (int k = 0; k < K; k++)
            for (int v = 0; v < V; v++) {
                float* to = total + ((i * K + k) * V + v) * LANES;
                store(to, load(to) + acc[i][k][v]);
            }
    }
}

// out[block of channels][row][x][channel] = in[channel][row * pitch + x * step], zero beyond the last channel.
void channels_last(const float* in, i64 plane, i64 channels, i64 rows, i64 columns, i64 pitch, i64 step, i64 block,
                   float* out) {
    const i64 SOME = 16;  // pixels at a time: what is written stays in the first-level cache
    for (i64 o = 0; o < channels; o += block) {
        i64 count = std::min(block, channels - o);
        if (count < block) std::memset(out, 0, rows * columns * block * sizeof(float));
        for (i64 r = 0; r < rows; r++, out += columns * block)
            for (i64 first = 0; first < columns; first += SOME)
                for (i64 i = 0; i < count; i++) {
                    const float* from = in + (o + i) * plane + r * pitch;
                    for (i64 x = first; x < std::min(first + SOME, columns); x++) out[x * block + i] = from[x * step];
                }
    }
}

// With UP = 2 the convolution is of the upsampled x, its geometry that of x itself, and K = 2: a separate gradient for
// each parity of dout's rows and columns. The sums lie as [block of out][parity][ky][in][kx][V LANES].
template <int V, int N, int K, int STRIDE, int UP>
void weight_gradient(const Geometry& g, const float* x, const float* dout, float* dweight, float* dbias) {
    const i64 block = V * LANES, blocks = (g.out + block - 1) / block, rows = g.out_height(), columns = g.out_width();
    const i64 pad = STRIDE == 1 && K > 1, pitch = STRIDE == 1 ? columns + 2 * pad : 2 * columns + 1;
    const i64 size = blocks * UP * UP * K * g.in * K * block, all = size + blocks * block;
    int threads = int(std::max<i64>(1, std::min<i64>(threads_for(g.work() / 16), g.batch * rows)));
    i64 chunk = rows_per_task(rows, g.batch, g.in * pitch * STRIDE + blocks * block * columns, threads, CHUNK, 4);
    i64 chunks = (rows + chunk - 1) / chunk;
    std::vector<float> partial(threads * all, 0.0f);
    share_rows(g.batch * chunks, threads, [&](i64 first_task, i64 last_task, int member) {
        float *total = partial.data() + member * all, *bias = total + size;
        for (i64 task = first_task; task < last_task; task++) {
            i64 n = task / chunks, first = task % chunks * chunk, count = std::min(chunk, rows - first);
            i64 in_rows = (count - 1) * STRIDE + K + UP - 1, plane = in_rows * pitch, pixels = count * columns;
            scratch.reset(g.in * plane + blocks * block * pixels);
            float *in = scratch.take(g.in * plane), *d = scratch.take(blocks * block * pixels);
            for (i64 i = 0; i < g.in; i++)
                copy_window(x + (n * g.in + i) * g.height * g.width, g.height, g.width, first * STRIDE - pad, -pad, 1,
                            in_rows, pitch, in + i * plane);
            for (i64 parity = 0; parity < UP * UP; parity++) {
                i64 py = parity / UP, px = parity % UP;
                const float* from = dout + (n * g.out * rows * UP + first * UP + py) * columns * UP + px;
                channels_last(from, rows * columns * UP * UP, g.out, count, columns, columns * UP * UP, UP, block, d);
                for (i64 b = 0; b < blocks; b++) {
                    const float* db = d + b * pixels * block;
                    for (i64 ky = 0; ky < K; ky++)
                        for (i64 i = 0; i < g.in; i += N)
                            weight_tile<V, N, K, STRIDE>(
                                g.in - i, count, columns, in + i * plane + (py + ky) * pitch + px, plane, pitch, db,
                                total + (((b * UP * UP + parity) * K + ky) * g.in + i) * K * block);
                    for (i64 q = 0; q < pixels; q++)
                        for (int v = 0; v < V; v++) {
                            float* to = bias + b * block + v * LANES;
                            store(to, load(to) + load(db + q * block + v * LANES));
                        }
                }
            }
        }
    });
    std::vector<float> total(all);
    add_parts(partial.data(), threads, all, total.data());
    std::copy(total.data() + size, total.data() + size + g.out, dbias);
    for (i64 o = 0; o < g.out; o++)
        for (i64 i = 0; i < g.in; i++) {
            auto at = [&](i64 parity, i64 ky, i64 kx) {
                return total[((((o / block * UP * UP + parity) * K + ky) * g.in + i) * K + kx) * block + o % block];
            };
            float* to = dweight + (o * g.in + i) * (UP == 1 ? K * K : 9);
            if (UP == 1) {
                for (i64 t = 0; t < K * K; t++) to[t] = at(0, t / K, t % K);
                continue;
            }
            float folded[16];
            for (i64 t = 0; t < 16; t++) folded[t] = at(t / 8 * 2 + t % 4 / 2, t / 4 % 2, t % 2);
            unfold(folded, to);
        }
}

template <int K, int STRIDE, int UP = 1>
void weight_gradient(const Geometry& g, const float* x, const float* dout, float* dweight, float* dbias) {
    if (g.out > LANES) weight_gradient<WIDE, GROUP_WIDE, K, STRIDE, UP>(g, x, dout, dweight, dbias);
    else weight_gradient<1, GROUP, K, STRIDE, UP>(g, x, dout, dweight, dbias);
}

}  // namespace

extern "C" {

int32_t ppsd3_conv2d(const float* x, const float* weight, const float* bias, const float* added, float* y,
                     int64_t batch, int64_t in, int64_t height, int64_t width, int64_t out, int64_t kernel,
                     int64_t stride) {
    return guarded([&] {
        if (by_winograd(kernel, stride, in))
            return winograd_conv2d(x, weight, bias, added, y, batch, in, height, width, out, false);
        Geometry g{batch, in, height, width, out, kernel, stride};
        const i64 rows = g.out_height(), columns = g.out_width(), image = height * width;
        const i64 pad = stride == 1 ? kernel / 2 : 0;
        const i64 pitch = stride == 1 ? columns + 2 * pad : columns + 1, per_row = stride * stride * in * pitch;
        const int threads = threads_for(g.work() / 16);
        const i64 chunk = rows_per_task(rows, batch, per_row, threads, CHUNK, 4);
        std::vector<Pass> passes(1);
        Taps& taps = passes[0].taps;
        i64 plane;
        if (stride == 1) {
            plane = (chunk + 2 * pad) * pitch;
            for (int t = 0; t < kernel * kernel; t++) taps.add(t / kernel * pitch + t % kernel, t);
        } else {  // four smaller planes per channel, by parity of row and column
            plane = 4 * (chunk + 1) * pitch;
            for (int t = 0; t < 9; t++) {
                i64 ky = t / 3, kx = t % 3;
                taps.add((ky % 2 * 2 + kx % 2) * (chunk + 1) * pitch + ky / 2 * pitch + kx / 2, t);
            }
        }
        passes[0].weight = pack_weights(weight, out, in, kernel * kernel, taps, false);
        convolve(batch, in, plane, rows, chunk, pitch, threads, passes, 1, bias, added, y, out, rows, columns,
                 [=](i64 n, i64 first, i64 count, float* buffer) {
                     for (i64 i = 0; i < in; i++, buffer += plane) {
                         const float* from = x + (n * in + i) * image;
                         if (stride == 1) {
                             copy_window(from, height, width, first - pad, -pad, 1, count + 2 * pad, pitch, buffer);
                         } else {
                             for (i64 p = 0; p < 4; p++)
                                 copy_window(from, height, width, 2 * first + p / 2, p % 2, 2, count + 1, pitch,
                                             buffer + p * (chunk + 1) * pitch);
                         }
                     }
                 });
    });
}

int32_t ppsd3_conv2d_backward_data(const float* dy, const float* weight, float* dx, int64_t batch, int64_t in,
                                   int64_t height, int64_t width, int64_t out, int64_t kernel, int64_t stride) {
    return guarded([&] {
        if (by_winograd(kernel, stride, out))
            return winograd_conv2d(dy, weight, nullptr, nullptr, dx, batch, out, height, width, in, true);
        Geometry g{batch, in, height, width, out, kernel, stride};
        i64 rows = g.out_height(), columns = g.out_width(), area = kernel * kernel;
        std::vector<Pass> passes(stride * stride);
        // dx[y][x] takes dy[(y + pad - ky) / stride][(x + pad - kx) / stride], where that divides
        const i64 before = stride == 1 ? kernel / 2 : 1, after = stride == 1 ? kernel / 2 : 0;
        i64 grid_rows = (height + stride - 1) / stride, grid_columns = (width + stride - 1) / stride;
        i64 pitch = grid_columns + before + after;
        for (i64 p = 0; p < stride * stride; p++) {
            Pass& pass = passes[p];
            pass.y = p / stride, pass.x = p % stride;
            for (int t = 0; t < area; t++) {
                i64 ky = t / kernel, kx = t % kernel;
                if (stride == 1) pass.taps.add((kernel - 1 - ky) * pitch + kernel - 1 - kx, t);
                else if (ky % 2 == pass.y && kx % 2 == pass.x) pass.taps.add((1 - ky / 2) * pitch + 1 - kx / 2, t);
            }
            pass.weight = pack_weights(weight, in, out, area, pass.taps, true);
        }
        const int threads = threads_for(g.work() / 16);
        const i64 chunk = rows_per_task(grid_rows, batch, out * pitch, threads, CHUNK, 4);
        const i64 plane = (chunk + before + after) * pitch;
        convolve(batch, out, plane, grid_rows, chunk, pitch, threads, passes, stride, nullptr, nullptr, dx, in, height,
                 width, [=](i64 n, i64 first, i64 count, float* buffer) {
                     for (i64 o = 0; o < out; o++, buffer += plane)
                         copy_window(dy + (n * out + o) * rows * columns, rows, columns, first - before, -before, 1,
                                     count + before + after, pitch, buffer);
                 });
    });
}

int32_t ppsd3_conv2d_backward_weight(const float* x, const float* dy, float* dweight, float* dbias, int64_t batch,
                                     int64_t in, int64_t height, int64_t width, int64_t out, int64_t kernel,
                                     int64_t stride) {
    return guarded([&] {
        Geometry g{batch, in, height, width, out, kernel, stride};
        if (kernel == 1) weight_gradient<1, 1>(g, x, dy, dweight, dbias);
        else if (stride == 1) weight_gradient<3, 1>(g, x, dy, dweight, dbias);
        else weight_gradient<3, 2>(g, x, dy, dweight, dbias);
    });
}

int32_t ppsd3_upsample_conv2d(const float* x, const float* weight, const float* bias, float* y, int64_t batch,
                              int64_t in, int64_t height, int64_t width, int64_t out) {
    return guarded([&] {
        if (by_winograd(3, 1, in)) return winograd_upsample_conv2d(x, weight, bias, y, batch, in, height, width, out);
        const Geometry g{batch, in, height, width, out, 4, 1};
        const i64 pitch = width + 2;
        const int threads = threads_for(g.work() / 16);
        const i64 chunk = rows_per_task(height, batch, in * pitch, threads, CHUNK, 4), plane = (chunk + 2) * pitch;
        std::vector<float> folded = fold_all(weight, out * in);
        std::vector<Pass> passes(4);
        for (int p = 0; p < 4; p++) {
            Pass& pass = passes[p];
            pass.y = p / 2, pass.x = p % 2;
            for (int t = 0; t < 4; t++)
                pass.taps.add((pass.y + t / 2) * pitch + pass.x + t % 2, (pass.y * 2 + t / 2) * 4 + pass.x * 2 + t % 2);
            pass.weight = pack_weights(folded.data(), out, in, 16, pass.taps, false);
        }
        convolve(batch, in, plane, height, chunk, pitch, threads, passes, 2, bias, nullptr, y, out, 2 * height,
                 2 * width, [=](i64 n, i64 first, i64 count, float* buffer) {
                     for (i64 i = 0; i < in; i++, buffer += plane)
                         copy_window(x + (n * in + i) * height * width, height, width, first - 1, -1, 1, count + 2,
                                     pitch, buffer);
                 });
    });
}

int32_t ppsd3_upsample_conv2d_backward_data(const float* dy, const float* weight, float* dx, int64_t batch, int64_t in,
                                            int64_t height, int64_t width, int64_t out) {
    return guarded([&] {
        const Geometry g{batch, in, height, width, out, 4, 1};
        const i64 pitch = width + 2;
        const int threads = threads_for(g.work() / 16);
        const i64 chunk = rows_per_task(height, batch, 4 * out * pitch, threads, CHUNK, 4), part = (chunk + 2) * pitch;
        std::vector<float> folded = fold_all(weight, out * in);
        std::vector<Pass> passes(1);
        // among dy's pixels of the tap's parity: the one after, the same, the one before
        const i64 row[4] = {2, 1, 1, 0};
        for (int t = 0; t < 16; t++)
            passes[0].taps.add((t / 8 * 2 + t % 4 / 2) * part + row[t / 4] * pitch + row[t % 4], t);
        passes[0].weight = pack_weights(folded.data(), in, out, 16, passes[0].taps, true);
        convolve(batch, out, 4 * part, height, chunk, pitch, threads, passes, 1, nullptr, nullptr, dx, in, height,
                 width, [=](i64 n, i64 first, i64 count, float* buffer) {
                     for (i64 o = 0; o < out; o++)
                         for (i64 p = 0; p < 4; p++, buffer += part)
                             copy_window(dy + (n * out + o) * 4 * height * width, 2 * height, 2 * width,
                                         2 * (first - 1) + p / 2, p % 2 - 2, 2, count + 2, pitch, buffer);
                 });
    });
}

int32_t ppsd3_upsample_conv2d_backward_weight(const float* x, const float* dy, float* dweight, float* dbias,
                                              int64_t batch, int64_t in, int64_t height, int64_t width, int64_t out) {
    return guarded([&] { weight_gradient<2, 1, 2>({batch, in, height, width, out, 4, 1}, x, dy, dweight, dbias); });
}

}  // extern "C"
