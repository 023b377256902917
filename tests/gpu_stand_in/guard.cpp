// What a CPU build of PyTorch lacks to accept CUDA devices: a guard, hooks, generators and pinned memory.
//
// Loaded before PyTorch it makes `torch.device("cuda:1")` a device that exists. It computes nothing: that is the part
// of stand_in.py.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstdlib>
#include <map>
#include <mutex>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

constexpr DeviceIndex kDevices = 2;
thread_local DeviceIndex current = 0;

DeviceIndex exchange(DeviceIndex device) {
  const DeviceIndex before = current;
  if (device >= 0) {
    TORCH_CHECK(device < kDevices, "CUDA error: invalid device ordinal");
    current = device;
  }
  return before;
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr DeviceType static_type = DeviceType::CUDA;
  DeviceType type() const override { return static_type; }
  Device exchangeDevice(Device d) const override { return Device(static_type, exchange(d.index())); }
  Device getDevice() const override { return Device(static_type, current); }
  void setDevice(Device d) const override { exchange(d.index()); }
  void uncheckedSetDevice(Device d) const noexcept override { current = d.index() < 0 ? current : d.index(); }
  Stream getStream(Device d) const override {
    return Stream(Stream::DEFAULT, Device(static_type, d.index() < 0 ? current : d.index()));
  }
  Stream getDefaultStream(Device d) const override { return getStream(d); }
  Stream getNewStream(Device d, int) const override { return getStream(d); }
  Stream exchangeStream(Stream s) const override { return s; }
  DeviceIndex deviceCount() const noexcept override { return kDevices; }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
};

// A generator that says it is on the GPU. Operators of the CPU refuse it; stand_in.py passes its state to one of theirs.
struct Generator final : at::CPUGeneratorImpl {
  explicit Generator(DeviceIndex device) {
    device_ = Device(DeviceType::CUDA, device < 0 ? current : device);
    key_set_ = c10::DispatchKeySet(c10::DispatchKey::CUDA);
  }
  Generator* clone_impl() const override {
    auto* copy = new Generator(device_.index());
    copy->set_state(*get_state());
    return copy;
  }
};

// Memory of the host that knows it is pinned.
struct Pinned final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = std::aligned_alloc(64, (bytes + 64) / 64 * 64);
    std::lock_guard<std::mutex> lock(mutex());
    blocks()[static_cast<char*>(data)] = bytes;
    return {data, data, &release, Device(DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
  static void release(void* data) {
    std::lock_guard<std::mutex> lock(mutex());
    blocks().erase(static_cast<char*>(data));
    std::free(data);
  }
  static bool holds(const void* data) {
    std::lock_guard<std::mutex> lock(mutex());
    const auto* place = static_cast<const char*>(data);
    auto after = blocks().upper_bound(const_cast<char*>(place));
    if (after == blocks().begin()) return false;
    --after;
    return place < after->first + after->second;
  }
  // Never destroyed: tensors may be released after all else at the end of the process.
  static std::map<char*, size_t>& blocks() {
    static auto* all = new std::map<char*, size_t>;
    return *all;
  }
  static std::mutex& mutex() {
    static auto* one = new std::mutex;
    return *one;
  }
};

struct StandInHooks final : at::CUDAHooksInterface {
  explicit StandInHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return kDevices; }
  int getNumGPUs() const override { return kDevices; }
  DeviceIndex current_device() const override { return current; }
  DeviceIndex getCurrentDevice() const override { return current; }
  DeviceIndex exchangeDevice(DeviceIndex d) const override { return exchange(d); }
  DeviceIndex maybeExchangeDevice(DeviceIndex d) const override { return exchange(d); }
  void setCurrentDevice(DeviceIndex d) const override { exchange(d); }
  void deviceSynchronize(DeviceIndex) const override {}
  long versionCuDNN() const override { return 0; }
  long versionRuntimeCuDNN() const override { return 0; }
  bool isPinnedPtr(const void* data) const override { return Pinned::holds(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    static auto* allocator = new Pinned;
    return allocator;
  }
  at::Generator getNewGenerator(DeviceIndex d) const override { return at::make_generator<Generator>(d); }
};

}  // namespace

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
}
namespace at {
using StandIn = ::StandInHooks;
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, StandIn)
}
