// What the numbers mean, in words. An absent alarm is called quiet only where an alarm was
// possible; everything else is said to be blind.

import { count, names, percent, several } from "./format.js";

export const BLINDNESS = {
  off: "The monitor is off: no request is compared, so no leak can be seen.",
  ended: "Shadowing has ended by itself and no canary class is probed, so no leak can be seen.",
  no_probes: "Only probes of canary classes could see a leak, and no forgotten one is probed.",
  no_matches: "Nothing that was forgotten was seen for a long time: none leaked, and none could have.",
  no_numbers: "The monitor has no numbers from any replica.",
};

/** How leaks are watched for, in one sentence. */
export function watchingWords(live) {
  const { watching } = live;
  if (watching === null) return "Nobody watches: the monitor has no numbers.";
  const ways = {
    shadow: `Watched by shadowing ${percent(live.share, 0)} of the requests`,
    canary: "Watched by probes of canary classes alone",
    off: "Not watched",
  };
  const until = watching.shadow_until;
  const day = until === null ? "" : new Date(until * 1000).toISOString().slice(0, 10);
  const end = until === null ? "" : watching.posture === "shadow" ? `, until ${day}` : `; shadowing ended ${day}`;
  return `${ways[watching.posture]}${end}.`;
}

/** Probes of canary classes: {word, words, tone}. */
export function canaryVerdict(live) {
  const { watching, canary } = live;
  const gone = `${count(watching.canary_classes_forgotten)} of ${several(watching.canary_classes, "canary class", "canary classes")} forgotten.`;
  if (watching.probes.exposed > 0) {
    return { word: "Exposed", tone: "bad", words: "An answer named a canary class that is masked; see CanaryExposed in the runbook." };
  }
  if (canary !== null && canary.evidence_log10 >= canary.proof_log10) {
    return { word: "Proven", tone: "bad", words: `The weights still name a canary class. ${gone}` };
  }
  if (canary !== null && canary.detector_log10 >= canary.suspicion_log10) {
    return { word: "Suspected", tone: "warn", words: "Something changed after a quiet time. Not proof yet." };
  }
  if (watching.canary_classes_forgotten === 0) return blind(`${gone} Forget them: only then is a probe a trial.`);
  if (canary === null || canary.matches === 0) return blind(`${gone} No probe was answered with the active weights yet.`);
  return { word: "Quiet", tone: "", words: `${gone} At most ${percent(canary.upper_bound)} of their probes leak, with 95 % certainty.` };
}

/** Leaks in live traffic: {word, words, tone}. `status` and `live` as the server gave them. */
export function leakVerdict(status, live) {
  const { leak } = live;
  if (leak === null) return blind(BLINDNESS.no_numbers);
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
  const { watching } = live;
  if (watching !== null && watching.posture !== "shadow") {
    if (watching.posture === "canary") return blind("Live traffic is not compared: shadowing is off. What is probed is beside this.");
    return blind(BLINDNESS[watching.blind] ?? BLINDNESS.off);
  }
  if (live.share === 0) return blind("monitor.share is 0: no request is compared, so no leak can be seen.");
  if (watching?.blind) return blind(BLINDNESS[watching.blind] ?? watching.blind);
  if (leak.matches === 0) {
    return blind("No sampled request has shown a forgotten class yet: none leaked, and none could have.");
  }
  const few = leak.upper_bound > leak.target ? `; to show the target of ${percent(leak.target)}, more matches are needed` : "";
  return { word: "Quiet", tone: "", words: `At most ${percent(leak.upper_bound)} of such requests leak, with 95 % certainty${few}.` };
}

/** Agreement on retained classes: {word, words, tone}. */
export function retainedVerdict(live) {
  const { drift } = live;
  if (live.share === 0) return blind("Shadowing is off: nothing is compared.");
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
  const edited = status.edited_only ?? [];
  const masked = status.masked_only;
  const parts = [
    learned.length ? `Forgotten by the weights: ${names(learned)}` : "The weights have forgotten nothing",
    edited.length ? `by a feature edit only: ${names(edited)}` : null,
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
