// The loss of a task against its targets: an SVG on a logarithmic scale, redrawn at the width that there is.

import { s } from "./dom.js";
import { count, loss } from "./format.js";

const HEIGHT = 320;
const LEFT = 58;
const RIGHT = 12;
const TOP = 16;
const BOTTOM = 40;
const REACHED = new Set(["settled", "taken", "qualified"]);

/** As short as four digits can be. */
const tidy = (value) => String(Number(value.toPrecision(4)));

export const isReached = (rung) => REACHED.has(rung.state);

/** 1, 2 and 5 of every power of ten between the bounds; powers alone where these would be too many. */
function getTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const digit of [1, 2, 5]) ticks.push(digit * 10 ** power);
  }
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  return inside.length > 9 ? inside.filter((tick) => /^1(e|0*$|\.?0*$)|^0\.0*1$/.test(String(tick))) : inside;
}

function getStepTicks(last) {
  const wanted = Math.max(1, last / 6);
  const power = 10 ** Math.floor(Math.log10(wanted));
  const step = Math.max(
    1,
    [1, 2, 5, 10].map((digit) => digit * power).find((size) => size >= wanted),
  );
  const ticks = [];
  for (let tick = 0; tick <= last; tick += step) ticks.push(tick);
  return ticks;
}

/** `losses`: [{step, value}] ascending; `ladder`: rungs of the API; `milestones`: steps at which rungs were taken. */
export function drawLosses({ losses, ladder, milestones, width, summary }) {
  const values = [...losses.map((item) => item.value), ...ladder.map((rung) => rung.target_value)].filter(
    (v) => v > 0,
  );
  const low = Math.min(...values) / 1.25;
  const high = Math.max(...values) * 1.25;
  const last = Math.max(1, ...losses.map((item) => item.step));
  const x = (step) => LEFT + (step / last) * (width - LEFT - RIGHT);
  const y = (value) => {
    // A noised loss can come out at or below nothing, which has no place on this scale: it is drawn at the edge.
    const part = (Math.log(Math.max(value, low)) - Math.log(low)) / (Math.log(high) - Math.log(low));
    return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM);
  };
  const round = (number) => Math.round(number * 10) / 10;
  const points = losses.map((item) => `${round(x(item.step))},${round(y(item.value))}`).join(" ");
  let label = Infinity;
  return s(
    "svg",
    {
      class: "chart",
      viewBox: `0 0 ${width} ${HEIGHT}`,
      width,
      height: HEIGHT,
      role: "img",
      "aria-labelledby": "chart-title chart-desc",
    },
    s("title", { id: "chart-title" }, "Validation loss by training step, against the targets"),
    s("desc", { id: "chart-desc" }, summary),
    getTicks(low, high).map((tick) => [
      s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: round(y(tick)), y2: round(y(tick)) }),
      s("text", { class: "tick", x: LEFT - 8, y: round(y(tick)) + 4, "text-anchor": "end" }, tidy(tick)),
    ]),
    getStepTicks(last).map((tick) =>
      s(
        "text",
        { class: "tick", x: round(x(tick)), y: HEIGHT - BOTTOM + 20, "text-anchor": "middle" },
        count(tick),
      ),
    ),
    s(
      "text",
      { class: "axis", x: LEFT + (width - LEFT - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" },
      "Step",
    ),
    ladder.map((rung) => {
      const height = round(y(rung.target_value));
      return s(
        "g",
        { class: isReached(rung) ? "rung reached" : rung.state === "void" ? "rung void" : "rung" },
        s("line", { x1: LEFT, x2: width - RIGHT, y1: height, y2: height }),
      );
    }),
    s("polyline", { class: "curve", points }),
    ladder.map((rung) => {
      const height = round(y(rung.target_value));
      // Rungs that lie close share the room: the lower label gives way.
      if (Math.abs(label - height) < 15) return null;
      label = height;
      return s(
        "text",
        {
          class: isReached(rung) ? "label reached" : "label",
          x: width - RIGHT - 4,
          y: height - 5,
          "text-anchor": "end",
        },
        `rung ${rung.rung}: ${tidy(rung.target_value)}`,
      );
    }),
    losses.map((item) =>
      s(
        "circle",
        {
          class: milestones.has(item.step) ? "point milestone" : "point",
          cx: round(x(item.step)),
          cy: round(y(item.value)),
          r: milestones.has(item.step) ? 5 : 2.5,
        },
        s("title", {}, `Step ${item.step}: loss ${loss(item.value)}`),
      ),
    ),
  );
}
