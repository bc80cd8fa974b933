// From noise to images, by the steps that recipe.py computed. Nothing here knows a schedule.

/**
 * Draw a batch of images.
 *
 * @param {(x: Float32Array, told: number[], labels: Int32Array) => Promise<Float32Array>} predict
 *   the network, for the whole batch at one time.
 * @param {object} facts page.json.
 * @param {{noise: Float32Array, labels: Int32Array, numSteps: number, scale: number}} request
 * @param {(x: Float32Array, done: number) => void} onStep gets the images as they emerge.
 * @returns {Promise<Float32Array>} images [b h w c] in [-1, 1].
 */
export async function sample(predict, facts, request, onStep) {
  const path = facts.paths[request.numSteps];
  let x = request.noise;
  let before = null;
  for (const [index, step] of path.entries()) {
    const prediction = await guided(predict, facts, request, step, x);
    const x0 = x.map((value, i) => {
      const estimate = step.x0_from_x * value - step.x0_from_prediction * prediction[i];
      return facts.clip ? Math.min(Math.max(estimate, -1), 1) : estimate;
    });
    const last = before ?? x0;
    x = x.map((value, i) => {
      const extrapolated = x0[i] + step.extrapolation * (x0[i] - last[i]);
      return step.x_from_x * value + step.x_from_x0 * extrapolated;
    });
    before = x0;
    onStep(x, index + 1);
  }
  return x;
}

/** The prediction at a step, moved away from that without labels: u + scale (c - u). */
async function guided(predict, facts, { labels, scale }, step, x) {
  const strength = step.is_guided ? scale : 1;
  if (facts.isToldScale) {
    return predict(x, [...step.told, 4 / strength], labels);
  }
  const conditional = await predict(x, step.told, labels);
  if (strength === 1 || !facts.classes) {
    return conditional;
  }
  const none = labels.map(() => facts.classes.length);
  const unconditional = await predict(x, step.told, none);
  return conditional.map((c, i) => unconditional[i] + strength * (c - unconditional[i]));
}

/** How often the network is called to draw with these steps. */
export function numCalls(facts, numSteps, scale) {
  const isDouble = facts.classes && !facts.isToldScale && scale !== 1;
  const path = facts.paths[numSteps];
  return path.length + (isDouble ? path.filter((step) => step.is_guided).length : 0);
}

/**
 * Standard normal noise [b h w c]. That of an image depends on the seed and its number alone.
 *
 * @param {number} seed an integer, 0 or more.
 * @returns {Float32Array}
 */
export function drawNoise(facts, seed) {
  const size = facts.shape.reduce((a, b) => a * b, 1);
  const noise = new Float32Array(facts.numImages * size);
  for (let image = 0; image < facts.numImages; image++) {
    const uniform = sfc32(seed >>> 0, Math.floor(seed / 2 ** 32), image, 1);
    for (let i = 0; i < size; i += 2) {
      // Box and Muller's pair of normal numbers; 1 - u is never 0.
      const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
      const angle = 2 * Math.PI * uniform();
      noise[image * size + i] = radius * Math.cos(angle);
      if (i + 1 < size) {
        noise[image * size + i + 1] = radius * Math.sin(angle);
      }
    }
  }
  return noise;
}

/** Doty-Humphrey's generator sfc32 (PractRand): uniform numbers in [0, 1) of 32 bits. */
function sfc32(a, b, c, counter) {
  const next = () => {
    const sum = (a + b + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + sum | 0;
    return (sum >>> 0) / 2 ** 32;
  };
  for (let i = 0; i < 15; i++) {
    next(); // mixes the seed
  }
  return next;
}
