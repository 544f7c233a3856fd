/** The page at /, on which an image can be tried: static files, and nothing from elsewhere. */
import { PAGE_HEADERS, PAGE_STYLE } from "../monitor";
import type { Reply } from "./request-context";
import type { Route } from "./routes";

const page = (file: string): URL => new URL(`page/${file}`, import.meta.url);

const FILES = [
  { pattern: "/", path: page("index.html"), type: "text/html; charset=utf-8" },
  { pattern: "/page.js", path: page("page.js"), type: "text/javascript; charset=utf-8" },
  { pattern: "/base.css", path: PAGE_STYLE, type: "text/css; charset=utf-8" },
  { pattern: "/page.css", path: page("page.css"), type: "text/css; charset=utf-8" },
];

/** The page's routes. Anybody may see it; what it asks for needs a key where the service does. */
export const pageRoutes = (): Route[] =>
  FILES.map(({ pattern, path, type }) => {
    let reply: Reply | null = null;
    const answer = async (): Promise<Reply> => {
      reply ??= { status: 200, type, body: await Bun.file(path).text(), headers: PAGE_HEADERS };
      return reply;
    };
    return { method: "GET", pattern, kind: "open", answer };
  });
