// Kernels of ours by CUDA's driver, which is opened by its name: nothing links it. Every call's status is looked at.

#include "driver.h"
#include "refusal.h"

#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

namespace driver {
namespace {

// The driver's own types and numbers (cuda.h of CUDA 13).
using Result = int;
using Device = int;
using Context = struct ContextOfDriver*;
using Module = struct ModuleOfDriver*;
using Function = struct FunctionOfDriver*;
using Stream = struct StreamOfDriver*;
constexpr int kMajor = 75, kMinor = 76;

struct Driver {
  Result (*init)(unsigned);
  Result (*device)(Device*, int);
  Result (*attribute)(int*, int, Device);
  Result (*retain)(Context*, Device);
  Result (*current)(Context*);
  Result (*push)(Context);
  Result (*pop)(Context*);
  Result (*load)(Module*, const void*);
  Result (*function)(Function*, Module, const char*);
  Result (*launch)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream, void**, void**);
  Result (*words)(Result, const char**);

  Driver() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    TORCH_CHECK(library, "NVIDIA's driver is not to be had: ", dlerror());
    find(library, "cuInit", init);
    find(library, "cuDeviceGet", device);
    find(library, "cuDeviceGetAttribute", attribute);
    find(library, "cuDevicePrimaryCtxRetain", retain);
    find(library, "cuCtxGetCurrent", current);
    find(library, "cuCtxPushCurrent_v2", push);
    find(library, "cuCtxPopCurrent_v2", pop);
    find(library, "cuModuleLoadData", load);
    find(library, "cuModuleGetFunction", function);
    find(library, "cuLaunchKernel", launch);
    find(library, "cuGetErrorString", words);
    check(init(0), "starts");
  }

  template <typename F>
  static void find(void* library, const char* name, F& into) {
    into = reinterpret_cast<F>(dlsym(library, name));
    TORCH_CHECK(into, "NVIDIA's driver has no ", name);
  }

  void check(Result result, const std::string& what) const {
    if (result == 0) return;
    const char* said = nullptr;
    words(result, &said);
    TORCH_CHECK(false, refusal(what, result, said));
  }
};

const Driver& driver() {
  static const Driver one;
  return one;
}

// What libtorch's part of the device lives in is current while this exists: a thread of ours may have none, or another device's.
class Inside {
 public:
  explicit Inside(Context context) {
    Context now = nullptr;
    driver().check(driver().current(&now), "was asked for the current device");
    if (now == context) return;
    driver().check(driver().push(context), "made a device current");
    pushed_ = true;
  }
  ~Inside() {
    Context out;
    if (pushed_) driver().pop(&out);
  }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

 private:
  bool pushed_ = false;
};

struct Loaded {
  Context context = nullptr;
  Module module = nullptr;
  std::unordered_map<std::string, Function> functions;
};

std::mutex& lock() {
  static auto* mutex = new std::mutex();
  return *mutex;
}

// Never unloaded: a graph may hold a kernel until the process ends.
std::map<int, Loaded>& loaded() {
  static auto* all = new std::map<int, Loaded>();
  return *all;
}

Device device_of(int index) {
  Device device;
  driver().check(driver().device(&device, index), "was asked for GPU " + std::to_string(index));
  return device;
}

}  // namespace

int architecture(int device) {
  int major = 0, minor = 0;
  driver().check(driver().attribute(&major, kMajor, device_of(device)), "was asked for an architecture");
  driver().check(driver().attribute(&minor, kMinor, device_of(device)), "was asked for an architecture");
  return 10 * major + minor;
}

void load(int device, const void* image) {
  const std::lock_guard<std::mutex> guard(lock());
  if (loaded().count(device)) return;
  Loaded made;
  driver().check(driver().retain(&made.context, device_of(device)), "was asked for GPU " + std::to_string(device));
  const Inside inside(made.context);
  driver().check(driver().load(&made.module, image), "loaded the kernels");
  loaded().emplace(device, std::move(made));
}

void start(const KernelCall& call) {
  Function function = nullptr;
  Context context = nullptr;
  {
    const std::lock_guard<std::mutex> guard(lock());
    const auto found = loaded().find(call.device);
    TORCH_CHECK(found != loaded().end(), "GPU ", call.device, " has no kernels loaded");
    context = found->second.context;
    Function& known = found->second.functions[call.name];
    if (!known) {
      const Inside inside(context);
      driver().check(driver().function(&known, found->second.module, call.name), std::string("was asked for the kernel ") + call.name);
    }
    function = known;
  }
  const Inside inside(context);
  const c10::impl::VirtualGuardImpl impl(c10::DeviceType::CUDA);
  const c10::Stream stream = impl.getStream(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(call.device)));
  void* arguments[] = {const_cast<void*>(call.arguments)};
  const Result result = driver().launch(function, call.blocks, 1, 1, 32 * call.warps, 1, 1, call.shared,
                                        static_cast<Stream>(impl.getStreamNativeHandle(stream)), arguments, nullptr);
  const char* way_out = result != 0 && !of_earlier_work(result) ? " (`trainer.kernels=plain` does without it)" : "";
  driver().check(result, std::string("started the kernel ") + call.name + way_out);
}

}  // namespace driver
