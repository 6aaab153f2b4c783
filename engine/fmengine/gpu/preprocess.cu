// Preprocessing of a whole batch of pictures of different sizes, bit-equal to `fmengine.image.preprocess`: luma,
// crop or pad, then the antialiased triangle filter in Pillow's 22-bit fixed point, horizontally, then
// vertically, straight into the network's input. Then, after the network, the answers' way to the host.
//
//   precompute_tables       once: the weights of every length up to the longest side that `preprocess` takes
//   preprocess_gray, preprocess_rgb
//                           both passes in one launch: a block a band of output rows of a picture
//   publish                 the answers into memory of the host, and a number that says that they are there
//
// Boxes that are longer go through three launches, each of which reads what the one before wrote:
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

struct Picture {             // 48 bytes; `fmengine.gpu.launch.PICTURE` is the same in NumPy
    long long pixels;        // bytes from the batch's base address to the first pixel
    long long stride;        // bytes from one row to the next
    int height, width;       // of the picture
    int left, top;           // of the crop box, negative where it begins outside: black is outside
    int crop_height, crop_width;
    int channels;            // bytes a pixel: 1, 3 or 4, of which the fourth is not read
    int bgr;                 // 1 where blue comes first
};

struct Batch {                  // 32 bytes, `fmengine.gpu.launch.BATCH`; then its pictures
    unsigned long long base;    // address that `Picture::pixels` counts from
    long long begin, end;       // bytes from there that may be read: a decoder that was taken over may have
                                // written what stands in a `Picture`
    int count;                  // pictures
    int unused;
};

struct Shown {                  // of an input, `fmengine.gpu.launch.SHOWN`: what of it shows the picture
    int refused;                // 1 where its `Picture` leads out of the batch; the input is black then
    int top, bottom;            // rows and columns that no border of `pad` was blended into
    int left, right;
};

struct Descriptor : Picture {  // 80 bytes, `fmengine.gpu.launch.DESCRIPTOR`: a picture of the three launches
    long long intermediate;    // bytes from the workspace to the rows after the horizontal pass
    long long columns;         // ints from the tables to the horizontal pass's table
    long long rows;            // ints from the tables to the vertical pass's table
    long long first_group;     // of source rows, ROWS each, over the whole batch
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

struct Taps { int first, count; };

// Pillow's precompute_coeffs and normalize_coeffs_8bpc, `src/libImaging/Resample.c`, for output `out` of `size` from
// `length` pixels. The weights are written `step` ints apart.
__device__ Taps compute_weights(int length, int size, int out, int* weight, long long step) {
    const double scale = (double)length / size;
    const double support = scale < 1 ? 1 : scale;  // half the triangle's width, in source pixels
    const double inverse = 1 / support;
    const double centre = __dmul_rn(out + 0.5, scale);
    const int begin = max(0, (int)(centre - support + 0.5));
    const int taps = min(length, (int)(centre + support + 0.5)) - begin;
    double total = 0;
    for (int tap = 0; tap < taps; ++tap) total += triangle(__dmul_rn(begin + tap - centre + 0.5, inverse));
    for (int tap = 0; tap < taps; ++tap, weight += step) {
        const double share = triangle(__dmul_rn(begin + tap - centre + 0.5, inverse)) / total;
        *weight = (int)(0.5 + __dmul_rn(share, 1 << BITS));
    }
    return {begin, taps};
}

// The outputs, of `size`, that no border was blended into where the pixels from `begin` to `end` of `length` are the
// picture's; the middle one where there is none. `fmengine.image.flatness` has the same.
__device__ void find_unblended(int length, int begin, int end, int size, int* first, int* stop) {
    *first = 0, *stop = size;
    begin = min(max(begin, 0), length), end = min(max(end, 0), length);
    if (begin == 0 && end == length) return;
    const double scale = (double)length / size, support = scale < 1 ? 1 : scale;
    const int low = (int)ceil((support + begin) / scale - 0.5), high = (int)floor((end - support) / scale - 0.5);
    *first = max(0, low), *stop = min(size, high + 1);
    if (*first >= *stop) *first = size / 2, *stop = size / 2 + 1;
}

__device__ Shown find_shown(const Picture& picture, int height, int width) {
    Shown shown{};
    find_unblended(picture.crop_height, -picture.top, picture.height - picture.top, height, &shown.top, &shown.bottom);
    find_unblended(picture.crop_width, -picture.left, picture.width - picture.left, width, &shown.left, &shown.right);
    return shown;
}

__device__ Level rounded(int sum) { return (Level)min(max(sum >> BITS, 0), 255); }

__device__ Level luma_of(int red, int green, int blue) {
    return (Level)((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16);
}

// Both passes in one launch

constexpr int LONGEST = 1024;             // pixels of a box's side, at most: see `fmengine.gpu.tables`
constexpr int SOURCE_BYTES = 16 * 1024;   // of source rows that are in shared memory at a time
constexpr int BETWEEN_BYTES = 16 * 1024;  // of rows between the passes
constexpr int UNIT = 16;                  // bytes that one thread copies at once
constexpr int BLOCK = 320;                // threads, at most
constexpr long long FAR = 1ll << 61;      // bytes: sums of three stay in 64 bits
static_assert(4 * LONGEST + 2 * UNIT <= SOURCE_BYTES, "a source row fits, wherever its first unit begins");

// The table of one length: for each of `size` outputs first tap and taps << 16, and then the weights, tap by tap. A
// table of each length up to the longest follows the other, with room for as many taps as the longest has.
__device__ long long table_ints(int size, int longest) {
    return (long long)size * (2 + 2 * max(1, (longest + size - 1) / size));
}

extern "C" __global__ void precompute_tables(int size, int longest, int* tables) {
    const long long thread = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (thread >= (long long)longest * size) return;
    const int out = (int)(thread % size), length = (int)(thread / size) + 1;
    int* const table = tables + (length - 1) * table_ints(size, longest);
    const Taps taps = compute_weights(length, size, out, table + size + out, size);
    table[out] = taps.first | taps.count << 16;
}

// Whether a picture's pixels lie within the batch, and its box within what there are tables for.
__device__ bool is_valid(const Picture& picture, const Batch& batch, int longest) {
    const int far = 1 << 30;
    if (picture.height < 1 || picture.height > far || picture.width < 1 || picture.width > far) return false;
    if (picture.channels != 1 && picture.channels != 3 && picture.channels != 4) return false;
    if (picture.left < -far || picture.left > far || picture.top < -far || picture.top > far) return false;
    if (picture.crop_width < 1 || picture.crop_width > longest) return false;
    if (picture.crop_height < 1 || picture.crop_height > longest) return false;
    if (picture.stride < -4ll * far || picture.stride > 4ll * far) return false;
    if (picture.pixels < -FAR || picture.pixels > FAR) return false;
    const long long last_row = picture.pixels + (picture.height - 1) * picture.stride;
    return min(picture.pixels, last_row) >= batch.begin &&
           max(picture.pixels, last_row) + (long long)picture.width * picture.channels <= batch.end;
}

// Grid: most pictures * bands; block: columns, rows at once. A block makes some output rows of a picture. What changes
// from batch to batch is read from memory, so that one captured graph serves all: blocks of pictures that are not
// there end at once, though there must be room for them. `pictures` may be memory of another process, which may write to
// it at any time: each is read once.
template <int COLORS>
__device__ void preprocess(const Batch* batch_at, const Picture* pictures, int bands, int height, int width, int longest,
                           const int* across_tables, const int* down_tables, Level* images, Shown* shown) {
    __shared__ __align__(16) Level source[SOURCE_BYTES];
    __shared__ Level luma[COLORS == 1 ? SOURCE_BYTES / 3 + 1 : 1];
    __shared__ Level between[BETWEEN_BYTES];
    __shared__ __align__(16) Batch batch;
    __shared__ __align__(16) Picture picture;
    const int index = blockIdx.x / bands, band = blockIdx.x % bands;
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;

    // At once, for it may go over PCIe.
    const int batch_ints = sizeof(Batch) / 4, ints = sizeof(Picture) / 4;
    for (int i = thread; i < batch_ints + ints; i += threads)
        if (i < batch_ints) ((int*)&batch)[i] = ((const int*)batch_at)[i];
        else ((int*)&picture)[i - batch_ints] = ((const int*)(pictures + index))[i - batch_ints];
    __syncthreads();
    if (index >= batch.count) return;

    Level* const image = images + (long long)index * COLORS * height * width;
    const int rows_a_band = (height + bands - 1) / bands;
    const int first_row = band * rows_a_band, last_row = min(height, first_row + rows_a_band);
    const bool valid = is_valid(picture, batch, longest);
    if (band == 0 && thread == 0) {
        shown[index] = valid ? find_shown(picture, height, width) : Shown{1, 0, height, 0, width};
    }
    if (!valid) {
        for (int plane = 0; plane < COLORS; ++plane)
            for (int i = first_row * width + thread; i < last_row * width; i += threads)
                image[plane * height * width + i] = 0;
        return;
    }

    // The part of the box that is inside the picture, in the box's coordinates: what is outside is black and adds 0.
    const int x0 = max(0, -picture.left), x1 = min(picture.crop_width, picture.width - picture.left);
    const int y0 = max(0, -picture.top);
    const int y1 = x0 < x1 ? min(picture.crop_height, picture.height - picture.top) : y0;
    const int channels = picture.channels, columns = max(0, x1 - x0);
    const unsigned long long begin = batch.base + picture.pixels + picture.top * picture.stride +
                                     (long long)(picture.left + x0) * channels;  // of row 0 of the box
    const int* const across = across_tables + (picture.crop_width - 1) * table_ints(width, longest);
    const int* const down = down_tables + (picture.crop_height - 1) * table_ints(height, longest);
    const bool to_luma = COLORS == 1 && channels != 1;
    const int room = BETWEEN_BYTES / (width * COLORS);                    // rows between the passes
    const int row_units = (columns * channels + UNIT - 1) / UNIT + 1;  // that a row may touch
    const int at_once = SOURCE_BYTES / (UNIT * row_units);

    for (int row = first_row; row < last_row;) {
        // As many output rows as there is room for: usually all of the band.
        const int low = max(down[row] & 0xFFFF, y0);
        int next = last_row, high;
        while ((high = min((down[next - 1] & 0xFFFF) + (down[next - 1] >> 16), y1)) - low > room) --next;

        for (int some = low; some < high; some += at_once) {
            const int rows = min(at_once, high - some);
            // Whole units where they lie within the row, and else byte by byte: nothing else may be read.
            for (int i = thread; i < rows * row_units; i += threads) {
                const int r = i / row_units;
                const unsigned long long from = begin + (some + r) * picture.stride;
                const unsigned long long end = from + columns * channels;
                const unsigned long long unit = from / UNIT * UNIT + UNIT * (i - r * row_units);
                if (unit >= from && unit + UNIT <= end) {
                    *(uint4*)(source + UNIT * i) = *(const uint4*)unit;
                } else {
                    for (unsigned long long at = max(unit, from); at < min(unit + UNIT, end); ++at)
                        source[UNIT * i + (at - unit)] = *(const Level*)at;
                }
            }
            __syncthreads();
            if (to_luma) {
                const int red = picture.bgr ? 2 : 0, blue = 2 - red;
                for (int i = thread; i < rows * columns; i += threads) {
                    const int r = i / columns;
                    const int offset = (int)((begin + (some + r) * picture.stride) % UNIT);
                    const Level* const pixel = source + UNIT * row_units * r + offset + (i - r * columns) * channels;
                    luma[i] = luma_of(pixel[red], pixel[1], pixel[blue]);
                }
                __syncthreads();
            }
            for (int column = threadIdx.x; column < width; column += blockDim.x) {
                const int first = across[column] & 0xFFFF, stop = min(first + (across[column] >> 16), x1);
                const int* const weights = across + width + column;
                for (int r = threadIdx.y; r < rows; r += blockDim.y) {
                    const int offset = (int)((begin + (some + r) * picture.stride) % UNIT);
                    const Level* const row_at = to_luma ? luma + r * columns : source + UNIT * row_units * r + offset;
                    const int step = to_luma ? 1 : channels;
                    for (int plane = 0; plane < COLORS; ++plane) {
                        const Level* level = row_at + (channels == 1 || to_luma ? 0 : picture.bgr ? 2 - plane : plane);
                        int sum = HALF;
                        for (int x = max(first, x0); x < stop; ++x)
                            sum += weights[(x - first) * width] * level[(x - x0) * step];
                        between[(plane * room + some - low + r) * width + column] = rounded(sum);
                    }
                }
            }
            __syncthreads();
        }
        for (int plane = 0; plane < COLORS; ++plane)
            for (int column = threadIdx.x; column < width; column += blockDim.x)
                for (int y = row + threadIdx.y; y < next; y += blockDim.y) {
                    const int first = down[y] & 0xFFFF, stop = min(first + (down[y] >> 16), y1);
                    int sum = HALF;
                    for (int tap = max(first, y0); tap < stop; ++tap)
                        sum += down[height + (tap - first) * height + y] *
                               between[(plane * room + tap - low) * width + column];
                    image[(plane * height + y) * width + column] = rounded(sum);
                }
        row = next;  // the barrier after the next source rows comes before `between` is written again
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK, 3)
preprocess_gray(const Batch* batch, const Picture* pictures, int bands, int height, int width, int longest,
                const int* across_tables, const int* down_tables, Level* images, Shown* shown) {
    preprocess<1>(batch, pictures, bands, height, width, longest, across_tables, down_tables, images, shown);
}

extern "C" __global__ void __launch_bounds__(BLOCK, 3)
preprocess_rgb(const Batch* batch, const Picture* pictures, int bands, int height, int width, int longest,
               const int* across_tables, const int* down_tables, Level* images, Shown* shown) {
    preprocess<3>(batch, pictures, bands, height, width, longest, across_tables, down_tables, images, shown);
}

// The three launches, for boxes of any length

extern "C" __global__ void
precompute_coeffs(const Descriptor* descriptors, int count, int height, int width, int* tables, Shown* shown) {
    const long long thread = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (thread >= (long long)count * (width + height)) return;
    const int index = (int)(thread / (width + height)), at = (int)(thread % (width + height));
    const Descriptor& picture = descriptors[index];
    const bool across = at < width;
    const int out = across ? at : at - width;
    const int size = across ? width : height;
    int* const table = tables + (across ? picture.columns : picture.rows);
    const int length = across ? picture.crop_width : picture.crop_height;
    const Taps taps = compute_weights(length, size, out, table + 2 * size + out, size);
    table[out] = taps.first;
    table[size + out] = taps.count;
    if (at == 0) shown[index] = find_shown(picture, height, width);
}

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
        *levels = luma_of(red, green, blue);
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

// The answers

constexpr int PUBLISHERS = 256;  // threads of a block of `publish`
constexpr int FLAT = 2;          // levels of standard deviation, as of `fmengine.image.flatness`

// Whether the levels of one channel of an input hardly differ, from exact sums, where they show the picture.
__device__ bool is_flat(const Level* plane, int width, const Shown& shown) {
    __shared__ unsigned long long sums[PUBLISHERS], squares[PUBLISHERS];
    const int columns = shown.right - shown.left, pixels = columns * (shown.bottom - shown.top);
    unsigned long long sum = 0, square = 0;
    for (int i = threadIdx.x; i < pixels; i += PUBLISHERS) {
        const unsigned level = plane[(shown.top + i / columns) * width + shown.left + i % columns];
        sum += level, square += level * level;
    }
    __syncthreads();  // the sums of another channel were read
    sums[threadIdx.x] = sum, squares[threadIdx.x] = square;
    for (unsigned half = PUBLISHERS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            sums[threadIdx.x] += sums[threadIdx.x + half];
            squares[threadIdx.x] += squares[threadIdx.x + half];
        }
    }
    __syncthreads();
    return pixels * squares[0] - sums[0] * sums[0] < (unsigned long long)(FLAT * FLAT) * pixels * pixels;
}

// A block a picture. Its answers go to memory of the host, with 1 for a flat picture and 2 for a refused one; the last
// block of all writes the next sequence number, when everything else is there.
extern "C" __global__ void __launch_bounds__(PUBLISHERS)
publish(const Batch* batch, const Shown* shown, const Level* images, int channels, int height, int width, int labels,
        const float* logits, const float* probabilities, float* out_logits, float* out_probabilities, Level* marks,
        unsigned* blocks_done, unsigned* sequence, volatile unsigned* published) {
    const int index = blockIdx.x;
    if (index < batch->count) {
        bool flat = true;
        for (int plane = 0; plane < channels; ++plane)
            flat &= is_flat(images + ((long long)index * channels + plane) * height * width, width, shown[index]);
        for (int label = threadIdx.x; label < labels; label += PUBLISHERS) {
            out_logits[index * labels + label] = logits[index * labels + label];
            out_probabilities[index * labels + label] = probabilities[index * labels + label];
        }
        if (threadIdx.x == 0) marks[index] = (Level)(flat | shown[index].refused << 1);
    }
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0 && atomicAdd(blocks_done, 1) == gridDim.x - 1) {
        *blocks_done = 0;
        __threadfence_system();
        *published = ++*sequence;
    }
}
