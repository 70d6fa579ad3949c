// The server's HTTP API: JSON over same-origin requests, the session in a cookie that this code cannot read.

const TIMEOUT_MS = 15_000;

/** What went wrong with a request, in a sentence for the person. `status` 0: the server was not reached. */
export class ApiError extends Error {
  constructor(status, message, kept = false) {
    super(message.charAt(0).toUpperCase() + message.slice(1).replace(/(?<![.!?])$/, "."));
    this.status = status;
    this.kept = kept; // the label was stored all the same
  }

  /** Whether the same request may succeed later without anybody changing it. */
  get passing() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }
}

export class Api {
  #session = { annotator: null, csrf: "" };
  #behind = 0; // how many milliseconds this machine's clock is behind the server's

  /** Exchange a one-time code for a session: `{annotator, role, csrf}`. */
  async open(code) {
    return this.#remember(await this.#send("POST", "api/session", { code }));
  }

  /** The session of this browser; ApiError 401 where there is none. */
  async session() {
    return this.#remember(await this.#send("GET", "api/session"));
  }

  get(path) {
    return this.#send("GET", `api/${path}`);
  }

  /** A token refused is renewed once: another tab may have opened a session meanwhile. */
  async post(path, body = {}) {
    try {
      return await this.#send("POST", `api/${path}`, body);
    } catch (error) {
      if (error.status !== 403) throw error;
      const { annotator } = this.#session;
      if ((await this.session()).annotator !== annotator) {
        throw new ApiError(401, "Somebody else has signed in with this browser.");
      }
      return this.#send("POST", `api/${path}`, body);
    }
  }

  /** Seconds since the epoch by the server's clock. */
  now() {
    return (Date.now() + this.#behind) / 1000;
  }

  #remember(session) {
    this.#session = session;
    return session;
  }

  async #send(method, path, body) {
    const headers = { Accept: "application/json" };
    if (body) headers["Content-Type"] = "application/json";
    if (body) headers["X-CSRF-Token"] = this.#session.csrf;
    let response;
    let text;
    try {
      response = await fetch(path, {
        method,
        headers,
        body: body && JSON.stringify(body),
        credentials: "same-origin",
        cache: "no-store",
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      text = await response.text();
    } catch {
      throw new ApiError(0, "The server cannot be reached.");
    }
    const date = Date.parse(response.headers.get("Date") ?? "");
    if (date) this.#behind = date - Date.now();
    let answer = {};
    try {
      if (text) answer = JSON.parse(text);
    } catch {
      throw new ApiError(502, "Something other than the annotation server answered.");
    }
    if (!response.ok) {
      throw new ApiError(response.status, answer.error ?? `The server answered ${response.status}`, answer.kept === true);
    }
    return answer;
  }
}
