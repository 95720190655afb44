// Conversion of numbers in any format to floats and back, sixteen at a time.
//
// Vectors are the compiler's own (16 floats; split or joined as the machine needs), so no instruction set is needed;
// AVX-512 is named where gcc turns the generic form into many instructions.
#pragma once

#include "records.h"

#include <cstring>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16, TILE = 16, GROUP = 32, TOGETHER = 8;

typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IVec __attribute__((vector_size(64)));
typedef uint32_t UVec __attribute__((vector_size(64)));

struct BFloat { uint16_t bits; };
struct Half { uint16_t bits; };


template <class V, class T> inline V read(const T *p) { V v; std::memcpy(&v, p, sizeof v); return v; }

inline float widen(float x) { return x; }
inline float widen(BFloat x) { uint32_t bits = uint32_t(x.bits) << 16; return read<float>(&bits); }
#if defined(__F16C__)
inline float widen(Half x) { return _cvtsh_ss(x.bits); }  // gcc's choice with AVX512_FP16 has a false dependency
#else
inline float widen(Half x) { return float(read<_Float16>(&x.bits)); }
#endif
inline float widen(int8_t x) { return x; }

// Integers widened to 32 bits. AVX-512 is named because gcc turns the generic form into many shuffles.
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

// Lane i: the sum of all lanes of v[i]. A tree of halvings takes a third of the instructions of sixteen separate sums.
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

// Transpose: v[i][j] and v[j][i] change places. Each round rotates the eight bits of an element's index by one.
inline void transpose(Vec (&v)[16]) {
#if __has_builtin(__builtin_shufflevector)
    for (int round = 0; round < 4; round++) {
        Vec turned[16];
        for (int i = 0; i < 8; i++) {
            turned[2 * i] = __builtin_shufflevector(v[i], v[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            turned[2 * i + 1] = __builtin_shufflevector(v[i], v[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        for (int i = 0; i < 16; i++) v[i] = turned[i];
    }
#else
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < i; j++) {
            const float one = v[i][j];
            v[i][j] = v[j][i], v[j][i] = one;
        }
#endif
}

// Store one number or sixteen at an address, or add to the stored values.
inline void set_at(float *p, float y) { *p = y; }
inline void set_at(float *p, Vec y) { store(p, y); }
inline void add_at(float *p, float y) { *p += y; }
inline void add_at(float *p, Vec y) { store(p, load(p) + y); }

// Adds the bias of a tile of rows to its sums with n vectors.
inline void add_bias(const Linear &m, int64_t row, int64_t rows, int64_t n, float *y) {
    for (int64_t b = 0; m.bias && b < n; b++)
        for (int64_t r = 0; r < rows; r++) y[b * TILE + r] += m.bias[row + r];
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

}  // namespace
