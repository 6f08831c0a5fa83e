"use strict";

// The page is whole without this script: it adds the theme switch, sorting, and the slider over the front.

const byId = (id) => document.getElementById(id);

function startTheme() {
  const button = byId("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const name = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  dark.addEventListener("change", name);
  name();
  button.hidden = false;
}

function valueOf(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.sort ?? cell.textContent.trim();
  return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
}

function compare(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other), "en", { numeric: true });
}

function startSorting(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
      rows.sort(([one], [other]) => (down ? -1 : 1) * compare(one, other));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

const whole = (value) => Math.round(value).toLocaleString("en-US");
const minus = (text) => text.replace("-", "−");
const short = (value) => {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-4 && size < 1e6) {
    const digits = Math.max(0, 2 - Math.floor(Math.log10(size)));
    return minus(value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
  }
  const [mantissa, power] = value.toExponential(2).split("e");
  const raised = [...String(Number(power))].map((digit) => (digit === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit])).join("");
  return minus(`${mantissa} · 10${raised}`);
};

// The choices of every layer at a point, from those of the first point on.
function choicesAt(data, point) {
  const choices = [...data.first];
  for (let index = 1; index <= point; index += 1) {
    const change = data.changes[index];
    for (let place = 0; place < change.length; place += 2) choices[change[place]] = change[place + 1];
  }
  return choices;
}

const heightOf = (bits) => (bits === null ? 100 : 10 * Math.min(bits, 8));

function startExplorer(data) {
  const slider = byId("slider");
  const figures = data.figures;
  let choices = [];

  const put = (id, text) => { if (byId(id)) byId(id).textContent = text; };

  function draw() {
    const point = Number(slider.value);
    choices = choicesAt(data, point);
    byId("now").style.left = `${data.x[point]}%`;
    byId("now").style.top = `${data.y[point]}%`;
    byId("bits-now").setAttribute("d", choices.map((choice, layer) => {
      const height = heightOf(data.weight_bits[choice]);
      return `M${layer + 0.1} 100v${-height}h.8v${height}z`;
    }).join(""));
    const size = figures.weight_bytes[point];
    put("now-bytes", `${whole(size)} bytes`);
    put("now-ratio", `${(100 * figures.weight_ratio[point]).toFixed(2)} % of float32`);
    put("now-bits", figures.mean_bits[point].toFixed(2));
    put("now-loss", short(figures.loss[point]));
    if (figures.low) put("now-interval", `${short(figures.low[point])} to ${short(figures.high[point])}`);
    if (figures.latency_ms) put("now-latency", `${figures.latency_ms[point].toFixed(3)} ms`);
    const same = choices.filter((choice, layer) => choice === data.deployed[layer]).length;
    if (data.deployed.length) put("now-same", `${same} of ${choices.length} layers as deployed`);
    put("now-command", `mixbit search sensitivity.json --budget weight_bytes=${Math.ceil(size)} --out plan.json`);
    slider.setAttribute("aria-valuetext", `${whole(size)} bytes, predicted loss ${short(figures.loss[point])}`);
  }

  function tell(event) {
    const box = byId("bits").getBoundingClientRect();
    const layer = Math.floor((event.clientX - box.left) / box.width * choices.length);
    if (!(layer in choices)) return;
    const deployed = data.deployed.length ? `, deployed ${data.schemes[data.deployed[layer]]}` : "";
    put("bits-at", `${layer + 1} · ${data.layers[layer]}: ${data.schemes[choices[layer]]}${deployed}`);
  }

  byId("bits-deployed").setAttribute("d", data.deployed.map((choice, layer) => (
    `M${layer + 0.1} ${100 - heightOf(data.weight_bits[choice])}h.8`
  )).join(""));
  byId("back").addEventListener("click", () => { slider.value = data.start; draw(); });
  byId("bits").addEventListener("pointermove", tell);
  byId("bits").addEventListener("pointerleave", () => put("bits-at", ""));
  slider.value = data.start; // browsers keep what it was before a reload
  slider.addEventListener("input", draw);
  byId("now").hidden = false;
  byId("explorer").hidden = false;
  draw();
}

startTheme();
document.querySelectorAll("table.sortable").forEach(startSorting);
if (byId("data")) startExplorer(JSON.parse(byId("data").textContent));
