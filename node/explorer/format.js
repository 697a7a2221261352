// Numbers, times, hashes and tables as everybody reads them.

import { h } from "./dom.js";

const whole = new Intl.NumberFormat("en-GB");
const clock = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "long" });

export const count = (value) => whole.format(value);

export function plural(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit && value < 100 ? value.toPrecision(3) : Math.round(value)} ${units[unit]}`;
}

export function loss(value) {
  if (value === null || value === undefined) return "–";
  return Math.abs(value) >= 1e-4 || value === 0 ? value.toPrecision(4) : value.toExponential(2);
}

export function seconds(value) {
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 90) return `${value.toFixed(value < 10 ? 1 : 0)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  if (value < 129600) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / 86400)} days`;
}

export function absolute(ms) {
  return clock.format(new Date(ms));
}

export function relative(ms, now = Date.now()) {
  const away = (now - ms) / 1000;
  if (Math.abs(away) < 1.5) return "just now";
  return away > 0 ? `${seconds(Math.round(away))} ago` : `in ${seconds(Math.round(-away))}`;
}

/** Relative, renewed by the shell; the whole date is its title. */
export function time(ms) {
  if (!ms) return h("span", { class: "muted" }, "–");
  // Beyond what a date can say (deadlines of "never").
  if (ms > 8.64e15) return h("span", {}, "never");
  return h(
    "time",
    { datetime: new Date(ms).toISOString(), title: absolute(ms), "data-ms": ms },
    relative(ms),
  );
}

export const shorten = (text) => (text.length > 18 ? `${text.slice(0, 8)}…${text.slice(-6)}` : text);

/** A hash, shortened, with all of it as its title and a button that copies it. */
export function hash(text, target = null, what = "hash") {
  const shown = shorten(text);
  return h(
    "span",
    { class: "hash" },
    target === null
      ? h("code", { title: text }, shown)
      : h("a", { href: `#/${target}/${text}`, title: text }, h("code", {}, shown)),
    h("button", { type: "button", class: "copy", "data-copy": text, "aria-label": `Copy ${what} ${shown}` }),
  );
}

export const account = (address) => hash(address, "accounts", "address");
export const blockLink = (height) => h("a", { href: `#/blocks/${height}` }, count(height));
export const taskLink = (task, title) =>
  h("a", { href: `#/tasks/${task}`, title: task }, title && title.trim() ? title : shorten(task));

const TONES = {
  open: "info",
  complete: "good",
  settled: "good",
  accepted: "good",
  ready: "good",
  failed: "bad",
  confirmed: "good",
  included: "good",
  running: "info",
  taken: "info",
  qualified: "info",
  pending: "warn",
  unsettled: "warn",
  revealing: "info",
  void: "bad",
  rejected: "bad",
  refunded: "bad",
  expired: "bad",
  closed: "bad",
  closing: "warn",
  lapsed: "bad",
};

export function badge(text, tone = TONES[text] ?? "plain") {
  return h("span", { class: `badge ${tone}` }, text);
}

export function progress(value, most, label) {
  return h(
    "span",
    { class: "progress" },
    h("progress", { value, max: Math.max(most, 1), "aria-label": label }),
    h("span", {}, `${count(value)} of ${count(most)}`),
  );
}

/** Named facts; entries that are null are left out. */
export function facts(entries) {
  return h(
    "dl",
    { class: "facts" },
    entries.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}

/** A table that becomes cards without its minor columns where there is no room; the roles keep it a table for screen readers then too. */
export function table({ caption, columns, rows, empty, key = null }) {
  if (!rows.length) return h("p", { class: "empty" }, empty);
  const title = h("caption", { class: "hidden" }, caption);
  const name = (column) =>
    [column.number && "number", column.minor && "minor"].filter(Boolean).join(" ") || null;
  const heads = columns.map((column) =>
    h("th", { scope: "col", role: "columnheader", class: name(column) }, column.title),
  );
  const lines = rows.map((row, place) =>
    h(
      "tr",
      { role: "row", "data-key": key === null ? null : key(row, place) },
      columns.map((column) =>
        h(
          "td",
          { role: "cell", "data-label": column.title, class: name(column) },
          h("div", {}, column.cell(row, place)),
        ),
      ),
    ),
  );
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { role: "table" },
      title,
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads)),
      h("tbody", { role: "rowgroup" }, lines),
    ),
  );
}

export function section(title, ...children) {
  return h("section", { class: "panel" }, h("h2", {}, title), children);
}

export function fold(summary, ...children) {
  return h("details", {}, h("summary", {}, summary), children);
}

/** Links to the first and the next page of a list. */
export function pager(base, cursor, next, words = ["First page", "Next page"]) {
  if (!cursor && !next) return null;
  return h(
    "p",
    { class: "pager" },
    cursor ? h("a", { href: `#/${base}` }, words[0]) : null,
    next ? h("a", { href: `#/${base}?cursor=${encodeURIComponent(next)}` }, words[1]) : null,
  );
}

/** A picture of this node's making; words where it can't be made, which is then not asked for again. */
const failed = new Set();

export function picture(source, attributes, caption, fallback) {
  if (failed.has(source)) return h("p", { class: "empty" }, fallback);
  const image = h("img", { src: source, ...attributes });
  const figure = h("figure", { class: "preview" }, image, caption);
  image.addEventListener(
    "error",
    () => {
      failed.add(source);
      document
        .querySelector(`img[src="${CSS.escape(source)}"]`)
        ?.closest("figure")
        .replaceWith(h("p", { class: "empty" }, fallback));
    },
    { once: true },
  );
  return figure;
}

export function list(items) {
  return h(
    "ul",
    { class: "plain" },
    items.map((item) => h("li", {}, item)),
  );
}
