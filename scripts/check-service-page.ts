/**
 * Uses the page of `dlfs serve` in a headless Chromium, as on a phone and on a desktop, by mouse and by keyboard:
 *
 *   bun run scripts/check-service-page.ts [--model MODEL] [--image FILE] [--out DIR]
 *
 * Chromium is Debian's package of that name; where there is none, it says so and ends with 0. Screenshots go to DIR, default
 * build/service-page. Ends with 1 where something is not as it should be.
 */
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { writeTinyModel } from "./service/bench-model";
import { Browser } from "./service/browser";
import { loadImages, serveCommand, startServer } from "./service/start";

const { values: args } = parseArgs({
  options: {
    model: { type: "string" },
    image: { type: "string" },
    out: { type: "string", default: fileURLToPath(new URL("../build/service-page", import.meta.url)) },
  },
});
let checks = 0;
function check(good: boolean, what: string): void {
  checks++;
  if (!good) throw new Error(`wrong: ${what}`);
}

const KEY = "a-key-for-the-page";
const folder = await mkdtemp(join(tmpdir(), "dlfs-page-"));
try {
  await using browser = await Browser.startOrSkip();
  await mkdir(args.out, { recursive: true });
  const model = args.model ? resolve(args.model) : await writeTinyModel(folder);
  const [first] = loadImages(undefined) as [string];
  const image = args.image ? resolve(args.image) : first;
  const wrong = join(folder, "wrong.jpg");
  await Bun.write(wrong, "no image");
  const keys = join(folder, "keys");
  await Bun.write(keys, KEY);
  await using server = await startServer(serveCommand(model, "--port", "0", "--tune-ms", "0", "--api-keys", keys));

  // A phone: the key is asked for, then an image is chosen.
  await browser.open(server.url, 390, 844, true);
  await browser.until("!document.getElementById('access').hidden");
  const refused = browser.complaints.splice(0);
  check(
    refused.every((text) => text.includes("401")),
    `only the missing key was complained of: ${refused.join("; ")}`,
  );
  await browser.evaluate(`document.getElementById("key").value = ${JSON.stringify(KEY)}`);
  await browser.evaluate(`document.getElementById("access").requestSubmit()`);
  await browser.until("document.getElementById('state').textContent === 'ready'");
  check(
    await browser.evaluate("document.getElementById('access').hidden && document.getElementById('error').hidden"),
    "the key was taken",
  );
  check(await browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than a phone");
  await browser.screenshot(join(args.out, "phone-empty.png"));

  await browser.choose("#file", [image]);
  await browser.until("document.body.dataset.state === 'done'");
  // Of weights at random no score is high.
  const score = (value: number) =>
    browser.evaluate(
      `(() => { const s = document.getElementById("score"); s.value = ${value}; s.dispatchEvent(new Event("input")); })()`,
    );
  const entries = () => browser.evaluate<number>("document.querySelectorAll('#list li').length");
  await score(0);
  const all = await entries();
  check(all > 0, "there are detections");
  check(
    await browser.evaluate("/^\\d+ of \\d+ detections$/.test(document.getElementById('summary').textContent)"),
    "the summary",
  );
  check(
    await browser.evaluate(
      "canvas.width > 100 && !canvas.hidden && canvas.getAttribute('aria-label').includes('detections')",
    ),
    "the canvas",
  );
  const colours = await browser.evaluate<number>(
    "new Set(new Uint32Array(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size",
  );
  check(colours > 100, `the image is drawn, got ${colours} colours`);
  check(
    await browser.evaluate("document.documentElement.scrollWidth <= innerWidth"),
    "nothing is wider than a phone, with an image",
  );
  await browser.screenshot(join(args.out, "phone.png"));
  await score(1);
  check((await entries()) === 0, "no detection has a score of 1");
  const drawn = "canvas.toDataURL()";
  const empty = await browser.evaluate<string>(drawn);
  await score(0);
  check((await browser.evaluate<string>(drawn)) !== empty, "boxes are drawn");

  // By keyboard: the slider, and an entry of the list.
  await browser.evaluate("document.getElementById('score').focus()");
  await browser.press("ArrowRight");
  check(
    (await browser.evaluate<string>("document.getElementById('threshold').textContent")) === "0.01",
    "the slider moves by its keys",
  );
  await browser.press("ArrowLeft");
  for (let i = 0; i < 3; i++) await browser.press("Tab");
  check(
    await browser.evaluate("document.activeElement.closest('#list') !== null"),
    "the list follows in the order of Tab",
  );
  await browser.press("Enter");
  check(
    await browser.evaluate("document.querySelectorAll('#list button[aria-pressed=true]').length === 1"),
    "an entry is chosen by Enter",
  );
  check(
    await browser.evaluate("document.activeElement.getAttribute('aria-pressed') === 'true'"),
    "and keeps the focus",
  );

  // What is no image is named, and the next image is taken as if nothing had been.
  await browser.choose("#camera", [wrong]);
  await browser.until("document.body.dataset.state === 'failed'");
  check(
    await browser.evaluate(
      "document.getElementById('error').textContent.includes('expected a JPEG, PNG or WebP image')",
    ),
    "the error is shown",
  );
  const failures = browser.complaints.splice(0);
  check(
    failures.every((text) => text.includes("400")),
    `only the answer was complained of: ${failures.join("; ")}`,
  );

  // A desktop, dark: an image is dropped.
  await browser.call("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: "light" }] });
  const light = await browser.evaluate<string>("getComputedStyle(document.body).backgroundColor");
  await browser.call("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: "dark" }] });
  await browser.open(server.url, 1280, 800, false);
  check((await browser.evaluate<string>("getComputedStyle(document.body).backgroundColor")) !== light, "dark is dark");
  await browser.until("document.getElementById('state').textContent === 'ready'");
  const data = Buffer.from(await Bun.file(image).arrayBuffer()).toString("base64");
  await browser.evaluate(`(() => {
    const bytes = Uint8Array.from(atob("${data}"), (c) => c.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "a.jpg", { type: "image/jpeg" }));
    document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
  })()`);
  await browser.until("document.body.dataset.state === 'done'");
  if (args.model === undefined) await score(0);
  check((await entries()) > 0 || args.model !== undefined, "an image that is dropped is detected on");
  await browser.screenshot(join(args.out, "desktop.png"));
  check(browser.complaints.length === 0, `nothing was complained of: ${browser.complaints.join("; ")}`);
  console.log(`${checks} checks of the page passed; screenshots: ${args.out}`);
} finally {
  await rm(folder, { recursive: true });
}
process.exit(0);
