// What is being typed about an item, kept in this tab so that a reload loses nothing.

import { h } from "./dom.js";

const LIMITS = { rationale: 5_000, written: 50_000 }; // characters, as the server has them
const key = (item) => `rondo.draft.${item}`;

export class Draft {
  #item;
  #areas;

  /** Text fields for `item`, filled with what was typed or, failing that, with `before`. */
  constructor(item, task, before = {}) {
    this.#item = item;
    const saved = { ...before, ...JSON.parse(sessionStorage.getItem(key(item.id)) ?? "{}") };
    const area = (name, rows) => {
      const node = h("textarea", { id: name, rows, maxlength: LIMITS[name], dir: "auto", oninput: () => this.save() });
      node.value = saved[name] ?? "";
      return node;
    };
    this.#areas = { written: task.write && area("written", 8), rationale: task.rationale && area("rationale", 2) };
  }

  /** `{rationale, written}`, those that are not blank. */
  get values() {
    const filled = Object.entries(this.#areas).filter(([, area]) => area && area.value.trim());
    return Object.fromEntries(filled.map(([name, area]) => [name, area.value]));
  }

  save() {
    try {
      sessionStorage.setItem(key(this.#item.id), JSON.stringify(this.values));
    } catch {
      // The storage is full: the text is still in its field.
    }
  }

  forget() {
    sessionStorage.removeItem(key(this.#item.id));
  }

  /** The fields as a panel; the ones without text stay folded until `toggle` opens them. */
  panel() {
    const { written, rationale } = this.#areas;
    const take = (text) => () => {
      written.value = text;
      written.focus();
      this.save();
    };
    const { left, right, response } = this.#item;
    const sources = response === undefined ? { A: left, B: right } : { "the response": response };
    const copies = Object.entries(sources).map(([name, text]) =>
      h("button", { type: "button", onclick: take(text.slice(0, LIMITS.written)) }, `Start from ${name}`),
    );
    return h(
      "div",
      { class: "fields" },
      written &&
        h(
          "div",
          { class: "field card", id: "field-write", hidden: !written.value },
          h("label", { for: "written" }, "A better response"),
          h("p", { class: "muted" }, "It becomes the chosen one. Then answer below as usual."),
          written,
          h("p", { class: "row" }, copies),
        ),
      rationale &&
        h(
          "div",
          { class: "field card", id: "field-reason", hidden: !rationale.value },
          h("label", { for: "rationale" }, "Your reason (optional)"),
          rationale,
        ),
    );
  }

  /** Open the field "write" or "reason", or close it again if it is empty; returns whether it is open. */
  static toggle(name) {
    const field = document.getElementById(`field-${name}`);
    const area = field.querySelector("textarea");
    field.hidden = !field.hidden && !area.value;
    if (!field.hidden) area.focus();
    return !field.hidden;
  }
}
