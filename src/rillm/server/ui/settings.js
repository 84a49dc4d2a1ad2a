// Settings: theme, system prompt, sampling, key; and which model answers.

import { get, post } from "./api.js";
import { $, key, load, save, state, text } from "./store.js";

export const SAMPLING = [
  "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "max_tokens",
  "seed",
];

export function applyTheme() {
  const theme = load("theme", null);
  if (theme) document.documentElement.dataset.theme = theme;
}

export function showSettings() {
  $("system").value = state.settings.system ?? "";
  $("api-key").value = key();
  const defaults = state.props?.default_generation_settings?.params ?? {};
  $("sampling").replaceChildren(
    ...SAMPLING.map((name) => {
      const label = document.createElement("label");
      const caption = document.createElement("span");
      caption.textContent = text(name);
      const input = document.createElement("input");
      input.type = "number";
      input.step = "any";
      input.id = `set-${name}`;
      input.value = state.settings[name] ?? "";
      const usual = name === "seed" ? -1 : defaults[name];
      if (usual !== undefined) input.placeholder = String(Math.round(usual * 1000) / 1000);
      input.addEventListener("change", () => {
        if (input.value === "") delete state.settings[name];
        else state.settings[name] = Number(input.value);
        save("settings", state.settings);
      });
      label.append(caption, input);
      return label;
    }),
  );
}

// ---- models -----------------------------------------------------------------------------

const chosen = () =>
  state.models.find((model) => model.id === state.settings.model) ?? state.models[0];

// What a request has to say about the model: nothing where there is one only.
export const modelField = () => (state.models.length ? { model: chosen().id } : {});

// Asks what there is to choose from and, unless it would have to be loaded for that, what the
// model can do.
export async function readModel() {
  const { data } = await get("v1/models", key());
  state.models = data.length > 1 ? data : [];
  state.props = null;
  showModels();
  const model = chosen();
  if (model && model.status?.value !== "loaded") return;
  const query = model ? `?model=${encodeURIComponent(model.id)}` : "";
  state.props = await get(`props${query}`, key());
  if (!model) $("model").textContent = state.props.model_alias.split("/").pop();
}

// Brings the chosen model into memory, where it is not there yet.
export async function loadModel() {
  const model = chosen();
  if (!model) return;
  await post("models/load", key(), modelField()).catch((error) => {
    if (error.status !== 400) throw error; // 400: somebody else had it loaded
  });
  await readModel();
}

function showModels() {
  const list = $("models");
  list.hidden = !state.models.length;
  $("model").hidden = !list.hidden;
  list.replaceChildren(
    ...state.models.map((model) => {
      const option = document.createElement("option");
      option.value = model.id;
      option.textContent = model.status.value === "loaded" ? `${model.id} ●` : model.id;
      option.selected = model === chosen();
      return option;
    }),
  );
}
