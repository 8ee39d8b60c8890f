// What scrolls sideways must be reachable from the keyboard. The theme sees to it once, for what is visible then; here it
// also holds for cells that a reader unfolds, a phone that is turned, formulas once they are set, and wide pictures.
(() => {
  "use strict";
  const scrollers = ".bd-article pre, .bd-article div.math, .bd-article .pst-scrollable-table-container, .story";
  const sizes = new ResizeObserver((entries) => entries.forEach(({ target }) => {
    target.tabIndex = target.scrollWidth > target.clientWidth + 1 ? 0 : -1;
  }));
  document.querySelectorAll(scrollers).forEach((element) => sizes.observe(element));
})();
