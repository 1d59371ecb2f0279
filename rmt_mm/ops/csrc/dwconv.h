// What the operator of the depthwise convolution passes to the code of one instruction set. Plain structs: see simd.h.

#pragma once

#include <stdint.h>

namespace rmt_mm {

// Maps (batch, height, width, channels), contiguous but for x, and a kernel x kernel depthwise convolution of stride 1
// that keeps their size. Channels are a multiple of eight. A *unit* is a part of the columns of a strip of rows of one
// image.
struct DWConv {
  bool is_bfloat16;  // x, out and their gradients: bfloat16, else float
  bool gelu;         // convolve gelu(x)
  int64_t batch, height, width, channels;
  int64_t kernel;       // 3 or 5
  int64_t rows;         // of a strip
  const void* x;        // its channels are neighbours in memory
  int64_t x_token;      // numbers from one token of x to the next, to the next row and to the next image
  void* out;
  const float* weight;  // (kernel * kernel, channels)
  const float* bias;    // (channels)

  // The backward pass
  const void* grad;
  void* grad_x;
  float* partial;  // of every unit: gradients of weight, then of bias, (kernel * kernel + 1, channels)
};

struct DWConvKernels {
  int64_t (*units)(const DWConv&);
  int64_t (*scratch_size)(const DWConv&);  // numbers
  // Compute units [begin, end). `scratch` is memory of one thread, aligned to 64 bytes.
  void (*forward)(const DWConv&, int64_t begin, int64_t end, float* scratch);
  void (*backward)(const DWConv&, int64_t begin, int64_t end, float* scratch);
};

}  // namespace rmt_mm
