// What each kernel takes: one struct, whose first fields are all of its pointers. Shared by the kernels and by those who start them.
//
// Letters: rows R of D columns; a modulation (shift, scale or gate) belongs to `group` neighbouring rows, and that of the next group lies
// `stride` numbers further on. A type is 0 for float32 and 1 for bfloat16. `packed` says that addresses and sizes allow loads of several
// numbers.

#ifndef MASKDIFF_KERNEL_ARGUMENTS
#define MASKDIFF_KERNEL_ARGUMENTS

// Queries, keys and values [B, L, H, K] of any strides but that neighbours of a head are neighbours -> into [B, L, 3, H, K], the first two
// turned by the angles of their positions, or back. Where a source is its own place in `into` it is turned in place.
struct TurnArguments {
  const void* q;
  const void* k;
  const void* v;
  const void* cos;
  const void* sin;
  void* into;
  // Of q, k, v: numbers from one text, position and head to the next.
  long long text[3], position[3], head[3];
  // Of cos and sin.
  long long table_text, table_position;
  long long texts, length, heads, half;
  int table_type, back, moves_v;
};

// out = x + gate * kept * h / (1 - p), where a number is kept if its 16 random bits are at least `dropped`. No gate is a gate of 1.
struct GatedArguments {
  const void* x;
  const void* gate;
  const void* h;
  const long long* seed;
  void* out;
  long long rows, columns, group, stride;
  int gate_type, dropped, packed;
};

// dh = up * gate * kept / (1 - p), and of each block of rows the sums of up * kept * h / (1 - p) over its rows, [blocks, D].
struct GatedBackArguments {
  const void* up;
  const void* gate;
  const void* h;
  const long long* seed;
  void* dh;
  float* part;
  long long rows, columns, group, stride, chunks;
  int gate_type, dropped, packed;
};

// y = (x - mean) / deviation * weight * (1 + scale) + shift of each row, which may have neither shift nor scale.
struct NormArguments {
  const void* x;
  const void* weight;
  const void* shift;
  const void* scale;
  void* y;
  float* mean;
  float* inverse;
  long long rows, columns, group, stride;
  float eps;
  int weight_type, modulation_type, packed;
};

// dx of the above plus `through`, the gradient that reaches x beside the norm, and of each block of rows the sums over its rows of dy and
// of dy * (x - mean) / deviation, [blocks, 2, D].
struct NormBackArguments {
  const void* through;
  const void* up;
  const void* x;
  const void* weight;
  const void* scale;
  const float* mean;
  const float* inverse;
  void* dx;
  float* part;
  long long rows, columns, group, stride, chunks;
  int weight_type, modulation_type, packed;
};

// Sums of parts over the chunks of each group. One sum: `first` takes it. Two, a and b: `first` takes a (of the shift), `second` takes
// b * weight (of the scale), and `third` b * (1 + scale) (of the weight). What is null is left out.
struct ColumnsArguments {
  const float* part;
  const void* weight;
  const void* scale;
  void* first;
  void* second;
  void* third;
  long long columns, chunks, stride, sums;
  int weight_type, modulation_type, third_type;
};

// Logits [R, V] -> nll[r] = weight[r] (log sum exp - logit of the target), and where asked their gradient weight[r] (softmax - onehot) in
// their place. `banned` has no probability; below 0 nothing is banned.
struct NllArguments {
  void* logits;
  const long long* target;
  const float* weight;
  float* nll;
  long long rows, columns, stride, banned;
  int gradient, pack;
};

// Logits [R, V] -> nats of the bound of uniform and hybrid diffusion, and where asked their gradient in their place. Of each row the clean token
// x, the observed one z, and in float64 the numbers of ../cpp/interpolating.cpp. `banned` has no probability.
struct BoundArguments {
  void* logits;
  const long long* x;
  const long long* z;
  const double* alpha;
  const double* every;
  const double* weight;
  float* nats;
  long long rows, columns, stride, banned;
  int gradient, pack;
};

#endif
