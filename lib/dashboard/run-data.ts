/** The data sets that runs were trained on. */
import { type AnnotationStore, type ClassMap, demoFolder, openKeptStore } from "../data";
import { DlfsError, ErrorCode } from "../native/error";
import type { RunView } from "./runs";

/** A run's images and boxes. */
export interface RunData {
  readonly store: AnnotationStore;
  readonly classes: ClassMap;
  /** The split that it is trained on. */
  readonly trainSplit: string;
}

/** Opens data sets when they are asked for, each once. */
export class RunDataSets implements Disposable {
  readonly #opened = new Map<string, Promise<AnnotationStore>>();

  /** @throws DlfsError naming the run's configuration, or the data set, where it cannot be had */
  async of(run: RunView): Promise<RunData> {
    const config = await run.json("config.json");
    const named = (name: string): string => {
      const value = config?.[name];
      if (typeof value === "string") return value;
      throw new DlfsError(ErrorCode.io, `${run.name}/config.json`, `${name}: expected a text, got ${typeof value}`);
    };
    const data = named("data");
    const trainSplit = named("trainSplit");
    const store = await this.#open(data === "demo" ? demoFolder() : data);
    return { store, classes: store.classes(), trainSplit };
  }

  async #open(location: string): Promise<AnnotationStore> {
    const before = this.#opened.get(location);
    if (before) return await before;
    const opening = openKeptStore(location);
    this.#opened.set(location, opening);
    try {
      return await opening;
    } catch (error) {
      this.#opened.delete(location); // it may be there later
      throw error;
    }
  }

  [Symbol.dispose](): void {
    for (const opening of this.#opened.values()) void opening.then((store) => store.close()).catch(() => undefined);
    this.#opened.clear();
  }
}
