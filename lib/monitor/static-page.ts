/** Headers of pages that a server of this library has: nothing from elsewhere, no code but files of its own. */
export const PAGE_HEADERS: Readonly<Record<string, string>> = {
  "Content-Security-Policy": [
    ...["default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' blob: data:"],
    ...["connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"],
  ].join("; "),
  "Cache-Control": "no-cache",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
  "X-Frame-Options": "DENY",
};

/** The style sheet that such pages begin with. */
export const PAGE_STYLE = new URL("base.css", import.meta.url);

/** Of pictures that are shown on such a page; one that is opened by itself, an SVG say, runs nothing. */
export const PICTURE_HEADERS: Readonly<Record<string, string>> = {
  ...PAGE_HEADERS,
  "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
};
