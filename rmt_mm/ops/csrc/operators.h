// What the sources of operators share: the choice of the instruction set, and memory for each thread.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <memory>
#include <string>

#ifdef RMT_X86
#define RMT_DECLARE(type, name)                  \
  namespace base { extern const type name; }     \
  namespace avx2 { extern const type name; }     \
  namespace avx512 { extern const type name; }
// Follow ATen's choice of processor, which the environment variable ATEN_CPU_CAPABILITY lowers.
#define RMT_CHOOSE(name)                                                        \
  (at::get_cpu_capability() == std::string("AVX512") ? &avx512::name            \
   : at::get_cpu_capability() == std::string("AVX2") ? &avx2::name : &base::name)
#else
#define RMT_DECLARE(type, name) \
  namespace base { extern const type name; }
#define RMT_CHOOSE(name) (&base::name)
#endif

namespace rmt_mm {

// Call function(problem, begin, end, scratch) for parts of [0, units), in parallel, each with memory of `size` numbers.
// No result depends on which thread computes it.
template <class Problem>
void run_parallel(void (*function)(const Problem&, int64_t, int64_t, float*), const Problem& problem, int64_t units,
                  int64_t grain, int64_t size) {
  constexpr int64_t ALIGNMENT = 16;  // numbers
  at::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    std::unique_ptr<float[]> memory(new float[size + ALIGNMENT]);
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory.get()), bytes = ALIGNMENT * sizeof(float);
    function(problem, begin, end, reinterpret_cast<float*>((start + bytes - 1) / bytes * bytes));
  });
}

}  // namespace rmt_mm
