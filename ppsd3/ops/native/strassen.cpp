// y = x W^T + b by Strassen's algorithm, one or two levels deep: 7 products where there were 8, or 49 where there were 64.
//
// Blocks are small and near one another: of a slab of rows, a group of columns and a piece of k. All sums of blocks of W
// are made once, transposed, for as many groups as memory is allowed; of x the outer level's sums once for a slab, the
// inner level's while they are multiplied, where one more addition takes no time. Each product of two sums is made tile by
// tile in registers and added from there to the blocks of y that it belongs to: in a copy of their own in the second cache,
// since rows of y itself lie on the same few lines of it. So less is multiplied, and hardly more is moved. (After Huang,
// Smith, Henry and van de Geijn, "Strassen's Algorithm Reloaded", 2016.)
//
// For AVX-512, where it is measured to be faster than the system's products.

#include "guarded.h"
#include "scratch.h"
#include "threads.h"

#if defined(__AVX512F__)

#include <immintrin.h>

namespace {

const i64 ROWS = TILE_ROWS, WIDTH = LANES * TILE_VECTORS;  // of a tile
const i64 SLAB_TILES = 8;  // most tiles that a block of x has: 48 rows
const i64 DEPTH = 512;  // most k of a block
const i64 PAD = 5 * LANES;  // between sums, so that they do not all fall on the same lines of a cache
const i64 MOST_SUMS_OF_W = i64(64) << 20;  // bytes

// The seven sums of four blocks, numbered (1,1), (1,2), (2,1), (2,2).
inline void left_sums(const vec* v, vec* out) {
    out[0] = v[0] + v[3], out[1] = v[2] + v[3], out[2] = v[0], out[3] = v[3];
    out[4] = v[0] + v[1], out[5] = v[2] - v[0], out[6] = v[1] - v[3];
}
inline void right_sums(const vec* v, vec* out) {
    out[0] = v[0] + v[3], out[1] = v[0], out[2] = v[1] - v[3], out[3] = v[2] - v[0];
    out[4] = v[3], out[5] = v[0] + v[1], out[6] = v[2] + v[3];
}

// Those of the left as pairs of blocks: the second one with its sign, or 0 for none.
struct Pair {
    int first, second, sign;
};
const Pair LEFT_SUMS[7] = {{0, 3, 1}, {2, 3, 1}, {0, 0, 0}, {3, 3, 0}, {0, 1, 1}, {2, 0, -1}, {1, 3, -1}};

// The blocks of the result that a product is added to, and with which sign; 0 for no block.
struct Target {
    int block, sign;
};
const Target TARGETS[7][2] = {{{0, 1}, {3, 1}},  {{2, 1}, {3, -1}}, {{1, 1}, {3, 1}}, {{0, 1}, {2, 1}},
                              {{0, -1}, {1, 1}}, {{3, 1}, {3, 0}},  {{0, 1}, {0, 0}}};

// LEVELS is 1 or 2. Blocks are numbered with the outer level first: of 16, number 4 * outer + inner.
template <int LEVELS>
struct Product {
    static const i64 SPLIT = 1 << LEVELS, BLOCKS = SPLIT * SPLIT, PRODUCTS = LEVELS == 1 ? 7 : 49;
    static const i64 PARTS_OF_X = LEVELS == 1 ? 4 : 28;  // blocks, or the outer level's sums of them

    const float *x, *w, *bias;
    float* y;
    i64 m, n, k;
    bool gelu_after;
    i64 depth;  // k of a block, a multiple of LANES; beyond the last k are zeros

    i64 sum_of_w() const { return depth * WIDTH + PAD; }
    i64 sum_of_x(i64 rows) const { return rows * depth + PAD; }

    // Row and column, in blocks, of block number `block`.
    static void place(int block, i64& row, i64& column) {
        row = block >> 1 & 1, column = block & 1;
        if (LEVELS == 2) row += block >> 3 << 1, column += (block >> 2 & 1) << 1;
    }

    // The sums of W for one group of SPLIT * WIDTH columns from `column`, and k from `start`: out[product][k][WIDTH]; of
    // each block's k those from `low` to `high`, both multiples of LANES.
    void pack_w(i64 column, i64 start, i64 low, i64 high, float* out) const {
        alignas(64) float transposed[BLOCKS][LANES][LANES];
        for (i64 p = low; p < high; p += LANES)
            for (i64 inner = 0; inner < WIDTH; inner += LANES) {
                for (int block = 0; block < BLOCKS; block++) {
                    i64 row, col;  // of W^T: rows are k
                    place(block, row, col);
                    i64 first = column + col * WIDTH + inner, from = start + row * depth + p;
                    transpose(w + first * k + from, n - first, k - from, transposed[block]);
                }
                for (i64 i = 0; i < LANES; i++) {
                    vec blocks[BLOCKS], sums[PRODUCTS];
                    for (int block = 0; block < BLOCKS; block++) blocks[block] = load(transposed[block][i]);
                    all_right_sums(blocks, sums);
                    float* to = out + (p + i) * WIDTH + inner;
                    // past the caches: read much later, and never twice soon
                    for (int q = 0; q < PRODUCTS; q++) _mm512_stream_ps(to + q * sum_of_w(), (__m512)sums[q]);
                }
            }
        _mm_sfence();
    }

    static void all_right_sums(const vec* blocks, vec* out) {
        if (LEVELS == 1) return right_sums(blocks, out);
        vec outer[7][4];
        for (int inner = 0; inner < 4; inner++) {
            vec four[4] = {blocks[inner], blocks[4 + inner], blocks[8 + inner], blocks[12 + inner]}, seven[7];
            right_sums(four, seven);
            for (int q = 0; q < 7; q++) outer[q][inner] = seven[q];
        }
        for (int q = 0; q < 7; q++) right_sums(outer[q], out + 7 * q);
    }

    // LANES numbers of each of LANES rows of W as out[k][row]; zeros from `rows` and from `deep` on.
    void transpose(const float* source, i64 rows, i64 deep, float (*out)[LANES]) const {
        if (rows >= LANES && deep >= LANES) {
            for (i64 j = 0; j < LANES; j++)
                for (i64 i = 0; i < LANES; i++) out[i][j] = source[j * k + i];
            return;
        }
        for (i64 j = 0; j < LANES; j++)
            for (i64 i = 0; i < LANES; i++) out[i][j] = j < rows && i < deep ? source[j * k + i] : 0;
    }

    // The blocks of x for a slab of SPLIT * rows rows from `begin`, or the outer level's sums of them:
    // out[outer][inner block][row][k].
    void pack_x(i64 begin, i64 rows, i64 start, float* out) const {
        for (i64 r = 0; r < rows; r++) {
            const float* sources[BLOCKS];
            i64 deep[BLOCKS];
            for (int block = 0; block < BLOCKS; block++) {
                i64 row, col;
                place(block, row, col);
                i64 line = begin + row * rows + r, from = start + col * depth;
                sources[block] = x + line * k + from;
                deep[block] = line < m ? k - from : 0;
            }
            sum_row(sources, deep, out + r * depth, sum_of_x(rows));
        }
    }

    // One row's blocks, `step` apart; where there are two levels, the outer one's sums of them.
    void sum_row(const float* const* sources, const i64* deep, float* out, i64 step) const {
        auto part = [&](int block, i64 p) {
            i64 left = deep[block] - p;
            return left >= LANES ? load(sources[block] + p) : left > 0 ? load_part(sources[block] + p, left) : vec{};
        };
        for (int inner = 0; inner < 4; inner++)
            for (i64 p = 0; p < depth; p += LANES) {
                if (LEVELS == 1) {
                    store(out + inner * step + p, part(inner, p));
                    continue;
                }
                vec four[4], seven[7];
                for (int outer = 0; outer < 4; outer++) four[outer] = part(4 * outer + inner, p);
                left_sums(four, seven);
                for (int q = 0; q < 7; q++) store(out + (4 * q + inner) * step + p, seven[q]);
            }
    }

    // Adds the product of ROWS rows of a + SIGN * also, of x, with a sum of W to several places of a block of y.
    template <int SIGN>
    __attribute__((noinline)) void tile(const float* a, const float* also, const float* b, const float* next, i64 ahead,
                                        float* const* to, const float* signs, int targets) const {
        vec acc[ROWS][TILE_VECTORS];
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < TILE_VECTORS; j++) acc[i][j] = vec{};
        for (i64 p = 0; p < depth; p++) {
            __builtin_prefetch(next + p * ahead, 0, 2);  // of the next product's W a part with each tile
            if (!(p & 1)) __builtin_prefetch(a + ROWS * (depth + p), 0, 2);
            if (SIGN && (p & 1)) __builtin_prefetch(also + ROWS * (depth + p - 1), 0, 2);
            vec row[TILE_VECTORS];
            for (int j = 0; j < TILE_VECTORS; j++) row[j] = load(b + p * WIDTH + j * LANES);
            for (int i = 0; i < ROWS; i++) {
                vec s = splat(a[i * depth + p]);
                if (SIGN > 0) s += splat(also[i * depth + p]);
                if (SIGN < 0) s -= splat(also[i * depth + p]);
                for (int j = 0; j < TILE_VECTORS; j++) acc[i][j] += s * row[j];
            }
        }
        for (int t = 0; t < targets; t++)
            for (int i = 0; i < ROWS; i++)
                for (int j = 0; j < TILE_VECTORS; j++) {
                    float* out = to[t] + i * SPLIT * WIDTH + j * LANES;
                    store(out, load(out) + signs[t] * acc[i][j]);
                }
    }

    // Adds all products of one slab and one group to their block of y, [SPLIT * rows][SPLIT * WIDTH].
    void multiply(const float* a, const float* b, i64 rows, float* block) const {
        for (int q = 0; q < PRODUCTS; q++) {
            float *to[4], signs[4];
            int targets = 0;
            const Target *outer = TARGETS[LEVELS == 1 ? q : q / 7], *inner = TARGETS[q % 7];
            for (int t = 0; t < (LEVELS == 1 ? 2 : 4); t++) {
                Target first = outer[LEVELS == 1 ? t : t >> 1], second = LEVELS == 1 ? Target{0, 1} : inner[t & 1];
                if (!first.sign || !second.sign) continue;
                i64 row, col;
                place(LEVELS == 1 ? first.block : 4 * first.block + second.block, row, col);
                to[targets] = block + (row * rows * SPLIT + col) * WIDTH;
                signs[targets++] = float(first.sign * second.sign);
            }
            const Pair pair = LEFT_SUMS[q % 7];
            const float *left = a + (q / 7 * 4 + pair.first) * sum_of_x(rows), *right = b + q * sum_of_w();
            const float* also = a + (q / 7 * 4 + pair.second) * sum_of_x(rows);
            i64 ahead = WIDTH * ROWS / rows;
            for (i64 i = 0; i < rows; i += ROWS) {
                const float* next = right + sum_of_w() + i / ROWS * ahead * depth;
                auto one = pair.sign > 0 ? &Product::tile<1> : pair.sign < 0 ? &Product::tile<-1> : &Product::tile<0>;
                (this->*one)(left + i * depth, also + i * depth, right, next, ahead, to, signs, targets);
                for (int t = 0; t < targets; t++) to[t] += ROWS * SPLIT * WIDTH;
            }
        }
    }

    // A finished block of y to its place: the first piece of k brings the bias, the last one GELU.
    void put_y(const float* block, i64 begin, i64 rows, i64 column, i64 start) const {
        bool last = start + SPLIT * depth >= k;
        for (i64 r = 0; r < std::min(rows, m - begin); r++)
            for_row(std::min(SPLIT * WIDTH, n - column), [&](i64 j, i64 c) {
                float* to = y + (begin + r) * n + column + j;
                vec sum = load(block + r * SPLIT * WIDTH + j);
                sum += start > 0 ? load_n(to, c) : bias ? load_n(bias + column + j, c) : vec{};
                store_n(to, gelu_after && last ? gelu(sum) : sum, c);
            });
    }

    void run() {
        i64 pieces_of_k = (k + SPLIT * DEPTH - 1) / (SPLIT * DEPTH), parts = SPLIT * pieces_of_k * LANES;
        depth = (k + parts - 1) / parts * LANES;
        int threads = max_threads();
        i64 group = SPLIT * WIDTH, groups = (n + group - 1) / group, unit = SPLIT * ROWS, units = (m + unit - 1) / unit;
        i64 at_once = std::max<i64>(1, std::min<i64>(groups, MOST_SUMS_OF_W / (PRODUCTS * sum_of_w() * 4)));
        i64 slabs = std::min(units, threads * ((units + threads * SLAB_TILES - 1) / (threads * SLAB_TILES)));
        i64 tallest = (units + slabs - 1) / slabs;
        const i64 piece = 4 * LANES, pieces = (depth + piece - 1) / piece;
        static thread_local Pages packed;  // the calling thread's, shared with the team
        float* sums_of_w = packed.of((at_once * PRODUCTS + 1) * sum_of_w());
        for (i64 start = 0; start < k; start += SPLIT * depth)
            for (i64 first = 0; first < groups; first += at_once) {
                i64 count = std::min(at_once, groups - first);
                share_tasks(count * pieces, threads, [&](i64 task) {
                    i64 g = task / pieces, low = task % pieces * piece;
                    pack_w((first + g) * group, start, low, std::min(low + piece, depth),
                           sums_of_w + g * PRODUCTS * sum_of_w());
                });
                share_tasks(slabs, threads, [&](i64 slab) {
                    i64 begin = units * slab / slabs, rows = (units * (slab + 1) / slabs - begin) * ROWS;
                    begin *= unit;
                    static thread_local Pages own;
                    i64 size_of_x = PARTS_OF_X * sum_of_x(tallest * ROWS), size_of_y = SPLIT * rows * SPLIT * WIDTH;
                    float* sums_of_x = own.of(size_of_x + SPLIT * tallest * ROWS * SPLIT * WIDTH);
                    float* block = sums_of_x + size_of_x;
                    pack_x(begin, rows, start, sums_of_x);
                    for (i64 g = 0; g < count; g++) {
                        std::fill(block, block + size_of_y, 0.0f);
                        multiply(sums_of_x, sums_of_w + g * PRODUCTS * sum_of_w(), rows, block);
                        put_y(block, begin, SPLIT * rows, (first + g) * group, start);
                    }
                });
            }
    }
};

}  // namespace

extern "C" {

int32_t ppsd3_strassen(const float* x, const float* w, const float* bias, float* y, int64_t m, int64_t n, int64_t k,
                       int64_t levels, bool gelu_after) {
    return guarded([&] {
        if (levels == 1) Product<1>{x, w, bias, y, m, n, k, gelu_after, 0}.run();
        else if (levels == 2) Product<2>{x, w, bias, y, m, n, k, gelu_after, 0}.run();
        else throw UNSUPPORTED;
    });
}

}  // extern "C"

#endif
