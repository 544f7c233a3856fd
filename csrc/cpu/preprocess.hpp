// The CPU's preprocessing of one image, used by dlfs_preprocess and by the decoding threads.
#pragma once

#include <vector>

#include "common/sampling.hpp"

namespace dlfs::cpu {

// Memory that a thread reuses from row to row and image to image.
struct PreprocessScratch {
  // The output columns [first, last) are sampled, the others filled. Column u adds up taps[u] pixels from offset[u] on,
  // an index into `row`, with the weights from weight_at[u] on; where all columns have at most two, `bilinear` is set
  // and every column has two weights at 2 u.
  int32_t first = 0, last = 0;
  bool bilinear = false;
  std::vector<int32_t> offset, weight_at, taps;
  std::vector<float> weights;
  // The source columns [column_begin, column_end) are those that any output column reads; row holds them (3 floats
  // each, then zeros) summed over the source rows behind one output row.
  int32_t column_begin = 0, column_end = 0;
  std::vector<float> row;
  // An output row's samples before normalisation, and what each is multiplied with and what is added then.
  std::vector<float> sampled, scale, shift;
  // Two rows of output.
  std::vector<char> output;
};

// Starts the column tables of an image `source_width` wide for `columns` output columns; add_column follows for some of
// them, ascending and with no gaps, then end_columns.
void begin_columns(PreprocessScratch& scratch, int32_t columns, int32_t source_width, bool antialias);
void add_column(PreprocessScratch& scratch, const SampleFilter& filter, int32_t column, const Footprint& f);
void end_columns(PreprocessScratch& scratch);

// Sums the source rows of a footprint (count > 0) into scratch.row; `pitch`: bytes from a source row to the next.
void sum_rows(PreprocessScratch& scratch, const uint8_t* src, int64_t pitch, const SampleFilter& rows,
              const Footprint& f);

// Computes the column tables for an image of the given width.
void prepare_columns(PreprocessScratch& scratch, const SampleAxis& columns, const PreprocessFormat& format);

// Writes output rows [row_begin, row_end) of one image: dst (out_h, out_w, out_c), src (height, width, 3) uint8 RGB.
// prepare_columns must have been called for this image.
void preprocess_rows(void* dst, const uint8_t* src, int32_t width, const SampleAxis& rows,
                     const PreprocessFormat& format, PreprocessScratch& scratch, int32_t row_begin, int32_t row_end);

// Fills rows of an image with the fill colour.
void fill_rows(void* dst, const PreprocessFormat& format, int32_t row_begin, int32_t row_end);

}  // namespace dlfs::cpu
