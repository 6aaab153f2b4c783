// Enough of CUDA C++ to compile a .cu with g++ and run it on one thread of the CPU. A test double: it shows
// what the arithmetic and the indices do, under the sanitizers; it shows no race and no speed.
//
// A kernel runs block by block. Its threads are fibres that change over at __syncthreads(), or plain calls
// where it has no barrier.
#pragma once
#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

using std::max;
using std::min;

struct Index {
    unsigned x = 0, y = 0, z = 0;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

// Compiled with -ffp-contract=off, so that a product is rounded before it is added, as __dmul_rn says.
static inline double __dmul_rn(double a, double b) { return a * b; }

namespace cuda_host {

const size_t STACK = 64 * 1024;

#if defined(__SANITIZE_ADDRESS__)
static inline void leave(void** from, const void* bottom, size_t size) {
    __sanitizer_start_switch_fiber(from, bottom, size);
}
static inline void arrive(void* from) { __sanitizer_finish_switch_fiber(from, nullptr, nullptr); }
#else
static inline void leave(void**, const void*, size_t) {}
static inline void arrive(void*) {}
#endif

struct Fibre {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    Index thread;
    bool done = true;
    void* fake = nullptr;  // the address sanitizer's own stack
};

static ucontext_t scheduler;
static void* scheduler_fake = nullptr;
static std::vector<std::unique_ptr<Fibre>> fibres;
static Fibre* current = nullptr;
static std::function<void()> body;
static char scheduler_stack_bottom;

static void to_scheduler(bool last) {
    Fibre* fibre = current;
    leave(last ? nullptr : &fibre->fake, &scheduler_stack_bottom, 0);
    swapcontext(&fibre->context, &scheduler);
    arrive(fibre->fake);
}

static void run_fibre() {
    arrive(nullptr);
    body();
    current->done = true;
    to_scheduler(true);
}

static void resume(Fibre& fibre) {
    current = &fibre;
    threadIdx = fibre.thread;
    leave(&scheduler_fake, fibre.stack.get(), STACK);
    swapcontext(&scheduler, &fibre.context);
    arrive(scheduler_fake);
}

static void run_block() {
    const size_t count = (size_t)blockDim.x * blockDim.y;
    while (fibres.size() < count) fibres.emplace_back(new Fibre);
    for (size_t i = 0; i < count; ++i) {
        Fibre& fibre = *fibres[i];
        fibre.thread = {(unsigned)(i % blockDim.x), (unsigned)(i / blockDim.x), 0};
        fibre.done = false;
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.get();
        fibre.context.uc_stack.ss_size = STACK;
        fibre.context.uc_link = nullptr;
        makecontext(&fibre.context, run_fibre, 0);
    }
    // Each round takes every thread to its next barrier, or to its end.
    for (bool running = true; running;) {
        running = false;
        for (size_t i = 0; i < count; ++i)
            if (!fibres[i]->done) {
                resume(*fibres[i]);
                running |= !fibres[i]->done;
            }
    }
}

static void run_block_without_barriers() {
    current = nullptr;
    for (threadIdx.y = 0; threadIdx.y < blockDim.y; ++threadIdx.y)
        for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) body();
}

// Run `kernel` over the whole grid.
static void launch(unsigned grid, unsigned block_x, unsigned block_y, bool barriers, std::function<void()> kernel) {
    gridDim = {grid, 1, 1};
    blockDim = {block_x, block_y, 1};
    body = std::move(kernel);
    for (unsigned block = 0; block < grid; ++block) {
        blockIdx = {block, 0, 0};
        barriers ? run_block() : run_block_without_barriers();
    }
}

}  // namespace cuda_host

static inline void __syncthreads() {
    if (!cuda_host::current) abort();  // launched as a kernel without barriers
    cuda_host::to_scheduler(false);
    threadIdx = cuda_host::current->thread;
}
