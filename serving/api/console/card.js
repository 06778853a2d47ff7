// The audit card: the whole life of one erasure, to read, to print and to keep.

import { at, clear, el, say } from "./dom.js";
import { openDialog } from "./dialogs.js";
import { count, moment, percent } from "./format.js";
import { STANDINGS } from "./verdicts.js";

const FIGURES = {
  acc_f_weights: "Recognised by the weights alone (every feature edit taken out)",
  acc_f_before: "Recognised before (backbone)",
  acc_f_after: "Recognised after, as served (before the mask)",
  acc_o_weights: "Forgotten earlier, by the weights alone",
  acc_o_before: "Forgotten earlier, before",
  acc_o_after: "Forgotten earlier, as served",
  acc_r_before: "Retained, backbone",
  acc_r_previous: "Retained, release before",
  acc_r_after: "Retained, this release",
  near_before: "Near classes, backbone",
  near_after: "Near classes, this release",
  groups_kept: "Groups with an update",
  groups_total: "Groups of the backbone",
  adapter_bytes: "Adapter, bytes",
  seconds: "Training, seconds",
  steps: "Steps",
  method: "Method",
  passed: "All gates passed",
};

/** Open the card of `found`, as the server gave it. */
export function openCard(found) {
  say(at("card-title"), `Erasure of ${found.class}`);
  const body = at("card-body");
  clear(body);
  body.append(
    el("p", {}, el("strong", {}, `${STANDINGS[found.standing] ?? found.standing}.`)),
    terms([
      ["Subject", el("code", {}, found.subject)],
      ["Backbone", el("code", {}, found.backbone)],
      ["Ledger", el("span", {}, `${count(found.seq)} records, head `, el("code", {}, found.head))],
    ]),
    part("Milestones", terms(found.milestones.map(milestone))),
    ...found.adapters.map(adapter),
    records(found.records),
    el("p", { class: "dim small" }, "Made from the signed, hash-chained ledger; ", el("code", {}, "lethe verify"), " checks it on any copy."),
  );
  at("card-close").onclick = () => at("card").close();
  at("card-print").onclick = () => window.print();
  at("card-save").onclick = () => save(found);
  openDialog(at("card"), at("card-title"));
  at("card").scrollTop = 0;
}

function milestone(one) {
  const release = one.release === null ? "" : `, by release ${one.release}`;
  return [moment(one.at), `${one.name}${release} (record ${one.seq})`];
}

function adapter(one) {
  const known = Object.entries(FIGURES).filter(([name]) => name in one.figures);
  const pairs = known.map(([name, words]) => [words, figure(one.figures[name])]);
  return part(`Adapter of ${one.job}, measured on held-out images`, el(
    "div",
    {},
    terms(pairs, "figures"),
    el("p", { class: "small" }, el("code", {}, one.adapter)),
  ));
}

/** A share with its interval and count, or a plain value. */
function figure(value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return Number.isInteger(value) ? count(value) : value.toPrecision(4);
  if (value === null || typeof value !== "object") return String(value);
  const ends = [value.low, value.high];
  const interval = ends.every((end) => typeof end === "number") ? ` [${ends.map((end) => percent(end)).join(", ")}]` : "";
  const share = typeof value.value === "number" ? percent(value.value) : "–";
  return `${share}${interval}${value.n === undefined ? "" : ` of ${count(value.n)}`}`;
}

function records(list) {
  const details = el("details", {}, el("summary", {}, `Records (${count(list.length)})`));
  for (const record of list) {
    details.append(el(
      "div",
      { class: "record" },
      el("p", {}, el("strong", {}, `${record.seq} ${record.type}`), " ", moment(record.at), ` by ${record.actor}`),
      record.reason ? el("p", {}, `Reason: ${record.reason}`) : null,
      el("p", { class: "small" }, el("code", {}, record.digest), " signed with ", el("code", {}, record.key_id)),
    ));
  }
  return details;
}

function part(title, content) {
  return el("section", {}, el("h3", {}, title), content);
}

function terms(pairs, kind) {
  const list = el("dl", { class: kind });
  for (const [name, value] of pairs) list.append(el("dt", {}, name), el("dd", {}, value));
  return list;
}

function save(found) {
  const blob = new Blob([JSON.stringify(found, null, 2)], { type: "application/json" });
  const link = el("a", { href: URL.createObjectURL(blob), download: `erasure-${found.subject}.json` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
