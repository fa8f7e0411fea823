// The page: models, images and requests, and what happens when someone acts.

import { detect, getJson, key, send, ServiceError } from "./api.js";
import { drawDetections, fit } from "./draw.js";
import { buildOptions, chosenOptions } from "./options.js";
import { renderExport, renderSelection, renderSide, renderWaterfall, showProblem } from "./panels.js";
import { accepted, byId, imageSize, state, visible } from "./state.js";
import { showStatus } from "./status.js";
import { drawingStyle, renderImage } from "./viewer.js";

const viewer = byId("viewer");

const PARALLEL_REQUESTS = 4; // enough for the service to run images in batches
const RETRY_MS = 2000;
const START_POLL_MS = 500;
const SAMPLES = [
  { name: "blood_smear_1.jpg", model: "blood_cells", text: "Blood smear with a white cell" },
  { name: "blood_smear_4.jpg", model: "blood_cells", text: "Blood smear" },
  { name: "people_1.jpg", model: "people", text: "People" },
  { name: "people_2.jpg", model: "people", text: "More people" },
  { name: "road_0002.jpg", model: "road_vehicles", text: "Road with a van ahead" },
  { name: "road_0004.jpg", model: "road_vehicles", text: "Road with vehicles" },
];

// --- Models -------------------------------------------------------------------------------------

/** Show what the service is doing until its models are loaded. */
async function waitForModels() {
  for (;;) {
    const problem = await send("startupz").then(() => null, problemOf);
    const isStarting = problem?.code === "not_ready";
    byId("starting").hidden = !isStarting;
    // Without the sentence about requests: the page asks again by itself.
    byId("starting").textContent = isStarting ? `${problem.detail.split(". ")[0]}.` : "";
    showProblem(isStarting ? null : problem);
    if (!problem) return;
    setState(isStarting ? "Loading models" : "Not ready", isStarting ? "" : "bad");
    await new Promise((done) => setTimeout(done, START_POLL_MS));
  }
}

async function loadModels() {
  await waitForModels();
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
    setState("Not ready", "bad");
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
  let model;
  try {
    model = await getJson(`models/${encodeURIComponent(name)}`);
  } catch (error) {
    showProblem(problemOf(error));
    return;
  }
  if (byId("model").value !== name) return; // another one was chosen meanwhile
  state.model = model;
  state.hiddenClasses.clear();
  byId("model-text").textContent = model.description && `${model.name}: ${model.description}.`;
  setThreshold(state.model.score_threshold);
  buildOptions();
  byId("birds-eye-panel").hidden = state.model.task !== "center_boxes_3d";
  updateStatus?.();
  detectAgain();
}

// --- Options ------------------------------------------------------------------------------------

byId("options").addEventListener("change", ({ target }) => {
  target.dataset.touched = "1"; // soft-NMS can be switched off where several scales switch it on
  detectAgain();
});
byId("options").addEventListener("submit", (event) => event.preventDefault());

// --- Images -------------------------------------------------------------------------------------

const newItem = (file) => ({ name: file.name, blob: file, result: null, problem: null, run: null });

function addImages(files) {
  const added = [...files].map(newItem);
  if (!added.length) return;
  state.images.push(...added);
  for (const item of added) item.button = imageButton(item);
  byId("opened").append(...added.map((item) => item.button));
  byId("opened").hidden = state.images.length < 2;
  show(added[0]);
  for (const item of added.slice(1)) enqueue(item);
}

function imageButton(item) {
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
  for (const other of state.images) other.button.setAttribute("aria-pressed", other === item);
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
  for (const item of new Set([...state.images, state.current].filter(Boolean))) {
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

// --- Rendering ---------------------------------------------------------------------------------

function setThreshold(value) {
  state.threshold = value;
  byId("threshold").value = value;
  byId("threshold-value").textContent = value.toFixed(2);
}

/** Draw everything. */
function render() {
  renderImage();
  renderSide();
  renderResult();
}

function renderResult() {
  const { current } = state;
  const result = current?.result;
  showProblem(current?.problem ?? null, () => enqueue(current, true));
  renderWaterfall(result);
  renderExport();
}

// --- Export -------------------------------------------------------------------------------------

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
    show(newItem(file));
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
