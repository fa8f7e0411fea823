// The subset of CUDA that the kernel source in the macro KERNELS uses, on the CPU. The threads of a
// block are fibers: shuffles wait for the warp, __syncthreads() for the block. Blocks run one after
// the other. launch() detects a deadlock and returns 1.

#include <csetjmp>
#include <cstring>
#include <memory>
#include <ucontext.h>
#include <vector>

#define HOST_EMULATION
#define __device__
#define __global__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(threads)

struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
struct Index2 { int x, y; };

struct Barrier {
  int waiting = 0, passed = 0;
};
struct Warp {
  Barrier barrier;
  unsigned slots[2][32];
};
struct Fiber {
  Index2 thread;
  Warp* warp;
  jmp_buf state;
  ucontext_t start;
  std::unique_ptr<char[]> stack;
  bool done = false;
};

static Fiber* running;
static jmp_buf scheduler;
static Index2 blockIdx, blockDim;
static Barrier block_barrier, block_end;
static long events;  // arrivals at barriers and ends of fibers

static void wait(Barrier& barrier, int count) {
  const int round = barrier.passed;
  ++events;
  if (++barrier.waiting == count) barrier.waiting = 0, ++barrier.passed;
  while (barrier.passed == round)
    if (!_setjmp(running->state)) _longjmp(scheduler, 1);
}

static unsigned exchange(unsigned value, int source) {
  Warp& warp = *running->warp;
  unsigned* slots = warp.slots[warp.barrier.passed & 1];
  slots[running->thread.x] = value;
  wait(warp.barrier, 32);
  return slots[source];
}

#define threadIdx (running->thread)
static unsigned __shfl_sync(unsigned, unsigned value, int lane) { return exchange(value, lane); }
static unsigned __shfl_up_sync(unsigned, unsigned value, int distance) {
  const int lane = threadIdx.x;
  return exchange(value, lane < distance ? lane : lane - distance);
}
static void __syncthreads() { wait(block_barrier, blockDim.x * blockDim.y); }
static float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
static unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }
static unsigned short add_halves(unsigned short a, unsigned short b) {
  _Float16 x, y;
  memcpy(&x, &a, 2), memcpy(&y, &b, 2);
  _Float16 sum = (_Float16)((float)x + (float)y);
  memcpy(&a, &sum, 2);
  return a;
}

#include KERNELS

struct Call {
  void* kernel;
  int inputs, blocks, planes, height, width;
  const void *a, *b;
  void* y;
};
static const Call* call;

static void run_fiber() {
  for (int block = 0; block < call->blocks; ++block) {
    blockIdx = {block, 0};
    const int planes = call->planes, height = call->height, width = call->width;
    if (call->inputs == 1)
      ((void (*)(const void*, int, int, int, void*))call->kernel)(call->a, planes, height, width,
                                                                  call->y);
    else
      ((void (*)(const void*, const void*, int, int, int, void*))call->kernel)(
          call->a, call->b, planes, height, width, call->y);
    wait(block_end, blockDim.x * blockDim.y);
  }
  running->done = true;
  ++events;
  _longjmp(scheduler, 1);
}

// Returns 0, or 1 if threads wait at a barrier that others never reach.
extern "C" int launch(const Call* launched, int block_x, int block_y) {
  constexpr size_t STACK = 65536;
  call = launched;
  blockDim = {block_x, block_y};
  block_barrier = block_end = {};
  std::vector<Warp> warps(block_y);
  std::vector<Fiber> fibers(block_x * block_y);
  for (size_t index = 0; index < fibers.size(); ++index) {
    Fiber& fiber = fibers[index];
    fiber.thread = {int(index) % block_x, int(index) / block_x};
    fiber.warp = &warps[fiber.thread.y];
    fiber.stack.reset(new char[STACK]);
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = STACK;
    makecontext(&fiber.start, run_fiber, 0);
  }
  for (bool first = true;; first = false) {
    const long before = events;
    bool done = true;
    for (Fiber& fiber : fibers) {
      if (fiber.done) continue;
      done = false;
      running = &fiber;
      if (!_setjmp(scheduler)) {
        if (first) setcontext(&fiber.start);
        _longjmp(fiber.state, 1);
      }
    }
    if (done) return 0;
    if (events == before) return 1;
  }
}
