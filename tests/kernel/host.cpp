// The kernels of preprocess.cu as one C function for ctypes: a launch by name, its arguments as the CUDA
// driver takes them, an array of pointers to values.
#include KERNEL  // the path of preprocess.cu, or of a copy with a planted fault

#include <cstdio>
#include <tuple>
#include <utility>

template <class... A, size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
}

template <class... A>
static void run(void (*kernel)(A...), bool barriers, unsigned grid, unsigned x, unsigned y, void** arguments) {
    cuda_host::launch(grid, x, y, barriers, [=] { call(kernel, arguments, std::index_sequence_for<A...>{}); });
}

template <class... A>
static int sizes(void (*)(A...), size_t* sizes) {
    ((*sizes++ = sizeof(A)), ...);
    return sizeof...(A);
}

// The sizes of a kernel's arguments, and how many there are; -1 where there is no such kernel.
extern "C" int sizes_of(const char* name, size_t* found) {
#define SIZES_OF(kernel) \
    if (!strcmp(name, #kernel)) return sizes(kernel, found);
    SIZES_OF(precompute_tables)
    SIZES_OF(preprocess_gray)
    SIZES_OF(preprocess_rgb)
    SIZES_OF(publish)
    SIZES_OF(precompute_coeffs)
    SIZES_OF(resize_horizontal_gray)
    SIZES_OF(resize_horizontal_rgb)
    SIZES_OF(resize_vertical)
    return -1;
}

extern "C" int launch(const char* name, unsigned grid, unsigned x, unsigned y, void** arguments) {
#define KERNEL_NAMED(kernel, barriers) \
    if (!strcmp(name, #kernel)) return run(kernel, barriers, grid, x, y, arguments), 0;
    KERNEL_NAMED(precompute_tables, false)
    KERNEL_NAMED(preprocess_gray, true)
    KERNEL_NAMED(preprocess_rgb, true)
    KERNEL_NAMED(publish, true)
    KERNEL_NAMED(precompute_coeffs, false)
    KERNEL_NAMED(resize_horizontal_gray, true)
    KERNEL_NAMED(resize_horizontal_rgb, true)
    KERNEL_NAMED(resize_vertical, false)
    fprintf(stderr, "no kernel is called %s\n", name);
    return 1;
}

// Of the structs that have a NumPy type.
extern "C" void sizes_of_structs(size_t* sizes) {
    sizes[0] = sizeof(Picture), sizes[1] = sizeof(Batch), sizes[2] = sizeof(Shown), sizes[3] = sizeof(Descriptor);
}
