// The noise of ddpm/diffusion/noise.py, number for number: Philox4x32-10 looked up in a table of normal quantiles.

const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57];
const KEY_STEPS = [0x9e3779b9, 0xbb67ae85];
const ROUNDS = 10;
const PER_BLOCK = 8;

/** The upper 32 bits of the product of two unsigned 32-bit numbers. */
function multiplyHigh(a, b) {
  const aLow = a & 0xffff, aHigh = a >>> 16, bLow = b & 0xffff, bHigh = b >>> 16;
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16); // these sums stay below 2^33
  const other = aLow * bHigh + (middle % 0x10000);
  return (aHigh * bHigh + Math.floor(middle / 0x10000) + Math.floor(other / 0x10000)) >>> 0;
}

/** Four random 32-bit words for a counter of four and a key of two. */
export function philox([a, b, c, d], [key0, key1]) {
  for (let round = 0; round < ROUNDS; round++) {
    const firstHigh = multiplyHigh(a, MULTIPLIERS[0]), firstLow = Math.imul(a, MULTIPLIERS[0]);
    const secondHigh = multiplyHigh(c, MULTIPLIERS[1]), secondLow = Math.imul(c, MULTIPLIERS[1]);
    a = (secondHigh ^ b ^ key0) >>> 0;
    b = secondLow >>> 0;
    c = (firstHigh ^ d ^ key1) >>> 0;
    d = firstLow >>> 0;
    key0 = (key0 + KEY_STEPS[0]) >>> 0;
    key1 = (key1 + KEY_STEPS[1]) >>> 0;
  }
  return [a, b, c, d];
}

/**
 * Standard normal noise of some images, one after the other: Float32Array [images × size].
 * table: the 65,536 values. seed: a whole number, BigInt, or either as text. stream: what it is for. draw: 0, 1, …
 */
export function normalNoise(table, seed, stream, draw, images, size) {
  const wide = BigInt(seed), key = [Number(wide & 0xffffffffn), Number((wide >> 32n) & 0xffffffffn)];
  const noise = new Float32Array(images.length * size);
  images.forEach((image, row) => {
    for (let first = 0; first < size; first += PER_BLOCK) {
      const words = philox([first / PER_BLOCK, draw, image, stream], key);
      for (let place = 0; place < PER_BLOCK && first + place < size; place++) {
        noise[row * size + first + place] = table[(words[place >> 1] >>> (16 * (place & 1))) & 0xffff];
      }
    }
  });
  return noise;
}

/** A function that returns the next noise of the images with every call. */
export function imageNoise(table, seed, stream, images, size) {
  let draw = 0;
  return () => normalNoise(table, seed, stream, draw++, images, size);
}
