// Sphinx looks words up in plain objects, where `constructor` and `__proto__` are found without being in the index.
// Deferred: it runs after the index has come and before the search begins.
(() => {
  "use strict";
  const own = Object.create(null, { hasOwnProperty: { value: Object.prototype.hasOwnProperty } }); // searchtools calls it
  for (const words of [Search._index.terms, Search._index.titleterms]) Object.setPrototypeOf(words, own);
})();

// For the excerpts below its results the search fetches their pages, which browsers refuse to pages opened from disk. There
// the texts come as a script, `search-texts.js`, when the first of them is asked for.
(() => {
  "use strict";
  if (location.protocol !== "file:") return;
  let texts = null;
  const loaded = () => texts ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = new URL("search-texts.js", document.querySelector("script[src*='search-words.js']").src);
    script.onload = () => done(window.dmmSearchTexts);
    script.onerror = failed;
    document.head.append(script);
  });
  window.fetch = async (address) => {
    const root = new URL(document.documentElement.dataset.content_root, location.href).href;
    const page = decodeURI(new URL(address, location.href).href).slice(decodeURI(root).length).replace(/\.html$/, "");
    return { text: async () => (await loaded())[page] ?? "" };
  };
})();
