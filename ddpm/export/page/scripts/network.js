// The workers that the network runs in, and how they share the pictures of a task.

const MOST = 4; // workers: each holds the network, some 60 MB

/** A worker, as functions that return promises. */
class One {
  constructor() {
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.calls = new Map();
    this.worker.onmessage = ({ data }) => {
      const call = this.calls.get(data.id);
      if (data.type === "step") {
        call.onStep(data);
        return;
      }
      this.calls.delete(data.id);
      if (data.type === "error") call.reject(new Error(data.message));
      else call.resolve(data.type === "stopped" ? null : data);
    };
    this.worker.onerror = (event) => {
      for (const call of this.calls.values()) call.reject(new Error(event.message || "the worker could not be started"));
      this.calls.clear();
    };
  }

  call(type, task, onStep) {
    const id = (this.id = (this.id ?? 0) + 1);
    return new Promise((resolve, reject) => {
      this.calls.set(id, { resolve, reject, onStep });
      this.worker.postMessage({ id, type, task });
    });
  }

  stop() {
    this.worker.postMessage({ id: this.id, type: "stop" });
  }
}

/** All parts' bytes, one after the other. */
function joined(parts) {
  const all = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

export class Network {
  ready = [];

  /** Load a first worker; others follow while the page can be used already. Returns what model.json says. */
  async load() {
    const { model } = await this.#another();
    this.#others();
    return model;
  }

  async #another() {
    const one = new One(), loaded = await one.call("load");
    this.ready.push(one);
    return loaded;
  }

  async #others() {
    try {
      while (this.ready.length < Math.min(MOST, navigator.hardwareConcurrency || 1)) await this.#another();
    } catch (error) {
      console.info(`one worker fewer: ${error.message}`);
    }
  }

  /**
   * Do a task (see worker.js), its pictures shared among the workers: a picture does not depend on those beside it.
   * onStep: called with the bytes of all pictures at each step, `noisy` and `guess`. Returns the images, their classes
   * and the seconds that it took; null where it was stopped.
   */
  async run(task, onStep) {
    const started = performance.now(), share = task.at ? "at" : "numbers", all = task[share];
    const size = Math.ceil(all.length / this.ready.length), steps = [];
    this.busy = this.ready.slice(0, Math.ceil(all.length / size));
    const parts = this.busy.map((one, place) => {
      const part = { ...task, [share]: all.slice(place * size, (place + 1) * size) };
      return one.call("run", part, ({ step, noisy, guess }) => {
        const found = (steps[step] ??= []);
        found[place] = { noisy, guess };
        if (Object.keys(found).length < this.busy.length) return;
        onStep({ step, noisy: joined(found.map((of) => of.noisy)), guess: joined(found.map((of) => of.guess)) });
        delete steps[step];
      });
    });
    try {
      const done = await Promise.all(parts);
      if (done.includes(null)) return null;
      const classes = done[0].classes && done.flatMap((part) => part.classes);
      const seconds = (performance.now() - started) / 1000;
      return { images: joined(done.map((part) => part.images)), classes, seconds };
    } catch (error) {
      this.stop();
      throw error;
    }
  }

  stop() {
    for (const one of this.busy) one.stop();
  }
}
