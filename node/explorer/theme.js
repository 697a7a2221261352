// Runs before the first paint: the theme that was chosen, if one was. Without a choice the system's holds.
"use strict";
try {
  const chosen = localStorage.getItem("bmif-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // Storage may be forbidden; the system's theme then holds.
}
