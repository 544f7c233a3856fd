// The page's script: asks each second what has changed, and shows it. Its panels are charts.js and evaluations.js.
import * as api from "./api.js";
import { Chart, colorOf, onTheme, PANELS } from "./charts.js";
import { Controls } from "./controls.js";
import { $, fill } from "./dom.js";
import { openEditor } from "./editor.js";
import { ImagesPanel } from "./editor-images.js";
import { Evaluations } from "./evaluations.js";

const POLL_MS = 1000;
/** Runs that are shown at the start: the latest. */
const FIRST = 1;
/** As many lines can be told apart. */
const MAX_CHOSEN = 16;

let runs = [];
const chosen = new Set();
let versions = {};
let range = null;
let logPart = null;
const places = new Map(); // of runs: their colours
const turns = {};

/** Runs what a control asks for; what is asked for later counts, and what goes wrong is said. */
async function doing(what, work) {
  const turn = (turns[what] ?? 0) + 1;
  turns[what] = turn;
  const late = () => turns[what] !== turn;
  try {
    await work(late);
    if (!late()) said.delete(what);
  } catch (error) {
    if (error instanceof api.AccessError) $("access").hidden = false;
    if (!late()) said.set(what, error.message);
  }
  const text = [...new Set(said.values())].join("; ");
  $("error").hidden = text === "";
  if ($("error").textContent !== text) $("error").textContent = text;
}
const said = new Map();

const evaluations = new Evaluations(doing, () => [...chosen].map((run) => ({ run, color: colorOf(placeOf(run)) })));

const controls = new Controls(doing);

/** What may be written to; null where nothing may. */
let images = null;
document.addEventListener("dlfs-open", ({ detail: { list, place, score } }) => void openEditor(list, place, score));

const placeOf = (run) => {
  if (!places.has(run)) places.set(run, places.size);
  return places.get(run);
};

const charts = PANELS.map((panel) => ({
  panel,
  chart: new Chart(panel, (wanted) => {
    range = wanted;
    void showCurves();
  }),
}));
$("charts").append(...charts.map(({ chart }) => chart.element));

const showCurves = () =>
  doing("curves", async (late) => {
    const smooth = Number($("smooth").value);
    const names = PANELS.flatMap((panel) => panel.names);
    const buckets = Math.min(4096, Math.ceil(charts[0].chart.width * devicePixelRatio));
    const shown = [...chosen];
    const answers = await Promise.all(shown.map((run) => api.curves(run, names, { range, buckets, smooth })));
    if (late()) return;
    const curves = answers.flatMap((answer) => Object.values(answer.curves));
    const all = [Math.min(...curves.map(({ first }) => first)), Math.max(...curves.map(({ last }) => last))];
    for (const { panel, chart } of charts) {
      const lines = shown.flatMap((run, i) => {
        const curve = panel.names.map((name) => answers[i].curves[name]).find((one) => one !== undefined);
        return curve ? [{ run, place: placeOf(run), curve }] : [];
      });
      chart.show(lines, { smooth, range: range ?? all, logScale: $("log-scale").checked });
    }
    $("whole").disabled = range === null;
    document.body.dataset.curves = shown.join(" ");
  });

const progress = ({ iteration, iterations, done, evaluation, problem }) =>
  [
    iterations === null ? `step ${iteration}` : `step ${iteration} of ${iterations}`,
    ...(evaluation?.AP === undefined ? [] : [`AP ${evaluation.AP.toFixed(3)}`]),
    ...(done ? ["done"] : []),
    ...(problem ? [problem] : []),
  ].join(", ");

function showRuns() {
  const before = new Map([...$("runs").children].map((item) => [item.dataset.run, item]));
  const items = runs.map((run) => {
    const item = before.get(run.name) ?? runItem(run.name);
    const text = progress(run);
    const about = item.querySelector(".about");
    if (about.textContent !== text) about.textContent = text;
    item.querySelector("input").checked = chosen.has(run.name);
    item.querySelector("rect").setAttribute("fill", chosen.has(run.name) ? colorOf(placeOf(run.name)) : "transparent");
    return item;
  });
  // Those that stay are not moved: moving takes the focus away.
  if (items.length !== $("runs").children.length || items.some((item, i) => $("runs").children[i] !== item)) {
    $("runs").replaceChildren(...items);
  }
  const names = runs.map(({ name }) => name);
  evaluations.setRuns(names, newest());
  images?.setRuns(names, newest());
  fill(
    $("log-run"),
    names.map((name) => [name, name]),
    newest(),
  );
  const going = runs.filter(({ done }) => !done).length;
  $("state").textContent = `${runs.length} ${runs.length === 1 ? "run" : "runs"}, ${going} not ended`;
}

function runItem(name) {
  const item = document.createElement("li");
  item.dataset.run = name;
  const label = document.createElement("label");
  const input = Object.assign(document.createElement("input"), { type: "checkbox" });
  input.addEventListener("change", () => {
    if (input.checked && chosen.size < MAX_CHOSEN) chosen.add(name);
    else chosen.delete(name);
    showRuns();
    void showCurves();
    evaluations.compare();
  });
  const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [key, value] of [
    ["width", "14"],
    ["height", "14"],
    ["aria-hidden", "true"],
  ])
    swatch.setAttribute(key, value);
  const square = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  for (const [key, value] of [
    ["width", "14"],
    ["height", "14"],
    ["rx", "3"],
  ])
    square.setAttribute(key, value);
  swatch.append(square);
  const about = Object.assign(document.createElement("span"), { className: "about" });
  label.append(input, swatch, Object.assign(document.createElement("span"), { textContent: name }), about);
  item.append(label);
  return item;
}

const newest = () => runs.toSorted((a, b) => (b.written ?? 0) - (a.written ?? 0))[0]?.name ?? "";

const loadLog = () =>
  doing("log", async (late) => {
    const run = $("log-run").value;
    if (run === "") return;
    const part = await api.log(run);
    if (late()) return;
    logPart = part;
    if ($("log").value !== part.text) $("log").value = part.text;
    $("earlier").disabled = part.from === 0;
    if ($("follow").checked) $("log").scrollTop = $("log").scrollHeight;
  });

const loadEarlier = () =>
  doing("log", async (late) => {
    const part = await api.log($("log-run").value, logPart.from);
    if (late()) return;
    $("follow").checked = false;
    const height = $("log").scrollHeight;
    $("log").value = part.text + $("log").value;
    $("log").scrollTop += $("log").scrollHeight - height;
    logPart = { ...logPart, from: part.from };
    $("earlier").disabled = part.from === 0;
  });

async function refreshRuns() {
  const listed = await api.listRuns();
  runs = listed.runs;
  controls.setRuns(listed.edit ? runs.filter(({ live }) => live).map(({ name }) => name) : []);
  if (listed.edit) images ??= new ImagesPanel(doing, (list) => openEditor(list));
  $("label-panel").hidden = !listed.edit;
  for (const name of chosen) if (!runs.some((run) => run.name === name)) chosen.delete(name);
  showRuns();
}

let polls = 0;
let polling;
/** Shows what has changed since the last time; what a hidden page would show waits. */
async function poll() {
  clearTimeout(polling);
  await doing("server", async () => {
    if (document.hidden) return;
    if (polls++ % 10 === 0) await refreshRuns();
    const watched = [...new Set([...chosen, evaluations.run, $("log-run").value])].filter((name) => name !== "");
    const now = await api.states(watched);
    const changed = (run, what) => now[run] && now[run][what] !== versions[run]?.[what];
    const work = [];
    if ([...chosen].some((run) => changed(run, "metrics"))) work.push(refreshRuns(), showCurves());
    const seen = evaluations.run;
    if (["samples", "evaluations", "pictures"].some((what) => changed(seen, what))) {
      work.push(evaluations.load({ changed: true }));
    }
    if ($("follow").checked && changed($("log-run").value, "log")) work.push(loadLog());
    versions = { ...versions, ...now };
    await Promise.all(work);
  });
  polling = setTimeout(poll, POLL_MS);
}

async function start() {
  await doing("start", async () => {
    await refreshRuns();
    $("access").hidden = true;
    $("main").hidden = false;
    for (const { name } of runs.toSorted((a, b) => (b.written ?? 0) - (a.written ?? 0)).slice(0, FIRST))
      chosen.add(name);
    showRuns();
    await Promise.all([showCurves(), evaluations.load(), loadLog()]);
    await poll();
  });
}

$("smooth").addEventListener("input", () => {
  $("smooth-value").textContent = Number($("smooth").value).toFixed(2);
  void showCurves();
});
$("log-scale").addEventListener("change", () => void showCurves());
$("whole").addEventListener("click", () => {
  range = null;
  void showCurves();
});
$("log-run").addEventListener("change", () => void loadLog());
$("follow").addEventListener("change", () => $("follow").checked && void loadLog());
$("earlier").addEventListener("click", () => void loadEarlier());
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  api.setToken($("token").value.trim());
  void start();
});
document.addEventListener("visibilitychange", () => !document.hidden && !$("main").hidden && void poll());
let resizing;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => {
    for (const { chart } of charts) chart.resize();
    evaluations.resize();
    void showCurves();
  }, 150);
});
onTheme(() => {
  showRuns();
  evaluations.resize();
  evaluations.compare();
  void showCurves();
});
void start();
