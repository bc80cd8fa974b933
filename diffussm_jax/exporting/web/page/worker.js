// The model, off the page's own thread: loads it once, and draws what the page asks for.

import { sample } from "./sampler.js";

let facts = null;
let session = null;
let runtime = null;

self.onmessage = async ({ data }) => {
  try {
    if (data.kind === "load") {
      facts = data.facts;
      self.postMessage({ kind: "loaded", device: await load(data.device) });
    } else {
      await draw(data);
    }
  } catch (error) {
    self.postMessage({ kind: "failed", reason: String(error?.message ?? error) });
  }
};

/** Load the model for a device, or for the first that there is; returns which. */
async function load(device) {
  const graph = await read("model.onnx");
  if (device !== "cpu" && (await navigator.gpu?.requestAdapter())) {
    try {
      await open("./runtime/ort.webgpu.min.mjs", "webgpu", graph);
      return "WebGPU";
    } catch (error) {
      console.warn(`WebGPU failed, the CPU takes over: ${error.message}`);
    }
  }
  await open("./runtime/ort.wasm.min.mjs", "wasm", graph);
  return "CPU";
}

/** Make a session, and call it once: a device may fail at its first call alone. */
async function open(library, provider, graph) {
  runtime = await import(library);
  // More threads need headers that static hosts do not send.
  runtime.env.wasm.numThreads = 1;
  session = await runtime.InferenceSession.create(graph, { executionProviders: [provider] });
  const { numImages, shape, numTold } = facts;
  const size = shape.reduce((a, b) => a * b, numImages);
  await predict(new Float32Array(size), Array(numTold).fill(1), new Int32Array(numImages));
}

async function read(name) {
  const response = await fetch(name);
  if (!response.ok) {
    throw new Error(`${name} cannot be read: ${response.status} ${response.statusText}`);
  }
  return new Uint8Array(await response.arrayBuffer());
}

/** Call the network for a batch that is at one time. */
async function predict(x, told, labels) {
  const { numImages, shape, numTold, classes } = facts;
  const { Tensor } = runtime;
  const columns = Float32Array.from({ length: numImages * numTold }, (_, i) => told[i % numTold]);
  const inputs = {
    x_t: new Tensor("float32", x, [numImages, ...shape]),
    told: new Tensor("float32", columns, [numImages, numTold]),
  };
  if (classes) {
    inputs.labels = new Tensor("int32", labels, [numImages]);
  }
  const { prediction } = await session.run(inputs);
  return prediction.data;
}

async function draw({ noise, labels, numSteps, scale }) {
  const started = performance.now();
  const onStep = (x, done) => self.postMessage({ kind: "step", done, pixels: toPixels(x) });
  const images = await sample(predict, facts, { noise, labels, numSteps, scale }, onStep);
  const seconds = (performance.now() - started) / 1000;
  self.postMessage({ kind: "drawn", pixels: toPixels(images), seconds });
}

/** [-1, 1] to 0 .. 255, rounded and clipped. */
function toPixels(images) {
  return Uint8ClampedArray.from(images, (value) => (value + 1) * 127.5);
}
