/* Writes the JPEGs of this folder with libjpeg-turbo, all of 24x16 pixels but one.jpg: the left half red (200, 40, 40), the
 * right half blue (40, 60, 200); gray.jpg 60 and 200.
 *   cc record.c -ljpeg -o /tmp/record && /tmp/record
 */
#include <stdio.h>
#include <jpeglib.h>

static void write_jpeg(const char *path, int width, int height, J_COLOR_SPACE space, J_COLOR_SPACE stored, int progressive,
                       int arithmetic) {
  struct jpeg_compress_struct c;
  struct jpeg_error_mgr errors;
  FILE *file = fopen(path, "wb");
  c.err = jpeg_std_error(&errors);
  jpeg_create_compress(&c);
  jpeg_stdio_dest(&c, file);
  c.image_width = width;
  c.image_height = height;
  c.in_color_space = space;
  c.input_components = space == JCS_GRAYSCALE ? 1 : space == JCS_RGB ? 3 : 4;
  jpeg_set_defaults(&c);
  jpeg_set_colorspace(&c, stored);
  jpeg_set_quality(&c, 90, TRUE);
  if (progressive) jpeg_simple_progression(&c);
  c.arith_code = arithmetic;
  jpeg_start_compress(&c, TRUE);
  const unsigned char rgb[2][3] = {{200, 40, 40}, {40, 60, 200}};
  for (int y = 0; y < height; y++) {
    unsigned char row[24 * 4];
    for (int x = 0; x < width; x++) {
      int half = x >= width / 2 && width > 1;
      if (space == JCS_GRAYSCALE) row[x] = half ? 200 : 60;
      if (space == JCS_RGB) for (int k = 0; k < 3; k++) row[3 * x + k] = rgb[half][k];
      /* Adobe's CMYK is stored inverted: without black, a value is the red, green or blue itself. */
      if (space == JCS_CMYK) for (int k = 0; k < 4; k++) row[4 * x + k] = k < 3 ? rgb[half][k] : 255;
    }
    JSAMPROW rows[1] = {row};
    jpeg_write_scanlines(&c, rows, 1);
  }
  jpeg_finish_compress(&c);
  jpeg_destroy_compress(&c);
  fclose(file);
}

int main(void) {
  write_jpeg("baseline.jpg", 24, 16, JCS_RGB, JCS_YCbCr, 0, 0);
  write_jpeg("progressive.jpg", 24, 16, JCS_RGB, JCS_YCbCr, 1, 0);
  write_jpeg("gray.jpg", 24, 16, JCS_GRAYSCALE, JCS_GRAYSCALE, 0, 0);
  write_jpeg("rgb.jpg", 24, 16, JCS_RGB, JCS_RGB, 0, 0);
  write_jpeg("cmyk.jpg", 24, 16, JCS_CMYK, JCS_CMYK, 0, 0);
  write_jpeg("ycck.jpg", 24, 16, JCS_CMYK, JCS_YCCK, 0, 0);
  write_jpeg("arithmetic.jpg", 24, 16, JCS_RGB, JCS_YCbCr, 0, 1);
  write_jpeg("one.jpg", 1, 1, JCS_RGB, JCS_YCbCr, 0, 0);
  return 0;
}
