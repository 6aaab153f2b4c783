// A test double of NVIDIA's driver, libcuda.so.1, over host memory. It is no GPU: it shows what the host's code
// asks for, and in which order; README.md says what it cannot show.
//
// Work is queued for each stream and runs only when somebody waits, in an order that is shuffled by a seed and
// respects streams and events alone. Device memory can be read and written by such work and by nothing else:
// the pages of everyone else's are closed, so that an access out of bounds, or by the host, is an error.
#include <cuda.h>
#include <dlfcn.h>
#include <elf.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace {

using Lock = std::unique_lock<std::mutex>;
using Work = std::function<CUresult()>;

const size_t PAGE = 4096;
const size_t ALIGNMENT = 256;           // of device addresses, as the driver's
const size_t ARENA = 64ull << 30;       // bytes of addresses; none is given twice
const unsigned char UNWRITTEN = 0xFF;   // four of them are a NaN
const unsigned char CANARY = 0xC7;

struct Op {
    long number = 0;                    // over all streams, in the order of enqueueing
    Work run;
    std::function<bool()> ready = [] { return true; };
    bool foreign = false;               // calls into Python, which must not hold its lock meanwhile
};

}  // namespace

struct CUctx_st {
    int device = 0;
    int retained = 0;
    CUresult failure = CUDA_SUCCESS;    // stays for good
};

struct CUgraph_st {
    std::vector<Op> ops;
};

struct CUgraphExec_st {
    std::vector<Op> ops;
};

struct CUstream_st {
    CUcontext context = nullptr;
    bool blocking = true;               // waits for the default stream, and that for it
    std::deque<Op> queue;
    CUgraph capture = nullptr;
    bool invalidated = false;
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
    std::thread::id capturer;
};

struct CUevent_st {
    CUcontext context = nullptr;
    bool timing = true;
    std::shared_ptr<bool> last;         // whether the latest record is done
    double time = 0;                    // milliseconds of a clock that counts work
};

struct CUmod_st {
    CUcontext context = nullptr;
};

struct CUfunc_st {
    std::string name;
    std::vector<size_t> sizes;          // of its arguments
};

namespace {

struct Allocation {
    size_t size;
    CUcontext context;
};

struct Driver {
    std::mutex mutex;
    std::condition_variable changed;
    bool executing = false;             // somebody runs work, without the lock
    bool open = false;                  // device memory, to work
    pid_t process = 0;                  // that called cuInit
    std::mt19937_64 random;
    long operations = 0;
    double clock = 0;
    CUctx_st contexts[2];
    CUstream_st defaults[2];            // the legacy default stream of each device
    char* arena = nullptr;
    size_t used = 0;
    std::map<CUdeviceptr, Allocation> memory;
    std::map<char*, Allocation> pinned;
    std::map<char*, Allocation> registered;  // memory of others, pinned
    std::set<CUstream> streams;
    std::set<CUevent> events;
    std::set<CUgraph> graphs;
    std::set<CUgraphExec> executables;
    std::set<CUmodule> modules;
    std::vector<std::unique_ptr<CUfunc_st>> functions;
    std::map<std::string, long> settings{{"devices", 2}, {"memory", 1l << 30}, {"driver", 13000}};
    std::map<std::string, long> counts;

    Driver() {
        const char* seed = getenv("GPU_DOUBLE_SEED");
        random.seed(seed ? atol(seed) : 0);
        std::string text = getenv("GPU_DOUBLE") ? getenv("GPU_DOUBLE") : "";  // such as devices=0,init=100
        for (size_t at = 0; at < text.size();) {
            const size_t end = std::min(text.find(',', at), text.size()), equals = text.find('=', at);
            settings[text.substr(at, equals - at)] = atol(text.c_str() + equals + 1);
            at = end + 1;
        }
        for (int device = 0; device < 2; ++device) {
            contexts[device].device = device;
            defaults[device].context = &contexts[device];
        }
    }
};

Driver& driver() {
    static Driver* one = new Driver;  // never destroyed: Python's objects may outlive the statics
    return *one;
}

thread_local std::vector<CUcontext> current_stack;

CUcontext current() { return current_stack.empty() ? nullptr : current_stack.back(); }

size_t rounded(size_t size, size_t to) { return (size + to - 1) / to * to; }

CUresult complain(CUresult result, const char* message) {
    fprintf(stderr, "gpu double: %s\n", message);
    driver().counts["faults"]++;
    return result;
}

// Why a call cannot be served at all.
CUresult refusal(bool in_context = true) {
    Driver& d = driver();
    if (!d.process || d.process != getpid()) return CUDA_ERROR_NOT_INITIALIZED;
    if (!in_context) return CUDA_SUCCESS;
    if (!current() || !current()->retained) return CUDA_ERROR_INVALID_CONTEXT;
    return current()->failure;
}

#define SERVE(...)                                                        \
    Lock lock(driver().mutex);                                            \
    if (CUresult refused = refusal(__VA_ARGS__)) return refused;          \
    Driver& d = driver();                                                 \
    (void)d

// Memory

bool holds(CUdeviceptr address, size_t size) {
    auto& memory = driver().memory;
    auto found = memory.upper_bound(address);
    if (found == memory.begin()) return false;
    --found;
    return address + size <= found->first + found->second.size;
}

bool lies_in(std::map<char*, Allocation>& parts, const void* address, size_t size) {
    auto found = parts.upper_bound(static_cast<char*>(const_cast<void*>(address)));
    if (found == parts.begin()) return false;
    --found;
    return static_cast<const char*>(address) + size <= found->first + found->second.size;
}

bool is_pinned(const void* address, size_t size) {
    return lies_in(driver().pinned, address, size) || lies_in(driver().registered, address, size);
}

char* first_page(CUdeviceptr address) { return reinterpret_cast<char*>(address / PAGE * PAGE); }

size_t pages(CUdeviceptr address, size_t size) {
    return rounded(address + size, PAGE) - address / PAGE * PAGE;
}

void open_pages(CUdeviceptr address, size_t size, bool open) {
    mprotect(first_page(address), pages(address, size), open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

// Open or close all device memory; it stays open from one piece of work to the next, until a wait ends.
void open_memory(bool open) {
    Driver& d = driver();
    if (d.open == open || d.executing) return;
    for (auto& [address, allocation] : d.memory) open_pages(address, allocation.size, open);
    d.open = open;
}

// The number of allocations, of both kinds, that may fail by a planted fault.
bool allocation_fails(size_t size) {
    Driver& d = driver();
    const long number = ++d.counts["allocations made"];
    if (number == d.settings["fail allocation"]) return true;
    if (d.settings["fail allocations from"] && number >= d.settings["fail allocations from"]) return true;
    size_t used = 0;
    for (auto& [address, allocation] : d.memory) used += allocation.size;
    return used + size > (size_t)d.settings["memory"];
}

// Execution

thread_local sigjmp_buf* landing = nullptr;

void fault(int, siginfo_t*, void*) {
    if (landing) siglongjmp(*landing, 1);
    signal(SIGSEGV, SIG_DFL);  // somebody else's: the instruction runs again and ends the process
}

// Run work with device memory open; an access to anything else is the error that a GPU gives.
CUresult guarded(const Work& work) {
    struct sigaction ours {}, before {};
    ours.sa_sigaction = fault;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &ours, &before);
    sigjmp_buf here;
    CUresult result;
    if (sigsetjmp(here, 1)) {
        result = CUDA_ERROR_ILLEGAL_ADDRESS;
    } else {
        landing = &here;
        result = work();
    }
    landing = nullptr;
    sigaction(SIGSEGV, &before, nullptr);
    return result;
}

std::vector<CUstream> all_streams() {
    Driver& d = driver();
    std::vector<CUstream> all(d.streams.begin(), d.streams.end());
    for (CUstream_st& stream : d.defaults) all.push_back(&stream);
    return all;
}

bool is_default(CUstream stream) { return stream == &driver().defaults[0] || stream == &driver().defaults[1]; }

bool is_ready(CUstream stream) {
    if (stream->queue.empty() || !stream->queue.front().ready()) return false;
    const long number = stream->queue.front().number;
    if (!stream->blocking) return true;
    for (CUstream other : all_streams()) {
        if (other == stream || other->context != stream->context || !other->blocking) continue;
        if (!is_default(stream) && !is_default(other)) continue;  // the default stream alone orders the others
        if (!other->queue.empty() && other->queue.front().number < number) return false;
    }
    return true;
}

void execute(Lock& lock, CUstream stream) {
    Driver& d = driver();
    Op op = std::move(stream->queue.front());
    stream->queue.pop_front();
    CUcontext context = stream->context;
    if (context->failure) return;
    open_memory(true);
    d.executing = true;
    lock.unlock();
    CUresult result = guarded(op.run);
    lock.lock();
    d.executing = false;
    d.clock += 0.01;
    if (++d.counts["operations"] == d.settings["lose device after"]) result = CUDA_ERROR_LAUNCH_FAILED;
    if (result) context->failure = result;
    d.changed.notify_all();
}

// Run work of any stream until `done`, which is what the caller waits for.
CUresult run_until(Lock& lock, CUcontext context, const std::function<bool()>& done) {
    Driver& d = driver();
    struct Close {
        ~Close() { open_memory(false); }
    } close;
    while (!done()) {
        if (context->failure) return context->failure;
        if (d.executing) {
            d.changed.wait(lock);
            continue;
        }
        std::vector<CUstream> ready;
        for (CUstream stream : all_streams())
            if (is_ready(stream)) ready.push_back(stream);
        if (ready.empty()) return complain(CUDA_ERROR_UNKNOWN, "what is waited for can never happen");
        execute(lock, ready[d.random() % ready.size()]);
    }
    return context->failure;
}

// A GPU may be quick too: now and then, work is done as soon as it is queued.
void hurry(Lock& lock) {
    Driver& d = driver();
    while (d.random() % 8 == 0) {
        std::vector<CUstream> ready;
        for (CUstream stream : all_streams())
            if (is_ready(stream) && !stream->queue.front().foreign) ready.push_back(stream);
        if (d.executing || ready.empty()) break;
        execute(lock, ready[d.random() % ready.size()]);
    }
    open_memory(false);
}

CUstream resolve(CUstream stream) {
    Driver& d = driver();
    if (stream == nullptr || stream == CU_STREAM_LEGACY) return &d.defaults[current()->device];
    return d.streams.count(stream) ? stream : nullptr;
}

CUresult enqueue(Lock& lock, CUstream handle, Op op) {
    Driver& d = driver();
    CUstream stream = resolve(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->context != current()) return CUDA_ERROR_INVALID_CONTEXT;
    op.number = ++d.operations;
    if (stream->capture) {
        stream->capture->ops.push_back(std::move(op));
        return CUDA_SUCCESS;
    }
    stream->queue.push_back(std::move(op));
    hurry(lock);
    return current()->failure;
}

CUresult invalidate(CUstream stream) {
    stream->invalidated = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

// What a capture under way forbids: to its own thread, or to all where its mode is global.
CUresult forbidden_by_capture() {
    for (CUstream stream : all_streams()) {
        const bool mine = stream->capturer == std::this_thread::get_id();
        if (!stream->capture || stream->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
        if (mine || stream->mode == CU_STREAM_CAPTURE_MODE_GLOBAL) return invalidate(stream);
    }
    return CUDA_SUCCESS;
}

CUresult synchronise(Lock& lock, CUstream stream) {
    if (stream->capture) return invalidate(stream);
    const long last = stream->queue.empty() ? 0 : stream->queue.back().number;
    return run_until(lock, stream->context, [=] {
        return (stream->queue.empty() || stream->queue.front().number > last) && !driver().executing;
    });
}

Work copy(void* to, const void* from, size_t size) {
    return [=] {
        memcpy(to, from, size);
        return CUDA_SUCCESS;
    };
}

void* pointer(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

// Everything that a context still holds goes with it.
void destroy(CUcontext context) {
    Driver& d = driver();
    auto lost = [&](auto& all, auto belongs) {
        for (auto it = all.begin(); it != all.end();)
            if (belongs(*it)) {
                d.counts["destroyed with their context"]++;
                it = all.erase(it);
            } else {
                ++it;
            }
    };
    lost(d.memory, [&](auto& entry) { return entry.second.context == context; });
    lost(d.pinned, [&](auto& entry) { return entry.second.context == context; });
    lost(d.registered, [&](auto& entry) { return entry.second.context == context; });
    lost(d.streams, [&](CUstream stream) { return stream->context == context; });
    lost(d.modules, [&](CUmodule module) { return module->context == context; });
    lost(d.events, [&](CUevent event) { return event->context == context; });
    d.defaults[context->device].queue.clear();
    context->failure = CUDA_SUCCESS;
}

}  // namespace

// The driver

CUresult cuInit(unsigned) {
    Lock lock(driver().mutex);
    Driver& d = driver();
    if (d.process && d.process != getpid()) return CUDA_ERROR_NOT_INITIALIZED;
    if (d.settings["init"]) return (CUresult)d.settings["init"];
    if (!d.settings["devices"]) return CUDA_ERROR_NO_DEVICE;
    if (!d.arena) {
        d.arena = static_cast<char*>(mmap(nullptr, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (d.arena == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    }
    d.process = getpid();
    return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int* version) {
    *version = (int)driver().settings["driver"];
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) {
    SERVE(false);
    *count = (int)d.settings["devices"];
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int index) {
    SERVE(false);
    if (index < 0 || index >= d.settings["devices"]) return CUDA_ERROR_INVALID_DEVICE;
    *device = index;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* name, int size, CUdevice device) {
    snprintf(name, size, "test double %d", device);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetPCIBusId(char* address, int size, CUdevice device) {
    snprintf(address, size, "0000:%02x:00.0", device + 1);
    return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(size_t* size, CUdevice) {
    *size = (size_t)driver().settings["memory"];
    return CUDA_SUCCESS;
}

CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice device) {
    *major = 8;
    *minor = device ? 9 : 6;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 8; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = device ? 9 : 6; break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 30 + device; break;
        default: *value = 1;
    }
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    SERVE(false);
    if (device < 0 || device >= d.settings["devices"]) return CUDA_ERROR_INVALID_DEVICE;
    *context = &d.contexts[device];
    ++d.contexts[device].retained;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
    SERVE(false);
    CUcontext context = &d.contexts[device];
    if (!context->retained) return CUDA_ERROR_INVALID_CONTEXT;
    if (--context->retained == 0) destroy(context);
    return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext context) {
    SERVE(false);
    if (!context->retained) return CUDA_ERROR_INVALID_CONTEXT;
    current_stack.push_back(context);
    return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext* context) {
    SERVE(false);
    if (current_stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    if (context) *context = current_stack.back();
    current_stack.pop_back();
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* device) {
    SERVE();
    *device = current()->device;
    return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize() {
    SERVE();
    CUcontext context = current();
    for (CUstream stream : all_streams())
        if (stream->context == context)
            if (CUresult result = synchronise(lock, stream)) return result;
    return CUDA_SUCCESS;
}

CUresult cuMemGetInfo(size_t* free, size_t* total) {
    SERVE();
    *total = (size_t)d.settings["memory"];
    size_t used = 0;
    for (auto& [address, allocation] : d.memory) used += allocation.size;
    *free = *total - used;
    return CUDA_SUCCESS;
}

CUresult cuMemAlloc(CUdeviceptr* address, size_t size) {
    SERVE();
    if (CUresult forbidden = forbidden_by_capture()) return forbidden;
    if (!size) return CUDA_ERROR_INVALID_VALUE;
    if (allocation_fails(size)) return CUDA_ERROR_OUT_OF_MEMORY;
    // It ends where a page ends, and a closed page follows: what reads or writes past it is caught.
    const size_t whole = rounded(size, ALIGNMENT), span = rounded(whole, PAGE);
    if (d.used + span + PAGE > ARENA) return CUDA_ERROR_OUT_OF_MEMORY;
    char* begin = d.arena + d.used + span - whole;
    d.used += span + PAGE;
    *address = (CUdeviceptr)begin;
    d.memory[*address] = {size, current()};
    open_pages(*address, whole, true);
    memset(begin, UNWRITTEN, size);
    memset(begin + size, CANARY, whole - size);
    open_pages(*address, whole, d.open);
    return CUDA_SUCCESS;
}

CUresult cuMemFree(CUdeviceptr address) {
    SERVE();
    auto found = d.memory.find(address);
    if (found == d.memory.end()) return complain(CUDA_ERROR_INVALID_VALUE, "freed what is not allocated");
    const size_t size = found->second.size, whole = rounded(size, ALIGNMENT);
    open_pages(address, whole, true);
    for (size_t at = size; at < whole; ++at)
        if (((unsigned char*)address)[at] != CANARY) {
            complain(CUDA_SUCCESS, "something wrote past an allocation");
            break;
        }
    d.memory.erase(found);
    madvise(first_page(address), pages(address, whole), MADV_DONTNEED);
    open_pages(address, whole, false);
    return CUDA_SUCCESS;
}

CUresult cuMemHostAlloc(void** address, size_t size, unsigned) {
    SERVE();
    if (CUresult forbidden = forbidden_by_capture()) return forbidden;
    if (allocation_fails(0)) return CUDA_ERROR_OUT_OF_MEMORY;
    *address = mmap(nullptr, rounded(size, PAGE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(*address, UNWRITTEN, size);
    d.pinned[static_cast<char*>(*address)] = {size, current()};
    return CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void* address) {
    SERVE();
    auto found = d.pinned.find(static_cast<char*>(address));
    if (found == d.pinned.end()) return complain(CUDA_ERROR_INVALID_VALUE, "freed what is not pinned");
    munmap(address, rounded(found->second.size, PAGE));
    d.pinned.erase(found);
    return CUDA_SUCCESS;
}

CUresult cuMemHostRegister(void* address, size_t size, unsigned) {
    SERVE();
    if (CUresult forbidden = forbidden_by_capture()) return forbidden;
    if (allocation_fails(0)) return CUDA_ERROR_OUT_OF_MEMORY;
    if (d.settings["refuse registration"]) return CUDA_ERROR_NOT_PERMITTED;
    if (is_pinned(address, 1)) return complain(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "registered twice");
    d.registered[static_cast<char*>(address)] = {size, current()};
    return CUDA_SUCCESS;
}

CUresult cuMemHostUnregister(void* address) {
    SERVE();
    if (!d.registered.erase(static_cast<char*>(address)))
        return complain(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "unregistered what is not registered");
    return CUDA_SUCCESS;
}

CUresult cuMemHostGetDevicePointer(CUdeviceptr* address, void* host, unsigned) {
    SERVE();
    if (!is_pinned(host, 1)) return CUDA_ERROR_INVALID_VALUE;
    *address = reinterpret_cast<CUdeviceptr>(host);
    return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr address) {
    SERVE(false);
    if (!holds(address, 1)) return CUDA_ERROR_INVALID_VALUE;
    if (attribute != CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL) return CUDA_ERROR_NOT_SUPPORTED;
    *static_cast<int*>(value) = std::prev(d.memory.upper_bound(address))->second.context->device;
    return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t size, CUstream stream) {
    SERVE();
    if (!holds(to, size)) return complain(CUDA_ERROR_INVALID_VALUE, "copied past device memory");
    d.counts["bytes uploaded"] += (long)size;
    Op op;
    op.run = [=] {
        {
            Lock lock(driver().mutex);
            if (!is_pinned(from, size))
                return complain(CUDA_ERROR_ILLEGAL_ADDRESS, "read what is not pinned any more");
        }
        return copy(pointer(to), from, size)();
    };
    if (!is_pinned(from, size)) {  // the driver stages it before it returns
        d.counts["copies of pageable memory"]++;
        auto staged = std::make_shared<std::vector<char>>(static_cast<const char*>(from), static_cast<const char*>(from) + size);
        op.run = [=] { return copy(pointer(to), staged->data(), size)(); };
    }
    return enqueue(lock, stream, std::move(op));
}

CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t size, CUstream stream) {
    SERVE();
    if (!holds(from, size)) return complain(CUDA_ERROR_INVALID_VALUE, "copied past device memory");
    if (!is_pinned(to, size)) d.counts["copies of pageable memory"]++;
    memset(to, UNWRITTEN, size);  // whoever reads before the copy is done must not find an older answer
    Op op;
    op.run = copy(to, pointer(from), size);
    return enqueue(lock, stream, std::move(op));
}

CUresult cuMemcpyHtoD(CUdeviceptr to, const void* from, size_t size) {
    SERVE();
    if (!holds(to, size)) return complain(CUDA_ERROR_INVALID_VALUE, "copied past device memory");
    Op op;
    op.run = copy(pointer(to), from, size);
    if (CUresult result = enqueue(lock, nullptr, std::move(op))) return result;
    return synchronise(lock, resolve(nullptr));
}

CUresult cuMemcpyDtoH(void* to, CUdeviceptr from, size_t size) {
    SERVE();
    if (!holds(from, size)) return complain(CUDA_ERROR_INVALID_VALUE, "copied past device memory");
    Op op;
    op.run = copy(to, pointer(from), size);
    if (CUresult result = enqueue(lock, nullptr, std::move(op))) return result;
    return synchronise(lock, resolve(nullptr));
}

CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
    SERVE();
    *stream = new CUstream_st;
    (*stream)->context = current();
    (*stream)->blocking = !(flags & CU_STREAM_NON_BLOCKING);
    d.streams.insert(*stream);
    return CUDA_SUCCESS;
}

CUresult cuStreamDestroy(CUstream stream) {
    SERVE();
    if (!d.streams.count(stream)) return CUDA_ERROR_INVALID_HANDLE;
    if (!stream->queue.empty()) complain(CUDA_SUCCESS, "a stream was destroyed with work in it");
    d.streams.erase(stream);  // and never reused: a late use of the handle is an error
    return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream handle) {
    SERVE();
    CUstream stream = resolve(handle);
    return stream ? synchronise(lock, stream) : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
    SERVE();
    if (!d.events.count(event)) return CUDA_ERROR_INVALID_HANDLE;
    if (resolve(stream) && resolve(stream)->capture) return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    if (!event->last) return CUDA_SUCCESS;
    // For the record that is the latest now, whatever is recorded afterwards.
    Op op;
    op.run = [] { return CUDA_SUCCESS; };
    op.ready = [done = event->last] { return *done; };
    return enqueue(lock, stream, std::move(op));
}

CUresult cuEventCreate(CUevent* event, unsigned flags) {
    SERVE();
    *event = new CUevent_st;
    (*event)->context = current();
    (*event)->timing = !(flags & CU_EVENT_DISABLE_TIMING);
    d.events.insert(*event);
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy(CUevent event) {
    SERVE();
    return d.events.erase(event) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
    SERVE();
    if (!d.events.count(event) || !resolve(stream)) return CUDA_ERROR_INVALID_HANDLE;
    auto done = event->last = std::make_shared<bool>(false);
    Op op;
    op.run = [=] {
        *done = true;
        event->time = driver().clock;
        return CUDA_SUCCESS;
    };
    return enqueue(lock, stream, std::move(op));
}

CUresult cuEventQuery(CUevent event) {
    SERVE();
    return !event->last || *event->last ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult cuEventSynchronize(CUevent event) {
    SERVE();
    if (!d.events.count(event)) return CUDA_ERROR_INVALID_HANDLE;
    auto done = event->last;
    return run_until(lock, event->context, [=] { return (!done || *done) && !driver().executing; });
}

CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
    SERVE();
    if (!start->timing || !end->timing || !start->last || !end->last) return CUDA_ERROR_INVALID_HANDLE;
    if (!*start->last || !*end->last) return CUDA_ERROR_NOT_READY;
    *milliseconds = (float)(end->time - start->time);
    return CUDA_SUCCESS;
}

// Graphs

CUresult cuStreamBeginCapture(CUstream handle, CUstreamCaptureMode mode) {
    SERVE();
    CUstream stream = resolve(handle);
    if (!stream || is_default(stream)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    stream->capture = new CUgraph_st;
    stream->invalidated = false;
    stream->mode = mode;
    stream->capturer = std::this_thread::get_id();
    return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    SERVE();
    if (!d.streams.count(stream) || !stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    *graph = stream->capture;
    stream->capture = nullptr;
    if (stream->invalidated) {
        delete *graph;
        *graph = nullptr;
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    d.graphs.insert(*graph);
    return CUDA_SUCCESS;
}

CUresult cuGraphInstantiate(CUgraphExec* executable, CUgraph graph, unsigned long long) {
    SERVE();
    if (!d.graphs.count(graph)) return CUDA_ERROR_INVALID_HANDLE;
    *executable = new CUgraphExec_st{graph->ops};
    d.executables.insert(*executable);
    return CUDA_SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    SERVE();
    if (!d.executables.count(executable)) return CUDA_ERROR_INVALID_HANDLE;
    d.counts["graph launches"]++;
    Op op;
    op.foreign = true;
    op.run = [ops = executable->ops] {
        for (const Op& one : ops)
            if (CUresult result = one.run()) return result;
        return CUDA_SUCCESS;
    };
    return enqueue(lock, stream, std::move(op));
}

CUresult cuGraphDestroy(CUgraph graph) {
    SERVE(false);
    return d.graphs.erase(graph) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuGraphExecDestroy(CUgraphExec executable) {
    SERVE(false);
    return d.executables.erase(executable) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

// Kernels, which are the library's that GPU_DOUBLE_KERNELS names: the same .cu, compiled for the CPU

static void* kernels(const char* name) {
    static void* library = dlopen(getenv("GPU_DOUBLE_KERNELS"), RTLD_NOW | RTLD_LOCAL);
    return library ? dlsym(library, name) : nullptr;
}

CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, CUjit_option*, void**) {
    SERVE();
    const Elf64_Ehdr* header = static_cast<const Elf64_Ehdr*>(image);
    if (memcmp(header->e_ident, ELFMAG, SELFMAG) || header->e_machine != EM_CUDA) return CUDA_ERROR_INVALID_IMAGE;
    // Compilers before CUDA 13 wrote the architecture into the lowest byte.
    const int minor = current()->device ? 89 : 86;
    const int built = header->e_flags >> 8 & 0xFF ? header->e_flags >> 8 & 0xFF : header->e_flags & 0xFF;
    if (built / 10 != minor / 10 || built > minor) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    *module = new CUmod_st{current()};
    d.modules.insert(*module);
    return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) {
    SERVE();
    return d.modules.erase(module) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    SERVE();
    if (!d.modules.count(module)) return CUDA_ERROR_INVALID_HANDLE;
    auto sizes_of = (int (*)(const char*, size_t*))kernels("sizes_of");
    size_t sizes[16];
    const int count = sizes_of ? sizes_of(name, sizes) : -1;
    if (count < 0) return CUDA_ERROR_NOT_FOUND;
    d.functions.emplace_back(new CUfunc_st{name, {sizes, sizes + count}});
    *function = d.functions.back().get();
    return CUDA_SUCCESS;
}

CUresult cuFuncSetBlockShape(CUfunction, int, int, int) { return CUDA_SUCCESS; }
CUresult cuFuncSetSharedSize(CUfunction, unsigned) { return CUDA_SUCCESS; }

CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned, CUstream stream, void** parameters, void** extra) {
    SERVE();
    if (!gx || gy != 1 || gz != 1 || !bx || !by || bz != 1 || bx * by > 1024)
        return complain(CUDA_ERROR_INVALID_VALUE, "a launch with a grid or block that no kernel here takes");
    if (parameters || !extra) return CUDA_ERROR_NOT_SUPPORTED;
    const char* buffer = nullptr;
    size_t size = 0;
    for (void** option = extra; *option != CU_LAUNCH_PARAM_END; option += 2) {
        if (*option == CU_LAUNCH_PARAM_BUFFER_POINTER) buffer = static_cast<const char*>(option[1]);
        if (*option == CU_LAUNCH_PARAM_BUFFER_SIZE) size = *static_cast<size_t*>(option[1]);
    }
    // As the compiler lays them out: each at a multiple of its own size.
    auto values = std::make_shared<std::vector<char>>(buffer, buffer + size);
    auto offsets = std::make_shared<std::vector<size_t>>();
    size_t end = 0;
    for (size_t argument : function->sizes) {
        offsets->push_back(rounded(end, argument));
        end = offsets->back() + argument;
    }
    if (end != size) return complain(CUDA_ERROR_INVALID_VALUE, "a launch with arguments of another size than the kernel's");
    d.counts["launches"]++;
    Op op;
    op.run = [=] {
        auto launch = (int (*)(const char*, unsigned, unsigned, unsigned, void**))kernels("launch");
        std::vector<void*> arguments;
        for (size_t offset : *offsets) arguments.push_back(values->data() + offset);
        return launch(function->name.c_str(), gx, bx, by, arguments.data()) ? CUDA_ERROR_LAUNCH_FAILED : CUDA_SUCCESS;
    };
    return enqueue(lock, stream, std::move(op));
}

// Names

CUresult cuGetErrorString(CUresult error, const char** text) {
    switch (error) {
        case CUDA_ERROR_INVALID_VALUE: *text = "invalid argument"; break;
        case CUDA_ERROR_OUT_OF_MEMORY: *text = "out of memory"; break;
        case CUDA_ERROR_NOT_INITIALIZED: *text = "initialization error"; break;
        case CUDA_ERROR_NO_DEVICE: *text = "no CUDA-capable device is detected"; break;
        case CUDA_ERROR_ILLEGAL_ADDRESS: *text = "an illegal memory access was encountered"; break;
        case CUDA_ERROR_LAUNCH_FAILED: *text = "unspecified launch failure"; break;
        default: *text = "an error of the test double";
    }
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult, const char** name) {
    *name = "CUDA_ERROR";
    return CUDA_SUCCESS;
}

CUresult cuGetProcAddress(const char* name, void** function, int, cuuint64_t, CUdriverProcAddressQueryResult* found) {
    *function = nullptr;
    const std::string plain = strcmp(name, "cuGraphInstantiate") ? name : "cuGraphInstantiateWithFlags";
    for (const char* version : {"_v4", "_v3", "_v2", ""})
        if (!*function) *function = dlsym(RTLD_DEFAULT, (plain + version).c_str());
    if (found) *found = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

// Tables for NVIDIA's own libraries; they do without.
CUresult cuGetExportTable(const void**, const CUuuid*) { return CUDA_ERROR_NOT_SUPPORTED; }

// For the tests

extern "C" void gpu_double_set(const char* name, long value) {
    Lock lock(driver().mutex);
    driver().settings[name] = value;
}

extern "C" void gpu_double_shuffle(long seed) {
    Lock lock(driver().mutex);
    driver().random.seed(seed);
}

extern "C" long gpu_double_count(const char* name) {
    Lock lock(driver().mutex);
    Driver& d = driver();
    const std::string what = name;
    if (what == "allocations") return (long)d.memory.size();
    if (what == "pinned") return (long)d.pinned.size();
    if (what == "registered") return (long)d.registered.size();
    if (what == "streams") return (long)d.streams.size();
    if (what == "events") return (long)d.events.size();
    if (what == "graphs") return (long)(d.graphs.size() + d.executables.size());
    if (what == "modules") return (long)d.modules.size();
    if (what == "contexts") return d.contexts[0].retained + d.contexts[1].retained;
    if (what == "current contexts") return (long)current_stack.size();
    return d.counts[what];
}

// Whether device memory holds `size` bytes at an address, as TensorRT's stand-in asks.
extern "C" int gpu_double_holds(CUdeviceptr address, size_t size) {
    Lock lock(driver().mutex);
    return holds(address, size);
}

// Queue a call into the test's own code.
extern "C" int gpu_double_enqueue(CUstream stream, int (*call)(long), long argument) {
    SERVE();
    Op op;
    op.foreign = true;
    op.run = [=] { return (CUresult)call(argument); };
    return enqueue(lock, stream, std::move(op));
}

// Whether a stream captures: TensorRT must have run before it does.
extern "C" int gpu_double_captures(CUstream stream) {
    Lock lock(driver().mutex);
    return driver().streams.count(stream) && stream->capture != nullptr;
}
