// The bar at the bottom: what can be answered now, as buttons that show their keys.

import { byId, h, keycap } from "./dom.js";
import { STRENGTHS } from "./keys.js";

const button = ({ name, shown, label }, act) =>
  h("button", { type: "button", "data-action": name, onclick: () => act(name) }, h("span", {}, label), keycap(shown));

/** Buttons for `actions`, in a group of their own. */
export const buttons = (actions, act, className, label) =>
  h("div", { class: className, role: "group", "aria-label": label }, actions.map((action) => button(action, act)));

export function showAnswers({ verdicts, moves }, mode, act) {
  const main = verdicts.filter(({ name }) => name !== "cannot_judge");
  const rest = [verdicts.find(({ name }) => name === "cannot_judge"), ...moves];
  byId("answers").replaceChildren(
    buttons(main, act, `verdicts ${mode}`, mode === "pairs" ? "Which is better?" : "Is it good?"),
    buttons(rest, act, "moves", "Other"),
  );
  byId("answers").hidden = false;
}

/** How much better is `side`? */
export function showStrengths(side, act) {
  const title = h("p", { id: "strength-title", tabindex: "-1" }, `How much better is ${side === "left" ? "A" : "B"}?`);
  byId("answers").replaceChildren(title, buttons(STRENGTHS, act, "strengths", title.textContent));
  title.focus({ preventScroll: true });
}

/** Only what can be done without an item. */
export function showMoves({ moves }, act) {
  const undo = moves.filter(({ name }) => name === "undo");
  byId("answers").replaceChildren(buttons(undo, act, "moves", "Other"));
  byId("answers").hidden = false;
}

/** While an answer travels no other can be given. */
export function lock(locked, chosen) {
  for (const node of byId("answers").querySelectorAll("button")) {
    node.disabled = locked;
    node.classList.toggle("chosen", locked && node.dataset.action === chosen);
  }
}

export function hideAnswers() {
  byId("answers").replaceChildren();
  byId("answers").hidden = true;
}
