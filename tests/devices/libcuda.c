// A libcuda without a GPU, for tests of what the engine makes of drivers: missing ones, broken ones, and a working one
// whose "GPU memory" is the host's. What is queued runs as late as it may, or, of the second queue with LIBCUDA_EAGER
// set, as early as it may, so that what is not waited for shows; a call that breaks the driver's rules ends the process.
//
// Compiled with -DPARTS=1 (cuInit only), 2 (what tells of devices) or 3 (everything), and with the answers to give:
// INIT (of cuInit), VERSION, COUNT, CAPABILITY (such as 80).

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef PARTS
#define PARTS 0
#endif
#ifndef INIT
#define INIT 0
#endif
#ifndef VERSION
#define VERSION 13000
#endif
#ifndef COUNT
#define COUNT 1
#endif
#ifndef CAPABILITY
#define CAPABILITY 80
#endif

#if PARTS >= 1
int cuInit(unsigned flags) { return flags ? 1 : INIT; }
#else
int unrelated(void) { return 0; }
#endif

#if PARTS >= 2
int cuDriverGetVersion(int* version) { *version = VERSION; return 0; }
int cuDeviceGetCount(int* count) { *count = COUNT; return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return ordinal < COUNT ? 0 : 101; }
int cuDeviceGetName(char* name, int length, int device) { snprintf(name, length, "Fake GPU %d", device); return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = (size_t)64 << 20; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    switch (attribute) {
    case 16: *value = 4; return 0;              // multiprocessors
    case 75: *value = CAPABILITY / 10; return 0;
    case 76: *value = CAPABILITY % 10; return 0;
    case 97: *value = 99 << 10; return 0;       // shared memory that a block may ask for
    default: return 1;
    }
}
#endif

#if PARTS >= 3
#define CAPACITY ((size_t)64 << 20)
#define MOST 64

static void rule(int kept, const char* what) {
    if (!kept) {
        fprintf(stderr, "libcuda: broken rule: %s\n", what);
        abort();
    }
}

static int context, retained, failed;
static __thread int current;
static void hurry(void);
#define ENTER() do { if (!current) return 201; hurry(); if (failed) return failed; } while (0)

// Blocks of memory.
static struct { char* at; size_t bytes; int host; } blocks[MOST];
static size_t in_use;

static char* block(uint64_t address, size_t bytes, const char* what) {
    for (int i = 0; i < MOST; i++)
        if (blocks[i].at && (char*)address >= blocks[i].at && (char*)address + bytes <= blocks[i].at + blocks[i].bytes)
            return (char*)address;
    rule(0, what);
    return NULL;
}

static int add(size_t bytes, int host, void** address) {
    if (!bytes) return 1;
    if (!host && in_use + bytes > CAPACITY) return 2;
    for (int i = 0; i < MOST; i++)
        if (!blocks[i].at) {
            blocks[i].at = aligned_alloc(256, (bytes + 255) / 256 * 256);
            memset(blocks[i].at, 0xff, bytes);
            blocks[i].bytes = bytes;
            blocks[i].host = host;
            if (!host) in_use += bytes;
            *address = blocks[i].at;
            return 0;
        }
    return 2;
}

static int pending(void);

static int take(void* address, int host) {
    rule(!pending(), "memory is freed while work is queued");
    for (int i = 0; i < MOST; i++)
        if (blocks[i].at == address && blocks[i].host == host) {
            if (!host) in_use -= blocks[i].bytes;
            free(blocks[i].at);
            blocks[i].at = NULL;
            return 0;
        }
    rule(0, "freed what is not a block");
    return 1;
}

// Queues: what is to be done, in order. An event counts its recordings, queued and done.
typedef struct { int live, recorded, done; } Event;
typedef struct { char name[64]; int dynamic; } Function;
typedef struct {
    enum { COPY, FILL, RECORD, WAIT, LAUNCH } kind;
    char *to, *from;
    size_t bytes;
    int value;
    Event* event;
    Function* function;
    struct { uint64_t input; uint32_t count; uint32_t factor; uint64_t output; } params;
} Operation;
typedef struct { int live, count; Operation operations[16]; } Graph;
typedef struct { int live, begin, end; Graph* capture; Operation queue[1024]; } Stream;

static Event events[MOST];
static Stream streams[MOST];
static Graph graphs[MOST];
static Function functions[MOST];
static int function_count, module_count;

static int pending(void) {
    for (int i = 0; i < MOST; i++)
        if (streams[i].live && streams[i].begin < streams[i].end) return 1;
    return 0;
}

static Operation* push(Stream* stream, int kind) {
    rule(stream && stream->live, "a queue that is not one");
    if (stream->capture) {
        rule(kind == COPY || kind == FILL || kind == LAUNCH, "an event in a graph");
        rule(stream->capture->count < 16, "too much is captured");
        Operation* operation = &stream->capture->operations[stream->capture->count++];
        memset(operation, 0, sizeof *operation);
        operation->kind = kind;
        return operation;
    }
    if (stream->begin == stream->end) stream->begin = stream->end = 0;
    rule(stream->end < 1024, "too much is queued");
    Operation* operation = &stream->queue[stream->end++];
    memset(operation, 0, sizeof *operation);
    operation->kind = kind;
    return operation;
}

// Does the first operation of a queue; 0 if it must wait for an event.
static int step(Stream* stream) {
    Operation* operation = &stream->queue[stream->begin];
    switch (operation->kind) {
    case COPY: memcpy(operation->to, operation->from, operation->bytes); break;
    case FILL: memset(operation->to, operation->value, operation->bytes); break;
    case RECORD: operation->event->done = operation->value; break;
    case WAIT:
        if (operation->event->done < operation->value) return 0;
        break;
    case LAUNCH:
        if (!strcmp(operation->function->name, "fault")) { failed = 700; break; }
        // The kernel: the sum of some bytes, times a factor.
        uint64_t sum = 0;
        uint8_t* input = (uint8_t*)block(operation->params.input, operation->params.count, "a kernel's input");
        for (uint32_t i = 0; i < operation->params.count; i++) sum += input[i];
        *(uint64_t*)block(operation->params.output, 8, "a kernel's output") = sum * operation->params.factor;
    }
    stream->begin++;
    return 1;
}

static void hurry(void) {
    Stream* second = &streams[1];
    if (getenv("LIBCUDA_EAGER"))
        while (second->live && second->begin < second->end && step(second)) {}
}

// Does what must be done before a queue is empty (or, with an event, before that is done), and no more.
static int finish(Stream* stream, Event* event, int value) {
    while (event ? event->done < value : stream->begin < stream->end) {
        int moved = 0;
        if (stream && stream->begin < stream->end) moved = step(stream);
        for (int i = 0; !moved && i < MOST; i++)
            if (streams[i].live && &streams[i] != stream && streams[i].begin < streams[i].end) moved = step(&streams[i]);
        rule(moved, "a deadlock");
    }
    return failed;
}

int cuDevicePrimaryCtxRetain(void** result, int device) { retained++; *result = &context; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) {
    retained--;
    for (int i = 0; i < MOST; i++)
        rule(!blocks[i].at && !events[i].live && !streams[i].live && !graphs[i].live, "the context is released before what is in it");
    rule(!module_count, "a module was not unloaded");
    return 0;
}
int cuCtxSetCurrent(void* ctx) { rule(ctx == &context && retained, "a context that is not one"); current = 1; return 0; }

int cuMemAlloc_v2(uint64_t* address, size_t bytes) { ENTER(); return add(bytes, 0, (void**)address); }
int cuMemFree_v2(uint64_t address) { ENTER(); return take((void*)address, 0); }
int cuMemHostAlloc(void** address, size_t bytes, unsigned flags) { ENTER(); return add(bytes, 1, address); }
int cuMemFreeHost(void* address) { ENTER(); return take(address, 1); }
int cuMemGetInfo_v2(size_t* available, size_t* total) {
    ENTER();
    *available = CAPACITY - in_use;
    *total = CAPACITY;
    return 0;
}

static int copy(char* to, char* from, size_t bytes, Stream* stream, int host) {
    rule(!host || !stream->capture, "the host's memory in a graph");
    Operation* operation = push(stream, COPY);
    operation->to = to;
    operation->from = from;
    operation->bytes = bytes;
    return 0;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, void* from, size_t bytes, Stream* stream) {
    ENTER();
    for (int i = 0; i < MOST; i++)
        if (blocks[i].at == from && blocks[i].host) return copy(block(to, bytes, "an upload"), from, bytes, stream, 1);
    // Other memory is taken at once.
    char* taken = malloc(bytes);
    memcpy(taken, from, bytes);
    return copy(block(to, bytes, "an upload"), taken, bytes, stream, 1);
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, Stream* stream) {
    ENTER();
    return copy(to, block(from, bytes, "a download"), bytes, stream, 1);
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Stream* stream) {
    ENTER();
    return copy(block(to, bytes, "a copy"), block(from, bytes, "a copy"), bytes, stream, 0);
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, Stream* stream) {
    ENTER();
    Operation* operation = push(stream, FILL);
    operation->to = block(to, bytes, "a fill");
    operation->value = value;
    operation->bytes = bytes;
    return 0;
}

int cuStreamCreate(Stream** stream, unsigned flags) {
    ENTER();
    for (int i = 0; i < MOST; i++)
        if (!streams[i].live) { *stream = &streams[i]; memset(*stream, 0, sizeof **stream); (*stream)->live = 1; return 0; }
    return 2;
}
int cuStreamDestroy_v2(Stream* stream) { ENTER(); rule(!stream->capture, "a queue is captured"); stream->live = 0; return 0; }
int cuStreamSynchronize(Stream* stream) { ENTER(); rule(stream && stream->live && !stream->capture, "a queue"); return finish(stream, NULL, 0); }
int cuStreamBeginCapture_v2(Stream* stream, unsigned mode) {
    ENTER();
    rule(stream && stream->live && !stream->capture && mode == 2, "a queue to capture");
    for (int i = 0; i < MOST; i++)
        if (!graphs[i].live) { stream->capture = &graphs[i]; memset(&graphs[i], 0, sizeof graphs[i]); graphs[i].live = 1; return 0; }
    return 2;
}
int cuStreamEndCapture(Stream* stream, Graph** graph) {
    ENTER();
    rule(stream && stream->capture, "the end of a capture that did not begin");
    *graph = stream->capture;
    stream->capture = NULL;
    return 0;
}
int cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long flags) {
    ENTER();
    rule(graph && graph->live && !flags, "a graph");
    for (int i = 0; i < MOST; i++)
        if (!graphs[i].live) { graphs[i] = *graph; *executable = &graphs[i]; return 0; }
    return 2;
}
int cuGraphDestroy(Graph* graph) { ENTER(); rule(graph && graph->live, "a graph"); graph->live = 0; return 0; }
int cuGraphExecDestroy(Graph* graph) { return cuGraphDestroy(graph); }
int cuGraphLaunch(Graph* graph, Stream* stream) {
    ENTER();
    rule(graph && graph->live && !stream->capture, "a graph to replay");
    for (int i = 0; i < graph->count; i++) *push(stream, graph->operations[i].kind) = graph->operations[i];
    return 0;
}
int cuStreamWaitEvent(Stream* stream, Event* event, unsigned flags) {
    ENTER();
    rule(event && event->live, "an event");
    Operation* operation = push(stream, WAIT);
    operation->event = event;
    operation->value = event->recorded;
    return 0;
}
int cuEventCreate(Event** event, unsigned flags) {
    ENTER();
    for (int i = 0; i < MOST; i++)
        if (!events[i].live) { *event = &events[i]; memset(*event, 0, sizeof **event); (*event)->live = 1; return 0; }
    return 2;
}
int cuEventDestroy_v2(Event* event) { ENTER(); event->live = 0; return 0; }
int cuEventRecord(Event* event, Stream* stream) {
    ENTER();
    rule(event && event->live, "an event");
    Operation* operation = push(stream, RECORD);
    operation->event = event;
    operation->value = ++event->recorded;
    return 0;
}
int cuEventSynchronize(Event* event) { ENTER(); rule(event && event->live, "an event"); return finish(NULL, event, event->recorded); }

int cuModuleLoadData(void** module, const void* image) {
    ENTER();
    rule((uintptr_t)image % 8 == 0, "an image that is not aligned");
    if (memcmp(image, "\177ELF", 4)) return 200;
    module_count++;
    *module = functions;
    return 0;
}
int cuModuleUnload(void* module) { ENTER(); module_count--; return 0; }
int cuModuleGetFunction(Function** function, void* module, const char* name) {
    ENTER();
    if (strcmp(name, "sum") && strcmp(name, "fault")) return 500;
    *function = &functions[function_count++];
    snprintf((*function)->name, 64, "%s", name);
    (*function)->dynamic = 47 << 10;
    return 0;
}
int cuFuncGetAttribute(int* value, int attribute, Function* function) {
    ENTER();
    switch (attribute) {
    case 0: *value = 1024; return 0;            // threads
    case 1: *value = 1024; return 0;            // shared memory
    case 3: *value = 0; return 0;               // local memory
    case 4: *value = 32; return 0;              // registers
    case 8: *value = function->dynamic; return 0;
    default: return 1;
    }
}
int cuFuncSetAttribute(Function* function, int attribute, int value) {
    ENTER();
    if (attribute != 8 || value > 98 << 10) return 1;
    function->dynamic = value;
    return 0;
}
int cuLaunchKernel(Function* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, Stream* stream, void** params, void** extra) {
    ENTER();
    rule(params && !extra && gx && gy && gz, "a launch without parameters or blocks");
    if (bx * by * bz > 1024 || (int)shared > function->dynamic) return 1;
    Operation* operation = push(stream, LAUNCH);
    operation->function = function;
    memcpy(&operation->params, params[0], sizeof operation->params);
    return 0;
}
// The launch attributes that clusters need (CUlaunchConfig, CUlaunchAttribute).
typedef struct {
    unsigned id;
    char padding[4];
    unsigned value[16];
} Attribute;
typedef struct {
    unsigned grid[3], block[3], shared;
    Stream* stream;
    Attribute* attributes;
    unsigned count;
} Config;
int cuLaunchKernelEx(const Config* config, Function* function, void** params, void** extra) {
    rule(config->count == 1 && config->attributes->id == 4, "an attribute that is no cluster's");
    const unsigned *grid = config->grid, *block = config->block, *cluster = config->attributes->value;
    for (int axis = 0; axis < 3; ++axis)
        if (!cluster[axis] || grid[axis] % cluster[axis]) return 912;
    return cuLaunchKernel(function, grid[0], grid[1], grid[2], block[0], block[1], block[2], config->shared, config->stream,
                          params, extra);
}
// Tensor maps are for the copy engines of GPUs that this is none of.
int cuTensorMapEncodeTiled(void) { return 801; }
int cuTensorMapEncodeIm2col(void) { return 801; }
int cuLaunchCooperativeKernel(Function* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                              unsigned bz, unsigned shared, Stream* stream, void** params) {
    if (gx * gy * gz > 4) return 720;
    return cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, stream, params, NULL);
}
#endif
