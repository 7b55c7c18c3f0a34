// What libmaskdiffcuda.so does over libtorch's real CUDA half, over the pretended one: graphs replay a recording of operators, NCCL is
// Gloo over the same memory, and kernels run as C++. The program opens that library by name and gets this one.

#define USE_C10D_GLOO

#include <dlfcn.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>

#include "../kernels/as_cpp.h"
#include "cuda_table.h"
#include "pretended.h"
#include "shim.h"

namespace pretended {
namespace {

// A collective that is done. The host does not wait for NCCL's, so nothing is counted.
struct Done final : c10d::Work {
  explicit Done(std::vector<Tensor> results) : results_(std::move(results)) {
    const auto type = c10::ListType::ofTensors();
    future_ = c10::make_intrusive<c10::ivalue::Future>(type);
    future_->markCompleted(c10::IValue(results_));
    finish();
  }
  bool isCompleted() override { return true; }
  bool wait(std::chrono::milliseconds) override { return true; }
  void synchronize() override {}
  std::vector<Tensor> result() override { return results_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override { return future_; }

 private:
  std::vector<Tensor> results_;
  c10::intrusive_ptr<c10::ivalue::Future> future_;
};

// As NCCL: tensors of one device, the same in each call of this rank.
struct Nccl final : c10d::Backend {
  Nccl(const c10::intrusive_ptr<c10d::Store>& store, int rank, int world, std::chrono::milliseconds timeout)
      : Backend(rank, world) {
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
    gloo_ = c10::make_intrusive<c10d::ProcessGroupGloo>(c10::make_intrusive<c10d::PrefixStore>("pretended", store), rank, world, options);
  }
  const std::string getBackendName() const override { return "nccl"; }

  std::vector<Tensor> seen(const std::vector<Tensor>& tensors) {
    std::vector<Tensor> windows;
    for (const Tensor& tensor : tensors) {
      TORCH_CHECK(tensor.is_cuda(), "No backend type associated with device type cpu (pretended NCCL)");
      if (!device_) device_ = tensor.device();
      TORCH_CHECK(*device_ == tensor.device(), "NCCL met ", *device_, " first and ", tensor.device(), " now (pretended)");
      windows.push_back(window(tensor));
    }
    return windows;
  }
  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<Tensor>& tensors, const c10d::AllreduceOptions& options) override {
    count_operator("nccl::allreduce");
    auto windows = seen(tensors);
    gloo_->allreduce(windows, options)->wait();
    return c10::make_intrusive<Done>(tensors);
  }
  c10::intrusive_ptr<c10d::Work> broadcast(std::vector<Tensor>& tensors, const c10d::BroadcastOptions& options) override {
    count_operator("nccl::broadcast");
    auto windows = seen(tensors);
    gloo_->broadcast(windows, options)->wait();
    return c10::make_intrusive<Done>(tensors);
  }
  c10::intrusive_ptr<c10d::Work> allgather(std::vector<std::vector<Tensor>>& into, std::vector<Tensor>& from,
                                           const c10d::AllgatherOptions& options) override {
    count_operator("nccl::allgather");
    std::vector<std::vector<Tensor>> windows;
    for (const auto& list : into) windows.push_back(seen(list));
    auto own = seen(from);
    gloo_->allgather(windows, own, options)->wait();
    return c10::make_intrusive<Done>(into.at(0));
  }
  void abort() override {}

 private:
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo_;
  std::optional<c10::Device> device_;
};

struct Timer final : c10d::Timer {
  explicit Timer(c10::Device) {}
  std::optional<int64_t> measureDifference(Event, Event) override { return std::nullopt; }
};

char* nccl(const c10::intrusive_ptr<c10d::Store>& store, int rank, int world, std::chrono::milliseconds timeout,
           c10::intrusive_ptr<c10d::Backend>* result) {
  return guarded([&] { *result = c10::make_intrusive<Nccl>(store, rank, world, timeout); });
}

char* graph_new(void** result) {
  return guarded([&] { *result = new Tape(); });
}

char* graph_begin(void* graph) {
  return guarded([&] {
    TORCH_CHECK(!recording(), "a graph is being recorded already (pretended)");
    recording() = static_cast<Tape*>(graph);
  });
}

char* graph_end(void*) {
  return guarded([&] { recording() = nullptr; });
}

char* graph_replay(void* graph) {
  return guarded([&] {
    count_operator("graph");
    for (const auto& step : *static_cast<Tape*>(graph)) step();
  });
}

char* graph_free(void* graph) {
  return guarded([&] { delete static_cast<Tape*>(graph); });
}

// Nothing to compile: the kernels are in here, as C++.
char* kernel_architecture(int, int* result) {
  return guarded([&] { *result = 0; });
}

char* kernel_load(int, const void*) {
  return guarded([] {});
}

void run_kernel(const KernelCall& call) {
  const char* refused = run_as_cpp(call, &opened);
  TORCH_CHECK(!refused, "kernel ", call.name, ": ", refused ? refused : "", " (pretended)");
}

char* kernel_start(const KernelCall* call) {
  return guarded([&] {
    count_operator(std::string("maskdiff::") + call->name);
    record_kernel(*call);
    run_kernel(*call);
    if (Tape* tape = recording()) {
      const auto* bytes = static_cast<const char*>(call->arguments);
      tape->push_back([call = *call, name = std::string(call->name), arguments = std::vector<char>(bytes, bytes + call->bytes)] {
        KernelCall again = call;
        again.name = name.c_str();
        again.arguments = arguments.data();
        run_kernel(again);
      });
    }
  });
}

const MaskdiffCuda table{kMaskdiffCudaVersion, nccl,       graph_new,           graph_begin, graph_end,
                         graph_replay,         graph_free, kernel_architecture, kernel_load, kernel_start};

}  // namespace
}  // namespace pretended

namespace c10d {
C10_REGISTER_TYPED_CLASS(TimerRegistry, c10::kCUDA, pretended::Timer)
}

extern "C" const MaskdiffCuda* maskdiff_cuda() { return &pretended::table; }

// The loader of the program. The library over CUDA is this one, and there is no driver of a real device.
extern "C" void* dlopen(const char* path, int how) {
  static const auto real = reinterpret_cast<void* (*)(const char*, int)>(dlsym(RTLD_NEXT, "dlopen"));
  const std::string name = path ? path : "";
  const auto ends = [&](const std::string& end) { return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0; };
  if (ends("libmaskdiffcuda.so")) {
    Dl_info own;
    dladdr(reinterpret_cast<const void*>(&maskdiff_cuda), &own);
    return real(own.dli_fname, how);
  }
  if (ends("libcuda.so.1")) return nullptr;
  return real(path, how);
}
