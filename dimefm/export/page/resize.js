// Prepare pixels as open_clip prepares an image with Pillow: the same sums in whole numbers.
//
// Source: Pillow 12, src/libImaging/Resample.c (rows are resized before columns).

const PRECISION_BITS = 22;
const ROUND = 1 << (PRECISION_BITS - 1);

const FILTERS = {
  bilinear: { support: 1, weight: triangle },
  bicubic: { support: 2, weight: cubic },
};

function triangle(x) {
  const distance = Math.abs(x);
  return distance < 1 ? 1 - distance : 0;
}

function cubic(x) {
  const a = -0.5;
  const d = Math.abs(x);
  if (d < 1) {
    return ((a + 2) * d - (a + 3)) * d * d + 1;
  }
  if (d < 2) {
    return (((d - 5) * d + 8) * d - 4) * a;
  }
  return 0;
}

// For each of `size` new places: the first old place that it reads, and the weights from there on.
function windows(oldSize, size, filter) {
  const scale = oldSize / size;
  const filterScale = Math.max(scale, 1);
  const support = filter.support * filterScale;
  const result = [];
  for (let place = 0; place < size; place += 1) {
    const center = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(oldSize, Math.trunc(center + support + 0.5));
    const shares = [];
    let sum = 0;
    for (let old = first; old < end; old += 1) {
      const share = filter.weight((old - center + 0.5) / filterScale);
      shares.push(share);
      sum += share;
    }
    const weights = Int32Array.from(shares, (share) => {
      const scaled = (share / sum) * (1 << PRECISION_BITS);
      return Math.trunc(scaled + (scaled < 0 ? -0.5 : 0.5));
    });
    result.push({ first, weights });
  }
  return result;
}

// Return RGB bytes [height, width, 3] of RGBA bytes.
function rgbOf(image) {
  const { data, width, height } = image;
  const pixels = new Uint8ClampedArray(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4, to += 3) {
    pixels[to] = data[from];
    pixels[to + 1] = data[from + 1];
    pixels[to + 2] = data[from + 2];
  }
  return { pixels, width, height };
}

function resizeRows(image, width, filter) {
  const pixels = new Uint8ClampedArray(width * image.height * 3);
  const places = windows(image.width, width, filter);
  for (let y = 0; y < image.height; y += 1) {
    const row = y * image.width * 3;
    for (let x = 0; x < width; x += 1) {
      const { first, weights } = places[x];
      let from = row + first * 3;
      let red = ROUND;
      let green = ROUND;
      let blue = ROUND;
      for (let k = 0; k < weights.length; k += 1, from += 3) {
        red += image.pixels[from] * weights[k];
        green += image.pixels[from + 1] * weights[k];
        blue += image.pixels[from + 2] * weights[k];
      }
      const to = (y * width + x) * 3;
      pixels[to] = red >> PRECISION_BITS;
      pixels[to + 1] = green >> PRECISION_BITS;
      pixels[to + 2] = blue >> PRECISION_BITS;
    }
  }
  return { pixels, width, height: image.height };
}

function resizeColumns(image, height, filter) {
  const stride = image.width * 3;
  const pixels = new Uint8ClampedArray(stride * height);
  const places = windows(image.height, height, filter);
  const sums = new Int32Array(stride);
  for (let y = 0; y < height; y += 1) {
    const { first, weights } = places[y];
    sums.fill(ROUND);
    for (let k = 0; k < weights.length; k += 1) {
      const row = (first + k) * stride;
      for (let x = 0; x < stride; x += 1) {
        sums[x] += image.pixels[row + x] * weights[k];
      }
    }
    for (let x = 0; x < stride; x += 1) {
      pixels[y * stride + x] = sums[x] >> PRECISION_BITS;
    }
  }
  return { pixels, width: image.width, height };
}

function resized(image, width, height, filter) {
  let result = image;
  if (result.width !== width) {
    result = resizeRows(result, width, filter);
  }
  if (result.height !== height) {
    result = resizeColumns(result, height, filter);
  }
  return result;
}

// Python's round: halves go to the even number.
function round(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest === 0.5) {
    return floor % 2 === 0 ? floor : floor + 1;
  }
  return Math.round(value);
}

function newSize(image, settings) {
  const [height, width] = settings.size;
  if (settings.resize_mode === 'squash') {
    return [height, width];
  }
  if (settings.resize_mode === 'shortest' && height === width) {
    const shorter = Math.min(image.height, image.width);
    return [
      Math.trunc((height * image.height) / shorter),
      Math.trunc((height * image.width) / shorter),
    ];
  }
  const ratios = [image.height / height, image.width / width];
  const ratio = settings.resize_mode === 'shortest' ? Math.min(...ratios) : Math.max(...ratios);
  return [Math.max(1, round(image.height / ratio)), Math.max(1, round(image.width / ratio))];
}

function filterOf(settings) {
  const [height, width] = settings.size;
  if (settings.resize_mode === 'shortest' && height !== width) {
    return FILTERS.bicubic;
  }
  return settings.interpolation === 'bilinear' ? FILTERS.bilinear : FILTERS.bicubic;
}

// Return float32 [3, H, W]: the center of the image, padded where it is too small, normalized.
function centered(image, settings) {
  const [height, width] = settings.size;
  const padTop = Math.floor(Math.max(0, height - image.height) / 2);
  const padLeft = Math.floor(Math.max(0, width - image.width) / 2);
  const top = image.height > height ? round((image.height - height) / 2) : -padTop;
  const left = image.width > width ? round((image.width - width) / 2) : -padLeft;
  const plane = height * width;
  const values = new Float32Array(3 * plane);
  for (let channel = 0; channel < 3; channel += 1) {
    const mean = settings.mean[channel];
    const deviation = settings.std[channel];
    for (let y = 0; y < height; y += 1) {
      const row = y + top;
      for (let x = 0; x < width; x += 1) {
        const column = x + left;
        const isInside =
          row >= 0 && row < image.height && column >= 0 && column < image.width;
        const byte = isInside
          ? image.pixels[(row * image.width + column) * 3 + channel]
          : settings.fill_color;
        values[channel * plane + y * width + x] = (byte / 255 - mean) / deviation;
      }
    }
  }
  return values;
}

// Return the input of the image tower for an ImageData, as `settings` (a preprocessing) ask.
export function prepare(data, settings) {
  const image = rgbOf(data);
  const [height, width] = newSize(image, settings);
  return centered(resized(image, width, height, filterOf(settings)), settings);
}
