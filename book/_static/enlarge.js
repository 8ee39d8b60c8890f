// Pictures that a page shows smaller than they are, as a phone does, open in their full size: by a tap, by Enter or Space.
// There a finger moves about the picture, as do the arrow keys; Escape, the button or a tap beside it lead back.
(() => {
  "use strict";
  const SHRUNK = 0.85; // of a picture's own width: below this its letters are hard to read
  const pictures = ".bd-article img";
  const opened = document.createElement("dialog");
  opened.className = "enlarged";
  const close = document.createElement("button");
  close.type = "button";
  close.className = "enlarged-close";
  close.textContent = "Close";
  const frame = document.createElement("div");
  frame.className = "enlarged-frame";
  frame.tabIndex = 0;
  frame.setAttribute("role", "group");
  frame.setAttribute("aria-label", "Enlarged picture; move about it with the arrow keys");
  opened.append(close, frame);
  opened.setAttribute("aria-label", "Enlarged picture");
  document.body.append(opened);
  close.addEventListener("click", () => opened.close());
  opened.addEventListener("click", ({ target }) => { if (target === opened) opened.close(); });
  opened.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation(); // Sphinx takes Escape for its own and prevents what it would do here
    opened.close();
  });
  let from = null;
  opened.addEventListener("close", () => {
    frame.replaceChildren();
    from?.focus();
  });

  const show = (picture) => {
    const copy = new Image();
    copy.src = picture.currentSrc || picture.src;
    copy.alt = picture.alt;
    copy.width = picture.naturalWidth;
    frame.replaceChildren(copy);
    from = picture;
    opened.showModal();
    frame.focus();
  };
  const asButton = (picture, yes) => {
    if (yes === (picture.getAttribute("role") === "button")) return;
    picture.classList.toggle("can-enlarge", yes);
    if (yes) {
      picture.setAttribute("role", "button");
      picture.setAttribute("aria-haspopup", "dialog");
      picture.tabIndex = 0;
    } else ["role", "aria-haspopup", "tabindex"].forEach((name) => picture.removeAttribute(name));
  };
  const look = (picture) => {
    if (picture.closest("a, button, .dmm-explorer")) return; // it has another use
    asButton(picture, picture.clientWidth > 0 && picture.clientWidth < SHRUNK * picture.naturalWidth);
  };
  const sizes = new ResizeObserver((entries) => entries.forEach(({ target }) => look(target)));
  document.querySelectorAll(pictures).forEach((picture) => {
    sizes.observe(picture);
    picture.addEventListener("load", () => look(picture));
    picture.addEventListener("click", () => { if (picture.classList.contains("can-enlarge")) show(picture); });
    picture.addEventListener("keydown", (event) => {
      if (!picture.classList.contains("can-enlarge") || !["Enter", " "].includes(event.key)) return;
      event.preventDefault();
      show(picture);
    });
  });
})();
