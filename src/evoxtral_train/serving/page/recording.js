// What the page has recorded: PCM16 mono at 16 kHz, from the first sample to the last. Reconnecting, playback and WAV read it.

export const RATE = 16000;
const PEAK_SAMPLES = RATE / 50; // one bar of the waveform for 20 ms
const BLOCK_SAMPLES = 30 * RATE;

export class Recording {
  #blocks = [];
  peaks = []; // the loudest sample of each 20 ms, 0 to 1
  length = 0; // samples

  get seconds() {
    return this.length / RATE;
  }

  /** samples: Int16Array */
  append(samples) {
    for (let done = 0; done < samples.length; ) {
      const start = this.length % BLOCK_SAMPLES;
      if (start === 0) this.#blocks.push(new Int16Array(BLOCK_SAMPLES));
      const part = samples.subarray(done, done + BLOCK_SAMPLES - start);
      this.#blocks.at(-1).set(part, start);
      for (let i = 0; i < part.length; i++) {
        const bar = Math.floor((this.length + i) / PEAK_SAMPLES);
        this.peaks[bar] = Math.max(this.peaks[bar] ?? 0, Math.abs(part[i]) / 32768);
      }
      this.length += part.length;
      done += part.length;
    }
  }

  /** Int16Array of the samples from `start` to `end`. */
  slice(start, end) {
    const samples = new Int16Array(Math.max(0, Math.min(end, this.length) - start));
    for (let done = 0; done < samples.length; ) {
      const at = start + done;
      const within = at % BLOCK_SAMPLES;
      const part = this.#blocks[Math.floor(at / BLOCK_SAMPLES)].subarray(within, within + samples.length - done);
      samples.set(part, done);
      done += part.length;
    }
    return samples;
  }

  /** Blob: a WAV file. */
  wav() {
    const header = new DataView(new ArrayBuffer(44));
    const text = (at, letters) => [...letters].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0)));
    const bytes = 2 * this.length;
    text(0, "RIFF");
    header.setUint32(4, 36 + bytes, true);
    text(8, "WAVEfmt ");
    header.setUint32(16, 16, true);
    header.setUint16(20, 1, true); // PCM
    header.setUint16(22, 1, true); // channels
    header.setUint32(24, RATE, true);
    header.setUint32(28, 2 * RATE, true); // bytes per second
    header.setUint16(32, 2, true); // bytes per sample
    header.setUint16(34, 16, true); // bits
    text(36, "data");
    header.setUint32(40, bytes, true);
    const blocks = this.#blocks.map((block, i) => block.subarray(0, Math.min(BLOCK_SAMPLES, this.length - i * BLOCK_SAMPLES)));
    return new Blob([header, ...blocks], { type: "audio/wav" });
  }
}

/** float32 [samples] -> Int16Array */
export function toPcm16(samples) {
  return Int16Array.from(samples, (sample) => Math.round(32767 * Math.max(-1, Math.min(1, sample))));
}
