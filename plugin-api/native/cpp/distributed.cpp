// Processes that train together: rendezvous, collectives over Gloo (tensors of the CPU) and NCCL (of GPUs), and the reducer of
// distributed data parallel, all of libtorch's c10d. See shim.h for how errors leave.

#include <ATen/ATen.h>
#include <c10/util/env.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <torch/csrc/distributed/c10d/logger.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <chrono>
#include <memory>

#include "cuda_table.h"
#include "group.h"
#include "shim.h"

// What libtorch 2.11 allocates: another size means that gloo/'s declarations no longer fit.
static_assert(sizeof(c10d::ProcessGroupGloo) == 488, "ProcessGroupGloo has another layout: not libtorch 2.11");

namespace {

using std::chrono::milliseconds;

using maskdiff::Group;

struct Reducer {
  std::shared_ptr<c10d::Reducer> reducer;
  std::shared_ptr<c10d::Logger> logger;
};

std::shared_ptr<::gloo::transport::Device> device(const char* loopback, const char* interface) {
  using c10d::ProcessGroupGloo;
  if (interface) return ProcessGroupGloo::createDeviceForInterface(interface);
  // Ranks of one machine need not have a name that resolves, and no other machine reaches them there.
  if (loopback) return ProcessGroupGloo::createDeviceForHostname(loopback);
  return ProcessGroupGloo::createDefaultDevice();
}

// The connections of a process group are its own affair; a class derived from it may name them.
struct Connections : c10d::ProcessGroupGloo {
  static void close(c10d::ProcessGroupGloo& group) {
    for (const auto& context : group.*&Connections::contexts_) context->closeConnections();
  }
};

// Bytes of a bucket of gradients: the first is small, so that its sum begins early. The values of torch's own DDP.
constexpr int64_t kBucketBytes = 25 << 20, kFirstBucketBytes = 1 << 20;

}  // namespace

extern "C" {

char* maskdiff_group_new(const char* host, uint16_t port, int rank, int world, int64_t timeout_ms,
                         int64_t join_ms, const char* interface, const char* loopback, int listener, Group** result) {
  return guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    if (listener >= 0) options.masterListenFd = listener;
    options.isServer = rank == 0;
    options.numWorkers = world;
    options.timeout = milliseconds(join_ms);
    auto group = std::make_unique<Group>();
    group->store = c10::make_intrusive<c10d::TCPStore>(host, options);
    auto gloo = c10d::ProcessGroupGloo::Options::create(milliseconds(join_ms));
    gloo->devices.push_back(device(loopback, interface));
    auto prefixed = c10::make_intrusive<c10d::PrefixStore>("gloo", group->store);
    group->gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(prefixed, rank, world, gloo);
    group->gloo->setTimeout(milliseconds(timeout_ms));
    auto outer = c10::make_intrusive<c10d::PrefixStore>("group", group->store);
    group->group = c10::make_intrusive<c10d::ProcessGroup>(outer, rank, world);
    group->group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, group->gloo);
    group->group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
    *result = group.release();
  });
}

// Lets the group work on GPUs too.
char* maskdiff_group_add_nccl(Group* group, int64_t timeout_ms) {
  char* said = nullptr;
  char* failed = guarded([&] {
    // A wait then blocks, and a rank that does not answer is an exception here. NCCL's other way, a thread that ends the process,
    // tells nobody which rank it was.
    c10::utils::set_env("TORCH_NCCL_BLOCKING_WAIT", "1", /*overwrite=*/false);
    auto& inner = *group->group;
    auto prefixed = c10::make_intrusive<c10d::PrefixStore>("nccl", group->store);
    said = cuda_table().nccl(prefixed, inner.getRank(), inner.getSize(), milliseconds(timeout_ms), &group->nccl);
    if (!said) inner.setBackend(c10::DeviceType::CUDA, c10d::ProcessGroup::BackendType::NCCL, group->nccl);
  });
  return failed ? failed : said;
}

// Closes the connections of Gloo. A rank of a ring that waits for this one learns of it at once, and need not wait for its end.
char* maskdiff_group_hang_up(Group* group) {
  return guarded([&] { Connections::close(*group->gloo); });
}

void maskdiff_group_free(Group* group) {
  // A destructor that throws would end the process, and there is nobody to tell. NCCL's does when it has to abort.
  free(guarded([&] {
    if (group->nccl) group->nccl->abort();
  }));
  free(guarded([&] { delete group; }));
}

// `op`: 0 sum, 1 maximum.
char* maskdiff_group_all_reduce(Group* group, Tensor* const* tensors, size_t count, int op) {
  return guarded([&] {
    c10d::AllreduceOptions options;
    options.reduceOp = op == 1 ? c10d::ReduceOp::MAX : c10d::ReduceOp::SUM;
    at::NoGradGuard no_grad;
    for (Tensor& tensor : list(tensors, count)) {
      std::vector<Tensor> one{tensor};
      group->group->getBackend(tensor.device().type())->allreduce(one, options)->wait();
    }
  });
}

char* maskdiff_group_broadcast(Group* group, Tensor* const* tensors, size_t count, int root) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    c10d::broadcast_coalesced(group->group, list(tensors, count), kBucketBytes, root);
  });
}

// Puts all ranks' `from`, one behind the other, into `into`.
char* maskdiff_group_all_gather(Group* group, const Tensor* into, const Tensor* from) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    Tensor all = *into, own = *from;
    group->group->getBackend(all.device().type())->_allgather_base(all, own)->wait();
  });
}

char* maskdiff_group_set(Group* group, const char* key, const uint8_t* bytes, size_t count) {
  return guarded([&] { group->store->set(key, std::vector<uint8_t>(bytes, bytes + count)); });
}

// Waits for the key for at most `timeout_ms`; hands over a tensor of bytes.
char* maskdiff_group_get(Group* group, const char* key, int64_t timeout_ms, Tensor** result) {
  return guarded([&] {
    group->store->wait({key}, milliseconds(timeout_ms));
    const std::vector<uint8_t> bytes = group->store->get(key);
    Tensor tensor = at::empty({static_cast<int64_t>(bytes.size())}, at::kByte);
    if (!bytes.empty()) memcpy(tensor.data_ptr(), bytes.data(), bytes.size());
    *result = new Tensor(tensor);
  });
}

// The parameters must be equal on all ranks.
char* maskdiff_reducer_new(Group* group, Tensor* const* params, size_t count, Reducer** result) {
  return guarded([&] {
    const auto all = list(params, count);
    c10d::verify_params_across_processes(group->group, all, std::nullopt);
    // One bucket for the first backward; the reducer then makes new ones in the order in which gradients arrive.
    auto [buckets, limits] = c10d::compute_bucket_assignment_by_size(all, {std::numeric_limits<size_t>::max()});
    std::reverse(buckets.begin(), buckets.end());
    auto made = std::make_unique<Reducer>();
    made->reducer = std::make_shared<c10d::Reducer>(
        all, buckets, group->group, std::vector<bool>(count, false), kBucketBytes,
        /*find_unused_parameters=*/false, /*gradient_as_bucket_view=*/true,
        std::unordered_map<size_t, std::string>{}, kFirstBucketBytes,
        /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false, std::vector<int64_t>{});
    made->logger = std::make_shared<c10d::Logger>(made->reducer);
    made->reducer->set_logger(made->logger);
    made->logger->set_construction_data_and_log("model", {}, -1, false, false, false);
    *result = made.release();
  });
}

// Before the last forward of a step: its backward sums the gradients of all ranks and divides by their number. Backward
// passes that were not prepared only accumulate.
char* maskdiff_reducer_prepare(Reducer* reducer) {
  return guarded([&] {
    reducer->reducer->prepare_for_forward();
    reducer->reducer->rebuild_buckets();
    reducer->reducer->prepare_for_backward({});
  });
}

void maskdiff_reducer_free(Reducer* reducer) {
  free(guarded([&] { delete reducer; }));
}

}  // extern "C"
