// Vectors of RMT_LANES floats, in the vector extensions of GCC and clang: any processor will do. Intrinsics are for what
// these cannot say, with an alternative.
//
// Every source that includes this file is compiled for one instruction set and names it in RMT_ISA, a namespace. All
// functions are in that namespace, and only headers without functions are included: the linker merges functions of one
// name, and would otherwise have the whole program run one that was compiled for another processor. (Those of
// immintrin.h are always inlined.)

#pragma once

#include <stdint.h>
#ifdef __AVX512DQ__
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif

namespace rmt_mm {
namespace RMT_ISA {

constexpr int LANES = RMT_LANES;
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Int __attribute__((vector_size(4 * LANES)));
typedef float UnalignedVec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t UnalignedInt __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * LANES)));
typedef uint16_t UnalignedHalfVec __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

// Eight channels, whatever the processor's width: head_dim is a multiple of eight.
constexpr int EIGHT = 8;
typedef float Vec8 __attribute__((vector_size(32)));
typedef uint32_t Bits8 __attribute__((vector_size(32)));
typedef uint32_t UnalignedBits8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef float UnalignedVec8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint16_t Half8 __attribute__((vector_size(16)));
typedef uint16_t UnalignedHalf8 __attribute__((vector_size(16), aligned(2), may_alias));

struct BFloat16 {
  uint16_t bits;
};

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

INLINE Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
INLINE void store(float* p, Vec x) { *reinterpret_cast<UnalignedVec*>(p) = x; }
INLINE Vec splat(float x) { return x - Vec{}; }  // 0 + x would not be x for -0
INLINE Vec maximum(Vec x, Vec otherwise) { return x > otherwise ? x : otherwise; }  // `otherwise` where either is NaN

INLINE Vec load(const BFloat16* p) {
  HalfVec bits = *reinterpret_cast<const UnalignedHalfVec*>(p);
#ifdef __AVX512DQ__  // of __builtin_convertvector GCC makes three instructions
  return Vec(_mm512_slli_epi32(_mm512_cvtepu16_epi32(__m256i(bits)), 16));
#else
  return reinterpret_cast<Vec>(__builtin_convertvector(bits, Bits) << 16);
#endif
}

// Round to the nearest, ties to even. A NaN stays one.
template <class Half, class Bits, class V>
INLINE Half to_bfloat16(V x) {
#ifdef RMT_PAIRS
  if constexpr (sizeof(V) == 64) {
    return Half(_mm512_cvtneps_pbh(__m512(x)));
  } else {
    return Half(_mm256_cvtneps_pbh(__m256(x)));
  }
#else
  Bits bits = reinterpret_cast<Bits>(x);
  Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  rounded = x == x ? rounded : (bits >> 16) | 0x40;
  return __builtin_convertvector(rounded, Half);
#endif
}

INLINE void store(BFloat16* p, Vec x) {
  *reinterpret_cast<UnalignedHalfVec*>(p) = to_bfloat16<HalfVec, Bits>(x);
}

INLINE Vec8 load8(const float* p) { return *reinterpret_cast<const UnalignedVec8*>(p); }
INLINE void store8(float* p, Vec8 x) { *reinterpret_cast<UnalignedVec8*>(p) = x; }

INLINE Vec8 load8(const BFloat16* p) {
  Half8 bits = *reinterpret_cast<const UnalignedHalf8*>(p);
  return reinterpret_cast<Vec8>(__builtin_convertvector(bits, Bits8) << 16);
}

INLINE void store8(BFloat16* p, Vec8 x) { *reinterpret_cast<UnalignedHalf8*>(p) = to_bfloat16<Half8, Bits8>(x); }

// Pairs of bfloat16. Where the processor multiplies them (RMT_PAIRS), they are the operands of products, two of which an
// instruction adds in float.
struct Pair {
  uint32_t bits;  // the first is the lower half
};

template <class N>
constexpr int CHANNELS = 1;
template <>
constexpr int CHANNELS<Pair> = 2;

template <class T>
struct OperandOf {
  typedef float type;
};
#ifdef RMT_PAIRS
template <>
struct OperandOf<BFloat16> {
  typedef Pair type;
};
INLINE Vec multiply_add(Int a, Int b, Vec sum) {
  return Vec(_mm512_dpbf16_ps(__m512(sum), __m512bh(a), __m512bh(b)));
}
#endif
template <class T>
using Operand = typename OperandOf<T>::type;  // of products of tensors of T

INLINE Vec multiply_add(Vec a, Vec b, Vec sum) { return a * b + sum; }
INLINE Int load(const Pair* p) { return *reinterpret_cast<const UnalignedInt*>(p); }
INLINE Int splat(Pair x) { return Int{} + int32_t(x.bits); }
template <class N>
using VecOf = decltype(splat(N{}));

INLINE float* channels(float* numbers) { return numbers; }
INLINE BFloat16* channels(Pair* numbers) { return reinterpret_cast<BFloat16*>(numbers); }
INLINE const BFloat16* channels(const Pair* numbers) { return reinterpret_cast<const BFloat16*>(numbers); }

// Pair eight channels of two tokens; zeros take the place of a missing second one.
INLINE void pair8(Pair* to, const BFloat16* first, const BFloat16* second) {
  Bits8 bits = __builtin_convertvector(Half8(*reinterpret_cast<const UnalignedHalf8*>(first)), Bits8);
  if (second) bits |= __builtin_convertvector(Half8(*reinterpret_cast<const UnalignedHalf8*>(second)), Bits8) << 16;
  *reinterpret_cast<UnalignedBits8*>(to) = bits;
}

// Store a number in each lane: a pair is of two vectors.
INLINE void join(float* to, const Vec (&x)[1]) { store(to, x[0]); }
#ifdef RMT_PAIRS
INLINE void join(Pair* to, const Vec (&x)[2]) {
  const Int order = {0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007,
                     0x180008, 0x190009, 0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f};
  const __m512i halves = __m512i(_mm512_cvtne2ps_pbh(__m512(x[1]), __m512(x[0])));
  *reinterpret_cast<UnalignedInt*>(to) = Int(_mm512_permutexvar_epi16(__m512i(order), halves));
}
#endif

#ifdef __clang__
#define SHUFFLE8(a, ...) __builtin_shufflevector(a, a, __VA_ARGS__)
#else
#define SHUFFLE8(a, ...) __builtin_shuffle(a, Bits8{__VA_ARGS__})
#endif

// Rotate pairs (u0, u1) of channels: (u0 cos - u1 sin, u1 cos + u0 sin), times `cosine_scale`. `phases` holds (cos, sin)
// of each pair. `sine_scale` is -scale, scale, ...; with the other sign it rotates back.
INLINE Vec8 rotate8(Vec8 x, Vec8 phases, float cosine_scale, Vec8 sine_scale) {
  Vec8 cosine = SHUFFLE8(phases, 0, 0, 2, 2, 4, 4, 6, 6), sine = SHUFFLE8(phases, 1, 1, 3, 3, 5, 5, 7, 7);
  return x * (cosine * cosine_scale) + SHUFFLE8(x, 1, 0, 3, 2, 5, 4, 7, 6) * (sine * sine_scale);
}

#ifdef __AVX512DQ__
// p(x - floor(x)) 2^floor(x), p's coefficients of the highest degree first; 0 where x is below -126. NaN gives NaN.
template <int DEGREE>
INLINE Vec exp2_by(const float (&p)[DEGREE + 1], Vec x) {
  const Vec f = Vec(_mm512_reduce_ps(__m512(x), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
  Vec result = splat(p[0]);
  UNROLL
  for (int i = 1; i <= DEGREE; i++) result = result * f + p[i];
  const __mmask16 is_normal = _mm512_cmp_ps_mask(__m512(x), _mm512_set1_ps(-126), _CMP_NLT_UQ);
  return Vec(_mm512_maskz_scalef_ps(is_normal, __m512(result), __m512(x)));
}
#endif

// 2^x with a relative error of 2e-7, for x below 128. Below -127 it is 0. NaN gives NaN.
INLINE Vec exp2(Vec x) {
#ifdef __AVX512DQ__
  return exp2_by<5>(
      {1.877576686e-3f, 8.989340179e-3f, 5.582631786e-2f, 2.401536172e-1f, 6.931530732e-1f, 0.9999999251f}, x);
#else
  x = maximum(splat(-127.f), x);
  const float shift = 12582912 + 127;  // 1.5 * 2^23, at which a float has no fraction, + the exponent's bias
  Vec shifted = x + shift;
  Vec f = x - (shifted - shift);
  Vec scale = reinterpret_cast<Vec>(reinterpret_cast<Int>(shifted) << 23);  // 2^(x - f)
  Vec p = splat(1.3276471992e-3f);  // the polynomial of least relative error on [-0.5, 0.5], 7.5e-8
  p = p * f + 9.6755413345e-3f;
  p = p * f + 5.5507132735e-2f;
  p = p * f + 2.4022119724e-1f;
  p = p * f + 6.9314696706e-1f;
  p = p * f + 1.0000000717f;
  return p * scale;
#endif
}

// The same for weights in products of N. Those that are rounded to bfloat16 have an error of 8e-5 before.
template <class N>
INLINE Vec exp2_for(Vec x) {
  return exp2(x);
}
#ifdef RMT_PAIRS
template <>
INLINE Vec exp2_for<Pair>(Vec x) {
  return exp2_by<3>({7.802452358e-2f, 2.260671614e-1f, 6.958335343e-1f, 0.9999252196f}, x);
}
#endif

// 1 / x with a relative error of 1e-7, or 6e-5 for a number that is rounded to bfloat16, for normal numbers below 2^126.
// NaN gives NaN.
template <class N>
INLINE Vec reciprocal_for(Vec x) {
#ifdef __AVX512DQ__  // whose division takes several times as long
  const Vec rough = Vec(_mm512_rcp14_ps(__m512(x)));
  return CHANNELS<N> == 2 ? rough : rough * (2 - x * rough);
#else
  return 1 / x;
#endif
}

// log2(x) with a relative error of 2e-7, for normal numbers. NaN gives NaN.
INLINE Vec log2(Vec x) {
  Int bits = reinterpret_cast<Int>(x) - 0x3f3504f3;  // the bits of sqrt(0.5): the mantissa is in [sqrt(0.5), sqrt(2))
  Int exponent = bits >> 23;
  Vec mantissa = reinterpret_cast<Vec>((bits & 0x7fffff) + 0x3f3504f3);
  Vec s = (mantissa - 1) / (mantissa + 1), s2 = s * s;
  Vec p = 0.32059890f * s2 + 0.41219858f;  // 2 / (ln(2) * (9, 7, 5, 3, 1)): the series of the inverse tanh
  p = p * s2 + 0.57707802f;
  p = p * s2 + 0.96179669f;
  p = p * s2 + 2.8853901f;
  Vec result = s * p + __builtin_convertvector(exponent, Vec);
  return x == x ? result : x;
}

#ifdef __clang__
#define SHUFFLE(to, a, b, index)                         \
  UNROLL                                                 \
  for (int j = 0; j < LANES; j++) {                      \
    const int at = index;                                \
    to[j] = at < LANES ? a[at % LANES] : b[at % LANES];  \
  }
#else  // as constants: else the compiler sees no shuffle here
#define SHUFFLE(to, a, b, index)                    \
  {                                                 \
    Int indices;                                    \
    UNROLL                                          \
    for (int j = 0; j < LANES; j++) indices[j] = index; \
    to = __builtin_shuffle(a, b, indices);          \
  }
#endif

// Transpose LANES x LANES numbers: rows at `from`, `from + from_row`, ..., likewise at `to`.
template <class N>
INLINE void transpose(const N* from, int64_t from_row, N* to, int64_t to_row) {
  Vec rows[LANES];
  UNROLL
  for (int i = 0; i < LANES; i++) rows[i] = load(reinterpret_cast<const float*>(from + i * from_row));
  UNROLL
  for (int i = 0; i < LANES; i += 4) {  // blocks of 4 x 4, by what processors do in one instruction
    Vec a, b, c, d;
    SHUFFLE(a, rows[i], rows[i + 1], j % 2 * LANES + j / 4 * 4 + j % 4 / 2)
    SHUFFLE(b, rows[i], rows[i + 1], j % 2 * LANES + j / 4 * 4 + j % 4 / 2 + 2)
    SHUFFLE(c, rows[i + 2], rows[i + 3], j % 2 * LANES + j / 4 * 4 + j % 4 / 2)
    SHUFFLE(d, rows[i + 2], rows[i + 3], j % 2 * LANES + j / 4 * 4 + j % 4 / 2 + 2)
    SHUFFLE(rows[i], a, c, j % 4 / 2 * LANES + j / 4 * 4 + j % 2)
    SHUFFLE(rows[i + 1], a, c, j % 4 / 2 * LANES + j / 4 * 4 + j % 2 + 2)
    SHUFFLE(rows[i + 2], b, d, j % 4 / 2 * LANES + j / 4 * 4 + j % 2)
    SHUFFLE(rows[i + 3], b, d, j % 4 / 2 * LANES + j / 4 * 4 + j % 2 + 2)
  }
  UNROLL
  for (int step = 4; step < LANES; step *= 2) {  // exchange the off-diagonal blocks of step x step
    UNROLL
    for (int i = 0; i < LANES; i++) {
      if (i & step) continue;
      Vec a = rows[i], b = rows[i + step];
      SHUFFLE(rows[i], a, b, j & step ? LANES + j - step : j)
      SHUFFLE(rows[i + step], a, b, j & step ? LANES + j : j + step)
    }
  }
  UNROLL
  for (int i = 0; i < LANES; i++) store(reinterpret_cast<float*>(to + i * to_row), rows[i]);
}

}  // namespace RMT_ISA
}  // namespace rmt_mm
