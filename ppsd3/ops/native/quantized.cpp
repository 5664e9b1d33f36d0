// Linear layers in int8: weights of 8 bits, activations rounded to 8 bits on the way, sums in 32 bits.
//
// A row of activations is cut into groups of 256; each group has its own step and offset, x = low + scale * u with u in
// 0..255, so that an outlier costs precision to its group alone, and the one-sided output of GELU wastes no bit. Weights
// are s in -127..127 times one scale for each output. The product is then
//   y[row, column] = weight_scale[column] * sum over groups of (scale * sum(u s) + low * sum(s)) + bias[column].
//
// The instruction (VNNI) multiplies four neighbouring k of u and s and adds the products to a 32-bit lane: four times
// the arithmetic of a float32 multiply-add. Weights stay as they are stored, [columns, k]: a panel of columns is
// rearranged into such words on each call, which costs a percent and saves a second copy of the model.

#include <vector>

#include "guarded.h"
#include "threads.h"
#include "vectors.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)  // elsewhere float32 products are faster

#include <immintrin.h>

namespace {

typedef int32_t word;  // four 8-bit numbers
typedef ivec ivec_unaligned __attribute__((aligned(4), may_alias));
typedef uint8_t byte_vec __attribute__((vector_size(LANES)));

const i64 GROUP = 256;  // as ppsd3/ops/quantized.py has it
const i64 GROUP_WORDS = GROUP / 4;
const i64 COLUMNS = TILE_VECTORS * LANES;  // of a panel
const i64 CHUNK_GROUPS = 16;  // of one pass over k: a panel (256 KB) stays in the second cache

inline i64 up(i64 n, i64 step) { return (n + step - 1) / step; }

// acc + the products of the four unsigned bytes of each lane of a with the four signed ones of b.
inline ivec dot(ivec acc, ivec a, ivec b) {
#if defined(__AVX512VNNI__)
    return (ivec)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#else
    return (ivec)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)a, (__m256i)b);
#endif
}

inline ivec load_words(const word* p) { return *reinterpret_cast<const ivec_unaligned*>(p); }
inline word word_at(const void* p) {
    word w;
    std::memcpy(&w, p, sizeof w);
    return w;
}

// ------------------------------------------------------------------------------------------------ activations

struct Activation {
    const uint8_t* data;  // [rows, stride], zero from the last k to the next multiple of four
    i64 stride, groups;
    const float *scale, *low;  // [rows, groups]
};

void quantize_group(const float* x, i64 n, uint8_t* u, float* scale, float* low) {
    vec smallest = splat(x[0]), largest = smallest, check{};
    for_row(n, [&](i64 j, i64 count) {
        vec v = load_n(x + j, count);
        check += v - v;  // NaN or infinity becomes NaN
        if (count < LANES)
            for (i64 i = count; i < LANES; i++) v[i] = x[0];
        smallest = v < smallest ? v : smallest;
        largest = vmax(v, largest);
    });
    float bottom = -maximum_of(-smallest), step = (maximum_of(largest) - bottom) / 255.0f;
    *low = bottom + sum(check);
    *scale = step;
    float inverse = step > 0 ? 1.0f / step : 0.0f;
    for_row(n, [&](i64 j, i64 count) {
        vec v = (load_n(x + j, count) - bottom) * inverse + 0.5f;
        v = v < 255.0f ? v : splat(255.0f);
        byte_vec bytes = __builtin_convertvector(__builtin_convertvector(v, ivec), byte_vec);
        std::memcpy(u + j, &bytes, count);
    });
}

// ---------------------------------------------------------------------------------------------------- weights

// COLUMNS columns and one chunk of k, as words[k / 4][column], with the sum of each group of each column.
struct Panel {
    i64 first_group, groups, words;
    word* data;
    float* sums;  // [groups, COLUMNS]
};

void pack(const int8_t* weight, i64 k, i64 columns, Panel& panel) {
    i64 start = panel.first_group * GROUP_WORDS, whole = std::min(panel.words, k / 4 - start);
    for (i64 block = 0; block < whole; block += LANES) {
        i64 end = std::min(block + LANES, whole);
        for (i64 c = 0; c < columns; c++) {
            const int8_t* row = weight + c * k + 4 * start;
            for (i64 p = block; p < end; p++) panel.data[p * COLUMNS + c] = word_at(row + 4 * p);
        }
    }
    for (i64 p = whole; p < panel.words; p++)
        for (i64 c = 0; c < columns; c++) {
            i64 at = 4 * (start + p);
            panel.data[p * COLUMNS + c] = 0;
            std::memcpy(&panel.data[p * COLUMNS + c], weight + c * k + at, k - at);
        }
    for (i64 p = 0; p < panel.words; p++)
        for (i64 c = columns; c < COLUMNS; c++) panel.data[p * COLUMNS + c] = 0;

    const ivec ones = ivec{} + 0x01010101;
    for (i64 g = 0; g < panel.groups; g++) {
        ivec total[TILE_VECTORS] = {};
        for (i64 p = g * GROUP_WORDS, end = std::min(p + GROUP_WORDS, panel.words); p < end; p++)
            for (int j = 0; j < TILE_VECTORS; j++)
                total[j] = dot(total[j], ones, load_words(panel.data + p * COLUMNS + j * LANES));
        for (int j = 0; j < TILE_VECTORS; j++)
            store(panel.sums + g * COLUMNS + j * LANES, __builtin_convertvector(total[j], vec));
    }
}

// ---------------------------------------------------------------------------------------------------- product

// What becomes of the sums of a panel: they wait in `out` until the last chunk of k.
struct Output {
    float* data;  // first row, first column of the panel
    i64 stride, columns;
    const float *scale, *bias;  // of the panel's columns; bias may be null
    bool first, last, gelu;
};

template <int N>
void tile(const Activation& x, i64 row, const Panel& panel, const Output& out) {
    vec total[N][TILE_VECTORS];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < TILE_VECTORS; j++) {
            i64 count = std::min<i64>(LANES, out.columns - j * LANES);
            total[i][j] =
                out.first || count <= 0 ? vec{} : load_n(out.data + (row + i) * out.stride + j * LANES, count);
        }
    for (i64 g = 0; g < panel.groups; g++) {
        i64 p = g * GROUP_WORDS, end = std::min(p + GROUP_WORDS, panel.words);
        const uint8_t* bytes = x.data + row * x.stride + panel.first_group * GROUP;
        ivec acc[N][TILE_VECTORS] = {};
        for (; p < end; p++) {
            ivec b[TILE_VECTORS];
            for (int j = 0; j < TILE_VECTORS; j++) b[j] = load_words(panel.data + p * COLUMNS + j * LANES);
            for (int i = 0; i < N; i++) {
                ivec a = ivec{} + word_at(bytes + i * x.stride + 4 * p);
                for (int j = 0; j < TILE_VECTORS; j++) acc[i][j] = dot(acc[i][j], a, b[j]);
            }
        }
        for (int i = 0; i < N; i++) {
            i64 at = (row + i) * x.groups + panel.first_group + g;
            for (int j = 0; j < TILE_VECTORS; j++)
                total[i][j] += __builtin_convertvector(acc[i][j], vec) * x.scale[at] +
                               load(panel.sums + g * COLUMNS + j * LANES) * x.low[at];
        }
    }
    for (int j = 0; j < TILE_VECTORS; j++) {
        i64 count = std::min<i64>(LANES, out.columns - j * LANES);
        if (count <= 0) break;
        vec scale{}, bias{};
        if (out.last) {
            scale = load_n(out.scale + j * LANES, count);
            if (out.bias) bias = load_n(out.bias + j * LANES, count);
        }
        for (int i = 0; i < N; i++) {
            vec y = out.last ? total[i][j] * scale + bias : total[i][j];
            if (out.last && out.gelu) y = gelu(y);
            store_n(out.data + (row + i) * out.stride + j * LANES, y, count);
        }
    }
}

void any_tile(i64 rows, const Activation& x, i64 row, const Panel& panel, const Output& out) {
    switch (rows) {
        case 1: return tile<1>(x, row, panel, out);
        case 2: return tile<2>(x, row, panel, out);
        case 3: return tile<3>(x, row, panel, out);
        case 4: return tile<4>(x, row, panel, out);
        case 5: return tile<5>(x, row, panel, out);
        default: return tile<6>(x, row, panel, out);
    }
}

}  // namespace

extern "C" {

int32_t ppsd3_quantize_rows(const float* x, uint8_t* u, float* scale, float* low, int64_t rows, int64_t k,
                            int64_t stride) {
    return guarded([&] {
        i64 groups = up(k, GROUP), padding = (4 - k % 4) % 4;
        share_rows(rows, threads_for(rows * k), [&](i64 first, i64 last, int) {
            for (i64 r = first; r < last; r++) {
                for (i64 g = 0; g < groups; g++) {
                    i64 at = g * GROUP;
                    quantize_group(x + r * k + at, std::min(GROUP, k - at), u + r * stride + at, scale + r * groups + g,
                                   low + r * groups + g);
                }
                std::memset(u + r * stride + k, 0, padding);
            }
        });
    });
}

int32_t ppsd3_product_int8(const uint8_t* u, const float* scale, const float* low, const int8_t* weight,
                           const float* weight_scale, const float* bias, float* out, int64_t rows, int64_t n, int64_t k,
                           int64_t stride, bool gelu_after) {
    return guarded([&] {
        i64 groups = up(k, GROUP), words = up(k, 4), panels = up(n, COLUMNS);
        i64 chunks = up(groups, CHUNK_GROUPS), chunk = up(groups, chunks);
        int threads = threads_for(rows * n * k / 16);
        // few panels and many threads: rows are divided too
        i64 parts = std::max<i64>(1, std::min(up(4 * threads, panels), up(rows, 64 * TILE_ROWS)));
        i64 part = up(up(rows, parts), TILE_ROWS) * TILE_ROWS;
        Activation x{u, stride, groups, scale, low};
        share_tasks(panels * parts, threads, [&](i64 task) {
            static thread_local std::vector<word> packed;
            static thread_local std::vector<float> sums;
            packed.resize(chunk * GROUP_WORDS * COLUMNS);
            sums.resize(chunk * COLUMNS);
            i64 column = task / parts * COLUMNS, columns = std::min(COLUMNS, n - column);
            const float* column_bias = bias ? bias + column : nullptr;
            i64 begin = task % parts * part, end = std::min(rows, begin + part);
            for (i64 g = 0; g < groups; g += chunk) {
                i64 count = std::min(chunk, groups - g);
                Panel panel{g, count, std::min(count * GROUP_WORDS, words - g * GROUP_WORDS), packed.data(),
                            sums.data()};
                pack(weight + column * k, k, columns, panel);
                Output output{out + column,        n,         columns, weight_scale + column, column_bias, g == 0,
                              g + count == groups, gelu_after};
                for (i64 row = begin; row < end; row += TILE_ROWS)
                    any_tile(std::min<i64>(TILE_ROWS, end - row), x, row, panel, output);
            }
        });
    });
}

}  // extern "C"

#endif
