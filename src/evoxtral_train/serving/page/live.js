// A recording that is transcribed while it grows, over as many connections as that takes.
//
//   recording  ─────────────────────────────────────────────►  grows whether there is a connection or not
//   connection 1  ├── utterance ──┤    ├── utter✕              lost in the middle of an utterance
//   connection 2                       ├── utterance ──┤ …     begins where nothing was finished yet; its times are shifted

import { RATE } from "./recording.js";

const CHUNK_SAMPLES = RATE / 2;
const UNSENT_BYTES = 2 ** 17; // beyond this the browser's own queue is long enough: about 3 s of audio
const SAFE_S = 1; // sound that the server has received, but not yet called an utterance
const BACK_OFF_MS = [500, 1000, 2000, 4000, 8000, 15000];
const SILENT_MS = 20000; // a connection that answers nothing for this long is lost, although it looks open

let connections = 0; // of all recordings: a continued one begins another numbering of its utterances

export class Live {
  #recording;
  #open; // () -> WebSocket
  #on;
  #socket = null;
  #ready = false; // session.created has come
  #connection;
  #offset; // samples before this connection's first
  #sent; // samples of the recording
  #finishing = false;
  #committed = false;
  #closed = false;
  #finishedS; // up to here nothing needs to be sent again
  #decodedS;
  #unfinished = new Map(); // utterance -> start_s, on the recording's clock
  #failures = 0;
  #retry = null;
  #rest = null; // timer: what the browser's queue has no room for yet
  #watch = null;
  #code = null;

  /**
   * recording: heard from `start` (a sample) on. openSocket: () -> WebSocket. on: {
   *   event(event, connection)  one of the server's evoxtral.* events, its times on the recording's clock
   *   lost(connection)          what that connection has not finished will be heard again
   *   state(name, detail)       connecting | live | finishing | waiting (detail: {seconds, code}) | done
   * }
   */
  constructor(recording, start, openSocket, on) {
    this.#recording = recording;
    this.#open = openSocket;
    this.#on = on;
    this.#finishedS = this.#decodedS = start / RATE;
    addEventListener("online", this.#now);
    this.#connect();
  }

  /** The recording has grown. */
  pump = () => {
    if (!this.#ready || this.#committed || this.#closed) return;
    clearTimeout(this.#rest);
    while (this.#sent < this.#recording.length && this.#socket.bufferedAmount < UNSENT_BYTES) {
      const samples = this.#recording.slice(this.#sent, this.#sent + CHUNK_SAMPLES);
      this.#say({ type: "input_audio_buffer.append", audio: base64(samples) });
      this.#sent += samples.length;
    }
    if (this.#sent < this.#recording.length) {
      this.#rest = setTimeout(this.pump, 50);
    } else if (this.#finishing) {
      this.#committed = true;
      this.#say({ type: "input_audio_buffer.commit", final: true });
    }
  };

  /** No more will be recorded. What was is finished, over a new connection if it must be; then the state is `done`. */
  finish() {
    this.#finishing = true;
    if (this.#ready) this.#on.state("finishing");
    this.pump();
  }

  /** Wait for nothing more. */
  abandon() {
    if (this.#closed) return;
    this.#closed = true;
    removeEventListener("online", this.#now);
    clearTimeout(this.#retry);
    clearTimeout(this.#watch);
    this.#socket?.close();
    this.#on.lost(this.#connection);
    this.#on.state("done");
  }

  #connect() {
    clearTimeout(this.#retry);
    const starts = [...this.#unfinished.values()];
    const resumeS = Math.max(this.#finishedS, starts.length ? Math.min(...starts) : this.#decodedS - SAFE_S);
    this.#offset = this.#sent = Math.round(resumeS * RATE);
    this.#unfinished.clear();
    this.#connection = ++connections;
    this.#ready = this.#committed = false;
    this.#code = null;
    this.#on.state("connecting");
    const socket = this.#open();
    this.#socket = socket;
    socket.onmessage = ({ data }) => this.#socket === socket && this.#hear(JSON.parse(data));
    socket.onclose = () => this.#socket === socket && this.#lose();
    this.#expect();
  }

  /** Something must be answered before long. */
  #expect() {
    clearTimeout(this.#watch);
    this.#watch = setTimeout(() => this.#lose(), SILENT_MS);
  }

  #say(message) {
    this.#socket.send(JSON.stringify(message));
  }

  #hear(message) {
    this.#expect();
    if (message.type === "session.created") {
      this.#ready = true;
      this.#say({ type: "input_audio_buffer.commit" }); // vLLM's dialect: begin
      this.#on.state(this.#finishing ? "finishing" : "live");
      this.pump();
    } else if (message.type === "error") {
      this.#code = { code: message.code };
    } else if (message.type === "evoxtral.ended") {
      if (message.code === null && this.#committed) this.#end();
      else this.#code ??= { code: message.code };
    } else if (message.type.startsWith("evoxtral.")) {
      const event = shifted(message, this.#offset / RATE);
      if (event.type === "evoxtral.utterance.started") this.#unfinished.set(event.utterance, event.start_s);
      if (event.type === "evoxtral.utterance.ended") {
        this.#unfinished.delete(event.utterance);
        this.#finishedS = Math.max(this.#finishedS, event.segment.end_s);
        this.#failures = 0;
      }
      if (event.type === "evoxtral.heard") this.#decodedS = Math.max(this.#decodedS, event.decoded_s);
      this.#on.event(event, this.#connection);
    }
  }

  #end() {
    this.#closed = true;
    removeEventListener("online", this.#now);
    clearTimeout(this.#watch);
    this.#socket.close();
    this.#on.state("done");
  }

  #lose() {
    if (this.#closed) return;
    clearTimeout(this.#watch);
    const socket = this.#socket;
    this.#socket = null;
    socket.close();
    this.#ready = false;
    this.#on.lost(this.#connection);
    const wait_ms = BACK_OFF_MS[Math.min(this.#failures++, BACK_OFF_MS.length - 1)] * (0.8 + 0.4 * Math.random());
    this.#retry = setTimeout(() => this.#connect(), wait_ms);
    this.#on.state("waiting", { seconds: wait_ms / 1000, ...this.#code });
  }

  #now = () => {
    if (!this.#socket && !this.#closed) this.#connect();
  };

  /** Try again at once; for a key that was just given. */
  retry() {
    this.#failures = 0;
    this.#now();
  }
}

/** A copy of a server's event with all its times `offset_s` later. */
function shifted(value, offset_s) {
  if (Array.isArray(value)) return value.map((item) => shifted(item, offset_s));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(
    Object.entries(value).map(([name, item]) =>
      typeof item === "number" && TIMES.has(name) ? [name, item + offset_s] : [name, shifted(item, offset_s)],
    ),
  );
}

const TIMES = new Set(["start_s", "end_s", "at_s", "received_s", "decoded_s"]);

/** Int16Array -> base64 of its little-endian bytes */
function base64(samples) {
  const bytes = new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength);
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(text);
}
