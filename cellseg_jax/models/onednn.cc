// oneDNN's convolutions as a handler of XLA's foreign function interface, on a CPU, in float32.
//
// Images are plain NHWC and kernels plain HWIO, as XLA holds them. oneDNN picks the layout of the
// kernel, which is reordered here; blocked images would cost more in reorders than they save.
// Built and registered by onednn.py.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "winograd.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Dims = std::vector<int64_t>;

// What is used of oneDNN 3's C interface; its wheel has no headers. Values are dnnl_types.h's.
typedef void* Handle;
struct Argument { int which; Handle memory; };
extern "C" {
int dnnl_engine_create(Handle*, int kind, size_t index);
int dnnl_stream_create(Handle*, Handle engine, unsigned flags);
int dnnl_stream_wait(Handle);
int dnnl_stream_destroy(Handle);
int dnnl_memory_desc_create_with_strides(Handle*, int rank, const int64_t* dims, int type, const int64_t* strides);
int dnnl_memory_desc_create_with_tag(Handle*, int rank, const int64_t* dims, int type, int tag);
size_t dnnl_memory_desc_get_size(Handle);
int dnnl_memory_create(Handle*, Handle desc, Handle engine, void* data);
int dnnl_memory_destroy(Handle);
int dnnl_primitive_attr_create(Handle*);
int dnnl_primitive_attr_set_scratchpad_mode(Handle, int mode);
Handle dnnl_primitive_desc_query_md(Handle, int what, int index);
int dnnl_convolution_forward_primitive_desc_create(
    Handle*, Handle engine, int prop, int algorithm, Handle src, Handle weights, Handle bias, Handle dst,
    const int64_t* strides, const int64_t* dilates, const int64_t* low, const int64_t* high, Handle attr);
int dnnl_convolution_backward_data_primitive_desc_create(
    Handle*, Handle engine, int algorithm, Handle src, Handle weights, Handle dst,
    const int64_t* strides, const int64_t* dilates, const int64_t* low, const int64_t* high, Handle hint, Handle attr);
int dnnl_convolution_backward_weights_primitive_desc_create(
    Handle*, Handle engine, int algorithm, Handle src, Handle weights, Handle bias, Handle dst,
    const int64_t* strides, const int64_t* dilates, const int64_t* low, const int64_t* high, Handle hint, Handle attr);
int dnnl_reorder_primitive_desc_create(Handle*, Handle from, Handle engine, Handle to, Handle engine2, Handle attr);
int dnnl_primitive_create(Handle*, Handle desc);
int dnnl_primitive_execute(Handle, Handle stream, int count, const Argument*);
int dnnl_primitive_desc_query(Handle desc, int what, int index, void* result);
int dnnl_sgemm(char transposed_a, char transposed_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
               int64_t lda, const float* b, int64_t ldb, float beta, float* c, int64_t ldc);
}
constexpr int kCpu = 1, kFloat32 = 3, kAnyLayout = 1, kForwardTraining = 64, kDirect = 1, kUserScratchpad = 1;
constexpr int kSource = 1, kDestination = 17, kWeights = 33, kScratchpad = 80;  // arguments
constexpr int kSourceGradient = 129, kDestinationGradient = 145, kWeightsGradient = 161;
constexpr int kQueryName = 8, kQueryWeights = 131, kQueryWeightsGradient = 132, kQueryScratchpad = 136;

enum Kind : int64_t { kForward, kImageGradient, kKernelGradient };

struct Failed { const char* call; int status; };
#define CHECK_STATUS(call) if (int status = (call)) throw Failed{#call, status}

static int Threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

static int Thread() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Into how many parts the columns of some products are cut, so that there is work for all threads.
static int64_t Cuts(int64_t products, int64_t columns) {
  int64_t cuts = 1;
  while (products * cuts < 4 * Threads() && columns / cuts >= 64) cuts *= 2;
  return cuts;
}

static Handle Engine() {
  static Handle engine = [] { Handle e; CHECK_STATUS(dnnl_engine_create(&e, kCpu, 0)); return e; }();
  return engine;
}

enum Way { kPrimitive, kProducts, kWinograd };

// The fastest way to compute a convolution, as measured on a processor with AVX2, where primitives compute gradients of
// kernels at a fourth to a half of what it can. Few channels, few pixels, and zeros around small images cost the others
// more.
static Way Fastest(Kind kind, const std::string& primitive, int64_t stride, const Dims& k, const Dims& y) {
  int64_t channels = std::min(k[2], k[3]), pixels = y[0] * y[1] * y[2];
  const std::string avx2 = ":avx2";
  if (stride > 1 || primitive.size() < avx2.size() || primitive.substr(primitive.size() - avx2.size()) != avx2)
    return kPrimitive;
  if (k[0] == k[1] && (k[0] == 3 || k[0] == 4)) {
    bool faster = kind == kKernelGradient ? channels >= (k[0] == 3 ? 8 : 16) : channels >= 24 && pixels >= 256;
    return faster ? kWinograd : kPrimitive;
  }
  bool large = k[0] * k[1] > 1 && channels >= 16 && std::min(y[1], y[2]) >= 24;
  return kind == kKernelGradient && large ? kProducts : kPrimitive;
}

// One convolution of these shapes, which lives as long as the process. (N, C, H, W) and (K, C, h, w) are the orders
// of oneDNN's descriptions; their strides say how the numbers lie.
struct Convolution {
  Kind kind;
  Handle image, kernel, output, packed, scratchpad;  // descriptions; `packed` is oneDNN's layout of the kernel
  Handle primitive, reorder;
  Dims pads, x, k, y;  // of XLA's order
  Way way;

  Convolution(Kind kind, int64_t stride, const Dims& pads, const Dims& x, const Dims& k, const Dims& y)
      : kind(kind), pads(pads), x(x), k(k), y(y) {
    auto [n, h, w, c] = std::array{x[0], x[1], x[2], x[3]};
    auto [kh, kw, f, oh, ow] = std::array{k[0], k[1], k[3], y[1], y[2]};
    image = Strided({n, c, h, w}, {h * w * c, 1, w * c, c});
    output = Strided({n, f, oh, ow}, {oh * ow * f, 1, ow * f, f});
    kernel = Strided({f, c, kh, kw}, {1, f, kw * c * f, c * f});
    Handle any, attr, forward, desc;
    int64_t dims[4] = {f, c, kh, kw}, strides[2] = {stride, stride}, dense[2] = {0, 0};
    const int64_t *low = pads.data(), *high = pads.data() + 2;
    CHECK_STATUS(dnnl_memory_desc_create_with_tag(&any, 4, dims, kFloat32, kAnyLayout));
    CHECK_STATUS(dnnl_primitive_attr_create(&attr));
    CHECK_STATUS(dnnl_primitive_attr_set_scratchpad_mode(attr, kUserScratchpad));
    CHECK_STATUS(dnnl_convolution_forward_primitive_desc_create(
        &forward, Engine(), kForwardTraining, kDirect, image, any, nullptr, output, strides, dense, low, high, attr));
    desc = forward;
    if (kind == kImageGradient)
      CHECK_STATUS(dnnl_convolution_backward_data_primitive_desc_create(
          &desc, Engine(), kDirect, image, any, output, strides, dense, low, high, forward, attr));
    if (kind == kKernelGradient)
      CHECK_STATUS(dnnl_convolution_backward_weights_primitive_desc_create(
          &desc, Engine(), kDirect, image, any, nullptr, output, strides, dense, low, high, forward, attr));
    bool out = kind == kKernelGradient;  // the kernel is what is computed
    const char* name;
    CHECK_STATUS(dnnl_primitive_desc_query(desc, kQueryName, 0, &name));
    way = Fastest(kind, name, stride, k, y);
    packed = dnnl_primitive_desc_query_md(desc, out ? kQueryWeightsGradient : kQueryWeights, 0);
    scratchpad = dnnl_primitive_desc_query_md(desc, kQueryScratchpad, 0);
    CHECK_STATUS(dnnl_primitive_create(&primitive, desc));
    CHECK_STATUS(dnnl_reorder_primitive_desc_create(
        &desc, out ? packed : kernel, Engine(), out ? kernel : packed, Engine(), nullptr));
    CHECK_STATUS(dnnl_primitive_create(&reorder, desc));
  }

  static Handle Strided(const Dims& dims, const Dims& strides) {
    Handle desc;
    CHECK_STATUS(dnnl_memory_desc_create_with_strides(&desc, 4, dims.data(), kFloat32, strides.data()));
    return desc;
  }
};

static Convolution& Cached(Kind kind, int64_t stride, const Dims& pads, const Dims& x, const Dims& k, const Dims& y) {
  // Never destroyed: at the end of the process a call may still run on a thread of XLA's.
  static auto& cache = *new std::map<Dims, std::unique_ptr<Convolution>>;
  Dims key{kind, stride};
  for (auto* part : {&pads, &x, &k, &y}) key.insert(key.end(), part->begin(), part->end());
  auto& slot = cache[key];
  if (!slot) slot = std::make_unique<Convolution>(kind, stride, pads, x, k, y);
  return *slot;
}

// Working memory, which grows to the largest need; used under the lock of Convolve.
struct Workspace {
  void* data = nullptr;
  size_t size = 0;
  void* AtLeast(size_t need) {
    if (need > size) {
      std::free(data);
      size = (need + 4095) / 4096 * 4096;
      if (!(data = std::aligned_alloc(4096, size))) { size = 0; throw std::bad_alloc(); }
    }
    return data;
  }
};

struct Memory {
  Handle handle;
  Memory(Handle desc, const void* data) { CHECK_STATUS(dnnl_memory_create(&handle, desc, Engine(), const_cast<void*>(data))); }
  ~Memory() { dnnl_memory_destroy(handle); }
  Memory(const Memory&) = delete;
};

// A kernel's gradient as products of matrices, one for each of its pixels: rows of the padded image, from that pixel on,
// transposed, times rows of the output's gradient. This one gets zeros up to the width of the padded image, so that the
// pixels of both lie one after the other, and a product reads them without a copy.
static void KernelGradient(const Convolution& op, const float* image, const float* output, float* kernel) {
  static Workspace image_space, output_space;
  constexpr int64_t kBlock = 512;  // pixels of which all products are taken while the caches hold them
  auto [n, h, w, c] = std::array{op.x[0], op.x[1], op.x[2], op.x[3]};
  auto [kh, kw, f, oh, ow] = std::array{op.k[0], op.k[1], op.k[3], op.y[1], op.y[2]};
  int64_t top = op.pads[0], left = op.pads[1], height = oh + kh - 1, width = ow + kw - 1, pixels = oh * width;
  auto* x = static_cast<float*>(image_space.AtLeast((height * width + kw - 1) * c * sizeof(float)));
  auto* y = static_cast<float*>(output_space.AtLeast(pixels * f * sizeof(float)));
  std::fill_n(x + height * width * c, (kw - 1) * c, 0.f);
  int64_t cuts = Cuts(kh * kw, f);
  int failed = 0;
  #pragma omp parallel reduction(|: failed)
  for (int64_t i = 0; i < n; i++) {
    #pragma omp for
    for (int64_t row = 0; row < height; row++) {
      float *to = x + row * width * c, *end = to + width * c;
      if (row >= top && row < top + h)
        to = std::copy_n(image + (i * h + row - top) * w * c, w * c, std::fill_n(to, left * c, 0.f));
      std::fill(to, end, 0.f);
      if (row >= oh) continue;
      to = std::copy_n(output + (i * oh + row) * ow * f, ow * f, y + row * width * f);
      std::fill_n(to, (width - ow) * f, 0.f);
    }
    #pragma omp for
    for (int64_t task = 0; task < kh * kw * cuts; task++) {
      int64_t at = task / cuts, from = task % cuts * f / cuts, to = (task % cuts + 1) * f / cuts;
      for (int64_t pixel = 0; pixel < pixels; pixel += kBlock)
        failed |= dnnl_sgemm(
            'T', 'N', c, to - from, std::min(kBlock, pixels - pixel), 1, x + (at / kw * width + at % kw + pixel) * c, c,
            y + pixel * f + from, f, i || pixel ? 1 : 0, kernel + at * c * f + from, f);
    }
  }
  CHECK_STATUS(failed);
}

static void Primitive(Convolution& op, const float* image, const float* kernel, const float* output) {
  static Workspace packed_space, scratch_space;
  static Handle stream = [] { Handle s; CHECK_STATUS(dnnl_stream_create(&s, Engine(), 1)); return s; }();
  Memory x(op.image, image), k(op.kernel, kernel), y(op.output, output);
  Memory packed(op.packed, packed_space.AtLeast(dnnl_memory_desc_get_size(op.packed)));
  Memory scratch(op.scratchpad, scratch_space.AtLeast(dnnl_memory_desc_get_size(op.scratchpad)));
  static constexpr int names[3][3] = {{kSource, kWeights, kDestination},
                                      {kSourceGradient, kWeights, kDestinationGradient},
                                      {kSource, kWeightsGradient, kDestinationGradient}};
  auto& name = names[op.kind];
  Argument all[4] = {{name[0], x.handle}, {name[1], packed.handle}, {name[2], y.handle}, {kScratchpad, scratch.handle}};
  bool out = op.kind == kKernelGradient;
  Argument moved[2] = {{kSource, out ? packed.handle : k.handle}, {kDestination, out ? k.handle : packed.handle}};
  if (!out) CHECK_STATUS(dnnl_primitive_execute(op.reorder, stream, 2, moved));
  CHECK_STATUS(dnnl_primitive_execute(op.primitive, stream, 4, all));
  if (out) CHECK_STATUS(dnnl_primitive_execute(op.reorder, stream, 2, moved));
  CHECK_STATUS(dnnl_stream_wait(stream));
}

// The images of a convolution by Winograd's tiles: what is transformed, and what comes of it.
template <int size>
static std::array<winograd::Image, 2> Tiled(const Convolution& op) {
  constexpr int64_t step = winograd::Outputs(size);
  auto& from = op.kind == kImageGradient ? op.y : op.x;
  auto& to = op.kind == kImageGradient ? op.x : op.y;
  int64_t rows = (to[1] + step - 1) / step, columns = (to[2] + step - 1) / step, top = op.pads[0], left = op.pads[1];
  if (op.kind == kImageGradient) top = size - 1 - top, left = size - 1 - left;
  return {winograd::Image{from[0], from[1], from[2], from[3], rows, columns, step, top, left},
          winograd::Image{to[0], to[1], to[2], to[3], rows, columns, step}};
}

// Threads share the products of a block of tiles.
template <int size>
static void WinogradKernelGradient(const Convolution& op, const float* image, const float* output, float* kernel) {
  constexpr int64_t kTiles = 512, kParts = winograd::Parts(size) * winograd::Parts(size);  // of a block, of a kernel
  static Workspace space;
  auto [x, y] = Tiled<size>(op);
  int64_t block = std::min(kTiles, x.tiles()), rows = kParts * x.channels, numbers = x.channels * y.channels;
  int64_t x_stride = block * rows + winograd::kApart, y_stride = block * y.channels + winograd::kApart;
  int64_t stride = rows * y.channels + winograd::kApart, cuts = Cuts(winograd::kProducts, y.channels);
  auto* products = static_cast<float*>(space.AtLeast(
      (winograd::kProducts * (stride + x_stride + y_stride) + std::max(x.channels, y.channels)) * sizeof(float)));
  float *v = products + winograd::kProducts * stride, *u = v + winograd::kProducts * x_stride;
  float* zeros = u + winograd::kProducts * y_stride;
  std::fill_n(zeros, std::max(x.channels, y.channels), 0.f);
  int failed = 0;
  #pragma omp parallel reduction(|: failed)
  {
    for (int64_t first = 0; first < x.tiles(); first += block) {
      int64_t last = std::min(first + block, x.tiles());
      #pragma omp for
      for (int64_t from = first; from < last; from += 8) {
        int64_t to = std::min(from + 8, last);
        winograd::OfInputs<size>(x, image, from, to, zeros, v + (from - first) * rows, x_stride);
        winograd::OfOutputs<size>(y, output, from, to, zeros, u + (from - first) * y.channels, y_stride);
      }
      #pragma omp for
      for (int64_t task = 0; task < winograd::kProducts * cuts; task++) {
        int64_t p = task / cuts, from = task % cuts * y.channels / cuts, to = (task % cuts + 1) * y.channels / cuts;
        failed |= dnnl_sgemm('T', 'N', rows, to - from, last - first, 1, v + p * x_stride, rows,
                             u + p * y_stride + from, y.channels, first ? 1 : 0, products + p * stride + from, y.channels);
      }
    }
    #pragma omp for
    for (int64_t row = 0; row < x.channels; row++)
      winograd::ToKernel<size>(products + row * y.channels, stride, numbers, numbers, row * y.channels,
                               (row + 1) * y.channels, kernel);
  }
  CHECK_STATUS(failed);
}

// Each thread computes blocks of tiles. The gradient of an image is a convolution with the turned kernel.
template <int size>
static void WinogradImage(const Convolution& op, const float* image, const float* kernel, float* output) {
  constexpr int64_t kFewTiles = 32, kManyTiles = 128, kNumbers = 1 << 16;  // of a block: of fewer, products are slow
  constexpr int64_t kParts = winograd::Parts(size) * winograd::Parts(size);
  static Workspace space;
  bool turned = op.kind == kImageGradient;
  auto [x, y] = Tiled<size>(op);
  int64_t rows = op.k[2], columns = op.k[3], numbers = rows * columns, inputs = kParts * x.channels;
  int64_t ld = turned ? kParts * columns : columns, apart = turned ? columns : numbers;  // of parts of kernels
  int64_t most = std::clamp(kNumbers / (inputs + y.channels), kFewTiles, kManyTiles);
  int64_t block = std::clamp((x.tiles() + Threads() - 1) / Threads(), kFewTiles, most);
  int workers = std::min<int64_t>(Threads(), (x.tiles() + block - 1) / block);
  int64_t x_stride = block * inputs + winograd::kApart, y_stride = block * y.channels + winograd::kApart;
  int64_t stride = kParts * numbers + winograd::kApart, widest = std::max(rows, columns);
  int64_t own = winograd::kProducts * (x_stride + y_stride) + 2 * widest;  // of a thread
  auto* products = static_cast<float*>(space.AtLeast((winograd::kProducts * stride + workers * own) * sizeof(float)));
  int failed = 0;
  #pragma omp parallel reduction(|: failed) num_threads(workers)
  {
    float *v = products + winograd::kProducts * stride + Thread() * own, *m = v + winograd::kProducts * x_stride;
    float *zeros = m + winograd::kProducts * y_stride, *outside = zeros + widest;
    std::fill_n(zeros, widest, 0.f);
    #pragma omp for
    for (int64_t row = 0; row < rows; row++)
      winograd::OfKernel<size>(kernel, numbers, turned, row * columns, (row + 1) * columns, products + row * ld, stride,
                               apart);
    #pragma omp for schedule(dynamic)
    for (int64_t first = 0; first < x.tiles(); first += block) {
      int64_t last = std::min(first + block, x.tiles());
      winograd::OfInputs<size>(x, image, first, last, zeros, v, x_stride);
      for (int64_t p = 0; p < winograd::kProducts; p++)
        failed |= dnnl_sgemm('N', turned ? 'T' : 'N', last - first, y.channels, inputs, 1, v + p * x_stride, inputs,
                             products + p * stride, ld, 0, m + p * y_stride, y.channels);
      winograd::ToOutputs<size>(y, m, y_stride, first, last, outside, output);
    }
  }
  CHECK_STATUS(failed);
}

template <int size>
static void Winograd(const Convolution& op, float* image, float* kernel, float* output) {
  if (op.kind == kKernelGradient) return WinogradKernelGradient<size>(op, image, output, kernel);
  op.kind == kForward ? WinogradImage<size>(op, image, kernel, output) : WinogradImage<size>(op, output, kernel, image);
}

static void Execute(Convolution& op, void* image, void* kernel, void* output) {
  auto *x = static_cast<float*>(image), *k = static_cast<float*>(kernel), *y = static_cast<float*>(output);
  if (op.way == kPrimitive) return Primitive(op, x, k, y);
  if (op.way == kProducts) return KernelGradient(op, x, y, k);
  op.k[0] == 3 ? Winograd<3>(op, x, k, y) : Winograd<4>(op, x, k, y);
}

// The numbers of one member of an array with leading axes of members, of which some have size 1 and are shared.
struct Members {
  Dims leading, shape;
  char* data;
  explicit Members(ffi::AnyBuffer buffer) : data(static_cast<char*>(buffer.untyped_data())) {
    auto dims = buffer.dimensions();
    leading.assign(dims.begin(), dims.end() - 4);
    shape.assign(dims.end() - 4, dims.end());
  }
  void* At(int64_t member, const Dims& counts) const {
    int64_t offset = 0, stride = 4;
    for (int64_t size : shape) stride *= size;
    for (size_t axis = counts.size(); axis--; member /= counts[axis]) {
      if (leading[axis] > 1) offset += member % counts[axis] * stride;
      stride *= leading[axis];
    }
    return data + offset;
  }
};

static ffi::Error Convolve(ffi::AnyBuffer first, ffi::AnyBuffer second, ffi::Result<ffi::AnyBuffer> result,
                           int64_t kind, int64_t stride, ffi::Span<const int64_t> pads) {
  // One convolution at a time, each on all cores: several devices of one process would only get in each other's way.
  static std::mutex running;
  std::lock_guard<std::mutex> lock(running);
  try {
    Members a(first), b(second), out(*result);
    auto& x = kind == kImageGradient ? out : a;
    auto& k = kind == kKernelGradient ? out : b;
    auto& y = kind == kForward ? out : kind == kImageGradient ? a : b;
    auto& op = Cached(Kind(kind), stride, Dims(pads.begin(), pads.end()), x.shape, k.shape, y.shape);
    int64_t count = 1;
    for (int64_t size : out.leading) count *= size;
    for (int64_t m = 0; m < count; m++)
      Execute(op, x.At(m, out.leading), k.At(m, out.leading), y.At(m, out.leading));
  } catch (const Failed& failed) {
    return ffi::Error::Internal(std::string("oneDNN: status ") + std::to_string(failed.status) + " of " + failed.call);
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "oneDNN: out of memory");
  }
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    cellseg_convolve, Convolve,
    ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>()
        .Attr<int64_t>("kind").Attr<int64_t>("stride").Attr<ffi::Span<const int64_t>>("pads"));
