// The request options that the model has.

import { byId, state } from "./state.js";

const OPTION_TEXTS = {
  flip: "Average with the flipped image (flip)",
  keep_resolution: "Pad instead of resizing (keep_resolution)",
  soft_nms: "Lower the scores of overlapping boxes (soft_nms)",
};

export function buildOptions() {
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
export function chosenOptions() {
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

/** Return the query that makes the service return what the page shows. */
export function currentQuery() {
  const query = new URLSearchParams(chosenOptions());
  query.set("score_threshold", String(state.threshold));
  if (state.hiddenClasses.size) {
    for (const name of state.model.classes) if (!state.hiddenClasses.has(name)) query.append("classes", name);
  }
  return query;
}
