// Linear layers in int8 (see quantized.cpp) on tiles, which multiply eight times as much at once as vectors.
//
// Activations are read by tiles as they are stored, a row's 64 bytes at a time; of weights, [columns, k], four
// neighbouring k become a word and words are transposed. The sums of a group of k, whole numbers, are scaled and added up by
// vectors while tiles multiply the next group.

#include "amx.h"
#include "guarded.h"
#include "scratch.h"

#if PPSD3_AMX && defined(__AMX_INT8__)

namespace amx {
namespace {

const i64 GROUP = 256;  // as ppsd3/ops/quantized.py has it
const i64 STEP_BYTES = 64, GROUP_STEPS = GROUP / STEP_BYTES;
const i64 SLAB_BYTES = i64(768) << 10;  // of activations that stay in the second cache
const i64 STEP_VECTORS = 2 * TILE;  // of weights: two tiles

typedef float block_type[BLOCK * BLOCK];

struct QuantizedProduct {
    const uint8_t* u;
    const float *scale, *low;  // of activations, [rows, groups]
    const int8_t* weight;
    const float *weight_scale, *bias;
    float* out;
    i64 rows, n, k, stride;
    bool gelu_after;

    i64 steps() const { return (k + STEP_BYTES - 1) / STEP_BYTES; }
    i64 groups() const { return (k + GROUP - 1) / GROUP; }
    i64 panels() const { return (n + BLOCK - 1) / BLOCK; }

    // One step of BLOCK columns from `column`, and zeros beyond the last one and the last k.
    void pack_step(i64 column, i64 step, words* to) const {
        i64 start = step * STEP_BYTES, count = std::min(STEP_BYTES, k - start);
        for (i64 tile = 0; tile < 2; tile++) {
            words square[TILE];
            for (i64 i = 0; i < TILE; i++) {
                i64 c = column + tile * TILE + i;
                square[i] = words{};
                if (c < n) std::memcpy(&square[i], weight + c * k + start, count);
            }
            transpose(square);
            for (i64 i = 0; i < TILE; i++) to[tile * TILE + i] = square[i];
        }
    }

    // Sums of weights over each group, [group][BLOCK], of a packed panel.
    void sum_groups(const words* panel, float* sums) const {
        const words ones = _mm512_set1_epi32(0x01010101);
        for (i64 g = 0; g < groups(); g++)
            for (i64 tile = 0; tile < 2; tile++) {
                words total{};
                for (i64 s = g * GROUP_STEPS; s < std::min(steps(), (g + 1) * GROUP_STEPS); s++)
                    for (i64 i = 0; i < TILE; i++)
                        total = _mm512_dpbusd_epi32(total, ones, panel[s * STEP_VECTORS + tile * TILE + i]);
                store(sums + g * BLOCK + tile * TILE, (vec)_mm512_cvtepi32_ps(total));
            }
    }

    void run() const {
        const i64 panel_size = steps() * STEP_VECTORS, sums_size = groups() * BLOCK / LANES;
        static thread_local Pages memory;  // the calling thread's, shared with the team
        words* packed = memory.vectors<words>((panels() + 1) * panel_size + panels() * sums_size);
        float* group_sums = reinterpret_cast<float*>(packed + (panels() + 1) * panel_size);
        share_tasks(panels(), max_threads(), [&](i64 j) {
            for (i64 s = 0; s < steps(); s++) pack_step(j * BLOCK, s, packed + j * panel_size + s * STEP_VECTORS);
            sum_groups(packed + j * panel_size, group_sums + j * groups() * BLOCK);
        });
        const i64 most = std::max<i64>(1, SLAB_BYTES / (BLOCK * stride));
        Tasks((rows + BLOCK - 1) / BLOCK, most, panels())
            .run([&](i64 begin, i64 end, i64 first_panel, i64 end_of_panels) {
                Tiles tiles;
                for (i64 j = first_panel; j < end_of_panels; j++)
                    for (i64 i = begin; i < end; i++)
                        multiply_block(i * BLOCK, j * BLOCK, packed + j * panel_size,
                                       group_sums + j * groups() * BLOCK);
            });
    }

    void multiply_block(i64 row, i64 column, const words* panel, const float* group_sums) const {
        alignas(64) int32_t sums[2][BLOCK * BLOCK];
        alignas(64) block_type total;
        const uint8_t* bytes = u + row * stride;
        asm volatile("" ::: "memory");  // what tiles read has been written
        for (i64 g = 0; g < groups(); g++) {
            clear();
            for (i64 s = g * GROUP_STEPS; s < std::min(steps(), (g + 1) * GROUP_STEPS); s++) {
                const words* b = panel + s * STEP_VECTORS;
                __builtin_prefetch(b + steps() * STEP_VECTORS, 0, 2);  // of the next panel a part
                _tile_loadd(4, bytes + s * STEP_BYTES, stride);
                _tile_loadd(6, b, 64);
                _tile_dpbusd(0, 4, 6);
                _tile_loadd(7, b + TILE, 64);
                _tile_dpbusd(1, 4, 7);
                _tile_loadd(5, bytes + TILE * stride + s * STEP_BYTES, stride);
                _tile_dpbusd(2, 5, 6);
                _tile_dpbusd(3, 5, 7);
            }
            int32_t* fresh = sums[g & 1];
            put(reinterpret_cast<float*>(fresh), BLOCK);
            add_group(fresh, row, g, group_sums + g * BLOCK, total);
        }
        put_block(total, row, column);
    }

    // total += scale * fresh + low * the sums of the weights.
    void add_group(const int32_t* fresh, i64 row, i64 g, const float* group_sums, block_type& total) const {
        const vec first = load(group_sums), second = load(group_sums + TILE);
        for (i64 i = 0; i < std::min(BLOCK, rows - row); i++) {
            const i64 at = (row + i) * groups() + g;
            const vec by = splat(scale[at]), offset = splat(low[at]);
            float* to = total + i * BLOCK;
            auto numbers = [&](i64 half) {
                return (vec)_mm512_cvtepi32_ps(_mm512_load_si512(fresh + i * BLOCK + half));
            };
            vec x = numbers(0) * by + first * offset, y = numbers(TILE) * by + second * offset;
            store(to, g ? load(to) + x : x), store(to + TILE, g ? load(to + TILE) + y : y);
        }
    }

    void put_block(const block_type& total, i64 row, i64 column) const {
        for (i64 i = 0; i < std::min(BLOCK, rows - row); i++)
            for_row(std::min(BLOCK, n - column), [&](i64 j, i64 count) {
                vec y = load(total + i * BLOCK + j) * load_n(weight_scale + column + j, count);
                if (bias) y += load_n(bias + column + j, count);
                store_n(out + (row + i) * n + column + j, gelu_after ? gelu(y) : y, count);
            });
    }
};

}  // namespace
}  // namespace amx

extern "C" {

int32_t ppsd3_amx_product_int8(const uint8_t* u, const float* scale, const float* low, const int8_t* weight,
                               const float* weight_scale, const float* bias, float* out, int64_t rows, int64_t n,
                               int64_t k, int64_t stride, bool gelu_after) {
    return guarded([&] {
        amx::QuantizedProduct{u, scale, low, weight, weight_scale, bias, out, rows, n, k, stride, gelu_after}.run();
    });
}

}  // extern "C"

#endif
