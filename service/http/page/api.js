// Requests to the service. Paths are relative, so that the page works behind a proxy with a prefix.

const KEY_ITEM = "centernet-api-key";

export const STAGE_NAMES = {
  decode_queue: "Wait for decoding",
  prepare: "Decode and resize",
  queue: "Wait for a batch",
  infer: "Engine",
  postprocess: "Boxes",
};

export const delay = (ms) => new Promise((done) => setTimeout(done, ms));

/** An error response (RFC 9457), or a request that got none (status 0). */
export class ServiceError extends Error {
  constructor(problem) {
    super(problem.detail);
    this.problem = problem;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY_ITEM) ?? "",
  set: (value) => sessionStorage.setItem(KEY_ITEM, value),
};

/** Send a request and return its response; throws ServiceError, and AbortError if aborted. */
export async function send(path, { headers = {}, ...init } = {}) {
  if (key.get()) headers["X-API-Key"] = key.get();
  let response;
  try {
    response = await fetch(path, { ...init, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError({
      title: "No response",
      status: 0,
      detail: "The service cannot be reached, or the connection was closed. Check that it is running.",
      retryable: true,
    });
  }
  if (response.ok) return response;
  const isProblem = response.headers.get("Content-Type")?.startsWith("application/problem+json");
  const problem = isProblem ? await response.json() : {
    title: `HTTP status ${response.status}`,
    status: response.status,
    detail: "The response is not one of this service; it may come from a proxy in front of it.",
  };
  throw new ServiceError({ ...problem, retryAfter: response.headers.get("Retry-After") });
}

export const getJson = async (path) => (await send(path)).json();

/** Return the path of a detection request. */
export const detectPath = (model, query) =>
  `models/${encodeURIComponent(model)}/detect${query.size ? `?${query}` : ""}`;

/**
 * Detect in one image: `{ response, stages, batch, totalMs }`.
 *
 * The score threshold is 0 and top_k the model's maximum: the page applies thresholds and class
 * filters to the result, which gives what the service returns for them.
 */
export async function detect(model, image, options, signal) {
  const query = new URLSearchParams(options);
  query.set("score_threshold", "0");
  const began = performance.now();
  const http = await send(detectPath(model, query), {
    method: "POST",
    body: image,
    headers: { "Content-Type": image.type || "application/octet-stream" },
    signal,
  });
  const response = await http.json();
  return {
    response,
    stages: response.timing_ms,
    batch: /batch;desc="([^"]*)"/.exec(http.headers.get("Server-Timing") ?? "")?.[1] ?? "",
    totalMs: performance.now() - began,
  };
}

/** Quote for a POSIX shell. */
export const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Return the curl command that sends the file `name`. */
export function curlCommand(model, name, type, query) {
  const headers = [`-H ${quote(`Content-Type: ${type || "application/octet-stream"}`)}`];
  // The variable, not the key: commands are pasted into tickets and chats.
  if (key.get()) headers.push('-H "X-API-Key: $CENTERNET_API_KEY"');
  const url = new URL(detectPath(model, query), document.baseURI);
  return `curl ${headers.join(" ")} --data-binary ${quote(`@${name}`)} ${quote(url.href)}`;
}
