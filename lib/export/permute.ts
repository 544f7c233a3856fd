/** An array of a shape with its dimensions in another order: dimension i of the result is `axes[i]` of the given one. */
export function permute(data: Float32Array, shape: readonly number[], axes: readonly number[]): Float32Array {
  if (axes.every((axis, i) => axis === i)) return data;
  const strides = shape.map((_, axis) => shape.slice(axis + 1).reduce((product, size) => product * size, 1));
  const out = new Float32Array(data.length);
  let at = 0;
  const copy = (dimension: number, from: number): void => {
    const [size, stride] = [shape[axes[dimension] as number] as number, strides[axes[dimension] as number] as number];
    if (dimension === axes.length - 1) {
      for (let i = 0; i < size; ++i) out[at++] = data[from + i * stride] as number;
    } else {
      for (let i = 0; i < size; ++i) copy(dimension + 1, from + i * stride);
    }
  };
  copy(0, 0);
  return out;
}
