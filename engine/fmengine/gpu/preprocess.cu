// Preprocessing of a whole batch of pictures of different sizes, bit-equal to `fmengine.image.preprocess`: luma,
// crop or pad, then the antialiased triangle filter in Pillow's 22-bit fixed point, horizontally, then
// vertically, straight into the network's input.
//
// Three launches on one stream, each reading what the one before wrote:
//
//   precompute_coeffs       one thread an output column or row of a picture: which source pixels, which weights
//   resize_horizontal_gray, resize_horizontal_rgb
//                           the horizontal pass: one warp 32 output columns of one source row
//   resize_vertical         the vertical pass: one thread an output pixel
//
// A pass that changes no size has the weights 1 and 0, which give the levels back unchanged: Pillow skips it,
// and here nothing need be skipped.
//
// Double-precision products go through __dmul_rn: fused with the addition that follows, one rounding would be
// missing and weights would move by one. Everything else is integer arithmetic.

typedef unsigned char Level;

struct Descriptor {          // of a picture, 80 bytes; `fmengine.gpu.launch.DESCRIPTOR` is the same in NumPy
    long long pixels;        // bytes from the base address to the first pixel; any value that leads there
    long long stride;        // bytes from one row to the next
    long long intermediate;  // bytes from the workspace to the rows after the horizontal pass
    long long columns;       // ints from the tables to the horizontal pass's table
    long long rows;          // ints from the tables to the vertical pass's table
    long long first_group;   // of source rows, ROWS each, over the whole batch
    int height, width;       // of the picture
    int channels;            // bytes a pixel: 1, 3 or 4, of which the fourth is not read
    int bgr;                 // 1 where blue comes first
    int left, top;           // of the crop box, negative where it begins outside: black is outside
    int crop_height, crop_width;
};

constexpr int WARP = 32;   // threads a warp, each an output column
constexpr int ROWS = 8;    // rows a block, one warp each
constexpr int TILE = 512;  // source pixels of a row that are in shared memory at a time
constexpr int BITS = 22;   // of a weight's fraction, Pillow's PRECISION_BITS
constexpr int HALF = 1 << (BITS - 1);

// A table holds, for each of `size` outputs, the first tap and the number of taps, and then the weights, tap
// by tap, so that neighbouring threads read neighbouring ints.
struct Table {
    const int *first, *taps, *weights;
    __device__ Table(const int* at, int size) : first(at), taps(at + size), weights(at + 2 * size) {}
};

__device__ double triangle(double x) {
    x = x < 0 ? -x : x;
    return x < 1 ? 1 - x : 0;
}

// Pillow's precompute_coeffs and normalize_coeffs_8bpc, `src/libImaging/Resample.c`.
extern "C" __global__ void
precompute_coeffs(const Descriptor* descriptors, int count, int height, int width, int* tables) {
    const long long thread = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (thread >= (long long)count * (width + height)) return;
    const Descriptor& picture = descriptors[thread / (width + height)];
    const int index = (int)(thread % (width + height));
    const bool across = index < width;
    const int out = across ? index : index - width;
    const int size = across ? width : height;
    const int length = across ? picture.crop_width : picture.crop_height;
    int* const table = tables + (across ? picture.columns : picture.rows);

    const double scale = (double)length / size;
    const double support = scale < 1 ? 1 : scale;  // half the triangle's width, in source pixels
    const double inverse = 1 / support;
    const double centre = __dmul_rn(out + 0.5, scale);
    const int begin = max(0, (int)(centre - support + 0.5));
    const int taps = min(length, (int)(centre + support + 0.5)) - begin;
    double total = 0;
    for (int tap = 0; tap < taps; ++tap) total += triangle(__dmul_rn(begin + tap - centre + 0.5, inverse));
    table[out] = begin;
    table[size + out] = taps;
    int* weight = table + 2 * size + out;
    for (int tap = 0; tap < taps; ++tap, weight += size) {
        const double share = triangle(__dmul_rn(begin + tap - centre + 0.5, inverse)) / total;
        *weight = (int)(0.5 + __dmul_rn(share, 1 << BITS));
    }
}

__device__ Level rounded(int sum) { return (Level)min(max(sum >> BITS, 0), 255); }

// The levels of one pixel of a row: luma for CHANNELS of 1, red, green and blue for 3.
template <int CHANNELS>
__device__ void fetch(const Level* row, const Descriptor& picture, int x, Level* levels, int step) {
    if (row == nullptr || x < 0 || x >= picture.width) {
        for (int c = 0; c < CHANNELS; ++c) levels[c * step] = 0;
        return;
    }
    const Level* pixel = row + (long long)x * picture.channels;
    if (picture.channels == 1) {
        for (int c = 0; c < CHANNELS; ++c) levels[c * step] = *pixel;
        return;
    }
    const int red = pixel[picture.bgr ? 2 : 0], green = pixel[1], blue = pixel[picture.bgr ? 0 : 2];
    if (CHANNELS == 1) {
        *levels = (Level)((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16);
    } else {
        levels[0] = (Level)red;
        levels[step] = (Level)green;
        levels[2 * step] = (Level)blue;
    }
}

// The picture whose groups of rows hold `group`: the last one that does not begin after it.
__device__ const Descriptor& find(const Descriptor* descriptors, int count, long long group) {
    int low = 0, high = count - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (descriptors[middle].first_group <= group) low = middle;
        else high = middle - 1;
    }
    return descriptors[low];
}

template <int CHANNELS>
__device__ void resize_horizontal(const Level* base, const Descriptor* descriptors, int count, int width,
                                  const int* tables, Level* workspace) {
    __shared__ Level tile[ROWS][CHANNELS][TILE];
    const int warps = (width + WARP - 1) / WARP;
    const long long group = blockIdx.x / warps;
    const Descriptor& picture = find(descriptors, count, group);
    const int row = (int)(group - picture.first_group) * ROWS + threadIdx.y;
    const int begin_column = blockIdx.x % warps * WARP, end_column = min(width, begin_column + WARP);
    const int column = begin_column + threadIdx.x;
    const bool writes = row < picture.crop_height && column < width;

    // Taps of all columns of the warp, and of this thread's. Both ends grow with the column.
    const Table table(tables + picture.columns, width);
    const int begin_all = table.first[begin_column];
    const int end_all = table.first[end_column - 1] + table.taps[end_column - 1];
    const int begin = writes ? table.first[column] : 0, end = writes ? begin + table.taps[column] : 0;

    const int y = picture.top + row;
    const Level* source = y < 0 || y >= picture.height ? nullptr : base + picture.pixels + y * picture.stride;
    int sums[CHANNELS];
    for (int c = 0; c < CHANNELS; ++c) sums[c] = HALF;
    for (int start = begin_all; start < end_all; start += TILE) {
        const int stop = min(start + TILE, end_all);
        if (row < picture.crop_height)
            for (int x = start + threadIdx.x; x < stop; x += WARP)
                fetch<CHANNELS>(source, picture, picture.left + x, &tile[threadIdx.y][0][x - start], TILE);
        __syncthreads();
        for (int x = max(begin, start); x < min(end, stop); ++x) {
            const int weight = table.weights[(long long)(x - begin) * width + column];
            for (int c = 0; c < CHANNELS; ++c) sums[c] += weight * tile[threadIdx.y][c][x - start];
        }
        __syncthreads();
    }
    if (!writes) return;
    Level* out = workspace + picture.intermediate + (long long)row * width + column;
    for (int c = 0; c < CHANNELS; ++c) out[(long long)c * picture.crop_height * width] = rounded(sums[c]);
}

extern "C" __global__ void __launch_bounds__(WARP * ROWS)
resize_horizontal_gray(const Level* base, const Descriptor* descriptors, int count, int width, const int* tables,
                       Level* workspace) {
    resize_horizontal<1>(base, descriptors, count, width, tables, workspace);
}

extern "C" __global__ void __launch_bounds__(WARP * ROWS)
resize_horizontal_rgb(const Level* base, const Descriptor* descriptors, int count, int width, const int* tables,
                      Level* workspace) {
    resize_horizontal<3>(base, descriptors, count, width, tables, workspace);
}

extern "C" __global__ void __launch_bounds__(WARP * ROWS)
resize_vertical(const Descriptor* descriptors, int channels, int height, int width, const int* tables,
                const Level* workspace, Level* images) {
    const int warps = (width + WARP - 1) / WARP, groups = (height + ROWS - 1) / ROWS;
    const int column = blockIdx.x % warps * WARP + threadIdx.x;
    const int row = blockIdx.x / warps % groups * ROWS + threadIdx.y;
    const int plane = blockIdx.x / warps / groups;  // over all pictures and channels
    if (column >= width || row >= height) return;
    const Descriptor& picture = descriptors[plane / channels];
    const Table table(tables + picture.rows, height);
    const int* weight = table.weights + row;
    const Level* level = workspace + picture.intermediate + column +
                         ((long long)(plane % channels) * picture.crop_height + table.first[row]) * width;
    int sum = HALF;
    for (int tap = table.taps[row]; tap > 0; --tap, weight += height, level += width) sum += *weight * *level;
    images[((long long)plane * height + row) * width + column] = rounded(sum);
}
