// The processes that train together, as the files of this folder share them.

#pragma once

#ifndef USE_C10D_GLOO
#define USE_C10D_GLOO
#endif

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace maskdiff {

struct Group {
  c10::intrusive_ptr<c10d::TCPStore> store;
  // What the reducer takes; it hands each call to the backend of the tensors' device.
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
  c10::intrusive_ptr<c10d::Backend> nccl;
};

}  // namespace maskdiff
