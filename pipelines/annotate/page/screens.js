// What judging shows besides items: the warning before the first, why there is none, and how far it has come.

import { byId, duration, h } from "./dom.js";

const NOTHING = {
  done: ["All done", "There is nothing left for you to judge. Thank you! If more comes in, it appears here by itself."],
  waiting: ["Waiting for the next item", "Others hold what is left, or the next ones are being made. Stay or come back later."],
  disqualified: ["Thank you", "Your answers in the qualification round differed too often from the known ones, so there are no further items for you."],
};

function show(className, title, ...children) {
  const heading = h("h2", { id: "item", tabindex: "-1" }, title);
  byId("main").replaceChildren(h("section", { class: `card ${className}` }, heading, children));
  document.title = `${title} · Rondo`;
  heading.focus();
}

export function showWarning(words, start) {
  const go = h("button", { type: "button", class: "primary", onclick: start }, "I understand, show the first item");
  show("warning", "Before you start", h("p", { dir: "auto" }, words), go);
}

/** `reason` is the server's: done, waiting or disqualified. */
export function showNothing(reason) {
  const [title, words] = NOTHING[reason] ?? NOTHING.waiting;
  show(`nothing ${reason}`, title, h("p", {}, words));
}

/** Each of `words` is a paragraph. */
export function showSignedOut(...words) {
  show("signed-out", "You are not signed in", words.map((said) => h("p", {}, said)));
}

export function showProgress({ mine, remaining, total, seconds_per_item: pace }) {
  const words = [`${mine} by you`, `${remaining} of ${total} remaining`];
  if (pace) words.push(`${duration(pace)} an item`, remaining ? `about ${duration(pace * remaining)} left` : "");
  byId("progress-words").textContent = words.filter(Boolean).join(" · ");
  const bar = byId("progress").firstElementChild;
  bar.max = Math.max(total, 1);
  bar.value = total - remaining;
  byId("progress").hidden = false;
}
