import { cString, DlfsError, ErrorCode, fromCString } from "../native";
import { type Device, outHandle } from "../tensor";
import type { PlanCache } from "./plan-cache";

/** A planned convolution of a device; shared by all programs with the same shape, dtype and fusion. */
export interface ConvPlan {
  readonly handle: number;
  readonly workspace: number;
}

/** Arguments of dlfs_conv_create from `direction` on, in order. */
export type ConvKey = [
  direction: number,
  dtype: number,
  n: number,
  h: number,
  w: number,
  c: number,
  k: number,
  r: number,
  s: number,
  strideH: number,
  strideW: number,
  padH: number,
  padW: number,
  dilationH: number,
  dilationW: number,
  groups: number,
  flags: number,
  activation: number,
];

/** How far the tuning of a program's convolutions has come. */
export interface TuningProgress {
  done: number;
  total: number;
  /** The convolution that is next: "3x3 256 -> 256 of 32x80x80, weight gradient"; empty at the end. */
  convolution: string;
}

export interface TuningOptions {
  /** Milliseconds for timing the candidates of a convolution that has no pick; 0: the heuristics choose. */
  ms: number;
  /** Where picks are looked up before a convolution is tuned, and kept afterwards. */
  cache?: PlanCache | null;
  onProgress?: (progress: TuningProgress) => void;
}

interface Planner {
  plans: Map<string, Plan>;
  /** Asked for and not yet made: all of them are made when the first is used. */
  pending: Plan[];
  /** Replaced by a stored pick; programs made before go on with them. */
  retired: Plan[];
  /** Algorithms to use instead of the heuristic's choice, by key: a checkpoint's. */
  picks: Map<string, string>;
  tuning: TuningOptions | null;
}

/** Convolutions whose candidates are built while those of another are timed. */
const AHEAD = 4;

/** Saving while tuning goes on, so that an interrupted start is not lost. */
const SAVE_EVERY_MS = 5000;

const planners = new WeakMap<Device, Planner>();

function plannerOf(device: Device): Planner {
  const known = planners.get(device);
  if (known) return known;
  const planner: Planner = { plans: new Map(), pending: [], retired: [], picks: new Map(), tuning: null };
  planners.set(device, planner);
  device.onDispose(() => {
    for (const plan of [...planner.plans.values(), ...planner.retired]) plan.destroy();
  });
  return planner;
}

/** One convolution: known by its key from the start, made with all others that are pending when first used. */
class Plan implements ConvPlan {
  #made: ConvPlan | null = null;
  #error: unknown = null;

  constructor(
    readonly device: Device,
    readonly name: string,
    readonly key: ConvKey,
  ) {}

  get handle(): number {
    return this.#use().handle;
  }

  get workspace(): number {
    return this.#use().workspace;
  }

  #use(): ConvPlan {
    if (!this.#made && !this.#error) makePending(this.device);
    if (!this.#made) throw this.#error;
    return this.#made;
  }

  /** Creates the native plan, by a pick or (empty) by heuristics. */
  create(pick: string): void {
    const out = outHandle();
    this.device.native.convCreate(this.device.handle, out.view, cString(pick), ...this.key);
    this.#made = { handle: out.value, workspace: 0 };
  }

  /** Takes a native plan made for the key; 0 for none. */
  adopt(handle: number): boolean {
    this.#made = handle === 0 ? null : { handle, workspace: 0 };
    return handle !== 0;
  }

  /** Starts to build the candidates on other threads. */
  tuneAhead(): void {
    this.device.native.convTuneAhead(this.handle);
  }

  /** Times the candidates. False where there is no memory to do so: the plan stays as it is. */
  tune(ms: number): boolean {
    try {
      this.device.native.convTuneSync(this.device.stream.handle, this.handle, ms);
      return true;
    } catch (error) {
      if (error instanceof DlfsError && error.code === ErrorCode.memory) return false;
      throw error;
    }
  }

  /** The plan will not change any more. */
  finish(): void {
    const { handle } = this;
    const bytes = outHandle();
    this.device.native.convWorkspace(handle, bytes.view);
    this.#made = { handle, workspace: bytes.value };
  }

  fail(error: unknown): void {
    this.destroy();
    this.#error = error;
  }

  destroy(): void {
    if (this.#made) this.device.native.convDestroy(this.#made.handle);
    this.#made = null;
    this.#error = new DlfsError(ErrorCode.handle, "convolution plan", "used after its device was disposed of");
  }

  /** The algorithm in use, in words that the native library takes. */
  pick(): string {
    const text = new Uint8Array(256);
    this.device.native.convPick(this.handle, text, text.byteLength);
    return fromCString(text);
  }
}

/**
 * The device's plan for a convolution. It is made when its handle or workspace is first asked for, together with all others asked
 * for until then: with the pick known for it, else tuned, else by heuristics.
 */
export function convPlan(device: Device, key: ConvKey): ConvPlan {
  const planner = plannerOf(device);
  const name = key.join(",");
  const known = planner.plans.get(name);
  if (known) return known;
  const plan = new Plan(device, name, key);
  planner.plans.set(name, plan);
  planner.pending.push(plan);
  return plan;
}

function makePending(device: Device): void {
  const planner = plannerOf(device);
  const pending = planner.pending.splice(0);
  const { tuning, picks } = planner;
  const cache = tuning && tuning.ms > 0 ? tuning.cache : null;
  const guard = (plan: Plan, make: () => void): boolean => {
    try {
      make();
      return true;
    } catch (error) {
      // It may be asked for again; the others are good.
      planner.plans.delete(plan.name);
      plan.fail(error);
      return false;
    }
  };
  const pickOf = ({ name }: Plan) => picks.get(name) ?? cache?.get(name);
  const handles = createTogether(device, pending, (plan) => pickOf(plan) ?? "");
  // Those that could not be made are tried once more, alone, which says why.
  const created = pending.filter(
    (plan, i) => plan.adopt(handles[i]!) || guard(plan, () => createByPick(planner, plan, pickOf(plan))),
  );
  if (tuning && tuning.ms > 0) {
    const untuned = created.filter(({ name }) => !picks.has(name) && cache?.get(name) === undefined);
    if (untuned.length > 0) tune(untuned, tuning, guard);
  }
  for (const plan of created) if (planner.plans.get(plan.name) === plan) guard(plan, () => plan.finish());
}

/** Makes native plans on several threads; 0 where one cannot be made. */
function createTogether(device: Device, plans: readonly Plan[], pickOf: (plan: Plan) => string): number[] {
  if (plans.length === 0) return [];
  const out = new BigInt64Array(plans.length);
  const keys = Int32Array.from(plans.flatMap(({ key }) => key));
  const texts = cString(plans.map(pickOf).join("\0"));
  device.native.convCreateMany(device.handle, out, texts, keys, texts.byteLength, plans.length);
  return Array.from(out, Number);
}

/** Creates a plan by the pick that is known for it; one that does not fit (any more) is forgotten, with a warning. */
function createByPick(planner: Planner, plan: Plan, pick: string | undefined): void {
  if (pick !== undefined) {
    try {
      plan.create(pick);
      return;
    } catch (error) {
      if (!(error instanceof DlfsError)) throw error;
      console.warn(`warning: the plan stored for the convolution ${describe(plan.key)} is not used: ${error.message}`);
      planner.picks.delete(plan.name);
      planner.tuning?.cache?.delete(plan.name);
    }
  }
  plan.create("");
}

function tune(
  plans: readonly Plan[],
  { ms, cache, onProgress }: TuningOptions,
  guard: (plan: Plan, make: () => void) => boolean,
): void {
  let saved = performance.now();
  for (const plan of plans.slice(0, AHEAD)) plan.tuneAhead();
  for (const [done, plan] of plans.entries()) {
    plans[done + AHEAD]?.tuneAhead();
    onProgress?.({ done, total: plans.length, convolution: describe(plan.key) });
    guard(plan, () => {
      if (plan.tune(ms)) cache?.set(plan.name, plan.pick());
    });
    if (performance.now() - saved < SAVE_EVERY_MS) continue;
    cache?.save();
    saved = performance.now();
  }
  cache?.save();
  onProgress?.({ done: plans.length, total: plans.length, convolution: "" });
}

function describe([direction, , n, h, w, c, k, r, s, strideH, strideW, , , , , groups]: ConvKey): string {
  const stride = strideH === 1 && strideW === 1 ? "" : `/${strideH === strideW ? strideH : `${strideH}x${strideW}`}`;
  const what = ["forward", "data gradient", "weight gradient"][direction];
  return `${r}x${s}${stride} ${c} -> ${k}${groups > 1 ? ` in ${groups} groups` : ""} of ${n}x${h}x${w}, ${what}`;
}

/**
 * How plans of this device are chosen from now on where no pick is known: by timing the candidates for `ms` milliseconds each (0:
 * by heuristics). With a cache, picks are taken from there first, and what tuning finds is saved to it.
 */
export function tuneConvolutions(device: Device, tuning: number | TuningOptions): void {
  plannerOf(device).tuning = typeof tuning === "number" ? { ms: tuning } : tuning;
}

/** What tuneConvolutions set; null before. */
export function convolutionTuning(device: Device): TuningOptions | null {
  return plannerOf(device).tuning;
}

/** The algorithms in use, as "key=pick" lines that restoreConvPicks takes: what a checkpoint stores. */
export function convPicks(device: Device): string[] {
  const { plans } = plannerOf(device);
  makePending(device);
  return [...plans.values()].map((plan) => `${plan.name}=${plan.pick()}`);
}

/**
 * Uses stored algorithms for the convolutions of programs made from now on; they go before those of a cache, and before those of
 * earlier programs.
 */
export function restoreConvPicks(device: Device, picks: readonly string[]): void {
  const planner = plannerOf(device);
  for (const line of picks) {
    const split = line.indexOf("=");
    if (split <= 0) continue;
    const [name, pick] = [line.slice(0, split), line.slice(split + 1)];
    planner.picks.set(name, pick);
    const plan = planner.plans.get(name);
    if (!plan || planner.pending.includes(plan) || plan.pick() === pick) continue;
    planner.plans.delete(name);
    planner.retired.push(plan);
  }
}
