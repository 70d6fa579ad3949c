// For reviewers: items that the annotators disagree about, and how far the people agree.

import { buttons, hideAnswers } from "./answers.js";
import { announce, byId, count, duration, h } from "./dom.js";
import { conversation, pair, response } from "./item.js";
import { actionsOf } from "./keys.js";
import { tell } from "./notices.js";
import { visible } from "./text.js";

/** What people answered about an item, in a list. */
function given(labels, names) {
  const rows = labels.map(({ annotator, verdict, strength, rationale, written }) =>
    h(
      "li",
      {},
      h("p", {}, h("strong", {}, visible(annotator)), ": ", names[verdict] ?? verdict, strength ? ` (strength ${strength} of 3)` : ""),
      rationale && h("blockquote", { dir: "auto" }, visible(rationale)),
      written && h("details", {}, h("summary", {}, "Wrote a better response"), h("div", { class: "text source", dir: "auto" }, visible(written))),
    ),
  );
  return h("section", { class: "card given", "aria-labelledby": "given" }, h("h2", { id: "given" }, "What was answered"), h("ul", {}, rows));
}

/** Adjudication: one conflict at a time, decided with the keys of judging. */
export class Conflicts {
  #api;
  #verdicts;
  #mode;
  #failed;
  #items = [];
  #busy = false;
  #open = false; // this view is the one on the screen

  constructor(api, task, failed) {
    this.#api = api;
    this.#mode = task.mode;
    this.#failed = failed;
    this.#verdicts = actionsOf(task).verdicts;
  }

  get actions() {
    return this.#items.length && !this.#busy ? [...this.#verdicts, { name: "later", keys: ["s"] }] : [];
  }

  async enter() {
    this.#open = true;
    try {
      const { items, total } = await this.#api.get("conflicts");
      if (!this.#open) return;
      this.#items = items;
      this.#show(total);
    } catch (error) {
      this.#failed(error);
    }
  }

  leave() {
    this.#open = false;
    this.#items = [];
    hideAnswers();
  }

  async act(name) {
    const [item] = this.#items;
    if (name === "later") {
      this.#items.push(this.#items.shift());
      this.#show(this.#items.length);
      return;
    }
    this.#busy = true;
    try {
      await this.#api.post("resolve", { item: item.id, verdict: name });
    } catch (error) {
      if (error.status === 401) this.#failed(error);
      else tell(error.message, "bad");
      if (error.passing || error.status === 401) return;
    } finally {
      this.#busy = false;
    }
    if (this.#open) await this.enter();
  }

  #show(total) {
    const [item] = this.#items;
    if (!item) {
      const title = h("h2", { id: "item", tabindex: "-1" }, "No conflicts");
      byId("main").replaceChildren(h("section", { class: "card nothing" }, title, h("p", {}, "Everybody agrees, or you have decided.")));
      hideAnswers();
      title.focus();
      return;
    }
    const names = Object.fromEntries(this.#verdicts.map(({ name, label }) => [name, label]));
    const responses =
      item.response === undefined
        ? pair(item.left, item.right, false)
        : h("div", { class: "responses single" }, response(item.response));
    byId("main").replaceChildren(conversation(item.messages), responses, given(item.labels, names));
    const act = (name) => this.act(name);
    byId("answers").replaceChildren(
      buttons(this.#verdicts.filter(({ name }) => name !== "cannot_judge"), act, `verdicts ${this.#mode}`, "Your decision"),
      buttons(
        [this.#verdicts.find(({ name }) => name === "cannot_judge"), { name: "later", shown: "S", label: "Later" }],
        act,
        "moves",
        "Other",
      ),
    );
    byId("answers").hidden = false;
    window.scrollTo(0, 0);
    byId("item").focus({ preventScroll: true });
    announce(`${count(total, "conflict")} to decide.`);
  }
}

const percent = (value) => (value === null || value === undefined ? "–" : `${Math.round(100 * value)}%`);
const share = ({ rate, n }) => h("td", {}, percent(rate), h("small", {}, n ? ` of ${n}` : ""));

const WORDS = {
  first: "First better",
  second: "Second better",
  tie: "Tie",
  both_bad: "Both bad",
  cannot_judge: "Can’t judge",
  up: "Good",
  down: "Bad",
  labels: "Labels",
  undone: "Taken back",
  reports: "Reports",
  items_open: "Items open",
  items_conflict: "Items in conflict",
  items_decided: "Items decided",
  items_gold: "Gold items",
};

/** The page of agreement. */
export class AgreementPage {
  #api;
  #failed;
  #open = false;
  actions = [];

  constructor(api, failed) {
    this.#api = api;
    this.#failed = failed;
  }

  act() {}

  leave() {
    this.#open = false;
  }

  async enter() {
    this.#open = true;
    hideAnswers();
    try {
      const measured = await this.#api.get("agreement");
      if (!this.#open) return;
      byId("main").replaceChildren(...this.#sections(measured));
      byId("item").focus();
    } catch (error) {
      this.#failed(error);
    }
  }

  #sections({ alpha, annotators, left, longest, seconds, counts }) {
    const figure = (title, value, help) => h("div", { class: "figure card" }, h("dt", {}, title), h("dd", {}, value), h("dd", { class: "muted" }, help));
    const titles = ["Annotator", "Labels", "Agreement", "Gold right", "Left", "Longer", "Median time", "Can’t judge", "Standing"];
    const rows = annotators.map((a) =>
      h(
        "tr",
        {},
        h("th", { scope: "row", dir: "auto" }, visible(a.annotator)),
        h("td", {}, String(a.labels)),
        [a.agreement, a.gold, a.left, a.longest].map(share),
        h("td", {}, a.seconds === null ? "–" : duration(a.seconds)),
        h("td", {}, String(a.cannot_judge)),
        h("td", {}, a.standing),
      ),
    );
    const head = h("thead", {}, h("tr", {}, titles.map((title) => h("th", { scope: "col" }, title))));
    return [
      h("h2", { id: "item", tabindex: "-1" }, "Agreement"),
      h(
        "dl",
        { class: "figures" },
        figure("Krippendorff’s α", alpha === null ? "–" : alpha.toFixed(2), "1: all agree; 0: as by chance"),
        figure("Left side chosen", percent(left.rate), "of choices for a side; 50% without position bias"),
        figure("Longer one chosen", percent(longest.rate), "of choices between different lengths"),
        figure("Median time", seconds === null ? "–" : duration(seconds), "an item"),
      ),
      rows.length
        ? h("div", { class: "scroll card", tabindex: "0", role: "group", "aria-label": "Annotators" }, h("table", {}, head, h("tbody", {}, rows)))
        : h("p", { class: "card" }, "Nobody has answered anything yet."),
      h(
        "dl",
        { class: "counts card" },
        Object.entries(counts).map(([name, n]) => h("div", {}, h("dt", {}, WORDS[name] ?? name), h("dd", {}, n.toLocaleString("en")))),
      ),
    ];
  }
}
