/** What the dashboard answers: its page, and what the page shows of runs. */
import type { AccessGate } from "../live";
import { denied, failure } from "../live";
import { PAGE_HEADERS, PAGE_STYLE, PICTURE_HEADERS } from "../monitor";
import { DlfsError, ErrorCode } from "../native/error";
import { ControlRoutes } from "./control-routes";
import { EditRoutes } from "./edit-routes";
import { type EditorOptions, LabelEditor, NotFoundError } from "./edits";
import { evaluations, imageNamed, sampleJson } from "./evaluation-routes";
import { integer, json, optionalInteger, real, wrong } from "./query";
import { isPicture, RunList, type RunView } from "./runs";

/** The most buckets, curves, runs and bytes of a log of one answer. */
const MAX_BUCKETS = 8192;
const MAX_CURVES = 64;
const MAX_RUNS = 64;
const MAX_LOG_BYTES = 1 << 20;

const page = (file: string): string => new URL(`page/${file}`, import.meta.url).pathname;
const plot = (file: string): string => Bun.resolveSync(`uplot/dist/${file}`, import.meta.dir);

const EDITOR_FILES = [
  ...[
    "editor.js",
    "editor-images.js",
    "editor-keys.js",
    "editor-lists.js",
    "editor-model.js",
    "editor-session.js",
    "editor-stage.js",
  ],
];

/** Paths of the page's files, which anybody may see: they tell nothing. */
const FILES: Readonly<Record<string, { path: () => string; type: string }>> = {
  "/": { path: () => page("index.html"), type: "text/html; charset=utf-8" },
  "/base.css": { path: () => PAGE_STYLE.pathname, type: "text/css; charset=utf-8" },
  "/page.css": { path: () => page("page.css"), type: "text/css; charset=utf-8" },
  "/editor.css": { path: () => page("editor.css"), type: "text/css; charset=utf-8" },
  "/uplot.css": { path: () => plot("uPlot.min.css"), type: "text/css; charset=utf-8" },
  "/uplot.js": { path: () => plot("uPlot.esm.js"), type: "text/javascript; charset=utf-8" },
  ...Object.fromEntries(
    [
      ...["page.js", "api.js", "dom.js", "charts.js", "evaluations.js", "grid.js", "samples.js"],
      ...["controls.js", "pr.js", "confusion.js", "histograms.js", ...EDITOR_FILES],
    ].map((file) => [`/${file}`, { path: () => page(file), type: "text/javascript; charset=utf-8" }]),
  ),
};

/**
 * Answers requests about runs; reads their folders, and writes labels where that is asked for. All but the page's own files needs
 * the token.
 *
 * - `GET /`: the page.
 * - `GET /api/runs`: the runs, with the names of their curves and their last evaluation.
 * - `GET /api/state?run=R&run=...`: a text for each file of runs that is another one when the file has changed.
 * - `GET /api/runs/R/curves?name=train/loss&name=...&from=X&to=X&buckets=N&smooth=W`: columns of points.
 * - `GET /api/runs/R/log?bytes=N&before=BYTE`: the end of the log, or what is before.
 * - `GET /api/runs/R/samples?iteration=N`: what was found on images beside what is known; `samples/I/image`: the I-th one's JPEG.
 * - `GET /api/runs/R/evaluations`: of which steps what was found on all images is there. `evaluations/N` (or `latest`): one of them;
 *   `evaluations/N/curves?iou=0.5&class=2`, `confusion?iou=0.45&score=0.25`, `histograms?score=0.3&class=2`,
 *   `images?sort=loss&score=0.3&class=2&text=T&row=0&column=1&from=0&count=50`, and `images/I/image`: the I-th one's file.
 * - `GET /api/runs/R/image?key=KEY`: an image of the run's data set by its key.
 * - `GET /api/runs/R/pictures`, `pictures/FILE`: of evaluations. `config`, `dataset`, `summary`: JSON.
 * - `POST /api/runs/R/control`: see ControlRoutes.
 * - `.../annotations`, `images`, `labels`: see EditRoutes.
 */
export class Dashboard implements Disposable {
  private constructor(
    private readonly runs: RunList,
    private readonly gate: AccessGate,
    private readonly editor: LabelEditor,
    private readonly control: ControlRoutes,
    private readonly edits = new EditRoutes(editor),
  ) {}

  /**
   * @param folders of runs, or folders that hold such
   * @throws DlfsError naming one that is no folder
   */
  static async open(folders: readonly string[], gate: AccessGate, options: EditorOptions = {}): Promise<Dashboard> {
    return new Dashboard(await RunList.open(folders), gate, new LabelEditor(options), new ControlRoutes(options.token));
  }

  /** The answer to a request, of whatever path. */
  async handle(request: Request): Promise<Response> {
    const { pathname, searchParams } = new URL(request.url);
    const writes = request.method !== "GET" && request.method !== "HEAD";
    if (writes && !this.editor.writable) return failure(405, "this address is for reading alone: --edit lets write");
    if (writes && !this.gate.allowsOrigin(request)) return failure(403, "pages of this origin may not write here");
    const file = Object.hasOwn(FILES, pathname) ? FILES[pathname] : undefined;
    if (file) return new Response(Bun.file(file.path()), { headers: { ...PAGE_HEADERS, "Content-Type": file.type } });
    if (!pathname.startsWith("/api/")) return failure(404, `not found: ${pathname}`);
    if (!this.gate.mayEnter(request)) return denied();
    try {
      const parts = pathname.slice("/api/".length).split("/").map(decodeURIComponent);
      const answer = writes ? await this.#write(parts, request) : await this.#answer(parts, searchParams);
      return answer ?? failure(404, `not found: ${pathname}`);
    } catch (error) {
      if (error instanceof URIError) return failure(400, "the path is no text");
      if (!(error instanceof DlfsError)) throw error;
      if (error instanceof NotFoundError) return failure(404, error.message);
      return failure(error.code === ErrorCode.argument ? 400 : 500, error.message);
    }
  }

  async #answer([what, name, ...rest]: string[], query: URLSearchParams): Promise<Response | null> {
    if (what === "state" && name === undefined) return await this.#state(query.getAll("run"));
    if (what !== "runs") return null;
    if (name === undefined) {
      const runs = await this.runs.refresh();
      return json({ runs: await Promise.all(runs.map((run) => run.summary())), edit: this.editor.writable });
    }
    const run = await this.#run(name);
    if (!run) return failure(404, `there is no run "${name}"`);
    const [part, item, detail] = rest;
    if (part === "evaluations") return await evaluations(run, rest.slice(1), query);
    if (rest.length === 1) {
      if (part === "curves") return await curves(run, query);
      if (part === "log") {
        return json(await run.log(integer(query, "bytes", 65536, 1, MAX_LOG_BYTES), optionalInteger(query, "before")));
      }
      if (part === "samples") return await samples(run, query);
      if (part === "image") return await imageNamed(run, query.get("key") ?? "");
      if (part === "pictures") return json({ pictures: await run.pictures() });
      const edited = await this.edits.answer(run, part as string, query);
      if (edited) return edited;
      if (part === "config" || part === "dataset" || part === "summary") return json(await run.json(`${part}.json`));
    }
    if (rest.length === 2 && part === "pictures" && isPicture(item as string))
      return await picture(run, item as string);
    if (rest.length === 3 && part === "samples" && detail === "image") return await thumbnail(run, Number(item));
    return null;
  }

  async #write([what, name, part, ...rest]: string[], request: Request): Promise<Response | null> {
    const routes = { labels: this.edits, control: this.control }[part ?? ""];
    if (what !== "runs" || name === undefined || !routes || rest.length > 0) return null;
    if (request.method !== "POST") return failure(405, "expected POST");
    const run = await this.#run(name);
    return run ? await routes.write(run, request) : failure(404, `there is no run "${name}"`);
  }

  async #run(name: string): Promise<RunView | undefined> {
    return this.runs.get(name) ?? (await this.runs.refresh()).find((one) => one.name === name);
  }

  [Symbol.dispose](): void {
    this.editor[Symbol.dispose]();
  }

  async #state(names: string[]): Promise<Response> {
    if (names.length > MAX_RUNS) throw wrong("run", `at most ${MAX_RUNS} of them`);
    const found = names.flatMap((name) => this.runs.get(name) ?? []);
    const states = await Promise.all(found.map(async (run) => [run.name, await run.versions()]));
    return json({ runs: Object.fromEntries(states) });
  }
}

async function curves(run: RunView, query: URLSearchParams): Promise<Response> {
  await run.metrics.refresh();
  const names = query.getAll("name");
  if (names.length > MAX_CURVES) throw wrong("name", `at most ${MAX_CURVES} of them`);
  const [from, to] = [real(query, "from"), real(query, "to")];
  const smooth = real(query, "smooth") ?? 0;
  if (smooth < 0 || smooth >= 1) throw wrong("smooth", `from 0 to below 1, got ${smooth}`);
  const range = { from, to, buckets: integer(query, "buckets", 1000, 1, MAX_BUCKETS) };
  const found = names.flatMap((name) => {
    const curve = run.metrics.curves.get(name);
    if (!curve) return [];
    const { x } = curve;
    const about = { count: curve.length, first: x[0], last: x[curve.length - 1] };
    const smoothed = smooth > 0 && { smooth: curve.smooth(smooth).points(range) };
    return [[name, { ...about, ...curve.points(range), ...smoothed }]];
  });
  return json({ generation: run.metrics.generation, curves: Object.fromEntries(found) });
}

async function samples(run: RunView, query: URLSearchParams): Promise<Response> {
  await run.samples.refresh();
  const { places } = run.samples;
  const iterations = [...new Set(places.map(({ iteration }) => iteration))].sort((a, b) => a - b);
  const iteration = optionalInteger(query, "iteration") ?? iterations.at(-1);
  const wanted = places.flatMap((place, index) => (place.iteration === iteration ? [index] : []));
  // An evaluation that was done again: what is later counts.
  const latest = new Map(wanted.map((index) => [places[index]?.name, index]));
  const entries = await Promise.all(
    [...latest.values()].map(async (index) => sampleJson(index, await run.samples.read(index))),
  );
  return json({ classes: await run.classes(), iterations, iteration: iteration ?? null, samples: entries });
}

async function thumbnail(run: RunView, index: number): Promise<Response> {
  await run.samples.refresh();
  const sample = run.samples.places[index] && (await run.samples.read(index));
  if (!sample) return failure(404, `${run.name} has no sample ${index}`);
  if (!sample.thumbnail) return failure(404, `sample ${index} was kept without its image`);
  return new Response(sample.thumbnail as Uint8Array<ArrayBuffer>, {
    headers: { ...PICTURE_HEADERS, "Content-Type": "image/jpeg" },
  });
}

async function picture(run: RunView, name: string): Promise<Response | null> {
  const file = Bun.file(`${run.path}/pictures/${name}`);
  if (!(await file.exists())) return null;
  const type = name.endsWith(".svg") ? "image/svg+xml" : "image/jpeg";
  return new Response(file, { headers: { ...PICTURE_HEADERS, "Content-Type": type } });
}
