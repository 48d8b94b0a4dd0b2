// The network, in a thread of its own, so that the page stays responsive. See `runTask` for what it is asked.

import * as ort from "../runtime/ort.wasm.min.mjs";
import { imageNoise, normalNoise } from "./noise.js";
import { balancedLabels, blended, complete, denoiser, fromBytes, labelWeights, nearestLabel, sample, slerp, toBytes } from "./sampling.js";

let model, table, centroids, network, guide, stopped;

ort.env.wasm.wasmPaths = new URL("../runtime/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // so small a network gains little from more, and loses much beside other busy programs

async function fetched(name, read) {
  const response = await fetch(new URL(`../${name}`, import.meta.url));
  if (!response.ok) throw new Error(`${name} could not be loaded (status ${response.status})`);
  return response[read]();
}

async function evaluation(name) {
  const content = await fetched(name, "arrayBuffer");
  const session = await ort.InferenceSession.create(content, { executionProviders: ["wasm"] });
  const { channels, size } = model.image, whole = (values) => BigInt64Array.from(values, BigInt);
  return async (x_t, t, labels) => {
    const count = x_t.length / (channels * size * size);
    const inputs = {
      x_t: new ort.Tensor("float32", x_t, [count, channels, size, size]),
      t: new ort.Tensor("int64", whole(new Array(count).fill(t)), [count]),
    };
    if (labels) inputs.label = new ort.Tensor("int64", whole(labels), [count]);
    return (await session.run(inputs)).x_0.data;
  };
}

async function load() {
  model = await fetched("model.json", "json");
  table = new Float32Array(await fetched("normal.bin", "arrayBuffer"));
  centroids = new Float32Array(await fetched("centroids.bin", "arrayBuffer"));
  network = await evaluation("denoise.onnx");
  guide = model.settings.autoguidance === 1 ? null : await evaluation("guide.onnx");
  return { model };
}

/**
 * What a task asks for: `images`, and the class label of each. class: a class label, or null for any.
 * kind "sample": numbers, seed, sampler ("ddpm" or "ddim"). "complete": numbers, seed, image and known (bytes of one image; known is 1 where a
 * pixel is given). "blend": from and to (a class and a seed each), at (fractions of the way).
 */
async function runTask(task, onStep) {
  const { channels, size } = model.image, length = channels * size * size;
  const steps = model.steps[task.steps], stream = model.streams.generate;
  const completes = task.kind === "complete"; // without autoguidance, see `inpaint` in ddpm/api.py
  const denoise = denoiser({ ...model.settings, network, guide: completes ? null : guide, steps, length, guidance: task.guidance });
  const labelsOf = (numbers, wanted) => balancedLabels(numbers, labelWeights(model, wanted));
  if (task.kind === "blend") {
    const ends = [task.from, task.to];
    const [from, to] = ends.map((end) => labelsOf([1], end.class)).map((label) => label && task.at.map(() => label[0]));
    const noises = ends.map((end) => normalNoise(table, end.seed, stream, 0, [1], length));
    const x = slerp(...noises, task.at);
    return { images: await sample({ steps, sampler: "ddim", denoise: blended(denoise, from, to, task.at), x, onStep }) };
  }
  // Where nothing is drawn, the labels of samples of the class; of none, the null label.
  const drawn = completes && (task.known.some(Boolean) || (model.classes > 0 && task.class === null));
  const known = drawn && nearestLabel(model, centroids, task.image, task.known, task.class);
  const labels = drawn ? (known === null ? null : task.numbers.map(() => known)) : labelsOf(task.numbers, task.class);
  const clusters = model.frequencies?.[0].length;
  const classes = labels && model.classes ? labels.map((label) => (label < 0 ? null : Math.floor(label / clusters))) : null;
  const noise = imageNoise(table, task.seed, stream, task.numbers, length);
  const given = { steps, denoise: (x_t, step) => denoise(x_t, step, labels), x: noise(), noise, onStep };
  if (!completes) return { images: await sample({ ...given, sampler: task.sampler }), classes };
  const forAll = (one) => Float32Array.from({ length: given.x.length }, (_, i) => one[i % length]);
  return { images: await complete({ ...given, image: forAll(fromBytes(task.image)), known: forAll(task.known) }), classes };
}

class Stopped extends Error {}

self.onmessage = async ({ data: { id, type, task } }) => {
  if (type === "stop") {
    stopped = id;
    return;
  }
  try {
    if (type === "load") {
      self.postMessage({ id, type: "done", ...(await load()) });
      return;
    }
    const onStep = async (step, x_t, x_0) => {
      self.postMessage({ id, type: "step", step, noisy: toBytes(x_t), guess: toBytes(x_0) });
      await new Promise((resolve) => setTimeout(resolve)); // a word to stop may have come
      if (stopped === id) throw new Stopped();
    };
    const { images, classes = null } = await runTask(task, onStep);
    self.postMessage({ id, type: "done", images: toBytes(images), classes });
  } catch (error) {
    self.postMessage({ id, type: error instanceof Stopped ? "stopped" : "error", message: error.message });
  }
};
