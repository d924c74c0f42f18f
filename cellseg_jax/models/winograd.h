// Convolutions with 3x3 and 4x4 kernels by Winograd's tiles of 4x4 pixels, in float32, for processors with AVX2.
//
// For a tile d of 4x4 pixels, a kernel g and the outputs y they have in common, 2x2 of a kernel of 3x3 taps,
//
//     y = A' [(G g G') * (B' d B)] A,
//
// where * multiplies number by number: 16 products in place of 36. Over all channels and tiles these are 16 products of
// matrices. A kernel of 4x4 is four parts of 2x2 taps, each with tiles of its own that give 3x3 outputs: 64 products,
// summed over the parts before A, in place of 144. Gradients follow by transposing linear maps. Tiles overlap, and each
// block of them is transformed and multiplied while the caches hold it. Errors are those of a direct sum.
// Source: Lavin and Gray 2016, Fast algorithms for convolutional neural networks, section 4.1.

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace winograd {

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#pragma GCC optimize("O3")

constexpr int64_t kProducts = 16;
constexpr int64_t kApart = 48;  // numbers between matrices, so that their rows do not share lines of the cache

// Along each axis: taps of a part, parts of a kernel of this size, and outputs of a tile.
constexpr int Taps(int size) { return size == 3 ? 3 : 2; }
constexpr int Parts(int size) { return size / Taps(size); }
constexpr int Outputs(int size) { return 5 - Taps(size); }

// Eight channels. Maps are written for them and for one.
typedef float Eight __attribute__((vector_size(32)));

// The linear maps of one axis, from every `stride`th number to every `stride`th.
struct OfInput {  // B'
  static constexpr int kFrom = 4, kTo = 4;
  template <int stride, typename Number>
  static void Map(const Number* d, Number* p) {
    Number d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride];
    p[0] = d0 - d2, p[stride] = d1 + d2, p[2 * stride] = d2 - d1, p[3 * stride] = d1 - d3;
  }
};

template <int outputs>
struct ToOutput {  // A'
  static constexpr int kFrom = 4, kTo = outputs;
  template <int stride, typename Number>
  static void Map(const Number* p, Number* y) {
    Number p0 = p[0], p1 = p[stride], p2 = p[2 * stride], p3 = p[3 * stride];
    y[0] = p0 + p1 + p2;
    if (outputs == 2) y[stride] = p1 - p2 - p3;
    if (outputs == 3) y[stride] = p1 - p2, y[2 * stride] = p1 + p2 - p3;
  }
};

template <int outputs>
struct OfOutput {  // A
  static constexpr int kFrom = outputs, kTo = 4;
  template <int stride, typename Number>
  static void Map(const Number* y, Number* p) {
    Number last = y[(outputs - 1) * stride], even = outputs == 3 ? y[0] + last : y[0], odd = y[stride];
    p[0] = y[0], p[stride] = even + odd, p[2 * stride] = even - odd, p[3 * stride] = -last;
  }
};

template <int taps>
struct OfTap {  // G
  static constexpr int kFrom = taps, kTo = 4;
  template <int stride, typename Number>
  static void Map(const Number* g, Number* p) {
    Number last = g[(taps - 1) * stride], even = 0.5f * (taps == 3 ? g[0] + last : g[0]), odd = 0.5f * g[stride];
    p[0] = g[0], p[stride] = even + odd, p[2 * stride] = even - odd, p[3 * stride] = last;
  }
};

template <int taps>
struct ToTap {  // G'
  static constexpr int kFrom = 4, kTo = taps;
  template <int stride, typename Number>
  static void Map(const Number* p, Number* g) {
    Number even = 0.5f * (p[stride] + p[2 * stride]), odd = 0.5f * (p[stride] - p[2 * stride]), last = p[3 * stride];
    g[0] = p[0] + even;
    if (taps == 2) g[stride] = odd + last;
    if (taps == 3) g[stride] = odd, g[2 * stride] = even + last;
  }
};

// The map along both axes, of kFrom x kFrom numbers to kTo x kTo.
template <typename Axis, typename Number>
inline void BothAxes(int64_t i, const float* const* from, float* const* to) {
  constexpr int rows = Axis::kFrom, end = Axis::kTo;
  Number x[rows * rows], columns[end * rows], y[end * end];
  #pragma GCC unroll 16
  for (int k = 0; k < rows * rows; k++) std::memcpy(&x[k], from[k] + i, sizeof(Number));
  #pragma GCC unroll 4
  for (int c = 0; c < rows; c++) Axis::template Map<rows>(x + c, columns + c);
  #pragma GCC unroll 4
  for (int r = 0; r < end; r++) Axis::template Map<1>(columns + r * rows, y + r * end);
  #pragma GCC unroll 16
  for (int k = 0; k < end * end; k++) std::memcpy(to[k] + i, &y[k], sizeof(Number));
}

// The same for all numbers of vectors of this length.
template <typename Axis>
inline void Transform(int64_t length, const float* const* from, float* const* to) {
  int64_t i = 0;
  for (; i + 8 <= length; i += 8) BothAxes<Axis, Eight>(i, from, to);
  for (; i < length; i++) BothAxes<Axis, float>(i, from, to);
}

// Vectors of sixteen matrices.
template <typename Number>
struct Sixteen {
  Number* at[16];
  Sixteen(Number* first, int64_t stride) {
    for (int k = 0; k < 16; k++) at[k] = first + k * stride;
  }
};

// An image (n, height, width, channels) and its tiles, (n, rows, columns), which begin every `step` pixels.
struct Image {
  int64_t n, height, width, channels;
  int64_t rows, columns, step;
  int64_t top = 0, left = 0;  // rows and columns of zeros before the image, of its tiles of 4x4

  int64_t tiles() const { return n * rows * columns; }

  // Where the `side` x `side` pixels of a tile begin, from its pixel (down, right) on; `outside` for those beyond the image.
  template <int side, typename Number>
  void Pixels(int64_t tile, int64_t down, int64_t right, Number* data, Number* outside, Number** pixels) const {
    int64_t top_row = tile / columns % rows * step - top + down, left_column = tile % columns * step - left + right;
    Number* all = data + tile / columns / rows * height * width * channels;
    for (int64_t y = top_row; y < top_row + side; y++)
      for (int64_t x = left_column; x < left_column + side; x++)
        *pixels++ = y >= 0 && y < height && x >= 0 && x < width ? all + (y * width + x) * channels : outside;
  }
};

// to[p] = B' d B of each tile, of all parts, (16, tiles, parts, channels); matrices begin `stride` numbers apart, here
// and below.
template <int size>
void OfInputs(const Image& image, const float* data, int64_t first, int64_t last, const float* zeros, float* to,
              int64_t stride) {
  for (int64_t tile = first; tile < last; tile++)
    for (int down = 0; down < size; down += Taps(size))
      for (int right = 0; right < size; right += Taps(size), to += image.channels) {
        const float* d[16];
        image.Pixels<4>(tile, down, right, data, zeros, d);
        Transform<OfInput>(image.channels, d, Sixteen(to, stride).at);
      }
}

// data = A' m A for the matrices m (16, tiles, channels).
template <int size>
void ToOutputs(const Image& image, const float* m, int64_t stride, int64_t first, int64_t last, float* outside,
               float* data) {
  constexpr int side = Outputs(size);
  for (int64_t tile = first; tile < last; tile++, m += image.channels) {
    float* y[side * side];
    image.Pixels<side>(tile, 0, 0, data, outside, y);
    Transform<ToOutput<side>>(image.channels, Sixteen(m, stride).at, y);
  }
}

// to[p] = A y A', the transpose of ToOutputs.
template <int size>
void OfOutputs(const Image& image, const float* data, int64_t first, int64_t last, const float* zeros, float* to,
               int64_t stride) {
  constexpr int side = Outputs(size);
  for (int64_t tile = first; tile < last; tile++, to += image.channels) {
    const float* y[side * side];
    image.Pixels<side>(tile, 0, 0, data, zeros, y);
    Transform<OfOutput<side>>(image.channels, y, Sixteen(to, stride).at);
  }
}

// Where the taps of part (down, right) of a kernel (size, size, numbers) begin, turned by 180 degrees or not.
template <int size, typename Number>
void TapsOf(int down, int right, bool turned, int64_t numbers, Number* kernel, Number** taps) {
  for (int y = down; y < down + Taps(size); y++)
    for (int x = right; x < right + Taps(size); x++)
      *taps++ = kernel + (turned ? size * size - 1 - y * size - x : y * size + x) * numbers;
}

// to[p] = G g G' for the numbers first, ..., last - 1 of each tap of a kernel; those of a part begin `apart` after those
// of the part before.
template <int size>
void OfKernel(const float* kernel, int64_t numbers, bool turned, int64_t first, int64_t last, float* to, int64_t stride,
              int64_t apart) {
  constexpr int taps = Taps(size);
  for (int down = 0; down < size; down += taps)
    for (int right = 0; right < size; right += taps, to += apart) {
      const float* g[taps * taps];
      TapsOf<size>(down, right, turned, numbers, kernel + first, g);
      Transform<OfTap<taps>>(last - first, g, Sixteen(to, stride).at);
    }
}

// kernel = G' p G, the transpose of OfKernel.
template <int size>
void ToKernel(const float* from, int64_t stride, int64_t apart, int64_t numbers, int64_t first, int64_t last,
              float* kernel) {
  constexpr int taps = Taps(size);
  for (int down = 0; down < size; down += taps)
    for (int right = 0; right < size; right += taps, from += apart) {
      float* g[taps * taps];
      TapsOf<size>(down, right, false, numbers, kernel + first, g);
      Transform<ToTap<taps>>(last - first, Sixteen(from, stride).at, g);
    }
}

#pragma GCC pop_options

}  // namespace winograd
