// y = a b + bias in float32 by products of bfloat16 tiles (see amx.h), or with operands rounded to bfloat16.

#include "amx.h"
#include "guarded.h"
#include "scratch.h"

#if PPSD3_AMX

#include <sys/syscall.h>
#include <unistd.h>

namespace amx {

namespace {

// A slab of rows and some panels of columns stay in the second cache. Taller slabs read columns less often from the third,
// deeper ones sums.
const i64 SLAB_BLOCKS = 8;              // most blocks of rows of a slab
const i64 DEPTH = 16;                   // most steps of k of a slab
const i64 MOST_PACKED = i64(64) << 20;  // bytes of columns packed at once

// A matrix by its element (line, k), a line being a row of a or a column of b: either axis may be the contiguous one.
struct Operand {
    const float* data;
    i64 line, k;  // strides, one of them 1
    i64 lines, depth;

    bool k_contiguous() const { return k == 1; }
    // zeros beyond the last ones
    vec along_k(i64 l, i64 p) const { return l < lines ? some(data + l * line + p, depth - p) : vec{}; }
    vec along_lines(i64 l, i64 p) const { return p < depth ? some(data + p * k + l, lines - l) : vec{}; }
};

template <int PARTS>
struct Product {
    static const i64 STEP_VECTORS = step_words<PARTS>() / LANES;

    Operand a, b;
    const float* bias;
    float* c;
    bool gelu_after;

    // A piece of k, in steps, and some panels of columns from `column`. What all threads read is packed in `shared`.
    struct Piece {
        i64 start, depth, column, panels;
        words* shared;
        i64 size() const { return depth * STEP_VECTORS; }  // of a block of rows, or a panel
        bool first() const { return start == 0; }
        bool last(i64 k) const { return (start + depth) * STEP >= k; }
    };

    i64 blocks() const { return (a.lines + BLOCK - 1) / BLOCK; }

    void run() const {
        i64 steps = (a.depth + STEP - 1) / STEP, pieces = (steps + DEPTH - 1) / DEPTH;
        i64 deep = (steps + pieces - 1) / pieces, size = deep * STEP_VECTORS;
        i64 panels = (b.lines + BLOCK - 1) / BLOCK, most = MOST_PACKED / (size * i64(sizeof(words)));
        bool few = blocks() <= SLAB_BLOCKS;
        i64 at_once = few ? panels : std::min(panels, most);
        static thread_local Pages memory;
        words* shared = memory.vectors<words>((few ? blocks() : at_once) * size);
        for (i64 start = 0; start < steps; start += deep)
            for (i64 first = 0; first < panels; first += at_once) {
                Piece piece{start, std::min(deep, steps - start), first * BLOCK, std::min(at_once, panels - first),
                            shared};
                few ? multiply_few(piece) : multiply_many(piece);
            }
    }

    // Few rows are packed for all threads, who share the columns: a panel is multiplied where it has been packed.
    void multiply_few(const Piece& piece) const {
        share_tasks(blocks() * piece.depth, max_threads(), [&](i64 task) {
            i64 i = task / piece.depth, s = task % piece.depth;
            pack_rows<PARTS>(a, i * BLOCK, (piece.start + s) * STEP, piece.shared + task * STEP_VECTORS);
        });
        share_tasks(piece.panels, max_threads(), [&](i64 j) {
            Tiles tiles;
            static thread_local Pages memory;
            words* panel = memory.vectors<words>(piece.size());
            pack_panel(piece, j, panel);
            for (i64 i = 0; i < blocks(); i++)
                multiply_block(piece, piece.shared + i * piece.size(), panel, nullptr, 0, i * BLOCK, j);
        });
    }

    void pack_panel(const Piece& piece, i64 j, words* to) const {
        for (i64 s = 0; s < piece.depth; s++, to += STEP_VECTORS)
            pack_columns<PARTS>(b, piece.column + j * BLOCK, (piece.start + s) * STEP, to);
    }

    // Columns are packed for all threads, who share the rows: each task packs its own.
    void multiply_many(const Piece& piece) const {
        share_tasks(piece.panels, max_threads(), [&](i64 j) { pack_panel(piece, j, piece.shared + j * piece.size()); });
        Tasks(blocks(), SLAB_BLOCKS, piece.panels).run([&](i64 begin, i64 end, i64 first_panel, i64 end_of_panels) {
            Tiles tiles;
            static thread_local Pages memory;
            words* rows = memory.vectors<words>((end - begin) * piece.size());
            for (i64 i = begin; i < end; i++)
                for (i64 s = 0; s < piece.depth; s++)
                    pack_rows<PARTS>(a, i * BLOCK, (piece.start + s) * STEP,
                                     rows + (i - begin) * piece.size() + s * STEP_VECTORS);
            // with each block a share of the next panel is fetched
            i64 turns = (end - begin) * piece.depth * TURNS<PARTS>, lines = (piece.size() + turns - 1) / turns;
            for (i64 j = first_panel; j < end_of_panels; j++) {
                const words *panel = piece.shared + j * piece.size(), *next = panel + piece.size();
                for (i64 i = begin; i < end; i++, next += piece.depth * TURNS<PARTS> * lines)
                    multiply_block(piece, rows + (i - begin) * piece.size(), panel, next, lines, i * BLOCK, j);
            }
        });
    }

    // A block of c: of the rows from `row` and of panel j. Meanwhile the block's own place is brought to the first cache,
    // and to the second, with each turn, so many lines from `later` on.
    void multiply_block(const Piece& piece, const words* rows, const words* panel, const words* later, i64 lines,
                        i64 row, i64 j) const {
        const i64 column = piece.column + j * BLOCK, turns = piece.depth * TURNS<PARTS>;
        const i64 c_rows = (BLOCK + turns - 1) / turns;
        const float* place = c + row * b.lines + column;
        clear();
        multiply<PARTS>(piece.depth, rows, panel, [&](i64 turn) {
            for (i64 line = 0; line < lines; line++) __builtin_prefetch(later++, 0, 2);
            for (i64 r = turn * c_rows; r < std::min(BLOCK, (turn + 1) * c_rows); r++) {
                __builtin_prefetch(place + r * b.lines, 1, 3);
                __builtin_prefetch(place + r * b.lines + TILE, 1, 3);
            }
        });
        alignas(64) float sums[BLOCK * BLOCK];
        put(sums, BLOCK);
        put_block(sums, row, column, piece.first(), piece.last(a.depth));
    }

    // Sums to their place: the first piece of k brings the bias, the last one GELU.
    void put_block(const float* sums, i64 row, i64 column, bool first, bool last) const {
        i64 n = b.lines;
        for (i64 i = 0; i < std::min(BLOCK, a.lines - row); i++)
            for_row(std::min(BLOCK, n - column), [&](i64 j, i64 count) {
                float* to = c + (row + i) * n + column + j;
                vec sum = load(sums + i * BLOCK + j);
                sum += !first ? load_n(to, count) : bias ? load_n(bias + column + j, count) : vec{};
                store_n(to, gelu_after && last ? gelu(sum) : sum, count);
            });
    }
};

}  // namespace
}  // namespace amx

extern "C" {

int32_t ppsd3_amx_ready() {
    static const bool granted = [] {
        const long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
        return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    }();
    return granted;
}

int32_t ppsd3_amx_product(const float* a, const float* b, const float* bias, float* c, int64_t m, int64_t n, int64_t k,
                          bool a_transposed, bool b_transposed, bool gelu_after, int64_t parts) {
    return guarded([&] {
        amx::Operand left{a, a_transposed ? 1 : k, a_transposed ? m : 1, m, k};
        amx::Operand right{b, b_transposed ? k : 1, b_transposed ? 1 : n, n, k};
        if (parts == 3) amx::Product<3>{left, right, bias, c, gelu_after}.run();
        else if (parts == 1) amx::Product<1>{left, right, bias, c, gelu_after}.run();
        else throw UNSUPPORTED;
    });
}

}  // extern "C"

#endif
