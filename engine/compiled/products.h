// Some rows of a matrix of plain numbers times some vectors: float32, bfloat16, float16.
#pragma once

#include "bfloat16.h"

namespace {

// A row times one vector. Sums are kept apart so that additions need not wait for each other.
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

// A thread's rows are cut into parts, and row i of every part is done together: a few long streams, which the hardware
// follows, and one load of the vector for all of them. Rows that lie side by side are streams that end at each other's
// pages, which it does not follow: half as fast. Announcing reads by hand was slower than none.
#if defined(__AVX512F__)
constexpr int FAR = 4;
#elif defined(__AVX2__) || defined(__aarch64__)
constexpr int FAR = 2;
#else
constexpr int FAR = 1;  // too few registers
#endif
constexpr int64_t LONG_ROW = 4096;  // columns; the vector of a longer one fills the first-level cache

// 32 numbers as two vectors. Those of BF16 are its even and odd columns, which take one instruction each: x is laid out
// in the same way (`lay_out`).
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

// What columns beyond the last whole group add to a product. One function, so that it is added up alike everywhere.
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

// put(row, W[row] . x) for rows from `first` to before `last`. `room` is for x laid out.
template <class T, class Put> void each_row(const Linear &m, int64_t first, int64_t last, const float *x, float *room, Put put) {
    const float *x32 = x;
    if (std::is_same<T, BFloat>::value) lay_out(x, m.cols, room), x32 = room;
    first = m.cols > LONG_ROW ? some_far_rows<2 * FAR, T>(m, first, last, x, x32, put) : some_far_rows<FAR, T>(m, first, last, x, x32, put);
    some_far_rows<1, T>(m, first, last, x, x32, put);
}

// ---- several vectors ------------------------------------------------------------------------------------------------

// What a matrix is multiplied with: n vectors, `cols` apart.
struct Vectors {
    const float *x;
    const float *x32;      // each as `load_pair` gives the columns
    const BFloat *blocks;  // x rounded and laid out for tiles, where these multiply; else null
};

// R rows times N vectors: weights are read and widened once for all of them. Each product is added up as `far_rows` adds
// it up, so that a vector's products do not depend on how many there are.
template <int R, int N, class T> void dot_together(const T *const *w, int64_t cols, const float *x32, Vec (*out)[N]) {
    Vec total[R][N][2] = {};
    for (int64_t c = 0; c + GROUP <= cols; c += GROUP) {
        Vec v[R][2];
        for (int r = 0; r < R; r++) load_pair(w[r] + c, v[r][0], v[r][1]);
        for (int b = 0; b < N; b++) {
            const Vec x0 = load(x32 + b * cols + c), x1 = load(x32 + b * cols + c + LANES);
            for (int r = 0; r < R; r++) total[r][b][0] += v[r][0] * x0, total[r][b][1] += v[r][1] * x1;
        }
    }
    for (int b = 0; b < N; b++)
        for (int r = 0; r < R; r++) out[r][b] = total[r][b][0] + total[r][b][1];
}

// y[b TILE + r] = W[row + r] . x[b] for r < rows and b < N.
template <int N, class T> void plain_tile(const Linear &m, int64_t row, int rows, const Vectors &in, float *y) {
    constexpr int AT_ONCE = LANES / N, R = std::min(8 / N, 4);  // rows that share each load, as far as registers go
    const int64_t whole = m.cols / GROUP * GROUP;
    const auto at = [&](int r) { return (const T *)m.weight + (row + std::min(r, rows - 1)) * m.cols; };
    for (int r = 0; r < rows; r += AT_ONCE) {
        Vec total[AT_ONCE][N] = {};
        for (int i = 0; i < AT_ONCE && r + i < rows; i += R) {
            const T *w[R];  // a row past the last one is the last one again
            for (int j = 0; j < R; j++) w[j] = at(r + i + j);
            dot_together<R, N>(w, m.cols, in.x32, total + i);
        }
        put_sums<N, AT_ONCE>(total, y + r);
    }
    for (int r = 0; whole < m.cols && r < rows; r++)
        for (int b = 0; b < N; b++) y[b * TILE + r] += rest_of(at(r), in.x + b * m.cols, whole, m.cols);
}

template <int N> void plain_tile_of(const Linear &m, int64_t row, int rows, const Vectors &in, float *y) {
    switch (m.format) {
        case F32: plain_tile<N, float>(m, row, rows, in, y); break;
        case BF16: plain_tile<N, BFloat>(m, row, rows, in, y); break;
        case F16: plain_tile<N, Half>(m, row, rows, in, y); break;
    }
}

// The same for any n, as many vectors at once as there are: in tiles, or by 8, 4, 2 and 1. At most TILE rows, to `end`.
void tile(const Linear &m, int64_t row, int64_t end, Vectors in, int64_t n, float *y) {
    const int rows = int(std::min<int64_t>(end - row, TILE));
    float *first = y;
    const int64_t vectors = n;
    if (TILES && in.blocks && rows == TILE) {
        if (n > BLOCK) tile_product<2>(m, row, in.blocks, y);
        else tile_product<1>(m, row, in.blocks, y);
        n = 0;
    }
    const auto some = [&](auto count) {
        constexpr int N = decltype(count)::value;
        plain_tile_of<N>(m, row, rows, in, y);
        n -= N, in.x += N * m.cols, in.x32 += N * m.cols, y += N * TILE;
    };
    while (n >= TOGETHER) some(std::integral_constant<int, TOGETHER>());
    if (n >= 4) some(std::integral_constant<int, 4>());
    if (n >= 2) some(std::integral_constant<int, 2>());
    if (n == 1) some(std::integral_constant<int, 1>());
    for (int64_t b = 0; m.bias && b < vectors; b++)
        for (int r = 0; r < rows; r++) first[b * TILE + r] += m.bias[row + r];
}

}  // namespace
