// oneDNN's convolutions as a handler of XLA's foreign function interface, on a CPU, in float32.
//
// Images are plain NHWC and kernels plain HWIO, as XLA holds them. oneDNN picks the layout of the
// kernel, which is reordered here; blocked images would cost more in reorders than they save.
// Built and registered by onednn.py.

#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

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
}
constexpr int kCpu = 1, kFloat32 = 3, kAnyLayout = 1, kForwardTraining = 64, kDirect = 1, kUserScratchpad = 1;
constexpr int kSource = 1, kDestination = 17, kWeights = 33, kScratchpad = 80;  // arguments
constexpr int kSourceGradient = 129, kDestinationGradient = 145, kWeightsGradient = 161;
constexpr int kQueryWeights = 131, kQueryWeightsGradient = 132, kQueryScratchpad = 136;

enum Kind : int64_t { kForward, kImageGradient, kKernelGradient };

struct Failed { const char* call; int status; };
#define CHECK_STATUS(call) if (int status = (call)) throw Failed{#call, status}

static Handle Engine() {
  static Handle engine = [] { Handle e; CHECK_STATUS(dnnl_engine_create(&e, kCpu, 0)); return e; }();
  return engine;
}

// One convolution of these shapes, which lives as long as the process. (N, C, H, W) and (K, C, h, w) are the orders
// of oneDNN's descriptions; their strides say how the numbers lie.
struct Convolution {
  Kind kind;
  Handle image, kernel, output, packed, scratchpad;  // descriptions; `packed` is oneDNN's layout of the kernel
  Handle primitive, reorder;

  Convolution(Kind kind, int64_t stride, const Dims& pads, const Dims& x, const Dims& k, const Dims& y) : kind(kind) {
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

static void Execute(Convolution& op, const void* image, const void* kernel, const void* output) {
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
