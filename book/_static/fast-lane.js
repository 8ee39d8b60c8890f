// A long chapter says at its top what to read of it in twenty minutes. A button there folds the other sections to their
// headings; each opens again by itself, from its heading, by a link into it, by a search on the page that finds something in
// it (where the browser can), or all together by the same button. On paper everything is open.
(() => {
  "use strict";
  const lane = document.querySelector(".fast-lane");
  const chapter = lane?.closest("section");
  if (!chapter) return;
  const links = [...lane.querySelectorAll("a[href*='#']")].map((link) => decodeURIComponent(link.hash.slice(1)));
  const inLane = (section) => links.some((id) => section.id === id || section.querySelector(`:scope > span[id="${CSS.escape(id)}"]`));
  const rest = [...chapter.children].filter((part) => part.matches("section") && !inLane(part));
  const key = `dmm-fast-lane:${location.pathname}`;

  const fold = (section, yes) => {
    section.classList.toggle("folded", yes);
    for (const part of section.children) {
      if (part.matches("h2, span")) continue;
      if (yes) part.setAttribute("hidden", "until-found");
      else part.removeAttribute("hidden");
    }
    const button = section.querySelector(":scope > h2 > .unfold");
    button.hidden = !yes;
  };
  rest.forEach((section) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "unfold";
    button.textContent = "show";
    button.hidden = true;
    button.setAttribute("aria-label", `Show the section ${section.querySelector("h2").firstChild.textContent.trim()}`);
    button.addEventListener("click", () => {
      fold(section, false);
      section.tabIndex = -1;
      section.focus({ preventScroll: true });
    });
    section.querySelector(":scope > h2").append(button);
    section.addEventListener("beforematch", () => fold(section, false));
  });

  const all = document.createElement("button");
  all.type = "button";
  all.className = "fold-rest";
  const setAll = (yes) => {
    rest.forEach((section) => fold(section, yes));
    all.textContent = yes ? "Show the whole chapter" : "Fold the rest of the chapter";
    all.setAttribute("aria-pressed", String(yes));
  };
  all.addEventListener("click", () => {
    const yes = all.getAttribute("aria-pressed") !== "true";
    setAll(yes);
    try {
      sessionStorage.setItem(key, yes ? "folded" : "");
    } catch { /* a browser that keeps nothing folds nothing the next time */ }
  });
  lane.append(all);
  let kept = "";
  try {
    kept = sessionStorage.getItem(key) ?? "";
  } catch { /* as above */ }
  const searched = new URLSearchParams(location.search).has("highlight");
  setAll(kept === "folded" && !searched);

  const goTo = () => {
    const id = decodeURIComponent(location.hash.slice(1).split("?")[0]);
    const target = id && (document.getElementById(id) ?? document.querySelector(`[data-widget="${CSS.escape(id)}"]`));
    const section = target && target.closest("section.folded");
    if (!section) return;
    fold(section, false);
    target.scrollIntoView();
  };
  addEventListener("hashchange", goTo);
  goTo();
})();
