/** Tensors whose elements lie at strides, brought into row-major order. */

type Elements = Uint8Array | Uint16Array | Uint32Array | BigUint64Array;

/**
 * Copies the elements at offset + sum(index * stride) in row-major order.
 *
 * @param size bytes of an element: 1, 2, 4 or 8
 * @param offset elements before the first one
 * @param shape at least one dimension
 * @param strides elements from one index to the next, by dimension
 * @param count elements of the shape
 */
export function gather(
  storage: Uint8Array<ArrayBuffer>,
  size: number,
  offset: number,
  shape: readonly number[],
  strides: readonly number[],
  count: number,
): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(count * size);
  const to = elementsOf(out, size);
  const from = elementsOf(storage, size);
  const last = shape.length - 1;
  const columns = shape[last] as number;
  const step = strides[last] as number;
  const index = new Array<number>(last).fill(0);
  let at = offset;
  for (let done = 0; done < count; ) {
    for (let i = 0; i < columns; i++) to[done++] = from[at + i * step] as never;
    // The next row: as an odometer, from the last but one dimension.
    for (let d = last - 1; d >= 0; d--) {
      at += strides[d] as number;
      index[d] = (index[d] as number) + 1;
      if (index[d] !== shape[d]) break;
      at -= (shape[d] as number) * (strides[d] as number);
      index[d] = 0;
    }
  }
  return out;
}

/** Elements by their width alone, so that no value is changed on its way. */
function elementsOf(bytes: Uint8Array<ArrayBuffer>, size: number): Elements {
  const aligned = bytes.byteOffset % size === 0 ? bytes : bytes.slice();
  const { buffer, byteOffset } = aligned;
  const count = Math.floor(bytes.length / size);
  if (size === 1) return new Uint8Array(buffer, byteOffset, count);
  if (size === 2) return new Uint16Array(buffer, byteOffset, count);
  if (size === 4) return new Uint32Array(buffer, byteOffset, count);
  return new BigUint64Array(buffer, byteOffset, count);
}
