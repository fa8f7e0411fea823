// The image with its detections: drawing, zoom, pointer and keyboard.

import { drawBirdsEye, drawDetections, extent, fit, toCanvas, toImage } from "./draw.js";
import { chosenOptions } from "./options.js";
import { accepted, byId, candidates, imageSize, state, visible } from "./state.js";

const viewer = byId("viewer"), image = byId("image"), overlay = byId("overlay");

/** Functions that are called when another detection is selected. */
export const selectionListeners = [];

function currentView() {
  const [width, height] = imageSize();
  return fit(width, height, overlay.width, overlay.height, state.zoom, state.center);
}

export function renderImage() {
  const size = imageSize();
  const width = viewer.clientWidth;
  const tallest = Math.max(260, window.innerHeight * 0.68);
  const height = size ? Math.max(220, Math.min((width * size[1]) / size[0], tallest)) : 340;
  viewer.style.height = `${Math.round(height)}px`;
  const pixelRatio = window.devicePixelRatio || 1;
  for (const canvas of [image, overlay]) {
    canvas.width = Math.round(width * pixelRatio);
    canvas.height = Math.round(viewer.clientHeight * pixelRatio);
  }
  byId("empty").hidden = Boolean(state.current);
  byId("busy").hidden = !state.current?.run;
  viewer.classList.toggle("zoomed", state.zoom > 1);
  if (size && state.bitmap) {
    const view = currentView();
    const context = image.getContext("2d");
    context.imageSmoothingEnabled = view.scale < 3; // show the pixels of small images
    context.imageSmoothingQuality = "high";
    context.drawImage(state.bitmap, view.x, view.y, size[0] * view.scale, size[1] * view.scale);
  }
  renderOverlay();
}

export function drawingStyle(unit) {
  return {
    line: 2 * unit,
    font: 12 * unit,
    threshold: state.threshold,
    selected: state.selected,
    skeleton: state.model?.skeleton,
    keypoints: state.model?.keypoints,
  };
}

export function renderOverlay() {
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

export function select(one) {
  if (state.selected === one) return;
  state.selected = one;
  renderOverlay();
  for (const listener of selectionListeners) listener();
}

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
      `depth ${depth.toFixed(2)} m, x y z ${location_xyz.map((metres) => metres.toFixed(2)).join(", ")} m`,
      `h w l ${height.toFixed(2)}, ${width.toFixed(2)}, ${length.toFixed(2)} m`,
      `rotation ${((rotation_y * 180) / Math.PI).toFixed(0)}°`,
    );
  }
  if (one.extreme_points) {
    const names = ["Top", "left", "bottom", "right"];
    const places = one.extreme_points.map((point, index) => `${names[index]} ${point.map(Math.round).join(", ")}`);
    lines.push(`${places.join("; ")} px`);
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
viewer.addEventListener("pointermove", pointAt);
viewer.addEventListener("pointerdown", pointAt); // a finger does not move before it touches

function pointAt(event) {
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
}

viewer.addEventListener("pointerleave", ({ pointerType }) => {
  if (pointerType === "touch") return; // keep what was tapped
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
