// What plays episodes behind the live figures with a policy: the last part of one classic script, behind policy.js,
// worlds.js and physics.js, that runs in a worker made of a Blob. A page has one, for all of its figures.
//
// A file of the site is a classic script, which a script element can load also where a page was opened from a disk:
//   (globalThis.dmmFiles ??= {})["mujoco"] = {glue: text, wasm: text, ...};
//   (globalThis.dmmFiles ??= {})["gating/hopper-dmm-seed0"] = {...};    what `dmm export` writes
// It runs nothing where it is loaded: MuJoCo's glue is a text, so that the worker runs it and the page does not.
// The worker loads nothing by itself. It is handed files, and then messages to one figure, by the figure's `id`:
//   {file, content}               an export by its name; under "mujoco" the physics, see physics.js
//   {id, open: plan}              the figure's lanes, see below; what it had before is given up
//   {id, set: {lanes, speed}}     `asked` and `cut` of each lane, from the next step on
//   {id, run: true or false}, {id, step: count}, {id, restart: seed}
//   {id, push: newtons}, {id, drag: [x, y] or null}
//   {id, episodes: {arms, count, seed}} or {id, episodes: null}   so many episodes of each arm as fast as it goes, or no more
//   {id, close: true}
// A plan is {lanes, seed or start, speed, secondsPerStep}. A lane is {policy, way, states, padding, cut, asked}, or {policy,
// actions} for an episode that was recorded: its actions are played again in the world of that policy. All lanes begin
// at one start and go step by step together. An arm is a lane whose episodes are only counted.
// Answers:
//   {id, ready: {policies, world}}     what is known of the policies and of their world
//   {id, frame: {start, ended, lanes}} what is to be drawn, at most one in FRAME milliseconds; see Lane.frame
//   {id, episode: {arm, number, earned, steps}}, {id, played: {seconds}}
//   {id, error: sentence}              the figure has stopped; others go on
(() => {
  "use strict";
  const FRAME = 33; // milliseconds between two pictures
  const SLICE = 12; // milliseconds of work between two looks at the messages
  const REST = 1.2; // seconds between two episodes
  const BEHIND = 100; // milliseconds of a pause that are made up for; a slow machine slows the world, it leaves nothing out
  const MEASURED = 256; // actions whose time is averaged

  const files = {};
  const policies = new Map();
  const figures = new Map();
  let mujoco = null;

  function policyOf(name) {
    if (!policies.has(name)) {
      if (!(name in files)) throw new Error(`There is no file of the policy ${name}.`);
      policies.set(name, dmm.readPolicy(files[name]));
    }
    return policies.get(name);
  }

  /** MuJoCo is started once, when the first world needs it. */
  function startMujoco() {
    if (!files.mujoco) throw new Error("There is no file of the physics, MuJoCo.");
    if (files.mujoco.missing) throw new Error(`The physics, MuJoCo, could not be had when this page was made: ${files.mujoco.missing}`);
    if (mujoco === null) {
      (0, eval)(files.mujoco.glue);
      mujoco = dmm.startMujoco(files.mujoco.wasm);
      mujoco.then(() => { delete files.mujoco.wasm; }, () => { mujoco = null; });
    }
    return mujoco;
  }

  async function worldOf(policy) {
    const { world } = policy.environment;
    if (!world) throw new Error("This policy acts in a world that a page cannot play.");
    return dmm.makeWorld(world, world.needs === "mujoco" ? await startMujoco() : null);
  }

  const placeOf = (geometry) => geometry.ball ?? [geometry.x, geometry.z ?? geometry.y];

  /** One policy, or one recorded episode, in a world of its own. */
  class Lane {
    /** `watched`: its course is kept, to be drawn. */
    static async make(entry, watched) {
      const lane = new Lane();
      lane.watched = watched;
      lane.policy = policyOf(entry.policy);
      lane.world = await worldOf(lane.policy);
      lane.actions = entry.actions ?? null;
      if (!lane.actions) lane.actor = new dmm.Actor(lane.policy, { way: entry.way, states: entry.states, padding: entry.padding, cut: entry.cut });
      lane.asked = entry.asked ?? 0;
      lane.cut = entry.cut ?? null;
      return lane;
    }

    begin(start) {
      this.observation = this.world.reset(start);
      this.actor?.reset(this.asked);
      Object.assign(this, { reward: null, earned: 0, steps: 0, ended: null, times: [], trail: this.watched ? [this.place()] : [] });
    }

    place() { return placeOf(this.world.geometry()); }

    /** A lane's asked return and cut may change in mid-episode. */
    set({ asked, cut }) {
      if (!this.actor) return;
      if (asked !== this.asked) this.actor.ask(asked);
      if (JSON.stringify(cut) !== JSON.stringify(this.cut)) this.actor.cut = cut;
      Object.assign(this, { asked, cut });
    }

    step() {
      if (this.ended) return;
      const before = performance.now();
      const action = this.actor ? this.actor.act(this.observation, this.reward) : this.actions[this.steps];
      const spent = performance.now() - before;
      const result = this.world.step(dmm.played(this.policy, action));
      this.observation = result.observation;
      this.reward = result.reward;
      this.earned += result.reward;
      this.steps += 1;
      this.times.push(spent);
      if (this.times.length > MEASURED) this.times.shift();
      if (this.watched) this.trail.push(this.place());
      const recordedEnd = this.actions && this.steps >= this.actions.length;
      if (result.terminated) this.ended = "terminated";
      else if (result.truncated || recordedEnd) this.ended = "truncated";
    }

    /** What a picture needs; `from` is the first step of the trail that was not sent yet. */
    frame(from) {
      const { earned, steps, ended, asked, cut } = this;
      const milliseconds = this.times.reduce((sum, each) => sum + each, 0) / (this.times.length || 1);
      const seen = this.actor ? this.actor.seen() : [];
      return { geometry: this.world.geometry(), earned, steps, ended, asked, cut, milliseconds, seen, from, trail: this.trail.slice(from) };
    }

    free() { this.world.free(); }
  }

  /** So many episodes of each arm, one step at a time, arms in turn, all from the same starts. */
  class Tally {
    static async make({ arms, count, seed }) {
      const tally = new Tally();
      tally.lanes = [];
      for (const arm of arms) tally.lanes.push(await Lane.make(arm, false));
      Object.assign(tally, { count, seed, at: 0, open: false, begun: performance.now() });
      return tally;
    }

    get over() { return this.at >= this.count * this.lanes.length; }

    /** One step; what an episode came to when it is over. */
    step() {
      const [arm, number] = [this.at % this.lanes.length, Math.floor(this.at / this.lanes.length)];
      const lane = this.lanes[arm];
      if (!this.open) lane.begin({ seed: this.seed + number });
      this.open = true;
      lane.step();
      if (!lane.ended) return null;
      this.open = false;
      this.at += 1;
      return { arm, number, earned: lane.earned, steps: lane.steps };
    }

    free() { this.lanes.forEach((lane) => lane.free()); }
  }

  class Figure {
    constructor(id) {
      Object.assign(this, { id, lanes: [], running: false, owed: 0, rest: 0, sent: 0, drawn: -FRAME, dirty: false, tally: null });
    }

    say(answer) { postMessage({ id: this.id, ...answer }); }

    async open(plan) {
      this.free();
      for (const entry of plan.lanes) this.lanes.push(await Lane.make(entry, true));
      Object.assign(this, { plan, speed: plan.speed, seed: plan.seed ?? 0 });
      const { world, policy } = this.lanes[0];
      this.seconds = world.secondsPerStep ?? plan.secondsPerStep;
      this.begin(this.seed);
      const { kind, stepLimit, secondsPerStep, observationNames, actionNames } = world;
      const moments = ["state_mean", "state_std"].map((name) => Array.from(policy.source[name] ?? []));
      const known = this.lanes.map((lane) => ({ context: lane.policy.context, ways: lane.policy.ways, cuts: lane.policy.cuts }));
      this.say({ ready: {
        policies: known, moments, world: { kind, stepLimit, secondsPerStep, observationNames, actionNames, push: Boolean(world.push), drag: Boolean(world.drag) },
      } });
    }

    begin(seed) {
      this.seed = seed;
      const [first, ...others] = this.lanes;
      first.begin(this.plan.start ? { state: this.plan.start } : { seed });
      for (const lane of others) lane.begin({ state: first.world.state() });
      Object.assign(this, { owed: 0, rest: 0, sent: 0, dirty: true });
    }

    get ended() { return this.lanes.every((lane) => lane.ended); }

    step() {
      if (this.ended) this.begin(this.seed + 1);
      else this.lanes.forEach((lane) => lane.step());
      this.dirty = true;
    }

    /** What is due since the last look, as far as `until` allows. */
    advance(passed, until) {
      if (!this.running || !this.lanes.length) return;
      this.owed += (Math.min(passed, BEHIND) / 1000) * this.speed;
      if (this.ended) {
        this.rest += passed / 1000;
        this.owed = 0;
        if (this.rest > REST) this.step();
      }
      while (this.owed >= this.seconds && !this.ended && performance.now() < until) {
        this.owed -= this.seconds;
        this.step();
      }
      this.owed = Math.min(this.owed, Math.max(BEHIND / 1000, this.seconds));
    }

    count(until) {
      while (this.tally && performance.now() < until) {
        const episode = this.tally.step();
        if (episode) this.say({ episode });
        if (this.tally.over) this.endTally(true);
      }
    }

    endTally(whole) {
      if (whole) this.say({ played: { seconds: (performance.now() - this.tally.begun) / 1000 } });
      this.tally?.free();
      this.tally = null;
    }

    show(now) {
      if (!this.dirty || now - this.drawn < FRAME) return;
      Object.assign(this, { dirty: false, drawn: now });
      const lanes = this.lanes.map((lane) => lane.frame(Math.min(this.sent, lane.trail.length)));
      this.sent = Math.max(...this.lanes.map((lane) => lane.trail.length));
      this.say({ frame: { start: this.seed, ended: this.ended, lanes } });
    }

    async hear(message) {
      if ("open" in message) await this.open(message.open);
      if ("set" in message) {
        this.speed = message.set.speed;
        message.set.lanes.forEach((entry, i) => this.lanes[i].set(entry));
      }
      if ("run" in message) Object.assign(this, { running: message.run, owed: 0 });
      if ("step" in message) for (let i = 0; i < message.step; i++) this.step();
      if ("restart" in message) this.begin(message.restart);
      if ("push" in message) this.lanes.forEach((lane) => lane.world.push?.(message.push));
      if ("drag" in message) this.drag(message.drag);
      if ("episodes" in message) {
        this.endTally(false);
        if (message.episodes) this.tally = await Tally.make(message.episodes);
      }
      if ("close" in message) { this.free(); figures.delete(this.id); }
    }

    drag(place) {
      this.lanes.forEach((lane) => lane.world.drag?.(place));
      this.dirty = true;
    }

    free() {
      this.lanes.forEach((lane) => lane.free());
      this.lanes = [];
      this.endTally(false);
    }

    /** Do something for this figure; where that fails, say why and stop. */
    guard(work) {
      const failed = (error) => {
        this.running = false;
        this.tally = null;
        this.say({ error: error.message || String(error) });
      };
      try {
        const result = work();
        return result instanceof Promise ? result.catch(failed) : result;
      } catch (error) {
        failed(error);
        return null;
      }
    }
  }

  let last = performance.now();
  let waiting = null;

  const busy = () => [...figures.values()].filter((figure) => figure.running || figure.tally || figure.dirty);

  function look() {
    waiting = null;
    const now = performance.now();
    const passed = now - last;
    last = now;
    for (const figure of busy()) {
      figure.guard(() => figure.advance(passed, performance.now() + SLICE));
      figure.guard(() => figure.count(performance.now() + SLICE));
      figure.guard(() => figure.show(now));
    }
    wake();
  }

  /** Nothing is due where nothing runs: then the worker sleeps until it is spoken to. */
  function wake() {
    const active = busy();
    if (waiting !== null || !active.length) return;
    waiting = setTimeout(look, active.some((figure) => figure.tally) ? 0 : 8);
  }

  const queues = new Map(); // what a figure is told is done in order, also where it takes a while

  onmessage = ({ data }) => {
    if ("file" in data) {
      files[data.file] = data.content;
      policies.delete(data.file);
      return;
    }
    const figure = figures.get(data.id) ?? new Figure(data.id);
    figures.set(data.id, figure);
    const done = (queues.get(data.id) ?? Promise.resolve()).then(() => figure.guard(() => figure.hear(data)));
    queues.set(data.id, done.then(() => {
      if (waiting === null) last = performance.now();
      wake();
    }));
  };
})();
