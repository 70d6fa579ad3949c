// Judging: one item after the other. At any time the person sees an item, a question about it, or why there is none.

import { hideAnswers, buttons, lock, showAnswers, showMoves, showStrengths } from "./answers.js";
import { ApiError } from "./api.js";
import { askForReport } from "./dialogs.js";
import { announce, byId, count, h } from "./dom.js";
import { Draft } from "./drafts.js";
import { conversation, pair, response } from "./item.js";
import { actionsOf, STRENGTHS } from "./keys.js";
import { dismiss, notify, tell } from "./notices.js";
import { Outbox } from "./outbox.js";
import { showNothing, showProgress, showWarning } from "./screens.js";
import { LeaseClock, Retry, Stopwatch } from "./timing.js";

const POLL_S = { waiting: 3, done: 15 }; // a running loop may bring more
export class Judge {
  #api;
  #task;
  #outbox;
  #retry = new Retry(() => this.#advance());
  #watch = new Stopwatch();
  #lease = new LeaseClock();
  #shown = null; // what the server last offered: {item, progress, reason}
  #phase = "idle"; // idle, item, strength, busy, nothing, ended
  #side = null; // of the verdict whose strength is asked
  #draft = null;
  #marked = false; // differences are shown
  #last = null; // the label given last, to fill the fields again when it is taken back
  #poll = 0;
  #open = false; // this view is the one on the screen
  #advancing = false;

  /** `ended` is called when the session is over. */
  constructor(api, session, task, ended) {
    this.#api = api;
    this.#task = task;
    this.#outbox = new Outbox(session.annotator, (label) => api.post("label", label));
    this.ended = ended;
    this.offered = actionsOf(task);
    window.addEventListener("beforeunload", (event) => this.#outbox.volatile && event.preventDefault());
  }

  /** How many labels still wait to be sent. */
  get unsent() {
    return this.#outbox.waiting.length;
  }

  /** What the keyboard can do now. */
  get actions() {
    const { verdicts, tools, moves } = this.offered;
    if (this.#phase === "strength") return STRENGTHS;
    if (this.#phase === "item") return [...verdicts, ...tools, ...moves];
    return this.#phase === "nothing" ? moves.filter(({ name }) => name === "undo") : [];
  }

  enter() {
    this.#open = true;
    if (this.#task.warning && sessionStorage.getItem("rondo.warned") !== this.#task.warning) this.#warn();
    else this.#advance();
  }

  leave() {
    this.#open = false;
    this.#draft?.save();
    this.#lease.stop();
    this.#retry.reset();
    clearTimeout(this.#poll);
    dismiss("lease", "message");
    hideAnswers();
    this.#phase = "idle";
  }

  act(name) {
    if (this.#phase === "strength") return this.#answerStrength(name);
    if (name === "undo") return this.#undo();
    if (this.#phase !== "item") return undefined;
    if (name === "skip") return this.#skip();
    if (name === "differences") return this.#toggleDifferences();
    if (name === "report") return this.#report();
    if (name === "write" || name === "reason") return this.#pressed(name, Draft.toggle(name));
    if (this.#task.strength && (name === "left" || name === "right")) return this.#askStrength(name);
    return this.#label(name);
  }

  #warn() {
    const start = () => {
      sessionStorage.setItem("rondo.warned", this.#task.warning);
      this.#advance();
    };
    showWarning(this.#task.warning, start);
  }

  /** Send what waits, then show what comes next; again later if the server is not reached. */
  async #advance() {
    clearTimeout(this.#poll);
    if (this.#advancing) return;
    this.#advancing = true;
    try {
      const answered = await this.#outbox.flush();
      const offer = await this.#api.post("next");
      this.#retry.reset();
      dismiss("network");
      answered.filter(({ error }) => error.status !== 404).forEach(({ label, error }) => this.#notTaken(label, error));
      this.#tellRefused();
      this.#show(offer);
    } catch (error) {
      this.#failed(error);
    } finally {
      this.#advancing = false;
    }
  }

  #failed(error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401) {
      this.leave();
      this.#phase = "ended";
      dismiss("network");
      this.ended(error.message);
      return;
    }
    if (!this.#open) return;
    if (!error.passing) {
      tell(error.message, "bad");
      if (this.#phase === "busy") this.#unlock();
      return;
    }
    const kept = this.unsent ? ` ${count(this.unsent, "answer")} kept in this browser and sent as soon as possible.` : "";
    this.#retry.schedule();
    const buttons = [["Try now", () => this.#retry.now()]];
    notify("network", `${error.message}${kept} Trying again by itself.`, { tone: "bad", buttons });
  }

  /** The server has an answer of its own to a label: kept late, or another one stands, or it has to be changed. */
  #notTaken(label, error) {
    tell(error.message, error.kept ? "info" : "bad");
    if (error.status !== 409) this.#last = label; // too long, for example: its words go back into the fields
  }

  #tellRefused() {
    const { length } = this.#outbox.refused;
    if (!length) return dismiss("refused");
    const again = () => {
      this.#outbox.retryRefused();
      this.#advance();
    };
    const discard = () => {
      this.#outbox.discardRefused();
      dismiss("refused");
    };
    const words = `${count(length, "answer")} given on another task at this address could not be sent; kept in this browser.`;
    return notify("refused", words, { buttons: [["Try again", again], ["Discard", discard]] });
  }

  #show(offer) {
    if (!this.#open) return; // somebody went to another view meanwhile
    const same = this.#phase === "nothing" && !offer.item && this.#shown?.reason === offer.reason;
    this.#shown = offer;
    showProgress(offer.progress);
    if (offer.item) this.#showItem();
    else {
      this.#phase = "nothing";
      this.#lease.stop();
      if (!same) {
        showNothing(offer.reason);
        showMoves(this.offered, (name) => this.act(name));
        dismiss("lease");
      }
      if (offer.reason in POLL_S) this.#poll = setTimeout(() => this.#advance(), POLL_S[offer.reason] * 1000);
    }
  }

  #showItem() {
    const { item, progress } = this.#shown;
    const before = this.#last?.item === item.id ? this.#last : {};
    this.#draft = new Draft(item, this.#task, before);
    this.#marked = false;
    this.#phase = "item";
    byId("main").replaceChildren(
      conversation(item.messages),
      buttons(this.offered.tools, (name) => this.act(name), "tools", "Tools"),
      h("div", { id: "responses" }, this.#responses()),
      this.#draft.panel(),
    );
    for (const name of ["write", "reason"]) this.#pressed(name, byId(`field-${name}`)?.hidden === false);
    showAnswers(this.offered, this.#task.mode, (name) => this.act(name));
    this.#watch.restart();
    this.#startLease(item.lease_expires);
    document.title = "Judge · Rondo";
    window.scrollTo(0, 0);
    byId("item").focus({ preventScroll: true });
    announce(`New item. ${count(progress.remaining, "item")} remaining.`);
  }

  #responses() {
    const { left, right, response: only } = this.#shown.item;
    if (only === undefined) return pair(left, right, this.#marked);
    return h("div", { class: "responses single" }, response(only));
  }

  #startLease(expires) {
    dismiss("lease");
    const ending = () => notify("lease", "Less than a minute is left for this item; then it may go to somebody else.");
    const ended = () =>
      notify("lease", "The time for this item is over. Your answer still counts unless others have answered meanwhile.", {
        buttons: [["Take the next one", () => this.#advance()]],
      });
    this.#lease.start(expires - this.#api.now(), ending, ended);
  }

  #askStrength(side) {
    this.#phase = "strength";
    this.#side = side;
    showStrengths(side, (name) => this.act(name));
  }

  #answerStrength(name) {
    if (name !== "back") return this.#label(this.#side, name === "none" ? null : Number(name));
    this.#phase = "item";
    showAnswers(this.offered, this.#task.mode, (chosen) => this.act(chosen));
    byId("item").focus({ preventScroll: true });
    return undefined;
  }

  #label(verdict, strength = null) {
    const label = { item: this.#shown.item.id, verdict, ...this.#draft.values, seconds: this.#watch.seconds };
    if (strength) label.strength = strength;
    this.#outbox.add(label);
    this.#draft.forget();
    this.#last = label;
    this.#busy(strength ? String(strength) : verdict);
    dismiss("message");
    return this.#advance();
  }

  #busy(chosen) {
    this.#phase = "busy";
    this.#lease.stop();
    dismiss("lease");
    lock(true, chosen);
  }

  #unlock() {
    this.#phase = this.#shown.item ? "item" : "nothing";
    lock(false);
  }

  /** Something that is not kept for later: done now, or said that it was not. */
  async #try(name, request) {
    this.#busy(name);
    dismiss("message");
    try {
      await request();
    } catch (error) {
      this.#unlock();
      if (error.passing) tell(`${error.message} Nothing was changed; try again.`, "bad");
      else this.#failed(error);
    }
  }

  #skip() {
    return this.#try("skip", async () => {
      await this.#api.post("skip", { item: this.#shown.item.id });
      await this.#advance();
    });
  }

  #undo() {
    if (!["item", "nothing"].includes(this.#phase)) return undefined;
    clearTimeout(this.#poll);
    this.#draft?.save();
    return this.#try("undo", async () => {
      this.#show(await this.#api.post("undo"));
      tell("Your last answer was taken back. Answer anew.");
    });
  }

  async #report() {
    const { id } = this.#shown.item;
    const reason = await askForReport();
    // The dialog tells of its end a moment later: by then the next question may be open, and have the focus.
    if (this.#phase === "item") byId("item")?.focus({ preventScroll: true });
    if (!reason) return;
    try {
      await this.#api.post("report", { item: id, reason });
      tell("Reported, thank you. You can still answer this item, or skip it.");
    } catch (error) {
      if (error.passing) tell(`${error.message} The report was not sent; try again.`, "bad");
      else this.#failed(error);
    }
  }

  #toggleDifferences() {
    this.#marked = !this.#marked;
    byId("responses").replaceChildren(this.#responses());
    this.#pressed("differences", this.#marked);
  }

  #pressed(name, on) {
    document.querySelector(`.tools [data-action=${name}]`)?.setAttribute("aria-pressed", String(on));
  }
}
