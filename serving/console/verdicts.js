// What the numbers mean, in words. An absent alarm is called quiet only where an alarm was
// possible; everything else is said to be blind.

import { count, names, percent, several } from "./format.js";

/** Leaks: {word, words, tone}. `status` and `live` as the server gave them. */
export function leakVerdict(status, live) {
  const { leak } = live;
  if (live.share === 0) {
    return blind("Shadowing is off (monitor.share is 0): no request is compared, so no leak can be seen.");
  }
  if (leak === null) return blind("The monitor has no numbers from any replica.");
  if (leak.evidence_log10 >= leak.proof_log10) {
    return {
      word: "Proven",
      tone: "bad",
      words: `The weights still name a forgotten class more often than ${percent(leak.target)} of the time. The mask holds; see ForgottenClassRecognised in the runbook.`,
    };
  }
  if (leak.detector_log10 >= leak.suspicion_log10) {
    return { word: "Suspected", tone: "warn", words: "Something changed after a quiet time. Not proof yet; see LeakSuspected in the runbook." };
  }
  if (status.forgotten_by_weights.length === 0) {
    return { word: "Nothing to leak", tone: "", words: "The weights of the active release have forgotten no class." };
  }
  if (leak.matches === 0) {
    return blind("No sampled request has shown a forgotten class yet: none leaked, and none could have.");
  }
  const few = leak.upper_bound > leak.target ? `; to show the target of ${percent(leak.target)}, more matches are needed` : "";
  return { word: "Quiet", tone: "", words: `At most ${percent(leak.upper_bound)} of such requests leak, with 95 % certainty${few}.` };
}

/** Agreement on retained classes: {word, words, tone}. */
export function retainedVerdict(live) {
  const { drift } = live;
  if (live.share === 0) return blind("Shadowing is off (monitor.share is 0): nothing is compared.");
  if (drift === null) return blind("The monitor has no numbers from any replica.");
  if (drift.compared === 0) return blind("With the active weights, no sampled request was compared yet: send traffic, or raise monitor.share.");
  const word = `${percent(1 - drift.disagreements / drift.compared)} agree`;
  if (drift.evidence_log10 >= drift.proof_log10) {
    return { word, tone: "bad", words: `Proven: more than ${percent(drift.target)} of what is retained is named otherwise than by the backbone. See CollateralDrift in the runbook.` };
  }
  return { word, tone: "", words: "of sampled requests are named as the unadapted backbone names them." };
}

/** The headline and the sentence below it. */
export function headline(status) {
  const number = status.release;
  const where = status.suspended
    ? "is active; serving is suspended"
    : status.acknowledged
      ? "serves on every replica"
      : "is active, not on every replica yet";
  const title = number === 0 ? `The bare backbone ${where}` : `Release ${number} ${where}`;
  const learned = status.forgotten_by_weights;
  const masked = status.masked_only;
  const parts = [
    learned.length ? `Forgotten by the weights: ${names(learned)}` : "The weights have forgotten nothing",
    masked.length ? `masked only: ${names(masked)}` : null,
    `${several(status.classes, "class", "classes")} in all`,
  ];
  return { title, words: `${parts.filter(Boolean).join("; ")}.` };
}

/** A replica's state in words; `heard` is its row of the live numbers, if any. */
export function replicaState(member, heard, suspended) {
  if (suspended) return { words: "suspended", tone: "warn" };
  if (member === undefined) return { words: "not a member", tone: "warn" };
  if (member.behind) return { words: "behind", tone: "bad" };
  if (heard === undefined) return { words: "no numbers", tone: "warn" };
  if (heard.lease_s <= 0) return { words: "no lease, answers 503", tone: "bad" };
  return { words: "serving", tone: "" };
}

export const STANDINGS = {
  requested: "Requested; not masked on every replica yet",
  masked: "Masked; the weights still know it",
  forgotten: "Forgotten by the weights, and masked",
  restored: "Restored: the erasure was ended",
  sealed: "Forgotten; folded into a new backbone",
};

export function standingWords(row) {
  return row.standing === "restored" && row.concealed
    ? "Restored; concealed until the next release"
    : (STANDINGS[row.standing] ?? row.standing);
}

export function sampledWords(live) {
  const replicas = Object.values(live.replicas);
  const samples = replicas.reduce((sum, one) => sum + one.samples, 0);
  const dropped = replicas.reduce((sum, one) => sum + one.dropped, 0);
  return dropped ? `${count(samples)}, ${count(dropped)} more dropped` : count(samples);
}

function blind(words) {
  return { word: "Blind", tone: "warn", words };
}
