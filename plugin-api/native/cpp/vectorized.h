// Loops over numbers in float32 that the compiler turns into vector instructions.

#pragma once

#include <cstdint>
#include <cstring>

// The loops below for the instructions that the processor has; libtorch's own are built for them too. That numbers are finite is
// said to the compiler so that it makes a minimum of one instruction: NaN still comes out where NaN went in.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORIZED \
  __attribute__((optimize("O3", "no-math-errno", "no-trapping-math", "no-signed-zeros", "finite-math-only")))
#define FOR_EACH_PROCESSOR VECTORIZED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTORIZED
#define FOR_EACH_PROCESSOR
#endif

namespace {

// e^x, exact to a few units in the last place, for x clamped to [-87, 88]. e^x is 2^n e^r with |r| <= ln 2 / 2, the latter by the
// coefficients of S. Moshier's Cephes library (expf).
VECTORIZED __attribute__((always_inline)) inline float exponential(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: a sum with it is rounded to a whole number.
  x = x < 88.0f ? x : 88.0f;
  x = x > -87.0f ? x : -87.0f;
  const float shifted = x * 1.44269504f + kRound, n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691e-4f;
  p = p * r + 1.3981999e-3f;
  p = p * r + 8.3334519e-3f;
  p = p * r + 4.1665796e-2f;
  p = p * r + 1.6666666e-1f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  int32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits - 0x4B400000 + 127) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  return power * p;
}

}  // namespace
