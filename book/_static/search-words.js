// Sphinx looks words up in plain objects, where `constructor` and `__proto__` are found without being in the index.
// Deferred: it runs after the index has come and before the search begins.
(() => {
  "use strict";
  const own = Object.create(null, { hasOwnProperty: { value: Object.prototype.hasOwnProperty } }); // searchtools calls it
  for (const words of [Search._index.terms, Search._index.titleterms]) Object.setPrototypeOf(words, own);
})();
