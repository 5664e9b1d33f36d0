// The runtime whose threads the kernels use.

#include "threads.h"
#include "guarded.h"

fork_type runtime_fork = nullptr;
int (*runtime_max_threads)() = nullptr;

extern "C" {

int32_t ppsd3_lanes() { return LANES; }

int32_t ppsd3_threads() { return max_threads(); }

int32_t ppsd3_set_runtime(const void* fork, const void* threads) {
    runtime_fork = reinterpret_cast<fork_type>(const_cast<void*>(fork));
    runtime_max_threads = reinterpret_cast<int (*)()>(const_cast<void*>(threads));
    return OK;
}

}  // extern "C"
