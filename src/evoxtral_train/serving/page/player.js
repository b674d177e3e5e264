// Playback, with a waveform and the tags on it where wavesurfer.js is installed, and an audio element's own controls where it is not.

import { clock, element } from "./view.js";
import { isUnsure } from "./transcript.js";

const SHORTEST_S = 20; // what a growing recording is drawn on, so that its first seconds do not fill the page
const HEIGHT_PX = 132;

export async function createPlayer(parts, onTime) {
  try {
    const [{ default: WaveSurfer }, { default: Regions }, { default: Timeline }] = await Promise.all(
      ["wavesurfer", "regions", "timeline"].map((name) => import(`./vendor/${name}.esm.js`)),
    );
    return new WaveformPlayer(parts, onTime, { WaveSurfer, Regions, Timeline });
  } catch {
    return new PlainPlayer(parts, onTime);
  }
}

class PlainPlayer {
  constructor({ root, waveform, transport, audio, missing }, onTime) {
    this.root = root;
    this.audio = audio;
    waveform.hidden = transport.hidden = true;
    missing.hidden = false;
    audio.controls = true;
    audio.addEventListener("timeupdate", () => onTime(audio.currentTime, !audio.paused));
  }

  /** peaks: the loudest sample of each stretch of equal length, 0 to 1. */
  draw() {
    this.root.hidden = false;
    this.audio.hidden = !this.audio.src;
  }

  mark() {}

  /** Playback of `url`, which lasts duration_s. */
  load(url) {
    this.audio.src = url;
    this.audio.hidden = false;
  }

  unload() {
    this.audio.pause();
    this.audio.removeAttribute("src");
    this.audio.load();
    this.root.hidden = true;
  }

  seek(at_s) {
    if (!this.audio.src) return;
    this.audio.currentTime = at_s;
    this.audio.play().catch(() => {});
  }
}

class WaveformPlayer {
  #parts;
  #slider; // the part that scrolls, which therefore has the focus
  #surfer;
  #regions;
  #duration_s = 0;
  #drawn_s = 0;
  #markers = new Map(); // tag -> region

  constructor(parts, onTime, { WaveSurfer, Regions, Timeline }) {
    this.#parts = parts;
    const { waveform, audio, play } = parts;
    audio.controls = false;
    audio.hidden = true;
    this.#regions = Regions.create();
    const holder = element("div");
    this.#surfer = WaveSurfer.create({
      container: holder,
      media: audio,
      height: HEIGHT_PX,
      barWidth: 3, barGap: 2, barRadius: 3, barAlign: "bottom", barHeight: 0.55, barMinHeight: 2,
      minPxPerSec: 24,
      cursorWidth: 2,
      dragToSeek: true,
      hideScrollbar: false,
      ...this.#colours(),
      plugins: [this.#regions, Timeline.create({ height: 18, formatTimeCallback: clock, secondaryLabelOpacity: 0.7 })],
    });
    const root = holder.firstElementChild.shadowRoot;
    adoptStyles(root);
    this.#slider = root.querySelector(".scroll");
    const slider = { role: "slider", tabindex: 0, "aria-label": "Position in the recording", "aria-valuemin": 0, "aria-valuenow": 0 };
    for (const [name, value] of Object.entries(slider)) this.#slider.setAttribute(name, value);
    waveform.append(holder);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.#surfer.setOptions(this.#colours());
      const tags = [...this.#markers.keys()];
      this.mark([]);
      this.mark(tags);
    });

    const tick = (at_s) => {
      parts.position.textContent = clock(at_s);
      this.#slider.setAttribute("aria-valuenow", at_s.toFixed(1));
      this.#slider.setAttribute("aria-valuetext", `${clock(at_s)} of ${clock(this.#duration_s)}`);
      onTime(at_s, this.#surfer.isPlaying());
    };
    this.#surfer.on("timeupdate", tick);
    for (const event of ["play", "pause"]) {
      this.#surfer.on(event, () => {
        const playing = this.#surfer.isPlaying();
        play.setAttribute("aria-label", playing ? "Pause" : "Play");
        play.dataset.state = playing ? "playing" : "paused";
        onTime(this.#surfer.getCurrentTime(), playing);
      });
    }
    play.addEventListener("click", () => this.#surfer.playPause());
    this.#slider.addEventListener("keydown", (event) => this.#key(event));
    this.#regions.on("region-clicked", (region, event) => {
      event.stopPropagation();
      this.seek(region.start);
    });
  }

  #key(event) {
    const at_s = this.#surfer.getCurrentTime();
    const to_s = {
      ArrowRight: at_s + 1, ArrowUp: at_s + 1, ArrowLeft: at_s - 1, ArrowDown: at_s - 1,
      PageUp: at_s + 10, PageDown: at_s - 10, Home: 0, End: this.#duration_s,
    }[event.key];
    if (to_s !== undefined) this.#surfer.setTime(Math.max(0, Math.min(this.#duration_s, to_s)));
    else if (event.key === " " || event.key === "Enter") this.#surfer.playPause();
    else return;
    event.preventDefault();
  }

  #colours() {
    const style = getComputedStyle(this.#parts.root);
    return {
      waveColor: style.getPropertyValue("--wave"),
      progressColor: style.getPropertyValue("--accent"),
      cursorColor: style.getPropertyValue("--ink"),
    };
  }

  draw(peaks, duration_s, growing = false) {
    const { root, transport, duration } = this.#parts;
    root.hidden = false;
    transport.hidden = growing;
    this.#duration_s = duration_s;
    duration.textContent = clock(duration_s);
    this.#slider.setAttribute("aria-valuemax", duration_s.toFixed(1));
    this.#drawn_s = growing ? Math.max(duration_s, SHORTEST_S) : Math.max(duration_s, 0.1);
    const bars = Float32Array.from({ length: Math.max(2, Math.round((peaks.length * this.#drawn_s) / Math.max(duration_s, 0.02))) }, (_, i) => peaks[i] ?? 0);
    const loudest = bars.reduce((most, bar) => Math.max(most, bar), 0.1);
    const url = growing ? "" : this.#parts.audio.src;
    this.#surfer.load(url, [bars.map((bar) => bar / loudest)], this.#drawn_s).catch(() => {}); // a newer one has come
    if (growing) this.#surfer.setScrollTime(duration_s);
  }

  /** A marker for each tag whose time is known. */
  mark(tags) {
    const timed = new Set(tags.filter(({ at_s }) => at_s !== null));
    for (const [tag, region] of this.#markers) {
      if (timed.has(tag)) continue;
      region.remove();
      this.#markers.delete(tag);
    }
    const style = getComputedStyle(this.#parts.root);
    for (const tag of timed) {
      if (this.#markers.has(tag)) continue;
      const label = element("span", { textContent: tag.tag, title: `${tag.tag} at ${clock(tag.at_s)}` });
      const color = style.getPropertyValue(`--${tag.group}`) || style.getPropertyValue("--other");
      label.style.backgroundColor = style.getPropertyValue(`--${tag.group}-soft`) || style.getPropertyValue("--other-soft");
      label.style.color = label.style.borderColor = color;
      this.#markers.set(tag, this.#regions.addRegion({ start: tag.at_s, content: label, color, drag: false, resize: false }));
    }
    const width = this.#surfer.getWrapper().clientWidth;
    for (const [tag, { content }] of this.#markers) {
      const end = (tag.at_s / this.#drawn_s) * width + 8 * tag.tag.length + 20; // of a label to the right of its line
      content.setAttribute("part", `label ${end > width ? "left" : "right"} ${isUnsure(tag) ? "unsure" : ""}`);
    }
  }

  load(url) {
    this.#parts.audio.src = url;
    this.#parts.play.disabled = false;
  }

  unload() {
    const { audio, play, root } = this.#parts;
    this.#surfer.pause();
    audio.removeAttribute("src");
    audio.load();
    this.mark([]);
    play.disabled = true;
    root.hidden = true;
  }

  seek(at_s) {
    this.#surfer.setTime(at_s);
    if (this.#parts.audio.src) this.#surfer.play().catch(() => {});
  }
}

/** wavesurfer writes a style element, which the page's content policy forbids. Not yet in the document, it can become a style sheet. */
function adoptStyles(root) {
  const style = root.querySelector("style");
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(style.textContent);
  style.remove();
  root.adoptedStyleSheets = [sheet];
}
