/** Maps of a detector's heads, one for each pyramid level, as the losses and the selection of candidates read them. */
import { type Emitter, expectActivation, expectShape, paddedChannels, type Spec, type Value } from "../graph";
import { elementCount } from "../tensor";

/**
 * What a head says of all anchors, in the order of the anchors: its maps (N, h, w, perCell * columns), finest first, as its
 * convolutions give them; or rows (N, A, columns) of all anchors, or of each level's. Maps are read where they are: joining
 * them first would be a copy.
 */
export type LevelMaps = Value | readonly Value[];

/** Where an anchor's numbers lie in the maps of a head. */
export interface LevelLayout {
  /** How many maps there are. */
  readonly levels: number;
  /** Anchors of a cell; a row is a cell of one. */
  readonly perCell: number;
  /** Numbers of an anchor. */
  readonly columns: number;
}

/** Most levels that dlfs.h's functions take. */
export const MAX_LEVELS = 16;

export function listOf(maps: LevelMaps): readonly Value[] {
  return Array.isArray(maps) ? maps : [maps as Value];
}

/** Cells and numbers of a cell of (N, h, w, C), (N, A, columns), or (N, A) with one number of each anchor. */
function cellsOf({ shape }: Spec): [cells: number, pitch: number] {
  return shape.length === 2 ? [shape[1]!, 1] : [elementCount(shape.slice(1, -1)), shape.at(-1)!];
}

/** Cells of an image on each level. */
export function cellCounts(maps: readonly Spec[]): number[] {
  return maps.map((map) => cellsOf(map)[0]);
}

/**
 * How `anchors` anchors lie in maps. Maps that they cannot lie in are found by expectMaps, where the operation is inferred.
 *
 * @param columns numbers of an anchor; default what the maps have
 */
export function layoutOf(maps: readonly Spec[], anchors: number, columns?: number): LevelLayout {
  const cells = maps.reduce((sum, map) => sum + cellsOf(map)[0], 0);
  const areRows = maps.every(({ shape }) => shape.length < 4);
  const perCell = areRows ? 1 : Math.max(1, Math.round(anchors / cells));
  const pitch = maps[0] ? cellsOf(maps[0])[1] : 1;
  return { levels: maps.length, perCell, columns: columns ?? Math.max(1, Math.trunc(pitch / perCell)) };
}

/**
 * Checks maps of `what` against their layout; returns the number of anchors.
 *
 * @param columns what the numbers of an anchor are called, or how many there are
 */
export function expectMaps(maps: readonly Spec[], layout: LevelLayout, what: string, columns: string): number {
  expectShape(
    maps.length >= 1 && maps.length <= MAX_LEVELS,
    () => `expected ${what} of 1 to ${MAX_LEVELS} levels, got ${maps.length}`,
  );
  const used = layout.perCell * layout.columns;
  const [{ dtype, shape: first }] = maps as [Spec];
  for (const map of maps) {
    const { shape } = map;
    expectActivation(map, what);
    const rank = shape.length === 4 || shape.length === 3 || (shape.length === 2 && columns === "1");
    const [, pitch] = cellsOf(map);
    expectShape(rank && (pitch === used || pitch === paddedChannels(used)), () => {
      const wanted = layout.perCell === 1 ? `(N, A, ${columns})` : `(N, h, w, ${layout.perCell} * ${columns})`;
      return `${what} should have shape ${wanted}, got (${shape.join(", ")})`;
    });
    expectShape(
      map.dtype === dtype && shape[0] === first[0],
      () => `expected ${what} ${dtype} of ${first[0]} images on all levels, got ${map.dtype} (${shape.join(", ")})`,
    );
  }
  return layout.perCell * maps.reduce((sum, map) => sum + cellsOf(map)[0], 0);
}

/** The host arrays by which dlfs.h's functions take maps. */
export interface MapArrays {
  /** 0 for values that nobody reads. */
  readonly addresses: BigInt64Array;
  readonly cells: Int32Array;
  readonly pitches: Int32Array;
}

export function mapArrays(e: Emitter, maps: readonly Value[]): MapArrays {
  const sizes = maps.map(cellsOf);
  return {
    addresses: BigInt64Array.from(maps, (map) => BigInt(e.optional(map) ?? 0)),
    cells: Int32Array.from(sizes, ([cells]) => cells),
    pitches: Int32Array.from(sizes, ([, pitch]) => pitch),
  };
}
