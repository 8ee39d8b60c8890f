// A trained policy in plain JavaScript: what `dmm export` wrote, and the ways of acting of `dmm.acting`.
//
// Convention of policy.js, worlds.js and physics.js: each is a classic script without import, export or top-level names.
// It adds its functions to one global object, `globalThis.dmm`, and touches nothing else: no DOM, no network, no timers.
// So they can be joined, in this order, to the text of a worker made from a Blob (also under file://), stand in a page,
// and be run by node (`vm.runInThisContext`). physics.js needs worlds.js, policy.js needs nothing.
//
//   dmm.readPolicy(object) -> Policy
//       `object` is the parsed JSON of an export. Throws Error with one sentence: no export, another version, a model or
//       part of a model that is not known here, weights that are missing, misshapen or not finite.
//       The Policy is frozen: {model, config, context (K), stateSize, actionSize, discrete, parameters (number of
//       weights), layers (number of blocks), tokens: ["rtg", "state", "action"], ways: the ways in which it can act
//       (["window", "recurrent", "staggered"], or ["window"] where it has attention), cuts: what can be taken away, as
//       {tokens: ["rtg", "state", "action"], window: [layers], gate: [layers]} (layers count from 1, and are none where a
//       model has no such part), environment, returns: {asked, scale, reference, mean, max}, dataset, step, source (the
//       export itself)}.
//       environment.world is what `dmm.makeWorld` of worlds.js takes, or null where the page cannot play it.
//
//   new dmm.Actor(policy, {way = "window", states = 4, cut = null})
//       Throws Error for a way that is not in policy.ways, a number of states that does not divide K, a cut that the
//       policy does not have. "staggered" alone has states. All arithmetic is in float64.
//   .reset(returnToGo)      forgets everything; this return is asked of the new episode
//   .act(observation, reward = null) -> Float64Array(a)
//       One time step. `observation` is what the world gave (raw), `reward` what the action before earned, null at the
//       first step. It is taken off the return-to-go (not where the data had their reward delayed to the last step, as in
//       dmm.evaluation). The action is in -1..1, or one-hot where actions are discrete; `dmm.played(policy, action)`
//       makes of it what a world's `step` takes.
//   .returnToGo             what the token of the last step said, raw; before the first step, what is asked
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
