// A pretended CUDA device: libtorch's CPU half is told that there are GPUs. See README.md.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>

#include <cstdint>
#include <functional>
#include <string>

struct KernelCall;

namespace pretended {

// Whether an address is one of device memory, which nobody but an operator may touch.
bool on_device(const void* address);
// Where an operator reads and writes what the host sees at `address`.
void* opened(const void* address);
// The same memory as a tensor of the CPU. Of a tensor that is on the host: itself.
at::Tensor window(const at::Tensor& tensor);
// New memory of the same form on a device, with the values of a tensor of the CPU.
at::Tensor uploaded(const at::Tensor& values, c10::Device device);
// Memory that no tensor of the CPU can grow into, grown by the device's allocator.
void grow(const at::Tensor& tensor, c10::IntArrayRef size);

// What a run costs: each of these is a kernel, a wait or a transfer on a real device.
void count_operator(const std::string& name);
void count_read(const char* who);
void count_copy(bool to_device, int64_t bytes);
// The same one by one, with the tensors that each reads and writes: see record.cpp.
bool records();
void record_operator(const std::string& name, const std::vector<at::Tensor>& reads, const std::vector<at::Tensor>& writes);
void record_kernel(const KernelCall& call);

// A recording of operators, which are computed again each time it is replayed.
using Tape = std::vector<std::function<void()>>;
Tape*& recording();
// What no stream that is recorded may do: wait for a value, or copy from memory that is not the device's.
void refuse_while_recording(const char* what);

}  // namespace pretended
