// What the sources of operators share: the choice of the instruction set, and memory for each thread.

#pragma once

#include <ATen/TensorIterator.h>
#include <ATen/Version.h>
#include <ATen/ops/arange.h>

#include <memory>
#include <string>

#ifdef RMT_X86
#define RMT_DECLARE(type, name)                  \
  namespace base { extern const type name; }     \
  namespace avx2 { extern const type name; }     \
  namespace avx512 { extern const type name; }   \
  namespace avx512_bf16 { extern const type name; }
// Follow ATen's choice of processor, which the environment variable ATEN_CPU_CAPABILITY lowers.
#define RMT_CHOOSE(name)                                                        \
  (at::get_cpu_capability() == std::string("AVX512") ? &avx512::name            \
   : at::get_cpu_capability() == std::string("AVX2") ? &avx2::name : &base::name)
#define RMT_CHOOSE_BFLOAT16(name) \
  (RMT_CHOOSE(name) == &avx512::name && __builtin_cpu_supports("avx512bf16") ? &avx512_bf16::name : RMT_CHOOSE(name))
#else
#define RMT_DECLARE(type, name) \
  namespace base { extern const type name; }
#define RMT_CHOOSE(name) (&base::name)
#define RMT_CHOOSE_BFLOAT16(name) (&base::name)
#endif

namespace rmt_mm {

// Call function(problem, begin, end, scratch) for parts of [0, units), in parallel, each with memory of `size` numbers.
// No result depends on which thread computes it.
// A TensorIterator runs torch's own threads. at::parallel_for, a template, would be serial here: it needs the compiler's
// OpenMP, which must be the one that torch was built with.
template <class Problem>
void run_parallel(void (*function)(const Problem&, int64_t, int64_t, float*), const Problem& problem, int64_t units,
                  int64_t grain, int64_t size) {
  constexpr int64_t ALIGNMENT = 16;  // numbers
  const at::Tensor numbers = at::arange(units, at::kLong);
  auto iterator =
      at::TensorIteratorConfig().add_output(numbers).resize_outputs(false).check_all_same_dtype(false).build();
  const auto part = [&](char** data, const int64_t*, int64_t count) {
    const int64_t begin = *reinterpret_cast<const int64_t*>(data[0]);
    std::unique_ptr<float[]> memory(new float[size + ALIGNMENT]);
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory.get()), bytes = ALIGNMENT * sizeof(float);
    function(problem, begin, begin + count, reinterpret_cast<float*>((start + bytes - 1) / bytes * bytes));
  };
  iterator.for_each(part, grain);
}

}  // namespace rmt_mm
