"use strict";
document.documentElement.classList.add("js");

const VERDICTS = ["bitwise", "ulp", "bounded", "unsupported", "error", "missing", "suspect", "diverged"];
const SYMBOLS = ["=", "≈", "≤", "–", "!", "∅", "?", "×"];
const FIRST_ROWS = 100;
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

/* One tooltip, with the text of titles: on hover with a mouse, on focus with a keyboard, on touch with a finger. */
const tip = document.getElementById("tip");

function showTip(mark, text) {
  tip.textContent = text;
  tip.hidden = false;
  const at = mark.getBoundingClientRect();
  const left = Math.min(Math.max(8, at.left + at.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
  const above = at.top - tip.offsetHeight - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 8 ? above : at.bottom + 8}px`;
}

function onTip(event) {
  const mark = event.target.closest?.("[data-tip]");
  if (!mark) {
    tip.hidden = true;
    return;
  }
  const under = event.type === "focusin" ? [] : document.elementsFromPoint(event.clientX, event.clientY);
  const marks = new Set([mark, ...under.map((element) => element.closest("[data-tip]")).filter(Boolean)]);
  showTip(mark, [...marks].map((one) => one.dataset.tip).join("\n"));
}

for (const kind of ["pointerover", "focusin"]) document.addEventListener(kind, onTip);
for (const kind of ["focusout", "scroll"]) document.addEventListener(kind, () => { tip.hidden = true; }, true);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
for (const mark of all(".mark")) {
  const title = mark.querySelector("title");
  mark.dataset.tip = title.textContent;
  title.remove();
}

/* The heat map: each square is the worst of the groups that pass the filters. */
const heat = document.getElementById("heat");
const map = JSON.parse(document.getElementById("map-data").textContent);
const taps = all("tbody tr:not(.section)", heat);
const columns = [
  ...map.layers.map((layer, place) => ({ layer: place, name: layer === null ? "outside the layers" : `layer ${layer}` })),
  ...map.axes.flatMap(([, values], axis) => values.map((name, value) => ({ axis, value, name }))),
];
const names = taps.map((row) => row.dataset.tap);

function worse(one, other) {
  return !other || one.severity > other.severity || (one.severity === other.severity && one.r > other.r);
}

function worstOf(chosen) {
  const worst = taps.map(() => new Array(columns.length));
  for (const [row, setting, severities, figures] of map.groups) {
    if (chosen.some((value, axis) => value !== "" && Number(value) !== setting[axis])) continue;
    for (let layer = 0; layer < map.layers.length; layer++) {
      if (severities[layer] === ".") continue;
      const r = figures[layer] === null ? -1 : Number(figures[layer]);
      const found = { severity: Number(severities[layer]), r, setting, layer };
      columns.forEach((column, place) => {
        const here = "layer" in column ? column.layer === layer : setting[column.axis] === column.value;
        if (here && worse(found, worst[row][place])) worst[row][place] = found;
      });
    }
  }
  return worst;
}

function described(row, column, found) {
  const r = found.r < 0 ? "–" : found.r === Infinity ? "∞" : String(found.r);
  const where = found.setting.map((value, axis) => map.axes[axis][1][value]);
  if (map.layers[found.layer] !== null) where.push(`layer ${map.layers[found.layer]}`);
  return `${names[row]} · ${column.name}\n${VERDICTS[found.severity]} · r ${r}\nworst at ${where.join(" · ")}`;
}

function paint() {
  const chosen = map.axes.map((_, axis) => heat.ownerDocument.querySelector(`[data-axis="${axis}"]`)?.value ?? "");
  const worst = worstOf(chosen);
  taps.forEach((row, tap) => {
    columns.forEach((column, place) => {
      const square = row.cells[place + 1];
      const found = worst[tap][place];
      square.className = `${found ? `v${found.severity}` : ""}${square.dataset.first ? " first" : ""}`;
      square.textContent = found ? SYMBOLS[found.severity] : "";
      square.removeAttribute("title");
      if (found) {
        square.dataset.tip = described(tap, column, found);
        square.setAttribute("aria-label", square.dataset.tip);
        square.tabIndex = -1;
      } else {
        delete square.dataset.tip;
        square.removeAttribute("aria-label");
        square.removeAttribute("tabindex");
      }
    });
  });
  const first = heat.querySelector("td[tabindex]");
  if (first) first.tabIndex = 0;
}

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function move(square, [down, right]) {
  let row = taps.indexOf(square.parentElement);
  let column = square.cellIndex;
  do {
    row += down;
    column += right;
    if (!taps[row]?.cells[column] || column < 1) return;
  } while (!taps[row].cells[column].dataset.tip);
  const next = taps[row].cells[column];
  square.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

heat.addEventListener("keydown", (event) => {
  const square = event.target.closest("td[data-tip]");
  if (!square) return;
  if (event.key in STEPS) {
    event.preventDefault();
    move(square, STEPS[event.key]);
  } else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    lookInto(square);
  }
});
let touched = null;
heat.addEventListener("click", (event) => {
  const square = event.target.closest("td[data-tip]");
  if (!square) return;
  if (event.pointerType === "touch" && square !== touched) {  /* a finger cannot hover: the first touch shows the tooltip */
    touched = square;
    showTip(square, square.dataset.tip);
  } else lookInto(square);
});
document.getElementById("map-filters").addEventListener("input", paint);

/* The table of findings. */
const filters = document.getElementById("finding-filters");
const text = document.getElementById("finding-text");
const more = document.getElementById("show-all");
const findings = all("#finding-table tbody tr").map((row) => ({ row, text: row.textContent.toLowerCase() }));
const facets = all("[data-column]", filters);
let mostRows = FIRST_ROWS;

function cellText(row, column) {
  const cell = row.cells[column];
  return (cell.querySelector(".badge")?.lastChild ?? cell).textContent.trim();
}

function filter() {
  const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = facets.filter((facet) => facet.value !== "");
  let matching = 0;
  for (const { row, text: whole } of findings) {
    const matches = words.every((word) => whole.includes(word))
      && chosen.every((facet) => cellText(row, facet.dataset.column) === facet.value);
    matching += matches;
    row.hidden = !matches || matching > mostRows;
  }
  const shown = Math.min(matching, mostRows);
  document.getElementById("finding-count").textContent = `${shown} of ${matching} findings shown`
    + (matching < findings.length ? `, out of ${findings.length} in this page` : "");
  more.hidden = matching <= mostRows;
  more.textContent = `Show all ${matching}`;
}

function lookInto(square) {
  const column = columns[square.cellIndex - 1];
  filters.reset();
  const choose = (name, value) => {
    const facet = facets.find((one) => one.dataset.name === name);
    if (!facet || value === null) return;
    if (![...facet.options].some((option) => option.value === String(value))) facet.add(new Option(value));
    facet.value = value;
  };
  choose("tap", names[taps.indexOf(square.parentElement)]);
  if ("layer" in column) choose("layer", map.layers[column.layer]);
  else choose(map.axes[column.axis][0], column.name);
  map.axes.forEach(([name, values], axis) => {
    const value = document.querySelector(`[data-axis="${axis}"]`)?.value ?? "";
    if (value !== "") choose(name, values[value]);
  });
  mostRows = FIRST_ROWS;
  filter();
  tip.hidden = true;
  document.getElementById("findings").scrollIntoView();
  text.focus({ preventScroll: true });
}

filters.addEventListener("input", () => { mostRows = FIRST_ROWS; filter(); });
filters.addEventListener("submit", (event) => event.preventDefault());
filters.addEventListener("reset", () => setTimeout(() => { mostRows = FIRST_ROWS; filter(); }));
more.addEventListener("click", () => { mostRows = Infinity; filter(); });

for (const button of all(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {  /* some browsers do not allow this for a file: select the text instead */
      getSelection().selectAllChildren(code);
    }
  });
}

paint();
filter();
