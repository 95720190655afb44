// One decode step of a decoder-only transformer as a single function: B token ids in, B rows of logits out.
//
// A decode step of a small model is some two hundred operators of a few microseconds each; run one by one, most of
// the time goes into starting them. Here the whole step is one parallel region: every thread walks all layers, takes
// its share of the rows of each matrix (or of the heads), and meets the others at a barrier that spins.
//
// Nothing here is specific to one model: sizes, pointers and switches come in `Model`, filled by compiled/step.py,
// whose ctypes records must match the structs below field by field. Activations are float32; weights are read as
// stored (float32, bfloat16, float16, or groups of 32 columns in 8 or 4 bits) and widened in registers.
// Vectors are the compiler's own (16 floats; split or joined as the machine needs), so no instruction set is named.
//
// Letters: B rows of the batch, D hidden size, H query heads, K key/value heads, h head size, S tokens in sight.

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <sched.h>
#include <type_traits>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

using std::int32_t;
using std::int64_t;

constexpr int LANES = 16, TILE = 16, GROUP = 32, CHUNK = 128, TOGETHER = 8;
constexpr int AHEAD = 12288;  // bytes that reads of a matrix are announced ahead: rows are too short for the hardware to see

typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IVec __attribute__((vector_size(64)));
typedef uint32_t UVec __attribute__((vector_size(64)));

// ---- what Python hands over -------------------------------------------------------------------------------------

enum Format : int32_t { F32, BF16, F16, INT8, INT4 };
enum Activation : int32_t { RELU, SILU, GELU, GELU_TANH };

struct Linear {           // y = W x + b, W (rows, cols) row by row; a table of embeddings is one too
    const void *weight;   // INT8: one signed byte a weight. INT4: 16 bytes a group, low nibbles the first 16 columns
    const uint16_t *scales;  // float16. INT8: (rows, groups). INT4: (rows, 2, groups), scales then minima
    const float *bias;       // (rows), or null
    int64_t rows, cols;
    int32_t format;
};

struct Norm {
    const float *weight, *bias;  // weight null: no such norm; bias null: RMSNorm, else LayerNorm
};

struct Expert {
    Linear up, down;  // up: gate rows, then up rows, when gated
};

struct Layer {
    Linear qkv, output;
    Expert mlp;             // weight null: there are only routed experts
    Linear router;          // weight null: there are none
    const Expert *experts;  // as many as the router has rows
    Norm attention_norm, mlp_norm, post_attention_norm, post_mlp_norm;
    const float *q_norm, *k_norm;   // (h), or null
    const float *sinks;             // (H): a score of each head that leads to no token, or null
    const double *frequencies;      // rotation per token of each pair of dimensions (rotary_dim / 2), or null
    int64_t window;                 // tokens in sight, counting the new one; 0: all
};

struct Model {
    const Layer *layers;
    Linear embedding, positions, head;  // positions.weight null: none are learned
    Norm norm;
    int64_t n_layers, hidden_size, n_heads, n_kv_heads, head_dim, rotary_dim, vocab_size;
    int64_t inner_size;  // of a row's MLP, or of all its experts together: the largest of the layers
    int64_t n_experts, n_active;  // of a layer; of a row
    float norm_eps, attention_scale, embedding_scale, rotary_scale, attention_cap, logit_cap;  // caps: 0 is none
    float swiglu_limit, expert_scale;  // 0: an ordinary activation
    int32_t activation, gated, normalized;  // normalized: the weights of a row's experts add up to expert_scale
    int32_t halves;  // arithmetic is bfloat16's: vectors may be rounded to it
};

struct Store {      // what one layer keeps of all tokens
    void *values;   // (2, B, K, slots, h): keys, then values
    float *scales;  // (2, B, K, slots) where they are INT8, else null
    int64_t slots;  // where there are more tokens than slots, they are a ring of the newest
};

struct Step {
    const int64_t *ids, *past;  // (B): the new token of each row, and how many tokens its cache holds
    const int64_t *padding;     // (B): how many of those only fill the row up at its beginning, or null
    const Store *stores;        // (n_layers)
    float *logits, *scratch;    // (B, vocab_size); `scratch_floats` floats
    int64_t batch;
    int32_t threads, cache_format;
};

// ---- loads: 16 numbers of any format as floats ------------------------------------------------------------------

struct BFloat { uint16_t bits; };
struct Half { uint16_t bits; };

template <class T> constexpr int64_t group_bytes = std::is_signed<T>::value ? GROUP : GROUP / 2;  // INT8, INT4

template <class V, class T> inline V read(const T *p) { V v; std::memcpy(&v, p, sizeof v); return v; }

inline float widen(float x) { return x; }
inline float widen(BFloat x) { uint32_t bits = uint32_t(x.bits) << 16; return read<float>(&bits); }
inline float widen(Half x) { return float(read<_Float16>(&x.bits)); }
inline float widen(int8_t x) { return x; }

// Whole numbers widened to 32 bits. AVX-512 is named because gcc turns the generic form into many shuffles.
#if defined(__AVX512F__)
inline IVec whole(const uint16_t *p) { return (IVec)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)); }
inline IVec whole(const uint8_t *p) { return (IVec)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
inline IVec whole(const int8_t *p) { return (IVec)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)); }
#else
template <class T> inline IVec whole(const T *p) {
    IVec v;
    for (int i = 0; i < LANES; i++) v[i] = p[i];
    return v;
}
#endif

inline Vec load(const float *p) { return read<Vec>(p); }
inline Vec load(const BFloat *p) { return (Vec)(whole(&p->bits) << 16); }
inline Vec load(const Half *p) {
#if defined(__AVX512F__)
    return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#else
    Vec v;
    for (int i = 0; i < LANES; i++) v[i] = widen(p[i]);
    return v;
#endif
}

inline Vec load(const int8_t *p) { return __builtin_convertvector(whole(p), Vec); }

inline void narrow(float x, float &out) { out = x; }
inline void narrow(float x, Half &out) { _Float16 y = (_Float16)x; std::memcpy(&out, &y, 2); }
inline void narrow(float x, BFloat &out) {  // to nearest, ties to even
    uint32_t bits = read<uint32_t>(&x);
    out.bits = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline void store(float *p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline void store(BFloat *p, Vec v) {
    const IVec bits = (IVec)v, rounded = bits + 0x7fff + (bits >> 16 & 1);
    typedef uint16_t Halves __attribute__((vector_size(32)));
    const Halves high = __builtin_convertvector((IVec)((UVec)rounded >> 16), Halves);
    std::memcpy(p, &high, sizeof high);
}
inline Vec all(float x) { return Vec{} + x; }

inline float sum(Vec v) {
    typedef float Eight __attribute__((vector_size(32)));
    typedef float Four __attribute__((vector_size(16)));
    Eight eights[2];
    std::memcpy(eights, &v, sizeof v);
    const Eight a = eights[0] + eights[1];
    Four fours[2];
    std::memcpy(fours, &a, sizeof a);
    const Four b = fours[0] + fours[1];
    return (b[0] + b[2]) + (b[1] + b[3]);
}

// Lane i: the sum of all lanes of v[i]. Halving by halving: a third of the instructions of sixteen sums.
inline Vec sums(const Vec *v) {
#if __has_builtin(__builtin_shufflevector)
    Vec a[8], b[4], c[2];
    for (int i = 0; i < 8; i++)
        a[i] = __builtin_shufflevector(v[i], v[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               __builtin_shufflevector(v[i], v[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        b[i] = __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        c[i] = __builtin_shufflevector(b[i], b[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               __builtin_shufflevector(b[i], b[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return __builtin_shufflevector(c[0], c[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           __builtin_shufflevector(c[0], c[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
#else
    Vec y;
    for (int i = 0; i < LANES; i++) y[i] = sum(v[i]);
    return y;
#endif
}

// y[b TILE + r] = the sum of total[r][b], for as many rows and vectors as there are lanes.
template <int N, int R> void put_sums(const Vec (*total)[N], float *y) {
    static_assert(N * R == LANES);
    const Vec all = sums(total[0]);
    for (int r = 0; r < R; r++)
        for (int b = 0; b < N; b++) y[b * TILE + r] = all[r * N + b];
}

// e^x to 1 unit in the seventh digit: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes expf).
inline Vec exp16(Vec x) {
    x = x < all(-87.3f) ? all(-87.3f) : x;
    x = x > all(88.3f) ? all(88.3f) : x;
    const Vec shift = all(12582912.0f);  // 1.5 x 2^23: adding it rounds to a whole number
    Vec n = (x * 1.44269504f + shift) - shift;
    Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (Vec)((IVec)p + (__builtin_convertvector(n, IVec) << 23));
}

// ---- some rows of a matrix times some vectors --------------------------------------------------------------------

// What a matrix is multiplied with: n vectors, `cols` apart.
struct Vectors {
    const float *x;
    const float *sums;    // INT4: of each group of 32
    const BFloat *halves;  // x rounded, where eight at a time are multiplied so; else null
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

inline void unpack(const int8_t *w, Vec &low, Vec &high) {
    low = __builtin_convertvector(whole(w), Vec);
    high = __builtin_convertvector(whole(w + LANES), Vec);
}
inline void unpack(const uint8_t *w, Vec &low, Vec &high) {
    const IVec pairs = whole(w);
    low = __builtin_convertvector(pairs & 15, Vec);
    high = __builtin_convertvector(pairs >> 4, Vec);
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

// y[b TILE + r] = W[row + r] . x[b] for r < rows and b < N.
template <int N, class T> void plain_tile(const Linear &m, int64_t row, int rows, const Vectors &in, float *y) {
    // A vector alone is memory's matter, eight are the multipliers': two rows share each load.
    constexpr int R = N == TOGETHER ? 2 : 1, AT_ONCE = LANES / N;
    for (int r = 0; r < rows; r += AT_ONCE) {
        Vec total[AT_ONCE][N] = {};
        for (int i = 0; i < AT_ONCE && r + i < rows; i += R) {
            const T *w[R];  // a row past the last one is the last one again
            for (int j = 0; j < R; j++) w[j] = (const T *)m.weight + (row + std::min(r + i + j, rows - 1)) * m.cols;
            if constexpr (PAIRS && N == TOGETHER && std::is_same<T, BFloat>::value) {
                if (in.halves) {
                    pairs_together<R, N>(w, m.cols, in.halves, total + i);
                    continue;
                }
            }
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
            else if (PAIRS && N == TOGETHER && in.halves) grouped_pairs<N>(w, scales, groups, in.halves, total[i]);
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

// The same for any n up to TOGETHER, as many vectors at once as there are: 8, 4, 2 or 1. At most TILE rows, to `end`.
void tile(const Linear &m, int64_t row, int64_t end, Vectors in, int64_t n, float *y) {
    const int rows = int(std::min<int64_t>(end - row, TILE));
    const auto some = [&](auto count) {
        constexpr int N = decltype(count)::value;
        tile_of<N>(m, row, rows, in, y);
        n -= N, in.x += N * m.cols, in.sums += N * m.cols / GROUP, y += N * TILE;
    };
    if (n == TOGETHER) some(std::integral_constant<int, TOGETHER>());
    if (n >= 4) some(std::integral_constant<int, 4>());
    if (n >= 2) some(std::integral_constant<int, 2>());
    if (n == 1) some(std::integral_constant<int, 1>());
}

// Row `index` of a packed matrix as `out` (cols).
template <class T, class Out> void unpack_row(const Linear &m, int64_t index, Out *out) {
    constexpr bool minima = std::is_unsigned<T>::value;
    const int64_t groups = m.cols / GROUP;
    const T *w = (const T *)m.weight + index * groups * group_bytes<T>;
    const Half *scales = (const Half *)m.scales + index * groups * (minima ? 2 : 1);
    for (int64_t g = 0; g < groups; g++) {
        Vec low, high;
        unpack(w + g * group_bytes<T>, low, high);
        const float scale = widen(scales[g]), lowest = minima ? widen(scales[groups + g]) : 0;
        store(out + g * GROUP, low * scale + lowest);
        store(out + g * GROUP + LANES, high * scale + lowest);
    }
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

// ---- small pieces -----------------------------------------------------------------------------------------------

// The sum of f(x[i]).
template <class F> float sum_of(const float *x, int64_t n, F f) {
    Vec total = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) total += f(load(x + i));
    float result = sum(total);
    for (; i < n; i++) result += f(x[i]);
    return result;
}

void normalize(const Norm &norm, float eps, const float *x, int64_t n, float *out) {
    const float mean = norm.bias ? sum_of(x, n, [](auto v) { return v; }) / n : 0;
    const float square = sum_of(x, n, [mean](auto v) { return (v - mean) * (v - mean); }) / n;
    const float scale = 1 / std::sqrt(square + eps);
    for (int64_t i = 0; i < n; i++) out[i] = (x[i] - mean) * scale * norm.weight[i] + (norm.bias ? norm.bias[i] : 0);
}

Vec activate(Vec x, int32_t kind) {
    switch (kind) {
        case RELU: return x > 0 ? x : all(0);
        case SILU: return x / (1 + exp16(-x));
        case GELU_TANH: return x - x / (1 + exp16(1.5957691216f * (x + 0.044715f * x * x * x)));
    }
    for (int i = 0; i < LANES; i++) x[i] *= 0.5f * (1 + std::erf(x[i] * 0.70710678f));
    return x;
}

inline float capped(float x, float cap) { return cap > 0 ? cap * std::tanh(x / cap) : x; }

// Turn the pairs (i, i + half) of one head.
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
            if (spins % 2048 == 0) sched_yield();  // the machine may have given our partner's core away
#if defined(__x86_64__)
            _mm_pause();
#endif
        }
    }
};

// ---- the step ---------------------------------------------------------------------------------------------------

// Keys or values of one head, token after token, `scales` one a token where they are INT8.
template <class T> struct Tokens {
    T *at;
    float *scales;
    Tokens from(int64_t token, int64_t h) const { return {at + token * h, scales ? scales + token : nullptr}; }
};

// One token as the cache rounds it.
template <class T> void keep(const float *x, int64_t h, Tokens<T> out) {
    for (int64_t i = 0; i < h; i++) narrow(x[i], out.at[i]);
}
template <> void keep(const float *x, int64_t h, Tokens<int8_t> out) {
    float most = 0;
    for (int64_t i = 0; i < h; i++) most = std::max(most, std::abs(x[i]));
    *out.scales = std::max(most / 127, FLT_MIN);
    for (int64_t i = 0; i < h; i++) out.at[i] = int8_t(std::nearbyint(x[i] / *out.scales));
}

template <class T> void copy(Tokens<T> from, Tokens<T> to, int64_t h) {
    std::memcpy(to.at, from.at, h * sizeof(T));
    if (to.scales) *to.scales = *from.scales;
}

struct Chosen {  // a row of the batch and one of its experts
    int32_t row, expert;
    float weight;
};

struct Sizes {  // floats of each part of the scratch memory
    int64_t width, inner, qkv, heads, routes, rotary, sums, halves, own;
    Sizes(const Model &m, int64_t batch) {
        const auto padded = [](int64_t n) { return (n + LANES - 1) / LANES * LANES; };
        const int64_t group = m.n_heads / m.n_kv_heads, rows = batch * std::max<int64_t>(m.n_active, 1);
        width = padded(rows * m.hidden_size);  // once for each expert of a row
        inner = padded(batch * m.inner_size);
        heads = padded(batch * m.n_heads * m.head_dim);
        qkv = std::max(width, padded(batch * (m.n_heads + 2 * m.n_kv_heads) * m.head_dim));
        routes = padded(batch * m.n_experts);
        rotary = padded(m.rotary_dim);
        sums = padded(std::max({width, inner, heads}) / GROUP);
        halves = padded(std::max({width, inner, heads}) / 2 + LANES);
        own = 2 * width + sums + halves + rotary + padded(group * (m.head_dim + CHUNK + 2) + 3 * m.head_dim);
    }
    int64_t shared() const { return width + inner + qkv + heads + routes; }
};

class Worker {
  public:
    Worker(const Model &m, const Step &s, Barrier &barrier, int thread, int threads)
        : m(m), s(s), barrier(barrier), thread(thread), threads(threads), sizes(m, s.batch) {
        x = s.scratch;
        inner = x + sizes.width;
        qkv = inner + sizes.inner;
        mixed = qkv + sizes.qkv;
        routes = mixed + sizes.heads;
        own = routes + sizes.routes + thread * sizes.own;
        gathered = own + sizes.width;
        sums = gathered + sizes.width;
        halves = (BFloat *)(sums + sizes.sums);
        turns = sums + sizes.sums + sizes.halves;
    }

    void run() {
        if (thread == 0) embed();
        barrier.wait(threads);
        for (int64_t i = 0; i < m.n_layers; i++) layer(m.layers[i], s.stores[i]);
        matmul(m.head, normed(m.norm), s.batch, [&](int64_t b, int64_t r, float y) {
            s.logits[b * m.vocab_size + r] = capped(y, m.logit_cap);
        });
    }

  private:
    const Model &m;
    const Step &s;
    Barrier &barrier;
    const int thread, threads;
    const Sizes sizes;
    // Shared: residual stream (B, D); MLP (B, F); (B, (H + 2K) h); (B, H h); routers' scores (B, experts).
    float *x, *inner, *qkv, *mixed, *routes;
    // This thread's: (B, D) after a norm; the rows of each expert; sums of groups; cos and sin, then attention's.
    float *own, *gathered, *sums, *turns;
    BFloat *halves;
    std::vector<Chosen> chosen;

    int64_t padding(int64_t b) const { return s.padding ? s.padding[b] : 0; }

    void embed() {
        for (int64_t b = 0; b < s.batch; b++) {
            float *row = x + b * m.hidden_size;
            copy_row(m.embedding, s.ids[b], row);
            for (int64_t i = 0; i < m.hidden_size; i++) row[i] *= m.embedding_scale;
            if (!m.positions.weight) continue;
            copy_row(m.positions, s.past[b] - padding(b), own);
            for (int64_t i = 0; i < m.hidden_size; i++) row[i] += own[i];
        }
    }

    void layer(const Layer &layer, const Store &store) {
        const int64_t width = layer.qkv.rows;
        matmul(layer.qkv, normed(layer.attention_norm), s.batch, [&](int64_t b, int64_t r, float y) { qkv[b * width + r] = y; });
        barrier.wait(threads);
        switch (s.cache_format) {
            case F32: attend<float>(layer, store); break;
            case BF16: attend<BFloat>(layer, store); break;
            case F16: attend<Half>(layer, store); break;
            case INT8: attend<int8_t>(layer, store); break;
        }
        barrier.wait(threads);
        add(layer.output, mixed, layer.post_attention_norm);
        const float *h = normed(layer.mlp_norm);
        if (layer.router.weight) routed(layer, h);
        if (!layer.mlp.up.weight) return;
        raise(layer.mlp.up, h, s.batch, inner);
        barrier.wait(threads);
        add(layer.mlp.down, inner, layer.post_mlp_norm);
    }

    // Every thread normalizes the whole residual stream for itself: cheaper than one more barrier.
    const float *normed(const Norm &norm) {
        for (int64_t b = 0; b < s.batch; b++)
            normalize(norm, m.norm_eps, x + b * m.hidden_size, m.hidden_size, own + b * m.hidden_size);
        return own;
    }

    // x += norm(W in); the norm in between is absent in most families.
    void add(const Linear &linear, const float *in, const Norm &post) {
        if (!post.weight) {
            matmul(linear, in, s.batch, [&](int64_t b, int64_t r, float y) { x[b * m.hidden_size + r] += y; });
        } else {
            matmul(linear, in, s.batch, [&](int64_t b, int64_t r, float y) { qkv[b * m.hidden_size + r] = y; });
            barrier.wait(threads);
            if (thread == 0)
                for (int64_t b = 0; b < s.batch; b++) {
                    normalize(post, m.norm_eps, qkv + b * m.hidden_size, m.hidden_size, own);
                    for (int64_t i = 0; i < m.hidden_size; i++) x[b * m.hidden_size + i] += own[i];
                }
        }
        barrier.wait(threads);
    }

    // x += the weighed results of a few experts for each row. Every thread picks them for itself, all the same, and
    // then takes its share of the rows of each expert's matrices; rows that chose one expert share its weights.
    void routed(const Layer &layer, const float *h) {
        const int64_t n_experts = layer.router.rows;
        matmul(layer.router, h, s.batch, [&](int64_t b, int64_t r, float y) { routes[b * n_experts + r] = y; });
        barrier.wait(threads);
        choose(n_experts);
        for (size_t i = 0; i < chosen.size(); i++)
            std::memcpy(gathered + i * m.hidden_size, h + chosen[i].row * m.hidden_size, m.hidden_size * sizeof(float));
        each_expert(layer, [&](const Expert &expert, int64_t first, int64_t n) {
            raise(expert.up, gathered + first * m.hidden_size, n, inner + first * expert.down.cols);
        });
        barrier.wait(threads);
        each_expert(layer, [&](const Expert &expert, int64_t first, int64_t n) {
            matmul(expert.down, inner + first * expert.down.cols, n, [&](int64_t i, int64_t r, float y) {
                x[chosen[first + i].row * m.hidden_size + r] += chosen[first + i].weight * y;
            });
        });
        barrier.wait(threads);
    }

    // The n_active best experts of each row by softmax over all, sorted by expert.
    void choose(int64_t n_experts) {
        chosen.clear();
        for (int64_t b = 0; b < s.batch; b++) {
            std::vector<float> scores(routes + b * n_experts, routes + (b + 1) * n_experts);
            const float highest = *std::max_element(scores.begin(), scores.end());
            const size_t first = chosen.size();
            float of_all = 0, of_chosen = 0;
            for (const float score : scores) of_all += std::exp(score - highest);
            for (int64_t k = 0; k < m.n_active; k++) {
                const auto best = std::max_element(scores.begin(), scores.end());
                chosen.push_back({int32_t(b), int32_t(best - scores.begin()), std::exp(*best - highest)});
                of_chosen += chosen.back().weight;
                *best = -INFINITY;
            }
            for (size_t i = first; i < chosen.size(); i++)
                chosen[i].weight *= m.expert_scale / (m.normalized ? of_chosen : of_all);
        }
        std::stable_sort(chosen.begin(), chosen.end(), [](const Chosen &a, const Chosen &b) { return a.expert < b.expert; });
    }

    // work(expert, the first of its rows in `chosen`, how many they are).
    template <class Work> void each_expert(const Layer &layer, Work work) {
        for (size_t first = 0, next; first < chosen.size(); first = next) {
            for (next = first; next < chosen.size() && chosen[next].expert == chosen[first].expert;) next++;
            work(layer.experts[chosen[first].expert], int64_t(first), int64_t(next - first));
        }
    }

    // This thread's rows of W in, each given to `put(vector, row, value)`.
    template <class Put> void matmul(const Linear &linear, const float *in, int64_t n, Put put) {
        const Vectors all = vectors(linear, in, n);
        const auto [first, last] = share((linear.rows + TILE - 1) / TILE);
        for (int64_t row = first * TILE; row < last * TILE; row += TILE)
            for (int64_t b = 0; b < n; b += TOGETHER) {
                const int64_t count = std::min<int64_t>(n - b, TOGETHER), rows = std::min<int64_t>(linear.rows - row, TILE);
                float y[TOGETHER * TILE];
                tile(linear, row, linear.rows, from(all, b, linear.cols), count, y);
                for (int64_t j = 0; j < count; j++)
                    for (int64_t r = 0; r < rows; r++) put(b + j, row + r, y[j * TILE + r]);
            }
    }

    // out = act(gate) * up of n vectors, or act(up); as many rows at a time as an activation takes.
    void raise(const Linear &up, const float *in, int64_t n, float *out) {
        const Vectors all = vectors(up, in, n);
        const int64_t wide = m.gated ? up.rows / 2 : up.rows;
        const auto [first, last] = share((wide + TILE - 1) / TILE);
        for (int64_t row = first * TILE; row < last * TILE; row += TILE)
            for (int64_t b = 0; b < n; b += TOGETHER) {
                const int64_t count = std::min<int64_t>(n - b, TOGETHER), rows = std::min<int64_t>(wide - row, TILE);
                float gates[TOGETHER * TILE] = {}, ups[TOGETHER * TILE] = {};
                tile(up, row, wide, from(all, b, up.cols), count, gates);
                if (m.gated) tile(up, wide + row, 2 * wide, from(all, b, up.cols), count, ups);
                for (int64_t j = 0; j < count; j++) {
                    const Vec result = activated(load(gates + j * TILE), load(ups + j * TILE));
                    std::memcpy(out + (b + j) * wide + row, &result, rows * sizeof(float));
                }
            }
    }

    Vec activated(Vec gate, Vec up) const {
        if (!m.gated) return activate(gate, m.activation);
        if (m.swiglu_limit <= 0) return activate(gate, m.activation) * up;
        const Vec limit = all(m.swiglu_limit);  // gpt-oss
        gate = gate > limit ? limit : gate;
        up = up > limit ? limit : up < -limit ? -limit : up;
        return gate / (1 + exp16(-1.702f * gate)) * (up + 1);
    }

    Vectors vectors(const Linear &linear, const float *in, int64_t n) {
        if (linear.format == INT4)
            for (int64_t g = 0; g < n * linear.cols / GROUP; g++)
                sums[g] = sum(load(in + g * GROUP) + load(in + g * GROUP + LANES));
        const bool paired = PAIRS && m.halves && n >= TOGETHER && (linear.format == BF16 || linear.format >= INT8);
        if (paired) round_halves(in, n * linear.cols, halves);
        return {in, sums, paired ? halves : nullptr};
    }

    static Vectors from(const Vectors &all, int64_t first, int64_t cols) {
        const int64_t at = first * cols;
        return {all.x + at, all.sums + at / GROUP, all.halves ? all.halves + at : nullptr};
    }

    struct Range { int64_t first, last; };
    Range share(int64_t n) const { return {n * thread / threads, n * (thread + 1) / threads}; }

    // Attention of this thread's query heads, those of one row that share a key/value head together.
    template <class T> void attend(const Layer &layer, const Store &store) {
        const int64_t group = m.n_heads / m.n_kv_heads, h = m.head_dim;
        const Tokens<T> keys{(T *)store.values, store.scales}, values = keys.from(s.batch * m.n_kv_heads * store.slots, h);
        auto [head, last] = share(s.batch * m.n_heads);
        int64_t turned_for = -1;
        while (head < last) {
            const int64_t b = head / m.n_heads, kv = head % m.n_heads / group;
            const int64_t group_first = b * m.n_heads + kv * group;
            const int64_t stop = group_first + group < last ? group_first + group : last;
            if (b != turned_for) angles(layer, s.past[b] - padding(b));
            turned_for = b;
            const int64_t at = (b * m.n_kv_heads + kv) * store.slots;
            const Heads heads{b, kv, head % m.n_heads, stop - head, head == group_first};
            attend_group(layer, store.slots, heads, keys.from(at, h), values.from(at, h));
            head = stop;
        }
    }

    // cos and sin of one position.
    void angles(const Layer &layer, int64_t position) {
        if (!layer.frequencies) return;
        const int64_t half = m.rotary_dim / 2;
        for (int64_t i = 0; i < half; i++) {
            const double angle = double(position) * layer.frequencies[i];
            turns[i] = float(std::cos(angle)) * m.rotary_scale;
            turns[half + i] = float(std::sin(angle)) * m.rotary_scale;
        }
    }

    void prepare(const Layer &layer, const float *head, const float *norm, float *out) {
        if (norm) normalize({norm, nullptr}, m.norm_eps, head, m.head_dim, out);
        else std::memcpy(out, head, m.head_dim * sizeof(float));
        if (layer.frequencies) rotate(out, turns, turns + m.rotary_dim / 2, m.rotary_dim / 2);
    }

    struct Heads {  // query heads of one row over one key/value head; the owner keeps the new token
        int64_t b, kv, first, count;
        bool owner;
    };

    // The softmax is kept up to date chunk by chunk (running maximum and total), so that the buffers do not grow with
    // the context. The new token is seen as the cache will have it, but not through it: others may read that before.
    template <class T>
    void attend_group(const Layer &layer, int64_t slots, const Heads &group, Tokens<T> keys, Tokens<T> values) {
        const int64_t h = m.head_dim, past = s.past[group.b], count = group.count;
        const float *heads = qkv + group.b * (m.n_heads + 2 * m.n_kv_heads) * h;
        float *key = turns + sizes.rotary, *now = key + h, *q = now + 2 * h, *scores = q + count * h;
        float *top = scores + count * CHUNK, *total = top + count, scale[2];
        const Tokens<T> new_key{(T *)now, scale}, new_value{(T *)now + h, scale + 1};
        prepare(layer, heads + (m.n_heads + group.kv) * h, layer.k_norm, key);
        keep(key, h, new_key);
        keep(heads + (m.n_heads + m.n_kv_heads + group.kv) * h, h, new_value);
        if (group.owner) {
            copy(new_key, keys.from(past % slots, h), h);
            copy(new_value, values.from(past % slots, h), h);
        }
        float *out = mixed + (group.b * m.n_heads + group.first) * h;
        for (int64_t j = 0; j < count; j++) {
            prepare(layer, heads + (group.first + j) * h, layer.q_norm, q + j * h);
            top[j] = layer.sinks ? layer.sinks[group.first + j] : -INFINITY;
            total[j] = layer.sinks ? 1 : 0;
        }
        std::memset(out, 0, count * h * sizeof(float));
        const auto visit = [&](Tokens<T> k, Tokens<T> v, int64_t n) {
            for (int64_t j = 0; j < count; j++) {
                float *p = scores + j * CHUNK, *o = out + j * h;
                const float highest = score(k, n, q + j * h, top[j], p);
                const float shrink = std::exp(top[j] - highest);
                top[j] = highest;
                total[j] = total[j] * shrink + exponentials(p, n, highest);
                blend(v, n, p, shrink, o);
            }
        };
        const auto visit_all = [&](int64_t first, int64_t last) {
            for (; first < last; first += CHUNK)
                visit(keys.from(first, h), values.from(first, h), std::min<int64_t>(last - first, CHUNK));
        };
        if (past < slots) {
            const int64_t hidden = layer.window && past + 1 > layer.window ? past + 1 - layer.window : 0;
            visit_all(std::max(hidden, padding(group.b)), past);
        } else {  // a ring as long as the window: all but the token that has just left it
            visit_all(0, past % slots);
            visit_all(past % slots + 1, slots);
        }
        visit(new_key, new_value, 1);
        for (int64_t j = 0; j < count; j++)
            for (int64_t i = 0; i < h; i++) out[j * h + i] /= total[j];
    }

    // p[i] = scale q . k[i]; the maximum of them and `highest`.
    template <class T> float score(Tokens<T> k, int64_t n, const float *q, float highest, float *p) {
        const int64_t h = m.head_dim;
        for (int64_t i = 0; i < n; i += LANES) {
            Vec products[LANES];
            for (int r = 0; r < LANES; r++) products[r] = dot(k.at + std::min<int64_t>(i + r, n - 1) * h, h, q);
            Vec y = ::sums(products) * m.attention_scale;
            if constexpr (std::is_same<T, int8_t>::value)
                for (int r = 0; r < LANES && i + r < n; r++) y[r] *= k.scales[i + r];
            if (m.attention_cap > 0)
                for (int r = 0; r < LANES; r++) y[r] = capped(y[r], m.attention_cap);
            store(p + i, y);
        }
        for (int64_t i = 0; i < n; i++) highest = p[i] > highest ? p[i] : highest;
        return highest;
    }

    // p[i] = e^(p[i] - highest); their sum.
    static float exponentials(float *p, int64_t n, float highest) {
        for (int64_t i = n; i % LANES; i++) p[i] = -INFINITY;
        Vec total = {};
        for (int64_t i = 0; i < n; i += LANES) {
            const Vec e = exp16(load(p + i) - highest);
            store(p + i, e);
            for (int r = 0; r < LANES; r++) total[r] += i + r < n ? e[r] : 0;
        }
        return sum(total);
    }

    // o = o * shrink + sum of p[i] v[i], four vectors of o at a time.
    template <class T> void blend(Tokens<T> tokens, int64_t n, float *p, float shrink, float *o) {
        const int64_t h = m.head_dim;
        const T *v = tokens.at;
        if constexpr (std::is_same<T, int8_t>::value)
            for (int64_t i = 0; i < n; i++) p[i] *= tokens.scales[i];
        int64_t d = 0;
        for (; d + 4 * LANES <= h; d += 4 * LANES) {
            Vec a[4];
            for (int j = 0; j < 4; j++) a[j] = load(o + d + j * LANES) * shrink;
            for (int64_t i = 0; i < n; i++)
                for (int j = 0; j < 4; j++) a[j] += load(v + i * h + d + j * LANES) * p[i];
            for (int j = 0; j < 4; j++) store(o + d + j * LANES, a[j]);
        }
        for (; d + LANES <= h; d += LANES) {
            Vec a = load(o + d) * shrink;
            for (int64_t i = 0; i < n; i++) a += load(v + i * h + d) * p[i];
            store(o + d, a);
        }
        for (; d < h; d++) {
            o[d] *= shrink;
            for (int64_t i = 0; i < n; i++) o[d] += widen(v[i * h + d]) * p[i];
        }
    }
};

}  // namespace

extern "C" {

// Floats of scratch memory a step needs.
int64_t scratch_floats(const Model *m, int64_t batch, int32_t threads) {
    const Sizes sizes(*m, batch);
    return sizes.shared() + threads * sizes.own;
}

// Rows `first` to before `last` of an INT8 or INT4 matrix as BF16 or F32, for products with many vectors.
void unpack_matrix(const Linear *m, int64_t first, int64_t last, void *out, int32_t format, int32_t threads) {
    if (format == BF16) unpack_rows(*m, first, last, (BFloat *)out, threads);
    else unpack_rows(*m, first, last, (float *)out, threads);
}

// Sizes of the records, which Python compares with its own before the first call.
int64_t record_bytes(int32_t which) {
    const int64_t sizes[] = {sizeof(Linear), sizeof(Expert), sizeof(Layer), sizeof(Model), sizeof(Store), sizeof(Step)};
    return sizes[which];
}

void decode_step(const Model *m, const Step *s) {
    Barrier barrier;
#pragma omp parallel num_threads(s->threads)
    Worker(*m, *s, barrier, omp_get_thread_num(), omp_get_num_threads()).run();
}
}
