// The page: its controls, the canvas, and the worker that draws.

import { drawNoise, numCalls } from "./sampler.js";

const MAX_SEED = 2 ** 32 - 1;
const EVERY_CLASS = "every";

const byId = (id) => document.getElementById(id);
const form = byId("controls");
const canvas = byId("images");
const progress = byId("progress");
const status = byId("status");

const facts = await (await fetch("page.json")).json();
const worker = new Worker("./worker.js", { type: "module" });
let pending = null; // the one question to the worker that it has not answered

/** Ask the worker to load the model or to draw, and wait for it. */
function ask(question) {
  return new Promise((resolve, reject) => {
    pending = { resolve, reject };
    worker.postMessage(question);
  });
}

worker.onmessage = ({ data }) => {
  if (data.pixels) {
    show(data.pixels);
  }
  if (data.kind === "step") {
    progress.value = data.done;
  } else if (data.kind === "failed") {
    pending.reject(new Error(data.reason));
  } else {
    pending.resolve(data);
  }
};
worker.onerror = (event) => pending.reject(new Error(event.message ?? "the worker did not start"));

/** What the model was loaded onto. */
export const loaded = ask({
  kind: "load",
  facts,
  device: new URLSearchParams(location.search).get("device"),
}).then(({ device }) => device);

/**
 * Draw a batch of images and show it, one batch at a time.
 *
 * @param {{seed?: number, noise?: Float32Array, labels: number[], numSteps: number, scale: number}}
 *   request noise, where it is given, is taken in place of the seed's.
 * @returns {Promise<Uint8ClampedArray>} pixels [b h w c].
 */
export async function draw({ seed, noise, labels, numSteps, scale }) {
  const device = await loaded;
  progress.max = facts.paths[numSteps].length;
  progress.value = 0;
  say(`Drawing on the ${device} ...`);
  const { pixels, seconds } = await ask({
    kind: "draw",
    noise: Float32Array.from(noise ?? drawNoise(facts, seed)),
    labels: Int32Array.from(labels),
    numSteps,
    scale,
  });
  const calls = numCalls(facts, numSteps, scale);
  say(
    `${facts.numImages} images in ${seconds.toFixed(2)} s on the ${device}, ` +
      `${calls} ${calls === 1 ? "call" : "calls"} of the network.`,
  );
  return pixels;
}

/** Lay images out in a grid on the canvas, a pixel for each of theirs. */
function show(pixels) {
  const [height, width, channels] = facts.shape;
  const columns = Math.ceil(Math.sqrt(facts.numImages));
  const rows = Math.ceil(facts.numImages / columns);
  // A pixel between images.
  canvas.width = columns * (width + 1) - 1;
  canvas.height = rows * (height + 1) - 1;
  const context = canvas.getContext("2d");
  for (let image = 0; image < facts.numImages; image++) {
    const picture = context.createImageData(width, height);
    for (let i = 0; i < width * height; i++) {
      const from = (image * width * height + i) * channels;
      for (let channel = 0; channel < 3; channel++) {
        picture.data[4 * i + channel] = pixels[from + Math.min(channel, channels - 1)];
      }
      picture.data[4 * i + 3] = 255;
    }
    const [row, column] = [Math.floor(image / columns), image % columns];
    context.putImageData(picture, column * (width + 1), row * (height + 1));
  }
}

function say(text) {
  status.textContent = text;
}

/** What the controls ask for. */
function request() {
  const chosen = form.label.value;
  const num = facts.classes?.length ?? 0;
  const label = (i) => (chosen === EVERY_CLASS ? i % num : Number(chosen));
  return {
    seed: Math.min(Math.max(Math.floor(Number(form.seed.value) || 0), 0), MAX_SEED),
    labels: Array.from({ length: facts.numImages }, (_, i) => (num ? label(i) : 0)),
    numSteps: Number(form.steps.value),
    scale: Number(form.scale.value),
  };
}

function addOption(select, value, text) {
  select.add(new Option(text, value));
}

/** Fill the controls with what this model offers. */
function prepare() {
  document.title = facts.name;
  byId("name").textContent = facts.name;
  byId("trained").textContent = facts.trainedSteps.toLocaleString("en");
  for (const num of Object.keys(facts.paths)) {
    addOption(form.steps, num, num);
  }
  form.steps.value = facts.numSteps;
  // Bounds first: a value outside of them would be moved into them.
  form.scale.min = Math.min(1, facts.scale);
  form.scale.max = facts.maxScale ?? Math.max(8, facts.scale);
  form.scale.step = Number.isInteger(4 * facts.scale) ? 0.25 : 0.01;
  form.scale.value = facts.scale;
  byId("scale-field").hidden = !facts.classes && !facts.isToldScale;
  byId("label-field").hidden = !facts.classes;
  addOption(form.label, EVERY_CLASS, "every class in turn");
  (facts.classes ?? []).forEach((name, index) => addOption(form.label, index, name));
  addOption(form.label, facts.classes?.length ?? 0, "no class");
  byId("scale-value").textContent = form.scale.value;
}

async function submit() {
  setBusy(true);
  try {
    await draw(request());
  } catch (error) {
    say(`This did not work: ${error.message}`);
  }
  setBusy(false);
}

function setBusy(isBusy) {
  form.draw.disabled = isBusy;
  byId("another").disabled = isBusy;
}

prepare();
form.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
form.scale.addEventListener("input", () => {
  byId("scale-value").textContent = form.scale.value;
});
byId("another").addEventListener("click", () => {
  form.seed.value = crypto.getRandomValues(new Uint32Array(1))[0];
  submit();
});
say("Loading the model ...");
submit();
