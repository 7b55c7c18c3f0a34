// The modes of libtorch that a training run sets: reduced precision, determinism, and the profiler. See shim.h for how
// errors leave.

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include "shim.h"

extern "C" uint64_t aoti_torch_abi_version();

namespace {

namespace profiler = torch::autograd::profiler;
using torch::profiler::impl::ActivityType;
using torch::profiler::impl::ProfilerConfig;
using torch::profiler::impl::ProfilerState;

ProfilerConfig profiler_config() {
  return ProfilerConfig(ProfilerState::KINETO, /*report_input_shapes=*/true, /*profile_memory=*/false,
                        /*with_stack=*/false, /*with_flops=*/false, /*with_modules=*/false);
}

std::set<ActivityType> activities(bool cuda) {
  std::set<ActivityType> set{ActivityType::CPU};
  if (cuda) set.insert(ActivityType::CUDA);
  return set;
}

}  // namespace

extern "C" {

// Major and minor version of the libtorch that runs, as 1000 major + minor.
int maskdiff_torch_version() {
  const uint64_t version = aoti_torch_abi_version();
  return static_cast<int>((version >> 56) & 0xff) * 1000 + static_cast<int>((version >> 48) & 0xff);
}

// `type` is a c10::ScalarType; below 0 turns autocast off. The cache of cast weights is emptied: they change every step.
char* maskdiff_set_autocast(int cuda, int type) {
  return guarded([&] {
    const auto device = cuda ? at::kCUDA : at::kCPU;
    if (type >= 0) at::autocast::set_autocast_dtype(device, static_cast<at::ScalarType>(type));
    at::autocast::set_autocast_enabled(device, type >= 0);
    at::autocast::clear_cache();
  });
}

char* maskdiff_set_tf32(int on) {
  return guarded([&] { at::globalContext().setFloat32MatmulPrecision(on ? "high" : "highest"); });
}

// Sums of 16-bit products stay in float32 on a GPU, those that are split over its processors too.
char* maskdiff_set_wide_sums() {
  return guarded([&] {
    at::globalContext().setAllowBF16ReductionCuBLAS(false, false);
    at::globalContext().setAllowFP16ReductionCuBLAS(false, false);
  });
}

// cuDNN plans attention anew for every size and stride, up to 0.3 s each; a walk meets many. Without it flash attention comes first.
char* maskdiff_set_attention_by_cudnn(int on) {
  return guarded([&] { at::globalContext().setSDPUseCuDNN(on != 0); });
}

char* maskdiff_foreach_copy(Tensor* const* into, Tensor* const* from, size_t count) {
  return guarded([&] {
    if (count == 0) return;
    at::NoGradGuard no_grad;
    auto a = list(into, count), b = list(from, count);
    at::_foreach_copy_(a, b);
  });
}

char* maskdiff_profiler_start(int cuda) {
  return guarded([&] {
    profiler::prepareProfiler(profiler_config(), activities(cuda != 0));
    profiler::enableProfiler(profiler_config(), activities(cuda != 0), {at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION, at::RecordScope::USER_SCOPE});
  });
}

char* maskdiff_profiler_stop(const char* path) {
  return guarded([&] { profiler::disableProfiler()->save(path); });
}

}  // extern "C"
