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
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <sched.h>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

using std::int32_t;
using std::int64_t;

constexpr int LANES = 16, TILE = 4, GROUP = 32, CHUNK = 128, TOGETHER = 8;
constexpr int AHEAD = 12288;  // bytes that reads of a matrix are announced ahead: rows are too short for the hardware to see

typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IVec __attribute__((vector_size(64)));

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

struct Layer {
    Linear qkv, output, up, down;  // up: gate rows, then up rows, when gated
    Norm attention_norm, mlp_norm, post_attention_norm, post_mlp_norm;
    const float *q_norm, *k_norm;   // (h), or null
    const double *frequencies;      // rotation per token of each pair of dimensions (rotary_dim / 2), or null
    int64_t window;                 // tokens in sight, counting the new one; 0: all
};

struct Model {
    const Layer *layers;
    Linear embedding, positions, head;  // positions.weight null: none are learned
    Norm norm;
    int64_t n_layers, hidden_size, n_heads, n_kv_heads, head_dim, rotary_dim, intermediate_size, vocab_size;
    float norm_eps, attention_scale, embedding_scale, rotary_scale, attention_cap, logit_cap;  // caps: 0 is none
    int32_t activation, gated, cache_format;
};

struct Step {
    const int64_t *ids, *past;  // (B): the new token of each row, and how many tokens its cache holds
    void *cache;                // (n_layers, 2, B, K, capacity, h)
    float *logits, *scratch;    // (B, vocab_size); `scratch_floats` floats
    int64_t batch, capacity;
    int32_t threads;
};

// ---- loads: 16 numbers of any format as floats ------------------------------------------------------------------

struct BFloat { uint16_t bits; };
struct Half { uint16_t bits; };

template <class V, class T> inline V read(const T *p) { V v; std::memcpy(&v, p, sizeof v); return v; }

inline float widen(float x) { return x; }
inline float widen(BFloat x) { uint32_t bits = uint32_t(x.bits) << 16; return read<float>(&bits); }
inline float widen(Half x) { return float(read<_Float16>(&x.bits)); }

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

inline void narrow(float x, float &out) { out = x; }
inline void narrow(float x, Half &out) { _Float16 y = (_Float16)x; std::memcpy(&out, &y, 2); }
inline void narrow(float x, BFloat &out) {  // to nearest, ties to even
    uint32_t bits = read<uint32_t>(&x);
    out.bits = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline void store(float *p, Vec v) { std::memcpy(p, &v, sizeof v); }
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

// ---- TILE rows of a matrix times one vector ---------------------------------------------------------------------

// Row after row: one stream of addresses a thread, which the hardware follows. All rows of a tile at once, which loads
// the vector less often, was a quarter slower. Sums are kept apart so that additions need not wait for each other.

template <class T> float dot(const T *w, int64_t cols, const float *x) {
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
    float y = sum((total[0] + total[1]) + (total[2] + total[3]));
    for (; c < cols; c++) y += widen(w[c]) * x[c];
    return y;
}

// R rows times N vectors, which lie `cols` apart: weights are read and widened once for all of them. y: TILE apart.
template <int R, int N, class T> void dot_together(const T *const *w, int64_t cols, const float *x, float *y) {
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
            y[b * TILE + r] = sum(total[r][b]);
            for (int64_t i = c; i < cols; i++) y[b * TILE + r] += widen(w[r][i]) * x[b * cols + i];
        }
}

// TILE rows times N vectors. A vector alone is memory's matter, eight are the multipliers': two rows share each load.
template <int N, class T> void dot_tile(const T *const *w, int64_t cols, const float *x, float *y) {
    constexpr int R = N == TOGETHER ? 2 : 1;
    for (int r = 0; r < TILE; r += R) {
        if constexpr (N == 1) y[r] = dot(w[r], cols, x);
        else dot_together<R, N>(w + r, cols, x, y + r);
    }
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
template <class T> float grouped_dot(const T *w, const Half *scales, int64_t groups, const float *x) {
    constexpr int GROUP_BYTES = std::is_signed<T>::value ? GROUP : GROUP / 2;
    Vec even = {}, odd = {};
    float scale[LANES];
    for (int64_t first = 0; first < groups; first += LANES, w += LANES * GROUP_BYTES, x += LANES * GROUP) {
        store(scale, load(scales + first));
        const int64_t count = groups - first < LANES ? groups - first : LANES;
        const auto product = [&](int64_t g) {
            const T *group = w + g * GROUP_BYTES;
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
    return sum(even + odd);
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
template <int N, class T> void grouped_together(const T *w, const Half *scales, int64_t groups, const float *x, float *y) {
    constexpr int GROUP_BYTES = std::is_signed<T>::value ? GROUP : GROUP / 2;
    Vec total[N] = {};
    for (int64_t g = 0; g < groups; g++) {
        Vec low, high;
        __builtin_prefetch(w + g * GROUP_BYTES + AHEAD);
        unpack(w + g * GROUP_BYTES, low, high);
        const float scale = widen(scales[g]);
        low *= scale;
        high *= scale;
        for (int b = 0; b < N; b++) {
            const float *xb = x + (b * groups + g) * GROUP;
            total[b] += low * load(xb);
            total[b] += high * load(xb + LANES);
        }
    }
    for (int b = 0; b < N; b++) y[b * TILE] = sum(total[b]);
}

template <int N, class T> void plain_tile(const Linear &m, const int64_t *rows, const float *x, float *y) {
    const T *w[TILE];
    for (int r = 0; r < TILE; r++) w[r] = (const T *)m.weight + rows[r] * m.cols;
    dot_tile<N>(w, m.cols, x, y);
}

// T int8_t: INT8. T uint8_t: INT4, whose rows have minima too; `sums`: the sum of each group of every x.
template <int N, class T> void grouped_tile(const Linear &m, const int64_t *rows, const float *x, const float *sums, float *y) {
    constexpr bool minima = std::is_unsigned<T>::value;
    const int64_t groups = m.cols / GROUP;
    const Half *scales[TILE], *lowest[TILE];
    for (int r = 0; r < TILE; r++) {
        const T *w = (const T *)m.weight + rows[r] * (minima ? m.cols / 2 : m.cols);
        scales[r] = (const Half *)m.scales + rows[r] * (minima ? 2 * groups : groups);
        lowest[r] = scales[r] + groups;
        if constexpr (N == 1) y[r] = grouped_dot(w, scales[r], groups, x);
        else grouped_together<N>(w, scales[r], groups, x, y + r);
    }
    if (!minima) return;
    float offsets[N * TILE];
    dot_tile<N>(lowest, groups, sums, offsets);
    for (int i = 0; i < N * TILE; i++) y[i] += offsets[i];
}

template <int N> void tile_of(const Linear &m, const int64_t *rows, const float *x, const float *sums, float *y) {
    switch (m.format) {
        case F32: plain_tile<N, float>(m, rows, x, y); break;
        case BF16: plain_tile<N, BFloat>(m, rows, x, y); break;
        case F16: plain_tile<N, Half>(m, rows, x, y); break;
        case INT8: grouped_tile<N, int8_t>(m, rows, x, sums, y); break;
        case INT4: grouped_tile<N, uint8_t>(m, rows, x, sums, y); break;
    }
    if (m.bias)
        for (int i = 0; i < N * TILE; i++) y[i] += m.bias[rows[i % TILE]];
}

// y[b TILE + r] = W[row + r] . x[b] for r < TILE and b < n, as many vectors at once as there are: 8, 4, 2 or 1.
// Rows past `end` repeat the last one; the caller ignores them. n is at most TOGETHER.
void tile(const Linear &m, int64_t row, int64_t end, const float *x, const float *sums, int64_t n, float *y) {
    int64_t rows[TILE];
    for (int r = 0; r < TILE; r++) rows[r] = row + r < end ? row + r : end - 1;
    const auto some = [&](auto count) {
        constexpr int N = decltype(count)::value;
        tile_of<N>(m, rows, x, sums, y);
        n -= N, x += N * m.cols, sums += N * m.cols / GROUP, y += N * TILE;
    };
    if (n == TOGETHER) some(std::integral_constant<int, TOGETHER>());
    if (n >= 4) some(std::integral_constant<int, 4>());
    if (n >= 2) some(std::integral_constant<int, 2>());
    if (n == 1) some(std::integral_constant<int, 1>());
}

// Row `index` of a table as floats.
void copy_row(const Linear &m, int64_t index, float *out) {
    const int64_t groups = m.cols / GROUP;
    for (int64_t c = 0; c < m.cols; c++) {
        const int64_t at = index * m.cols + c, g = c / GROUP, i = c % GROUP;
        const Half *scales = (const Half *)m.scales + index * groups * (m.format == INT4 ? 2 : 1);
        switch (m.format) {
            case F32: out[c] = ((const float *)m.weight)[at]; break;
            case BF16: out[c] = widen(((const BFloat *)m.weight)[at]); break;
            case F16: out[c] = widen(((const Half *)m.weight)[at]); break;
            case INT8: out[c] = ((const int8_t *)m.weight)[at] * widen(scales[g]); break;
            case INT4: {
                const uint8_t pair = ((const uint8_t *)m.weight)[(index * groups + g) * 16 + i % 16];
                out[c] = (i < 16 ? pair & 15 : pair >> 4) * widen(scales[g]) + widen(scales[groups + g]);
            }
        }
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

struct Sizes {  // floats of each part of the scratch memory
    int64_t width, inner, qkv, heads, rotary, sums, own;
    Sizes(const Model &m, int64_t batch) {
        const auto padded = [](int64_t n) { return (n + LANES - 1) / LANES * LANES; };
        const int64_t group = m.n_heads / m.n_kv_heads;
        width = padded(batch * m.hidden_size);
        inner = padded(batch * m.intermediate_size);
        heads = padded(batch * m.n_heads * m.head_dim);
        qkv = std::max(width, padded(batch * (m.n_heads + 2 * m.n_kv_heads) * m.head_dim));
        rotary = padded(m.rotary_dim);
        sums = padded(std::max({width, inner, heads}) / GROUP);
        own = width + sums + rotary + padded(group * (m.head_dim + CHUNK + 2) + 3 * m.head_dim);
    }
    int64_t shared() const { return width + inner + qkv + heads; }
};

class Worker {
  public:
    Worker(const Model &m, const Step &s, Barrier &barrier, int thread, int threads)
        : m(m), s(s), barrier(barrier), thread(thread), threads(threads), sizes(m, s.batch) {
        x = s.scratch;
        inner = x + sizes.width;
        qkv = inner + sizes.inner;
        mixed = qkv + sizes.qkv;
        own = mixed + sizes.heads + thread * sizes.own;
        sums = own + sizes.width;
        turns = sums + sizes.sums;
    }

    void run() {
        if (thread == 0) embed();
        barrier.wait(threads);
        for (int64_t i = 0; i < m.n_layers; i++) layer(m.layers[i], i);
        matmul(m.head, normed(m.norm), [&](int64_t b, int64_t r, float y) {
            s.logits[b * m.vocab_size + r] = capped(y, m.logit_cap);
        });
    }

  private:
    const Model &m;
    const Step &s;
    Barrier &barrier;
    const int thread, threads;
    const Sizes sizes;
    float *x, *inner, *qkv, *mixed;  // shared: residual stream (B, D); MLP (B, F); (B, (H + 2K) h); (B, H h)
    float *own, *sums, *turns;  // this thread's: (B, D) after a norm; sums of groups; cos and sin, then attention's

    void embed() {
        for (int64_t b = 0; b < s.batch; b++) {
            float *row = x + b * m.hidden_size;
            copy_row(m.embedding, s.ids[b], row);
            for (int64_t i = 0; i < m.hidden_size; i++) row[i] *= m.embedding_scale;
            if (!m.positions.weight) continue;
            copy_row(m.positions, s.past[b], own);
            for (int64_t i = 0; i < m.hidden_size; i++) row[i] += own[i];
        }
    }

    void layer(const Layer &layer, int64_t index) {
        const int64_t width = layer.qkv.rows, wide = m.intermediate_size;
        matmul(layer.qkv, normed(layer.attention_norm), [&](int64_t b, int64_t r, float y) { qkv[b * width + r] = y; });
        barrier.wait(threads);
        switch (m.cache_format) {
            case F32: attend<float>(layer, index); break;
            case BF16: attend<BFloat>(layer, index); break;
            case F16: attend<Half>(layer, index); break;
        }
        barrier.wait(threads);
        add(layer.output, mixed, layer.post_attention_norm);
        const float *h = normed(layer.mlp_norm);
        if (m.gated) gated_up(layer.up, h);
        else matmul(layer.up, h, [&](int64_t b, int64_t r, float y) { inner[b * wide + r] = activate(all(y), m.activation)[0]; });
        barrier.wait(threads);
        add(layer.down, inner, layer.post_mlp_norm);
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
            matmul(linear, in, [&](int64_t b, int64_t r, float y) { x[b * m.hidden_size + r] += y; });
        } else {
            matmul(linear, in, [&](int64_t b, int64_t r, float y) { qkv[b * m.hidden_size + r] = y; });
            barrier.wait(threads);
            if (thread == 0)
                for (int64_t b = 0; b < s.batch; b++) {
                    normalize(post, m.norm_eps, qkv + b * m.hidden_size, m.hidden_size, own);
                    for (int64_t i = 0; i < m.hidden_size; i++) x[b * m.hidden_size + i] += own[i];
                }
        }
        barrier.wait(threads);
    }

    // This thread's rows of W in, each given to `put(b, row, value)`.
    template <class Put> void matmul(const Linear &linear, const float *in, Put put) {
        sum_groups(linear, in);
        const auto [first, last] = share((linear.rows + TILE - 1) / TILE);
        for (int64_t row = first * TILE; row < last * TILE; row += TILE)
            for (int64_t b = 0; b < s.batch; b += TOGETHER) {
                const int64_t n = std::min<int64_t>(s.batch - b, TOGETHER);
                float y[TOGETHER * TILE];
                tile(linear, row, linear.rows, in + b * linear.cols, sums + b * linear.cols / GROUP, n, y);
                for (int64_t i = 0; i < n * TILE; i++)
                    if (row + i % TILE < linear.rows) put(b + i / TILE, row + i % TILE, y[i]);
            }
    }

    // inner = act(gate) * up, a tile of both at a time; the activation is applied 16 results at once.
    void gated_up(const Linear &up, const float *in) {
        sum_groups(up, in);
        const int64_t wide = m.intermediate_size;
        const auto [first, last] = share((wide + LANES - 1) / LANES);
        for (int64_t row = first * LANES; row < last * LANES; row += LANES)
            for (int64_t b = 0; b < s.batch; b += TOGETHER) {
                const int64_t n = std::min<int64_t>(s.batch - b, TOGETHER);
                const float *xb = in + b * up.cols, *sb = sums + b * up.cols / GROUP;
                float gates[TOGETHER][LANES] = {}, ups[TOGETHER][LANES] = {}, y[TOGETHER * TILE];
                for (int r = 0; r < LANES && row + r < wide; r += TILE) {
                    tile(up, row + r, wide, xb, sb, n, y);
                    for (int64_t i = 0; i < n * TILE; i++) gates[i / TILE][r + i % TILE] = y[i];
                    tile(up, wide + row + r, 2 * wide, xb, sb, n, y);
                    for (int64_t i = 0; i < n * TILE; i++) ups[i / TILE][r + i % TILE] = y[i];
                }
                for (int64_t j = 0; j < n; j++) {
                    const Vec result = activate(load(gates[j]), m.activation) * load(ups[j]);
                    for (int r = 0; r < LANES && row + r < wide; r++) inner[(b + j) * wide + row + r] = result[r];
                }
            }
    }

    void sum_groups(const Linear &linear, const float *in) {
        if (linear.format != INT4) return;
        for (int64_t g = 0; g < s.batch * linear.cols / GROUP; g++)
            sums[g] = sum(load(in + g * GROUP) + load(in + g * GROUP + LANES));
    }

    struct Range { int64_t first, last; };
    Range share(int64_t n) const { return {n * thread / threads, n * (thread + 1) / threads}; }

    // Attention of this thread's query heads, those of one row that share a key/value head together.
    template <class T> void attend(const Layer &layer, int64_t index) {
        const int64_t group = m.n_heads / m.n_kv_heads, plane = s.batch * m.n_kv_heads * s.capacity * m.head_dim;
        T *keys = (T *)s.cache + 2 * index * plane;
        auto [head, last] = share(s.batch * m.n_heads);
        int64_t turned_for = -1;
        while (head < last) {
            const int64_t b = head / m.n_heads, kv = head % m.n_heads / group;
            const int64_t group_first = b * m.n_heads + kv * group;
            const int64_t stop = group_first + group < last ? group_first + group : last;
            if (b != turned_for) angles(layer, s.past[b]);
            turned_for = b;
            const int64_t at = (b * m.n_kv_heads + kv) * s.capacity * m.head_dim;
            attend_group(layer, b, kv, head % m.n_heads, stop - head, head == group_first, keys + at, keys + plane + at);
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

    // `count` query heads from `first` on over one key/value head. The softmax is kept up to date chunk by chunk
    // (running maximum and total), so that the buffers do not grow with the context.
    template <class T>
    void attend_group(const Layer &layer, int64_t b, int64_t kv, int64_t first, int64_t count, bool owner, T *keys, T *values) {
        const int64_t h = m.head_dim, past = s.past[b];
        const float *heads = qkv + b * (m.n_heads + 2 * m.n_kv_heads) * h;
        float *key = turns + sizes.rotary, *now = key + h, *q = now + 2 * h, *scores = q + count * h;
        float *top = scores + count * CHUNK, *total = top + count;
        T *new_key = (T *)now, *new_value = new_key + h;  // as the cache rounds them
        prepare(layer, heads + (m.n_heads + kv) * h, layer.k_norm, key);
        for (int64_t i = 0; i < h; i++) {
            narrow(key[i], new_key[i]);
            narrow(heads[(m.n_heads + m.n_kv_heads + kv) * h + i], new_value[i]);
        }
        if (owner) {
            std::memcpy(keys + past * h, new_key, h * sizeof(T));
            std::memcpy(values + past * h, new_value, h * sizeof(T));
        }
        float *out = mixed + (b * m.n_heads + first) * h;
        for (int64_t j = 0; j < count; j++) {
            prepare(layer, heads + (first + j) * h, layer.q_norm, q + j * h);
            top[j] = -INFINITY;
            total[j] = 0;
        }
        std::memset(out, 0, count * h * sizeof(float));
        const auto visit = [&](const T *k, const T *v, int64_t n) {
            for (int64_t j = 0; j < count; j++) {
                float *p = scores + j * CHUNK, *o = out + j * h;
                const float highest = score(k, n, q + j * h, top[j], p);
                const float shrink = std::exp(top[j] - highest);
                top[j] = highest;
                total[j] = total[j] * shrink + exponentials(p, n, highest);
                blend(v, n, p, shrink, o);
            }
        };
        int64_t start = layer.window && past + 1 > layer.window ? past + 1 - layer.window : 0;
        for (; start < past; start += CHUNK)
            visit(keys + start * h, values + start * h, past - start < CHUNK ? past - start : CHUNK);
        visit(new_key, new_value, 1);
        for (int64_t j = 0; j < count; j++)
            for (int64_t i = 0; i < h; i++) out[j * h + i] /= total[j];
    }

    // p[i] = scale q . k[i]; the maximum of them and `highest`.
    template <class T> float score(const T *k, int64_t n, const float *q, float highest, float *p) {
        const int64_t h = m.head_dim;
        for (int64_t i = 0; i < n; i += TILE) {
            const T *rows[TILE];
            float y[TILE];
            for (int r = 0; r < TILE; r++) rows[r] = k + (i + r < n ? i + r : n - 1) * h;
            dot_tile<1>(rows, h, q, y);
            for (int r = 0; r < TILE; r++) p[i + r] = capped(y[r] * m.attention_scale, m.attention_cap);
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
    template <class T> void blend(const T *v, int64_t n, const float *p, float shrink, float *o) {
        const int64_t h = m.head_dim;
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

// Sizes of the records, which Python compares with its own before the first call.
int64_t record_bytes(int32_t which) {
    const int64_t sizes[] = {sizeof(Linear), sizeof(Layer), sizeof(Model), sizeof(Step)};
    return sizes[which];
}

void decode_step(const Model *m, const Step *s) {
    Barrier barrier;
#pragma omp parallel num_threads(s->threads)
    Worker(*m, *s, barrier, omp_get_thread_num(), omp_get_num_threads()).run();
}
}
