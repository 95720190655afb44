// The small pieces of a step: norms, activations, rotations, and the barrier that synchronizes threads.
#pragma once

#include "numbers.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <sched.h>

namespace {

// The sum of f(x[i]).
template <class F> float sum_of(const float *x, int64_t n, F f) {
    Vec total = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) total += f(load(x + i));
    float result = sum(total);
    for (; i < n; i++) result += f(x[i]);
    return result;
}

struct Moments { float mean, scale; };

Moments moments(const Norm &norm, const float *x) {
    const float mean = norm.kind == LAYER_NORM ? sum_of(x, norm.width, [](auto v) { return v; }) / norm.width : 0;
    const float square = sum_of(x, norm.width, [mean](auto v) { return (v - mean) * (v - mean); }) / norm.width;
    return {mean, 1 / std::sqrt(square + norm.eps)};
}

// Normalizes n numbers of x, with the norm's weights from index `at` on. `out` may be x.
void scale_by(const Norm &norm, Moments by, const float *x, int64_t n, int64_t at, float *out) {
    for (int64_t i = 0; i < n; i++) out[i] = (x[i] - by.mean) * by.scale;
    if (norm.weight)
        for (int64_t i = 0; i < n; i++) out[i] *= norm.weight[at + i];
    if (norm.bias)
        for (int64_t i = 0; i < n; i++) out[i] += norm.bias[at + i];
}

// Applies a norm to a vector, or copies it if there is none.
void normalize(const Norm &norm, const float *x, int64_t n, float *out) {
    if (norm.kind == NO_NORM) std::memmove(out, x, n * sizeof(float));
    else scale_by(norm, moments(norm, x), x, n, 0, out);
}

Vec activate(Vec x, int32_t kind) {
    switch (kind) {
        case RELU: return x > 0 ? x : all(0);
        case RELU2: return x > 0 ? x * x : all(0);
        case GELU_SIGMOID: return x / (1 + exp16(-1.702f * x));
        case SILU: return x / (1 + exp16(-x));
        case GELU_TANH: return x - x / (1 + exp16(1.5957691216f * (x + 0.044715f * x * x * x)));
    }
    for (int i = 0; i < LANES; i++) x[i] *= 0.5f * (1 + std::erf(x[i] * 0.70710678f));
    return x;
}

inline float capped(float x, float cap) { return cap > 0 ? cap * std::tanh(x / cap) : x; }
inline Vec capped(Vec x, float cap) {
    for (int i = 0; cap > 0 && i < LANES; i++) x[i] = capped(x[i], cap);
    return x;
}

// Rotates the pairs (i, i + half) of one head.
void rotate(float *x, const float *cos, const float *sin, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i] + a * sin[i];
    }
}

struct Barrier {
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<int> round{0};

    void wait(int n) {
        if (n == 1) return;
        const int now = round.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) == n - 1) {
            arrived.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 1; round.load(std::memory_order_acquire) == now; spins++) {
            if (spins % 2048 == 0) sched_yield();  // the system may have descheduled the thread we wait for
#if defined(__x86_64__)
            _mm_pause();
#endif
        }
    }
};

}  // namespace
