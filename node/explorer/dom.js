// Elements are built, never parsed: whatever a task or an organisation calls itself stays text.

const SVG = "http://www.w3.org/2000/svg";

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

function assign(element, attributes) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : String(value));
  }
  return element;
}

/** An HTML element; attributes that are null or false are left out. */
export function h(tag, attributes, ...children) {
  return append(assign(document.createElement(tag), attributes), children);
}

/** The same of SVG. */
export function s(tag, attributes, ...children) {
  return append(assign(document.createElementNS(SVG, tag), attributes), children);
}

const KEPT = new Set(["open", "data-width"]);
const MEASURED = ["tabindex", "role", "aria-label"];

function isKept(element, name) {
  return KEPT.has(name) || (MEASURED.includes(name) && element.classList.contains("scroll"));
}

/** Where a table is wider than its place, the keyboard reaches it, and it has a name; elsewhere it is no stop. */
export function markScrolling(root) {
  for (const element of root.querySelectorAll(".scroll")) {
    if (element.scrollWidth > element.clientWidth) {
      const label = element.querySelector("caption")?.textContent ?? "Table";
      assign(element, { tabindex: "0", role: "region", "aria-label": label });
    } else MEASURED.forEach((name) => element.removeAttribute(name));
  }
}

/** Makes `old` look like `fresh` and keeps the elements that are there: focus, selection, what is unfolded. */
export function morph(old, fresh) {
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !isKept(old, name)) old.removeAttribute(name);
  }
  for (const { name, value } of [...fresh.attributes]) {
    if (!isKept(old, name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const before = [...old.childNodes];
  const after = [...fresh.childNodes];
  after.forEach((node, index) => {
    const place = before[index];
    if (place === undefined) old.append(node);
    else if (!isSame(place, node)) place.replaceWith(node);
    else if (node.nodeType === Node.TEXT_NODE) {
      if (place.data !== node.data) place.data = node.data;
    } else morph(place, node);
  });
  before.slice(after.length).forEach((node) => node.remove());
}

function isSame(one, other) {
  if (one.nodeType !== other.nodeType || one.nodeName !== other.nodeName) return false;
  return (
    one.nodeType !== Node.ELEMENT_NODE || one.getAttribute("data-key") === other.getAttribute("data-key")
  );
}
