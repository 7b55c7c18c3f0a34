// NCCL, CUDA graphs and kernels of ours over libtorch's CUDA half, behind the table of ../../cpp/cuda_table.h.

#define USE_C10D_NCCL

#include <ATen/cuda/CUDAGraph.h>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "cuda_table.h"
#include "driver.h"
#include "shim.h"

// What libtorch 2.11 allocates: another size means that declared/ no longer fits.
static_assert(sizeof(at::cuda::CUDAGraph) == 104, "CUDAGraph has another layout: not libtorch 2.11");
static_assert(sizeof(c10d::ProcessGroupNCCL) == 1112, "ProcessGroupNCCL has another layout: not libtorch 2.11");
static_assert(sizeof(c10d::ProcessGroupNCCL::Options) == 248, "NCCL's options have another layout: not NCCL 2.28");

namespace torch::cuda::nccl {
std::uint64_t version();
}

namespace {

using at::cuda::CUDAGraph;
using c10d::ProcessGroupNCCL;

char* nccl(const c10::intrusive_ptr<c10d::Store>& store, int rank, int world, std::chrono::milliseconds timeout,
           c10::intrusive_ptr<c10d::Backend>* result) {
  return guarded([&] {
    // Of these fields the options are made, and other versions have others.
    const uint64_t built = torch::cuda::nccl::version(), major = built >> 32, minor = (built >> 16) & 0xffff;
    TORCH_CHECK(major == NCCL_MAJOR && minor == NCCL_MINOR, "this libtorch was built with NCCL ", major, ".", minor,
                ", and NCCL ", NCCL_MAJOR, ".", NCCL_MINOR, " is expected: install another build of torch 2.11");
    auto options = ProcessGroupNCCL::Options::create();
    options->timeout = timeout;
    *result = c10::make_intrusive<ProcessGroupNCCL>(store, rank, world, options);
  });
}

char* graph_new(void** result) {
  return guarded([&] { *result = new CUDAGraph(); });
}

// Other threads (a loader that pins memory, NCCL's watchdog) may call CUDA meanwhile.
char* graph_begin(void* graph) {
  return guarded([&] {
    static_cast<CUDAGraph*>(graph)->capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
  });
}

char* graph_end(void* graph) {
  return guarded([&] { static_cast<CUDAGraph*>(graph)->capture_end(); });
}

char* graph_replay(void* graph) {
  return guarded([&] { static_cast<CUDAGraph*>(graph)->replay(); });
}

char* graph_free(void* graph) {
  return guarded([&] { delete static_cast<CUDAGraph*>(graph); });
}

char* kernel_architecture(int device, int* result) {
  return guarded([&] { *result = driver::architecture(device); });
}

char* kernel_load(int device, const void* image) {
  return guarded([&] { driver::load(device, image); });
}

char* kernel_start(const KernelCall* call) {
  return guarded([&] { driver::start(*call); });
}

const MaskdiffCuda table{kMaskdiffCudaVersion, nccl,       graph_new,           graph_begin, graph_end,
                         graph_replay,         graph_free, kernel_architecture, kernel_load, kernel_start};

}  // namespace

extern "C" const MaskdiffCuda* maskdiff_cuda_table() { return &table; }
