// Scratch memory of the kernels, kept between calls.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "vectors.h"

// Memory of one thread, kept between calls, handed out in pieces. The first piece is aligned to a vector, and so are
// the others if sizes are whole vectors: a vector across two lines takes two loads.
struct Scratch {
    std::vector<float> memory;
    i64 used = 0;
    void reset(i64 numbers) {
        if (i64(memory.size()) < numbers + 2 * LANES) memory.resize(numbers + 2 * LANES);
        used = i64(-reinterpret_cast<uintptr_t>(memory.data()) / sizeof(float)) & (LANES - 1);
    }
    float* take(i64 numbers) {
        float* p = memory.data() + used;
        used += numbers;
        return p;
    }
};
static thread_local Scratch scratch;

// The same in large pages where the system has them, for what is read from all over.
struct Pages {
    float* memory = nullptr;
    i64 size = 0;
    float* of(i64 numbers) {
        if (numbers > size) {
            const i64 page = i64(2) << 20, bytes = (numbers * i64(sizeof(float)) / page + 1) * page;
            std::free(memory);
            memory = nullptr, size = 0;  // should the next line fail
            void* pages = nullptr;
            if (posix_memalign(&pages, page, bytes)) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
            madvise(pages, bytes, MADV_HUGEPAGE);
#endif
            memory = static_cast<float*>(pages), size = bytes / sizeof(float);
        }
        return memory;
    }
    template <class V>
    V* vectors(i64 count) {
        return reinterpret_cast<V*>(of(count * i64(sizeof(V) / sizeof(float))));
    }
    ~Pages() { std::free(memory); }
};
