// The status view: readiness, and rates and percentiles from the Prometheus metrics.

import { send, STAGE_NAMES } from "./api.js";

const POLL_MS = 2000;
const WINDOW_MS = 60_000;

/** Return the series of the Prometheus text format: `{ name, labels, value }`. */
export function parseMetrics(text) {
  const series = [];
  for (const line of text.split("\n")) {
    const [, name, labels = "", value] = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line) ?? [];
    if (!name) continue;
    const pairs = [...labels.matchAll(/(\w+)="((?:\\.|[^"\\])*)"/g)];
    series.push({ name, labels: Object.fromEntries(pairs.map(([, key, text_]) => [key, text_])), value: Number(value) });
  }
  return series;
}

/** Return the quantile (0 to 1) of a histogram, as Prometheus interpolates it; NaN if it is empty. */
export function quantile(buckets, fraction) {
  const ordered = [...buckets].sort(([a], [b]) => a - b);
  const total = ordered.at(-1)?.[1] ?? 0;
  if (!total) return NaN;
  const rank = fraction * total;
  let [lower, below] = [0, 0];
  for (const [upper, count] of ordered) {
    if (count >= rank) {
      if (upper === Infinity) return lower;
      return lower + (upper - lower) * ((rank - below) / (count - below));
    }
    [lower, below] = [upper, count];
  }
  return lower;
}

const name = (suffix) => `centernet_${suffix}`;

/** The values of the metrics in the last minute. */
class History {
  #samples = [];

  add(series) {
    const values = new Map(series.map((one) => [identify(one.name, one.labels), one.value]));
    const last = this.#samples.at(-1);
    // A counter that decreased: the service was restarted.
    if (last && [...last.values].some(([id, value]) => id.includes("_total") && value > (values.get(id) ?? 0))) {
      this.#samples = [];
    }
    const now = performance.now();
    this.#samples = this.#samples.filter(({ at }) => at > now - WINDOW_MS);
    this.#samples.push({ at: now, series, values });
  }

  get isEmpty() {
    return !this.#samples.length;
  }

  get seconds() {
    return (this.#samples.at(-1).at - this.#samples[0].at) / 1000;
  }

  value(suffix, labels) {
    return this.#samples.at(-1).values.get(identify(name(suffix), labels));
  }

  increase(suffix, labels) {
    const id = identify(name(suffix), labels);
    return (this.#samples.at(-1).values.get(id) ?? 0) - (this.#samples[0].values.get(id) ?? 0);
  }

  /** Return the buckets of a histogram, of the last minute or of all time: upper bound, count. */
  buckets(suffix, labels, isRecent) {
    return this.#samples.at(-1).series
      .filter((one) => one.name === name(`${suffix}_bucket`) &&
        Object.entries(labels).every(([key, value]) => one.labels[key] === value))
      .map(({ labels: { le }, value }) => [
        le === "+Inf" ? Infinity : Number(le),
        isRecent ? this.increase(`${suffix}_bucket`, { ...labels, le }) : value,
      ]);
  }
}

const identify = (metric, labels) =>
  `${metric} ${Object.entries(labels).sort().map(([key, value]) => `${key}=${value}`).join()}`;

const number = (value, digits = 1) => (Number.isFinite(value) ? value.toFixed(digits) : "–");

function setRows(table, rows) {
  table.tBodies[0].replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells.map((cell, index) => {
      const element = document.createElement(index ? "td" : "th");
      if (!index) element.scope = "row";
      const [text, className] = Array.isArray(cell) ? cell : [cell, ""];
      element.textContent = text;
      element.className = className;
      return element;
    }));
    return row;
  }));
}

/**
 * Show the status in the elements of the page from now on; the metrics are read only while these
 * are visible.
 *
 * `getModels` returns `{ models, failed, selected }`; `onReadiness` is called with the problem, or
 * null when the service is ready.
 */
export function showStatus(elements, getModels, onReadiness) {
  const history = new History();
  let isInView = false;

  async function readMetrics() {
    try {
      history.add(parseMetrics(await (await send("metrics")).text()));
      render();
    } catch (error) {
      elements.window.textContent = error.problem?.title ?? String(error);
    }
  }

  async function poll() {
    if (document.visibilityState === "visible") {
      if (isInView) await readMetrics();
      await send("readyz").then(() => onReadiness(null), (error) => onReadiness(error.problem));
    }
    setTimeout(poll, POLL_MS);
  }

  function render() {
    const { models, failed, selected } = getModels();
    const seconds = history.seconds;
    elements.window.textContent = seconds ? `last ${Math.round(seconds)} s` : "";
    const rows = models.map((model) => {
      const labels = { model: model.name, version: model.version };
      const isReady = history.value("model_ready", labels) === 1;
      const images = history.increase("images_total", labels);
      const runs = history.increase("batch_size_count", labels);
      const queued = history.value("queue_inputs", labels);
      const limit = history.value("queue_limit_inputs", labels);
      return [
        `${model.name} ${model.version}`,
        isReady ? ["ready", "good-text"] : ["not ready", "bad-text"],
        model.engine,
        number(seconds ? images / seconds : NaN),
        number(images / runs),
        `${number(queued, 0)} of ${number(limit, 0)}`,
      ];
    });
    const missing = failed.map(({ name: model, reason }) => [model, ["failed", "bad-text"], [reason, "bad-text"], "–", "–", "–"]);
    setRows(elements.models, [...rows, ...missing]);
    const version = models.find((model) => model.name === selected)?.version;
    const isRecent = history.increase("images_total", { model: selected, version }) > 0;
    elements.latencyTitle.textContent =
      `Latency of ${selected ?? "the model"} by stage (ms), ${isRecent ? `last ${Math.round(seconds)} s` : "since the start of the service"}`;
    setRows(elements.latency, Object.entries(STAGE_NAMES).map(([stage, text]) => {
      const buckets = history.buckets("stage_duration_seconds", { model: selected, version, stage }, isRecent);
      const count = Math.max(0, ...buckets.map(([, value]) => value));
      const percentiles = [0.5, 0.95, 0.99].map((fraction) => number(1000 * quantile(buckets, fraction)));
      return [text, ...percentiles, String(count)];
    }));
  }

  new IntersectionObserver(([entry]) => {
    isInView = entry.isIntersecting;
    if (isInView) readMetrics();
  }).observe(elements.models);
  poll();
  return () => history.isEmpty || render();
}
