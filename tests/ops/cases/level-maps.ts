/** Level maps in the cases of operations: one operand holds the maps of all levels, one after the other. */
import { constants } from "../../../lib/native";
import type { CaseContext, Input, Numbers } from "./case";

/** Sizes of maps whose levels together have the case's anchors. */
export interface MapOptions {
  /** Cells of each level; default one level of as many cells as anchors, with `perCell` 1. */
  cells?: readonly number[];
  perCell?: number;
  /** Numbers after those of a cell's anchors. Default 0. */
  padding?: number;
}

/** Maps of `columns` numbers of each of so many anchors of n images. */
export class LevelMaps {
  readonly cells: readonly number[];
  readonly perCell: number;
  readonly pitch: number;
  readonly size: number;

  constructor(
    readonly n: number,
    readonly anchors: number,
    readonly columns: number,
    { cells = [anchors], perCell = 1, padding = 0 }: MapOptions,
  ) {
    this.cells = cells;
    this.perCell = perCell;
    this.pitch = perCell * columns + padding;
    const total = cells.reduce((sum, count) => sum + count, 0);
    if (total * perCell !== anchors) throw new Error(`${total} cells of ${perCell} anchors are not ${anchors} anchors`);
    this.size = n * total * this.pitch;
  }

  /** The shape of the operand: that of the rows where there is nothing but them. */
  get shape(): number[] {
    const plain = this.cells.length === 1 && this.perCell === 1 && this.pitch === this.columns;
    return plain ? [this.n, this.anchors, this.columns] : [this.size];
  }

  /** Where number `column` of an anchor of an image lies. */
  *places(): Generator<number> {
    for (let image = 0; image < this.n; ++image) {
      let level = 0;
      for (const count of this.cells) {
        for (let cell = 0; cell < count; ++cell) {
          const start = level + (image * count + cell) * this.pitch;
          for (let i = 0; i < this.perCell * this.columns; ++i) yield start + i;
        }
        level += this.n * count * this.pitch;
      }
    }
  }

  /** Rows (N, A, columns) out of the maps. */
  toRows(maps: Numbers): Float64Array {
    return Float64Array.from(this.places(), (place) => maps[place]!);
  }

  /** The maps of rows, with this in the padding. */
  toMaps(rows: Numbers, padding = 0): Float64Array {
    const maps = new Float64Array(this.size).fill(padding);
    let i = 0;
    for (const place of this.places()) maps[place] = rows[i++]!;
    return maps;
  }

  /** An operand whose rows are drawn by `values`; its padding must not be read. */
  input(values: NonNullable<Input["values"]>): Input {
    return {
      shape: this.shape,
      values: (random, size, earlier) =>
        this.shape.length > 1 ? values(random, size, earlier) : this.toMaps(this.draw(values)(random, 0, earlier), 77),
    };
  }

  private draw(values: NonNullable<Input["values"]>): NonNullable<Input["values"]> {
    return (random, _size, earlier) => values(random, this.n * this.anchors * this.columns, earlier);
  }

  /** The host arrays of dlfs.h for the operand of this name, addresses 0 where the case has none. */
  arrays(c: CaseContext, name: string): { at: BigInt64Array; cells: Int32Array; pitches: Int32Array } {
    const base = c.address(name);
    const bytes = c.dtype === constants.F32 ? 4 : 2;
    let offset = 0;
    const at = this.cells.map((count) => {
      const address = base === null ? 0 : base + offset * bytes;
      offset += this.n * count * this.pitch;
      return BigInt(address);
    });
    return {
      at: BigInt64Array.from(at),
      cells: Int32Array.from(this.cells),
      pitches: new Int32Array(this.cells.length).fill(this.pitch),
    };
  }
}
