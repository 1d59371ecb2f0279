// The depthwise convolution, with GELU before it, for one instruction set: see dwconv.h for what is computed, simd.h for
// how it is compiled.
//
// Channels are in lanes. The rows that the kernel covers are kept in a ring, as floats, GELU applied and zeros beside
// them: every number of a unit and its margin is read and activated once, and the borders are no special case (GELU of
// zero is zero).

#include "dwconv.h"
#include "simd.h"

namespace rmt_mm {
namespace RMT_ISA {
namespace {

constexpr int64_t BLOCK = 32;  // channels that are convolved together: their rows stay in the first cache
constexpr int64_t RING = 1 << 17;  // numbers that stay in the second cache
constexpr int TILE = 4;  // outputs in registers at a time
static_assert(BLOCK % LANES == 0, "a block is whole vectors");

// Phi(-|x|) exp(x^2 / 2) = t P(t) with t = 1 / (1 + STEEPNESS |x|): P of least relative error, highest degree first.
#ifdef RMT_PAIRS  // results are rounded to bfloat16: 6e-5
using Result = Pair;
constexpr float STEEPNESS = 0.36f, TAIL[] = {-0.08757804f, 0.22545653f, 0.06344755f, 0.15599431f, 0.14271084f};
#else  // 1.3e-7
using Result = float;
constexpr float STEEPNESS = 0.3f, TAIL[] = {0.03593151007f, -0.1582748169f, 0.208204146f, -0.055391246f,
                                            0.1294677046f, 0.09963795661f, 0.120798287f, 0.119626394f};
#endif

// Phi(x), the normal distribution, with a relative error of 4e-7 (of the tail above, if larger), and exp(-x^2 / 2). NaN
// gives NaN.
INLINE Vec normal(Vec x, Vec& bell) {
  Vec size = x < 0 ? -x : x;
  bell = exp2_for<Result>(x * x * -0.72134752f);
  size = size < 1e4f ? size : splat(1e4f);  // infinity has no reciprocal here
  const Vec t = reciprocal_for<Result>(size * STEEPNESS + 1);
  Vec p = splat(TAIL[0]);
  UNROLL
  for (int i = 1; i < int(sizeof(TAIL) / sizeof(float)); i++) p = p * t + TAIL[i];
  const Vec tail = p * t * bell;
  return x > 0 ? 1 - tail : tail;
}

INLINE Vec gelu(Vec x) {
  Vec bell;
  return x * normal(x, bell);
}

INLINE Vec gelu_slope(Vec x) {
  Vec bell;
  const Vec phi = normal(x, bell);
  return phi + x * bell * 0.39894228f;
}

INLINE int64_t blocks(const DWConv& p) { return ceil_div(p.channels, BLOCK); }
INLINE int64_t strips(const DWConv& p) { return ceil_div(p.height, p.rows); }

// Columns of a unit, which has all channels: its rows are whole pages of memory. Equal parts of the width.
INLINE int64_t columns(const DWConv& p) {
  const int64_t fit = RING / (p.kernel * blocks(p) * BLOCK) - (p.kernel - 1);
  return ceil_div(p.width, ceil_div(p.width, fit > 16 ? fit : 16));
}

INLINE int64_t parts(const DWConv& p) { return ceil_div(p.width, columns(p)); }
int64_t units(const DWConv& p) { return p.batch * strips(p) * parts(p); }

// Numbers of a row of a block: outputs in whole tiles, and the columns beside them that the kernel covers.
INLINE int64_t row_size(const DWConv& p) { return (ceil_div(columns(p), TILE) * TILE + p.kernel - 1) * BLOCK; }

struct Unit {
  int64_t image, top, bottom, left, width;

  Unit(const DWConv& p, int64_t index) {
    left = index % parts(p) * columns(p);
    width = least(columns(p), p.width - left);
    top = index / parts(p) % strips(p) * p.rows;
    bottom = least(top + p.rows, p.height);
    image = index / parts(p) / strips(p);
  }

  int64_t token(const DWConv& p, int64_t y, int64_t x) const { return (image * p.height + y) * p.width + x; }
};

// Load or store the `count` channels that there are of a vector, a multiple of eight; the others are zeros.
template <class T>
INLINE Vec load_some(const T* from, int64_t count) {
  if (count >= LANES) return load(from);
  float all[LANES] = {};
  for (int64_t c = 0; c < count; c += EIGHT) store8(all + c, load8(from + c));
  return load(all);
}

template <class T>
INLINE void store_some(T* to, Vec x, int64_t count) {
  if (count >= LANES) return store(to, x);
  float all[LANES];
  store(all, x);
  for (int64_t c = 0; c < count; c += EIGHT) store8(to + c, load8(all + c));
}

// Read a row of a map, whose tokens are `token` numbers apart, and `margin` columns beside it: call put(vector, where it
// belongs in the row), block after block, `step` numbers apart. What is outside the map is zero.
template <class T, class Put>
INLINE void read_row(const DWConv& p, const Unit& unit, const void* map, int64_t token, int64_t y, int64_t margin,
                     int64_t step, Put put) {
  const int64_t channels = p.channels, begin = y < 0 || y >= p.height ? p.width : 0;  // of columns inside the map
  const T* from = static_cast<const T*>(map) + unit.token(p, y, unit.left - margin) * token;
  for (int64_t i = 0, x = unit.left - margin; i < unit.width + 2 * margin; i++, x++, from += token) {
    const bool is_outside = x < begin || x >= p.width;
    for (int64_t c = 0, at = i * BLOCK; c < channels; c += BLOCK, at += step) {
      UNROLL
      for (int64_t j = 0; j < BLOCK; j += LANES) {
        put(is_outside ? Vec{} : load_some(from + c + j, channels - c - j), at + j);
      }
    }
  }
}

// put(bias + sum of weight[i][j] * rows[i][x + j], x, c) for a block of channels c.
template <int KERNEL, class Put>
INLINE void convolve(const float* const* rows, const float* weight, const float* bias, int64_t width, Put put) {
  for (int64_t x = 0; x < width; x += TILE) {  // outer: all of a cache line of the result is written at once
    for (int64_t c = 0; c < BLOCK; c += LANES) {
      Vec sums[TILE];
      UNROLL
      for (int t = 0; t < TILE; t++) sums[t] = load(bias + c);
      UNROLL
      for (int i = 0; i < KERNEL; i++) {
        const float* row = rows[i] + x * BLOCK + c;
        UNROLL
        for (int j = 0; j < KERNEL; j++) {
          const Vec w = load(weight + (i * KERNEL + j) * BLOCK + c);
          UNROLL
          for (int t = 0; t < TILE; t++) sums[t] += w * load(row + (t + j) * BLOCK);
        }
      }
      UNROLL
      for (int t = 0; t < TILE; t++) {
        if (x + t < width) put(sums[t], x + t, c);
      }
    }
  }
}

// sums[i][j] += sum over x of grad[x] * rows[i][x + j]; then the sum of grad.
template <int KERNEL>
INLINE void correlate(const float* const* rows, const float* grad, int64_t width, float* sums) {
  for (int64_t c = 0; c < BLOCK; c += LANES) {
    Vec total{};
    for (int64_t x = 0; x < width; x++) total += load(grad + x * BLOCK + c);
    float* last = sums + KERNEL * KERNEL * BLOCK + c;
    store(last, load(last) + total);
    UNROLL
    for (int i = 0; i < KERNEL; i++) {
      Vec products[KERNEL] = {};
      for (int64_t x = 0; x < width; x++) {
        const Vec g = load(grad + x * BLOCK + c);
        UNROLL
        for (int j = 0; j < KERNEL; j++) products[j] += g * load(rows[i] + (x + j) * BLOCK + c);
      }
      UNROLL
      for (int j = 0; j < KERNEL; j++) {
        float* sum = sums + (i * KERNEL + j) * BLOCK + c;
        store(sum, load(sum) + products[j]);
      }
    }
  }
}

// Rows y - KERNEL / 2 to y + KERNEL / 2 of a unit, of all blocks. It starts as zeros, which fill up blocks and tiles.
template <int KERNEL>
struct Ring {
  float* memory;
  int64_t row, step;  // numbers of a row, and from block to block

  Ring(const DWConv& p, float*& free) : memory(free), row(row_size(p)), step(KERNEL * row) {
    free += step * blocks(p);
    for (float* at = memory; at < free; at++) *at = 0;
  }

  float* slot(int64_t y, int64_t block = 0) { return memory + block * step + (y + KERNEL) % KERNEL * row; }  // y >= -KERNEL

  void around(int64_t y, int64_t block, const float** rows) {
    for (int i = 0; i < KERNEL; i++) rows[i] = slot(y + i - KERNEL / 2, block);
  }
};

// Copy parameters, `numbers` of each channel, block after block, `step` numbers apart.
INLINE void read_parameters(const DWConv& p, const float* from, int64_t numbers, float* to, int64_t step) {
  for (int64_t b = 0; b < blocks(p); b++) {
    for (int64_t i = 0; i < numbers; i++) {
      for (int64_t c = 0; c < BLOCK; c++) {
        const int64_t channel = b * BLOCK + c;
        to[b * step + i * BLOCK + c] = channel < p.channels ? from[i * p.channels + channel] : 0;
      }
    }
  }
}

template <int KERNEL, class T>
void forward(const DWConv& p, int64_t begin, int64_t end, float* scratch) {
  constexpr int MARGIN = KERNEL / 2, TAPS = KERNEL * KERNEL;
  Ring<KERNEL> inputs(p, scratch);
  const int64_t step = (TAPS + 1) * BLOCK, channels = p.channels;
  const bool is_gelu = p.gelu;
  float *weight = scratch, *bias = weight + TAPS * BLOCK;
  const float* rows[KERNEL];
  read_parameters(p, p.weight, TAPS, weight, step);
  read_parameters(p, p.bias, 1, bias, step);
  for (int64_t index = begin; index < end; index++) {
    const Unit unit(p, index);
    for (int64_t y = unit.top - MARGIN; y < unit.bottom + MARGIN; y++) {
      const int64_t done = y - MARGIN;
      float* row = inputs.slot(y);
      read_row<T>(p, unit, p.x, p.x_token, y, MARGIN, inputs.step, [=](Vec x, int64_t at) INLINE_LAMBDA {
        store(row + at, is_gelu ? gelu(x) : x);
      });
      for (int64_t b = 0; done >= unit.top && b < blocks(p); b++) {
        T* to = static_cast<T*>(p.out) + unit.token(p, done, unit.left) * channels + b * BLOCK;
        inputs.around(done, b, rows);
        convolve<KERNEL>(rows, weight + b * step, bias + b * step, unit.width,
                         [=](Vec sum, int64_t x, int64_t c) INLINE_LAMBDA {
          store_some(to + x * channels + c, sum, channels - b * BLOCK - c);
        });
      }
    }
  }
}

template <int KERNEL, class T>
void backward(const DWConv& p, int64_t begin, int64_t end, float* scratch) {
  constexpr int MARGIN = KERNEL / 2, TAPS = KERNEL * KERNEL;
  Ring<KERNEL> inputs(p, scratch), slopes(p, scratch), grads(p, scratch);
  const int64_t step = (TAPS + 1) * BLOCK, channels = p.channels;
  const bool is_gelu = p.gelu;
  float *weight = scratch, *sums = weight + blocks(p) * step;
  const float zeros[BLOCK] = {};
  const float* rows[KERNEL];
  read_parameters(p, p.weight, TAPS, weight, step);
  for (int64_t b = 0; b < blocks(p); b++) {
    for (int64_t i = 0; i < TAPS / 2; i++) {  // what takes gradients back is turned by half a turn
      for (int64_t c = 0; c < BLOCK; c++) {
        float &one = weight[b * step + i * BLOCK + c], &other = weight[b * step + (TAPS - 1 - i) * BLOCK + c];
        const float kept = one;
        one = other;
        other = kept;
      }
    }
  }
  for (int64_t index = begin; index < end; index++) {
    const Unit unit(p, index);
    for (int64_t i = 0; i < blocks(p) * step; i++) sums[i] = 0;
    for (int64_t y = unit.top - MARGIN; y < unit.bottom + MARGIN; y++) {
      const int64_t done = y - MARGIN;
      float *row = inputs.slot(y), *slope = slopes.slot(y), *grad = grads.slot(y);
      read_row<T>(p, unit, p.x, p.x_token, y, MARGIN, inputs.step, [=](Vec x, int64_t at) INLINE_LAMBDA {
        if (is_gelu) store(slope + at, gelu_slope(x));
        store(row + at, is_gelu ? gelu(x) : x);
      });
      read_row<T>(p, unit, p.grad, channels, y, MARGIN, grads.step,
                  [=](Vec x, int64_t at) INLINE_LAMBDA { store(grad + at, x); });
      for (int64_t b = 0; done >= unit.top && b < blocks(p); b++) {
        inputs.around(done, b, rows);
        correlate<KERNEL>(rows, grads.slot(done, b) + MARGIN * BLOCK, unit.width, sums + b * step);
        grads.around(done, b, rows);
        T* to = static_cast<T*>(p.grad_x) + unit.token(p, done, unit.left) * channels + b * BLOCK;
        const float* factors = slopes.slot(done, b) + MARGIN * BLOCK;
        convolve<KERNEL>(rows, weight + b * step, zeros, unit.width, [=](Vec sum, int64_t x, int64_t c) INLINE_LAMBDA {
          const Vec result = is_gelu ? sum * load(factors + x * BLOCK + c) : sum;
          store_some(to + x * channels + c, result, channels - b * BLOCK - c);
        });
      }
    }
    float* partial = p.partial + index * (TAPS + 1) * p.channels;
    for (int64_t i = 0; i <= TAPS; i++) {
      for (int64_t c = 0; c < p.channels; c++) partial[i * p.channels + c] = sums[c / BLOCK * step + i * BLOCK + c % BLOCK];
    }
  }
}

int64_t scratch_size(const DWConv& p) {
  return blocks(p) * (3 * p.kernel * row_size(p) + 2 * (p.kernel * p.kernel + 1) * BLOCK);
}

#ifdef RMT_PAIRS  // this instruction set is for bfloat16 alone
#define OF_DTYPE(function, kernel, p) function<kernel, BFloat16>
#else
#define OF_DTYPE(function, kernel, p) (p.is_bfloat16 ? function<kernel, BFloat16> : function<kernel, float>)
#endif
#define OF_KERNEL_AND_DTYPE(function)                                                              \
  [](const DWConv& p, int64_t begin, int64_t end, float* scratch) {                                \
    (p.kernel == 3 ? OF_DTYPE(function, 3, p) : OF_DTYPE(function, 5, p))(p, begin, end, scratch); \
  }

}  // namespace

extern const DWConvKernels dwconv_kernels;
const DWConvKernels dwconv_kernels = {units, scratch_size, OF_KERNEL_AND_DTYPE(forward), OF_KERNEL_AND_DTYPE(backward)};

}  // namespace RMT_ISA
}  // namespace rmt_mm
