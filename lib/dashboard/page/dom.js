// Elements made and found, as all panels of the page do it.
export const $ = (id) => document.getElementById(id);

/** An element with properties (class, dataset and aria-... by their names) and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  apply(made, properties);
  made.append(...children);
  return made;
}

const SVG = "http://www.w3.org/2000/svg";
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

function apply(made, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (name in made && !name.startsWith("aria-")) made[name] = value;
    else made.setAttribute(name === "class" ? "class" : name, String(value));
  }
}

/** Gives a choice its entries, [value, text]; what was chosen stays. */
export function fill(select, entries, otherwise) {
  const before = select.options.length > 0 ? select.value : otherwise;
  const key = JSON.stringify(entries);
  if (select.dataset.entries === key) return;
  select.dataset.entries = key;
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
  select.value = entries.some(([value]) => value === before) ? before : otherwise;
}

/** Calls `work` when nothing has been asked for since so many milliseconds. */
export function settled(milliseconds, work) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, milliseconds);
  };
}

/** A place among some that the pointer and the keys move, and that is told: arrows by one, Page Up and Down by ten, Home and End. */
export class Cursor {
  #host;
  #told;
  #count = 0;
  #place = 0;
  #show;
  #describe;

  /**
   * @param host takes the focus, and is a slider to those who do not see it
   * @param told where the description is written
   */
  constructor(host, told) {
    this.#host = host;
    this.#told = told;
    host.tabIndex = 0;
    // The slider says it already.
    told.setAttribute("aria-live", "off");
    host.setAttribute("role", "slider");
    host.setAttribute("aria-valuemin", "0");
    host.addEventListener("keydown", (event) => this.#press(event));
  }

  get place() {
    return this.#place;
  }

  /** @param show puts a mark at a place; `describe` says what is there */
  set(count, place, show, describe) {
    this.#count = count;
    this.#show = show;
    this.#describe = describe;
    this.#host.setAttribute("aria-valuemax", String(Math.max(0, count - 1)));
    this.move(place);
  }

  move(place) {
    if (this.#count === 0) {
      this.#told.textContent = "";
      return;
    }
    this.#place = Math.max(0, Math.min(this.#count - 1, place));
    const text = this.#describe(this.#place);
    this.#show(this.#place);
    this.#told.textContent = text;
    this.#host.setAttribute("aria-valuenow", String(this.#place));
    this.#host.setAttribute("aria-valuetext", text);
  }

  #press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
    const ends = { Home: 0, End: this.#count - 1 };
    const place = ends[event.key] ?? (steps[event.key] === undefined ? null : this.#place + steps[event.key]);
    if (place === null) return;
    event.preventDefault();
    this.move(place);
  }
}
