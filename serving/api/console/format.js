// Numbers and times as words.

const two = (n) => String(n).padStart(2, "0");
const thin = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (n) => thin.format(n);

export function percent(share, digits = 1) {
  return `${(share * 100).toFixed(digits)} %`;
}

/** A rate per second: 0, 0.4, 12.3, 1,240. */
export function rate(n) {
  return n > 0 && n < 100 ? n.toFixed(1) : count(n);
}

export function ms(seconds) {
  const value = seconds * 1000;
  return value < 10 ? `${value.toFixed(1)} ms` : `${count(value)} ms`;
}

export const signed = (n) => `${n < 0 ? "−" : "+"}${Math.abs(n).toFixed(2)}`;

export function several(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

/** Names in a row; of many, the first ones and how many there are. */
export function names(list, limit = 8) {
  if (list.length === 0) return "none";
  const shown = list.slice(0, limit).join(", ");
  return list.length > limit ? `${shown}, … ${count(list.length)} in all` : shown;
}

export function clock(date) {
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

/** A `<time>` in the viewer's zone, with UTC in its title. */
export function moment(text) {
  if (!text) return "";
  const date = new Date(text);
  if (Number.isNaN(date.getTime())) return text;
  const node = document.createElement("time");
  node.dateTime = date.toISOString();
  node.title = `${date.toISOString().slice(0, 19).replace("T", " ")} UTC`;
  node.textContent = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${clock(date)}`;
  return node;
}

/** How long: 4 s, 3 min, 2 h. */
export function span(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

/** The first half of a long id; the whole stands in the title. */
export function short(id) {
  const node = document.createElement("code");
  node.title = id;
  node.textContent = id.replace(/^sha256:/, "").slice(0, 12);
  return node;
}
