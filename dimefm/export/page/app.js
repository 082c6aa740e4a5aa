// The page: take a picture or the camera, show the labels by their scores.

import { Model } from './model.js';

const MOST_BARS = 12;
const PAUSE = 400; // milliseconds without a key before new labels are embedded

const element = (id) => document.getElementById(id);
const canvas = document.createElement('canvas');
const context = canvas.getContext('2d', { willReadFrequently: true });

let model;
let last; // the ImageData that the answer is about
let stream;

function say(text) {
  element('status').textContent = text;
}

function pixelsOf(source, width, height) {
  canvas.width = width;
  canvas.height = height;
  context.drawImage(source, 0, 0);
  return context.getImageData(0, 0, width, height);
}

function bar(label, score) {
  const item = document.createElement('li');
  item.dataset.label = label;
  item.dataset.score = score;
  const parts = ['name', 'share', 'track'].map((name) => {
    const part = document.createElement(name === 'track' ? 'div' : 'span');
    part.className = name;
    return part;
  });
  const [name, share, track] = parts;
  name.textContent = label;
  share.textContent = `${(100 * score).toFixed(1)} %`;
  const fill = document.createElement('div');
  fill.className = 'fill';
  fill.style.width = `${100 * score}%`;
  track.append(fill);
  item.append(...parts);
  return item;
}

function show({ scores, milliseconds }) {
  const order = scores.map((_, number) => number).sort((a, b) => scores[b] - scores[a]);
  const shown = order.slice(0, MOST_BARS);
  element('bars').replaceChildren(
    ...shown.map((number) => bar(model.labels[number], scores[number])),
  );
  const left = order.length - shown.length;
  element('more').hidden = left === 0;
  element('more').textContent = `and ${left} more labels with lower scores`;
  element('empty').hidden = true;
  element('time').hidden = false;
  element('time').textContent = `${milliseconds.toFixed(0)} ms per picture`;
  return `${model.labels[order[0]]}, ${(100 * scores[order[0]]).toFixed(0)} %`;
}

async function classify(data, name) {
  last = data;
  const best = show(await model.classify(data));
  if (name !== undefined) {
    element('bars').dataset.picture = name;
    say(`${name}: ${best}`);
  }
}

async function open(file) {
  if (!file || !model) {
    return;
  }
  stopCamera();
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {
      imageOrientation: 'from-image',
      colorSpaceConversion: 'none',
      premultiplyAlpha: 'none',
    });
  } catch {
    say(`${file.name || 'The picture'}: this browser cannot read it as an image.`);
    return;
  }
  const preview = element('preview');
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.alt = file.name || 'Pasted picture';
  preview.hidden = false;
  element('hint').hidden = true;
  element('stage').classList.add('full');
  await classify(pixelsOf(bitmap, bitmap.width, bitmap.height), file.name || 'Pasted picture');
}

function stopCamera() {
  if (!stream) {
    return;
  }
  stream.getTracks().forEach((track) => track.stop());
  stream = undefined;
  element('camera').hidden = true;
  element('camera').srcObject = null;
  element('hint').hidden = false;
  element('stage').classList.remove('full');
  element('webcam').setAttribute('aria-pressed', 'false');
  element('webcam').textContent = 'Use the camera';
}

async function startCamera() {
  const camera = element('camera');
  element('webcam').disabled = true; // until the user has answered
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
  } catch (error) {
    say(`The camera cannot be used: ${error.message}`);
    return;
  } finally {
    element('webcam').disabled = false;
  }
  element('preview').hidden = true;
  element('hint').hidden = true;
  element('stage').classList.add('full');
  camera.hidden = false;
  camera.srcObject = stream;
  element('webcam').setAttribute('aria-pressed', 'true');
  element('webcam').textContent = 'Stop the camera';
  say('The camera is on.');
  await camera.play();
  while (stream) {
    await enqueue(async () => {
      if (stream && camera.videoWidth) {
        await classify(pixelsOf(camera, camera.videoWidth, camera.videoHeight));
      }
    });
    await new Promise((resume) => requestAnimationFrame(resume));
  }
  say('The camera is off.');
}

function labelsInField() {
  const lines = element('names').value.split('\n').map((line) => line.trim());
  return [...new Set(lines.filter(Boolean))];
}

async function useLabels() {
  const labels = labelsInField();
  const template = element('template').value;
  let fault = '';
  if (labels.length === 0) {
    fault = 'Write at least one label.';
  } else if (!/\{(label)?\}/.test(template)) {
    fault = 'The sentence needs {} where the label goes.';
  }
  element('fault').textContent = fault;
  if (fault) {
    return;
  }
  await model.setLabels(labels, template);
  element('labels').dataset.used = labels.join('\n');
  if (last && !stream) {
    await classify(last, element('bars').dataset.picture);
  }
}

// Run one piece of work after another: a session of onnxruntime does one thing at a time.
let queue = Promise.resolve();
function enqueue(work) {
  queue = queue.then(work).catch((error) => say(`Something failed: ${error.message}`));
  return queue;
}

function listen() {
  const stage = element('stage');
  element('choose').addEventListener('click', () => element('file').click());
  element('file').addEventListener('change', (event) => {
    const [file] = event.target.files;
    enqueue(() => open(file));
    event.target.value = '';
  });
  for (const name of ['dragenter', 'dragover']) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      stage.classList.add('over');
    });
  }
  for (const name of ['dragleave', 'drop']) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      stage.classList.remove('over');
    });
  }
  document.addEventListener('drop', (event) => {
    const [file] = event.dataTransfer.files;
    enqueue(() => open(file));
  });
  document.addEventListener('paste', (event) => {
    const [file] = event.clipboardData.files;
    if (file) {
      enqueue(() => open(file));
    }
  });
  element('webcam').addEventListener('click', () => {
    if (stream) {
      stopCamera();
    } else {
      startCamera();
    }
  });
  let waiting;
  const edited = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => enqueue(useLabels), PAUSE);
  };
  element('names').addEventListener('input', edited);
  element('template').addEventListener('input', edited);
}

async function begin() {
  model = await Model.load(say);
  const { page } = model;
  element('model').textContent = page.description;
  if (model.text) {
    element('names').value = page.labels.join('\n');
    element('template').value = page.template;
    element('labels').hidden = false;
    await useLabels();
  }
  listen();
  element('choose').disabled = false;
  element('webcam').disabled = !navigator.mediaDevices;
  say('Ready.');
}

begin().catch((error) => say(`The model cannot be loaded: ${error.message}`));
