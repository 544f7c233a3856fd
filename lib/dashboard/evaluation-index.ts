/** The evaluations of a run that are kept: those of its folder, and of steps before them the samples that --live kept. */
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import type { SampleMessage } from "../formats";
import { evaluationOf } from "../monitor";
import { EvaluationSet } from "./evaluation-set";
import type { SampleIndex } from "./sample-index";

/** Evaluations of all runs that stay in memory: as many as their files have bytes together, the last one in any case. */
const MAX_BYTES = 64 * 2 ** 20;
const MAX_LOADED = 8;
const loaded = new Map<string, { bytes: number; set: Promise<EvaluationSet> }>();

export interface ListedEvaluation {
  iteration: number;
  /** Whether all images that were measured are there, or some alone. */
  whole: boolean;
  /** Another text, another content: an evaluation may be done again. */
  version: string;
}

export class EvaluationIndex {
  constructor(
    private readonly folder: string,
    private readonly samples: SampleIndex,
    private readonly classes: () => Promise<readonly string[]>,
  ) {}

  /** By iteration. */
  async list(): Promise<ListedEvaluation[]> {
    await this.samples.refresh();
    const found = new Map<number, ListedEvaluation>();
    for (const { iteration, position } of this.samples.places) {
      found.set(iteration, { iteration, whole: false, version: String(position) });
    }
    for (const name of await readdir(this.folder).catch(() => [])) {
      const iteration = evaluationOf(name);
      const file = iteration === null ? null : await stat(join(this.folder, name)).catch(() => null);
      if (iteration === null || !file) continue;
      found.set(iteration, { iteration, whole: true, version: `${file.ino}-${file.mtimeMs}` });
    }
    return [...found.values()].sort((a, b) => a.iteration - b.iteration);
  }

  async latest(): Promise<number | null> {
    return (await this.list()).at(-1)?.iteration ?? null;
  }

  /** null where there is none of that iteration. @throws DlfsError naming a file that is damaged */
  async get(iteration: number): Promise<EvaluationSet | null> {
    const path = join(this.folder, `evaluation-${String(iteration).padStart(8, "0")}.dlvs`);
    const file = await stat(path).catch(() => null);
    if (file) {
      const read = async () => await EvaluationSet.read(path, iteration, await this.classes());
      return await kept(`${path}/${file.ino}/${file.mtimeMs}/${file.size}`, file.size, read);
    }
    await this.samples.refresh();
    const { places, path: live } = this.samples;
    // An evaluation that was done again: what is later counts.
    const wanted = new Map(places.flatMap((place, i) => (place.iteration === iteration ? [[place.name, i]] : [])));
    if (wanted.size === 0) return null;
    return await kept(`${live}/${iteration}/${[...wanted.values()]}`, 0, async () => {
      const images: SampleMessage[] = [];
      for (const index of wanted.values()) {
        const { thumbnail: _, ...image } = await this.samples.read(index);
        images.push(image);
      }
      return new EvaluationSet(iteration, await this.classes(), images);
    });
  }
}

async function kept(key: string, bytes: number, read: () => Promise<EvaluationSet>): Promise<EvaluationSet> {
  const entry = loaded.get(key) ?? { bytes, set: read() };
  loaded.delete(key);
  loaded.set(key, entry);
  let total = [...loaded.values()].reduce((sum, one) => sum + one.bytes, 0);
  for (const [old, one] of loaded) {
    if (old === key || (total <= MAX_BYTES && loaded.size <= MAX_LOADED)) break;
    loaded.delete(old);
    total -= one.bytes;
  }
  // One that could not be read is tried again.
  entry.set.catch(() => loaded.delete(key));
  return await entry.set;
}
