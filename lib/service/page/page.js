// The page's script: sends an image to /predict, draws it with its boxes, and lists them.
const $ = (id) => document.getElementById(id);
const canvas = $("canvas");
const context = canvas.getContext("2d");
/** Sides of what is drawn at most: photographs have more pixels than screens. */
const MAX_SIDE = 1600;

let picture = null; // ImageBitmap
let detections = [];
let selected = -1;
let turn = 0;
let file = null;
let key = sessionStorage.getItem("dlfs-key") ?? "";

const color = (label) => `hsl(${(label * 137.508) % 360} 85% 45%)`;
const threshold = () => Number($("score").value);
const shown = () => detections.map((detection, i) => ({ ...detection, i })).filter(({ score }) => score >= threshold());

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = message === "";
}

async function ask(path, init = {}) {
  const headers = { ...init.headers, ...(key !== "" && { "X-API-Key": key }) };
  const answer = await fetch(path, { ...init, headers });
  const json = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (answer.status === 401) $("access").hidden = false;
  if (!answer.ok) throw new Error(json.error ?? `the server answered ${answer.status}`);
  return json;
}

async function loadModels() {
  fail("");
  try {
    const models = await ask("v2/repository/index", { method: "POST" });
    const ready = models.filter(({ state }) => state === "READY");
    const before = $("model").value;
    $("model").replaceChildren(
      ...ready.map(({ name, version }) => new Option(`${name} ${version}`, JSON.stringify({ model: name, version }))),
    );
    if (before !== "") $("model").value = before;
    $("state").textContent = ready.length > 0 ? "ready" : "no model is ready yet";
    $("access").hidden = true;
    if (ready.length === 0) setTimeout(loadModels, 2000);
  } catch (error) {
    fail(error.message);
  }
}

async function detect(chosen) {
  if (!chosen) return;
  const mine = ++turn;
  file = chosen;
  fail("");
  $("state").textContent = "detecting ...";
  document.body.dataset.state = "busy";
  const start = performance.now();
  try {
    // Upright, as the server sees it.
    const bitmap = await createImageBitmap(chosen, { imageOrientation: "from-image" }).catch(() => null);
    const query = new URLSearchParams({ score: "0.01", ...JSON.parse($("model").value || "{}") });
    const answer = await ask(`predict?${query}`, {
      method: "POST",
      body: chosen,
      headers: { "Content-Type": chosen.type },
    });
    if (mine !== turn) return;
    if (bitmap === null) throw new Error("this browser cannot show the image");
    picture = bitmap;
    const [{ width, detections: found }] = answer.images;
    const scale = bitmap.width / width;
    detections = found.map(({ box, ...rest }) => ({ ...rest, box: box.map((side) => side * scale) }));
    selected = -1;
    const ms = performance.now() - start;
    $("state").textContent =
      `${answer.model} ${answer.version}: ${answer.times.total_ms.toFixed(0)} ms, ${ms.toFixed(0)} ms with the way`;
    $("hint").hidden = true;
    canvas.hidden = false;
    $("controls").hidden = false;
    $("drop").classList.add("full");
    draw();
    document.body.dataset.state = "done";
  } catch (error) {
    if (mine !== turn) return;
    $("state").textContent = "";
    document.body.dataset.state = "failed";
    fail(error.message);
  }
}

function draw() {
  const scale = Math.min(1, MAX_SIDE / Math.max(picture.width, picture.height));
  canvas.width = Math.round(picture.width * scale);
  canvas.height = Math.round(picture.height * scale);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  // Lines and letters as large on a screen, whatever the picture's size is.
  const unit = canvas.width / (canvas.clientWidth || canvas.width);
  const list = shown();
  context.font = `600 ${13 * unit}px system-ui, sans-serif`;
  context.textBaseline = "top";
  for (const { box, label, score, i, class: name } of [...list].reverse()) {
    const [left, top, right, bottom] = box.map((side) => side * scale);
    context.globalAlpha = selected < 0 || selected === i ? 1 : 0.25;
    context.lineWidth = (selected === i ? 4 : 2) * unit;
    context.strokeStyle = color(label);
    context.strokeRect(left, top, right - left, bottom - top);
    const text = `${name} ${score.toFixed(2)}`;
    const width = context.measureText(text).width + 8 * unit;
    const height = 18 * unit;
    const x = Math.max(0, Math.min(left, canvas.width - width));
    const y = top >= height ? top - height : top;
    context.fillStyle = color(label);
    context.fillRect(x, y, width, height);
    context.fillStyle = "#fff";
    context.fillText(text, x + 4 * unit, y + 2.5 * unit);
  }
  context.globalAlpha = 1;
  $("threshold").textContent = threshold().toFixed(2);
  $("summary").textContent = `${list.length} of ${detections.length} detections`;
  canvas.setAttribute(
    "aria-label",
    `image with ${list.length} detections: ${list
      .slice(0, 10)
      .map(({ class: name }) => name)
      .join(", ")}`,
  );
  $("list").replaceChildren(...list.map(entry));
}

function entry({ class: name, score, label, i }) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-pressed", String(selected === i));
  const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  swatch.setAttribute("width", "14");
  swatch.setAttribute("height", "14");
  swatch.setAttribute("aria-hidden", "true");
  const square = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  square.setAttribute("width", "14");
  square.setAttribute("height", "14");
  square.setAttribute("rx", "3");
  square.setAttribute("fill", color(label));
  swatch.append(square);
  const [text, value] = [document.createElement("span"), document.createElement("span")];
  text.textContent = name;
  value.textContent = score.toFixed(2);
  button.append(swatch, text, value);
  button.addEventListener("click", () => {
    selected = selected === i ? -1 : i;
    draw();
    $("list").querySelector(`button[aria-pressed="true"]`)?.focus();
  });
  item.append(button);
  return item;
}

for (const [button, input] of [
  ["choose", "file"],
  ["again", "file"],
  ["take", "camera"],
  ["photo", "camera"],
]) {
  $(button).addEventListener("click", () => $(input).click());
}
for (const input of ["file", "camera"]) {
  $(input).addEventListener("change", () => {
    void detect($(input).files[0]);
    $(input).value = "";
  });
}
$("score").addEventListener("input", draw);
$("model").addEventListener("change", () => void detect(file));
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  sessionStorage.setItem("dlfs-key", key);
  void loadModels();
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
addEventListener("dragleave", () => $("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  void detect(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => void detect(event.clipboardData.files[0]));
addEventListener("resize", () => picture && draw());
void loadModels();
