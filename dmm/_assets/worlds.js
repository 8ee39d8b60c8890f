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
//     .steps            of this episode so far
//     .secondsPerStep   simulated; null in grid worlds
//     .reset({seed}) or .reset({state}) -> observation, a flat array of numbers as the policy's data set has it: the
//         entries that it takes (description.keys), less its offset, rounded to float32
//     .step(action) -> {observation, reward, terminated, truncated}; action: see dmm.played. Truncated is an episode that
//         the step limit ends and nothing else. After the end it throws.
//     .state() -> plain object; .reset({state: world.state()}) goes on from exactly there, its count of steps included
//     .geometry() -> what to draw, plain numbers, see below
//     .free()           gives MuJoCo's memory back; the world must not be used after it
//
//   tmaze: description {kind, length, step_limit}; state {x, y, cue, steps}: x 0..length along the corridor, y -1, 0, 1,
//     cue 1 (up) or -1 (down). A start is {cue}, the rest may be left out. geometry {length, x, y, cue}.
//   darkroom: description {kind, size, step_limit}; state {x, y, goal: [x, y], steps}. A start is {goal}, x and y are the
//     centre if left out. geometry {size, x, y, goal}.

(() => {
  "use strict";
  const dmm = (globalThis.dmm ??= {});
  const between = (value, low, high) => Math.min(high, Math.max(low, value));

  /** Mulberry32, a small generator with 32 bits of state. */
  dmm.random = seed => {
    let state = seed | 0;
    return () => {
      state = (state + 0x6d2b79f5) | 0;
      let bits = Math.imul(state ^ (state >>> 15), 1 | state);
      bits = (bits + Math.imul(bits ^ (bits >>> 7), 61 | bits)) ^ bits;
      return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
    };
  };

  /** What all worlds share. A kind of world has `start(random)` -> state, `put(state)`, `move(action)` -> {reward,
   *  terminated}, `raw()` -> observation before keys, offset and rounding, `saved()` -> state. */
  dmm.World = class World {
    constructor(description) {
      this.description = description;
      this.kind = description.kind;
      this.stepLimit = description.step_limit;
      this.actionNames = null;
      this.secondsPerStep = null;
      this.over = true;
    }

    reset({ seed, state }) {
      this.put(state ?? this.start(dmm.random(seed)));
      this.steps = state?.steps ?? 0;
      this.over = false;
      return this.observation();
    }

    step(action) {
      if (this.over) throw new Error("world: its episode is over, allowed is reset");
      const { reward, terminated } = this.move(action);
      const truncated = ++this.steps === this.stepLimit && !terminated;
      this.over = terminated || truncated;
      return { observation: this.observation(), reward, terminated, truncated };
    }

    observation() {
      const { offset } = this.description;
      return this.raw().map((value, i) => Math.fround(offset ? value - offset[i] : value));
    }

    state() {
      return { ...this.saved(), steps: this.steps };
    }

    free() {}
  };

  /** The number of an action, if there is one. */
  function chosen(action, names) {
    if (!Number.isInteger(action) || !names[action]) throw new Error(`action: got ${action}, allowed is 0 to ${names.length - 1}`);
    return names[action];
  }

  class TMaze extends dmm.World {
    constructor(description) {
      super(description);
      this.actionNames = ["up", "down", "left", "right"];
      this.observationNames = ["x", "y", "cue"];
    }
    start(random) {
      return { cue: random() < 0.5 ? -1 : 1 };
    }
    put({ cue, x = 0, y = 0, steps = 0 }) {
      Object.assign(this, { cue, x, y, steps, shown: steps === 0 });
    }
    move(action) {
      const name = chosen(action, this.actionNames), { length } = this.description;
      if (name === "left" || name === "right") {
        if (this.y === 0) this.x = between(this.x + (name === "right" ? 1 : -1), 0, length);
      } else if (this.x === length && this.y === 0) this.y = name === "up" ? 1 : -1;
      this.shown = false; // the cue is in the first observation and never again
      const terminated = this.steps === length;
      return { reward: Number(terminated && this.y === this.cue), terminated };
    }
    raw() {
      return [this.x, this.y, this.shown ? this.cue : 0];
    }
    saved() {
      return { x: this.x, y: this.y, cue: this.cue };
    }
    geometry() {
      return { length: this.description.length, ...this.saved() };
    }
  }

  class Darkroom extends dmm.World {
    constructor(description) {
      super(description);
      this.actionNames = ["noop", "up", "down", "left", "right"];
      this.observationNames = ["x", "y"];
    }
    start(random) {
      return { goal: [0, 0].map(() => Math.floor(random() * this.description.size)) };
    }
    put({ goal, x, y }) {
      const centre = this.description.size >> 1;
      Object.assign(this, { goal, x: x ?? centre, y: y ?? centre });
    }
    move(action) {
      const moves = { noop: [0, 0], up: [0, 1], down: [0, -1], left: [-1, 0], right: [1, 0] };
      const [right, up] = moves[chosen(action, this.actionNames)], last = this.description.size - 1;
      this.x = between(this.x + right, 0, last);
      this.y = between(this.y + up, 0, last);
      return { reward: Number(this.x === this.goal[0] && this.y === this.goal[1]), terminated: false };
    }
    raw() {
      return [this.x, this.y];
    }
    saved() {
      return { x: this.x, y: this.y, goal: [...this.goal] };
    }
    geometry() {
      return { size: this.description.size, ...this.saved() };
    }
  }

  /** Classes by kind; physics.js adds its own. */
  dmm.worlds = { tmaze: TMaze, darkroom: Darkroom };

  dmm.makeWorld = (description, mujoco = null) => {
    const kind = description?.kind, known = Object.keys(dmm.worlds);
    if (!known.includes(kind)) throw new Error(`world: got ${kind}, allowed are ${known.join(", ")}`);
    if (description.needs === "mujoco" && !mujoco) throw new Error(`world: ${kind} needs MuJoCo, which is not here`);
    return new dmm.worlds[kind](description, mujoco);
  };
})();
