// A trained policy in plain JavaScript: what `dmm export` wrote, and the ways of acting of `dmm.acting`.
//
// Convention of policy.js, worlds.js and physics.js: each is a classic script without import, export or top-level names.
// It adds its functions to one global object, `globalThis.dmm`, and touches nothing else: no DOM, no network, no timers.
// So they can be joined, in this order, to the text of a worker made from a Blob (also under file://), stand in a page,
// and be run by node (`vm.runInThisContext`). policy.js and worlds.js need nothing, physics.js needs both.
//
//   dmm.readPolicy(object) -> Policy
//       `object` is the parsed JSON of an export. Throws Error with one sentence: no export, another version, a model or
//       part of a model that is not known here, weights that are missing, misshapen or not finite.
//       The Policy is frozen: {model, config, context (K), stateSize, actionSize, discrete, parameters (how many
//       numbers), layers (number of blocks), tokens: ["rtg", "state", "action"], ways: the ways in which it can act
//       (["window", "recurrent", "staggered"], or ["window"] where it has attention), cuts: what can be taken away, as
//       {tokens: ["rtg", "state", "action"], window: [layers], gate: [layers]} (layers count from 1, and are none where a
//       model has no such part), environment, returns: {asked, scale, reference, mean, max}, dataset, step, source (the
//       export itself)}.
//       environment.world is what `dmm.makeWorld` of worlds.js takes, or null where the page cannot play it.
//
//   new dmm.Actor(policy, {way = "window", states = 4, cut = null, padding = true})
//       Throws Error for a way that is not in policy.ways, a number of states that does not divide K, a cut that the
//       policy does not have. "staggered" alone has states, "recurrent" alone can begin without the K - 1 steps of padding
//       that stand before an episode. All arithmetic is in float64.
//   .reset(returnToGo)      forgets everything; this return is asked of the new episode
//   .act(observation, reward = null) -> Float64Array(a)
//       One time step. `observation` is what the world gave (raw), `reward` what the action before earned, null at the
//       first step. It is taken off the return-to-go (not where the data had their reward delayed to the last step, as in
//       dmm.evaluation). The action is in -1..1, or one-hot where actions are discrete; `dmm.played(policy, action)`
//       makes of it what a world's `step` takes.
//   .returnToGo             what is still asked, raw; behind `act` what the last step's token said
//   .earned                 sum of the rewards so far
//   .steps                  actions so far
//   .ask(total)             the return asked of the whole episode changes: from the next step on the return-to-go is
//       total - earned, as if it had been asked from the beginning, and may become negative. The tokens of steps that are
//       past stay as the policy saw them.
//   .cut = cut              takes parts away from the next step on, or gives them back (null); may be set at any time.
//       With "window" the whole window is read anew without them, with the other ways what was remembered stays.
//   .seen() -> [{step, returnToGo, observation, action, reward}]
//       The last K steps as tokens, oldest first, at most K of them (fewer at the beginning: the rest of the window is
//       padding). `observation` is raw; `action` (null before it is known) and `reward` (earned by that action, null
//       before it is known) are what came of the step; copies, for drawing.
//
//   A cut is {tokens: [names], window: [layers], gate: [layers]}, each may be left out; layers count from 1.
//       tokens  the embedding of these tokens is zero: of a step's return-to-go, state or action nothing is left
//       window  the layer's local mixer (DSM, or the convolution of stock Mamba) sees the token itself and none before it
//       gate    the layer's gate is zero, so that its Mamba adds nothing
//       `dmm.inspection.cuts` is the same in Python.
//   dmm.cutPolicy(policy, cut) -> Policy    the policy without these parts; what Actor.cut uses
//   dmm.played(policy, action) -> number or Float64Array
//       A discrete action's number; else the action rounded to float32 (as Python plays it), stretched to the
//       environment's bounds where those are not -1 and 1.

(() => {
  "use strict";
  const dmm = (globalThis.dmm ??= {});
  const FORMAT = "dmm-policy", VERSION = 1, EPSILON = 1e-5;
  const STEP = ["rtg", "state", "action"]; // tokens of a time step, in order
  const RECURRENT = ["window", "recurrent", "staggered"];
  const PADDING = { step: 0, returnToGo: 0, seen: null, action: null }; // a step before the episode: zeros

  // --- numbers ---------------------------------------------------------------------------------------------------

  /** The bytes of a base64 text. */
  dmm.bytesOf = base64 => {
    const text = atob(base64), bytes = new Uint8Array(text.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  };

  /** A float16 from its 16 bits. */
  function half(bits) {
    const exponent = (bits >> 10) & 31, fraction = bits & 1023, sign = bits >> 15 ? -1 : 1;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
  }

  const sigmoid = x => 1 / (1 + Math.exp(-x));
  const softplus = x => (x > 20 ? x : Math.log1p(Math.exp(x)));

  /** The error function: a series whose terms all have one sign, so that nothing cancels. */
  function erf(x) {
    if (Math.abs(x) > 6) return Math.sign(x);
    let term = x, sum = x;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= (2 * x * x) / (2 * n + 1);
    return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
  }

  const gelu = x => (x / 2) * (1 + erf(x / Math.SQRT2));
  const ACTIVATIONS = { silu: x => x * sigmoid(x), gelu, relu: x => Math.max(0, x) };

  /** out[o..] = W (rows, columns) x[at..] + bias; four rows at a time, since each number of x is then read once. */
  function linear({ weight: W, bias, rows, columns }, x, at, out, o = 0, first = 0, last = rows) {
    let r = first;
    for (; r + 3 < last; r += 4) {
      let a = 0, b = 0, c = 0, d = 0;
      for (let i = 0, w = r * columns; i < columns; i++, w++) {
        const v = x[at + i];
        a += W[w] * v;
        b += W[w + columns] * v;
        c += W[w + 2 * columns] * v;
        d += W[w + 3 * columns] * v;
      }
      out[o + r] = a;
      out[o + r + 1] = b;
      out[o + r + 2] = c;
      out[o + r + 3] = d;
    }
    for (; r < last; r++) {
      let sum = 0;
      for (let i = 0, w = r * columns; i < columns; i++, w++) sum += W[w] * x[at + i];
      out[o + r] = sum;
    }
    if (bias) for (r = first; r < last; r++) out[o + r] += bias[r];
  }

  /** out = LayerNorm(x), or x / RMS(x) times the weight where there is no bias. */
  function norm({ weight, bias }, x, out) {
    const d = weight.length;
    let mean = 0, square = 0;
    if (bias) {
      for (let i = 0; i < d; i++) mean += x[i];
      mean /= d;
    }
    for (let i = 0; i < d; i++) square += (x[i] - mean) ** 2;
    const scale = 1 / Math.sqrt(square / d + EPSILON);
    for (let i = 0; i < d; i++) out[i] = (x[i] - mean) * scale * weight[i] + (bias ? bias[i] : 0);
  }

  /** The state as it was before the first token: zero, and no keys or values. */
  function clear(state) {
    for (const part of Object.values(state)) Array.isArray(part) ? (part.length = 0) : part.fill(0);
  }

  const copyOf = state => Object.fromEntries(Object.entries(state).map(([name, part]) => [name, part.slice()]));

  // --- mixers: state() before the first token; step(x, y, state, kind) takes in the token x (d), writes what the mixer
  //     makes of it to y (d), or nothing where y is null because nobody reads it; kind is the token's place in its step --

  /** The last `window` tokens, oldest first, and what is made of them. */
  class Local {
    constructor(d, window) {
      this.d = d;
      this.window = window;
    }
    state() {
      return { window: new Float64Array(this.window * this.d) };
    }
    step(x, y, { window }, kind) {
      window.copyWithin(0, this.d);
      window.set(x, window.length - this.d);
      if (y) this.mix(window, y, kind);
    }
  }

  /** DSM, or one for each modality: a linear map of the window. */
  class Dense extends Local {
    constructor(d, window, layers) {
      super(d, window);
      this.layers = layers;
    }
    mix(window, y, kind) {
      linear(this.layers[kind % this.layers.length], window, 0, y);
    }
  }

  /** A convolution of each channel by itself. */
  class Depthwise extends Local {
    constructor(d, window, { weight, bias }) {
      super(d, window);
      this.weight = weight;
      this.bias = bias;
    }
    mix(window, y) {
      for (let c = 0; c < this.d; c++) {
        let sum = this.bias ? this.bias[c] : 0;
        for (let tap = 0; tap < this.window; tap++) sum += this.weight[c * this.window + tap] * window[tap * this.d + c];
        y[c] = sum;
      }
    }
  }

  /** h = exp(delta A) h + delta B u, y = C h + D u for each of e channels with n states; u becomes y. */
  function scan(u, delta, A, low, b, c, D, h, n) {
    for (let j = 0, hs = 0; j < u.length; j++) {
      const step = delta[j], driven = step * u[j];
      let sum = D ? D[j] * u[j] : 0;
      for (let s = 0; s < n; s++, hs++) {
        h[hs] = Math.exp(step * A[hs]) * h[hs] + driven * low[b + s];
        sum += low[c + s] * h[hs];
      }
      u[j] = sum;
    }
  }

  /** Mamba, with its convolution or (the modified block of DMM) without. */
  class Mamba {
    constructor(parts) {
      Object.assign(this, parts); // inProj, conv or null, xProj, dtProj, A, D or null, outProj, e, n, rank, activate
      this.xz = new Float64Array(2 * this.e);
      this.u = this.xz.subarray(0, this.e);
      this.low = new Float64Array(this.rank + 2 * this.n);
      this.delta = new Float64Array(this.e);
    }
    state() {
      return { ...this.conv?.state(), h: new Float64Array(this.e * this.n) };
    }
    step(x, y, state) {
      const { xz, u, low, delta, e, n, rank, activate } = this;
      linear(this.inProj, x, 0, xz, 0, 0, y ? 2 * e : e);
      this.conv?.step(u, u, state);
      for (let j = 0; j < e; j++) u[j] = activate(u[j]);
      linear(this.xProj, u, 0, low);
      linear(this.dtProj, low, 0, delta);
      for (let j = 0; j < e; j++) delta[j] = softplus(delta[j]);
      scan(u, delta, this.A, low, rank, rank + n, this.D, state.h, n);
      if (!y) return;
      for (let j = 0; j < e; j++) u[j] *= activate(xz[e + j]);
      linear(this.outProj, u, 0, y);
    }
  }

  /** Mamba-2 without its convolution: one decay, step size and skip for all channels of a head. */
  class Mamba2 {
    constructor(parts) {
      Object.assign(this, parts); // inProj, A (e n), D (e) or null, bias (heads), norm, outProj, e, n, size, activate
      this.all = new Float64Array(this.inProj.rows);
      this.u = this.all.subarray(this.e, 2 * this.e);
      this.delta = new Float64Array(this.e);
    }
    state() {
      return { h: new Float64Array(this.e * this.n) };
    }
    step(x, y, state) {
      const { all, u, delta, e, n, size, activate } = this, b = 2 * e, steps = b + 2 * n;
      linear(this.inProj, x, 0, all);
      for (let j = e; j < steps; j++) all[j] = activate(all[j]);
      for (let j = 0; j < e; j++) {
        const head = Math.floor(j / size);
        delta[j] = softplus(all[steps + head] + this.bias[head]);
      }
      scan(u, delta, this.A, all, b, b + n, this.D, state.h, n);
      if (!y) return;
      for (let j = 0; j < e; j++) u[j] *= activate(all[j]);
      norm(this.norm, u, u);
      linear(this.outProj, u, 0, y);
    }
  }

  const product = ([a, b], [c, d]) => [a * c - b * d, a * d + b * c];
  const inverse = ([a, b]) => [a / (a * a + b * b), -b / (a * a + b * b)];

  /** S4: diagonal plus rank one, by the bilinear rule; complex states, one of each conjugate pair. With M the inverse of
   *  I - dt/2 A, h = M (2 h + dt B u) - h and y = 2 Re(C h) + D u; then GELU, a linear map and a GLU. */
  class S4 {
    constructor({ logStep, real, imaginary, P, B, C, D, projectOut, d, pairs }) {
      Object.assign(this, { C, D, projectOut, d, pairs, drive: B.slice(), scale: new Float64Array(d) });
      for (const name of ["diagonal", "column", "row"]) this[name] = new Float64Array(2 * d * pairs);
      for (let j = 0; j < d; j++) {
        const step = Math.exp(logStep[j]);
        let coupling = 0;
        for (let i = j * pairs; i < (j + 1) * pairs; i++) {
          const p = [P[2 * i], P[2 * i + 1]];
          const diagonal = inverse([1 + (step / 2) * Math.exp(real[i]), (-step / 2) * imaginary[i]]);
          const row = product([p[0], -p[1]], diagonal);
          this.diagonal.set(diagonal, 2 * i);
          this.column.set(product(diagonal, p), 2 * i);
          this.row.set(row, 2 * i);
          this.drive[2 * i] *= step;
          this.drive[2 * i + 1] *= step;
          coupling += product(row, p)[0];
        }
        this.scale[j] = step / 2 / (1 + step * coupling);
      }
      this.made = new Float64Array(d);
      this.gated = new Float64Array(2 * d);
    }
    state() {
      return { h: new Float64Array(2 * this.d * this.pairs) };
    }
    step(x, y, { h }) {
      const { diagonal, column, row, drive, scale, C, D, d, pairs, made, gated } = this;
      for (let j = 0; j < d; j++) {
        const from = 2 * j * pairs, to = from + 2 * pairs;
        let shared = 0, sum = 0;
        for (let i = from; i < to; i += 2) {
          shared += row[i] * (2 * h[i] + drive[i] * x[j]) - row[i + 1] * (2 * h[i + 1] + drive[i + 1] * x[j]);
        }
        for (let i = from; i < to; i += 2) {
          const a = 2 * h[i] + drive[i] * x[j], b = 2 * h[i + 1] + drive[i + 1] * x[j];
          h[i] = diagonal[i] * a - diagonal[i + 1] * b - 2 * scale[j] * shared * column[i] - h[i];
          h[i + 1] = diagonal[i] * b + diagonal[i + 1] * a - 2 * scale[j] * shared * column[i + 1] - h[i + 1];
          sum += C[i] * h[i] - C[i + 1] * h[i + 1];
        }
        made[j] = gelu(2 * sum + (D ? D[j] * x[j] : 0));
      }
      if (!y) return;
      linear(this.projectOut, made, 0, gated);
      for (let j = 0; j < d; j++) y[j] = gated[j] * sigmoid(gated[d + j]);
    }
  }

  /** Causal attention over all tokens that the state has seen. */
  class Attention {
    constructor(projectIn, projectOut, heads) {
      Object.assign(this, { projectIn, projectOut, heads, d: projectOut.rows });
      this.mixed = new Float64Array(this.d);
    }
    state() {
      return { seen: [] }; // queries, keys and values of each token, (3 d)
    }
    step(x, y, { seen }) {
      const { d, heads, mixed } = this, size = d / heads, own = new Float64Array(3 * d);
      linear(this.projectIn, x, 0, own);
      seen.push(own);
      if (!y) return;
      mixed.fill(0);
      for (let from = 0; from < d; from += size) {
        const scores = seen.map(other => {
          let sum = 0;
          for (let i = from; i < from + size; i++) sum += own[i] * other[d + i];
          return sum / Math.sqrt(size);
        });
        const most = Math.max(...scores), weights = scores.map(score => Math.exp(score - most));
        const total = weights.reduce((sum, weight) => sum + weight, 0);
        seen.forEach((other, t) => {
          for (let i = from; i < from + size; i++) mixed[i] += (weights[t] / total) * other[2 * d + i];
        });
      }
      linear(this.projectOut, mixed, 0, y);
    }
  }

  /** Two layers with a ReLU between; remembers nothing. */
  class Mlp {
    constructor(up, down) {
      Object.assign(this, { up, down });
      this.hidden = new Float64Array(up.rows);
    }
    state() {
      return {};
    }
    step(x, y) {
      if (!y) return;
      linear(this.up, x, 0, this.hidden);
      for (let i = 0; i < this.hidden.length; i++) this.hidden[i] = Math.max(0, this.hidden[i]);
      linear(this.down, this.hidden, 0, y);
    }
  }

  // --- reading an export -------------------------------------------------------------------------------------------

  const wrong = (name, got, allowed) => new Error(`${name}: got ${got}, allowed is ${allowed}`);
  const shown = value => String(JSON.stringify(value)).slice(0, 60);

  /** {name: {shape, values}} of an export: float16, little endian, base64; names may share their place. */
  function unpack({ data, tensors }) {
    const bits = new DataView(dmm.bytesOf(data).buffer), decoded = new Map();
    const values = (name, { shape, offset }) => {
      const size = shape.reduce((product, length) => product * length, 1), key = `${offset} ${size}`;
      if (!decoded.has(key)) {
        if (!(offset >= 0) || 2 * (offset + size) > bits.byteLength) throw new Error(`weights: ${name} is cut off`);
        const numbers = new Float64Array(size);
        for (let i = 0; i < size; i++) numbers[i] = half(bits.getUint16(2 * (offset + i), true));
        decoded.set(key, numbers);
      }
      return decoded.get(key);
    };
    const entries = Object.entries(tensors);
    return Object.fromEntries(entries.map(([name, at]) => [name, { shape: at.shape, values: values(name, at) }]));
  }

  /** Takes weights by name, each of the shape that the config asks for. */
  class Weights {
    constructor(tensors) {
      this.tensors = tensors;
    }
    take(name, ...shape) {
      const found = this.tensors[name];
      if (!found) throw new Error(`weights: ${name} is missing`);
      const same = String(found.shape) === String(shape);
      if (!same) throw wrong(`weights: ${name}`, `shape ${shown(found.shape)}`, shown(shape));
      if (!found.values.every(Number.isFinite)) throw new Error(`weights: ${name} is not finite`);
      return found.values;
    }
    linear(name, columns, rows, bias = true) {
      const weight = this.take(`${name}.weight`, rows, columns);
      return { weight, bias: bias ? this.take(`${name}.bias`, rows) : null, rows, columns };
    }
    norm(name, d) {
      return { weight: this.take(`${name}.weight`, d), bias: this.take(`${name}.bias`, d) };
    }
    conv(name, channels, width, bias) {
      const weight = this.take(`${name}.weight`, channels, 1, width);
      return new Depthwise(channels, width, { weight, bias: bias ? this.take(`${name}.bias`, channels) : null });
    }
    decays(name, ...shape) {
      return this.take(name, ...shape).map(log => -Math.exp(log));
    }
  }

  function localMixer(weights, name, config) {
    const { width: d, window, dsm_bias: bias, local_mixer: kind } = config;
    const dense = place => weights.linear(`${name}${place}.linear`, window * d, d, bias);
    if (kind === "dense") return new Dense(d, window, [dense("")]);
    if (kind === "multimodal") return new Dense(d, window, STEP.map((_, i) => dense(`.mixers.${i}`)));
    if (kind === "depthwise") return weights.conv(`${name}.conv1d`, d, window, bias);
    throw wrong("local_mixer", shown(kind), "dense, depthwise or multimodal");
  }

  function mamba(weights, name, config, convolution) {
    const { width: d, ssm_state: n } = config, e = config.expand * d, rank = Math.ceil(d / 16);
    return new Mamba({
      ...{ e, n, rank, activate: activation(config.activation ?? "silu") },
      inProj: weights.linear(`${name}.in_proj`, d, 2 * e, false),
      conv: convolution ? weights.conv(`${name}.conv1d`, e, convolution, true) : null,
      xProj: weights.linear(`${name}.x_proj`, e, rank + 2 * n, false),
      dtProj: weights.linear(`${name}.dt_proj`, rank, e),
      A: weights.decays(`${name}.A_log`, e, n),
      D: config.skip ?? true ? weights.take(`${name}.D`, e) : null,
      outProj: weights.linear(`${name}.out_proj`, e, d, false),
    });
  }

  function mamba2(weights, name, config) {
    const { width: d, ssm_state: n } = config, e = config.expand * d;
    const size = Math.min(config.head_size, e), heads = e / size;
    const spread = (values, times) => Float64Array.from({ length: heads * times }, (_, i) => values[Math.floor(i / times)]);
    return new Mamba2({
      ...{ e, n, size, activate: activation(config.activation) },
      inProj: weights.linear(`${name}.in_proj`, d, 2 * e + 2 * n + heads, false),
      A: spread(weights.decays(`${name}.A_log`, heads), size * n),
      D: config.skip ? spread(weights.take(`${name}.D`, heads), size) : null,
      bias: weights.take(`${name}.dt_bias`, heads),
      norm: { weight: weights.take(`${name}.norm.weight`, e), bias: null },
      outProj: weights.linear(`${name}.out_proj`, e, d, false),
    });
  }

  function s4(weights, name, config) {
    const { width: d } = config, pairs = config.ssm_state / 2, own = `${name}.ssm.`;
    return new S4({
      ...{ d, pairs },
      logStep: weights.take(`${own}log_dt`, d),
      real: weights.take(`${own}log_A_real`, d, pairs),
      imaginary: weights.take(`${own}A_imag`, d, pairs),
      P: weights.take(`${own}P`, d, pairs, 2),
      B: weights.take(`${own}B`, d, pairs, 2),
      C: weights.take(`${own}C`, d, pairs, 2),
      D: config.skip ? weights.take(`${own}D`, d) : null,
      projectOut: weights.linear(`${name}.project_out`, d, 2 * d),
    });
  }

  function attention(weights, name, d, heads) {
    const projectIn = weights.linear(`${name}.project_in`, d, 3 * d);
    return new Attention(projectIn, weights.linear(`${name}.project_out`, d, d), heads);
  }

  function activation(name) {
    if (!Object.hasOwn(ACTIVATIONS, name)) throw wrong("activation", shown(name), Object.keys(ACTIVATIONS).join(", "));
    return ACTIVATIONS[name];
  }

  function globalMixer(weights, name, config) {
    const { width: d, global_mixer: kind } = config;
    if (kind === "mamba") return mamba(weights, name, config, null);
    if (kind === "mamba2") return mamba2(weights, name, config);
    if (kind === "attention") return attention(weights, name, d, d / Math.min(config.head_size, d));
    if (kind === "s4") return s4(weights, name, config);
    throw wrong("global_mixer", shown(kind), "mamba, mamba2, attention or s4");
  }

  // One layer of each model as branches, x = (normalized ? LN(x) : x) + mixer(LN(x)) one after the other, and the names of
  // the weights that a cut sets to zero: `window` as [name, rows, columns that go] and `gate` as [name, first, last row).
  const MODELS = {
    dmm: (weights, i, config) => {
      const { width: d, window: w, expand, local_mixer, global_mixer, residual } = config, own = `blocks.${i}.`;
      const normalized = residual === "normalized";
      const gates = { mamba: [expand * d, 2 * expand * d], mamba2: [0, expand * d] };
      const names = { dense: [".linear"], depthwise: [".conv1d"], multimodal: STEP.map((_, k) => `.mixers.${k}.linear`) };
      const each = local_mixer === "depthwise" ? 1 : d; // numbers of the window that belong to one token
      const near = localMixer(weights, `${own}local_mixer`, config), far = globalMixer(weights, `${own}global_mixer`, config);
      return {
        branches: [
          { norm: weights.norm(`${own}local_norm`, d), normalized, mixer: near },
          { norm: weights.norm(`${own}global_norm`, d), normalized, mixer: far },
        ],
        window: names[local_mixer].map(name => [`${own}local_mixer${name}.weight`, d, (w - 1) * each]),
        gate: gates[global_mixer] ? [`${own}global_mixer.in_proj.weight`, ...gates[global_mixer]] : null,
      };
    },
    mamba: (weights, i, config) => {
      const { width: d, conv_width } = config, own = `blocks.${i}.`, e = config.expand * d;
      const mixer = mamba(weights, `${own}mixer`, config, conv_width);
      return {
        branches: [{ norm: weights.norm(`${own}norm`, d), normalized: false, mixer }],
        window: [[`${own}mixer.conv1d.weight`, e, conv_width - 1]],
        gate: [`${own}mixer.in_proj.weight`, e, 2 * e],
      };
    },
    dt: (weights, i, config) => {
      const { width: d } = config, own = `blocks.${i}.`;
      const mlp = new Mlp(weights.linear(`${own}mlp.0`, d, 4 * d), weights.linear(`${own}mlp.2`, 4 * d, d));
      const attends = attention(weights, `${own}attention`, d, config.heads);
      return {
        branches: [
          { norm: weights.norm(`${own}attention_norm`, d), normalized: false, mixer: attends },
          { norm: weights.norm(`${own}mlp_norm`, d), normalized: false, mixer: mlp },
        ],
        window: [],
        gate: null,
      };
    },
  };

  class Policy {
    /** `source` is the export, `tensors` its weights by name, some of them cut. */
    constructor(source, tensors) {
      const { config, model } = source, { width: d, state_size: s, action_size: a } = config;
      const weights = new Weights(tensors);
      this.source = source;
      this.tensors = tensors;
      Object.assign(this, { model, config, context: config.context, stateSize: s, actionSize: a });
      this.discrete = source.discrete_actions;
      this.tokens = STEP;
      const sizes = { rtg: 1, state: s, action: a };
      this.embed = STEP.map(name => weights.linear(`embed_${name}`, sizes[name], d));
      this.times = model === "dt" ? weights.take("embed_timestep.weight", config.max_timestep, d) : null;
      this.embedNorm = weights.norm("embed_norm", d);
      this.blocks = Array.from({ length: config.layers }, (_, i) => MODELS[model](weights, i, config));
      this.headNorm = weights.norm("norm", d);
      this.head = weights.linear("head", d, a);
      const distinct = new Set(Object.values(tensors).map(({ values }) => values));
      this.parameters = [...distinct].reduce((sum, { length }) => sum + length, 0);
      this.layers = config.layers;
      this.padded = model !== "dt"; // whether tokens of padding are there, or are looked at by nobody
      const attends = this.blocks.some(({ branches }) => branches.some(({ mixer }) => mixer instanceof Attention));
      this.ways = attends ? ["window"] : RECURRENT;
      const having = test => this.blocks.flatMap((block, i) => (test(block) ? [i + 1] : []));
      this.cuts = { tokens: STEP, window: having(({ window }) => window.length), gate: having(({ gate }) => gate) };
      const { environment, returns, dataset, step } = source;
      Object.assign(this, { environment, returns, dataset, step });
      Object.freeze(this);
    }
  }

  dmm.readPolicy = object => {
    if (object?.format !== FORMAT) throw new Error("policy: this is not what `dmm export` writes");
    const { version, model } = object;
    if (version !== VERSION) throw wrong("policy: version", shown(version), `${VERSION}; export the run anew`);
    const { config, environment, returns } = object;
    if (![config, environment, returns].every(part => part && typeof part === "object")) {
      throw new Error("policy: its config, environment or returns are missing");
    }
    if (!Object.hasOwn(MODELS, model)) throw wrong("policy: model", shown(model), Object.keys(MODELS).join(", "));
    let tensors;
    try {
      tensors = unpack(object.weights);
    } catch (error) {
      throw error.message.startsWith("weights: ") ? error : new Error("weights: they cannot be read");
    }
    const s = config.state_size;
    for (const name of ["state_mean", "state_std"]) {
      const values = object[name];
      const good = Array.isArray(values) && values.length === s && values.every(Number.isFinite);
      if (!good) throw wrong(name, shown(values), `${s} finite numbers`);
    }
    return new Policy(object, tensors);
  };

  // --- taking something away ---------------------------------------------------------------------------------------

  dmm.cutPolicy = (policy, cut) => {
    if (!cut) return policy;
    for (const [name, wanted] of Object.entries(cut)) {
      const allowed = policy.cuts[name];
      if (!allowed) throw wrong("cut", shown(name), Object.keys(policy.cuts).join(", "));
      const extra = wanted.find(each => !allowed.includes(each));
      if (extra !== undefined) throw wrong(`cut: ${name}`, shown(extra), allowed.join(", ") || "none in this model");
    }
    const tensors = { ...policy.tensors };
    const zero = (name, change) => {
      const values = tensors[name].values.slice(); // layers may share it: the others keep theirs
      change(values);
      tensors[name] = { shape: tensors[name].shape, values };
    };
    for (const token of cut.tokens ?? []) {
      for (const part of ["weight", "bias"]) zero(`embed_${token}.${part}`, values => values.fill(0));
    }
    for (const layer of cut.window ?? []) {
      for (const [name, rows, gone] of policy.blocks[layer - 1].window) {
        zero(name, values => {
          const columns = values.length / rows;
          for (let row = 0; row < rows; row++) values.fill(0, row * columns, row * columns + gone);
        });
      }
    }
    for (const layer of cut.gate ?? []) {
      const [name, first, last] = policy.blocks[layer - 1].gate;
      zero(name, values => values.fill(0, first * policy.config.width, last * policy.config.width));
    }
    return new Policy(policy.source, tensors);
  };

  // --- acting ------------------------------------------------------------------------------------------------------

  dmm.played = (policy, action) => {
    if (policy.discrete) return action.indexOf(Math.max(...action));
    const bounds = policy.environment.action_bounds, rounded = Float64Array.from(action, Math.fround);
    if (!bounds) return rounded;
    const [low, high] = bounds;
    return rounded.map((value, i) => Math.fround(low[i] + ((value + 1) / 2) * (high[i] - low[i])));
  };

  dmm.Actor = class Actor {
    #whole; // the policy without cuts
    #policy; // the one that acts
    #cut = null;
    #way;
    #padding; // whether a recurrence begins behind padding
    #states; // of each state of the recurrence (one, or those that are staggered) what every mixer remembers
    #begun = null; // what they are behind the padding, worked out once
    #clock; // steps that the recurrence has taken in, padding included
    #past; // the last K steps
    #before; // the step before, which outlives a window of one
    #taken; // what was taken off the return-to-go
    #x; // the token on its way through the layers, (d)
    #normed;
    #made;

    constructor(policy, { way = "window", states = 4, cut = null, padding = true } = {}) {
      if (!policy.ways.includes(way)) throw wrong("way", shown(way), `${policy.ways.join(", ")} for this model`);
      if (way === "staggered" && !(Number.isInteger(states) && states > 0 && policy.context % states === 0)) {
        throw wrong("states", shown(states), `a divisor of the context ${policy.context}`);
      }
      if (!padding && way !== "recurrent") throw wrong("padding", "false", `true for ${way}`);
      this.#whole = policy;
      this.#way = way;
      this.#padding = padding;
      this.cut = cut;
      const count = way === "staggered" ? states : 1;
      const remembered = () => policy.blocks.map(({ branches }) => branches.map(({ mixer }) => mixer.state()));
      this.#states = Array.from({ length: count }, remembered);
      const d = policy.config.width;
      this.#x = new Float64Array(d);
      this.#normed = new Float64Array(d);
      this.#made = new Float64Array(d);
      this.reset(0);
    }

    get cut() {
      return this.#cut;
    }

    set cut(cut) {
      this.#policy = dmm.cutPolicy(this.#whole, cut);
      this.#cut = cut;
      this.#begun = null;
    }

    get policy() {
      return this.#whole;
    }

    get way() {
      return this.#way;
    }

    reset(returnToGo) {
      this.returnToGo = returnToGo;
      this.earned = 0;
      this.steps = 0;
      this.#past = [];
      this.#before = null;
      this.#taken = 0;
      if (this.#way !== "window") this.#begin();
    }

    ask(total) {
      this.returnToGo = total - this.#taken;
    }

    act(observation, reward = null) {
      const { context, stateSize, discrete, source } = this.#whole;
      if (observation.length !== stateSize) throw wrong("observation", `${observation.length} numbers`, stateSize);
      if (reward !== null) this.#earn(reward, source.environment.delayed_rewards ? 0 : reward);
      const seen = Float64Array.from(observation, (value, i) => (value - source.state_mean[i]) / source.state_std[i]);
      const step = { step: this.steps, returnToGo: this.returnToGo, observation: Array.from(observation), seen };
      Object.assign(step, { action: null, reward: null });
      this.#past.push(step);
      if (this.#past.length > context) this.#past.shift();
      const out = this.#way === "window" ? this.#readWindow() : this.#goOn(step);
      this.#before = step;
      let action = out;
      if (discrete) {
        const best = out.indexOf(Math.max(...out));
        action = out.map((_, i) => Number(i === best));
      }
      step.action = action;
      this.steps++;
      return action.slice();
    }

    seen() {
      return this.#past.map(({ step, returnToGo, observation, action, reward }) => ({
        ...{ step, returnToGo, reward },
        observation: observation.slice(),
        action: action && Array.from(action),
      }));
    }

    #earn(reward, taken) {
      const last = this.#past[this.#past.length - 1];
      if (last) last.reward = reward;
      this.earned += reward;
      this.#taken += taken;
      this.returnToGo -= taken;
    }

    /** The whole window from its first token on. */
    #readWindow() {
      const { context, padded } = this.#policy, [states] = this.#states, past = this.#past;
      states.flat().forEach(clear);
      if (padded) for (let i = past.length; i < context; i++) this.#take(states, PADDING, 0, 3, false);
      past.forEach((step, i) => this.#take(states, step, 0, i === past.length - 1 ? 2 : 3, i === past.length - 1));
      return this.#decode();
    }

    /** The tokens that follow the state token of the step before, then those up to this step's own state token. */
    #goOn(step) {
      const oldest = this.#oldest(), fresh = this.#fresh();
      let action;
      this.#states.forEach((states, i) => {
        this.#late(states, i === fresh, this.#before);
        this.#take(states, step, 0, 2, i === oldest);
        if (i === oldest) action = this.#decode();
      });
      this.#clock++;
      return action;
    }

    /** What a state does first in a step: it begins anew, or takes in the action of the step before (null: of padding). */
    #late(states, fresh, before) {
      if (fresh || this.#clock === 0) states.flat().forEach(clear);
      else this.#take(states, before ?? PADDING, 2, 3, false);
    }

    /** Steps between two restarts. */
    get #spacing() {
      return this.#policy.context / this.#states.length;
    }

    /** The state that begins anew in this step, if one does. */
    #fresh() {
      const restarts = this.#way === "staggered" && this.#clock > 0 && this.#clock % this.#spacing === 0;
      return restarts ? (this.#clock / this.#spacing) % this.#states.length : -1;
    }

    /** The state whose restart lies farthest back, less than K steps: it acts. */
    #oldest() {
      const restarts = Math.floor(Math.max(0, this.#clock - this.#policy.context + this.#spacing) / this.#spacing);
      return restarts % this.#states.length;
    }

    /** Take in the K - 1 steps of padding that stand before an episode. */
    #begin() {
      const context = this.#padding ? this.#policy.context : 1;
      if (this.#begun) {
        const all = this.#states.flat(2);
        this.#begun.forEach((kept, i) => Object.entries(kept).forEach(([name, part]) => all[i][name].set(part)));
        this.#clock = context - 1;
        return;
      }
      for (this.#clock = 0; this.#clock < context - 1; this.#clock++) {
        const fresh = this.#fresh();
        this.#states.forEach((states, i) => {
          this.#late(states, i === fresh, null);
          this.#take(states, PADDING, 0, 2, false);
        });
      }
      if (context === 1) this.#states.flat(2).forEach(clear);
      this.#begun = this.#states.flat(2).map(copyOf);
    }

    /** Some of the tokens of a step, from place `from` to before `to`, through all layers; of the last, `read` or not. */
    #take(states, step, from, to, read) {
      const { config, times, source } = this.#policy, d = config.width;
      for (let kind = from; kind < to; kind++) {
        const given = kind === 0 ? [step.returnToGo / config.rtg_scale] : kind === 1 ? step.seen : step.action;
        const layer = this.#policy.embed[kind];
        if (given) linear(layer, given, 0, this.#made);
        else this.#made.set(layer.bias);
        if (times) {
          const row = d * Math.min(step.step, config.max_timestep - 1);
          for (let i = 0; i < d; i++) this.#made[i] += times[row + i];
        }
        norm(this.#policy.embedNorm, this.#made, this.#x);
        this.#through(states, kind, read && kind === to - 1);
      }
    }

    /** The token through all layers, in place; of the last layer's last mixer only its state where not read. */
    #through(states, kind, read) {
      const { blocks } = this.#policy, x = this.#x, normed = this.#normed, made = this.#made;
      blocks.forEach(({ branches }, i) => {
        branches.forEach((branch, j) => {
          const unread = !read && i === blocks.length - 1 && j === branches.length - 1;
          norm(branch.norm, x, normed);
          branch.mixer.step(normed, unread ? null : made, states[i][j], kind);
          if (unread) return;
          const onto = branch.normalized ? normed : x;
          for (let c = 0; c < x.length; c++) x[c] = onto[c] + made[c];
        });
      });
    }

    #decode() {
      const { headNorm, head, actionSize } = this.#policy, action = new Float64Array(actionSize);
      norm(headNorm, this.#x, this.#normed);
      linear(head, this.#normed, 0, action);
      return action.map(Math.tanh);
    }
  };
})();
