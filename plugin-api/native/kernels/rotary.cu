// Rotary positions on queries and keys where a linear map has put them (arXiv:2104.09864): halves are rotated, not neighbours. The backward
// pass turns by the opposite angles, and joins the three gradients on the way.

template <typename T>
INLINE void turn(const TurnArguments& a) {
  const T* sources[3] = {static_cast<const T*>(a.q), static_cast<const T*>(a.k), static_cast<const T*>(a.v)};
  const long long tokens = a.texts * a.length, size = 2 * a.half;
  const int parts = a.moves_v ? 3 : 2;
  EACH_WARP(w) {
    for (long long token = BLOCK * WARPS + w; token < tokens; token += BLOCKS * WARPS) {
      const long long text = token / a.length, position = token - text * a.length;
      const long long table = text * a.table_text + position * a.table_position;
      EACH_LANE(l) {
        for (long long i = l; i < a.half; i += 32) {
          float cos[1], sin[1];
          get_typed(a.cos, a.table_type, table + i, 1.0f, cos);
          get_typed(a.sin, a.table_type, table + i, 0.0f, sin);
          for (int part = 0; part < parts; ++part) {
            const float c = part == 2 ? 1.0f : cos[0], s = part == 2 ? 0.0f : a.back ? -sin[0] : sin[0];
            const T* from = sources[part] + text * a.text[part] + position * a.position[part] + i;
            T* into = static_cast<T*>(a.into) + (token * 3 + part) * a.heads * size + i;
            for (long long head = 0; head < a.heads; ++head, from += a.head[part], into += size) {
              const float first = wide(from[0]), second = wide(from[a.half]);
              // What is only moved stays as it is, also where it is no number.
              narrow(part == 2 ? first : first * c - second * s, into[0]);
              narrow(part == 2 ? second : second * c + first * s, into[a.half]);
            }
          }
        }
      }
    }
  }
}

KERNEL(turn_f, TurnArguments) { turn<float>(a); }
KERNEL(turn_b, TurnArguments) { turn<bf16>(a); }
