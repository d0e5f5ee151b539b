// The eight registers of AMX: up to 16 rows of 64 bytes, and products of them that add to sums of 32 bits.
//
// With GMOE_AMX_EMULATED they are memory, to check what is made of them on CPUs without AMX.

struct alignas(64) TileShapes {
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16];  // of a row
  uint8_t rows[16];
};

#if defined(GMOE_AMX_EMULATED)

struct TileRegisters {
  TileShapes shapes;
  uint8_t at[8][16][64];
};
inline TileRegisters& tile_registers() {
  thread_local TileRegisters registers;
  return registers;
}
inline void shape_tiles(const TileShapes& shapes) { tile_registers().shapes = shapes; }
inline TileShapes tile_shapes() { return tile_registers().shapes; }
template <int TO>
inline void zero_tile() {
  __builtin_memset(tile_registers().at[TO], 0, sizeof tile_registers().at[TO]);
}
template <int TO>
inline void load_tile(const void* from, size_t stride) {
  TileRegisters& r = tile_registers();
  zero_tile<TO>();
  for (int i = 0; i < r.shapes.rows[TO]; i++)
    __builtin_memcpy(r.at[TO][i], static_cast<const char*>(from) + size_t(i) * stride, r.shapes.bytes[TO]);
}
template <int FROM>
inline void store_tile(void* to, size_t stride) {
  TileRegisters& r = tile_registers();
  for (int i = 0; i < r.shapes.rows[FROM]; i++)
    __builtin_memcpy(static_cast<char*>(to) + size_t(i) * stride, r.at[FROM][i], r.shapes.bytes[FROM]);
}
template <bool SIGNED, int TO, int A, int B>
inline void multiply_tiles() {
  TileRegisters& r = tile_registers();
  for (int m = 0; m < r.shapes.rows[TO]; m++)
    for (int k = 0; k < r.shapes.bytes[A]; k++)
      for (int n = 0; n < 16; n++) {
        const uint8_t b = r.at[B][k / 4][4 * n + k % 4];
        int32_t sum;
        __builtin_memcpy(&sum, r.at[TO][m] + 4 * n, 4);
        sum += int8_t(r.at[A][m][k]) * (SIGNED ? int(int8_t(b)) : int(b));
        __builtin_memcpy(r.at[TO][m] + 4 * n, &sum, 4);
      }
}

#else

inline void shape_tiles(const TileShapes& shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes)); }
inline TileShapes tile_shapes() {
  TileShapes shapes;
  asm volatile("sttilecfg %0" : "=m"(shapes));
  return shapes;
}
template <int TO>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(TO));
}
template <int TO>
inline void load_tile(const void* from, size_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(TO) : "memory");
}
template <int FROM>
inline void store_tile(void* to, size_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(FROM) : "memory");
}
// TO[m][n] += the sum over k of A[m][k], signed, times byte k % 4 of B[k / 4][n].
template <bool SIGNED, int TO, int A, int B>
inline void multiply_tiles() {
  if constexpr (SIGNED) asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(TO), "i"(A), "i"(B));
  else asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(TO), "i"(A), "i"(B));
}

#endif

// Leaves the shapes as they were: another library may count on those that it gave this thread.
class TileUse {
 public:
  TileUse() : before_(tile_shapes()) {}
  TileUse(const TileUse&) = delete;
  TileUse& operator=(const TileUse&) = delete;
  ~TileUse() { shape_tiles(before_); }

 private:
  TileShapes before_;
};
