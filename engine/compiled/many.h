// A packed matrix times many vectors (a prompt): y[b] = W x[b], in blocks whose sums fit into registers or tiles.
//
// Some columns of a few panels at a time are dequantized into the L2 cache: a vector of 16 rows per column, or per pair
// of columns in bfloat16. This part is multiplied by all vectors, whose columns are broadcast, before the next part.
// Both sides have the same number type T: float, or BFloat if the processor multiplies that.
#pragma once

#include "panels.h"
#include "products.h"

#include <omp.h>

namespace {

#if defined(__AVX512BF16__)
constexpr bool PAIRS_MULTIPLY = true;
#else
constexpr bool PAIRS_MULTIPLY = false;
#endif
#if defined(__AVX512F__)
constexpr int BLOCK_PANELS = 2, BLOCK_VECTORS = 8;
#else
constexpr int BLOCK_PANELS = 1, BLOCK_VECTORS = 6;  // limited by sixteen registers of 8 floats
#endif
// The part of a matrix that is multiplied by all vectors at a time: 128 KB in bfloat16.
constexpr int64_t ROWS_TOGETHER = 128, COLUMNS_TOGETHER = 512;
constexpr int64_t VECTORS_TOGETHER = 512;

inline int64_t up_to(int64_t n, int64_t of) { return (n + of - 1) / of * of; }

// ---- one block --------------------------------------------------------------------------------------------------------

// The two sides of a product of `cols` columns: dequantized panels in order, and vectors at a stride of `apart`
// numbers.
template <class T> struct Sides {
    const T *panels, *vectors;
    int64_t apart, cols;
    Sides at(int64_t panel, int64_t vector) const { return {panels + panel * cols * TILE, vectors + vector * apart, apart, cols}; }
};

// Sums of vector q and panel p: 16 of them at `at + q ROWS_TOGETHER + p TILE`. `more`: add to the stored sums.
struct Sums {
    float *at;
    bool more;
    Sums from(int64_t panel, int64_t vector) const { return {at + vector * ROWS_TOGETHER + panel * TILE, more}; }
};

inline Vec multiply_add(Vec total, const float *panel, const float *x) { return total + load(panel) * *x; }
inline Vec multiply_add(Vec total, const BFloat *panel, const BFloat *x) {
#if defined(__AVX512BF16__)
    const __m512i pairs = _mm512_loadu_si512(panel), pair = _mm512_set1_epi32(read<int32_t>(x));
    return (Vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)pairs, (__m512bh)pair);
#else
    return total;  // not used
#endif
}

// P panels times BLOCK_VECTORS vectors.
template <int P, class T> void block_in_registers(const Sides<T> in, const Sums out) {
    constexpr int STEP = sizeof(float) / sizeof(T);
    Vec total[BLOCK_VECTORS][P] = {};
    for (int64_t c = 0; c < in.cols; c += STEP)
        for (int q = 0; q < BLOCK_VECTORS; q++)
            for (int p = 0; p < P; p++)
                total[q][p] = multiply_add(total[q][p], in.panels + (p * in.cols + c) * TILE, in.vectors + q * in.apart + c);
    for (int q = 0; q < BLOCK_VECTORS; q++)
        for (int p = 0; p < P; p++) {
            float *sums = out.from(p, q).at;
            store(sums, out.more ? total[q][p] + load(sums) : total[q][p]);
        }
}

#if defined(__AMX_BF16__) && defined(__linux__)
// One or two panels times one or two times 16 vectors. Tile 2 q + p holds the sums.
template <int P, int Q> void block_in_tiles(const Sides<BFloat> in, const Sums out) {
    const int64_t apart = ROWS_TOGETHER * sizeof(float), bytes = in.apart * sizeof(BFloat);
    float *lower = out.from(0, BLOCK).at;
    asm volatile("" ::: "memory");  // gcc does not know that tiles read memory
    if (out.more) {
        _tile_loadd(0, out.at, apart);
        if (P == 2) _tile_loadd(1, out.at + TILE, apart);
        if (Q == 2) _tile_loadd(2, lower, apart);
        if (P == 2 && Q == 2) _tile_loadd(3, lower + TILE, apart);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t c = 0; c < in.cols; c += GROUP) {
        _tile_loadd(4, in.vectors + c, bytes);
        _tile_loadd(6, in.panels + c * TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (P == 2) {
            _tile_loadd(7, in.panels + (in.cols + c) * TILE, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (Q == 2) {
            _tile_loadd(5, in.vectors + BLOCK * in.apart + c, bytes);
            _tile_dpbf16ps(2, 5, 6);
            if (P == 2) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, out.at, apart);
    if (P == 2) _tile_stored(1, out.at + TILE, apart);
    if (Q == 2) _tile_stored(2, lower, apart);
    if (P == 2 && Q == 2) _tile_stored(3, lower + TILE, apart);
    asm volatile("" ::: "memory");
}
#else
template <int P, int Q> void block_in_tiles(const Sides<BFloat>, const Sums) {}
#endif

// P panels times one block of vectors; in tiles, one or two blocks of BLOCK vectors.
template <int P, class T> void block(const Sides<T> in, int64_t n, bool tiles, const Sums out) {
    if constexpr (std::is_same<T, BFloat>::value)
        if (tiles) return n > BLOCK ? block_in_tiles<P, 2>(in, out) : block_in_tiles<P, 1>(in, out);
    block_in_registers<P>(in, out);
}

// All panels times all vectors; a few vectors at a time stay in the L1 cache.
template <class T> void blocks(const Sides<T> in, int64_t n_panels, int64_t n, bool tiles, const Sums out) {
    const int64_t at_once = tiles ? 2 * BLOCK : BLOCK_VECTORS;
    for (int64_t b = 0; b < n; b += at_once) {
        const int64_t count = std::min(at_once, n - b);
        int64_t p = 0;
        if constexpr (BLOCK_PANELS == 2)
            for (; p + 2 <= n_panels; p += 2) block<2>(in.at(p, b), count, tiles, out.from(p, b));
        for (; p < n_panels; p++) block<1>(in.at(p, b), count, tiles, out.from(p, b));
    }
}

// ---- weights as numbers ------------------------------------------------------------------------------------------------

inline void put_columns(float *panel, Vec even, Vec odd) { store(panel, even), store(panel + TILE, odd); }

// Two columns rounded to bfloat16 and interleaved in pairs.
inline void put_columns(BFloat *panel, Vec even, Vec odd) {
    const IVec low = (IVec)even + 0x8000, high = (IVec)odd + 0x8000;
#if defined(__AVX512BW__)
    const __m512i upper = _mm512_broadcast_i32x4(_mm_setr_epi8(2, 3, 0, 0, 6, 7, 0, 0, 10, 11, 0, 0, 14, 15, 0, 0));
    _mm512_storeu_si512(panel, _mm512_mask_shuffle_epi8((__m512i)high, 0x3333333333333333, (__m512i)low, upper));
#else
    store((float *)panel, (Vec)(((IVec)((UVec)low >> 16)) | (high & int32_t(0xffff0000))));
#endif
}

// Makes a float of a byte without a conversion: its bits go into the mantissa of a float, which is then MORE too large.
template <class T, class F> struct Wide {
    static constexpr int BITS = F::LOOKS_UP ? 8 : F::LOW + F::HIGH;
    static constexpr bool EXACT = std::is_same<T, float>::value;  // the offset would cost 8 bits of a float
    static constexpr int AT = BITS < 8 ? 16 : 15, BASE = BITS < 8 ? 0x43000000 : 0x43800000;
    static constexpr float MORE = EXACT ? 0 : BITS < 8 ? 128 : 256;

    static Vec column(IVec quad, int k) {
        if (EXACT) return ::column(quad, k);
        const int up = AT - 8 * k;
        const IVec moved = up >= 0 ? quad << up : (IVec)((UVec)quad >> -up);
        return (Vec)((moved & (255 << AT)) | BASE);
    }
};

// Dequantizes `cols` columns of a panel, from column `first` on.
template <class F, class T> void widen_panel(const Linear &m, int64_t row, int64_t first, int64_t cols, T *out) {
    using W = Wide<T, F>;
    const uint8_t *block = panel_of<F>(m, row) + first / GROUP * F::BYTES;
    const Half *numbers = numbers_of<F>(m, row) + first / F::COLUMNS * F::NUMBERS;
    for (int64_t c = 0; c < cols; c += GROUP, block += F::BYTES)
        for (int part = 0; part < F::PARTS; part++, numbers += F::NUMBERS) {
            const Vec scale = load(numbers), lowest = F::MINIMA ? load(numbers + TILE) - scale * W::MORE : scale * -(F::ZERO + W::MORE);
#pragma GCC unroll 8
            for (int j = part * F::QUADS; j < (part + 1) * F::QUADS; j++, out += 4 * TILE) {
                const IVec four = quad<F>(block, j);
#pragma GCC unroll 2
                for (int k = 0; k < 4; k += 2)
                    put_columns(out + k * TILE, W::column(four, k) * scale + lowest, W::column(four, k + 1) * scale + lowest);
            }
        }
}

// ---- a whole matrix ---------------------------------------------------------------------------------------------------

// One product, computed by several threads.
template <class T> class Many {
  public:
    Many(const Linear &m, const T *x, int64_t n, T *y, int64_t stride, bool tiles, void *scratch)
        : m(m), x(x), y(y), n(n), stride(stride), tiles(tiles), filled(up_to(n, tiles ? BLOCK : BLOCK_VECTORS)), laid((T *)scratch) {}

    // Bytes of `scratch`: the padded copy of x, then the weights and sums of each thread.
    int64_t shared_bytes() const { return up_to(filled * apart() * sizeof(T), 64); }
    int64_t own_bytes() const { return ROWS_TOGETHER * (COLUMNS_TOGETHER * sizeof(T) + filled * sizeof(float)); }

    void run(int64_t thread, int64_t threads) const {
        T *weights = (T *)((char *)laid + shared_bytes() + thread * own_bytes());
        float *sums = (float *)(weights + ROWS_TOGETHER * COLUMNS_TOGETHER);
        for (int64_t b = filled * thread / threads; b < filled * (thread + 1) / threads; b++) lay_out(b);
#pragma omp barrier
        const int64_t n_panels = up_to(m.rows, TILE) / TILE;
        const int64_t first = n_panels * thread / threads * TILE, last = n_panels * (thread + 1) / threads * TILE;
        if (TILES && tiles) begin_tiles();
        with_form(m.format, [&](auto form) {
            for (int64_t row = first; row < last; row += ROWS_TOGETHER)
                some_rows<decltype(form)>(row, std::min(last - row, ROWS_TOGETHER), weights, sums);
        });
        if (TILES && tiles) end_tiles();
    }

  private:
    const Linear &m;
    const T *x;
    T *y;
    const int64_t n, stride;
    const bool tiles;
    const int64_t filled;  // number of vectors, rounded up to whole blocks
    T *laid;

    int64_t apart() const { return m.cols + GROUP; }  // equal page offsets would conflict in the cache

    void lay_out(int64_t b) const {
        if (b < n) std::memcpy(laid + b * apart(), x + b * m.cols, m.cols * sizeof(T));
        else std::memset(laid + b * apart(), 0, m.cols * sizeof(T));
    }

    template <class F> void some_rows(int64_t row, int64_t count, T *weights, float *sums) const {
        const int64_t panels = count / TILE;
        for (int64_t c = 0; c < m.cols; c += COLUMNS_TOGETHER) {
            const int64_t cols = std::min(COLUMNS_TOGETHER, m.cols - c);
            for (int64_t p = 0; p < panels; p++) widen_panel<F>(m, row + p * TILE, c, cols, weights + p * cols * TILE);
            blocks<T>({weights, laid + c, apart(), cols}, panels, filled, tiles, {sums, c > 0});
        }
        for (int64_t b = 0; b < n; b++)
            for (int64_t r = 0; r < count; r += TILE) put(b, row + r, load(sums + b * ROWS_TOGETHER + r));
    }

    // Stores up to sixteen rows of y[b]: fewer at the end of the matrix.
    void put(int64_t b, int64_t row, Vec sums) const {
        T *to = y + b * stride + row;
        const int64_t count = m.rows - row;
        if (count >= TILE) {
            store(to, m.bias ? sums + load(m.bias + row) : sums);
            return;
        }
        for (int64_t r = 0; r < count; r++) narrow(sums[r] + (m.bias ? m.bias[row + r] : 0), to[r]);
    }
};

template <class T> bool multiplied_in_tiles() {
    static const bool granted = tiles_granted();
    return granted && std::is_same<T, BFloat>::value;
}

template <class T> int64_t many_bytes(const Linear &m, int64_t n, int32_t threads) {
    const Many<T> job(m, nullptr, std::min(n, VECTORS_TOGETHER), nullptr, 0, multiplied_in_tiles<T>(), nullptr);
    return job.shared_bytes() + threads * job.own_bytes();
}

template <class T> void many(const Linear &m, const void *x, int64_t n, void *y, int64_t stride, void *scratch, int32_t threads) {
    for (int64_t b = 0; b < n; b += VECTORS_TOGETHER) {
        const int64_t some = std::min(n - b, VECTORS_TOGETHER);
        const Many<T> job(m, (const T *)x + b * m.cols, some, (T *)y + b * stride, stride, multiplied_in_tiles<T>(), scratch);
#pragma omp parallel num_threads(threads)
        job.run(omp_get_thread_num(), omp_get_num_threads());
    }
}

}  // namespace
