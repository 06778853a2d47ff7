// The server, as the operator's token lets us see it.

const ANSWER_MS = 10_000;
const COMMAND_MS = 90_000;

/** Why there is no answer that can be used. `status` 0: no answer at all. */
export class Problem extends Error {
  constructor(status, detail, advice = "") {
    super(advice ? `${detail} ${advice}` : detail);
    this.status = status;
  }
}

export class Server {
  #token;
  #base = new URL("v1/", document.baseURI);

  constructor(token) {
    this.#token = token;
  }

  get(path) {
    return this.#ask(path, {}, ANSWER_MS);
  }

  /** Send a command. The same `key` again is the same command: it is never carried out twice. */
  command(path, body, key) {
    const headers = { "Content-Type": "application/json", "Idempotency-Key": key };
    return this.#ask(path, { method: "POST", body: JSON.stringify(body), headers }, COMMAND_MS);
  }

  async #ask(path, request, limit) {
    const headers = { ...request.headers, Authorization: `Bearer ${this.#token}` };
    let response;
    let body;
    try {
      response = await fetch(new URL(path, this.#base), {
        ...request,
        headers,
        cache: "no-store",
        credentials: "omit",
        signal: AbortSignal.timeout(limit),
      });
      body = await response.json();
    } catch (error) {
      if (response && !(error instanceof DOMException)) {
        throw new Problem(response.status, `The server answered ${response.status}, and not as Lethe does.`);
      }
      throw new Problem(0, "The server gave no answer.");
    }
    if (!response.ok) {
      throw new Problem(response.status, body.detail ?? `The server answered ${response.status}.`, body.advice);
    }
    return body;
  }
}

/** A key of 128 random bits. */
export function randomKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
