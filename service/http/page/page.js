// The page: its state, and what happens when someone acts.

import { curlCommand, detect, getJson, key, ServiceError } from "./api.js";
import { colourOf, drawBirdsEye, drawDetections, extent, fit, toCanvas, toImage } from "./draw.js";
import { showStatus } from "./status.js";

const PARALLEL_REQUESTS = 4; // enough for the service to run images in batches
const RETRY_MS = 2000;
const SAMPLES = [
  { name: "blood_smear_1.jpg", model: "blood_cells", text: "Blood smear with a white cell" },
  { name: "blood_smear_4.jpg", model: "blood_cells", text: "Blood smear" },
  { name: "people_1.jpg", model: "people", text: "People" },
  { name: "people_2.jpg", model: "people", text: "More people" },
  { name: "road_0002.jpg", model: "road_vehicles", text: "Road with a van ahead" },
  { name: "road_0004.jpg", model: "road_vehicles", text: "Road with vehicles" },
];
const STAGE_NAMES = {
  decode_queue: "Wait for decoding",
  prepare: "Decode and resize",
  queue: "Wait for a batch",
  infer: "Engine",
  postprocess: "Boxes",
};

const byId = (id) => document.getElementById(id);
const viewer = byId("viewer"), picture = byId("picture"), overlay = byId("overlay");

const state = {
  models: [],
  failed: [],
  model: null, // of GET /models/{name}
  pictures: [], // { name, blob, button, result, problem, run }
  current: null,
  bitmap: null, // of the current picture
  threshold: 0.3,
  hiddenClasses: new Set(),
  selected: null, // the detection under the pointer or the keyboard's focus
  zoom: 1,
  center: [0.5, 0.5],
  camera: null,
};

// --- Models -------------------------------------------------------------------------------------

async function loadModels() {
  try {
    const { models, failed } = await getJson("models");
    Object.assign(state, { models, failed });
  } catch (error) {
    const problem = problemOf(error);
    const needsKey = problem.status === 401;
    byId("key-form").hidden = !needsKey;
    if (needsKey) {
      setState("API key needed", "bad");
      if (key.get()) byId("key-text").textContent = problem.detail;
      return;
    }
    setState(problem.code === "not_ready" ? "Loading models" : "Not ready", "bad");
    showProblem(problem);
    setTimeout(loadModels, RETRY_MS);
    return;
  }
  byId("key-form").hidden = true;
  showProblem(null);
  const select = byId("model");
  select.replaceChildren(
    ...state.models.map((model) => new Option(`${model.name}${model.default ? " (default)" : ""}`, model.name)),
    ...state.failed.map(({ name }) => {
      const option = new Option(`${name} (failed)`, name);
      option.disabled = true;
      return option;
    }),
  );
  select.disabled = !state.models.length;
  const first = state.models.find((model) => model.default) ?? state.models[0];
  if (first) await chooseModel(first.name);
  startStatus();
}

let updateStatus = null;
function startStatus() {
  if (updateStatus) return;
  updateStatus = showStatus(
    { models: byId("models"), latency: byId("latency"), latencyTitle: byId("latency-title"), window: byId("window") },
    () => ({ models: state.models, failed: state.failed, selected: state.model?.name }),
    (problem) => (problem ? setState(problem.title, "bad") : setState("Ready", "good")),
  );
}

function setState(text, kind) {
  if (byId("state").textContent !== text) byId("state").textContent = text;
  byId("state").className = `pill ${kind}`;
}

async function chooseModel(name) {
  byId("model").value = name;
  try {
    state.model = await getJson(`models/${encodeURIComponent(name)}`);
  } catch (error) {
    showProblem(problemOf(error));
    return;
  }
  state.hiddenClasses.clear();
  setThreshold(state.model.score_threshold);
  buildOptions();
  byId("birds-eye-panel").hidden = state.model.task !== "center_boxes_3d";
  updateStatus?.();
  detectAgain();
}

// --- Options ------------------------------------------------------------------------------------

const OPTION_TEXTS = {
  flip: "Average with the flipped image (flip)",
  keep_resolution: "Pad instead of resizing (keep_resolution)",
  soft_nms: "Lower the scores of overlapping boxes (soft_nms)",
};

function buildOptions() {
  const { options, manifest } = state.model;
  const fields = [];
  for (const [name, text] of Object.entries(OPTION_TEXTS)) {
    if (options[name].length < 2) continue;
    const label = document.createElement("label");
    label.className = "check";
    const box = Object.assign(document.createElement("input"), { type: "checkbox", name, checked: options[name][0] });
    label.append(box, text);
    fields.push(label);
  }
  if (options.max_scales > 1) {
    fields.push(textField("scales", `Scales, at most ${options.max_scales}`, { type: "text", placeholder: "0.75, 1, 1.25" }));
  }
  if (options.camera) {
    const projection = manifest.decoder.projection;
    const group = document.createElement("div");
    group.className = "four";
    const defaults = { fx: projection[0], fy: projection[5], cx: projection[2], cy: projection[6] };
    group.append(...Object.entries(defaults).map(([name, value]) =>
      textField(name, `Camera ${name} (px)`, { type: "number", step: "any", placeholder: String(value) })));
    fields.push(group);
  }
  byId("options").replaceChildren(...fields);
  byId("options-panel").hidden = !fields.length;
}

function textField(name, text, attributes) {
  const label = document.createElement("label");
  label.className = "field";
  label.append(text, Object.assign(document.createElement("input"), { name, ...attributes }));
  return label;
}

/** Return the options that differ from the model's defaults. */
function chosenOptions() {
  const chosen = {};
  for (const input of byId("options").elements) {
    if (input.type !== "checkbox") {
      if (input.value.trim()) chosen[input.name] = input.value.replaceAll(" ", "");
    } else if (input.checked !== state.model.options[input.name][0] || input.dataset.touched) {
      chosen[input.name] = String(input.checked);
    }
  }
  return chosen;
}

byId("options").addEventListener("change", ({ target }) => {
  target.dataset.touched = "1"; // soft-NMS can be switched off where several scales switch it on
  detectAgain();
});
byId("options").addEventListener("submit", (event) => event.preventDefault());

// --- Pictures -----------------------------------------------------------------------------------

function addImages(files) {
  stopCamera();
  const added = [...files].map((file) => ({ name: file.name, blob: file, result: null, problem: null, run: null }));
  if (!added.length) return;
  state.pictures.push(...added);
  for (const item of added) item.button = pictureButton(item);
  byId("pictures").append(...added.map((item) => item.button));
  byId("pictures").hidden = state.pictures.length < 2;
  show(added[0]);
  added.slice(1).forEach(enqueue);
}

function pictureButton(item) {
  const button = document.createElement("button");
  const canvas = document.createElement("canvas");
  button.type = "button";
  button.title = item.name;
  button.setAttribute("aria-label", item.name);
  button.append(canvas);
  button.addEventListener("click", () => show(item));
  createImageBitmap(item.blob, { resizeHeight: 152, resizeQuality: "medium" }).then((bitmap) => {
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    bitmap.close();
  }, () => button.append(item.name));
  return button;
}

async function show(item) {
  stopCamera();
  Object.assign(state, { current: item, selected: null, zoom: 1, center: [0.5, 0.5] });
  for (const other of state.pictures) other.button.setAttribute("aria-pressed", other === item);
  setBitmap(null);
  render();
  if (!item.result && !item.run) enqueue(item, true);
  const bitmap = await createImageBitmap(item.blob).catch(() => null);
  if (state.current !== item) bitmap?.close();
  else {
    setBitmap(bitmap);
    render();
  }
}

function setBitmap(bitmap) {
  state.bitmap?.close();
  state.bitmap = bitmap;
}

// --- Detection ----------------------------------------------------------------------------------

const waiting = [];
let running = 0;

function enqueue(item, isUrgent = false) {
  if (!state.model) return;
  const run = { controller: new AbortController(), model: state.model.name, options: chosenOptions() };
  item.run?.controller.abort();
  Object.assign(item, { run, result: null, problem: null });
  if (isUrgent) waiting.unshift([item, run]);
  else waiting.push([item, run]);
  if (item === state.current) render();
  startRequests();
}

function startRequests() {
  while (waiting.length && running < PARALLEL_REQUESTS) {
    running += 1;
    detectOne(...waiting.shift()).finally(() => {
      running -= 1;
      startRequests();
    });
  }
}

async function detectOne(item, run) {
  if (item.run !== run) return;
  let [result, problem] = [null, null];
  try {
    result = await detect(run.model, item.blob, run.options, run.controller.signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    problem = problemOf(error);
    if (problem.status === 401) byId("key-form").hidden = false;
  }
  if (item.run !== run) return;
  Object.assign(item, { result, problem, run: null });
  item.button?.classList.toggle("fault", Boolean(problem));
  if (item === state.current) {
    state.selected = null;
    render();
  }
}

function detectAgain() {
  for (const item of state.pictures) {
    item.run?.controller.abort();
    Object.assign(item, { run: null, result: null, problem: null });
  }
  if (state.camera) return; // the next frame uses the new model and options
  if (state.current) enqueue(state.current, true);
  else render();
}

function problemOf(error) {
  if (error instanceof ServiceError) return error.problem;
  console.error(error);
  return { title: "Error of the page", detail: String(error) };
}

function showProblem(problem) {
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
  if (problem.retryable && state.current) {
    const retry = Object.assign(document.createElement("button"), { type: "button", textContent: "Try again" });
    retry.addEventListener("click", () => enqueue(state.current, true));
    box.append(retry);
  }
}

// --- What is visible ----------------------------------------------------------------------------

const allDetections = () => state.current?.result?.response.detections ?? [];
const isShownClass = (one) => !state.hiddenClasses.has(one.class_name);
/** Return what the service returns for this threshold and these classes. */
const accepted = () => allDetections().filter((one) => one.score >= state.threshold && isShownClass(one));
const candidates = () => allDetections().filter((one) => one.score < state.threshold && isShownClass(one));
const visible = () => (byId("candidates").checked ? [...accepted(), ...candidates()] : accepted());

function setThreshold(value) {
  state.threshold = value;
  byId("threshold").value = value;
  byId("threshold-value").textContent = value.toFixed(2);
}

/** Return the size of the upright image: as the service states it, or as the browser decoded it. */
function imageSize() {
  const image = state.current?.result?.response.image ?? state.bitmap;
  return image ? [image.width, image.height] : null;
}

function render() {
  renderImage();
  renderSide();
  renderResult();
}

/** Draw what depends on the threshold, the classes and the selection. */
function renderSelection() {
  renderOverlay();
  renderSide();
  renderExport();
}

function currentView() {
  const [width, height] = imageSize();
  return fit(width, height, overlay.width, overlay.height, state.zoom, state.center);
}

function renderImage() {
  const size = imageSize();
  const width = viewer.clientWidth;
  const tallest = Math.max(260, window.innerHeight * 0.68);
  const height = size ? Math.max(220, Math.min((width * size[1]) / size[0], tallest)) : 340;
  viewer.style.height = `${Math.round(height)}px`;
  const pixelRatio = window.devicePixelRatio || 1;
  for (const canvas of [picture, overlay]) {
    canvas.width = Math.round(width * pixelRatio);
    canvas.height = Math.round(viewer.clientHeight * pixelRatio);
  }
  byId("empty").hidden = Boolean(state.current);
  byId("busy").hidden = !state.current?.run;
  viewer.classList.toggle("zoomed", state.zoom > 1);
  if (size && state.bitmap) {
    const view = currentView();
    const context = picture.getContext("2d");
    context.imageSmoothingEnabled = view.scale < 3; // show the pixels of small images
    context.imageSmoothingQuality = "high";
    context.drawImage(state.bitmap, view.x, view.y, size[0] * view.scale, size[1] * view.scale);
  }
  renderOverlay();
}

function drawingStyle(unit) {
  return {
    line: 2 * unit,
    font: 12 * unit,
    threshold: state.threshold,
    selected: state.selected,
    skeleton: state.model?.skeleton,
    keypoints: state.model?.keypoints,
  };
}

function renderOverlay() {
  const context = overlay.getContext("2d");
  context.clearRect(0, 0, overlay.width, overlay.height);
  if (!imageSize()) return;
  const shown = visible();
  if (state.selected && !shown.includes(state.selected)) shown.push(state.selected);
  drawDetections(context, currentView(), shown, drawingStyle(window.devicePixelRatio || 1));
  if (!byId("birds-eye-panel").hidden) renderBirdsEye(shown);
}

function renderBirdsEye(shown) {
  const canvas = byId("birds-eye");
  const pixelRatio = window.devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * pixelRatio);
  canvas.height = Math.round(canvas.clientHeight * pixelRatio);
  const given = chosenOptions();
  const projection = [...(state.model.manifest.decoder.projection ?? [])];
  if (given.fx) [projection[0], projection[2]] = [Number(given.fx), Number(given.cx)];
  const style = { ...drawingStyle(pixelRatio), colour: getComputedStyle(canvas).color };
  drawBirdsEye(canvas.getContext("2d"), shown.filter((one) => one.box3d), style, projection, imageSize()[0]);
}

function renderSide() {
  renderScores();
  renderClasses();
  renderTable();
  const result = state.current?.result;
  const softNms = result && (state.model.options.soft_nms[0] || chosenOptions().soft_nms === "true" || chosenOptions().scales);
  byId("threshold-hint").textContent = softNms
    ? "Scores are those after soft-NMS; boxes that it lowered below 0.001 are not in the response."
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
    if (!names.length) box.append(Object.assign(document.createElement("p"), { className: "hint", textContent: "No image yet." }));
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

function select(one) {
  if (state.selected === one) return;
  state.selected = one;
  renderOverlay();
  renderTable();
}

function renderResult() {
  const { current } = state;
  const result = current?.result;
  showProblem(current?.problem ?? null);
  renderWaterfall(result);
  renderExport();
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
    if (state.bitmap && (state.bitmap.width !== width || state.bitmap.height !== height)) {
      text += ` · this browser shows the image as ${state.bitmap.width} × ${state.bitmap.height}`;
    }
  }
  if (byId("summary").textContent !== text) byId("summary").textContent = text;
}

function renderWaterfall(result) {
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

// --- Export -------------------------------------------------------------------------------------

/** Return the query that makes the service return what the page shows. */
function currentQuery() {
  const query = new URLSearchParams(chosenOptions());
  query.set("score_threshold", String(state.threshold));
  if (state.hiddenClasses.size) {
    for (const name of state.model.classes) if (!state.hiddenClasses.has(name)) query.append("classes", name);
  }
  return query;
}

function renderExport() {
  renderSummary();
  const { current } = state;
  for (const id of ["save-json", "save-image", "copy-curl"]) byId(id).disabled = !current?.result;
  byId("curl").textContent = current && state.model
    ? curlCommand(state.model.name, current.name, current.blob.type, currentQuery())
    : "The same request as a curl command appears here.";
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const stem = () => state.current.name.replace(/\.[^.]*$/, "");

byId("save-json").addEventListener("click", () => {
  const response = { ...state.current.result.response, detections: accepted() };
  save(new Blob([JSON.stringify(response, null, 2)], { type: "application/json" }), `${stem()}.json`);
});

byId("save-image").addEventListener("click", () => {
  const [width, height] = imageSize();
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  if (state.bitmap) context.drawImage(state.bitmap, 0, 0, width, height);
  const style = { ...drawingStyle(Math.max(0.5, Math.max(width, height) / 900)), selected: null };
  drawDetections(context, fit(width, height, width, height), visible(), style);
  const name = `${stem()}_detections.png`;
  canvas.toBlob((blob) => {
    if (blob) save(blob, name);
    else showProblem({ title: "The image is too large for this browser", detail: `It has ${width} × ${height} pixels. Use centernet-detect to draw on it.` });
  });
});

byId("copy-curl").addEventListener("click", async ({ target }) => {
  try {
    await navigator.clipboard.writeText(byId("curl").textContent);
    target.textContent = "Copied";
  } catch {
    // No clipboard without HTTPS: select the text for the keyboard.
    getSelection().selectAllChildren(byId("curl"));
    target.textContent = "Selected: press Ctrl+C";
  }
  setTimeout(() => (target.textContent = "Copy as curl"), 2000);
});

// --- Threshold and classes ----------------------------------------------------------------------

byId("threshold").addEventListener("input", ({ target }) => {
  setThreshold(Number(target.value));
  state.selected = null;
  renderSelection();
});
byId("candidates").addEventListener("change", renderSelection);
byId("all-classes").addEventListener("click", () => {
  state.hiddenClasses.clear();
  renderSelection();
});
byId("no-classes").addEventListener("click", () => {
  state.hiddenClasses = new Set(state.model?.classes);
  state.selected = null;
  renderSelection();
});

// --- Pointer and keyboard in the viewer ---------------------------------------------------------

function pointerPosition({ clientX, clientY }) {
  const { left, top } = viewer.getBoundingClientRect();
  const pixelRatio = window.devicePixelRatio || 1;
  return [(clientX - left - viewer.clientLeft) * pixelRatio, (clientY - top - viewer.clientTop) * pixelRatio];
}

/** Return the detection at a point of the image: the smallest visible one, or the best candidate. */
function detectionAt([x, y]) {
  const contains = (one) => {
    const [x1, y1, x2, y2] = extent(one);
    return x1 <= x && x <= x2 && y1 <= y && y <= y2;
  };
  const size = (one) => {
    const [x1, y1, x2, y2] = extent(one);
    return (x2 - x1) * (y2 - y1);
  };
  const smallest = accepted().filter(contains).sort((a, b) => size(a) - size(b))[0];
  return smallest ?? candidates().find(contains) ?? null;
}

function tipText(one) {
  const lines = [`${one.class_name} ${one.score.toFixed(3)}`];
  if (one.score < state.threshold) {
    lines[0] = `Best candidate here: ${lines[0]}`;
    lines.push(`below the threshold ${state.threshold.toFixed(2)}`);
  }
  lines.push(`x ${one.bbox[0].toFixed(1)} to ${one.bbox[2].toFixed(1)}, y ${one.bbox[1].toFixed(1)} to ${one.bbox[3].toFixed(1)} px`);
  if (one.box3d) {
    const { depth, dimensions_hwl: [height, width, length], location_xyz, rotation_y } = one.box3d;
    lines.push(
      `depth ${depth.toFixed(2)} m, at ${location_xyz.map((metres) => metres.toFixed(2)).join(", ")} m`,
      `height ${height.toFixed(2)}, width ${width.toFixed(2)}, length ${length.toFixed(2)} m`,
      `rotation ${((rotation_y * 180) / Math.PI).toFixed(0)}°`,
    );
  }
  if (one.keypoints) lines.push(`${one.keypoints.filter(([, , score]) => score > 0).length} of ${one.keypoints.length} keypoints found in their heatmaps`);
  return lines.join("\n");
}

function showTip(one, [x, y] = [0, 0]) {
  const tip = byId("tip");
  tip.hidden = !one;
  if (!one) return;
  tip.textContent = tipText(one);
  const pixelRatio = window.devicePixelRatio || 1;
  const left = Math.min(x / pixelRatio + 14, viewer.clientWidth - tip.offsetWidth - 4);
  const below = y / pixelRatio + 14;
  const isBelow = below + tip.offsetHeight < viewer.clientHeight;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${isBelow ? below : Math.max(4, y / pixelRatio - tip.offsetHeight - 8)}px`;
}

let drag = null;
viewer.addEventListener("pointerdown", (event) => {
  if (state.zoom > 1) {
    drag = { at: pointerPosition(event), center: state.center };
    viewer.setPointerCapture(event.pointerId);
  }
});
viewer.addEventListener("pointerup", () => (drag = null));
viewer.addEventListener("pointermove", (event) => {
  if (!imageSize()) return;
  const position = pointerPosition(event);
  const view = currentView();
  if (drag) {
    const [width, height] = imageSize();
    moveTo([
      drag.center[0] - (position[0] - drag.at[0]) / (width * view.scale),
      drag.center[1] - (position[1] - drag.at[1]) / (height * view.scale),
    ]);
    return;
  }
  const one = detectionAt(toImage(view, position));
  select(one);
  showTip(one, position);
});
viewer.addEventListener("pointerleave", () => {
  select(null);
  showTip(null);
});

function moveTo(center) {
  const half = 0.5 / state.zoom;
  state.center = center.map((value) => Math.max(half, Math.min(1 - half, value)));
  showTip(null);
  renderImage();
}

function zoomBy(factor) {
  state.zoom = Math.max(1, Math.min(64, state.zoom * factor));
  moveTo(state.center);
}

function fitImage() {
  state.zoom = 1;
  moveTo([0.5, 0.5]);
}

byId("zoom-in").addEventListener("click", () => zoomBy(1.5));
byId("zoom-out").addEventListener("click", () => zoomBy(1 / 1.5));
byId("zoom-fit").addEventListener("click", fitImage);
viewer.addEventListener("wheel", (event) => {
  if (!event.ctrlKey || !imageSize()) return; // without Ctrl the wheel scrolls the page
  event.preventDefault();
  zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2);
}, { passive: false });

function selectNext(step) {
  const shown = visible();
  if (!shown.length) return;
  const at = shown.indexOf(state.selected);
  const next = shown[at < 0 ? (step > 0 ? 0 : shown.length - 1) : (at + step + shown.length) % shown.length];
  select(next);
  const [x1, , , y2] = extent(next);
  showTip(next, toCanvas(currentView(), [x1, y2]));
  byId("summary").textContent = `${shown.indexOf(next) + 1} of ${shown.length}: ${tipText(next).replaceAll("\n", ", ")}`;
}

const KEYS = {
  ArrowRight: () => selectNext(1),
  ArrowDown: () => selectNext(1),
  ArrowLeft: () => selectNext(-1),
  ArrowUp: () => selectNext(-1),
  "+": () => zoomBy(1.5),
  "=": () => zoomBy(1.5),
  "-": () => zoomBy(1 / 1.5),
  0: fitImage,
  Escape: () => {
    select(null);
    showTip(null);
    renderSummary();
  },
};
const MOVES = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };

viewer.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !imageSize()) return;
  const move = event.shiftKey && MOVES[event.key];
  if (!move && !KEYS[event.key]) return;
  event.preventDefault();
  if (move) moveTo(state.center.map((value, axis) => value + (move[axis] * 0.2) / state.zoom));
  else KEYS[event.key]();
});

// --- Images from files, the clipboard, samples and the camera -----------------------------------

byId("choose").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", ({ target }) => {
  addImages(target.files);
  target.value = "";
});
document.addEventListener("paste", (event) => addImages(event.clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  viewer.classList.add("dropping");
});
document.addEventListener("dragleave", () => viewer.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  viewer.classList.remove("dropping");
  addImages(event.dataTransfer.files);
});

byId("samples").append(...SAMPLES.map(({ name, model, text }) => {
  const button = Object.assign(document.createElement("button"), { type: "button", title: text });
  const image = Object.assign(document.createElement("img"), { src: `page/${name.replace(".jpg", ".webp")}`, alt: text });
  button.append(image);
  button.addEventListener("click", async () => {
    const response = await fetch(`page/${name}`);
    const file = new File([await response.blob()], name, { type: "image/jpeg" });
    // The model that the sample was made for, where it is served.
    const isServed = state.models.some((one) => one.name === model);
    if (isServed && state.model?.name !== model) {
      state.current = null;
      await chooseModel(model);
    }
    addImages([file]);
  });
  return button;
}));

byId("camera").addEventListener("click", () => (state.camera ? stopCamera() : startCamera()));

async function startCamera() {
  if (!navigator.mediaDevices) {
    showProblem({ title: "No camera", detail: "Browsers allow cameras only on pages from localhost or over HTTPS." });
    return;
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 }, facingMode: "environment" } });
  } catch (error) {
    showProblem({ title: "No camera", detail: `The browser did not allow or find a camera: ${error.message}` });
    return;
  }
  const video = Object.assign(document.createElement("video"), { srcObject: stream, muted: true, playsInline: true });
  await video.play();
  state.camera = { stream };
  byId("camera").setAttribute("aria-pressed", "true");
  byId("camera").textContent = "Stop camera";
  followCamera(video, state.camera);
}

/** Detect in one frame after the other; each is shown with its own detections. */
async function followCamera(video, camera) {
  const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
  while (state.camera === camera) {
    canvas.getContext("2d").drawImage(video, 0, 0);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
    const bitmap = await createImageBitmap(canvas);
    const item = { name: "camera.jpg", blob, result: null, problem: null, run: null };
    try {
      item.result = await detect(state.model.name, blob, chosenOptions());
    } catch (error) {
      item.problem = problemOf(error);
    }
    if (state.camera !== camera) return;
    Object.assign(state, { current: item, selected: null });
    setBitmap(bitmap);
    render();
    if (item.problem) stopCamera();
  }
}

function stopCamera() {
  if (!state.camera) return;
  for (const track of state.camera.stream.getTracks()) track.stop();
  state.camera = null;
  byId("camera").setAttribute("aria-pressed", "false");
  byId("camera").textContent = "Camera";
}

// --- Start --------------------------------------------------------------------------------------

byId("model").addEventListener("change", ({ target }) => chooseModel(target.value));
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(byId("key").value.trim());
  byId("key").value = "";
  loadModels();
});
new ResizeObserver(() => renderImage()).observe(viewer.parentElement);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
render();
loadModels();
