// The transcript on the page: one list item for an utterance, redrawn in place as it grows.

import { isUnsure } from "./transcript.js";

export class TranscriptView {
  #list;
  #announcer;
  #seek;
  #items = new Map(); // utterance -> {item, body, drawn}
  #dirty = new Set();
  #frame = null;
  #transcript = null;
  #now = null; // the word that plays

  constructor(list, announcer, seek) {
    this.#list = list;
    this.#announcer = announcer;
    this.#seek = seek;
    list.addEventListener("click", ({ target }) => {
      const at = target.closest("[data-at]");
      if (at && getSelection().isCollapsed) this.#seek(Number(at.dataset.at));
    });
  }

  show(transcript) {
    this.#transcript = transcript;
    this.#items.clear();
    this.#list.replaceChildren();
    this.#announcer.replaceChildren();
    transcript.utterances.forEach((utterance) => this.changed(utterance));
  }

  /** Draws with the next frame: many events may come before it. */
  changed(utterance) {
    this.#dirty.add(utterance);
    this.#frame ??= requestAnimationFrame(() => this.#draw());
  }

  allChanged() {
    this.#transcript.utterances.forEach((utterance) => this.changed(utterance));
  }

  remove(utterances) {
    for (const utterance of utterances) {
      this.#items.get(utterance)?.item.remove();
      this.#items.delete(utterance);
      this.#dirty.delete(utterance);
    }
  }

  /** Reads an utterance to those who cannot see it. */
  announce(text) {
    this.#announcer.append(element("p", { textContent: text }));
    if (this.#announcer.childElementCount > 20) this.#announcer.firstElementChild.remove();
  }

  /** Marks the word that is playing; null: none. */
  playing(at_s) {
    const words = at_s === null ? [] : this.#list.querySelectorAll(".word[data-at]");
    const now = [...words].find(({ dataset }) => Number(dataset.at) <= at_s && at_s < Number(dataset.until)) ?? null;
    if (now === this.#now) return;
    this.#now?.classList.remove("now");
    now?.classList.add("now");
    this.#now = now;
  }

  #draw() {
    this.#frame = null;
    const atEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 80;
    for (const utterance of this.#dirty) this.#drawOne(utterance);
    this.#dirty.clear();
    if (atEnd && this.#transcript.utterances.some(({ ended }) => !ended)) scrollTo({ top: document.documentElement.scrollHeight });
  }

  #drawOne(utterance) {
    if (!this.#items.has(utterance)) {
      const item = element("li");
      const time = element("button", { type: "button", className: "at", textContent: clock(utterance.start_s) });
      time.dataset.at = utterance.start_s;
      time.setAttribute("aria-label", `Play from ${clock(utterance.start_s)}`);
      const body = element("p");
      item.append(time, body);
      this.#list.append(item);
      this.#items.set(utterance, { item, body, drawn: new Map() });
    }
    const { item, body, drawn } = this.#items.get(utterance);
    item.classList.toggle("pending", !utterance.ended);
    const wanted = [];
    const counts = {};
    for (const piece of utterance.pieces()) {
      if (piece.tag && !this.#transcript.shows(piece)) continue;
      const name = piece.tag ?? piece.token;
      counts[name] = (counts[name] ?? 0) + 1;
      const key = `${piece.tag ? "tag" : "word"} ${name} ${counts[name]}`;
      if (!drawn.has(key)) drawn.set(key, piece.tag ? element("button", { type: "button" }) : element("span"));
      const node = drawn.get(key);
      if (piece.tag) fillTag(node, piece);
      else fillWord(node, piece);
      wanted.push(node);
    }
    arrange(body, wanted);
    item.hidden = !wanted.length; // a sound that was neither words nor a tag
  }
}

function fillTag(node, tag) {
  const sure = tag.confidence === null ? "" : `, ${Math.round(100 * tag.confidence)}% sure`;
  const when = tag.at_s === null ? "" : ` at ${clock(tag.at_s)}`;
  node.className = "tag";
  node.classList.toggle("unsure", isUnsure(tag));
  node.dataset.group = tag.group;
  if (tag.at_s !== null) node.dataset.at = tag.at_s;
  node.textContent = tag.tag;
  node.title = `${tag.group}${sure}${when}${tag.kept ? "" : "; below the server's threshold"}`;
  node.setAttribute("aria-label", `${tag.tag} (${tag.group}${sure})${when}`);
}

function fillWord(node, { token, start_s, end_s }) {
  node.className = "word";
  if (start_s !== null) Object.assign(node.dataset, { at: start_s, until: end_s });
  node.textContent = token;
}

/** Makes `nodes`, with spaces between them, the children of `parent`; one that stays in its place keeps the focus. */
function arrange(parent, nodes) {
  const stay = new Set(nodes);
  [...parent.childNodes].filter((node) => !stay.has(node)).forEach((node) => node.remove());
  nodes.forEach((node, i) => {
    if (parent.children[i] !== node) parent.insertBefore(node, parent.children[i] ?? null);
  });
  nodes.forEach((node) => node.after(" "));
}

export function element(name, properties = {}) {
  return Object.assign(document.createElement(name), properties);
}

/** 83.4 -> "1:23" */
export function clock(seconds) {
  const whole = Math.floor(seconds + 1e-6);
  const two = (value) => String(value).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}
