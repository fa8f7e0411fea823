// What the page shows, and what follows from it.

export const byId = (id) => document.getElementById(id);

export const state = {
  models: [],
  failed: [],
  model: null, // of GET /models/{name}
  images: [], // { name, blob, button, result, problem, run }
  current: null,
  bitmap: null, // of the current image
  threshold: 0.3,
  hiddenClasses: new Set(),
  selected: null, // the detection under the pointer or the keyboard's focus
  zoom: 1,
  center: [0.5, 0.5],
  camera: null,
};

export const allDetections = () => state.current?.result?.response.detections ?? [];
export const isShownClass = (one) => !state.hiddenClasses.has(one.class_name);
/** Return what the service returns for this threshold and these classes. */
export const accepted = () => allDetections().filter((one) => one.score >= state.threshold && isShownClass(one));
export const candidates = () => allDetections().filter((one) => one.score < state.threshold && isShownClass(one));
export const visible = () => (byId("candidates").checked ? [...accepted(), ...candidates()] : accepted());

/** Return the size of the upright image: as the service states it, or as the browser decoded it. */
export function imageSize() {
  const image = state.current?.result?.response.image ?? state.bitmap;
  return image ? [image.width, image.height] : null;
}
