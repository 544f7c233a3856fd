// Sums and moments per channel of a packed (rows, C) tensor, as bias gradients and normalizations need them, and the
// normalising itself.
//
// The order of sums is fixed by the sizes alone, whatever the number of threads: rows are cut into blocks, a block into
// tiles of a few thousand elements. Within a tile sums are fp32; across tiles and blocks they are double, so that
// results agree with a double reference to about 1e-7 times the sum of magnitudes.
//
// Few channels leave vector registers empty, so rows are folded: `fold` rows side by side are one wide row of `width`
// values, of which value j belongs to channel j % C. The last wide row may be shorter.
#pragma once

#include <vector>

#include "common/batch_norm.hpp"
#include "cpu/numeric.hpp"
#include "cpu/runtime.hpp"

namespace dlfs::cpu {

struct ChannelLayout {
  int64_t rows, c;
  int64_t fold, width;  // width = fold * c
  int64_t wide_rows;    // rows / fold, rounded up
  int64_t tile_rows;    // wide rows per tile
  int64_t blocks;
  int64_t block_rows;  // wide rows per block

  ChannelLayout(int64_t rows, int64_t c) : rows(rows), c(c) {
    fold = std::min<int64_t>(rows, c >= 64 ? 1 : (64 + c - 1) / c);
    width = fold * c;
    wide_rows = (rows + fold - 1) / fold;
    tile_rows = std::min<int64_t>(64, std::max<int64_t>(16, 4096 / width));
    const int64_t tiles = (wide_rows + tile_rows - 1) / tile_rows;
    const int64_t wanted = std::min<int64_t>(128, std::max<int64_t>(1, rows * c / 16384));
    block_rows = (tiles + wanted - 1) / wanted * tile_rows;
    blocks = (wide_rows + block_rows - 1) / block_rows;
  }

  int64_t elements() const { return rows * c; }

  // Values of channel parameters repeated along a wide row.
  std::vector<float> widen(const float* values) const {
    std::vector<float> wide(static_cast<size_t>(width));
    for (int64_t j = 0; j < width; ++j) wide[static_cast<size_t>(j)] = values[j % c];
    return wide;
  }

  // Bytes of workspace for `sums` quantities per channel.
  int64_t workspace(int64_t sums) const { return blocks * block_bytes(sums) + total_bytes(sums); }

  // Partial results of a block: doubles (sums, C), then floats (sums, width).
  double* block_sums(void* workspace, int64_t sums, int64_t block) const {
    return reinterpret_cast<double*>(static_cast<char*>(workspace) + total_bytes(sums) + block * block_bytes(sums));
  }
  float* block_tile(void* workspace, int64_t sums, int64_t block) const {
    return reinterpret_cast<float*>(block_sums(workspace, sums, block) + sums * c);
  }

 private:
  static int64_t padded(int64_t bytes) { return (bytes + 127) / 128 * 128; }  // no two blocks share a cache line
  int64_t block_bytes(int64_t sums) const { return padded(sums * (c * 8 + width * 4)); }
  int64_t total_bytes(int64_t sums) const { return padded(sums * c * 8); }
};

// Calls visit(block, first, last) for every tile, [first, last) being its elements; tiles of a block in order, blocks
// in parallel.
template <class Visit>
void for_each_tile(const ChannelLayout& l, const Visit& visit) {
  parallel_for(l.blocks, 1, [&](int64_t block_begin, int64_t block_end) {
    for (int64_t block = block_begin; block < block_end; ++block) {
      const int64_t last_row = std::min(l.wide_rows, (block + 1) * l.block_rows);
      for (int64_t row = block * l.block_rows; row < last_row; row += l.tile_rows) {
        const int64_t end_row = std::min(last_row, row + l.tile_rows);
        visit(block, row * l.width, std::min(l.elements(), end_row * l.width));
      }
    }
  });
}

// Calls body(i, count) for every wide row of elements [first, last): i its first element.
template <class Body>
void for_each_wide_row(const ChannelLayout& l, int64_t first, int64_t last, const Body& body) {
  for (int64_t i = first; i < last; i += l.width) body(i, std::min(l.width, last - i));
}

// Sums `sums` quantities per channel: accumulate(i, count, tile) adds those of the elements [i, i + count) of one wide
// row to tile (sums, width). Returns the totals (sums, C), in the workspace.
template <int sums, class Accumulate>
double* sum_channels(const ChannelLayout& l, void* workspace, const Accumulate& accumulate) {
  parallel_for(l.blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      std::fill_n(l.block_sums(workspace, sums, block), sums * l.c, 0.0);
  });
  for_each_tile(l, [&](int64_t block, int64_t first, int64_t last) {
    double* total = l.block_sums(workspace, sums, block);
    float* tile = l.block_tile(workspace, sums, block);
    std::fill_n(tile, sums * l.width, 0.0f);
    for_each_wide_row(l, first, last, [&](int64_t i, int64_t count) { accumulate(i, count, tile); });
    for (int64_t k = 0; k < sums; ++k) {
      for (int64_t f = 0; f < l.fold; ++f) {
        const float* part = tile + k * l.width + f * l.c;
        double* out = total + k * l.c;
#pragma omp simd
        for (int64_t j = 0; j < l.c; ++j) out[j] += part[j];
      }
    }
  });
  double* totals = static_cast<double*>(workspace);
  parallel_for(sums * l.c, 1024, [&](int64_t begin, int64_t end) {
    std::fill(totals + begin, totals + end, 0.0);
    for (int64_t block = 0; block < l.blocks; ++block) {
      const double* part = l.block_sums(workspace, sums, block);
      for (int64_t j = begin; j < end; ++j) totals[j] += part[j];
    }
  });
  return totals;
}

// Calls body(i, count) for all wide rows, in parallel.
template <class Body>
void map_wide_rows(const ChannelLayout& l, const Body& body) {
  parallel_for(l.wide_rows, std::max<int64_t>(1, 16384 / l.width), [&](int64_t begin, int64_t end) {
    for_each_wide_row(l, begin * l.width, std::min(l.elements(), end * l.width), body);
  });
}

// Joins the mean and the sum of squared differences of n values into those of `count` values (Chan, Golub and LeVeque
// 1979), per channel.
inline void join_moments(int64_t c, double* mean, double* squares, int64_t count, const double* other_mean,
                         const double* other_squares, int64_t n) {
  const double share = static_cast<double>(n) / static_cast<double>(count + n);
  const double factor = static_cast<double>(count) * share;
#pragma omp simd
  for (int64_t j = 0; j < c; ++j) {
    const double delta = other_mean[j] - mean[j];
    mean[j] += delta * share;
    squares[j] += other_squares[j] + delta * delta * factor;
  }
}

// Adds up the folds of a tile's sums: (fold, C) -> (C).
inline void fold_sums(const ChannelLayout& l, float* sums) {
  for (int64_t f = 1; f < l.fold; ++f) {
    for (int64_t j = 0; j < l.c; ++j) sums[j] += sums[f * l.c + j];
  }
}

constexpr int64_t moments_width = 4;  // doubles per channel of a block: its moments and a tile's

// Mean and sum of squared differences from it, per channel, in one pass over memory: each tile is read twice while it
// is in the cache. Returns (2, C): means, then sums of squares, in the workspace.
template <class T>
double* channel_moments(const ChannelLayout& l, void* workspace, const T* x) {
  for_each_tile(l, [&](int64_t block, int64_t first, int64_t last) {
    double* moments = l.block_sums(workspace, moments_width, block);
    double* tile_moments = moments + 2 * l.c;
    float* mean = l.block_tile(workspace, moments_width, block);
    float* squares = mean + l.width;
    float* rest = squares + l.width;
    const int64_t start = block * l.block_rows * l.width;
    if (first == start) std::fill_n(moments, 2 * l.c, 0.0);
    const int64_t n = (last - first) / l.c;
    const float scale = 1.0f / static_cast<float>(n);

    std::fill_n(mean, 3 * l.width, 0.0f);
    for_each_wide_row(l, first, last, [&](int64_t i, int64_t count) {
      const T* row = x + i;
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) mean[j] += to_float(row[j]);
    });
    fold_sums(l, mean);
    for (int64_t j = 0; j < l.c; ++j) mean[j] *= scale;
    for (int64_t j = l.c; j < l.width; ++j) mean[j] = mean[j - l.c];

    for_each_wide_row(l, first, last, [&](int64_t i, int64_t count) {
      const T* row = x + i;
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) {
        const float difference = to_float(row[j]) - mean[j];
        squares[j] += difference * difference;
        rest[j] += difference;
      }
    });
    fold_sums(l, squares);
    fold_sums(l, rest);
    // The tile's mean was rounded to fp32: the rest, the sum of what it left, corrects both moments.
#pragma omp simd
    for (int64_t j = 0; j < l.c; ++j) {
      const double correction = static_cast<double>(rest[j]) / static_cast<double>(n);
      tile_moments[j] = mean[j] + correction;
      tile_moments[l.c + j] = squares[j] - rest[j] * correction;
    }
    join_moments(l.c, moments, moments + l.c, (first - start) / l.c, tile_moments, tile_moments + l.c, n);
  });

  double* totals = static_cast<double*>(workspace);
  std::fill_n(totals, 2 * l.c, 0.0);
  int64_t count = 0;
  for (int64_t block = 0; block < l.blocks; ++block) {
    const double* part = l.block_sums(workspace, moments_width, block);
    const int64_t end = std::min(l.rows, (block + 1) * l.block_rows * l.fold);
    const int64_t n = end - block * l.block_rows * l.fold;
    join_moments(l.c, totals, totals + l.c, count, part, part + l.c, n);
    count += n;
  }
  return totals;
}

// (x - mean) * scale + shift, written once so that the backward pass finds ReLU's zeros where forward had them.
inline float affine(float x, float mean, float scale, float shift) { return (x - mean) * scale + shift; }

// y = activation((x - mean) * scale + shift + residual); mean, scale, shift (C). y may be x or residual.
template <class T, bool relu, bool residual>
void normalise(const ChannelLayout& l, T* y, const T* x, const T* added, const float* mean, const float* scale,
               const float* shift) {
  const std::vector<float> wide_mean = l.widen(mean), wide_scale = l.widen(scale), wide_shift = l.widen(shift);
  const float *m = wide_mean.data(), *a = wide_scale.data(), *b = wide_shift.data();
  map_wide_rows(l, [=](int64_t i, int64_t count) {
    const T* in = x + i;
    T* out = y + i;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      float value = affine(to_float(in[j]), m[j], a[j], b[j]);
      if constexpr (residual) value += to_float(added[i + j]);
      if constexpr (relu) value = value < 0.0f ? 0.0f : value;
      out[j] = from_float<T>(value);
    }
  });
}

template <class T>
void normalise(const ChannelLayout& l, T* y, const T* x, const T* added, const float* mean, const float* scale,
               const float* shift, dlfs_activation activation) {
  const bool relu = activation == DLFS_ACT_RELU;
  if (relu && added) return normalise<T, true, true>(l, y, x, added, mean, scale, shift);
  if (relu) return normalise<T, true, false>(l, y, x, added, mean, scale, shift);
  if (added) return normalise<T, false, true>(l, y, x, added, mean, scale, shift);
  return normalise<T, false, false>(l, y, x, added, mean, scale, shift);
}

// Calls body(row, channel, count) for runs of at most 8 channels, those of one byte of a mask, in parallel.
template <class Body>
void map_mask_bytes(const ChannelLayout& l, const Body& body) {
  parallel_for(l.rows, std::max<int64_t>(1, 16384 / l.c), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t channel = 0; channel < l.c; channel += 8) body(row, channel, std::min<int64_t>(8, l.c - channel));
    }
  });
}

// mask (rows, ceil(C / 8)): where y (rows, C) is not <= 0.
template <class T>
void write_mask(const ChannelLayout& l, uint8_t* mask, const T* y) {
  map_mask_bytes(l, [=, c = l.c](int64_t row, int64_t channel, int64_t count) {
    uint32_t bits = 0;
    for (int64_t j = 0; j < count; ++j) bits |= to_float(y[row * c + channel + j]) <= 0.0f ? 0u : 1u << j;
    mask[row * mask_pitch(c) + channel / 8] = static_cast<uint8_t>(bits);
  });
}

// masked = dy where the mask's bit is set, else 0; masked may be dy.
template <class T>
void apply_mask(const ChannelLayout& l, T* masked, const T* dy, const uint8_t* mask) {
  map_mask_bytes(l, [=, c = l.c](int64_t row, int64_t channel, int64_t count) {
    const uint32_t bits = mask[row * mask_pitch(c) + channel / 8];
    const T* in = dy + row * c + channel;
    T* out = masked + row * c + channel;
    for (int64_t j = 0; j < count; ++j) out[j] = (bits >> j & 1) != 0 ? in[j] : from_float<T>(0.0f);
  });
}

}  // namespace dlfs::cpu
