// The reverse process. What a step multiplies by comes from model.json, which Python writes: no formula stands here.
// Images are Float32Arrays in [-1, 1], one after the other, and every operation rounds to 32 bits as PyTorch's do.

const round = Math.fround;

/** parts[0] · weights[0] + parts[1] · weights[1] + …, element by element. */
export function combine(weights, parts) {
  const sum = new Float32Array(parts[0].length);
  parts.forEach((part, number) => {
    const weight = round(weights[number]);
    for (let i = 0; i < sum.length; i++) sum[i] += round(weight * part[i]);
  });
  return sum;
}

/** The standard deviation of a[i] + weight · b[i] for i from `start`, so many of them. */
function deviation(a, weight, b, start, length) {
  let sum = 0, squares = 0;
  for (let i = start; i < start + length; i++) sum += a[i] + weight * b[i];
  for (let i = start; i < start + length; i++) squares += (a[i] + weight * b[i] - sum / length) ** 2;
  return Math.sqrt(squares / (length - 1));
}

/**
 * A function (x_t, step, labels) → x̂_0 with guidance and clipping, as ddpm/diffusion/denoiser.py.
 * network, guide: (x_t, t, labels) → x̂_0, `guide` where there is one. steps: an entry of model.json. length: numbers of
 * an image. labels: null for a network without any.
 */
export function denoiser({ network, guide, steps, length, guidance = 1, autoguidance = 1, guidance_rescale = 0, clip = true }) {
  return async (x_t, step, labels) => {
    const t = steps.t[step], own = await network(x_t, t, labels);
    const x_0 = Float32Array.from(own);
    const push = (scale, weaker) => {
      for (let i = 0; i < x_0.length; i++) x_0[i] += round(round(scale - 1) * round(own[i] - weaker[i]));
    };
    if (labels && guidance !== 1 && steps.guided[step]) push(guidance, await network(x_t, t, labels.map(() => -1)));
    if (guide && autoguidance !== 1 && steps.autoguided[step]) push(autoguidance, await guide(x_t, t, labels));
    if (guidance_rescale) {
      // As `rescaled` in ddpm/diffusion/guidance.py. The prediction is a multiple of x̂_0 + predicted · x_t.
      const predicted = steps.predicted[step];
      for (let start = 0; start < x_0.length; start += length) {
        const ratio = deviation(own, predicted, x_t, start, length) / deviation(x_0, predicted, x_t, start, length);
        const factor = guidance_rescale * ratio + (1 - guidance_rescale);
        for (let i = start; i < start + length; i++) x_0[i] = factor * x_0[i] + (factor - 1) * predicted * x_t[i];
      }
    }
    if (clip) for (let i = 0; i < x_0.length; i++) x_0[i] = Math.min(1, Math.max(-1, x_0[i]));
    return x_0;
  };
}

/** One step of `sampler` ("ddpm" or "ddim") from x_t to x_{t−1}. noise: called where the step has some. */
function stepBack(steps, sampler, step, x_t, x_0, noise) {
  const weights = steps[sampler];
  const mean = combine([weights.x_0[step], weights.x_t[step]], [x_0, x_t]);
  return weights.noise[step] ? combine([1, weights.noise[step]], [mean, noise()]) : mean;
}

/**
 * From noise x to images. denoise: (x_t, step) → x̂_0. onStep: awaited as onStep(taken, x_t, x̂_0) before each step, and
 * once more with the result; what it throws ends the sampling.
 */
export async function sample({ steps, sampler, denoise, x, noise, onStep = () => {} }) {
  const count = steps.t.length;
  for (let step = count - 1; step >= 0; step--) {
    const x_0 = await denoise(x, step);
    await onStep(count - 1 - step, x, x_0);
    x = stepBack(steps, sampler, step, x, x_0, noise);
  }
  await onStep(count, x, x);
  return x;
}

/**
 * Complete images: `repaint` in ddpm/diffusion/editing.py. image: x_0 of the known pixels. known: 1 where a pixel is
 * given, shaped like the images. The steps' `moves` go back (−1), and at times on again (+1), so that what is made fits
 * what is given.
 */
export async function complete({ steps, denoise, x, noise, image, known, onStep = () => {} }) {
  const merged = (given, made) => made.map((value, i) => (known[i] ? given[i] : value));
  let step = steps.t.length, taken = 0;
  for (const move of steps.moves) {
    if (move > 0) {
      x = combine([steps.again.x_t[step], steps.again.noise[step]], [x, noise()]);
      step += 1;
    } else {
      step -= 1;
      const x_0 = await denoise(x, step);
      await onStep(taken, x, merged(image, x_0));
      const made = stepBack(steps, "ddpm", step, x, x_0, noise);
      x = merged(step ? combine([steps.keep.x_0[step], steps.keep.noise[step]], [image, noise()]) : image, made);
    }
    taken += 1;
  }
  await onStep(taken, x, x);
  return x;
}

/** Points on the great circle from `from` to `to`, one for each fraction in `at`: Float32Array [at.length × size]. */
export function slerp(from, to, at) {
  let product = 0, fromSquare = 0, toSquare = 0;
  for (let i = 0; i < from.length; i++) {
    product += from[i] * to[i];
    fromSquare += from[i] ** 2;
    toSquare += to[i] ** 2;
  }
  const angle = Math.acos(Math.min(1, Math.max(-1, product / Math.sqrt(fromSquare * toSquare))));
  const straight = Math.sin(angle) < 1e-6;
  const points = new Float32Array(at.length * from.length);
  at.forEach((fraction, row) => {
    const a = straight ? 1 - fraction : Math.sin((1 - fraction) * angle) / Math.sin(angle);
    const b = straight ? fraction : Math.sin(fraction * angle) / Math.sin(angle);
    for (let i = 0; i < from.length; i++) points[row * from.length + i] = a * from[i] + b * to[i];
  });
  return points;
}

/** (x_t, step) → x̂_0 that goes over from that of the labels `from` to that of `to`, image by image by `at`. */
export function blended(denoise, from, to, at) {
  return async (x_t, step) => {
    const a = await denoise(x_t, step, from);
    if (!from || from.every((label, row) => label === to[row])) return a;
    const b = await denoise(x_t, step, to), size = a.length / at.length;
    return a.map((value, i) => {
      const fraction = at[Math.floor(i / size)];
      return (1 - fraction) * value + fraction * b[i];
    });
  };
}

/** How often each conditioning label is wanted: as in training, or of one class alone; null for a network without. */
export function labelWeights(model, wanted) {
  if (!model.frequencies) return null;
  const single = wanted !== null && model.classes > 0;
  return model.frequencies.flatMap((clusters, label) => (single && label !== wanted ? clusters.map(() => 0) : clusters));
}

/** The conditioning label of each image number, as ddpm/sampling/labels.py; null for a network without. */
export function balancedLabels(numbers, weights) {
  if (!weights) return null;
  const total = weights.reduce((sum, value) => sum + value, 0);
  let reached = 0;
  const edges = weights.map((value) => (reached += value / total));
  return numbers.map((number) => {
    const place = (number * ((Math.sqrt(5) - 1) / 2)) % 1;
    const label = edges.slice(0, -1).findIndex((edge) => place < edge);
    return label < 0 ? edges.length - 1 : label;
  });
}

/**
 * The conditioning label of an image by its known pixels, as `nearest_labels` in ddpm/sampling/conditions.py: that of
 * the cluster of its class whose mean is nearest. image, known: bytes. centroids: Float32Array, cluster after cluster,
 * empty where each class is one. wanted: the class label; null, where there are some, leads to the null label, −1.
 */
export function nearestLabel(model, centroids, image, known, wanted) {
  if (!model.frequencies) return null;
  if (model.classes && wanted === null) return -1;
  const clusters = model.frequencies[0].length, first = (wanted ?? 0) * clusters;
  if (!centroids.length) return first;
  const { channels, size } = model.image, length = centroids.length / (model.frequencies.length * clusters);
  const side = Math.round(Math.sqrt(length / channels));
  const ends = (cell) => [Math.floor((cell * size) / side), Math.ceil(((cell + 1) * size) / side)];
  const values = [], shares = [];
  for (let cell = 0; cell < length; cell++) {
    const plane = Math.floor(cell / side ** 2) * size ** 2;
    const [top, bottom] = ends(Math.floor(cell / side) % side), [left, right] = ends(cell % side);
    let there = 0, sum = 0;
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) {
        there += known[plane + y * size + x];
        sum += (known[plane + y * size + x] * image[plane + y * size + x]) / 255;
      }
    }
    shares.push(there / ((bottom - top) * (right - left)));
    values.push(there ? sum / there : 0);
  }
  let best = first, least = Infinity;
  for (let label = first; label < first + clusters; label++) {
    const distance = shares.reduce((sum, share, cell) => sum + share * (values[cell] - centroids[label * length + cell]) ** 2, 0);
    if (distance < least) [best, least] = [label, distance];
  }
  return best;
}

/** x_0 as bytes, as `denormalize` in ddpm/data/image_set.py. */
export function toBytes(x) {
  return Uint8ClampedArray.from(x, (value) => round(round(value + 1) * 127.5)); // the type rounds halves to even
}

/** Bytes as x_0, as `normalize` there. */
export function fromBytes(bytes) {
  return Float32Array.from(bytes, (value) => round(value / 127.5) - 1);
}
