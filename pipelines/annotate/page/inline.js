// Markdown within a paragraph: code, emphasis, strike-through, links and images as text with their targets.
// One pass from left to right with bounded stacks, so hostile text costs time linear in its length.

import { h } from "./dom.js";
import { visible } from "./text.js";

const DEEPEST = 16; // open marks at a time; what would go deeper stays text
const LONGEST_TARGET = 2000;
const TAGS = { "*1": "em", _1: "em", "*2": "strong", _2: "strong", "~2": "del" };
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}]/u;

/** Nodes and strings of `text`. */
export function inline(text) {
  return new Scanner(text).run();
}

class Scanner {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.literal = "";
    this.frames = [{ mark: "", size: 0, children: [] }]; // the innermost open mark is last
    this.ticks = null; // where the runs of backticks of each length begin, and the first that is not yet passed
  }

  run() {
    while (this.at < this.text.length) {
      const char = this.text[this.at];
      if (char === "\\" && ESCAPABLE.test(this.text[this.at + 1] ?? "")) {
        this.literal += this.text[this.at + 1];
        this.at += 2;
      } else if (char === "`") this.code();
      else if (char === "*" || char === "_" || char === "~") this.emphasis(char);
      else if (char === "[") this.open("[", 1);
      else if (char === "!" && this.text[this.at + 1] === "[") this.open("![", 2);
      else if (char === "]") this.link();
      else {
        this.literal += char;
        this.at += 1;
      }
    }
    while (this.frames.length > 1) this.unwind();
    this.flush();
    return this.frames[0].children;
  }

  flush() {
    if (this.literal) this.frames.at(-1).children.push(...visible(this.literal));
    this.literal = "";
  }

  runLength(char) {
    let end = this.at;
    while (this.text[end] === char) end += 1;
    return end - this.at;
  }

  code() {
    const size = this.runLength("`");
    const start = this.at + size;
    this.ticks ??= tickRuns(this.text);
    const runs = this.ticks.get(size);
    while (runs.starts[runs.next] < start) runs.next += 1;
    const end = runs.starts[runs.next];
    this.at = start;
    if (end === undefined) {
      this.literal += "`".repeat(size);
      return;
    }
    this.flush();
    const inner = this.text.slice(start, end);
    const padded = inner.length > 2 && inner.startsWith(" ") && inner.endsWith(" ") && inner.trim();
    this.frames.at(-1).children.push(h("code", {}, visible(padded ? inner.slice(1, -1) : inner)));
    this.at = end + size;
  }

  emphasis(char) {
    let left = this.runLength(char);
    const before = this.text[this.at - 1] ?? " ";
    const after = this.text[this.at + left] ?? " ";
    const inWord = char === "_" && WORD.test(before) && WORD.test(after); // snake_case is no emphasis
    const opens = /\S/.test(after) && !inWord;
    const closes = /\S/.test(before) && !inWord;
    this.at += left;
    while (left > 0) {
      const size = char === "~" ? 2 : Math.min(left, 2);
      const opener = closes ? this.opener(char, left) : 0;
      if (opener) {
        left -= this.frames[opener].size;
        this.close(opener);
      } else if (opens && left >= size && left <= 3 && this.frames.length < DEEPEST) {
        this.flush();
        this.frames.push({ mark: char, size, children: [] });
        left -= size;
      } else {
        this.literal += char.repeat(left);
        left = 0;
      }
    }
  }

  /** The innermost open mark that `left` characters can close, within the innermost link; 0: none. */
  opener(char, left) {
    for (let i = this.frames.length - 1; i > 0; i -= 1) {
      const { mark, size } = this.frames[i];
      if (mark === char && size <= left) return i;
      if (mark.endsWith("[")) return 0;
    }
    return 0;
  }

  close(index) {
    while (this.frames.length > index + 1) this.unwind();
    this.flush();
    const { mark, size, children } = this.frames.pop();
    if (children.length) this.frames.at(-1).children.push(h(TAGS[mark + size], {}, children));
    else this.literal += mark.repeat(2 * size);
  }

  /** Take the innermost open mark for text after all. */
  unwind() {
    this.flush();
    const { mark, size, children } = this.frames.pop();
    this.literal += mark.endsWith("[") ? mark : mark.repeat(size);
    this.flush();
    this.frames.at(-1).children.push(...children);
  }

  open(mark, length) {
    this.at += length;
    if (this.frames.length >= DEEPEST) {
      this.literal += mark;
      return;
    }
    this.flush();
    this.frames.push({ mark, size: 0, children: [] });
  }

  link() {
    const index = this.frames.findLastIndex(({ mark }) => mark.endsWith("["));
    const target = index > 0 ? readTarget(this.text, this.at + 1) : null;
    if (index > 0) {
      while (this.frames.length > index + 1) this.unwind();
    }
    this.at += 1;
    if (target === null) {
      if (index > 0) this.unwind();
      this.literal += "]";
      return;
    }
    this.flush();
    const { mark, children } = this.frames.pop();
    this.at = target.end;
    const shown = h("span", { class: "target", dir: "ltr" }, visible(target.text));
    const label = mark === "![" ? ["image: ", children] : children;
    const note = mark === "![" ? "an image that is not loaded" : "a link that cannot be followed";
    this.frames.at(-1).children.push(h("span", { class: "link", title: note }, label, " (", shown, ")"));
  }
}

function tickRuns(text) {
  const runs = new Map();
  for (const match of text.matchAll(/`+/g)) {
    const size = match[0].length;
    if (!runs.has(size)) runs.set(size, { starts: [], next: 0 });
    runs.get(size).starts.push(match.index);
  }
  return runs;
}

/** The target in "(target)" or `(target "title")` at `start`: its text and where it ends; null: there is none. */
function readTarget(text, start) {
  if (text[start] !== "(") return null;
  const last = Math.min(text.length, start + LONGEST_TARGET);
  let open = 0;
  for (let i = start; i < last; i += 1) {
    if (text[i] === "\n") return null;
    if (text[i] === "\\") i += 1;
    else if (text[i] === "(") open += 1;
    else if (text[i] === ")") {
      open -= 1;
      if (open === 0) return { text: text.slice(start + 1, i).trim(), end: i + 1 };
    }
  }
  return null;
}
