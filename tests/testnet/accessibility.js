// What is wrong with the page that is shown, in words; the body of a function that a test calls.

const found = [];
const shown = (e) => e.checkVisibility({ visibilityProperty: true });
const say = (what, e) => found.push(what + ": " + e.outerHTML.slice(0, 160));
const name = (e) =>
  (e.getAttribute("aria-label") || e.innerText || e.getAttribute("alt") || e.title || "").trim();

// Names of what can be pressed, labels of what can be filled in.
for (const e of document.querySelectorAll("a[href], button, summary"))
  if (shown(e) && !name(e) && !e.querySelector("img[alt]:not([alt=''])")) say("no name", e);
for (const e of document.querySelectorAll("input"))
  if (!e.labels.length && !e.getAttribute("aria-label")) say("no label", e);
for (const e of document.querySelectorAll("progress")) if (!e.getAttribute("aria-label")) say("no name", e);
for (const e of document.querySelectorAll("img")) if (!e.hasAttribute("alt")) say("no alt", e);
for (const e of document.querySelectorAll("main svg"))
  if (e.getAttribute("role") !== "img" || !e.querySelector("title")) say("no title", e);

// One first heading, and none that skips a level.
let before = 0;
for (const e of document.querySelectorAll("h1, h2, h3, h4, h5")) {
  const level = Number(e.tagName[1]);
  if (level > before + 1) say("heading skips a level", e);
  before = level;
}
if (document.querySelectorAll("h1").length !== 1) found.push("not one h1");

// Tables say what they are and what their columns are.
for (const e of document.querySelectorAll("table")) {
  if (!e.caption || !e.caption.textContent.trim()) say("no caption", e);
  for (const head of e.querySelectorAll("th")) if (!head.scope) say("no scope", head);
}

// What scrolls sideways is a stop of the keyboard and has a name; what does not is no stop.
for (const e of document.querySelectorAll("body *")) {
  const scrolls = /auto|scroll/.test(getComputedStyle(e).overflowX) && e.scrollWidth > e.clientWidth;
  if (e.matches("input, textarea, progress") || !shown(e)) continue;
  const isStop = e.tabIndex === 0 && e.getAttribute("role") === "region" && Boolean(e.getAttribute("aria-label"));
  if (scrolls && !isStop) say("scrolls without a stop", e);
  if (!scrolls && e.matches(".scroll[tabindex], .scroll[role]")) say("a stop that does not scroll", e);
}

// Ids are unique; landmarks are there; the language is named.
const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
if (new Set(ids).size !== ids.length) found.push("ids are not unique");
for (const tag of ["header", "nav", "main", "footer"])
  if (document.querySelectorAll(tag).length !== 1) found.push("not one " + tag);
if (!document.documentElement.lang) found.push("no language");
if (!document.title) found.push("no title");

// Contrast of all text against the first ground below it (WCAG 2.2: 4.5, or 3 for large text).
const parse = (text) => (text.match(/[\d.]+/g) || []).map(Number);
const light = ([r, g, b]) =>
  [r, g, b]
    .map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
function ground(e) {
  for (; e; e = e.parentElement) {
    const colour = parse(getComputedStyle(e).backgroundColor);
    if (colour.length === 3 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
}
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const e = node.parentElement;
  if (!node.data.trim() || !shown(e) || e.closest("noscript, .hidden, script")) continue;
  const style = getComputedStyle(e);
  const front = parse(e.closest("svg") ? style.fill : style.color);
  const [low, high] = [light(front), light(ground(e))].sort((one, other) => one - other);
  const size = parseFloat(style.fontSize);
  const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  if ((high + 0.05) / (low + 0.05) < (isLarge ? 3 : 4.5))
    say("contrast " + ((high + 0.05) / (low + 0.05)).toFixed(2), e);
}

// Targets of 24 px (WCAG 2.5.8); links in running text are excepted there.
for (const e of document.querySelectorAll("button")) {
  const box = e.getBoundingClientRect();
  if (shown(e) && (box.width < 24 || box.height < 24)) say("small target", e);
}
return found;
