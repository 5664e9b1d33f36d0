// Matrix products for CPUs with AVX-512: in float32, and, for training, with operands rounded to bfloat16 and sums in
// float32 where there is AVX512-BF16, whose instruction multiplies pairs of neighbouring k: twice the arithmetic.
//
// Both operands are packed, a stretch of k at a time: A into slivers of 6 rows, which all threads read, B into panels of 64
// columns, each by the thread that multiplies all slivers with it, so that it never leaves that core's cache. A word of a packed operand is a number, or a pair of bfloat16. Bias begins the sums, GELU
// ends them, so that neither is a pass over the result.

#include "common.h"

#if defined(__AVX512F__) && defined(__AVX512BW__)

#include <immintrin.h>

namespace {

const i64 ROWS = 6, COLUMNS = 64;  // of a tile: 24 accumulators of the 32 registers
const i64 ROW_BLOCK = 342 * ROWS;  // rows of A that are packed at once: 6 MB, of the last cache

// A matrix by its element (row, k): either axis may be the contiguous one.
struct Operand {
    const float* data;
    i64 row, k;  // strides, one of them 1
};

inline __mmask16 first(i64 n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : __mmask16((1u << n) - 1); }

// Sixteen words of sixteen rows, turned in place.
inline void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

struct Single {
    typedef float word;
    static const i64 NUMBERS = 1, DEPTH = 768;  // numbers of a word; words of one stretch of k: a panel of B is 192 KB
    typedef __m512 lanes;

    // Words of rows `p` and after it, from a row along k, and of one k from neighbouring rows.
    static __m512i along(const float* row, i64 left) { return (__m512i)_mm512_maskz_loadu_ps(first(left), row); }
    static __m512i across(const float* low, i64, i64 rows, i64) {
        return (__m512i)_mm512_maskz_loadu_ps(first(rows), low);
    }
    static lanes load(const word* p) { return _mm512_loadu_ps(p); }
    static lanes broadcast(word x) { return _mm512_set1_ps(x); }
    static __m512 multiply_add(__m512 sum, lanes x, lanes y) { return _mm512_fmadd_ps(x, y, sum); }
};

#if defined(__AVX512BF16__)
struct Pairs {
    typedef uint32_t word;
    static const i64 NUMBERS = 2, DEPTH = 256;
    typedef __m512bh lanes;

    static __m512i along(const float* row, i64 left) {
        __m512 a = _mm512_maskz_loadu_ps(first(left), row), b = _mm512_maskz_loadu_ps(first(left - 16), row + 16);
        return (__m512i)_mm512_cvtne2ps_pbh(b, a);
    }
    static __m512i across(const float* low, i64 next, i64 rows, i64 left) {
        __m512 a = _mm512_maskz_loadu_ps(first(rows), low);
        __m512 b = _mm512_maskz_loadu_ps(left > 1 ? first(rows) : 0, low + next);
        const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                                    22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        return _mm512_permutexvar_epi16(interleave, (__m512i)_mm512_cvtne2ps_pbh(b, a));  // even k in the low halves
    }
    static lanes load(const word* p) { return (__m512bh)_mm512_loadu_si512(p); }
    static lanes broadcast(word x) { return (__m512bh)_mm512_set1_epi32(int(x)); }
    static __m512 multiply_add(__m512 sum, lanes x, lanes y) { return _mm512_dpbf16_ps(sum, x, y); }
};
#endif

// Packs `count` rows (columns of B) from `begin` and `words` words of k from word `start`, as out[word][width]; what
// lies outside the matrix (rows from `count`, k from `depth`) is zero.
template <class Kind>
void pack(const Operand& x, i64 begin, i64 count, i64 width, i64 start, i64 words, i64 depth, void* packed) {
    uint32_t* out = static_cast<uint32_t*>(packed);
    if (x.row == 1) {
        for (i64 p = 0; p < words; p++) {
            i64 k = Kind::NUMBERS * (start + p);
            for (i64 j = 0; j < width; j += 16)
                _mm512_mask_storeu_epi32(out + p * width + j, first(width - j),
                                         Kind::across(x.data + begin + j + k * x.k, x.k, count - j, depth - k));
        }
        return;
    }
    for (i64 i = 0; i < width; i += 16)
        for (i64 p = 0; p < words; p += 16) {
            i64 k = Kind::NUMBERS * (start + p);
            __m512i block[16];
            for (i64 j = 0; j < 16; j++) {
                const float* row = x.data + (begin + std::min(i + j, count - 1)) * x.row + k;
                block[j] = Kind::along(row, i + j < count ? depth - k : 0);
            }
            transpose(block);
            for (i64 j = 0, end = std::min<i64>(16, words - p); j < end; j++)
                _mm512_mask_storeu_epi32(out + (p + j) * width + i, first(width - i), block[j]);
        }
}

// What becomes of the sums: they begin with `start` (rows start_row apart) or with zero, and may end with GELU.
struct Ends {
    const float* start;
    i64 start_row;
    bool gelu;
};

template <class Kind, int N>
void tile(i64 words, const typename Kind::word* a, const typename Kind::word* b, float* c, i64 ldc, i64 columns,
          const Ends& ends) {
    __m512 acc[N][4];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < 4; j++)
            acc[i][j] = ends.start
                            ? _mm512_maskz_loadu_ps(first(columns - 16 * j), ends.start + i * ends.start_row + 16 * j)
                            : _mm512_setzero_ps();
    for (i64 p = 0; p < words; p++) {
        typename Kind::lanes row[4];
        for (int j = 0; j < 4; j++) row[j] = Kind::load(b + p * COLUMNS + 16 * j);
        for (int i = 0; i < N; i++) {
            typename Kind::lanes x = Kind::broadcast(a[p * ROWS + i]);
            for (int j = 0; j < 4; j++) acc[i][j] = Kind::multiply_add(acc[i][j], x, row[j]);
        }
    }
    for (int i = 0; i < N; i++)
        for (int j = 0; j < 4; j++) {
            __m512 y = ends.gelu ? (__m512)gelu((vec)acc[i][j]) : acc[i][j];
            _mm512_mask_storeu_ps(c + i * ldc + 16 * j, first(columns - 16 * j), y);
        }
}

template <class Kind>
void any_tile(i64 rows, i64 words, const typename Kind::word* a, const typename Kind::word* b, float* c, i64 ldc,
              i64 columns, const Ends& ends) {
    switch (rows) {
        case 1: return tile<Kind, 1>(words, a, b, c, ldc, columns, ends);
        case 2: return tile<Kind, 2>(words, a, b, c, ldc, columns, ends);
        case 3: return tile<Kind, 3>(words, a, b, c, ldc, columns, ends);
        case 4: return tile<Kind, 4>(words, a, b, c, ldc, columns, ends);
        case 5: return tile<Kind, 5>(words, a, b, c, ldc, columns, ends);
        default: return tile<Kind, 6>(words, a, b, c, ldc, columns, ends);
    }
}

template <class Kind>
void product(const Operand& left, const Operand& right, const float* bias, float* c, i64 m, i64 n, i64 k, bool gelu) {
    typedef typename Kind::word word;
    const i64 all_words = (k + Kind::NUMBERS - 1) / Kind::NUMBERS, panels = (n + COLUMNS - 1) / COLUMNS;
    const i64 stretches = (all_words + Kind::DEPTH - 1) / Kind::DEPTH;
    const i64 depth = ((all_words + stretches - 1) / stretches + 15) / 16 * 16;  // of equal length
    const int threads = threads_for(m * n * k / 16);
    const i64 row_blocks = (m + ROW_BLOCK - 1) / ROW_BLOCK;
    const i64 block_rows = ((m + row_blocks - 1) / row_blocks + ROWS - 1) / ROWS * ROWS;
    static thread_local std::vector<word> packed_a;
    packed_a.resize(block_rows * std::min(depth, (all_words + 15) / 16 * 16));
    word* whole_a = packed_a.data();
    for (i64 begin = 0; begin < m; begin += block_rows)
        for (i64 start = 0; start < all_words; start += depth) {
            const i64 rows = std::min(block_rows, m - begin), words = std::min(depth, all_words - start);
            const bool last = start + words == all_words;
            share_tasks((rows + ROWS - 1) / ROWS, threads, [&](i64 sliver) {
                i64 i = sliver * ROWS;
                pack<Kind>(left, begin + i, std::min(ROWS, rows - i), ROWS, start, words, k, whole_a + i * words);
            });
            share_tasks(panels, threads, [&](i64 panel) {
                static thread_local std::vector<word> packed_b;
                packed_b.resize(Kind::DEPTH * COLUMNS);
                const i64 j = panel * COLUMNS;
                pack<Kind>(right, j, std::min(COLUMNS, n - j), COLUMNS, start, words, k, packed_b.data());
                for (i64 i = 0; i < rows; i += ROWS) {
                    float* out = c + (begin + i) * n + j;
                    const float* sum = start > 0 ? out : bias ? bias + j : nullptr;
                    any_tile<Kind>(std::min(ROWS, rows - i), words, whole_a + i * words, packed_b.data(), out, n, n - j,
                                   Ends{sum, start > 0 ? n : 0, gelu && last});
                }
            });
        }
}

}  // namespace

extern "C" {

// C[M, N] = A[M, K] B[K, N] + bias[N] (or null), then GELU if wanted; A as stored or (a_transposed) as [K, M], B as
// stored or (b_transposed) as [N, K].
void ppsd3_product(const float* a, const float* b, const float* bias, float* c, i64 m, i64 n, i64 k, i64 a_transposed,
                   i64 b_transposed, i64 gelu) {
    product<Single>({a, a_transposed ? 1 : k, a_transposed ? m : 1}, {b, b_transposed ? k : 1, b_transposed ? 1 : n},
                    bias, c, m, n, k, gelu);
}

#if defined(__AVX512BF16__)
void ppsd3_product_bf16(const float* a, const float* b, const float* bias, float* c, i64 m, i64 n, i64 k,
                        i64 a_transposed, i64 b_transposed, i64 gelu) {
    product<Pairs>({a, a_transposed ? 1 : k, a_transposed ? m : 1}, {b, b_transposed ? k : 1, b_transposed ? 1 : n},
                   bias, c, m, n, k, gelu);
}
#endif

}  // extern "C"

#endif
