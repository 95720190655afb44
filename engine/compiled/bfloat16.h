// Many vectors rounded to bfloat16, for processors that multiply these faster: in tiles (AMX), or in pairs (AVX512_BF16).
#pragma once

#include "numbers.h"

#include <algorithm>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// Where the processor has tiles (16 rows of 64 bytes, AMX), 16 rows of a matrix meet 16 vectors in one instruction for
// each 32 columns. The rows lie as they are stored; the vectors in blocks of 16, pair of columns by pair of columns.
#if defined(__AMX_BF16__) && defined(__linux__)
constexpr bool TILES = true;
constexpr int BLOCK = 16, AT_MOST = 2 * BLOCK;  // vectors

struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

inline void begin_tiles() {
    const TileShapes shapes;
    _tile_loadconfig(&shapes);
}
inline void end_tiles() { _tile_release(); }

// The system gives a process its tiles when asked: ARCH_REQ_XCOMP_PERM, for XTILEDATA.
inline bool tiles_granted() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

inline void lay_in_blocks(const float *x, int64_t cols, int64_t n, BFloat *out) {
    std::memset(out, 0, (n + BLOCK - 1) / BLOCK * BLOCK * cols * sizeof(BFloat));
    for (int64_t b = 0; b < n; b++)
        for (int64_t c = 0; c < cols; c += LANES) {
            BFloat rounded[LANES];
            store(rounded, load(x + b * cols + c));
            BFloat *to = out + b / BLOCK * BLOCK * cols + c * BLOCK + b % BLOCK * 2;
            for (int i = 0; i < LANES; i += 2) std::memcpy(to + i * BLOCK, rounded + i, 2 * sizeof(BFloat));
        }
}

// 16 rows of 32 columns: where they lie, or unpacked into `block`; gcc does not know that tiles read memory.
inline const BFloat *rows_of(const Linear &m, int64_t row, int64_t c, BFloat *block) {
    if (m.format == BF16) return (const BFloat *)m.weight + row * m.cols + c;
    for (int r = 0; r < TILE; r++) {
        if (m.format == INT8) unpack_group<int8_t>(m, row + r, c / GROUP, block + r * GROUP);
        else unpack_group<uint8_t>(m, row + r, c / GROUP, block + r * GROUP);
    }
    asm volatile("" ::: "memory");
    return block;
}

// y[b TILE + r] of 16 rows for one or two blocks of vectors; every other group of columns has sums of its own.
template <int BLOCKS> void tile_product(const Linear &m, int64_t row, const BFloat *blocks, float *y) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    alignas(64) BFloat unpacked[TILE * GROUP];
    const int64_t stride = m.format == BF16 ? m.cols * sizeof(BFloat) : GROUP * sizeof(BFloat);
    asm volatile("" ::: "memory");
    for (int64_t c = 0; c < m.cols; c += GROUP) {
        const BFloat *first = blocks + c * BLOCK, *second = first + BLOCK * m.cols;
        const BFloat *rows = rows_of(m, row, c, unpacked);
        _tile_loadd(6, first, 64);
        if (BLOCKS == 2) _tile_loadd(7, second, 64);
        if (c / GROUP % 2 == 0) {
            _tile_loadd(4, rows, stride);
            _tile_dpbf16ps(0, 4, 6);
            if (BLOCKS == 2) _tile_dpbf16ps(2, 4, 7);
        } else {
            _tile_loadd(5, rows, stride);
            _tile_dpbf16ps(1, 5, 6);
            if (BLOCKS == 2) _tile_dpbf16ps(3, 5, 7);
        }
    }
    float sums[4][TILE * BLOCK];
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
    asm volatile("" ::: "memory");
    for (int k = 0; k < BLOCKS; k++)
        for (int b = 0; b < BLOCK; b++)
            for (int r = 0; r < TILE; r++)
                y[(k * BLOCK + b) * TILE + r] = sums[2 * k][r * BLOCK + b] + sums[2 * k + 1][r * BLOCK + b];
}
#else
constexpr bool TILES = false;
constexpr int BLOCK = 16, AT_MOST = TOGETHER;
inline void begin_tiles() {}
inline void end_tiles() {}
inline bool tiles_granted() { return false; }
inline void lay_in_blocks(const float *, int64_t, int64_t, BFloat *) {}
template <int BLOCKS> void tile_product(const Linear &, int64_t, const BFloat *, float *) {}
#endif

// Where the processor multiplies pairs of bfloat16 and adds them up in float32, eight vectors are rounded for it, as
// the layers round them: half the loads, and no weight is widened.
#if defined(__AVX512BF16__)
constexpr bool PAIRS = true;

inline void round_halves(const float *x, int64_t n, BFloat *out) {
    for (int64_t i = 0; i < n; i += LANES) {
        const __m256bh halves = _mm512_cvtneps_pbh((__m512)load(x + i));
        std::memcpy(out + i, &halves, sizeof halves);
    }
}

template <int R, int N> void pairs_together(const BFloat *const *w, int64_t cols, const BFloat *x, Vec (*out)[N]) {
    Vec total[R][N] = {};
    int64_t c = 0;
    for (; c + 2 * LANES <= cols; c += 2 * LANES) {
        __m512bh v[R];
        for (int r = 0; r < R; r++) {
            __builtin_prefetch(w[r] + c + AHEAD / 2);
            v[r] = read<__m512bh>(w[r] + c);
        }
        for (int b = 0; b < N; b++) {
            const __m512bh xb = read<__m512bh>(x + b * cols + c);
            for (int r = 0; r < R; r++) total[r][b] = (Vec)_mm512_dpbf16_ps((__m512)total[r][b], v[r], xb);
        }
    }
    for (int b = 0; b < N; b++)
        for (int r = 0; r < R; r++) {
            float rest = 0;
            for (int64_t i = c; i < cols; i++) rest += widen(w[r][i]) * widen(x[b * cols + i]);
            total[r][b] += Vec{rest};  // made in a register
            out[r][b] = total[r][b];
        }
}

template <int N, class T> void grouped_pairs(const T *w, const Half *scales, int64_t groups, const BFloat *x, Vec *out) {
    Vec total[N] = {};
    for (int64_t g = 0; g < groups; g++) {
        Vec low, high;
        __builtin_prefetch(w + g * group_bytes<T> + AHEAD);
        unpack(w + g * group_bytes<T>, low, high);
        const float scale = widen(scales[g]);
        const __m512bh v = _mm512_cvtne2ps_pbh((__m512)(high * scale), (__m512)(low * scale));
        for (int b = 0; b < N; b++)
            total[b] = (Vec)_mm512_dpbf16_ps((__m512)total[b], v, read<__m512bh>(x + (b * groups + g) * GROUP));
    }
    for (int b = 0; b < N; b++) out[b] = total[b];
}
#else
constexpr bool PAIRS = false;
inline void round_halves(const float *, int64_t, BFloat *) {}
template <int R, int N> void pairs_together(const BFloat *const *, int64_t, const BFloat *, Vec (*)[N]) {}
template <int N, class T> void grouped_pairs(const T *, const Half *, int64_t, const BFloat *, Vec *) {}
#endif

}  // namespace
