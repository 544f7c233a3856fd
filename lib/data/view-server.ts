import { DlfsError } from "../native/error";
import type { AnnotationStore, ImageQuery, ImageRecord } from "./annotation-store";
import type { DataSource } from "./data-source";
import { looksLike } from "./image-file";
import { VIEW_PAGE } from "./view-page";

export interface ViewOptions {
  /** 0: any free one. */
  port: number;
  /** Default localhost, so that nobody else on the network sees the images. */
  hostname?: string;
}

/** Images of a page at most. */
const MAX_PAGE = 200;

/** Sides of thumbnails, in pixels. */
const THUMBNAIL = { min: 32, max: 2048 };

/** Whether a filter by problem asks for images that can be used, that cannot, or both. */
const USABLE: Readonly<Record<string, boolean | undefined>> = { any: undefined, none: true, only: false };

class BadRequest extends Error {}

/**
 * Serves a page that shows a store's images with their boxes: filters by split, category, tag and problem, a histogram of the
 * classes, page by page. Images are asked for by their ids alone, and nothing can be changed.
 */
export function serveDataset(
  store: AnnotationStore,
  source: DataSource,
  { port, hostname = "localhost" }: ViewOptions,
) {
  const cached = cacheOf(store);
  return Bun.serve({
    port,
    hostname,
    // Reading from a bucket may take long.
    idleTimeout: 120,
    routes: {
      "/": () => new Response(VIEW_PAGE, { headers: { "Content-Type": "text/html; charset=utf-8", ...SECURITY } }),
      "/api/overview": () => Response.json(overview(store)),
      "/api/classes": (request) => {
        const split = new URL(request.url).searchParams.get("split") || null;
        return Response.json(cached(`classes ${split}`, () => classes(store, split)));
      },
      "/api/images": (request) => answer(() => Response.json(images(store, new URL(request.url).searchParams, cached))),
      "/image/:id": (request) =>
        answer(() => image(store, source, request.params.id, new URL(request.url).searchParams)),
    },
    fetch: () => new Response("not found", { status: 404 }),
  });
}

/** The page loads nothing from elsewhere. */
const SECURITY = {
  "Content-Security-Policy":
    "default-src 'none'; img-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'",
  "X-Content-Type-Options": "nosniff",
};

async function answer(work: () => Response | Promise<Response>): Promise<Response> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof BadRequest) return Response.json({ error: error.message }, { status: 400 });
    if (error instanceof DlfsError) return Response.json({ error: error.message }, { status: 404 });
    throw error;
  }
}

/** Keeps what takes long to count until the store changes. */
function cacheOf(store: AnnotationStore) {
  let change = -1;
  const kept = new Map<string, unknown>();
  return <T>(key: string, compute: () => T): T => {
    const now = store.lastChange();
    if (now !== change || kept.size > 1000) kept.clear();
    change = now;
    if (!kept.has(key)) kept.set(key, compute());
    return kept.get(key) as T;
  };
}

function overview(store: AnnotationStore): unknown {
  const splits = store.splits().map((name) => ({ name, images: store.countImages({ split: name }) }));
  return { splits, categories: store.categories(), tags: store.tags(), change: store.lastChange() };
}

/** Boxes by category, of one split or of all. */
function classes(store: AnnotationStore, split: string | null): { id: number; name: string; boxes: number }[] {
  const counts = (split === null ? store.splits() : [split]).map((name) => store.classCounts(name));
  return store
    .categories()
    .map(({ id, name }, i) => ({ id, name, boxes: counts.reduce((sum, of) => sum + (of[i] ?? 0), 0) }));
}

function images(store: AnnotationStore, parameters: URLSearchParams, cached: ReturnType<typeof cacheOf>): unknown {
  const integer = (name: string, otherwise: number | undefined, most = Number.MAX_SAFE_INTEGER): number | undefined => {
    const text = parameters.get(name);
    if (text === null || text === "") return otherwise;
    const value = Number(text);
    if (Number.isSafeInteger(value) && value >= 0 && value <= most) return value;
    throw new BadRequest(`${name}: expected an integer from 0 to ${most}, got "${text}"`);
  };
  const problem = parameters.get("problem") || "any";
  if (!Object.hasOwn(USABLE, problem)) {
    throw new BadRequest(`problem: expected ${Object.keys(USABLE).join(", ")}, got "${problem}"`);
  }
  const query: ImageQuery = {
    split: parameters.get("split") || undefined,
    tag: parameters.get("tag") || undefined,
    categoryId: integer("category", undefined),
    usable: USABLE[problem],
  };
  const limit = integer("limit", 60, MAX_PAGE) as number;
  // One more says whether there is another page.
  const found = store.findImages(query, { after: integer("after", 0), limit: limit + 1 });
  const page = found.slice(0, limit);
  const boxes = store.annotationsOfBatch(page.map(({ id }) => id));
  return {
    total: cached(`count ${JSON.stringify(query)}`, () => store.countImages(query)),
    next: found.length > limit ? (page.at(-1) as ImageRecord).id : null,
    images: page.map(({ id, split, key, width, height, problem: reason }, i) => ({
      id,
      split,
      key,
      width,
      height,
      problem: reason,
      tags: store.tagsOf(id),
      boxes: (boxes[i] ?? []).map((box) => {
        const { bbox, categoryId, isCrowd, score, source, author } = box;
        return { id: box.id, categoryId, bbox, isCrowd, score, source, author };
      }),
    })),
  };
}

/** The bytes of an image's file, or a JPEG of at most `w` pixels a side. */
async function image(
  store: AnnotationStore,
  source: DataSource,
  id: string,
  parameters: URLSearchParams,
): Promise<Response> {
  if (!/^\d{1,15}$/.test(id)) throw new BadRequest(`expected the number of an image, got "${id}"`);
  const record = store.image(Number(id));
  if (record === null) return Response.json({ error: `no image has id ${id}` }, { status: 404 });
  const bytes = await source.read(record.key);
  const headers = { "Cache-Control": "private, max-age=600", ...SECURITY };
  const width = parameters.get("w");
  if (width !== null) {
    const side = Number(width);
    if (!Number.isInteger(side) || side < THUMBNAIL.min || side > THUMBNAIL.max) {
      throw new BadRequest(`w: expected an integer from ${THUMBNAIL.min} to ${THUMBNAIL.max}, got "${width}"`);
    }
    try {
      // Upright, as it is trained and as browsers show the file itself.
      const small = await new Bun.Image(bytes)
        .resize(side, side, { fit: "inside", withoutEnlargement: true })
        .jpeg({ quality: 82 })
        .bytes();
      return new Response(small, { headers: { ...headers, "Content-Type": "image/jpeg" } });
    } catch (error) {
      // Bun does not read animations, browsers do.
      if (looksLike(bytes) === "WebP")
        return new Response(bytes, { headers: { ...headers, "Content-Type": TYPES.WebP } });
      return Response.json({ error: `${record.key}: ${(error as Error).message}` }, { status: 422 });
    }
  }
  const type = TYPES[looksLike(bytes) as keyof typeof TYPES] ?? "application/octet-stream";
  return new Response(bytes, { headers: { ...headers, "Content-Type": type } });
}

const TYPES = {
  JPEG: "image/jpeg",
  PNG: "image/png",
  GIF: "image/gif",
  WebP: "image/webp",
  BMP: "image/bmp",
} as const;
