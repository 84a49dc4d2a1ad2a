// The page: chats are kept in this browser only, answers come from /v1/chat/completions.

import { get, post, stream } from "./api.js";
import { copyText, render } from "./markdown.js";
import {
  SAMPLING, applyTheme, loadModel, modelField, readModel, showSettings,
} from "./settings.js";
import { $, button, chat, keep, key, save, state, text } from "./store.js";

// ---- language ---------------------------------------------------------------------------

function translate() {
  document.documentElement.lang = state.language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-text], [data-label], [data-placeholder]")) {
    const { text: shown, label, placeholder } = node.dataset;
    if (shown) node.textContent = text(shown);
    if (label) node.ariaLabel = text(label);
    if (placeholder) node.placeholder = text(placeholder);
  }
  $("language").textContent = text("other");
  showSettings();
  showChats();
  showMessages();
}

// ---- chats ------------------------------------------------------------------------------

function showChats() {
  $("chat-list").replaceChildren(
    ...state.chats.map((item) => {
      const row = document.createElement("div");
      row.className = item.id === state.current ? "chat current" : "chat";
      row.append(
        button(item.title || text("untitled"), () => select(item.id)),
        button("×", () => removeChat(item), text("remove")),
      );
      return row;
    }),
  );
}

function select(id) {
  stop();
  state.current = id;
  document.body.classList.remove("menu");
  keep();
  showChats();
  showMessages();
  $("input").focus();
}

function removeChat(item) {
  if (!confirm(text("removeChat"))) return;
  state.chats = state.chats.filter((other) => other !== item);
  select(state.current === item.id ? (state.chats[0]?.id ?? null) : state.current);
}

// ---- messages ---------------------------------------------------------------------------

function showMessages() {
  const messages = chat()?.messages ?? [];
  if (!messages.length) {
    const hello = document.createElement("p");
    hello.className = "hello";
    hello.textContent = text("hello");
    $("messages").replaceChildren(hello);
    $("context").textContent = "";
    return;
  }
  $("messages").replaceChildren(...messages.map((message, index) => messageNode(message, index)));
  showContext(messages.findLast((message) => message.context)?.context);
  $("messages").scrollTop = $("messages").scrollHeight;
}

function messageNode(message, index) {
  const node = document.createElement("article");
  node.className = `message ${message.role}${message.error ? " error" : ""}`;
  fill(node, message);
  const tools = document.createElement("div");
  tools.className = "tools";
  tools.append(button(text("copy"), () => copyText(message.content)));
  if (message.role === "user") tools.append(button(text("edit"), () => edit(node, message, index)));
  else tools.append(button(text("regenerate"), () => again(index)));
  const note = document.createElement("span");
  note.textContent = message.note ?? "";
  tools.append(note);
  node.append(tools);
  return node;
}

function fill(node, message) {
  const body = document.createElement("div");
  body.className = "body";
  if (message.role === "user" || message.error) body.textContent = message.error ?? message.content;
  else body.append(render(message.content, text("copy")));
  const parts = [];
  if (message.thinking) {
    const thinking = document.createElement("details");
    thinking.className = "thinking";
    thinking.open = !message.content;
    const summary = document.createElement("summary");
    summary.textContent = text("thinking");
    thinking.append(summary, message.thinking);
    parts.push(thinking);
  }
  node.querySelectorAll(":scope > .body, :scope > .thinking").forEach((old) => old.remove());
  node.prepend(...parts, body);
  return body;
}

function edit(node, message, index) {
  stop();
  const area = document.createElement("textarea");
  area.value = message.content;
  area.rows = Math.min(12, message.content.split("\n").length + 1);
  const tools = document.createElement("div");
  tools.className = "tools";
  const done = () => {
    const content = area.value.trim();
    if (!content) return;
    chat().messages.splice(index);
    send(content);
  };
  tools.append(button(text("save"), done), button(text("cancel"), showMessages));
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      done();
    } else if (event.key === "Escape") showMessages();
  });
  node.replaceChildren(area, tools);
  area.focus();
}

function again(index) {
  stop();
  chat().messages.splice(index);
  answer();
}

function showContext(context) {
  const size = state.props?.default_generation_settings?.n_ctx;
  $("context").textContent = context && size ? `${context} / ${size}` : "";
  $("context").title = text("context");
}

// ---- asking -----------------------------------------------------------------------------

function conversation(messages) {
  const turns = messages
    .filter((message) => message.content && !message.error)
    .map(({ role, content }) => ({ role, content }));
  if (state.settings.system) turns.unshift({ role: "system", content: state.settings.system });
  return turns;
}

function send(content) {
  if (!chat()) {
    const id = `${Date.now()}-${Math.random().toString(36).slice(2)}`;
    state.chats.unshift({ id, title: "", messages: [] });
    state.current = id;
  }
  chat().messages.push({ role: "user", content });
  chat().title ||= content.slice(0, 60);
  answer();
}

async function answer() {
  stop();
  const own = chat();
  const request = { messages: conversation(own.messages), timings_per_token: true };
  Object.assign(request, modelField());
  for (const name of SAMPLING) if (name in state.settings) request[name] = state.settings[name];
  const message = { role: "assistant", content: "" };
  own.messages.push(message);
  const running = (state.running = new AbortController());
  keep();
  showChats();
  showMessages();
  const node = $("messages").lastElementChild;
  $("send").hidden = true;
  $("stop").hidden = false;
  let isStale = false;
  const show = () => {
    isStale = false;
    if (!node.isConnected) return;
    const list = $("messages");
    const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
    const body = fill(node, message);
    if (state.running === running) (body.lastElementChild ?? body).classList.add("cursor");
    node.querySelector(".tools span").textContent = message.note ?? "";
    showContext(message.context);
    if (isAtEnd) list.scrollTop = list.scrollHeight;
  };
  try {
    if (!state.props) {
      message.note = text("loading");
      show();
      await loadModel();
      message.note = "";
    }
    for await (const chunk of stream("v1/chat/completions", key(), request, running.signal)) {
      const choice = chunk.choices[0];
      const { content, reasoning_content: thought } = choice?.delta ?? {};
      message.content += content ?? "";
      if (thought) message.thinking = (message.thinking ?? "") + thought;
      if (chunk.timings) note(message, chunk.timings);
      if (choice?.finish_reason === "length") message.note += ` · ${text("limit")}`;
      if (!isStale) {
        isStale = true;
        requestAnimationFrame(show);
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") message.error = error.message;
    if (state.models.length) readModel().catch(console.warn); // is it still in memory?
  }
  if (state.running === running) {
    state.running = null;
    $("send").hidden = false;
    $("stop").hidden = true;
  }
  keep();
  if (own === chat()) showMessages();
}

function note(message, timings) {
  message.context = timings.cache_n + timings.prompt_n + timings.predicted_n;
  const speed = timings.predicted_per_second;
  message.note = `${timings.predicted_n} ${text("tokens")}`;
  if (speed > 0) message.note += ` · ${speed.toFixed(1)} ${text("perSecond")}`;
}

function stop() {
  state.running?.abort();
}

async function showPrompt() {
  try {
    const messages = conversation(chat()?.messages ?? []);
    const draft = $("input").value.trim();
    if (draft) messages.push({ role: "user", content: draft });
    const body = { messages, ...modelField() };
    $("prompt-text").textContent = (await post("apply-template", key(), body)).prompt;
  } catch (error) {
    $("prompt-text").textContent = error.message;
  }
  $("prompt").showModal();
}

// ---- the beginning ----------------------------------------------------------------------

async function connect() {
  for (;;) {
    try {
      await get("health", "");
      break;
    } catch (error) {
      const box = $("loading");
      box.hidden = false;
      box.querySelector("p").textContent = text(error.status === 503 ? "loading" : "offline");
      box.querySelector("progress").value = error.progress ?? 0;
      await new Promise((done) => setTimeout(done, 1000));
    }
  }
  $("loading").hidden = true;
  await readProps();
}

async function readProps() {
  try {
    await readModel();
  } catch (error) {
    $("model").textContent = error.message;
    if (error.status === 401) $("settings").showModal();
    return;
  }
  showSettings();
  showMessages();
}

function submit() {
  const content = $("input").value.trim();
  if (!content || state.running) return;
  $("input").value = "";
  send(content);
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) stop();
  if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    select(null);
  }
});
$("stop").addEventListener("click", stop);
$("new-chat").addEventListener("click", () => select(null));
$("menu").addEventListener("click", () => document.body.classList.toggle("menu"));
$("shade").addEventListener("click", () => document.body.classList.remove("menu"));
$("show-prompt").addEventListener("click", showPrompt);
$("show-settings").addEventListener("click", () => $("settings").showModal());
$("models").addEventListener("change", () => {
  state.settings.model = $("models").value;
  save("settings", state.settings);
  readProps();
});
$("system").addEventListener("change", () => {
  state.settings.system = $("system").value;
  save("settings", state.settings);
});
$("api-key").addEventListener("change", () => {
  state.settings.apiKey = $("api-key").value.trim();
  save("settings", state.settings);
  readProps();
});
$("reset").addEventListener("click", () => {
  state.settings = { apiKey: key(), model: state.settings.model };
  save("settings", state.settings);
  showSettings();
});
$("language").addEventListener("click", () => {
  state.language = state.language === "zh" ? "en" : "zh";
  save("language", state.language);
  translate();
});
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  save("theme", (root.dataset.theme ?? system) === "dark" ? "light" : "dark");
  applyTheme();
});
window.addEventListener("pagehide", keep);

applyTheme();
translate();
connect();
