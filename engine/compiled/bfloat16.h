// Products of a bfloat16 matrix and many vectors rounded to bfloat16, on processors with matrix tiles (AMX).
#pragma once

#include "numbers.h"

#include <algorithm>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// With AMX tiles (16 rows of 64 bytes), one instruction multiplies 16 rows of a matrix by 16 vectors over 32 columns.
// The rows stay in their stored order; the vectors are laid out in blocks of 16, interleaved by pairs of columns.
#if defined(__AMX_BF16__) && defined(__linux__)
constexpr bool TILES = true;
constexpr int BLOCK = 16;  // vectors

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

// A process must ask the system for permission to use tiles: ARCH_REQ_XCOMP_PERM, for XTILEDATA.
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

// y[b TILE + r] of 16 rows for one or two blocks of vectors; even and odd groups of columns have separate sums.
template <int BLOCKS> void tile_product(const Linear &m, int64_t row, const BFloat *blocks, float *y) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    const BFloat *rows = (const BFloat *)m.weight + row * m.cols;
    const int64_t stride = m.cols * sizeof(BFloat);
    asm volatile("" ::: "memory");  // gcc does not know that tiles read memory
    for (int64_t c = 0; c < m.cols; c += GROUP) {
        const BFloat *first = blocks + c * BLOCK, *second = first + BLOCK * m.cols;
        _tile_loadd(6, first, 64);
        if (BLOCKS == 2) _tile_loadd(7, second, 64);
        if (c / GROUP % 2 == 0) {
            _tile_loadd(4, rows + c, stride);
            _tile_dpbf16ps(0, 4, 6);
            if (BLOCKS == 2) _tile_dpbf16ps(2, 4, 7);
        } else {
            _tile_loadd(5, rows + c, stride);
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
    for (int k = 0; k < BLOCKS; k++) {
        Vec v[16];
        for (int r = 0; r < TILE; r++) v[r] = load(sums[2 * k] + r * BLOCK) + load(sums[2 * k + 1] + r * BLOCK);
        transpose(v);
        for (int b = 0; b < BLOCK; b++) store(y + (k * BLOCK + b) * TILE, v[b]);
    }
}
#else
constexpr bool TILES = false;
constexpr int BLOCK = 16;
inline void begin_tiles() {}
inline void end_tiles() {}
inline bool tiles_granted() { return false; }
inline void lay_in_blocks(const float *, int64_t, int64_t, BFloat *) {}
template <int BLOCKS> void tile_product(const Linear &, int64_t, const BFloat *, float *) {}
#endif

}  // namespace
