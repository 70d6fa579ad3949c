// What a person can do, with which key, under which name. Buttons, keyboard and the help all read this table.

import { byId } from "./dom.js";

const STORED = "rondo.keys";

const TOOLS = [
  { name: "differences", keys: ["d"], shown: "D", label: "Differences", help: "Differences: mark the words that differ", only: "pairs" },
  { name: "write", keys: ["w"], shown: "W", label: "Write a better one", help: "Write a better response", needs: "write" },
  { name: "reason", keys: ["r"], shown: "R", label: "Reason", help: "Say why (optional)", needs: "rationale" },
  { name: "report", keys: ["f"], shown: "F", label: "Report", help: "Report content that should not be here" },
];

const MOVES = [
  { name: "skip", keys: ["s"], shown: "S", label: "Skip", help: "Skip: leave this one to others" },
  { name: "undo", keys: ["u"], shown: "U", label: "Undo", help: "Undo: take back your last answer" },
];

const PAGE = [
  { name: "guidelines", keys: ["g"], shown: "G", label: "Guidelines", help: "Show or hide the guidelines" },
  { name: "help", keys: ["?"], shown: "?", label: "Keys", help: "Show or hide this list" },
];

const VERDICTS = {
  pairs: [
    { name: "left", keys: ["ArrowLeft", "a", "1"], shown: "←", label: "A is better", help: "Response A (left) is better" },
    { name: "tie", keys: ["t", "2"], shown: "T", label: "Tie", help: "Tie: both are equally good" },
    { name: "both_bad", keys: ["n", "3"], shown: "N", label: "Both bad", help: "Both bad: neither is fit to be given" },
    { name: "right", keys: ["ArrowRight", "b", "4"], shown: "→", label: "B is better", help: "Response B (right) is better" },
    { name: "cannot_judge", keys: ["c", "5"], shown: "C", label: "Can’t judge", help: "Can’t judge: you lack what it takes to tell" },
  ],
  labels: [
    { name: "up", keys: ["y", "+", "1"], shown: "Y", label: "Good", help: "Thumbs up: fit to be given" },
    { name: "down", keys: ["n", "-", "2"], shown: "N", label: "Bad", help: "Thumbs down: not fit to be given" },
    { name: "cannot_judge", keys: ["c", "3"], shown: "C", label: "Can’t judge", help: "Can’t judge: you lack what it takes to tell" },
  ],
};

export const STRENGTHS = [
  { name: "1", keys: ["1"], shown: "1", label: "Slightly" },
  { name: "2", keys: ["2"], shown: "2", label: "Clearly" },
  { name: "3", keys: ["3"], shown: "3", label: "Much" },
  { name: "none", keys: ["Enter", "0"], shown: "0", label: "Don’t say" },
  { name: "back", keys: ["Escape"], shown: "Esc", label: "Back" },
];

/** `{verdicts, tools, moves, page}`: what there is to do in a task. */
export function actionsOf(task) {
  const tools = TOOLS.filter(({ only, needs }) => (!only || only === task.mode) && (!needs || task[needs]));
  return { verdicts: VERDICTS[task.mode], tools, moves: MOVES, page: PAGE };
}

/** What the page can do before there is a task. */
export const PAGE_ACTIONS = PAGE;

/** Keys of one stroke can be switched off: speech input and some assistive tools press them by accident. */
export const singleKeys = {
  get on() {
    return localStorage.getItem(STORED) !== "off";
  },
  set on(value) {
    if (value) localStorage.removeItem(STORED);
    else localStorage.setItem(STORED, "off");
    document.documentElement.classList.toggle("no-keys", !value);
  },
};

/** Call `act(name)` for the key of one of `actions()`, unless the person is typing or a dialog is open. */
export function listen(actions, act) {
  document.addEventListener("keydown", (event) => {
    const target = event.target;
    if (event.defaultPrevented || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (target.matches?.("textarea, input:not([type=checkbox]), select")) {
      if (event.key === "Escape") byId("item").focus();
      return;
    }
    if (document.querySelector("dialog[open]") || event.repeat || !singleKeys.on) return;
    if (event.key === "Enter" && target.matches?.("button, a, summary")) return; // presses what has the focus
    if (event.key.startsWith("Arrow") && target.matches?.(".scroll")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const action = actions().find(({ keys }) => keys.includes(key));
    if (!action) return;
    event.preventDefault();
    act(action.name);
  });
}
