// Runs in the audio thread: float32 at the context's rate -> PCM16 at 16 kHz, 40 ms at a time.

const RATE = 16000;
const CHUNK_SAMPLES = RATE / 25;
const HALF_WIDTH = 16; // zero crossings of the low-pass filter on each side

class Pcm16 extends AudioWorkletProcessor {
  #chunk = new Int16Array(CHUNK_SAMPLES);
  #filled = 0;
  #resample = sampleRate === RATE ? (samples) => samples : resampler(sampleRate);
  #open = true;

  constructor() {
    super();
    this.port.onmessage = () => {
      this.#open = false;
      this.#send();
      this.port.postMessage("flushed");
    };
  }

  process([[samples]]) {
    if (this.#open && samples) {
      for (const sample of this.#resample(samples)) {
        this.#chunk[this.#filled++] = Math.round(32767 * Math.max(-1, Math.min(1, sample)));
        if (this.#filled === CHUNK_SAMPLES) this.#send();
      }
    }
    return this.#open;
  }

  #send() {
    this.port.postMessage(this.#chunk.slice(0, this.#filled));
    this.#filled = 0;
  }
}

/** A function from the next samples at `rate` to the next samples at 16 kHz: a windowed sinc, 1 ms late. */
function resampler(rate) {
  const ratio = rate / RATE;
  const width = Math.ceil(HALF_WIDTH * Math.max(1, ratio));
  const cutoff = 0.95 * Math.min(1, 1 / ratio);
  const weight = (x) => {
    if (Math.abs(x) >= width) return 0;
    const sinc = x === 0 ? 1 : Math.sin(Math.PI * cutoff * x) / (Math.PI * cutoff * x);
    return cutoff * sinc * (0.5 + 0.5 * Math.cos((Math.PI * x) / width));
  };
  let past = new Float32Array(2 * width);
  let at = width; // of the next output sample, in `past`
  return (samples) => {
    const input = new Float32Array(past.length + samples.length);
    input.set(past);
    input.set(samples, past.length);
    const output = [];
    for (; at + width < input.length; at += ratio) {
      let sum = 0;
      for (let i = Math.ceil(at - width); i < at + width; i++) sum += input[i] * weight(at - i);
      output.push(sum);
    }
    const done = Math.max(0, Math.floor(at - width));
    past = input.slice(done);
    at -= done;
    return output;
  };
}

registerProcessor("pcm16", Pcm16);
