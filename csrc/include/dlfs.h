/* dlfs.h: the whole contract between TypeScript and the native libraries libdlfs_cuda.so and libdlfs_cpu.so, which
 * export exactly these symbols. lib/native/symbols.generated.ts is generated from this file.
 *
 * Rules that hold for every function, unless its comment says otherwise
 * - Result: a dlfs_status. 0 is done, > 0 informative, < 0 an error that dlfs_last_error() describes. Results go
 *   through out-parameters, written only on success. No function prints, exits, aborts or lets an exception escape.
 * - Argument order: context, stream or object; outputs; inputs; workspace; sizes; scalars.
 * - Pointers marked DLFS_HOST are host memory read or written before the function returns (TypeScript passes a view).
 *   All other pointers are device addresses (of the backend's memory, host memory on the CPU backend) that must stay
 *   allocated until the stream has passed the call. "Nullable" says where NULL is allowed.
 * - Functions taking a stream are enqueued on it in order and return at once, with their scalar and DLFS_HOST
 *   arguments already copied, except functions named ..._sync. They may be captured in a graph, except ..._sync ones.
 *   An error that happens while a stream runs is sticky: the next synchronize or query of it reports it.
 * - Handles are integers carrying kind, slot and generation: a destroyed or foreign handle is DLFS_ERROR_HANDLE. A
 *   destroy call on work in flight waits for it. 0 is never a valid handle.
 * - Thread safety: every function may be called from any thread; calls on one stream must not overlap in time.
 * - Activations are NHWC, packed. Weights are KRSC: (out channels, kernel height, kernel width, in channels / groups).
 *   Shapes in comments are row-major, (N, H, W, C). Boxes are x1, y1, x2, y2 in pixels, with no +1.
 * - dtype arguments take dlfs_dtype. Parameters, statistics, losses and boxes are fp32 whatever the activations are.
 * - Workspaces are device memory, 256-byte aligned, of at least the size that the matching ..._workspace function
 *   gives; NULL is allowed where that is 0. Their content need not survive the call.
 */
#ifndef DLFS_H
#define DLFS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define DLFS_API __attribute__((visibility("default")))
#else
#define DLFS_API
#endif

/* Marks a pointer to host memory that is used during the call only. */
#define DLFS_HOST

#define DLFS_ABI_VERSION 1

typedef int32_t dlfs_status;
#define DLFS_OK 0
#define DLFS_NOT_READY 1          /* the work asked about has not finished */
#define DLFS_ERROR_ARGUMENT -100  /* a value out of range, a NULL that is not allowed */
#define DLFS_ERROR_SHAPE -101     /* sizes that do not fit together */
#define DLFS_ERROR_DTYPE -102     /* a dtype that the operation does not take */
#define DLFS_ERROR_HANDLE -103    /* a handle of another kind, or one already destroyed */
#define DLFS_ERROR_UNSUPPORTED -104 /* this backend or device cannot do it; see dlfs_supports */
#define DLFS_ERROR_MEMORY -200    /* device memory ran out */
#define DLFS_ERROR_HOST_MEMORY -201 /* host memory ran out */
#define DLFS_ERROR_IO -300
#define DLFS_ERROR_IMAGE -301     /* bytes that are not a JPEG, or a damaged one */
#define DLFS_ERROR_CUDA -400      /* a CUDA error that leaves the process usable */
#define DLFS_ERROR_CUDA_FATAL -401 /* a CUDA error after which the process must end (illegal address, ...) */
#define DLFS_ERROR_CUDNN -500
#define DLFS_ERROR_CUBLAS -501
#define DLFS_ERROR_NVJPEG -502
#define DLFS_ERROR_ONEDNN -503
#define DLFS_ERROR_COLLECTIVE -600 /* a collective failed, on this rank or another, or was aborted */
#define DLFS_ERROR_INTERNAL -900

typedef int32_t dlfs_dtype;
#define DLFS_F32 0
#define DLFS_BF16 1
#define DLFS_F16 2
#define DLFS_I32 3
#define DLFS_U8 4
#define DLFS_I64 5
#define DLFS_F8E4M3 6 /* sign, 4 bits of exponent, 3 of mantissa; no infinity, the largest is 448 (Micikevicius et al. 2022) */
#define DLFS_I8 7

typedef int32_t dlfs_activation;
#define DLFS_ACT_NONE 0
#define DLFS_ACT_RELU 1    /* max(x, 0) */
#define DLFS_ACT_SIGMOID 2 /* 1 / (1 + exp(-x)) */
#define DLFS_ACT_SILU 3    /* x * sigmoid(x) */
#define DLFS_ACT_RELU6 4   /* min(max(x, 0), 6) */
#define DLFS_ACT_LEAKY_RELU 5  /* x > 0 ? x : slope * x; its slope is an argument of its own */
#define DLFS_ACT_HARDSWISH 6   /* x * min(max(x + 3, 0), 6) / 6 (Howard et al. 2019) */
#define DLFS_ACT_HARDSIGMOID 7 /* min(max(x + 3, 0), 6) / 6 */
/* Operations that end in an activation (dlfs_add, convolutions) take NONE, RELU, SIGMOID, SILU and RELU6; batch
 * normalization takes NONE and RELU. Others are DLFS_ERROR_ARGUMENT there. */

typedef int64_t dlfs_context; /* one device: its memory, its default options */
typedef int64_t dlfs_stream;  /* an ordered queue of work on a context's device */
typedef int64_t dlfs_event;   /* a point in a stream */
typedef int64_t dlfs_graph;   /* a captured sequence of calls */
typedef int64_t dlfs_conv;    /* a planned convolution */
typedef int64_t dlfs_sgd;     /* the tensor lists of an optimizer */
typedef int64_t dlfs_average; /* the tensor lists of moving averages */
typedef int64_t dlfs_decoder; /* image decoding threads with their own streams */
typedef int64_t dlfs_job;     /* one batch being decoded */
typedef int64_t dlfs_comm;    /* this process's place among those that train together */

/* ---- library ------------------------------------------------------------------------------------------------- */

/* DLFS_ABI_VERSION of the library. Not a status. */
DLFS_API int32_t dlfs_abi_version(void);

/* The last error message of the calling thread, UTF-8, NUL-terminated, valid until its next failing call; it names
 * the operation, the sizes, what was expected and what came, and the underlying library's own text. Empty string
 * before the first error. Not a status. */
DLFS_API const char *dlfs_last_error(void);

/* Writes "key=value" lines: backend (cuda, cpu), header (first 16 hex digits of this file's SHA-256 at build time),
 * and one line per library in use with its version. Truncated to capacity bytes, always NUL-terminated. */
DLFS_API dlfs_status dlfs_build_info(DLFS_HOST char *out, int64_t capacity);

/* How many devices this backend can use; the CPU backend has one. 0 where the driver is missing. */
DLFS_API dlfs_status dlfs_device_count(DLFS_HOST int32_t *out);

/* Name of a device (NUL-terminated, truncated) and values[0..3]: memory in bytes, multiprocessors (or CPU threads
 * used for compute), compute capability as 10 * major + minor (0 on the CPU), L2 cache in bytes (0 where unknown). */
DLFS_API dlfs_status dlfs_device_info(DLFS_HOST char *name, int64_t capacity, DLFS_HOST int64_t *values, int32_t device);

/* ---- contexts ------------------------------------------------------------------------------------------------ */

/* Opens a device. */
DLFS_API dlfs_status dlfs_context_create(DLFS_HOST dlfs_context *out, int32_t device);

/* Closes a context; its streams, plans and memory must have been released (an error otherwise names what is left). */
DLFS_API dlfs_status dlfs_context_destroy(dlfs_context ctx);

/* Sets an option for what is created or enqueued afterwards: "deterministic" (0/1: only algorithms that give the same
 * bytes each run), "tf32" (0/1: fp32 convolutions may round inputs to TF32; default 0), "threads" (CPU: compute
 * threads, 0 = all cores), "conv.pad8" (0/1: what dlfs_supports says of it). An unknown name is DLFS_ERROR_ARGUMENT; an option
 * without meaning here is accepted. */
DLFS_API dlfs_status dlfs_context_option(dlfs_context ctx, DLFS_HOST const char *name, int64_t value);

/* Writes 1 if this context's device has the feature, else 0. Features: "bf16", "f16", "tf32", "conv.bf16", "conv.f16",
 * "conv.epilogue" (bias, residual and activation fused into the convolution), "conv.moments.f32", "conv.moments.bf16" and
 * "conv.moments.f16" (convolutions that give their result's moments), "conv.f8" and "conv.i8" (forward convolutions of 8
 * bits), "conv.pad8" (a convolution whose result's channels 8 does not divide is worth padding to a number that it does),
 * "graph" (capture and launch), "graph.lanes" (a graph's streams run at the same time), "jpeg.decode", "jpeg.encode",
 * "jpeg.cmyk" (CMYK and YCCK decoding), "jpeg.hardware", "png.decode", "webp.decode", "collectives" (communicators between
 * processes: NCCL on CUDA, where its library is found, and Gloo on the CPU, where it was built with it). An unknown name writes
 * 0. */
DLFS_API dlfs_status dlfs_supports(dlfs_context ctx, DLFS_HOST int32_t *out, DLFS_HOST const char *feature);

/* ---- memory -------------------------------------------------------------------------------------------------- */

/* Allocates device memory, 256-byte aligned, content undefined. bytes >= 1. May synchronize. */
DLFS_API dlfs_status dlfs_malloc(dlfs_context ctx, DLFS_HOST void **out, int64_t bytes);

/* Frees what dlfs_malloc gave; any other address is DLFS_ERROR_ARGUMENT. Waits for the device. */
DLFS_API dlfs_status dlfs_free(dlfs_context ctx, void *address);

/* Allocates pinned host memory, 64-byte aligned, zeroed, which asynchronous copies and decoders can use. */
DLFS_API dlfs_status dlfs_host_malloc(dlfs_context ctx, DLFS_HOST void **out, int64_t bytes);

/* Frees what dlfs_host_malloc gave. The caller has made sure that no stream or job uses it any more. */
DLFS_API dlfs_status dlfs_host_free(dlfs_context ctx, void *address);

/* values[0..3]: bytes free on the device, bytes in total, bytes allocated through this context now, and at the peak. */
DLFS_API dlfs_status dlfs_memory_info(dlfs_context ctx, DLFS_HOST int64_t *values);

/* Copies bytes from pinned host memory to the device. */
DLFS_API dlfs_status dlfs_copy_to_device(dlfs_stream stream, void *dst, const void *pinned_src, int64_t bytes);

/* Copies bytes from the device to pinned host memory. */
DLFS_API dlfs_status dlfs_copy_to_host(dlfs_stream stream, void *pinned_dst, const void *src, int64_t bytes);

/* Copies bytes on the device; the ranges must not overlap. */
DLFS_API dlfs_status dlfs_copy(dlfs_stream stream, void *dst, const void *src, int64_t bytes);

/* Copies rows of row_bytes from a buffer with src_pitch bytes between row starts to one with dst_pitch. */
DLFS_API dlfs_status dlfs_copy_2d(dlfs_stream stream, void *dst, const void *src, int64_t rows, int64_t row_bytes,
                                  int64_t dst_pitch, int64_t src_pitch);

/* Sets bytes to the low 8 bits of value. */
DLFS_API dlfs_status dlfs_memset(dlfs_stream stream, void *dst, int64_t bytes, int32_t value);

/* Copies any host memory to the device in stream order and waits until that is done. */
DLFS_API dlfs_status dlfs_upload_sync(dlfs_stream stream, void *dst, DLFS_HOST const void *src, int64_t bytes);

/* Copies device memory to any host memory in stream order and waits until that is done. */
DLFS_API dlfs_status dlfs_download_sync(dlfs_stream stream, DLFS_HOST void *dst, const void *src, int64_t bytes);

/* ---- streams, events, graphs --------------------------------------------------------------------------------- */

DLFS_API dlfs_status dlfs_stream_create(dlfs_context ctx, DLFS_HOST dlfs_stream *out); /* A new, empty stream. */
DLFS_API dlfs_status dlfs_stream_destroy(dlfs_stream stream); /* Waits for its work, then releases it. */
DLFS_API dlfs_status dlfs_stream_synchronize(dlfs_stream stream); /* Waits until all enqueued work is done. */
DLFS_API dlfs_status dlfs_stream_query(dlfs_stream stream); /* DLFS_OK when all is done, else DLFS_NOT_READY. */

DLFS_API dlfs_status dlfs_event_create(dlfs_context ctx, DLFS_HOST dlfs_event *out); /* An event not yet recorded. */
DLFS_API dlfs_status dlfs_event_destroy(dlfs_event event); /* Releases an event. */
DLFS_API dlfs_status dlfs_event_record(dlfs_stream stream, dlfs_event event); /* Marks the stream's present end. */
DLFS_API dlfs_status dlfs_event_query(dlfs_event event); /* DLFS_OK when passed or never recorded; DLFS_NOT_READY. */
DLFS_API dlfs_status dlfs_event_synchronize(dlfs_event event); /* Waits until the event has been passed. */
DLFS_API dlfs_status dlfs_stream_wait_event(dlfs_stream stream, dlfs_event event); /* Later work waits for it. */

/* Milliseconds between two passed events. */
DLFS_API dlfs_status dlfs_event_elapsed(DLFS_HOST double *out_ms, dlfs_event start, dlfs_event end);

/* Starts capture: calls on this stream are recorded instead of run. Work on other streams is not affected, nor
 * captured, unless joined by events recorded in and waited for by the capturing stream. */
DLFS_API dlfs_status dlfs_graph_begin(dlfs_stream stream);

/* Ends capture. After a failed call during capture this reports an error and the capture is discarded. */
DLFS_API dlfs_status dlfs_graph_end(dlfs_stream stream, DLFS_HOST dlfs_graph *out);

/* Runs all captured calls, in one launch, on a stream of the same context, with the addresses they were captured with. */
DLFS_API dlfs_status dlfs_graph_launch(dlfs_stream stream, dlfs_graph graph);
DLFS_API dlfs_status dlfs_graph_destroy(dlfs_graph graph); /* Waits for launches in flight, then releases it. */

/* ---- collectives ----------------------------------------------------------------------------------------------
 * Operations that several processes ("ranks", from 0 to world - 1) take part in together, each with a device of its own: NCCL on
 * CUDA, Gloo on the CPU. All ranks must call the same ones in the same order with the same sizes.
 * A communicator has a queue of its own, so that collectives run beside a stream's work: each waits for what its stream was
 * given before, and the stream goes on at once. What it reads and writes may be touched again by work that follows
 * dlfs_comm_wait on the stream, not before. Both may be captured in a graph; the first run of each size should not be, as
 * libraries connect and allocate in it. `label` is the caller's name for a collective, from 0, for dlfs_comm_progress. */

#define DLFS_REDUCE_SUM 0
#define DLFS_REDUCE_AVERAGE 1 /* the sum divided by the number of ranks */

/* A communicator that is not connected yet. host: the address of the interface by which the other ranks reach this one (CPU;
 * an empty string: the one that the machine's name stands for); NCCL finds interfaces itself (NCCL_SOCKET_IFNAME). A collective that takes longer than
 * timeout_ms fails, on the CPU. */
DLFS_API dlfs_status dlfs_comm_create(dlfs_context ctx, DLFS_HOST dlfs_comm *out, int32_t rank, int32_t world,
                                      DLFS_HOST const char *host, int64_t timeout_ms);

/* What the other ranks must be told to reach this one; of NCCL, rank 0's alone counts. Writes *bytes <= capacity of them;
 * 128 + 256 * world are enough. */
DLFS_API dlfs_status dlfs_comm_address(dlfs_comm comm, DLFS_HOST uint8_t *out, int64_t capacity, DLFS_HOST int64_t *bytes);

/* Starts connecting to all ranks, each of which must do so, and returns; dlfs_comm_query says when it is done. addresses: those
 * of all ranks one behind the other, rank 0's first; sizes (world): their bytes. */
DLFS_API dlfs_status dlfs_comm_connect(dlfs_comm comm, DLFS_HOST const uint8_t *addresses, DLFS_HOST const int64_t *sizes);

/* DLFS_OK once connected, DLFS_NOT_READY until then; an error where connecting, or a collective since, has failed. */
DLFS_API dlfs_status dlfs_comm_query(dlfs_comm comm);

/* In each of count buffers, of sizes[i] elements of F32, BF16 or F16, every element becomes its sum or average over all
 * ranks, with the same bytes on all ranks. One group: NCCL runs them as one operation. operation: DLFS_REDUCE_... BF16 and F16
 * may be rounded at each addition. */
DLFS_API dlfs_status dlfs_comm_all_reduce(dlfs_stream stream, dlfs_comm comm, DLFS_HOST const int64_t *buffers,
                                          DLFS_HOST const int64_t *sizes, int32_t count, dlfs_dtype dtype,
                                          int32_t operation, int32_t label);

/* Each of count buffers, of sizes[i] bytes, becomes a copy of rank root's. */
DLFS_API dlfs_status dlfs_comm_broadcast(dlfs_stream stream, dlfs_comm comm, DLFS_HOST const int64_t *buffers,
                                         DLFS_HOST const int64_t *sizes, int32_t count, int32_t root, int32_t label);

/* For each of count buffers: outs[i] (world, sizes[i]) = the ranks' owns[i] (sizes[i]), in bytes, rank 0's first. owns[i] may be this
 * rank's place in outs[i]. */
DLFS_API dlfs_status dlfs_comm_all_gather(dlfs_stream stream, dlfs_comm comm, DLFS_HOST const int64_t *outs,
                                          DLFS_HOST const int64_t *owns, DLFS_HOST const int64_t *sizes, int32_t count,
                                          int32_t label);

/* Is done once all ranks have come to it. */
DLFS_API dlfs_status dlfs_comm_barrier(dlfs_stream stream, dlfs_comm comm, int32_t label);

/* Later work of the stream waits for all collectives enqueued so far; an error of one of them becomes the stream's. */
DLFS_API dlfs_status dlfs_comm_wait(dlfs_stream stream, dlfs_comm comm);

/* values[0..1]: how many collectives this rank's device has come to so far, and the label of the last one (-1 before the
 * first). Never waits: where another rank is missing, this says which collective this one waits in. */
DLFS_API dlfs_status dlfs_comm_progress(dlfs_comm comm, DLFS_HOST int64_t *values);

/* Ends collectives that wait for other ranks, with an error; there can be no more. From any thread. */
DLFS_API dlfs_status dlfs_comm_abort(dlfs_comm comm);

/* Waits for the collectives in flight, then releases the communicator; all ranks must do so, or abort it first. Graphs that
 * captured collectives must have been destroyed. */
DLFS_API dlfs_status dlfs_comm_destroy(dlfs_comm comm);

/* ---- elementwise --------------------------------------------------------------------------------------------- */

/* dst[i] = value; F32, BF16, F16, I32. */
DLFS_API dlfs_status dlfs_fill(dlfs_stream stream, void *dst, int64_t n, dlfs_dtype dtype, double value);

/* dst[i] = src[i] converted, round to nearest even; between F32, BF16, F16, I32, U8. */
DLFS_API dlfs_status dlfs_cast(dlfs_stream stream, void *dst, const void *src, int64_t n, dlfs_dtype dst_dtype,
                               dlfs_dtype src_dtype);

/* dst[i] = activation(a[i] + b[i]), summed in fp32; dst may be a or b. activation: NONE, RELU, SIGMOID, SILU or RELU6. */
DLFS_API dlfs_status dlfs_add(dlfs_stream stream, void *dst, const void *a, const void *b, int64_t n, dlfs_dtype dtype,
                              dlfs_activation activation);

/* dst[i] = a[i] * b[i] in fp32; dst may be a or b. */
DLFS_API dlfs_status dlfs_multiply(dlfs_stream stream, void *dst, const void *a, const void *b, int64_t n,
                                   dlfs_dtype dtype);

/* dst[i] = src[i] * factor * (device_factor ? *device_factor : 1); dst may be src. device_factor: fp32, nullable. */
DLFS_API dlfs_status dlfs_scale(dlfs_stream stream, void *dst, const void *src, const float *device_factor, int64_t n,
                                dlfs_dtype dtype, double factor);

/* y[i] = activation(x[i]), computed in fp32; y may be x. slope: LEAKY_RELU's for x <= 0, else ignored. */
DLFS_API dlfs_status dlfs_activation_forward(dlfs_stream stream, void *y, const void *x, int64_t n, dlfs_dtype dtype,
                                             dlfs_activation activation, double slope);

/* dx[i] = dy[i] * activation'(.), with torch's formulas. RELU, RELU6, SIGMOID, HARDSIGMOID, and LEAKY_RELU with slope >= 0
 * (whose y has x's sign), read y (x nullable), so that x need not be kept; SILU, HARDSWISH and LEAKY_RELU with slope < 0
 * read x (y nullable). At a corner the derivative is that of the flat side: RELU6's is 0 at 0 and 6, HARDSIGMOID's at -3 and
 * 3; HARDSWISH's is 0 at -3 and 1 at 3, LEAKY_RELU's is slope at 0. dx may be dy. */
DLFS_API dlfs_status dlfs_activation_backward(dlfs_stream stream, void *dx, const void *dy, const void *x, const void *y,
                                              int64_t n, dlfs_dtype dtype, dlfs_activation activation, double slope);

/* y[i, j] = exp(x[i, j] - m) / sum over k of exp(x[i, k] - m), m the largest of row i, in fp32: torch's softmax over the
 * last dimension. x, y (rows, C); y may be x. */
DLFS_API dlfs_status dlfs_softmax_forward(dlfs_stream stream, void *y, const void *x, int64_t rows, int32_t c,
                                          dlfs_dtype dtype);

/* dx[i, j] = y[i, j] (dy[i, j] - sum over k of dy[i, k] y[i, k]), summed in fp32. dx may be dy. */
DLFS_API dlfs_status dlfs_softmax_backward(dlfs_stream stream, void *dx, const void *dy, const void *y, int64_t rows,
                                           int32_t c, dlfs_dtype dtype);

/* y[i, r, j] = x[i, r, j] * s[i, j] in fp32: x, y (n, rows, C), s (n, C), all of dtype; the scaling of each image's
 * channels in squeeze-and-excitation (Hu et al. 2018). y may be x. */
DLFS_API dlfs_status dlfs_channel_scale(dlfs_stream stream, void *y, const void *x, const void *s, int32_t n,
                                        int64_t rows, int32_t c, dlfs_dtype dtype);

/* Bytes of workspace for dlfs_channel_dot. */
DLFS_API dlfs_status dlfs_channel_dot_workspace(dlfs_context ctx, DLFS_HOST int64_t *out, int32_t n, int64_t rows,
                                                int32_t c, dlfs_dtype dtype);

/* out[i, j] = sum over r of a[i, r, j] b[i, r, j]: a, b (n, rows, C), out (n, C), all of dtype; the gradient of
 * dlfs_channel_scale's s. Summed in fp32, the same order of sums each run, and rounded once. */
DLFS_API dlfs_status dlfs_channel_dot(dlfs_stream stream, void *out, const void *a, const void *b, void *workspace,
                                      int32_t n, int64_t rows, int32_t c, dlfs_dtype dtype);

/* y[i, j groups + g] = x[i, g C / groups + j]: torch's ChannelShuffle of x (rows, C), C a multiple of groups (Zhang et al.
 * 2018). Its inverse and gradient is the same with C / groups groups. y must not overlap x. */
DLFS_API dlfs_status dlfs_channel_shuffle(dlfs_stream stream, void *y, const void *x, int64_t rows, int32_t c,
                                          int32_t groups, dlfs_dtype dtype);

/* y[i] = kept(i) ? x[i] / (1 - p) : 0 (Srivastava et al. 2014), p in [0, 1). Element i is kept where word i % 4 of the
 * Philox4x32-10 block with key = seed and counter = (i / 4, *counter) is at least p 2^32: the same ones on every backend.
 * Bit i % 8 of byte i / 8 of mask (ceil(n / 8) bytes, nullable) says so to the backward pass; bits past n are 0. Then
 * *counter += 1, and back to 0 at 2^24: counter is an fp32 on the device that holds a whole number, so that each launch of a
 * captured graph draws anew, and a saved counter goes on where it was. y may be x. */
DLFS_API dlfs_status dlfs_dropout_forward(dlfs_stream stream, void *y, uint8_t *mask, float *counter, const void *x,
                                          int64_t n, dlfs_dtype dtype, double p, int64_t seed);

/* dx[i] = bit i of mask ? dy[i] / (1 - p) : 0. dx may be dy. */
DLFS_API dlfs_status dlfs_dropout_backward(dlfs_stream stream, void *dx, const void *dy, const uint8_t *mask, int64_t n,
                                           dlfs_dtype dtype, double p);

/* dst (n, columns, rows) from src (n, rows, columns): each of n matrices transposed; F32, BF16, F16, I32. The memory of
 * dst and src must not overlap. */
DLFS_API dlfs_status dlfs_transpose(dlfs_stream stream, void *dst, const void *src, int64_t n, int64_t rows,
                                    int64_t columns, dlfs_dtype dtype);

/* Sets *flag to 1 where any of x's n values is NaN or infinite, else leaves it as it is (sticky). flag: int32. */
DLFS_API dlfs_status dlfs_check_finite(dlfs_stream stream, int32_t *flag, const void *x, int64_t n, dlfs_dtype dtype);

/* dst[i] uniform in [low, high), fp32. Philox4x32-10 (Salmon et al. 2011): element i takes word i % 4 of the block with
 * key = seed (64 bits) and counter = (i / 4, offset); the same seed and offset give the same bits on every backend. */
DLFS_API dlfs_status dlfs_init_uniform(dlfs_stream stream, float *dst, int64_t n, int64_t seed, int64_t offset,
                                       double low, double high);

/* dst[i] normal with the mean and standard deviation, fp32: Box-Muller on the words of dlfs_init_uniform's blocks, pairs
 * (0, 1) and (2, 3); equal across backends to a few units in the last place. */
DLFS_API dlfs_status dlfs_init_normal(dlfs_stream stream, float *dst, int64_t n, int64_t seed, int64_t offset,
                                      double mean, double std);

/* ---- convolution --------------------------------------------------------------------------------------------- */

#define DLFS_CONV_FORWARD 0
#define DLFS_CONV_BACKWARD_DATA 1
#define DLFS_CONV_BACKWARD_WEIGHT 2
#define DLFS_CONV_BIAS 1     /* flag: adds a bias (K), fp32 */
#define DLFS_CONV_RESIDUAL 2 /* flag: adds a tensor of the result's shape and dtype, before the activation or the mask */
#define DLFS_CONV_RELU_MASK 4 /* flag of data gradients: x is a ReLU's result, and dx is 0 where x <= 0 */
#define DLFS_CONV_Y_F32 8     /* flags of plans of 8 bits: y and the residual have this dtype instead of x's */
#define DLFS_CONV_Y_BF16 16
#define DLFS_CONV_Y_F16 32
#define DLFS_CONV_MOMENTS 64  /* flag of the forward direction, alone: the moments of y too, by dlfs_conv_forward_moments */

/* Plans one direction of y = activation(conv(x, w) + bias + residual), or of its gradients; the data gradient is
 * dx = mask(conv^T(dy, w) + residual) by its own flags, so that the gradients of x from elsewhere and the backward pass of
 * the ReLU that x came from need no passes over memory of their own.
 * x (N, H, W, C), w (K, R, S, C / groups), y (N, P, Q, K); P = (H + 2 pad_h - dilation_h (R - 1) - 1) / stride_h + 1,
 * rounded down, Q likewise. x, w, y have `dtype` (F32, BF16, F16); sums are fp32. Weight gradients are stored as fp32,
 * and where the library has no such output they have been rounded to `dtype` once. Likewise the sums may be rounded to
 * `dtype` before bias, residual and activation where the device has no fused form of them.
 * DLFS_CONV_FORWARD takes BIAS, RESIDUAL and an activation, DLFS_CONV_BACKWARD_DATA RESIDUAL and RELU_MASK,
 * DLFS_CONV_BACKWARD_WEIGHT nothing; DLFS_CONV_FORWARD takes MOMENTS and nothing else; whether an activation makes NaN or 0 of NaN here, or a mask of a NaN in x, is the
 * library's choice (dlfs_activation_forward keeps NaN, dlfs_activation_backward masks where x <= 0 alone). Accumulation differs between algorithms; with the context's "deterministic"
 * option, repeated runs give the same bytes.
 * dtype F8E4M3 or I8, forward only: y = activation(scale[k] conv(x, w) + bias + residual), run by dlfs_conv_forward_scaled; the
 * sums are int32 for I8, fp32 for F8E4M3 (of which tensor cores may keep 14 bits), what follows is fp32, and y is rounded and
 * saturated as dlfs_quantize does, or has the dtype of one DLFS_CONV_Y_ flag. Quick where C and K are multiples of 16, K of
 * another number with a DLFS_CONV_Y_ flag and without a residual too.
 * pick: empty for the library's heuristic choice, or a string that dlfs_conv_pick gave on the same device and library
 * versions; one that does not fit is DLFS_ERROR_ARGUMENT. On CUDA also "lt:N", for tests: the Nth algorithm of cuBLASLt for a
 * 1x1 convolution of stride 1 without padding, from 0. */
DLFS_API dlfs_status dlfs_conv_create(dlfs_context ctx, DLFS_HOST dlfs_conv *out, DLFS_HOST const char *pick,
                                      int32_t direction, dlfs_dtype dtype, int32_t n, int32_t h, int32_t w, int32_t c,
                                      int32_t k, int32_t r, int32_t s, int32_t stride_h, int32_t stride_w,
                                      int32_t pad_h, int32_t pad_w, int32_t dilation_h, int32_t dilation_w,
                                      int32_t groups, int32_t flags, dlfs_activation activation);

/* Numbers of a convolution: the arguments of dlfs_conv_create from direction on, in order. */
#define DLFS_CONV_KEY 18

/* Plans several convolutions as dlfs_conv_create does, on several threads where compiling kernels takes time. keys
 * (count, DLFS_CONV_KEY). picks: of each, NUL-terminated, one after the other, pick_bytes in all. out (count): the plans,
 * 0 where one cannot be made; dlfs_conv_create with the same arguments says why. */
DLFS_API dlfs_status dlfs_conv_create_many(dlfs_context ctx, DLFS_HOST dlfs_conv *out, DLFS_HOST const char *picks,
                                           DLFS_HOST const int32_t *keys, int64_t pick_bytes, int32_t count);
DLFS_API dlfs_status dlfs_conv_destroy(dlfs_conv conv); /* Releases a plan; captured graphs that use it stay valid. */

/* Starts to build the candidate algorithms of a plan on threads of the library, for the dlfs_conv_tune_sync that follows.
 * Nothing where building takes no time. */
DLFS_API dlfs_status dlfs_conv_tune_ahead(dlfs_conv conv);

/* Times the candidate algorithms on scratch memory of its own, those that can be built within about budget_ms, and keeps
 * the fastest; the workspace size may change. */
DLFS_API dlfs_status dlfs_conv_tune_sync(dlfs_stream stream, dlfs_conv conv, double budget_ms);

/* Bytes of workspace that executing the plan needs. */
DLFS_API dlfs_status dlfs_conv_workspace(dlfs_conv conv, DLFS_HOST int64_t *out);

/* The algorithm in use as a short text for dlfs_conv_create and for people; NUL-terminated, needs 256 bytes. */
DLFS_API dlfs_status dlfs_conv_pick(dlfs_conv conv, DLFS_HOST char *out, int64_t capacity);

/* Runs a DLFS_CONV_FORWARD plan. bias and residual are NULL exactly where the plan lacks the flag. */
DLFS_API dlfs_status dlfs_conv_forward(dlfs_stream stream, dlfs_conv conv, void *y, const void *x, const void *w,
                                       const float *bias, const void *residual, void *workspace);

/* Runs a DLFS_CONV_FORWARD plan with DLFS_CONV_MOMENTS: y, and its moments as dlfs_batch_norm_train takes them, means (parts,
 * K), sums of squared distances from them (parts, K) and rows of each part (parts), fp32; parts is the number of the device's
 * multiprocessors or threads (dlfs_device_info), and those without rows have zeros. Where the device has "conv.moments.bf16",
 * "conv.moments.f16" or "conv.moments.f32", for plans of that dtype of 1x1 kernels without groups whose C and K are
 * multiples of 8. */
DLFS_API dlfs_status dlfs_conv_forward_moments(dlfs_stream stream, dlfs_conv conv, void *y, float *moments,
                                               const void *x, const void *w, void *workspace);

/* Runs a plan of dtype F8E4M3 or I8. scale (K), fp32; bias and residual as dlfs_conv_forward's. */
DLFS_API dlfs_status dlfs_conv_forward_scaled(dlfs_stream stream, dlfs_conv conv, void *y, const void *x, const void *w,
                                              const float *scale, const float *bias, const void *residual,
                                              void *workspace);

/* Runs a DLFS_CONV_BACKWARD_DATA plan: dx (N, H, W, C) from dy (N, P, Q, K); overwrites dx. residual and x, both of dx's
 * shape and dtype, are NULL exactly where the plan lacks DLFS_CONV_RESIDUAL and DLFS_CONV_RELU_MASK. dx may be residual. */
DLFS_API dlfs_status dlfs_conv_backward_data(dlfs_stream stream, dlfs_conv conv, void *dx, const void *dy, const void *w,
                                             const void *residual, const void *x, void *workspace);

/* Runs a DLFS_CONV_BACKWARD_WEIGHT plan: dw (K, R, S, C / groups), fp32; overwrites dw. */
DLFS_API dlfs_status dlfs_conv_backward_weight(dlfs_stream stream, dlfs_conv conv, float *dw, const void *x,
                                               const void *dy, void *workspace);

/* dst[i] = src[i] * factor in fp32, rounded to nearest even and saturated: to 448 and -448 in F8E4M3, 127 and -128 in I8. NaN
 * stays NaN, and becomes 0 in I8. dst_dtype F8E4M3 or I8, src_dtype F32, BF16 or F16. */
DLFS_API dlfs_status dlfs_quantize(dlfs_stream stream, void *dst, const void *src, int64_t n, dlfs_dtype dst_dtype,
                                   dlfs_dtype src_dtype, double factor);

/* dst[i] = src[i] * factor in fp32; dst_dtype F32, BF16 or F16, src_dtype F8E4M3 or I8. */
DLFS_API dlfs_status dlfs_dequantize(dlfs_stream stream, void *dst, const void *src, int64_t n, dlfs_dtype dst_dtype,
                                     dlfs_dtype src_dtype, double factor);

/* Weights in 8 bits, a scale for each output channel: scale[k] = max |src[k, .]| / M, M 448 for F8E4M3 and 127 for I8 (1 where
 * all are 0), dst = src / scale, rounded as by dlfs_quantize. src, dst (K, per_channel), scale (K) fp32. */
DLFS_API dlfs_status dlfs_quantize_channels(dlfs_stream stream, void *dst, float *scale, const void *src, int32_t k,
                                            int64_t per_channel, dlfs_dtype dst_dtype, dlfs_dtype src_dtype);

#define DLFS_MAGNITUDE_BINS 8192

/* Adds to counts[b] the number of elements whose magnitude lies in bin b, for b from 0 to DLFS_MAGNITUDE_BINS - 1: the bin is
 * the upper 13 of the 31 bits of |src[i]| as fp32, 32 bins to an octave, so that bin b holds the magnitudes from the fp32 of
 * the bits b << 18 to below that of (b + 1) << 18. Infinity is in bin 8160, NaN in bin 8176. src_dtype F32, BF16, F16. */
DLFS_API dlfs_status dlfs_count_magnitudes(dlfs_stream stream, int64_t *counts, const void *src, int64_t n,
                                           dlfs_dtype src_dtype);

/* Bytes of workspace for dlfs_channel_sum. */
DLFS_API dlfs_status dlfs_channel_sum_workspace(dlfs_context ctx, DLFS_HOST int64_t *out, int64_t rows, int32_t c,
                                                dlfs_dtype dtype);

/* out[j] = sum over rows of x[row, j], x (rows, C): the gradient of a bias. fp32, the same order of sums each run. */
DLFS_API dlfs_status dlfs_channel_sum(dlfs_stream stream, float *out, const void *x, void *workspace, int64_t rows,
                                      int32_t c, dlfs_dtype dtype);

/* y[row, j] = activation(x[row, j] + bias[j]), in fp32; x, y (rows, C), y may be x; activation as dlfs_add's. What the plan
 * of a forward convolution does by itself, for convolutions run in another direction (transposed ones). */
DLFS_API dlfs_status dlfs_add_bias(dlfs_stream stream, void *y, const void *x, const float *bias, int64_t rows, int32_t c,
                                   dlfs_dtype dtype, dlfs_activation activation);

/* ---- normalisation ------------------------------------------------------------------------------------------- */

/* Bytes of workspace for dlfs_batch_norm_train and dlfs_batch_norm_backward. */
DLFS_API dlfs_status dlfs_batch_norm_workspace(dlfs_context ctx, DLFS_HOST int64_t *out, int64_t rows, int32_t c,
                                               dlfs_dtype dtype);

/* Batch normalization with the batch's statistics (Ioffe and Szegedy 2015, as torch.nn.BatchNorm2d):
 *   y = activation((x - mean) * invstd * weight + bias + residual), activation NONE or RELU,
 * x, y, residual (rows, C) with rows = N H W; invstd = 1 / sqrt(biased variance + eps). save_mean and save_invstd (C)
 * are for the backward pass. running = (1 - momentum) running + momentum * batch, with the unbiased variance; running
 * pointers are nullable together, and stay as they are for a channel whose batch has no finite statistics, as where fp16 has
 * overflowed. residual is nullable. rows must be > 1. Statistics are two-pass or Welford, in fp32.
 * mask (rows, ceil(C / 8)) bytes, nullable, with RELU only: bit j % 8 of byte j / 8 of a row is 0 where y[row, j] <= 0, so
 * that the backward pass with a residual reads a bit for each element and not y.
 * moments, nullable (parts is 0 then): x's statistics by `parts` groups of rows, from the kernel that wrote x, fp32: means
 * (parts, C), sums of squared distances from them (parts, C), and how many rows each group has (parts), the first one at least
 * one: `rows` in all, or more where statistics are taken over several ranks' rows (dlfs_batch_norm_moments). x is not read
 * for statistics then. */
DLFS_API dlfs_status dlfs_batch_norm_train(dlfs_stream stream, void *y, uint8_t *mask, float *save_mean,
                                           float *save_invstd, float *running_mean, float *running_var, const void *x,
                                           const void *residual, const float *weight, const float *bias,
                                           const float *moments, void *workspace, int64_t rows, int32_t c, int64_t parts,
                                           dlfs_dtype dtype, double eps, double momentum, dlfs_activation activation);

/* The same with given statistics mean and var (C): y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual). */
DLFS_API dlfs_status dlfs_batch_norm_infer(dlfs_stream stream, void *y, const void *x, const void *residual,
                                           const float *weight, const float *bias, const float *mean, const float *var,
                                           int64_t rows, int32_t c, dlfs_dtype dtype, double eps,
                                           dlfs_activation activation);

/* Gradients of dlfs_batch_norm_train. With RELU, dy is masked where y <= 0: by forward's mask, or, where mask is NULL, by y
 * computed again from x, weight and bias, which is right where forward had no residual (bias is nullable otherwise).
 * dresidual, nullable, receives the masked dy. Overwrites dx, dweight, dbias; dx may be dy, and dresidual may be dy. */
DLFS_API dlfs_status dlfs_batch_norm_backward(dlfs_stream stream, void *dx, void *dresidual, float *dweight,
                                              float *dbias, const void *dy, const void *x, const uint8_t *mask,
                                              const float *weight, const float *bias, const float *save_mean,
                                              const float *save_invstd, void *workspace, int64_t rows, int32_t c,
                                              dlfs_dtype dtype, dlfs_activation activation);

/* The moments of x, or those of its groups of rows together: out (2 C + 1), means, sums of squared distances from them, and the
 * number of rows, as dlfs_batch_norm_train takes them of one group. With those of all ranks, gathered, it normalizes by
 * the statistics of all their rows (synchronized batch normalization). Arguments and workspace as there. */
DLFS_API dlfs_status dlfs_batch_norm_moments(dlfs_stream stream, float *out, const void *x, const float *moments,
                                             void *workspace, int64_t rows, int32_t c, int64_t parts, dlfs_dtype dtype);

/* The first half of dlfs_batch_norm_backward: dweight, dbias and dresidual; arguments and workspace as there. */
DLFS_API dlfs_status dlfs_batch_norm_backward_sums(dlfs_stream stream, void *dresidual, float *dweight, float *dbias,
                                                   const void *dy, const void *x, const uint8_t *mask,
                                                   const float *weight, const float *bias, const float *save_mean,
                                                   const float *save_invstd, void *workspace, int64_t rows, int32_t c,
                                                   dlfs_dtype dtype, dlfs_activation activation);

/* The second half: dx from dweight and dbias, which, where statistics were taken over several ranks of as many rows each, are
 * means over the ranks. dx may be dy. */
DLFS_API dlfs_status dlfs_batch_norm_backward_input(dlfs_stream stream, void *dx, const void *dy, const void *x,
                                                    const uint8_t *mask, const float *weight, const float *bias,
                                                    const float *save_mean, const float *save_invstd,
                                                    const float *dweight, const float *dbias, int64_t rows, int32_t c,
                                                    dlfs_dtype dtype, dlfs_activation activation);

/* The statistics of dlfs_batch_norm_train alone, for dlfs_batch_norm_join; arguments and workspace as there. */
DLFS_API dlfs_status dlfs_batch_norm_statistics(dlfs_stream stream, float *save_mean, float *save_invstd,
                                                float *running_mean, float *running_var, const void *x,
                                                const float *moments, void *workspace, int64_t rows, int32_t c,
                                                int64_t parts, dlfs_dtype dtype, double eps, double momentum);

/* The sum of two normalized tensors, as where a residual block's shortcut has a normalization of its own:
 *   y = activation((x - x_mean) * x_invstd * x_weight + x_bias + (z - z_mean) * z_invstd * z_weight + z_bias),
 * x, z, y (rows, C), the others (C), means and deviations from dlfs_batch_norm_statistics. mask as dlfs_batch_norm_train's. */
DLFS_API dlfs_status dlfs_batch_norm_join(dlfs_stream stream, void *y, uint8_t *mask, const void *x, const void *z,
                                          const float *x_weight, const float *x_bias, const float *x_mean,
                                          const float *x_invstd, const float *z_weight, const float *z_bias,
                                          const float *z_mean, const float *z_invstd, int64_t rows, int32_t c,
                                          dlfs_dtype dtype, dlfs_activation activation);

/* Bytes of workspace for dlfs_batch_norm_join_backward. */
DLFS_API dlfs_status dlfs_batch_norm_join_workspace(dlfs_context ctx, DLFS_HOST int64_t *out, int64_t rows, int32_t c,
                                                    dlfs_dtype dtype);

/* Gradients of both normalizations of dlfs_batch_norm_join, the statistics' share included. mask, nullable: dy counts where
 * its bit is set, all of it without. dx and dz differ; one of them may be dy. */
DLFS_API dlfs_status dlfs_batch_norm_join_backward(dlfs_stream stream, void *dx, void *dz, float *x_dweight,
                                                   float *x_dbias, float *z_dweight, float *z_dbias, const void *dy,
                                                   const void *x, const void *z, const uint8_t *mask,
                                                   const float *x_weight, const float *x_mean, const float *x_invstd,
                                                   const float *z_weight, const float *z_mean, const float *z_invstd,
                                                   void *workspace, int64_t rows, int32_t c, dlfs_dtype dtype);

/* Folds inference statistics into the convolution before them: folded_w = w * g, folded_bias = (conv_bias - mean) * g +
 * bias with g = weight / sqrt(var + eps). w (K, per_channel) fp32, folded_w in `dtype`, conv_bias nullable. */
DLFS_API dlfs_status dlfs_batch_norm_fold(dlfs_stream stream, void *folded_w, float *folded_bias, const float *w,
                                          const float *conv_bias, const float *weight, const float *bias,
                                          const float *mean, const float *var, int32_t k, int64_t per_channel,
                                          dlfs_dtype dtype, double eps);

/* Gradient of dlfs_batch_norm_fold's w where the rest of its operands are constants: dw = dfolded * g, g of each row. dw,
 * dfolded (K, per_channel) fp32; dw may be dfolded. With per_channel 1 it is the gradient of conv_bias from folded_bias'. */
DLFS_API dlfs_status dlfs_batch_norm_fold_backward(dlfs_stream stream, float *dw, const float *dfolded,
                                                   const float *weight, const float *var, int32_t k,
                                                   int64_t per_channel, double eps);

/* Bytes of workspace for dlfs_group_norm_forward and dlfs_group_norm_backward. */
DLFS_API dlfs_status dlfs_group_norm_workspace(dlfs_context ctx, DLFS_HOST int64_t *out, int32_t n, int64_t rows,
                                               int32_t c, int32_t groups, dlfs_dtype dtype);

/* Group normalization (Wu and He 2018, as torch.nn.GroupNorm): y = activation((x - mean) * invstd * weight + bias),
 * activation NONE or RELU, with the statistics of each image's groups of C / groups neighbouring channels. x, y (N, rows,
 * C) with rows = H W; weight, bias (C); save_mean, save_invstd (N, groups), invstd = 1 / sqrt(biased variance + eps), are
 * for the backward pass. groups divides C. y may be x. Statistics are two-pass or Welford, in fp32. */
DLFS_API dlfs_status dlfs_group_norm_forward(dlfs_stream stream, void *y, float *save_mean, float *save_invstd,
                                             const void *x, const float *weight, const float *bias, void *workspace,
                                             int32_t n, int64_t rows, int32_t c, int32_t groups, dlfs_dtype dtype,
                                             double eps, dlfs_activation activation);

/* Gradients of dlfs_group_norm_forward. With RELU, dy is masked where y <= 0 (y is read then, else nullable). Overwrites
 * dx (N, rows, C), dweight and dbias (C); dx may be dy. */
DLFS_API dlfs_status dlfs_group_norm_backward(dlfs_stream stream, void *dx, float *dweight, float *dbias, const void *dy,
                                              const void *x, const void *y, const float *weight,
                                              const float *save_mean, const float *save_invstd, void *workspace,
                                              int32_t n, int64_t rows, int32_t c, int32_t groups, dlfs_dtype dtype,
                                              dlfs_activation activation);

/* ---- pooling, resampling ------------------------------------------------------------------------------------- */

/* Maximum over windows, padding never wins: x (N, H, W, C), y and index (N, P, Q, C); P, Q as for convolutions with
 * dilation 1. index: uint8, the winner's position in its window (r * S + s; the first of equals; NaN wins), nullable.
 * R * S <= 255, padding <= half the window. */
DLFS_API dlfs_status dlfs_max_pool_forward(dlfs_stream stream, void *y, void *index, const void *x, int32_t n, int32_t h,
                                           int32_t w, int32_t c, int32_t r, int32_t s, int32_t stride_h, int32_t stride_w,
                                           int32_t pad_h, int32_t pad_w, dlfs_dtype dtype);

/* dx (N, H, W, C): each dy goes to its window's winner; overlapping windows add. Overwrites dx; deterministic. */
DLFS_API dlfs_status dlfs_max_pool_backward(dlfs_stream stream, void *dx, const void *dy, const void *index, int32_t n,
                                            int32_t h, int32_t w, int32_t c, int32_t r, int32_t s, int32_t stride_h,
                                            int32_t stride_w, int32_t pad_h, int32_t pad_w, dlfs_dtype dtype);

/* Mean over windows; count_include_pad 1 divides by R * S, 0 by the pixels inside the image. A window of the whole image
 * is global average pooling. */
DLFS_API dlfs_status dlfs_avg_pool_forward(dlfs_stream stream, void *y, const void *x, int32_t n, int32_t h, int32_t w,
                                           int32_t c, int32_t r, int32_t s, int32_t stride_h, int32_t stride_w,
                                           int32_t pad_h, int32_t pad_w, int32_t count_include_pad, dlfs_dtype dtype);

/* dx of dlfs_avg_pool_forward; overwrites dx. */
DLFS_API dlfs_status dlfs_avg_pool_backward(dlfs_stream stream, void *dx, const void *dy, int32_t n, int32_t h, int32_t w,
                                            int32_t c, int32_t r, int32_t s, int32_t stride_h, int32_t stride_w,
                                            int32_t pad_h, int32_t pad_w, int32_t count_include_pad, dlfs_dtype dtype);

/* y (N, P, Q, C) from x (N, H, W, C): y[p, q] = x[floor(p H / P), floor(q W / Q)] (torch "nearest"), in integers. */
DLFS_API dlfs_status dlfs_upsample_nearest_forward(dlfs_stream stream, void *y, const void *x, int32_t n, int32_t h,
                                                   int32_t w, int32_t c, int32_t p, int32_t q, dlfs_dtype dtype);

/* dx of dlfs_upsample_nearest_forward, summed in fp32; overwrites dx. */
DLFS_API dlfs_status dlfs_upsample_nearest_backward(dlfs_stream stream, void *dx, const void *dy, int32_t n, int32_t h,
                                                    int32_t w, int32_t c, int32_t p, int32_t q, dlfs_dtype dtype);

/* y (N, P, Q, C) from x (N, H, W, C), bilinear, as torch.nn.functional.interpolate without antialias. Output row p reads
 * the source at align_corners ? p (H - 1) / (P - 1) : max(0, (p + 0.5) H / P - 0.5), in fp32; columns likewise. scale_h and
 * scale_w, where not 0, replace the factors P / H and Q / W (torch's scale_factor, which P and Q were rounded down from);
 * align_corners ignores them. */
DLFS_API dlfs_status dlfs_upsample_bilinear_forward(dlfs_stream stream, void *y, const void *x, int32_t n, int32_t h,
                                                    int32_t w, int32_t c, int32_t p, int32_t q, int32_t align_corners,
                                                    dlfs_dtype dtype, double scale_h, double scale_w);

/* dx of dlfs_upsample_bilinear_forward: each input pixel gathers from the outputs that read it, summed in fp32 in a fixed
 * order; overwrites dx. */
DLFS_API dlfs_status dlfs_upsample_bilinear_backward(dlfs_stream stream, void *dx, const void *dy, int32_t n, int32_t h,
                                                     int32_t w, int32_t c, int32_t p, int32_t q, int32_t align_corners,
                                                     dlfs_dtype dtype, double scale_h, double scale_w);

/* ---- optimizer ----------------------------------------------------------------------------------------------- */

/* Lists the tensors that one dlfs_sgd_step updates: count tensors, each with the addresses of its fp32 parameter,
 * gradient and momentum buffer, of a low-precision copy in cast_dtype that follows it (0 for none), its number of
 * elements, its weight decay and a factor on the learning rate. The lists are copied. */
DLFS_API dlfs_status dlfs_sgd_create(dlfs_context ctx, DLFS_HOST dlfs_sgd *out, DLFS_HOST const int64_t *parameters,
                                     DLFS_HOST const int64_t *gradients, DLFS_HOST const int64_t *momenta,
                                     DLFS_HOST const int64_t *casts, DLFS_HOST const int64_t *elements,
                                     DLFS_HOST const float *weight_decays, DLFS_HOST const float *lr_factors,
                                     int32_t count, dlfs_dtype cast_dtype);
DLFS_API dlfs_status dlfs_sgd_destroy(dlfs_sgd sgd); /* Releases the lists. */

/* Bytes of workspace for dlfs_sgd_grad_norm. */
DLFS_API dlfs_status dlfs_sgd_grad_norm_workspace(dlfs_sgd sgd, DLFS_HOST int64_t *out);

/* *norm = the 2-norm of all gradients of the lists as one vector, as torch.nn.utils.clip_grad_norm_ takes it: fp32, of sums
 * in fp64, in the same order each run. NaN or infinite where a gradient is. grad_scale: fp32 on the device, nullable; the
 * norm is that of the gradients divided by it. */
DLFS_API dlfs_status dlfs_sgd_grad_norm(dlfs_stream stream, dlfs_sgd sgd, float *norm, const float *grad_scale,
                                        void *workspace);

/* One step as torch.optim.SGD (dampening 0): g += weight_decay * p; v = momentum * v + g; p -= lr * (nesterov ?
 * g + momentum * v : v); then the low-precision copy. lr: fp32 on the device. skip: int32 on the device, nullable; where
 * *skip != 0 nothing changes. grad_factor multiplies gradients first, and *grad_scale, fp32 on the device, nullable, divides
 * them: the scale that the losses' gradients were given. grad_norm, nullable: dlfs_sgd_grad_norm's result, by the same scale, on
 * the device, with which gradients are clipped to a norm of max_norm >= 0 as torch.nn.utils.clip_grad_norm_ does: they are
 * multiplied by min(1, max_norm / (|grad_factor| * *grad_norm + 1e-6)) besides. As there (error_if_nonfinite false), an
 * infinite norm makes finite gradients 0 and infinite ones NaN, and a norm of NaN makes all NaN: to skip such a step, let
 * dlfs_check_finite raise *skip from the norm. max_value > 0 then clips each gradient to -max_value to max_value, as
 * torch.nn.utils.clip_grad_value_; 0 does not. All tensors in one launch. */
DLFS_API dlfs_status dlfs_sgd_step(dlfs_stream stream, dlfs_sgd sgd, const float *lr, const int32_t *skip,
                                   const float *grad_norm, const float *grad_scale, double momentum, int32_t nesterov,
                                   double grad_factor, double max_norm, double max_value);

/* Numbers of dlfs_loss_scale_step's counters: good steps since the scale last changed or overflowed, overflows in all, and
 * overflows in a row at the least scale. */
#define DLFS_LOSS_SCALE_COUNTERS 3

/* After each step with dynamic loss scaling (Micikevicius et al. 2018), torch.amp.GradScaler.update: *overflow != 0 says that
 * the step's gradients were not finite, so that it was skipped: *scale *= backoff. Else, after `interval` such steps in a row,
 * *scale *= growth where that is finite. The scale does not fall below `least`; `patience` overflows in a row there raise
 * *failed, an int32, and where *failed != 0 nothing changes. scale: fp32, counters: DLFS_LOSS_SCALE_COUNTERS int32. growth >= 1,
 * 0 < backoff <= 1, interval >= 1, least > 0, patience >= 1. All on the device, so that it is part of a captured step. */
DLFS_API dlfs_status dlfs_loss_scale_step(dlfs_stream stream, float *scale, int32_t *counters, int32_t *failed,
                                          const int32_t *overflow, double growth, double backoff, int32_t interval,
                                          double least, int32_t patience);

/* sums[i] = a checksum of parameter i of the lists, int64 on the device: the sum over its elements j of (bits + 2^63) (2 j + 1),
 * mod 2^64, bits those of the fp32 as an unsigned number. The same on every device where all bits are. */
DLFS_API dlfs_status dlfs_sgd_checksums(dlfs_stream stream, dlfs_sgd sgd, int64_t *sums);

/* Refreshes the low-precision copies from the parameters (after loading weights). */
DLFS_API dlfs_status dlfs_sgd_refresh_casts(dlfs_stream stream, dlfs_sgd sgd);

/* *lr = table[min(*step, length - 1)]; *step += 1. table: length fp32 values on the device, one per iteration, so that any
 * learning-rate strategy runs inside a captured step. step: int32 on the device. */
DLFS_API dlfs_status dlfs_schedule_step(dlfs_stream stream, float *lr, int32_t *step, const float *table, int64_t length);

/* Lists the tensors that one dlfs_average_step updates: count tensors, each with the addresses of its fp32 average and of the
 * fp32 values that it follows, and its number of elements. The lists are copied. */
DLFS_API dlfs_status dlfs_average_create(dlfs_context ctx, DLFS_HOST dlfs_average *out, DLFS_HOST const int64_t *averages,
                                         DLFS_HOST const int64_t *values, DLFS_HOST const int64_t *elements, int32_t count);
DLFS_API dlfs_status dlfs_average_destroy(dlfs_average average); /* Releases the lists. */

/* average = *decay * average + (1 - *decay) * value, for all tensors in one launch: the exponential moving average of weights.
 * decay: fp32 on the device. skip: int32 on the device, nullable; where *skip != 0 nothing changes. */
DLFS_API dlfs_status dlfs_average_step(dlfs_stream stream, dlfs_average average, const float *decay, const int32_t *skip);

/* ---- detection ----------------------------------------------------------------------------------------------- */
/* On CUDA these functions take at most 65535 images, dlfs_nms and dlfs_soft_nms 2^24 candidates an image, dlfs_topk and
 * dlfs_select_candidates a k of 2^30, dlfs_focal_loss pitches of 2^24; more is DLFS_ERROR_ARGUMENT or DLFS_ERROR_SHAPE there. */

/* Anchors of one pyramid level, (feature_h * feature_w * A, 4), ordered row, column, cell anchor: cell_anchors (A, 4) fp32,
 * centred on 0, moved to (column * stride_w, row * stride_h), as torchvision's AnchorGenerator. */
DLFS_API dlfs_status dlfs_anchor_grid(dlfs_stream stream, float *out, const float *cell_anchors, int32_t feature_h,
                                      int32_t feature_w, int32_t anchors_per_cell, double stride_h, double stride_w);

/* out (A, B) = intersection over union of every box of a (A, 4) with every box of b (B, 4), as torchvision.ops.box_iou;
 * 0 where the union is 0. */
DLFS_API dlfs_status dlfs_box_iou(dlfs_stream stream, float *out, const float *a, const float *b, int32_t count_a,
                                  int32_t count_b);

/* deltas (count, 4) = torchvision's BoxCoder.encode of boxes against anchors: wx (gx - ax) / aw, wy (gy - ay) / ah,
 * ww log(gw / aw), wh log(gh / ah), with centres and sizes. */
DLFS_API dlfs_status dlfs_box_encode(dlfs_stream stream, float *deltas, const float *boxes, const float *anchors,
                                     int64_t count, double wx, double wy, double ww, double wh);

/* boxes (count, 4) = torchvision's BoxCoder.decode of deltas (fp32); dw, dh are clipped at log(1000 / 16). */
DLFS_API dlfs_status dlfs_box_decode(dlfs_stream stream, float *boxes, const float *deltas, const float *anchors,
                                     int64_t count, double wx, double wy, double ww, double wh);

#define DLFS_MATCH_THRESHOLDS 0  /* by the thresholds alone */
#define DLFS_MATCH_LOW_QUALITY 1 /* and each box keeps the anchors that reach its largest IoU */
#define DLFS_MATCH_BEST_ANCHOR 2 /* and each box's best anchor is matched to that box */

/* Bytes of workspace for dlfs_match_anchors. */
DLFS_API dlfs_status dlfs_match_anchors_workspace(dlfs_context ctx, DLFS_HOST int64_t *out, int32_t n, int32_t anchors,
                                                  int32_t max_boxes);

/* torchvision's Matcher for a batch: matches (N, A) int32 = the index of the box with the largest IoU (the lowest index
 * of equals) where that is >= high; -1 (background) where < low; -2 (ignored) between. Then, by matching, DLFS_MATCH_...:
 * LOW_QUALITY (allow_low_quality_matches): every anchor whose IoU equals the largest that some box reaches keeps its best
 * box's index. BEST_ANCHOR (SSDMatcher): the anchor with which a box has its largest IoU, even 0 (the lowest index of
 * equals), is matched to that box; where several boxes have the same best anchor, the last of them gets it.
 * foreground (N) int32 = matches >= 0. anchors (A, 4); boxes (N, M, 4) fp32, of which counts (N) int32 are real (0 allowed:
 * all background). */
DLFS_API dlfs_status dlfs_match_anchors(dlfs_stream stream, int32_t *matches, int32_t *foreground, const float *anchors,
                                        const float *boxes, const int32_t *counts, void *workspace, int32_t n,
                                        int32_t anchors_count, int32_t max_boxes, double high, double low,
                                        int32_t matching);

/* FCOS's assignment of points, the centres of square anchors (A, 4), to boxes, as torchvision's FCOS.compute_loss: matches
 * (N, A) int32 = the smallest of the boxes that contain the point, whose centre is nearer than radius times the anchor's
 * side along both axes, and whose farthest side is more than 4 and less than 8 anchor sides away (more than 0 for the first
 * first_level anchors, any distance for the last last_level ones); -1 where there is none. Areas are compared as 1e8 -
 * area in fp32: of boxes that rounding makes equal (below 8 square pixels of difference) the lowest index wins, and boxes of
 * 1e8 square pixels match nothing. Other arguments as dlfs_match_anchors. */
DLFS_API dlfs_status dlfs_match_points(dlfs_stream stream, int32_t *matches, int32_t *foreground, const float *anchors,
                                       const float *boxes, const int32_t *counts, int32_t n, int32_t anchors_count,
                                       int32_t max_boxes, int32_t first_level, int32_t last_level, double radius);

#define DLFS_CODER_CENTRE 0 /* torchvision's BoxCoder, as dlfs_box_decode */
#define DLFS_CODER_LINEAR 1 /* BoxLinearCoder with normalize_by_size: sides' distances from the anchor's centre / its size */

/* `normalization` of the losses below: what the terms of an image are divided by. */
#define DLFS_LOSS_PER_IMAGE 0   /* N max(1, the image's foreground): a mean over images, as torchvision's RetinaNet */
#define DLFS_LOSS_WHOLE_BATCH 1 /* max(1, the batch's foreground), as torchvision's FCOS and SSD */

/* The losses' gradients are times grad_factor and, where it is given, times *grad_scale: fp32 on the device, nullable; the
 * scale of dlfs_loss_scale_step. The loss itself is not. */

#define DLFS_MAX_LEVELS 16

/* Level maps. The functions that take `levels` read what a detector's heads wrote, where it lies: 1 to DLFS_MAX_LEVELS maps, one
 * for each level of the feature pyramid, map l (N, cells[l], pitches[l]) of dtype at the address that entry l of a host array
 * holds. The values of a cell are those of its per_cell anchors one after the other, so many `columns` of each (the classes, 4
 * deltas, 1 centre-ness logit), and then padding up to the pitch, which says nothing; gradients there are written as 0. Anchors
 * are ordered by level, cell, anchor of the cell, A = per_cell times the sum of cells. An array (N, A, columns) is one level of A
 * cells with per_cell 1 and pitch columns. A gradient's address may be that of its map, or 0 where it is not wanted. */

/* Bytes of workspace for dlfs_focal_loss, dlfs_box_loss and dlfs_centerness_loss. */
DLFS_API dlfs_status dlfs_detection_loss_workspace(dlfs_context ctx, DLFS_HOST int64_t *out, int32_t n, int32_t anchors,
                                                   int32_t classes);

/* Sigmoid focal loss (Lin et al. 2017) as torchvision's RetinaNet: *loss = the sum over anchors that are not ignored and
 * classes of alpha_t (1 - p_t)^gamma BCE, normalized (DLFS_LOSS_). logits: level maps of `classes` columns; matches (N, A) and
 * foreground (N) from dlfs_match_anchors; labels (N, M) int32 in [0, classes); alpha < 0 means no alpha; with gamma 0 and no
 * alpha it is binary cross-entropy. dlogits: maps as the logits, the gradient of *loss times grad_factor; ignored anchors get 0.
 * One pass over logits; loss fp32, the same order of sums each run. */
DLFS_API dlfs_status dlfs_focal_loss(dlfs_stream stream, float *loss, DLFS_HOST const int64_t *dlogits,
                                     DLFS_HOST const int64_t *logits, const int32_t *matches, const int32_t *labels,
                                     const int32_t *foreground, const float *grad_scale, void *workspace,
                                     DLFS_HOST const int32_t *cells, DLFS_HOST const int32_t *pitches, int32_t levels,
                                     int32_t n, int32_t per_cell, int32_t classes, int32_t max_boxes, dlfs_dtype dtype,
                                     double alpha, double gamma, int32_t normalization, double grad_factor);

#define DLFS_BOX_LOSS_SMOOTH_L1 0 /* sum of (d < beta ? d^2 / (2 beta) : d - beta / 2), d = |deltas - encoded box|; beta 0: L1 */
#define DLFS_BOX_LOSS_GIOU 1      /* 1 - IoU + (hull - union) / hull (Rezatofighi et al. 2019) */
#define DLFS_BOX_LOSS_CIOU 2      /* DIoU's + alpha v, v of the aspect ratios (Zheng et al. 2020); alpha is not differentiated */
#define DLFS_BOX_LOSS_IOU 3       /* 1 - IoU */
#define DLFS_BOX_LOSS_DIOU 4      /* 1 - IoU + squared distance of centres / squared diagonal of the hull (Zheng et al. 2020) */

/* The loss `kind` (DLFS_BOX_LOSS_) of each foreground anchor, summed and normalized (DLFS_LOSS_). deltas: level maps of 4
 * columns, coded by `coder` (DLFS_CODER_; wx, wy, ww, wh are used by CODER_CENTRE); anchors (A, 4). Kinds of IoU compare the
 * decoded box with the matched one, with torchvision.ops' eps of 1e-7, and differ from it where it has no number: a decoded
 * coordinate beyond 1e9 pixels counts as 1e9 (with gradient 0), the aspect ratio of a box without extent as 0. ddeltas: maps as
 * the deltas, the gradient times grad_factor, 0 outside the foreground, for dw and dh beyond the clip of dlfs_box_decode too. */
DLFS_API dlfs_status dlfs_box_loss(dlfs_stream stream, float *loss, DLFS_HOST const int64_t *ddeltas,
                                   DLFS_HOST const int64_t *deltas, const float *anchors, const int32_t *matches,
                                   const float *boxes, const int32_t *foreground, const float *grad_scale,
                                   void *workspace, DLFS_HOST const int32_t *cells, DLFS_HOST const int32_t *pitches,
                                   int32_t levels, int32_t n, int32_t per_cell, int32_t max_boxes, dlfs_dtype dtype,
                                   int32_t kind, int32_t coder, double wx, double wy, double ww, double wh, double beta,
                                   int32_t normalization, double grad_factor);

/* Bytes of workspace for dlfs_cross_entropy_loss. */
DLFS_API dlfs_status dlfs_cross_entropy_loss_workspace(dlfs_context ctx, DLFS_HOST int64_t *out, int32_t n,
                                                       int32_t anchors, double negative_ratio);

/* Softmax cross-entropy of the anchors that are not ignored, summed and normalized (DLFS_LOSS_). logits (N, A, classes) of
 * dtype, 2 to 10240 classes, the first for the background: an anchor's target is labels + 1 where it is matched, else 0
 * (labels (N, M) int32 in [0, classes - 1); another makes the loss NaN). negative_ratio < 0: all anchors count. Else hard
 * negative mining as torchvision's SSD: of the background, per image, those of largest loss whose rank from 0 is below
 * negative_ratio times the image's foreground, the lower index first among equals. dlogits (N, A, classes), nullable: the
 * gradient times grad_factor; anchors that do not count get 0. Mining reads the logits of the anchors that count twice. */
DLFS_API dlfs_status dlfs_cross_entropy_loss(dlfs_stream stream, float *loss, void *dlogits, const void *logits,
                                             const int32_t *matches, const int32_t *labels, const int32_t *foreground,
                                             const float *grad_scale, void *workspace, int32_t n, int32_t anchors,
                                             int32_t classes, int32_t max_boxes, dlfs_dtype dtype,
                                             double negative_ratio, int32_t normalization, double grad_factor);

/* FCOS's centre-ness loss (Tian et al. 2019): binary cross-entropy of the foreground anchors' logits, level maps of 1 column,
 * with sqrt(min(l, r) / max(l, r) min(t, b) / max(t, b)), the distances of the anchor's centre from the sides of its box (0 where
 * it lies outside), summed and normalized (DLFS_LOSS_). dlogits: maps as the logits, the gradient times grad_factor. Other
 * arguments as dlfs_box_loss. */
DLFS_API dlfs_status dlfs_centerness_loss(dlfs_stream stream, float *loss, DLFS_HOST const int64_t *dlogits,
                                          DLFS_HOST const int64_t *logits, const float *anchors, const int32_t *matches,
                                          const float *boxes, const int32_t *foreground, const float *grad_scale,
                                          void *workspace, DLFS_HOST const int32_t *cells,
                                          DLFS_HOST const int32_t *pitches, int32_t levels, int32_t n, int32_t per_cell,
                                          int32_t max_boxes, dlfs_dtype dtype, int32_t normalization,
                                          double grad_factor);

#define DLFS_SCORES_SIGMOID 0 /* the score is the sigmoid of a logit */
#define DLFS_SCORES_VALUES 1  /* the score is the value itself, any number */

/* Bytes of workspace for dlfs_topk. */
DLFS_API dlfs_status dlfs_topk_workspace(dlfs_context ctx, DLFS_HOST int64_t *out, int32_t n, int64_t m, int32_t k);

/* Per image the k largest scores > threshold (strictly), largest first, the lower index first among equals; NaN is left out.
 * logits (N, M) of dtype, read by kind, DLFS_SCORES_...; rows start logits_stride elements apart, result rows row_stride
 * elements apart (so that the levels of a pyramid fill one array). scores fp32; index int32 into the row, -1 (and score 0)
 * past the last. */
DLFS_API dlfs_status dlfs_topk(dlfs_stream stream, float *scores, int32_t *index, const void *logits, void *workspace,
                               int32_t n, int64_t m, int64_t logits_stride, int32_t k, int64_t row_stride,
                               dlfs_dtype dtype, int32_t kind, double threshold);

/* Bytes of workspace for dlfs_select_candidates. */
DLFS_API dlfs_status dlfs_select_candidates_workspace(dlfs_context ctx, DLFS_HOST int64_t *out,
                                                      DLFS_HOST const int32_t *cells, int32_t levels, int32_t n,
                                                      int32_t per_cell, int32_t classes, int32_t k);

/* What detectors with independent classes do before suppression: on each level, of all its anchors and classes together, the k
 * best scores > threshold (strictly), best first, the lower anchor and then class first among equals, NaN left out; with their
 * boxes, decoded from the deltas and clipped to image_sizes (N, 2) fp32 (height, width), and their classes as labels. logits,
 * centerness and deltas: level maps (of `classes`, 1 and 4 columns, each with pitches of its own) of one dtype; anchors (A, 4).
 * Scores are sigmoid(logit) or, where centerness is given (its addresses are not 0), FCOS's sqrt(sigmoid(logit)
 * sigmoid(centerness)). boxes (N, K, 4), scores (N, K), labels (N, K) int32, of K columns: level l has min(k, cells[l] per_cell
 * classes) of them, one level after the other; past a level's last candidate the score is 0, the label -1, the box 0. coder:
 * DLFS_CODER_; wx, wy, ww, wh are used by CODER_CENTRE. */
DLFS_API dlfs_status dlfs_select_candidates(dlfs_stream stream, float *boxes, float *scores, int32_t *labels,
                                            DLFS_HOST const int64_t *logits, DLFS_HOST const int64_t *centerness,
                                            DLFS_HOST const int64_t *deltas, const float *anchors,
                                            const float *image_sizes, void *workspace, DLFS_HOST const int32_t *cells,
                                            DLFS_HOST const int32_t *logits_pitches,
                                            DLFS_HOST const int32_t *centerness_pitches,
                                            DLFS_HOST const int32_t *deltas_pitches, int32_t levels, int32_t n,
                                            int32_t per_cell, int32_t classes, int32_t k, int32_t coder,
                                            dlfs_dtype dtype, double threshold, double wx, double wy, double ww,
                                            double wh);

/* Boxes and labels of dlfs_topk's results. per_class 0: index i of a row is anchor i / classes, class i %
 * classes. per_class > 0 (a top-k for each class): a row is blocks of per_class candidates; entry r has class r /
 * per_class, and index r is its anchor; k is a multiple of per_class and at most classes times it. boxes (N, row_stride, 4)
 * and labels (N, row_stride) int32 are written for k entries a row (label -1, box 0 where index is -1). deltas (N, A, 4) of
 * dtype, rows deltas_stride elements apart; anchors (A, 4). wx, wy, ww, wh are used by CODER_CENTRE. Boxes are clipped to
 * image_sizes (N, 2) fp32: height, width. */
DLFS_API dlfs_status dlfs_decode_candidates(dlfs_stream stream, float *boxes, int32_t *labels, const int32_t *index,
                                            const void *deltas, const float *anchors, const float *image_sizes,
                                            int32_t n, int32_t k, int64_t row_stride, int64_t deltas_stride,
                                            int32_t classes, int32_t per_class, int32_t coder, dlfs_dtype dtype,
                                            double wx, double wy, double ww, double wh);

/* Bytes of workspace for dlfs_nms. */
DLFS_API dlfs_status dlfs_nms_workspace(dlfs_context ctx, DLFS_HOST int64_t *out, int32_t n, int32_t k);

/* Greedy non-maximum suppression of a batch (torchvision.ops.batched_nms): candidates boxes (N, K, 4), scores (N, K),
 * labels (N, K), those with label < 0 left out; sorted by score (stable), a box is dropped when its IoU with a kept one (of
 * the same label when class_aware) is > iou_threshold. keep (N, max_out) int32: candidate indices, best first, -1 past
 * the last; keep_counts (N) int32. */
DLFS_API dlfs_status dlfs_nms(dlfs_stream stream, int32_t *keep, int32_t *keep_counts, const float *boxes,
                              const float *scores, const int32_t *labels, void *workspace, int32_t n, int32_t k,
                              int32_t max_out, double iou_threshold, int32_t class_aware);

#define DLFS_SOFT_NMS_LINEAR 0   /* an IoU above iou_threshold multiplies the score by 1 - IoU */
#define DLFS_SOFT_NMS_GAUSSIAN 1 /* any IoU multiplies the score by exp(-IoU^2 / sigma) */

/* Bytes of workspace for dlfs_soft_nms. */
DLFS_API dlfs_status dlfs_soft_nms_workspace(dlfs_context ctx, DLFS_HOST int64_t *out, int32_t n, int32_t k);

/* Soft-NMS of a batch (Bodla et al. 2017): up to max_out times the candidate of the largest score, the lower index first
 * among equals, is taken, and the others' scores (those of the same label when class_aware) are decayed by their IoU with it,
 * by method, DLFS_SOFT_NMS_... Candidates with label < 0 are left out, and those whose score is not > min_score, >= 0, at the
 * start or after a decay. keep, keep_counts and the candidates as dlfs_nms; keep_scores (N, max_out) fp32: the scores when
 * taken, which do not increase, 0 past the last. iou_threshold (0 to 1) is used by LINEAR, sigma (> 0) by GAUSSIAN. */
DLFS_API dlfs_status dlfs_soft_nms(dlfs_stream stream, int32_t *keep, int32_t *keep_counts, float *keep_scores,
                                   const float *boxes, const float *scores, const int32_t *labels, void *workspace,
                                   int32_t n, int32_t k, int32_t max_out, int32_t method, double iou_threshold,
                                   double sigma, double min_score, int32_t class_aware);

/* detections (N, max_out, 6) fp32: x1, y1, x2, y2, score, label of the kept candidates, zeros past the last. keep_scores
 * (N, max_out), nullable, replaces the candidates' scores. */
DLFS_API dlfs_status dlfs_gather_detections(dlfs_stream stream, float *detections, const float *boxes,
                                            const float *scores, const int32_t *labels, const int32_t *keep,
                                            const float *keep_scores, int32_t n, int32_t k, int32_t max_out);

/* ---- images -------------------------------------------------------------------------------------------------- */

#define DLFS_IMAGE_JPEG 1
#define DLFS_IMAGE_PNG 2
#define DLFS_IMAGE_WEBP 3

/* Reads the header of an image file, on any build: values[0..7] = width, height, format (DLFS_IMAGE_JPEG, PNG or WEBP),
 * components (1 gray, 2 gray with alpha, 3 colours, 4 colours with alpha, or CMYK and YCCK of a JPEG), bits per sample (of a
 * palette's index, where there is one), process (of a JPEG: 0 baseline or extended sequential, 1 progressive, 2 lossless, 3
 * arithmetic-coded; of a WebP: 0 lossy, 2 lossless; of a PNG: 2), EXIF orientation (1 where there is none), Adobe transform of
 * a JPEG (-1 none). Width and height are those of the upright picture: with an orientation of 5 to 8 the stored picture's
 * height and width. The bytes may end behind the header, but for a WebP with EXIF data, which lies at its end; of a JPEG only
 * EXIF data before the frame header counts, of a PNG only such before the image data. What is malformed in it is ignored. No
 * pixels are decoded, nothing is allocated. DLFS_ERROR_IMAGE says what is wrong (not such an image, no header before the end,
 * size 0, ...). */
DLFS_API dlfs_status dlfs_image_info_sync(DLFS_HOST int32_t *values, DLFS_HOST const void *bytes, int64_t length);

/* Decodes an image file to RGB: dst (height, width, 3) uint8 on the device, turned upright by the file's EXIF orientation.
 * width and height must be those that dlfs_image_info_sync gives. Waits for the result. JPEGs may have any sampling and
 * colours, CMYK and YCCK where supported. Of PNG files (any) palettes are looked up and 16 bits cut to the upper 8; of WebP
 * files (lossy, lossless) an animation's first frame counts. Transparency is dropped: colours stay as they are stored, as by
 * Pillow's convert("RGB"). A truncated or damaged file is DLFS_ERROR_IMAGE (damage inside a JPEG's coded data as far as the
 * decoder notices it; libjpeg-turbo notices more than nvJPEG), and so is one of another format, of more than 2^28 pixels, of more
 * than 65535 a side or of more than its bytes can hold, which is refused before anything is allocated. DLFS_ERROR_UNSUPPORTED: this library was
 * built without libpng or libwebp. */
DLFS_API dlfs_status dlfs_image_decode_sync(dlfs_stream stream, void *dst, DLFS_HOST const void *bytes, int64_t length,
                                            int32_t width, int32_t height);

/* Encodes pixels (height, width, 3) uint8 RGB on the device as a baseline JPEG, 4:2:0, quality 1 to 100; waits. *length
 * receives the size; a capacity too small is DLFS_ERROR_ARGUMENT naming the size needed. */
DLFS_API dlfs_status dlfs_jpeg_encode_sync(dlfs_stream stream, DLFS_HOST void *out, DLFS_HOST int64_t *length,
                                           const void *pixels, int64_t capacity, int32_t width, int32_t height,
                                           int32_t quality);

#define DLFS_TRANSFORM_FLOATS 12
#define DLFS_PREPROCESS_ANTIALIAS 1 /* flag: triangle filter over the footprint when shrinking (Pillow's bilinear) */
#define DLFS_PREPROCESS_BGR 2       /* flag: the output's channel order is B, G, R */

/* Crops, resizes, flips, normalises and casts n images into dst (n, out_h, out_w, out_c), out_c >= 3, further channels 0.
 * Image i: uint8 RGB at device address sources[i], sizes[2 i] high and sizes[2 i + 1] wide. transforms (n,
 * DLFS_TRANSFORM_FLOATS) per image: crop x, y, width, height in source pixels (may be fractional and reach outside the
 * image); target x, y, width, height in output pixels; flip_x, flip_y (0 or 1, mirroring the target); 2 unused (0).
 * Output pixel (u, v) inside the target samples crop coordinate ((u + 0.5 - target_x) * crop_w / target_w - 0.5) + crop_x,
 * bilinear, coordinates clamped to the image (torch's interpolate, align_corners false); outside the target, or where
 * the sampled point lies outside the image by more than half a pixel, it is the fill colour. Value written for channel c:
 * (pixel / 255 - mean[c]) / std[c] with normalisation = {mean[3], std[3], fill[3]} (fill in 0..255, RGB); for U8 output the
 * pixel itself, rounded. The triangle filter with ANTIALIAS follows torch's antialias=True. */
DLFS_API dlfs_status dlfs_preprocess(dlfs_stream stream, void *dst, DLFS_HOST const int64_t *sources,
                                     DLFS_HOST const int32_t *sizes, DLFS_HOST const float *transforms,
                                     DLFS_HOST const float *normalisation, int32_t n, int32_t out_h, int32_t out_w,
                                     int32_t out_c, dlfs_dtype dtype, int32_t flags);

/* dst[i, c] = (src[i, c] / 255 - mean[c]) / std[c] for RGB pixels src (pixels, 3) uint8, dst (pixels, 3) of dtype F32, BF16 or
 * F16, with normalisation = {mean[3], std[3]}: what dlfs_preprocess writes of an image that it leaves its size. */
DLFS_API dlfs_status dlfs_normalize_pixels(dlfs_stream stream, void *dst, const uint8_t *src,
                                           DLFS_HOST const float *normalisation, int64_t pixels, dlfs_dtype dtype);

#define DLFS_LAYER_NUMBERS 40     /* numbers that describe one layer of dlfs_augment */
#define DLFS_MAX_LAYERS 64        /* the most layers of one image */
#define DLFS_LAYER_ANTIALIAS 1    /* flag: triangle filter over the footprint when shrinking (Pillow's bilinear) */

/* Composes n images out of warped, recoloured sources and writes them normalised to dst (n, out_h, out_w, out_c), out_c >= 3,
 * further channels 0: crop, resize, flip, rotation, shear, letterbox, colour jitter, mosaic, paste, cutout and mixup in one
 * pass, with nothing rounded in between. An image is the fill colour on which its layers are drawn in order. Layer j draws
 * the uint8 RGB image at device address sources[j], or with address 0 one colour. layers (layer_count, DLFS_LAYER_NUMBERS):
 *   0       the image it is drawn on; not descending, and an image has DLFS_MAX_LAYERS at most
 *   1..3    the source's height, width and bytes from row to row (at least 3 width); 0 without a source
 *   4..9    the output to source map a, b, c, d, e, f: output pixel (u, v) samples the point
 *           (a (u + 0.5) + b (v + 0.5) + c, d (u + 0.5) + e (v + 0.5) + f) of the source, whose pixel i spans i to i + 1
 *   10..13  the part of the source that is drawn: x1, y1, x2, y2 in source pixels, x2 and y2 exclusive. A pixel whose point
 *           lies outside it, or outside the image, is left as it is; what is sampled near its edge may reach beyond it
 *   14..17  the part of the output that is drawn on: x1, y1, x2, y2, whole pixels inside the output, x2 and y2 exclusive
 *   18..29  a colour matrix (3, 4): red = m[0] r + m[1] g + m[2] b + m[3] and so on, in levels of 255, clamped to 0..255
 *   30..32  then, in hue, saturation and value: the hue's shift in turns (-1 to 1), factors of saturation and value (0 to
 *           1000), both clamped
 *   33..35  the colour of a layer without a source, 0..255; it is drawn as it is
 *   36      opacity, 0 to 1: drawn over what is there
 *   37      0, or the weight, above 0 and up to 1, of a new picture that begins with this layer on the fill colour: what
 *           was drawn so far is finished, and the result is (1 - weight) of it and weight of the new picture. It means
 *           nothing on an image's first layer
 *   38      flags
 *   39      unused, 0
 * Sampling is bilinear, coordinates clamped to the image. With ANTIALIAS, the filter's support along the source's axes is
 * max(1, |a| + |b|) and max(1, |d| + |e|) pixels: without rotation and shear, Pillow's bilinear resize, and with them
 * somewhat smoother. normalisation, dtype and flags as dlfs_preprocess (DLFS_PREPROCESS_BGR alone). */
DLFS_API dlfs_status dlfs_augment(dlfs_stream stream, void *dst, DLFS_HOST const int64_t *sources,
                                  DLFS_HOST const double *layers, DLFS_HOST const float *normalisation, int32_t n,
                                  int32_t layer_count, int32_t out_h, int32_t out_w, int32_t out_c, dlfs_dtype dtype,
                                  int32_t flags);

/* Starts decoding threads (0: a good number for the machine), each with scratch memory and, on a GPU, a stream. hardware, 0 to
 * 100, is the share of images in per cent that a GPU's JPEG engines decode beside the threads, among those that they take:
 * 8-bit baseline JPEGs of one scan that are stored upright, gray or YCbCr in 4:4:4, 4:2:2 or 4:2:0. Which images these are
 * depends on each image's bytes alone. The engines' pixels may differ by a few levels, and they notice no damage inside the
 * coded data but what the segments and the markers around it show. Where there are no engines (dlfs_supports
 * "jpeg.hardware"), the share has no effect. */
DLFS_API dlfs_status dlfs_decoder_create(dlfs_context ctx, DLFS_HOST dlfs_decoder *out, int32_t threads, int32_t hardware);
DLFS_API dlfs_status dlfs_decoder_destroy(dlfs_decoder decoder); /* Waits for its jobs, then ends the threads. */

/* Decodes n image files and preprocesses each into its slot of dst, as dlfs_image_decode_sync and dlfs_preprocess do; returns
 * at once. Image i is lengths[i] bytes at address sources[i] in pinned host memory (dlfs_host_malloc), which must stay until
 * the job has finished; or, where lengths[i] is -1, the file whose path begins at byte sources[i] of paths: path_bytes bytes
 * of NUL-terminated UTF-8, which the call copies (0 where no image is in a file). Decoding threads read files, one each at a
 * time. One that cannot be opened or read, is no regular file, is over 2^30 bytes or becomes shorter while it is read is
 * DLFS_ERROR_IO; messages of images in files begin with the path. dst must stay until the job has finished. Other arguments
 * as dlfs_preprocess. A slot whose image fails is filled with the fill colour; the others are not affected. */
DLFS_API dlfs_status dlfs_decoder_submit(dlfs_decoder decoder, DLFS_HOST dlfs_job *out, void *dst,
                                         DLFS_HOST const int64_t *sources, DLFS_HOST const int64_t *lengths,
                                         DLFS_HOST const char *paths, DLFS_HOST const float *transforms,
                                         DLFS_HOST const float *normalisation, int64_t path_bytes, int32_t n,
                                         int32_t out_h, int32_t out_w, int32_t out_c, dlfs_dtype dtype, int32_t flags);

/* Decodes n image files, each to pixels (height, width, 3) uint8 RGB of its own at device address dst[i], upright; returns at
 * once. sources, lengths and paths as dlfs_decoder_submit. sizes (n, 2): the height and width that each image must have; an
 * image of another size is DLFS_ERROR_IMAGE. The pixels of an image that fails are undefined, the others are not affected. */
DLFS_API dlfs_status dlfs_decoder_submit_pixels(dlfs_decoder decoder, DLFS_HOST dlfs_job *out,
                                                DLFS_HOST const int64_t *dst, DLFS_HOST const int64_t *sources,
                                                DLFS_HOST const int64_t *lengths, DLFS_HOST const char *paths,
                                                DLFS_HOST const int32_t *sizes, int64_t path_bytes, int32_t n);

/* DLFS_OK when all images of the job are written (visible to any stream from then on), else DLFS_NOT_READY. */
DLFS_API dlfs_status dlfs_job_query(dlfs_job job);

/* Waits until dlfs_job_query would be DLFS_OK. */
DLFS_API dlfs_status dlfs_job_wait_sync(dlfs_job job);

/* status of each image of a finished job, n values: DLFS_OK or a negative status. */
DLFS_API dlfs_status dlfs_job_results(dlfs_job job, DLFS_HOST int32_t *status);

/* The error message of image i of a finished job, NUL-terminated, truncated; empty where it succeeded. */
DLFS_API dlfs_status dlfs_job_message(dlfs_job job, DLFS_HOST char *out, int64_t capacity, int32_t i);
DLFS_API dlfs_status dlfs_job_destroy(dlfs_job job); /* Waits for the job, then releases it. */

#ifdef __cplusplus
}
#endif
#endif
