// Manhattan self-attention for one instruction set: see masa.h for what is computed, simd.h for how it is compiled.
//
// Queries are in lanes: a tile of queries is one to three vectors for each channel, and every number of a key or value
// is multiplied with all of them. Tiles meet keys in blocks, so that the weights of a block stay in the first cache.
// All three products of the forward and the backward pass that have queries or channels in lanes are `product`. Its
// operands are floats, or pairs of bfloat16 where the processor multiplies these (simd.h).

#include "masa.h"
#include "simd.h"

namespace rmt_mm {
namespace RMT_ISA {
namespace {

constexpr int MAX_VECTORS = 3;  // of a tile
static_assert(MAX_VECTORS * LANES <= MAX_TILE, "line_bias is too short");
constexpr int64_t MAX_BLOCK = 96;  // keys
constexpr float LOWEST = -3.4e38f;

// Rows of a product at a time: as many sums as stay in registers beside the operands.
constexpr int max_rows(int vectors) {
  int rows = RMT_SUMS / vectors;
  return rows < 14 ? rows : 14;
}

INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

template <int N>
struct Count {
  static constexpr int value = N;
};

// Call f with `count`, 1 to MAX, as a constant.
template <int MAX, class F>
INLINE void with_count(int64_t count, F f) {
  if constexpr (MAX > 1) {
    if (count < MAX) return with_count<MAX - 1>(count, f);
  }
  f(Count<MAX>{});
}

// What a product starts from. Numbers are asked for row by row.
struct FromZero {
  INLINE void next_row() {}
  INLINE Vec get(int, const float*) const { return Vec{}; }
};

struct FromResult {  // adds to what is there
  INLINE void next_row() {}
  INLINE Vec get(int, const float* result) const { return load(result); }
};

struct FromLineBias {  // rows are keys of a line, lanes are queries
  const float* bias;   // of the first key

  INLINE void next_row() { bias--; }
  INLINE Vec get(int vector, const float*) const { return load(bias + vector * LANES); }
};

struct FromMapBias {  // rows are keys of a map: the bias is that of the distance in y plus that of the distance in x
  const float *of_y, *of_x, *all_x, *end_x;
  int64_t tile;

  INLINE void next_row() {
    of_x += tile;
    bool is_end = of_x == end_x;
    of_x = is_end ? all_x : of_x;
    of_y += is_end ? tile : 0;
  }
  INLINE Vec get(int vector, const float*) const { return load(of_y + vector * LANES) + load(of_x + vector * LANES); }
};

// A product of matrices, rows x n by n x (VECTORS * LANES), with a start. a(r, i) is at a + r * row + i if KIND is
// ROWS, or at a + r + i * row if it is COLUMNS. Of pairs, n is their number. `top`, if given, is raised to the largest
// result of each lane.
enum Kind { ROWS, COLUMNS };

template <int VECTORS, Kind KIND, bool HAS_TOP = false, class N, class Start>
__attribute__((noinline)) void product(float* result, int64_t result_row, int64_t rows, const N* a, int64_t row,
                                       const N* b, int64_t b_row, int64_t n, Start start, Vec* top = nullptr) {
  constexpr int MAX = max_rows(VECTORS);
  Vec tops[VECTORS];
  UNROLL
  for (int v = 0; v < VECTORS; v++) tops[v] = HAS_TOP ? top[v] : Vec{};
  int parts = (int(rows) + MAX - 1) / MAX, even = int(rows) / parts, longer = int(rows) % parts;
  for (int part = 0; part < parts; part++) {
    with_count<MAX>(even + (part < longer), [&](auto count) INLINE_LAMBDA {
      constexpr int R = decltype(count)::value;
      Vec sums[R][VECTORS];
      UNROLL
      for (int r = 0; r < R; r++) {
        UNROLL
        for (int v = 0; v < VECTORS; v++) sums[r][v] = start.get(v, result + r * result_row + v * LANES);
        start.next_row();
      }
      const N *from_a = a, *from_b = b;
      for (int64_t i = 0; i < n; i++) {
        VecOf<N> x[VECTORS];
        UNROLL
        for (int v = 0; v < VECTORS; v++) x[v] = load(from_b + v * LANES);
        UNROLL
        for (int r = 0; r < R; r++) {
          VecOf<N> factor = splat(from_a[KIND == ROWS ? r * row : r]);
          UNROLL
          for (int v = 0; v < VECTORS; v++) sums[r][v] = multiply_add(factor, x[v], sums[r][v]);
        }
        from_a += KIND == ROWS ? 1 : row;
        from_b += b_row;
      }
      UNROLL
      for (int r = 0; r < R; r++) {
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
          store(result + r * result_row + v * LANES, sums[r][v]);
          if (HAS_TOP) tops[v] = maximum(sums[r][v], tops[v]);
        }
      }
      result += R * result_row;
      a += KIND == ROWS ? R * row : R;
    });
  }
  UNROLL
  for (int v = 0; v < VECTORS; v++) {
    if (HAS_TOP) top[v] = tops[v];
  }
}

// Where things are -----------------------------------------------------------------------------------------------------

struct Place {  // of one problem
  int64_t batch, line, head;

  Place(const Problem& p, int64_t problem)
      : batch(problem / (p.lines * p.heads)), line(problem / p.heads % p.lines), head(problem % p.heads) {}
};

template <class T>
INLINE T* at(const View& view, const Place& place) {
  return static_cast<T*>(view.data) + place.batch * view.batch + place.line * view.line + place.head * view.head;
}

INLINE int64_t tokens(const Problem& p) { return p.height * p.width; }
// Numbers N that hold a token's channels, and a row of them.
template <class N>
INLINE int64_t numbers(const Problem& p) { return p.dim / CHANNELS<N>; }
template <class N = float>
INLINE int64_t padded(const Problem& p) { return round_up(numbers<N>(p), LANES); }
INLINE int64_t vectors(const Problem& p) { return ceil_div(tokens(p), LANES); }
INLINE int64_t chunk_size(const Problem& p) { return ceil_div(tokens(p), p.chunks); }

// Keys at a time. Blocks of keys and values, and their weights, fit the first cache.
INLINE int64_t block_size(const Problem& p, int64_t keys) {
  int64_t most = p.dim <= 32 ? MAX_BLOCK : p.dim <= 64 ? MAX_BLOCK / 2 : MAX_BLOCK / 4;
  return round_up(ceil_div(keys, ceil_div(keys, most)), 2);  // whole pairs
}

int64_t tiles(const Problem& p) { return ceil_div(vectors(p), MAX_VECTORS); }

struct Tile {
  int64_t first, vectors;  // tokens, vectors

  // Tiles of three vectors; the last ones have fewer, and one that is alone would be slow: 3 3 1 becomes 3 2 2.
  Tile(const Problem& p, int64_t index) {
    int64_t all = rmt_mm::RMT_ISA::vectors(p), before = index * MAX_VECTORS;
    vectors = least(MAX_VECTORS, all - before);
    if (all % MAX_VECTORS == 1 && all > 1) {
      if (index >= tiles(p) - 2) vectors = 2;
      if (index == tiles(p) - 1) before -= 1;
    }
    first = before * LANES;
  }
};

// Visit tokens [begin, end) of a map with the place of each in a tensor.
struct Walk {
  int64_t x, width, x_stride, row_step, offset;

  Walk(const Problem& p, const View& view, int64_t begin)
      : x(begin % p.width), width(p.width), x_stride(view.x), row_step(view.y - view.x * p.width),
        offset(begin / p.width * view.y + begin % p.width * view.x) {}

  INLINE void next() {
    offset += x_stride;
    if (++x == width) {
      x = 0;
      offset += row_step;
    }
  }
};

// Scratch memory, handed out piece by piece.
struct Memory {
  float* next;

  template <class N = float>
  N* take(int64_t count) {
    static_assert(sizeof(N) == sizeof(float), "sizes are in numbers");
    N* piece = reinterpret_cast<N*>(next);
    next += round_up(count, 16);
    return piece;
  }
};

// How rows are changed on their way. `is_back` rotates backwards, as gradients are.
struct Change {
  float scale;
  bool is_rotated, is_back;
};

// Call visit(offset of a token's channels, the token's row, 8 channels' index, change of 8 numbers) for all channels of
// tokens [begin, end).
template <class F>
INLINE void visit_rows(const Problem& p, const View& view, const Place& place, int64_t begin, int64_t end,
                       const Change& change, F visit) {
  const int64_t dim = p.dim;  // a local: stores cannot change it
  Walk walk(p, view, begin);
  if (change.is_rotated && p.phases.data) {
    const float* phases = at<const float>(p.phases, place);
    Walk phase_walk(p, p.phases, begin);
    const float scale = change.scale, sine = change.is_back ? -scale : scale;
    const Vec8 sines = {-sine, sine, -sine, sine, -sine, sine, -sine, sine};
    for (int64_t n = begin; n < end; n++, walk.next(), phase_walk.next()) {
      for (int64_t c = 0; c < dim; c += EIGHT) {
        Vec8 phase = load8(phases + phase_walk.offset + c);
        visit(walk.offset, n - begin, c, [=](Vec8 x) INLINE_LAMBDA { return rotate8(x, phase, scale, sines); });
      }
    }
  } else {
    const float scale = change.scale;
    for (int64_t n = begin; n < end; n++, walk.next()) {
      for (int64_t c = 0; c < dim; c += EIGHT) {
        visit(walk.offset, n - begin, c, [=](Vec8 x) INLINE_LAMBDA { return x * scale; });
      }
    }
  }
}

// Copy the channels of tokens [begin, end) to rows of padded<N> numbers.
template <class T, class N>
void load_rows(const Problem& p, const View& view, const Place& place, int64_t begin, int64_t end,
               const Change& change, N* rows) {
  const int64_t row = padded<N>(p);
  const T* from = at<const T>(view, place);
  visit_rows(p, view, place, begin, end, change, [=](int64_t offset, int64_t n, int64_t c, auto changed) INLINE_LAMBDA {
    store8(channels(rows + n * row) + c, changed(load8(from + offset + c)));
  });
  for (int64_t n = 0; n < end - begin; n++) {
    for (int64_t c = p.dim; c < row * CHANNELS<N>; c += EIGHT) store8(channels(rows + n * row) + c, Vec8{});
  }
}

// Rows of `count` tokens for a product that adds over tokens. Numbers stay where they are. Of pairs of channels,
// (count, padded<Pair>), make pairs of tokens, (count / 2, padded<float>), in `memory`; a last one is paired with zeros.
INLINE const float* over_tokens(const Problem&, const float* rows, int64_t, Memory&) { return rows; }

INLINE const Pair* over_tokens(const Problem& p, const Pair* rows, int64_t count, Memory& memory) {
  const int64_t row = padded<Pair>(p), pair_row = padded<float>(p);
  Pair* pairs = memory.take<Pair>(ceil_div(count, 2) * pair_row);
  for (int64_t n = 0; n < count; n += 2) {
    const BFloat16* first = channels(rows + n * row);
    const BFloat16* second = n + 1 < count ? channels(rows + (n + 1) * row) : nullptr;
    for (int64_t c = 0; c < pair_row; c += EIGHT) pair8(pairs + n / 2 * pair_row + c, first + c, second ? second + c : second);
  }
  return pairs;
}

// The reverse of load_rows.
template <class T>
void store_rows(const Problem& p, const View& view, const Place& place, int64_t begin, int64_t end,
                const Change& change, const float* rows) {
  const int64_t row = padded<float>(p);
  T* to = at<T>(view, place);
  visit_rows(p, view, place, begin, end, change, [=](int64_t offset, int64_t n, int64_t c, auto changed) INLINE_LAMBDA {
    store8(to + offset + c, changed(load8(rows + n * row + c)));
  });
}

// Tiles --------------------------------------------------------------------------------------------------------------

INLINE int64_t tile_end(const Problem& p, const Tile& tile) {
  return least(tile.first + tile.vectors * LANES, tokens(p));
}

// Load a tile both ways: `rows` is (queries, padded<N>), `columns` is (padded<N>, queries). Missing queries are zero.
template <class T, class N>
void load_tile(const Problem& p, const View& view, const Place& place, const Tile& tile, const Change& change, N* rows,
               N* columns) {
  const int64_t row = padded<N>(p), queries = tile.vectors * LANES, end = tile_end(p, tile);
  load_rows<T>(p, view, place, tile.first, end, change, rows);
  for (int64_t i = (end - tile.first) * row; i < queries * row; i++) rows[i] = N{};
  for (int64_t n = 0; n < queries; n += LANES) {
    for (int64_t c = 0; c < row; c += LANES) transpose(rows + n * row + c, row, columns + c * queries + n, queries);
  }
}

// Store a tile that is (padded<float>, queries); `rows` is memory for as many numbers.
template <class T>
void store_tile(const Problem& p, const View& view, const Place& place, const Tile& tile, const Change& change,
                const float* columns, float* rows) {
  const int64_t row = padded<float>(p), queries = tile.vectors * LANES;
  for (int64_t n = 0; n < queries; n += LANES) {
    for (int64_t c = 0; c < row; c += LANES) transpose(columns + c * queries + n, queries, rows + n * row + c, row);
  }
  store_rows<T>(p, view, place, tile.first, tile_end(p, tile), change, rows);
}

// The bias of a tile of queries, for every key.
template <int VECTORS>
struct TileBias {
  static constexpr int64_t QUERIES = VECTORS * LANES;
  const float *line, *of_y, *of_x;
  int64_t width;

  // `memory` is for (height + width) * QUERIES numbers.
  TileBias(const Problem& p, const Place& place, const Tile& tile, float* memory)
      : line(nullptr), of_y(memory), of_x(memory + p.height * QUERIES), width(p.width) {
    if (p.height == 1) {
      line = p.line_bias + place.head * line_bias_size(p.width) + p.width - 1 + tile.first;
      return;
    }
    float y[QUERIES], x[QUERIES];
    for (int64_t i = 0; i < QUERIES; i++) {
      y[i] = float((tile.first + i) / p.width);
      x[i] = float((tile.first + i) % p.width);
    }
    fill(memory, y, p.height, p.slopes[place.head]);
    fill(memory + p.height * QUERIES, x, p.width, p.slopes[place.head]);
  }

  static void fill(float* to, const float* from, int64_t length, float slope) {
    for (int64_t i = 0; i < length; i++) {
      for (int64_t n = 0; n < QUERIES; n += LANES, to += LANES) {
        Vec distance = load(from + n) - float(i);
        store(to, slope * maximum(distance, -distance));
      }
    }
  }

  // Logits, before they are scaled, of `n` keys from `key`; see product.
  template <bool HAS_TOP, class N>
  INLINE void logits(const Problem& p, float* result, const N* keys, int64_t key, int64_t n, const N* columns,
                     Vec* top) const {
    const int64_t row = padded<N>(p), dim = numbers<N>(p);
    const N* from = keys + key * row;
    key += first_key;
    if (line) {
      product<VECTORS, ROWS, HAS_TOP>(result, QUERIES, n, from, row, columns, QUERIES, dim, FromLineBias{line - key},
                                      top);
    } else {
      FromMapBias start = {of_y + key / width * QUERIES, of_x + key % width * QUERIES, of_x, of_x + width * QUERIES,
                           QUERIES};
      product<VECTORS, ROWS, HAS_TOP>(result, QUERIES, n, from, row, columns, QUERIES, dim, start, top);
    }
  }

  int64_t first_key = 0;  // the token of the first of `keys`
};

int64_t tile_memory(const Problem& p) {
  return MAX_TILE * (8 * padded<float>(p) + 3 * MAX_BLOCK + p.height + p.width + 4) + 16 * 16;
}

// The forward pass ---------------------------------------------------------------------------------------------------

// Weights are 2^(logit - peak). The peak follows the largest logit, but only where that is more than 8 above: sums stay
// far from overflow, and scaling them anew is rare. Products with keys are scaled here, to powers of two: pairs of
// bfloat16 could not be scaled before without an error.
constexpr float SLACK = 8;
INLINE float power_scale(const Problem& p) { return p.scale * 1.44269504f; }

INLINE bool any(Int is_true) {
  int32_t found = 0;
  UNROLL
  for (int i = 0; i < LANES; i++) found |= is_true[i];
  return found;
}

template <int VECTORS, class T, class N = Operand<T>>
void forward_tile(const Problem& p, const Place& place, const Tile& tile, const N* keys, const N* values,
                  Memory memory) {
  constexpr int64_t QUERIES = VECTORS * LANES;
  constexpr int TOKENS = CHANNELS<N>;  // keys whose weights make a number
  const int64_t row = padded<float>(p), all = tokens(p), block = block_size(p, all);
  const float power = power_scale(p), slack = SLACK / power;
  N *q_rows = memory.take<N>(QUERIES * row), *columns = memory.take<N>(QUERIES * row);
  float *rows = memory.take(QUERIES * row), *out = memory.take(QUERIES * row), *logits = memory.take(MAX_BLOCK * QUERIES);
  N* weights = reinterpret_cast<N*>(logits);  // every number is written after the logits that were there are read
  load_tile<T>(p, p.q, place, tile, {1, true, false}, q_rows, columns);
  const TileBias<VECTORS> bias(p, place, tile, memory.take((p.height + p.width) * QUERIES));

  Vec peak[VECTORS] = {}, sum[VECTORS] = {};
  for (int64_t key = 0; key < all; key += block) {
    const int64_t n = least(block, all - key);
    Vec top[VECTORS];
    UNROLL
    for (int v = 0; v < VECTORS; v++) top[v] = splat(LOWEST);
    bias.template logits<true>(p, logits, keys, key, n, columns, top);
    if (key == 0) {
      UNROLL
      for (int v = 0; v < VECTORS; v++) peak[v] = top[v];
    } else {
      Int is_above = {};
      UNROLL
      for (int v = 0; v < VECTORS; v++) is_above |= top[v] > peak[v] + slack;
      if (any(is_above)) {
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
          Vec raised = maximum(top[v], peak[v]), factor = exp2((peak[v] - raised) * power);
          peak[v] = raised;
          sum[v] *= factor;
          for (int64_t c = 0; c < p.dim; c++) {
            float* at = out + c * QUERIES + v * LANES;
            store(at, load(at) * factor);
          }
        }
      }
    }
    Vec block_sum[VECTORS] = {}, shift[VECTORS];
    UNROLL
    for (int v = 0; v < VECTORS; v++) shift[v] = peak[v] * power;
    for (int64_t i = 0; i < n; i += TOKENS) {
      UNROLL
      for (int v = 0; v < VECTORS; v++) {
        Vec weight[TOKENS];
        UNROLL
        for (int t = 0; t < TOKENS; t++) {
          weight[t] = Vec{};
          if (i + t < n) weight[t] = exp2_for<N>(load(logits + (i + t) * QUERIES + v * LANES) * power - shift[v]);
          block_sum[v] += weight[t];
        }
        join(weights + i / TOKENS * QUERIES + v * LANES, weight);
      }
    }
    UNROLL
    for (int v = 0; v < VECTORS; v++) sum[v] += block_sum[v];
    const N* block_values = values + key / TOKENS * row;
    const int64_t pairs = ceil_div(n, TOKENS);
    if (key == 0) {
      product<VECTORS, COLUMNS>(out, QUERIES, p.dim, block_values, row, weights, QUERIES, pairs, FromZero{});
    } else {
      product<VECTORS, COLUMNS>(out, QUERIES, p.dim, block_values, row, weights, QUERIES, pairs, FromResult{});
    }
  }

  float* logsum = logits;
  UNROLL
  for (int v = 0; v < VECTORS; v++) {
    store(logsum + v * LANES, peak[v] * power + log2(sum[v]));
    Vec factor = 1 / sum[v];
    for (int64_t c = 0; c < p.dim; c++) {
      float* at = out + c * QUERIES + v * LANES;
      store(at, load(at) * factor);
    }
  }
  store_tile<T>(p, p.out, place, tile, {1, false, false}, out, rows);
  float* to = at<float>(p.logsum, place);
  Walk walk(p, p.logsum, tile.first);
  for (int64_t n = tile.first; n < tile_end(p, tile); n++, walk.next()) to[walk.offset] = *logsum++;
}

template <class T>
void forward(const Problem& p, int64_t begin, int64_t end, float* scratch) {
  using N = Operand<T>;
  const int64_t all = tokens(p), a_map = tiles(p);
  int64_t loaded = -1;
  N* keys = nullptr;
  const N* values = nullptr;
  Memory memory = {};
  for (int64_t unit = begin; unit < end; unit++) {
    const Place place(p, unit / a_map);
    const Tile tile(p, unit % a_map);
    if (unit / a_map != loaded) {
      memory = {scratch};
      keys = memory.take<N>(all * padded<N>(p));
      N* rows = memory.take<N>(all * padded<N>(p));
      load_rows<T>(p, p.k, place, 0, all, {1, true, false}, keys);
      load_rows<T>(p, p.v, place, 0, all, {1, false, false}, rows);
      values = over_tokens(p, rows, all, memory);
      loaded = unit / a_map;
    }
    with_count<MAX_VECTORS>(tile.vectors, [&](auto count) {
      forward_tile<decltype(count)::value, T>(p, place, tile, keys, values, memory);
    });
  }
}

// The backward pass --------------------------------------------------------------------------------------------------

// With weights P = 2^(logit - logsum), and gradients dO of the result O:
//   dV = P^T dO,   dS = P (dO V^T - sum(dO O)),   dK = dS^T Q scale,   dQ = dS K scale

// result (n, dim) += weights (n, queries) * rows (queries, dim), channels in lanes. Of pairs, `queries` is their number.
template <class N>
INLINE void add_to_keys(const Problem& p, float* result, int64_t n, const N* weights, int64_t weights_row,
                        const N* rows, int64_t queries) {
  const int64_t row = padded<float>(p);
  for (int64_t left = row / LANES, c = 0; left > 0;) {
    const int64_t vectors = left == 4 ? 2 : least(left, MAX_VECTORS);
    with_count<MAX_VECTORS>(vectors, [&](auto count) {
      product<decltype(count)::value, ROWS>(result + c, row, n, weights, weights_row, rows + c, row, queries,
                                            FromResult{});
    });
    left -= vectors;
    c += vectors * LANES;
  }
}

template <class N>
struct Chunk {  // of keys
  int64_t begin, size;
  N *keys, *values;
  const N* keys_over_tokens;
  float *grad_keys, *grad_values;
};

// Add to the gradients of a chunk of keys; store that of the tile's queries, or leave it in `partial` if given.
template <int VECTORS, class T, class N = Operand<T>>
void backward_tile(const Problem& p, const Place& place, const Tile& tile, const Chunk<N>& chunk, float* partial,
                   Memory memory) {
  constexpr int64_t QUERIES = VECTORS * LANES;
  constexpr int TOKENS = CHANNELS<N>;  // whose weights make a number
  const int64_t row = padded<float>(p), block = block_size(p, chunk.size), queries = tile_end(p, tile) - tile.first;
  const float power = power_scale(p);
  N *q_rows = memory.take<N>(QUERIES * row), *q_columns = memory.take<N>(QUERIES * row);
  N *grad_rows = memory.take<N>(QUERIES * row), *grad_columns = memory.take<N>(QUERIES * row);
  float* grad_q = partial ? partial + tile.first * row : memory.take(QUERIES * row);
  float *logits = memory.take(MAX_BLOCK * QUERIES), *products = memory.take(MAX_BLOCK * QUERIES);
  // What is made of them, over queries, is written after the row that was there is read; and over keys.
  N *weights = reinterpret_cast<N*>(logits), *grads = reinterpret_cast<N*>(products);
  N* grads_over_keys = TOKENS == 1 ? grads : memory.take<N>(MAX_BLOCK / TOKENS * QUERIES);
  float *logsums = memory.take(QUERIES), *deltas = memory.take(QUERIES);
  TileBias<VECTORS> bias(p, place, tile, memory.take((p.height + p.width) * QUERIES));
  bias.first_key = chunk.begin;

  load_rows<T>(p, p.out, place, tile.first, tile_end(p, tile), {1, false, false}, q_rows);
  load_tile<T>(p, p.grad, place, tile, {1, false, false}, grad_rows, grad_columns);
  const float* from = at<const float>(p.logsum, place);
  Walk walk(p, p.logsum, tile.first);
  for (int64_t i = 0; i < QUERIES; i++) {
    logsums[i] = deltas[i] = 0;
    if (i >= queries) continue;
    logsums[i] = from[walk.offset];
    walk.next();
    const auto *grad = channels(grad_rows + i * padded<N>(p)), *out = channels(q_rows + i * padded<N>(p));
    Vec8 delta = {};
    for (int64_t c = 0; c < p.dim; c += EIGHT) delta += load8(grad + c) * load8(out + c);
    for (int j = 0; j < EIGHT; j++) deltas[i] += delta[j];
  }
  load_tile<T>(p, p.q, place, tile, {1, true, false}, q_rows, q_columns);
  const N* q_over_tokens = over_tokens(p, q_rows, queries, memory);
  const N* grad_over_tokens = over_tokens(p, grad_rows, queries, memory);

  for (int64_t key = 0; key < chunk.size; key += block) {
    const int64_t n = least(block, chunk.size - key);
    bias.template logits<false>(p, logits, chunk.keys, key, n, q_columns, nullptr);
    product<VECTORS, ROWS>(products, QUERIES, n, chunk.values + key * padded<N>(p), padded<N>(p), grad_columns, QUERIES,
                           numbers<N>(p), FromZero{});
    for (int64_t i = 0; i < n; i += TOKENS) {
      Vec slopes[VECTORS][TOKENS] = {};
      UNROLL
      for (int t = 0; t < TOKENS; t++) {
        if (i + t >= n) break;
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
          const int64_t at = (i + t) * QUERIES + v * LANES;
          const Vec weight = exp2_for<N>(load(logits + at) * power - load(logsums + v * LANES));
          slopes[v][t] = weight * (load(products + at) - load(deltas + v * LANES));
          store(channels(weights + at / TOKENS), weight);
          store(channels(grads + at / TOKENS), slopes[v][t]);
        }
      }
      UNROLL
      for (int v = 0; TOKENS > 1 && v < VECTORS; v++) join(grads_over_keys + i / TOKENS * QUERIES + v * LANES, slopes[v]);
    }
    add_to_keys(p, chunk.grad_values + key * row, n, weights, QUERIES / TOKENS, grad_over_tokens,
                ceil_div(queries, TOKENS));
    add_to_keys(p, chunk.grad_keys + key * row, n, grads, QUERIES / TOKENS, q_over_tokens, ceil_div(queries, TOKENS));
    const N* block_keys = chunk.keys_over_tokens + key / TOKENS * row;
    const int64_t pairs = ceil_div(n, TOKENS);
    if (key == 0) {
      product<VECTORS, COLUMNS>(grad_q, QUERIES, p.dim, block_keys, row, grads_over_keys, QUERIES, pairs, FromZero{});
    } else {
      product<VECTORS, COLUMNS>(grad_q, QUERIES, p.dim, block_keys, row, grads_over_keys, QUERIES, pairs, FromResult{});
    }
  }
  if (!partial) store_tile<T>(p, p.grad_q, place, tile, {p.scale, true, true}, grad_q, memory.take(QUERIES * row));
}

int64_t partial_size(const Problem& p) { return vectors(p) * LANES * padded<float>(p); }

template <class T>
void backward(const Problem& p, int64_t begin, int64_t end, float* scratch) {
  using N = Operand<T>;
  const int64_t row = padded<float>(p), most = chunk_size(p) * row;
  for (int64_t unit = begin; unit < end; unit++) {
    const Place place(p, unit / p.chunks);
    const int64_t chunk_begin = unit % p.chunks * chunk_size(p);
    const int64_t chunk_end = least(chunk_begin + chunk_size(p), tokens(p));
    Memory memory = {scratch};
    Chunk<N> chunk = {chunk_begin, chunk_end - chunk_begin, memory.take<N>(most), memory.take<N>(most), nullptr,
                      memory.take(most), memory.take(most)};
    load_rows<T>(p, p.k, place, chunk_begin, chunk_end, {1, true, false}, chunk.keys);
    load_rows<T>(p, p.v, place, chunk_begin, chunk_end, {1, false, false}, chunk.values);
    chunk.keys_over_tokens = over_tokens(p, chunk.keys, chunk.size, memory);
    for (int64_t i = 0; i < chunk.size * row; i++) chunk.grad_keys[i] = chunk.grad_values[i] = 0;
    for (int64_t index = 0; index < tiles(p); index++) {
      const Tile tile(p, index);
      with_count<MAX_VECTORS>(tile.vectors, [&](auto count) {
        backward_tile<decltype(count)::value, T>(p, place, tile, chunk,
                                                 p.chunks > 1 ? p.partial + unit * partial_size(p) : nullptr, memory);
      });
    }
    store_rows<T>(p, p.grad_k, place, chunk_begin, chunk_end, {p.scale, true, true}, chunk.grad_keys);
    store_rows<T>(p, p.grad_v, place, chunk_begin, chunk_end, {1, false, false}, chunk.grad_values);
  }
}

template <class T>
void reduce(const Problem& p, int64_t begin, int64_t end, float* scratch) {
  for (int64_t unit = begin; unit < end; unit++) {
    const int64_t problem = unit / tiles(p), row = padded<float>(p);
    const Tile tile(p, unit % tiles(p));
    const int64_t size = tile.vectors * LANES * row;
    const float* partial = p.partial + problem * p.chunks * partial_size(p) + tile.first * row;
    for (int64_t i = 0; i < size; i += LANES) {
      Vec sum = load(partial + i);
      for (int64_t chunk = 1; chunk < p.chunks; chunk++) sum += load(partial + chunk * partial_size(p) + i);
      store(scratch + i, sum);
    }
    store_tile<T>(p, p.grad_q, Place(p, problem), tile, {p.scale, true, true}, scratch, scratch + size);
  }
}

// Numbers: forward, keys and values twice; backward, keys twice, values and both gradients.
int64_t scratch_size(const Problem& p) {
  const int64_t whole = 3 * round_up((tokens(p) + 1) * padded<float>(p), 16);
  const int64_t part = p.chunks ? 5 * round_up((chunk_size(p) + 1) * padded<float>(p), 16) : 0;
  return (whole > part ? whole : part) + tile_memory(p);
}

#ifdef RMT_PAIRS  // this instruction set is for bfloat16 alone
#define OF_DTYPE(function) function<BFloat16>
#else
#define OF_DTYPE(function)                                                             \
  [](const Problem& p, int64_t begin, int64_t end, float* scratch) {                   \
    (p.is_bfloat16 ? function<BFloat16> : function<float>)(p, begin, end, scratch);    \
  }
#endif

}  // namespace

extern const MasaKernels masa_kernels;
const MasaKernels masa_kernels = {tiles, partial_size, scratch_size, OF_DTYPE(forward), OF_DTYPE(backward), OF_DTYPE(reduce)};

}  // namespace RMT_ISA
}  // namespace rmt_mm
