// An address may be of any length, and several scripts of a page work through every word of it: the live figures their
// settings, the theme the words to highlight, the search its query. Nothing that this site writes is nearly as long as
// what is cut off here, before any of them reads it.
(() => {
  "use strict";
  const LONGEST = 16384; // characters of the query and of the fragment; a figure's settings take some hundred
  const { hash, search, pathname } = location;
  if (hash.length <= LONGEST && search.length <= LONGEST) return;
  const kept = (search.length <= LONGEST ? search : "") + (hash.length <= LONGEST ? hash : "");
  try {
    history.replaceState(history.state, "", pathname + kept);
  } catch {
    location.replace(pathname + kept); // some browsers refuse on pages from a file
  }
})();
