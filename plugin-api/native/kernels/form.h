// One text in two forms: CUDA C++, compiled by NVRTC for a GPU, and C++, in which blocks, warps and lanes are loops.
//
// A kernel is a block's work. `EACH_WARP(w)` and, inside it, `EACH_LANE(l)` say what each warp and lane does; on a GPU they run once. What
// lanes know of their own is in `Lanes`, what a warp shares comes from `sum` and `largest`, and what warps share lies in `shared`, behind a
// `BARRIER` outside of both loops.

#ifdef __CUDACC_RTC__

#define INLINE __device__ __forceinline__
// What is long and rare: compiled once for all kernels that call it.
#define APART __device__ __noinline__
#define KERNEL(name, Arguments) extern "C" __global__ void __launch_bounds__(512) name(const Arguments a)
#define BLOCK (static_cast<long long>(blockIdx.x))
#define BLOCKS (static_cast<long long>(gridDim.x))
#define WARPS (static_cast<int>(blockDim.x >> 5))
#define EACH_WARP(w) for (int w = static_cast<int>(threadIdx.x >> 5), w##_left = 1; w##_left; w##_left = 0)
#define EACH_LANE(l) for (int l = static_cast<int>(threadIdx.x & 31), l##_left = 1; l##_left; l##_left = 0)
#define BARRIER __syncthreads()

extern __shared__ float shared[];

template <typename T>
struct Lanes {
  T value;
  INLINE T& operator[](int) { return value; }
};

INLINE float sum(Lanes<float> x) {
  for (int away = 16; away > 0; away >>= 1) x.value += __shfl_xor_sync(0xffffffffu, x.value, away);
  return x.value;
}

INLINE float largest(Lanes<float> x) {
  for (int away = 16; away > 0; away >>= 1) {
    const float other = __shfl_xor_sync(0xffffffffu, x.value, away);
    x.value = other > x.value ? other : x.value;
  }
  return x.value;
}

INLINE unsigned bits_of(float x) { return __float_as_uint(x); }
INLINE float number_of(unsigned bits) { return __uint_as_float(bits); }

#else

#include <cmath>
#include <cstring>

// Which block runs, in the form of loops.
struct Running {
  long long block, blocks;
  int warps;
  float* memory;
};
static thread_local Running running;

#define INLINE static inline
#define APART static
#define KERNEL(name, Arguments) static void name(const Arguments& a)
#define BLOCK running.block
#define BLOCKS running.blocks
#define WARPS running.warps
#define EACH_WARP(w) for (int w = 0; w < running.warps; ++w)
#define EACH_LANE(l) for (int l = 0; l < 32; ++l)
#define BARRIER static_cast<void>(0)
#define shared running.memory

template <typename T>
struct Lanes {
  T values[32];
  T& operator[](int lane) { return values[lane]; }
};

// In the order in which a GPU adds.
INLINE float sum(Lanes<float> x) {
  for (int away = 16; away > 0; away >>= 1) {
    const Lanes<float> before = x;
    for (int l = 0; l < 32; ++l) x.values[l] += before.values[l ^ away];
  }
  return x.values[0];
}

INLINE float largest(Lanes<float> x) {
  float most = x.values[0];
  for (int l = 1; l < 32; ++l) most = x.values[l] > most ? x.values[l] : most;
  return most;
}

INLINE unsigned bits_of(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

INLINE float number_of(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

#endif

struct bf16 {
  unsigned short bits;
};

INLINE float wide(float x) { return x; }
INLINE float wide(bf16 x) { return number_of(static_cast<unsigned>(x.bits) << 16); }

INLINE void narrow(float x, float& into) { into = x; }

// To the nearest, and of two as near to the even one.
INLINE void narrow(float x, bf16& into) {
  const unsigned bits = bits_of(x);
  into.bits = x != x ? 0x7fc0 : static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Neighbours that one load brings: at most 16 bytes.
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T values[N];
};

template <int N, typename T>
INLINE void get(const T* from, float (&x)[N]) {
  const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(from);
  for (int i = 0; i < N; ++i) x[i] = wide(pack.values[i]);
}

template <int N, typename T>
INLINE void put(T* into, const float (&x)[N]) {
  Pack<T, N> pack;
  for (int i = 0; i < N; ++i) narrow(x[i], pack.values[i]);
  *reinterpret_cast<Pack<T, N>*>(into) = pack;
}

// The same from memory whose type is known to the caller of the kernel alone. Null holds `none`.
template <int N>
INLINE void get_typed(const void* from, int type, long long at, float none, float (&x)[N]) {
  if (!from) {
    for (int i = 0; i < N; ++i) x[i] = none;
  } else if (type) {
    get(static_cast<const bf16*>(from) + at, x);
  } else {
    get(static_cast<const float*>(from) + at, x);
  }
}

INLINE void put_typed(void* into, int type, long long at, float x) {
  if (type) {
    narrow(x, static_cast<bf16*>(into)[at]);
  } else {
    static_cast<float*>(into)[at] = x;
  }
}

struct Words {
  unsigned x[4];
};

// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): 128 random bits of a counter, by a key.
INLINE Words philox(unsigned long long low, unsigned long long high, unsigned long long key) {
  unsigned c0 = static_cast<unsigned>(low), c1 = static_cast<unsigned>(low >> 32);
  unsigned c2 = static_cast<unsigned>(high), c3 = static_cast<unsigned>(high >> 32);
  unsigned k0 = static_cast<unsigned>(key), k1 = static_cast<unsigned>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const unsigned long long a = 0xD2511F53ull * c0, b = 0xCD9E8D57ull * c2;
    c0 = static_cast<unsigned>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<unsigned>(b);
    c2 = static_cast<unsigned>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<unsigned>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// For 8 neighbours of a row the factor that dropout multiplies by: 0, or 1 / (1 - p).
INLINE void kept(const long long* seed, int dropped, long long pack, float (&factor)[8]) {
  if (dropped == 0) {
    for (int i = 0; i < 8; ++i) factor[i] = 1.0f;
    return;
  }
  const Words words = philox(static_cast<unsigned long long>(pack), static_cast<unsigned long long>(seed[1]), static_cast<unsigned long long>(seed[0]));
  const float scale = 65536.0f / static_cast<float>(65536 - dropped);
  for (int i = 0; i < 8; ++i) {
    const int bits = static_cast<int>((words.x[i >> 1] >> (16 * (i & 1))) & 0xffffu);
    factor[i] = bits >= dropped ? scale : 0.0f;
  }
}
