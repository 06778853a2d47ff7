// Rates out of counters: what happened between two looks at the server.

const KEPT = 150;
/** Outcomes that are the server's doing. */
const FAILED = ["not_current", "late", "error"];
/** Seconds over which rates and latencies are taken. */
export const WINDOW_S = 30;

export class Traffic {
  #looks = [];

  /** Remember a look. `at`: seconds on a clock that doesn't jump. */
  add(replicas, at) {
    this.#looks.push({ replicas, at });
    if (this.#looks.length > KEPT) this.#looks.shift();
  }

  /** What the last `WINDOW_S` seconds say; null before the second look. */
  latest() {
    const now = this.#looks.at(-1);
    const before = this.#looks.find((look) => look !== now && now.at - look.at <= WINDOW_S);
    return now && before ? between(before, now) : null;
  }

  /** One value for each step between looks, oldest first. */
  steps() {
    return this.#looks.slice(1).map((look, place) => between(this.#looks[place], look));
  }
}

/** What replicas did from one look to the next. One that ended takes its counters along, and one
    that came brings its own: only what is in both looks is compared. */
export function between(before, now) {
  const seconds = now.at - before.at;
  const grown = { predictions: 0, failed: 0, samples: 0, dropped: 0 };
  const buckets = new Map();
  for (const [name, replica] of Object.entries(now.replicas)) {
    const old = before.replicas[name];
    if (!old) continue;
    for (const outcome of Object.keys(replica.predictions)) {
      const more = Math.max(replica.predictions[outcome] - old.predictions[outcome], 0);
      grown.predictions += more;
      if (FAILED.includes(outcome)) grown.failed += more;
    }
    grown.samples += Math.max(replica.samples - old.samples, 0);
    grown.dropped += Math.max(replica.dropped - old.dropped, 0);
    replica.latency.forEach(([edge, total], place) => {
      const held = buckets.get(edge) ?? 0;
      buckets.set(edge, held + Math.max(total - (old.latency[place]?.[1] ?? 0), 0));
    });
  }
  return {
    seconds,
    predictions: grown.predictions,
    rate: seconds > 0 ? grown.predictions / seconds : 0,
    failed: seconds > 0 ? grown.failed / seconds : 0,
    samples: grown.samples,
    dropped: grown.dropped,
    buckets: [...buckets],
  };
}

/** The latency (seconds) that a share `q` of the predictions kept, linear within a bucket: {at} or,
    beyond the last edge, {above}. Null without predictions. */
export function quantile(buckets, q) {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (total === 0) return null;
  const rank = q * total;
  let lower = 0;
  let below = 0;
  for (const [edge, upTo] of buckets) {
    if (upTo >= rank) {
      if (edge === null) return { above: lower };
      const inside = upTo - below;
      return { at: inside > 0 ? lower + ((rank - below) / inside) * (edge - lower) : edge };
    }
    lower = edge ?? lower;
    below = upTo;
  }
  return null;
}
