// Drawing of detections on a canvas.

// The Okabe-Ito palette without black and yellow: distinguishable with colour vision deficiency.
const COLOURS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
const LEFT = "#56B4E9", RIGHT = "#E69F00", MIDDLE = "#FFFFFF";
const HALO = "rgb(0 0 0 / .6)";
// Faces of a 3D box by corner, each in the same sense seen from outside; the first is the front.
const FACES = [[0, 1, 5, 4], [2, 3, 7, 6], [1, 2, 6, 5], [3, 0, 4, 7], [4, 5, 6, 7], [3, 2, 1, 0]];

export const colourOf = (classId) => COLOURS[classId % COLOURS.length];

/** Return a mapping from pixels of the image to pixels of a canvas: `scale`, then add `x`, `y`. */
export function fit(imageWidth, imageHeight, width, height, zoom = 1, center = [0.5, 0.5]) {
  const scale = Math.min(width / imageWidth, height / imageHeight) * zoom;
  return {
    scale,
    x: width / 2 - center[0] * imageWidth * scale,
    y: height / 2 - center[1] * imageHeight * scale,
  };
}

/** Return the canvas position of a point; integer image coordinates are centers of pixels. */
export const toCanvas = (view, [x, y]) => [
  view.x + (x + 0.5) * view.scale,
  view.y + (y + 0.5) * view.scale,
];
export const toImage = (view, [x, y]) => [
  (x - view.x) / view.scale - 0.5,
  (y - view.y) / view.scale - 0.5,
];

/** Return x1 <= x2 and y1 <= y2 of the box that an object occupies in the image. */
export function extent({ bbox: [x1, y1, x2, y2] }) {
  return [Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)];
}

/**
 * Draw detections, the best score on top. `style`: `line` and `font` in pixels of the canvas,
 * `threshold` (detections below it are dashed), `selected` (a detection or null), `skeleton` and
 * `keypoints` (of the model, for poses).
 */
export function drawDetections(context, view, detections, style) {
  const ordered = detections.filter((one) => one !== style.selected).reverse();
  if (style.selected) ordered.push(style.selected);
  context.lineJoin = "round";
  context.lineCap = "round";
  for (const one of ordered) drawOne(context, view, one, style);
  const placed = [];
  for (const one of ordered.reverse()) {
    const isCandidate = one.score < style.threshold && one !== style.selected;
    if (!isCandidate) drawLabel(context, view, one, style, placed);
  }
}

function drawOne(context, view, one, style) {
  const colour = colourOf(one.class_id);
  const isSelected = one === style.selected;
  const isCandidate = one.score < style.threshold;
  const line = style.line * (isSelected ? 1.7 : isCandidate ? 0.75 : 1);
  context.globalAlpha = isCandidate && !isSelected ? 0.25 + 0.75 * Math.min(1, one.score * 3) : 1;
  const dash = isCandidate ? [style.line * 3, style.line * 2.5] : [];
  if (one.box3d?.corners_px) drawBox3d(context, view, one.box3d.corners_px, colour, line, dash);
  else {
    const [x1, y1, x2, y2] = extent(one);
    const path = new Path2D();
    const [left, top] = toCanvas(view, [x1, y1]);
    const [right, bottom] = toCanvas(view, [x2, y2]);
    path.rect(left, top, right - left, bottom - top);
    const isOutline = (one.keypoints || one.octagon) && !isSelected;
    stroke(context, path, isOutline ? line * 0.6 : line, colour, dash);
  }
  if (one.octagon) drawMask(context, view, one, colour, line, dash);
  if (one.keypoints) drawPose(context, view, one.keypoints, line, style);
  context.globalAlpha = 1;
}

function stroke(context, path, width, colour, dash = []) {
  context.setLineDash(dash);
  context.lineWidth = width + Math.max(1.5, width * 0.7);
  context.strokeStyle = HALO;
  context.stroke(path);
  context.lineWidth = width;
  context.strokeStyle = colour;
  context.stroke(path);
  context.setLineDash([]);
}

function drawBox3d(context, view, corners, colour, line, dash) {
  const points = corners.map((corner) => toCanvas(view, corner));
  const isFacing = FACES.map((face) => area(face.map((index) => points[index])) > 0);
  const edges = { hidden: new Path2D(), visible: new Path2D() };
  FACES.forEach((face, number) => {
    face.forEach((from, index) => {
      const to = face[(index + 1) % 4];
      if (from > to) return; // each edge once: its other face has it in the other direction
      const other = FACES.findIndex((candidate) =>
        candidate.some((corner, at) => corner === to && candidate[(at + 1) % 4] === from));
      const path = isFacing[number] || isFacing[other] ? edges.visible : edges.hidden;
      path.moveTo(...points[from]);
      path.lineTo(...points[to]);
    });
  });
  stroke(context, edges.hidden, line * 0.5, colour, [line, line * 2]);
  fill(context, polygon(FACES[0].map((index) => points[index])), colour, isFacing[0] ? 0.35 : 0.15);
  stroke(context, edges.visible, line, colour, dash);
}

function drawMask(context, view, { octagon, extreme_points: extremePoints }, colour, line, dash) {
  const outline = polygon(octagon.map((point) => toCanvas(view, point)));
  fill(context, outline, colour, 0.35);
  stroke(context, outline, line, colour, dash);
  for (const point of extremePoints) {
    const path = new Path2D();
    path.arc(...toCanvas(view, point), line * 1.3, 0, 2 * Math.PI);
    stroke(context, path, line * 0.4, colour);
    context.fillStyle = colour;
    context.fill(path);
  }
}

function polygon(points) {
  const path = new Path2D();
  points.forEach((point, at) => (at ? path.lineTo(...point) : path.moveTo(...point)));
  path.closePath();
  return path;
}

/** Fill a path, unless what is drawn is faint: a hundred candidates would cover the image. */
function fill(context, path, colour, alpha) {
  if (context.globalAlpha !== 1) return;
  context.globalAlpha = alpha;
  context.fillStyle = colour;
  context.fill(path);
  context.globalAlpha = 1;
}

/** Return twice the signed area of a polygon; positive if it is clockwise on the screen. */
const area = (points) => points.reduce((sum, [x, y], index) => {
  const [nextX, nextY] = points[(index + 1) % points.length];
  return sum + x * nextY - nextX * y;
}, 0);

function drawPose(context, view, keypoints, line, { skeleton = [], keypoints: names = [] }) {
  const side = (index) => (names[index]?.startsWith("left") ? LEFT : names[index]?.startsWith("right") ? RIGHT : MIDDLE);
  const points = keypoints.map((keypoint) => toCanvas(view, keypoint));
  for (const [from, to] of skeleton) {
    const path = new Path2D();
    path.moveTo(...points[from]);
    path.lineTo(...points[to]);
    stroke(context, path, line, side(from) === side(to) ? side(from) : MIDDLE);
  }
  points.forEach(([x, y], index) => {
    const path = new Path2D();
    path.arc(x, y, line * 1.3, 0, 2 * Math.PI);
    stroke(context, path, line * 0.4, side(index));
    context.fillStyle = side(index);
    if (keypoints[index][2] > 0) context.fill(path); // hollow: regressed from the center only
  });
}

function drawLabel(context, view, one, style, placed) {
  const text = `${one.class_name} ${one.score.toFixed(2)}`;
  context.font = `600 ${style.font}px system-ui, sans-serif`;
  const width = context.measureText(text).width + style.font * 0.6;
  const height = style.font * 1.35;
  const corners = one.box3d?.corners_px ?? [one.bbox.slice(0, 2), one.bbox.slice(2)];
  const points = corners.map((corner) => toCanvas(view, corner));
  const xs = points.map(([x]) => x), ys = points.map(([, y]) => y);
  const clamp = (x) => Math.max(0, Math.min(x, context.canvas.width - width));
  const left = clamp(Math.min(...xs)), right = clamp(Math.max(...xs) - width);
  const top = Math.min(...ys), bottom = Math.max(...ys);
  const places = [[left, top - height], [left, top], [right, top - height], [left, bottom], [left, bottom - height]];
  const isFree = ([x, y]) => y >= 0 && y + height <= context.canvas.height && !placed.some(
    (other) => x < other[0] + other[2] && other[0] < x + width && y < other[1] + other[3] && other[1] < y + height);
  let place = places.find(isFree);
  if (!place) {
    if (one !== style.selected) return; // a label must not cover another one
    place = [left, Math.max(0, top - height)];
  }
  placed.push([...place, width, height]);
  const colour = colourOf(one.class_id);
  context.fillStyle = colour;
  context.beginPath();
  context.roundRect(place[0], place[1], width, height, style.font * 0.25);
  context.fill();
  context.fillStyle = textColourOn(colour);
  context.textBaseline = "middle";
  context.fillText(text, place[0] + style.font * 0.3, place[1] + height / 2 + style.font * 0.05);
}

/** Return black or white, whichever has more contrast to a colour like #D55E00. */
export function textColourOn(colour) {
  const [red, green, blue] = [1, 3, 5].map((at) => (parseInt(colour.slice(at, at + 2), 16) / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 ? "#000000" : "#FFFFFF";
}

/** Draw objects from above, the camera at the bottom; `projection`: the camera's 12 numbers. */
export function drawBirdsEye(context, detections, style, projection, imageWidth) {
  const { width, height } = context.canvas;
  const unit = style.font / 11;
  context.clearRect(0, 0, width, height);
  const depths = detections.map((one) => one.box3d.location_xyz[2] + 4);
  const farthest = Math.max(20, Math.min(120, Math.ceil(Math.max(0, ...depths) / 10) * 10));
  const scale = (height - 26 * unit) / farthest;
  const at = (x, z) => [width / 2 + x * scale, height - 8 * unit - z * scale];
  context.fillStyle = context.strokeStyle = style.colour;
  context.font = `${style.font}px system-ui, sans-serif`;
  context.lineWidth = unit;
  context.textBaseline = "bottom";
  for (let z = 0; z <= farthest; z += farthest > 60 ? 20 : 10) {
    const [, y] = at(0, z);
    context.globalAlpha = 0.3;
    context.beginPath();
    context.moveTo(0, y);
    context.lineTo(width, y);
    context.stroke();
    context.globalAlpha = 1;
    if (z) context.fillText(`${z} m`, 4 * unit, y - unit);
  }
  if (projection) {
    const [fx, cx] = [projection[0], projection[2]];
    context.globalAlpha = 0.5;
    context.setLineDash([4 * unit, 4 * unit]);
    context.beginPath();
    for (const x of [0, imageWidth]) {
      context.moveTo(...at(0, 0));
      context.lineTo(...at(((x - cx) / fx) * farthest, farthest));
    }
    context.stroke();
    context.setLineDash([]);
    context.globalAlpha = 1;
  }
  for (const one of [...detections].reverse()) {
    const { dimensions_hwl: [, boxWidth, length], location_xyz: [x, , z], rotation_y } = one.box3d;
    const [cosine, sine] = [Math.cos(rotation_y), Math.sin(rotation_y)];
    const corner = (along, across) => {
      const [forward, side] = [along * length / 2, across * boxWidth / 2];
      return at(x + cosine * forward + sine * side, z + cosine * side - sine * forward);
    };
    const path = new Path2D();
    [[1, 1], [1, -1], [-1, -1], [-1, 1]].forEach((ends, index) =>
      (index ? path.lineTo(...corner(...ends)) : path.moveTo(...corner(...ends))));
    path.closePath();
    const isCandidate = one.score < style.threshold && one !== style.selected;
    context.fillStyle = colourOf(one.class_id);
    context.globalAlpha = isCandidate ? 0.1 : one === style.selected ? 0.8 : 0.4;
    context.fill(path);
    context.globalAlpha = isCandidate ? 0.35 : 1;
    context.lineWidth = (one === style.selected ? 3 : 1.5) * unit;
    context.strokeStyle = colourOf(one.class_id);
    context.stroke(path);
    context.beginPath(); // the front
    context.lineWidth = 4 * unit;
    context.moveTo(...corner(1, 1));
    context.lineTo(...corner(1, -1));
    context.stroke();
    context.globalAlpha = 1;
  }
}
