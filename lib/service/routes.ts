/** Which request goes where. */
import type { ServiceLimits } from "./limits";
import { predict } from "./predict-route";
import type { Reply, RequestContext } from "./request-context";
import type { InferenceBackend } from "./types";
import type { UrlFetcher } from "./url-fetch";
import {
  config,
  control,
  infer,
  live,
  metadata,
  modelReady,
  ready,
  repositoryIndex,
  serverMetadata,
  statistics,
} from "./v2-routes";

/** What routes have of the service. */
export interface ServiceParts {
  readonly backend: InferenceBackend;
  readonly limits: ServiceLimits;
  /** The model of /predict where a request names none; null: the only one. */
  readonly defaultModel: string | null;
  /** Whether clients may load and unload models. */
  readonly modelControl: boolean;
  /** null: images are not fetched. */
  readonly urls: UrlFetcher | null;
  /** Why the service is not ready; null where it is. */
  readonly unready: () => string | null;
  /** The request's body, once, decompressed. */
  readonly body: (context: RequestContext) => Promise<Uint8Array>;
}

export interface Route {
  readonly method: "GET" | "POST";
  /** Segments of the path; those that begin with ":" are parameters. */
  readonly pattern: string;
  /** The label in metrics and logs; default the pattern. */
  readonly name?: string;
  /**
   * open: anybody may ask, without an API key, at any time. work: takes one of the places for concurrent requests.
   */
  readonly kind?: "open" | "work";
  readonly answer: (context: RequestContext, parts: ServiceParts) => Reply | Promise<Reply>;
}

const MODEL = "/v2/models/:model";
const VERSION = `${MODEL}/versions/:version`;

/** A route of a model, and of one of its versions. */
const versioned = (rest: string, route: Omit<Route, "pattern" | "name">): Route[] =>
  [MODEL, VERSION].map((base) => ({ ...route, pattern: `${base}${rest}`, name: `${MODEL}${rest}` }));

export const routes: readonly Route[] = [
  { method: "POST", pattern: "/predict", kind: "work", answer: predict },
  ...["/v2/health/live", "/healthz"].map(
    (pattern) => ({ method: "GET", pattern, kind: "open", answer: live }) as const,
  ),
  ...["/v2/health/ready", "/readyz"].map(
    (pattern) => ({ method: "GET", pattern, kind: "open", answer: ready }) as const,
  ),
  { method: "GET", pattern: "/v2", answer: serverMetadata },
  { method: "GET", pattern: "/v2/models/stats", answer: statistics },
  ...versioned("", { method: "GET", answer: metadata }),
  ...versioned("/ready", { method: "GET", answer: modelReady }),
  ...versioned("/config", { method: "GET", answer: config }),
  ...versioned("/stats", { method: "GET", answer: statistics }),
  ...versioned("/infer", { method: "POST", kind: "work", answer: infer }),
  { method: "POST", pattern: "/v2/repository/index", answer: repositoryIndex },
  ...(["load", "unload"] as const).map(
    (action): Route => ({
      ...{ method: "POST", pattern: `/v2/repository/models/:model/${action}`, kind: "work" },
      answer: (context, parts) => control(context, parts, action),
    }),
  ),
];

/** A table that finds the routes of a path. */
export class Router {
  /** By number of segments. */
  readonly #routes = new Map<number, { segments: readonly string[]; route: Route }[]>();

  constructor(list: readonly Route[]) {
    for (const route of list) {
      const segments = route.pattern.split("/").slice(1);
      const same = this.#routes.get(segments.length) ?? [];
      same.push({ segments, route });
      this.#routes.set(segments.length, same);
    }
  }

  /** The routes of a path, one for each method, with the path's parameters; null where an escape in it is none. */
  find(path: string): { route: Route; params: Record<string, string> }[] | null {
    const parts = path.split("/").slice(1);
    const found: { route: Route; params: Record<string, string> }[] = [];
    for (const { segments, route } of this.#routes.get(parts.length) ?? []) {
      const params: Record<string, string> = {};
      const fits = segments.every((segment, i) => {
        const part = parts[i] as string;
        if (!segment.startsWith(":")) return segment === part;
        params[segment.slice(1)] = part;
        return part !== "";
      });
      // The first pattern of a method is meant: "stats" is no model's name.
      if (!fits || found.some((other) => other.route.method === route.method)) continue;
      try {
        for (const [name, part] of Object.entries(params)) params[name] = decodeURIComponent(part);
      } catch {
        return null;
      }
      found.push({ route, params });
    }
    return found;
  }
}
