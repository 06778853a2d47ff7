// The panels: each takes what the server said and draws it.

import { at, children, el, figures, rows, say, show } from "./dom.js";
import { count, ms, moment, names, percent, rate, several, short, signed, span } from "./format.js";
import { quantile, WINDOW_S } from "./traffic.js";
import { canaryVerdict, headline, leakVerdict, replicaState, retainedVerdict, sampledWords, standingWords, watchingWords } from "./verdicts.js";

const FIRST_ROWS = 20;
const ENDED = ["done", "refused", "cancelled", "restored"];
const KINDS = { bare: "bare backbone", guard: "mask", adapter: "adapter", compaction: "compaction", rollback: "rollback" };

export function drawNow(status) {
  const { title, words } = headline(status);
  say(at("headline"), title);
  say(at("summary"), words);
  document.title = `Lethe: release ${status.release}`;
}

export function drawEvidence(status, live) {
  const { leak, drift } = live;
  verdict("leak", leakVerdict(status, live));
  figures(at("leak-figures"), leak === null ? [] : [
    ["Evidence", `${signed(leak.evidence_log10)} of ${leak.proof_log10}`],
    ["Change detector", `${signed(leak.detector_log10)} of ${leak.suspicion_log10}`],
    ["Upper bound (95 %)", percent(leak.upper_bound)],
    ["Target", percent(leak.target)],
    ["Leaks among matches", `${count(leak.leaks)} of ${count(leak.matches)}`],
  ]);
  say(at("watching"), watchingWords(live));
  drawCanaries(live);
  verdict("retained", retainedVerdict(live));
  figures(at("retained-figures"), drift === null ? [] : [
    ["Drift evidence", `${signed(drift.evidence_log10)} of ${drift.proof_log10}`],
    ["Target", `${percent(drift.target)} disagree`],
    ["Disagreements", `${count(drift.disagreements)} of ${count(drift.compared)}`],
    ["Sampled since start", sampledWords(live)],
    ["Replicas heard", `${live.heard} of ${live.expected}`],
  ]);
}

function drawCanaries(live) {
  const { watching, canary } = live;
  const probed = watching !== null && watching.canary_classes > 0;
  show(at("canary"), probed);
  at("tiles").classList.toggle("five", probed);
  if (!probed) return;
  verdict("canary", canaryVerdict(live));
  const { probes } = watching;
  const last = watching.last_probe;
  figures(at("canary-figures"), [
    ["Evidence", canary === null ? "–" : `${signed(canary.evidence_log10)} of ${canary.proof_log10}`],
    ["Leaks among probes", canary === null ? "–" : `${count(canary.leaks)} of ${count(canary.matches)}`],
    ["Named through the mask", count(probes.exposed)],
    ["Unanswered", count(probes.failed)],
    ["Last answer", last === null ? "never" : moment(new Date(last * 1000).toISOString())],
  ]);
}

export function drawTraffic(live, traffic) {
  const last = traffic.latest();
  const steps = traffic.steps();
  const busy = Object.values(live.replicas).reduce((sum, one) => sum + one.in_flight, 0);
  verdict("rate", last === null
    ? { word: "…", words: "Two looks are needed to tell.", tone: "" }
    : {
        word: `${rate(last.rate)} /s`,
        words: last.failed > 0 ? `${rate(last.failed)} /s of them failed.` : "predictions; none failed.",
        tone: last.failed > 0 ? "bad" : "",
      });
  line(at("rate-line"), steps.map((step) => step.rate));
  figures(at("rate-figures"), [
    ["In flight, all routes", count(busy)],
    ["Seen over", last === null ? "–" : span(Math.min(last.seconds, WINDOW_S))],
  ]);

  const half = last && quantile(last.buckets, 0.5);
  const slow = last && quantile(last.buckets, 0.95);
  const slowest = last && quantile(last.buckets, 0.99);
  verdict("latency", half
    ? { word: bound(half), words: "for half of the predictions, or less.", tone: "" }
    : { word: "–", words: `No predictions in the last ${WINDOW_S} s.`, tone: "" });
  line(at("latency-line"), steps.map((step) => {
    const found = quantile(step.buckets, 0.95);
    return found === null ? null : (found.at ?? found.above);
  }));
  figures(at("latency-figures"), [
    ["95 %", slow ? bound(slow) : "–"],
    ["99 %", slowest ? bound(slowest) : "–"],
  ]);
}

export function drawRunning(status) {
  const running = status.jobs.filter((job) => !ENDED.includes(job.state));
  show(at("running-empty"), running.length === 0);
  children(at("running"), running, (job) => job.job, (job) => [runningJob(job)]);
}

function runningJob(job) {
  const progress = job.progress;
  const stage = progress?.phase ?? job.state;
  const steps = progress?.steps ? `${count(progress.step)} of ${count(progress.steps)}` : "";
  const bar = progress?.steps
    ? el("progress", { max: progress.steps, value: progress.step, "aria-label": `${job.job}, ${stage}` })
    : el("progress", { "aria-label": `${job.job}, ${stage}` });
  const facts = [
    job.guard_release === null ? "not masked everywhere yet" : `masked since release ${job.guard_release}`,
    job.ahead ? `${several(job.ahead, "command")} ahead` : null,
    progress?.val_acc_f !== undefined ? `validation: forgotten ${percent(progress.val_acc_f, 0)}, retained ${percent(progress.val_acc_r, 0)} right` : null,
  ];
  return el(
    "div",
    {},
    el("p", { class: "job-head" }, el("span", {}, el("strong", {}, job.job), ` forgets ${names(job.classes)}`), el("span", {}, `${stage} ${steps}`)),
    job.ahead ? null : bar,
    el("p", { class: "dim small" }, facts.filter(Boolean).join("; ")),
    job.problem ? el("p", { class: "problem small" }, job.problem) : null,
  );
}

export function drawReplicas(status, live) {
  const heard = live?.replicas ?? {};
  const all = [...new Set([...Object.keys(status.replicas), ...Object.keys(heard)])].sort();
  const items = all.map((name) => {
    const member = status.replicas[name];
    const numbers = heard[name];
    return {
      name,
      release: member?.release ?? numbers?.release,
      lease: numbers ? numbers.lease_s.toFixed(1) : null,
      images: numbers?.images ?? null,
      // Without live numbers there is nothing to say of a lease.
      state: live ? replicaState(member, numbers, status.suspended) : { words: member?.behind ? "behind" : "", tone: "" },
    };
  });
  rows(at("replicas"), items, (item) => item.name, (item) => ({
    cells: [
      el("span", { class: "mono" }, item.name),
      String(item.release ?? "–"),
      item.lease === null ? "–" : `${item.lease} s`,
      item.images === null ? "–" : count(item.images),
      el("span", { class: item.state.tone }, item.state.words),
    ],
  }));
  show(at("replicas-empty"), all.length === 0);
}

const opened = new Set();

/** `act(name, row)` is called for a button that was pressed. */
export function drawErasures(found, commands, act) {
  const newest = [...found.erasures].reverse();
  const items = few("erasures", newest, () => drawErasures(found, commands, act)).map((row) => ({
    ...row,
    restorable: commands.includes("restore") && !["restored", "sealed"].includes(row.standing),
  }));
  rows(at("erasures"), items, (row) => row.subject, (row) => ({
    cells: [
      row.class,
      standingWords(row) + (row.held ? "; legal hold" : ""),
      moment(row.requested_at),
      row.job,
      short(row.subject),
      [
        button("card", "Audit card", `of ${row.class}`, () => act("card", row)),
        row.restorable ? button("restore", "Restore…", row.class, () => act("restore", row)) : "",
      ],
    ],
  }));
  show(at("erasures-empty"), newest.length === 0);
}

export function drawReleases(releases, act) {
  const newest = [...releases].reverse();
  rows(at("releases"), few("releases", newest, () => drawReleases(releases, act)), (row) => row.release, (row) => {
    const reachable = !row.active && (row.release === 0 || row.activated_at !== null);
    return {
      active: row.active,
      cells: [
        row.active ? `${row.release}, active` : String(row.release),
        (KINDS[row.kind] ?? row.kind) + (row.rolled_back_to === null ? "" : ` to ${row.rolled_back_to}`),
        names(row.forgotten),
        names(row.masked),
        row.activated_at === null && row.release > 0 ? "never" : moment(row.activated_at),
        row.confirmed_at === null && row.activated_at !== null ? "not yet" : moment(row.confirmed_at),
        row.swap_ms === null ? "" : `${count(row.swap_ms)} ms`,
        [reachable ? button("rollback", "Roll back…", `to release ${row.release}`, () => act("rollback", row)) : ""],
      ],
    };
  });
}

export function drawJobs(status) {
  const newest = [...status.jobs].reverse().map((job) => ({ ...job, progress: null }));
  rows(at("jobs"), newest, (job) => job.job, (job) => ({
    cells: [
      job.job,
      names(job.classes),
      job.refused ? el("span", { class: "warn" }, `${job.state}: ${job.refused}`) : job.state,
      job.release === null ? "" : String(job.release),
      moment(job.requested_at),
      moment(job.done_at),
    ],
  }));
  show(at("jobs-empty"), newest.length === 0);
}

/** The first rows, unless all were asked for. */
function few(name, items, again) {
  const more = at(`${name}-more`);
  const cut = items.length > FIRST_ROWS && !opened.has(name);
  show(more, cut);
  if (!cut) return items;
  say(more, `Show all ${count(items.length)}`);
  more.onclick = () => {
    opened.add(name);
    again();
    at(name).tabIndex = -1;
    at(name).focus();
  };
  return items.slice(0, FIRST_ROWS);
}

function button(act, words, what, pressed) {
  const made = el("button", { type: "button", class: "plain", "data-act": act, "aria-label": `${words.replace("…", "")} ${what}` }, words);
  made.addEventListener("click", pressed);
  return made;
}

function verdict(name, { word, words, tone }) {
  say(at(`${name}-verdict`), word);
  at(`${name}-verdict`).className = `verdict ${tone}`;
  say(at(`${name}-words`), words);
}

function bound(found) {
  return found.at === undefined ? `over ${ms(found.above)}` : ms(found.at);
}

/** A line of values, oldest left; null leaves a gap at the baseline. */
function line(svg, values) {
  const top = Math.max(...values.map((value) => value ?? 0), 1e-9);
  const step = 100 / Math.max(values.length - 1, 1);
  const points = values.map((value, place) => `${(place * step).toFixed(2)},${(26 - ((value ?? 0) / top) * 24).toFixed(2)}`);
  let drawn = svg.firstElementChild;
  if (drawn === null) {
    drawn = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    svg.append(drawn);
  }
  drawn.setAttribute("points", values.length > 1 ? points.join(" ") : "");
}
