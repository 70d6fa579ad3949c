// Guidelines, keys and the report form: native dialogs, which keep the focus and close with Escape.

import { byId, h } from "./dom.js";
import { singleKeys } from "./keys.js";
import { markdown } from "./markdown.js";
import { STRENGTHS } from "./keys.js";

/** A dialog that the key which opened it also closes. */
function toggled(id, keys) {
  const dialog = byId(id);
  dialog.addEventListener("keydown", (event) => {
    if (singleKeys.on && keys.includes(event.key.toLowerCase())) {
      event.preventDefault(); // the page's own listener must not open it again
      dialog.close();
    }
  });
  // A click beside the box is a click on the dialog itself.
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  return () => dialog.showModal();
}

/** Prepare the dialogs of `task`; returns what opens each. */
export function dialogs(task, actions) {
  byId("guidelines-text").replaceChildren(markdown(task.guidelines));
  const groups = [...actions.verdicts, ...actions.tools, ...actions.moves, ...actions.page];
  const rows = groups.map(({ keys, shown, help }) => {
    const others = keys.filter((key) => key.toLowerCase() !== shown.toLowerCase() && !key.startsWith("Arrow"));
    return row([shown, ...others.map((key) => key.toUpperCase())], help);
  });
  if (task.strength) rows.push(row(STRENGTHS.slice(0, 3).map(({ shown }) => shown), "Then: slightly, clearly, much better"));
  rows.push(row(["Esc"], "Leave a text field, close a dialog"));
  byId("help-keys").replaceChildren(...rows);
  const single = byId("single-keys");
  single.checked = singleKeys.on;
  single.onchange = () => {
    singleKeys.on = single.checked;
  };
  return { guidelines: toggled("guidelines", ["g"]), help: toggled("help", ["?"]) };
}

const row = (keys, help) => h("div", {}, h("dt", {}, keys.map((key) => h("kbd", {}, key))), h("dd", {}, help));

/** Ask what is wrong with an item; resolves to the reason, or null. */
export function askForReport() {
  const dialog = byId("report");
  byId("report-reason").value = "";
  dialog.returnValue = "cancel";
  dialog.showModal();
  return new Promise((resolve) => {
    const done = () => resolve(dialog.returnValue === "send" ? byId("report-reason").value.trim() || null : null);
    dialog.addEventListener("close", done, { once: true });
  });
}
