/** Which image of a data set a labeling tool's address is of: tools put folders, hosts and numbers before names. */
import type { AnnotationStore, ImageRecord } from "../data";

/**
 * What an address may call an image, the longest first: of "gs://bucket/set/train/1.jpg" each end of its path, of
 * "/data/local-files/?d=train/1.jpg" those of what "d" says, of an upload ("/data/upload/3/0a1b2c3d-1.jpg") also the name that the
 * file had.
 */
export function* namesIn(address: string): Generator<string> {
  const path = decoded(/[?&]d=([^&]+)/.exec(address)?.[1] ?? address.replace(/[?#].*$/, ""));
  const parts = path
    .replace(/^[a-z0-9+.-]+:\/\/[^/]*/i, "")
    .split("/")
    .filter((part) => part !== "");
  for (let from = 0; from < parts.length; from++) yield parts.slice(from).join("/");
  const uploaded = /(?:^|\/)upload\/\d+\/[0-9a-f]{8}-([^/]+)$/.exec(path)?.[1];
  if (uploaded !== undefined) yield uploaded;
}

/** Text without its escapes, or as it is where they make no sense. */
export function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a lone "%" in a name
  }
}

/** Finds many images of a store that does not change meanwhile, by their keys or else their names. */
export class ImageFinder {
  /** Ids by key and by name; of those that several images have, null. */
  readonly #byKey = new Map<string, number | null>();
  readonly #byName = new Map<string, number | null>();

  /** @param split the only one that is looked in; default: all */
  constructor(
    private readonly store: AnnotationStore,
    split?: string,
  ) {
    const add = (map: Map<string, number | null>, name: string, id: number) => map.set(name, map.has(name) ? null : id);
    const query = split === undefined ? {} : { split };
    for (let after: number | undefined; ; ) {
      const page = store.findImages(query, { limit: 2000, after });
      for (const { id, key, fileName } of page) {
        add(this.#byKey, key, id);
        add(this.#byName, fileName, id);
      }
      after = page.at(-1)?.id;
      if (after === undefined) return;
    }
  }

  /** The image; what is wrong where there is none, or several. */
  find(address: string): ImageRecord | string {
    for (const name of namesIn(address)) {
      const id = this.#byKey.get(name) ?? this.#byName.get(name);
      if (id === null) return `several images are called "${name}": say which split is meant`;
      if (id !== undefined) return this.store.image(id) ?? `image ${id} is gone`;
    }
    return "the data set has no such image";
  }
}
