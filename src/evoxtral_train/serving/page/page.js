// What the buttons do.

import { json, save, srt, txt } from "./downloads.js";
import { Live } from "./live.js";
import { Microphone } from "./microphone.js";
import { createPlayer } from "./player.js";
import { RATE, Recording, toPcm16 } from "./recording.js";
import { Transcript } from "./transcript.js";
import { TranscriptView, clock } from "./view.js";

const LONGEST_DRAWN_BYTES = 60 * 2 ** 20; // a longer file is not decoded here: its waveform stays flat
const $ = (id) => document.getElementById(id);
const address = (path) => new URL(path, document.baseURI);

let apiKey = sessionStorage.getItem("evoxtral-key");
let groups = {}; // tag -> group
let hearsLive = true; // or the server transcribes whole recordings only
let recording = new Recording();
let transcript = new Transcript();
let microphone = null;
let live = null;
let upload = null; // AbortController
let source = null; // null | "microphone" | "file"
let name = "evoxtral";
let saved = true; // or nothing is there to be saved

const view = new TranscriptView($("transcript"), $("announcer"), (at_s) => player.seek(at_s));
const player = await createPlayer(
  {
    root: $("player"), waveform: $("waveform"), transport: $("transport"), audio: $("audio"), missing: $("no-waveform"),
    play: $("play"), position: $("position"), duration: $("duration"),
  },
  (at_s, playing) => view.playing(playing ? at_s : null),
);
view.show(transcript);

// --- Recording

async function record() {
  if (source === "file" && !startOver()) return;
  notice(null);
  setRecord("starting");
  const start = recording.length;
  try {
    microphone = await Microphone.open(hear, () => stop("The microphone was unplugged. What it heard is kept."));
  } catch (error) {
    setRecord("idle");
    notice(error.message);
    return;
  }
  if (source === null) name = `evoxtral-${new Date().toISOString().slice(0, 19).replace(/[:T]/g, "-")}`;
  source = "microphone";
  saved = false;
  player.unload();
  if (hearsLive) live = new Live(recording, start, openSocket, { event: heard, lost: forget, state: connection });
  setRecord("recording");
  if (!live) connectionText("live", "Recording");
  showParts();
  redraw();
}

function hear(samples) {
  recording.append(samples);
  live?.pump(); // the first samples may come before `live`
}

async function stop(reason = null) {
  if (!microphone) return;
  const stopping = microphone;
  microphone = null;
  setRecord("finishing");
  await stopping.stop();
  notice(reason);
  if (live) live.finish();
  else await transcribeRecording();
  showRecording();
}

/** For a server that does not hear while people speak: the whole recording, again if it was continued. */
async function transcribeRecording() {
  const { threshold } = transcript;
  transcript = new Transcript(groups);
  transcript.threshold = threshold;
  view.show(transcript);
  await send(new File([recording.wav()], `${name}.wav`), "this recording");
}

function openSocket() {
  const url = address("v1/realtime?events=evoxtral&rate=" + RATE);
  url.protocol = url.protocol.replace("http", "ws");
  return new WebSocket(url, apiKey ? ["realtime", `openai-insecure-api-key.${apiKey}`] : []);
}

function heard(event, number) {
  if (event.type === "evoxtral.heard") showLag(recording.seconds - event.decoded_s);
  const utterance = transcript.apply(event, number);
  if (!utterance) return;
  view.changed(utterance);
  if (utterance.ended) announce(utterance);
  if (event.type === "evoxtral.tag" || utterance.ended) marksChanged();
  showParts();
}

function announce(utterance) {
  const text = transcript.merged(utterance);
  if (text) view.announce(text);
}

function forget(number) {
  view.remove(transcript.drop(number));
  marksChanged();
}

function connection(state, detail = {}) {
  const waiting = () => {
    const seconds = Math.ceil(detail.seconds);
    if (detail.code === "server_full") return `The server is full. Trying again in ${seconds} s`;
    return `Connection lost. Trying again in ${seconds} s${microphone ? "; still recording" : ""}`;
  };
  const texts = { connecting: "Connecting …", live: "Listening", finishing: "Finishing …", done: "Ready" };
  $("connection").dataset.state = state;
  $("connection").textContent = texts[state] ?? waiting();
  if (state === "waiting") checkKey();
  if (state === "done") {
    live = null;
    setRecord("idle");
    showRecording();
  }
}

// --- Files

async function open(file) {
  if (microphone || live || upload) return notice("One at a time: stop first, then open the file.");
  if (!startOver()) return;
  source = "file";
  name = file.name.replace(/\.[^.]*$/, "") || "evoxtral";
  saved = false;
  await send(file, file.name, drawFile(file));
}

/** Shows what the server heard in a whole recording. */
async function send(file, title, drawn = null) {
  upload = new AbortController();
  setRecord("uploading");
  connectionText("finishing", `Transcribing ${title} …`);
  const form = new FormData();
  form.append("file", file);
  try {
    const [answer] = await Promise.all([
      fetch(address("transcribe"), { method: "POST", body: form, headers: authorization(), signal: upload.signal }),
      drawn,
    ]);
    if (answer.status === 401) askKey();
    if (!answer.ok) throw new Error(await reason(answer));
    const content = await answer.json();
    transcript.duration_s = content.duration_s;
    for (const segment of content.segments) transcript.addSegment(segment, content.words);
    for (const utterance of transcript.utterances) {
      view.changed(utterance);
      announce(utterance);
    }
    if (!transcript.utterances.length) notice(`Nothing was heard in ${title}.`);
  } catch (error) {
    if (error.name !== "AbortError") notice(`${title} was not transcribed: ${error.message}`);
  }
  upload = null;
  setRecord("idle");
  connectionText("done", "Ready");
  redraw();
  showParts();
}

/** Shows and plays the file, as far as the browser can. */
async function drawFile(file) {
  load(file);
  redraw();
  if (file.size > LONGEST_DRAWN_BYTES) return;
  try {
    const decoded = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
    const mono = new Float32Array(decoded.length);
    for (let channel = 0; channel < decoded.numberOfChannels; channel++) {
      decoded.getChannelData(channel).forEach((sample, i) => (mono[i] += sample / decoded.numberOfChannels));
    }
    recording.append(toPcm16(mono));
    redraw();
  } catch {
    // A format that this browser does not know. The server may.
  }
}

async function reason(answer) {
  try {
    const { error, detail } = await answer.json();
    return error?.message ?? error ?? detail ?? `HTTP ${answer.status}`;
  } catch {
    return `HTTP ${answer.status}`;
  }
}

// --- The server

const authorization = () => (apiKey ? { Authorization: `Bearer ${apiKey}` } : {});

async function greet() {
  try {
    const answer = await fetch(address("health"), { headers: authorization() });
    const { model, base, tags, live: isLive } = await answer.json();
    hearsLive = isLive;
    $("whole").hidden = hearsLive;
    $("lag").parentElement.hidden = !hearsLive;
    const isPath = /^[./]|^data\//.test(base);
    $("model").textContent = `${model} on ${isPath ? base.split("/").at(-1) : base}`;
    groups = tags;
    transcript.learn(groups);
  } catch {
    connectionText("waiting", "The server does not answer");
  }
  await checkKey();
}

/** A WebSocket does not say why it was refused; this does. */
async function checkKey() {
  const answer = await fetch(address("v1/models"), { headers: authorization() }).catch(() => null);
  if (answer?.status === 401) askKey();
}

function askKey() {
  if (!$("key").hidden) return;
  $("key").hidden = false;
  $("key-value").focus();
}

$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey = $("key-value").value.trim();
  sessionStorage.setItem("evoxtral-key", apiKey);
  $("key").hidden = true;
  notice(null);
  live?.retry();
  greet();
  $("record").focus();
});

// --- What is shown

let soundUrl = null;

/** Gives the player a Blob, and the browser back the memory of the one before. */
function load(sound) {
  const before = soundUrl;
  soundUrl = URL.createObjectURL(sound);
  player.load(soundUrl);
  if (before) URL.revokeObjectURL(before);
}

function showRecording() {
  if (source === "microphone" && recording.length) load(recording.wav());
  redraw();
}

/** Draws the waveform and its markers. */
function redraw() {
  if (source === "microphone") transcript.duration_s = recording.seconds;
  const seconds = Math.max(transcript.duration_s, recording.seconds);
  player.draw(recording.peaks, seconds, Boolean(microphone));
  marksChanged();
  showParts();
}

let marks = null;
function marksChanged() {
  marks ??= setTimeout(() => {
    marks = null;
    player.mark(transcript.tags.filter((tag) => transcript.shows(tag)));
  }, 60);
}

setInterval(() => {
  if (!microphone) return;
  $("clock").textContent = clock(recording.seconds);
  redraw();
}, 250);

function showParts() {
  const any = transcript.utterances.length > 0;
  const busy = Boolean(microphone || live || upload);
  $("empty").hidden = source !== null;
  $("controls").hidden = !transcript.tags.length;
  $("downloads").hidden = busy || (!any && !recording.length);
  for (const button of $("downloads").querySelectorAll("button")) {
    button.disabled = button.dataset.format === "wav" ? !recording.length : !any;
  }
  $("clear").hidden = source === null || busy;
  $("meters").hidden = !live && !microphone;
}

function showLag(seconds) {
  $("lag").value = seconds;
  $("lag-value").textContent = `${Math.max(0, seconds).toFixed(1)} s`;
}

function setRecord(state) {
  const labels = {
    idle: source === "microphone" ? "Continue" : "Record", starting: "Starting …", recording: "Stop", finishing: "Do not wait",
    uploading: "Cancel",
  };
  $("record").dataset.state = state;
  $("record-label").textContent = labels[state];
  $("record").disabled = state === "starting";
  $("file").disabled = !["idle"].includes(state);
  $("clock").textContent = clock(recording.seconds);
  showParts();
}

function notice(text) {
  $("notice").hidden = !text;
  $("notice").textContent = text ?? "";
}

function connectionText(state, text) {
  $("connection").dataset.state = state;
  $("connection").textContent = text;
}

/** Returns whether the page is empty now. */
function startOver() {
  if (!saved && transcript.utterances.length && !confirm("Start over? What was heard has not been downloaded.")) return false;
  recording = new Recording();
  const { threshold } = transcript;
  transcript = new Transcript(groups);
  transcript.threshold = threshold;
  source = null;
  saved = true;
  view.show(transcript);
  player.unload();
  notice(null);
  setRecord("idle");
  return true;
}

function setThreshold() {
  transcript.threshold = $("threshold").value / 100;
  const text = `${$("threshold").value}% sure`;
  $("threshold-value").textContent = text;
  $("threshold").setAttribute("aria-valuetext", text);
  const hidden = transcript.tags.filter((tag) => !transcript.shows(tag)).length;
  $("hidden-tags").textContent = hidden ? `${hidden} hidden` : "";
  view.allChanged();
  marksChanged();
}

// --- Buttons

$("record").addEventListener("click", () => {
  if (microphone) stop();
  else if (live) live.abandon();
  else if (upload) upload.abort();
  else record();
});
$("clear").addEventListener("click", () => startOver() && $("record").focus());
$("threshold").addEventListener("input", setThreshold);
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (file) open(file);
});
$("downloads").addEventListener("click", ({ target }) => {
  const format = target.closest("button")?.dataset.format;
  if (!format) return;
  const make = {
    txt: () => [txt(transcript)], srt: () => [srt(transcript), "application/x-subrip"], json: () => [json(transcript), "application/json"],
    wav: () => [recording.wav()],
  };
  const [content, type] = make[format]();
  save(content, `${name}.${format}`, type);
  saved = true;
});

for (const type of ["dragenter", "dragover"]) {
  addEventListener(type, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
}
addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  if (file) open(file);
});
addEventListener("beforeunload", (event) => {
  if (microphone || live) event.preventDefault();
});

setRecord("idle"); // until here, buttons would have done nothing
greet();
