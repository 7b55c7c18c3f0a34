// How the stages of a network tell that they begin and end: by two operators of libtorch, which the network's library and the host's
// share. Nobody listens unless the host has registered them (shard.cpp).

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <vector>

namespace maskdiff {

inline const char* const kBegins = "maskdiff::stage_begins";
inline const char* const kEnds = "maskdiff::stage_ends";

// A stage under way, from the construction of this object to `end`, or else to its destruction.
class Announced {
 public:
  Announced(int64_t stage, bool backward) : stage_(stage) {
    const auto begins = c10::Dispatcher::singleton().findSchema({kBegins, ""});
    if (!begins) return;
    begins->typed<void(int64_t, bool)>().call(stage, backward);
    open_ = true;
  }

  Announced(const Announced&) = delete;

  ~Announced() {
    try {
      end({}, {});
    } catch (...) {
      // The host has noted what failed, and something else failed first.
    }
  }

  // Ends it, with the leaves that it read and, in the backward pass, their gradients. Returns the gradients that are still to be
  // passed on: none in the place of one that the host has taken.
  std::vector<at::Tensor> end(const std::vector<at::Tensor>& leaves, std::vector<at::Tensor> gradients) {
    if (!open_) return gradients;
    open_ = false;
    const auto ends = c10::Dispatcher::singleton().findSchemaOrThrow(kEnds, "");
    return ends.typed<std::vector<at::Tensor>(int64_t, at::TensorList, at::TensorList)>().call(stage_, leaves, gradients);
  }

 private:
  int64_t stage_;
  bool open_ = false;
};

}  // namespace maskdiff
