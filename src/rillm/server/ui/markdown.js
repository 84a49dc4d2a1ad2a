// Markdown to DOM nodes. What a model writes is untrusted: nodes are made one by one and text only
// ever becomes text, there is no innerHTML anywhere; links go to http(s) and mailto only.

const FENCE = /^\s{0,3}(```+|~~~+)\s*([^`\s]*)[^`]*$/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^\s{0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^\s{0,3}>\s?(.*)$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const SAFE = /^(https?:\/\/|mailto:)/i;
const MAX_DEPTH = 12;

function element(name, ...children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}

export function render(text, copyLabel = "copy") {
  const fragment = document.createDocumentFragment();
  fragment.append(...blocks(text.replace(/\r\n?/g, "\n").split("\n"), copyLabel, 0));
  return fragment;
}

function blocks(lines, copyLabel, depth) {
  const nodes = [];
  let i = 0;
  const starts = (line) => [FENCE, HEADING, RULE, ITEM, QUOTE].some((form) => form.test(line));
  while (i < lines.length) {
    const line = lines[i];
    let found;
    if (!line.trim()) {
      i += 1;
    } else if ((found = FENCE.exec(line))) {
      const body = [];
      const mark = found[1];
      for (i += 1; i < lines.length && !isFenceEnd(lines[i], mark); i += 1) body.push(lines[i]);
      i += 1;
      nodes.push(fence(body.join("\n"), found[2], copyLabel));
    } else if ((found = HEADING.exec(line))) {
      nodes.push(element(`h${found[1].length}`, ...inline(found[2])));
      i += 1;
    } else if (RULE.test(line)) {
      nodes.push(element("hr"));
      i += 1;
    } else if (QUOTE.test(line) && depth < MAX_DEPTH) {
      const body = [];
      for (; i < lines.length && (found = QUOTE.exec(lines[i])); i += 1) body.push(found[1]);
      nodes.push(element("blockquote", ...blocks(body, copyLabel, depth + 1)));
    } else if (ITEM.test(line) && depth < MAX_DEPTH) {
      const [list, next] = listOf(lines, i, copyLabel, depth);
      nodes.push(list);
      i = next;
    } else if (line.includes("|") && i + 1 < lines.length && DIVIDER.test(lines[i + 1])) {
      const head = cells(line);
      const body = [];
      for (i += 2; i < lines.length && lines[i].includes("|"); i += 1) body.push(cells(lines[i]));
      nodes.push(table(head, body));
    } else {
      const body = [line.trim()];
      for (i += 1; i < lines.length && lines[i].trim() && !starts(lines[i]); i += 1) {
        body.push(lines[i].trim());
      }
      nodes.push(element("p", ...inline(body.join("\n"))));
    }
  }
  return nodes;
}

// The clipboard is there on https and localhost only; the older way works on a board's address too.
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = element("textarea", text);
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  focused?.focus();
}

function isFenceEnd(line, mark) {
  const text = line.trim();
  return text.length >= mark.length && text === mark[0].repeat(text.length);
}

function fence(code, language, copyLabel) {
  const inner = element("code", code);
  if (/^[\w+#.-]{1,30}$/.test(language)) inner.dataset.language = language;
  const button = element("button", copyLabel);
  button.type = "button";
  button.className = "quiet";
  button.addEventListener("click", () => copyText(code));
  const box = element("div", element("pre", inner), button);
  box.className = "fence";
  return box;
}

function listOf(lines, i, copyLabel, depth) {
  const first = ITEM.exec(lines[i]);
  const indent = first[1].length;
  const isOrdered = /\d/.test(first[2]);
  const list = element(isOrdered ? "ol" : "ul");
  if (isOrdered) list.start = parseInt(first[2], 10);
  while (i < lines.length) {
    const item = ITEM.exec(lines[i]);
    const depthChange = item ? item[1].length - indent : -1;
    if (depthChange < 0 || depthChange > 1 || /\d/.test(item[2]) !== isOrdered) break;
    const body = [item[3]];
    for (i += 1; i < lines.length; i += 1) {
      const line = lines[i];
      const spaces = line.length - line.trimStart().length;
      const isOutside = spaces <= indent + 1; // unless it goes on with the item's own paragraph
      if (line.trim() && isOutside && (ITEM.test(line) || !body.at(-1).trim())) break;
      body.push(line.slice(Math.min(spaces, item[0].length - item[3].length)));
    }
    const inner = blocks(body, copyLabel, depth + 1);
    const isTight = inner.length > 0 && inner[0].nodeName === "P";
    if (isTight) inner.splice(0, 1, ...inner[0].childNodes);
    list.append(element("li", ...inner));
  }
  return [list, i];
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
}

function table(head, body) {
  const cell = (name) => (text) => element(name, ...inline(text));
  const row = (name, texts) => element("tr", ...texts.slice(0, head.length).map(cell(name)));
  const rows = body.map((texts) => row("td", texts));
  return element("table", element("thead", row("th", head)), element("tbody", ...rows));
}

const INLINE = new RegExp(
  [
    /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)/, // code
    /\*\*(?=\S)([\s\S]*?\S)\*\*/,
    /\*(?=[^\s*])([^*]*[^\s*])\*/,
    /~~(?=\S)([\s\S]*?\S)~~/,
    /\[([^\[\]]+)\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)\)/, // [label](target)
    /(https?:\/\/[^\s<>"'`，。；！？）】]+[^\s<>"'`.,:;!?)，。；！？）】])/,
  ]
    .map((form) => form.source)
    .join("|"),
  "g",
);

function inline(text, depth = 0) {
  const nodes = [];
  let last = 0;
  if (depth > MAX_DEPTH) return [text];
  for (const found of text.matchAll(INLINE)) {
    if (found.index > last) nodes.push(text.slice(last, found.index));
    last = found.index + found[0].length;
    const [whole, , code, strong, emphasis, struck, label, target, bare] = found;
    if (code !== undefined) nodes.push(element("code", code.trim() || code));
    else if (strong !== undefined) nodes.push(element("strong", ...inline(strong, depth + 1)));
    else if (emphasis !== undefined) nodes.push(element("em", ...inline(emphasis, depth + 1)));
    else if (struck !== undefined) nodes.push(element("del", ...inline(struck, depth + 1)));
    else if (bare !== undefined) nodes.push(link(bare, [bare]));
    else if (SAFE.test(target)) nodes.push(link(target, inline(label, depth + 1)));
    else nodes.push(whole);
  }
  if (last < text.length) nodes.push(text.slice(last));
  return nodes;
}

function link(target, children) {
  const node = element("a", ...children);
  node.href = target;
  node.target = "_blank";
  node.rel = "noopener noreferrer nofollow";
  return node;
}
