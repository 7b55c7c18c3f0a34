// The device itself: memory that the host may not touch, streams that do everything at once, counters.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <execinfo.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "pretended.h"

namespace pretended {
namespace {

constexpr size_t kBytes = size_t{16} << 30;
constexpr c10::DeviceIndex kDevices = 2;

// Two reservations of one size. Tensors know addresses of the first, which nobody may read or write; an operator finds the
// memory at the same distance in the second. So a line of the host that reads device memory ends the process, also while an
// operator runs on another thread.
struct Region {
  char *device = nullptr, *window = nullptr;
  size_t used = 0;
  // Freed blocks by their size, a power of two.
  std::map<size_t, std::vector<size_t>> free;
  int64_t now = 0, peak = 0;

  Region() {
    auto reserve = [](int rights) {
      void* at = mmap(nullptr, kBytes, rights, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (at == MAP_FAILED) {
        std::perror("pretended device: mmap");
        std::abort();
      }
      return static_cast<char*>(at);
    };
    device = reserve(PROT_NONE);
    window = reserve(PROT_READ | PROT_WRITE);
  }
  bool holds(const void* address) const {
    return address >= device && address < device + kBytes;
  }
};

std::array<Region, kDevices>& regions() {
  static auto* all = new std::array<Region, kDevices>();
  return *all;
}

std::mutex& lock() {
  static auto* mutex = new std::mutex();
  return *mutex;
}

Region* region_of(const void* address) {
  for (Region& region : regions()) {
    if (region.holds(address)) return &region;
  }
  return nullptr;
}

thread_local c10::DeviceIndex current = 0;
thread_local std::array<c10::StreamId, kDevices> streams{};

void release(void* address);

struct Memory final : c10::DeviceAllocator {
  struct Block {
    size_t size, counted;
  };
  std::unordered_map<void*, Block> sizes;
  // What was taken while a graph was recorded: a replay writes there again, whatever has become of the tensors.
  std::unordered_set<void*> of_graphs;

  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device device(c10::kCUDA, current);
    if (bytes == 0) return {nullptr, nullptr, &release, device};
    size_t size = 512;
    while (size < bytes) size *= 2;
    const std::lock_guard<std::mutex> guard(lock());
    Region& region = regions()[current];
    size_t at;
    if (auto& free = region.free[size]; !free.empty()) {
      at = free.back();
      free.pop_back();
    } else {
      TORCH_CHECK_WITH(OutOfMemoryError, region.used + size <= kBytes, "CUDA out of memory. Tried to allocate ", bytes, " bytes (pretended)");
      at = region.used;
      region.used += size;
    }
    // What nobody has written is no number.
    std::memset(region.window + at, 0xff, bytes);
    // As CUDA's allocator counts, not as blocks are shared out here.
    const size_t counted = (bytes + 511) / 512 * 512;
    region.now += static_cast<int64_t>(counted);
    region.peak = std::max(region.peak, region.now);
    void* address = region.device + at;
    sizes[address] = {size, counted};
    if (recording()) of_graphs.insert(address);
    return {address, address, &release, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memmove(opened(to), opened(from), bytes);
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex index) override {
    const std::lock_guard<std::mutex> guard(lock());
    const Region& region = regions().at(index);
    c10::CachingDeviceAllocator::DeviceStats stats;
    stats.allocated_bytes[0].current = region.now;
    stats.allocated_bytes[0].peak = region.peak;
    stats.reserved_bytes[0].peak = static_cast<int64_t>(region.used);
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex index) override { regions().at(index).peak = regions().at(index).now; }
};

// Never destroyed: tensors outlive everything.
Memory& memory() {
  static auto* one = new Memory();
  return *one;
}

void release(void* address) {
  if (!address) return;
  const std::lock_guard<std::mutex> guard(lock());
  Region& region = *region_of(address);
  const auto found = memory().sizes.find(address);
  if (!memory().of_graphs.count(address)) region.free[found->second.size].push_back(static_cast<char*>(address) - region.device);
  region.now -= static_cast<int64_t>(found->second.counted);
  memory().sizes.erase(found);
}

const c10::AllocatorRegisterer<c10::kCUDA> registered_memory(&memory());

struct Guard final : c10::impl::DeviceGuardImplInterface {
  Guard() = default;
  c10::DeviceType type() const override { return c10::kCUDA; }
  static void check(c10::Device device) {
    TORCH_CHECK(device.is_cuda() && device.index() < kDevices, "CUDA error: invalid device ordinal ", device, " (pretended)");
  }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return c10::Device(c10::kCUDA, current); }
  void setDevice(c10::Device device) const override {
    check(device);
    if (device.has_index()) current = device.index();
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index() && device.index() < kDevices) current = device.index();
  }
  c10::Stream getStream(c10::Device device) const override {
    const auto index = device.has_index() ? device.index() : current;
    return c10::Stream(c10::Stream::UNSAFE, c10::Device(c10::kCUDA, index), streams.at(index));
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return c10::Stream(c10::Stream::UNSAFE, device, 1);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const c10::Stream before = getStream(stream.device());
    streams.at(stream.device_index()) = stream.id();
    return before;
  }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  // A wait costs as a read does: the host stands still until the device has done everything.
  void synchronizeStream(const c10::Stream&) const override { count_read("a stream"); }
  void synchronizeEvent(void*) const override { count_read("an event"); }
  void synchronizeDevice(c10::DeviceIndex) const override { count_read("the device"); }
};

const c10::impl::DeviceGuardImplRegistrar registered_guard(c10::kCUDA, new Guard());

// The draws of a device are those of the CPU, so that both compute the same from a seed.
struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasCUDART() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return kDevices; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  c10::DeviceIndex current_device() const override { return current; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(c10::DeviceIndex index) const override { Guard().setDevice({c10::kCUDA, index}); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    return Guard().exchangeDevice({c10::kCUDA, index}).index();
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override { return exchangeDevice(index); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  c10::Device getDeviceFromPtr(void* data) const override {
    Region* region = region_of(data);
    TORCH_CHECK(region, "an address that is not of the device (pretended)");
    return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(region - regions().data()));
  }
  void deviceSynchronize(c10::DeviceIndex) const override { count_read("the device"); }
  c10::Allocator* getCUDADeviceAllocator() const override { return &memory(); }
};

struct Counts {
  std::mutex lock;
  std::map<std::string, int64_t> operators;
  int64_t all = 0, reads = 0, to_host = 0, to_device = 0, bytes_to_host = 0, bytes_to_device = 0;
};

Counts& counts() {
  static auto* one = new Counts();
  return *one;
}

// A line for each sum and each operator. Programs that the preloaded one starts compute nothing and write nothing.
void write_counts() {
  const char* path = counts().all > 0 ? std::getenv("PRETENDED_COUNTS") : nullptr;
  FILE* file = path ? std::fopen(path, "w") : nullptr;
  if (!file) return;
  Counts& c = counts();
  const std::lock_guard<std::mutex> guard(c.lock);
  std::fprintf(file, "operators %ld\nreads %ld\nto_host %ld\nto_device %ld\nbytes_to_host %ld\nbytes_to_device %ld\n", c.all, c.reads,
               c.to_host, c.to_device, c.bytes_to_host, c.bytes_to_device);
  for (const auto& [name, number] : c.operators) std::fprintf(file, "%s %ld\n", name.c_str(), number);
  std::fclose(file);
}

// Says that it was the device's memory that the host touched, and where; then the fault has its usual end.
void on_fault(int, siginfo_t* info, void*) {
  if (on_device(info->si_addr)) {
    const char said[] = "pretended device: the host touched device memory\n";
    (void)!write(2, said, sizeof said - 1);
    void* frames[64];
    backtrace_symbols_fd(frames, backtrace(frames, 64), 2);
  }
  signal(SIGSEGV, SIG_DFL);
}

struct Start {
  Start() {
    struct sigaction action{};
    action.sa_sigaction = &on_fault;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, nullptr);
    std::atexit(&write_counts);
  }
} start;

}  // namespace

bool on_device(const void* address) { return region_of(address) != nullptr; }

void* opened(const void* address) {
  Region* region = region_of(address);
  if (!region) return const_cast<void*>(address);
  return region->window + (static_cast<const char*>(address) - region->device);
}

void grow(const at::Tensor& tensor, c10::IntArrayRef size) {
  auto* impl = tensor.unsafeGetTensorImpl();
  int64_t numbers = impl->storage_offset();
  int64_t product = 1;
  for (int64_t n : size) product *= n;
  const size_t need = static_cast<size_t>(numbers + product) * impl->itemsize();
  auto* storage = tensor.storage().unsafeGetStorageImpl();
  if (storage->nbytes() < need) {
    const c10::DeviceIndex before = current;
    current = tensor.device().index();
    auto data = memory().allocate(need);
    current = before;
    if (storage->nbytes()) std::memcpy(opened(data.get()), opened(storage->data()), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(data));
    storage->set_nbytes(need);
  }
  impl->set_sizes_contiguous(size);
}

void count_operator(const std::string& name) {
  const std::lock_guard<std::mutex> guard(counts().lock);
  ++counts().all;
  ++counts().operators[name];
}

void count_read(const char* who) {
  static const bool told = std::getenv("PRETENDED_READS") != nullptr;
  {
    const std::lock_guard<std::mutex> guard(counts().lock);
    ++counts().reads;
  }
  if (told) {
    std::fprintf(stderr, "pretended device: the host waits for %s\n", who);
    void* frames[56];
    backtrace_symbols_fd(frames, backtrace(frames, 56), 2);
  }
}

void count_copy(bool to_device, int64_t bytes) {
  const std::lock_guard<std::mutex> guard(counts().lock);
  (to_device ? counts().to_device : counts().to_host)++;
  (to_device ? counts().bytes_to_device : counts().bytes_to_host) += bytes;
}

}  // namespace pretended

namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, pretended::Hooks)
}

// For a test that is in the same process: operators, values read, copies to the host and to the device so far.
extern "C" void pretended_counts(int64_t* four) {
  auto& c = pretended::counts();
  const std::lock_guard<std::mutex> guard(c.lock);
  four[0] = c.all, four[1] = c.reads, four[2] = c.to_host, four[3] = c.to_device;
}
