/** The page at /, on which an image can be tried: static files, and nothing from elsewhere. */
import { PAGE_HEADERS } from "../monitor";
import type { Reply } from "./request-context";
import type { Route } from "./routes";

const FILES = [
  { pattern: "/", file: "index.html", type: "text/html; charset=utf-8" },
  { pattern: "/page.js", file: "page.js", type: "text/javascript; charset=utf-8" },
  { pattern: "/page.css", file: "page.css", type: "text/css; charset=utf-8" },
];

/** The page's routes. Anybody may see it; what it asks for needs a key where the service does. */
export const pageRoutes = (): Route[] =>
  FILES.map(({ pattern, file, type }) => {
    const path = new URL(`page/${file}`, import.meta.url);
    let reply: Reply | null = null;
    const answer = async (): Promise<Reply> => {
      reply ??= { status: 200, type, body: await Bun.file(path).text(), headers: PAGE_HEADERS };
      return reply;
    };
    return { method: "GET", pattern, kind: "open", answer };
  });
