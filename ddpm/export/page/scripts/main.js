// The page: its forms, what they ask the network for, and what it answers.

import { Pad } from "./drawing.js";
import { Network } from "./network.js";
import { one, Pictures } from "./pictures.js";

const $ = (selector, within = document) => within.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
const status = $("#status");

/** Say what is going on. action: a button's words and what it does. */
function say(state, words, action = null) {
  status.dataset.state = state;
  status.style.setProperty("--done", 0);
  const text = Object.assign(document.createElement("span"), { className: "words", textContent: words });
  const step = Object.assign(document.createElement("span"), { className: "step", ariaHidden: "true" });
  const button = action && Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: action[0] });
  button?.addEventListener("click", action[1]);
  status.replaceChildren(text, step, ...(button ? [button] : []));
}

/** Show how far it is; a screen reader is not told of every step. */
function showStep(step, total) {
  status.style.setProperty("--done", step / total);
  $(".step", status).textContent = `step ${Math.min(step + 1, total)} of ${total}`;
}

function tabs() {
  const all = $$('[role="tab"]');
  const choose = (chosen) => {
    for (const tab of all) {
      const is = tab === chosen;
      tab.setAttribute("aria-selected", is);
      tab.tabIndex = is ? 0 : -1;
      $(`#${tab.getAttribute("aria-controls")}`).hidden = !is;
    }
  };
  all.forEach((tab, number) => {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!move) return;
      const next = all[(number + move + all.length) % all.length];
      choose(next);
      next.focus();
    });
  });
  return (name) => choose($(`#tab-${name}`));
}

const SEEDS = 2n ** 63n; // as in Python
const newSeed = () => `${crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000}`;

/** Fill the forms with what this model knows. */
function prepare(model) {
  const { settings, image } = model, names = image.class_names ?? Array.from({ length: image.classes }, (_, label) => `${label}`);
  const untrained = model.null_label === false;
  for (const fieldset of $$(".classes")) {
    fieldset.hidden = !model.classes;
    fieldset.classList.toggle("long", names.some((name) => name.length > 3));
    const row = document.createElement("div"), form = fieldset.closest("form").id;
    // A drawing of any class is completed by the null label.
    const choices = [...(form === "form-complete" && untrained ? [] : [[-1, "Any"]]), ...names.entries()];
    choices.forEach(([value, name], place) => {
      const label = document.createElement("label"), text = Object.assign(document.createElement("span"), { textContent: name });
      const input = Object.assign(document.createElement("input"), { type: "radio", name: fieldset.dataset.name, value });
      input.id = `${form}-${fieldset.dataset.name}-${value}`;
      input.checked = place === 0;
      label.append(input, text);
      row.append(label);
    });
    fieldset.append(row);
  }
  if (model.classes > 1) {
    $('#form-blend [name="from"][value="0"]').checked = true;
    $(`#form-blend [name="to"][value="1"]`).checked = true;
  }
  for (const field of $$(".guidance")) field.hidden = !model.frequencies || untrained;
  const counts = Object.keys(model.steps).map(Number).sort((a, b) => a - b);
  const steps = $("#sample-steps");
  Object.assign(steps, { min: 0, max: counts.length - 1, step: 1 });
  steps.value = counts.indexOf(settings.steps);
  $("#sample-sampler").value = settings.sampler;
  const guidance = $("#sample-guidance");
  // A slider moves what it is given into its range: that of the settings is wanted, to a hundredth.
  const { min, max } = guidance;
  Object.assign(guidance, { min: Math.min(min, settings.guidance), max: Math.max(max, settings.guidance), step: 0.01 });
  guidance.value = settings.guidance;
  const write = (input, words) => {
    const show = () => {
      $(`label[for="${input.id}"] output`).textContent = words();
      input.setAttribute("aria-valuetext", words());
    };
    input.addEventListener("input", show);
    show();
  };
  write(steps, () => `${counts[steps.value]}`);
  write(guidance, () => Number(guidance.value).toFixed(2));
  $$('input[name$="seed"]').forEach((input, number) => {
    input.value = (BigInt(settings.seed) + BigInt(Math.max(0, number - 2))) % SEEDS;
    input.addEventListener("input", () => {
      const fits = /^[0-9]{1,19}$/.test(input.value) && BigInt(input.value) < SEEDS;
      input.setCustomValidity(fits ? "" : "A whole number below 2⁶³ is wanted.");
    });
  });
  for (const button of $$(".new-seed")) {
    const input = $("input", button.parentElement);
    button.setAttribute("aria-label", `New ${$(`label[for="${input.id}"]`).textContent.toLowerCase()}`);
    button.addEventListener("click", () => {
      input.value = newSeed();
      input.setCustomValidity("");
    });
  }
  return { counts, names };
}

async function begin() {
  const network = new Network(), openTab = tabs();
  let model;
  const primary = $$(".primary");
  for (const button of primary) button.disabled = true;
  try {
    model = await network.load();
  } catch (error) {
    say("error", `The network could not be loaded: ${error.message}.`, ["Try again", () => location.reload()]);
    return;
  }
  const { counts, names } = prepare(model);
  for (const button of primary) button.disabled = false;
  say("ready", "Ready.");

  const tool = {
    current: () => $('[name="tool"]:checked').value,
    other: () => ($('[name="tool"]:not(:checked)').checked = true),
  };
  const pad = new Pad($("#pad"), model.image, tool);
  $("#clear").addEventListener("click", () => pad.clear());
  const onto = (pictures) => (row) => {
    pad.load(one(pictures.images, row, model.image));
    $('[name="tool"][value="erase"]').checked = true;
    openTab("complete");
    $("#pad").focus();
    say("ready", "Erase a part of the picture, then let the network complete it.");
  };
  const groups = {};
  for (const [kind, hint] of [["sample", "Your pictures appear here."], ["complete", "What the network makes of your drawing appears here."], ["blend", "The pictures on the way appear here."]]) {
    groups[kind] = new Pictures($(`#pictures-${kind}`), model.image, hint, kind === "blend" ? null : (row) => onto(groups[kind])(row));
  }

  const nameOf = (label) => (label === undefined || label === null ? "" : `, class ${names[label]}`);
  let frames = [];
  const replay = $("#replay-step");
  const showFrame = () => {
    const frame = frames[replay.value];
    if (!frame) return;
    const words = `${replay.value} of ${frames.length - 1}`;
    $('label[for="replay-step"] output').textContent = words;
    replay.setAttribute("aria-valuetext", words);
    groups.sample.show(frame[$('[name="view"]:checked').value]);
  };
  replay.addEventListener("input", showFrame);
  for (const input of $$('[name="view"]')) input.addEventListener("change", showFrame);

  /** Ask for a task, and show its steps and its result. */
  async function run(kind, task, columns, verb) {
    const group = groups[kind], below = $(`#below-${kind}`), count = (task.numbers ?? task.at).length;
    const label = (row, classes) => `Picture ${row + 1} of ${count}${nameOf(classes?.[row])}`;
    const every = [...Array(count).keys()];
    for (const button of primary) button.disabled = true;
    below.hidden = true;
    group.begin(every.map((row) => label(row)), columns);
    const seen = [], { t, moves } = model.steps[task.steps], total = kind === "complete" ? moves.length : t.length;
    if (kind === "sample") $("#replay-sample").hidden = true;
    say("working", `${verb}…`, ["Stop", () => network.stop()]);
    if (group.group.getBoundingClientRect().top > innerHeight * 0.7) group.group.parentElement.scrollIntoView();
    try {
      const done = await network.run(task, ({ step, noisy, guess }) => {
        seen.push({ noisy, guess });
        group.show(seen.at(-1)[kind === "sample" ? $('[name="view"]:checked').value : kind === "complete" ? "guess" : "noisy"]);
        showStep(step, total);
      });
      if (!done) {
        say("ready", "Stopped.");
        return;
      }
      group.show(done.images);
      group.finish(every.map((row) => label(row, done.classes)));
      below.hidden = false;
      if (kind === "sample") {
        frames = seen;
        Object.assign(replay, { max: frames.length - 1, value: frames.length - 1 });
        $("#replay-sample").hidden = false;
        showFrame();
      }
      say("ready", `${count === 1 ? "One picture" : `${count} pictures`} in ${done.seconds.toFixed(1)} seconds.`);
    } catch (error) {
      say("error", `This went wrong: ${error.message}. Try fewer pictures, or load the page again.`);
    } finally {
      for (const button of primary) button.disabled = false;
    }
  }

  const wanted = (form, name = "class") => {
    const value = Number(new FormData(form).get(name) ?? -1);
    return value < 0 ? null : value;
  };
  const numbers = (form) => Array.from({ length: Number(form.elements.count.value) }, (_, number) => number + 1);
  const sampled = $("#form-sample"), completed = $("#form-complete"), blend = $("#form-blend");
  const shared = () => ({ steps: counts[$("#sample-steps").value], guidance: Number($("#sample-guidance").value) });
  const saved = {};

  sampled.addEventListener("submit", (event) => {
    event.preventDefault();
    const { sampler, seed } = sampled.elements;
    const task = { kind: "sample", ...shared(), sampler: sampler.value, class: wanted(sampled), numbers: numbers(sampled), seed: seed.value };
    saved.sample = `pictures-seed-${task.seed}.png`;
    run("sample", task, Math.ceil(Math.sqrt(task.numbers.length)), "Removing noise");
  });
  completed.addEventListener("submit", (event) => {
    event.preventDefault();
    if (pad.full) {
      say("ready", "Nothing is left to fill in: erase a part first.");
      return;
    }
    const task = { kind: "complete", ...shared(), class: wanted(completed), numbers: numbers(completed), seed: completed.elements.seed.value, image: pad.ink, known: pad.known };
    saved.complete = `completed-seed-${task.seed}.png`;
    run("complete", task, Math.ceil(Math.sqrt(task.numbers.length)), "Filling in");
  });
  blend.addEventListener("submit", (event) => {
    event.preventDefault();
    const count = Number(blend.elements.count.value);
    const end = (name) => ({ class: wanted(blend, name), seed: blend.elements[`${name}-seed`].value });
    const task = { kind: "blend", ...shared(), from: end("from"), to: end("to"), at: Array.from({ length: count }, (_, row) => row / (count - 1)) };
    saved.blend = `blend-${task.from.seed}-${task.to.seed}.png`;
    run("blend", task, Math.min(count, 5), "Blending");
  });
  for (const kind of Object.keys(groups)) {
    $(`#below-${kind} .save`).addEventListener("click", () => groups[kind].save(saved[kind]));
  }
}

begin();
