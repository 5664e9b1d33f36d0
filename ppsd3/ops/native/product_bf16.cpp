// Matrix products with operands rounded to bfloat16 and sums in float32: for training, on CPUs with AVX512-BF16.
//
// The instruction multiplies pairs of neighbouring k and adds both products to a float32 lane, twice the arithmetic of
// a float32 multiply-add. Both operands are packed into such pairs, as one 32-bit word each.

#include <vector>

#include "guarded.h"
#include "threads.h"

#if defined(__AVX512BF16__) && defined(__AVX512F__) && defined(__AVX512BW__)

#include <immintrin.h>

namespace {

typedef uint32_t pair_type;

const i64 ROWS = 6, COLUMNS = 64;        // of a tile: 24 accumulators of the 32 registers
const i64 DEPTH = 256;                   // pairs of one pass over k: a panel of B (64 KB) stays in the second cache
const i64 ROW_BLOCK = 16 * ROWS;         // rows of A that a thread packs at once

// A matrix by its element (row, k): either axis may be the contiguous one.
struct Operand {
    const float* data;
    i64 row, k;  // strides, one of them 1
};

inline __m512i pairs_of(__m512 low, __m512 high) {  // low halves hold the even k
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                                6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(interleave, both);
}

inline __mmask16 first(i64 n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : __mmask16((1u << n) - 1); }

// Packs `count` rows (columns of B) from `begin` and `pairs` pairs of k from 2 * `start`, as out[pair][width]; what
// lies outside the matrix (rows from `count`, k from `depth`) is zero.
void pack(const Operand& x, i64 begin, i64 count, i64 width, i64 start, i64 pairs, i64 depth, pair_type* out) {
    if (x.row == 1) {
        for (i64 p = 0; p < pairs; p++) {
            i64 k = 2 * (start + p);
            const float* low = x.data + begin + k * x.k;
            for (i64 j = 0; j < width; j += 16) {
                __mmask16 some = first(count - j), wanted = first(width - j);
                __m512 a = _mm512_maskz_loadu_ps(some, low + j);
                __m512 b = _mm512_maskz_loadu_ps(k + 1 < depth ? some : 0, low + x.k + j);
                _mm512_mask_storeu_epi32(out + p * width + j, wanted, pairs_of(a, b));
            }
        }
        return;
    }
    for (i64 i = 0; i < width; i++) {
        if (i >= count) {
            for (i64 p = 0; p < pairs; p++) out[p * width + i] = 0;
            continue;
        }
        const float* row = x.data + (begin + i) * x.row + 2 * start;
        i64 left = depth - 2 * start;
        for (i64 p = 0; p < pairs; p += 16) {
            __m512 a = _mm512_maskz_loadu_ps(first(left - 2 * p), row + 2 * p);
            __m512 b = _mm512_maskz_loadu_ps(first(left - 2 * p - 16), row + 2 * p + 16);
            pair_type words[16];
            _mm512_storeu_si512(words, (__m512i)_mm512_cvtne2ps_pbh(b, a));
            for (i64 j = 0, end = std::min<i64>(16, pairs - p); j < end; j++) out[(p + j) * width + i] = words[j];
        }
    }
}

// Sums begin with `start` (rows start_row apart), or with zero.
template <int N>
void tile(i64 pairs, const pair_type* a, const pair_type* b, float* c, i64 ldc, i64 columns, const float* start,
          i64 start_row) {
    __m512 acc[N][4];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < 4; j++)
            acc[i][j] = start ? _mm512_maskz_loadu_ps(first(columns - 16 * j), start + i * start_row + 16 * j)
                              : _mm512_setzero_ps();
    for (i64 p = 0; p < pairs; p++) {
        __m512bh row[4];
        for (int j = 0; j < 4; j++) row[j] = (__m512bh)_mm512_loadu_si512(b + p * COLUMNS + 16 * j);
        for (int i = 0; i < N; i++) {
            __m512bh x = (__m512bh)_mm512_set1_epi32(int(a[p * ROWS + i]));
            for (int j = 0; j < 4; j++) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], x, row[j]);
        }
    }
    for (int i = 0; i < N; i++)
        for (int j = 0; j < 4; j++) _mm512_mask_storeu_ps(c + i * ldc + 16 * j, first(columns - 16 * j), acc[i][j]);
}

void any_tile(i64 rows, i64 pairs, const pair_type* a, const pair_type* b, float* c, i64 ldc, i64 columns,
              const float* start, i64 start_row) {
    switch (rows) {
        case 1: return tile<1>(pairs, a, b, c, ldc, columns, start, start_row);
        case 2: return tile<2>(pairs, a, b, c, ldc, columns, start, start_row);
        case 3: return tile<3>(pairs, a, b, c, ldc, columns, start, start_row);
        case 4: return tile<4>(pairs, a, b, c, ldc, columns, start, start_row);
        case 5: return tile<5>(pairs, a, b, c, ldc, columns, start, start_row);
        default: return tile<6>(pairs, a, b, c, ldc, columns, start, start_row);
    }
}

}  // namespace

extern "C" {

int32_t ppsd3_product_bf16(const float* a, const float* b, const float* bias, float* c, int64_t m, int64_t n, int64_t k,
                           bool a_transposed, bool b_transposed) {
    return guarded([&] {
        Operand left{a, a_transposed ? 1 : k, a_transposed ? m : 1};
        Operand right{b, b_transposed ? k : 1, b_transposed ? 1 : n};
        i64 all_pairs = (k + 1) / 2, panels = (n + COLUMNS - 1) / COLUMNS;
        int threads = threads_for(m * n * k / 16);
        static thread_local std::vector<pair_type> packed_b;
        packed_b.resize(panels * std::min(DEPTH, all_pairs) * COLUMNS);
        pair_type* whole_b = packed_b.data();
        for (i64 start = 0; start < all_pairs; start += DEPTH) {
            i64 pairs = std::min(DEPTH, all_pairs - start);
            share_tasks(panels, threads, [&](i64 j) {
                pack(right, j * COLUMNS, std::min(COLUMNS, n - j * COLUMNS), COLUMNS, start, pairs, k,
                     whole_b + j * pairs * COLUMNS);
            });
            share_tasks((m + ROW_BLOCK - 1) / ROW_BLOCK, threads, [&](i64 block) {
                static thread_local std::vector<pair_type> packed_a;
                packed_a.resize(ROW_BLOCK * DEPTH);
                i64 begin = block * ROW_BLOCK, rows = std::min(ROW_BLOCK, m - begin);
                for (i64 i = 0; i < rows; i += ROWS)
                    pack(left, begin + i, std::min(ROWS, rows - i), ROWS, start, pairs, k, packed_a.data() + i * pairs);
                for (i64 j = 0; j < panels; j++)
                    for (i64 i = 0; i < rows; i += ROWS) {
                        float* out = c + (begin + i) * n + j * COLUMNS;
                        const float* sum = start > 0 ? out : bias ? bias + j * COLUMNS : nullptr;
                        any_tile(std::min(ROWS, rows - i), pairs, packed_a.data() + i * pairs,
                                 whole_b + j * pairs * COLUMNS, out, n, n - j * COLUMNS, sum, start > 0 ? n : 0);
                    }
            });
        }
    });
}

}  // extern "C"

#endif
