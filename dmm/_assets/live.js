// Live figures in which a policy acts: its world, what it sees, what it earns. The numbers come from worker.js; here they
// are drawn and asked for. It uses the pieces of widgets.js, behind which it stands in a notebook; the site loads it by
// itself when a reader starts a figure, and finds them in `globalThis.dmmWidgets`.
//
// What a figure is made of says its specification (dmm/widgets/live.py). In it, {control: name} stands for the value of a
// control, and {control: name, of: {value: other}} for what belongs to that value.

// ---- one worker for all figures ----

let theWorker = null;
const hearing = new Map();

function workerFor(id, hear) {
  if (theWorker === null) {
    theWorker = new Worker(URL.createObjectURL(new Blob([WORKER], { type: "text/javascript" })));
    theWorker.files = new Set();
    theWorker.addEventListener("message", ({ data }) => hearing.get(data.id)?.(data));
    theWorker.addEventListener("error", (event) => {
      for (const tell of hearing.values()) tell({ error: event.message || "The worker behind this figure stopped." });
    });
  }
  hearing.set(id, hear);
  return theWorker;
}

/** Why a browser cannot do this, in one sentence; null if it can. */
function lacking(needsPhysics) {
  if (typeof Worker === "undefined") return "This browser has no workers, so that nothing can act here.";
  if (needsPhysics && typeof WebAssembly === "undefined") return "This browser has no WebAssembly, which the physics needs.";
  if (needsPhysics && typeof DecompressionStream === "undefined") return "This browser has no DecompressionStream, which the physics needs.";
  return null;
}

// ---- what a setting means ----

function boundTo(value, settings) {
  if (Array.isArray(value)) return value.map((entry) => boundTo(entry, settings));
  if (value === null || typeof value !== "object") return value;
  if ("control" in value) {
    const chosen = settings[value.control];
    return "of" in value ? boundTo(value.of[chosen], settings) : chosen;
  }
  return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, boundTo(entry, settings)]));
}

const sceneOf = (spec, settings) => boundTo(spec.scenes[spec.scene ? settings[spec.scene] : Object.keys(spec.scenes)[0]], settings);

/** What must begin anew if it changes: all of a lane but what may change in mid-episode. */
const fixedPart = (scene) => JSON.stringify([scene.start ?? null, scene.lanes.map(({ asked, cut, ...others }) => others)]);

// ---- means and their intervals ----

/** Of a mean, by drawing the numbers themselves again and again: the middle 95 of 100 means. */
function bootstrap(numbers, draws = 2000) {
  let state = 1;
  const random = () => { state = (Math.imul(state, 1664525) + 1013904223) >>> 0; return state / 2 ** 32; };
  const n = numbers.length;
  const means = Array.from({ length: draws }, () => {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += numbers[Math.floor(random() * n)];
    return sum / n;
  }).sort((a, b) => a - b);
  return [means[Math.floor(0.025 * draws)], means[Math.ceil(0.975 * draws) - 1]];
}

const meanOf = (numbers) => numbers.reduce((sum, each) => sum + each, 0) / numbers.length;

// ---- panels ----

const ROW = 26;

/** One row of dots for each arm, their mean and its interval. */
function episodesPanel(g, panel, get, w, h, theme) {
  const arms = get("arms");
  const [low, high] = get("range");
  const ticks = niceTicks([low, high], Math.max(2, (w - 40) / 80));
  const box = framed(w, h, { left: 12, right: 16, top: 4, bottom: panel.x_label ? 42 : 24 });
  const x = linear([low, high], box.x + 6, box.x + box.w - 6);
  axes(g, panel, box, theme, { x, y: () => box.y, xTicks: ticks, yTicks: [] });
  const tall = box.h / Math.max(1, arms.length);
  arms.forEach((arm, i) => {
    const top = box.y + i * tall;
    const color = theme[arm.color];
    text(g, arm.label, box.x + 6, top + 9, { align: "left", color: theme.ink, bold: true });
    text(g, arm.said, box.x + box.w - 4, top + 9, { align: "right", color: theme.ink });
    const middle = top + 0.62 * tall;
    g.globalAlpha = arm.stale ? 0.3 : 0.65;
    arm.returns.forEach((value, n) => dot(g, x(value), middle + ((n % 5) - 2) * 3.2, 3.2, color));
    g.globalAlpha = arm.stale ? 0.4 : 1;
    if (arm.mean !== null) {
      stroke(g, [[x(arm.ends[0]), middle + 14], [x(arm.ends[1]), middle + 14]], { color: theme.ink, width: 3 });
      stroke(g, [[x(arm.mean), middle + 9], [x(arm.mean), middle + 19]], { color: theme.ink, width: 3 });
    }
    g.globalAlpha = 1;
  });
  const longest = Math.max(1, ...arms.map((arm) => arm.returns.length));
  const at = (r, c) => Math.min(c, arms[r].returns.length - 1);
  return {
    rows: Math.max(1, arms.length), columns: longest,
    rect: (r, c) => {
      const value = arms[r]?.returns[at(r, c)] ?? low;
      return { x: x(value) - 6, y: box.y + (r + 0.62) * tall - 6 + ((at(r, c) % 5) - 2) * 3.2, w: 12, h: 12 };
    },
    text: (r, c) => (arms[r]?.returns.length
      ? `${arms[r].label}: episode ${at(r, c) + 1} earned ${formatValue(arms[r].returns[at(r, c)], ".4g")}; ${arms[r].said}`
      : `${arms[r]?.label ?? ""}: no episode yet`),
    find: (px, py) => {
      const r = Math.min(Math.max(0, arms.length - 1), Math.max(0, Math.floor((py - box.y) / tall)));
      const values = arms[r]?.returns ?? [];
      return [r, values.length ? nearest(values.map((value) => Math.abs(x(value) - px))) : 0];
    },
  };
}

/** The last K steps: a column for each, a row for each number that the policy is given. */
function seenPanel(g, panel, get, w, h, theme) {
  const { columns, rows, context } = get("seen");
  const names = rows.map((row) => row.name);
  const left = Math.min(w * 0.34, tickWidth(g, names, String) + 22);
  const box = { x: left, y: 4, w: w - left - 8, h: h - 26 };
  const [wide, tall] = [box.w / context, box.h / rows.length];
  const rect = (r, c) => ({ x: box.x + c * wide, y: box.y + r * tall, w: wide, h: tall });
  const padding = context - columns.length;
  rows.forEach((row, r) => {
    g.fillStyle = theme[row.kind];
    g.fillRect(box.x - 9, box.y + r * tall, 6, tall + 0.3);
    text(g, clipText(g, row.name, left - 16), box.x - 13, box.y + (r + 0.5) * tall, { align: "right", color: theme.soft });
    for (let c = 0; c < context; c++) {
      const cell = rect(r, c);
      const value = c < padding ? null : columns[c - padding][r];
      if (value === null) { g.fillStyle = theme.grid; g.fillRect(cell.x + 1, cell.y + tall / 2 - 0.5, cell.w - 2, 1); continue; }
      if (row.kind === "rtg") {
        text(g, formatValue(value, row.format), cell.x + wide / 2, cell.y + tall / 2, { color: theme.ink });
      } else {
        g.fillStyle = mapped(RED_BLUE, 0.5 + 0.5 * Math.max(-1, Math.min(1, row.scale(value))));
        g.fillRect(cell.x, cell.y, cell.w - 1, cell.h - 1);
      }
    }
  });
  for (let c = 0; c < context; c++) {
    const label = c === context - 1 ? "now" : String(c - context + 1);
    text(g, label, box.x + (c + 0.5) * wide, box.y + box.h + 6, { base: "top", color: theme.soft });
  }
  const step = (c) => (c === context - 1 ? "now" : `${context - 1 - c} steps ago`);
  return {
    rows: rows.length, columns: context, rect,
    text: (r, c) => {
      const value = c < padding ? null : columns[c - padding][r];
      return `${rows[r].name}, ${step(c)}: ${c < padding ? "padding" : value === null ? "not known yet" : formatValue(value, ".4g")}`;
    },
    find: (px, py) => [
      Math.max(0, Math.min(rows.length - 1, Math.floor((py - box.y) / tall))),
      Math.max(0, Math.min(context - 1, Math.floor((px - box.x) / wide))),
    ],
  };
}

function clipText(g, words, room) {
  if (g.measureText(words).width <= room) return words;
  let kept = words;
  while (kept.length > 1 && g.measureText(`${kept}…`).width > room) kept = kept.slice(0, -1);
  return `${kept}…`;
}

Object.assign(painters, { episodes: episodesPanel, seen: seenPanel });

// ---- the scene: the world that the policies act in ----

const SIDE = { tall: 2.25, bottom: -0.35 }; // metres that a strip shows

function drawSide(g, lanes, pictures, pushed, w, h, theme) {
  const strip = h / lanes.length;
  lanes.forEach((lane, i) => {
    const { geometry } = pictures[i];
    const scale = strip / SIDE.tall;
    lane.camera += 0.2 * (geometry.x - lane.camera);
    if (Math.abs(geometry.x - lane.camera) > w / scale / 3) lane.camera = geometry.x;
    const x = (value) => w / 2 + (value - lane.camera) * scale;
    const z = (value) => strip * (i + 1) + (SIDE.bottom - value) * scale;
    clipped(g, { x: 0, y: strip * i, w, h: strip }, () => {
      g.fillStyle = theme.region;
      g.fillRect(0, z(0), w, strip);
      const half = w / scale / 2;
      for (let metre = Math.ceil(lane.camera - half); metre <= lane.camera + half; metre++) {
        stroke(g, [[x(metre), z(0)], [x(metre), z(0) + 5]], { color: theme.soft });
        text(g, `${metre} m`, x(metre), z(0) + 7, { base: "top", color: theme.soft });
      }
      stroke(g, [[0, z(0)], [w, z(0)]], { color: theme.soft });
      g.lineCap = "round";
      geometry.shapes.forEach((shape) => {
        g.globalAlpha = lane.ended ? 0.55 : 0.9;
        stroke(g, [shape.from, shape.to].map(([px, pz]) => [x(px), z(pz)]), { color: theme[lane.color], width: 2 * shape.radius * scale });
      });
      g.globalAlpha = 1;
      g.lineCap = "butt";
      if (pushed) {
        const [px, pz, s] = [x(geometry.x), z(geometry.z), Math.sign(pushed)];
        stroke(g, [[px - s * 90, pz], [px - s * 34, pz]], { color: theme.action, width: 5 });
        stroke(g, [[px - s * 46, pz - 9], [px - s * 30, pz], [px - s * 46, pz + 9]], { color: theme.action, width: 5 });
      }
      if (lanes.length > 1) text(g, lane.name, 8, strip * i + 12, { align: "left", color: theme.ink, bold: true });
    });
    if (i) stroke(g, [[0, strip * i], [w, strip * i]], { color: theme.grid });
  });
  return null;
}

/** Worlds that are seen from above; returns how a point of the canvas becomes one of the world. */
function drawAbove(g, lanes, pictures, w, h, theme) {
  const top = lanes.length > 1 ? legendHeight(g, lanes, w - 24) + 2 : 6;
  if (lanes.length > 1) legend(g, lanes.map((lane) => ({ ...lane, style: "dots" })), { x: 10, w: w - 20 }, theme, 2);
  const plan = planOf(pictures[0].geometry);
  const unit = Math.min((w - 12) / plan.w, (h - top - 6) / plan.h);
  const [left, upper] = [(w - unit * plan.w) / 2, top + (h - top - 6 - unit * plan.h) / 2];
  const x = (value) => left + (value - plan.left) * unit;
  const y = (value) => upper + (plan.top - value) * unit;
  g.fillStyle = theme.region;
  g.fillRect(left, upper, unit * plan.w, unit * plan.h);
  g.fillStyle = theme.wall;
  // Whole pixels, so that no seam shows between neighbours.
  for (const [wx, wy, ww, wh] of plan.walls) g.fillRect(Math.floor(x(wx)), Math.floor(y(wy + wh)), Math.ceil(ww * unit) + 1, Math.ceil(wh * unit) + 1);
  for (const [name, place, reach] of plan.places) {
    if (reach) { g.beginPath(); g.arc(x(place[0]), y(place[1]), reach * unit, 0, 2 * Math.PI); g.strokeStyle = theme.soft; g.setLineDash([3, 3]); g.stroke(); g.setLineDash([]); }
    text(g, "★", x(place[0]), y(place[1]), { color: theme.ink, bold: true });
    text(g, name, x(place[0]), y(place[1]) + (reach ?? 0.2) * unit + 9, { color: theme.ink });
  }
  lanes.forEach((lane, i) => {
    const { geometry } = pictures[i];
    const place = geometry.ball ?? [geometry.x, geometry.y];
    const beside = geometry.ball ? 0 : (i - (lanes.length - 1) / 2) * 0.26 * unit; // who stands in one cell stands side by side
    g.globalAlpha = 0.6;
    stroke(g, lane.trail.map(([px, py]) => [x(px) + beside, y(py) + beside]), { color: theme[lane.color], width: 2 });
    g.globalAlpha = 1;
    dot(g, x(place[0]) + beside, y(place[1]) + beside, Math.max(6, (geometry.radius ?? 0.2) * unit), theme[lane.color], theme.ground);
  });
  return (px, py) => [(px - left) / unit + plan.left, plan.top - (py - upper) / unit];
}

function planOf(geometry) {
  if (geometry.walls) {
    const { walls: rows, cell, left, top, goal, reach } = geometry;
    const walls = rows.flatMap((row, r) => row.flatMap((wall, c) => (wall ? [[left + c * cell, top - (r + 1) * cell, cell, cell]] : [])));
    return { left, top, w: rows[0].length * cell, h: rows.length * cell, walls, places: [["goal", goal, reach]] };
  }
  if ("length" in geometry) {
    const { length, cue } = geometry;
    const walls = [-1.5, 0.5].map((y) => [-0.5, y, length, 1]);
    return { left: -0.5, top: 1.5, w: length + 1, h: 3, walls, places: [["goal", [length, cue]]] };
  }
  const { size, goal } = geometry;
  return { left: -0.5, top: size - 0.5, w: size, h: size, walls: [], places: [["goal", goal]] };
}

// ---- the figure ----

const WORDS = { terminated: { hopper: "fell", walker2d: "fell", point_maze: "reached its goal" }, truncated: {} };

const outcome = (kind, ended, earned) => {
  if (ended === "truncated" && kind === "point_maze") return "ran out of time";
  if (kind === "tmaze" || kind === "darkroom") return earned > 0 ? "arrived" : "did not arrive";
  return WORDS[ended]?.[kind] ?? "was at its last step";
};

let figureCount = 0;

/** Draws a figure into `el` and starts it. `load(names)` brings files, as {name: content}; resolves to what ends it. */
async function renderPolicy({ model, el, load }) {
  const spec = model.get("spec");
  const id = `${spec.name}-${(figureCount += 1)}`;
  const start = () => Object.fromEntries(spec.controls.map((control) => [control.name, control.start]));
  let settings = { ...start(), ...model.get("state") };
  const calm = globalThis.matchMedia?.("(prefers-reduced-motion: reduce)").matches ?? false;
  const view = { running: false, world: null, policies: [], moments: [[], []], lanes: [], pictures: null, pushed: 0, opened: null, tally: null, frames: 0 };

  const root = element("div", "dmm-explorer dmm-acting");
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", spec.title);

  // -- what the reader can do --
  const button = (words, act, className = "") => {
    const made = element("button", `dmm-button ${className}`, { type: "button", textContent: words });
    made.addEventListener("click", act);
    return made;
  };
  const tell = (message) => theWorker?.postMessage({ id, ...message });
  const play = button("Play", () => (view.running ? pause() : run()), "dmm-play");
  const more = calm ? 10 : 1;
  const stepButton = button(more > 1 ? `${more} steps` : "Step", () => step(more));
  const again = button("Restart", () => restart());
  const push = button("Push", () => pushIt(1));
  const drive = element("div", "dmm-buttons dmm-drive", {}, [play, stepButton, again, push]);

  const change = (name, value) => apply({ ...settings, [name]: value });
  const walk = { step: (name, value) => apply({ ...settings, [name]: value }, { save: false }), rest: () => apply(settings) };
  const controls = spec.controls.map((control) => [control, makeControl(control, settings[control.name], change, walk)]);
  const buttons = element("div", "dmm-buttons", {}, Object.entries({ ...spec.presets, Reset: start() }).map(([label, preset]) =>
    button(label, () => apply({ ...preset }), label === "Reset" ? "dmm-reset" : "")));

  // -- what is shown --
  const canvas = element("canvas", "dmm-canvas dmm-scene", { tabIndex: 0 });
  canvas.setAttribute("role", "img");
  const readout = element("p", "dmm-readout");
  const status = element("p", "dmm-said");
  status.setAttribute("role", "status");
  const panels = Object.fromEntries(spec.panels.map((panel) => [panel.name, makePanel({ marks: [], ...panel }, root)]));
  const playAll = spec.count ? button(`Play ${spec.count} episodes of each`, () => startTally(), "dmm-tally") : null;
  const hint = element("p", "dmm-hint");
  root.append(
    element("p", "dmm-title", { textContent: spec.title }),
    element("div", "dmm-controls", {}, controls.map(([, control]) => control.node)),
    buttons, drive,
    element("div", "dmm-panels", {}, [element("div", "dmm-panel dmm-wide", {}, [canvas])]),
    readout,
    element("div", "dmm-panels", {}, Object.entries(panels).flatMap(([name, panel]) => [
      ...(playAll && name === "episodes" ? [element("div", "dmm-panel dmm-buttons dmm-wide", {}, [playAll])] : []), panel.node,
    ])),
    status, hint,
  );

  let spoken = -Infinity;
  /** A screen reader hears of events, not of steps, and not of more than one in some seconds unless its reader caused it. */
  function say(words, asked = true) {
    const now = performance.now();
    if (!asked && now - spoken < 5000) return;
    spoken = now;
    status.textContent = words;
  }

  function fail(sentence) {
    view.running = false;
    view.tally = null;
    play.textContent = "Play";
    status.classList.add("dmm-failed");
    status.textContent = sentence;
  }

  const scene = () => sceneOf(spec, settings);

  // -- talking to the worker --
  let ready = null;
  function hear(answer) {
    if (answer.error) { fail(answer.error); ready?.reject(new Error(answer.error)); return; }
    if (answer.ready) {
      Object.assign(view, { world: answer.ready.world, policies: answer.ready.policies, moments: answer.ready.moments });
      push.hidden = !view.world.push;
      hint.textContent = hintFor(view.world);
      ready?.resolve();
    }
    if (answer.frame) receive(answer.frame);
    if (answer.episode) counted(answer.episode);
    if (answer.played) tallied(answer.played);
  }

  async function open() {
    const now = scene();
    view.opened = fixedPart(now);
    const needed = [...new Set([...now.lanes, ...(now.arms ?? [])].map((lane) => lane.policy))];
    const names = [...(now.physics ? ["mujoco"] : []), ...needed];
    const lack = lacking(now.physics);
    if (lack) throw new Error(lack);
    const worker = workerFor(id, hear);
    const missing = names.filter((name) => !worker.files.has(name));
    const files = missing.length ? await load(missing) : {};
    for (const [name, content] of Object.entries(files)) {
      worker.postMessage({ file: name, content });
      worker.files.add(name);
    }
    if (view.opened !== fixedPart(now)) return; // the reader has chosen another world meanwhile
    const opened = new Promise((resolve, reject) => { ready = { resolve, reject }; });
    view.lanes = now.lanes.map((lane) => ({ ...lane, trail: [], camera: 0, ended: null }));
    view.pictures = null;
    dropTally();
    tell({ open: { lanes: now.lanes, start: now.start ?? null, seed: settings.start ?? 1, speed: speed(), secondsPerStep: now.seconds_per_step ?? 0.2 } });
    await opened;
    status.classList.remove("dmm-failed");
  }

  const speed = () => (spec.speeds ? spec.speeds[settings.speed] : 1);

  function run() {
    view.running = true;
    play.textContent = "Pause";
    tell({ run: true });
    say(`Running. ${describe()}`);
  }

  function pause(quiet = false) {
    if (!view.running) return;
    view.running = false;
    play.textContent = "Play";
    tell({ run: false });
    if (!quiet) say(`Paused. ${describe()}`);
  }

  function step(count) {
    pause(true);
    tell({ step: count });
    setTimeout(() => say(describe()), 150);
  }

  function restart() {
    tell({ restart: settings.start ?? 1 });
    say("From the start.");
  }

  function pushIt(direction) {
    if (!view.world?.push) return;
    const newtons = direction * (scene().push ?? 60);
    tell({ push: newtons });
    view.pushed = newtons;
    setTimeout(() => { view.pushed = 0; }, 500);
    say(`Pushed ${direction > 0 ? "forwards" : "backwards"} with ${Math.abs(newtons)} newtons.`);
  }

  // -- frames --
  let due = false;
  function receive(frame) {
    frame.lanes.forEach((picture, i) => {
      const lane = view.lanes[i];
      if (picture.from === 0) { lane.trail = []; lane.camera = picture.geometry.x ?? 0; }
      lane.trail.push(...picture.trail);
      const was = lane.ended;
      lane.ended = picture.ended;
      if (picture.ended && !was) {
        const name = view.lanes.length > 1 ? lane.name : "It";
        say(`${name} ${outcome(view.world.kind, picture.ended, picture.earned)} after ${picture.steps} steps and earned ${formatValue(picture.earned, ".4g")}.`, false);
      }
    });
    view.pictures = frame.lanes;
    view.start = frame.start;
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; paint(); });
  }

  function describe() {
    if (!view.pictures) return "";
    return view.pictures.map((picture, i) => {
      const who = view.lanes.length > 1 ? `${view.lanes[i].name}: step` : "Step";
      const asked = view.lanes[i].actions ? "" : ` of ${formatValue(picture.asked, ".4g")} asked`;
      const end = picture.ended ? `, ${outcome(view.world.kind, picture.ended, picture.earned)}` : "";
      return `${who} ${picture.steps}, earned ${formatValue(picture.earned, ".4g")}${asked}${end}.`;
    }).join(" ");
  }

  let inverse = null;
  let slow = 0;
  function paint() {
    if (!view.pictures) return;
    view.frames += 1;
    paintScene();
    const now = performance.now();
    if (view.running && now - slow < 120) return; // numbers need not change faster than they are read
    slow = now;
    paintRest();
  }

  function paintScene() {
    const w = Math.max(120, Math.floor(canvas.parentElement.clientWidth));
    const side = view.pictures[0].geometry.view === "side";
    const corridor = "length" in view.pictures[0].geometry;
    const h = side ? (view.lanes.length > 1 ? 150 * view.lanes.length : Math.min(300, Math.round(0.62 * w))) : corridor ? 130 : 320;
    const ratio = globalThis.devicePixelRatio || 1;
    const [pw, ph] = [Math.round(w * ratio), Math.round(h * ratio)];
    if (canvas.width !== pw || canvas.height !== ph) {
      [canvas.width, canvas.height] = [pw, ph];
      [canvas.style.width, canvas.style.height] = [`${w}px`, `${h}px`];
    }
    const g = canvas.getContext("2d");
    const theme = themeOf(root);
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.font = '12px system-ui, "Segoe UI", "DejaVu Sans", sans-serif';
    g.clearRect(0, 0, w, h);
    inverse = side ? drawSide(g, view.lanes, view.pictures, view.pushed, w, h, theme) : drawAbove(g, view.lanes, view.pictures, w, h, theme);
  }

  function paintRest() {
    const words = describe();
    canvas.setAttribute("aria-label", `${spec.title}. ${words}`);
    const pieces = "start" in settings ? [["Start", String(view.start)]] : [];
    view.pictures.forEach((picture, i) => {
      const lane = view.lanes[i];
      if (view.lanes.length > 1) pieces.push([lane.name, `step ${picture.steps}, earned ${formatValue(picture.earned, ".4g")}${picture.ended ? `, ${outcome(view.world.kind, picture.ended, picture.earned)}` : ""}`]);
      else {
        pieces.push(["Step", String(picture.steps)], ["Earned", formatValue(picture.earned, ".4g")]);
        pieces.push(["Still asked", formatValue(picture.asked - picture.earned, ".4g")]);
        if (picture.ended) pieces.push(["It", outcome(view.world.kind, picture.ended, picture.earned)]);
      }
    });
    readout.replaceChildren(...pieces.map(([label, value]) => element("span", "dmm-reading", {}, [`${label} `, element("strong", "", { textContent: value })])));
    const known = knownNow();
    for (const [name, panel] of Object.entries(panels)) if (known[name]) panel.update(known[name], words);
    el.dmm.known = known;
  }

  function knownNow() {
    const known = { episodes: knownEpisodes() };
    const acting = view.pictures.findIndex((picture) => picture.seen.length);
    if (acting >= 0) known.seen = { seen: seenTable(view, acting) };
    known.distances = knownDistances();
    known.times = knownTimes();
    return known;
  }

  function knownDistances() {
    const [first, ...others] = view.lanes;
    const apart = others.map((lane) => lane.trail.map(([x, y], t) => {
      const [fx, fy] = first.trail[Math.min(t, first.trail.length - 1)];
      return Math.hypot(x - fx, y - fy);
    }));
    const known = Object.fromEntries(apart.map((numbers, i) => [`lane ${i + 1}`, numbers.length ? numbers : [0]]));
    const long = Math.max(20, ...apart.map((numbers) => numbers.length - 1));
    return { ...known, steps: [0, long], metres: [0, Math.max(0.05, ...apart.flat()) * 1.05] };
  }

  function knownTimes() {
    const times = view.pictures.map((picture) => picture.milliseconds);
    return { times, limits: [0, Math.max(0.1, ...times) * 1.1] };
  }

  // -- episodes that are only counted --
  function startTally() {
    if (view.tally?.busy) { tell({ episodes: null }); view.tally.busy = false; playAll.textContent = playWords(); paintRest(); return; }
    const { arms } = scene();
    view.tally = { arms, key: tallyKey(), busy: true, returns: arms.map(() => []) };
    tell({ episodes: { arms, count: spec.count, seed: spec.seed } });
    playAll.textContent = "Stop counting";
    say(`${spec.count} episodes of each are played.`);
    paintRest();
  }

  const tallyKey = () => JSON.stringify(scene().arms ?? null);
  const playWords = () => `Play ${spec.count} episodes of each`;

  function dropTally() {
    view.tally = null;
    if (playAll) playAll.textContent = playWords();
  }

  function counted({ arm, earned }) {
    if (!view.tally) return;
    view.tally.returns[arm].push(earned);
    if (view.pictures && performance.now() - slow > 120) { slow = performance.now(); paintRest(); }
  }

  function tallied({ seconds }) {
    if (!view.tally) return;
    Object.assign(view.tally, { busy: false, seconds });
    playAll.textContent = playWords();
    paintRest();
    say(knownEpisodes().arms.map((arm) => `${arm.label}: ${arm.said}`).join("; "));
  }

  function knownEpisodes() {
    const now = scene();
    const tally = view.tally ?? { arms: now.arms ?? [], returns: (now.arms ?? []).map(() => []), key: tallyKey() };
    const stale = tally.key !== tallyKey();
    const arms = tally.arms.map((arm, i) => {
      const returns = tally.returns[i];
      const enough = returns.length > 2;
      const [mean, ends] = enough ? [meanOf(returns), bootstrap(returns)] : [null, null];
      const numbers = enough ? `mean ${formatValue(mean, now.format)} (${ends.map((end) => formatValue(end, now.format)).join(" to ")}) of ${returns.length}` : "not played yet";
      const said = stale && enough ? "before the last change: play again" : numbers;
      return { label: arm.label ?? `asked for ${formatValue(arm.asked, ".4g")}`, color: arm.color, returns, mean, ends, said, stale };
    });
    const all = arms.flatMap((arm) => arm.returns);
    const range = [Math.min(now.range[0], ...all), Math.max(now.range[1], ...all)];
    return { arms, range };
  }

  // -- settings --
  async function apply(next, { notify = true, save = true } = {}) {
    const before = settings;
    settings = next;
    for (const [control, made] of controls) {
      made.show(settings[control.name]);
      made.node.hidden = Boolean(control.when) && settings[control.when[0]] !== control.when[1];
    }
    if (notify) {
      model.set("state", { ...settings });
      if (save) model.save_changes();
    }
    const now = scene();
    if (view.opened !== fixedPart(now)) {
      await reopen();
      return;
    }
    tell({ set: { lanes: now.lanes.map(({ asked, cut }) => ({ asked, cut: cut ?? null })), speed: speed() } });
    if (before.start !== settings.start) restart();
    else if (view.pictures) paintRest();
  }

  async function reopen() {
    const ran = view.running;
    pause(true);
    say("Loading …");
    try {
      await open();
      if (ran && !calm) run();
      else say("Ready.");
    } catch (error) {
      view.opened = null; // the next change tries again
      fail(error.message);
    }
  }

  // -- keys, mouse and touch on the scene --
  function hintFor(world) {
    const keys = "With the picture in focus: Space plays and pauses, . makes a step";
    const single = " To read single numbers, point at one of the other pictures or tap it, or focus it and press the arrow keys.";
    if (world.drag) return `Drag the ball with the mouse or tap where it should go. ${keys}, arrow keys pull the ball.${single}`;
    if (world.push) return `${keys}, ← and → push.${single}`;
    return `${keys}.${single}`;
  }

  let held = null;
  const letGo = () => { if (held !== null) { clearTimeout(held); held = null; } tell({ drag: null }); };
  function pull(place, milliseconds) {
    if (!view.world?.drag) return;
    tell({ drag: place });
    clearTimeout(held);
    held = milliseconds ? setTimeout(letGo, milliseconds) : -1;
  }
  const pointed = (event) => inverse?.(event.offsetX, event.offsetY);
  canvas.addEventListener("pointerdown", (event) => {
    if (!view.world?.drag || !inverse) return;
    if (event.pointerType === "touch") return; // a finger may want to scroll: its tap is a click
    canvas.setPointerCapture(event.pointerId);
    pull(pointed(event), 0);
  });
  canvas.addEventListener("pointermove", (event) => { if (held === -1) pull(pointed(event), 0); });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { if (held === -1) letGo(); });
  canvas.addEventListener("click", (event) => { if (event.pointerType === "touch" && inverse) pull(pointed(event), 700); });
  canvas.addEventListener("keydown", (event) => {
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (event.key === " ") (view.running ? pause() : run());
    else if (event.key === ".") step(more);
    else if (arrow && view.world?.drag && view.pictures) {
      const [x, y] = view.pictures[0].geometry.ball;
      pull([x + 0.6 * arrow[0], y + 0.6 * arrow[1]], 300);
    } else if (arrow?.[0] && view.world?.push) pushIt(arrow[0]);
    else return;
    event.preventDefault();
  });

  // -- out of sight, it stops --
  const unseen = () => { pause(true); if (view.tally?.busy) startTally(); };
  const sight = new IntersectionObserver((entries) => { if (!entries.at(-1).isIntersecting) unseen(); });
  const hidden = () => { if (document.hidden) unseen(); };
  const repaint = () => { if (view.pictures) { paintScene(); paintRest(); } };
  const widths = new ResizeObserver(repaint);
  const themes = new MutationObserver(repaint);

  el.dmm = {
    spec, apply, settings: () => ({ ...settings }), view, known: {}, tell,
  };
  const onState = () => {
    const next = { ...start(), ...model.get("state") };
    if (JSON.stringify(next) !== JSON.stringify(settings)) apply(next, { notify: false });
  };
  model.on("change:state", onState);
  const end = () => {
    tell({ close: true });
    hearing.delete(id);
    for (const observer of [sight, widths, themes]) observer.disconnect();
    document.removeEventListener("visibilitychange", hidden);
    model.off?.("change:state", onState);
  };

  for (const [control, made] of controls) made.node.hidden = Boolean(control.when) && settings[control.when[0]] !== control.when[1];
  try {
    await open();
  } catch (error) {
    end();
    throw error;
  }
  el.append(root);
  el.classList.add("dmm-live");
  sight.observe(root);
  widths.observe(root);
  for (const node of [document.documentElement, document.body]) themes.observe(node, { attributes: true, attributeFilter: ["data-theme", "data-jp-theme-light", "theme", "class"] });
  document.addEventListener("visibilitychange", hidden);
  if (calm) say("Ready: steps are made when you ask for them.");
  else run();
  return end;
}

/** The last steps of one lane as a table: what kind of token each row belongs to, and how its numbers are coloured. */
function seenTable(view, lane) {
  const { world, moments: [mean, std], policies } = view;
  const { seen } = view.pictures[lane];
  const named = (names, kind, length) => Array.from({ length }, (_, i) => `${kind} ${names?.[i] ?? i}`);
  const states = seen[0].observation.length;
  const actions = seen.find((entry) => entry.action)?.action.length ?? 0;
  const rows = [
    { name: "return-to-go", kind: "rtg", format: Math.abs(seen[0].returnToGo) < 20 ? ".2g" : ".0f" },
    ...named(world.observationNames, "state", states).map((name, i) => ({
      name, kind: "state", scale: (value) => (value - (mean[i] ?? 0)) / (2.5 * (std[i] ?? 1)),
    })),
    ...named(world.actionNames, "action", actions).map((name) => ({ name, kind: "action", scale: (value) => value })),
  ];
  const columns = seen.map((entry) => [
    entry.returnToGo, ...entry.observation, ...Array.from({ length: actions }, (_, i) => entry.action?.[i] ?? null),
  ]);
  return { rows, columns, context: policies[lane].context };
}
