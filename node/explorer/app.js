// The shell: which page is shown, what keeps it fresh, the head, the banner, search, copying, the theme.

import { accountPage, accounts } from "./accounts.js";
import { ApiError, get } from "./api.js";
import { block, blocks, mempool, overview, search, transaction } from "./chain.js";
import { committee, committees } from "./committees.js";
import { h, markScrolling, morph } from "./dom.js";
import { absolute, count, relative, shorten } from "./format.js";
import { follow } from "./live.js";
import { federation, federations, inference, inferenceModel, job } from "./others.js";
import { task, tasks } from "./tasks.js";
import { peers, validators } from "./trust.js";

const ROUTES = [
  [/^\/$/, overview],
  [/^\/blocks$/, blocks],
  [/^\/blocks\/([^/]+)$/, block],
  [/^\/transactions\/([^/]+)$/, transaction],
  [/^\/mempool$/, mempool],
  [/^\/tasks$/, tasks],
  [/^\/tasks\/([^/]+)$/, task],
  [/^\/validators$/, validators],
  [/^\/accounts$/, accounts],
  [/^\/accounts\/([^/]+)$/, accountPage],
  [/^\/inference$/, inference],
  [/^\/inference\/jobs\/([^/]+)$/, job],
  [/^\/inference\/([^/]+)$/, inferenceModel],
  [/^\/federations$/, federations],
  [/^\/federations\/([^/]+)$/, federation],
  [/^\/committees$/, committees],
  [/^\/committees\/([^/]+)$/, committee],
  [/^\/peers$/, peers],
  [/^\/search$/, search],
];
const REFRESH_MS = 1000; // how long a page rests between two readings, unless it says otherwise
const POLL_MS = 15000;
const TICK_MS = 5000;
const ANNOUNCE_MS = 20000;

const find = (id) => document.getElementById(id);
const main = find("main");
const state = {
  page: null,
  data: null,
  turn: 0,
  timer: null,
  ended: 0,
  isLive: false,
  head: null,
  final: null,
  told: 0,
};

// --- pages ------------------------------------------------------------------------------------

function parse() {
  const text = location.hash.replace(/^#/, "") || "/";
  const [path, query = ""] = text.split("?");
  for (const [pattern, make] of ROUTES) {
    const found = pattern.exec(path);
    if (found) return { path, page: make(found.slice(1).map(decode), new URLSearchParams(query)) };
  }
  return { path, page: null };
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

async function show(isFirst) {
  const { path, page } = parse();
  state.page = page;
  state.data = null;
  state.turn += 1;
  clearTimeout(state.timer);
  state.timer = null;
  markPlace(path);
  if (page === null) {
    settle(
      "No such page",
      [
        h("p", { class: "empty" }, "The explorer has no page of this address. "),
        h("p", {}, h("a", { href: "#/" }, "Go to the overview")),
      ],
      isFirst,
    );
    return;
  }
  document.title = `${page.title} – bmif explorer`;
  main.setAttribute("aria-busy", "true");
  main.replaceChildren(h("h1", { tabindex: "-1" }, page.title), h("p", { class: "loading" }, "Loading"));
  await load(isFirst, true);
}

async function load(isFirst, isNew) {
  const { page, turn } = state;
  try {
    const data = await page.load();
    if (turn !== state.turn) return;
    state.data = data;
    if (isNew) settle(page.heading?.(data) ?? page.title, page.view(data, getWidth()), isFirst);
    else render();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (turn !== state.turn) return;
    // A page that is shown stays as it is; the banner says that the node is away.
    if (isNew || state.data === null) settle(page.title, [buildError(error)], isFirst);
    if (error.status === 0) checkHealth();
  } finally {
    if (turn === state.turn) {
      main.removeAttribute("aria-busy");
      state.ended = Date.now();
    }
  }
}

function buildPage(heading, content) {
  const fresh = h("main", {}, h("h1", { tabindex: "-1" }, heading), content);
  return fresh;
}

function settle(heading, content, isFirst) {
  main.replaceChildren(...buildPage(heading, content).childNodes);
  markScrolling(main);
  main.removeAttribute("aria-busy");
  document.title = `${heading} – bmif explorer`;
  if (!isFirst) {
    window.scrollTo(0, 0);
    main.querySelector("h1").focus({ preventScroll: true });
  }
}

function render() {
  const { page, data } = state;
  if (data === null) return;
  const heading = page.heading?.(data) ?? page.title;
  const fresh = buildPage(heading, page.view(data, getWidth()));
  for (const { name, value } of main.attributes) fresh.setAttribute(name, value);
  morph(main, fresh);
  markScrolling(main);
  document.title = `${heading} – bmif explorer`;
}

function buildError(error) {
  return h(
    "div",
    { class: "notice bad", role: "alert" },
    h("p", { class: "strong" }, error.message),
    error.remedy ? h("p", {}, error.remedy) : null,
    h("p", {}, h("button", { type: "button", "data-action": "retry" }, "Try again")),
  );
}

/** What a chart may take: the page without its margins. */
function getWidth() {
  const style = getComputedStyle(main);
  const inner = main.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  return Math.max(260, Math.min(1120, Math.floor(inner) - (inner < 600 ? 26 : 42)));
}

function markPlace(path) {
  const place = `#/${path.split("/")[1] ?? ""}`;
  for (const link of find("nav").querySelectorAll("a")) {
    if (link.getAttribute("href") === place) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

// --- freshness --------------------------------------------------------------------------------

/** Reads the page again once it has rested, and not while nobody looks. */
function refresh() {
  if (state.timer !== null || state.page === null) return;
  const wait = Math.max(0, state.ended + (state.page.rest ?? REFRESH_MS) - Date.now());
  state.timer = setTimeout(async () => {
    const { turn } = state;
    if (document.hidden) {
      state.timer = null;
      return;
    }
    await load(true, state.data === null);
    if (turn === state.turn) state.timer = null;
  }, wait);
}

function concerns(event) {
  const live = state.page?.live ?? [];
  return typeof live === "function" ? live(event) : live.includes(event.kind);
}

function onEvent(event) {
  if (event.kind === "head") state.head = event.data.height;
  if (event.kind === "finalized") state.final = event.data.height;
  if (event.kind === "head" || event.kind === "finalized") showHead();
  if (event.kind === "conflict") checkHealth();
  if (concerns(event)) refresh();
}

function onState(found) {
  state.isLive = found === "live";
  showHead();
  if (state.isLive) checkHealth();
}

async function checkHealth() {
  try {
    const status = await get("/v1/status");
    state.head = status.head.height;
    state.final = status.finalized.height;
    find("node").textContent =
      `${status.name}, ${status.network}, version ${status.version}. A node's own view of its chain.`;
    showHead();
    if (status.ready) return showBanner(null);
    const ready = await get("/readyz").catch((error) => error.problem ?? { criteria: [] });
    const missing = (ready.criteria ?? [])
      .filter((item) => item.blocking && !item.ok)
      .map((item) => item.detail);
    showBanner(
      `This node is behind or not ready: ${(missing.length ? missing : status.reasons).join("; ")}. What you see may be old.`,
    );
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    showBanner(`${error.message}. ${error.remedy}.`);
  }
}

function showBanner(text) {
  const banner = find("banner");
  if ((banner.textContent || null) === text) return;
  banner.replaceChildren(...(text === null ? [] : [h("p", { class: "notice warn" }, text)]));
}

function showHead() {
  const height = state.head === null ? "" : `Block ${count(state.head)}, final ${count(state.final ?? 0)}`;
  const text = state.isLive ? height || "live" : `${height ? `${height}, ` : ""}not live`;
  find("live").textContent = text;
  find("head").title = state.isLive
    ? "Events arrive as they happen"
    : "The stream of events is broken; it is tried again";
  find("dot").className = state.isLive ? "dot good" : "dot bad";
  // Now and then, so that nobody who listens is talked at without end.
  if (state.head !== null && Date.now() - state.told > ANNOUNCE_MS) {
    state.told = Date.now();
    find("announce").textContent = text;
  }
}

function tick() {
  for (const element of document.querySelectorAll("time[data-ms]")) {
    const text = relative(Number(element.dataset.ms));
    if (element.textContent !== text) element.textContent = text;
    element.title ||= absolute(Number(element.dataset.ms));
  }
}

// --- what the reader does ---------------------------------------------------------------------

async function copy(button) {
  const text = button.dataset.copy;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Over plain HTTP from another machine there is no clipboard of the page's own.
    const area = h("textarea", { readonly: true, class: "hidden" }, text);
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.classList.add("done");
  find("announce").textContent = `Copied ${shorten(text)}`;
  setTimeout(() => button.classList.remove("done"), 1500);
}

function getTheme() {
  return (
    document.documentElement.dataset.theme ??
    (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")
  );
}

function showTheme() {
  const other = getTheme() === "dark" ? "Light" : "Dark";
  find("theme").textContent = other;
  find("theme").setAttribute("aria-label", `Use the ${other.toLowerCase()} theme`);
}

function changeTheme() {
  const theme = getTheme() === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("bmif-theme", theme);
  } catch {
    // Not kept where storage is forbidden.
  }
  showTheme();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.copy) copy(button);
  if (button?.dataset.action === "retry") show(true);
  if (event.target.closest(".skip")) {
    // Fragments name pages here, so the link can't lead to an element by itself.
    event.preventDefault();
    main.focus();
  }
});
find("theme").addEventListener("click", changeTheme);
find("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = find("query").value.trim();
  if (text) location.hash = `#/search?q=${encodeURIComponent(text)}`;
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
window.addEventListener("hashchange", () => show(false));
document.addEventListener("visibilitychange", () => !document.hidden && refresh());
document.addEventListener("toggle", () => markScrolling(main), { capture: true });
let width = 0;
new ResizeObserver(() => {
  markScrolling(main);
  if (getWidth() === width) return;
  width = getWidth();
  render();
}).observe(main);

showTheme();
setInterval(tick, TICK_MS);
setInterval(() => {
  checkHealth();
  // Without events the page is read anew now and then.
  if (!state.isLive) refresh();
}, POLL_MS);
follow({ onEvent, onGap: refresh, onState });
checkHealth();
show(true);
