// Lines above the page that stay until they no longer hold: what went wrong, what is kept, what can be done about it.

import { byId, h } from "./dom.js";

const shown = new Map();

/** Show `words` as the notice called `name`, with `buttons` as [label, action]. */
export function notify(name, words, { buttons = [], tone = "info" } = {}) {
  const previous = shown.get(name);
  if (previous?.words === words) return; // screen readers would read it again
  const made = buttons.map(([label, action]) => h("button", { type: "button", onclick: action }, label));
  const node = h("div", { class: `notice ${tone}`, "data-notice": name }, h("p", { dir: "auto" }, words), made);
  if (previous) previous.node.replaceWith(node);
  else byId("notices").append(node);
  shown.set(name, { words, node });
}

export function dismiss(...names) {
  for (const name of names) {
    shown.get(name)?.node.remove();
    shown.delete(name);
  }
}

/** Something the server said about what the person did; goes with the next answer or by its button. */
export function tell(words, tone = "info") {
  dismiss("message");
  notify("message", words, { tone, buttons: [["OK", () => dismiss("message")]] });
}
