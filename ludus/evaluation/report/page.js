"use strict";
// A readout under the pointer for every chart, and everything unfolded on paper. The page is whole without it.
const BOX = 1000;

function curves(frame) {
  return [...frame.querySelectorAll("path[data-name]")].map((path) => ({
    path,
    name: path.dataset.name,
    tone: path.classList[1],
    points: path.getAttribute("d").slice(1).split("L").map((pair) => pair.split(" ").map(Number)),
  }));
}

function closest(points, x) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle; else high = middle;
  }
  return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? points[low] : points[high];
}

function written(value, frame) {
  if (frame.dataset.share !== undefined) return (100 * value).toFixed(1) + "\u00a0%";
  const size = Math.abs(value);
  return size >= 10000 ? Math.round(value).toLocaleString("en") : Number(value.toPrecision(4)).toString();
}

function child(parent, name, className, text) {
  const node = parent.appendChild(document.createElement(name));
  node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function watch(frame) {
  const lines = curves(frame);
  const [left, right] = frame.dataset.x.split(" ").map(Number);
  const [low, high] = frame.dataset.y.split(" ").map(Number);
  const cross = child(frame, "i", "cross"), tip = child(frame, "div", "tip");
  const picks = frame.dataset.nearest !== undefined;

  const step = (place) => Math.round(left + place / BOX * (right - left)).toLocaleString("en");

  function move(event) {
    const area = frame.getBoundingClientRect();
    const x = (event.clientX - area.left) / area.width * BOX, y = (event.clientY - area.top) / area.height * BOX;
    let found = lines.map((line) => ({ line, at: closest(line.points, x) }));
    if (picks) {
      found.sort((one, other) => Math.abs(one.at[1] - y) - Math.abs(other.at[1] - y));
      found = found.slice(0, 1);
      for (const line of lines) line.path.classList.toggle("picked", line === found[0].line);
    }
    const near = found.reduce((best, one) => Math.abs(one.at[0] - x) < Math.abs(best.at[0] - x) ? one : best).at[0];
    tip.replaceChildren();
    child(tip, "span", "step", frame.dataset.over + " " + step(near));
    for (const { line, at } of found) {
      if (!picks && Math.abs(at[0] - near) > BOX / 12) continue;
      const elsewhere = Math.abs(at[0] - near) > BOX / 200 ? " at " + step(at[0]) : "";
      const row = child(tip, "span", line.tone, line.name + elsewhere + " ");
      child(row, "b", "", written(high - at[1] / BOX * (high - low), frame));
    }
    cross.style.left = near / 10 + "%";
    tip.style.left = near / 10 + "%";
    tip.classList.toggle("flip", near > BOX / 2);
    frame.classList.add("live");
  }

  function leave() {
    frame.classList.remove("live");
    for (const line of lines) line.path.classList.remove("picked");
  }

  frame.addEventListener("pointermove", move);
  frame.addEventListener("pointerdown", move);
  frame.addEventListener("pointerleave", leave);
}

for (const frame of document.querySelectorAll(".frame")) watch(frame);

const unfolded = new Set();
window.addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details:not([open])")) { fold.open = true; unfolded.add(fold); }
});
window.addEventListener("afterprint", () => {
  for (const fold of unfolded) fold.open = false;
  unfolded.clear();
});
