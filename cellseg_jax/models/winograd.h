// Convolutions with 3x3 kernels by Winograd's F(2x2, 3x3), in float32, for processors with AVX2.
//
// For a tile d of 4x4 pixels, a kernel g and the 2x2 outputs y they have in common,
//
//     y = A' [(G g G') * (B' d B)] A,
//
// where * multiplies number by number: 16 products in place of 36. Over all channels and tiles these are 16 products of
// matrices. Gradients follow by transposing linear maps. Tiles overlap by two pixels, and each block of them is
// transformed and multiplied while the caches hold it. Errors are those of a direct sum.
// Source: Lavin and Gray 2016, Fast algorithms for convolutional neural networks, section 4.1.

#include <algorithm>
#include <cstdint>

namespace winograd {

#define AVX2 __attribute__((target("avx2,fma"), optimize("O3")))

constexpr int64_t kProducts = 16;
constexpr int64_t kApart = 48;  // numbers between matrices, so that their rows do not share lines of the cache

// An image (n, height, width, channels) and its tiles, (n, rows, columns), which begin every two pixels.
struct Image {
  int64_t n, height, width, channels;
  int64_t rows, columns;
  int64_t top = 0, left = 0;  // rows and columns of zeros before the image, of its tiles of 4x4

  int64_t tiles() const { return n * rows * columns; }
  // The pixel `x` of row `y` of the image that a tile is of.
  int64_t Pixel(int64_t tile, int64_t y, int64_t x) const {
    return ((tile / columns / rows * height + y) * width + x) * channels;
  }
  int64_t Row(int64_t tile) const { return tile / columns % rows * 2 - top; }
  int64_t Column(int64_t tile) const { return tile % columns * 2 - left; }
};

// to[p] = B' d B of each tile, (16, tiles, channels); matrices begin `stride` numbers apart, here and below.
AVX2 inline void OfInputs(const Image& image, const float* data, int64_t first, int64_t last, const float* zeros,
                          float* to, int64_t stride) {
  for (int64_t tile = first; tile < last; tile++, to += image.channels) {
    const float* d[4][4];
    int64_t row = image.Row(tile), column = image.Column(tile);
    for (int64_t r = 0; r < 4; r++)
      for (int64_t c = 0; c < 4; c++) {
        int64_t y = row + r, x = column + c;
        bool inside = y >= 0 && y < image.height && x >= 0 && x < image.width;
        d[r][c] = inside ? data + image.Pixel(tile, y, x) : zeros;
      }
    #pragma omp simd
    for (int64_t i = 0; i < image.channels; i++) {
      float b[4][4];
      for (int c = 0; c < 4; c++) {
        float d0 = d[0][c][i], d1 = d[1][c][i], d2 = d[2][c][i], d3 = d[3][c][i];
        b[0][c] = d0 - d2, b[1][c] = d1 + d2, b[2][c] = d2 - d1, b[3][c] = d1 - d3;
      }
      for (int r = 0; r < 4; r++) {
        float* p = to + 4 * r * stride + i;
        p[0] = b[r][0] - b[r][2], p[stride] = b[r][1] + b[r][2];
        p[2 * stride] = b[r][2] - b[r][1], p[3 * stride] = b[r][1] - b[r][3];
      }
    }
  }
}

// The 2x2 pixels of a tile, those beyond the image at `outside`.
template <typename Number>
struct Square {
  Number *a, *b, *c, *d;
  Square(const Image& image, int64_t tile, Number* data, Number* outside) {
    int64_t y = image.Row(tile), x = image.Column(tile);
    bool right = x + 1 < image.width, below = y + 1 < image.height;
    a = data + image.Pixel(tile, y, x);
    b = right ? a + image.channels : outside;
    c = below ? a + image.width * image.channels : outside;
    d = right && below ? c + image.channels : outside;
  }
};

// data = A' m A for the matrices m (16, tiles, channels).
AVX2 inline void ToOutputs(const Image& image, const float* m, int64_t stride, int64_t first, int64_t last,
                           float* outside, float* data) {
  for (int64_t tile = first; tile < last; tile++, m += image.channels) {
    Square<float> y(image, tile, data, outside);
    #pragma omp simd
    for (int64_t i = 0; i < image.channels; i++) {
      float a[2][4];
      for (int c = 0; c < 4; c++) {
        const float* p = m + c * stride + i;
        float p0 = p[0], p1 = p[4 * stride], p2 = p[8 * stride], p3 = p[12 * stride];
        a[0][c] = p0 + p1 + p2, a[1][c] = p1 - p2 - p3;
      }
      y.a[i] = a[0][0] + a[0][1] + a[0][2], y.b[i] = a[0][1] - a[0][2] - a[0][3];
      y.c[i] = a[1][0] + a[1][1] + a[1][2], y.d[i] = a[1][1] - a[1][2] - a[1][3];
    }
  }
}

// to[p] = A y A', the transpose of ToOutputs.
AVX2 inline void OfOutputs(const Image& image, const float* data, int64_t first, int64_t last, const float* zeros,
                           float* to, int64_t stride) {
  for (int64_t tile = first; tile < last; tile++, to += image.channels) {
    Square<const float> y(image, tile, data, zeros);
    #pragma omp simd
    for (int64_t i = 0; i < image.channels; i++) {
      float a = y.a[i], b = y.b[i], c = y.c[i], d = y.d[i];
      float rows[4][2] = {{a, b}, {a + c, b + d}, {a - c, b - d}, {-c, -d}};
      for (int r = 0; r < 4; r++) {
        float* p = to + 4 * r * stride + i;
        p[0] = rows[r][0], p[stride] = rows[r][0] + rows[r][1];
        p[2 * stride] = rows[r][0] - rows[r][1], p[3 * stride] = -rows[r][1];
      }
    }
  }
}

// to[p] = G g G' for the kernel (3, 3, size), turned by 180 degrees or not, of its numbers first, ..., last - 1.
AVX2 inline void OfKernel(const float* kernel, int64_t size, bool turned, int64_t first, int64_t last, float* to,
                          int64_t stride) {
  #pragma omp simd
  for (int64_t i = first; i < last; i++) {
    float g[4][3];
    for (int c = 0; c < 3; c++) {
      const float *top = kernel + (turned ? 8 - c : c) * size + i, *middle = kernel + (turned ? 5 - c : 3 + c) * size + i;
      float g0 = *top, g1 = 0.5f * *middle, g2 = kernel[(turned ? 2 - c : 6 + c) * size + i], half = 0.5f * (g0 + g2);
      g[0][c] = g0, g[1][c] = half + g1, g[2][c] = half - g1, g[3][c] = g2;
    }
    for (int r = 0; r < 4; r++) {
      float half = 0.5f * (g[r][0] + g[r][2]), middle = 0.5f * g[r][1], *p = to + 4 * r * stride + i;
      p[0] = g[r][0], p[stride] = half + middle, p[2 * stride] = half - middle, p[3 * stride] = g[r][2];
    }
  }
}

// kernel = G' p G, the transpose of OfKernel.
AVX2 inline void ToKernel(const float* from, int64_t stride, int64_t size, int64_t first, int64_t last, float* kernel) {
  #pragma omp simd
  for (int64_t i = first; i < last; i++) {
    float g[3][4];
    for (int c = 0; c < 4; c++) {
      const float* p = from + c * stride + i;
      float p0 = p[0], p1 = p[4 * stride], p2 = p[8 * stride], p3 = p[12 * stride], half = 0.5f * (p1 + p2);
      g[0][c] = p0 + half, g[1][c] = 0.5f * (p1 - p2), g[2][c] = half + p3;
    }
    for (int r = 0; r < 3; r++) {
      float half = 0.5f * (g[r][1] + g[r][2]), *k = kernel + 3 * r * size + i;
      k[0] = g[r][0] + half, k[size] = 0.5f * (g[r][1] - g[r][2]), k[2 * size] = half + g[r][3];
    }
  }
}

#undef AVX2

}  // namespace winograd
