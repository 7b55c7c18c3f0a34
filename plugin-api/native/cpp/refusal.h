// What a refusal of NVIDIA's driver means.

#pragma once

#include <algorithm>
#include <iterator>
#include <string>

// Whether it is no fault of this call: kernels run behind the host, and the first call after a fault hears of it.
inline bool of_earlier_work(int code) {
  constexpr int kCodes[] = {214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719};
  return std::find(std::begin(kCodes), std::end(kCodes), code) != std::end(kCodes);
}

// `what` as "started the kernel nll_b".
inline std::string refusal(const std::string& what, int code, const char* said) {
  const std::string words = std::string(said ? said : "no words") + " (" + std::to_string(code) + ")";
  if (of_earlier_work(code)) {
    return "the GPU reports a fault of earlier work, which was noticed when the driver " + what + ": " + words +
        ": an operation before this one failed. Start again with CUDA_LAUNCH_BLOCKING=1 to learn which, and with `trainer.kernels=plain` to "
        "learn whether it was a kernel of ours";
  }
  return "NVIDIA's driver refused when it " + what + ": " + words;
}
