// The editor's keys: what each does, and how that is told.

/** [keys, what they do, action]; an action is a method's name, with its arguments. Modifiers come first: "Shift+", "Ctrl+". */
const KEYS = [
  [["PageDown"], "the next image", "go", 1],
  [["PageUp"], "the image before", "go", -1],
  [["Ctrl+s"], "save", "save"],
  [["Ctrl+Enter"], "save, and go on to the next image", "saveAndGo"],
  [["]", "."], "the next box", "step", 1],
  [["[", ","], "the box before", "step", -1],
  [
    ["ArrowLeft", "Shift+ArrowLeft"],
    "move the box by a pixel, with Shift by ten; without a box, what is seen",
    "nudge",
    -1,
    0,
  ],
  [["ArrowRight", "Shift+ArrowRight"], "", "nudge", 1, 0],
  [["ArrowUp", "Shift+ArrowUp"], "", "nudge", 0, -1],
  [["ArrowDown", "Shift+ArrowDown"], "", "nudge", 0, 1],
  [
    ["Alt+ArrowLeft", "Alt+Shift+ArrowLeft"],
    "with Alt: make it smaller or larger, at its right and bottom",
    "grow",
    -1,
    0,
  ],
  [["Alt+ArrowRight", "Alt+Shift+ArrowRight"], "", "grow", 1, 0],
  [["Alt+ArrowUp", "Alt+Shift+ArrowUp"], "", "grow", 0, -1],
  [["Alt+ArrowDown", "Alt+Shift+ArrowDown"], "", "grow", 0, 1],
  [["n"], "a new box in the middle", "addBox"],
  [["d"], "draw over other boxes, or no longer", "toggleDrawing"],
  [["Delete", "Backspace"], "delete the box", "remove"],
  [["p"], "predict: what the model makes of the image now", "predict"],
  [["a"], "accept the prediction", "accept"],
  [["Shift+A"], "accept all predictions that are shown", "acceptAll"],
  ...Array.from({ length: 9 }, (_, i) => [
    [String(i + 1)],
    i === 0 ? "1 to 9: the box is of that class" : "",
    "relabel",
    i,
  ]),
  [["c"], "choose a class", "chooseClass"],
  [["g"], "a group of objects, or one", "toggleGroup"],
  [["Ctrl+z"], "undo", "undo"],
  [["Ctrl+y", "Ctrl+Shift+Z"], "do again", "redo"],
  [["+", "="], "closer", "zoom", 1.25],
  [["-"], "further away", "zoom", 0.8],
  [["0"], "all of the image", "fit"],
  [["Escape"], "give up a drag, or leaving; choose no box; close", "escape"],
];

/** What may be done while a text is written, too. */
const EVERYWHERE = new Set(["save", "saveAndGo", "escape"]);
const actions = new Map(KEYS.flatMap(([keys, , ...action]) => keys.map((key) => [key, action])));

/** The action of a key press, [name, ...arguments], with whether Shift is down; null where it is none of the editor's. */
export function actionOf(event) {
  const { key, target } = event;
  const modifiers = [
    ...(event.ctrlKey || event.metaKey ? ["Ctrl"] : []),
    ...(event.altKey ? ["Alt"] : []),
    // Characters have it in them.
    ...(event.shiftKey && (key.length > 1 || /[A-Z]/.test(key)) ? ["Shift"] : []),
  ];
  const action = actions.get([...modifiers, key].join("+"));
  if (!action) return null;
  const writes = target.matches("input:not([type=checkbox]), select, textarea");
  if (writes && !EVERYWHERE.has(action[0])) return null;
  return { action, fast: event.shiftKey };
}

const NAMES = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Escape: "Esc" };
const nameOf = (key) =>
  key
    .split("+")
    .map((part) => NAMES[part] ?? part)
    .join("+") || "+";

/** The rows of a table of keys. */
export function keyRows() {
  return KEYS.filter(([, what]) => what !== "").map(([keys, what]) => {
    const row = document.createElement("tr");
    const [names, text] = [document.createElement("th"), document.createElement("td")];
    names.scope = "row";
    names.append(
      ...keys.flatMap((key) => [Object.assign(document.createElement("kbd"), { textContent: nameOf(key) }), " "]),
    );
    text.textContent = what;
    row.append(names, text);
    return row;
  });
}
