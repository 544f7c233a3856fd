// What the editor lists: an image's boxes, and images that are not written yet.
import { $, element } from "./dom.js";
import { color } from "./samples.js";

const sidesOf = ({ box }) => box.map((side) => Math.round(side)).join(", ");

/** Boxes as a list of buttons, for those who do not see or point; the selected one is told. */
export function listBoxes(boxes, selected) {
  const list = $("editor-boxes");
  const items = boxes.map((one) => {
    const mark = element("span", { class: `mark ${one.kind}` });
    mark.style.borderColor = color(one.label);
    const text = `${one.text} at ${sidesOf(one)}`;
    const button = element("button", { type: "button", "aria-pressed": String(one.key === selected) }, mark, text);
    button.dataset.key = String(one.key);
    return element("li", {}, button);
  });
  const focused = document.activeElement?.closest("#editor-boxes button")?.dataset.key;
  list.replaceChildren(...items);
  if (focused !== undefined) {
    const again = list.querySelector(`[data-key="${focused}"]`) ?? $("editor-stage");
    again.focus({ preventScroll: true });
  }
  scrollTo(list, list.querySelector("[aria-pressed=true]"));
  const chosen = boxes.find(({ key }) => key === selected);
  $("editor-told").textContent = chosen ? `${chosen.text} at ${sidesOf(chosen)}` : "no box is chosen";
}

/** Brings an item into sight, and moves nothing but its list. */
function scrollTo(list, item) {
  if (!item) return;
  const top = item.offsetTop - list.offsetTop;
  const bottom = top + item.offsetHeight;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
}

/** Sessions that are not written, in the editor and on the page. @param open shows one of them */
export function listUnwritten(sessions, open) {
  for (const place of document.querySelectorAll(".unwritten")) {
    const buttons = sessions.map((one) => {
      const textContent = `${one.state.image.key}: ${one.said || "not saved"}`;
      const button = element("button", { type: "button", textContent });
      button.addEventListener("click", () => open(one));
      return button;
    });
    place.replaceChildren(...(sessions.length > 0 ? ["not written yet: ", ...buttons] : []));
    place.hidden = sessions.length === 0;
  }
}
