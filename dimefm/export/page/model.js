// The model: two graphs in onnxruntime-web, or one graph and the embeddings of fixed labels.

import * as ort from './ort/ort.wasm.min.mjs';
import { prepare } from './resize.js';
import { Tokenizer } from './tokenizer.js';

ort.env.wasm.numThreads = 1; // more need headers that a plain server does not send
ort.env.wasm.wasmPaths = new URL('./ort/', import.meta.url).href;
ort.env.logLevel = 'error';

async function get(name) {
  const answer = await fetch(new URL(name, import.meta.url));
  if (!answer.ok) {
    throw new Error(`${name}: ${answer.status} ${answer.statusText}`);
  }
  return answer;
}

async function graph(name) {
  const bytes = await (await get(name)).arrayBuffer();
  return ort.InferenceSession.create(new Uint8Array(bytes), { executionProviders: ['wasm'] });
}

// Return rows of length 1 from the numbers of N rows.
function unitRows(values, count) {
  const width = values.length / count;
  const rows = [];
  for (let row = 0; row < count; row += 1) {
    const numbers = values.slice(row * width, (row + 1) * width);
    let sum = 0;
    for (const number of numbers) {
      sum += number * number;
    }
    const length = Math.sqrt(sum) || 1;
    rows.push(numbers.map((number) => number / length));
  }
  return rows;
}

function softmax(scores) {
  const largest = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

function sigmoid(score) {
  return 1 / (1 + Math.exp(-score));
}

export class Model {
  static async load(onStep) {
    const page = await (await get('page.json')).json();
    const model = new Model();
    model.page = page;
    model.facts = (await (await get('config.json')).json()).dimefm;
    onStep('Loading the image model …');
    model.image = await graph(page.image_graph);
    if (!page.text_graph) {
      const labels = await (await get('labels.json')).json();
      model.labels = labels.labels;
      model.rows = labels.embeddings.map((row) => Float32Array.from(row));
      return model;
    }
    onStep('Loading the text model …');
    const merges = await (await get('merges.txt')).text();
    model.tokenizer = new Tokenizer(merges, model.facts.text_cfg.context_length);
    model.text = await graph(page.text_graph);
    return model;
  }

  // Embed the sentences of new labels.
  async setLabels(labels, template) {
    const sentences = labels.map((label) => template.replaceAll(/\{(label)?\}/g, () => label));
    const tokens = sentences.map((sentence) => this.tokenizer.encode(sentence));
    const longest = Math.max(...tokens.map((numbers) => numbers.length));
    const length = this.facts.any_length ? longest : this.tokenizer.contextLength;
    const values = new BigInt64Array(labels.length * length);
    tokens.forEach((numbers, row) => {
      numbers.forEach((number, place) => {
        values[row * length + place] = BigInt(number);
      });
    });
    const input = new ort.Tensor('int64', values, [labels.length, length]);
    const { text_embeds: rows } = await this.text.run({ input_ids: input });
    this.rows = unitRows(rows.data, labels.length);
    this.labels = labels;
  }

  // Return {scores, milliseconds}: the share of each label for the pixels of an ImageData.
  async classify(data) {
    const started = performance.now();
    const settings = this.facts.preprocess;
    const bias = this.facts.logit_bias;
    const [height, width] = settings.size;
    const pixels = prepare(data, settings);
    const input = new ort.Tensor('float32', pixels, [1, 3, height, width]);
    const { image_embeds: output } = await this.image.run({ pixel_values: input });
    const [image] = unitRows(output.data, 1);
    const logits = this.rows.map((row) => {
      let cosine = 0;
      for (let i = 0; i < row.length; i += 1) {
        cosine += row[i] * image[i];
      }
      return this.facts.logit_scale * cosine + (bias ?? 0);
    });
    const hasBias = bias !== null; // a SigLIP, which scores each label alone
    const scores = hasBias ? logits.map(sigmoid) : softmax(logits);
    return { scores, milliseconds: performance.now() - started };
  }
}
