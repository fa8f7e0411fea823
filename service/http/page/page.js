// The page: models, images and requests, and what happens when someone acts.

import { delay, detect, getJson, key, send, ServiceError } from "./api.js";
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
    await delay(START_POLL_MS);
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
  select.disabled = byId("camera").disabled = !state.models.length;
  const kept = state.models.find(({ name }) => name === state.model?.name);
  const first = kept ?? state.models.find((model) => model.default) ?? state.models[0];
  if (first) await chooseModel(first.name);
  startStatus();
}

let updateStatus = null;
function startStatus() {
  if (updateStatus) return;
  let wasReady = true;
  updateStatus = showStatus(
    { models: byId("models"), latency: byId("latency"), latencyTitle: byId("latency-title"), window: byId("window") },
    () => ({ models: state.models, failed: state.failed, selected: state.model?.name }),
    (problem) => {
      const isReady = !problem;
      if (isReady && !wasReady) loadModels(); // a restarted service may have other models
      wasReady = isReady;
      setState(isReady ? "Ready" : problem.title, isReady ? "good" : "bad");
    },
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
  const isSame = state.model?.name === name && state.model.version === model.version;
  state.model = model;
  if (isSame) { // after a restart of the service: the threshold, classes and options stay
    if (state.current?.problem) enqueue(state.current, true);
    return;
  }
  state.hiddenClasses.clear();
  byId("model-text").textContent = model.description;
  setThreshold(state.model.score_threshold);
  buildOptions();
  byId("birds-eye-panel").hidden = !state.model.options.camera;
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
  }, () => {
    button.className = "named"; // a format that this browser does not show
    button.replaceChildren(item.name);
  });
  return button;
}

async function show(item) {
  stopCamera();
  Object.assign(state, { current: item, selected: null, zoom: 1, center: [0.5, 0.5] });
  for (const other of state.images) other.button.setAttribute("aria-pressed", other === item);
  setBitmap(null);
  byId("not-shown").hidden = true;
  render();
  if (!item.result && !item.run) enqueue(item, true);
  const bitmap = await createImageBitmap(item.blob).catch(() => null);
  if (state.current !== item) bitmap?.close();
  else {
    setBitmap(bitmap);
    byId("not-shown").hidden = Boolean(bitmap);
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
  byId("opened").hidden = !state.images.some((item) => item !== state.current);
  renderImage();
  renderSide();
  renderResult();
}

function renderResult() {
  const { current } = state;
  const result = current?.result;
  if (current?.problem?.status === 401) byId("key-form").hidden = false;
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
    let file;
    try {
      file = new File([await (await send(`page/${name}`)).blob()], name, { type: "image/jpeg" });
    } catch (error) {
      showProblem(problemOf(error), () => button.click());
      return;
    }
    // The model that the sample was made for, where it is served.
    const isServed = state.models.some((one) => one.name === model);
    if (isServed && state.model?.name !== model) {
      state.current = null;
      await chooseModel(model);
      if (state.model?.name !== model) return;
    }
    show(newItem(file));
  });
  return button;
}));

byId("camera").addEventListener("click", () => (state.camera ? stopCamera() : startCamera()));

const CAMERA_PROBLEMS = {
  NotAllowedError: "The browser was not allowed to use the camera. Allow it in the settings of this page, then press Camera again.",
  NotFoundError: "No camera was found. Connect one, then press Camera again.",
  NotReadableError: "The camera cannot be read; another program may be using it.",
};

async function startCamera() {
  if (!navigator.mediaDevices) {
    showProblem({ title: "No camera", detail: "Browsers allow cameras only on pages from localhost or over HTTPS." });
    return;
  }
  const camera = { tracks: [], controller: new AbortController() };
  setCamera(camera); // before the permission: pressing the button again withdraws the request
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 }, facingMode: "environment" } });
    camera.tracks = stream.getTracks();
    if (state.camera !== camera) return;
    for (const track of camera.tracks) {
      track.addEventListener("ended", () => endCamera(camera, "The camera was disconnected, or the browser stopped it."));
    }
    const video = Object.assign(document.createElement("video"), { srcObject: stream, muted: true, playsInline: true });
    await video.play();
    await followCamera(video, camera);
  } catch (error) {
    endCamera(camera, CAMERA_PROBLEMS[error.name] ?? `The camera cannot be used: ${error.message}`);
  } finally {
    for (const track of camera.tracks) track.stop();
  }
}

/** Detect in one frame after the other; each is shown with its own detections. */
async function followCamera(video, camera) {
  const canvas = document.createElement("canvas");
  let pauseMs = 0;
  while (state.camera === camera) {
    // The size changes when a phone is turned.
    Object.assign(canvas, { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
    const bitmap = await createImageBitmap(canvas);
    const item = newItem(new File([blob], "camera.jpg", { type: blob.type }));
    try {
      item.result = await detect(state.model.name, blob, chosenOptions(), camera.controller.signal);
    } catch (error) {
      if (state.camera === camera) item.problem = problemOf(error);
    }
    if (state.camera !== camera) {
      bitmap.close();
      return;
    }
    Object.assign(state, { current: item, selected: null });
    setBitmap(bitmap);
    byId("not-shown").hidden = true;
    render();
    if (item.problem && !item.problem.retryAfter) return setCamera(null);
    // For all frames from now on, so that not every other one is refused.
    if (item.problem) pauseMs = 1000 * item.problem.retryAfter;
    await delay(pauseMs);
    if (document.hidden) await new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));
  }
}

function setCamera(camera) {
  state.camera = camera;
  byId("camera").setAttribute("aria-pressed", String(Boolean(camera)));
  byId("camera").textContent = camera ? "Stop camera" : "Camera";
}

function stopCamera() {
  if (!state.camera) return;
  for (const track of state.camera.tracks) track.stop();
  state.camera.controller.abort();
  setCamera(null);
}

/** Stop the camera, unless it was stopped already, and say why. */
function endCamera(camera, detail) {
  if (state.camera !== camera) return;
  stopCamera();
  showProblem({ title: "No camera", detail });
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
