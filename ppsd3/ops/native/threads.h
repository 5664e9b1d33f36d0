// Work on several threads, by the OpenMP runtime that Paddle itself has loaded (its address arrives through
// ppsd3_set_runtime): a second thread pool would compete with the first one's spinning workers.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>

#include "vectors.h"

typedef void (*fork_type)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel
extern fork_type runtime_fork;  // both null until ppsd3_set_runtime
extern int (*runtime_max_threads)();

static inline int max_threads() { return runtime_fork && runtime_max_threads ? std::max(1, runtime_max_threads()) : 1; }

template <class F>
struct Team {
    const F* body;
    std::atomic<int> next_member;
    std::atomic<bool> failed;
    std::exception_ptr error;  // the first: it must not leave a thread of the runtime
    static void run(void* self) noexcept {
        Team* team = static_cast<Team*>(self);
        try {
            (*team->body)(team->next_member.fetch_add(1));
        } catch (...) {
            if (!team->failed.exchange(true)) team->error = std::current_exception();
        }
    }
};

// body(member) on `threads` threads at once, members 0 .. threads-1. Members come from a counter and not from
// omp_get_thread_num, so that the kernels need nothing of the runtime but its fork. What a body throws, the caller gets.
template <class F>
static void run_team(int threads, const F& body) {
    if (threads <= 1) return body(0);
    Team<F> team{&body, {0}, {false}, nullptr};
    runtime_fork(&Team<F>::run, &team, unsigned(threads), 0);
    if (team.error) std::rethrow_exception(team.error);
    // a runtime may grant fewer threads than asked for (nested regions, a limit)
    for (int member = team.next_member.load(); member < threads; member++) body(member);
}

// The threads worth waking for `numbers` float operations on memory: a fork costs some microseconds.
static inline int threads_for(i64 numbers) {
    return int(std::max<i64>(1, std::min<i64>(max_threads(), numbers / 8192)));
}

// body(first, last, member): equal contiguous shares of `count`, so that sums are reproducible.
template <class F>
static void share_rows(i64 count, int threads, const F& body) {
    threads = int(std::max<i64>(1, std::min<i64>(threads, count)));
    run_team(threads, [&](int member) { body(count * member / threads, count * (member + 1) / threads, member); });
}

// body(task) for each task, whoever is free: for tasks whose results do not meet. Where tasks are many they are taken
// in runs, since neighbours read neighbouring memory.
template <class F>
static void share_tasks(i64 count, int threads, const F& body) {
    std::atomic<i64> next{0};
    i64 run = std::max<i64>(1, count / (16 * threads));
    run_team(int(std::max<i64>(1, std::min<i64>(threads, count))), [&](int) {
        for (i64 task; (task = next.fetch_add(run)) < count;)
            for (i64 end = std::min(task + run, count); task < end; task++) body(task);
    });
}

// Sums `parts` rows of n numbers into out.
static inline void add_parts(const float* partial, i64 parts, i64 n, float* out) {
    std::memcpy(out, partial, n * sizeof(float));
    for (i64 p = 1; p < parts; p++)
        for (i64 j = 0; j < n; j++) out[j] += partial[p * n + j];
}
