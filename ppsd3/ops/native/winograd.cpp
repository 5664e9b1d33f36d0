// 3x3 convolution with fewer multiplications (Winograd; Lavin and Gray, "Fast Algorithms for Convolutional Neural
// Networks", 2016): tiles of 2x2 outputs from 4x4 inputs by 16 multiplications in place of 36. All constants are 0, 1
// and 1/2, so the result is as exact as the direct sum. Larger tiles would save more and lose digits.
//
// After nearest upsampling by 2 a tile of 4x4 outputs comes from 4x4 inputs too: on one axis the even outputs are a
// convolution with (w0, w1 + w2), the odd ones with (w0 + w1, w2), each two outputs by three multiplications; one of
// the differences of inputs serves both. 36 multiplications in place of 144.
//
// A task transforms some rows of tiles of one image into planes [transform][channel][tile]; then each multiplication of
// the scheme is a matrix product over channels, its vectors running over tiles. Products of a block of output channels
// are transformed back at once, while they are in the first-level cache. On a CPU with AMX (amx.h) the products are made on
// its tiles, one multiplication of the scheme for all channels after another.

#include <vector>

#include "amx.h"
#include "convolution.h"
#include "guarded.h"
#include "scratch.h"
#include "threads.h"

namespace {

const i64 INPUT_FLOATS = 786432;  // of a task: read once per block of output channels, so the third-level cache will do

struct Plain {  // F(2, 3)
    static const int INPUTS = 4, PRODUCTS = 4, OUTPUTS = 2;
    static int input_of(int product) { return product; }
    template <class V>
    static void transform(const V* d, V* v) {
        v[0] = d[0] - d[2], v[1] = d[1] + d[2], v[2] = d[2] - d[1], v[3] = d[1] - d[3];
    }
    template <class W>
    static void weights(const W* w, W* u) {
        u[0] = w[0], u[1] = (w[0] + w[1] + w[2]) * 0.5f, u[2] = (w[0] - w[1] + w[2]) * 0.5f, u[3] = w[2];
    }
    template <class V>
    static void outputs(const V* m, V* y) {
        y[0] = m[0] + m[1] + m[2], y[1] = m[1] - m[2] - m[3];
    }
};

struct Upsampled {  // F(2, 2) for even outputs, F(2, 2) for odd ones
    static const int INPUTS = 5, PRODUCTS = 6, OUTPUTS = 4;
    static int input_of(int product) { return product < 3 ? product : product - 1; }
    template <class V>
    static void transform(const V* d, V* v) {
        v[0] = d[0] - d[1], v[1] = d[1], v[2] = d[1] - d[2], v[3] = d[2], v[4] = d[2] - d[3];
    }
    template <class W>
    static void weights(const W* w, W* u) {
        u[0] = w[0], u[1] = u[4] = w[0] + w[1] + w[2], u[2] = w[1] + w[2], u[3] = w[0] + w[1], u[5] = w[2];
    }
    template <class V>
    static void outputs(const V* m, V* y) {
        y[0] = m[0] + m[1], y[1] = m[3] + m[4], y[2] = m[1] - m[2], y[3] = m[4] - m[5];
    }
};

// ------------------------------------------------------------------------------------------------------------- lanes

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, ivec{__VA_ARGS__})
#endif
#if LANES == 16
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define EVEN 0, 2, 4, 6
#define ODD 1, 3, 5, 7
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#endif

// a0 b0 a1 b1 ..., in two vectors
inline void interleave(vec a, vec b, vec* out) { out[0] = SHUFFLE(a, b, LOW), out[1] = SHUFFLE(a, b, HIGH); }

// One row of the outputs of LANES tiles, tile by tile, from one vector per output.
inline void in_order(const vec (&y)[2], vec (&row)[2]) { interleave(y[0], y[1], row); }
inline void in_order(const vec (&y)[4], vec (&row)[4]) {
    vec even[2], odd[2];
    interleave(y[0], y[2], even), interleave(y[1], y[3], odd);
    interleave(even[0], odd[0], row), interleave(even[1], odd[1], row + 2);
}

// Inputs 0 .. 3 of LANES tiles, which are 2 pixels apart.
inline void tile_inputs(const float* row, vec* d) {
    vec a = load(row), b = load(row + LANES), c = load(row + 2), e = load(row + 2 + LANES);
    d[0] = SHUFFLE(a, b, EVEN), d[1] = SHUFFLE(a, b, ODD), d[2] = SHUFFLE(c, e, EVEN), d[3] = SHUFFLE(c, e, ODD);
}

// ---------------------------------------------------------------------------------------------------------- weights

struct Channels {  // one weight of BLOCK output channels
    float at[BLOCK];
};
inline Channels operator+(Channels a, const Channels& b) {
    for (int o = 0; o < BLOCK; o++) a.at[o] += b.at[o];
    return a;
}
inline Channels operator-(Channels a, const Channels& b) {
    for (int o = 0; o < BLOCK; o++) a.at[o] -= b.at[o];
    return a;
}
inline Channels operator*(Channels a, float f) {
    for (int o = 0; o < BLOCK; o++) a.at[o] *= f;
    return a;
}

// -> [block of out][product][in][BLOCK]; zero beyond `out`.
template <class S>
std::vector<Channels> transform_weights(const float* weight, i64 out, i64 in, bool transposed, int threads) {
    const int P = S::PRODUCTS;
    i64 blocks = (out + BLOCK - 1) / BLOCK;
    std::vector<Channels> all(blocks * P * P * in);
    share_tasks(blocks, threads, [&](i64 block) {
        i64 count = std::min<i64>(BLOCK, out - block * BLOCK);
        Channels* to = all.data() + block * P * P * in;
        for (i64 i = 0; i < in; i++) {
            Channels taps[9] = {}, rows[3][P], column[3], products[P];
            for (i64 o = 0; o < count; o++) {
                i64 channel = block * BLOCK + o;
                const float* from = weight + (transposed ? i * out + channel : channel * in + i) * 9;
                for (int t = 0; t < 9; t++) taps[t].at[o] = from[transposed ? 8 - t : t];
            }
            for (int y = 0; y < 3; y++) S::weights(taps + 3 * y, rows[y]);
            for (int px = 0; px < P; px++) {
                for (int y = 0; y < 3; y++) column[y] = rows[y][px];
                S::weights(column, products);
                for (int py = 0; py < P; py++) to[(py * P + px) * in + i] = products[py];
            }
        }
    });
    return all;
}

// --------------------------------------------------------------------------------------------------------- products

// out[o][t] = sum over channels i of weight[i][o] in[i][t], for R output channels and V vectors of tiles.
template <int R, int V>
void product_tile(i64 channels, const float* in, i64 plane, const Channels* weight, float* out) {
    vec acc[R][V];
    for (int o = 0; o < R; o++)
        for (int v = 0; v < V; v++) acc[o][v] = vec{};
    for (i64 i = 0; i < channels; i++, in += plane, weight++) {
        vec x[V];
        for (int v = 0; v < V; v++) x[v] = load(in + v * LANES);
        for (int o = 0; o < R; o++) {
            vec w = splat(weight->at[o]);
            for (int v = 0; v < V; v++) acc[o][v] += w * x[v];
        }
    }
    for (int o = 0; o < R; o++)
        for (int v = 0; v < V; v++) store(out + o * plane + v * LANES, acc[o][v]);
}

template <int R>
void product_rows(i64 tiles, i64 channels, const float* in, i64 plane, const Channels* weight, float* out) {
    i64 vectors = (tiles + LANES - 1) / LANES;
    while (vectors > 0) {
        i64 now = vectors == 4 ? 2 : std::min<i64>(VECTORS, vectors);
        if (now == 3) product_tile<R, 3>(channels, in, plane, weight, out);
        else if (now == 2) product_tile<R, 2>(channels, in, plane, weight, out);
        else product_tile<R, 1>(channels, in, plane, weight, out);
        in += now * LANES, out += now * LANES, vectors -= now;
    }
}

// A block of output channels, of which `count` matter.
void product(i64 count, i64 tiles, i64 channels, const float* in, i64 plane, const Channels* weight, float* out) {
    for (i64 o = 0; o < count; o += ROWS) {
        const Channels* from = reinterpret_cast<const Channels*>(weight->at + o);
        if (ROWS > 4 && count - o <= 4) product_rows<4>(tiles, channels, in, plane, from, out + o * plane);
        else product_rows<ROWS>(tiles, channels, in, plane, from, out + o * plane);
    }
}

// ------------------------------------------------------------------------------------------------------- convolution

template <class S>
struct Winograd {
    static const int I = S::INPUTS, P = S::PRODUCTS, O = S::OUTPUTS;
    i64 height, width, tiles_x, first, rows;  // of the image; tiles per row; the task's rows of tiles
    i64 plane;  // floats between two channels of one transform

    // One channel's rows -> its planes. A row's last vector may run over into the next row, which is written later.
    void transform_channel(const float* image, float* window, float* to, i64 channels) const {
        i64 pitch = 2 * tiles_x + 2 + 2 * LANES;
        copy_window(image, height, width, 2 * first - 1, -1, 1, 2 * rows + 2, pitch, window);
        for (i64 r = 0; r < rows; r++, window += 2 * pitch)
            for (i64 t = 0; t < tiles_x; t += LANES) {
                vec d[4][4], across[4][I], column[4], v[I];
                for (int y = 0; y < 4; y++) {
                    tile_inputs(window + y * pitch + 2 * t, d[y]);
                    S::transform(d[y], across[y]);
                }
                for (int x = 0; x < I; x++) {
                    for (int y = 0; y < 4; y++) column[y] = across[y][x];
                    S::transform(column, v);
                    for (int y = 0; y < I; y++) store(to + (y * I + x) * channels * plane + r * tiles_x + t, v[y]);
                }
            }
    }

    // One channel's products, `stride` floats apart -> pixels of its image.
    void write_channel(const float* products, i64 stride, float bias, const float* added, float* image) const {
        const i64 out_height = height * O / 2, out_width = width * O / 2;
        for (i64 r = 0; r < rows; r++)
            for (i64 t = 0; t < tiles_x; t += LANES) {
                vec m[P], down[O][P], y[O], row[O];
                for (int x = 0; x < P; x++) {
                    vec along[O];
                    for (int k = 0; k < P; k++) m[k] = load(products + (k * P + x) * stride + r * tiles_x + t);
                    S::outputs(m, along);
                    for (int k = 0; k < O; k++) down[k][x] = along[k];
                }
                for (int k = 0; k < O; k++) {
                    i64 at = (first + r) * O + k;
                    if (at >= out_height) break;
                    S::outputs(down[k], y);
                    in_order(y, row);
                    for (int v = 0; v < O; v++) {
                        i64 x = t * O + v * LANES, count = std::min<i64>(LANES, out_width - x);
                        if (count <= 0) break;
                        x += at * out_width;
                        row[v] += bias;
                        store_n(image + x, added ? row[v] + load_n(added + x, count) : row[v], count);
                    }
                }
            }
    }
};

#if PPSD3_AMX

// Transformed weights as an operand of amx.h: lines are output channels, k input channels.
struct Transformed {
    const Channels* weights;  // of the product: [block of out][product][in]
    i64 blocks, step, in;  // `step` from block to block
    bool k_contiguous() const { return false; }
    vec along_k(i64, i64) const { return vec{}; }
    vec along_lines(i64 l, i64 p) const {
        Channels lines[LANES / BLOCK] = {};
        for (i64 i = 0; i < LANES / BLOCK && p < in && l / BLOCK + i < blocks; i++)
            lines[i] = weights[(l / BLOCK + i) * step + p];
        return load(lines[0].at);
    }
};

template <class S>
struct TiledConvolution {
    static const int I = S::INPUTS, P = S::PRODUCTS, O = S::OUTPUTS;
    static const i64 STEP_VECTORS = amx::step_words<3>() / LANES;
    static const i64 PLANE_BYTES = 393216;  // of one transform of a task's inputs, which stays in the second cache

    i64 in, out;
    i64 steps() const { return (in + amx::STEP - 1) / amx::STEP; }
    i64 channel_blocks() const { return (out + amx::BLOCK - 1) / amx::BLOCK; }

    // [product][block of out][step]
    void pack_weights(const std::vector<Channels>& weights, amx::words* to) const {
        share_tasks(P * P * channel_blocks(), max_threads(), [&](i64 task) {
            i64 k = task / channel_blocks(), o = task % channel_blocks() * amx::BLOCK;
            const Transformed operand{weights.data() + k * in, (out + BLOCK - 1) / BLOCK, P * P * in, in};
            for (i64 s = 0; s < steps(); s++)
                amx::pack_rows<3>(operand, o, s * amx::STEP, to + (task * steps() + s) * STEP_VECTORS);
        });
    }

    // Two channels' planes -> their pairs in [transform][block of tiles][step].
    void pack_pair(const float* planes, i64 plane, i64 channel, i64 tile_blocks, amx::words* to) const {
        for (i64 source = 0; source < I * I; source++, planes += 2 * plane)
            for (i64 v = 0; v < 2 * tile_blocks; v++) {
                i64 at = (source * tile_blocks + v / 2) * steps() + channel / amx::STEP;
                vec second = channel + 1 < in ? load(planes + plane + v * LANES) : vec{};
                amx::put_pair<3>(load(planes + v * LANES), second, v % 2, channel % amx::STEP / 2,
                                 to + at * STEP_VECTORS);
            }
    }

    // products[product][channel][plane]
    void multiply(const amx::words* weights, const amx::words* inputs, i64 tile_blocks, i64 plane,
                  float* products) const {
        amx::Tiles tiles;
        for (int k = 0; k < P * P; k++) {
            int source = S::input_of(k / P) * I + S::input_of(k % P);
            for (i64 o = 0; o < channel_blocks(); o++) {
                const amx::words* rows = weights + (k * channel_blocks() + o) * steps() * STEP_VECTORS;
                const amx::words* later = rows + steps() * STEP_VECTORS;
                i64 lines = (STEP_VECTORS + amx::TURNS<3> * tile_blocks - 1) / (amx::TURNS<3> * tile_blocks);
                for (i64 t = 0; t < tile_blocks; t++) {
                    amx::clear();
                    amx::multiply<3>(steps(), rows, inputs + (source * tile_blocks + t) * steps() * STEP_VECTORS,
                                     [&](i64) {
                                         for (i64 line = 0; line < lines; line++) __builtin_prefetch(later++, 0, 2);
                                     });
                    amx::put(products + ((k * channel_blocks() + o) * amx::BLOCK) * plane + t * amx::BLOCK, plane);
                }
            }
        }
    }

    void run(const float* x, const std::vector<Channels>& transformed, const float* bias, const float* added, float* y,
             i64 batch, i64 height, i64 width) const {
        const i64 tiles_x = (width + 1) / 2, tiles_y = (height + 1) / 2, in_pairs = (in + 1) / 2;
        const int threads = max_threads();
        const i64 bytes = 6;  // of a number in three parts
        const i64 chunk = rows_per_task(tiles_y, batch, bytes * in * tiles_x, threads, PLANE_BYTES, 1);
        const i64 chunks = (tiles_y + chunk - 1) / chunk;
        static thread_local Pages shared;
        amx::words* weights = shared.vectors<amx::words>((P * P * channel_blocks() * steps() + 1) * STEP_VECTORS);
        pack_weights(transformed, weights);
        share_tasks(batch * chunks, threads, [&](i64 task) {
            i64 n = task / chunks, first = task % chunks * chunk, rows = std::min(chunk, tiles_y - first);
            i64 tile_blocks = (rows * tiles_x + amx::BLOCK - 1) / amx::BLOCK;
            i64 plane = tile_blocks * amx::BLOCK + LANES;  // no multiple of a page
            const Winograd<S> scheme{height, width, tiles_x, first, rows, plane};
            static thread_local Pages memory;
            i64 window = ((2 * rows + 2) * (2 * tiles_x + 2 + 2 * LANES) + LANES - 1) / LANES;
            i64 pair = 2 * I * I * plane / LANES;
            i64 size_of_inputs = I * I * tile_blocks * steps() * STEP_VECTORS;
            i64 size_of_products = P * P * channel_blocks() * amx::BLOCK * plane / LANES;
            amx::words* inputs = memory.vectors<amx::words>(size_of_inputs + size_of_products + pair + window + 1);
            float* products = reinterpret_cast<float*>(inputs + size_of_inputs);
            float *planes = products + size_of_products * LANES, *buffer = planes + pair * LANES;
            if (in % amx::STEP) std::memset(inputs, 0, size_of_inputs * sizeof(amx::words));
            for (i64 i = 0; i < in_pairs; i++) {
                for (i64 c = 2 * i; c < std::min(in, 2 * i + 2); c++)
                    scheme.transform_channel(x + (n * in + c) * height * width, buffer, planes + c % 2 * plane, 2);
                pack_pair(planes, plane, 2 * i, tile_blocks, inputs);
            }
            multiply(weights, inputs, tile_blocks, plane, products);
            for (i64 o = 0; o < out; o++) {
                i64 at = (n * out + o) * height * width * O * O / 4;
                scheme.write_channel(products + o * plane, channel_blocks() * amx::BLOCK * plane, bias ? bias[o] : 0.0f,
                                     added ? added + at : nullptr, y + at);
            }
        });
    }
};

#endif

template <class S>
void convolve(const float* x, const float* weight, const float* bias, const float* added, float* y, i64 batch, i64 in,
              i64 height, i64 width, i64 out, bool transposed, bool on_tiles) {
    const int I = S::INPUTS, P = S::PRODUCTS, O = S::OUTPUTS;
    const i64 tiles_x = (width + 1) / 2, tiles_y = (height + 1) / 2, blocks = (out + BLOCK - 1) / BLOCK;
    const int threads = threads_for(batch * in * out * tiles_y * tiles_x * P * P / 16);
    const std::vector<Channels> weights = transform_weights<S>(weight, out, in, transposed, threads);
#if PPSD3_AMX
    if (on_tiles && in >= amx::STEP && out >= amx::BLOCK && batch * tiles_y * tiles_x >= amx::BLOCK)
        return TiledConvolution<S>{in, out}.run(x, weights, bias, added, y, batch, height, width);
#endif
    const i64 chunk = rows_per_task(tiles_y, batch, I * I * in * tiles_x, threads, INPUT_FLOATS, 1);
    const i64 chunks = (tiles_y + chunk - 1) / chunk;
    share_tasks(batch * chunks, threads, [&](i64 task) {
        i64 n = task / chunks, first = task % chunks * chunk, rows = std::min(chunk, tiles_y - first);
        i64 tiles = rows * tiles_x, plane = (tiles + LANES - 1) / LANES * LANES + LANES;
        Winograd<S> scheme{height, width, tiles_x, first, rows, plane};
        i64 window = (2 * rows + 2) * (2 * tiles_x + 2 + 2 * LANES);
        scratch.reset(I * I * in * plane + P * P * BLOCK * plane + window);
        float *inputs = scratch.take(I * I * in * plane), *products = scratch.take(P * P * BLOCK * plane);
        float* buffer = scratch.take(window);
        for (i64 i = 0; i < in; i++)
            scheme.transform_channel(x + (n * in + i) * height * width, buffer, inputs + i * plane, in);
        for (i64 block = 0; block < blocks; block++) {
            i64 o = block * BLOCK, some = std::min<i64>(BLOCK, out - o);
            for (int k = 0; k < P * P; k++) {
                int source = S::input_of(k / P) * I + S::input_of(k % P);
                product(some, tiles, in, inputs + source * in * plane, plane, weights.data() + (block * P * P + k) * in,
                        products + k * BLOCK * plane);
            }
            for (i64 i = 0; i < some; i++) {
                i64 at = (n * out + o + i) * height * width * O * O / 4;
                scheme.write_channel(products + i * plane, BLOCK * plane, bias ? bias[o + i] : 0.0f,
                                     added ? added + at : nullptr, y + at);
            }
        }
    });
}

}  // namespace

void winograd_conv2d(const float* x, const float* weight, const float* bias, const float* added, float* y, i64 batch,
                     i64 in, i64 height, i64 width, i64 out, bool transposed) {
    convolve<Plain>(x, weight, bias, added, y, batch, in, height, width, out, transposed, false);
}

void winograd_upsample_conv2d(const float* x, const float* weight, const float* bias, float* y, i64 batch, i64 in,
                              i64 height, i64 width, i64 out) {
    convolve<Upsampled>(x, weight, bias, nullptr, y, batch, in, height, width, out, false, false);
}

#if PPSD3_AMX

extern "C" {

int32_t ppsd3_amx_conv2d(const float* x, const float* weight, const float* bias, const float* added, float* y,
                         int64_t batch, int64_t in, int64_t height, int64_t width, int64_t out, int64_t kernel,
                         int64_t stride) {
    if (!by_winograd(kernel, stride, in))
        return ppsd3_conv2d(x, weight, bias, added, y, batch, in, height, width, out, kernel, stride);
    return guarded([&] { convolve<Plain>(x, weight, bias, added, y, batch, in, height, width, out, false, true); });
}

int32_t ppsd3_amx_conv2d_backward_data(const float* dy, const float* weight, float* dx, int64_t batch, int64_t in,
                                       int64_t height, int64_t width, int64_t out, int64_t kernel, int64_t stride) {
    if (!by_winograd(kernel, stride, out))
        return ppsd3_conv2d_backward_data(dy, weight, dx, batch, in, height, width, out, kernel, stride);
    return guarded(
        [&] { convolve<Plain>(dy, weight, nullptr, nullptr, dx, batch, out, height, width, in, true, true); });
}

int32_t ppsd3_amx_upsample_conv2d(const float* x, const float* weight, const float* bias, float* y, int64_t batch,
                                  int64_t in, int64_t height, int64_t width, int64_t out) {
    if (!by_winograd(3, 1, in)) return ppsd3_upsample_conv2d(x, weight, bias, y, batch, in, height, width, out);
    return guarded(
        [&] { convolve<Upsampled>(x, weight, bias, nullptr, y, batch, in, height, width, out, false, true); });
}

}  // extern "C"

#endif
