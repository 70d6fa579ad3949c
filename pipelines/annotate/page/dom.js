// Nodes are made with createElement and text nodes only: text never becomes markup anywhere on this page.

/** Make an element. Properties named on<event> become listeners, all others attributes; true sets an empty attribute. */
export function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Say something to screen readers; the same words twice in a row are said twice. */
export function announce(words) {
  const live = byId("announcer");
  live.textContent = live.textContent === words ? `${words}\u00a0` : words;
}

/** What one key would press, drawn as a key; touch screens hide it. */
export const keycap = (shown) => h("kbd", { "aria-hidden": "true" }, shown);

/** 95 -> "1 min 35 s". */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 100) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.round((whole % 3600) / 60)} min`;
}

/** 1, "label" -> "1 label"; 2, "label" -> "2 labels". */
export const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
