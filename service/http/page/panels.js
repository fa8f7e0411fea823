// The panels beside and below the image.

import { curlCommand, STAGE_NAMES } from "./api.js";
import { colourOf, extent } from "./draw.js";
import { chosenOptions, currentQuery } from "./options.js";
import { accepted, allDetections, byId, candidates, isShownClass, state, visible } from "./state.js";
import { renderOverlay, select, selectionListeners } from "./viewer.js";

export function showProblem(problem, retry = null) {
  const box = byId("problem");
  box.hidden = !problem;
  if (!problem) return;
  const title = document.createElement("strong");
  title.textContent = problem.title;
  const detail = document.createElement("p");
  detail.textContent = problem.detail;
  const more = document.createElement("p");
  more.className = "hint";
  more.textContent = [
    problem.status && `status ${problem.status}`,
    problem.code,
    problem.retryAfter && `try again in ${problem.retryAfter} s`,
    problem.request_id && `request ${problem.request_id}`,
  ].filter(Boolean).join(" · ");
  box.replaceChildren(title, detail, more);
  if (problem.retryable && retry) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Try again" });
    button.addEventListener("click", retry);
    box.append(button);
  }
}

export function renderSide() {
  renderScores();
  renderClasses();
  renderTable();
  const result = state.current?.result;
  const softNms = result && (state.model.options.soft_nms[0] || chosenOptions().soft_nms === "true" || chosenOptions().scales);
  byId("threshold-hint").textContent = softNms
    ? `Scores are those after soft-NMS, of the best ${state.model.top_k} boxes of all classes; boxes that it lowered below 0.001 are not in the response.`
    : "Filtering happens here: the model was asked once, for its best candidates of any score.";
}

function renderScores() {
  const canvas = byId("scores");
  const context = canvas.getContext("2d");
  canvas.width = Math.max(1, canvas.clientWidth * (window.devicePixelRatio || 1));
  const bins = new Array(50).fill(0);
  for (const one of allDetections()) if (isShownClass(one)) bins[Math.min(49, Math.floor(one.score * 50))] += 1;
  const most = Math.log1p(Math.max(1, ...bins));
  const style = getComputedStyle(canvas);
  bins.forEach((count, bin) => {
    const isAbove = (bin + 1) / 50 > state.threshold;
    context.fillStyle = style.getPropertyValue(isAbove ? "--bar" : "--bar-low");
    const height = (Math.log1p(count) / most) * canvas.height;
    context.fillRect((bin / 50) * canvas.width, canvas.height - height, canvas.width / 50 - 1, height);
  });
}

function renderClasses() {
  const best = new Map();
  const counts = new Map();
  for (const one of allDetections()) {
    if (!best.has(one.class_name)) best.set(one.class_name, one);
    if (one.score >= state.threshold) counts.set(one.class_name, (counts.get(one.class_name) ?? 0) + 1);
  }
  const names = [...best.keys()].sort((a, b) => best.get(a).class_id - best.get(b).class_id);
  const box = byId("classes");
  // Existing elements are kept, because one of them may have the focus.
  if (box.dataset.names !== JSON.stringify(names)) {
    box.dataset.names = JSON.stringify(names);
    box.replaceChildren(...names.map((name) => classFilter(name, best.get(name).class_id)));
    if (!names.length) box.append(Object.assign(document.createElement("p"), { className: "hint", textContent: "Those of the best candidates appear here." }));
  }
  for (const label of box.querySelectorAll("label")) {
    const name = label.dataset.name;
    label.querySelector("input").checked = !state.hiddenClasses.has(name);
    label.querySelector(".number").textContent = counts.get(name) ?? 0;
  }
}

function classFilter(name, classId) {
  const label = document.createElement("label");
  label.dataset.name = name;
  const box = Object.assign(document.createElement("input"), { type: "checkbox" });
  box.addEventListener("change", () => {
    if (box.checked) state.hiddenClasses.delete(name);
    else state.hiddenClasses.add(name);
    state.selected = null;
    renderSelection();
  });
  const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
  swatch.style.background = colourOf(classId);
  label.append(box, swatch, name, Object.assign(document.createElement("span"), { className: "number" }));
  return label;
}

let tableKey = [];
function renderTable() {
  const shown = visible();
  byId("count").textContent = accepted().length;
  const body = byId("detections").tBodies[0];
  const isSame = shown.length === tableKey.length && shown.every((one, index) => one === tableKey[index]);
  if (!isSame) {
    tableKey = shown;
    byId("numbers").textContent = state.model?.options.camera ? "Depth, h × w × l (m)" : "Box (px)";
    body.replaceChildren(...shown.map(tableRow));
  }
  [...body.rows].forEach((row, index) => {
    row.classList.toggle("on", shown[index] === state.selected);
    row.classList.toggle("low", shown[index].score < state.threshold);
  });
}

function tableRow(one) {
  const row = document.createElement("tr");
  const button = Object.assign(document.createElement("button"), { type: "button" });
  const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
  swatch.style.background = colourOf(one.class_id);
  button.append(swatch, one.class_name);
  button.addEventListener("focus", () => select(one));
  button.addEventListener("click", () => select(one));
  row.addEventListener("pointerenter", () => select(one));
  row.insertCell().append(button);
  row.insertCell().textContent = one.score.toFixed(3);
  row.insertCell().textContent = numbersOf(one);
  return row;
}

function numbersOf(one) {
  if (one.box3d) {
    const size = one.box3d.dimensions_hwl.map((metres) => metres.toFixed(1)).join(" × ");
    return `${one.box3d.depth.toFixed(1)}, ${size}`;
  }
  const [x1, y1, x2, y2] = extent(one);
  return `${Math.round(x2 - x1)} × ${Math.round(y2 - y1)} at ${Math.round(x1)}, ${Math.round(y1)}`;
}

/** Say how many detections there are; screen readers announce it. */
function renderSummary() {
  const { current } = state;
  const result = current?.result;
  let text = current && !current.problem ? `Detecting in ${current.name}` : "";
  if (result) {
    const { width, height } = result.response.image;
    const count = accepted().length;
    text = `${count} ${count === 1 ? "detection" : "detections"} in ${current.name} · ${width} × ${height} · ${result.totalMs.toFixed(0)} ms`;
    const [best] = candidates();
    if (!count && best) text += ` · no score reaches the threshold; the best is ${best.score.toFixed(3)} (${best.class_name})`;
    if (state.bitmap && (state.bitmap.width !== width || state.bitmap.height !== height)) {
      text += ` · this browser shows the image as ${state.bitmap.width} × ${state.bitmap.height}`;
    }
  }
  if (byId("summary").textContent !== text) byId("summary").textContent = text;
}

export function renderWaterfall(result) {
  const body = byId("waterfall").tBodies[0];
  if (!result) {
    body.replaceChildren();
    byId("total").textContent = "";
    byId("batch").textContent = "Detect in an image to see the duration of each stage.";
    return;
  }
  const stages = Object.entries(result.stages);
  const inService = stages.reduce((sum, [, ms]) => sum + ms, 0);
  const total = Math.max(result.totalMs, inService);
  const rows = [...stages, ["other", total - inService]];
  let start = 0;
  body.replaceChildren(...rows.map(([stage, ms]) => {
    const row = document.createElement("tr");
    row.insertCell().textContent = STAGE_NAMES[stage] ?? "Network, HTTP, JSON";
    const bar = Object.assign(document.createElement("div"), { className: stage === "other" ? "bar other" : "bar" });
    bar.style.marginInlineStart = `${(100 * start) / total}%`;
    bar.style.width = `${(100 * ms) / total}%`;
    row.insertCell().append(bar);
    row.insertCell().textContent = `${ms.toFixed(ms < 10 ? 2 : 1)} ms`;
    start += ms;
    return row;
  }));
  byId("total").textContent = `${total.toFixed(0)} ms`;
  const [size, trigger] = result.batch.split(", ");
  byId("batch").textContent = size
    ? `Batch of ${size} (${trigger}), model ${result.response.model.name} ${result.response.model.version}, request ${result.response.request_id}`
    : "";
}

/** Draw what depends on the threshold, the classes and the selection. */
export function renderSelection() {
  renderOverlay();
  renderSide();
  renderExport();
}

export function renderExport() {
  renderSummary();
  const { current } = state;
  for (const id of ["save-json", "save-image", "copy-curl"]) byId(id).disabled = !current?.result;
  let text = "The same request as a curl command appears here.";
  if (current && state.model) {
    // Without a class the service returns all of them.
    const isEmpty = state.model.classes.every((name) => state.hiddenClasses.has(name));
    byId("copy-curl").disabled ||= isEmpty;
    text = isEmpty
      ? "Choose a class: a request cannot ask for none."
      : curlCommand(state.model.name, current.name, current.blob.type, currentQuery());
  }
  byId("curl").textContent = text;
}

selectionListeners.push(renderTable, renderSummary);
