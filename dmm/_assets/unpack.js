// Unpacks LZMA, which is a quarter smaller than gzip for MuJoCo's code and which no browser knows by itself. See policy.js
// for the convention of these scripts; this one needs nothing.
//
//   dmm.unpack(packed) -> Uint8Array
//       `packed` are the bytes of dmm.widgets.mujoco.pack: in four of them, lowest first, how many come of it; then a raw
//       LZMA stream with four bits of literal context and no bits of position. Throws Error where it ends too soon.
//       Names are those of Igor Pavlov's LZMA specification (7-zip.org/sdk.html), which is in the public domain.

(() => {
  "use strict";
  const dmm = (globalThis.dmm ??= {});
  const LITERAL_BITS = 4;
  const STATES = 12;
  const SIZE_BYTES = 4;

  const fresh = count => new Uint16Array(count).fill(1024); // a bit's probability to be 0, of 2048

  /** Reads bits whose probabilities adapt. `now` has the range and the code, which are unsigned 32-bit numbers. */
  class RangeDecoder {
    constructor(packed) {
      this.packed = packed;
      this.now = Uint32Array.of(0xffffffff, 0);
      this.at = SIZE_BYTES + 1; // the stream's first byte is 0
      for (let i = 0; i < 4; i++) this.shift();
    }
    shift() {
      this.now[1] = (this.now[1] << 8) | this.packed[this.at++];
    }
    bit(odds, i) {
      const { now } = this, odd = odds[i], bound = (now[0] >>> 11) * odd, one = now[1] >= bound;
      if (one) {
        now[0] -= bound;
        now[1] -= bound;
        odds[i] = odd - (odd >> 5);
      } else {
        now[0] = bound;
        odds[i] = odd + ((2048 - odd) >> 5);
      }
      this.normalize();
      return one ? 1 : 0;
    }
    normalize() {
      if (this.now[0] >= 2 ** 24) return;
      this.now[0] <<= 8;
      this.shift();
    }
    /** A number of so many bits, highest first, or lowest first; its probabilities stand from `from` on. */
    tree(odds, from, bits) {
      let node = 1;
      for (let i = 0; i < bits; i++) node = 2 * node + this.bit(odds, from + node);
      return node - (1 << bits);
    }
    reverseTree(odds, from, bits) {
      let node = 1, value = 0;
      for (let i = 0; i < bits; i++) {
        const bit = this.bit(odds, from + node);
        node = 2 * node + bit;
        value |= bit << i;
      }
      return value;
    }
    /** Bits that are 0 and 1 alike. */
    direct(bits) {
      const { now } = this;
      let value = 0;
      for (let i = 0; i < bits; i++) {
        now[0] >>>= 1;
        const one = now[1] >= now[0];
        if (one) now[1] -= now[0];
        value = 2 * value + Number(one);
        this.normalize();
      }
      return value;
    }
  }

  class LengthDecoder {
    constructor() {
      Object.assign(this, { choice: fresh(2), low: fresh(8), mid: fresh(8), high: fresh(256) });
    }
    read(coder) {
      if (!coder.bit(this.choice, 0)) return 2 + coder.tree(this.low, 0, 3);
      if (!coder.bit(this.choice, 1)) return 10 + coder.tree(this.mid, 0, 3);
      return 18 + coder.tree(this.high, 0, 8);
    }
  }

  class DistanceDecoder {
    constructor() {
      Object.assign(this, { slots: fresh(4 * 64), special: fresh(128), align: fresh(16) });
    }
    read(coder, length) {
      const slot = coder.tree(this.slots, 64 * Math.min(length - 2, 3), 6);
      if (slot < 4) return slot;
      const bits = (slot >> 1) - 1, base = (2 + (slot & 1)) * 2 ** bits;
      if (slot < 14) return base + coder.reverseTree(this.special, base - slot, bits);
      return base + 16 * coder.direct(bits - 4) + coder.reverseTree(this.align, 0, 4);
    }
  }

  /** A byte that stands for itself; behind a copy, what the copy would have gone on with says which odds count. */
  function literal(coder, odds, before, expected) {
    const from = 0x300 * (before >> (8 - LITERAL_BITS));
    let symbol = 1;
    for (let guess = expected; guess !== null && symbol < 256; ) {
      const likely = (guess >> 7) & 1, bit = coder.bit(odds, from + ((1 + likely) << 8) + symbol);
      symbol = 2 * symbol + bit;
      guess = bit === likely ? guess << 1 : null;
    }
    while (symbol < 256) symbol = 2 * symbol + coder.bit(odds, from + symbol);
    return symbol;
  }

  dmm.unpack = packed => {
    const size = new DataView(packed.buffer, packed.byteOffset, SIZE_BYTES).getUint32(0, true);
    const out = new Uint8Array(size), coder = new RangeDecoder(packed);
    const literals = fresh(0x300 << LITERAL_BITS), distances = new DistanceDecoder();
    const [isMatch, isRep, isRepG0, isRepG1, isRepG2, isRep0Long] = Array.from({ length: 6 }, () => fresh(STATES));
    const [lengths, repLengths] = [new LengthDecoder(), new LengthDecoder()];
    let state = 0, rep0 = 0, rep1 = 0, rep2 = 0, rep3 = 0; // what came last, and the last distances less one

    /** Length of the copy that comes next; its distance comes to the front of the last ones. */
    const copied = () => {
      if (!coder.bit(isRep, state)) {
        [rep1, rep2, rep3] = [rep0, rep1, rep2];
        const length = lengths.read(coder);
        rep0 = distances.read(coder, length);
        state = state < 7 ? 7 : 10;
        return length;
      }
      if (coder.bit(isRepG0, state)) again();
      else if (!coder.bit(isRep0Long, state)) {
        state = state < 7 ? 9 : 11;
        return 1;
      }
      const length = repLengths.read(coder);
      state = state < 7 ? 8 : 11;
      return length;
    };

    /** The second, third or fourth of the last distances becomes the first. */
    const again = () => {
      if (!coder.bit(isRepG1, state)) [rep0, rep1] = [rep1, rep0];
      else if (!coder.bit(isRepG2, state)) [rep0, rep1, rep2] = [rep2, rep0, rep1];
      else [rep0, rep1, rep2, rep3] = [rep3, rep0, rep1, rep2];
    };

    for (let n = 0; n < size; ) {
      if (coder.at > packed.length + 4) throw new Error("unpack: the packed bytes end too soon");
      if (!coder.bit(isMatch, state)) {
        out[n] = literal(coder, literals, n ? out[n - 1] : 0, state < 7 ? null : out[n - rep0 - 1]);
        state = state < 4 ? 0 : state < 10 ? state - 3 : state - 6;
        n++;
        continue;
      }
      const end = Math.min(size, n + copied());
      for (const back = rep0 + 1; n < end; n++) out[n] = out[n - back];
    }
    return out;
  };
})();
