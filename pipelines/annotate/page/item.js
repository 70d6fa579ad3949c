// How an item looks: the conversation, the responses, the differences between them.

import { difference } from "./diff.js";
import { count, h } from "./dom.js";
import { markdown } from "./markdown.js";
import { lines, spelled, visible } from "./text.js";

const SHOWN_AT_FIRST = 20_000; // characters: more than a screenful of screens
const ROLES = { system: "System", user: "User", assistant: "Assistant", tool: "Tool" };

/** Markdown of `content`; of a huge text its beginning, with a button that shows all of it as written. */
export function text(content) {
  const box = h("div", { class: "text", dir: "auto" });
  if (content.length <= SHOWN_AT_FIRST) {
    box.append(markdown(content));
    return box;
  }
  const more = h("button", { type: "button", class: "more" }, `Show all ${count(content.length, "character")} as written`);
  more.addEventListener("click", () => {
    box.replaceChildren(spelled(lines(content)));
    box.classList.add("source");
    box.tabIndex = -1;
    box.focus({ preventScroll: true });
  });
  box.append(markdown(beginning(content)), more);
  return box;
}

/** About the first SHOWN_AT_FIRST characters, cut at a line break if there is one, never within a character. */
function beginning(content) {
  const line = content.lastIndexOf("\n", SHOWN_AT_FIRST);
  if (line > SHOWN_AT_FIRST / 2) return content.slice(0, line);
  const split = content.codePointAt(SHOWN_AT_FIRST - 1) > 0xffff;
  return content.slice(0, split ? SHOWN_AT_FIRST - 1 : SHOWN_AT_FIRST);
}

export function conversation(messages, title = "Conversation") {
  const turns = messages.map(({ role, content }) =>
    h("li", { class: `turn ${role in ROLES ? role : "other"}` }, h("h3", {}, ROLES[role] ?? visible(role)), text(content)),
  );
  return h(
    "section",
    { class: "conversation", "aria-labelledby": "item" },
    h("h2", { id: "item", tabindex: "-1" }, messages.length > 1 ? title : "Prompt"),
    h("ol", { class: "turns" }, turns),
  );
}

/** One response under its heading. `side`: left or right, or none where there is one response only. */
export function response(content, side) {
  const name = { left: "Response A", right: "Response B" }[side] ?? "Response";
  const id = `response-${side ?? "only"}`;
  return h(
    "article",
    { class: `response ${side ?? ""}`, id, "aria-labelledby": `${id}-title` },
    h("h2", { id: `${id}-title` }, name),
    empty(content) ? h("p", { class: "text muted" }, "(an empty response)") : text(content),
  );
}

const empty = (content) => !content.trim();

/** The two responses of a pair; `marked` shows their source with the words that differ marked. */
export function pair(left, right, marked) {
  if (!marked) return h("div", { class: "responses" }, response(left, "left"), response(right, "right"));
  const found = difference(lines(left), lines(right));
  const readable = Math.max(left.length, right.length) > SHOWN_AT_FIRST ? spelled : visible;
  const said = {
    words: "Marked: words that only this response has. Both are shown as written, without formatting.",
    lines: "The responses differ too much for words: marked are lines that only this response has.",
  };
  const columns = ["left", "right"].map((side) => {
    const node = response("", side);
    const shown = found[side].map(({ text: words, changed }) => (changed ? h("mark", {}, readable(words)) : readable(words)));
    node.lastChild.replaceWith(h("div", { class: "text source", dir: "auto" }, shown));
    return node;
  });
  const legend = said[found.unit] ?? "The responses differ nearly everywhere.";
  return h("div", { class: "responses" }, h("p", { class: "legend", role: "status" }, legend), columns);
}
