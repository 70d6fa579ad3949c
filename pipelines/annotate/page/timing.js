// Time: attempts that are repeated, attention that is measured, leases that run out.

const PAUSES_S = [1, 2, 4, 8, 15, 30];

/** Runs `attempt` again after growing pauses, at once when the network returns or the page is looked at again. */
export class Retry {
  #timer = 0;
  #failures = 0;

  constructor(attempt) {
    this.attempt = attempt;
    window.addEventListener("online", () => this.#timer && this.now());
    document.addEventListener("visibilitychange", () => !document.hidden && this.#timer && this.now());
  }

  schedule() {
    clearTimeout(this.#timer);
    const pause = PAUSES_S[Math.min(this.#failures, PAUSES_S.length - 1)];
    this.#failures += 1;
    this.#timer = setTimeout(() => this.now(), pause * 1000);
  }

  now() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.attempt();
  }

  reset() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#failures = 0;
  }
}

/** Seconds during which the page was visible. */
export class Stopwatch {
  #spent = 0;
  #since = null;

  constructor() {
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#pause() : this.#go()));
  }

  restart() {
    this.#spent = 0;
    this.#since = null;
    if (!document.hidden) this.#go();
  }

  get seconds() {
    const running = this.#since === null ? 0 : performance.now() - this.#since;
    return Math.round((this.#spent + running) / 100) / 10;
  }

  #go() {
    this.#since ??= performance.now();
  }

  #pause() {
    if (this.#since !== null) this.#spent += performance.now() - this.#since;
    this.#since = null;
  }
}

/** Tells of a lease that is about to end and of one that has ended. */
export class LeaseClock {
  #timers = [];

  /** `ending` is called a minute before `left` seconds have passed (or half-way, if sooner), `ended` after them. */
  start(left, ending, ended) {
    this.stop();
    const notice = Math.max(left - 60, left / 2);
    this.#timers = [setTimeout(ending, notice * 1000), setTimeout(ended, left * 1000)];
  }

  stop() {
    this.#timers.forEach(clearTimeout);
    this.#timers = [];
  }
}
