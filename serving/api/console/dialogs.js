// The questions before a command: each says what the command does, and sends it.

import { at, clear, el, say, show } from "./dom.js";
import { count, names, several } from "./format.js";
import { Problem, randomKey } from "./server.js";

const SHOWN_CLASSES = 200;

/** Open a modal dialog; where its opener is gone when it closes, the headline gets the focus. */
export function openDialog(dialog, first) {
  dialog.onkeydown = (event) => keepInside(dialog, event);
  dialog.onclose = () => {
    if (document.activeElement === null || document.activeElement === document.body) at("headline").focus();
  };
  dialog.showModal();
  first.focus();
}

/** Tab goes round inside the dialog; the browser alone would let it out to its own bars. */
function keepInside(dialog, event) {
  if (event.key !== "Tab") return;
  const stops = [...dialog.querySelectorAll("button, input, summary")].filter((n) => !n.disabled && n.checkVisibility());
  const [first, last] = [stops[0], stops.at(-1)];
  const here = document.activeElement;
  if (event.shiftKey && (here === first || !stops.includes(here))) {
    event.preventDefault();
    last.focus();
  } else if (!event.shiftKey && here === last) {
    event.preventDefault();
    first.focus();
  }
}

/** Ask, and send the command when it is confirmed.
 *
 * `question`: {title, what: [sentences], go: words on the button, path, body(reason), told(answer)},
 * and where they apply `needed` (a reason is), `classes` (names to choose from).
 * `send(path, body, key)` carries it out; `done(words)` is told how it ended.
 */
export function ask(question, send, done) {
  const dialog = at("ask");
  const chosen = new Set();
  let sent = null;

  say(at("ask-title"), question.title);
  at("ask-what").replaceChildren(...question.what.map((words) => el("p", {}, words)));
  say(at("ask-needed"), question.needed ? "(needed)" : "(optional)");
  at("ask-reason").required = Boolean(question.needed);
  at("ask-reason").value = "";
  say(at("ask-problem"), "");
  ready(question.go(chosen));
  show(at("pick"), Boolean(question.classes));
  if (question.classes) picker(question.classes, chosen, () => ready(question.go(chosen)));

  at("ask-cancel").onclick = () => dialog.close();
  // Enter in a field is not yet a command: the button is.
  for (const field of [at("ask-reason"), at("pick-find")]) {
    field.onkeydown = (event) => {
      if (event.key === "Enter") event.preventDefault();
    };
  }
  at("ask-form").onsubmit = async (event) => {
    event.preventDefault();
    const reason = at("ask-reason").value.trim();
    if (question.classes && chosen.size === 0) return refuse("Choose at least one class.", at("pick-find"));
    if (question.needed && reason === "") return refuse("A reason is needed.", at("ask-reason"));
    const body = question.body(reason, [...chosen]);
    // The same command again carries the same key, so that it is not carried out twice.
    const mark = JSON.stringify(body);
    if (sent?.mark !== mark) sent = { mark, key: randomKey() };
    working();
    say(at("ask-problem"), "");
    try {
      const answer = await send(question.path, body, sent.key);
      ready(question.go(chosen));
      dialog.close();
      done(question.told(answer));
    } catch (error) {
      ready(question.go(chosen));
      if (!(error instanceof Problem)) throw error;
      const words = error.status === 0
        ? `${error.message} Whether it was accepted is not known; sent again, it is the same command.`
        : error.message;
      // Who closed the dialog meanwhile is told all the same.
      if (dialog.open) refuse(words, at("ask-go"));
      else done(`${question.title}: ${words}`);
    }
  };
  openDialog(dialog, question.classes ? at("pick-find") : at("ask-reason"));
}

function refuse(words, field) {
  say(at("ask-problem"), words);
  field.focus();
}

function working() {
  hold(true);
  say(at("ask-go"), "Working…");
}

function ready(words) {
  hold(false);
  say(at("ask-go"), words);
}

/** While a command is under way nothing of it can be changed or sent again. */
function hold(held) {
  for (const id of ["pick", "ask-reason", "ask-go"]) at(id).disabled = held;
}

function picker(classes, chosen, changed) {
  const find = at("pick-find");
  const list = at("pick-list");
  const draw = () => {
    const wanted = find.value.trim().toLowerCase();
    const fitting = classes.filter((name) => name.toLowerCase().includes(wanted));
    clear(list);
    for (const name of fitting.slice(0, SHOWN_CLASSES)) {
      const box = el("input", { type: "checkbox" });
      box.checked = chosen.has(name);
      box.onchange = () => {
        if (box.checked) chosen.add(name);
        else chosen.delete(name);
        tell();
      };
      list.append(el("label", {}, box, name));
    }
    const left = fitting.length - SHOWN_CLASSES;
    say(at("pick-more"), fitting.length === 0 ? "No class is named so." : left > 0 ? `${count(left)} more; type to narrow it down.` : "");
  };
  const tell = () => {
    say(at("pick-chosen"), chosen.size ? `Chosen: ${names([...chosen], 12)}` : "");
    changed();
  };
  find.value = "";
  find.oninput = draw;
  draw();
  tell();
}

// -- the commands

export function forgetQuestion(retained) {
  return {
    title: "Forget classes",
    what: [
      "At once: the classes are masked on every replica, and the answer comes when the last one has confirmed. No request fails because of it.",
      "Then: the trainer learns an adapter that takes them out of the weights, measures it on held-out images, and it is served if it passes every gate. If it doesn’t, the mask stays.",
      "The request stands in the ledger for good. A rollback doesn’t undo it.",
    ],
    classes: retained,
    go: (chosen) => (chosen.size ? `Forget ${several(chosen.size, "class", "classes")}` : "Forget"),
    path: "forget",
    body: (reason, classes) => ({ classes, reason }),
    told: (job) => {
      const guard = job.guard;
      const masked = guard
        ? ` and masked on ${several(Object.keys(guard.replicas).length, "replica")} by release ${guard.release}`
        : "";
      return `${job.job} accepted: ${names(job.classes)} to be forgotten${masked}. Training follows.`;
    },
  };
}

export function rollbackQuestion(row, underErasure) {
  const weights = row.forgotten.length ? `They have forgotten: ${names(row.forgotten)}.` : "They have forgotten no class.";
  return {
    title: `Roll back to release ${row.release}`,
    what: [
      `A new release serves the weights of release ${row.release} again. ${weights}`,
      underErasure.length
        ? `Nobody is brought back: what is under erasure stays masked (${names(underErasure)}).`
        : "No class is under erasure, so nothing is masked.",
      "No request fails because of it. You can roll forward again in the same way.",
    ],
    go: () => `Roll back to ${row.release}`,
    path: "rollback",
    body: (reason) => ({ release: row.release, reason }),
    told: (ack) =>
      `Release ${ack.release} serves what release ${ack.rolled_back_to} had, on ${several(Object.keys(ack.replicas).length, "replica")}; still masked: ${names(ack.still_masked)}.`,
  };
}

export function restoreQuestion(row) {
  return {
    title: `Restore ${row.class}`,
    what: [
      `This ends the erasure of ${row.class}: the model will recognise it again.`,
      "The mask is lifted on every replica. Where the weights have forgotten it, they are replaced by weights that have not; classes that were forgotten together with it or later stay masked, and are trained again.",
      "Only do this when the request to erase was withdrawn or was wrong. The ledger keeps both, the erasure and its end.",
    ],
    needed: true,
    go: () => `Restore ${row.class}`,
    path: "restore",
    body: (reason) => ({ subject: row.subject, reason }),
    told: (ack) => {
      const again = ack.trained_again.length ? `; to be trained again: ${names(ack.trained_again)}` : "";
      return `${ack.class} is restored by release ${ack.release}${again}; still masked: ${names(ack.still_masked)}.`;
    },
  };
}

export function suspendQuestion() {
  return {
    title: "Suspend serving",
    what: [
      "Every prediction is refused (503) on every replica, from the moment that this is answered until somebody resumes. Callers are told so.",
      "Nothing else changes: what is masked stays masked, forget commands are accepted and masked, training waits. A restart doesn’t end it.",
      "Do this when answers must not leave the server; it is the emergency stop.",
    ],
    needed: true,
    go: () => "Suspend serving",
    path: "suspend",
    body: (reason) => ({ reason }),
    told: (halt) => `Nothing is answered any more: ${several(Object.keys(halt.replicas).length, "replica")} went silent.`,
  };
}

export function resumeQuestion(status) {
  return {
    title: "Resume serving",
    what: [
      `Replicas answer again, with release ${status.release}. Under erasure, and masked: ${names(status.under_erasure)}.`,
      "Only do this when the reason for the suspension is gone.",
    ],
    needed: true,
    go: () => "Resume serving",
    path: "resume",
    body: (reason) => ({ reason }),
    told: (answer) => `${several(answer.replicas.length, "replica")} answer again.`,
  };
}
