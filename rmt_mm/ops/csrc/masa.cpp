// The operator of Manhattan self-attention on the CPU: its checks, memory, threads and gradients. The arithmetic is in
// masa_kernel.cpp, compiled once for each instruction set. rmt_mm/ops/masa.py describes arguments and results.

#include "masa.h"
#include "operators.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

namespace rmt_mm {

RMT_DECLARE(MasaKernels, masa_kernels)

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Decay = at::ArrayRef<double>;
using OptionalTensor = decltype(c10::IValue().toOptional<Tensor>());  // c10's, or that of std, as torch has it

enum Dim : int64_t { MAP = 0, COLUMNS = 1, ROWS = 2 };

constexpr int64_t MANY_THREADS = 64;    // the backward pass has work for so many, if there are keys enough
constexpr int64_t SMALLEST_CHUNK = 96;  // keys
constexpr int64_t GRAIN = 1 << 19;      // multiply-adds that are worth a thread

const MasaKernels& kernels(const Problem& p) {
  static const MasaKernels* chosen[] = {RMT_CHOOSE(masa_kernels), RMT_CHOOSE_BFLOAT16(masa_kernels)};
  return *chosen[p.is_bfloat16];
}

// Checks and memory --------------------------------------------------------------------------------------------------

void check(const Tensor& q, const Tensor& k, const Tensor& v, Decay log_decay, int64_t dim,
           const OptionalTensor& phases) {
  TORCH_CHECK(q.dim() == 5, "masa: q must be (batch, height, width, heads, head_dim), got ", q.dim(), " dimensions");
  TORCH_CHECK(q.sizes() == k.sizes() && q.sizes() == v.sizes(), "masa: q, k and v must have one shape, got ", q.sizes(),
              ", ", k.sizes(), " and ", v.sizes());
  TORCH_CHECK(q.scalar_type() == at::kFloat || q.scalar_type() == at::kBFloat16,
              "masa: q must be float32 or bfloat16, got ", q.scalar_type());
  TORCH_CHECK(q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type(),
              "masa: q, k and v must have one dtype");
  TORCH_CHECK(q.size(4) % 8 == 0 && q.size(4) > 0, "masa: head_dim must be a multiple of 8, got ", q.size(4));
  TORCH_CHECK(int64_t(log_decay.size()) == q.size(3), "masa: ", q.size(3), " heads, but ", log_decay.size(),
              " numbers in log_decay");
  TORCH_CHECK(dim == MAP || dim == COLUMNS || dim == ROWS, "masa: dim must be 0, 1 or 2, got ", dim);
  if (phases.has_value()) {
    const std::vector<int64_t> wanted = {q.size(1), q.size(2), 1, q.size(4) / 2, 2};
    TORCH_CHECK(phases->sizes() == at::IntArrayRef(wanted) && phases->scalar_type() == at::kFloat,
                "masa: phases must be float32 and ", at::IntArrayRef(wanted), ", got ", phases->sizes());
  }
}

// The kernels read neighbouring channels.
Tensor with_dense_channels(const Tensor& x) { return x.stride(-1) == 1 || x.size(-1) == 1 ? x : x.contiguous(); }

View view(const Tensor& x, int64_t dim) {
  const int64_t y = x.stride(1), column = x.stride(2);
  View result = {const_cast<void*>(x.const_data_ptr()), x.stride(0), 0, y, column, x.stride(3)};
  if (dim == ROWS) result.line = y;
  if (dim == COLUMNS) {
    result.line = column;
    result.x = y;
  }
  return result;
}

// A problem with the tables that it points to.
struct Task {
  Problem p = {};
  std::vector<float> slopes, line_bias;

  Task(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& logsum, Decay log_decay,
       int64_t dim, const Tensor& phases) {
    const int64_t height = q.size(1), width = q.size(2);
    p.is_bfloat16 = q.scalar_type() == at::kBFloat16;
    p.batch = q.size(0);
    p.lines = dim == ROWS ? height : dim == COLUMNS ? width : 1;
    p.heads = q.size(3);
    p.height = dim == MAP ? height : 1;
    p.width = dim == COLUMNS ? height : width;
    p.dim = q.size(4);
    p.q = view(q, dim);
    p.k = view(k, dim);
    p.v = view(v, dim);
    p.out = view(out, dim);
    p.logsum = view(logsum, dim);
    if (phases.defined()) {
      p.phases = view(phases.unsqueeze(0), dim);
      p.phases.head = 0;
      p.phases.batch = 0;
    }
    const double scale = 1 / std::sqrt(double(p.dim));
    p.scale = float(scale);
    for (double slope : log_decay) {
      slopes.push_back(float(slope / scale));
      for (int64_t i = 0; p.height == 1 && i < line_bias_size(p.width); i++) {
        line_bias.push_back(float(slope / scale * std::abs(double(i - (p.width - 1)))));
      }
    }
    p.slopes = slopes.data();
    p.line_bias = line_bias.data();
  }

  Task(const Task&) = delete;

  int64_t problems() const { return p.batch * p.lines * p.heads; }

  // Compute `units` in parallel, `parts` of which make a problem; `products` is the number of products of the size of
  // q k^T. No result depends on which thread computes it.
  void run(void (*function)(const Problem&, int64_t, int64_t, float*), int64_t parts, int64_t products) const {
    const int64_t tokens = p.height * p.width, cost = tokens * tokens * p.dim * products / parts;
    const int64_t grain = std::max<int64_t>(1, GRAIN / std::max<int64_t>(cost, 1));
    run_parallel(function, p, problems() * parts, grain, kernels(p).scratch_size(p));
  }
};

// The operator -------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> forward_meta(const Tensor& q, const Tensor& k, const Tensor& v, Decay log_decay, int64_t dim,
                                        const OptionalTensor& phases) {
  return {at::empty_symint(q.sym_sizes(), q.options()),
          at::empty_symint(q.sym_sizes().slice(0, 4), q.options().dtype(at::kFloat))};
}

std::tuple<Tensor, Tensor> forward_cpu(const Tensor& q_, const Tensor& k_, const Tensor& v_, Decay log_decay,
                                       int64_t dim, const OptionalTensor& phases_) {
  check(q_, k_, v_, log_decay, dim, phases_);
  const Tensor q = with_dense_channels(q_), k = with_dense_channels(k_), v = with_dense_channels(v_);
  const Tensor phases = phases_.has_value() ? phases_->contiguous() : Tensor();
  const Tensor out = at::empty(q.sizes(), q.options());
  const Tensor logsum = at::empty(q.sizes().slice(0, 4), q.options().dtype(at::kFloat));
  if (q.numel() > 0) {
    const Task task(q, k, v, out, logsum, log_decay, dim, phases);
    task.run(kernels(task.p).forward, kernels(task.p).tiles(task.p), 2);
  }
  return {out, logsum};
}

std::tuple<Tensor, Tensor, Tensor> backward_meta(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
                                                 const Tensor& out, const Tensor& logsum, Decay log_decay, int64_t dim,
                                                 const OptionalTensor& phases) {
  auto empty = [&] { return at::empty_symint(q.sym_sizes(), q.options()); };
  return {empty(), empty(), empty()};
}

std::tuple<Tensor, Tensor, Tensor> backward_cpu(const Tensor& grad_, const Tensor& q_, const Tensor& k_,
                                                const Tensor& v_, const Tensor& out_, const Tensor& logsum_,
                                                Decay log_decay, int64_t dim, const OptionalTensor& phases_) {
  check(q_, k_, v_, log_decay, dim, phases_);
  TORCH_CHECK(grad_.sizes() == q_.sizes() && out_.sizes() == q_.sizes() && logsum_.sizes() == q_.sizes().slice(0, 4),
              "masa_backward: grad, out and logsum must have the shapes that masa returns");
  TORCH_CHECK(grad_.scalar_type() == q_.scalar_type() && out_.scalar_type() == q_.scalar_type() &&
                  logsum_.scalar_type() == at::kFloat,
              "masa_backward: grad, out and logsum must have the dtypes that masa returns");
  const Tensor q = with_dense_channels(q_), k = with_dense_channels(k_), v = with_dense_channels(v_);
  const Tensor grad = with_dense_channels(grad_), out = with_dense_channels(out_);
  const Tensor phases = phases_.has_value() ? phases_->contiguous() : Tensor();
  auto empty = [&] { return at::empty(q.sizes(), q.options()); };
  const Tensor grad_q = empty(), grad_k = empty(), grad_v = empty();
  if (q.numel() > 0) {
    Task task(q, k, v, out, logsum_, log_decay, dim, phases);
    Problem& p = task.p;
    p.grad = view(grad, dim);
    p.grad_q = view(grad_q, dim);
    p.grad_k = view(grad_k, dim);
    p.grad_v = view(grad_v, dim);
    const int64_t tokens = p.height * p.width, wanted = (MANY_THREADS + task.problems() - 1) / task.problems();
    // Equal chunks, none of them empty: 10 tokens in 4 chunks would be 3 3 3 1, in 6 chunks 2 2 2 2 2 and 0.
    const int64_t most = std::max<int64_t>(1, std::min(wanted, tokens / SMALLEST_CHUNK));
    const int64_t chunk = (tokens + most - 1) / most;
    p.chunks = (tokens + chunk - 1) / chunk;
    Tensor partial;
    if (p.chunks > 1) {
      const int64_t size = kernels(p).partial_size(p);
      partial = at::empty({task.problems() * p.chunks * size}, q.options().dtype(at::kFloat));
      p.partial = static_cast<float*>(partial.data_ptr());
    }
    task.run(kernels(p).backward, p.chunks, 5);
    if (p.chunks > 1) task.run(kernels(p).reduce, kernels(p).tiles(p), 1);
  }
  return {grad_q, grad_k, grad_v};
}

// Gradients ----------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> forward_op(const Tensor& q, const Tensor& k, const Tensor& v, Decay log_decay, int64_t dim,
                                      const OptionalTensor& phases) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("rmt_mm::masa", "").typed<decltype(forward_op)>();
  return op.call(q, k, v, log_decay, dim, phases);
}

std::tuple<Tensor, Tensor, Tensor> backward_op(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
                                               const Tensor& out, const Tensor& logsum, Decay log_decay, int64_t dim,
                                               const OptionalTensor& phases) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("rmt_mm::masa_backward", "").typed<decltype(backward_op)>();
  return op.call(grad, q, k, v, out, logsum, log_decay, dim, phases);
}

struct Masa : torch::autograd::Function<Masa> {
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v, Decay log_decay,
                               int64_t dim, const OptionalTensor& phases) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [out, logsum] = forward_op(q, k, v, log_decay, dim, phases);
    ctx->save_for_backward({q, k, v, out, logsum, phases.has_value() ? *phases : Tensor()});
    ctx->saved_data["log_decay"] = log_decay.vec();
    ctx->saved_data["dim"] = dim;
    ctx->mark_non_differentiable({logsum});
    return {out, logsum};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    OptionalTensor phases;
    if (saved[5].defined()) phases = saved[5];
    auto [q, k, v] = backward_op(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4],
                                 ctx->saved_data["log_decay"].toDoubleVector(), ctx->saved_data["dim"].toInt(), phases);
    return {q, k, v, Tensor(), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> forward_autograd(const Tensor& q, const Tensor& k, const Tensor& v, Decay log_decay,
                                            int64_t dim, const OptionalTensor& phases) {
  const variable_list results = Masa::apply(q, k, v, log_decay, dim, phases);
  return {results[0], results[1]};
}

std::tuple<Tensor, Tensor, Tensor> backward_autograd(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                     const Tensor& v, const Tensor& out, const Tensor& logsum,
                                                     Decay log_decay, int64_t dim, const OptionalTensor& phases) {
  const bool is_tracked = grad.requires_grad() || q.requires_grad() || k.requires_grad() || v.requires_grad();
  TORCH_CHECK(!(at::GradMode::is_enabled() && is_tracked),
              "masa: the kernel has no second derivatives (create_graph=True); attention in plain torch has them");
  at::AutoDispatchBelowADInplaceOrView guard;
  return backward_op(grad, q, k, v, out, logsum, log_decay, dim, phases);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(rmt_mm, m) {
  m.def("masa(Tensor q, Tensor k, Tensor v, float[] log_decay, int dim, Tensor? phases=None) -> (Tensor, Tensor)");
  m.def(
      "masa_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsum, float[] log_decay, int dim, "
      "Tensor? phases=None) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(rmt_mm, CPU, m) {
  m.impl("masa", forward_cpu);
  m.impl("masa_backward", backward_cpu);
}

TORCH_LIBRARY_IMPL(rmt_mm, Meta, m) {
  m.impl("masa", forward_meta);
  m.impl("masa_backward", backward_meta);
}

TORCH_LIBRARY_IMPL(rmt_mm, Autograd, m) {
  m.impl("masa", forward_autograd);
  m.impl("masa_backward", backward_autograd);
}

}  // namespace rmt_mm
