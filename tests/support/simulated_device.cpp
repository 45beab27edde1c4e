// A second device, `sim`, for tests on machines without an accelerator: two devices with memory of their own, whose
// operations run ATen's CPU kernels on copies. Like a GPU it refuses operands on two devices, and has its own lists for
// autocast. Environment variables make it poorer:
//   SIM_WITHOUT=float64    it has no float64, like MPS
//   SIM_WITHOUT=aten::tanh it does not have that operation
//   SIM_PRODUCTS=rounded   matrix products take float32 operands with 10 bits of mantissa, like TF32
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <set>

namespace {

using at::Tensor;
using c10::Device, c10::DeviceIndex, c10::IntArrayRef, c10::ScalarType;
constexpr auto SIM = c10::DeviceType::PrivateUse1;
constexpr DeviceIndex DEVICES = 2;

bool chosen(const char* variable, const std::string& value) {
  const char* given = std::getenv(variable);
  return given != nullptr && value == given;
}
const bool without_float64 = chosen("SIM_WITHOUT", "float64");
const bool rounded_products = chosen("SIM_PRODUCTS", "rounded");

thread_local DeviceIndex current = 0;
std::atomic<int64_t> synchronizations{0};

// --- memory ----------------------------------------------------------------------------------------------------------

struct Memory final : c10::DeviceAllocator {
  struct Block {
    void* data;
    size_t bytes;
    DeviceIndex device;
  };
  static Memory& instance() {
    static auto* memory = new Memory;  // never destroyed: tensors may be freed later
    return *memory;
  }
  static void release(void* context) {
    auto* block = static_cast<Block*>(context);
    instance().count(block->device, block->bytes, false);
    c10::free_cpu(block->data);
    delete block;
  }
  c10::DataPtr allocate(size_t bytes) override {
    auto* block = new Block{c10::alloc_cpu(bytes), bytes, current};
    count(current, bytes, true);
    return {block->data, block, &release, Device(SIM, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(DeviceIndex device) override { return stats[device]; }
  void resetAccumulatedStats(DeviceIndex) override {}
  void resetPeakStats(DeviceIndex device) override { stats[device].allocated_bytes[0].reset_peak(); }

 private:
  void count(DeviceIndex device, size_t bytes, bool more) {
    const std::lock_guard<std::mutex> lock(mutex);
    auto& allocated = stats[device].allocated_bytes[0];
    more ? allocated.increase(bytes) : allocated.decrease(bytes);
  }
  std::mutex mutex;
  c10::CachingDeviceAllocator::DeviceStats stats[DEVICES];
};

// --- devices ---------------------------------------------------------------------------------------------------------

struct Guard final : c10::impl::NoOpDeviceGuardImpl<SIM> {
  Device exchangeDevice(Device device) const override {
    const Device before = getDevice();
    setDevice(device);
    return before;
  }
  Device getDevice() const override { return {SIM, current}; }
  void setDevice(Device device) const override {
    TORCH_CHECK(device.index() < DEVICES, "there are ", int(DEVICES), " sim devices, and no ", device);
    uncheckedSetDevice(device);
  }
  void uncheckedSetDevice(Device device) const noexcept override { current = device.index(); }
  DeviceIndex deviceCount() const noexcept override { return DEVICES; }
  c10::Stream getStream(Device device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  void synchronizeDevice(DeviceIndex) const override { ++synchronizations; }
  // Every operation is finished when it returns, so events, which autograd waits for, have nothing to record.
  void record(void**, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return DEVICES; }
};
const bool registered = [] {
  c10::SetAllocator(SIM, &Memory::instance());
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();

// --- operations ------------------------------------------------------------------------------------------------------

ScalarType checked(std::optional<ScalarType> dtype) {
  TORCH_CHECK_TYPE(!without_float64 || dtype != at::kDouble, "sim doesn't support float64");
  return dtype.value_or(at::kFloat);
}

Tensor empty(IntArrayRef size, std::optional<ScalarType> dtype, std::optional<c10::Layout>, std::optional<Device> device,
             std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  const c10::DeviceGuard guard(*device);
  return at::detail::empty_generic(size, &Memory::instance(), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   checked(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<ScalarType> dtype, std::optional<c10::Layout>,
                     std::optional<Device> device, std::optional<bool>) {
  const c10::DeviceGuard guard(*device);
  return at::detail::empty_strided_generic(
      size, stride, &Memory::instance(), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), checked(dtype));
}

// The same memory as a CPU tensor, for copies.
Tensor host(const Tensor& x) {
  if (x.is_cpu()) return x;
  return at::from_blob(x.mutable_data_ptr(), x.sizes(), x.strides(), x.options().device(at::kCPU));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  host(to).copy_(host(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

c10::Scalar local_scalar(const Tensor& x) { return at::_local_scalar_dense(host(x)); }

// Round float32 to 10 bits of mantissa, ties to even.
Tensor with_ten_bits(const Tensor& x) {
  const Tensor bits = host(x).contiguous().view(at::kInt);
  const Tensor rounded = bits.add(0xFFF).add(bits.bitwise_right_shift(13).bitwise_and(1)).bitwise_and(~0x1FFF);
  return rounded.view(at::kFloat).to(x.device());
}

const std::set<std::string> PRODUCTS{"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"};
const std::set<std::string> INDEXING{"aten::index", "aten::index_put_", "aten::_index_put_impl_"};

void by_cpu_kernel(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const std::string& name = op.schema().name();
  TORCH_CHECK_NOT_IMPLEMENTED(!chosen("SIM_WITHOUT", name), "Could not run '", name, "' on the sim device.");
  std::optional<Device> seen;
  const auto check = [&](const Tensor& x) {
    if (!x.defined() || (x.is_cpu() && x.dim() == 0)) return;
    TORCH_CHECK(!seen || *seen == x.device(), name, " expects all tensors on one device, and found ", *seen, " and ",
                x.device());
    seen = x.device();
  };
  const size_t count = op.schema().arguments().size();
  for (size_t place = 0; place < count; ++place) {
    c10::IValue& argument = torch::jit::peek(*stack, place, count);
    if (argument.isTensor()) {
      check(argument.toTensor());
    } else if (argument.isTensorList() && INDEXING.count(name) == 0) {
      for (const Tensor& x : argument.toTensorVector()) check(x);
    }
    const bool is_added = place == 0 && name.find("add") != std::string::npos;
    if (rounded_products && PRODUCTS.count(name) > 0 && argument.isTensor() && !is_added &&
        argument.toTensor().scalar_type() == at::kFloat && op.schema().arguments()[place].name() != "out") {
      argument = with_ten_bits(argument.toTensor());
    }
  }
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_cpu_kernel>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("resize_", &at::native::resize_);
  m.impl("set_.source_Storage", &at::native::set_);
  m.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
  // Otherwise torch composes it of smaller operations, each rounded to the dtype of the input.
  m.impl("native_layer_norm", torch::CppFunction::makeFromBoxedFunction<&by_cpu_kernel>());
}

#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define FLOAT32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  using namespace at::autocast;
  LOWER(mm) LOWER(bmm) LOWER(addmm) LOWER(baddbmm) LOWER(matmul) LOWER(linear)
  FLOAT32(layer_norm) FLOAT32(native_layer_norm) FLOAT32(pow, Tensor_Scalar)
  KERNEL_PRIVATEUSEONE(softmax, int, fp32_set_opt_dtype)
}

TORCH_LIBRARY(sim, m) {
  m.def("synchronizations", [] { return synchronizations.load(); });
}

}  // namespace
