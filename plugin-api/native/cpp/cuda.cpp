// Streams, and what libmaskdiffcuda.so does where it is open. See shim.h for how errors leave.

#include "cuda_table.h"

#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>

#include <map>
#include <memory>
#include <mutex>

#include "shim.h"

namespace {

const MaskdiffCuda* opened = nullptr;

// What was current before, while work goes to a stream of its own.
struct Side {
  c10::Device device;
  c10::Stream before, stream;
};

// One for each device, since libtorch keeps a workspace for each stream that has multiplied.
c10::Stream side_stream(const c10::Device& device) {
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, c10::Stream> streams;
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = streams.find(device.index());
  if (found == streams.end()) {
    const c10::impl::VirtualGuardImpl guard(device.type());
    found = streams.emplace(device.index(), guard.getStreamFromGlobalPool(device, /*isHighPriority=*/false)).first;
  }
  return found->second;
}

// What `from` has been given so far is done before what `to` is given next.
void after(const c10::Stream& from, const c10::Stream& to) {
  c10::Event event(from.device_type());
  event.record(from);
  event.block(to);
}

}  // namespace

const MaskdiffCuda& cuda_table() {
  TORCH_CHECK(opened, "the library of maskdiff for CUDA is not open");
  return *opened;
}

extern "C" {

char* maskdiff_cuda_open(const char* path) {
  return guarded([&] {
    if (opened) return;
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    TORCH_CHECK(library, dlerror());
    auto* table = reinterpret_cast<const MaskdiffCuda* (*)()>(dlsym(library, "maskdiff_cuda"));
    TORCH_CHECK(table, path, " has no `maskdiff_cuda`");
    TORCH_CHECK(table()->version == kMaskdiffCudaVersion, path, " is of another build");
    opened = table();
  });
}

// Makes a device the one of this thread.
char* maskdiff_set_device(int index) {
  return guarded([&] {
    const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
    guard.setDevice(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index)));
  });
}

// Makes the device and its side stream current, behind the work that the device's stream has been given.
char* maskdiff_stream_enter(int index, Side** result) {
  return guarded([&] {
    const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
    const c10::impl::VirtualGuardImpl guard(device.type());
    const c10::Stream stream = side_stream(device);
    after(guard.getStream(device), stream);
    *result = new Side{guard.exchangeDevice(device), guard.exchangeStream(stream), stream};
  });
}

// Makes the one before current again, behind the work that this one has been given.
char* maskdiff_stream_leave(Side* side) {
  return guarded([&] {
    const std::unique_ptr<Side> held(side);
    const c10::impl::VirtualGuardImpl guard(side->before.device_type());
    guard.exchangeStream(side->before);
    guard.setDevice(side->device);
    after(side->stream, side->before);
  });
}

char* maskdiff_device_wait(int index) {
  return guarded([&] {
    c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).synchronizeDevice(static_cast<c10::DeviceIndex>(index));
  });
}

char* maskdiff_graph_new(void** result) {
  char* said = nullptr;
  char* closed = guarded([&] { said = cuda_table().graph_new(result); });
  return closed ? closed : said;
}

char* maskdiff_graph_begin(void* graph) { return opened->graph_begin(graph); }

char* maskdiff_graph_end(void* graph) { return opened->graph_end(graph); }

char* maskdiff_graph_replay(void* graph) { return opened->graph_replay(graph); }

void maskdiff_graph_free(void* graph) { free(opened->graph_free(graph)); }

}  // extern "C"
