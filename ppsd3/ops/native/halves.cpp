// float16 and bfloat16 to float32, exactly: weights in memory, and numbers of a file.

#include "common.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <errno.h>
#include <unistd.h>
#endif

extern "C" {

#if defined(__F16C__)
// float16 to float32, exact. On the calling thread: loading has threads of its own.
void ppsd3_half_to_float(const uint16_t* halves, float* out, i64 count) {
    i64 i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + i))));
    for (; i < count; i++) out[i] = _cvtsh_ss(halves[i]);
}
#endif

// The same for float16 (where the CPU converts it) or, with `brain`, bfloat16.
static void to_float(const uint16_t* from, float* out, i64 count, i64 brain) {
#if defined(__F16C__)
    if (!brain) return ppsd3_half_to_float(from, out, count);
#endif
    for (i64 i = 0; i < count; i++) {
        uint32_t bits = uint32_t(from[i]) << 16;
        std::memcpy(out + i, &bits, 4);
    }
}

// A weight in float16 or bfloat16 to float32, by all threads.
void ppsd3_cast_weight(const uint16_t* weight, float* out, i64 count, i64 brain) {
    const i64 PIECE = 65536;
    share_tasks((count + PIECE - 1) / PIECE, threads_for(count), [&](i64 task) {
        to_float(weight + task * PIECE, out + task * PIECE, std::min(PIECE, count - task * PIECE), brain);
    });
}

#if defined(__unix__) || defined(__APPLE__)
// `count` numbers of a file, from byte `position`, to float32; `read` becomes how many there were. On the calling thread.
void ppsd3_read_floats(i64 file, i64 position, float* out, i64 count, i64 brain, i64* read) {
    const i64 PIECE = 65536;
    std::vector<uint16_t> buffer(std::min(PIECE, count));
    for (*read = 0; *read < count;) {
        i64 wanted = 2 * std::min(PIECE, count - *read), bytes = 0;
        while (bytes < wanted) {
            i64 got = pread(int(file), reinterpret_cast<char*>(buffer.data()) + bytes, wanted - bytes, position + bytes);
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0) return;
            bytes += got;
        }
        to_float(buffer.data(), out + *read, wanted / 2, brain);
        *read += wanted / 2, position += wanted;
    }
}
#endif

}  // extern "C"
