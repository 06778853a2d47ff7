// The console's one loop: ask the server, draw, and say so when it doesn't answer.

import { openCard } from "./card.js";
import { ask, forgetQuestion, restoreQuestion, resumeQuestion, rollbackQuestion, suspendQuestion } from "./dialogs.js";
import { at, say, show } from "./dom.js";
import { clock, span } from "./format.js";
import { drawErasures, drawEvidence, drawJobs, drawNow, drawReleases, drawReplicas, drawRunning, drawTraffic } from "./panels.js";
import { Problem, Server } from "./server.js";
import { Traffic } from "./traffic.js";

const TOKEN = "lethe-operator-token";
const EVERY_MS = 2_000;
const LONGEST_MS = 30_000;

/** One open console: from a token that the server took until it is locked again. */
class Console {
  #server;
  #traffic = new Traffic();
  #status = null;
  #live = null;
  #found = null;
  #releases = null;
  #drawnSeq = null;
  #failures = 0;
  #lost = null;
  #answered = { all: new Date(), some: new Date() };
  #next = 0;
  #timer = null;
  #looking = false;
  #ended = false;

  constructor(server, status) {
    this.#server = server;
    this.#status = status;
  }

  open() {
    drawNow(this.#status);
    for (const name of ["forget", "suspend", "resume"]) at(name).onclick = () => this.#act(name);
    at("again").onclick = () => this.look();
    document.onvisibilitychange = () => {
      if (!document.hidden) this.look();
    };
    this.#timer = setInterval(() => this.#tick(), 250);
    this.look();
  }

  end() {
    this.#ended = true;
    clearInterval(this.#timer);
    document.onvisibilitychange = null;
  }

  #tick() {
    if (!document.hidden && !this.#looking && performance.now() >= this.#next) this.look();
    this.#sayContact();
  }

  /** Ask for everything that may have changed, and draw it. */
  async look() {
    if (this.#looking) return;
    this.#looking = true;
    const [status, live] = await Promise.allSettled([this.#server.get("status"), this.#server.get("live")]);
    const problems = [status, live].filter((one) => one.status === "rejected").map((one) => one.reason);
    if (status.status === "fulfilled") this.#status = status.value;
    this.#live = live.status === "fulfilled" ? live.value : null;
    if (this.#live) this.#traffic.add(this.#live.replicas, performance.now() / 1000);
    if (status.status === "fulfilled" && this.#drawnSeq !== this.#status.registry_seq) {
      const problem = await this.#readRegistry(this.#status.registry_seq);
      if (problem) problems.push(problem);
    }
    this.#looking = false;
    if (this.#ended) return;
    const refused = problems.find((problem) => problem.status === 401);
    if (refused) return lock("The server doesn’t take this token any more.");
    this.#note(problems, status.status === "fulfilled");
    this.#draw();
  }

  /** Read what changes only when the ledger grows. */
  async #readRegistry(seq) {
    try {
      const [found, releases] = await Promise.all([this.#server.get("erasures"), this.#server.get("releases")]);
      this.#found = found;
      this.#releases = releases.releases;
      this.#drawnSeq = seq;
      return null;
    } catch (problem) {
      return problem;
    }
  }

  /** Remember what is missing since when, and ask the less often the longer it is. */
  #note(problems, partly) {
    const unexpected = problems.find((problem) => !(problem instanceof Problem));
    if (unexpected) throw unexpected;
    const now = new Date();
    if (partly) this.#answered.some = now;
    if (problems.length === 0) {
      this.#failures = 0;
      this.#lost = null;
      this.#answered.all = now;
    } else {
      this.#failures += 1;
      const told = problems.find((problem) => problem.status !== 0);
      this.#lost = { partly, words: told ? told.message : "" };
    }
    const wait = Math.min(EVERY_MS * 2 ** this.#failures, LONGEST_MS);
    this.#next = performance.now() + wait;
  }

  #draw() {
    const status = this.#status;
    drawNow(status);
    drawRunning(status);
    drawJobs(status);
    at("forget").disabled = this.#found === null;
    drawReplicas(status, this.#live);
    if (this.#live) {
      drawEvidence(status, this.#live);
      drawTraffic(this.#live, this.#traffic);
    }
    if (this.#found) {
      const act = (name, row) => this.#act(name, row);
      drawErasures(this.#found, this.#live?.commands ?? [], act);
      drawReleases(this.#releases, act);
    }
    this.#sayHalted();
    this.#sayContact();
  }

  #sayHalted() {
    const { suspended } = this.#status;
    const sealed = this.#found?.sealed ?? false;
    const commands = this.#live?.commands;
    if (commands) {
      // The button that had the focus may be the one that goes.
      const held = [at("suspend"), at("resume")].includes(document.activeElement);
      show(at("suspend"), commands.includes("suspend") && !suspended);
      show(at("resume"), commands.includes("resume") && suspended);
      if (held) at(suspended ? "resume" : "suspend").focus();
    }
    say(at("halted"), suspended ? "Serving is suspended: no prediction is answered until somebody resumes." : sealed ? "This registry is sealed: its weights were folded into a new backbone, and no release follows." : "");
    show(at("halted"), suspended || sealed);
  }

  #sayContact() {
    const lost = this.#lost;
    at("contact").classList.toggle("lost", lost !== null);
    at("main").classList.toggle("stale", lost !== null && !lost.partly);
    at("main").classList.toggle("blind", lost !== null && lost.partly);
    show(at("cutoff"), lost !== null);
    if (lost === null) {
      say(at("cutoff-words"), "");
      at("contact").title = `${this.#answered.all.toISOString().slice(0, 19).replace("T", " ")} UTC`;
      return say(at("contact"), `Live, ${clock(this.#answered.all)}`);
    }
    say(at("contact"), lost.partly ? "Cut off in part" : "Cut off");
    const since = lost.partly
      ? `Not everything is answered since ${clock(this.#answered.all)}: live numbers and lists may be of then.`
      : `No answer since ${clock(this.#answered.some)}: this page is blind, what it shows is of then.`;
    say(at("cutoff-words"), `${since} ${lost.words}`.trim());
    const wait = (this.#next - performance.now()) / 1000;
    say(at("cutoff-next"), this.#looking || wait <= 0 ? "Asking…" : `Next try in ${span(Math.ceil(wait))}.`);
  }

  async #act(name, row) {
    const send = (path, body, key) => this.#server.command(path, body, key);
    const done = (words) => {
      say(at("notice"), words);
      this.look();
    };
    if (name === "forget") ask(forgetQuestion(this.#found?.retained ?? []), send, done);
    if (name === "rollback") ask(rollbackQuestion(row, this.#status.under_erasure), send, done);
    if (name === "suspend") ask(suspendQuestion(), send, done);
    if (name === "resume") ask(resumeQuestion(this.#status), send, done);
    if (name === "restore") ask(restoreQuestion(row), send, done);
    if (name === "card") {
      try {
        openCard(await this.#server.get(`audit/${encodeURIComponent(row.subject)}`));
      } catch (problem) {
        if (!(problem instanceof Problem)) throw problem;
        say(at("notice"), problem.message);
      }
    }
  }
}

/** Parts that show what needed the token, as they were before anything was drawn. */
const PARTS = ["main", "ask", "card"];
const blank = new Map(PARTS.map((id) => [id, at(id).cloneNode(true)]));
let open = null;

/** Open the console with a token. Raises `Problem` when the server doesn't take it or is away. */
async function unlock(token) {
  const server = new Server(token);
  const status = await server.get("status");
  sessionStorage.setItem(TOKEN, token);
  show(at("locked"), false);
  for (const id of ["main", "lock", "contact"]) show(at(id), true);
  open = new Console(server, status);
  open.open();
}

/** Forget the token and everything that was shown, and ask for it again. */
function lock(why = "") {
  sessionStorage.removeItem(TOKEN);
  open?.end();
  open = null;
  for (const id of PARTS) at(id).replaceWith(blank.get(id).cloneNode(true));
  document.title = "Lethe console";
  for (const id of ["main", "lock", "contact"]) show(at(id), false);
  say(at("unlock-problem"), why);
  show(at("locked"), true);
  show(at("insecure"), !window.isSecureContext);
  at("token").value = "";
  at("token").focus();
}

async function given(event) {
  event.preventDefault();
  const token = at("token").value.trim();
  say(at("unlock-problem"), "");
  if (!/^[!-~]+$/.test(token)) return lock("That is not a token: it is one word of letters, digits and signs.");
  try {
    await unlock(token);
    at("token").value = "";
    at("headline").focus();
  } catch (problem) {
    lock(refusal(problem));
  }
  return undefined;
}

/** Go on with the token of this tab; a server that is away is waited for. */
async function resume(token) {
  for (let wait = EVERY_MS; ; wait = Math.min(wait * 2, LONGEST_MS)) {
    try {
      return await unlock(token);
    } catch (problem) {
      const words = refusal(problem);
      if (problem.status === 401) return lock(words);
      show(at("contact"), true);
      at("contact").classList.add("lost");
      say(at("contact"), `Cut off: ${words} Next try in ${span(wait / 1000)}.`);
      await new Promise((passed) => setTimeout(passed, wait));
    }
  }
}

function refusal(problem) {
  if (!(problem instanceof Problem)) throw problem;
  return problem.status === 401 ? "The server doesn’t take this token." : problem.message;
}

function start() {
  say(at("host"), location.host);
  at("lock").onclick = () => lock();
  at("unlock").onsubmit = given;
  const kept = sessionStorage.getItem(TOKEN);
  if (kept === null) lock();
  else resume(kept);
}

start();
