/** What a model finds, on the dashboard: 10,000 images, curves, the confusion matrix and numbers of boxes, by mouse and keyboard. */
import { link, mkdir } from "node:fs/promises";
import { join } from "node:path";
import { writeEvaluation, writeRun } from "../../tests/dashboard/run-fixture";
import type { Browser } from "../service/browser";

const IMAGES = 10_000;
const NAMES = ["red cell", "platelet", "white cell"];

/** A run of that many images, whose evaluation the page can show. */
export async function writeEvaluatedRun(root: string, name: string, jpeg: Uint8Array): Promise<void> {
  const data = join(root, `${name}-data`);
  await mkdir(join(data, "val"), { recursive: true });
  await Bun.write(join(data, "one.jpg"), jpeg);
  for (let i = 0; i < IMAGES; i++) await link(join(data, "one.jpg"), join(data, "val", `${i}.jpg`));
  const run = await writeRun(root, name, 50);
  await run.writeConfig({ data, iterations: 100, classes: NAMES });
  const bins = Array.from({ length: 16 }, (_, i) => i);
  const training = { name: "train", images: 500, boxes: [10, 20, 30], sizes: NAMES.map(() => bins) };
  await run.writeDataset({ classes: NAMES, edges: [...bins, 16], splits: [training] });
  await writeEvaluation(run, 40, IMAGES, NAMES.length);
  run.close();
}

/** The page is open, with the run in its list. */
export async function checkEvaluations(
  browser: Browser,
  run: string,
  out: string,
  check: (good: boolean, what: string) => void,
): Promise<void> {
  const text = (selector: string) =>
    browser.evaluate<string>(`document.querySelector(${JSON.stringify(selector)}).textContent`);
  const until = (expression: string) => browser.until(expression);
  const choose = (id: string, value: string) =>
    browser.evaluate(`(() => {
      const e = document.getElementById("${id}");
      e.value = ${JSON.stringify(value)};
      for (const type of ["input", "change"]) e.dispatchEvent(new Event(type));
    })()`);
  const total = (count: string) => until(`document.getElementById("samples-count").textContent ${count}`);
  const place = "Number(document.activeElement.dataset.place)";
  const focus = (selector: string) => browser.evaluate(`document.querySelector(${JSON.stringify(selector)}).focus()`);

  await choose("sample-run", run);
  await until(`document.body.dataset.evaluation === "${run} 40" && document.body.dataset.figures`);
  await total(`=== "${IMAGES} images"`);

  // Of 10,000 images those in sight exist; the last one is as near as the first.
  await until(`document.querySelectorAll(".sample[data-image=shown]").length >= 4`);
  const shown = () => browser.evaluate<number>(`document.querySelectorAll(".sample").length`);
  check((await shown()) < 40, `of 10,000 images few are drawn, got ${await shown()}`);
  await browser.screenshot(join(out, "desktop-images.png"));
  await focus(`.sample[data-place="0"]`);
  await browser.press("ArrowRight");
  check((await browser.evaluate(place)) === 1, "an arrow moves to the next image");
  await browser.press("End");
  await until(`${place} === ${IMAGES - 1} && document.activeElement.dataset.image === "shown"`);
  check((await shown()) < 40, "at the end few are drawn, too");
  check(
    (await browser.evaluate(`document.activeElement.getAttribute("aria-setsize")`)) === String(IMAGES),
    "how many there are is told to those who do not see them",
  );
  const loss = async (at: string) => Number(/loss ([\d.]+)/.exec(await text(`.sample[data-place="${at}"]`))?.[1]);
  const least = await loss(String(IMAGES - 1));
  await browser.press("Home");
  await until(`${place} === 0`);
  check((await loss("0")) > least + 1, "the hardest come first");
  const names = [0, 1].map((at) =>
    browser.evaluate<string>(`document.querySelectorAll(".sample")[${at}].dataset.name`),
  );
  const [hardest, next] = await Promise.all(names);
  await browser.press("Enter");
  const opened = (name?: string) => until(`document.getElementById("editor").dataset.shown === "${name}"`);
  await opened(hardest);
  await browser.press("PageDown");
  await opened(next);
  check((await text("#editor-place")) === `2 of ${IMAGES}, val`, "Enter opens an image, and Page Down the next one");
  await browser.press("Escape");
  await until(`!document.getElementById("editor").open`);
  check((await browser.evaluate(place)) === 0, "the focus is where it was");
  await browser.evaluate(`document.activeElement.blur(); document.getElementById("samples").scrollTop = 1e6`);
  await until(`document.querySelector(".sample[tabindex='0']") && !document.querySelector(".sample[data-place='0']")`);
  check(
    await browser.evaluate(`document.querySelectorAll(".sample[tabindex='0']").length === 1`),
    "one of those in sight is reached by Tab",
  );

  // Filters.
  await choose("sample-text", "val/777");
  await total(`=== "11 images"`);
  await choose("sample-text", "");
  await total(`=== "${IMAGES} images"`);

  // A run whose curves are shown is compared here, too.
  await until(`document.querySelector("#pr svg").dataset.others === "1"`);
  check((await text("#pr-others")).startsWith("beside: going-1 AP "), "the other run is told");

  // The curve: read off and used by keys.
  await choose("sample-class", "1");
  await until(`document.getElementById("pr-name").textContent.startsWith("platelet, AP")`);
  await focus("#pr svg");
  await browser.press("Home");
  const first = await text("#pr-told");
  await browser.press("ArrowRight");
  const second = await text("#pr-told");
  check(first !== second && second.includes("precision") && second.includes("F1"), `the curve is told: ${second}`);
  check(
    (await browser.evaluate(`document.querySelector("#pr svg").getAttribute("aria-valuetext")`)) === second,
    "and to those who do not see it",
  );
  await browser.press("End");
  await browser.press("PageUp");
  await browser.press("Enter");
  const score = Number(/score from ([\d.]+)/.exec(await text("#pr-told"))?.[1]);
  await until(`Math.abs(Number(document.getElementById("score").value) - ${score}) <= 0.011`);
  const ap = await text("#pr-name");
  await choose("iou", "0.85");
  await until(`document.getElementById("pr-name").textContent.endsWith("0.85")`);
  check((await text("#pr-name")) !== ap, "another IoU gives another AP");
  await choose("iou", "0.5");
  await choose("score", "0.3");
  await choose("sample-class", "");
  await until(`document.body.dataset.figures === "40 0.5 0.3 "`);
  await total(`=== "${IMAGES} images"`);

  // The confusion matrix: a cell by keys leads to its images, and back.
  await focus("#confusion canvas");
  for (const key of ["PageUp", "Home", "ArrowRight"]) await browser.press(key);
  const cell = await text("#confusion-told");
  check(/^red cell taken for platelet: \d+ of \d+ \([\d.]+ %\)$/.test(cell), `a cell is told: ${cell}`);
  await browser.press("Enter");
  await total(`!== "${IMAGES} images"`);
  const count = Number.parseInt(await text("#samples-count"), 10);
  check(count > 0 && count <= Number(/: (\d+)/.exec(cell)?.[1]), `its images are shown, got ${count}`);
  await browser.screenshot(join(out, "desktop-cell.png"));
  await browser.click("#sample-cell");
  await total(`=== "${IMAGES} images"`);

  // Classes and sizes.
  await browser.click(`#classes [data-key="class 2"]`);
  await until(`document.getElementById("pr-name").textContent.startsWith("white cell")`);
  check((await browser.evaluate(`document.getElementById("sample-class").value`)) === "2", "the class is chosen");
  await browser.click(`#classes [data-key="class 2"]`);
  await until(`document.getElementById("pr-name").textContent.startsWith("mean")`);
  await browser.click(`#classes [data-key="sort ap"]`);
  check(
    await browser.evaluate(`document.querySelector('[data-key="sort ap"]').parentElement.ariaSort === "descending"`),
    "the table is sorted",
  );
  check((await text("#classes")).includes("in training"), "the data that it was trained on are beside");
  await focus("#sizes svg");
  await browser.press("Home");
  for (let i = 0; i < 6; i++) await browser.press("ArrowRight");
  const size = await text("#sizes-told");
  check(/^32 to 45 pixels: found \d+ .*, known \d+ .*, in training 18 /.test(size), `sizes are told: ${size}`);
  await browser.place("#analysis");
  await browser.screenshot(join(out, "desktop-evaluation.png"));
}

/** The same page on a phone, by touch; it shows the run. */
export async function checkEvaluationsByTouch(
  browser: Browser,
  out: string,
  check: (good: boolean, what: string) => void,
): Promise<void> {
  const tap = async (x: number, y: number) => await browser.touch({ from: { x, y }, to: { x, y } });
  const total = `document.getElementById("samples-count").textContent`;
  await browser.until(`${total} === "${IMAGES} images"`);
  const columns = `new Set([...document.querySelectorAll(".sample")].map(({ style }) => style.left)).size`;
  check((await browser.evaluate(columns)) === 1, "a phone has room for one image beside another");
  const matrix = await browser.place("#confusion canvas");
  const size = await browser.evaluate<number>(`document.querySelector("#confusion canvas").clientWidth`);
  // The first row's second cell: beside the names are four cells of at most 48 pixels.
  const side = Math.min(48, Math.floor((size - 48) / (NAMES.length + 1)));
  const margin = size - side * (NAMES.length + 1);
  await tap(matrix.x + margin + 1.5 * side, matrix.y + margin + 0.5 * side);
  await browser.until(`${total} !== "${IMAGES} images"`);
  const cell = await browser.evaluate<string>(`document.getElementById("sample-cell").textContent`);
  check(cell.startsWith("only red cell taken for platelet: "), `a cell is taken by touch: ${cell}`);
  await browser.screenshot(join(out, "phone-cell.png"), true);
  const button = await browser.place("#sample-cell");
  await tap(button.x + button.width / 2, button.y + button.height / 2);
  await browser.until(`${total} === "${IMAGES} images"`);
  const curve = await browser.place("#pr svg");
  await tap(curve.x + 0.3 * curve.width, curve.y + 0.1 * curve.height);
  const told = await browser.evaluate<string>(`document.getElementById("pr-told").textContent`);
  const recall = Number(/recall ([\d.]+)/.exec(told)?.[1]);
  check(Math.abs(recall - 0.21) < 0.06, `a point of the curve is read off by touch: ${told}`);
  const below = `[...document.querySelectorAll("button, select")].filter((one) => {
    const { width, height } = one.getBoundingClientRect();
    return width > 0 && height < 44;
  }).length`;
  check((await browser.evaluate(below)) === 0, "what is touched is large enough");
}
