/**
 * Uses the dashboard in a headless Chromium, on a desktop and on a phone, by mouse and by keyboard, over a run of 100,000 lines, one
 * that goes on, one with samples, and one with an evaluation of 10,000 images; and the box editor, by touch as well:
 *
 *   bun run scripts/check-dashboard.ts [--out DIR]
 *
 * Chromium is Debian's package of that name; where there is none, it says so and ends with 0. Screenshots go to DIR, default
 * build/dashboard. Ends with 1 where something is not as it should be.
 */
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { DashboardServer } from "../lib/dashboard";
import { sampleOf, writeRun, writeSamples } from "../tests/dashboard/run-fixture";
import { checkControls } from "./dashboard/check-controls";
import { checkEditor } from "./dashboard/check-editor";
import { checkEvaluations, checkEvaluationsByTouch, writeEvaluatedRun } from "./dashboard/check-evaluations";
import { Browser } from "./service/browser";

const { values: args } = parseArgs({
  options: { out: { type: "string", default: fileURLToPath(new URL("../build/dashboard", import.meta.url)) } },
});
let checks = 0;
function check(good: boolean, what: string): void {
  checks++;
  if (!good) throw new Error(`wrong: ${what}`);
}

/** A JPEG in grey of 200 x 100 pixels, drawn by the browser. */
async function jpegOf(browser: Browser): Promise<Uint8Array> {
  const text = await browser.evaluate<string>(`(() => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 200, height: 100 });
    const context = canvas.getContext("2d");
    for (let x = 0; x < 200; x++) { context.fillStyle = "hsl(" + x + " 60% 50%)"; context.fillRect(x, 0, 1, 100); }
    return canvas.toDataURL("image/jpeg").split(",")[1];
  })()`);
  return Uint8Array.fromBase64(text);
}

const root = await mkdtemp(join(tmpdir(), "dlfs-dashboard-"));
try {
  await using browser = await Browser.startOrSkip();
  await mkdir(args.out, { recursive: true });
  (await writeRun(root, "long", 100_000, 0.001)).close();
  const going = await writeRun(root, "going", 200, 0.05);
  const thumbnail = await jpegOf(browser);
  await writeEvaluatedRun(root, "evaluated", thumbnail);
  await writeSamples(going.path, [
    ...[100, 200].flatMap((step) => ["a.jpg", "b.jpg"].map((name) => sampleOf(step, name, thumbnail))),
  ]);
  const svg =
    '<svg xmlns="http://www.w3.org/2000/svg" width="300" height="200"><circle r="90" cx="150" cy="100"/></svg>';
  await Bun.write(join(going.path, "pictures", "pr-curve.svg"), svg);
  await using server = await DashboardServer.open({ folders: [root], port: 0, token: "a token of the check" });
  const text = (selector: string) =>
    browser.evaluate<string>(`document.querySelector(${JSON.stringify(selector)}).textContent`);
  const until = (expression: string) => browser.until(expression);
  const points = "Number(document.querySelector('#chart-loss .plot').dataset.points)";
  const fits = () => browser.evaluate<boolean>("document.documentElement.scrollWidth <= innerWidth");
  const input = (id: string, value: number) =>
    browser.evaluate(
      `(() => { const e = document.getElementById("${id}"); e.value = ${value}; e.dispatchEvent(new Event("input")); })()`,
    );
  const run = (name: string) => `#runs li[data-run="${name}"] input`;

  // A desktop, without the token: it is asked for.
  await browser.call("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: "light" }] });
  await browser.open(server.url, 1280, 900, false);
  await until("!document.getElementById('access').hidden");
  check(await browser.evaluate("document.getElementById('main').hidden"), "nothing is shown without the token");
  const refused = browser.complaints.splice(0);
  check(
    refused.every((line) => line.includes("401")),
    `only the missing token was complained of: ${refused.join("; ")}`,
  );
  await browser.click("#token");
  await browser.call("Input.insertText", { text: "a token of the check" });
  await browser.press("Enter");
  await until("!document.getElementById('main').hidden && document.body.dataset.curves");
  check(await browser.evaluate("document.getElementById('access').hidden"), "the token was taken");

  // Both runs, by clicks: 100,000 points are a few thousand on the screen.
  for (const name of ["long-1", "going-1", "evaluated-1"]) {
    const wanted = name !== "evaluated-1";
    if ((await browser.evaluate<boolean>(`document.querySelector('${run(name)}').checked`)) !== wanted) {
      await browser.click(run(name));
    }
  }
  await until("document.body.dataset.curves.split(' ').length === 2");
  const shown = await browser.evaluate<number>(points);
  check(shown > 500 && shown < 10_000, `some thousand points are drawn, got ${shown}`);
  check((await browser.evaluate<number>("document.querySelectorAll('figure .uplot').length")) === 6, "six charts");
  const ink = await browser.evaluate<number>(`(() => {
    const canvas = document.querySelector("#chart-loss canvas");
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return new Set(new Uint32Array(pixels.buffer)).size;
  })()`);
  check(ink > 10, `the loss is drawn, got ${ink} colours`);
  await browser.screenshot(join(args.out, "desktop.png"));

  // Smoothing, and a zoom by dragging; all charts follow, and all is shown again.
  await input("smooth", 0.9);
  await until(`${points} && document.querySelector('#chart-loss .u-legend').textContent.includes('(each)')`);
  await input("smooth", 0);
  await until("!document.querySelector('#chart-loss .u-legend').textContent.includes('(each)')");
  await browser.click(run("going-1"));
  await until("document.body.dataset.curves === 'long-1'");
  await browser.drag("#chart-loss .u-over", 0.4, 0.6);
  await until("!document.getElementById('whole').disabled");
  await browser.screenshot(join(args.out, "desktop-zoomed.png"));
  await browser.click("#whole");
  await until("document.getElementById('whole').disabled");
  // The same by keyboard.
  await browser.evaluate("document.querySelector('#chart-ap .plot').focus()");
  await browser.press("+");
  await until("!document.getElementById('whole').disabled");
  await browser.press("ArrowRight");
  await browser.press("0");
  await until("document.getElementById('whole').disabled");

  // What comes while the page is open is shown.
  await browser.click(run("long-1"));
  await browser.click(run("going-1"));
  await until("document.body.dataset.curves === 'going-1'");
  const before = await browser.evaluate<number>(points);
  for (let i = 200; i < 260; i++) going.appendMetrics({ kind: "train", iteration: i, classification: 0.1 });
  await until(`${points} === ${before + 60}`);
  await until(`document.querySelector('#runs li[data-run="going-1"]').textContent.includes("step 260 of 400")`);

  // The log, followed and searched backwards.
  await browser.evaluate(
    `(() => { const e = document.getElementById("log-run"); e.value = "going-1"; e.dispatchEvent(new Event("change")); })()`,
  );
  await until("document.getElementById('log').value.includes('warning: something')");
  going.appendLog("a line that came later");
  await until("document.getElementById('log').value.includes('a line that came later')");

  // Samples: two images; filters of score and class.
  await browser.evaluate(
    `(() => { const e = document.getElementById("sample-run"); e.value = "going-1"; e.dispatchEvent(new Event("change")); })()`,
  );
  await until("document.querySelectorAll('.sample').length === 2");
  const found = "document.querySelector('.sample').dataset.found";
  check((await browser.evaluate(found)) === "2", "two boxes have a score from 0.3");
  // What is no evaluation leaves them as they are: the log, figures of steps.
  await browser.evaluate("document.querySelector('.sample').dataset.mark = 'here'");
  await writeSamples(going.path, []);
  going.appendLog("a line after that");
  await until("document.getElementById('log').value.includes('a line after that')");
  check(await browser.evaluate("document.querySelector('.sample').dataset.mark === 'here'"), "images stay as they are");
  await input("score", 0);
  await until(`${found} === "3"`);
  await browser.evaluate(
    `(() => { const e = document.getElementById("sample-class"); e.value = "0"; e.dispatchEvent(new Event("change")); })()`,
  );
  await until(`${found} === "1"`);
  check(
    await browser.evaluate(
      "document.querySelector('.sample canvas').getAttribute('aria-label') === 'found: cell 0.90'",
    ),
    "boxes are told to those who do not see them",
  );
  await browser.evaluate("document.getElementById('score').focus()");
  await browser.press("ArrowRight");
  check((await text("#score-value")) === "0.01", "the slider moves by its keys");
  await writeSamples(going.path, [sampleOf(260, "c.jpg", thumbnail)]);
  await until("document.querySelectorAll('.sample').length === 1");
  await browser.place("#samples");
  await browser.screenshot(join(args.out, "desktop-samples.png"));

  await until("document.querySelector('#pictures img')?.naturalWidth === 300");
  check(
    (await browser.evaluate("document.querySelector('#pictures img').alt")) === "precision over recall of each class",
    "pictures of the evaluation are shown and told",
  );

  await checkEvaluations(browser, "evaluated-1", args.out, check);

  // Dark, then a phone, whose page is no wider than it.
  const light = await browser.evaluate<string>("getComputedStyle(document.body).backgroundColor");
  await browser.call("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: "dark" }] });
  check((await browser.evaluate<string>("getComputedStyle(document.body).backgroundColor")) !== light, "dark is dark");
  await browser.screenshot(join(args.out, "desktop-dark.png"));
  await browser.open(`${server.url}?again#token=a%20token%20of%20the%20check`, 390, 844, true);
  await until("document.body.dataset.figures && document.querySelector('.sample[data-image=shown]')");
  check(await browser.evaluate("location.hash === '' && location.search === ''"), "the token leaves the address");
  check(await fits(), "nothing is wider than a phone");
  await browser.screenshot(join(args.out, "phone.png"));
  await checkEvaluationsByTouch(browser, args.out, check);
  await browser.evaluate(`(() => {
    sessionStorage.clear();
    delete document.body.dataset.curves;
    location.hash = "token=a%20token%20of%20the%20check";
  })()`);
  await until("document.body?.dataset.curves && location.hash === ''");
  check(await browser.evaluate("document.getElementById('access').hidden"), "an address opened again brings its token");
  check(browser.complaints.length === 0, `nothing was complained of: ${browser.complaints.join("; ")}`);
  going.close();

  const editing = join(root, "editor");
  await mkdir(editing);
  await checkEditor({ browser, root: editing, out: args.out, jpeg: thumbnail, check });
  const unexpected = browser.complaints.filter((line) => !/\/labels|none\.jpg/.test(line));
  check(unexpected.length === 0, `nothing was complained of but what was refused: ${unexpected.join("; ")}`);

  await checkControls(browser, root, going.path, args.out, check);

  // The end of a server, on an open page.
  await browser.open(`${server.url}#token=a%20token%20of%20the%20check`, 390, 844, true);
  await until("document.body.dataset.figures");
  await server[Symbol.asyncDispose]();
  await until("document.getElementById('error').textContent.startsWith('nobody answers at this address')");
  console.log(`${checks} checks of the dashboard passed; screenshots: ${args.out}`);
} finally {
  await rm(root, { recursive: true });
}
process.exit(0);
