// What all of the page shares: its state, kept in this browser only, and small helpers.

import { TEXTS } from "./texts.js";

export const $ = (id) => document.getElementById(id);

export function load(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(`rillm.${name}`)) ?? fallback;
  } catch {
    return fallback;
  }
}

export function save(name, value) {
  try {
    localStorage.setItem(`rillm.${name}`, JSON.stringify(value));
  } catch (error) {
    console.warn("not saved:", error); // the browser's room is used up: the chat goes on
  }
}

export const state = {
  chats: load("chats", []), // [{id, title, messages: [{role, content, thinking, note, error}]}]
  current: load("current", null),
  settings: load("settings", {}), // sampling parameters, system, apiKey, model
  language: load("language", navigator.language.startsWith("zh") ? "zh" : "en"),
  models: [], // [{id, status}] where there are several
  props: null, // of the model, once it is in memory
  running: null, // AbortController of the answer that is coming
};
export const text = (name) => TEXTS[state.language][name] ?? name;
export const key = () => state.settings.apiKey ?? "";
export const chat = () => state.chats.find((item) => item.id === state.current);

export function keep() {
  save("chats", state.chats);
  save("current", state.current);
}

export function button(label, act, name) {
  const node = document.createElement("button");
  node.type = "button";
  node.className = "quiet";
  node.textContent = label;
  if (name) node.ariaLabel = name;
  node.addEventListener("click", act);
  return node;
}
