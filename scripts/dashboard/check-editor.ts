/** The dashboard's box editor, used by mouse, by keyboard alone and by touch, and by two at a time. */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { DashboardServer } from "../../lib/dashboard";
import { type AnnotationStore, loadDataset } from "../../lib/data";
import { type Answer, LiveBus, LiveServer, removeLiveAddress, writeLiveAddress } from "../../lib/live";
import { sampleOf, writeRun, writeSamples } from "../../tests/dashboard/run-fixture";
import { FakeCodec } from "../../tests/data/fakes";
import type { Browser, Place } from "../service/browser";

const TOKEN = "a token of the check";
const [WIDTH, HEIGHT] = [200, 100];

export interface EditorChecks {
  browser: Browser;
  /** An empty folder. */
  root: string;
  /** Where screenshots go. */
  out: string;
  /** A picture of 200 x 100 pixels. */
  jpeg: Uint8Array;
  check: (good: boolean, what: string) => void;
}

type Box = readonly [x1: number, y1: number, x2: number, y2: number];

/** The editor as its user sees it. */
class EditorPage {
  constructor(private readonly browser: Browser) {}

  text(selector: string): Promise<string> {
    return this.browser.evaluate<string>(`document.querySelector(${JSON.stringify(selector)}).textContent`);
  }

  until(expression: string): Promise<void> {
    return this.browser.until(expression);
  }

  /** Waits until an image is shown whole. */
  shows(image: string): Promise<void> {
    return this.until(`document.getElementById("editor").dataset.shown === "${image}"`);
  }

  said(text: string): Promise<void> {
    return this.until(`document.getElementById("editor-said").textContent.includes(${JSON.stringify(text)})`);
  }

  count(boxes: number): Promise<void> {
    return this.until(`document.getElementById("editor-stage").dataset.boxes === "${boxes}"`);
  }

  /** Where a pixel of the image is in the window. */
  async at(x: number, y: number): Promise<Place> {
    const [left, top, scale, atX, atY] = await this.browser.evaluate<number[]>(`(() => {
      const stage = document.getElementById("editor-stage");
      const [x, y, scale] = stage.dataset.view.split(" ").map(Number);
      const place = stage.getBoundingClientRect();
      return [place.left, place.top, scale, x, y];
    })()`);
    const [s, vx, vy] = [scale, atX, atY] as [number, number, number];
    return { x: (left as number) + (x - vx) * s, y: (top as number) + (y - vy) * s };
  }

  async drag(from: readonly [number, number], to: readonly [number, number]): Promise<void> {
    await this.browser.dragTo(await this.at(...from), await this.at(...to));
  }

  /** Taps an element until something is so: a tap that a busy machine makes a long one, or one right behind a swipe, is none. */
  async tap(selector: string, done: string): Promise<void> {
    for (let i = 0; i < 20 && !(await this.browser.evaluate<boolean>(done)); i++) {
      const { x, y, width, height } = await this.browser.place(selector);
      const at = { x: x + width / 2, y: y + height / 2 };
      await this.browser.touch({ from: at, to: at });
      await Bun.sleep(250);
    }
    await this.until(done);
  }

  async touch(
    ...fingers: (readonly [from: readonly [number, number], to: readonly [number, number]])[]
  ): Promise<void> {
    const moves = [];
    for (const [from, to] of fingers) moves.push({ from: await this.at(...from), to: await this.at(...to) });
    await this.browser.touch(...moves);
  }
}

const sidesOf = (store: AnnotationStore, image: number): Box[] =>
  store.annotationsOf(image).map(({ bbox: [x, y, w, h] }) => [x, y, x + w, y + h]);

/** Whether boxes are where they were drawn, to a pixel or two of the image. */
const near = (found: Box | undefined, wanted: Box) =>
  found?.every((side, i) => Math.abs(side - (wanted[i] as number)) <= 2) === true;

/** A data set of five images in each of two splits, the first of them with a box, and a run that was trained on it. */
async function writeData(root: string, jpeg: Uint8Array) {
  const data = join(root, "data");
  for (const split of ["train", "val"]) {
    const names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"];
    for (const name of names) await Bun.write(join(data, split, name), jpeg);
    const images = names.map((file_name, i) => ({ id: i + 1, file_name, width: WIDTH, height: HEIGHT }));
    const box = { id: 1, image_id: 1, category_id: 3, bbox: [12, 22, 46, 60], area: 2760, iscrowd: 0 };
    const categories = ["cell", "clot"].map((name, i) => ({ id: i + 3, name }));
    const path = join(data, "annotations", `instances_${split}.json`);
    await Bun.write(path, JSON.stringify({ images, annotations: [box], categories }));
  }
  const dataset = await loadDataset(data, { codec: new FakeCodec(), trainSplit: "train", valSplit: "val" });
  const run = await writeRun(join(root, "edited"), "edited", 20);
  await run.writeConfig({ iterations: 40, data, trainSplit: "train", valSplit: "val", classes: ["cell", "clot"] });
  run.close();
  await writeSamples(run.path, [sampleOf(20, "val/a.jpg")]);
  return { dataset, run: run.path };
}

export async function checkEditor({ browser, root, out, jpeg, check }: EditorChecks): Promise<void> {
  process.env.DLFS_CACHE = join(root, "cache");
  const { dataset, run } = await writeData(root, jpeg);
  const { store } = dataset;
  const page = new EditorPage(browser);
  const options = { folders: [join(root, "edited")], port: 0, token: TOKEN };
  const imageOf = (key: string) => store.findImages({ where: "i.key = ?", parameters: [key] })[0]?.id as number;
  const boxes = (key: string) => sidesOf(store, imageOf(key));
  const opened = async (url: string, width: number, height: number, mobile: boolean) => {
    await browser.open(`${url}?${crypto.randomUUID()}#token=${encodeURIComponent(TOKEN)}`, width, height, mobile);
    await page.until("document.body.dataset.curves === 'edited-1'");
    await browser.rests();
  };
  const openSample = async () => {
    await page.until("document.querySelector('.sample[data-image=shown]')");
    await browser.click(".sample");
  };

  // Read-only: looked at closely, and no more.
  {
    await using server = await DashboardServer.open(options);
    await opened(server.url, 1280, 900, false);
    check(await browser.evaluate("document.getElementById('label-panel').hidden"), "nothing is offered to be written");
    await openSample();
    await page.shows("val/a.jpg");
    await page.count(2); // one that is known, one that is not; the other is known already
    const shown = "getComputedStyle(document.getElementById('editor-save').parentElement).display";
    check((await browser.evaluate(shown)) === "none", "what is for writing is not there");
    await page.drag([120, 20], [160, 60]);
    await page.count(2);
    await browser.press("Escape"); // chooses no box
    await browser.press("Escape");
    await page.until("!document.getElementById('editor').open");
    await browser.open("about:blank", 1280, 900, false);
  }

  await using server = await DashboardServer.open({ ...options, edit: true });
  await opened(server.url, 1280, 900, false);

  // By mouse: draw, move, resize, relabel, undo, save.
  await page.until("!document.getElementById('label-open').disabled");
  await browser.click("#label-open");
  await page.shows("train/a.jpg");
  await page.count(1);
  await page.drag([100, 20], [150, 70]);
  await page.count(2);
  await page.drag([125, 45], [135, 55]); // moved by 10, 10
  await page.drag([160, 80], [180, 90]); // its corner
  await browser.press("2");
  check(
    (await page.text("#editor-told")).startsWith("clot at 110, 30, 180, 90"),
    `moved: ${await page.text("#editor-told")}`,
  );
  await browser.click("#editor-undo");
  check((await page.text("#editor-told")).startsWith("cell at 110, 30, 180, 90"), "the class is undone");
  await browser.press("z", "Control");
  check((await page.text("#editor-told")).startsWith("cell at 110, 30, 160, 80"), "the corner is undone");
  await browser.press("y", "Control");
  await browser.click("#editor-redo");
  await browser.click("#editor-author");
  await browser.call("Input.insertText", { text: "ada" });
  await browser.screenshot(join(out, "editor-drawn.png"), true);
  await browser.click("#editor-save");
  await page.said("the data set has it");
  const [, drawn] = store.annotationsOf(imageOf("train/a.jpg"));
  check(near(boxes("train/a.jpg")[1], [110, 30, 180, 90]), `the store has the box: ${boxes("train/a.jpg")}`);
  check(drawn?.author === "ada" && drawn.source === "human" && drawn.categoryId === 4, "as its author's work");

  // Over another box, in the mode for that; deleted, and undone by button.
  await browser.click("#editor-draw");
  await page.drag([120, 40], [150, 70]);
  await page.count(3);
  await browser.click("#editor-draw");
  await browser.click("#editor-delete");
  await page.count(2);
  // What is not saved is asked about.
  await page.drag([20, 30], [25, 35]);
  await browser.click("#editor-next");
  await page.until("!document.getElementById('editor-ask').hidden");
  await browser.press("Escape"); // stays
  await page.until("document.getElementById('editor-ask').hidden && document.getElementById('editor').open");
  await browser.press("PageDown");
  await browser.click("#editor-ask-stay");
  await browser.click("#editor-next");
  await browser.click("#editor-ask-discard");
  await page.shows("train/b.jpg");
  check(near(boxes("train/a.jpg")[0], [12, 22, 58, 82]), "what was discarded is nowhere");

  // By keyboard alone: two boxes on b, one of them deleted, and on to c.
  for (const key of ["n", "2", "n"]) await browser.press(key);
  await page.count(2);
  await browser.press("Delete");
  for (let i = 0; i < 3; i++) await browser.press("ArrowRight", "Shift");
  await browser.press("ArrowUp");
  await browser.press("ArrowDown", "Alt", "Shift");
  await browser.press("g");
  await browser.press("Enter", "Control");
  await page.shows("train/c.jpg");
  await page.until("document.querySelector('#editor .unwritten').hidden");
  const [byKeys] = store.annotationsOf(imageOf("train/b.jpg"));
  check(near(boxes("train/b.jpg")[0], [105, 36.5, 155, 71.5]), `moved and grown by keys: ${boxes("train/b.jpg")}`);
  check(byKeys?.categoryId === 4 && byKeys.isCrowd, "its class and that it is a group, by keys");
  await browser.press("PageUp");
  await page.shows("train/b.jpg");
  await browser.press("]");
  check((await page.text("#editor-told")).startsWith("clot (group)"), "boxes are told");
  await browser.press("Backspace");
  await browser.press("s", "Control");
  await page.said("the data set has it");
  check(boxes("train/b.jpg").length === 0, "an image may have no box");
  await browser.press("Escape");
  await page.until("!document.getElementById('editor').open");

  // Predictions: one that is clicked is accepted, and what is left at once.
  await openSample();
  await page.shows("val/a.jpg");
  await page.count(2);
  await browser.evaluate(`(() => {
    const score = document.getElementById("editor-score");
    score.value = 0.1;
    score.dispatchEvent(new Event("input"));
  })()`);
  await page.count(3);
  const middle = await page.at(140, 50);
  await browser.dragTo(middle, middle);
  check((await page.text("#editor-told")).startsWith("clot 0.60?"), `chosen: ${await page.text("#editor-told")}`);
  await browser.screenshot(join(out, "editor-predictions.png"), true);
  await browser.click("#editor-accept");
  await browser.press("A", "Shift");
  await page.count(3);
  await browser.click("#editor-save");
  await page.said("the data set has it");
  const scores = store.annotationsOf(imageOf("val/a.jpg")).map(({ score }) => score);
  check(JSON.stringify(scores) === "[null,0.6,0.2]", `accepted with their scores: ${scores}`);

  // Somebody else changes the image: both are kept when one says so.
  await page.drag([140, 50], [145, 55]);
  const other = { categoryId: 3, bbox: [2, 2, 8, 8], area: 64, isCrowd: false, sourceId: 99 } as const;
  store.addAnnotations([{ ...other, imageId: imageOf("val/a.jpg") }], { by: { source: "human", author: "eve" } });
  await page.until("!document.getElementById('editor-conflict').hidden");
  await page.said("eve has changed the image meanwhile");
  await browser.screenshot(join(out, "editor-conflict.png"), true);
  await browser.click("#editor-mine");
  await page.count(4);
  await browser.click("#editor-save");
  await page.said("the data set has it");
  const both = boxes("val/a.jpg");
  check(
    both.length === 4 && near(both[1], [105, 15, 185, 95]) && near(both[3], [2, 2, 10, 10]),
    `both: ${both.join("; ")}`,
  );
  // Where nothing was done here, theirs is shown by itself.
  store.deleteAnnotations([store.annotationsOf(imageOf("val/a.jpg"))[3]?.id as number], {
    source: "human",
    author: "eve",
  });
  await page.count(3);
  await browser.press("Escape");
  await browser.press("Escape");

  // A list of dlfs label audit: what it says is told, and what is not there is gone past.
  const findings = [
    { image: "train/d.jpg", problem: "missing", found: { class: "cell", score: 0.94 } },
    { image: "train/none.jpg", problem: "missing", found: { class: "cell", score: 0.9 } },
    { image: "e.jpg", problem: "wrong", given: { class: "cell" }, found: { class: "clot", score: 0.8 } },
    { image: "train/d.jpg", problem: "loose", given: { class: "cell" }, found: { class: "cell", score: 0.7 } },
  ];
  const list = join(root, "findings.jsonl");
  await Bun.write(list, findings.map((one) => `${JSON.stringify(one)}\n`).join(""));
  const lost = join(root, "lost.txt");
  await Bun.write(lost, "/elsewhere/none.jpg\n/elsewhere/d.jpg\n");
  await browser.choose("#label-list", [lost]);
  await page.said('the data set has no "none.jpg"');
  for (const key of ["]", "n", "PageDown"]) await browser.press(key);
  await page.shows("train/d.jpg");
  await browser.press("Escape");
  await page.until("!document.getElementById('editor').open");
  await browser.choose("#label-list", [list]);
  await page.said("missing: cell 0.94; loose: cell 0.70");
  await browser.press("PageDown");
  await page.said('the data set has no "train/none.jpg"');
  await browser.press("PageDown");
  await page.shows("train/e.jpg");
  await page.said("wrong: cell, rather clot 0.80");
  check((await page.text("#editor-place")) === "3 of 3, train", "how long the list is, is told");
  await browser.press("Escape");

  await checkTraining({ browser, page, run, out, check });

  // Dark, and a phone: by touch.
  await browser.call("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: "dark" }] });
  await browser.call("Emulation.setTouchEmulationEnabled", { enabled: true, maxTouchPoints: 5 });
  await opened(server.url, 390, 844, true);
  await page.until("!document.getElementById('label-open').disabled");
  await page.tap("#label-open", "document.getElementById('editor').open");
  await page.shows("train/a.jpg");
  const view = () => browser.evaluate<string>("document.getElementById('editor-stage').dataset.view");
  const before = await view();
  await page.touch(
    [
      [90, 50],
      [60, 50],
    ],
    [
      [110, 50],
      [140, 50],
    ],
  );
  check((await view()) !== before, "two fingers bring it closer");
  check((await browser.evaluate("document.getElementById('editor-stage').dataset.boxes")) === "2", "and draw nothing");
  await browser.evaluate("document.querySelector('[data-action=fit]').click()");
  await page.touch([
    [65, 10],
    [95, 45],
  ]);
  await page.count(3);
  await page.touch([
    [80, 28],
    [85, 38],
  ]);
  await browser.screenshot(join(out, "editor-phone.png"), true);
  check(
    (await page.text("#editor-told")).includes("70, 20, 100, 55"),
    `drawn by a finger: ${await page.text("#editor-told")}`,
  );
  // A box that is only touched is chosen, and stays where it is.
  await page.touch([
    [35, 52],
    [60, 60],
  ]);
  check((await page.text("#editor-told")).includes("12, 22, 58, 82"), `chosen: ${await page.text("#editor-told")}`);
  await page.tap("#editor-save", "document.getElementById('editor-save').disabled");
  await page.said("the data set has it");
  check(near(boxes("train/a.jpg")[2], [70, 20, 100, 55]), `the store has it: ${boxes("train/a.jpg").join("; ")}`);
  check(await browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than a phone");
  await browser.call("Emulation.setTouchEmulationEnabled", { enabled: false });
  dataset[Symbol.dispose]();
}

/** Labels of a training that goes on: its answers are shown, also those that come late, and what it refuses. */
async function checkTraining({
  browser,
  page,
  run,
  out,
  check,
}: Pick<EditorChecks, "browser" | "out" | "check"> & { page: EditorPage; run: string }): Promise<void> {
  let answer: () => Promise<Answer> = async () => ({ accepted: true, from: 123 });
  const predict = async () => ({ iteration: 200, boxes: [{ box: [150, 60, 190, 95], label: 1, score: 0.8 }] });
  const heard = { bus: new LiveBus(), submit: () => answer(), predict };
  await using training = new LiveServer({ port: 0, token: "live", ...heard });
  await mkdir(join(run, "live"), { recursive: true });
  await writeLiveAddress(run, { url: training.url, token: "live", split: "train" });
  await browser.click("#label-open");
  await page.shows("train/a.jpg");
  check((await page.text("#editor-into")).includes("the training that goes on"), "where labels go is said");
  check(
    !(await browser.evaluate("document.getElementById('editor-once').closest('label').hidden")),
    "and when they count",
  );
  await page.drag([70, 20], [90, 60]);
  answer = async () => ({ accepted: false, reason: "edits: the image would have 99 boxes" });
  await browser.click("#editor-save");
  await page.said("not written: labels: edits: the image would have 99 boxes");
  await browser.screenshot(join(out, "editor-refused.png"), true);
  const evaluated = Promise.withResolvers<Answer>();
  answer = () => evaluated.promise;
  // On to the next image meanwhile.
  await browser.press("Enter", "Control");
  await page.shows("train/b.jpg");
  await page.until("!document.querySelector('#editor .unwritten').hidden");
  check(
    (await page.text("#editor .unwritten")).includes("train/a.jpg: waiting for the training"),
    "what waits is told",
  );
  evaluated.resolve({ accepted: true, from: 124 });
  await page.until("document.querySelector('#editor .unwritten').hidden");
  answer = async () => ({ accepted: true, from: 125 });
  await page.drag([70, 20], [90, 60]);
  await browser.press("s", "Control");
  await page.said("the training has it, from step 125 on");
  // What it makes of the image now is asked for.
  const known = Number(await browser.evaluate("document.getElementById('editor-stage').dataset.boxes"));
  await browser.press("p");
  await page.count(known + 1);
  check((await page.text("#editor-found")).startsWith("1 predictions after step 200"), "how far it was is told");
  await browser.screenshot(join(out, "editor-predicted.png"), true);
  await browser.press("A", "Shift");
  await browser.press("s", "Control");
  await page.said("the training has it, from step 125 on");
  // Closed while it waits, and refused then: the page tells, and it is opened again.
  const late = Promise.withResolvers<Answer>();
  answer = () => late.promise;
  await page.drag([5, 5], [25, 25]);
  await browser.press("s", "Control");
  await browser.press("Escape");
  await browser.press("Escape");
  await page.until("!document.getElementById('editor').open");
  late.resolve({ accepted: false, reason: "the training has ended" });
  await page.until("document.querySelector('#label-panel .unwritten').textContent.includes('has ended')");
  await browser.click("#label-panel .unwritten button");
  await page.said("not written: labels: the training has ended");
  await removeLiveAddress(run);
  await browser.click("#editor-save");
  await page.said("the data set has it");
  await browser.press("Escape");
  await browser.press("Escape");
  await page.until("!document.getElementById('editor').open");
}
