// Start: who is it, what is the task, which view. The one-time code leaves the address bar before anything else happens.

import { Api } from "./api.js";
import { buttons } from "./answers.js";
import { dialogs } from "./dialogs.js";
import { byId, count, h } from "./dom.js";
import { Judge } from "./judge.js";
import { listen, PAGE_ACTIONS, singleKeys } from "./keys.js";
import { dismiss, notify } from "./notices.js";
import { AgreementPage, Conflicts } from "./review.js";
import { showSignedOut } from "./screens.js";
import { Retry } from "./timing.js";

const api = new Api();
let views = {};
let open = {};
let view = null;
let code = takeCode();

/** The code of the link, taken out of the address bar and the history. */
function takeCode() {
  const fragment = location.hash.slice(1);
  if (!fragment || fragment.startsWith("/")) return null;
  history.replaceState(null, "", location.pathname + location.search);
  return fragment;
}

/** The session that the code opens, or the one this browser has already. */
async function signIn() {
  if (!code) return api.session();
  try {
    const session = await api.open(code);
    code = null;
    return session;
  } catch (error) {
    if (error.status !== 401) throw error;
    code = null; // used: by this browser, perhaps, which then has a session
    return api.session().catch((none) => {
      throw none.status === 401 ? error : none;
    });
  }
}

const retry = new Retry(() => start());

async function start() {
  try {
    const session = await signIn();
    const task = await api.get("task");
    retry.reset();
    dismiss("network");
    begin(session, task);
  } catch (error) {
    if (error.passing) {
      retry.schedule();
      const words = `${error.message} Trying again by itself.`;
      notify("network", words, { tone: "bad", buttons: [["Try now", () => retry.now()]] });
    } else signedOut(error.message);
  }
}

function begin(session, task) {
  const judge = new Judge(api, session, task, signedOut);
  const failed = (error) => (error.status === 401 ? signedOut(error.message) : showFailure(error));
  views = { judge };
  if (session.role === "reviewer") {
    views.conflicts = new Conflicts(api, task, failed);
    views.agreement = new AgreementPage(api, failed);
    byId("views").hidden = false;
  }
  open = dialogs(task, judge.offered);
  const leave = h("button", { type: "button", id: "leave", onclick: signOut }, "Leave");
  const who = h("span", { class: "who", dir: "auto" }, session.annotator);
  byId("page-tools").replaceChildren(who, buttons(PAGE_ACTIONS, act, "page", "Help"), leave);
  route();
}

function route() {
  const wanted = location.hash.slice(2);
  const next = Object.hasOwn(views, wanted) ? wanted : "judge";
  if (!views[next]) return;
  view?.leave();
  view = views[next];
  for (const link of byId("views").children) {
    if (link.hash === `#/${next}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  byId("main").dataset.view = next;
  view.enter();
}

function act(name) {
  if (open[name]) open[name]();
  else view?.act(name);
}

function showFailure(error) {
  notify("network", error.message, { tone: "bad", buttons: [["Try again", () => (dismiss("network"), route())]] });
}

async function signOut() {
  const { unsent } = views.judge;
  if (unsent && !window.confirm(`${count(unsent, "answer")} not sent yet. They stay in this browser until you return. Leave?`)) return;
  try {
    await api.post("session/close");
    signedOut("You have left. To go on, ask for a new link.");
  } catch (error) {
    if (error.passing) showFailure(error);
    else signedOut(error.message);
  }
}

/** No session: say why, and what becomes of answers that were not sent. */
function signedOut(message) {
  const unsent = views.judge?.unsent ?? 0;
  view?.leave();
  view = null;
  views = {};
  open = {};
  byId("views").hidden = true;
  byId("progress").hidden = true;
  byId("page-tools").replaceChildren();
  const kept = `${count(unsent, "answer")} kept in this browser, to be sent as soon as you open a new link here.`;
  const help = "A link works once, and a session lasts 12 hours. Whoever runs this task can make a new link: ";
  showSignedOut(message, ...(unsent ? [kept] : []), [help, h("code", {}, "rondo annotate --link NAME")]);
}

singleKeys.on = singleKeys.on; // the page's look follows the stored choice
listen(() => (view ? [...PAGE_ACTIONS, ...view.actions] : []), act);
window.addEventListener("hashchange", () => {
  const given = takeCode();
  if (!given) return route();
  code = given;
  view?.leave();
  view = null;
  return start();
});
start();
