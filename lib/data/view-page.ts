/** The page of `dlfs data view`: one file, nothing loaded from elsewhere. */
export const VIEW_PAGE = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>dlfs data</title>
<style>
  :root { color-scheme: light dark; --line: light-dark(#d8d8dc, #3a3a40); --soft: light-dark(#f4f4f6, #1f1f23);
    --text: light-dark(#1c1c20, #ececf0); --dim: light-dark(#62626a, #a0a0a8); --bar: light-dark(#3b6fd4, #6d9bf5);
    --bad: light-dark(#b3261e, #ff8a80); --back: light-dark(#fff, #141417); }
  * { box-sizing: border-box; }
  body { margin: 0; font: 14px/1.45 system-ui, sans-serif; color: var(--text); background: var(--back); }
  header { position: sticky; top: 0; z-index: 2; display: flex; flex-wrap: wrap; gap: 8px 14px; align-items: center;
    padding: 8px 14px; background: var(--soft); border-bottom: 1px solid var(--line); }
  header label { color: var(--dim); }
  select, button, input { font: inherit; color: inherit; background: var(--back); border: 1px solid var(--line);
    border-radius: 5px; padding: 3px 8px; }
  button:disabled { color: var(--dim); }
  :focus-visible { outline: 2px solid var(--bar); outline-offset: 1px; }
  main { display: grid; grid-template-columns: minmax(0, 1fr) 260px; gap: 14px; padding: 14px; }
  #grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 10px; align-content: start; }
  .card { padding: 0; overflow: hidden; text-align: left; cursor: pointer; }
  .picture { position: relative; display: flex; justify-content: center; align-items: center; height: 190px;
    background: var(--soft); }
  .picture > div { position: relative; max-width: 100%; max-height: 100%; }
  .picture img { display: block; max-width: 100%; max-height: 190px; }
  svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
  rect { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; }
  .crowd { stroke-dasharray: 5 4; }
  .off svg { display: none; }
  .name { padding: 4px 8px; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
  .dim { color: var(--dim); }
  .bad { color: var(--bad); white-space: normal; }
  aside h2 { font-size: 14px; margin: 0 0 6px; }
  aside button { display: grid; grid-template-columns: 1fr auto; width: 100%; border: 0; padding: 2px 4px; text-align: left;
    background: linear-gradient(var(--bar), var(--bar)) 0 100% / var(--share) 3px no-repeat; border-radius: 0; }
  aside button[aria-pressed=true] { font-weight: 600; background-color: var(--soft); }
  dialog { width: 96vw; max-width: none; height: 94vh; max-height: none; padding: 12px; border: 1px solid var(--line);
    border-radius: 8px; background: var(--back); color: inherit; }
  dialog[open] { display: grid; grid-template-rows: auto minmax(0, 1fr); gap: 8px; }
  dialog .body { display: grid; grid-template-columns: minmax(0, 1fr) 280px; gap: 12px; min-height: 0; }
  dialog .picture { height: 100%; min-height: 0; }
  dialog .picture img { max-height: calc(94vh - 90px); }
  dialog ul { margin: 0; padding: 0; list-style: none; overflow: auto; }
  dialog li { padding: 2px 4px; }
  kbd { border: 1px solid var(--line); border-radius: 3px; padding: 0 4px; font-size: 12px; }
  @media (max-width: 720px) { main, dialog .body { grid-template-columns: 1fr; } }
</style>
</head>
<body>
<header>
  <strong>dlfs data</strong>
  <label>split <select id="split"></select></label>
  <label>class <select id="category"></select></label>
  <label>tag <select id="tag"></select></label>
  <label>problems <select id="problem"><option value="any">any</option><option value="none">without</option>
    <option value="only">only with</option></select></label>
  <label>from id <input id="from" size="8" inputmode="numeric"></label>
  <label><input type="checkbox" id="boxes" checked> boxes</label>
  <button id="previous">previous</button><button id="next">next</button>
  <span id="status" role="status" aria-live="polite"></span>
  <span class="dim"><kbd>&larr;</kbd> <kbd>&rarr;</kbd> images <kbd>Enter</kbd> large <kbd>n</kbd> <kbd>p</kbd> pages
    <kbd>b</kbd> boxes</span>
</header>
<main>
  <div id="grid" aria-label="images"></div>
  <aside aria-label="classes"><h2>Boxes by class</h2><div id="classes"></div></aside>
</main>
<dialog id="large" aria-label="image">
  <div><button id="close">close</button> <span id="title"></span></div>
  <div class="body"><div class="picture"><div id="largePicture"></div></div><ul id="list"></ul></div>
</dialog>
<script>
const $ = (id) => document.getElementById(id);
const LIMIT = 60;
let names = new Map(), page = [], starts = [0], next = null, shown = -1, turn = 0;
const color = (id) => "hsl(" + ((id * 137.508) % 360) + " 85% 52%)";
function make(tag, attributes = {}, ...children) {
  const svg = tag === "svg" || tag === "rect" || tag === "title";
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const label = (box) => names.get(box.categoryId) + (box.score === null ? "" : " " + box.score.toFixed(2)) + (box.isCrowd ? " (crowd)" : "");
function picture(image, source) {
  const img = make("img", { src: source, alt: image.key, loading: "lazy" });
  const holder = make("div", {}, img);
  const draw = (width, height) => {
    const svg = make("svg", { viewBox: "0 0 " + width + " " + height, preserveAspectRatio: "none", "aria-hidden": "true" });
    for (const box of image.boxes) {
      const [x, y, w, h] = box.bbox;
      const rect = make("rect", { x, y, width: Math.max(w, 0), height: Math.max(h, 0), stroke: color(box.categoryId), "data-box": box.id });
      if (box.isCrowd) rect.classList.add("crowd");
      rect.append(make("title", {}, label(box)));
      svg.append(rect);
    }
    holder.append(svg);
  };
  // Without a size in the row, boxes are drawn once the picture has told its own.
  if (image.width) draw(image.width, image.height);
  else img.addEventListener("load", () => draw(img.naturalWidth, img.naturalHeight), { once: true });
  img.addEventListener("error", () => holder.replaceChildren(make("span", { class: "bad" }, "cannot be shown")), { once: true });
  return holder;
}
async function get(path) {
  const answer = await fetch(path);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error || answer.statusText);
  return body;
}
function query(extra) {
  const fields = { ...extra };
  for (const id of ["split", "category", "tag", "problem"]) if ($(id).value) fields[id] = $(id).value;
  return new URLSearchParams(fields);
}
async function load() {
  const mine = ++turn;
  $("status").textContent = "loading";
  try {
    const result = await get("/api/images?" + query({ after: starts.at(-1), limit: LIMIT }));
    if (mine !== turn) return;
    page = result.images;
    next = result.next;
    $("grid").replaceChildren(...page.map((image, i) => {
      const card = make("button", { class: "card", "data-place": i },
        make("div", { class: "picture" }, picture(image, "/image/" + image.id + "?w=440")),
        make("div", { class: "name", title: image.key }, image.key),
        make("div", { class: "name dim" }, image.split + " · id " + image.id + " · " + image.boxes.length + " boxes" +
          (image.tags.length ? " · " + image.tags.join(", ") : "")));
      if (image.problem) card.append(make("div", { class: "name bad" }, image.problem));
      card.addEventListener("click", () => open(i));
      return card;
    }));
    $("status").textContent = page.length ? "page " + starts.length + ", " + page.length + " of " + result.total.toLocaleString() + " images" : "no images";
    $("previous").disabled = starts.length === 1;
    $("next").disabled = next === null;
    scrollTo(0, 0);
  } catch (error) { $("status").textContent = String(error.message); }
}
async function loadClasses() {
  const counts = await get("/api/classes?" + new URLSearchParams({ split: $("split").value }));
  const most = Math.max(1, ...counts.map((c) => c.boxes));
  counts.sort((a, b) => b.boxes - a.boxes);
  $("classes").replaceChildren(...counts.map(({ id, name, boxes }) => {
    const row = make("button", { "aria-pressed": String($("category").value === String(id)), style: "--share:" + (100 * boxes / most) + "%" },
      make("span", {}, name), make("span", { class: "dim" }, boxes.toLocaleString()));
    row.addEventListener("click", () => { $("category").value = $("category").value === String(id) ? "" : String(id); filter(); });
    return row;
  }));
}
function filter() { starts = [0]; load(); loadClasses(); }
function forward() { if (next !== null) { starts.push(next); return load(); } }
function back() { if (starts.length > 1) { starts.pop(); return load(); } }
function open(i) {
  const image = page[i];
  if (!image) return;
  shown = i;
  $("title").textContent = image.key + " · " + image.split + " · " + (image.width ? image.width + " x " + image.height : "size not known") + (image.problem ? " · " + image.problem : "");
  const holder = picture(image, "/image/" + image.id + "?w=2048");
  $("largePicture").replaceWith(holder);
  holder.id = "largePicture";
  $("list").replaceChildren(...image.boxes.map((box) => make("li", { style: "border-left: 4px solid " + color(box.categoryId) },
    label(box) + "  [" + box.bbox.map((v) => Math.round(v * 10) / 10).join(", ") + "] " + box.source + (box.author ? ", " + box.author : ""))));
  if (!$("large").open) $("large").showModal();
}
async function step(by) {
  const inDialog = $("large").open;
  const place = inDialog ? shown : Number(document.activeElement?.dataset?.place ?? (by > 0 ? -1 : page.length));
  let to = place + by;
  if (to >= page.length) { if (next === null) return; await forward(); to = 0; }
  else if (to < 0) { if (starts.length === 1) return; await back(); to = page.length - 1; }
  if (inDialog) open(to);
  else $("grid").children[to]?.focus();
}
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT)$/.test(event.target.tagName)) return;
  const act = { ArrowRight: () => step(1), ArrowLeft: () => step(-1), n: forward, p: back,
    b: () => { $("boxes").checked = !$("boxes").checked; toggle(); } }[event.key];
  if (act) { event.preventDefault(); act(); }
});
function toggle() { document.body.classList.toggle("off", !$("boxes").checked); }
$("boxes").addEventListener("change", toggle);
$("next").addEventListener("click", forward);
$("previous").addEventListener("click", back);
$("close").addEventListener("click", () => $("large").close());
$("large").addEventListener("close", () => $("grid").children[shown]?.focus());
$("from").addEventListener("change", () => { starts = [Math.max(0, Number($("from").value) - 1 || 0)]; load(); });
for (const id of ["split", "category", "tag", "problem"]) $(id).addEventListener("change", filter);
(async () => {
  const { splits, categories, tags } = await get("/api/overview");
  names = new Map(categories.map((c) => [c.id, c.name]));
  const fill = (id, values) => $(id).replaceChildren(make("option", { value: "" }, "all"), ...values.map(([value, text]) => make("option", { value }, text)));
  fill("split", splits.map((s) => [s.name, s.name + " (" + s.images.toLocaleString() + ")"]));
  fill("category", categories.map((c) => [c.id, c.name]));
  fill("tag", tags.map((t) => [t.tag, t.tag + " (" + t.images.toLocaleString() + ")"]));
  filter();
})().catch((error) => { $("status").textContent = error.message; });
</script>
</body>
</html>
`;
