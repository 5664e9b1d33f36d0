// Float32 products on tiles of bfloat16 (Intel AMX): what the kernels that use them share.
//
// A float32 has 24 significant bits, three bfloat16 numbers have 3 x 8: x = high + middle + low, exactly. Of the nine
// products of two numbers' parts the six large ones are summed, in float32; the three others are below 2^-25 of the
// result, less than what rounding a float32 product loses. One instruction does 16 x 16 x 32 multiply-adds in 16 cycles, so
// six of them still do 2.7 times what the same core's float32 instructions do. (As "BF16x6" in Henry, Tang and Heinecke,
// "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations", 2019.)

#pragma once

#include "threads.h"
#include "vectors.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512BW__) && \
    defined(__linux__)
#define PPSD3_AMX 1

#include <immintrin.h>

namespace amx {

const i64 TILE = 16;  // rows of a tile, and columns in pairs of 16 bits
const i64 STEP = 32;  // k of a tile
const i64 BLOCK = 2 * TILE;  // rows and columns of what is summed in registers: 2 x 2 tiles
const i64 TILE_WORDS = TILE * TILE;  // 32-bit words of a tile: 1 KB

// The tiles of this thread from here to the end of the scope.
struct Tiles {
    Tiles() {
        alignas(64) uint8_t config[64] = {1};  // palette 1; then, from byte 16, bytes of a row, and from 48, rows
        for (int i = 0; i < 8; i++) config[16 + 2 * i] = 64, config[48 + i] = TILE;
        _tile_loadconfig(config);
    }
    ~Tiles() { _tile_release(); }
};

typedef __m512i words;

// The bits of a float32's three parts, each in the upper half of a word.
struct Parts {
    words part[3];
};
inline Parts split(vec x) {
    const words keep = _mm512_set1_epi32(int(0xffff0000)), half = _mm512_set1_epi32(0x8000);
    auto rounded = [&](vec v) { return _mm512_and_epi32(_mm512_add_epi32((words)v, half), keep); };
    words high = rounded(x);
    vec rest = x - (vec)high;  // exact, as is the next one
    words middle = rounded(rest);
    return {{high, middle, (words)(rest - (vec)middle)}};
}

// Pairs of bfloat16, the first in the lower half of a word, from the upper halves of two vectors of words.
inline words paired(words low, words high) {  // word i: low[i], high[i]
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(low, 16), high);
}
// first[0], first[1] | first[2], first[3] | ... | second[14], second[15]
inline words in_row(words first, words second) {
    const words odd = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25,
                                       23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_permutex2var_epi16(first, odd, second);
}

// 16 x 16 words, transposed in registers.
inline void transpose(words* r) {
    words t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0x88);
            t[i + 4 + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        r[j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88);
        r[8 + j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd);
    }
}

// Operands are packed by BLOCK rows (or columns) and STEP of k: first the high parts' two tiles, then those of the other
// parts. PARTS is 3, or 1 for plain bfloat16.
template <int PARTS>
constexpr i64 step_words() {
    return PARTS * 2 * TILE_WORDS;
}

// Times a step that multiply() lets other work in.
template <int PARTS>
constexpr i64 TURNS = PARTS == 3 ? 6 : 1;

// Registers 0 to 3 += the products of `steps` steps of a block of rows and a block of columns. meanwhile(turn) is called
// TURNS<PARTS> times a step: tiles are multiplied by a unit of their own, so other work between them takes little time.
template <int PARTS, class F>
inline __attribute__((always_inline)) void multiply(i64 steps, const words* a, const words* b, F&& meanwhile) {
    const i64 next = step_words<PARTS>() / LANES;
    asm volatile("" ::: "memory");  // what is read here has been written: GCC's intrinsics do not say that they read
    i64 turn = 0;
    for (i64 s = 0; s < steps; s++, a += next, b += next) {
// names of registers must be constants
#define ROWS_OF(part)                          \
    _tile_loadd(4, a + (part) * 2 * TILE, 64); \
    _tile_loadd(5, a + ((part) * 2 + 1) * TILE, 64)
#define COLUMNS_OF(part)                       \
    _tile_loadd(6, b + (part) * 2 * TILE, 64); \
    _tile_loadd(7, b + ((part) * 2 + 1) * TILE, 64)
#define MULTIPLY             \
    _tile_dpbf16ps(0, 4, 6); \
    _tile_dpbf16ps(1, 4, 7); \
    _tile_dpbf16ps(2, 5, 6); \
    _tile_dpbf16ps(3, 5, 7); \
    meanwhile(turn++)
        // small ones first, and one operand changed at a time
        if (PARTS == 3) {
            ROWS_OF(2);
            COLUMNS_OF(0);
            MULTIPLY;
            ROWS_OF(1);
            MULTIPLY;
            COLUMNS_OF(1);
            MULTIPLY;
            ROWS_OF(0);
            MULTIPLY;
            COLUMNS_OF(2);
            MULTIPLY;
        } else {
            ROWS_OF(0);
        }
        COLUMNS_OF(0);
        MULTIPLY;
#undef ROWS_OF
#undef COLUMNS_OF
#undef MULTIPLY
    }
}

// The work of a product as tasks for the threads: slabs of rows, and where these are few, shares of the columns too.
// Rows are counted in blocks, of which a slab has `most` at most, and columns in panels.
struct Tasks {
    i64 blocks, panels, slabs, shares;

    Tasks(i64 blocks, i64 most, i64 panels) : blocks(blocks), panels(panels), slabs((blocks + most - 1) / most) {
        const i64 wanted = 4 * max_threads();  // for an even load
        shares = std::min(panels, std::max<i64>(1, (wanted + slabs - 1) / slabs));
    }

    // Calls f(first block, end of blocks, first panel, end of panels) for each.
    template <class F>
    void run(F&& f) const {
        share_tasks(slabs * shares, max_threads(), [&](i64 task) {
            i64 slab = task / shares, share = task % shares;
            f(blocks * slab / slabs, blocks * (slab + 1) / slabs, panels * share / shares,
              panels * (share + 1) / shares);
        });
    }
};

inline void clear() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// Registers 0 to 3 -> out[BLOCK][BLOCK], rows `stride` numbers apart.
inline void put(float* out, i64 stride) {
    _tile_stored(0, out, stride * 4);
    _tile_stored(1, out + TILE, stride * 4);
    _tile_stored(2, out + TILE * stride, stride * 4);
    _tile_stored(3, out + TILE * stride + TILE, stride * 4);
    asm volatile("" ::: "memory");
}

// 32 k of one row -> that row's words of the step's tiles, `row` < BLOCK.
template <int PARTS>
inline void put_row(vec first, vec second, i64 row, words* out) {
    if (PARTS == 1) {
        out[row] = (words)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
        return;
    }
    Parts x = split(first), y = split(second);
    for (int part = 0; part < PARTS; part++) out[part * 2 * TILE + row] = in_row(x.part[part], y.part[part]);
}

// Two neighbouring k, the pair-th of the step, of TILE columns, `tile` 0 or 1, -> their words.
template <int PARTS>
inline void put_pair(vec low, vec high, i64 tile, i64 pair, words* out) {
    if (PARTS == 1) {
        auto rounded = [](vec v) {
            words bits = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v));
            return _mm512_slli_epi32(bits, 16);
        };
        out[tile * TILE + pair] = paired(rounded(low), rounded(high));
        return;
    }
    Parts x = split(low), y = split(high);
    for (int part = 0; part < PARTS; part++) out[(part * 2 + tile) * TILE + pair] = paired(x.part[part], y.part[part]);
}

// The first of n numbers; zeros for what lacks to a vector.
inline vec some(const float* p, i64 n) { return n >= LANES ? load(p) : n > 0 ? load_part(p, n) : vec{}; }

// Packs one step of a matrix whose lines become rows of tiles: BLOCK lines from `first`, STEP of k from `p`. The matrix has
// along_k(l, p), 16 k from p of line l, if it is k_contiguous(), and else along_lines(l, p), 16 lines from l of k p.
template <int PARTS, class Operand>
void pack_rows(const Operand& x, i64 first, i64 p, words* out) {
    if (x.k_contiguous()) {
        for (i64 i = 0; i < BLOCK; i++) put_row<PARTS>(x.along_k(first + i, p), x.along_k(first + i, p + TILE), i, out);
        return;
    }
    for (i64 half = 0; half < BLOCK; half += TILE) {
        words low[TILE], high[TILE];
        for (i64 i = 0; i < TILE; i++) {
            low[i] = (words)x.along_lines(first + half, p + i);
            high[i] = (words)x.along_lines(first + half, p + TILE + i);
        }
        transpose(low), transpose(high);
        for (i64 i = 0; i < TILE; i++) put_row<PARTS>((vec)low[i], (vec)high[i], half + i, out);
    }
}

// The same, where lines become columns.
template <int PARTS, class Operand>
void pack_columns(const Operand& x, i64 first, i64 p, words* out) {
    for (i64 tile = 0; tile < 2; tile++) {
        i64 line = first + tile * TILE;
        if (!x.k_contiguous()) {
            for (i64 i = 0; i < TILE; i++)
                put_pair<PARTS>(x.along_lines(line, p + 2 * i), x.along_lines(line, p + 2 * i + 1), tile, i, out);
            continue;
        }
        for (i64 half = 0; half < 2; half++) {
            words square[TILE];
            for (i64 i = 0; i < TILE; i++) square[i] = (words)x.along_k(line + i, p + half * TILE);
            transpose(square);
            for (i64 i = 0; i < TILE; i += 2)
                put_pair<PARTS>((vec)square[i], (vec)square[i + 1], tile, (half * TILE + i) / 2, out);
        }
    }
}

}  // namespace amx

#endif
