// The operator of the depthwise convolution on the CPU: its checks, memory, threads and gradients. The arithmetic is in
// dwconv_kernel.cpp, compiled once for each instruction set. rmt_mm/ops/depthwise.py describes arguments and results.

#include "dwconv.h"
#include "operators.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

namespace rmt_mm {

RMT_DECLARE(DWConvKernels, dwconv_kernels)

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t MANY_UNITS = 16;      // are enough for the threads
constexpr int64_t SMALLEST_STRIP = 16;  // rows: those beside a strip are read, and activated, twice
constexpr int64_t GRAIN = 1 << 15;      // outputs that are worth a thread

const DWConvKernels& kernels(const DWConv& p) {
  static const DWConvKernels* chosen[] = {RMT_CHOOSE(dwconv_kernels), RMT_CHOOSE_BFLOAT16(dwconv_kernels)};
  return *chosen[p.is_bfloat16];
}

void check(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  TORCH_CHECK(x.dim() == 4, "dwconv: x must be (batch, height, width, channels), got ", x.dim(), " dimensions");
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16,
              "dwconv: x must be float32 or bfloat16, got ", x.scalar_type());
  TORCH_CHECK(x.size(3) % 8 == 0 && x.size(3) > 0, "dwconv: channels must be a multiple of 8, got ", x.size(3));
  TORCH_CHECK(weight.dim() == 4 && weight.size(0) == x.size(3) && weight.size(1) == 1 &&
                  weight.size(2) == weight.size(3) && (weight.size(2) == 3 || weight.size(2) == 5),
              "dwconv: weight must be (", x.size(3), ", 1, 3, 3) or (", x.size(3), ", 1, 5, 5), got ", weight.sizes());
  TORCH_CHECK(bias.dim() == 1 && bias.size(0) == x.size(3), "dwconv: bias must be (", x.size(3), "), got ",
              bias.sizes());
}

// Whether the kernel can read x where it is: channels are neighbours, and tokens are evenly apart, as those of a slice
// of the channels of a map.
bool has_even_tokens(const Tensor& x) {
  return x.stride(3) == 1 && x.stride(1) == x.size(2) * x.stride(2) && x.stride(0) == x.size(1) * x.stride(1);
}

// A convolution with the tables that it points to.
struct Task {
  DWConv p = {};
  Tensor x, weight, bias;

  Task(const Tensor& x_, const Tensor& weight_, const Tensor& bias_, bool residual, bool gelu)
      : x(has_even_tokens(x_) ? x_ : x_.contiguous()) {
    p.is_bfloat16 = x.scalar_type() == at::kBFloat16;
    p.gelu = gelu;
    p.batch = x.size(0);
    p.height = x.size(1);
    p.width = x.size(2);
    p.channels = x.size(3);
    p.kernel = weight_.size(2);
    weight = at::empty({p.kernel * p.kernel, p.channels}, x.options().dtype(at::kFloat));
    weight.copy_(weight_.reshape({p.channels, p.kernel * p.kernel}).t());
    if (residual) weight.select(0, p.kernel * p.kernel / 2).add_(1);
    bias = bias_.to(at::kFloat).contiguous();
    p.x = x.const_data_ptr();
    p.x_token = has_even_tokens(x) ? x.stride(2) : p.channels;  // of a contiguous map one token wide it may be any
    p.weight = weight.const_data_ptr<float>();
    p.bias = bias.const_data_ptr<float>();
    p.rows = p.height;
    if (x.numel() > 0 && kernels(p).units(p) < MANY_UNITS) p.rows = std::min(p.height, SMALLEST_STRIP);
  }

  void run(void (*function)(const DWConv&, int64_t, int64_t, float*)) const {
    const int64_t units = kernels(p).units(p), grain = GRAIN * units / std::max<int64_t>(x.numel(), 1) + 1;
    run_parallel(function, p, units, grain, kernels(p).scratch_size(p));
  }
};

// The operator -------------------------------------------------------------------------------------------------------

Tensor forward_meta(const Tensor& x, const Tensor& weight, const Tensor& bias, bool residual, bool gelu) {
  return at::empty_symint(x.sym_sizes(), x.options());
}

Tensor forward_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias, bool residual, bool gelu) {
  check(x, weight, bias);
  const Tensor out = at::empty(x.sizes(), x.options());
  if (x.numel() > 0) {
    Task task(x, weight, bias, residual, gelu);
    task.p.out = out.data_ptr();
    task.run(kernels(task.p).forward);
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward_meta(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                 const Tensor& bias, bool residual, bool gelu) {
  return {at::empty_symint(x.sym_sizes(), x.options()), at::empty_symint(weight.sym_sizes(), weight.options()),
          at::empty_symint(bias.sym_sizes(), bias.options())};
}

std::tuple<Tensor, Tensor, Tensor> backward_cpu(const Tensor& grad_, const Tensor& x, const Tensor& weight,
                                                const Tensor& bias, bool residual, bool gelu) {
  check(x, weight, bias);
  TORCH_CHECK(grad_.sizes() == x.sizes() && grad_.scalar_type() == x.scalar_type(),
              "dwconv_backward: grad must have the shape and the dtype of x");
  Task task(x, weight, bias, residual, gelu);
  DWConv& p = task.p;
  const Tensor grad = grad_.contiguous(), grad_x = at::empty(x.sizes(), x.options());
  const int64_t taps = p.kernel * p.kernel, units = x.numel() > 0 ? kernels(p).units(p) : 0;
  const Tensor partial = at::empty({units, taps + 1, p.channels}, task.weight.options());
  if (units > 0) {
    p.grad = grad.const_data_ptr();
    p.grad_x = grad_x.data_ptr();
    p.partial = partial.data_ptr<float>();
    task.run(kernels(p).backward);
  }
  const Tensor sums = partial.sum(0);
  return {grad_x, sums.slice(0, 0, taps).t().contiguous().view(weight.sizes()).to(weight.scalar_type()),
          sums.select(0, taps).to(bias.scalar_type())};
}

// Gradients and autocast ---------------------------------------------------------------------------------------------

Tensor forward_op(const Tensor& x, const Tensor& weight, const Tensor& bias, bool residual, bool gelu) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("rmt_mm::dwconv", "").typed<decltype(forward_op)>();
  return op.call(x, weight, bias, residual, gelu);
}

std::tuple<Tensor, Tensor, Tensor> backward_op(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                               const Tensor& bias, bool residual, bool gelu) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("rmt_mm::dwconv_backward", "").typed<decltype(backward_op)>();
  return op.call(grad, x, weight, bias, residual, gelu);
}

struct Function : torch::autograd::Function<Function> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, bool residual,
                        bool gelu) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({x, weight, bias});
    ctx->saved_data["gelu"] = gelu;
    ctx->saved_data["residual"] = residual;
    return forward_op(x, weight, bias, residual, gelu);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    auto [x, weight, bias] = backward_op(grads[0], saved[0], saved[1], saved[2], ctx->saved_data["residual"].toBool(),
                                         ctx->saved_data["gelu"].toBool());
    return {x, weight, bias, Tensor(), Tensor()};
  }
};

Tensor forward_autograd(const Tensor& x, const Tensor& weight, const Tensor& bias, bool residual, bool gelu) {
  return Function::apply(x, weight, bias, residual, gelu);
}

std::tuple<Tensor, Tensor, Tensor> backward_autograd(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                     const Tensor& bias, bool residual, bool gelu) {
  const bool is_tracked = grad.requires_grad() || x.requires_grad() || weight.requires_grad();
  TORCH_CHECK(!(at::GradMode::is_enabled() && is_tracked),
              "dwconv: the kernel has no second derivatives (create_graph=True); plain torch has them: pin "
              "dwconv=plain and ffn=plain");
  at::AutoDispatchBelowADInplaceOrView guard;
  return backward_op(grad, x, weight, bias, residual, gelu);
}

// As torch's convolutions: in autocast's dtype.
Tensor forward_autocast(const Tensor& x, const Tensor& weight, const Tensor& bias, bool residual, bool gelu) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCPU);
  const at::ScalarType dtype = at::autocast::get_lower_precision_fp_from_device_type(at::kCPU);
  return forward_op(x.to(dtype), weight, bias, residual, gelu);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(rmt_mm, m) {
  m.def("dwconv(Tensor x, Tensor weight, Tensor bias, bool residual=False, bool gelu=False) -> Tensor");
  m.def(
      "dwconv_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, bool residual, bool gelu) -> "
      "(Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(rmt_mm, CPU, m) {
  m.impl("dwconv", forward_cpu);
  m.impl("dwconv_backward", backward_cpu);
}

TORCH_LIBRARY_IMPL(rmt_mm, Meta, m) {
  m.impl("dwconv", forward_meta);
  m.impl("dwconv_backward", backward_meta);
}

TORCH_LIBRARY_IMPL(rmt_mm, Autograd, m) {
  m.impl("dwconv", forward_autograd);
  m.impl("dwconv_backward", backward_autograd);
}

TORCH_LIBRARY_IMPL(rmt_mm, AutocastCPU, m) { m.impl("dwconv", forward_autocast); }

}  // namespace rmt_mm
