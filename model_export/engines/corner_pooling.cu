// Corner pooling (CornerNet, Law and Deng 2018, section 3.2): running maxima of (N, C, H, W) maps.
//
// Every value is read once and written once: bandwidth is the limit, not arithmetic.
// A float becomes an unsigned key that has the same order, so that one integer maximum serves all
// formats: -inf < ... < -0 < +0 < ... < +inf < NaN, with whatever sign bit NaN has. A maximum is
// therefore one of its inputs, bit by bit, and NaN wins as in torch.cummax.
//
// Blocks are 32 lanes by up to MOST_WARPS warps; any number of warps gives the same result.

constexpr int LANES = 32, MOST_WARPS = 16;
constexpr int VECTOR = 4;         // columns per lane: 16 or 8 bytes in one access
constexpr int COLUMN_STEPS = 8;   // rows that a warp of pool_columns holds in registers
constexpr int ROWS_AT_ONCE = 4;   // rows that a warp of the other kernels holds
constexpr int PANEL = 1024;       // columns whose maxima pool_pair keeps in shared memory
constexpr unsigned ALL = 0xffffffffu, SIGN = 0x80000000u;

#ifndef HOST_EMULATION
__device__ __forceinline__ unsigned short add_halves(unsigned short a, unsigned short b) {
  unsigned short sum;  // rounded once, like a sum in fp32 that is rounded to half
  asm("add.f16 %0, %1, %2;" : "=h"(sum) : "h"(a), "h"(b));
  return sum;
}
#endif

// Formats. Values are handled as words: 32 bits, a 16-bit value in the upper half. What lies in the
// lower half is noise: it decides between equal values only, and store() drops it.
// LOWEST is the key of -inf before the shift that makes it 0 and moves negative NaN to the top.

struct Fp32 {
  using Bits = unsigned;
  static constexpr unsigned LOWEST = 0x007fffffu;
  static __device__ __forceinline__ unsigned add(unsigned a, unsigned b) {
    return __float_as_uint(__uint_as_float(a) + __uint_as_float(b));
  }
};

struct Fp16 {
  using Bits = unsigned short;
  static constexpr unsigned LOWEST = 0x03ff0000u;
  static __device__ __forceinline__ unsigned add(unsigned a, unsigned b) {
    return (unsigned)add_halves((unsigned short)(a >> 16), (unsigned short)(b >> 16)) << 16;
  }
};

struct Bf16 {
  using Bits = unsigned short;
  static constexpr unsigned LOWEST = 0x007f0000u;
  static __device__ __forceinline__ unsigned add(unsigned a, unsigned b) {
    float sum = __uint_as_float(a & 0xffff0000u) + __uint_as_float(b & 0xffff0000u);
    unsigned bits = __float_as_uint(sum);
    // To the nearest, ties to even; NaN would overflow into the sign.
    return sum != sum ? 0x7fff0000u : bits + 0x7fffu + ((bits >> 16) & 1u);
  }
};

template <class F> __device__ __forceinline__ unsigned to_key(unsigned word) {
  return (word ^ ((unsigned)((int)word >> 31) | SIGN)) - F::LOWEST;
}

template <class F> __device__ __forceinline__ unsigned to_word(unsigned key) {
  unsigned ordered = key + F::LOWEST;
  return ordered ^ (~(unsigned)((int)ordered >> 31) | SIGN);
}

__device__ __forceinline__ unsigned larger(unsigned a, unsigned b) { return a > b ? a : b; }

// V neighbouring columns as keys, the last column first if REVERSED.

__device__ __forceinline__ void read_words(const unsigned* x, unsigned (&words)[VECTOR]) {
  uint4 v = *reinterpret_cast<const uint4*>(x);
  words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
}

__device__ __forceinline__ void read_words(const unsigned short* x, unsigned (&words)[VECTOR]) {
  uint2 v = *reinterpret_cast<const uint2*>(x);
  words[0] = v.x << 16, words[1] = v.x, words[2] = v.y << 16, words[3] = v.y;
}

__device__ __forceinline__ void read_words(const unsigned* x, unsigned (&words)[1]) {
  words[0] = *x;
}

__device__ __forceinline__ void read_words(const unsigned short* x, unsigned (&words)[1]) {
  words[0] = (unsigned)*x << 16;
}

__device__ __forceinline__ void write_words(unsigned* y, const unsigned (&words)[VECTOR]) {
  *reinterpret_cast<uint4*>(y) = uint4{words[0], words[1], words[2], words[3]};
}

__device__ __forceinline__ void write_words(unsigned short* y, const unsigned (&words)[VECTOR]) {
  *reinterpret_cast<uint2*>(y) = uint2{words[0] >> 16 | (words[1] & 0xffff0000u),
                                       words[2] >> 16 | (words[3] & 0xffff0000u)};
}

__device__ __forceinline__ void write_words(unsigned* y, const unsigned (&words)[1]) {
  *y = words[0];
}

__device__ __forceinline__ void write_words(unsigned short* y, const unsigned (&words)[1]) {
  *y = (unsigned short)(words[0] >> 16);
}

template <class F, bool REVERSED, int V>
__device__ __forceinline__ void load(const typename F::Bits* x, unsigned (&keys)[V]) {
  unsigned words[V];
  read_words(x, words);
#pragma unroll
  for (int j = 0; j < V; ++j) keys[j] = to_key<F>(words[REVERSED ? V - 1 - j : j]);
}

template <bool REVERSED, int V, class Bits>
__device__ __forceinline__ void store(Bits* y, const unsigned (&words)[V]) {
  unsigned ordered[V];
#pragma unroll
  for (int j = 0; j < V; ++j) ordered[j] = words[REVERSED ? V - 1 - j : j];
  write_words(y, ordered);
}

template <int V> __device__ __forceinline__ void clear(unsigned (&keys)[V]) {
#pragma unroll
  for (int j = 0; j < V; ++j) keys[j] = 0;
}

// Running maxima over the columns that a warp holds, lane by lane. `carry` is the maximum of all
// columns before, and becomes that of all columns so far.
template <int V> __device__ __forceinline__ void scan_row(unsigned (&keys)[V], unsigned& carry) {
#pragma unroll
  for (int j = 1; j < V; ++j) keys[j] = larger(keys[j], keys[j - 1]);
  unsigned total = keys[V - 1];
#pragma unroll
  for (int distance = 1; distance < LANES; distance *= 2)
    total = larger(total, __shfl_up_sync(ALL, total, distance));  // the first lanes get their own
  unsigned left = __shfl_up_sync(ALL, total, 1);
  unsigned before = threadIdx.x == 0 ? carry : larger(carry, left);
#pragma unroll
  for (int j = 0; j < V; ++j) keys[j] = larger(keys[j], before);
  carry = larger(carry, __shfl_sync(ALL, total, LANES - 1));
}

// Running maxima over the rows that one warp holds, and those rows' maxima to `totals`.
template <int STEPS, int V>
__device__ __forceinline__ void scan_steps(unsigned (&keys)[STEPS][V], unsigned* totals) {
#pragma unroll
  for (int k = 1; k < STEPS; ++k)
#pragma unroll
    for (int j = 0; j < V; ++j) keys[k][j] = larger(keys[k][j], keys[k - 1][j]);
#pragma unroll
  for (int j = 0; j < V; ++j)
    totals[(threadIdx.y * V + j) * LANES + threadIdx.x] = keys[STEPS - 1][j];
}

// Take the maxima of warps [first, last) into `keys`.
template <int V>
__device__ __forceinline__ void gather(unsigned (&keys)[V], const unsigned* totals, int first,
                                       int last) {
  for (int warp = first; warp < last; ++warp)
#pragma unroll
    for (int j = 0; j < V; ++j)
      keys[j] = larger(keys[j], totals[(warp * V + j) * LANES + threadIdx.x]);
}

// Along columns. Lanes take V columns each, of whichever plane; the warps of a block share the rows.
template <class F, bool REVERSE, int V>
__device__ __forceinline__ void pool_columns(const typename F::Bits* x, int planes, int height,
                                             int width, typename F::Bits* y, unsigned* totals) {
  const int warp = threadIdx.y, warps = blockDim.y, places = width / V;
  const long long place = (long long)blockIdx.x * LANES + threadIdx.x;
  const bool inside = place < (long long)planes * places;
  const long long corner = place / places * height * width + place % places * V;
  unsigned carry[V];
  clear(carry);
  for (int start = 0; start < height; start += warps * COLUMN_STEPS) {
    unsigned keys[COLUMN_STEPS][V];
    const int first = start + warp * COLUMN_STEPS;
#pragma unroll
    for (int k = 0; k < COLUMN_STEPS; ++k) {
      clear(keys[k]);
      const int row = REVERSE ? height - 1 - first - k : first + k;
      if (inside && first + k < height)
        load<F, false, V>(x + corner + (long long)row * width, keys[k]);
    }
    scan_steps(keys, totals);
    __syncthreads();
    gather(carry, totals, 0, warp);
#pragma unroll
    for (int k = 0; k < COLUMN_STEPS; ++k) {
      unsigned words[V];
#pragma unroll
      for (int j = 0; j < V; ++j) words[j] = to_word<F>(larger(keys[k][j], carry[j]));
      const int row = REVERSE ? height - 1 - first - k : first + k;
      if (inside && first + k < height) store<false>(y + corner + (long long)row * width, words);
    }
    if (start + warps * COLUMN_STEPS < height) {
      gather(carry, totals, warp, warps);
      __syncthreads();  // the next round overwrites the totals
    }
  }
}

// Along rows. A warp takes ROWS_AT_ONCE rows, of whichever plane, and walks along them.
template <class F, bool REVERSE, int V>
__device__ __forceinline__ void pool_rows(const typename F::Bits* x, int planes, int height,
                                          int width, typename F::Bits* y) {
  const long long rows = (long long)planes * height;
  const long long first =
      ((long long)blockIdx.x * blockDim.y + threadIdx.y) * ROWS_AT_ONCE;
  unsigned carry[ROWS_AT_ONCE];
  clear(carry);
  for (int start = 0; start < width; start += LANES * V) {
    const int position = start + threadIdx.x * V;
    const int column = REVERSE ? width - V - position : position;
    unsigned keys[ROWS_AT_ONCE][V];
#pragma unroll
    for (int k = 0; k < ROWS_AT_ONCE; ++k) {
      clear(keys[k]);
      if (position < width && first + k < rows)
        load<F, REVERSE, V>(x + (first + k) * width + column, keys[k]);
    }
#pragma unroll
    for (int k = 0; k < ROWS_AT_ONCE; ++k) scan_row(keys[k], carry[k]);
#pragma unroll
    for (int k = 0; k < ROWS_AT_ONCE; ++k) {
      unsigned words[V];
#pragma unroll
      for (int j = 0; j < V; ++j) words[j] = to_word<F>(keys[k][j]);
      if (position < width && first + k < rows)
        store<REVERSE>(y + (first + k) * width + column, words);
    }
  }
}

// Sum of `a` pooled along columns and `b` pooled along rows; a block takes a plane. The maxima of
// the columns so far lie in `above`. Only in maps wider than PANEL is a part of `b` read again.
template <class F, bool REVERSE, int V>
__device__ __forceinline__ void pool_pair(const typename F::Bits* a, const typename F::Bits* b,
                                          int height, int width, typename F::Bits* y,
                                          unsigned* totals, unsigned* above) {
  const int warp = threadIdx.y, warps = blockDim.y, lane = threadIdx.x * V;
  const long long plane = (long long)blockIdx.x * height * width;
  for (int panel = 0; panel < width; panel += PANEL) {
    __syncthreads();  // the last panel is done with `above`
    for (int c = warp * LANES + threadIdx.x; c < PANEL; c += warps * LANES) above[c] = 0;
    for (int start = 0; start < height; start += warps * ROWS_AT_ONCE) {
      const int first = start + warp * ROWS_AT_ONCE;
      unsigned carry[ROWS_AT_ONCE];
      clear(carry);
      for (int chunk = 0; chunk < width && chunk < panel + PANEL; chunk += LANES * V) {
        const int position = chunk + lane;
        const int column = REVERSE ? width - V - position : position;
        unsigned vertical[ROWS_AT_ONCE][V], horizontal[ROWS_AT_ONCE][V];
#pragma unroll
        for (int k = 0; k < ROWS_AT_ONCE; ++k) {
          clear(vertical[k]), clear(horizontal[k]);
          const int row = REVERSE ? height - 1 - first - k : first + k;
          const long long at = plane + (long long)row * width + column;
          if (position < width && first + k < height) {
            load<F, REVERSE, V>(b + at, horizontal[k]);
            if (chunk >= panel) load<F, REVERSE, V>(a + at, vertical[k]);
          }
        }
#pragma unroll
        for (int k = 0; k < ROWS_AT_ONCE; ++k) scan_row(horizontal[k], carry[k]);
        if (chunk < panel) continue;  // the same in all threads
        scan_steps(vertical, totals);
        __syncthreads();
        unsigned before[V];
#pragma unroll
        for (int j = 0; j < V; ++j) before[j] = above[chunk - panel + lane + j];
        gather(before, totals, 0, warp);
#pragma unroll
        for (int k = 0; k < ROWS_AT_ONCE; ++k) {
          unsigned words[V];
#pragma unroll
          for (int j = 0; j < V; ++j)
            words[j] = F::add(to_word<F>(larger(vertical[k][j], before[j])),
                              to_word<F>(horizontal[k][j]));
          const int row = REVERSE ? height - 1 - first - k : first + k;
          if (position < width && first + k < height)
            store<REVERSE>(y + plane + (long long)row * width + column, words);
        }
        __syncthreads();  // all have read `above` and the totals
        if (warp == warps - 1)
#pragma unroll
          for (int j = 0; j < V; ++j)
            above[chunk - panel + lane + j] = larger(before[j], vertical[ROWS_AT_ONCE - 1][j]);
      }
    }
  }
}

// Entry points: inputs, number of planes, height, width, output (the order TensorRT calls them in).
// Rows of 4 n columns are aligned for vectors, others are not.

#define COLUMNS(NAME, F, REVERSE)                                                            \
  extern "C" __global__ void __launch_bounds__(LANES* MOST_WARPS)                            \
      NAME(const F::Bits* __restrict__ x, int planes, int height, int width,                 \
           F::Bits* __restrict__ y) {                                                        \
    __shared__ unsigned totals[MOST_WARPS * VECTOR * LANES];                                 \
    if (width % VECTOR == 0)                                                                 \
      pool_columns<F, REVERSE, VECTOR>(x, planes, height, width, y, totals);                 \
    else                                                                                     \
      pool_columns<F, REVERSE, 1>(x, planes, height, width, y, totals);                      \
  }

#define ROWS(NAME, F, REVERSE)                                                               \
  extern "C" __global__ void __launch_bounds__(LANES* MOST_WARPS)                            \
      NAME(const F::Bits* __restrict__ x, int planes, int height, int width,                 \
           F::Bits* __restrict__ y) {                                                        \
    if (width % VECTOR == 0)                                                                 \
      pool_rows<F, REVERSE, VECTOR>(x, planes, height, width, y);                            \
    else                                                                                     \
      pool_rows<F, REVERSE, 1>(x, planes, height, width, y);                                 \
  }

#define PAIR(NAME, F, REVERSE)                                                               \
  extern "C" __global__ void __launch_bounds__(LANES* MOST_WARPS)                            \
      NAME(const F::Bits* __restrict__ a, const F::Bits* __restrict__ b, int,                \
           int height, int width, F::Bits* __restrict__ y) {                                 \
    __shared__ unsigned totals[MOST_WARPS * VECTOR * LANES], above[PANEL];                   \
    if (width % VECTOR == 0)                                                                 \
      pool_pair<F, REVERSE, VECTOR>(a, b, height, width, y, totals, above);                  \
    else                                                                                     \
      pool_pair<F, REVERSE, 1>(a, b, height, width, y, totals, above);                       \
  }

#define ALL_OPERATORS(FORMAT, F)                            \
  COLUMNS(corner_pool_top_##FORMAT, F, true)                \
  COLUMNS(corner_pool_bottom_##FORMAT, F, false)            \
  ROWS(corner_pool_left_##FORMAT, F, true)                  \
  ROWS(corner_pool_right_##FORMAT, F, false)                \
  PAIR(corner_pool_top_left_sum_##FORMAT, F, true)          \
  PAIR(corner_pool_bottom_right_sum_##FORMAT, F, false)

ALL_OPERATORS(fp32, Fp32)
ALL_OPERATORS(fp16, Fp16)
ALL_OPERATORS(bf16, Bf16)
