// Crop, resize, flip, normalise and cast in one pass on the CPU, row by row: the source rows behind an output row are
// summed with their weights into a row of floats (contiguous, vectorised), then every output pixel sums a few
// neighbours of that row. The order of sums is that of common/sampling.hpp.
#include "cpu/preprocess.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>

#include "cpu/pixel.hpp"
#include "cpu/runtime.hpp"
#include "cpu/stream_copy.hpp"

namespace dlfs::cpu {
namespace {

constexpr int64_t padding = 8;  // floats behind a row that vector loads of its last pixels touch

template <class T>
void fill_pixels(T* row, const PreprocessFormat& format, int32_t begin, int32_t end) {
  T* p = row + int64_t{begin} * format.out_c;
  for (int32_t u = begin; u < end; ++u, p += format.out_c) {
    for (int32_t c = 0; c < 3; ++c) put(p + c, format.color.fill[c]);
    for (int32_t c = 3; c < format.out_c; ++c) put(p + c, 0.0f);
  }
}

// Samples the columns [first, last) into `out`, 3 floats each and one behind the last.
template <bool bilinear, bool bgr>
void sample_row(float* out, const PreprocessScratch& scratch) {
  const float* row = scratch.row.data();
  const float* weights = scratch.weights.data();
  for (int32_t u = scratch.first; u < scratch.last; ++u, out += 3) {
    const float* p = row + scratch.offset[u];
    Pixel value;
    if (bilinear) {
      value = load_pixel(p) * weights[2 * u] + load_pixel(p + 3) * weights[2 * u + 1];
    } else {
      const float* w = weights + scratch.weight_at[u];
      value = load_pixel(p) * w[0];
      for (int32_t i = 1; i < scratch.taps[u]; ++i) value += load_pixel(p + 3 * i) * w[i];
    }
    if (bgr) value = Pixel{value[2], value[1], value[0], value[3]};
    std::memcpy(out, &value, sizeof value);  // the next pixel overwrites the fourth
  }
}

// Normalises and writes the columns [first, last) of one row: samples first, so that what follows runs over the row's
// values with no regard to pixels.
template <class T>
void write_row(T* row, PreprocessScratch& scratch, const PreprocessFormat& format) {
  float* sampled = scratch.sampled.data();
  const bool bgr = format.color.source[0] == 2;
  if (scratch.bilinear) {
    bgr ? sample_row<true, true>(sampled, scratch) : sample_row<true, false>(sampled, scratch);
  } else {
    bgr ? sample_row<false, true>(sampled, scratch) : sample_row<false, false>(sampled, scratch);
  }
  const int64_t count = int64_t{3} * (scratch.last - scratch.first);
  const float* scale = scratch.scale.data();
  const float* shift = scratch.shift.data();
  T* out = row + int64_t{scratch.first} * format.out_c;
  if (format.out_c == 3) {
    for (int64_t j = 0; j < count; ++j) put(out + j, sampled[j] * scale[j] + shift[j]);
    return;
  }
  for (int64_t j = 0; j < count; j += 3, out += format.out_c) {
    for (int64_t c = 0; c < 3; ++c) put(out + c, sampled[j + c] * scale[c] + shift[c]);
    for (int32_t c = 3; c < format.out_c; ++c) put(out + c, 0.0f);
  }
}

// Makes room for a row's samples, and repeats the scale and the shift of the channels as often as a row has columns.
void prepare_output(PreprocessScratch& scratch, const PreprocessFormat& format) {
  const size_t values = static_cast<size_t>(format.out_w) * 3;
  scratch.sampled.resize(values + padding);
  scratch.scale.resize(values);
  scratch.shift.resize(values);
  for (size_t j = 0; j < values; j += 3) {
    for (size_t c = 0; c < 3; ++c) {
      scratch.scale[j + c] = format.color.scale[c];
      scratch.shift[j + c] = format.color.shift[c];
    }
  }
  // Rows of the output, see preprocess_rows.
  scratch.output.resize(static_cast<size_t>(2 * format.row_bytes()));
}

}  // namespace

void sum_rows(PreprocessScratch& scratch, const uint8_t* src, int64_t pitch, const SampleFilter& rows,
              const Footprint& f) {
  const int64_t count = int64_t{scratch.column_end - scratch.column_begin} * 3;
  const uint8_t* p = src + f.first * pitch + int64_t{scratch.column_begin} * 3;
  float* row = scratch.row.data();
  const float w0 = footprint_weight(rows, f, 0);
  if (f.count == 1 || (!rows.antialias && f.value == 0.0f)) {
    for (int64_t j = 0; j < count; ++j) row[j] = w0 * static_cast<float>(p[j]);
    return;
  }
  const float w1 = footprint_weight(rows, f, 1);
  const uint8_t* q = p + pitch;
  for (int64_t j = 0; j < count; ++j) row[j] = w0 * static_cast<float>(p[j]) + w1 * static_cast<float>(q[j]);
  for (int32_t i = 2; i < f.count; ++i) {
    const float w = footprint_weight(rows, f, i);
    q += pitch;
    for (int64_t j = 0; j < count; ++j) row[j] += w * static_cast<float>(q[j]);
  }
}

void begin_columns(PreprocessScratch& scratch, int32_t columns, int32_t source_width, bool antialias) {
  const size_t out_w = static_cast<size_t>(columns);
  scratch.bilinear = !antialias;
  scratch.offset.resize(out_w);
  scratch.weight_at.resize(out_w);
  scratch.taps.resize(out_w);
  scratch.weights.clear();
  if (scratch.bilinear) scratch.weights.resize(2 * out_w);
  scratch.first = scratch.last = 0;
  scratch.column_begin = source_width;
  scratch.column_end = 0;
}

void add_column(PreprocessScratch& scratch, const SampleFilter& filter, int32_t column, const Footprint& f) {
  const size_t u = static_cast<size_t>(column);
  if (scratch.last == 0) scratch.first = column;
  scratch.last = column + 1;
  scratch.column_begin = std::min(scratch.column_begin, f.first);
  scratch.column_end = std::max(scratch.column_end, f.first + f.count);
  scratch.offset[u] = f.first * 3;
  scratch.taps[u] = f.count;
  if (scratch.bilinear) {
    scratch.weight_at[u] = 2 * column;
    scratch.weights[2 * u] = footprint_weight(filter, f, 0);
    scratch.weights[2 * u + 1] = f.count == 2 ? footprint_weight(filter, f, 1) : 0.0f;
  } else {
    scratch.weight_at[u] = static_cast<int32_t>(scratch.weights.size());
    for (int32_t j = 0; j < f.count; ++j) scratch.weights.push_back(footprint_weight(filter, f, j));
  }
}

void end_columns(PreprocessScratch& scratch) {
  for (int32_t u = scratch.first; u < scratch.last; ++u) scratch.offset[u] -= scratch.column_begin * 3;
  const int64_t floats = std::max<int64_t>(scratch.column_end - scratch.column_begin, 0) * 3;
  scratch.row.assign(static_cast<size_t>(floats + padding), 0.0f);
}

void prepare_columns(PreprocessScratch& scratch, const SampleAxis& columns, const PreprocessFormat& format) {
  begin_columns(scratch, format.out_w, columns.size, columns.antialias);
  for (int32_t u = 0; u < format.out_w; ++u) {
    const Footprint f = footprint(columns, u);
    if (f.count > 0) add_column(scratch, columns, u, f);  // 0 before and after the sampled columns only
  }
  end_columns(scratch);
}

void preprocess_rows(void* dst, const uint8_t* src, int32_t width, const SampleAxis& rows,
                     const PreprocessFormat& format, PreprocessScratch& scratch, int32_t row_begin, int32_t row_end) {
  dispatch_output(format.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t row_bytes = format.row_bytes();
    prepare_output(scratch, format);
    // A row of the fill colour, and one that is drawn where it stays in the cache.
    T* filled = reinterpret_cast<T*>(scratch.output.data());
    T* drawn = reinterpret_cast<T*>(scratch.output.data() + row_bytes);
    fill_pixels(filled, format, 0, format.out_w);
    std::memcpy(drawn, filled, static_cast<size_t>(row_bytes));
    for (int32_t v = row_begin; v < row_end; ++v) {
      char* out = static_cast<char*>(dst) + v * row_bytes;
      const Footprint f = footprint(rows, v);
      if (f.count == 0 || scratch.last == 0) {
        stream_copy(out, filled, row_bytes);
        continue;
      }
      sum_rows(scratch, src, int64_t{width} * 3, rows, f);
      write_row(drawn, scratch, format);
      stream_copy(out, drawn, row_bytes);
    }
    stream_fence();
  });
}

void fill_rows(void* dst, const PreprocessFormat& format, int32_t row_begin, int32_t row_end) {
  dispatch_output(format.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t row = int64_t{format.out_w} * format.out_c;
    for (int64_t v = row_begin; v < row_end; ++v) fill_pixels(static_cast<T*>(dst) + v * row, format, 0, format.out_w);
  });
}

}  // namespace dlfs::cpu

using namespace dlfs;
using namespace dlfs::cpu;

namespace {

// A copy of dlfs_preprocess's arguments.
struct Batch {
  char* dst;
  std::vector<const uint8_t*> sources;
  std::vector<int32_t> sizes;
  std::vector<float> transforms;
  int32_t n;
  PreprocessFormat format;

  // Output rows [begin, end) of the whole batch.
  void run(int64_t begin, int64_t end) const {
    thread_local PreprocessScratch scratch;
    while (begin < end) {
      const int32_t i = static_cast<int32_t>(begin / format.out_h);
      const int32_t row = static_cast<int32_t>(begin % format.out_h);
      const int32_t row_end = static_cast<int32_t>(std::min<int64_t>(row + end - begin, format.out_h));
      const ImageTransform transform = image_transform(transforms.data(), i);
      const int32_t height = sizes[2 * i], width = sizes[2 * i + 1];
      prepare_columns(scratch, sample_columns(transform, width, format.flags), format);
      preprocess_rows(dst + i * format.image_bytes(), sources[i], width, sample_rows(transform, height, format.flags),
                      format, scratch, row, row_end);
      begin += row_end - row;
    }
  }
};

}  // namespace

extern "C" dlfs_status dlfs_preprocess(dlfs_stream stream, void* dst, const int64_t* sources, const int32_t* sizes,
                                       const float* transforms, const float* normalisation, int32_t n, int32_t out_h,
                                       int32_t out_w, int32_t out_c, dlfs_dtype dtype, int32_t flags) {
  return on_stream("dlfs_preprocess", stream, [&](Stream& s) {
    check_pointer(dst, "dst");
    check_pointer(sources, "sources");
    check_pointer(sizes, "sizes");
    check_preprocess(transforms, normalisation, n, out_h, out_w, out_c, dtype, flags);
    auto batch = std::make_shared<Batch>();
    batch->dst = static_cast<char*>(dst);
    for (int32_t i = 0; i < n; ++i) {
      DLFS_CHECK(sources[i] != 0, DLFS_ERROR_ARGUMENT, "the source of image %d is NULL", i);
      for (int32_t j = 0; j < 2; ++j) check_range(sizes[2 * i + j], 1, max_image_side, j ? "width" : "height");
      batch->sources.push_back(reinterpret_cast<const uint8_t*>(sources[i]));
    }
    batch->sizes.assign(sizes, sizes + int64_t{2} * n);
    batch->transforms.assign(transforms, transforms + int64_t{n} * DLFS_TRANSFORM_FLOATS);
    batch->n = n;
    batch->format = {out_h, out_w, out_c, dtype, flags, color_transform(normalisation, dtype, flags)};
    s.enqueue([batch = std::shared_ptr<const Batch>(batch)] {
      parallel_for(int64_t{batch->n} * batch->format.out_h, 32,
                   [&](int64_t begin, int64_t end) { batch->run(begin, end); });
    });
  });
}

extern "C" dlfs_status dlfs_normalize_pixels(dlfs_stream stream, void* dst, const uint8_t* src,
                                             const float* normalisation, int64_t pixels, dlfs_dtype dtype) {
  return on_stream("dlfs_normalize_pixels", stream, [&](Stream& s) {
    check_pointer(dst, "dst");
    check_pointer(src, "src");
    const ColorTransform color = pixel_transform(normalisation);
    check_range(pixels, 1, max_elements, "pixels");
    checked_product({pixels, 3}, "dst");
    dispatch_float(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      s.enqueue([out = static_cast<T*>(dst), src, color, pixels] {
        parallel_for(pixels, 4096, [=](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            for (int64_t c = 0; c < 3; ++c) {
              store(out + 3 * i + c, static_cast<float>(src[3 * i + c]) * color.scale[c] + color.shift[c]);
            }
          }
        });
      });
    });
  });
}
