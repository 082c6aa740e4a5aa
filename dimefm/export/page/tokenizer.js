// CLIP's tokenizer: byte pairs of words in small letters, as open_clip computes them.
//
// Of ftfy, which open_clip runs first, this has: HTML entities by number and the common names,
// ligatures, full width, curly quotes, control characters and NFC. Text in a broken encoding is not
// repaired.

const WORDS = /<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+/giu;
const ENTITIES = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'", nbsp: '\u00a0' };
const LIGATURES = {
  Ĳ: 'IJ', ĳ: 'ij', ŉ: 'ʼn', Ǳ: 'DZ', ǲ: 'Dz', ǳ: 'dz', Ǆ: 'DŽ', ǅ: 'Dž', ǆ: 'dž', Ǉ: 'LJ', ǈ: 'Lj',
  ǉ: 'lj', Ǌ: 'NJ', ǋ: 'Nj', ǌ: 'nj', ﬀ: 'ff', ﬁ: 'fi', ﬂ: 'fl', ﬃ: 'ffi', ﬄ: 'ffl', ﬅ: 'ſt', ﬆ: 'st',
};
const CONTROLS = /[\0-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]/g;

function unescaped(text) {
  return text.replace(/&(#x[0-9a-f]{1,6}|#[0-9]{1,7}|[a-z]{2,4});/gi, (whole, name) => {
    if (name[0] !== '#') {
      return ENTITIES[name] ?? whole;
    }
    const isHexadecimal = name[1].toLowerCase() === 'x';
    const code = isHexadecimal ? parseInt(name.slice(2), 16) : parseInt(name.slice(1), 10);
    return code > 0 && code < 0x110000 ? String.fromCodePoint(code) : whole;
  });
}

export function cleaned(text) {
  const repaired = unescaped(text)
    .replace(/[Ĳĳŉ\u01c4-\u01cc\ufb00-\ufb06]/g, (letter) => LIGATURES[letter] ?? letter)
    .replace(/[\u3000\uff01-\uffef]/g, (letter) => letter.normalize('NFKC'))
    .replace(/[\u02bc\u2018-\u201b]/g, "'")
    .replace(/[\u201c-\u201f]/g, '"')
    .replace(CONTROLS, '')
    .normalize('NFC');
  return unescaped(unescaped(repaired)).trim().replace(/\s+/g, ' ').toLowerCase();
}

// Return the letter by which each byte is written in the vocabulary.
function byteLetters() {
  const isPlain = (byte) =>
    (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  const order = [];
  for (let byte = 0; byte < 256; byte += 1) {
    if (isPlain(byte)) {
      order.push([byte, byte]);
    }
  }
  let next = 256;
  for (let byte = 0; byte < 256; byte += 1) {
    if (!isPlain(byte)) {
      order.push([byte, next]);
      next += 1;
    }
  }
  return order.map(([byte, code]) => [byte, String.fromCharCode(code)]);
}

export class Tokenizer {
  // `merges` is the text of merges.txt: a pair a line, the most frequent first.
  constructor(merges, contextLength) {
    this.contextLength = contextLength;
    this.letters = new Map(byteLetters());
    const vocabulary = [...this.letters.values()];
    vocabulary.push(...vocabulary.map((letter) => `${letter}</w>`));
    this.ranks = new Map();
    for (const line of merges.split('\n')) {
      if (line) {
        this.ranks.set(line, this.ranks.size);
        vocabulary.push(line.replace(' ', ''));
      }
    }
    vocabulary.push('<start_of_text>', '<end_of_text>');
    this.numbers = new Map(vocabulary.map((piece, number) => [piece, number]));
    this.start = vocabulary.length - 2;
    this.end = vocabulary.length - 1;
    this.known = new Map();
    this.bytes = new TextEncoder();
  }

  // Return the numbers of one word.
  word(word) {
    if (word === '<start_of_text>' || word === '<end_of_text>') {
      return [this.numbers.get(word)];
    }
    if (!this.known.has(word)) {
      const letters = Array.from(this.bytes.encode(word), (byte) => this.letters.get(byte));
      letters[letters.length - 1] += '</w>';
      this.known.set(word, this.pieces(letters).map((piece) => this.numbers.get(piece)));
    }
    return this.known.get(word);
  }

  // Join the most frequent pair, everywhere, until no pair is known.
  pieces(letters) {
    let pieces = letters;
    for (;;) {
      let best = Infinity;
      for (let i = 0; i + 1 < pieces.length; i += 1) {
        best = Math.min(best, this.ranks.get(`${pieces[i]} ${pieces[i + 1]}`) ?? Infinity);
      }
      if (best === Infinity) {
        return pieces;
      }
      const joined = [];
      for (let i = 0; i < pieces.length; i += 1) {
        const rank = this.ranks.get(`${pieces[i]} ${pieces[i + 1]}`);
        if (i + 1 < pieces.length && rank === best) {
          joined.push(pieces[i] + pieces[i + 1]);
          i += 1;
        } else {
          joined.push(pieces[i]);
        }
      }
      pieces = joined;
    }
  }

  // Return the numbers of a sentence with those of its start and end, cut to the context length.
  encode(sentence) {
    const numbers = [this.start];
    for (const [word] of cleaned(sentence).matchAll(WORDS)) {
      numbers.push(...this.word(word));
    }
    numbers.push(this.end);
    if (numbers.length > this.contextLength) {
      numbers.length = this.contextLength;
      numbers[this.contextLength - 1] = this.end;
    }
    return numbers;
  }
}
