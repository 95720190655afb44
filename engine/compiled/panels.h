// Packed weights: integers times a step (scale), in panels of 16 rows, so that the lanes of a vector are rows and no
// horizontal sums are needed.
//
// A panel is a sequence of blocks, one per 32 columns. Column 4j + k of row r is byte 4r + k of the block's quad j,
// whose 64 bytes are one vector. The low 8, 4 or 2 bits of the integers take 8, 4 or 2 vectors per block: quad j is in
// vector j mod that number, above the bits of earlier quads. The next 1 or 2 bits take 1 or 2 more vectors, laid out in
// the same way. engine/weights/panels.py packs the panels and defines how integers map to weights.
//
// Scales and minima are float16: for each group of 32 or 16 columns, the values of 16 rows are adjacent.
#pragma once

#include "numbers.h"

#include <algorithm>

namespace {

constexpr uint8_t NO_TABLE[1] = {};
constexpr uint8_t IQ4_TABLE[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
constexpr uint8_t FP4_TABLE[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

// w = d (q - ZERO), or d q + m with MINIMA; q: the bits, or the entry of TABLE at that index.
template <int LOW_, int HIGH_, int COLUMNS_, bool MINIMA_, int ZERO_, const uint8_t *TABLE_ = NO_TABLE> struct Form {
    static constexpr int LOW = LOW_, HIGH = HIGH_, COLUMNS = COLUMNS_, ZERO = ZERO_;
    static constexpr bool MINIMA = MINIMA_;
    static constexpr const uint8_t *TABLE = TABLE_;
    static constexpr bool LOOKS_UP = TABLE != NO_TABLE;
    static constexpr int PARTS = GROUP / COLUMNS, QUADS = COLUMNS / 4;  // groups per block, quads per group
    static constexpr int64_t BYTES = 64 * (LOW + HIGH), NUMBERS = TILE * (MINIMA ? 2 : 1);  // per block, per group
};

// Calls work(form) with the form of a packed format.
template <class Work> void with_form(int32_t format, Work work) {
    switch (format) {
        case INT8: work(Form<8, 0, 32, false, 128>()); break;
        case INT4: work(Form<4, 0, 32, true, 0>()); break;
        case INT4_ZERO: work(Form<4, 0, 32, false, 8>()); break;
        case INT2: work(Form<2, 0, 16, true, 0>()); break;
        case INT3: work(Form<2, 1, 16, false, 4>()); break;
        case INT5: work(Form<4, 1, 32, true, 0>()); break;
        case INT6: work(Form<4, 2, 16, false, 32>()); break;
        case IQ4: work(Form<4, 0, 32, false, 128, IQ4_TABLE>()); break;
        case FP4: work(Form<4, 0, 32, false, 12, FP4_TABLE>()); break;
    }
}

inline bool is_packed(const Linear &m) { return m.format >= INT8; }

template <class F> const uint8_t *panel_of(const Linear &m, int64_t row) {
    return (const uint8_t *)m.weight + row / TILE * (m.cols / GROUP) * F::BYTES;
}
template <class F> const Half *numbers_of(const Linear &m, int64_t row) {
    return (const Half *)m.scales + row / TILE * (m.cols / F::COLUMNS) * F::NUMBERS;
}

inline IVec looked_up(IVec bits, const uint8_t *table) {
#if defined(__AVX512BW__)
    const __m512i places = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table));
    return (IVec)_mm512_shuffle_epi8(places, (__m512i)bits);
#else
    uint8_t bytes[64];
    std::memcpy(bytes, &bits, 64);
    for (auto &byte : bytes) byte = table[byte];
    return read<IVec>(bytes);
#endif
}

// The BITS bits of quad j, stored in BITS vectors; returned in each byte from bit UP on.
template <int BITS, int UP> inline IVec bits_of(const uint8_t *vectors, int j) {
    const IVec all = read<IVec>(vectors + j % BITS * 64);
    if constexpr (BITS == 8) return all;
    const int down = j / BITS * BITS - UP;
    const IVec moved = down >= 0 ? all >> down : all << -down;
    return moved & (((1 << BITS) - 1) * 0x01010101 << UP);
}

// Four columns of 16 rows, as bytes.
template <class F> inline IVec quad(const uint8_t *block, int j) {
    IVec bits = bits_of<F::LOW, 0>(block, j);
    if constexpr (F::HIGH > 0) bits |= bits_of<F::HIGH, F::LOW>(block + F::LOW * 64, j);
    if constexpr (F::LOOKS_UP) bits = looked_up(bits, F::TABLE);
    return bits;
}
inline Vec column(IVec quad, int k) { return __builtin_convertvector((IVec)((UVec)quad >> (8 * k)) & 255, Vec); }

// The vectors that panels are multiplied by: n vectors at a stride of `cols`. If the processor has byte products, each
// group of 32 numbers is s (q1 + q2 / 254). These two one-byte terms are exact to 1 part in 50,000; the single term
// that is common elsewhere is exact to 1 part in 200.
struct PanelVectors {
    const float *x;
    const float *sums;               // of x, per group
    const int8_t *first, *second;    // q1, q2
    const int32_t *starts;           // -ZERO times the sum of a group's q1, then of its q2
    const float *steps;              // s, per 32 columns
    int64_t cols, groups;            // per vector

    PanelVectors from(int64_t vector) const {
        const int64_t at = vector * cols;
        return {x + at, sums + vector * groups, first + at, second + at, starts + 2 * vector * groups, steps + at / GROUP, cols, groups};
    }
};

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
constexpr bool BYTES_MULTIPLY = true;
constexpr int PANEL_TOGETHER = 8;

// Rounds one vector to bytes; the outputs are the arrays of `PanelVectors`.
template <class F> void round_to_bytes(const float *x, int64_t cols, int8_t *first, int8_t *second, int32_t *starts, float *steps) {
    for (int64_t g = 0; g < cols / GROUP; g++, x += GROUP, first += GROUP, second += GROUP) {
        const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + LANES);
        const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
        const __m512 inverse = _mm512_set1_ps(most > 1e-30f ? 127 / most : 0);
        steps[g] = most / 127;
        int32_t of_first[2], of_second[2];
        for (int half = 0; half < 2; half++) {
            const __m512 scaled = _mm512_mul_ps(half ? b : a, inverse);
            const __m512i whole = _mm512_cvtps_epi32(scaled);
            const __m512 rest = _mm512_mul_ps(_mm512_sub_ps(scaled, _mm512_cvtepi32_ps(whole)), _mm512_set1_ps(254));
            const __m512i finer = _mm512_cvtps_epi32(rest);
            _mm_storeu_si128((__m128i *)(first + half * LANES), _mm512_cvtepi32_epi8(whole));
            _mm_storeu_si128((__m128i *)(second + half * LANES), _mm512_cvtepi32_epi8(finer));
            of_first[half] = -F::ZERO * _mm512_reduce_add_epi32(whole);
            of_second[half] = -F::ZERO * _mm512_reduce_add_epi32(finer);
        }
        if constexpr (F::PARTS == 2) {
            starts[4 * g] = of_first[0], starts[4 * g + 1] = of_second[0];
            starts[4 * g + 2] = of_first[1], starts[4 * g + 3] = of_second[1];
        } else {
            starts[2 * g] = of_first[0] + of_first[1], starts[2 * g + 1] = of_second[0] + of_second[1];
        }
    }
}

inline __m512i four(const int8_t *p) { return _mm512_set1_epi32(read<int32_t>(p)); }

// y[b TILE + r]: the rows of a panel times N vectors.
template <class F, int N> void panel_product(const uint8_t *block, const Half *numbers, const PanelVectors &in, float *y) {
    const int64_t cols = in.cols, groups = cols / F::COLUMNS;
    Vec total[N] = {};
    for (int64_t c = 0, g = 0; c < cols; c += GROUP, block += F::BYTES)
        for (int part = 0; part < F::PARTS; part++, g++, numbers += F::NUMBERS) {
            __m512i one[N], two[N];
            for (int b = 0; b < N; b++) {
                one[b] = _mm512_set1_epi32(in.starts[2 * (b * groups + g)]);
                two[b] = _mm512_set1_epi32(in.starts[2 * (b * groups + g) + 1]);
            }
#pragma GCC unroll 8
            for (int j = part * F::QUADS; j < (part + 1) * F::QUADS; j++) {
                const __m512i w = (__m512i)quad<F>(block, j);
                for (int b = 0; b < N; b++) {
                    one[b] = _mm512_dpbusd_epi32(one[b], w, four(in.first + b * cols + c + 4 * j));
                    two[b] = _mm512_dpbusd_epi32(two[b], w, four(in.second + b * cols + c + 4 * j));
                }
            }
            const Vec scale = load(numbers);
            for (int b = 0; b < N; b++) {
                const Vec whole = __builtin_convertvector((IVec)one[b], Vec), finer = __builtin_convertvector((IVec)two[b], Vec);
                total[b] += (whole + finer * (1 / 254.0f)) * (scale * in.steps[(b * cols + c) / GROUP]);
                if constexpr (F::MINIMA) total[b] += load(numbers + TILE) * in.sums[b * groups + g];
            }
        }
    for (int b = 0; b < N; b++) store(y + b * TILE, total[b]);
}
#else
constexpr bool BYTES_MULTIPLY = false;
#if defined(__AVX512F__)
constexpr int PANEL_TOGETHER = 8;
#else
constexpr int PANEL_TOGETHER = 2;  // limited by the registers
#endif

template <class F> void round_to_bytes(const float *, int64_t, int8_t *, int8_t *, int32_t *, float *) {}

template <class F, int N> void panel_product(const uint8_t *block, const Half *numbers, const PanelVectors &in, float *y) {
    const int64_t cols = in.cols, groups = cols / F::COLUMNS;
    Vec total[N] = {};
    for (int64_t c = 0, g = 0; c < cols; c += GROUP, block += F::BYTES)
        for (int part = 0; part < F::PARTS; part++, g++, numbers += F::NUMBERS) {
            Vec steps[N] = {};
            for (int j = part * F::QUADS; j < (part + 1) * F::QUADS; j++) {
                const IVec four = quad<F>(block, j);
                for (int k = 0; k < 4; k++) {
                    const Vec w = column(four, k);
                    for (int b = 0; b < N; b++) steps[b] += w * in.x[b * cols + c + 4 * j + k];
                }
            }
            const Vec scale = load(numbers);
            for (int b = 0; b < N; b++) {
                const float of_group = in.sums[b * groups + g];
                total[b] += (steps[b] - F::ZERO * of_group) * scale;
                if constexpr (F::MINIMA) total[b] += load(numbers + TILE) * of_group;
            }
        }
    for (int b = 0; b < N; b++) store(y + b * TILE, total[b]);
}
#endif

// Fills the arrays of `PanelVectors` for n vectors in `room` (size: `panel_room`).
template <class F> PanelVectors panel_vectors(const float *x, int64_t cols, int64_t n, float *room) {
    const int64_t all = n * cols, groups = cols / F::COLUMNS;
    float *sums = room, *steps = sums + all / LANES;
    int32_t *starts = (int32_t *)(steps + all / GROUP);
    int8_t *first = (int8_t *)(starts + all / LANES * 2), *second = first + all;
    for (int64_t g = 0; g < n * groups; g++) {
        Vec total = load(x + g * F::COLUMNS);
        if constexpr (F::COLUMNS == GROUP) total += load(x + g * GROUP + LANES);
        sums[g] = sum(total);
    }
    if (BYTES_MULTIPLY)
        for (int64_t b = 0; b < n; b++)
            round_to_bytes<F>(x + b * cols, cols, first + b * cols, second + b * cols, starts + b * 2 * groups, steps + b * cols / GROUP);
    return {x, sums, first, second, starts, steps, cols, groups};
}

// Floats of `room` for n numbers in all: sums and starts per 16 numbers, steps per 32, and two bytes per number.
inline int64_t panel_room(int64_t n) { return n / LANES * 3 + n / GROUP + n / 2 + LANES; }

template <class F> void panel_tile_of(const Linear &m, int64_t row, PanelVectors in, int64_t n, float *y) {
    const uint8_t *panel = panel_of<F>(m, row);
    const Half *numbers = numbers_of<F>(m, row);
    const auto some = [&](auto count) {
        constexpr int N = decltype(count)::value;
        for (; n >= N; n -= N, y += N * TILE, in = in.from(N)) panel_product<F, N>(panel, numbers, in, y);
    };
    if constexpr (PANEL_TOGETHER >= 8) some(std::integral_constant<int, 8>()), some(std::integral_constant<int, 4>());
    some(std::integral_constant<int, 2>());
    some(std::integral_constant<int, 1>());
}

PanelVectors vectors_for(const Linear &m, const float *x, int64_t n, float *room) {
    PanelVectors made;
    with_form(m.format, [&](auto form) { made = panel_vectors<decltype(form)>(x, m.cols, n, room); });
    return made;
}

// y[b TILE + r] = W[row + r] . x[b] for the panel that begins at `row`, n vectors.
void panel_tile(const Linear &m, int64_t row, const PanelVectors &in, int64_t n, float *y) {
    with_form(m.format, [&](auto form) { panel_tile_of<decltype(form)>(m, row, in, n, y); });
    add_bias(m, row, std::min<int64_t>(m.rows - row, TILE), n, y);
}

// ---- as plain numbers again -------------------------------------------------------------------------------------------

// Dequantizes row `index` of a packed matrix, such as an embedding table.
template <class F> void unpack_row(const Linear &m, int64_t index, float *out) {
    const uint8_t *block = panel_of<F>(m, index);
    const Half *numbers = numbers_of<F>(m, index);
    const int64_t r = index % TILE;
    for (int64_t c = 0; c < m.cols; c += 4) {
        const IVec four = quad<F>(block + c / GROUP * F::BYTES, int(c % GROUP / 4));
        const Half *group = numbers + c / F::COLUMNS * F::NUMBERS;
        const float scale = widen(group[r]), lowest = F::MINIMA ? widen(group[TILE + r]) : -F::ZERO * scale;
        const uint32_t bytes = uint32_t(four[r]);
        for (int k = 0; k < 4; k++) out[c + k] = float(bytes >> (8 * k) & 255) * scale + lowest;
    }
}

// Dequantizes the rows of a panel that are in [first, last); values are rounded only once, on storing.
template <class F, class Out> void unpack_panel(const Linear &m, int64_t row, int64_t first, int64_t last, Out *out) {
    const uint8_t *block = panel_of<F>(m, row);
    const Half *numbers = numbers_of<F>(m, row);
    const int from = int(std::max<int64_t>(first - row, 0)), to = int(std::min<int64_t>(last - row, TILE));
    for (int64_t c = 0; c < m.cols; c += GROUP, block += F::BYTES) {
        Out wide[TILE][GROUP];
        for (int j = 0; j < 8; j++) {
            const Half *group = numbers + (c + 4 * j) / F::COLUMNS * F::NUMBERS;
            const Vec scale = load(group), lowest = F::MINIMA ? load(group + TILE) : scale * -float(F::ZERO);
            const IVec four = quad<F>(block, j);
            for (int k = 0; k < 4; k++) {
                Out column_of[TILE];
                store(column_of, column(four, k) * scale + lowest);
                for (int r = 0; r < TILE; r++) wide[r][4 * j + k] = column_of[r];
            }
        }
        for (int r = from; r < to; r++) std::memcpy(out + (row + r - first) * m.cols + c, wide[r], sizeof wide[r]);
    }
}

template <class Out> void unpack_rows(const Linear &m, int64_t first, int64_t last, Out *out, int32_t threads) {
    with_form(m.format, [&](auto form) {
#pragma omp parallel for num_threads(threads)
        for (int64_t panel = first / TILE; panel < (last + TILE - 1) / TILE; panel++)
            unpack_panel<decltype(form)>(m, panel * TILE, first, last, out);
    });
}

// Row `index` of a table as floats.
void copy_row(const Linear &m, int64_t index, float *out) {
    const int64_t at = index * m.cols;
    switch (m.format) {
        case F32: std::memcpy(out, (const float *)m.weight + at, m.cols * sizeof(float)); break;
        case BF16: for (int64_t c = 0; c < m.cols; c++) out[c] = widen(((const BFloat *)m.weight)[at + c]); break;
        case F16: for (int64_t c = 0; c < m.cols; c++) out[c] = widen(((const Half *)m.weight)[at + c]); break;
        default: with_form(m.format, [&](auto form) { unpack_row<decltype(form)>(m, index, out); });
    }
}

}  // namespace
