// Some rows of a matrix times some vectors, whatever the format of the matrix.
#pragma once

#include "bfloat16.h"

namespace {

// What a matrix is multiplied with: n vectors, `cols` apart.
struct Vectors {
    const float *x;
    const float *sums;    // INT4: of each group of 32
    const BFloat *blocks;  // x rounded and laid out for tiles, where these multiply; else null
};

// Row after row: one stream of addresses a thread, which the hardware follows. All rows of a tile at once, which loads
// the vector less often, was a quarter slower. Sums are kept apart so that additions need not wait for each other.

template <class T> Vec dot(const T *w, int64_t cols, const float *x) {
    constexpr int SUMS = 4;
    Vec total[SUMS] = {};
    int64_t c = 0;
    for (; c + SUMS * LANES <= cols; c += SUMS * LANES)
        for (int j = 0; j < SUMS; j++) {
            const T *at = w + c + j * LANES;
            __builtin_prefetch(at + AHEAD / sizeof(T));
            total[j] += load(at) * load(x + c + j * LANES);
        }
    for (; c + LANES <= cols; c += LANES) total[0] += load(w + c) * load(x + c);
    float rest = 0;
    for (; c < cols; c++) rest += widen(w[c]) * x[c];
    total[0] += Vec{rest};
    return (total[0] + total[1]) + (total[2] + total[3]);
}

// R rows times N vectors: weights are read and widened once for all of them. Sums are added to `out` at the end alone,
// so that they stay in registers.
template <int R, int N, class T> void dot_together(const T *const *w, int64_t cols, const float *x, Vec (*out)[N]) {
    Vec total[R][N] = {};
    int64_t c = 0;
    for (; c + LANES <= cols; c += LANES) {
        Vec v[R];
        for (int r = 0; r < R; r++) {
            __builtin_prefetch(w[r] + c + AHEAD / sizeof(T));
            v[r] = load(w[r] + c);
        }
        for (int b = 0; b < N; b++) {
            const Vec xb = load(x + b * cols + c);
            for (int r = 0; r < R; r++) total[r][b] += v[r] * xb;
        }
    }
    for (int b = 0; b < N; b++)
        for (int r = 0; r < R; r++) {
            float rest = 0;
            for (int64_t i = c; i < cols; i++) rest += widen(w[r][i]) * x[b * cols + i];
            total[r][b] += Vec{rest};  // made in a register
            out[r][b] += total[r][b];
        }
}

// One or two rows of a matrix of plain numbers.
template <int R, int N, class T> void product(const T *const *w, int64_t cols, const float *x, Vec (*out)[N]) {
    if constexpr (N == 1) out[0][0] = dot(w[0], cols, x);
    else dot_together<R, N>(w, cols, x, out);
}

inline Vec group_dot(const int8_t *w, Vec low, Vec high) {
    return __builtin_convertvector(whole(w), Vec) * low + __builtin_convertvector(whole(w + LANES), Vec) * high;
}
inline Vec group_dot(const uint8_t *w, Vec low, Vec high) {
    const IVec pairs = whole(w);  // low + 16 high: taken times x_low, 16 high x_low is too much
    return __builtin_convertvector(pairs, Vec) * low + __builtin_convertvector(pairs >> 4, Vec) * (high - 16 * low);
}

// Groups of 32 columns of one scale each. Scales are widened 16 groups at a time; reading up to 15 too many is why
// Python allocates a little more than it uses.
template <class T> Vec grouped_dot(const T *w, const Half *scales, int64_t groups, const float *x) {
    Vec even = {}, odd = {};
    float scale[LANES];
    for (int64_t first = 0; first < groups; first += LANES, w += LANES * group_bytes<T>, x += LANES * GROUP) {
        store(scale, load(scales + first));
        const int64_t count = groups - first < LANES ? groups - first : LANES;
        const auto product = [&](int64_t g) {
            const T *group = w + g * group_bytes<T>;
            __builtin_prefetch(group + AHEAD);
            return group_dot(group, load(x + g * GROUP), load(x + g * GROUP + LANES)) * scale[g];
        };
        int64_t g = 0;
        for (; g + 2 <= count; g += 2) {
            even += product(g);
            odd += product(g + 1);
        }
        if (g < count) even += product(g);
    }
    return even + odd;
}


// One row times N vectors.
template <int N, class T> void grouped_together(const T *w, const Half *scales, int64_t groups, const float *x, Vec *out) {
    Vec total[N] = {};
    for (int64_t g = 0; g < groups; g++) {
        Vec low, high;
        __builtin_prefetch(w + g * group_bytes<T> + AHEAD);
        unpack(w + g * group_bytes<T>, low, high);
        const float scale = widen(scales[g]);
        low *= scale;
        high *= scale;
        for (int b = 0; b < N; b++) {
            const float *xb = x + (b * groups + g) * GROUP;
            total[b] += low * load(xb);
            total[b] += high * load(xb + LANES);
        }
    }
    for (int b = 0; b < N; b++) out[b] = total[b];
}


// y[b TILE + r] = W[row + r] . x[b] for r < rows and b < N.
template <int N, class T> void plain_tile(const Linear &m, int64_t row, int rows, const Vectors &in, float *y) {
    // A vector alone is memory's matter, eight are the multipliers': two rows share each load.
    constexpr int R = N == TOGETHER ? 2 : 1, AT_ONCE = LANES / N;
    for (int r = 0; r < rows; r += AT_ONCE) {
        Vec total[AT_ONCE][N] = {};
        for (int i = 0; i < AT_ONCE && r + i < rows; i += R) {
            const T *w[R];  // a row past the last one is the last one again
            for (int j = 0; j < R; j++) w[j] = (const T *)m.weight + (row + std::min(r + i + j, rows - 1)) * m.cols;
            product<R, N>(w, m.cols, in.x, total + i);
        }
        put_sums<N, AT_ONCE>(total, y + r);
    }
}

// T int8_t: INT8. T uint8_t: INT4, whose rows have minima too, taken times the sums of groups.
template <int N, class T> void grouped_tile(const Linear &m, int64_t row, int rows, const Vectors &in, float *y) {
    constexpr bool minima = std::is_unsigned<T>::value;
    constexpr int AT_ONCE = LANES / N;
    const int64_t groups = m.cols / GROUP;
    for (int r = 0; r < rows; r += AT_ONCE) {
        Vec total[AT_ONCE][N] = {};
        for (int i = 0; i < AT_ONCE && r + i < rows; i++) {
            const T *w = (const T *)m.weight + (row + r + i) * groups * group_bytes<T>;
            const Half *scales = (const Half *)m.scales + (row + r + i) * groups * (minima ? 2 : 1), *lowest = scales + groups;
            if constexpr (N == 1) total[i][0] = grouped_dot(w, scales, groups, in.x);
            else grouped_together<N>(w, scales, groups, in.x, total[i]);
            if constexpr (minima) dot_together<1, N>(&lowest, groups, in.sums, total + i);
        }
        put_sums<N, AT_ONCE>(total, y + r);
    }
}

template <int N> void tile_of(const Linear &m, int64_t row, int rows, const Vectors &in, float *y) {
    switch (m.format) {
        case F32: plain_tile<N, float>(m, row, rows, in, y); break;
        case BF16: plain_tile<N, BFloat>(m, row, rows, in, y); break;
        case F16: plain_tile<N, Half>(m, row, rows, in, y); break;
        case INT8: grouped_tile<N, int8_t>(m, row, rows, in, y); break;
        case INT4: grouped_tile<N, uint8_t>(m, row, rows, in, y); break;
    }
    if (m.bias)
        for (int b = 0; b < N; b++)
            for (int r = 0; r < rows; r++) y[b * TILE + r] += m.bias[row + r];
}

// The same for any n, as many vectors at once as there are: in tiles, or by 8, 4, 2 and 1. At most TILE rows, to `end`.
void tile(const Linear &m, int64_t row, int64_t end, Vectors in, int64_t n, float *y) {
    const int rows = int(std::min<int64_t>(end - row, TILE));
    if (TILES && in.blocks && rows == TILE) {
        if (n > BLOCK) tile_product<2>(m, row, in.blocks, y);
        else tile_product<1>(m, row, in.blocks, y);
        for (int64_t i = 0; m.bias && i < n * TILE; i++) y[i] += m.bias[row + i % TILE];
        return;
    }
    const auto some = [&](auto count) {
        constexpr int N = decltype(count)::value;
        tile_of<N>(m, row, rows, in, y);
        n -= N, in.x += N * m.cols, in.sums += N * m.cols / GROUP, y += N * TILE;
    };
    while (n >= TOGETHER) some(std::integral_constant<int, TOGETHER>());
    if (n >= 4) some(std::integral_constant<int, 4>());
    if (n >= 2) some(std::integral_constant<int, 2>());
    if (n == 1) some(std::integral_constant<int, 1>());
}

// Row `index` of a packed matrix as `out` (cols).
template <class T, class Out> void unpack_row(const Linear &m, int64_t index, Out *out) {
    for (int64_t g = 0; g < m.cols / GROUP; g++) unpack_group<T>(m, index, g, out + g * GROUP);
}

// Row `index` of a table as floats.
void copy_row(const Linear &m, int64_t index, float *out) {
    const int64_t at = index * m.cols;
    switch (m.format) {
        case F32: std::memcpy(out, (const float *)m.weight + at, m.cols * sizeof(float)); break;
        case BF16: for (int64_t c = 0; c < m.cols; c++) out[c] = widen(((const BFloat *)m.weight)[at + c]); break;
        case F16: for (int64_t c = 0; c < m.cols; c++) out[c] = widen(((const Half *)m.weight)[at + c]); break;
        case INT8: unpack_row<int8_t>(m, index, out); break;
        case INT4: unpack_row<uint8_t>(m, index, out); break;
    }
}

template <class Out> void unpack_rows(const Linear &m, int64_t first, int64_t last, Out *out, int32_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t i = first; i < last; i++) {
        if (m.format == INT8) unpack_row<int8_t>(m, i, out + (i - first) * m.cols);
        else unpack_row<uint8_t>(m, i, out + (i - first) * m.cols);
    }
}

}  // namespace
