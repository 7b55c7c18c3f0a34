// The kernels as C++: what a GPU would compute, in loops. For tests, and for the pretended device.

#include "arguments.h"
#include "form.h"
#include "rotary.cu"
#include "gated.cu"
#include "norm.cu"
#include "nll.cu"
#include "bound.cu"
#undef shared

#include <cstring>
#include <string>
#include <vector>

#include "as_cpp.h"

namespace {

struct Named {
  const char* name;
  void (*run)(const void* arguments);
};

#define NAMED(name, Arguments) {#name, [](const void* arguments) { name(*static_cast<const Arguments*>(arguments)); }}

const Named all[] = {
    NAMED(turn_f, TurnArguments),
    NAMED(turn_b, TurnArguments),
    NAMED(gated_ff, GatedArguments),
    NAMED(gated_fb, GatedArguments),
    NAMED(gated_bb, GatedArguments),
    NAMED(gated_back_ff, GatedBackArguments),
    NAMED(gated_back_fb, GatedBackArguments),
    NAMED(gated_back_bb, GatedBackArguments),
    NAMED(columns, ColumnsArguments),
    NAMED(norm_ff, NormArguments),
    NAMED(norm_fb, NormArguments),
    NAMED(norm_bb, NormArguments),
    NAMED(norm_back_ff, NormBackArguments),
    NAMED(norm_back_fb, NormBackArguments),
    NAMED(norm_back_bb, NormBackArguments),
    NAMED(nll_f, NllArguments),
    NAMED(nll_b, NllArguments),
    NAMED(bound_f, BoundArguments),
    NAMED(bound_b, BoundArguments),
};

}  // namespace

const char* run_as_cpp(const KernelCall& call, void* (*opened)(const void* address)) {
  // As a GPU does.
  if (call.shared > kMostShared) return "a block shares more memory than a GPU has";
  if (call.warps < 1 || call.warps > kMostWarps || call.blocks < 1) return "a block has no warps, or more than a GPU starts";
  for (const Named& kernel : all) {
    if (std::strcmp(kernel.name, call.name) != 0) continue;
    alignas(16) char arguments[256];
    if (call.bytes > sizeof arguments) return "the arguments are too many";
    std::memcpy(arguments, call.arguments, call.bytes);
    for (size_t i = 0; opened && i < call.pointers; ++i) {
      void* address;
      std::memcpy(&address, arguments + i * sizeof address, sizeof address);
      address = opened(address);
      std::memcpy(arguments + i * sizeof address, &address, sizeof address);
    }
    // What no kernel has written is no number.
    std::vector<float> memory(call.shared / sizeof(float) + 1);
    for (unsigned block = 0; block < call.blocks; ++block) {
      std::memset(memory.data(), 0xff, memory.size() * sizeof(float));
      running = {block, call.blocks, static_cast<int>(call.warps), memory.data()};
      kernel.run(arguments);
    }
    return nullptr;
  }
  return "there is none of this name";
}
