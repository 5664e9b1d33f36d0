// Attention on tiles of bfloat16 (see amx.h): float32 as sums of three parts, with one pass of online softmax
// (Milakov and Gimelshein 2018).
//
// Everything is transposed: keys are rows and queries columns, so that each lane of a vector is a query of its own, with
// its maximum and its sum, and probabilities are in the order in which the second product takes them.

#include <vector>

#include "amx.h"
#include "attention.h"
#include "guarded.h"
#include "scratch.h"

#if PPSD3_AMX

namespace amx {
namespace {

const i64 KEY_BLOCKS = 4;  // of a round of softmax: its scores and probabilities, 56 KB, stay in the near caches
const i64 QUERY_BLOCKS = 16;  // that go through the keys together, so that keys are read less often
const i64 STEP_VECTORS = step_words<3>() / LANES;

// Tokens of one head: as lines of `width` k, times `scale`; or, transposed, as k of `width` lines.
struct Rows {
    const float* const* row;
    i64 count, width;
    float scale;
    bool transposed;
    bool k_contiguous() const { return !transposed; }
    vec along_k(i64 l, i64 p) const { return of(l, p); }
    vec along_lines(i64 l, i64 p) const { return of(p, l); }
    vec of(i64 token, i64 column) const {
        return token < count ? some(row[token] + column, width - column) * scale : vec{};
    }
};

// As split(), but rounded towards zero, which is two operations fewer: what the products left out amount to is as little,
// since values have either sign.
inline Parts split_positive(vec x) {
    const words keep = _mm512_set1_epi32(int(0xffff0000));
    words high = _mm512_and_epi32((words)x, keep);
    vec rest = x - (vec)high;
    words middle = _mm512_and_epi32((words)rest, keep);
    return {{high, middle, (words)(rest - (vec)middle)}};
}

// Maximum and sum of each query of a block so far.
struct State {
    vec maximum[2], total[2];
};

// One round of softmax: scores of a block of queries with `count` keys, [key][BLOCK], -> probabilities, as columns of tiles.
struct Softmax {
    const float* scores;
    words* probabilities;
    i64 count;
    State* state;
    vec maximum[2], added[2], rescale[2];  // rescale: what sums so far must be multiplied with

    Softmax(const float* scores, words* probabilities, i64 count, State* state)
        : scores(scores), probabilities(probabilities), count(count), state(state) {
        for (i64 half = 0; half < 2; half++) {
            const float* from = scores + half * TILE;
            vec top[4] = {state->maximum[half], load(from), load(from), load(from)};  // independent of each other
            for (i64 i = 0; i < count; i++) top[i % 4] = vmax(top[i % 4], load(from + i * BLOCK));
            maximum[half] = vmax(vmax(top[0], top[1]), vmax(top[2], top[3]));
            rescale[half] = vexp2_negative(state->maximum[half] - maximum[half]);
            added[half] = vec{};
        }
    }

    i64 pairs() const { return (count + BLOCK - 1) / BLOCK * TILE; }

    // Two keys, of which there may be none or one.
    inline __attribute__((always_inline)) void pair(i64 i) {
        const float* from = scores + 2 * i * BLOCK;
        words* to = probabilities + i / TILE * STEP_VECTORS + i % TILE;
        for (i64 half = 0; half < 2; half++, from += TILE, to += TILE) {
            vec low{}, high{};
            if (2 * i < count) low = vexp2_negative(load(from) - maximum[half]);
            if (2 * i + 1 < count) high = vexp2_negative(load(from + BLOCK) - maximum[half]);
            added[half] += low + high;
            Parts x = split_positive(low), y = split_positive(high);
            for (int part = 0; part < 3; part++) to[part * 2 * TILE] = paired(x.part[part], y.part[part]);
        }
    }

    void end() {
        for (i64 half = 0; half < 2; half++) {
            state->maximum[half] = maximum[half];
            state->total[half] = state->total[half] * rescale[half] + added[half];
        }
    }
};

// One head's work for some of its queries.
struct Head {
    const Shape& n;
    const float* bias;  // of this head, or null
    i64 deep, wide, rounds;  // steps of d, blocks of d, steps of keys
    const words *keys, *values;
    const words *queries, *probabilities;
    float* sums;  // of each block of queries [d][BLOCK]

    // Scores of one block of queries with the keys of a round, times log2(e): scores[key][query].
    template <class F>
    void score(i64 block, i64 first, i64 blocks, i64 query, float* scores, F&& meanwhile) const {
        for (i64 i = 0; i < blocks; i++) {
            clear();
            multiply<3>(deep, keys + (first + i) * deep * STEP_VECTORS, queries + block * deep * STEP_VECTORS,
                        meanwhile);
            put(scores + i * BLOCK * BLOCK, BLOCK);
        }
        if (!bias) return;
        for (i64 i = 0; i < blocks * BLOCK; i += TILE)
            for (i64 half = 0; half < BLOCK; half += TILE) {
                words square[TILE];
                i64 key = first * BLOCK + i, from = query + half;
                for (i64 r = 0; r < TILE; r++) {
                    bool there = from + r < n.queries;
                    square[r] = there ? (words)some(bias + (from + r) * n.keys + key, n.keys - key) : words{};
                }
                transpose(square);
                for (i64 r = 0; r < TILE; r++) {
                    float* to = scores + (i + r) * BLOCK + half;
                    store(to, load(to) + LOG2_E * (vec)square[r]);
                }
            }
    }

    // Adds values weighed by the probabilities to the sums of one block of queries.
    void weigh(i64 block, i64 first, i64 blocks, const vec* rescale) const {
        float* to = sums + block * wide * BLOCK * BLOCK;
        alignas(64) float fresh[BLOCK * BLOCK];
        for (i64 i = 0; i < wide; i++, to += BLOCK * BLOCK) {
            clear();
            multiply<3>(blocks, values + (i * rounds + first) * STEP_VECTORS, probabilities, [](i64) {});
            put(fresh, BLOCK);
            for (i64 j = 0; j < BLOCK * BLOCK; j += BLOCK)
                for (i64 half = 0; half < 2; half++) {
                    i64 at = j + half * TILE;
                    vec sum = load(fresh + at);
                    if (first) sum += load(to + at) * rescale[half];
                    store(to + at, sum);
                }
        }
    }

    // A block's sums, divided by the totals, to their places: rows[query] is where the query's output goes.
    void put_out(i64 block, i64 count, const State& state, float* const* rows) const {
        const float* from = sums + block * wide * BLOCK * BLOCK;
        for (i64 half = 0; half < 2; half++) {
            vec factor = 1.0f / state.total[half];
            for (i64 column = 0; column < n.dim; column += TILE) {
                words square[TILE];
                for (i64 r = 0; r < TILE; r++)
                    square[r] = (words)(load(from + (column + r) * BLOCK + half * TILE) * factor);
                transpose(square);
                for (i64 r = 0; r < std::min(TILE, count - half * TILE); r++)
                    store_n(rows[half * TILE + r] + column, (vec)square[r], std::min<i64>(LANES, n.dim - column));
            }
        }
    }
};

// Where the rows of one head's tokens from first on are.
void find_rows(const Tokens& x, const Shape& n, i64 b, i64 head, i64 first, i64 count, float** rows) {
    for_tokens(x, n, b, head, first, count, [&](float* row, i64 s) { rows[s] = row; });
}

void attend(const Shape& n, const Tokens& q, const Tokens& k, const Tokens& v, const Tokens& out, float* lse, i64 b,
            i64 head, i64 begin, i64 end, float scale, const float* bias) {
    static thread_local Pages memory;
    static thread_local std::vector<float*> rows;
    const i64 deep = (n.dim + STEP - 1) / STEP, wide = (n.dim + BLOCK - 1) / BLOCK;
    const i64 rounds = (n.keys + BLOCK - 1) / BLOCK;
    const i64 size_of_keys = rounds * deep * STEP_VECTORS, size_of_values = wide * rounds * STEP_VECTORS;
    const i64 size_of_queries = QUERY_BLOCKS * deep * STEP_VECTORS, size_of_probabilities = KEY_BLOCKS * STEP_VECTORS;
    const i64 size_of_block = BLOCK * BLOCK / LANES;
    const i64 size_of_scores = 2 * KEY_BLOCKS * size_of_block, size_of_sums = QUERY_BLOCKS * wide * size_of_block;
    words* next = memory.vectors<words>(size_of_keys + size_of_values + size_of_queries + size_of_probabilities +
                                        size_of_scores + size_of_sums);
    auto take = [&](i64 vectors) { return (next += vectors) - vectors; };
    words *keys = take(size_of_keys), *values = take(size_of_values), *queries = take(size_of_queries);
    words* probabilities = take(size_of_probabilities);
    float* scores = reinterpret_cast<float*>(take(size_of_scores));
    float* sums = reinterpret_cast<float*>(take(size_of_sums));

    rows.resize(std::max(n.keys, QUERY_BLOCKS * BLOCK));
    find_rows(k, n, b, head, 0, n.keys, rows.data());
    for (i64 i = 0; i < rounds; i++)
        for (i64 s = 0; s < deep; s++)
            pack_rows<3>(Rows{rows.data(), n.keys, n.dim, 1, false}, i * BLOCK, s * STEP,
                         keys + (i * deep + s) * STEP_VECTORS);
    find_rows(v, n, b, head, 0, n.keys, rows.data());
    for (i64 i = 0; i < wide; i++)
        for (i64 s = 0; s < rounds; s++)
            pack_rows<3>(Rows{rows.data(), n.keys, n.dim, 1, true}, i * BLOCK, s * STEP,
                         values + (i * rounds + s) * STEP_VECTORS);

    const Head one{n, bias, deep, wide, rounds, keys, values, queries, probabilities, sums};
    for (i64 group = begin; group < end; group += QUERY_BLOCKS * BLOCK) {
        i64 count = std::min(QUERY_BLOCKS * BLOCK, end - group), blocks = (count + BLOCK - 1) / BLOCK;
        find_rows(q, n, b, head, group, count, rows.data());
        for (i64 i = 0; i < blocks; i++)
            for (i64 s = 0; s < deep; s++)
                pack_columns<3>(Rows{rows.data(), count, n.dim, scale * LOG2_E, false}, i * BLOCK, s * STEP,
                                queries + (i * deep + s) * STEP_VECTORS);
        State states[QUERY_BLOCKS];
        for (auto& state : states)
            for (i64 half = 0; half < 2; half++) state.maximum[half] = splat(-INFINITY), state.total[half] = vec{};
        // A block's softmax is made while the scores of the one after it are.
        const i64 turns = (rounds + KEY_BLOCKS - 1) / KEY_BLOCKS * blocks;
        auto first_of = [&](i64 turn) { return turn / blocks * KEY_BLOCKS; };
        auto blocks_of = [&](i64 turn) { return std::min(KEY_BLOCKS, rounds - first_of(turn)); };
        auto scores_of = [&](i64 turn) { return scores + turn % 2 * KEY_BLOCKS * BLOCK * BLOCK; };
        auto score = [&](i64 turn, auto&& meanwhile) {
            i64 i = turn % blocks;
            one.score(i, first_of(turn), blocks_of(turn), group + i * BLOCK, scores_of(turn), meanwhile);
        };
        score(0, [](i64) {});
        for (i64 turn = 0; turn < turns; turn++) {
            i64 i = turn % blocks, first = first_of(turn);
            i64 count = std::min(blocks_of(turn) * BLOCK, n.keys - first * BLOCK);
            Softmax softmax(scores_of(turn), probabilities, count, states + i);
            i64 pair = 0, pairs = softmax.pairs();
            if (turn + 1 < turns) {
                i64 shares = blocks_of(turn + 1) * deep * TURNS<3>, credit = 0;  // pairs spread evenly
                score(turn + 1, [&](i64) {
                    for (credit += pairs; credit >= shares; credit -= shares) softmax.pair(pair++);
                });
            }
            while (pair < pairs) softmax.pair(pair++);
            softmax.end();
            one.weigh(i, first, blocks_of(turn), softmax.rescale);
        }
        find_rows(out, n, b, head, group, count, rows.data());
        for (i64 i = 0; i < blocks; i++) {
            one.put_out(i, std::min(BLOCK, count - i * BLOCK), states[i], rows.data() + i * BLOCK);
            if (!lse) continue;
            for (i64 j = 0; j < std::min(BLOCK, count - i * BLOCK); j++)
                lse[(b * n.heads + head) * n.queries + group + i * BLOCK + j] =
                    states[i].maximum[j / TILE][j % TILE] * LN_2 + std::log(states[i].total[j / TILE][j % TILE]);
        }
    }
}

}  // namespace
}  // namespace amx

extern "C" {

int32_t ppsd3_amx_attention(const Shape* shape, const Tokens* q, const Tokens* k, const Tokens* v, const Tokens* out,
                            float* lse, float scale, const float* bias, int64_t bias_batch, int64_t bias_head) {
    return guarded([&] {
        const Shape n = *shape;
        int threads = threads_for(n.batch * n.heads * n.queries * n.keys * n.dim / 8);
        i64 parts = parts_of_head(n, threads);
        share_tasks(n.batch * n.heads * parts, threads, [&](i64 task) {
            i64 b = task / parts / n.heads, head = task / parts % n.heads, part = task % parts;
            amx::Tiles tiles;
            amx::attend(n, *q, *k, *v, *out, lse, b, head, n.queries * part / parts, n.queries * (part + 1) / parts,
                        scale, bias ? bias + b * bias_batch + head * bias_head : nullptr);
        });
    });
}

}  // extern "C"

#endif
