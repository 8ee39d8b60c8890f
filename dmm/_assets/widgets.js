// Draws one Explorer specification (see dmm/widgets): controls on top, canvases below, every number from the specification.
// The same source runs as an anywidget module in Jupyter and, wrapped by the site's build, as a plain script on static pages.

// ---- numbers as text, as Python's format() writes them ----

const pad2 = (exponent) => exponent.replace(/e([+-])(\d)$/, "e$10$2");

// Python rounds an exact half to the even digit; toFixed and toExponential round it up.
function evenHalf(exact, places, digits) {
  const end = exact.length - places + digits;
  const kept = exact.slice(0, end).replace(/\.$/, "");
  return /^50*$/.test(exact.slice(end)) && "02468".includes(kept.at(-1)) ? kept : null;
}

function fixed(value, digits) {
  const places = Math.min(100, digits + 60);
  const kept = evenHalf(Math.abs(value).toFixed(places), places, digits);
  return kept === null ? value.toFixed(digits) : (value < 0 ? "-" : "") + kept;
}

function exponential(value, digits) {
  const [mantissa, exponent] = Math.abs(value).toExponential(100).split("e");
  const kept = evenHalf(mantissa, 100, digits);
  return kept === null ? value.toExponential(digits) : `${value < 0 ? "-" : ""}${kept}e${exponent}`;
}

function general(value, digits) {
  if (value === 0) return "0";
  const [mantissa, exponent] = exponential(value, Math.max(digits, 1) - 1).split("e");
  const trim = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  if (+exponent < -4 || +exponent >= Math.max(digits, 1)) return pad2(`${trim(mantissa)}e${exponent}`);
  return trim(fixed(value, Math.max(0, Math.max(digits, 1) - 1 - +exponent)));
}

function formatValue(value, form) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value === "string") return value;
  const digits = +(form[1] ?? 0);
  const text = {
    d: () => fixed(value, 0),
    f: () => fixed(value, digits),
    e: () => pad2(exponential(value, digits)),
    g: () => general(value, digits),
    "%": () => `${fixed(100 * value, digits)}%`,
  }[form.at(-1)]();
  return /^-[0.]+%?$/.test(text) ? text.slice(1) : text;
}

// ---- where numbers come from ----

const size = (shape) => shape.reduce((product, length) => product * length, 1);

function nested(flat, shape) {
  if (shape.length === 0) return flat[0];
  const inner = size(shape.slice(1));
  return Array.from({ length: shape[0] }, (_, i) => nested(flat.slice(i * inner, (i + 1) * inner), shape.slice(1)));
}

const unpackedTables = new WeakMap();

// A packed table carries one or two bytes per number, the low one first: number = low + code * step, the largest code is a gap.
function tableNumbers(source) {
  if (!("bytes" in source)) return source.values;
  if (!unpackedTables.has(source)) {
    const letters = atob(source.bytes);
    const [wide, gap] = [source.bits / 8, 2 ** source.bits - 1];
    const code = (_, i) => letters.charCodeAt(wide * i) + (wide === 2 ? 256 * letters.charCodeAt(2 * i + 1) : 0);
    const codes = Array.from({ length: letters.length / wide }, code);
    unpackedTables.set(source, codes.map((entry) => (entry === gap ? null : source.low + entry * source.step)));
  }
  return unpackedTables.get(source);
}

function tableValues(source, settings, controls) {
  let start = 0;
  let block = size(source.shape);
  source.by.forEach((name, axis) => {
    block /= source.shape[axis];
    start += block * controls[name].values.indexOf(settings[name]);
  });
  return nested(tableNumbers(source).slice(start, start + block), source.shape.slice(source.by.length));
}

function bound(value, known) {
  if (Array.isArray(value)) return value.map((entry) => bound(entry, known));
  return typeof value === "string" ? known[value] : value;
}

function scanValues(source, known) {
  const [u, delta, A, B, C] = ["u", "delta", "A", "B", "C"].map((key) => bound(source[key], known));
  const perToken = (matrix) => (Array.isArray(matrix[0]) ? matrix : u.map(() => matrix));
  const [Bt, Ct] = [perToken(B), perToken(C)];
  const decay = delta.map((step) => A.map((a) => Math.exp(step * a)));
  const states = [];
  u.forEach((input, t) => states.push(A.map((_, n) =>
    (t ? decay[t][n] * states[t - 1][n] : 0) + delta[t] * Bt[t][n] * input)));
  const left = u.map(() => A.map(() => 1));
  for (let t = u.length - 2; t >= 0; t--) left[t] = A.map((_, n) => left[t + 1][n] * decay[t + 1][n]);
  const dot = (x, y) => x.reduce((sum, entry, n) => sum + entry * y[n], 0);
  const contributions = left.map((row, t) => row.map((share, n) => share * delta[t] * u[t] * Bt[t][n]));
  const y = states.map((state, t) => dot(state, Ct[t]));
  const kept = left.map((row) => row.reduce((sum, entry) => sum + entry, 0) / row.length);
  const held = kept.map((share, t) => share * Math.min(1, delta[t]));
  const attribution = contributions.map((row) => dot(row, Ct.at(-1)));
  return { decay, states, contributions, y, kept, held, attribution, last_y: y.at(-1), first_kept: kept[0] };
}

// A source that needs more than a table look-up: add it here and, under the same name, to COMPUTED in dmm/widgets/sources.py.
const computed = { "selective-scan": scanValues };

function evaluate(spec, settings) {
  const controls = Object.fromEntries(spec.controls.map((control) => [control.name, control]));
  const known = { ...settings };
  const sources = Object.entries(spec.data);
  for (const [name, source] of sources) if (source.kind === "table") known[name] = tableValues(source, settings, controls);
  for (const [name, source] of sources) {
    if (source.kind === "table") continue;
    for (const [output, array] of Object.entries(computed[source.kind](source, known))) known[`${name}.${output}`] = array;
  }
  return known;
}

// ---- colours and scales ----

const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const RED_BLUE = ["#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7", "#fddbc7", "#f4a582", "#d6604d", "#b2182b"];

function mapped(colors, share) {
  const place = Math.min(1, Math.max(0, share)) * (colors.length - 1);
  const i = Math.min(colors.length - 2, Math.floor(place));
  const parts = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const [from, to] = [parts(colors[i]), parts(colors[i + 1])];
  return `rgb(${from.map((value, c) => Math.round(value + (to[c] - value) * (place - i))).join(",")})`;
}

function linear(range, from, to) {
  const span = range[1] - range[0] || 1;
  return (value) => from + ((value - range[0]) / span) * (to - from);
}

function logarithmic(range, from, to) {
  const place = linear(range.map(Math.log10), from, to);
  return (value) => place(Math.log10(value));
}

function niceTicks([low, high], count) {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw || 1));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= raw) ?? 10);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return ticks;
}

// A colour bar with one number would say nothing about the scale.
function scaleTicks(range, count) {
  for (let more = Math.max(2, count); more < 20; more += 1) {
    const ticks = niceTicks(range, more);
    if (ticks.length > 2) return ticks;
  }
  return range;
}

function powerTicks([low, high]) {
  const ticks = [];
  for (let p = Math.ceil(Math.log10(low) - 1e-9); p <= Math.log10(high) + 1e-9; p++) ticks.push(10 ** p);
  return ticks.length > 1 ? ticks : [low, high];
}

const tickText = (value) => general(Math.abs(value) < 1e-12 ? 0 : value, 4).replace("e+0", "e").replace("e-0", "e-");

// ---- pieces of a picture ----

function text(g, content, x, y, { align = "center", base = "middle", color, turn = 0, bold = false } = {}) {
  g.save();
  g.translate(x, y);
  g.rotate(turn);
  g.textAlign = align;
  g.textBaseline = base;
  g.fillStyle = color;
  g.font = `${bold ? "600 " : ""}12px system-ui, "Segoe UI", "DejaVu Sans", sans-serif`;
  g.fillText(content, 0, 0);
  g.restore();
}

function stroke(g, points, { color, width = 1, dash = [] }) {
  g.save();
  g.strokeStyle = color;
  g.lineWidth = width;
  g.lineJoin = "round";
  g.setLineDash(dash);
  g.beginPath();
  let drawing = false;
  for (const [x, y] of points) {
    if (!Number.isFinite(x) || !Number.isFinite(y)) { drawing = false; continue; }
    drawing ? g.lineTo(x, y) : g.moveTo(x, y);
    drawing = true;
  }
  g.stroke();
  g.restore();
}

function dot(g, x, y, radius, fill, edge) {
  g.beginPath();
  g.arc(x, y, radius, 0, 2 * Math.PI);
  g.fillStyle = fill;
  g.fill();
  if (edge) { g.strokeStyle = edge; g.lineWidth = 1.5; g.stroke(); }
}

function clipped(g, box, paint) {
  g.save();
  g.beginPath();
  g.rect(box.x - 1, box.y - 1, box.w + 2, box.h + 2);
  g.clip();
  paint();
  g.restore();
}

function axes(g, panel, box, theme, { x, y, xTicks, yTicks, xText = tickText, yText = tickText, grid = true }) {
  for (const value of yTicks) {
    if (grid) stroke(g, [[box.x, y(value)], [box.x + box.w, y(value)]], { color: theme.grid });
    text(g, yText(value), box.x - 6, y(value), { align: "right", color: theme.soft });
  }
  for (const value of xTicks) {
    if (grid) stroke(g, [[x(value), box.y], [x(value), box.y + box.h]], { color: theme.grid });
    text(g, xText(value), x(value), box.y + box.h + 6, { base: "top", color: theme.soft });
  }
  stroke(g, [[box.x, box.y], [box.x, box.y + box.h], [box.x + box.w, box.y + box.h]], { color: theme.soft });
  if (panel.x_label) text(g, panel.x_label, box.x + box.w / 2, box.y + box.h + 24, { base: "top", color: theme.ink });
  if (panel.y_label) text(g, panel.y_label, 9, box.y + box.h / 2, { turn: -Math.PI / 2, color: theme.ink });
}

function legend(g, entries, box, theme, top = 4) {
  let [x, y] = [box.x, top];
  for (const entry of entries) {
    const width = 30 + g.measureText(entry.name).width;
    if (x + width > box.x + box.w + 4 && x > box.x) { x = box.x; y += 17; }
    if (entry.style === "dots") dot(g, x + 9, y + 7, 3.5, theme[entry.color]);
    else stroke(g, [[x, y + 7], [x + 18, y + 7]], { color: theme[entry.color], width: 2.5, dash: entry.style === "dashed" ? [5, 4] : [] });
    text(g, entry.name, x + 23, y + 7, { align: "left", color: theme.ink });
    x += width + 12;
  }
}

function legendHeight(g, entries, width) {
  let [x, rows] = [0, 1];
  for (const entry of entries) {
    const wide = 30 + g.measureText(entry.name).width;
    if (x + wide > width + 4 && x > 0) { x = 0; rows += 1; }
    x += wide + 12;
  }
  return 17 * rows + 6;
}

function framed(w, h, { left, right = 12, top = 10, bottom }) {
  return { x: left, y: top, w: Math.max(20, w - left - right), h: Math.max(20, h - top - bottom) };
}

function tickWidth(g, ticks, textOf) {
  return Math.max(0, ...ticks.map((tick) => g.measureText(textOf(tick)).width));
}

function equalRanges(panel, box) {
  const span = (range) => range[1] - range[0];
  const unit = Math.min(box.w / span(panel.x_range), box.h / span(panel.y_range));
  const [w, h] = [unit * span(panel.x_range), unit * span(panel.y_range)];
  return { x: box.x + (box.w - w) / 2, y: box.y + (box.h - h) / 2, w, h };
}

// ---- panels: each draws itself and returns the cells that pointer and arrow keys can visit ----

function linesPanel(g, panel, get, w, h, theme) {
  const series = panel.y.map((entry) => ({ ...entry, values: get(entry.data), ends: entry.low ? [get(entry.low), get(entry.high)] : null }));
  const length = Math.max(...series.map((entry) => entry.values.length));
  const xs = typeof panel.x === "string" ? get(panel.x) : panel.x ?? Array.from({ length }, (_, i) => i);
  const xRange = panel.x_range ?? [0, Math.max(1, length - 1)];
  const yTicks = panel.log_y ? powerTicks(panel.y_range) : niceTicks(panel.y_range, Math.max(2, (h - 60) / 42));
  const top = legendHeight(g, series, w - 60) + 4;
  const box = framed(w, h, { left: tickWidth(g, yTicks, tickText) + (panel.y_label ? 28 : 12), top, bottom: panel.x_label ? 42 : 24 });
  const x = (panel.log_x ? logarithmic : linear)(xRange, box.x, box.x + box.w);
  const y = (panel.log_y ? logarithmic : linear)(panel.y_range, box.y + box.h, box.y);
  const xTicks = panel.log_x ? powerTicks(xRange) : niceTicks(xRange, Math.max(2, box.w / 75));
  axes(g, panel, box, theme, { x, y, xTicks, yTicks });
  clipped(g, box, () => {
    for (const mark of panel.marks) drawMark(g, mark, get, box, x, y, theme);
    const places = (numbers) => numbers.map((value, i) => [x(xs[i]), value === null ? NaN : y(panel.log_y ? Math.max(value, panel.y_range[0]) : value)]);
    for (const entry of series) if (entry.ends) drawInterval(g, entry, ...entry.ends.map(places), theme);
    for (const entry of series) drawLine(g, entry, places(entry.values), theme);
  });
  legend(g, series, box, theme);
  const xName = panel.x_label || "x";
  const spread = (entry, i) => (entry.ends ? ` (${entry.ends.map((end) => formatValue(end[i], ".4g")).join(" to ")})` : "");
  return {
    rows: 1, columns: length,
    rect: (_, i) => ({ x: x(xs[i]) - 1, y: box.y, w: 2, h: box.h }),
    text: (_, i) => `${xName} ${tickText(xs[i])}: ${series.map((entry) => `${entry.name} ${formatValue(entry.values[i], ".4g")}${spread(entry, i)}`).join(", ")}`,
    find: (px) => [0, nearest(xs.map((value) => Math.abs(x(value) - px)))],
  };
}

const nearest = (distances) => distances.reduce((best, distance, i) => (distance < distances[best] ? i : best), 0);

function drawMark(g, mark, get, box, x, y, theme) {
  const at = (value) => (typeof value === "string" ? get(value) : value);
  if (mark.x !== null) {
    const place = x(at(mark.x));
    stroke(g, [[place, box.y], [place, box.y + box.h]], { color: theme.soft, width: 1.5, dash: [2, 3] });
    const end = place > box.x + box.w * 0.7;
    text(g, mark.label, place + (end ? -4 : 4), box.y + 8, { align: end ? "right" : "left", color: theme.soft });
  }
  if (mark.y !== null) {
    const place = y(at(mark.y));
    stroke(g, [[box.x, place], [box.x + box.w, place]], { color: theme.soft, width: 1.5, dash: [2, 3] });
    text(g, mark.label, box.x + box.w - 3, place - 8, { align: "right", color: theme.soft });
  }
}

const corners = (points) => points.flatMap(([px, py], i) => (i + 1 < points.length ? [[px, py], [points[i + 1][0], py]] : [[px, py]]));

function drawInterval(g, entry, low, high, theme) {
  const color = theme[entry.color];
  if (entry.style === "dots") {
    low.forEach((end, i) => stroke(g, [end, high[i]], { color, width: 1.5 }));
    return;
  }
  const [below, above] = entry.style === "steps" ? [corners(low), corners(high)] : [low, high];
  g.save();
  g.fillStyle = color;
  g.globalAlpha = 0.2;
  // One polygon per run without gaps.
  for (let i = 0; i < below.length; i++) {
    const first = i;
    while (i < below.length && Number.isFinite(below[i][1]) && Number.isFinite(above[i][1])) i++;
    g.beginPath();
    for (const [px, py] of [...above.slice(first, i), ...below.slice(first, i).reverse()]) g.lineTo(px, py);
    g.fill();
  }
  g.restore();
}

function drawLine(g, entry, points, theme) {
  const color = theme[entry.color];
  if (entry.style === "dots") {
    for (const [px, py] of points) if (Number.isFinite(py)) dot(g, px, py, 3.5, color);
    return;
  }
  stroke(g, entry.style === "steps" ? corners(points) : points, { color, width: 2.2, dash: entry.style === "dashed" ? [6, 4] : [] });
}

function heatmapPanel(g, panel, get, w, h, theme) {
  const raw = get(panel.data);
  const matrix = panel.transpose ? raw[0].map((_, j) => raw.map((row) => row[j])) : raw;
  const [rows, columns] = [matrix.length, matrix[0].length];
  const numbered = (length) => Array.from({ length }, (_, i) => String(i));
  const [rowNames, columnNames] = [panel.y_ticks ?? numbered(rows), panel.x_ticks ?? numbered(columns)];
  const { box, bar } = heatmapFrame(g, panel, rowNames, w, h);
  const colors = panel.colors === "diverging" ? RED_BLUE : VIRIDIS;
  const share = linear(panel.range, 0, 1);
  const rect = (r, c) => ({ x: box.x + (c * box.w) / columns, y: box.y + (r * box.h) / rows, w: box.w / columns, h: box.h / rows });
  matrix.forEach((row, r) => row.forEach((value, c) => {
    const cell = rect(r, c);
    g.fillStyle = value === null ? theme.grid : mapped(colors, share(value));
    g.fillRect(cell.x, cell.y, cell.w + 0.5, cell.h + 0.5);
  }));
  const thin = (count, room) => Array.from({ length: count }, (_, i) => i).filter((i) => i % Math.ceil(count / Math.max(1, Math.floor(room))) === 0);
  axes(g, panel, kindBands(g, panel, box, rect, theme), theme, {
    x: (c) => box.x + ((c + 0.5) * box.w) / columns, y: (r) => box.y + ((r + 0.5) * box.h) / rows, grid: false,
    xTicks: thin(columns, box.w / (tickWidth(g, columnNames, String) + 8)), yTicks: thin(rows, box.h / 12),
    xText: (c) => columnNames[c], yText: (r) => rowNames[r],
  });
  colorBar(g, panel, colors, bar, w, theme);
  legend(g, heatmapKinds(panel), { x: 8, w: w - 16 }, theme, 0);
  const named = (name, kind) => (kind && !name.includes(kind) && !name.includes(KIND_NAMES[kind]) ? `${name} (${KIND_NAMES[kind] ?? kind})` : name);
  return {
    rows, columns, rect,
    text: (r, c) => `${panel.y_label || "row"} ${named(rowNames[r], panel.y_kinds?.[r])}, ` +
      `${panel.x_label || "column"} ${named(columnNames[c], panel.x_kinds?.[c])}: ${panel.value_label || "value"} ${formatValue(matrix[r][c], panel.format)}`,
    find: (px, py) => [Math.floor(((py - box.y) / box.h) * rows), Math.floor(((px - box.x) / box.w) * columns)],
  };
}

// Where the map goes, and where its colour bar: beside it, or on a phone, where the map needs the width, under it.
function heatmapFrame(g, panel, rowNames, w, h) {
  const kinds = heatmapKinds(panel);
  const below = (panel.x_label ? 42 : 24) + (panel.x_kinds ? BAND + 3 : 0);
  const lying = w < 420 && h >= 200;
  const beside = Math.max(tickWidth(g, panel.range, tickText), 24) + (panel.value_label ? 46 : 30);
  const box = framed(w, h, {
    left: tickWidth(g, rowNames, String) + (panel.y_label ? 28 : 12) + (panel.y_kinds ? BAND + 3 : 0),
    right: lying ? Math.max(8, tickWidth(g, panel.range, tickText) / 2 + 2) : beside,
    top: kinds.length ? legendHeight(g, kinds, w - 16) + 4 : 10,
    bottom: below + (lying ? (panel.value_label ? 48 : 34) : 0),
  });
  const bar = lying ? { lying, x: box.x, y: box.y + box.h + below + 4, w: box.w, h: 10 } : { lying, x: box.x + box.w + 12, y: box.y, w: 12, h: box.h };
  return { box, bar };
}

const BAND = 6;
const KIND_NAMES = { rtg: "return-to-go", state: "state", action: "action" };
const kindEntries = (kinds) => [...new Set(kinds)].map((kind) => ({ name: KIND_NAMES[kind] ?? kind, color: kind, style: "dots" }));
const heatmapKinds = (panel) => kindEntries([...(panel.y_kinds ?? []), ...(panel.x_kinds ?? [])]);

// The bands stand between the map and its ticks; returns the box at whose edges the ticks are written.
function kindBands(g, panel, box, rect, theme) {
  const [left, below] = [panel.y_kinds ? BAND + 3 : 0, panel.x_kinds ? BAND + 3 : 0];
  (panel.y_kinds ?? []).forEach((kind, r) => {
    g.fillStyle = theme[kind];
    g.fillRect(box.x - BAND - 2, rect(r, 0).y, BAND, rect(r, 0).h + 0.3);
  });
  (panel.x_kinds ?? []).forEach((kind, c) => {
    g.fillStyle = theme[kind];
    g.fillRect(rect(0, c).x, box.y + box.h + 2, rect(0, c).w + 0.3, BAND);
  });
  return { x: box.x - left, y: box.y, w: box.w + left, h: box.h + below };
}

function colorBar(g, panel, colors, bar, w, theme) {
  const length = bar.lying ? bar.w : bar.h;
  for (let i = 0; i < length; i++) {
    g.fillStyle = mapped(colors, bar.lying ? i / length : 1 - i / length);
    bar.lying ? g.fillRect(bar.x + i, bar.y, 1.5, bar.h) : g.fillRect(bar.x, bar.y + i, bar.w, 1.5);
  }
  const place = bar.lying ? linear(panel.range, bar.x, bar.x + bar.w) : linear(panel.range, bar.y + bar.h, bar.y);
  for (const tick of scaleTicks(panel.range, length / 50)) {
    if (bar.lying) text(g, tickText(tick), place(tick), bar.y + bar.h + 4, { base: "top", color: theme.soft });
    else text(g, tickText(tick), bar.x + bar.w + 5, place(tick), { align: "left", color: theme.soft });
  }
  if (!panel.value_label) return;
  if (bar.lying) text(g, panel.value_label, bar.x + bar.w / 2, bar.y + bar.h + 19, { base: "top", color: theme.ink });
  else text(g, panel.value_label, w - 9, bar.y + bar.h / 2, { turn: -Math.PI / 2, color: theme.ink });
}

function planePanel(g, panel, get, w, h, theme) {
  const top = panel.points.length > 1 ? legendHeight(g, panel.points, w - 60) + 4 : 10;
  const box = equalRanges(panel, framed(w, h, { left: 50, top, bottom: panel.x_label ? 42 : 24 }));
  const x = linear(panel.x_range, box.x, box.x + box.w);
  const y = linear(panel.y_range, box.y + box.h, box.y);
  const circle = (paint) => { g.beginPath(); g.ellipse(x(0), y(0), Math.abs(x(1) - x(0)), Math.abs(y(1) - y(0)), 0, 0, 2 * Math.PI); paint(); };
  clipped(g, box, () => {
    g.fillStyle = theme.region;
    if (panel.stable === "disc") circle(() => g.fill());
    if (panel.stable === "half-plane") g.fillRect(box.x, box.y, x(0) - box.x, box.h);
  });
  const ticks = (range) => niceTicks(range, Math.max(2, box.w / 60));
  axes(g, panel, box, theme, { x, y, xTicks: ticks(panel.x_range), yTicks: ticks(panel.y_range) });
  const found = [];
  clipped(g, box, () => {
    stroke(g, [[x(0), box.y], [x(0), box.y + box.h]], { color: theme.soft });
    stroke(g, [[box.x, y(0)], [box.x + box.w, y(0)]], { color: theme.soft });
    if (panel.unit_circle) circle(() => { g.strokeStyle = theme.soft; g.setLineDash([4, 3]); g.stroke(); g.setLineDash([]); });
    for (const entry of panel.points) for (const [re, im] of get(entry.data)) {
      found.push({ name: entry.name, re, im });
      if (re !== null) dot(g, x(re), y(im), 5, theme[entry.color], theme.ground);
    }
  });
  if (panel.points.length > 1) legend(g, panel.points.map((entry) => ({ ...entry, style: "dots" })), { ...box, x: 50, w: w - 62 }, theme);
  return {
    rows: 1, columns: found.length,
    rect: (_, i) => ({ x: x(found[i].re) - 8, y: y(found[i].im) - 8, w: 16, h: 16 }),
    text: (_, i) => `${found[i].name}: ${formatValue(found[i].re, ".4g")} ${found[i].im < 0 ? "−" : "+"} ${formatValue(Math.abs(found[i].im), ".4g")}i`,
    find: (px, py) => [0, nearest(found.map((point) => Math.hypot(x(point.re) - px, y(point.im) - py)))],
  };
}

function barsPanel(g, panel, get, w, h, theme) {
  const heights = get(panel.data);
  const intervals = panel.intervals ? get(panel.intervals) : null;
  const names = typeof panel.names === "string" ? get(panel.names) : panel.names;
  const chosen = panel.highlight ? get(panel.highlight) : null;
  const ends = (i) => (intervals && intervals[i].every((end) => end !== null) ? intervals[i] : null);
  const spread = (i) => (ends(i) ? ` (${ends(i).map((end) => formatValue(end, panel.format)).join(" to ")})` : "");
  const fill = (i, ...rect) => {
    g.globalAlpha = chosen === null || chosen === i ? 1 : 0.35;
    g.fillStyle = theme[typeof panel.color === "string" ? panel.color : panel.color[i]];
    g.fillRect(...rect);
    g.globalAlpha = 1;
  };
  const words = (i) => `${names[i]}: ${formatValue(heights[i], panel.format)}${spread(i)}${i === chosen ? ", highlighted" : ""}`;
  const draw = panel.horizontal ? lyingBars : standingBars;
  return { text: (row, column) => words(row + column), ...draw(g, panel, { heights, names, chosen, ends, fill }, w, h, theme) };
}

function standingBars(g, panel, { heights, names, chosen, ends, fill }, w, h, theme) {
  const yTicks = niceTicks(panel.y_range, Math.max(2, (h - 60) / 42));
  const box = framed(w, h, { left: tickWidth(g, yTicks, tickText) + (panel.y_label ? 28 : 12), bottom: panel.x_label ? 42 : 24 });
  const y = linear(panel.y_range, box.y + box.h, box.y);
  const step = box.w / heights.length;
  const x = (i) => box.x + (i + 0.5) * step;
  const every = Math.ceil((tickWidth(g, names, String) + 6) / step);
  const xTicks = heights.map((_, i) => i).filter((i) => i % every === 0);
  axes(g, panel, box, theme, { x, y, xTicks: [], yTicks });
  for (const i of xTicks) text(g, names[i], x(i), box.y + box.h + 6, { base: "top", color: theme.soft, bold: i === chosen });
  clipped(g, box, () => heights.forEach((value, i) => {
    if (value === null) return;
    fill(i, x(i) - step * 0.36, Math.min(y(0), y(value)), step * 0.72, Math.abs(y(value) - y(0)));
    if (ends(i)) for (const part of [[[x(i), y(ends(i)[0])], [x(i), y(ends(i)[1])]],
      ...ends(i).map((end) => [[x(i) - 4, y(end)], [x(i) + 4, y(end)]])]) stroke(g, part, { color: theme.ink, width: 1.5 });
  }));
  stroke(g, [[box.x, y(0)], [box.x + box.w, y(0)]], { color: theme.soft });
  return {
    rows: 1, columns: heights.length,
    rect: (_, i) => ({ x: x(i) - step * 0.45, y: box.y, w: step * 0.9, h: box.h }),
    find: (px) => [0, Math.floor((px - box.x) / step)],
  };
}

const LYING = { row: 30, bottom: 26, label: 18 };

function lyingBars(g, panel, { heights, names, chosen, ends, fill }, w, h, theme) {
  const count = Math.max(1, 1 + heights.reduce((last, value, i) => (value === null ? last : i), -1));
  const bottom = LYING.bottom + (panel.y_label ? LYING.label : 0);
  const left = Math.min(w * 0.45, 1.1 * tickWidth(g, names.slice(0, count), String) + (panel.x_label ? 28 : 12)); // one is bold
  const whole = framed(w, h, { left, bottom });
  const step = Math.min(LYING.row, whole.h / count);
  const box = { ...whole, h: step * count };
  const x = linear(panel.y_range, box.x, box.x + box.w);
  const y = (i) => box.y + (i + 0.5) * step;
  const turned = { ...panel, x_label: panel.y_label, y_label: panel.x_label };
  axes(g, turned, box, theme, { x, y, xTicks: niceTicks(panel.y_range, Math.max(2, box.w / 75)), yTicks: [] });
  const every = Math.ceil(13 / step);
  clipped(g, box, () => heights.slice(0, count).forEach((value, i) => {
    if (value === null) return;
    fill(i, Math.min(x(0), x(value)), y(i) - step * 0.36, Math.abs(x(value) - x(0)), step * 0.72);
    if (ends(i)) for (const part of [[[x(ends(i)[0]), y(i)], [x(ends(i)[1]), y(i)]],
      ...ends(i).map((end) => [[x(end), y(i) - 4], [x(end), y(i) + 4]])]) stroke(g, part, { color: theme.ink, width: 1.5 });
  }));
  for (let i = 0; i < count; i += every) {
    text(g, names[i], box.x - 6, y(i), { align: "right", color: i === chosen ? theme.ink : theme.soft, bold: i === chosen });
  }
  stroke(g, [[x(0), box.y], [x(0), box.y + box.h]], { color: theme.soft });
  return {
    rows: count, columns: 1,
    rect: (i) => ({ x: box.x, y: y(i) - step * 0.45, w: box.w, h: step * 0.9 }),
    find: (_, py) => [Math.floor((py - box.y) / step), 0],
  };
}

const STRIP = { gap: 3, row: 62, least: 34, most: 64 };

function stripRows(panel, w) {
  const tokens = panel.kinds.length;
  const most = Math.max(1, Math.min(tokens, Math.floor((w - 8) / STRIP.least)));
  if (most === tokens || most < 3) return { perRow: most, rows: Math.ceil(tokens / most) };
  // When a strip must break, whole time steps stay together and the rows are about equally long.
  const rows = Math.ceil(tokens / (most - (most % 3)));
  return { perRow: 3 * Math.ceil(tokens / rows / 3), rows };
}

function stripPanel(g, panel, get, w, h, theme) {
  const { perRow, rows } = stripRows(panel, w);
  const [strength, present, window] = ["strength", "present", "highlight"].map((key) => (panel[key] ? get(panel[key]) : null));
  const labels = typeof panel.labels === "string" ? get(panel.labels) : panel.labels;
  const label = (i) => (labels ? formatValue(labels[i], panel.format) : "");
  const wide = Math.min(STRIP.most, (w - 8) / perRow);
  const rect = (_, i) => ({ x: 4 + (i % perRow) * wide, y: 20 + Math.floor(i / perRow) * STRIP.row, w: wide - STRIP.gap, h: 34 });
  legend(g, kindEntries(panel.kinds), { x: 4, w: w - 8 }, theme, 0);
  panel.kinds.forEach((kind, i) => {
    const cell = rect(0, i);
    const real = present === null || present[i] > 0;
    g.globalAlpha = real ? 0.15 + 0.85 * Math.min(1, Math.max(0, strength ? strength[i] ?? 0 : 1)) : 0;
    g.fillStyle = theme[kind];
    g.fillRect(cell.x, cell.y, cell.w, cell.h);
    g.globalAlpha = 1;
    stroke(g, [[cell.x, cell.y], [cell.x + cell.w, cell.y], [cell.x + cell.w, cell.y + cell.h], [cell.x, cell.y + cell.h], [cell.x, cell.y]],
      { color: theme[kind], width: 1, dash: real ? [] : [3, 3] });
    const filled = real && (!strength || strength[i] > 0.45);
    text(g, label(i), cell.x + cell.w / 2, cell.y + cell.h / 2, { color: filled ? theme.onColor : theme.ink });
    if (window && i >= window[0] && i < window[1]) {
      g.fillStyle = theme.ink;
      g.fillRect(cell.x - 1, cell.y + cell.h + 4, wide, 4);
    }
  });
  const inWindow = (i) => (window && i >= window[0] && i < window[1] ? ", in the window" : "");
  return {
    rows: 1, columns: panel.kinds.length, rect,
    text: (_, i) => `token ${i} (${KIND_NAMES[panel.kinds[i]] ?? panel.kinds[i]})${label(i) ? `: ${label(i)}` : ""}` +
      `${strength ? `, strength ${formatValue(strength[i], ".3g")}` : ""}${present && !(present[i] > 0) ? ", padding" : ""}${inWindow(i)}`,
    find: (px, py) => [0, Math.min(rows - 1, Math.max(0, Math.floor((py - 16) / STRIP.row))) * perRow + Math.min(perRow - 1, Math.floor((px - 4) / wide))],
  };
}

function pathsPanel(g, panel, get, w, h, theme) {
  const top = legendHeight(g, [...panel.paths, ...panel.figures], w - 60) + 4;
  const box = equalRanges(panel, framed(w, h, { left: 46, top, bottom: panel.x_label ? 42 : 24 }));
  const x = linear(panel.x_range, box.x, box.x + box.w);
  const y = linear(panel.y_range, box.y + box.h, box.y);
  const ticks = (range) => niceTicks(range, 5);
  axes(g, panel, box, theme, { x, y, xTicks: ticks(panel.x_range), yTicks: ticks(panel.y_range), grid: false });
  const now = panel.time === null ? null : Math.round(get(panel.time));
  const chosen = (value) => (typeof value === "string" ? get(value) : value);
  const routes = panel.paths.map((entry) => ({ ...entry, values: get(entry.data) }));
  const figures = panel.figures.map((entry) => ({ ...entry, values: get(entry.data), segments: chosen(entry.segments) }));
  const points = Object.entries(panel.points).map(([name, place]) => ({ name, place: chosen(place) }));
  clipped(g, box, () => {
    g.fillStyle = theme.wall;
    for (const [left, bottom, wide, tall] of chosen(panel.walls).filter(whole)) {
      // Half a pixel more, so that no seam shows between neighbours.
      g.fillRect(x(left), y(bottom + tall), x(left + wide) - x(left) + 0.5, y(bottom) - y(bottom + tall) + 0.5);
    }
    // A figure shows by itself where it is.
    const dotted = !figures.some((figure) => figure.values.some(whole));
    for (const route of routes) drawRoute(g, route, now, dotted, x, y, theme);
    for (const figure of figures) drawFigure(g, figure, x, y, theme);
    for (const { name, place: [px, py] } of points.filter(({ place }) => whole(place))) {
      text(g, "★", x(px), y(py), { color: theme.ink, bold: true });
      text(g, name, x(px) + 9, y(py), { align: "left", color: theme.ink });
    }
  });
  const dots = figures.map((figure) => (figure.segments.length ? figure : { ...figure, style: "dots" }));
  legend(g, [...routes, ...dots].filter((entry) => entry.values.some(whole)), { ...box, x: 46, w: w - 58 }, theme);
  return pathsCells(routes, figures, points, x, y);
}

const whole = (numbers) => numbers.every(Number.isFinite);

// The first row of cells visits the routes step by step; the next one what stands somewhere: joints of figures, points.
function pathsCells(routes, figures, points, x, y) {
  const said = (place) => `(${place.map((value) => formatValue(value, ".3g")).join(", ")})`;
  const at = (route, i) => route.values[Math.min(i, route.values.length - 1)];
  const steps = Array.from({ length: Math.max(0, ...routes.map((route) => route.values.length)) }, (_, i) => ({
    place: at(routes[0], i), text: `step ${i}: ${routes.map((route) => `${route.name} at ${said(at(route, i))}`).join(", ")}`,
  }));
  const joints = figures.flatMap((figure) => figure.values.map((place, i) => ({
    place, text: `${figure.name}${figure.values.length > 1 ? `, point ${i}` : ""}: ${said(place)}`,
  })));
  const standing = [...joints, ...points.map(({ name, place }) => ({ place, text: `${name}: ${said(place)}` }))];
  const rows = [steps, standing].map((row) => row.filter(({ place }) => whole(place))).filter((row) => row.length);
  const cell = (r, i) => rows[r][Math.min(i, rows[r].length - 1)];
  const distance = ({ place: [a, b] }, px, py) => Math.hypot(x(a) - px, y(b) - py);
  return {
    rows: rows.length, columns: Math.max(0, ...rows.map((row) => row.length)),
    rect: (r, i) => { const [px, py] = cell(r, i).place; return { x: x(px) - 7, y: y(py) - 7, w: 14, h: 14 }; },
    text: (r, i) => cell(r, i).text,
    find: (px, py) => {
      const best = rows.map((row) => nearest(row.map((entry) => distance(entry, px, py))));
      const row = nearest(best.map((i, r) => distance(rows[r][i], px, py)));
      return [row, best[row]];
    },
  };
}

function drawRoute(g, route, now, dotted, x, y, theme) {
  const color = theme[route.color];
  const points = route.values.map((place) => (whole(place) ? [x(place[0]), y(place[1])] : [NaN, NaN]));
  g.globalAlpha = now === null ? 1 : 0.25;
  stroke(g, points, { color, width: 2 });
  g.globalAlpha = 1;
  if (now === null) return;
  stroke(g, points.slice(0, now + 1), { color, width: 2.5 });
  // A route that ends before the others, or begins later, waits where it ends or begins.
  const here = points.slice(0, now + 1).filter(whole).at(-1) ?? points.find(whole);
  if (here && dotted) dot(g, ...here, 6, color, theme.ground);
}

// Limbs are a tenth as thick as long: thin where the figure is small on the plan.
function drawFigure(g, figure, x, y, theme) {
  const color = theme[figure.color];
  const points = figure.values.map((place) => (whole(place) ? [x(place[0]), y(place[1])] : [NaN, NaN]));
  const limbs = figure.segments.filter(whole).map((ends) => ends.map((i) => points[i])).filter((ends) => ends.every(whole));
  const length = limbs.reduce((sum, [[ax, ay], [bx, by]]) => sum + Math.hypot(ax - bx, ay - by), 0) / (limbs.length || 1);
  const width = Math.min(5, Math.max(1.5, length / 10));
  for (const limb of limbs) stroke(g, limb, { color, width });
  for (const point of points.filter(whole)) limbs.length ? dot(g, ...point, 0.8 * width, color) : dot(g, ...point, 6, color, theme.ground);
}

const painters = { lines: linesPanel, heatmap: heatmapPanel, plane: planePanel, bars: barsPanel, strip: stripPanel, paths: pathsPanel };

// ---- the figure: controls, canvases, read-outs ----

function element(tag, className, properties = {}, children = []) {
  const made = Object.assign(document.createElement(tag), properties);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** What wakes a figure that sleeps: a button, and beside it why it could not be started. `start` brings it to life. */
function makeStart(title, start) {
  const button = element("button", "dmm-button dmm-start", { type: "button", textContent: `Start: ${title}` });
  const answer = element("p", "dmm-answer");
  answer.setAttribute("role", "status");
  const node = element("div", "dmm-sleeping", {}, [button, answer]);
  button.addEventListener("click", async () => {
    button.disabled = true;
    answer.textContent = "Loading …";
    try {
      await start();
      node.remove();
    } catch (error) {
      answer.textContent = error.message;
      button.disabled = false;
    }
  });
  return node;
}

const THEME = ["ink", "soft", "grid", "ground", "region", "wall", "on-color", "rtg", "state", "action", "green", "purple", "grey"];

function themeOf(root) {
  const style = getComputedStyle(root);
  const read = (name) => style.getPropertyValue(`--dmm-${name}`).trim();
  return Object.fromEntries(THEME.map((name) => [name === "on-color" ? "onColor" : name, read(name)]));
}

let count = 0;

function makeControl(control, current, change, play) {
  const id = `dmm-control-${(count += 1)}`;
  const label = element("label", "dmm-label", { htmlFor: id, textContent: control.label });
  if (control.kind === "select") {
    const options = control.values.map((value) => element("option", "", { value, textContent: value }));
    const input = element("select", "dmm-select", { id, name: control.name }, options);
    input.addEventListener("change", () => change(control.name, input.value));
    const show = (value) => { input.value = value; };
    show(current);
    return { node: element("div", "dmm-control", {}, [label, input]), show };
  }
  const input = element("input", "dmm-slider", { id, type: "range", min: 0, max: control.values.length - 1, step: 1, name: control.name });
  const output = element("output", "dmm-value", {});
  output.htmlFor = id;
  // The slider itself announces its value.
  output.setAttribute("aria-live", "off");
  const player = control.play ? makePlayer(control, input, play) : null;
  const show = (value) => {
    const at = control.values.indexOf(value);
    player?.follow(at);
    input.value = at;
    input.setAttribute("aria-valuetext", control.texts[at]);
    output.textContent = control.texts[at];
  };
  input.addEventListener("input", () => change(control.name, control.values[+input.value]));
  show(current);
  const row = element("div", "dmm-slider-row", {}, [input, ...(player ? [player.button] : [])]);
  return { node: element("div", "dmm-control", {}, [element("div", "dmm-label-row", {}, [label, output]), row]), show, player };
}

// Walks a slider to its end. `step` draws a value, `rest` tells the page's address or the kernel where the walk stopped.
function makePlayer(control, input, { step, rest }) {
  const [last, interval] = [control.values.length - 1, 1000 / control.play];
  let [frame, at] = [null, 0];
  const button = element("button", "dmm-button dmm-play", { type: "button" });
  const say = (word) => {
    button.textContent = word;
    button.setAttribute("aria-label", `${word}: ${control.label}`);
  };
  const stop = () => {
    cancelAnimationFrame(frame);
    frame = null;
    say("Play");
  };
  const pause = () => {
    if (frame === null) return;
    stop();
    rest();
  };
  const walk = (due) => {
    frame = requestAnimationFrame((now) => {
      if (now < due) { walk(due); return; }
      step(control.name, control.values[(at += 1)]);
      // A page that cannot keep up plays more slowly, but leaves no value out.
      if (at < last) walk(Math.max(due + interval, now));
      else pause();
    });
  };
  button.addEventListener("click", () => {
    if (frame !== null) { pause(); return; }
    at = +input.value;
    if (at >= last) step(control.name, control.values[(at = 0)]);
    say("Pause");
    walk(performance.now() + interval);
  });
  // A reader who takes the slider must not have to hold it against the player.
  input.addEventListener("pointerdown", pause);
  say("Play");
  return { button, pause, stop, follow: (shown) => { if (frame !== null && shown !== at) stop(); } };
}

function makePanel(panel, root) {
  const canvas = element("canvas", "dmm-canvas", { tabIndex: 0 });
  canvas.setAttribute("role", "img");
  const probe = element("p", "dmm-probe", { textContent: "\u00a0" });
  probe.setAttribute("aria-live", "polite");
  const caption = panel.caption ? [element("p", "dmm-caption", { textContent: panel.caption })] : [];
  const node = element("div", `dmm-panel dmm-${panel.width}`, {}, [...caption, canvas, probe]);
  let [cells, at, get] = [null, null, null];
  const drawn = {};

  function paint() {
    if (get === null) return; // there is nothing to draw yet
    const w = Math.max(120, Math.floor(node.clientWidth));
    const h = panel.kind === "strip" ? 20 + STRIP.row * stripRows(panel, w).rows - 10 : panel.height;
    const ratio = globalThis.devicePixelRatio || 1;
    [canvas.width, canvas.height] = [Math.round(w * ratio), Math.round(h * ratio)];
    [canvas.style.width, canvas.style.height] = [`${w}px`, `${h}px`];
    const g = canvas.getContext("2d");
    const theme = themeOf(root);
    g.scale(ratio, ratio);
    g.font = '12px system-ui, "Segoe UI", "DejaVu Sans", sans-serif';
    const limits = ["x_range", "y_range"].filter((key) => typeof panel[key] === "string").map((key) => [key, get(panel[key])]);
    cells = painters[panel.kind](g, { ...panel, ...Object.fromEntries(limits) }, get, w, h, theme);
    if (at) visit(g, theme);
  }

  function visit(g, theme) {
    at = [Math.min(at[0], cells.rows - 1), Math.min(at[1], cells.columns - 1)];
    const cell = cells.rect(...at);
    g.setLineDash([]);
    // Two frames, so that one of them stands out from any colour.
    for (const [color, width] of [[theme.ground, 5], [theme.ink, 2]]) {
      g.strokeStyle = color;
      g.lineWidth = width;
      g.strokeRect(cell.x, cell.y, cell.w, cell.h);
    }
    probe.textContent = cells.text(...at);
  }

  function go(row, column) {
    const inside = cells && row >= 0 && column >= 0 && row < cells.rows && column < cells.columns;
    at = inside ? [row, column] : null;
    if (!at) probe.textContent = "\u00a0";
    paint();
  }

  const point = (event) => { if (cells) go(...cells.find(event.offsetX, event.offsetY)); };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  // A finger that is lifted leaves too, and the numbers it asked for must stay to be read.
  canvas.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") go(-1, -1); });
  canvas.addEventListener("blur", () => go(-1, -1));
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move) return;
    event.preventDefault();
    const clamp = (value, limit) => Math.min(limit - 1, Math.max(0, value));
    const [row, column] = at ? [at[0] + move[0], at[1] + move[1]] : [0, 0];
    go(clamp(row, cells.rows), clamp(column, cells.columns));
  });

  return {
    node, canvas, drawn, paint,
    update(known, description) {
      get = (name) => (drawn[name] = known[name]);
      for (const name of Object.keys(drawn)) delete drawn[name];
      paint();
      canvas.setAttribute("aria-label", `${panel.caption || root.getAttribute("aria-label")}. ${description}`);
    },
  };
}

function render({ model, el }) {
  const spec = model.get("spec");
  const start = () => Object.fromEntries(spec.controls.map((control) => [control.name, control.start]));
  let settings = { ...start(), ...model.get("state") };

  el.classList.add("dmm-widget", "dmm-live");
  el.dataset.widget = spec.name;
  const root = element("div", "dmm-explorer");
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", spec.title);
  const change = (name, value) => apply({ ...settings, [name]: value });
  const play = {
    step: (name, value) => apply({ ...settings, [name]: value }, { save: false }),
    rest: () => apply(settings),
  };
  const controls = spec.controls.map((control) => [control.name, makeControl(control, settings[control.name], change, play)]);
  const players = controls.map(([, control]) => control.player).filter(Boolean);
  const buttons = Object.entries({ ...spec.presets, Reset: start() }).map(([label, preset]) => {
    const button = element("button", "dmm-button", { type: "button", textContent: label });
    button.addEventListener("click", () => apply({ ...preset }));
    if (label === "Reset") button.classList.add("dmm-reset");
    return button;
  });
  const panels = spec.panels.map((panel) => makePanel(panel, root));
  const readout = element("p", "dmm-readout");
  readout.setAttribute("aria-live", "polite");
  root.append(
    element("p", "dmm-title", { textContent: spec.title }),
    element("div", "dmm-controls", {}, controls.map(([, control]) => control.node)),
    element("div", "dmm-buttons", {}, buttons),
    element("div", "dmm-panels", {}, panels.map((panel) => panel.node)),
    readout,
    element("p", "dmm-hint", { textContent: "To read single numbers, point at a picture or tap it, or focus it and press the arrow keys." }),
  );
  el.append(root);

  function readoutTexts(known) {
    return Object.fromEntries(spec.readouts.map((entry) =>
      [entry.label, formatValue(known[entry.data], entry.format) + (entry.unit ? ` ${entry.unit}` : "")]));
  }

  function draw() {
    const known = evaluate(spec, settings);
    const texts = readoutTexts(known);
    const sentence = Object.entries(texts).map(([label, value]) => `${label}: ${value}`).join("; ");
    const setting = spec.controls.map((control) => `${control.label}: ${control.texts[control.values.indexOf(settings[control.name])]}`).join("; ");
    readout.replaceChildren(...Object.entries(texts).map(([label, value]) =>
      element("span", "dmm-reading", {}, [`${label} `, element("strong", "", { textContent: value })])));
    for (const panel of panels) panel.update(known, `${setting}.${sentence ? ` ${sentence}.` : ""}`);
    for (const [name, control] of controls) control.show(settings[name]);
    el.dmm.readouts = texts;
  }

  function apply(next, { tell = true, save = true } = {}) {
    settings = next;
    // A screen reader could not keep up with a player; it reads where the player stops.
    readout.setAttribute("aria-live", save ? "polite" : "off");
    draw();
    if (!tell) return;
    model.set("state", { ...settings });
    if (save) model.save_changes();
  }

  const repaint = () => panels.forEach((panel) => panel.paint());
  el.dmm = {
    spec, readouts: {}, apply,
    settings: () => ({ ...settings }),
    drawn: () => panels.map((panel) => ({ ...panel.drawn })),
  };
  draw();
  const onState = () => {
    const next = { ...start(), ...model.get("state") };
    if (JSON.stringify(next) !== JSON.stringify(settings)) apply(next, { tell: false });
  };
  model.on("change:state", onState);
  const widths = new ResizeObserver(repaint);
  widths.observe(root);
  const themes = new MutationObserver(repaint);
  for (const node of [document.documentElement, document.body]) themes.observe(node, { attributes: true, attributeFilter: ["data-theme", "data-jp-theme-light", "theme", "class"] });
  const sight = new IntersectionObserver((entries) => {
    if (!entries.at(-1).isIntersecting) players.forEach((player) => player.pause());
  });
  sight.observe(root);
  return () => {
    players.forEach((player) => player.stop());
    for (const observer of [widths, themes, sight]) observer.disconnect();
    model.off?.("change:state", onState);
  };
}

export default { render };
