// Some rows of a matrix of plain numbers times some vectors: float32, bfloat16, float16.
#pragma once

#include "bfloat16.h"

namespace {

// A row times one vector. Independent partial sums, so that additions need not wait for each other.
template <class T> Vec dot(const T *w, int64_t cols, const float *x) {
    constexpr int SUMS = 4;
    Vec total[SUMS] = {};
    int64_t c = 0;
    for (; c + SUMS * LANES <= cols; c += SUMS * LANES)
        for (int j = 0; j < SUMS; j++) total[j] += load(w + c + j * LANES) * load(x + c + j * LANES);
    for (; c + LANES <= cols; c += LANES) total[0] += load(w + c) * load(x + c);
    float rest = 0;
    for (; c < cols; c++) rest += widen(w[c]) * x[c];
    total[0] += Vec{rest};
    return (total[0] + total[1]) + (total[2] + total[3]);
}

// ---- one vector -----------------------------------------------------------------------------------------------------

// The rows of a thread are divided into FAR parts, and row i of all parts is computed together: a few long streams,
// which the hardware prefetcher follows, and one load of the vector for all of them. Adjacent rows would be streams
// that end at each other's pages, which it does not follow: half as fast. Prefetch instructions were slower than none.
#if defined(__AVX512F__)
constexpr int FAR = 4;
#elif defined(__AVX2__) || defined(__aarch64__)
constexpr int FAR = 2;
#else
constexpr int FAR = 1;  // too few registers
#endif
constexpr int64_t LONG_ROW = 4096;  // columns; the vector of a longer row fills the L1 cache

// 32 numbers as two vectors. For BF16 these are the even and odd columns, which take one instruction each; x is laid
// out in the same way (`lay_out`).
template <class T> inline void load_pair(const T *p, Vec &one, Vec &other) { one = load(p), other = load(p + LANES); }
inline void load_pair(const BFloat *p, Vec &even, Vec &odd) {
    const IVec both = read<IVec>(p);
    even = (Vec)(both << 16);
    odd = (Vec)(both & int32_t(0xffff0000));
}

inline void lay_out(const float *x, int64_t cols, float *out) {
    for (int64_t c = 0; c + GROUP <= cols; c += GROUP)
        for (int i = 0; i < LANES; i++) out[c + i] = x[c + 2 * i], out[c + LANES + i] = x[c + 2 * i + 1];
}

// The part of a product from the columns after the last whole group. One function, so that the order of additions is
// the same everywhere.
template <class T> __attribute__((noinline)) float rest_of(const T *w, const float *x, int64_t from, int64_t cols) {
    float rest = 0;
    for (int64_t c = from; c < cols; c++) rest += widen(w[c]) * x[c];
    return rest;
}

// y[s] = row (first + s * apart) of W times x; x32: x as `load_pair` gives the columns.
template <int S, class T> void far_rows(const Linear &m, int64_t first, int64_t apart, const float *x, const float *x32, float *y) {
    const T *w[S];
    for (int s = 0; s < S; s++) w[s] = (const T *)m.weight + (first + s * apart) * m.cols;
    Vec total[S][2] = {};
    int64_t c = 0;
    for (; c + GROUP <= m.cols; c += GROUP) {
        const Vec x0 = load(x32 + c), x1 = load(x32 + c + LANES);
        for (int s = 0; s < S; s++) {
            Vec w0, w1;
            load_pair(w[s] + c, w0, w1);
            total[s][0] += w0 * x0;
            total[s][1] += w1 * x1;
        }
    }
    for (int s = 0; s < S; s++) y[s] = sum(total[s][0] + total[s][1]) + (c < m.cols ? rest_of(w[s], x, c, m.cols) : 0);
}

template <int S, class T, class Put> int64_t some_far_rows(const Linear &m, int64_t first, int64_t last, const float *x, const float *x32, Put put) {
    const int64_t part = (last - first) / S;
    for (int64_t row = first; row < first + part; row++) {
        float y[S];
        far_rows<S, T>(m, row, part, x, x32, y);
        for (int s = 0; s < S; s++) put(row + s * part, y[s] + (m.bias ? m.bias[row + s * part] : 0));
    }
    return first + S * part;
}

// Calls put(row, W[row] . x) for the rows in [first, last). `room`: memory for the laid-out copy of x.
template <class T, class Put> void each_row(const Linear &m, int64_t first, int64_t last, const float *x, float *room, Put put) {
    const float *x32 = x;
    if (std::is_same<T, BFloat>::value) lay_out(x, m.cols, room), x32 = room;
    first = m.cols > LONG_ROW ? some_far_rows<2 * FAR, T>(m, first, last, x, x32, put) : some_far_rows<FAR, T>(m, first, last, x, x32, put);
    some_far_rows<1, T>(m, first, last, x, x32, put);
}

// ---- several vectors ------------------------------------------------------------------------------------------------

// A few rows times a few vectors at once, as many as the registers have room for sums: each load is used several times.
#if defined(__AVX512F__)
constexpr int ROWS_AT_ONCE = 4, VECTORS_AT_ONCE = 3;
#else
constexpr int ROWS_AT_ONCE = 2, VECTORS_AT_ONCE = 1;
#endif

// y[s][b TILE] = row s times vector b; x32: the vectors as `load_pair` gives the columns. The order of additions is
// that of `far_rows`, so that the result for a vector does not depend on the number of vectors.
template <int N, class T> void block_sums(const T *const *w, int64_t cols, const float *x, const float *x32, float *const *y) {
    constexpr int S = ROWS_AT_ONCE;
    Vec total[2][S][N] = {};
    int64_t c = 0;
    for (; c + GROUP <= cols; c += GROUP) {
        Vec v[2][S];
        for (int s = 0; s < S; s++) load_pair(w[s] + c, v[0][s], v[1][s]);
        for (int half = 0; half < 2; half++)
            for (int b = 0; b < N; b++) {
                const Vec xb = load(x32 + b * cols + c + half * LANES);
                for (int s = 0; s < S; s++) total[half][s][b] += v[half][s] * xb;
            }
    }
    Vec each[LANES] = {};
    for (int s = 0; s < S; s++)
        for (int b = 0; b < N; b++) each[s * N + b] = total[0][s][b] + total[1][s][b];
    const Vec all = sums(each);
    for (int s = 0; s < S; s++)
        for (int b = 0; b < N; b++) y[s][b * TILE] = all[s * N + b] + (c < cols ? rest_of(w[s], x + b * cols, c, cols) : 0);
}

// The vectors that a matrix of plain numbers is multiplied by, at a stride of `cols`.
struct Vectors {
    const float *x, *x32;
    int64_t n, cols;
    Vectors from(int64_t b) const { return {x + b * cols, x32 + b * cols, n - b, cols}; }
};

template <class T> Vectors plain_vectors(const float *x, int64_t cols, int64_t n, float *room) {
    if (!std::is_same<T, BFloat>::value) return {x, x, n, cols};
    for (int64_t b = 0; b < n; b++) lay_out(x + b * cols, cols, room + b * cols);
    return {x, room, n, cols};
}

// out[s][b TILE] = row rows[s] of W times vector b.
template <class T> void some_rows(const Linear &m, const int64_t *rows, Vectors in, float *const *out) {
    const T *w[ROWS_AT_ONCE];
    float *y[ROWS_AT_ONCE];
    for (int s = 0; s < ROWS_AT_ONCE; s++) w[s] = (const T *)m.weight + rows[s] * m.cols, y[s] = out[s];
    const auto some = [&](auto count) {
        constexpr int N = decltype(count)::value;
        for (; in.n >= N; in = in.from(N)) {
            block_sums<N>(w, m.cols, in.x, in.x32, y);
            for (float *&each : y) each += N * TILE;
        }
    };
    if (VECTORS_AT_ONCE == 3 && in.n != 4) some(std::integral_constant<int, 3>());
    if (VECTORS_AT_ONCE >= 2) some(std::integral_constant<int, 2>());
    some(std::integral_constant<int, 1>());
}

// Calls put(first row, number of rows, y) for tiles of 16 rows, with y[b TILE + r]. As with one vector, the rows of a
// thread are divided into parts whose tiles are computed together row by row: a few long streams.
template <class T, class Put> void each_plain_tile(const Linear &m, int64_t first, int64_t last, Vectors in, Put put) {
    constexpr int S = ROWS_AT_ONCE, MOST = 32;
    const int64_t apart = (last - first) / (S * TILE) * TILE;
    float y[S][MOST * TILE];
    for (int64_t row = first; row < first + apart; row += TILE) {
        for (int r = 0; r < TILE; r++) {
            int64_t rows[S];
            float *out[S];
            for (int s = 0; s < S; s++) rows[s] = row + s * apart + r, out[s] = y[s] + r;
            some_rows<T>(m, rows, in, out);
        }
        for (int s = 0; s < S; s++) put(row + s * apart, TILE, y[s]);
    }
    for (int64_t row = first + S * apart; row < last; row += TILE) {
        const int64_t count = std::min<int64_t>(last - row, TILE);
        for (int64_t r = 0; r < count; r += S) {  // four fit into sixteen
            int64_t rows[S];  // rows past the end repeat the last row
            float *out[S];
            for (int s = 0; s < S; s++) rows[s] = std::min(row + r + s, last - 1), out[s] = y[0] + r + s;
            some_rows<T>(m, rows, in, out);
        }
        put(row, count, y[0]);
    }
}

}  // namespace
