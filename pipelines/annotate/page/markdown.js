// Markdown as chat models write it, made into nodes: headings, lists, quotes, code blocks, tables, rules, paragraphs.
// HTML is text like any other; line breaks stay where the model put them. What is not understood is shown as written.

import { h } from "./dom.js";
import { inline } from "./inline.js";
import { lines, visible } from "./text.js";

const DEEPEST = 8; // nested lists and quotes; deeper ones are shown as text
const MARKER = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)/;
const QUOTE = /^ {0,3}>/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]|$)/;
const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;

/** A fragment that shows `text`. */
export function markdown(text) {
  const fragment = document.createDocumentFragment();
  fragment.append(...blocks(lines(text).split("\n"), 0));
  return fragment;
}

function blocks(source, depth) {
  const nodes = [];
  let at = 0;
  while (at < source.length) {
    if (!source[at].trim()) {
      at += 1;
      continue;
    }
    const read = depth < DEEPEST ? (readers.find(([starts]) => starts(source, at))?.[1] ?? paragraph) : paragraph;
    const [node, end] = read(source, at, depth);
    nodes.push(node);
    at = end;
  }
  return nodes;
}

const readers = [
  [(source, at) => FENCE.test(source[at]), fenced],
  [(source, at) => HEADING.test(source[at]), heading],
  [(source, at) => RULE.test(source[at]), (source, at) => [h("hr"), at + 1]],
  [(source, at) => QUOTE.test(source[at]), quote],
  [(source, at) => MARKER.test(source[at]), list],
  [(source, at) => isTable(source, at), table],
];

const startsBlock = (source, at) => readers.some(([starts]) => starts(source, at));

function paragraph(source, at, depth) {
  let end = at + 1;
  while (end < source.length && source[end].trim() && (depth >= DEEPEST || !startsBlock(source, end))) end += 1;
  return [h("p", { dir: "auto" }, inline(source.slice(at, end).join("\n").trim())), end];
}

function fenced(source, at) {
  const fence = FENCE.exec(source[at])[1];
  const language = source[at].trim().slice(fence.length).trim();
  const closes = (line) => {
    const shut = FENCE.exec(line)?.[1];
    return shut?.startsWith(fence) && line.trim() === shut;
  };
  let end = at + 1;
  while (end < source.length && !closes(source[end])) end += 1;
  const label = language && h("span", { class: "language" }, visible(language.slice(0, 40)));
  const code = h("code", { dir: "ltr" }, visible(source.slice(at + 1, end).join("\n")));
  return [h("pre", {}, label || null, code), end + 1];
}

function heading(source, at) {
  const marks = HEADING.exec(source[at])[1].length;
  let text = source[at].trim().slice(marks).trim();
  let end = text.length;
  while (text[end - 1] === "#") end -= 1;
  if (end === 0 || /\s/.test(text[end - 1])) text = text.slice(0, end).trim();
  // The page's own headings are of levels 1 and 2.
  return [h(`h${Math.min(6, marks + 2)}`, { dir: "auto", class: `level-${marks}` }, inline(text)), at + 1];
}

function quote(source, at, depth) {
  let end = at;
  while (end < source.length && QUOTE.test(source[end])) end += 1;
  const inner = source.slice(at, end).map((line) => line.trimStart().slice(1).replace(/^ /, ""));
  return [h("blockquote", {}, blocks(inner, depth + 1)), end];
}

function list(source, at, depth) {
  const [, , first] = MARKER.exec(source[at]);
  const kind = (mark) => (/\d/.test(mark) ? "ordered" : mark);
  const ordered = kind(first) === "ordered";
  const items = [];
  while (at < source.length) {
    const match = MARKER.exec(source[at]);
    if (!match || kind(match[2]) !== kind(first) || RULE.test(source[at])) break;
    const [inner, end] = listItem(source, at, match);
    items.push(h("li", { dir: "auto" }, tight(blocks(inner, depth + 1))));
    at = end;
  }
  const start = ordered ? Number.parseInt(first, 10) : 1;
  return [h(ordered ? "ol" : "ul", { start: start === 1 ? null : start }, items), at];
}

/** The lines of the list item that begins at `at`, without its indent, and where the next block begins. */
function listItem(source, at, [marker, spaces, mark]) {
  const indent = Math.min(marker.length, spaces.length + mark.length + 4);
  const inner = [source[at].slice(indent)];
  let end = at + 1;
  while (end < source.length) {
    const line = source[end].replaceAll("\t", "    ");
    if (line.trim()) {
      const depth = line.length - line.trimStart().length;
      const lazy = source[end - 1].trim() && depth < indent && !startsBlock(source, end);
      if (depth <= spaces.length && !lazy) break;
      inner.push(lazy ? line.trimStart() : line.slice(Math.min(depth, indent)));
    } else inner.push("");
    end += 1;
  }
  while (inner.length > 1 && !inner.at(-1)) inner.pop();
  return [inner, end];
}

/** A list item that holds one paragraph is shown without the paragraph's margins. */
function tight(nodes) {
  return nodes[0]?.tagName === "P" ? [...nodes[0].childNodes, ...nodes.slice(1)] : nodes;
}

function cells(line) {
  const row = [""];
  const text = line.trim();
  for (let i = 0; i < text.length; i += 1) {
    if (text[i] === "\\" && text[i + 1] === "|") {
      row[row.length - 1] += "|";
      i += 1;
    } else if (text[i] === "|") row.push("");
    else row[row.length - 1] += text[i];
  }
  if (text.startsWith("|")) row.shift();
  if (text.endsWith("|") && row.length > 1) row.pop();
  return row.map((cell) => cell.trim());
}

function isTable(source, at) {
  const under = source[at + 1];
  if (!source[at].includes("|") || !under?.includes("-") || !/^[\s|:-]+$/.test(under)) return false;
  const dashes = cells(under);
  return dashes.every((cell) => /^:?-+:?$/.test(cell)) && dashes.length === cells(source[at]).length;
}

function table(source, at) {
  const aligned = cells(source[at + 1]).map((dashes) => {
    if (!dashes.endsWith(":")) return null;
    return dashes.startsWith(":") ? "centre" : "end";
  });
  const row = (line, tag) => {
    const shown = cells(line).slice(0, aligned.length);
    return h("tr", {}, shown.map((cell, i) => h(tag, { dir: "auto", class: aligned[i] }, inline(cell))));
  };
  const body = [];
  let end = at + 2;
  while (end < source.length && source[end].includes("|")) {
    body.push(row(source[end], "td"));
    end += 1;
  }
  const whole = h("table", {}, h("thead", {}, row(source[at], "th")), h("tbody", {}, body));
  return [h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Table" }, whole), end];
}
