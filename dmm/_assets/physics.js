// Worlds in MuJoCo, compiled to WebAssembly: Hopper, Walker2d and the point mazes, step for step those of Gymnasium and
// gymnasium-robotics. See policy.js for the convention of these scripts and worlds.js for the interface of a world.
//
//   dmm.startMujoco(wasm) -> Promise of the module that dmm.makeWorld takes
//       `wasm` is that of the site's file of MuJoCo, a classic script which defines
//           globalThis.dmmFiles["mujoco"] = {version, glue, wasm}
//       `glue` is the text of a classic script (to be put in front of these in a worker's Blob, or run by node) that
//       defines globalThis.loadMujoco; `wasm` is base64 of gzip, a string, unpacked by DecompressionStream. Rejects with
//       one sentence where there is no WebAssembly or DecompressionStream.
//
//   hopper, walker2d: state {qpos, qvel, steps, warmstart}, of which a start needs qpos and qvel; {seed} draws a start as
//     Gymnasium does, uniform noise around the model's own. geometry {view: "side", shapes: [{from: [x, z], to: [x, z],
//     radius}], x, z (of the torso), floor: 0}, capsules in metres.
//     .push(newtons, steps = 5)  a horizontal force on the torso for so many steps to come
//   point_maze: state {qpos, qvel, goal: [x, y], steps, warmstart}, of which a start needs qpos, qvel and goal; {seed} draws
//     goal and start as gymnasium-robotics does. geometry {view: "above", walls: rows of true for a wall (first row on
//     top), cell: side in metres, left, top: x and y of the map's upper left corner, ball: [x, y], radius, goal: [x, y],
//     reach: metres at which the goal counts as reached}.
//     .drag([x, y])  the ball is pulled to this point by a spring until .drag(null)
//   In other worlds `push` and `drag` are undefined. `warmstart` is where MuJoCo's solver begins: with it, a world goes on
//   from a state bit for bit.

(() => {
  "use strict";
  const dmm = globalThis.dmm;
  const LONGEST_VELOCITY = 10; // in observations of the walkers
  const FASTEST_BALL = 5; // metres a second; the maze cuts velocities before each step
  const SPRING = 20; // of a drag, radians a second: critically damped
  const LONGEST_PULL = 0.25; // metres by which the spring is stretched at most, so that it does not pull through walls

  const clip = (value, limit) => Math.min(limit, Math.max(-limit, value));

  dmm.startMujoco = async wasm => {
    for (const name of ["WebAssembly", "DecompressionStream"]) {
      if (typeof globalThis[name] === "undefined") throw new Error(`physics: this browser has no ${name}`);
    }
    const unpacked = new Blob([dmm.bytesOf(wasm)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return globalThis.loadMujoco({ wasmBinary: await new Response(unpacked).arrayBuffer() });
  };

  /** A world with a MuJoCo model. Arrays of MuJoCo's are views that die when its memory grows: they are asked for anew. */
  class Physics extends dmm.World {
    constructor(description, mujoco) {
      super(description);
      this.mujoco = mujoco;
      this.model = mujoco.MjModel.from_xml_string(description.xml);
      this.data = new mujoco.MjData(this.model);
      this.rest = Float64Array.from(this.model.qpos0);
      this.secondsPerStep = description.frame_skip * this.model.opt.timestep;
      this.observationNames = description.names;
    }
    put({ qpos, qvel, warmstart }) {
      const { mujoco, model, data } = this;
      mujoco.mj_resetData(model, data);
      this.set(qpos, qvel);
      if (warmstart) data.qacc_warmstart.set(warmstart);
    }
    set(qpos, qvel) {
      this.data.qpos.set(qpos);
      this.data.qvel.set(qvel);
      this.mujoco.mj_forward(this.model, this.data);
    }
    simulate(action) {
      this.data.ctrl.set(action);
      for (let i = 0; i < this.description.frame_skip; i++) this.mujoco.mj_step(this.model, this.data);
    }
    saved() {
      const { qpos, qvel, qacc_warmstart } = this.data;
      return { qpos: Array.from(qpos), qvel: Array.from(qvel), warmstart: Array.from(qacc_warmstart) };
    }
    free() {
      this.data.delete();
      this.model.delete();
    }
  }

  /** Hopper and Walker2d: paid for speed and for not falling. */
  class Walker extends Physics {
    start(random) {
      const { noise } = this.description, drawn = () => noise * (2 * random() - 1);
      const qpos = Array.from(this.rest, value => value + drawn());
      return { qpos, qvel: Array.from({ length: this.model.nv }, drawn) };
    }
    put(state) {
      super.put(state);
      this.force = this.pushed = 0;
    }
    push(newtons, steps = 5) {
      this.force = newtons;
      this.pushed = steps;
    }
    move(action) {
      const { weights } = this.description, before = this.data.qpos[0];
      this.data.xfrc_applied[6 * this.description.torso] = this.pushed-- > 0 ? this.force : 0;
      this.simulate(action);
      const speed = (this.data.qpos[0] - before) / this.secondsPerStep, healthy = this.healthy();
      const cost = weights.control * action.reduce((sum, value) => sum + value * value, 0);
      return { reward: weights.forward * speed + (healthy ? weights.healthy : 0) - cost, terminated: !healthy };
    }
    healthy() {
      const { z, angle, state } = this.description.healthy, { qpos, qvel } = this.data;
      const within = (value, [low, high]) => value > (low ?? -Infinity) && value < (high ?? Infinity);
      const inRange = value => within(value, state);
      return within(qpos[1], z) && within(qpos[2], angle) && qpos.subarray(2).every(inRange) && qvel.every(inRange);
    }
    raw() {
      const { qpos, qvel } = this.data;
      return [...qpos.subarray(1), ...Array.from(qvel, value => clip(value, LONGEST_VELOCITY))];
    }
    geometry() {
      const { mujoco, model, data } = this, shapes = [], capsule = mujoco.mjtGeom.mjGEOM_CAPSULE.value;
      mujoco.mj_kinematics(model, data); // positions of bodies are those before the last step otherwise
      const { geom_type, geom_size } = model, { geom_xpos, geom_xmat, xpos } = data;
      for (let i = 0; i < model.ngeom; i++) {
        if (geom_type[i] !== capsule) continue;
        const x = geom_xpos[3 * i], z = geom_xpos[3 * i + 2], [radius, half] = geom_size.subarray(3 * i);
        const right = geom_xmat[9 * i + 2] * half, up = geom_xmat[9 * i + 8] * half;
        shapes.push({ from: [x - right, z - up], to: [x + right, z + up], radius });
      }
      const torso = 3 * this.description.torso;
      return { view: "side", shapes, x: xpos[torso], z: xpos[torso + 2], floor: 0 };
    }
  }

  class PointMaze extends Physics {
    start(random) {
      const { goals, starts, noise, cell } = this.description;
      const near = place => place.map(value => value + noise * (2 * random() - 1));
      const drawn = places => places[Math.floor(random() * places.length)];
      const goal = near(drawn(goals));
      let place;
      do place = drawn(starts);
      while (Math.hypot(place[0] - goal[0], place[1] - goal[1]) <= 0.5 * cell);
      return { qpos: near(place), qvel: [0, 0], goal };
    }
    put(state) {
      super.put(state);
      this.goal = [...state.goal];
      this.pulled = null;
    }
    drag(place) {
      this.pulled = place;
    }
    move(action) {
      const { dense, ends, reach } = this.description, { data } = this;
      const velocity = Array.from(data.qvel, value => clip(value, FASTEST_BALL));
      this.set(data.qpos.slice(), velocity);
      this.data.xfrc_applied.set(this.pull(velocity), 6 * this.description.ball);
      this.simulate(action);
      const away = Math.hypot(this.data.qpos[0] - this.goal[0], this.data.qpos[1] - this.goal[1]), there = away <= reach;
      return { reward: dense ? Math.exp(-away) : Number(there), terminated: ends && there };
    }
    /** The spring's force on the ball, x and y. */
    pull(velocity) {
      if (!this.pulled) return [0, 0];
      const mass = this.model.body_mass[this.description.ball], { qpos } = this.data;
      const away = [0, 1].map(i => this.pulled[i] - qpos[i]), shorter = Math.min(1, LONGEST_PULL / (Math.hypot(...away) || 1));
      return [0, 1].map(i => mass * (SPRING * SPRING * away[i] * shorter - 2 * SPRING * velocity[i]));
    }
    raw() {
      const { qpos, qvel } = this.data, entries = {
        observation: [...qpos, ...qvel],
        achieved_goal: [...qpos],
        desired_goal: this.goal,
      };
      return this.description.keys.flatMap(key => entries[key]);
    }
    saved() {
      return { ...super.saved(), goal: [...this.goal] };
    }
    geometry() {
      const { walls, cell, reach, ball } = this.description, [x, y] = this.data.qpos;
      const radius = this.model.geom_size[3 * this.model.body_geomadr[ball]];
      const left = (-walls[0].length / 2) * cell, top = (walls.length / 2) * cell;
      return { view: "above", walls, cell, left, top, ball: [x, y], radius, goal: [...this.goal], reach };
    }
  }

  Object.assign(dmm.worlds, { hopper: Walker, walker2d: Walker, point_maze: PointMaze });
})();
