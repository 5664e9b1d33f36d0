// Every function of the library. The compiler checks the definitions against these declarations, and Python reads its
// argument types from them: one function in one statement, parameters are scalars or pointers, comments stand apart.
//
// What is not null is row-major and contiguous. A function returns a `status`, and after any but OK its results are
// undefined; those that answer a question (`_ready`, `lanes`, `threads`) return the answer. Functions under "Only where"
// are missing from a library that is built for a CPU without these instructions.
//
// Legend: B batch, S tokens, D width, h heads, d head width, T = product of the leading axes. Arrays are float32 unless
// their type says otherwise.

#pragma once

#include <cstdint>

enum status : int32_t {
    OK = 0,
    OUT_OF_MEMORY = 1,
    READ_FAILED = 2,  // of a file: its end, or an error
    UNSUPPORTED = 3,  // no such size or option
    FAILED = 4,  // anything else
};

struct Shape {
    int64_t batch, heads, dim, queries, keys;
};

// One [B, S, h, d] operand in one or two pieces along S (image and text tokens): piece p has rows[p] tokens, and token s
// of batch item b begins at base[p] + (b * rows[p] + s) * stride[p]; heads are d apart.
struct Tokens {
    float* base[2];
    int64_t rows[2], stride[2];
};

extern "C" {

// ---------------------------------------------------------------------------------------------- the library itself

// float32 numbers of a vector.
int32_t ppsd3_lanes();

// Threads that large work is shared by.
int32_t ppsd3_threads();

// fork: GOMP_parallel; max_threads: omp_get_max_threads, both of the runtime that Paddle set its thread number in.
int32_t ppsd3_set_runtime(const void* fork, const void* max_threads);

// ------------------------------------------------------------------------------------------------- linear layers

// x [T, D] += bias [D], in place.
int32_t ppsd3_add_bias(float* x, const float* bias, int64_t rows, int64_t width);

// out [D] = sum over T of x [T, D].
int32_t ppsd3_column_sum(const float* x, float* out, int64_t rows, int64_t width);

// out = gelu(x + bias), tanh-approximated; x becomes x + bias, which the backward needs, unless out is x. bias may be
// null.
int32_t ppsd3_gelu(float* x, const float* bias, float* out, int64_t rows, int64_t width);

// dx = dout * gelu'(x), and dbias [D] = sum over T of dx where dbias is not null.
int32_t ppsd3_gelu_backward(const float* x, const float* dout, float* dx, float* dbias, int64_t rows, int64_t width);

// c [m, n] = a [m, k] b [k, n] + bias [n] (or null); a as stored or (a_transposed) as [k, m], b as stored or
// (b_transposed) as [n, k]. Operands are rounded to bfloat16, sums are float32. Only where AVX512-BF16 is.
int32_t ppsd3_product_bf16(const float* a, const float* b, const float* bias, float* c, int64_t m, int64_t n, int64_t k,
                           bool a_transposed, bool b_transposed);

// y [m, n] = x [m, k] w [n, k]^T + bias [n] (or null), with tanh-GELU after it if asked; levels 1 or 2 of Strassen's
// algorithm. Only where AVX-512 is.
int32_t ppsd3_strassen(const float* x, const float* w, const float* bias, float* y, int64_t m, int64_t n, int64_t k,
                       int64_t levels, bool gelu_after);

// Whether the system lets this process use AMX tiles. Only where AMX is, as all functions `ppsd3_amx_`, which may be
// called after it has returned 1.
int32_t ppsd3_amx_ready();

// As ppsd3_product_bf16, with tanh-GELU after it if asked. parts: 3 for float32, 1 for operands rounded to bfloat16.
int32_t ppsd3_amx_product(const float* a, const float* b, const float* bias, float* c, int64_t m, int64_t n, int64_t k,
                          bool a_transposed, bool b_transposed, bool gelu_after, int64_t parts);

// ------------------------------------------------------------------------------------------ linear layers in int8

// x [rows, k] -> u [rows, stride], scale and low [rows, ceil(k / 256)]. Only where VNNI is, as the next one.
int32_t ppsd3_quantize_rows(const float* x, uint8_t* u, float* scale, float* low, int64_t rows, int64_t k,
                            int64_t stride);

// out [rows, n] = x [rows, k] (weight_scale weight [n, k])^T + bias (or null), x as ppsd3_quantize_rows left it, then GELU
// if asked.
int32_t ppsd3_product_int8(const uint8_t* u, const float* scale, const float* low, const int8_t* weight,
                           const float* weight_scale, const float* bias, float* out, int64_t rows, int64_t n, int64_t k,
                           int64_t stride, bool gelu_after);

// The same, but that u has rows to the next multiple of 32, whatever they hold, and a stride of whole 64 bytes. Only
// where AMX-INT8 is.
int32_t ppsd3_amx_product_int8(const uint8_t* u, const float* scale, const float* low, const int8_t* weight,
                               const float* weight_scale, const float* bias, float* out, int64_t rows, int64_t n,
                               int64_t k, int64_t stride, bool gelu_after);

// ---------------------------------------------------------------------------------------------- norms, modulation

// out = layer_norm(x) * (1 + scale) + shift; x [B, S, D], shift and scale [B, D] or both null. mean and rstd [B, S] are
// kept for the backward unless null.
int32_t ppsd3_layer_norm(const float* x, const float* shift, const float* scale, float* out, float* mean, float* rstd,
                         int64_t batch, int64_t tokens, int64_t width, float epsilon);

// Gradients of ppsd3_layer_norm; scale, dshift and dscale are null without modulation.
int32_t ppsd3_layer_norm_backward(const float* x, const float* scale, const float* mean, const float* rstd,
                                  const float* dout, float* dx, float* dshift, float* dscale, int64_t batch,
                                  int64_t tokens, int64_t width);

// out = x / sqrt(mean(x^2) + epsilon) * weight, row by row; x [T, D], weight [D].
int32_t ppsd3_rms_norm(const float* x, const float* weight, float* out, int64_t rows, int64_t width, float epsilon);

// Gradients of ppsd3_rms_norm.
int32_t ppsd3_rms_norm_backward(const float* x, const float* weight, const float* dout, float* dx, float* dweight,
                                int64_t rows, int64_t width, float epsilon);

// out = residual + gate * x; residual, x [B, S, D], gate [B, D].
int32_t ppsd3_gated_residual(const float* residual, const float* gate, const float* x, float* out, int64_t batch,
                             int64_t tokens, int64_t width);

// dx = gate * dout, dgate = sum over S of dout * x.
int32_t ppsd3_gated_residual_backward(const float* gate, const float* x, const float* dout, float* dx, float* dgate,
                                      int64_t batch, int64_t tokens, int64_t width);

// ----------------------------------------------------------------------------------------------------- attention

// out = softmax(scale q k^T + bias) v. lse [B, h, queries] (log of the softmax's denominators) is kept unless null. bias
// [queries, keys], or null, is bias_batch numbers further for each batch item and bias_head for each head.
int32_t ppsd3_attention(const Shape* shape, const Tokens* q, const Tokens* k, const Tokens* v, const Tokens* out,
                        float* lse, float scale, const float* bias, int64_t bias_batch, int64_t bias_head);

// The same. Only where AMX is.
int32_t ppsd3_amx_attention(const Shape* shape, const Tokens* q, const Tokens* k, const Tokens* v, const Tokens* out,
                            float* lse, float scale, const float* bias, int64_t bias_batch, int64_t bias_head);

// Gradients of ppsd3_attention without bias.
int32_t ppsd3_attention_backward(const Shape* shape, const Tokens* q, const Tokens* k, const Tokens* v,
                                 const Tokens* out, const Tokens* dout, const float* lse, const Tokens* dq,
                                 const Tokens* dk, const Tokens* dv, float scale);

// --------------------------------------------------------------------------------------- convolutions, group norm

// Convolution of x [B, in, H, W] with weight [out, in, k, k] and bias [out] (or null). k = 3, stride = 1: padded by 1;
// k = 3, stride = 2: padded by 1 at the right and bottom; k = 1, stride = 1. `added` (or null) is added to y.
int32_t ppsd3_conv2d(const float* x, const float* weight, const float* bias, const float* added, float* y,
                     int64_t batch, int64_t in, int64_t height, int64_t width, int64_t out, int64_t kernel,
                     int64_t stride);

// The same, on tiles where the sizes fill them. Only where AMX is.
int32_t ppsd3_amx_conv2d(const float* x, const float* weight, const float* bias, const float* added, float* y,
                         int64_t batch, int64_t in, int64_t height, int64_t width, int64_t out, int64_t kernel,
                         int64_t stride);

// Gradient of ppsd3_conv2d by x.
int32_t ppsd3_conv2d_backward_data(const float* dy, const float* weight, float* dx, int64_t batch, int64_t in,
                                   int64_t height, int64_t width, int64_t out, int64_t kernel, int64_t stride);

// The same, on tiles where the sizes fill them. Only where AMX is.
int32_t ppsd3_amx_conv2d_backward_data(const float* dy, const float* weight, float* dx, int64_t batch, int64_t in,
                                       int64_t height, int64_t width, int64_t out, int64_t kernel, int64_t stride);

// Gradients of ppsd3_conv2d by weight and bias.
int32_t ppsd3_conv2d_backward_weight(const float* x, const float* dy, float* dweight, float* dbias, int64_t batch,
                                     int64_t in, int64_t height, int64_t width, int64_t out, int64_t kernel,
                                     int64_t stride);

// Convolution, 3x3 padded by 1, of x [B, in, H, W] upsampled to [B, in, 2H, 2W] by nearest neighbour.
int32_t ppsd3_upsample_conv2d(const float* x, const float* weight, const float* bias, float* y, int64_t batch,
                              int64_t in, int64_t height, int64_t width, int64_t out);

// The same, on tiles where the sizes fill them. Only where AMX is.
int32_t ppsd3_amx_upsample_conv2d(const float* x, const float* weight, const float* bias, float* y, int64_t batch,
                                  int64_t in, int64_t height, int64_t width, int64_t out);

// Gradient of ppsd3_upsample_conv2d by x.
int32_t ppsd3_upsample_conv2d_backward_data(const float* dy, const float* weight, float* dx, int64_t batch, int64_t in,
                                            int64_t height, int64_t width, int64_t out);

// Gradients of ppsd3_upsample_conv2d by weight and bias.
int32_t ppsd3_upsample_conv2d_backward_weight(const float* x, const float* dy, float* dweight, float* dbias,
                                              int64_t batch, int64_t in, int64_t height, int64_t width, int64_t out);

// Group norm of x [B, C, N], then SiLU if asked. moments [2, B, groups] receives mean and 1 / standard deviation.
int32_t ppsd3_group_norm(const float* x, const float* weight, const float* bias, float* y, float* moments,
                         int64_t batch, int64_t channels, int64_t positions, int64_t groups, bool silu, float epsilon);

// Gradients of ppsd3_group_norm.
int32_t ppsd3_group_norm_backward(const float* x, const float* weight, const float* bias, const float* moments,
                                  const float* dy, float* dx, float* dweight, float* dbias, int64_t batch,
                                  int64_t channels, int64_t positions, int64_t groups, bool silu);

// ------------------------------------------------------------------------------------------------ numbers of 16 bits

// float16 to float32, exactly, on the calling thread. Only where F16C is.
int32_t ppsd3_float16_to_float32(const uint16_t* numbers, float* out, int64_t count);

// bfloat16 or (where F16C is; else UNSUPPORTED) float16 to float32, exactly, by all threads.
int32_t ppsd3_cast_weight(const uint16_t* weight, float* out, int64_t count, bool is_bfloat16);

// `count` numbers of an open file, from byte `position`, to float32, as ppsd3_cast_weight, on the calling thread. Only
// on systems with pread.
int32_t ppsd3_read_floats(int64_t file, int64_t position, float* out, int64_t count, bool is_bfloat16);

}  // extern "C"
