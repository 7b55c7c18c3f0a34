// A part of a network whose inside is computed again in the backward pass instead of kept (activation checkpointing; Chen et al. 2016,
// arXiv:1604.06174). See shim.h for how errors leave, and stages.h for who is told when a stage begins and ends.
//
// The part is computed with its graph, as without this: operations choose other kernels where no gradient is needed, and a loss would
// differ in its last bits. The graph is dropped at once. Its leaves (parameters, adapters) become inputs of one node, so that their
// gradients reach them by the outer graph, once a pass, as those of any other part do.

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/SequenceNumber.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <unordered_set>

#include "shim.h"
#include "stages.h"

namespace {

using torch::autograd::AccumulateGrad;
using torch::autograd::edge_list;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// What computes the part, of Rust. `run` pushes what it makes to `made`, and returns a message where it failed, which is its own.
struct Block {
  void* data;
  const char* (*run)(void* data, Tensor* const* inputs, size_t count, void* made);
  void (*drop)(void* data);
};

struct Closure {
  explicit Closure(Block block) : block(block) {}
  Closure(const Closure&) = delete;
  ~Closure() { block.drop(block.data); }

  variable_list run(const variable_list& inputs) const {
    std::vector<Tensor*> given;
    for (const auto& input : inputs) given.push_back(new Tensor(input));
    variable_list made;
    // It takes the handles over.
    const char* said = block.run(block.data, given.data(), given.size(), &made);
    if (said) throw std::runtime_error(said);
    return made;
  }

  Block block;
};

// The state of a device's generator, to which it returns.
struct Draws {
  explicit Draws(at::Device device) : generator(at::globalContext().defaultGenerator(device)), state(read()) {}

  Tensor read() {
    std::lock_guard<std::mutex> lock(generator.mutex());
    return generator.get_state();
  }

  void write(const Tensor& of) {
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(of);
  }

  at::Generator generator;
  Tensor state;
};

// Reduced precision, as it was. Casts of weights are not kept: one that is made here would belong to a graph that is dropped.
struct Modes {
  Modes() : kept(at::autocast::is_autocast_cache_enabled()) {
    for (int i = 0; i < 2; ++i) {
      on[i] = at::autocast::is_autocast_enabled(kDevices[i]);
      type[i] = at::autocast::get_autocast_dtype(kDevices[i]);
    }
  }

  void set(bool cache) const {
    for (int i = 0; i < 2; ++i) {
      at::autocast::set_autocast_enabled(kDevices[i], on[i]);
      at::autocast::set_autocast_dtype(kDevices[i], type[i]);
    }
    at::autocast::set_autocast_cache_enabled(cache);
  }

  static constexpr at::DeviceType kDevices[2] = {at::kCPU, at::kCUDA};
  bool on[2];
  at::ScalarType type[2];
  bool kept;
};

// Until it goes: those modes, gradients on, and generators that are where they were then; afterwards as before.
struct Again {
  Again(const Modes& modes, std::vector<Draws>& draws) : draws(draws) {
    for (auto& of : draws) now.push_back(of.read());
    for (auto& of : draws) of.write(of.state);
    modes.set(false);
  }

  ~Again() {
    before.set(before.kept);
    for (size_t i = 0; i < draws.size(); ++i) draws[i].write(now[i]);
  }

  std::vector<Draws>& draws;
  std::vector<Tensor> now;
  Modes before;
  at::AutoGradMode gradients{true};
};

// Copies of the handles from which a graph of its own begins.
variable_list cut(const variable_list& inputs, const std::vector<bool>& wanted) {
  variable_list result;
  for (size_t i = 0; i < inputs.size(); ++i) {
    result.push_back(inputs[i].detach());
    if (wanted[i]) result.back().requires_grad_(true);
  }
  return result;
}

struct Stage : Node {
  variable_list apply(variable_list&& gradients) override {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "a stage whose inside is computed again (activation checkpointing) has no gradient of its gradient");
    TORCH_CHECK(closure, "a second backward pass through a stage whose inside is computed again (activation checkpointing)");
    variable_list inputs;
    for (auto& input : saved) inputs.push_back(input.unpack());
    inputs = cut(inputs, wanted);
    maskdiff::Announced announced(index, /*backward=*/true);
    variable_list roots, upstream, of;
    {
      Again again(modes, draws);
      const auto made = closure->run(inputs);
      TORCH_CHECK(made.size() == gradients.size(), "a stage returned ", gradients.size(), " tensors, and now ", made.size());
      for (size_t i = 0; i < made.size(); ++i) {
        if (!gradients[i].defined() || !made[i].requires_grad()) continue;
        roots.push_back(made[i]);
        upstream.push_back(gradients[i]);
      }
    }
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (wanted[i]) of.push_back(inputs[i]);
    }
    for (const auto& leaf : leaves) of.push_back(leaf);
    variable_list found(of.size());
    if (!roots.empty()) {
      found = torch::autograd::grad(roots, of, upstream, /*retain_graph=*/false, /*create_graph=*/false, /*allow_unused=*/true);
    }
    roots.clear();
    variable_list result, of_leaves(found.end() - leaves.size(), found.end());
    size_t next = 0;
    for (const bool is_wanted : wanted) result.push_back(is_wanted ? found[next++] : Tensor());
    found.clear();
    for (auto& gradient : announced.end(leaves, std::move(of_leaves))) result.push_back(std::move(gradient));
    return result;
  }

  void release_variables() override {
    saved.clear();
    closure.reset();
  }

  std::string name() const override { return "maskdiff::Stage"; }

  int64_t index = 0;
  std::unique_ptr<Closure> closure;
  std::vector<SavedVariable> saved;
  // Which inputs get a gradient.
  std::vector<bool> wanted;
  std::vector<Tensor> leaves;
  Modes modes;
  std::vector<Draws> draws;
};

// The leaves that a graph ends in, but for `own`. A node from before `begun` is of another graph, whose gradient would be lost.
std::vector<Tensor> leaves_of(const variable_list& outputs, const variable_list& own, uint64_t begun) {
  std::unordered_set<const void*> met;
  for (const auto& input : own) met.insert(input.unsafeGetTensorImpl());
  std::vector<Tensor> leaves;
  std::vector<std::shared_ptr<Node>> open;
  const auto meet = [&](const std::shared_ptr<Node>& node) {
    if (node && met.insert(node.get()).second) open.push_back(node);
  };
  for (const auto& output : outputs) {
    if (output.requires_grad()) meet(torch::autograd::impl::gradient_edge(output).function);
  }
  while (!open.empty()) {
    const auto node = open.back();
    open.pop_back();
    if (auto* leaf = dynamic_cast<AccumulateGrad*>(node.get())) {
      if (met.insert(leaf->variable.unsafeGetTensorImpl()).second) leaves.push_back(leaf->variable);
      continue;
    }
    TORCH_CHECK(node->sequence_nr() >= begun,
                "a stage reads a tensor with a gradient (of ", node->name(), ") that is not among its inputs: pass it to `Parameters::stage`");
    for (const auto& edge : node->next_edges()) meet(edge.function);
  }
  return leaves;
}

}  // namespace

extern "C" {

int maskdiff_gradients_on() { return at::GradMode::is_enabled() ? 1 : 0; }

// Tells that a stage of which no gradient is needed begins; `maskdiff_stage_left` takes the result.
char* maskdiff_stage_entered(int64_t index, maskdiff::Announced** result) {
  return guarded([&] { *result = new maskdiff::Announced(index, /*backward=*/false); });
}

char* maskdiff_stage_left(maskdiff::Announced* announced) {
  return guarded([&] {
    const std::unique_ptr<maskdiff::Announced> own(announced);
    own->end({}, {});
  });
}

// Adds a tensor, whose handle it takes over, to what a block makes.
void maskdiff_made(void* made, Tensor* tensor) {
  static_cast<variable_list*>(made)->push_back(*tensor);
  delete tensor;
}

// Computes a part of a network whose inside is computed again in the backward pass; `give` gets what it makes. The block is taken over,
// also where this fails.
char* maskdiff_stage(int64_t index, Tensor* const* inputs, size_t count, void* data, const char* (*run)(void*, Tensor* const*, size_t, void*),
                     void (*drop)(void*), void* list_of, void (*give)(void*, Tensor*)) {
  return guarded([&] {
    auto closure = std::make_unique<Closure>(Block{data, run, drop});
    const auto given = list(inputs, count);
    auto stage = std::shared_ptr<Stage>(new Stage(), torch::autograd::deleteNode);
    for (const auto& input : given) stage->wanted.push_back(input.requires_grad());
    stage->draws.emplace_back(at::Device(at::kCPU));
    if (count > 0 && given[0].is_cuda()) stage->draws.emplace_back(given[0].device());
    stage->index = index;
    maskdiff::Announced announced(index, /*backward=*/false);
    const auto own = cut(given, stage->wanted);
    variable_list made;
    const auto begun = at::sequence_number::peek();
    stage->modes.set(false);
    try {
      made = closure->run(own);
    } catch (...) {
      stage->modes.set(stage->modes.kept);
      throw;
    }
    stage->modes.set(stage->modes.kept);
    stage->leaves = leaves_of(made, own, begun);
    bool any = false;
    for (auto& output : made) {
      any = any || output.requires_grad();
      output = output.detach();
    }
    announced.end(stage->leaves, {});
    if (any) {
      edge_list edges;
      for (size_t i = 0; i < count; ++i) {
        edges.push_back(stage->wanted[i] ? torch::autograd::impl::gradient_edge(given[i]) : torch::autograd::Edge());
        stage->saved.emplace_back(given[i], /*is_output=*/false);
      }
      for (const auto& leaf : stage->leaves) edges.push_back(torch::autograd::impl::gradient_edge(leaf));
      stage->set_next_edges(std::move(edges));
      stage->closure = std::move(closure);
      torch::autograd::set_history(made, stage);
    }
    for (const auto& output : made) give(list_of, new Tensor(output));
  });
}

}  // extern "C"
