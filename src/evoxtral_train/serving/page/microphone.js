// The microphone as PCM16 at 16 kHz.

import { RATE } from "./recording.js";

// What a browser takes for noise is what this model listens for: breaths, sighs, whispers.
const AUDIO = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };

export class Microphone {
  #stream;
  #context;
  #worklet;

  /** Asks for the microphone. `hear(Int16Array)` is called every 40 ms until `stop`; `lost()` if the device goes away. */
  static async open(hear, lost) {
    if (!navigator.mediaDevices || !window.AudioWorkletNode) {
      throw new Error("This browser gives the microphone to pages on localhost or https only. Open this page there, or drop a file.");
    }
    const microphone = new Microphone();
    try {
      microphone.#stream = await navigator.mediaDevices.getUserMedia({ audio: AUDIO });
      await microphone.#listen(hear);
    } catch (error) {
      microphone.#close();
      throw new Error(REASONS[error.name] ?? `The microphone did not start: ${error.message}`);
    }
    microphone.#stream.getTracks().forEach((track) => track.addEventListener("ended", lost));
    return microphone;
  }

  async #listen(hear) {
    let source;
    try {
      this.#context = new AudioContext({ sampleRate: RATE });
      source = this.#context.createMediaStreamSource(this.#stream);
    } catch {
      // Firefox resamples no microphone; the worklet does it then.
      await this.#context?.close();
      this.#context = new AudioContext();
      source = this.#context.createMediaStreamSource(this.#stream);
    }
    await this.#context.audioWorklet.addModule(new URL("worklet.js", import.meta.url));
    this.#worklet = new AudioWorkletNode(this.#context, "pcm16", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
    this.#worklet.port.onmessage = ({ data }) => data.length && hear(data);
    source.connect(this.#worklet);
    await this.#context.resume();
  }

  /** Resolves after the last sample was heard. */
  async stop() {
    const { port } = this.#worklet;
    const hear = port.onmessage;
    await new Promise((resolve) => {
      port.onmessage = (message) => (message.data === "flushed" ? resolve() : hear(message));
      port.postMessage("flush");
      setTimeout(resolve, 500); // an audio thread that has died answers nothing
    });
    this.#close();
  }

  #close() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    if (this.#context?.state !== "closed") this.#context?.close();
  }
}

const REASONS = {
  NotAllowedError: "The microphone is blocked. Allow it for this page in the browser's address bar, then press Record again.",
  NotFoundError: "No microphone was found. Plug one in, or drop a file.",
  NotReadableError: "Another program holds the microphone. Close it, then press Record again.",
};
