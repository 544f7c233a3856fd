/** A curve of many points, which grows, and the few points of it that a screen can show. */

/** Columns of points; null where a number is none that can be drawn. */
export interface CurvePoints {
  x: number[];
  y: (number | null)[];
}

export interface CurveRange {
  /** Points with x in [from, to], and one on each side of them, so that lines reach the edges. Default: all. */
  from?: number;
  to?: number;
  /** Buckets that the range is cut into, each with its lowest and its highest point: the pixels of a screen. Default 1000. */
  buckets?: number;
}

/** A curve: x ascends. */
export class Curve {
  #x = new Float64Array(256);
  #y = new Float64Array(256);
  #length = 0;

  get length(): number {
    return this.#length;
  }

  get x(): Float64Array {
    return this.#x.subarray(0, this.#length);
  }

  get y(): Float64Array {
    return this.#y.subarray(0, this.#length);
  }

  /** Appends a point; points at its x and behind it are of steps that were done again, and are cut off. */
  push(x: number, y: number): void {
    if (this.#length > 0 && x <= (this.#x[this.#length - 1] as number)) this.#length = lowerBound(this.x, x);
    if (this.#length === this.#x.length) {
      this.#x = grown(this.#x);
      this.#y = grown(this.#y);
    }
    this.#x[this.#length] = x;
    this.#y[this.#length++] = y;
  }

  /**
   * Exponential moving averages of all points, those before the first ones not counted as zeros; non-finite points are passed over.
   *
   * @param weight of what was before, 0 to below 1
   */
  smooth(weight: number): Curve {
    const smooth = new Curve();
    let [sum, total] = [0, 0];
    for (let i = 0; i < this.#length; i++) {
      const y = this.#y[i] as number;
      if (!Number.isFinite(y)) continue;
      sum = weight * sum + (1 - weight) * y;
      total = weight * total + (1 - weight);
      smooth.push(this.#x[i] as number, sum / total);
    }
    return smooth;
  }

  /** The points of a range: all of them where they are few, else the lowest and highest of each bucket, in their order. */
  points({ from = -Infinity, to = Infinity, buckets = 1000 }: CurveRange = {}): CurvePoints {
    const first = Math.max(0, lowerBound(this.x, from) - 1);
    const last = Math.min(this.#length - 1, lowerBound(this.x, to) + 1);
    const result: CurvePoints = { x: [], y: [] };
    const take = (i: number) => {
      const y = this.#y[i] as number;
      result.x.push(this.#x[i] as number);
      // Six digits are more than a screen shows.
      result.y.push(Number.isFinite(y) ? Number(y.toPrecision(6)) : null);
    };
    if (last - first + 1 <= 2 * buckets) {
      for (let i = first; i <= last; i++) take(i);
      return result;
    }
    const [start, end] = [this.#x[first] as number, this.#x[last] as number];
    const scale = buckets / (end - start);
    const bucketOf = (i: number) => Math.min(buckets - 1, Math.floor(((this.#x[i] as number) - start) * scale));
    for (let i = first; i <= last; ) {
      const bucket = bucketOf(i);
      let [low, high] = [-1, -1];
      const begin = i;
      for (; i <= last && bucketOf(i) === bucket; i++) {
        const y = this.#y[i] as number;
        if (!Number.isFinite(y)) continue;
        if (low < 0 || y < (this.#y[low] as number)) low = i;
        if (high < 0 || y > (this.#y[high] as number)) high = i;
      }
      if (low < 0) take(begin);
      else {
        take(Math.min(low, high));
        if (low !== high) take(Math.max(low, high));
      }
    }
    return result;
  }
}

/** The first place whose value is not below `value`. */
function lowerBound(values: Float64Array, value: number): number {
  let [low, high] = [0, values.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((values[middle] as number) < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

function grown(values: Float64Array<ArrayBuffer>): Float64Array<ArrayBuffer> {
  const larger = new Float64Array(2 * values.length);
  larger.set(values);
  return larger;
}
