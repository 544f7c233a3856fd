/** The page: what it loads, and what keeps it from loading anything else. In a browser it is tried by scripts/check-service-page.ts. */
import { describe, expect, test } from "bun:test";
import { start } from "./support";

describe("the page", () => {
  test("is files that load nothing from elsewhere, under a strict policy", async () => {
    await using running = start({ apiKeys: ["a-key-of-some-length"] });
    const types = { "/": "text/html", "/page.js": "text/javascript", "/base.css": "text/css", "/page.css": "text/css" };
    for (const [path, type] of Object.entries(types)) {
      const answer = await running.ask(path);
      expect([path, answer.status, answer.headers.get("content-type")]).toEqual([path, 200, `${type}; charset=utf-8`]);
      const policy = answer.headers.get("content-security-policy");
      expect(policy).toContain("default-src 'none'; script-src 'self'; style-src 'self'");
      expect(policy).not.toContain("unsafe");
      for (const [header, value] of [
        ["x-content-type-options", "nosniff"],
        ["x-frame-options", "DENY"],
        ["referrer-policy", "no-referrer"],
      ] as const) {
        expect(answer.headers.get(header)).toBe(value);
      }
      const text = await answer.text();
      expect(text.replaceAll("http://www.w3.org/2000/svg", "")).not.toMatch(/https?:\/\//);
      // What the policy would refuse.
      if (path === "/") expect(text).not.toMatch(/<script>|<style>|\son\w+=|\sstyle=/);
      if (path === "/page.js") expect(() => new Bun.Transpiler({ loader: "js" }).transformSync(text)).not.toThrow();
    }
    expect((await running.ask("/page.html")).status).toBe(401);
  });

  test("has every element that its script asks for, with a label where one types", async () => {
    await using running = start();
    const [html, script] = await Promise.all(["/", "/page.js"].map(async (path) => (await running.ask(path)).text()));
    const ids = [...html!.matchAll(/\sid="(\w+)"/g)].map(([, id]) => id);
    const asked = [...script!.matchAll(/\$\("(\w+)"\)/g)].map(([, id]) => id as string);
    expect(asked.length).toBeGreaterThan(15);
    expect(asked.filter((id) => !ids.includes(id))).toEqual([]);
    for (const id of ["model", "score", "key"]) expect(html).toMatch(new RegExp(`<label for="${id}">`));
  });

  test("is not there where it is not wanted", async () => {
    await using running = start({ page: false });
    for (const path of ["/", "/page.js"]) expect((await running.ask(path)).status).toBe(404);
  });
});
