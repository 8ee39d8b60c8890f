// Brings the live figures of a static page to life; the site's build puts it behind widgets.js in one plain script.
// Their settings live in the page's address, so that a link shares them:
//   page.html#figure?control=value&control=value;other-figure?control=value
// names only the controls that differ from their start, the figure that was changed last first, and
//   page.html#figure?start
// is a figure at its start. An address without "?" belongs to the page's own anchors and is left alone.

const START = "start";
const LONGEST = 16384; // characters; some hundred are needed
const figures = new Map();
let recent = [];

function decoded(text) {
  try { return decodeURIComponent(text); } catch { return null; }
}

/** The control's own value that a text stands for; undefined if there is none. */
function controlValue(control, text) {
  if (control.kind === "select") return control.values.find((value) => value === text);
  const number = text === null || text.trim() === "" ? NaN : Number(text);
  return control.values.find((value) => Math.abs(value - number) <= Math.max(1e-12, 1e-6 * Math.abs(value)));
}

function readSettings(spec, query) {
  const settings = {};
  for (const part of query.split("&")) {
    const [name, text] = part.split("=").map(decoded);
    const control = spec.controls.find((candidate) => candidate.name === name);
    const value = control && text !== undefined ? controlValue(control, text) : undefined;
    if (value !== undefined) settings[name] = value;
  }
  return settings;
}

/** Figure names and their queries, in the address's order; nothing if the address is none of ours. The last query of a
 * figure counts, and an address longer than any that is written here is none of ours: both bound what it can cost. */
function readAddress(hash) {
  if (hash.length > LONGEST || !/^#[^?]+\?/.test(hash)) return [];
  const parts = hash.slice(1).split(";").map((part) => {
    const [name, query = ""] = part.split("?");
    return [decoded(name), query];
  });
  return [...new Map(parts)];
}

function written(spec, settings) {
  const changed = spec.controls.filter((control) => control.name in settings && settings[control.name] !== control.start);
  const query = changed.map((control) => `${encodeURIComponent(control.name)}=${encodeURIComponent(settings[control.name])}`);
  return query.length ? `${encodeURIComponent(spec.name)}?${query.join("&")}` : null;
}

/** The fragment that restores every figure of the page, the one named first where it must be seen. */
function address(first = null) {
  const names = [...new Set([...(first ? [first] : []), ...recent])].filter((name) => figures.has(name));
  const parts = names.map((name) => {
    const { spec, values } = figures.get(name);
    return written(spec, values.state) ?? (name === first ? `${encodeURIComponent(name)}?${START}` : null);
  });
  const fragment = parts.filter((part) => part !== null).join(";");
  return fragment && `#${fragment}`;
}

let waiting = null;

function writeAddress() {
  waiting = null;
  const next = address();
  // A page's own anchor stays in the address until a figure has something to say.
  if (!next && !readAddress(location.hash).length) return;
  try {
    history.replaceState(history.state, "", next || location.pathname + location.search);
  } catch {
    // Some browsers refuse on pages from a file, or when a slider moves too often: the figure works all the same.
  }
}

function pageModel(element, spec) {
  const listeners = new Set();
  const values = { spec, state: {} };
  const figure = { element, spec, values, tell: () => listeners.forEach((listener) => listener()), onChange() {} };
  figures.set(spec.name, figure);
  return {
    get: (key) => values[key],
    set: (key, value) => { values[key] = value; },
    save_changes() {
      recent = [spec.name, ...recent.filter((name) => name !== spec.name)];
      clearTimeout(waiting);
      waiting = setTimeout(writeAddress, 150);
      figure.onChange();
    },
    on: (event, listener) => listeners.add(listener),
    off: (event, listener) => listeners.delete(listener),
  };
}

// ---- copying a link ----

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Pages from a file or over http may not use the clipboard that way.
  }
  const field = element("textarea", "dmm-offscreen", { value: text, readOnly: true });
  const focused = document.activeElement;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus({ preventScroll: true });
  return done;
}

function addCopyButton(figure, spec) {
  const button = element("button", "dmm-button dmm-copy", { type: "button", textContent: "Copy link" });
  const answer = element("span", "dmm-answer");
  answer.setAttribute("role", "status");
  const field = element("input", "dmm-link", { type: "text", readOnly: true, hidden: true });
  field.setAttribute("aria-label", "Link to this setting");
  button.addEventListener("click", async () => {
    const link = location.href.split("#")[0] + address(spec.name);
    const done = await copied(link);
    [field.hidden, field.value] = [done, link];
    answer.textContent = done ? "Copied: the link opens the page with this setting." : "Copy this link:";
    if (!done) field.select();
  });
  figure.querySelector(".dmm-buttons").append(button, answer, field);
  figures.get(spec.name).onChange = () => { answer.textContent = ""; field.hidden = true; };
}

// ---- opening an address ----

/** Scroll to a figure and stay with it while formulas and pictures above it find their size. */
function scrollToFigure(figure) {
  for (let box = figure.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
  const scroll = () => figure.scrollIntoView({ block: "start", behavior: "instant" });
  const growth = new ResizeObserver(scroll);
  const events = ["wheel", "touchstart", "pointerdown", "keydown"];
  const stop = () => {
    growth.disconnect();
    events.forEach((event) => removeEventListener(event, stop));
  };
  events.forEach((event) => addEventListener(event, stop, { passive: true }));
  setTimeout(stop, 4000);
  growth.observe(document.body);
  scroll();
}

function openAddress(scroll) {
  const named = readAddress(location.hash).filter(([name]) => figures.has(name));
  recent = [...new Set([...named.map(([name]) => name), ...recent])];
  for (const [name, query] of named) {
    const { spec, values, tell } = figures.get(name);
    values.state = readSettings(spec, query);
    tell();
  }
  if (named.length && scroll) scrollToFigure(figures.get(named[0][0]).element);
}

// ---- figures in which a policy acts: they sleep, and cost nothing, until their reader starts them ----

const HERE = document.currentScript.src.replace(/[^/]*$/, ""); // the site's _static
const scripts = new Map();

// What live.js, which is loaded when it is needed, takes of widgets.js.
globalThis.dmmWidgets = {
  element, makeControl, makePanel, painters, themeOf, text, stroke, dot, clipped, axes, legend, legendHeight, framed, tickWidth, linear,
  niceTicks, nearest, mapped, RED_BLUE, formatValue,
};

/** A file of the site: script elements may load what a page from a disk may not fetch. */
function loadScript(name) {
  if (!scripts.has(name)) {
    const loaded = new Promise((resolve, reject) => {
      const script = element("script", "", { src: HERE + name, async: true });
      script.addEventListener("load", resolve);
      script.addEventListener("error", () => { scripts.delete(name); script.remove(); reject(new Error(`This site has no file ${name}.`)); });
      document.head.append(script);
    });
    scripts.set(name, loaded);
  }
  return scripts.get(name);
}

/** Files for the worker by name: the physics, and exported policies. They are handed on, not kept. */
async function loadFiles(names) {
  const files = {};
  await Promise.all(names.map(async (name) => {
    await loadScript(`dmm-files/${name.replaceAll("/", "-")}.js`);
    files[name] = globalThis.dmmFiles[name];
    delete globalThis.dmmFiles[name];
  }));
  return files;
}

function addStart(figure) {
  const spec = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
  const el = figure.querySelector(".dmm-widget");
  const model = pageModel(figure, spec);
  figure.classList.add("dmm-scripted"); // the button says what the caption does
  el.append(makeStart(spec.title, async () => {
    await loadScript("dmm-live.js");
    await globalThis.dmmLive({ model, el, load: loadFiles });
    addCopyButton(el, spec);
    el.querySelector(".dmm-play").focus({ preventScroll: true });
  }));
}

function upgrade() {
  for (const figure of document.querySelectorAll("figure.dmm-policy")) {
    try {
      addStart(figure);
    } catch (error) {
      console.error(error);
    }
  }
  for (const figure of document.querySelectorAll("figure.dmm-widget:not(.dmm-live)")) {
    try {
      const spec = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
      render({ model: pageModel(figure, spec), el: figure });
      addCopyButton(figure, spec);
    } catch (error) {
      // The picture of this figure stays, and the others still come alive.
      figure.classList.remove("dmm-live");
      console.error(error);
    }
  }
  // A page that is loaded again stays where its reader was.
  openAddress(performance.getEntriesByType("navigation")[0]?.type !== "reload");
  addEventListener("hashchange", () => {
    openAddress(true);
    if (readAddress(location.hash).length) writeAddress();
  });
}

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", upgrade);
else upgrade();
