// Worlds in MuJoCo, compiled to WebAssembly: Hopper, Walker2d and the point mazes, step for step those of Gymnasium and
// gymnasium-robotics. See policy.js for the convention of these scripts and worlds.js for the interface of a world.
//
//   dmm.startMujoco(wasm) -> Promise of the module that dmm.makeWorld takes
//       `wasm` is the packed binary of the site's file dmm-mujoco.js. That is a classic script which defines
//           globalThis.dmmMujoco = {version, glue, wasm}
//       `glue` is the text of a classic script (to be put in front of these in a worker's Blob, or run by node) that
//       defines globalThis.loadMujoco; `wasm` is base64 of gzip, a string, unpacked by DecompressionStream. Rejects with
//       one sentence where there is no WebAssembly or DecompressionStream.
//
//   hopper, walker2d: state {qpos, qvel, steps}; step(Float64Array(nu)); {seed} draws a start as Gymnasium does, from
//     uniform noise around the model's own. geometry {view: "side", shapes: [{kind: "capsule", from: [x, z], to: [x, z],
//     radius, body}], x (of the torso), z, floor: 0}.
//     .push(newtons, steps = 5)  a horizontal force on the torso for so many steps to come
//   point_maze: state {qpos, qvel, goal: [x, y], steps}; {seed} draws goal and start as gymnasium-robotics does.
//     geometry {view: "above", cells: rows of true for a wall (first row on top), cell: side in metres, ball: [x, y],
//     radius, goal: [x, y], reach: metres at which the goal counts as reached, left, top: x and y of the map's upper left
//     corner}.
//     .drag([x, y])  the ball is pulled to this point by a spring until .drag(null)
//   Any other world ignores neither: `push` and `drag` are undefined there.
