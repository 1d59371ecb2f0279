// What the operators pass to the code of one instruction set. Plain structs: see simd.h.

#pragma once

#include <stdint.h>

namespace rmt_mm {

// A tensor as (outer, line, y, x, head, channel); channels are neighbours in memory. Strides are in elements.
struct View {
  void* data;
  int64_t batch, line, y, x, head;
};

// A batch of maps of height x width tokens, in each of which every token attends to every token. Rows of an image are
// `lines` maps of one row. A *problem* is one map and one head; there are batch * lines * heads of them.
struct Problem {
  bool is_bfloat16;  // q, k, v, out and their gradients: bfloat16, else float
  int64_t batch, lines, heads, height, width, dim;
  View q, k, v, out, logsum;  // logsum: float, log2 of the sum of exp(logits); its channel is the head's
  View phases;                // float, (cos, sin) of every pair of channels; data may be null: then nothing is rotated
  float scale;                // of q k^T
  const float* slopes;        // log_decay of every head over `scale`, which is applied to their sum with q k^T
  const float* line_bias;     // maps of one row: of every head, slope * |i - (width - 1)| for i < line_bias_size(width)

  // The backward pass
  View grad, grad_q, grad_k, grad_v;
  int64_t chunks;   // parts of the keys
  float* partial;   // gradients of q from each chunk, if there are several: partial_size numbers for each problem
};

constexpr int64_t MAX_TILE = 48;  // queries in a tile, at most
static inline int64_t line_bias_size(int64_t width) { return 2 * width - 1 + MAX_TILE; }

// The functions of one instruction set. Each computes units [begin, end), which are independent of each other and may
// be computed by several threads. `scratch` is memory of one thread, aligned to 64 bytes.
struct MasaKernels {
  int64_t (*tiles)(const Problem&);         // tiles of queries in a map
  int64_t (*partial_size)(const Problem&);  // numbers
  int64_t (*scratch_size)(const Problem&);  // numbers, for any of the functions below
  // Units: problems * tiles
  void (*forward)(const Problem&, int64_t begin, int64_t end, float* scratch);
  // Units: problems * chunks
  void (*backward)(const Problem&, int64_t begin, int64_t end, float* scratch);
  // Units: problems * tiles. Adds the partial gradients of q, if there are several chunks.
  void (*reduce)(const Problem&, int64_t begin, int64_t end, float* scratch);
};

}  // namespace rmt_mm
