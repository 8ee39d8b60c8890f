// What plays episodes behind the live figures with a policy: the last part of one classic script, behind policy.js, worlds.js and
// physics.js, that runs in a worker made of a Blob, one for all figures of a page.
//
// The main thread hands over files as it has them, and the worker loads nothing by itself:
//   { file: name, content }     content of `dmmFiles[name]`, see below
// A file of the site is a classic script that a <script> element can load from a page that was opened from disk:
//   (globalThis.dmmFiles ??= {})["mujoco"] = { glue: "JavaScript, a classic script that sets globalThis.loadMujoco",
//                                              wasm: "base64 of gzip", version: "3.12.0" };
//   (globalThis.dmmFiles ??= {})["hopper-dmm"] = { ... };   what `dmm export` writes
//   (globalThis.dmmFiles ??= {})["models"] = { "hopper": "<mujoco ...", ... };   MJCF texts
// It executes nothing of MuJoCo where it is loaded: the glue is a text, so that the worker runs it and the page does not.
