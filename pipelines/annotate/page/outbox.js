// Labels on their way to the server. A label is written into the browser's storage before it is sent and removed when the
// server has answered; the server takes the same label twice as one. So a lost network, a closed tab or a restarted
// server neither loses nor doubles it.

export class Outbox {
  #prefix;
  #send;
  #memory = new Map(); // what the browser's storage would not take

  /** `send` posts one label. Labels of different people in one browser never mix. */
  constructor(annotator, send) {
    this.#prefix = `rondo.label.${annotator}.`;
    this.#send = send;
  }

  /** Labels that no server has answered for, oldest first. */
  get waiting() {
    return this.#entries().filter(({ refused }) => !refused);
  }

  /** Labels of items that the server does not know, each with `refused`: the server's words. */
  get refused() {
    return this.#entries().filter(({ refused }) => refused);
  }

  /** Whether closing the page would lose a label. */
  get volatile() {
    return this.#memory.size > 0;
  }

  add(label) {
    this.#put({ label, since: Date.now() });
  }

  /** Give up labels that the server does not know. */
  discardRefused() {
    for (const { label } of this.refused) this.#remove(label.item);
  }

  retryRefused() {
    for (const { label, since } of this.refused) this.#put({ label, since });
  }

  /**
   * Send what waits. Returns `[{label, error}]` of labels that the server answered but did not simply take (`error` says
   * what became of them); throws the ApiError that stops sending, with everything unanswered kept.
   */
  async flush() {
    const answered = [];
    for (const entry of this.waiting) {
      try {
        await this.#send(entry.label);
        this.#remove(entry.label.item);
      } catch (error) {
        if (error.passing || error.status === 401 || error.status === 403) throw error;
        // Item ids are content ids: an unknown one belongs to another store that was served here. Not ours to drop.
        if (error.status === 404) this.#put({ ...entry, refused: error.message });
        else this.#remove(entry.label.item);
        answered.push({ label: entry.label, error });
      }
    }
    return answered;
  }

  #entries() {
    const kept = Object.keys(localStorage).filter((key) => key.startsWith(this.#prefix));
    const entries = [...this.#memory.values(), ...kept.map((key) => JSON.parse(localStorage.getItem(key)))];
    return entries.sort((a, b) => a.since - b.since);
  }

  #put(entry) {
    const key = this.#prefix + entry.label.item;
    try {
      localStorage.setItem(key, JSON.stringify(entry));
      this.#memory.delete(key);
    } catch {
      this.#memory.set(key, entry); // the storage is full
    }
  }

  #remove(item) {
    this.#memory.delete(this.#prefix + item);
    localStorage.removeItem(this.#prefix + item);
  }
}
