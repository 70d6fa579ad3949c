// Characters that change how text is shown without being seen are drawn as badges instead of being obeyed:
// a right-to-left override would make one answer read as another.

import { h } from "./dom.js";

// Controls, format characters, lone surrogates and line separators, except what ordinary text needs: line breaks, tabs,
// joiners (emoji, Persian, Indic scripts) and the visible Arabic and Syriac number signs that are "format" by category.
// Then marks piled up on one letter, beyond what any script needs: they paint over their neighbours and stall the browser.
const HIDDEN =
  /(?:(?![\n\t\u200C\u200D\u0600-\u0605\u06DD\u070F\u0890\u0891\u08E2])[\p{Cc}\p{Cf}\p{Cs}\u2028\u2029])+|(?<=\p{M}{8})\p{M}+/gu;

const NAMES = {
  0x00: "null",
  0x07: "bell",
  0x08: "backspace",
  0x1b: "escape",
  0xad: "soft hyphen",
  0x61c: "Arabic letter mark",
  0x200b: "zero-width space",
  0x200e: "left-to-right mark",
  0x200f: "right-to-left mark",
  0x2028: "line separator",
  0x2029: "paragraph separator",
  0x202a: "left-to-right embedding",
  0x202b: "right-to-left embedding",
  0x202c: "pop directional formatting",
  0x202d: "left-to-right override",
  0x202e: "right-to-left override",
  0x2060: "word joiner",
  0x2066: "left-to-right isolate",
  0x2067: "right-to-left isolate",
  0x2068: "first strong isolate",
  0x2069: "pop directional isolate",
  0xfeff: "byte order mark",
};

const SHOWN_OF_A_RUN = 4;

/** "U+200B U+202E ×3 and 5 more" for a run of characters. */
function spell(run) {
  const distinct = [];
  for (const char of run) {
    const point = char.codePointAt(0);
    const last = distinct.at(-1);
    if (last?.point === point) last.times += 1;
    else distinct.push({ point, times: 1 });
  }
  const words = distinct.slice(0, SHOWN_OF_A_RUN).map(({ point, times }) => {
    const code = `U+${point.toString(16).toUpperCase().padStart(4, "0")}`;
    return times > 1 ? `${code} ×${times}` : code;
  });
  if (distinct.length > SHOWN_OF_A_RUN) words.push(`and ${distinct.length - SHOWN_OF_A_RUN} more`);
  return words.join(" ");
}

function badge(run) {
  const one = [...run].every((char) => char === run[0]);
  const name = one ? (NAMES[run.codePointAt(0)] ?? "invisible character") : "invisible characters";
  return h("span", { class: "control", title: name }, spell(run));
}

/** `text` as strings and badges, ready to be appended. */
export function visible(text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(HIDDEN)) {
    if (match.index > end) parts.push(text.slice(end, match.index));
    parts.push(badge(match[0]));
    end = match.index + match[0].length;
  }
  if (end < text.length) parts.push(text.slice(end));
  return parts;
}

/** The same as one string: for texts so long that elements in them would stall the browser. */
export const spelled = (text) => text.replace(HIDDEN, (run) => `⟨${spell(run)}⟩`);

/** Line breaks of every kind as "\n". */
export const lines = (text) => text.replace(/\r\n?/g, "\n");
