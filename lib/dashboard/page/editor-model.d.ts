/** The types of editor-model.js, for what tests it. */
export type Sides = readonly [x1: number, y1: number, x2: number, y2: number];

export interface EditedBox {
  key: number;
  box: Sides;
  label: number;
  crowd: boolean;
  score: number | null;
}

export interface ServedBox {
  id: number;
  box: Sides;
  label: number;
  crowd: boolean;
  score?: number | null;
}

export interface ServedState {
  image: { width: number; height: number };
  boxes: readonly ServedBox[];
  seen: string | null;
}

export function overlap(a: Sides, b: Sides): number;
export function fitted(box: Sides, size: { width: number; height: number }): Sides;

export class BoxModel {
  boxes: readonly EditedBox[];
  selected: number | null;
  seen: string | null;
  constructor(state: ServedState);
  readonly current: EditedBox | null;
  readonly canUndo: boolean;
  readonly canRedo: boolean;
  readonly dirty: boolean;
  baseOf(key: number): ServedBox | undefined;
  reset(state: Pick<ServedState, "boxes" | "seen">): void;
  select(key: number | null): void;
  add(boxes: readonly { box: Sides; label: number; score?: number }[]): boolean;
  change(changes: { box?: Sides; label?: number; crowd?: boolean }, gesture?: string): boolean;
  move(dx: number, dy: number, gesture?: string): boolean;
  remove(): boolean;
  undo(): boolean;
  redo(): boolean;
  edits(classes: readonly string[]): object[];
  settle(state: Pick<ServedState, "boxes" | "seen">): void;
  rebase(state: Pick<ServedState, "boxes" | "seen">): void;
}
