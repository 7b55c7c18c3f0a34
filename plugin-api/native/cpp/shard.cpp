// Parameters of which each rank holds a part (ZeRO-3; Rajbhandari et al. 2020, arXiv:1910.02054). See shim.h for how errors leave.
//
// Parameters lie one behind the other in units, a unit for each stage of the network and one for the rest. A rank owns an equal part of
// each unit. Where a stage begins its unit is gathered, and the next one meanwhile; where it ends the parameters become empty again,
// and in the backward pass their gradients are summed over the ranks, each rank keeping its part.

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <limits>
#include <memory>
#include <string>

#include "group.h"
#include "shim.h"
#include "stages.h"

namespace {

using Tensors = std::vector<Tensor>;

// Who is told where stages begin and end.
struct Listener {
  virtual ~Listener() = default;
  virtual void begins(int64_t stage, bool backward) = 0;
  virtual Tensors ends(int64_t stage, at::TensorList leaves, at::TensorList gradients) = 0;
};

// One at a time: a process trains one network.
Listener* listener = nullptr;

void begins(int64_t stage, bool backward) {
  if (listener) listener->begins(stage, backward);
}

Tensors ends(int64_t stage, at::TensorList leaves, at::TensorList gradients) {
  return listener ? listener->ends(stage, leaves, gradients) : gradients.vec();
}

void listen(Listener* to) {
  // Of the process, as are the operators.
  static auto* const library = [] {
    auto* made = new torch::Library(torch::Library::FRAGMENT, "maskdiff", std::nullopt, __FILE__, __LINE__);
    made->def("stage_begins(int stage, bool backward) -> ()", &begins);
    made->def("stage_ends(int stage, Tensor[] leaves, Tensor[] gradients) -> Tensor[]", &ends);
    return made;
  }();
  (void)library;
  TORCH_CHECK(!to || !listener, "the stages of another network are listened to");
  listener = to;
}

// Notes which leaves each stage reads.
struct Recorder : Listener {
  void begins(int64_t, bool) override {}

  Tensors ends(int64_t stage, at::TensorList leaves, at::TensorList gradients) override {
    for (const auto& leaf : leaves) met.emplace_back(stage, leaf);
    return gradients.vec();
  }

  std::vector<std::pair<int64_t, Tensor>> met;
};

struct Unit {
  Tensors params;
  // Where each begins.
  std::vector<int64_t> at;
  // Numbers of a rank.
  int64_t part = 0;
  // This rank's part, as it is learnt, and that of the gradient.
  Tensor own, gradient;
  // Everything, in the type of the network, while somebody reads it.
  Tensor whole;
  // What of it is under way, and what it is made of.
  c10::intrusive_ptr<c10d::Work> coming;
  Tensor sent;
  // Calls that read it now.
  int64_t users = 0;
};

struct Shards : Listener {
  Shards(c10::intrusive_ptr<c10d::ProcessGroup> of, std::vector<Unit> made) : group(std::move(of)), units(std::move(made)) {
    at::NoGradGuard no_grad;
    const int64_t rank = group->getRank();
    for (auto& unit : units) {
      if (unit.params.empty()) continue;
      const auto& first = unit.params.front();
      const auto type = first.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
      const auto options = first.options().dtype(type).requires_grad(false);
      if (!nothing.defined()) nothing = at::full({1}, std::numeric_limits<double>::quiet_NaN(), first.options().requires_grad(false));
      {
        const Tensor all = laid_out(unit, unit.params, options);
        unit.own = all.narrow(0, rank * unit.part, unit.part).clone();
      }
      unit.gradient = at::zeros({unit.part}, options);
      empty(unit);
    }
    listen(this);
  }

  ~Shards() override {
    listener = nullptr;
  }

  c10d::Backend& backend() const {
    return *group->getBackend(nothing.device().type());
  }

  // Numbers of the unit's tensors where they lie in it; none where one is not defined.
  Tensor laid_out(const Unit& unit, const Tensors& of, const at::TensorOptions& options) const {
    Tensor all = at::zeros({group->getSize() * unit.part}, options);
    for (size_t i = 0; i < of.size(); ++i) {
      if (of[i].defined()) all.narrow(0, unit.at[i], of[i].numel()).copy_(of[i].reshape({-1}));
    }
    return all;
  }

  // Lets go of the numbers: each parameter keeps its shape, and one NaN stands for all of its numbers. So a call that reads a parameter too
  // early or too late computes no loss.
  void empty(Unit& unit) const {
    for (const auto& param : unit.params) param.set_data(nothing.expand(param.sizes()));
    unit.whole.reset();
  }

  void start(Unit& unit) const {
    if (unit.whole.defined() || unit.params.empty()) return;
    unit.sent = unit.own.to(nothing.scalar_type());
    unit.whole = at::empty({group->getSize() * unit.part}, nothing.options());
    unit.coming = backend()._allgather_base(unit.whole, unit.sent);
  }

  void hold(Unit& unit) const {
    ++unit.users;
    start(unit);
    if (!unit.coming) return;
    arrive(unit);
    for (size_t i = 0; i < unit.params.size(); ++i) {
      const auto& param = unit.params[i];
      param.set_data(unit.whole.narrow(0, unit.at[i], param.numel()).view(param.sizes()));
    }
  }

  void leave(Unit& unit) const {
    if (--unit.users == 0) empty(unit);
  }

  void arrive(Unit& unit) const {
    const auto work = std::move(unit.coming);
    unit.coming.reset();
    work->wait();
    unit.sent.reset();
  }

  // Begins to sum the gradients of a unit, when the sum before it is there.
  void reduce(Unit& unit, Tensors gradients) {
    finish();
    summed = laid_out(unit, gradients, unit.gradient.options()).div_(group->getSize());
    gradients.clear();
    mean = at::empty_like(unit.gradient);
    of = &unit;
    summing = backend()._reduce_scatter_base(mean, summed);
  }

  void finish() {
    if (!summing) return;
    const auto work = std::move(summing);
    summing.reset();
    work->wait();
    of->gradient.add_(mean);
    summed.reset();
    mean.reset();
  }

  // Waits for all that is under way, and forgets what was gathered ahead.
  void settle() {
    finish();
    for (auto& unit : units) {
      if (!unit.coming) continue;
      arrive(unit);
      unit.whole.reset();
    }
  }

  Unit& staged(int64_t stage) {
    TORCH_CHECK(stage >= 0 && stage + 1 < static_cast<int64_t>(units.size()), "there was no stage ", stage, " when the parameters were shared out");
    return units[stage];
  }

  void begins(int64_t stage, bool backward) override {
    noting([&] {
      at::NoGradGuard no_grad;
      hold(staged(stage));
      const int64_t next = stage + (backward ? -1 : 1);
      if (next >= 0 && next + 1 < static_cast<int64_t>(units.size())) start(units[next]);
    });
  }

  Tensors ends(int64_t stage, at::TensorList leaves, at::TensorList gradients) override {
    Tensors rest = gradients.vec();
    noting([&] {
      at::NoGradGuard no_grad;
      auto& unit = staged(stage);
      leave(unit);
      if (rest.empty()) return;
      Tensors taken(unit.params.size());
      for (size_t i = 0; i < leaves.size(); ++i) {
        for (size_t j = 0; j < unit.params.size(); ++j) {
          if (leaves[i].is_same(unit.params[j])) taken[j] = std::move(rest[i]), rest[i] = Tensor();
        }
      }
      reduce(unit, std::move(taken));
    });
    return rest;
  }

  // The first failure: who called it may lose it on the way.
  template <typename F>
  void noting(F&& body) {
    try {
      body();
    } catch (const std::exception& error) {
      if (failed.empty()) {
        char* text = message(error);
        failed = text;
        free(text);
      }
      throw;
    }
  }

  c10::intrusive_ptr<c10d::ProcessGroup> group;
  // One for each stage; the last one has what no stage reads alone.
  std::vector<Unit> units;
  // What an empty parameter reads, for all of its numbers.
  Tensor nothing;
  // The sum under way: of which unit, of what, and this rank's part of it.
  c10::intrusive_ptr<c10d::Work> summing;
  Unit* of = nullptr;
  Tensor summed, mean;
  std::string failed;
};

}  // namespace

extern "C" {

// Notes the leaves of the stages that run until `maskdiff_recorded`.
char* maskdiff_record(Recorder** result) {
  return guarded([&] {
    auto recorder = std::make_unique<Recorder>();
    listen(recorder.get());
    *result = recorder.release();
  });
}

// Passes each stage with each leaf that it read to `give`, and ends the recording.
char* maskdiff_recorded(Recorder* recorder, void* list_of, void (*give)(void*, int64_t, Tensor*)) {
  return guarded([&] {
    const std::unique_ptr<Recorder> own(recorder);
    listener = nullptr;
    for (const auto& [stage, leaf] : own->met) give(list_of, stage, new Tensor(leaf));
  });
}

// `params` are those of all units, of which unit i has `counts[i]`, each from `at` on, and a rank `parts[i]` numbers of the unit.
char* maskdiff_shards_new(maskdiff::Group* group, Tensor* const* params, const int64_t* at, const int64_t* counts, const int64_t* parts,
                          size_t count, Shards** result) {
  return guarded([&] {
    std::vector<Unit> units(count);
    for (size_t i = 0; i < count; ++i) {
      units[i].part = parts[i];
      units[i].params = list(params, counts[i]);
      units[i].at.assign(at, at + counts[i]);
      params += counts[i];
      at += counts[i];
    }
    *result = std::make_unique<Shards>(group->group, std::move(units)).release();
  });
}

// This rank's part of a unit, and of its gradient.
char* maskdiff_shards_own(Shards* shards, size_t unit, Tensor** own, Tensor** gradient) {
  return guarded([&] {
    *own = new Tensor(shards->units.at(unit).own);
    *gradient = new Tensor(shards->units.at(unit).gradient);
  });
}

// Before a step: gradients are zero, and what no stage reads is there.
char* maskdiff_shards_open(Shards* shards) {
  return guarded([&] {
    shards->noting([&] {
      at::NoGradGuard no_grad;
      for (auto& unit : shards->units) {
        if (unit.gradient.defined()) unit.gradient.zero_();
      }
      for (const auto& param : shards->units.back().params) param.mutable_grad().reset();
      shards->hold(shards->units.back());
    });
  });
}

// After its backward passes: sums the gradients of what no stage reads, and waits for all sums.
char* maskdiff_shards_close(Shards* shards) {
  return guarded([&] {
    shards->noting([&] {
      at::NoGradGuard no_grad;
      auto& unit = shards->units.back();
      shards->leave(unit);
      Tensors gradients;
      for (const auto& param : unit.params) {
        gradients.push_back(param.grad());
        param.mutable_grad().reset();
      }
      if (!unit.params.empty()) shards->reduce(unit, std::move(gradients));
      shards->settle();
    });
  });
}

// Gathers all units, or lets them go.
char* maskdiff_shards_hold(Shards* shards, int whole) {
  return guarded([&] {
    shards->noting([&] {
      at::NoGradGuard no_grad;
      shards->settle();
      for (auto& unit : shards->units) whole ? shards->hold(unit) : shards->leave(unit);
    });
  });
}

// The words of the first failure, which the caller frees, or null.
char* maskdiff_shards_failed(Shards* shards) { return shards->failed.empty() ? nullptr : strdup(shards->failed.c_str()); }

void maskdiff_shards_free(Shards* shards) {
  free(guarded([&] { delete shards; }));
}

}  // extern "C"
