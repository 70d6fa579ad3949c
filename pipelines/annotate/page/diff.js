// Which words two texts do not share: Myers' greedy algorithm ("An O(ND) Difference Algorithm and Its Variations", 1986).

const MOST_EDITS = 2000; // memory grows with its square: 16 MB

const words = (text) => Array.from(new Intl.Segmenter(undefined, { granularity: "word" }).segment(text), (s) => s.segment);
const rows = (text) => text.split(/(?<=\n)/);

/**
 * Both texts in pieces `{text, changed}`, and the unit compared: "words", or "lines" where the texts are too different for
 * words, or null where they are for lines too (then everything between their common ends counts as changed).
 */
export function difference(left, right) {
  for (const [unit, split] of [
    ["words", words],
    ["lines", rows],
  ]) {
    const [a, b] = [split(left), split(right)];
    const shared = sharedUnits(a, b);
    if (shared) return { unit, left: pieces(a, shared.a), right: pieces(b, shared.b) };
  }
  const [a, b] = [words(left), words(right)];
  const { start, end } = commonEnds(a, b);
  const ends = (units) => units.map((_, i) => i < start || i >= units.length - end);
  return { unit: null, left: pieces(a, ends(a)), right: pieces(b, ends(b)) };
}

function commonEnds(a, b) {
  const shorter = Math.min(a.length, b.length);
  let start = 0;
  while (start < shorter && a[start] === b[start]) start += 1;
  let end = 0;
  while (end < shorter - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end += 1;
  return { start, end };
}

/** Which units of `a` and `b` are in their longest common subsequence; null: more than MOST_EDITS edits apart. */
function sharedUnits(a, b) {
  const { start, end } = commonEnds(a, b);
  const [n, m] = [a.length - start - end, b.length - start - end];
  const shared = {
    a: a.map((_, i) => i < start || i >= a.length - end),
    b: b.map((_, i) => i < start || i >= b.length - end),
  };
  const most = Math.min(n + m, MOST_EDITS);
  const reach = new Int32Array(2 * most + 3); // per diagonal k = x - y: the furthest x
  const middle = most + 1;
  const history = [];
  for (let edits = 0; edits <= most; edits += 1) {
    for (let k = -edits; k <= edits; k += 2) {
      const down = k === -edits || (k !== edits && reach[middle + k - 1] < reach[middle + k + 1]);
      let x = down ? reach[middle + k + 1] : reach[middle + k - 1] + 1;
      while (x < n && x - k < m && a[start + x] === b[start + x - k]) x += 1;
      reach[middle + k] = x;
      if (x >= n && x - k >= m) {
        walkBack(history, edits, n, m, (i, j) => {
          shared.a[start + i] = true;
          shared.b[start + j] = true;
        });
        return shared;
      }
    }
    history.push(reach.slice(middle - edits - 1, middle + edits + 2));
  }
  return null;
}

/** Calls `share(i, j)` for every pair of equal units on the path that ends at (n, m). */
function walkBack(history, edits, n, m, share) {
  let [x, y] = [n, m];
  for (let d = edits; d > 0; d -= 1) {
    const reach = history[d - 1]; // diagonals -d .. d
    const k = x - y;
    const down = k === -d || (k !== d && reach[d + k - 1] < reach[d + k + 1]);
    const before = down ? k + 1 : k - 1;
    const fromX = reach[d + before];
    const fromY = fromX - before;
    while (x > fromX && y > fromY) share(--x, --y);
    [x, y] = [fromX, fromY];
  }
  while (x > 0 && y > 0) share(--x, --y);
}

/** Neighbouring units of a kind joined; blanks and commas between two changes count as changed, they are chance. */
function pieces(units, shared) {
  const runs = [];
  units.forEach((text, i) => {
    const changed = !shared[i];
    if (runs.at(-1)?.changed === changed) runs.at(-1).text += text;
    else runs.push({ text, changed });
  });
  const joined = [];
  runs.forEach((run, i) => {
    const chance = i > 0 && i < runs.length - 1 && /^[\s\p{P}]*$/u.test(run.text);
    const changed = run.changed || chance;
    if (joined.at(-1)?.changed === changed) joined.at(-1).text += run.text;
    else joined.push({ text: run.text, changed });
  });
  return joined;
}
