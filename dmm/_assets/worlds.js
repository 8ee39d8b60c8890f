// Worlds that a page can play, behind one interface: grid worlds here, MuJoCo's in physics.js. See policy.js for the
// convention of these scripts.
//
//   dmm.random(seed) -> () => number in [0, 1)      the page's own seeded generator (not numpy's)
//   dmm.makeWorld(description, mujoco = null) -> World
//       `description` is environment.world of an export; `mujoco` what dmm.startMujoco of physics.js resolves to, for
//       those with `needs: "mujoco"`. Throws Error with one sentence for a world that is not known here.
//
//   World, all of them:
//     .kind             "tmaze", "darkroom", "hopper", "walker2d", "point_maze"
//     .stepLimit        steps of an episode at most (time limit of the registered environment)
//     .actionNames      of discrete actions, in order; null where actions are vectors
//     .observationNames of the entries of an observation, in order
//     .secondsPerStep   simulated; null in grid worlds
//     .reset({seed}) or .reset({state}) -> observation, an array of numbers as the policy's data set has it
//     .step(action) -> {observation, reward, terminated, truncated}; action: see dmm.played. After the end it throws.
//     .state() -> plain object; .reset({state: world.state()}) goes on from exactly there, its count of steps included
//     .geometry() -> what to draw, plain numbers, see below
//     .free()           gives MuJoCo's memory back; the world must not be used after it
//
//   tmaze: description {kind, length, step_limit}; state {x, y, cue, steps}: x 0..length along the corridor, y -1, 0, 1,
//     cue 1 (up) or -1 (down). A start is {cue}, the rest may be left out. geometry {length, x, y, cue}.
//   darkroom: description {kind, size, step_limit}; state {x, y, goal: [x, y], steps}. A start is {goal}, x and y are the
//     centre if left out. geometry {size, x, y, goal}.
