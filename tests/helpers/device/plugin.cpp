// A device for tests, as a plug-in of Paddle's CPU build: a GPU in all that matters to code that never saw one.
//
// Its memory is unreadable and unwritable but for the plug-in's own copies: a pointer into it that the host follows is a
// segfault. Paddle has no kernels for it, so each operation copies its inputs to the host, computes there, and copies
// the results back. Other copies to the host are reads of the program: on a GPU each would wait for all work before it.
#include <dlfcn.h>
#include <execinfo.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>

#include "paddle/phi/backends/device_ext.h"

// What tests read and reset; helpers/device/__init__.py has the same fields in the same order.
struct Counters {
    int64_t bytes;  // of live tensors
    int64_t peak_bytes;  // the most that there were
    int64_t copies_to_device;  // all copies
    int64_t copies_to_host;
    int64_t copies_within;
    int64_t reads;  // copies to the host that no operation needed
};
extern "C" __attribute__((visibility("default"))) Counters test_device_counters;
Counters test_device_counters{};
// Called at each read, if tests have set it.
extern "C" __attribute__((visibility("default"))) void (*test_device_on_read)();
void (*test_device_on_read)() = nullptr;

namespace {

std::mutex mutex;  // over the counters, the blocks and their protection
std::map<char*, size_t> blocks;  // start -> bytes asked for
const size_t page = sysconf(_SC_PAGESIZE);

size_t whole_pages(size_t bytes) { return (std::max<size_t>(bytes, 1) + page - 1) / page * page; }

// The block of device memory in which an address lies, readable and writable while this lives; none for host memory.
class Opened {
  public:
    explicit Opened(const void* address) {
        auto after = blocks.upper_bound(const_cast<char*>(static_cast<const char*>(address)));
        if (after == blocks.begin()) return;
        auto block = std::prev(after);
        if (address >= block->first + whole_pages(block->second)) return;
        start = block->first;
        length = whole_pages(block->second);
        mprotect(start, length, PROT_READ | PROT_WRITE);
    }
    ~Opened() {
        if (start) mprotect(start, length, PROT_NONE);
    }
    Opened(const Opened&) = delete;
    Opened& operator=(const Opened&) = delete;

  private:
    char* start = nullptr;
    size_t length = 0;
};

C_Status copy(void* to, const void* from, size_t bytes) {
    Opened source(from), target(to);
    memmove(to, from, bytes);
    return C_SUCCESS;
}

// Whether a return address lies in Paddle's function that brings the inputs of an operation to where its kernel runs.
bool prepares_inputs(void* address) {
    static std::unordered_map<void*, bool> known;  // a look-up takes a millisecond
    auto found = known.find(address);
    if (found != known.end()) return found->second;
    Dl_info function;
    bool answer = dladdr(address, &function) && function.dli_sname && strstr(function.dli_sname, "TransDataPlace");
    return known[address] = answer;
}

bool copies_for_an_operation() {
    void* callers[16];
    int count = backtrace(callers, 16);
    return std::any_of(callers, callers + count, prepares_inputs);
}

C_Status to_device(const C_Device, void* to, const void* from, size_t bytes) {
    std::lock_guard<std::mutex> guard(mutex);
    test_device_counters.copies_to_device++;
    return copy(to, from, bytes);
}

C_Status to_host(const C_Device, void* to, const void* from, size_t bytes) {
    bool read;
    {
        std::lock_guard<std::mutex> guard(mutex);
        read = !copies_for_an_operation();
        test_device_counters.copies_to_host++;
        test_device_counters.reads += read;
        copy(to, from, bytes);
    }
    if (read && test_device_on_read)
        test_device_on_read();  // it waits for Python, whose threads may wait for the mutex
    return C_SUCCESS;
}

C_Status within(const C_Device, void* to, const void* from, size_t bytes) {
    std::lock_guard<std::mutex> guard(mutex);
    test_device_counters.copies_within++;
    return copy(to, from, bytes);
}

C_Status set_memory(const C_Device, void* to, unsigned char value, size_t bytes) {
    std::lock_guard<std::mutex> guard(mutex);
    Opened target(to);
    memset(to, value, bytes);
    return C_SUCCESS;
}

C_Status allocate(const C_Device, void** address, size_t bytes) {
    void* made = mmap(nullptr, whole_pages(bytes), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED) return C_FAILED;
    std::lock_guard<std::mutex> guard(mutex);
    blocks[static_cast<char*>(made)] = bytes;
    test_device_counters.bytes += bytes;
    test_device_counters.peak_bytes = std::max(test_device_counters.peak_bytes, test_device_counters.bytes);
    *address = made;
    return C_SUCCESS;
}

C_Status deallocate(const C_Device, void* address, size_t) {
    std::lock_guard<std::mutex> guard(mutex);
    auto block = blocks.find(static_cast<char*>(address));
    if (block == blocks.end()) return C_ERROR;
    test_device_counters.bytes -= block->second;
    munmap(address, whole_pages(block->second));
    blocks.erase(block);
    return C_SUCCESS;
}

// Everything is done when it is asked for, so there is nothing to wait for and one stream is like another.
C_Status nothing() { return C_SUCCESS; }
C_Status nothing_with(const C_Device) { return C_SUCCESS; }
C_Status nothing_on(const C_Device, C_Stream) { return C_SUCCESS; }
C_Status nothing_at(const C_Device, C_Event) { return C_SUCCESS; }
C_Status nothing_until(const C_Device, C_Stream, C_Event) { return C_SUCCESS; }

C_Status create_stream(const C_Device, C_Stream* stream) {
    *stream = reinterpret_cast<C_Stream>(new char);
    return C_SUCCESS;
}
C_Status destroy_stream(const C_Device, C_Stream stream) {
    delete reinterpret_cast<char*>(stream);
    return C_SUCCESS;
}
C_Status create_event(const C_Device, C_Event* event) {
    *event = reinterpret_cast<C_Event>(new char);
    return C_SUCCESS;
}
C_Status destroy_event(const C_Device, C_Event event) {
    delete reinterpret_cast<char*>(event);
    return C_SUCCESS;
}
C_Status call_back(const C_Device device, C_Stream stream, C_Callback function, void* data) {
    C_Status status = C_SUCCESS;
    function(device, stream, data, &status);
    return status;
}

C_Status to_device_on(const C_Device device, C_Stream, void* to, const void* from, size_t bytes) {
    return to_device(device, to, from, bytes);
}
C_Status to_host_on(const C_Device device, C_Stream, void* to, const void* from, size_t bytes) {
    return to_host(device, to, from, bytes);
}
C_Status within_on(const C_Device device, C_Stream, void* to, const void* from, size_t bytes) {
    return within(device, to, from, bytes);
}

C_Status get_device(const C_Device device) {
    device->id = 0;
    return C_SUCCESS;
}
C_Status device_count(size_t* count) {
    *count = 1;
    return C_SUCCESS;
}
C_Status device_list(size_t* devices) {
    devices[0] = 0;
    return C_SUCCESS;
}
C_Status memory_stats(const C_Device, size_t* total, size_t* free) {
    *total = size_t{8} << 30;
    *free = *total - test_device_counters.bytes;
    return C_SUCCESS;
}
C_Status smallest_chunk(const C_Device, size_t* bytes) {
    *bytes = 1;  // so that the bytes counted are those of the tensors
    return C_SUCCESS;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) void InitPlugin(CustomRuntimeParams* parameters) {
    PADDLE_CUSTOM_RUNTIME_CHECK_VERSION(parameters);
    parameters->device_type = const_cast<char*>("test_device");
    parameters->sub_device_type = const_cast<char*>("");
    C_DeviceInterface* interface = parameters->interface;
    *interface = C_DeviceInterface{};
    interface->size = sizeof(C_DeviceInterface);

    interface->initialize = interface->finalize = nothing;
    interface->init_device = interface->deinit_device = interface->set_device = nothing_with;
    interface->get_device = get_device;
    interface->get_device_count = device_count;
    interface->get_device_list = device_list;

    interface->create_stream = create_stream;
    interface->destroy_stream = destroy_stream;
    interface->query_stream = interface->synchronize_stream = nothing_on;
    interface->stream_add_callback = call_back;
    interface->create_event = create_event;
    interface->destroy_event = destroy_event;
    interface->query_event = interface->synchronize_event = nothing_at;
    interface->record_event = interface->stream_wait_event = nothing_until;
    interface->synchronize_device = nothing_with;

    interface->device_memory_allocate = allocate;
    interface->device_memory_deallocate = deallocate;
    interface->device_memory_set = set_memory;
    interface->device_memory_stats = memory_stats;
    interface->device_min_chunk_size = smallest_chunk;
    interface->memory_copy_h2d = to_device;
    interface->memory_copy_d2h = to_host;
    interface->memory_copy_d2d = within;
    interface->async_memory_copy_h2d = to_device_on;
    interface->async_memory_copy_d2h = to_host_on;
    interface->async_memory_copy_d2d = within_on;
}
