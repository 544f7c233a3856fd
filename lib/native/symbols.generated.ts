// Generated from csrc/include/dlfs.h by scripts/generate-symbols.ts. Do not edit.

export const headerHash = "fb9ccd891380c3c6";

/** The header's constants, without their DLFS_ prefix. */
export const constants = {
  ABI_VERSION: 1,
  OK: 0,
  NOT_READY: 1,
  ERROR_ARGUMENT: -100,
  ERROR_SHAPE: -101,
  ERROR_DTYPE: -102,
  ERROR_HANDLE: -103,
  ERROR_UNSUPPORTED: -104,
  ERROR_MEMORY: -200,
  ERROR_HOST_MEMORY: -201,
  ERROR_IO: -300,
  ERROR_IMAGE: -301,
  ERROR_CUDA: -400,
  ERROR_CUDA_FATAL: -401,
  ERROR_CUDNN: -500,
  ERROR_CUBLAS: -501,
  ERROR_NVJPEG: -502,
  ERROR_ONEDNN: -503,
  ERROR_COLLECTIVE: -600,
  ERROR_INTERNAL: -900,
  F32: 0,
  BF16: 1,
  F16: 2,
  I32: 3,
  U8: 4,
  I64: 5,
  F8E4M3: 6,
  I8: 7,
  ACT_NONE: 0,
  ACT_RELU: 1,
  ACT_SIGMOID: 2,
  ACT_SILU: 3,
  ACT_RELU6: 4,
  ACT_LEAKY_RELU: 5,
  ACT_HARDSWISH: 6,
  ACT_HARDSIGMOID: 7,
  REDUCE_SUM: 0,
  REDUCE_AVERAGE: 1,
  CONV_FORWARD: 0,
  CONV_BACKWARD_DATA: 1,
  CONV_BACKWARD_WEIGHT: 2,
  CONV_BIAS: 1,
  CONV_RESIDUAL: 2,
  CONV_RELU_MASK: 4,
  CONV_Y_F32: 8,
  CONV_Y_BF16: 16,
  CONV_Y_F16: 32,
  CONV_MOMENTS: 64,
  CONV_KEY: 18,
  MAGNITUDE_BINS: 8192,
  LOSS_SCALE_COUNTERS: 3,
  MATCH_THRESHOLDS: 0,
  MATCH_LOW_QUALITY: 1,
  MATCH_BEST_ANCHOR: 2,
  CODER_CENTRE: 0,
  CODER_LINEAR: 1,
  LOSS_PER_IMAGE: 0,
  LOSS_WHOLE_BATCH: 1,
  MAX_LEVELS: 16,
  BOX_LOSS_SMOOTH_L1: 0,
  BOX_LOSS_GIOU: 1,
  BOX_LOSS_CIOU: 2,
  BOX_LOSS_IOU: 3,
  BOX_LOSS_DIOU: 4,
  SCORES_SIGMOID: 0,
  SCORES_VALUES: 1,
  SOFT_NMS_LINEAR: 0,
  SOFT_NMS_GAUSSIAN: 1,
  IMAGE_JPEG: 1,
  IMAGE_PNG: 2,
  IMAGE_WEBP: 3,
  TRANSFORM_FLOATS: 12,
  PREPROCESS_ANTIALIAS: 1,
  PREPROCESS_BGR: 2,
  LAYER_NUMBERS: 40,
  MAX_LAYERS: 64,
  LAYER_ANTIALIAS: 1,
} as const;

/** A device address: an integer that JavaScript holds exactly. */
export type Address = number;
/** Host memory passed for the duration of a call. */
export type HostView = NodeJS.TypedArray | DataView;

export const symbols = {
  dlfs_abi_version: { args: [], returns: "i32" },
  dlfs_last_error: { args: [], returns: "cstring" },
  dlfs_build_info: { args: ["buffer", "i64"], returns: "i32" },
  dlfs_device_count: { args: ["buffer"], returns: "i32" },
  dlfs_device_info: { args: ["buffer", "i64", "buffer", "i32"], returns: "i32" },
  dlfs_context_create: { args: ["buffer", "i32"], returns: "i32" },
  dlfs_context_destroy: { args: ["i64"], returns: "i32" },
  dlfs_context_option: { args: ["i64", "buffer", "i64"], returns: "i32" },
  dlfs_supports: { args: ["i64", "buffer", "buffer"], returns: "i32" },
  dlfs_malloc: { args: ["i64", "buffer", "i64"], returns: "i32" },
  dlfs_free: { args: ["i64", "ptr"], returns: "i32" },
  dlfs_host_malloc: { args: ["i64", "buffer", "i64"], returns: "i32" },
  dlfs_host_free: { args: ["i64", "ptr"], returns: "i32" },
  dlfs_memory_info: { args: ["i64", "buffer"], returns: "i32" },
  dlfs_copy_to_device: { args: ["i64", "ptr", "ptr", "i64"], returns: "i32" },
  dlfs_copy_to_host: { args: ["i64", "ptr", "ptr", "i64"], returns: "i32" },
  dlfs_copy: { args: ["i64", "ptr", "ptr", "i64"], returns: "i32" },
  dlfs_copy_2d: { args: ["i64", "ptr", "ptr", "i64", "i64", "i64", "i64"], returns: "i32" },
  dlfs_memset: { args: ["i64", "ptr", "i64", "i32"], returns: "i32" },
  dlfs_upload_sync: { args: ["i64", "ptr", "buffer", "i64"], returns: "i32" },
  dlfs_download_sync: { args: ["i64", "buffer", "ptr", "i64"], returns: "i32" },
  dlfs_stream_create: { args: ["i64", "buffer"], returns: "i32" },
  dlfs_stream_destroy: { args: ["i64"], returns: "i32" },
  dlfs_stream_synchronize: { args: ["i64"], returns: "i32" },
  dlfs_stream_query: { args: ["i64"], returns: "i32" },
  dlfs_event_create: { args: ["i64", "buffer"], returns: "i32" },
  dlfs_event_destroy: { args: ["i64"], returns: "i32" },
  dlfs_event_record: { args: ["i64", "i64"], returns: "i32" },
  dlfs_event_query: { args: ["i64"], returns: "i32" },
  dlfs_event_synchronize: { args: ["i64"], returns: "i32" },
  dlfs_stream_wait_event: { args: ["i64", "i64"], returns: "i32" },
  dlfs_event_elapsed: { args: ["buffer", "i64", "i64"], returns: "i32" },
  dlfs_graph_begin: { args: ["i64"], returns: "i32" },
  dlfs_graph_end: { args: ["i64", "buffer"], returns: "i32" },
  dlfs_graph_launch: { args: ["i64", "i64"], returns: "i32" },
  dlfs_graph_destroy: { args: ["i64"], returns: "i32" },
  dlfs_comm_create: { args: ["i64", "buffer", "i32", "i32", "buffer", "i64"], returns: "i32" },
  dlfs_comm_address: { args: ["i64", "buffer", "i64", "buffer"], returns: "i32" },
  dlfs_comm_connect: { args: ["i64", "buffer", "buffer"], returns: "i32" },
  dlfs_comm_query: { args: ["i64"], returns: "i32" },
  dlfs_comm_all_reduce: { args: ["i64", "i64", "buffer", "buffer", "i32", "i32", "i32", "i32"], returns: "i32" },
  dlfs_comm_broadcast: { args: ["i64", "i64", "buffer", "buffer", "i32", "i32", "i32"], returns: "i32" },
  dlfs_comm_all_gather: { args: ["i64", "i64", "buffer", "buffer", "buffer", "i32", "i32"], returns: "i32" },
  dlfs_comm_barrier: { args: ["i64", "i64", "i32"], returns: "i32" },
  dlfs_comm_wait: { args: ["i64", "i64"], returns: "i32" },
  dlfs_comm_progress: { args: ["i64", "buffer"], returns: "i32" },
  dlfs_comm_abort: { args: ["i64"], returns: "i32" },
  dlfs_comm_destroy: { args: ["i64"], returns: "i32" },
  dlfs_fill: { args: ["i64", "ptr", "i64", "i32", "f64"], returns: "i32" },
  dlfs_cast: { args: ["i64", "ptr", "ptr", "i64", "i32", "i32"], returns: "i32" },
  dlfs_add: { args: ["i64", "ptr", "ptr", "ptr", "i64", "i32", "i32"], returns: "i32" },
  dlfs_multiply: { args: ["i64", "ptr", "ptr", "ptr", "i64", "i32"], returns: "i32" },
  dlfs_scale: { args: ["i64", "ptr", "ptr", "ptr", "i64", "i32", "f64"], returns: "i32" },
  dlfs_activation_forward: { args: ["i64", "ptr", "ptr", "i64", "i32", "i32", "f64"], returns: "i32" },
  dlfs_activation_backward: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "i64", "i32", "i32", "f64"], returns: "i32" },
  dlfs_softmax_forward: { args: ["i64", "ptr", "ptr", "i64", "i32", "i32"], returns: "i32" },
  dlfs_softmax_backward: { args: ["i64", "ptr", "ptr", "ptr", "i64", "i32", "i32"], returns: "i32" },
  dlfs_channel_scale: { args: ["i64", "ptr", "ptr", "ptr", "i32", "i64", "i32", "i32"], returns: "i32" },
  dlfs_channel_dot_workspace: { args: ["i64", "buffer", "i32", "i64", "i32", "i32"], returns: "i32" },
  dlfs_channel_dot: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "i32", "i64", "i32", "i32"], returns: "i32" },
  dlfs_channel_shuffle: { args: ["i64", "ptr", "ptr", "i64", "i32", "i32", "i32"], returns: "i32" },
  dlfs_dropout_forward: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "i64", "i32", "f64", "i64"], returns: "i32" },
  dlfs_dropout_backward: { args: ["i64", "ptr", "ptr", "ptr", "i64", "i32", "f64"], returns: "i32" },
  dlfs_transpose: { args: ["i64", "ptr", "ptr", "i64", "i64", "i64", "i32"], returns: "i32" },
  dlfs_check_finite: { args: ["i64", "ptr", "ptr", "i64", "i32"], returns: "i32" },
  dlfs_init_uniform: { args: ["i64", "ptr", "i64", "i64", "i64", "f64", "f64"], returns: "i32" },
  dlfs_init_normal: { args: ["i64", "ptr", "i64", "i64", "i64", "f64", "f64"], returns: "i32" },
  dlfs_conv_create: { args: ["i64", "buffer", "buffer", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"], returns: "i32" },
  dlfs_conv_create_many: { args: ["i64", "buffer", "buffer", "buffer", "i64", "i32"], returns: "i32" },
  dlfs_conv_destroy: { args: ["i64"], returns: "i32" },
  dlfs_conv_tune_ahead: { args: ["i64"], returns: "i32" },
  dlfs_conv_tune_sync: { args: ["i64", "i64", "f64"], returns: "i32" },
  dlfs_conv_workspace: { args: ["i64", "buffer"], returns: "i32" },
  dlfs_conv_pick: { args: ["i64", "buffer", "i64"], returns: "i32" },
  dlfs_conv_forward: { args: ["i64", "i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr"], returns: "i32" },
  dlfs_conv_forward_moments: { args: ["i64", "i64", "ptr", "ptr", "ptr", "ptr", "ptr"], returns: "i32" },
  dlfs_conv_forward_scaled: { args: ["i64", "i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr"], returns: "i32" },
  dlfs_conv_backward_data: { args: ["i64", "i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr"], returns: "i32" },
  dlfs_conv_backward_weight: { args: ["i64", "i64", "ptr", "ptr", "ptr", "ptr"], returns: "i32" },
  dlfs_quantize: { args: ["i64", "ptr", "ptr", "i64", "i32", "i32", "f64"], returns: "i32" },
  dlfs_dequantize: { args: ["i64", "ptr", "ptr", "i64", "i32", "i32", "f64"], returns: "i32" },
  dlfs_quantize_channels: { args: ["i64", "ptr", "ptr", "ptr", "i32", "i64", "i32", "i32"], returns: "i32" },
  dlfs_count_magnitudes: { args: ["i64", "ptr", "ptr", "i64", "i32"], returns: "i32" },
  dlfs_channel_sum_workspace: { args: ["i64", "buffer", "i64", "i32", "i32"], returns: "i32" },
  dlfs_channel_sum: { args: ["i64", "ptr", "ptr", "ptr", "i64", "i32", "i32"], returns: "i32" },
  dlfs_add_bias: { args: ["i64", "ptr", "ptr", "ptr", "i64", "i32", "i32", "i32"], returns: "i32" },
  dlfs_batch_norm_workspace: { args: ["i64", "buffer", "i64", "i32", "i32"], returns: "i32" },
  dlfs_batch_norm_train: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i64", "i32", "i64", "i32", "f64", "f64", "i32"], returns: "i32" },
  dlfs_batch_norm_infer: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i64", "i32", "i32", "f64", "i32"], returns: "i32" },
  dlfs_batch_norm_backward: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i64", "i32", "i32", "i32"], returns: "i32" },
  dlfs_batch_norm_moments: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "i64", "i32", "i64", "i32"], returns: "i32" },
  dlfs_batch_norm_backward_sums: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i64", "i32", "i32", "i32"], returns: "i32" },
  dlfs_batch_norm_backward_input: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i64", "i32", "i32", "i32"], returns: "i32" },
  dlfs_batch_norm_statistics: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i64", "i32", "i64", "i32", "f64", "f64"], returns: "i32" },
  dlfs_batch_norm_join: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i64", "i32", "i32", "i32"], returns: "i32" },
  dlfs_batch_norm_join_workspace: { args: ["i64", "buffer", "i64", "i32", "i32"], returns: "i32" },
  dlfs_batch_norm_join_backward: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i64", "i32", "i32"], returns: "i32" },
  dlfs_batch_norm_fold: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i32", "i64", "i32", "f64"], returns: "i32" },
  dlfs_batch_norm_fold_backward: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "i32", "i64", "f64"], returns: "i32" },
  dlfs_group_norm_workspace: { args: ["i64", "buffer", "i32", "i64", "i32", "i32", "i32"], returns: "i32" },
  dlfs_group_norm_forward: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i32", "i64", "i32", "i32", "i32", "f64", "i32"], returns: "i32" },
  dlfs_group_norm_backward: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i32", "i64", "i32", "i32", "i32", "i32"], returns: "i32" },
  dlfs_max_pool_forward: { args: ["i64", "ptr", "ptr", "ptr", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"], returns: "i32" },
  dlfs_max_pool_backward: { args: ["i64", "ptr", "ptr", "ptr", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"], returns: "i32" },
  dlfs_avg_pool_forward: { args: ["i64", "ptr", "ptr", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"], returns: "i32" },
  dlfs_avg_pool_backward: { args: ["i64", "ptr", "ptr", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"], returns: "i32" },
  dlfs_upsample_nearest_forward: { args: ["i64", "ptr", "ptr", "i32", "i32", "i32", "i32", "i32", "i32", "i32"], returns: "i32" },
  dlfs_upsample_nearest_backward: { args: ["i64", "ptr", "ptr", "i32", "i32", "i32", "i32", "i32", "i32", "i32"], returns: "i32" },
  dlfs_upsample_bilinear_forward: { args: ["i64", "ptr", "ptr", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "f64", "f64"], returns: "i32" },
  dlfs_upsample_bilinear_backward: { args: ["i64", "ptr", "ptr", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "f64", "f64"], returns: "i32" },
  dlfs_sgd_create: { args: ["i64", "buffer", "buffer", "buffer", "buffer", "buffer", "buffer", "buffer", "buffer", "i32", "i32"], returns: "i32" },
  dlfs_sgd_destroy: { args: ["i64"], returns: "i32" },
  dlfs_sgd_grad_norm_workspace: { args: ["i64", "buffer"], returns: "i32" },
  dlfs_sgd_grad_norm: { args: ["i64", "i64", "ptr", "ptr", "ptr"], returns: "i32" },
  dlfs_sgd_step: { args: ["i64", "i64", "ptr", "ptr", "ptr", "ptr", "f64", "i32", "f64", "f64", "f64"], returns: "i32" },
  dlfs_loss_scale_step: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "f64", "f64", "i32", "f64", "i32"], returns: "i32" },
  dlfs_sgd_checksums: { args: ["i64", "i64", "ptr"], returns: "i32" },
  dlfs_sgd_refresh_casts: { args: ["i64", "i64"], returns: "i32" },
  dlfs_schedule_step: { args: ["i64", "ptr", "ptr", "ptr", "i64"], returns: "i32" },
  dlfs_average_create: { args: ["i64", "buffer", "buffer", "buffer", "buffer", "i32"], returns: "i32" },
  dlfs_average_destroy: { args: ["i64"], returns: "i32" },
  dlfs_average_step: { args: ["i64", "i64", "ptr", "ptr"], returns: "i32" },
  dlfs_anchor_grid: { args: ["i64", "ptr", "ptr", "i32", "i32", "i32", "f64", "f64"], returns: "i32" },
  dlfs_box_iou: { args: ["i64", "ptr", "ptr", "ptr", "i32", "i32"], returns: "i32" },
  dlfs_box_encode: { args: ["i64", "ptr", "ptr", "ptr", "i64", "f64", "f64", "f64", "f64"], returns: "i32" },
  dlfs_box_decode: { args: ["i64", "ptr", "ptr", "ptr", "i64", "f64", "f64", "f64", "f64"], returns: "i32" },
  dlfs_match_anchors_workspace: { args: ["i64", "buffer", "i32", "i32", "i32"], returns: "i32" },
  dlfs_match_anchors: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i32", "i32", "i32", "f64", "f64", "i32"], returns: "i32" },
  dlfs_match_points: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "ptr", "i32", "i32", "i32", "i32", "i32", "f64"], returns: "i32" },
  dlfs_detection_loss_workspace: { args: ["i64", "buffer", "i32", "i32", "i32"], returns: "i32" },
  dlfs_focal_loss: { args: ["i64", "ptr", "buffer", "buffer", "ptr", "ptr", "ptr", "ptr", "ptr", "buffer", "buffer", "i32", "i32", "i32", "i32", "i32", "i32", "f64", "f64", "i32", "f64"], returns: "i32" },
  dlfs_box_loss: { args: ["i64", "ptr", "buffer", "buffer", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "buffer", "buffer", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "f64", "f64", "f64", "f64", "f64", "i32", "f64"], returns: "i32" },
  dlfs_cross_entropy_loss_workspace: { args: ["i64", "buffer", "i32", "i32", "f64"], returns: "i32" },
  dlfs_cross_entropy_loss: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i32", "i32", "i32", "i32", "i32", "f64", "i32", "f64"], returns: "i32" },
  dlfs_centerness_loss: { args: ["i64", "ptr", "buffer", "buffer", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "buffer", "buffer", "i32", "i32", "i32", "i32", "i32", "i32", "f64"], returns: "i32" },
  dlfs_topk_workspace: { args: ["i64", "buffer", "i32", "i64", "i32"], returns: "i32" },
  dlfs_topk: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "i32", "i64", "i64", "i32", "i64", "i32", "i32", "f64"], returns: "i32" },
  dlfs_select_candidates_workspace: { args: ["i64", "buffer", "buffer", "i32", "i32", "i32", "i32", "i32"], returns: "i32" },
  dlfs_select_candidates: { args: ["i64", "ptr", "ptr", "ptr", "buffer", "buffer", "buffer", "ptr", "ptr", "ptr", "buffer", "buffer", "buffer", "buffer", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "f64", "f64", "f64", "f64", "f64"], returns: "i32" },
  dlfs_decode_candidates: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i32", "i32", "i64", "i64", "i32", "i32", "i32", "i32", "f64", "f64", "f64", "f64"], returns: "i32" },
  dlfs_nms_workspace: { args: ["i64", "buffer", "i32", "i32"], returns: "i32" },
  dlfs_nms: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i32", "i32", "i32", "f64", "i32"], returns: "i32" },
  dlfs_soft_nms_workspace: { args: ["i64", "buffer", "i32", "i32"], returns: "i32" },
  dlfs_soft_nms: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i32", "i32", "i32", "i32", "f64", "f64", "f64", "i32"], returns: "i32" },
  dlfs_gather_detections: { args: ["i64", "ptr", "ptr", "ptr", "ptr", "ptr", "ptr", "i32", "i32", "i32"], returns: "i32" },
  dlfs_image_info_sync: { args: ["buffer", "buffer", "i64"], returns: "i32" },
  dlfs_image_decode_sync: { args: ["i64", "ptr", "buffer", "i64", "i32", "i32"], returns: "i32" },
  dlfs_jpeg_encode_sync: { args: ["i64", "buffer", "buffer", "ptr", "i64", "i32", "i32", "i32"], returns: "i32" },
  dlfs_preprocess: { args: ["i64", "ptr", "buffer", "buffer", "buffer", "buffer", "i32", "i32", "i32", "i32", "i32", "i32"], returns: "i32" },
  dlfs_normalize_pixels: { args: ["i64", "ptr", "ptr", "buffer", "i64", "i32"], returns: "i32" },
  dlfs_augment: { args: ["i64", "ptr", "buffer", "buffer", "buffer", "i32", "i32", "i32", "i32", "i32", "i32", "i32"], returns: "i32" },
  dlfs_decoder_create: { args: ["i64", "buffer", "i32", "i32"], returns: "i32" },
  dlfs_decoder_destroy: { args: ["i64"], returns: "i32" },
  dlfs_decoder_submit: { args: ["i64", "buffer", "ptr", "buffer", "buffer", "buffer", "buffer", "buffer", "i64", "i32", "i32", "i32", "i32", "i32", "i32"], returns: "i32" },
  dlfs_decoder_submit_pixels: { args: ["i64", "buffer", "buffer", "buffer", "buffer", "buffer", "buffer", "i64", "i32"], returns: "i32" },
  dlfs_job_query: { args: ["i64"], returns: "i32" },
  dlfs_job_wait_sync: { args: ["i64"], returns: "i32" },
  dlfs_job_results: { args: ["i64", "buffer"], returns: "i32" },
  dlfs_job_message: { args: ["i64", "buffer", "i64", "i32"], returns: "i32" },
  dlfs_job_destroy: { args: ["i64"], returns: "i32" },
} as const;

/** Argument names, for error messages. */
export const argumentNames: Record<string, readonly string[]> = {
  dlfs_abi_version: [],
  dlfs_last_error: [],
  dlfs_build_info: ["out", "capacity"],
  dlfs_device_count: ["out"],
  dlfs_device_info: ["name", "capacity", "values", "device"],
  dlfs_context_create: ["out", "device"],
  dlfs_context_destroy: ["ctx"],
  dlfs_context_option: ["ctx", "name", "value"],
  dlfs_supports: ["ctx", "out", "feature"],
  dlfs_malloc: ["ctx", "out", "bytes"],
  dlfs_free: ["ctx", "address"],
  dlfs_host_malloc: ["ctx", "out", "bytes"],
  dlfs_host_free: ["ctx", "address"],
  dlfs_memory_info: ["ctx", "values"],
  dlfs_copy_to_device: ["stream", "dst", "pinnedSrc", "bytes"],
  dlfs_copy_to_host: ["stream", "pinnedDst", "src", "bytes"],
  dlfs_copy: ["stream", "dst", "src", "bytes"],
  dlfs_copy_2d: ["stream", "dst", "src", "rows", "rowBytes", "dstPitch", "srcPitch"],
  dlfs_memset: ["stream", "dst", "bytes", "value"],
  dlfs_upload_sync: ["stream", "dst", "src", "bytes"],
  dlfs_download_sync: ["stream", "dst", "src", "bytes"],
  dlfs_stream_create: ["ctx", "out"],
  dlfs_stream_destroy: ["stream"],
  dlfs_stream_synchronize: ["stream"],
  dlfs_stream_query: ["stream"],
  dlfs_event_create: ["ctx", "out"],
  dlfs_event_destroy: ["event"],
  dlfs_event_record: ["stream", "event"],
  dlfs_event_query: ["event"],
  dlfs_event_synchronize: ["event"],
  dlfs_stream_wait_event: ["stream", "event"],
  dlfs_event_elapsed: ["outMs", "start", "end"],
  dlfs_graph_begin: ["stream"],
  dlfs_graph_end: ["stream", "out"],
  dlfs_graph_launch: ["stream", "graph"],
  dlfs_graph_destroy: ["graph"],
  dlfs_comm_create: ["ctx", "out", "rank", "world", "host", "timeoutMs"],
  dlfs_comm_address: ["comm", "out", "capacity", "bytes"],
  dlfs_comm_connect: ["comm", "addresses", "sizes"],
  dlfs_comm_query: ["comm"],
  dlfs_comm_all_reduce: ["stream", "comm", "buffers", "sizes", "count", "dtype", "operation", "label"],
  dlfs_comm_broadcast: ["stream", "comm", "buffers", "sizes", "count", "root", "label"],
  dlfs_comm_all_gather: ["stream", "comm", "outs", "owns", "sizes", "count", "label"],
  dlfs_comm_barrier: ["stream", "comm", "label"],
  dlfs_comm_wait: ["stream", "comm"],
  dlfs_comm_progress: ["comm", "values"],
  dlfs_comm_abort: ["comm"],
  dlfs_comm_destroy: ["comm"],
  dlfs_fill: ["stream", "dst", "n", "dtype", "value"],
  dlfs_cast: ["stream", "dst", "src", "n", "dstDtype", "srcDtype"],
  dlfs_add: ["stream", "dst", "a", "b", "n", "dtype", "activation"],
  dlfs_multiply: ["stream", "dst", "a", "b", "n", "dtype"],
  dlfs_scale: ["stream", "dst", "src", "deviceFactor", "n", "dtype", "factor"],
  dlfs_activation_forward: ["stream", "y", "x", "n", "dtype", "activation", "slope"],
  dlfs_activation_backward: ["stream", "dx", "dy", "x", "y", "n", "dtype", "activation", "slope"],
  dlfs_softmax_forward: ["stream", "y", "x", "rows", "c", "dtype"],
  dlfs_softmax_backward: ["stream", "dx", "dy", "y", "rows", "c", "dtype"],
  dlfs_channel_scale: ["stream", "y", "x", "s", "n", "rows", "c", "dtype"],
  dlfs_channel_dot_workspace: ["ctx", "out", "n", "rows", "c", "dtype"],
  dlfs_channel_dot: ["stream", "out", "a", "b", "workspace", "n", "rows", "c", "dtype"],
  dlfs_channel_shuffle: ["stream", "y", "x", "rows", "c", "groups", "dtype"],
  dlfs_dropout_forward: ["stream", "y", "mask", "counter", "x", "n", "dtype", "p", "seed"],
  dlfs_dropout_backward: ["stream", "dx", "dy", "mask", "n", "dtype", "p"],
  dlfs_transpose: ["stream", "dst", "src", "n", "rows", "columns", "dtype"],
  dlfs_check_finite: ["stream", "flag", "x", "n", "dtype"],
  dlfs_init_uniform: ["stream", "dst", "n", "seed", "offset", "low", "high"],
  dlfs_init_normal: ["stream", "dst", "n", "seed", "offset", "mean", "std"],
  dlfs_conv_create: ["ctx", "out", "pick", "direction", "dtype", "n", "h", "w", "c", "k", "r", "s", "strideH", "strideW", "padH", "padW", "dilationH", "dilationW", "groups", "flags", "activation"],
  dlfs_conv_create_many: ["ctx", "out", "picks", "keys", "pickBytes", "count"],
  dlfs_conv_destroy: ["conv"],
  dlfs_conv_tune_ahead: ["conv"],
  dlfs_conv_tune_sync: ["stream", "conv", "budgetMs"],
  dlfs_conv_workspace: ["conv", "out"],
  dlfs_conv_pick: ["conv", "out", "capacity"],
  dlfs_conv_forward: ["stream", "conv", "y", "x", "w", "bias", "residual", "workspace"],
  dlfs_conv_forward_moments: ["stream", "conv", "y", "moments", "x", "w", "workspace"],
  dlfs_conv_forward_scaled: ["stream", "conv", "y", "x", "w", "scale", "bias", "residual", "workspace"],
  dlfs_conv_backward_data: ["stream", "conv", "dx", "dy", "w", "residual", "x", "workspace"],
  dlfs_conv_backward_weight: ["stream", "conv", "dw", "x", "dy", "workspace"],
  dlfs_quantize: ["stream", "dst", "src", "n", "dstDtype", "srcDtype", "factor"],
  dlfs_dequantize: ["stream", "dst", "src", "n", "dstDtype", "srcDtype", "factor"],
  dlfs_quantize_channels: ["stream", "dst", "scale", "src", "k", "perChannel", "dstDtype", "srcDtype"],
  dlfs_count_magnitudes: ["stream", "counts", "src", "n", "srcDtype"],
  dlfs_channel_sum_workspace: ["ctx", "out", "rows", "c", "dtype"],
  dlfs_channel_sum: ["stream", "out", "x", "workspace", "rows", "c", "dtype"],
  dlfs_add_bias: ["stream", "y", "x", "bias", "rows", "c", "dtype", "activation"],
  dlfs_batch_norm_workspace: ["ctx", "out", "rows", "c", "dtype"],
  dlfs_batch_norm_train: ["stream", "y", "mask", "saveMean", "saveInvstd", "runningMean", "runningVar", "x", "residual", "weight", "bias", "moments", "workspace", "rows", "c", "parts", "dtype", "eps", "momentum", "activation"],
  dlfs_batch_norm_infer: ["stream", "y", "x", "residual", "weight", "bias", "mean", "variance", "rows", "c", "dtype", "eps", "activation"],
  dlfs_batch_norm_backward: ["stream", "dx", "dresidual", "dweight", "dbias", "dy", "x", "mask", "weight", "bias", "saveMean", "saveInvstd", "workspace", "rows", "c", "dtype", "activation"],
  dlfs_batch_norm_moments: ["stream", "out", "x", "moments", "workspace", "rows", "c", "parts", "dtype"],
  dlfs_batch_norm_backward_sums: ["stream", "dresidual", "dweight", "dbias", "dy", "x", "mask", "weight", "bias", "saveMean", "saveInvstd", "workspace", "rows", "c", "dtype", "activation"],
  dlfs_batch_norm_backward_input: ["stream", "dx", "dy", "x", "mask", "weight", "bias", "saveMean", "saveInvstd", "dweight", "dbias", "rows", "c", "dtype", "activation"],
  dlfs_batch_norm_statistics: ["stream", "saveMean", "saveInvstd", "runningMean", "runningVar", "x", "moments", "workspace", "rows", "c", "parts", "dtype", "eps", "momentum"],
  dlfs_batch_norm_join: ["stream", "y", "mask", "x", "z", "xWeight", "xBias", "xMean", "xInvstd", "zWeight", "zBias", "zMean", "zInvstd", "rows", "c", "dtype", "activation"],
  dlfs_batch_norm_join_workspace: ["ctx", "out", "rows", "c", "dtype"],
  dlfs_batch_norm_join_backward: ["stream", "dx", "dz", "xDweight", "xDbias", "zDweight", "zDbias", "dy", "x", "z", "mask", "xWeight", "xMean", "xInvstd", "zWeight", "zMean", "zInvstd", "workspace", "rows", "c", "dtype"],
  dlfs_batch_norm_fold: ["stream", "foldedW", "foldedBias", "w", "convBias", "weight", "bias", "mean", "variance", "k", "perChannel", "dtype", "eps"],
  dlfs_batch_norm_fold_backward: ["stream", "dw", "dfolded", "weight", "variance", "k", "perChannel", "eps"],
  dlfs_group_norm_workspace: ["ctx", "out", "n", "rows", "c", "groups", "dtype"],
  dlfs_group_norm_forward: ["stream", "y", "saveMean", "saveInvstd", "x", "weight", "bias", "workspace", "n", "rows", "c", "groups", "dtype", "eps", "activation"],
  dlfs_group_norm_backward: ["stream", "dx", "dweight", "dbias", "dy", "x", "y", "weight", "saveMean", "saveInvstd", "workspace", "n", "rows", "c", "groups", "dtype", "activation"],
  dlfs_max_pool_forward: ["stream", "y", "index", "x", "n", "h", "w", "c", "r", "s", "strideH", "strideW", "padH", "padW", "dtype"],
  dlfs_max_pool_backward: ["stream", "dx", "dy", "index", "n", "h", "w", "c", "r", "s", "strideH", "strideW", "padH", "padW", "dtype"],
  dlfs_avg_pool_forward: ["stream", "y", "x", "n", "h", "w", "c", "r", "s", "strideH", "strideW", "padH", "padW", "countIncludePad", "dtype"],
  dlfs_avg_pool_backward: ["stream", "dx", "dy", "n", "h", "w", "c", "r", "s", "strideH", "strideW", "padH", "padW", "countIncludePad", "dtype"],
  dlfs_upsample_nearest_forward: ["stream", "y", "x", "n", "h", "w", "c", "p", "q", "dtype"],
  dlfs_upsample_nearest_backward: ["stream", "dx", "dy", "n", "h", "w", "c", "p", "q", "dtype"],
  dlfs_upsample_bilinear_forward: ["stream", "y", "x", "n", "h", "w", "c", "p", "q", "alignCorners", "dtype", "scaleH", "scaleW"],
  dlfs_upsample_bilinear_backward: ["stream", "dx", "dy", "n", "h", "w", "c", "p", "q", "alignCorners", "dtype", "scaleH", "scaleW"],
  dlfs_sgd_create: ["ctx", "out", "parameters", "gradients", "momenta", "casts", "elements", "weightDecays", "lrFactors", "count", "castDtype"],
  dlfs_sgd_destroy: ["sgd"],
  dlfs_sgd_grad_norm_workspace: ["sgd", "out"],
  dlfs_sgd_grad_norm: ["stream", "sgd", "norm", "gradScale", "workspace"],
  dlfs_sgd_step: ["stream", "sgd", "lr", "skip", "gradNorm", "gradScale", "momentum", "nesterov", "gradFactor", "maxNorm", "maxValue"],
  dlfs_loss_scale_step: ["stream", "scale", "counters", "failed", "overflow", "growth", "backoff", "interval", "least", "patience"],
  dlfs_sgd_checksums: ["stream", "sgd", "sums"],
  dlfs_sgd_refresh_casts: ["stream", "sgd"],
  dlfs_schedule_step: ["stream", "lr", "step", "table", "length"],
  dlfs_average_create: ["ctx", "out", "averages", "values", "elements", "count"],
  dlfs_average_destroy: ["average"],
  dlfs_average_step: ["stream", "average", "decay", "skip"],
  dlfs_anchor_grid: ["stream", "out", "cellAnchors", "featureH", "featureW", "anchorsPerCell", "strideH", "strideW"],
  dlfs_box_iou: ["stream", "out", "a", "b", "countA", "countB"],
  dlfs_box_encode: ["stream", "deltas", "boxes", "anchors", "count", "wx", "wy", "ww", "wh"],
  dlfs_box_decode: ["stream", "boxes", "deltas", "anchors", "count", "wx", "wy", "ww", "wh"],
  dlfs_match_anchors_workspace: ["ctx", "out", "n", "anchors", "maxBoxes"],
  dlfs_match_anchors: ["stream", "matches", "foreground", "anchors", "boxes", "counts", "workspace", "n", "anchorsCount", "maxBoxes", "high", "low", "matching"],
  dlfs_match_points: ["stream", "matches", "foreground", "anchors", "boxes", "counts", "n", "anchorsCount", "maxBoxes", "firstLevel", "lastLevel", "radius"],
  dlfs_detection_loss_workspace: ["ctx", "out", "n", "anchors", "classes"],
  dlfs_focal_loss: ["stream", "loss", "dlogits", "logits", "matches", "labels", "foreground", "gradScale", "workspace", "cells", "pitches", "levels", "n", "perCell", "classes", "maxBoxes", "dtype", "alpha", "gamma", "normalization", "gradFactor"],
  dlfs_box_loss: ["stream", "loss", "ddeltas", "deltas", "anchors", "matches", "boxes", "foreground", "gradScale", "workspace", "cells", "pitches", "levels", "n", "perCell", "maxBoxes", "dtype", "kind", "coder", "wx", "wy", "ww", "wh", "beta", "normalization", "gradFactor"],
  dlfs_cross_entropy_loss_workspace: ["ctx", "out", "n", "anchors", "negativeRatio"],
  dlfs_cross_entropy_loss: ["stream", "loss", "dlogits", "logits", "matches", "labels", "foreground", "gradScale", "workspace", "n", "anchors", "classes", "maxBoxes", "dtype", "negativeRatio", "normalization", "gradFactor"],
  dlfs_centerness_loss: ["stream", "loss", "dlogits", "logits", "anchors", "matches", "boxes", "foreground", "gradScale", "workspace", "cells", "pitches", "levels", "n", "perCell", "maxBoxes", "dtype", "normalization", "gradFactor"],
  dlfs_topk_workspace: ["ctx", "out", "n", "m", "k"],
  dlfs_topk: ["stream", "scores", "index", "logits", "workspace", "n", "m", "logitsStride", "k", "rowStride", "dtype", "kind", "threshold"],
  dlfs_select_candidates_workspace: ["ctx", "out", "cells", "levels", "n", "perCell", "classes", "k"],
  dlfs_select_candidates: ["stream", "boxes", "scores", "labels", "logits", "centerness", "deltas", "anchors", "imageSizes", "workspace", "cells", "logitsPitches", "centernessPitches", "deltasPitches", "levels", "n", "perCell", "classes", "k", "coder", "dtype", "threshold", "wx", "wy", "ww", "wh"],
  dlfs_decode_candidates: ["stream", "boxes", "labels", "index", "deltas", "anchors", "imageSizes", "n", "k", "rowStride", "deltasStride", "classes", "perClass", "coder", "dtype", "wx", "wy", "ww", "wh"],
  dlfs_nms_workspace: ["ctx", "out", "n", "k"],
  dlfs_nms: ["stream", "keep", "keepCounts", "boxes", "scores", "labels", "workspace", "n", "k", "maxOut", "iouThreshold", "classAware"],
  dlfs_soft_nms_workspace: ["ctx", "out", "n", "k"],
  dlfs_soft_nms: ["stream", "keep", "keepCounts", "keepScores", "boxes", "scores", "labels", "workspace", "n", "k", "maxOut", "method", "iouThreshold", "sigma", "minScore", "classAware"],
  dlfs_gather_detections: ["stream", "detections", "boxes", "scores", "labels", "keep", "keepScores", "n", "k", "maxOut"],
  dlfs_image_info_sync: ["values", "bytes", "length"],
  dlfs_image_decode_sync: ["stream", "dst", "bytes", "length", "width", "height"],
  dlfs_jpeg_encode_sync: ["stream", "out", "length", "pixels", "capacity", "width", "height", "quality"],
  dlfs_preprocess: ["stream", "dst", "sources", "sizes", "transforms", "normalisation", "n", "outH", "outW", "outC", "dtype", "flags"],
  dlfs_normalize_pixels: ["stream", "dst", "src", "normalisation", "pixels", "dtype"],
  dlfs_augment: ["stream", "dst", "sources", "layers", "normalisation", "n", "layerCount", "outH", "outW", "outC", "dtype", "flags"],
  dlfs_decoder_create: ["ctx", "out", "threads", "hardware"],
  dlfs_decoder_destroy: ["decoder"],
  dlfs_decoder_submit: ["decoder", "out", "dst", "sources", "lengths", "paths", "transforms", "normalisation", "pathBytes", "n", "outH", "outW", "outC", "dtype", "flags"],
  dlfs_decoder_submit_pixels: ["decoder", "out", "dst", "sources", "lengths", "paths", "sizes", "pathBytes", "n"],
  dlfs_job_query: ["job"],
  dlfs_job_wait_sync: ["job"],
  dlfs_job_results: ["job", "status"],
  dlfs_job_message: ["job", "out", "capacity", "i"],
  dlfs_job_destroy: ["job"],
};

/** The native functions: a negative status throws DlfsError, others are returned (0 done, 1 not ready). */
export interface NativeFunctions {
  /**
   * Writes "key=value" lines: backend (cuda, cpu), header (first 16 hex digits of this file's SHA-256 at build time),
   * and one line per library in use with its version. Truncated to capacity bytes, always NUL-terminated.
   */
  buildInfo(out: HostView, capacity: number): number;
  /** How many devices this backend can use; the CPU backend has one. 0 where the driver is missing. */
  deviceCount(out: HostView): number;
  /**
   * Name of a device (NUL-terminated, truncated) and values[0..3]: memory in bytes, multiprocessors (or CPU threads
   * used for compute), compute capability as 10 * major + minor (0 on the CPU), L2 cache in bytes (0 where unknown).
   */
  deviceInfo(name: HostView, capacity: number, values: HostView, device: number): number;
  /** Opens a device. */
  contextCreate(out: HostView, device: number): number;
  /** Closes a context; its streams, plans and memory must have been released (an error otherwise names what is left). */
  contextDestroy(ctx: number): number;
  /**
   * Sets an option for what is created or enqueued afterwards: "deterministic" (0/1: only algorithms that give the same
   * bytes each run), "tf32" (0/1: fp32 convolutions may round inputs to TF32; default 0), "threads" (CPU: compute
   * threads, 0 = all cores), "conv.pad8" (0/1: what dlfs_supports says of it). An unknown name is DLFS_ERROR_ARGUMENT; an option
   * without meaning here is accepted.
   */
  contextOption(ctx: number, name: HostView, value: number): number;
  /**
   * Writes 1 if this context's device has the feature, else 0. Features: "bf16", "f16", "tf32", "conv.bf16", "conv.f16",
   * "conv.epilogue" (bias, residual and activation fused into the convolution), "conv.moments.f32", "conv.moments.bf16" and
   * "conv.moments.f16" (convolutions that give their result's moments), "conv.f8" and "conv.i8" (forward convolutions of 8
   * bits), "conv.pad8" (a convolution whose result's channels 8 does not divide is worth padding to a number that it does),
   * "graph" (capture and launch), "graph.lanes" (a graph's streams run at the same time), "jpeg.decode", "jpeg.encode",
   * "jpeg.cmyk" (CMYK and YCCK decoding), "jpeg.hardware", "png.decode", "webp.decode", "collectives" (communicators between
   * processes: NCCL on CUDA, where its library is found, and Gloo on the CPU, where it was built with it). An unknown name writes
   * 0.
   */
  supports(ctx: number, out: HostView, feature: HostView): number;
  /** Allocates device memory, 256-byte aligned, content undefined. bytes >= 1. May synchronize. */
  malloc(ctx: number, out: HostView, bytes: number): number;
  /** Frees what dlfs_malloc gave; any other address is DLFS_ERROR_ARGUMENT. Waits for the device. */
  free(ctx: number, address: Address | null): number;
  /** Allocates pinned host memory, 64-byte aligned, zeroed, which asynchronous copies and decoders can use. */
  hostMalloc(ctx: number, out: HostView, bytes: number): number;
  /** Frees what dlfs_host_malloc gave. The caller has made sure that no stream or job uses it any more. */
  hostFree(ctx: number, address: Address | null): number;
  /** values[0..3]: bytes free on the device, bytes in total, bytes allocated through this context now, and at the peak. */
  memoryInfo(ctx: number, values: HostView): number;
  /** Copies bytes from pinned host memory to the device. */
  copyToDevice(stream: number, dst: Address | null, pinnedSrc: Address | null, bytes: number): number;
  /** Copies bytes from the device to pinned host memory. */
  copyToHost(stream: number, pinnedDst: Address | null, src: Address | null, bytes: number): number;
  /** Copies bytes on the device; the ranges must not overlap. */
  copy(stream: number, dst: Address | null, src: Address | null, bytes: number): number;
  /** Copies rows of row_bytes from a buffer with src_pitch bytes between row starts to one with dst_pitch. */
  copy2d(stream: number, dst: Address | null, src: Address | null, rows: number, rowBytes: number, dstPitch: number, srcPitch: number): number;
  /** Sets bytes to the low 8 bits of value. */
  memset(stream: number, dst: Address | null, bytes: number, value: number): number;
  /** Copies any host memory to the device in stream order and waits until that is done. */
  uploadSync(stream: number, dst: Address | null, src: HostView, bytes: number): number;
  /** Copies device memory to any host memory in stream order and waits until that is done. */
  downloadSync(stream: number, dst: HostView, src: Address | null, bytes: number): number;
  /** A new, empty stream. */
  streamCreate(ctx: number, out: HostView): number;
  /** Waits for its work, then releases it. */
  streamDestroy(stream: number): number;
  /** Waits until all enqueued work is done. */
  streamSynchronize(stream: number): number;
  /** DLFS_OK when all is done, else DLFS_NOT_READY. */
  streamQuery(stream: number): number;
  /** An event not yet recorded. */
  eventCreate(ctx: number, out: HostView): number;
  /** Releases an event. */
  eventDestroy(event: number): number;
  /** Marks the stream's present end. */
  eventRecord(stream: number, event: number): number;
  /** DLFS_OK when passed or never recorded; DLFS_NOT_READY. */
  eventQuery(event: number): number;
  /** Waits until the event has been passed. */
  eventSynchronize(event: number): number;
  /** Later work waits for it. */
  streamWaitEvent(stream: number, event: number): number;
  /** Milliseconds between two passed events. */
  eventElapsed(outMs: HostView, start: number, end: number): number;
  /**
   * Starts capture: calls on this stream are recorded instead of run. Work on other streams is not affected, nor
   * captured, unless joined by events recorded in and waited for by the capturing stream.
   */
  graphBegin(stream: number): number;
  /** Ends capture. After a failed call during capture this reports an error and the capture is discarded. */
  graphEnd(stream: number, out: HostView): number;
  /** Runs all captured calls, in one launch, on a stream of the same context, with the addresses they were captured with. */
  graphLaunch(stream: number, graph: number): number;
  /** Waits for launches in flight, then releases it. */
  graphDestroy(graph: number): number;
  /**
   * A communicator that is not connected yet. host: the address of the interface by which the other ranks reach this one (CPU;
   * an empty string: the one that the machine's name stands for); NCCL finds interfaces itself (NCCL_SOCKET_IFNAME). A collective that takes longer than
   * timeout_ms fails, on the CPU.
   */
  commCreate(ctx: number, out: HostView, rank: number, world: number, host: HostView, timeoutMs: number): number;
  /**
   * What the other ranks must be told to reach this one; of NCCL, rank 0's alone counts. Writes *bytes <= capacity of them;
   * 128 + 256 * world are enough.
   */
  commAddress(comm: number, out: HostView, capacity: number, bytes: HostView): number;
  /**
   * Starts connecting to all ranks, each of which must do so, and returns; dlfs_comm_query says when it is done. addresses: those
   * of all ranks one behind the other, rank 0's first; sizes (world): their bytes.
   */
  commConnect(comm: number, addresses: HostView, sizes: HostView): number;
  /** DLFS_OK once connected, DLFS_NOT_READY until then; an error where connecting, or a collective since, has failed. */
  commQuery(comm: number): number;
  /**
   * In each of count buffers, of sizes[i] elements of F32, BF16 or F16, every element becomes its sum or average over all
   * ranks, with the same bytes on all ranks. One group: NCCL runs them as one operation. operation: DLFS_REDUCE_... BF16 and F16
   * may be rounded at each addition.
   */
  commAllReduce(stream: number, comm: number, buffers: HostView, sizes: HostView, count: number, dtype: number, operation: number, label: number): number;
  /** Each of count buffers, of sizes[i] bytes, becomes a copy of rank root's. */
  commBroadcast(stream: number, comm: number, buffers: HostView, sizes: HostView, count: number, root: number, label: number): number;
  /**
   * For each of count buffers: outs[i] (world, sizes[i]) = the ranks' owns[i] (sizes[i]), in bytes, rank 0's first. owns[i] may be this
   * rank's place in outs[i].
   */
  commAllGather(stream: number, comm: number, outs: HostView, owns: HostView, sizes: HostView, count: number, label: number): number;
  /** Is done once all ranks have come to it. */
  commBarrier(stream: number, comm: number, label: number): number;
  /** Later work of the stream waits for all collectives enqueued so far; an error of one of them becomes the stream's. */
  commWait(stream: number, comm: number): number;
  /**
   * values[0..1]: how many collectives this rank's device has come to so far, and the label of the last one (-1 before the
   * first). Never waits: where another rank is missing, this says which collective this one waits in.
   */
  commProgress(comm: number, values: HostView): number;
  /** Ends collectives that wait for other ranks, with an error; there can be no more. From any thread. */
  commAbort(comm: number): number;
  /**
   * Waits for the collectives in flight, then releases the communicator; all ranks must do so, or abort it first. Graphs that
   * captured collectives must have been destroyed.
   */
  commDestroy(comm: number): number;
  /** dst[i] = value; F32, BF16, F16, I32. */
  fill(stream: number, dst: Address | null, n: number, dtype: number, value: number): number;
  /** dst[i] = src[i] converted, round to nearest even; between F32, BF16, F16, I32, U8. */
  cast(stream: number, dst: Address | null, src: Address | null, n: number, dstDtype: number, srcDtype: number): number;
  /** dst[i] = activation(a[i] + b[i]), summed in fp32; dst may be a or b. activation: NONE, RELU, SIGMOID, SILU or RELU6. */
  add(stream: number, dst: Address | null, a: Address | null, b: Address | null, n: number, dtype: number, activation: number): number;
  /** dst[i] = a[i] * b[i] in fp32; dst may be a or b. */
  multiply(stream: number, dst: Address | null, a: Address | null, b: Address | null, n: number, dtype: number): number;
  /** dst[i] = src[i] * factor * (device_factor ? *device_factor : 1); dst may be src. device_factor: fp32, nullable. */
  scale(stream: number, dst: Address | null, src: Address | null, deviceFactor: Address | null, n: number, dtype: number, factor: number): number;
  /** y[i] = activation(x[i]), computed in fp32; y may be x. slope: LEAKY_RELU's for x <= 0, else ignored. */
  activationForward(stream: number, y: Address | null, x: Address | null, n: number, dtype: number, activation: number, slope: number): number;
  /**
   * dx[i] = dy[i] * activation'(.), with torch's formulas. RELU, RELU6, SIGMOID, HARDSIGMOID, and LEAKY_RELU with slope >= 0
   * (whose y has x's sign), read y (x nullable), so that x need not be kept; SILU, HARDSWISH and LEAKY_RELU with slope < 0
   * read x (y nullable). At a corner the derivative is that of the flat side: RELU6's is 0 at 0 and 6, HARDSIGMOID's at -3 and
   * 3; HARDSWISH's is 0 at -3 and 1 at 3, LEAKY_RELU's is slope at 0. dx may be dy.
   */
  activationBackward(stream: number, dx: Address | null, dy: Address | null, x: Address | null, y: Address | null, n: number, dtype: number, activation: number, slope: number): number;
  /**
   * y[i, j] = exp(x[i, j] - m) / sum over k of exp(x[i, k] - m), m the largest of row i, in fp32: torch's softmax over the
   * last dimension. x, y (rows, C); y may be x.
   */
  softmaxForward(stream: number, y: Address | null, x: Address | null, rows: number, c: number, dtype: number): number;
  /** dx[i, j] = y[i, j] (dy[i, j] - sum over k of dy[i, k] y[i, k]), summed in fp32. dx may be dy. */
  softmaxBackward(stream: number, dx: Address | null, dy: Address | null, y: Address | null, rows: number, c: number, dtype: number): number;
  /**
   * y[i, r, j] = x[i, r, j] * s[i, j] in fp32: x, y (n, rows, C), s (n, C), all of dtype; the scaling of each image's
   * channels in squeeze-and-excitation (Hu et al. 2018). y may be x.
   */
  channelScale(stream: number, y: Address | null, x: Address | null, s: Address | null, n: number, rows: number, c: number, dtype: number): number;
  /** Bytes of workspace for dlfs_channel_dot. */
  channelDotWorkspace(ctx: number, out: HostView, n: number, rows: number, c: number, dtype: number): number;
  /**
   * out[i, j] = sum over r of a[i, r, j] b[i, r, j]: a, b (n, rows, C), out (n, C), all of dtype; the gradient of
   * dlfs_channel_scale's s. Summed in fp32, the same order of sums each run, and rounded once.
   */
  channelDot(stream: number, out: Address | null, a: Address | null, b: Address | null, workspace: Address | null, n: number, rows: number, c: number, dtype: number): number;
  /**
   * y[i, j groups + g] = x[i, g C / groups + j]: torch's ChannelShuffle of x (rows, C), C a multiple of groups (Zhang et al.
   * 2018). Its inverse and gradient is the same with C / groups groups. y must not overlap x.
   */
  channelShuffle(stream: number, y: Address | null, x: Address | null, rows: number, c: number, groups: number, dtype: number): number;
  /**
   * y[i] = kept(i) ? x[i] / (1 - p) : 0 (Srivastava et al. 2014), p in [0, 1). Element i is kept where word i % 4 of the
   * Philox4x32-10 block with key = seed and counter = (i / 4, *counter) is at least p 2^32: the same ones on every backend.
   * Bit i % 8 of byte i / 8 of mask (ceil(n / 8) bytes, nullable) says so to the backward pass; bits past n are 0. Then
   * *counter += 1, and back to 0 at 2^24: counter is an fp32 on the device that holds a whole number, so that each launch of a
   * captured graph draws anew, and a saved counter goes on where it was. y may be x.
   */
  dropoutForward(stream: number, y: Address | null, mask: Address | null, counter: Address | null, x: Address | null, n: number, dtype: number, p: number, seed: number): number;
  /** dx[i] = bit i of mask ? dy[i] / (1 - p) : 0. dx may be dy. */
  dropoutBackward(stream: number, dx: Address | null, dy: Address | null, mask: Address | null, n: number, dtype: number, p: number): number;
  /**
   * dst (n, columns, rows) from src (n, rows, columns): each of n matrices transposed; F32, BF16, F16, I32. The memory of
   * dst and src must not overlap.
   */
  transpose(stream: number, dst: Address | null, src: Address | null, n: number, rows: number, columns: number, dtype: number): number;
  /** Sets *flag to 1 where any of x's n values is NaN or infinite, else leaves it as it is (sticky). flag: int32. */
  checkFinite(stream: number, flag: Address | null, x: Address | null, n: number, dtype: number): number;
  /**
   * dst[i] uniform in [low, high), fp32. Philox4x32-10 (Salmon et al. 2011): element i takes word i % 4 of the block with
   * key = seed (64 bits) and counter = (i / 4, offset); the same seed and offset give the same bits on every backend.
   */
  initUniform(stream: number, dst: Address | null, n: number, seed: number, offset: number, low: number, high: number): number;
  /**
   * dst[i] normal with the mean and standard deviation, fp32: Box-Muller on the words of dlfs_init_uniform's blocks, pairs
   * (0, 1) and (2, 3); equal across backends to a few units in the last place.
   */
  initNormal(stream: number, dst: Address | null, n: number, seed: number, offset: number, mean: number, std: number): number;
  /**
   * Plans one direction of y = activation(conv(x, w) + bias + residual), or of its gradients; the data gradient is
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
   * 1x1 convolution of stride 1 without padding, from 0.
   */
  convCreate(ctx: number, out: HostView, pick: HostView, direction: number, dtype: number, n: number, h: number, w: number, c: number, k: number, r: number, s: number, strideH: number, strideW: number, padH: number, padW: number, dilationH: number, dilationW: number, groups: number, flags: number, activation: number): number;
  /**
   * Plans several convolutions as dlfs_conv_create does, on several threads where compiling kernels takes time. keys
   * (count, DLFS_CONV_KEY). picks: of each, NUL-terminated, one after the other, pick_bytes in all. out (count): the plans,
   * 0 where one cannot be made; dlfs_conv_create with the same arguments says why.
   */
  convCreateMany(ctx: number, out: HostView, picks: HostView, keys: HostView, pickBytes: number, count: number): number;
  /** Releases a plan; captured graphs that use it stay valid. */
  convDestroy(conv: number): number;
  /**
   * Starts to build the candidate algorithms of a plan on threads of the library, for the dlfs_conv_tune_sync that follows.
   * Nothing where building takes no time.
   */
  convTuneAhead(conv: number): number;
  /**
   * Times the candidate algorithms on scratch memory of its own, those that can be built within about budget_ms, and keeps
   * the fastest; the workspace size may change.
   */
  convTuneSync(stream: number, conv: number, budgetMs: number): number;
  /** Bytes of workspace that executing the plan needs. */
  convWorkspace(conv: number, out: HostView): number;
  /** The algorithm in use as a short text for dlfs_conv_create and for people; NUL-terminated, needs 256 bytes. */
  convPick(conv: number, out: HostView, capacity: number): number;
  /** Runs a DLFS_CONV_FORWARD plan. bias and residual are NULL exactly where the plan lacks the flag. */
  convForward(stream: number, conv: number, y: Address | null, x: Address | null, w: Address | null, bias: Address | null, residual: Address | null, workspace: Address | null): number;
  /**
   * Runs a DLFS_CONV_FORWARD plan with DLFS_CONV_MOMENTS: y, and its moments as dlfs_batch_norm_train takes them, means (parts,
   * K), sums of squared distances from them (parts, K) and rows of each part (parts), fp32; parts is the number of the device's
   * multiprocessors or threads (dlfs_device_info), and those without rows have zeros. Where the device has "conv.moments.bf16",
   * "conv.moments.f16" or "conv.moments.f32", for plans of that dtype of 1x1 kernels without groups whose C and K are
   * multiples of 8.
   */
  convForwardMoments(stream: number, conv: number, y: Address | null, moments: Address | null, x: Address | null, w: Address | null, workspace: Address | null): number;
  /** Runs a plan of dtype F8E4M3 or I8. scale (K), fp32; bias and residual as dlfs_conv_forward's. */
  convForwardScaled(stream: number, conv: number, y: Address | null, x: Address | null, w: Address | null, scale: Address | null, bias: Address | null, residual: Address | null, workspace: Address | null): number;
  /**
   * Runs a DLFS_CONV_BACKWARD_DATA plan: dx (N, H, W, C) from dy (N, P, Q, K); overwrites dx. residual and x, both of dx's
   * shape and dtype, are NULL exactly where the plan lacks DLFS_CONV_RESIDUAL and DLFS_CONV_RELU_MASK. dx may be residual.
   */
  convBackwardData(stream: number, conv: number, dx: Address | null, dy: Address | null, w: Address | null, residual: Address | null, x: Address | null, workspace: Address | null): number;
  /** Runs a DLFS_CONV_BACKWARD_WEIGHT plan: dw (K, R, S, C / groups), fp32; overwrites dw. */
  convBackwardWeight(stream: number, conv: number, dw: Address | null, x: Address | null, dy: Address | null, workspace: Address | null): number;
  /**
   * dst[i] = src[i] * factor in fp32, rounded to nearest even and saturated: to 448 and -448 in F8E4M3, 127 and -128 in I8. NaN
   * stays NaN, and becomes 0 in I8. dst_dtype F8E4M3 or I8, src_dtype F32, BF16 or F16.
   */
  quantize(stream: number, dst: Address | null, src: Address | null, n: number, dstDtype: number, srcDtype: number, factor: number): number;
  /** dst[i] = src[i] * factor in fp32; dst_dtype F32, BF16 or F16, src_dtype F8E4M3 or I8. */
  dequantize(stream: number, dst: Address | null, src: Address | null, n: number, dstDtype: number, srcDtype: number, factor: number): number;
  /**
   * Weights in 8 bits, a scale for each output channel: scale[k] = max |src[k, .]| / M, M 448 for F8E4M3 and 127 for I8 (1 where
   * all are 0), dst = src / scale, rounded as by dlfs_quantize. src, dst (K, per_channel), scale (K) fp32.
   */
  quantizeChannels(stream: number, dst: Address | null, scale: Address | null, src: Address | null, k: number, perChannel: number, dstDtype: number, srcDtype: number): number;
  /**
   * Adds to counts[b] the number of elements whose magnitude lies in bin b, for b from 0 to DLFS_MAGNITUDE_BINS - 1: the bin is
   * the upper 13 of the 31 bits of |src[i]| as fp32, 32 bins to an octave, so that bin b holds the magnitudes from the fp32 of
   * the bits b << 18 to below that of (b + 1) << 18. Infinity is in bin 8160, NaN in bin 8176. src_dtype F32, BF16, F16.
   */
  countMagnitudes(stream: number, counts: Address | null, src: Address | null, n: number, srcDtype: number): number;
  /** Bytes of workspace for dlfs_channel_sum. */
  channelSumWorkspace(ctx: number, out: HostView, rows: number, c: number, dtype: number): number;
  /** out[j] = sum over rows of x[row, j], x (rows, C): the gradient of a bias. fp32, the same order of sums each run. */
  channelSum(stream: number, out: Address | null, x: Address | null, workspace: Address | null, rows: number, c: number, dtype: number): number;
  /**
   * y[row, j] = activation(x[row, j] + bias[j]), in fp32; x, y (rows, C), y may be x; activation as dlfs_add's. What the plan
   * of a forward convolution does by itself, for convolutions run in another direction (transposed ones).
   */
  addBias(stream: number, y: Address | null, x: Address | null, bias: Address | null, rows: number, c: number, dtype: number, activation: number): number;
  /** Bytes of workspace for dlfs_batch_norm_train and dlfs_batch_norm_backward. */
  batchNormWorkspace(ctx: number, out: HostView, rows: number, c: number, dtype: number): number;
  /**
   * Batch normalization with the batch's statistics (Ioffe and Szegedy 2015, as torch.nn.BatchNorm2d):
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
   * for statistics then.
   */
  batchNormTrain(stream: number, y: Address | null, mask: Address | null, saveMean: Address | null, saveInvstd: Address | null, runningMean: Address | null, runningVar: Address | null, x: Address | null, residual: Address | null, weight: Address | null, bias: Address | null, moments: Address | null, workspace: Address | null, rows: number, c: number, parts: number, dtype: number, eps: number, momentum: number, activation: number): number;
  /** The same with given statistics mean and var (C): y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual). */
  batchNormInfer(stream: number, y: Address | null, x: Address | null, residual: Address | null, weight: Address | null, bias: Address | null, mean: Address | null, variance: Address | null, rows: number, c: number, dtype: number, eps: number, activation: number): number;
  /**
   * Gradients of dlfs_batch_norm_train. With RELU, dy is masked where y <= 0: by forward's mask, or, where mask is NULL, by y
   * computed again from x, weight and bias, which is right where forward had no residual (bias is nullable otherwise).
   * dresidual, nullable, receives the masked dy. Overwrites dx, dweight, dbias; dx may be dy, and dresidual may be dy.
   */
  batchNormBackward(stream: number, dx: Address | null, dresidual: Address | null, dweight: Address | null, dbias: Address | null, dy: Address | null, x: Address | null, mask: Address | null, weight: Address | null, bias: Address | null, saveMean: Address | null, saveInvstd: Address | null, workspace: Address | null, rows: number, c: number, dtype: number, activation: number): number;
  /**
   * The moments of x, or those of its groups of rows together: out (2 C + 1), means, sums of squared distances from them, and the
   * number of rows, as dlfs_batch_norm_train takes them of one group. With those of all ranks, gathered, it normalizes by
   * the statistics of all their rows (synchronized batch normalization). Arguments and workspace as there.
   */
  batchNormMoments(stream: number, out: Address | null, x: Address | null, moments: Address | null, workspace: Address | null, rows: number, c: number, parts: number, dtype: number): number;
  /** The first half of dlfs_batch_norm_backward: dweight, dbias and dresidual; arguments and workspace as there. */
  batchNormBackwardSums(stream: number, dresidual: Address | null, dweight: Address | null, dbias: Address | null, dy: Address | null, x: Address | null, mask: Address | null, weight: Address | null, bias: Address | null, saveMean: Address | null, saveInvstd: Address | null, workspace: Address | null, rows: number, c: number, dtype: number, activation: number): number;
  /**
   * The second half: dx from dweight and dbias, which, where statistics were taken over several ranks of as many rows each, are
   * means over the ranks. dx may be dy.
   */
  batchNormBackwardInput(stream: number, dx: Address | null, dy: Address | null, x: Address | null, mask: Address | null, weight: Address | null, bias: Address | null, saveMean: Address | null, saveInvstd: Address | null, dweight: Address | null, dbias: Address | null, rows: number, c: number, dtype: number, activation: number): number;
  /** The statistics of dlfs_batch_norm_train alone, for dlfs_batch_norm_join; arguments and workspace as there. */
  batchNormStatistics(stream: number, saveMean: Address | null, saveInvstd: Address | null, runningMean: Address | null, runningVar: Address | null, x: Address | null, moments: Address | null, workspace: Address | null, rows: number, c: number, parts: number, dtype: number, eps: number, momentum: number): number;
  /**
   * The sum of two normalized tensors, as where a residual block's shortcut has a normalization of its own:
   *   y = activation((x - x_mean) * x_invstd * x_weight + x_bias + (z - z_mean) * z_invstd * z_weight + z_bias),
   * x, z, y (rows, C), the others (C), means and deviations from dlfs_batch_norm_statistics. mask as dlfs_batch_norm_train's.
   */
  batchNormJoin(stream: number, y: Address | null, mask: Address | null, x: Address | null, z: Address | null, xWeight: Address | null, xBias: Address | null, xMean: Address | null, xInvstd: Address | null, zWeight: Address | null, zBias: Address | null, zMean: Address | null, zInvstd: Address | null, rows: number, c: number, dtype: number, activation: number): number;
  /** Bytes of workspace for dlfs_batch_norm_join_backward. */
  batchNormJoinWorkspace(ctx: number, out: HostView, rows: number, c: number, dtype: number): number;
  /**
   * Gradients of both normalizations of dlfs_batch_norm_join, the statistics' share included. mask, nullable: dy counts where
   * its bit is set, all of it without. dx and dz differ; one of them may be dy.
   */
  batchNormJoinBackward(stream: number, dx: Address | null, dz: Address | null, xDweight: Address | null, xDbias: Address | null, zDweight: Address | null, zDbias: Address | null, dy: Address | null, x: Address | null, z: Address | null, mask: Address | null, xWeight: Address | null, xMean: Address | null, xInvstd: Address | null, zWeight: Address | null, zMean: Address | null, zInvstd: Address | null, workspace: Address | null, rows: number, c: number, dtype: number): number;
  /**
   * Folds inference statistics into the convolution before them: folded_w = w * g, folded_bias = (conv_bias - mean) * g +
   * bias with g = weight / sqrt(var + eps). w (K, per_channel) fp32, folded_w in `dtype`, conv_bias nullable.
   */
  batchNormFold(stream: number, foldedW: Address | null, foldedBias: Address | null, w: Address | null, convBias: Address | null, weight: Address | null, bias: Address | null, mean: Address | null, variance: Address | null, k: number, perChannel: number, dtype: number, eps: number): number;
  /**
   * Gradient of dlfs_batch_norm_fold's w where the rest of its operands are constants: dw = dfolded * g, g of each row. dw,
   * dfolded (K, per_channel) fp32; dw may be dfolded. With per_channel 1 it is the gradient of conv_bias from folded_bias'.
   */
  batchNormFoldBackward(stream: number, dw: Address | null, dfolded: Address | null, weight: Address | null, variance: Address | null, k: number, perChannel: number, eps: number): number;
  /** Bytes of workspace for dlfs_group_norm_forward and dlfs_group_norm_backward. */
  groupNormWorkspace(ctx: number, out: HostView, n: number, rows: number, c: number, groups: number, dtype: number): number;
  /**
   * Group normalization (Wu and He 2018, as torch.nn.GroupNorm): y = activation((x - mean) * invstd * weight + bias),
   * activation NONE or RELU, with the statistics of each image's groups of C / groups neighbouring channels. x, y (N, rows,
   * C) with rows = H W; weight, bias (C); save_mean, save_invstd (N, groups), invstd = 1 / sqrt(biased variance + eps), are
   * for the backward pass. groups divides C. y may be x. Statistics are two-pass or Welford, in fp32.
   */
  groupNormForward(stream: number, y: Address | null, saveMean: Address | null, saveInvstd: Address | null, x: Address | null, weight: Address | null, bias: Address | null, workspace: Address | null, n: number, rows: number, c: number, groups: number, dtype: number, eps: number, activation: number): number;
  /**
   * Gradients of dlfs_group_norm_forward. With RELU, dy is masked where y <= 0 (y is read then, else nullable). Overwrites
   * dx (N, rows, C), dweight and dbias (C); dx may be dy.
   */
  groupNormBackward(stream: number, dx: Address | null, dweight: Address | null, dbias: Address | null, dy: Address | null, x: Address | null, y: Address | null, weight: Address | null, saveMean: Address | null, saveInvstd: Address | null, workspace: Address | null, n: number, rows: number, c: number, groups: number, dtype: number, activation: number): number;
  /**
   * Maximum over windows, padding never wins: x (N, H, W, C), y and index (N, P, Q, C); P, Q as for convolutions with
   * dilation 1. index: uint8, the winner's position in its window (r * S + s; the first of equals; NaN wins), nullable.
   * R * S <= 255, padding <= half the window.
   */
  maxPoolForward(stream: number, y: Address | null, index: Address | null, x: Address | null, n: number, h: number, w: number, c: number, r: number, s: number, strideH: number, strideW: number, padH: number, padW: number, dtype: number): number;
  /** dx (N, H, W, C): each dy goes to its window's winner; overlapping windows add. Overwrites dx; deterministic. */
  maxPoolBackward(stream: number, dx: Address | null, dy: Address | null, index: Address | null, n: number, h: number, w: number, c: number, r: number, s: number, strideH: number, strideW: number, padH: number, padW: number, dtype: number): number;
  /**
   * Mean over windows; count_include_pad 1 divides by R * S, 0 by the pixels inside the image. A window of the whole image
   * is global average pooling.
   */
  avgPoolForward(stream: number, y: Address | null, x: Address | null, n: number, h: number, w: number, c: number, r: number, s: number, strideH: number, strideW: number, padH: number, padW: number, countIncludePad: number, dtype: number): number;
  /** dx of dlfs_avg_pool_forward; overwrites dx. */
  avgPoolBackward(stream: number, dx: Address | null, dy: Address | null, n: number, h: number, w: number, c: number, r: number, s: number, strideH: number, strideW: number, padH: number, padW: number, countIncludePad: number, dtype: number): number;
  /** y (N, P, Q, C) from x (N, H, W, C): y[p, q] = x[floor(p H / P), floor(q W / Q)] (torch "nearest"), in integers. */
  upsampleNearestForward(stream: number, y: Address | null, x: Address | null, n: number, h: number, w: number, c: number, p: number, q: number, dtype: number): number;
  /** dx of dlfs_upsample_nearest_forward, summed in fp32; overwrites dx. */
  upsampleNearestBackward(stream: number, dx: Address | null, dy: Address | null, n: number, h: number, w: number, c: number, p: number, q: number, dtype: number): number;
  /**
   * y (N, P, Q, C) from x (N, H, W, C), bilinear, as torch.nn.functional.interpolate without antialias. Output row p reads
   * the source at align_corners ? p (H - 1) / (P - 1) : max(0, (p + 0.5) H / P - 0.5), in fp32; columns likewise. scale_h and
   * scale_w, where not 0, replace the factors P / H and Q / W (torch's scale_factor, which P and Q were rounded down from);
   * align_corners ignores them.
   */
  upsampleBilinearForward(stream: number, y: Address | null, x: Address | null, n: number, h: number, w: number, c: number, p: number, q: number, alignCorners: number, dtype: number, scaleH: number, scaleW: number): number;
  /**
   * dx of dlfs_upsample_bilinear_forward: each input pixel gathers from the outputs that read it, summed in fp32 in a fixed
   * order; overwrites dx.
   */
  upsampleBilinearBackward(stream: number, dx: Address | null, dy: Address | null, n: number, h: number, w: number, c: number, p: number, q: number, alignCorners: number, dtype: number, scaleH: number, scaleW: number): number;
  /**
   * Lists the tensors that one dlfs_sgd_step updates: count tensors, each with the addresses of its fp32 parameter,
   * gradient and momentum buffer, of a low-precision copy in cast_dtype that follows it (0 for none), its number of
   * elements, its weight decay and a factor on the learning rate. The lists are copied.
   */
  sgdCreate(ctx: number, out: HostView, parameters: HostView, gradients: HostView, momenta: HostView, casts: HostView, elements: HostView, weightDecays: HostView, lrFactors: HostView, count: number, castDtype: number): number;
  /** Releases the lists. */
  sgdDestroy(sgd: number): number;
  /** Bytes of workspace for dlfs_sgd_grad_norm. */
  sgdGradNormWorkspace(sgd: number, out: HostView): number;
  /**
   * *norm = the 2-norm of all gradients of the lists as one vector, as torch.nn.utils.clip_grad_norm_ takes it: fp32, of sums
   * in fp64, in the same order each run. NaN or infinite where a gradient is. grad_scale: fp32 on the device, nullable; the
   * norm is that of the gradients divided by it.
   */
  sgdGradNorm(stream: number, sgd: number, norm: Address | null, gradScale: Address | null, workspace: Address | null): number;
  /**
   * One step as torch.optim.SGD (dampening 0): g += weight_decay * p; v = momentum * v + g; p -= lr * (nesterov ?
   * g + momentum * v : v); then the low-precision copy. lr: fp32 on the device. skip: int32 on the device, nullable; where
   * *skip != 0 nothing changes. grad_factor multiplies gradients first, and *grad_scale, fp32 on the device, nullable, divides
   * them: the scale that the losses' gradients were given. grad_norm, nullable: dlfs_sgd_grad_norm's result, by the same scale, on
   * the device, with which gradients are clipped to a norm of max_norm >= 0 as torch.nn.utils.clip_grad_norm_ does: they are
   * multiplied by min(1, max_norm / (|grad_factor| * *grad_norm + 1e-6)) besides. As there (error_if_nonfinite false), an
   * infinite norm makes finite gradients 0 and infinite ones NaN, and a norm of NaN makes all NaN: to skip such a step, let
   * dlfs_check_finite raise *skip from the norm. max_value > 0 then clips each gradient to -max_value to max_value, as
   * torch.nn.utils.clip_grad_value_; 0 does not. All tensors in one launch.
   */
  sgdStep(stream: number, sgd: number, lr: Address | null, skip: Address | null, gradNorm: Address | null, gradScale: Address | null, momentum: number, nesterov: number, gradFactor: number, maxNorm: number, maxValue: number): number;
  /**
   * After each step with dynamic loss scaling (Micikevicius et al. 2018), torch.amp.GradScaler.update: *overflow != 0 says that
   * the step's gradients were not finite, so that it was skipped: *scale *= backoff. Else, after `interval` such steps in a row,
   * *scale *= growth where that is finite. The scale does not fall below `least`; `patience` overflows in a row there raise
   * *failed, an int32, and where *failed != 0 nothing changes. scale: fp32, counters: DLFS_LOSS_SCALE_COUNTERS int32. growth >= 1,
   * 0 < backoff <= 1, interval >= 1, least > 0, patience >= 1. All on the device, so that it is part of a captured step.
   */
  lossScaleStep(stream: number, scale: Address | null, counters: Address | null, failed: Address | null, overflow: Address | null, growth: number, backoff: number, interval: number, least: number, patience: number): number;
  /**
   * sums[i] = a checksum of parameter i of the lists, int64 on the device: the sum over its elements j of (bits + 2^63) (2 j + 1),
   * mod 2^64, bits those of the fp32 as an unsigned number. The same on every device where all bits are.
   */
  sgdChecksums(stream: number, sgd: number, sums: Address | null): number;
  /** Refreshes the low-precision copies from the parameters (after loading weights). */
  sgdRefreshCasts(stream: number, sgd: number): number;
  /**
   * *lr = table[min(*step, length - 1)]; *step += 1. table: length fp32 values on the device, one per iteration, so that any
   * learning-rate strategy runs inside a captured step. step: int32 on the device.
   */
  scheduleStep(stream: number, lr: Address | null, step: Address | null, table: Address | null, length: number): number;
  /**
   * Lists the tensors that one dlfs_average_step updates: count tensors, each with the addresses of its fp32 average and of the
   * fp32 values that it follows, and its number of elements. The lists are copied.
   */
  averageCreate(ctx: number, out: HostView, averages: HostView, values: HostView, elements: HostView, count: number): number;
  /** Releases the lists. */
  averageDestroy(average: number): number;
  /**
   * average = *decay * average + (1 - *decay) * value, for all tensors in one launch: the exponential moving average of weights.
   * decay: fp32 on the device. skip: int32 on the device, nullable; where *skip != 0 nothing changes.
   */
  averageStep(stream: number, average: number, decay: Address | null, skip: Address | null): number;
  /**
   * Anchors of one pyramid level, (feature_h * feature_w * A, 4), ordered row, column, cell anchor: cell_anchors (A, 4) fp32,
   * centred on 0, moved to (column * stride_w, row * stride_h), as torchvision's AnchorGenerator.
   */
  anchorGrid(stream: number, out: Address | null, cellAnchors: Address | null, featureH: number, featureW: number, anchorsPerCell: number, strideH: number, strideW: number): number;
  /**
   * out (A, B) = intersection over union of every box of a (A, 4) with every box of b (B, 4), as torchvision.ops.box_iou;
   * 0 where the union is 0.
   */
  boxIou(stream: number, out: Address | null, a: Address | null, b: Address | null, countA: number, countB: number): number;
  /**
   * deltas (count, 4) = torchvision's BoxCoder.encode of boxes against anchors: wx (gx - ax) / aw, wy (gy - ay) / ah,
   * ww log(gw / aw), wh log(gh / ah), with centres and sizes.
   */
  boxEncode(stream: number, deltas: Address | null, boxes: Address | null, anchors: Address | null, count: number, wx: number, wy: number, ww: number, wh: number): number;
  /** boxes (count, 4) = torchvision's BoxCoder.decode of deltas (fp32); dw, dh are clipped at log(1000 / 16). */
  boxDecode(stream: number, boxes: Address | null, deltas: Address | null, anchors: Address | null, count: number, wx: number, wy: number, ww: number, wh: number): number;
  /** Bytes of workspace for dlfs_match_anchors. */
  matchAnchorsWorkspace(ctx: number, out: HostView, n: number, anchors: number, maxBoxes: number): number;
  /**
   * torchvision's Matcher for a batch: matches (N, A) int32 = the index of the box with the largest IoU (the lowest index
   * of equals) where that is >= high; -1 (background) where < low; -2 (ignored) between. Then, by matching, DLFS_MATCH_...:
   * LOW_QUALITY (allow_low_quality_matches): every anchor whose IoU equals the largest that some box reaches keeps its best
   * box's index. BEST_ANCHOR (SSDMatcher): the anchor with which a box has its largest IoU, even 0 (the lowest index of
   * equals), is matched to that box; where several boxes have the same best anchor, the last of them gets it.
   * foreground (N) int32 = matches >= 0. anchors (A, 4); boxes (N, M, 4) fp32, of which counts (N) int32 are real (0 allowed:
   * all background).
   */
  matchAnchors(stream: number, matches: Address | null, foreground: Address | null, anchors: Address | null, boxes: Address | null, counts: Address | null, workspace: Address | null, n: number, anchorsCount: number, maxBoxes: number, high: number, low: number, matching: number): number;
  /**
   * FCOS's assignment of points, the centres of square anchors (A, 4), to boxes, as torchvision's FCOS.compute_loss: matches
   * (N, A) int32 = the smallest of the boxes that contain the point, whose centre is nearer than radius times the anchor's
   * side along both axes, and whose farthest side is more than 4 and less than 8 anchor sides away (more than 0 for the first
   * first_level anchors, any distance for the last last_level ones); -1 where there is none. Areas are compared as 1e8 -
   * area in fp32: of boxes that rounding makes equal (below 8 square pixels of difference) the lowest index wins, and boxes of
   * 1e8 square pixels match nothing. Other arguments as dlfs_match_anchors.
   */
  matchPoints(stream: number, matches: Address | null, foreground: Address | null, anchors: Address | null, boxes: Address | null, counts: Address | null, n: number, anchorsCount: number, maxBoxes: number, firstLevel: number, lastLevel: number, radius: number): number;
  /** Bytes of workspace for dlfs_focal_loss, dlfs_box_loss and dlfs_centerness_loss. */
  detectionLossWorkspace(ctx: number, out: HostView, n: number, anchors: number, classes: number): number;
  /**
   * Sigmoid focal loss (Lin et al. 2017) as torchvision's RetinaNet: *loss = the sum over anchors that are not ignored and
   * classes of alpha_t (1 - p_t)^gamma BCE, normalized (DLFS_LOSS_). logits: level maps of `classes` columns; matches (N, A) and
   * foreground (N) from dlfs_match_anchors; labels (N, M) int32 in [0, classes); alpha < 0 means no alpha; with gamma 0 and no
   * alpha it is binary cross-entropy. dlogits: maps as the logits, the gradient of *loss times grad_factor; ignored anchors get 0.
   * One pass over logits; loss fp32, the same order of sums each run.
   */
  focalLoss(stream: number, loss: Address | null, dlogits: HostView, logits: HostView, matches: Address | null, labels: Address | null, foreground: Address | null, gradScale: Address | null, workspace: Address | null, cells: HostView, pitches: HostView, levels: number, n: number, perCell: number, classes: number, maxBoxes: number, dtype: number, alpha: number, gamma: number, normalization: number, gradFactor: number): number;
  /**
   * The loss `kind` (DLFS_BOX_LOSS_) of each foreground anchor, summed and normalized (DLFS_LOSS_). deltas: level maps of 4
   * columns, coded by `coder` (DLFS_CODER_; wx, wy, ww, wh are used by CODER_CENTRE); anchors (A, 4). Kinds of IoU compare the
   * decoded box with the matched one, with torchvision.ops' eps of 1e-7, and differ from it where it has no number: a decoded
   * coordinate beyond 1e9 pixels counts as 1e9 (with gradient 0), the aspect ratio of a box without extent as 0. ddeltas: maps as
   * the deltas, the gradient times grad_factor, 0 outside the foreground, for dw and dh beyond the clip of dlfs_box_decode too.
   */
  boxLoss(stream: number, loss: Address | null, ddeltas: HostView, deltas: HostView, anchors: Address | null, matches: Address | null, boxes: Address | null, foreground: Address | null, gradScale: Address | null, workspace: Address | null, cells: HostView, pitches: HostView, levels: number, n: number, perCell: number, maxBoxes: number, dtype: number, kind: number, coder: number, wx: number, wy: number, ww: number, wh: number, beta: number, normalization: number, gradFactor: number): number;
  /** Bytes of workspace for dlfs_cross_entropy_loss. */
  crossEntropyLossWorkspace(ctx: number, out: HostView, n: number, anchors: number, negativeRatio: number): number;
  /**
   * Softmax cross-entropy of the anchors that are not ignored, summed and normalized (DLFS_LOSS_). logits (N, A, classes) of
   * dtype, 2 to 10240 classes, the first for the background: an anchor's target is labels + 1 where it is matched, else 0
   * (labels (N, M) int32 in [0, classes - 1); another makes the loss NaN). negative_ratio < 0: all anchors count. Else hard
   * negative mining as torchvision's SSD: of the background, per image, those of largest loss whose rank from 0 is below
   * negative_ratio times the image's foreground, the lower index first among equals. dlogits (N, A, classes), nullable: the
   * gradient times grad_factor; anchors that do not count get 0. Mining reads the logits of the anchors that count twice.
   */
  crossEntropyLoss(stream: number, loss: Address | null, dlogits: Address | null, logits: Address | null, matches: Address | null, labels: Address | null, foreground: Address | null, gradScale: Address | null, workspace: Address | null, n: number, anchors: number, classes: number, maxBoxes: number, dtype: number, negativeRatio: number, normalization: number, gradFactor: number): number;
  /**
   * FCOS's centre-ness loss (Tian et al. 2019): binary cross-entropy of the foreground anchors' logits, level maps of 1 column,
   * with sqrt(min(l, r) / max(l, r) min(t, b) / max(t, b)), the distances of the anchor's centre from the sides of its box (0 where
   * it lies outside), summed and normalized (DLFS_LOSS_). dlogits: maps as the logits, the gradient times grad_factor. Other
   * arguments as dlfs_box_loss.
   */
  centernessLoss(stream: number, loss: Address | null, dlogits: HostView, logits: HostView, anchors: Address | null, matches: Address | null, boxes: Address | null, foreground: Address | null, gradScale: Address | null, workspace: Address | null, cells: HostView, pitches: HostView, levels: number, n: number, perCell: number, maxBoxes: number, dtype: number, normalization: number, gradFactor: number): number;
  /** Bytes of workspace for dlfs_topk. */
  topkWorkspace(ctx: number, out: HostView, n: number, m: number, k: number): number;
  /**
   * Per image the k largest scores > threshold (strictly), largest first, the lower index first among equals; NaN is left out.
   * logits (N, M) of dtype, read by kind, DLFS_SCORES_...; rows start logits_stride elements apart, result rows row_stride
   * elements apart (so that the levels of a pyramid fill one array). scores fp32; index int32 into the row, -1 (and score 0)
   * past the last.
   */
  topk(stream: number, scores: Address | null, index: Address | null, logits: Address | null, workspace: Address | null, n: number, m: number, logitsStride: number, k: number, rowStride: number, dtype: number, kind: number, threshold: number): number;
  /** Bytes of workspace for dlfs_select_candidates. */
  selectCandidatesWorkspace(ctx: number, out: HostView, cells: HostView, levels: number, n: number, perCell: number, classes: number, k: number): number;
  /**
   * What detectors with independent classes do before suppression: on each level, of all its anchors and classes together, the k
   * best scores > threshold (strictly), best first, the lower anchor and then class first among equals, NaN left out; with their
   * boxes, decoded from the deltas and clipped to image_sizes (N, 2) fp32 (height, width), and their classes as labels. logits,
   * centerness and deltas: level maps (of `classes`, 1 and 4 columns, each with pitches of its own) of one dtype; anchors (A, 4).
   * Scores are sigmoid(logit) or, where centerness is given (its addresses are not 0), FCOS's sqrt(sigmoid(logit)
   * sigmoid(centerness)). boxes (N, K, 4), scores (N, K), labels (N, K) int32, of K columns: level l has min(k, cells[l] per_cell
   * classes) of them, one level after the other; past a level's last candidate the score is 0, the label -1, the box 0. coder:
   * DLFS_CODER_; wx, wy, ww, wh are used by CODER_CENTRE.
   */
  selectCandidates(stream: number, boxes: Address | null, scores: Address | null, labels: Address | null, logits: HostView, centerness: HostView, deltas: HostView, anchors: Address | null, imageSizes: Address | null, workspace: Address | null, cells: HostView, logitsPitches: HostView, centernessPitches: HostView, deltasPitches: HostView, levels: number, n: number, perCell: number, classes: number, k: number, coder: number, dtype: number, threshold: number, wx: number, wy: number, ww: number, wh: number): number;
  /**
   * Boxes and labels of dlfs_topk's results. per_class 0: index i of a row is anchor i / classes, class i %
   * classes. per_class > 0 (a top-k for each class): a row is blocks of per_class candidates; entry r has class r /
   * per_class, and index r is its anchor; k is a multiple of per_class and at most classes times it. boxes (N, row_stride, 4)
   * and labels (N, row_stride) int32 are written for k entries a row (label -1, box 0 where index is -1). deltas (N, A, 4) of
   * dtype, rows deltas_stride elements apart; anchors (A, 4). wx, wy, ww, wh are used by CODER_CENTRE. Boxes are clipped to
   * image_sizes (N, 2) fp32: height, width.
   */
  decodeCandidates(stream: number, boxes: Address | null, labels: Address | null, index: Address | null, deltas: Address | null, anchors: Address | null, imageSizes: Address | null, n: number, k: number, rowStride: number, deltasStride: number, classes: number, perClass: number, coder: number, dtype: number, wx: number, wy: number, ww: number, wh: number): number;
  /** Bytes of workspace for dlfs_nms. */
  nmsWorkspace(ctx: number, out: HostView, n: number, k: number): number;
  /**
   * Greedy non-maximum suppression of a batch (torchvision.ops.batched_nms): candidates boxes (N, K, 4), scores (N, K),
   * labels (N, K), those with label < 0 left out; sorted by score (stable), a box is dropped when its IoU with a kept one (of
   * the same label when class_aware) is > iou_threshold. keep (N, max_out) int32: candidate indices, best first, -1 past
   * the last; keep_counts (N) int32.
   */
  nms(stream: number, keep: Address | null, keepCounts: Address | null, boxes: Address | null, scores: Address | null, labels: Address | null, workspace: Address | null, n: number, k: number, maxOut: number, iouThreshold: number, classAware: number): number;
  /** Bytes of workspace for dlfs_soft_nms. */
  softNmsWorkspace(ctx: number, out: HostView, n: number, k: number): number;
  /**
   * Soft-NMS of a batch (Bodla et al. 2017): up to max_out times the candidate of the largest score, the lower index first
   * among equals, is taken, and the others' scores (those of the same label when class_aware) are decayed by their IoU with it,
   * by method, DLFS_SOFT_NMS_... Candidates with label < 0 are left out, and those whose score is not > min_score, >= 0, at the
   * start or after a decay. keep, keep_counts and the candidates as dlfs_nms; keep_scores (N, max_out) fp32: the scores when
   * taken, which do not increase, 0 past the last. iou_threshold (0 to 1) is used by LINEAR, sigma (> 0) by GAUSSIAN.
   */
  softNms(stream: number, keep: Address | null, keepCounts: Address | null, keepScores: Address | null, boxes: Address | null, scores: Address | null, labels: Address | null, workspace: Address | null, n: number, k: number, maxOut: number, method: number, iouThreshold: number, sigma: number, minScore: number, classAware: number): number;
  /**
   * detections (N, max_out, 6) fp32: x1, y1, x2, y2, score, label of the kept candidates, zeros past the last. keep_scores
   * (N, max_out), nullable, replaces the candidates' scores.
   */
  gatherDetections(stream: number, detections: Address | null, boxes: Address | null, scores: Address | null, labels: Address | null, keep: Address | null, keepScores: Address | null, n: number, k: number, maxOut: number): number;
  /**
   * Reads the header of an image file, on any build: values[0..7] = width, height, format (DLFS_IMAGE_JPEG, PNG or WEBP),
   * components (1 gray, 2 gray with alpha, 3 colours, 4 colours with alpha, or CMYK and YCCK of a JPEG), bits per sample (of a
   * palette's index, where there is one), process (of a JPEG: 0 baseline or extended sequential, 1 progressive, 2 lossless, 3
   * arithmetic-coded; of a WebP: 0 lossy, 2 lossless; of a PNG: 2), EXIF orientation (1 where there is none), Adobe transform of
   * a JPEG (-1 none). Width and height are those of the upright picture: with an orientation of 5 to 8 the stored picture's
   * height and width. The bytes may end behind the header, but for a WebP with EXIF data, which lies at its end; of a JPEG only
   * EXIF data before the frame header counts, of a PNG only such before the image data. What is malformed in it is ignored. No
   * pixels are decoded, nothing is allocated. DLFS_ERROR_IMAGE says what is wrong (not such an image, no header before the end,
   * size 0, ...).
   */
  imageInfoSync(values: HostView, bytes: HostView, length: number): number;
  /**
   * Decodes an image file to RGB: dst (height, width, 3) uint8 on the device, turned upright by the file's EXIF orientation.
   * width and height must be those that dlfs_image_info_sync gives. Waits for the result. JPEGs may have any sampling and
   * colours, CMYK and YCCK where supported. Of PNG files (any) palettes are looked up and 16 bits cut to the upper 8; of WebP
   * files (lossy, lossless) an animation's first frame counts. Transparency is dropped: colours stay as they are stored, as by
   * Pillow's convert("RGB"). A truncated or damaged file is DLFS_ERROR_IMAGE (damage inside a JPEG's coded data as far as the
   * decoder notices it; libjpeg-turbo notices more than nvJPEG), and so is one of another format, of more than 2^28 pixels, of more
   * than 65535 a side or of more than its bytes can hold, which is refused before anything is allocated. DLFS_ERROR_UNSUPPORTED: this library was
   * built without libpng or libwebp.
   */
  imageDecodeSync(stream: number, dst: Address | null, bytes: HostView, length: number, width: number, height: number): number;
  /**
   * Encodes pixels (height, width, 3) uint8 RGB on the device as a baseline JPEG, 4:2:0, quality 1 to 100; waits. *length
   * receives the size; a capacity too small is DLFS_ERROR_ARGUMENT naming the size needed.
   */
  jpegEncodeSync(stream: number, out: HostView, length: HostView, pixels: Address | null, capacity: number, width: number, height: number, quality: number): number;
  /**
   * Crops, resizes, flips, normalises and casts n images into dst (n, out_h, out_w, out_c), out_c >= 3, further channels 0.
   * Image i: uint8 RGB at device address sources[i], sizes[2 i] high and sizes[2 i + 1] wide. transforms (n,
   * DLFS_TRANSFORM_FLOATS) per image: crop x, y, width, height in source pixels (may be fractional and reach outside the
   * image); target x, y, width, height in output pixels; flip_x, flip_y (0 or 1, mirroring the target); 2 unused (0).
   * Output pixel (u, v) inside the target samples crop coordinate ((u + 0.5 - target_x) * crop_w / target_w - 0.5) + crop_x,
   * bilinear, coordinates clamped to the image (torch's interpolate, align_corners false); outside the target, or where
   * the sampled point lies outside the image by more than half a pixel, it is the fill colour. Value written for channel c:
   * (pixel / 255 - mean[c]) / std[c] with normalisation = {mean[3], std[3], fill[3]} (fill in 0..255, RGB); for U8 output the
   * pixel itself, rounded. The triangle filter with ANTIALIAS follows torch's antialias=True.
   */
  preprocess(stream: number, dst: Address | null, sources: HostView, sizes: HostView, transforms: HostView, normalisation: HostView, n: number, outH: number, outW: number, outC: number, dtype: number, flags: number): number;
  /**
   * dst[i, c] = (src[i, c] / 255 - mean[c]) / std[c] for RGB pixels src (pixels, 3) uint8, dst (pixels, 3) of dtype F32, BF16 or
   * F16, with normalisation = {mean[3], std[3]}: what dlfs_preprocess writes of an image that it leaves its size.
   */
  normalizePixels(stream: number, dst: Address | null, src: Address | null, normalisation: HostView, pixels: number, dtype: number): number;
  /**
   * Composes n images out of warped, recoloured sources and writes them normalised to dst (n, out_h, out_w, out_c), out_c >= 3,
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
   * somewhat smoother. normalisation, dtype and flags as dlfs_preprocess (DLFS_PREPROCESS_BGR alone).
   */
  augment(stream: number, dst: Address | null, sources: HostView, layers: HostView, normalisation: HostView, n: number, layerCount: number, outH: number, outW: number, outC: number, dtype: number, flags: number): number;
  /**
   * Starts decoding threads (0: a good number for the machine), each with scratch memory and, on a GPU, a stream. hardware, 0 to
   * 100, is the share of images in per cent that a GPU's JPEG engines decode beside the threads, among those that they take:
   * 8-bit baseline JPEGs of one scan that are stored upright, gray or YCbCr in 4:4:4, 4:2:2 or 4:2:0. Which images these are
   * depends on each image's bytes alone. The engines' pixels may differ by a few levels, and they notice no damage inside the
   * coded data but what the segments and the markers around it show. Where there are no engines (dlfs_supports
   * "jpeg.hardware"), the share has no effect.
   */
  decoderCreate(ctx: number, out: HostView, threads: number, hardware: number): number;
  /** Waits for its jobs, then ends the threads. */
  decoderDestroy(decoder: number): number;
  /**
   * Decodes n image files and preprocesses each into its slot of dst, as dlfs_image_decode_sync and dlfs_preprocess do; returns
   * at once. Image i is lengths[i] bytes at address sources[i] in pinned host memory (dlfs_host_malloc), which must stay until
   * the job has finished; or, where lengths[i] is -1, the file whose path begins at byte sources[i] of paths: path_bytes bytes
   * of NUL-terminated UTF-8, which the call copies (0 where no image is in a file). Decoding threads read files, one each at a
   * time. One that cannot be opened or read, is no regular file, is over 2^30 bytes or becomes shorter while it is read is
   * DLFS_ERROR_IO; messages of images in files begin with the path. dst must stay until the job has finished. Other arguments
   * as dlfs_preprocess. A slot whose image fails is filled with the fill colour; the others are not affected.
   */
  decoderSubmit(decoder: number, out: HostView, dst: Address | null, sources: HostView, lengths: HostView, paths: HostView, transforms: HostView, normalisation: HostView, pathBytes: number, n: number, outH: number, outW: number, outC: number, dtype: number, flags: number): number;
  /**
   * Decodes n image files, each to pixels (height, width, 3) uint8 RGB of its own at device address dst[i], upright; returns at
   * once. sources, lengths and paths as dlfs_decoder_submit. sizes (n, 2): the height and width that each image must have; an
   * image of another size is DLFS_ERROR_IMAGE. The pixels of an image that fails are undefined, the others are not affected.
   */
  decoderSubmitPixels(decoder: number, out: HostView, dst: HostView, sources: HostView, lengths: HostView, paths: HostView, sizes: HostView, pathBytes: number, n: number): number;
  /** DLFS_OK when all images of the job are written (visible to any stream from then on), else DLFS_NOT_READY. */
  jobQuery(job: number): number;
  /** Waits until dlfs_job_query would be DLFS_OK. */
  jobWaitSync(job: number): number;
  /** status of each image of a finished job, n values: DLFS_OK or a negative status. */
  jobResults(job: number, status: HostView): number;
  /** The error message of image i of a finished job, NUL-terminated, truncated; empty where it succeeded. */
  jobMessage(job: number, out: HostView, capacity: number, i: number): number;
  /** Waits for the job, then releases it. */
  jobDestroy(job: number): number;
}
