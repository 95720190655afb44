// The buffers that llama.cpp reserves for a model, on devices that do not exist.
//
// Devices that answer as CUDA does (alignment, padded rows, flash attention and its 16-bit copies, batches from 32 rows
// on taken from the host, pipelines) are registered with ggml; llama.cpp's memory fit (no_alloc) then measures without
// allocating. The file may be a header with a hole for its data. Prints {"CUDA0": [weights, cache, compute], …}.
//
//   pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36     # holds llama.cpp's source
//   cmake -B build vendor/llama.cpp && cmake --build build --target llama
//   g++ -std=c++17 llama_cpp_buffers.cpp -o buffers -I llama.cpp/{include,src,ggml/include,ggml/src} -L build/bin
//       -lllama -lggml -lggml-base
//   ./buffers MODEL.gguf 24000,12000 c=8192 np=1 ngl=999 ncmoe=0 nkvo=0 ts=1,1 ctk=f16 ctv=f16 out=1 swafull=0 ub=512

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "llama-ext.h"
#include "llama.h"

namespace {

constexpr int kPaddedRow = 512, kOffloadedBatch = 32, kMiB = 20;

struct Device {
    std::string name;
    size_t bytes;
    ggml_backend_buffer_type buffers;
    ggml_backend_device device;
};
std::vector<Device *> devices;
ggml_backend_reg registry;

Device * of(ggml_backend_dev_t device) { return static_cast<Device *>(device->context); }

// ggml-cuda.cu, fattn.cu: padded rows of quantized tensors; K and V in 16 bits behind what attention writes.
size_t alloc_size(ggml_backend_buffer_type_t, const ggml_tensor * t) {
    size_t size = ggml_nbytes(t);
    if (t->op == GGML_OP_FLASH_ATTN_EXT) {
        const ggml_tensor *q = t->src[0], *k = t->src[1], *v = t->src[2];
        const bool quantized = ggml_is_quantized(k->type) || ggml_is_quantized(v->type);
        const bool vector_kernel = quantized && q->ne[1] <= 2 && q->ne[0] <= 256 && q->ne[0] % 64 == 0 &&
                                   q->ne[0] != 192 && k->ne[1] % 256 == 0;
        const bool same_view = v->view_src == k->view_src && v->view_offs == k->view_offs;
        const bool one = v->view_src && (v->view_src == k || same_view);
        if (!vector_kernel && k->type != GGML_TYPE_F16) size = GGML_PAD(size, 128) + ggml_nelements(k) * 2;
        if (!vector_kernel && v->type != GGML_TYPE_F16 && !one) size = GGML_PAD(size, 128) + ggml_nelements(v) * 2;
    }
    if (ggml_is_quantized(t->type) && t->ne[0] % kPaddedRow) {
        size += ggml_row_size(t->type, kPaddedRow - t->ne[0] % kPaddedRow);
    }
    return size;
}

// Recurrent states are allocated even by the memory fit: they get memory of the host.
ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    auto * buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size + 1024);
    buffer->buft = type;
    return buffer;
}

int64_t rows(const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_GET_ROWS: return 0;
        case GGML_OP_MUL_MAT: return op->ne[1];
        case GGML_OP_MUL_MAT_ID:
        case GGML_OP_ROPE: return op->ne[2];
        default: return ggml_nrows(op);
    }
}

ggml_guid guid = {1};

ggml_backend_t start(ggml_backend_dev_t device, const char *) {
    auto * backend = new ggml_backend{};
    backend->guid = &guid;
    backend->device = device;
    backend->iface.get_name = [](ggml_backend_t b) { return of(b->device)->name.c_str(); };
    backend->iface.free = [](ggml_backend_t b) { delete b; };
    backend->iface.synchronize = [](ggml_backend_t) {};
    backend->iface.graph_compute = [](ggml_backend_t, ggml_cgraph *) { return GGML_STATUS_FAILED; };
    backend->iface.event_record = backend->iface.event_wait = [](ggml_backend_t, ggml_backend_event_t) {};
    return backend;
}

void add_device(size_t bytes) {
    auto * d = new Device{"CUDA" + std::to_string(devices.size()), bytes, {}, {}};
    d->buffers.iface.get_name = [](ggml_backend_buffer_type_t t) { return of(t->device)->name.c_str(); };
    d->buffers.iface.alloc_buffer = alloc_buffer;
    d->buffers.iface.get_alignment = [](ggml_backend_buffer_type_t) -> size_t { return 128; };
    d->buffers.iface.get_alloc_size = alloc_size;
    d->buffers.device = &d->device;
    auto & i = d->device.iface;
    i.get_name = i.get_description = [](ggml_backend_dev_t v) { return of(v)->name.c_str(); };
    i.get_memory = [](ggml_backend_dev_t v, size_t * free, size_t * total) { *free = *total = of(v)->bytes; };
    i.get_type = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; };
    i.get_props = [](ggml_backend_dev_t v, ggml_backend_dev_props * p) {
        *p = {};
        p->name = p->description = p->device_id = of(v)->name.c_str();
        p->type = GGML_BACKEND_DEVICE_TYPE_GPU;
        p->memory_free = p->memory_total = of(v)->bytes;
        p->caps.async = p->caps.host_buffer = p->caps.events = p->caps.mmap_support = true;
    };
    i.init_backend = start;
    i.get_buffer_type = [](ggml_backend_dev_t v) { return &of(v)->buffers; };
    i.get_host_buffer_type = [](ggml_backend_dev_t) { return ggml_backend_cpu_buffer_type(); };
    i.supports_op = [](ggml_backend_dev_t, const ggml_tensor *) { return true; };
    i.supports_buft = [](ggml_backend_dev_t v, ggml_backend_buffer_type_t t) { return t == &of(v)->buffers; };
    i.offload_op = [](ggml_backend_dev_t, const ggml_tensor * op) { return rows(op) >= kOffloadedBatch; };
    i.event_new = [](ggml_backend_dev_t v) { return new ggml_backend_event{v, nullptr}; };
    i.event_free = [](ggml_backend_dev_t, ggml_backend_event_t e) { delete e; };
    i.event_synchronize = [](ggml_backend_dev_t, ggml_backend_event_t) {};
    d->device.reg = &registry;
    d->device.context = d;
    devices.push_back(d);
}

std::vector<double> numbers(const std::string & text) {
    std::vector<double> found;
    std::stringstream stream(text);
    for (std::string part; std::getline(stream, part, ',');) found.push_back(std::stod(part));
    return found;
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc < 3) return std::puts("usage: buffers MODEL.gguf MIB[,MIB] [option=value ...]"), 2;
    std::map<std::string, std::string> given;
    for (const std::string & word : std::vector<std::string>(argv + 3, argv + argc)) {
        const size_t sign = std::min(word.find('='), word.size() - 1);
        given[word.substr(0, sign)] = word.substr(sign + 1);
    }
    auto number = [&](const char * name, long missing) { return given.count(name) ? std::stol(given[name]) : missing; };
    for (double mib : numbers(argv[2])) add_device(static_cast<size_t>(mib) << kMiB);
    registry.api_version = GGML_BACKEND_API_VERSION;
    registry.iface.get_name = [](ggml_backend_reg_t) { return "none"; };
    registry.iface.get_device_count = [](ggml_backend_reg_t) { return devices.size(); };
    registry.iface.get_device = [](ggml_backend_reg_t, size_t i) { return &devices[i]->device; };
    registry.iface.get_proc_address = [](ggml_backend_reg_t, const char *) -> void * { return nullptr; };
    ggml_backend_register(&registry);
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();

    auto model_params = llama_model_default_params();
    model_params.no_alloc = true;
    model_params.load_mode = LLAMA_LOAD_MODE_NONE;
    model_params.n_gpu_layers = number("ngl", 999);
    std::vector<float> shares(128, 0);
    const auto split = numbers(given["ts"]);
    for (size_t i = 0; i < split.size(); i++) shares[i] = split[i];
    if (!split.empty()) model_params.tensor_split = shares.data();
    std::vector<std::string> patterns;
    for (long i = 0; i < number("ncmoe", 0); i++) {
        patterns.push_back("blk\\." + std::to_string(i) + "\\.ffn_(up|down|gate|gate_up)_(ch|)exps");
    }
    std::vector<llama_model_tensor_buft_override> moved;
    for (auto & pattern : patterns) moved.push_back({pattern.c_str(), ggml_backend_cpu_buffer_type()});
    moved.push_back({nullptr, nullptr});
    model_params.tensor_buft_overrides = patterns.empty() ? nullptr : moved.data();
    auto * model = llama_model_load_from_file(argv[1], model_params);
    if (model == nullptr) return std::puts("the model cannot be loaded"), 1;

    const std::map<std::string, ggml_type> types = {
        {"", GGML_TYPE_F16}, {"f16", GGML_TYPE_F16}, {"bf16", GGML_TYPE_BF16}, {"q8_0", GGML_TYPE_Q8_0},
        {"q4_0", GGML_TYPE_Q4_0},
    };
    auto params = llama_context_default_params();
    params.n_ctx = number("c", 8192);
    params.n_batch = 2048;
    params.n_ubatch = number("ub", 512);
    params.n_seq_max = number("np", 1);
    params.n_outputs_max = number("out", params.n_seq_max);
    params.offload_kqv = !number("nkvo", 0);
    params.swa_full = number("swafull", 0);
    params.kv_unified = true;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.type_k = types.at(given["ctk"]);
    params.type_v = types.at(given["ctv"]);
    auto * context = llama_init_from_model(model, params);
    if (context == nullptr) return std::puts("the context cannot be made"), 1;

    std::map<std::string, std::vector<size_t>> held;
    for (const auto & [type, bytes] : llama_get_memory_breakdown(context)) {
        auto & sums = held[ggml_backend_buft_is_host(type) ? "Host" : ggml_backend_buft_name(type)];
        sums.resize(3);
        sums[0] += bytes.model, sums[1] += bytes.context, sums[2] += bytes.compute;
    }
    const char * between = "{";
    for (const auto & [name, sums] : held) {
        std::printf("%s\"%s\": [%zu, %zu, %zu]", between, name.c_str(), sums[0], sums[1], sums[2]);
        between = ", ";
    }
    std::puts("}");
}
