/**
 * Sum of `values[start .. start + count)` in the order in which NumPy's `np.add.reduce` adds contiguous float64 values:
 * pairwise halves down to blocks of 128, eight running sums inside a block. Another order differs in the last digits.
 */
export function pairwiseSum(values: Float64Array, start = 0, count = values.length - start): number {
  if (count < 8) {
    let sum = 0;
    for (let i = 0; i < count; i++) sum += values[start + i]!;
    return sum;
  }
  if (count <= 128) {
    let r0 = values[start]!;
    let r1 = values[start + 1]!;
    let r2 = values[start + 2]!;
    let r3 = values[start + 3]!;
    let r4 = values[start + 4]!;
    let r5 = values[start + 5]!;
    let r6 = values[start + 6]!;
    let r7 = values[start + 7]!;
    const whole = count - (count % 8);
    for (let i = start + 8; i < start + whole; i += 8) {
      r0 += values[i]!;
      r1 += values[i + 1]!;
      r2 += values[i + 2]!;
      r3 += values[i + 3]!;
      r4 += values[i + 4]!;
      r5 += values[i + 5]!;
      r6 += values[i + 6]!;
      r7 += values[i + 7]!;
    }
    let sum = r0 + r1 + (r2 + r3) + (r4 + r5 + (r6 + r7));
    for (let i = start + whole; i < start + count; i++) sum += values[i]!;
    return sum;
  }
  let half = Math.floor(count / 2);
  half -= half % 8;
  return pairwiseSum(values, start, half) + pairwiseSum(values, start + half, count - half);
}

/** `np.linspace(start, stop, count)`: multiples of the step, the last value exactly `stop`. */
export function linspace(start: number, stop: number, count: number): Float64Array {
  const values = new Float64Array(count);
  const step = (stop - start) / (count - 1);
  for (let i = 0; i < count; i++) values[i] = i * step + start;
  if (count > 1) values[count - 1] = stop;
  return values;
}

/** Runs this short are sorted by insertion before merging starts. */
const INSERTION_RUN = 12;

/**
 * Reorders `order[start .. end)`, indices into `keys`, so that the keys descend; equal keys keep their order, as with
 * `np.argsort(-keys, kind="mergesort")`. `scratch` is as long as `order` and is overwritten.
 */
export function stableSortDescending(
  order: Int32Array,
  keys: Float64Array,
  start: number,
  end: number,
  scratch: Int32Array,
): void {
  for (let low = start; low < end; low += INSERTION_RUN) {
    const high = Math.min(low + INSERTION_RUN, end);
    for (let i = low + 1; i < high; i++) {
      const index = order[i]!;
      const key = keys[index]!;
      let j = i - 1;
      for (; j >= low && keys[order[j]!]! < key; j--) order[j + 1] = order[j]!;
      order[j + 1] = index;
    }
  }
  for (let width = INSERTION_RUN; width < end - start; width *= 2) {
    for (let low = start; low + width < end; low += 2 * width) {
      const middle = low + width;
      const high = Math.min(middle + width, end);
      if (keys[order[middle - 1]!]! >= keys[order[middle]!]!) continue;
      scratch.set(order.subarray(low, middle), low);
      let left = low;
      let right = middle;
      let out = low;
      while (left < middle && right < high) {
        const takeRight = keys[order[right]!]! > keys[scratch[left]!]!;
        order[out++] = takeRight ? order[right++]! : scratch[left++]!;
      }
      while (left < middle) order[out++] = scratch[left++]!;
    }
  }
}

/**
 * Indices 0 .. n-1 grouped by `bucket[i]` (0 .. buckets-1), each group in ascending order of `i`'s place in `input`
 * (default: of `i`); `starts[b]` is where group b begins, `starts[buckets]` is n. One counting sort, O(n + buckets).
 */
export function groupByBucket(
  bucket: Int32Array,
  buckets: number,
  input?: Int32Array,
): { order: Int32Array; starts: Int32Array } {
  const n = input?.length ?? bucket.length;
  const starts = new Int32Array(buckets + 1);
  for (let i = 0; i < n; i++) starts[bucket[input ? input[i]! : i]! + 1]!++;
  for (let b = 0; b < buckets; b++) starts[b + 1]! += starts[b]!;
  const next = starts.slice();
  const order = new Int32Array(n);
  for (let i = 0; i < n; i++) {
    const index = input ? input[i]! : i;
    order[next[bucket[index]!]!++] = index;
  }
  return { order, starts };
}

/** `value` with three decimals as Python's `"{:0.3f}"` prints it: exact ties go to the even digit. */
export function formatFixed3(value: number): string {
  const scaled = Math.abs(value) * 1000;
  // A binary fraction lies exactly between two three-digit decimals only when it is a multiple of 1/16.
  if (Number.isInteger(value * 16) && scaled % 1 === 0.5) {
    const even = Math.floor(scaled) % 2 === 0 ? Math.floor(scaled) : Math.ceil(scaled);
    return ((Math.sign(value) * even) / 1000).toFixed(3);
  }
  return value.toFixed(3);
}

/** A float64 column that grows by doubling. */
export class Float64Column {
  private data = new Float64Array(1024);
  length = 0;

  push(value: number): void {
    if (this.length === this.data.length) {
      const grown = new Float64Array(this.data.length * 2);
      grown.set(this.data);
      this.data = grown;
    }
    this.data[this.length++] = value;
  }

  /** The values so far: a view that the next `push` may detach from the column. */
  view(): Float64Array {
    return this.data.subarray(0, this.length);
  }

  clear(): void {
    this.length = 0;
  }
}
