// Vectors as wide as the target's registers, by GCC's vector extensions: no intrinsics.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define LANES 16
#define TILE_VECTORS 4  // 6 x 4 accumulators of the 32 registers
#elif defined(__AVX__)
#define LANES 8
#define TILE_VECTORS 2  // 6 x 2 of 16
#else
#define LANES 4
#define TILE_VECTORS 2
#endif
#define TILE_ROWS 6

typedef int64_t i64;
typedef float vec __attribute__((vector_size(LANES * 4)));
typedef float vec_unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef float vec4 __attribute__((vector_size(16)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));

static inline vec load(const float* p) { return *reinterpret_cast<const vec_unaligned*>(p); }
static inline void store(float* p, vec v) { *reinterpret_cast<vec_unaligned*>(p) = v; }
static inline vec splat(float x) { return x - vec{}; }
static inline vec vmax(vec a, vec b) { return a > b ? a : b; }

// The last n < LANES numbers of a row; the missing lanes are zero.
static inline vec load_part(const float* p, i64 n) {
    vec v{};
    std::memcpy(&v, p, n * sizeof(float));
    return v;
}
static inline void store_part(float* p, vec v, i64 n) { std::memcpy(p, &v, n * sizeof(float)); }

// Sum and maximum of the lanes, by quarters: lane after lane would be a chain of LANES dependent operations.
static inline float sum(vec v) {
    vec4 parts[LANES / 4];
    std::memcpy(parts, &v, sizeof v);
    vec4 s = parts[0];
    for (int i = 1; i < LANES / 4; i++) s += parts[i];
    return (s[0] + s[1]) + (s[2] + s[3]);
}
static inline float maximum_of(vec v) {
    vec4 parts[LANES / 4];
    std::memcpy(parts, &v, sizeof v);
    vec4 s = parts[0];
    for (int i = 1; i < LANES / 4; i++) s = s > parts[i] ? s : parts[i];
    return std::max(std::max(s[0], s[1]), std::max(s[2], s[3]));
}

// exp to 1e-7 relative: 2^n times a degree-6 polynomial on [-ln2/2, ln2/2] (coefficients of Cephes' expf).
static inline vec vexp(vec x) {
    x = x < -87.33f ? splat(-87.33f) : x;  // written so that NaN passes
    x = x > 88.37f ? splat(88.37f) : x;
    const float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits
    vec t = x * 1.44269504088896341f + shifter;
    vec n = t - shifter;
    vec r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vec)(((ivec)t + 127) << 23);  // these casts keep the bits
}

// 2^x to 1e-7 relative for x <= 0, fewer operations than vexp: a minimax polynomial of degree 5 on [-1/2, 1/2].
static inline vec vexp2_negative(vec x) {
    x = vmax(splat(-126.0f), x);  // in this order NaN passes
    const float shifter = 12582912.0f;  // as above
    vec t = x + shifter;
    vec r = x - (t - shifter);
    vec p = r * 1.3276472454890609e-3f + 9.675541892647743e-3f;
    p = p * r + 5.550713092088699e-2f;
    p = p * r + 2.4022120237350464e-1f;
    p = p * r + 6.931469440460205e-1f;
    p = p * r + 1.0f;
    return (vec)((ivec)p + ((ivec)t << 23));  // added to the exponent; the shift drops the shifter's own bits
}

// tanh-GELU is x * sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3): accurate in the negative tail, and one exp.
static const float GELU_TWO_C = 1.5957691216057308f, GELU_CUBIC = 0.044715f;

static inline vec gelu(vec x) { return x / (1.0f + vexp(-GELU_TWO_C * x * (1.0f + GELU_CUBIC * x * x))); }

// Calls f(index, count) for each vector of a row of n numbers.
template <class F>
static inline void for_row(i64 n, F f) {
    i64 j = 0;
    for (; j + LANES <= n; j += LANES) f(j, i64(LANES));
    if (j < n) f(j, n - j);
}
static inline vec load_n(const float* p, i64 n) { return n == LANES ? load(p) : load_part(p, n); }
static inline void store_n(float* p, vec v, i64 n) { n == LANES ? store(p, v) : store_part(p, v, n); }
