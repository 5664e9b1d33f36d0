// float16 and bfloat16 to float32, exactly: weights in memory, and numbers of a file.

#include <algorithm>
#include <vector>

#include "guarded.h"
#include "threads.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <errno.h>
#include <unistd.h>
#endif

namespace {

const i64 PIECE = 65536;  // numbers

void from_float16(const uint16_t* from, float* out, i64 count) {
#if defined(__F16C__)
    i64 i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
    for (; i < count; i++) out[i] = _cvtsh_ss(from[i]);
#else
    throw UNSUPPORTED;
#endif
}

void to_float32(const uint16_t* from, float* out, i64 count, bool is_bfloat16) {
    if (!is_bfloat16) return from_float16(from, out, count);
    for (i64 i = 0; i < count; i++) {
        uint32_t bits = uint32_t(from[i]) << 16;
        std::memcpy(out + i, &bits, 4);
    }
}

}  // namespace

extern "C" {

#if defined(__F16C__)
int32_t ppsd3_float16_to_float32(const uint16_t* numbers, float* out, int64_t count) {
    return guarded([&] { from_float16(numbers, out, count); });
}
#endif

int32_t ppsd3_cast_weight(const uint16_t* weight, float* out, int64_t count, bool is_bfloat16) {
    return guarded([&] {
        share_tasks((count + PIECE - 1) / PIECE, threads_for(count), [&](i64 task) {
            i64 at = task * PIECE;
            to_float32(weight + at, out + at, std::min(PIECE, count - at), is_bfloat16);
        });
    });
}

#if defined(__unix__) || defined(__APPLE__)
int32_t ppsd3_read_floats(int64_t file, int64_t position, float* out, int64_t count, bool is_bfloat16) {
    return guarded([&] {
        std::vector<uint16_t> buffer(std::min(PIECE, count));
        for (i64 done = 0; done < count;) {
            i64 some = std::min(PIECE, count - done), wanted = 2 * some, bytes = 0;
            while (bytes < wanted) {
                char* to = reinterpret_cast<char*>(buffer.data()) + bytes;
                i64 got = pread(int(file), to, wanted - bytes, position + bytes);
                if (got < 0 && errno == EINTR) continue;
                if (got <= 0) throw READ_FAILED;
                bytes += got;
            }
            to_float32(buffer.data(), out + done, some, is_bfloat16);
            done += some, position += wanted;
        }
    });
}
#endif

}  // extern "C"
