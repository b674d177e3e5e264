// What was heard: utterances with their words and tags. Nothing here touches the document.

const SLACK_S = 0.2; // as in transcription/transcript.py: times that differ by less are taken for equal

/** An utterance. `ended`: its words and tags will not change any more.
 *  words: [{word, start_s, end_s}], tags: [{tag, group, confidence, at_s, kept}], in the order in which they came. */
class Utterance {
  words = [];
  tags = [];
  text = "";
  merged = null;
  ended = false;

  constructor(key, start_s) {
    this.key = key;
    this.start_s = this.end_s = start_s;
  }

  /** The text's tokens and the tags among them, in reading order: [{token, start_s, end_s}] and [{tag, …}]. */
  pieces() {
    const tokens = timed(this.text, this.words);
    const before = [...tokens, null].map(() => []);
    for (const [place, tag] of this.#places(tokens)) before[place].push(tag);
    return before.flatMap((tags, i) => (i < tokens.length ? [...tags, tokens[i]] : tags));
  }

  /** [index of the token that a tag stands before, tag]: kept tags where `merged` has them, the others where they were heard. */
  #places(tokens) {
    const written = this.merged === null ? new Map() : writtenPlaces(this.merged, this.text, this.tags, tokens);
    return this.tags.map((tag) => [written.get(tag) ?? heardPlace(tag, tokens), tag]);
  }
}

/** "[sighs] I told you" -> Map(tag -> index of the token after it). The text of `merged` without its tags is `text`. */
function writtenPlaces(merged, text, tags, tokens) {
  const places = new Map();
  const kept = tags.filter((tag) => tag.kept);
  let at = 0;
  for (let i = 0; i < merged.length; ) {
    const tag = kept.find(({ tag }) => merged.startsWith(`[${tag}]`, i) && !text.startsWith(`[${tag}]`, at));
    if (tag) {
      const next = tokens.findIndex((token) => token.at >= at);
      places.set(tag, next < 0 ? tokens.length : next);
      kept.splice(kept.indexOf(tag), 1);
      i += tag.tag.length + 2;
      if (merged[i] === " " && text[at] !== " ") i++;
    } else if (merged[i] === text[at]) {
      i++;
      at++;
    } else {
      i++; // the space before a tag at the end
    }
  }
  return places;
}

/** The first token that had not been heard when the tag was. */
function heardPlace(tag, tokens) {
  if (tag.at_s === null) return 0;
  const next = tokens.findIndex((token) => token.end_s === null || token.end_s >= tag.at_s - SLACK_S);
  return next < 0 ? tokens.length : next;
}

/** What spaces separate in `text`, each with the times of its word; null where it has none. */
function timed(text, words) {
  const left = [...words];
  return [...text.matchAll(/\S+/g)].map(({ 0: token, index }) => {
    const found = left.slice(0, 4).findIndex(({ word }) => plain(word) === plain(token));
    const word = found < 0 ? null : left.splice(0, found + 1).at(-1);
    return { token, at: index, start_s: word?.start_s ?? null, end_s: word?.end_s ?? null };
  });
}

const plain = (word) => word.toLowerCase().replace(/[^\p{L}\p{N}]/gu, "") || word;

export class Transcript {
  utterances = [];
  threshold = 0; // tags that are less sure are not shown
  duration_s = 0;
  #groups = {}; // tag -> group, as far as the server has said

  constructor(groups = {}) {
    this.#groups = { ...groups };
  }

  /** groups: tag -> group */
  learn(groups) {
    Object.assign(this.#groups, groups);
  }

  /** One evoxtral.* event. Returns the utterance that it changed, if any. */
  apply(event, connection) {
    if (event.utterance === undefined) return null;
    const key = `${connection}.${event.utterance}`;
    let utterance = this.utterances.find((utterance) => utterance.key === key);
    if (!utterance) {
      utterance = new Utterance(key, event.start_s ?? event.segment?.start_s ?? this.duration_s);
      this.utterances.push(utterance);
    }
    if (event.type === "evoxtral.text") utterance.text += event.delta;
    if (event.type === "evoxtral.word") utterance.words.push({ word: event.word, start_s: event.start_s, end_s: event.end_s });
    if (event.type === "evoxtral.tag") {
      this.#groups[event.tag] = event.group;
      utterance.tags.push(this.#tag(event));
    }
    if (event.type === "evoxtral.utterance.ended") this.#end(utterance, event.segment);
    return utterance;
  }

  /** A segment of a file's transcript. `words`: those of the whole file. */
  addSegment(segment, words = []) {
    const utterance = new Utterance(`file.${this.utterances.length}`, segment.start_s);
    const inside = words.filter(({ end_s }) => end_s > segment.start_s && end_s <= segment.end_s + SLACK_S / 2);
    this.#end(utterance, { words: inside, ...segment });
    this.utterances.push(utterance);
    return utterance;
  }

  #end(utterance, segment) {
    const { start_s, end_s, text, merged, words } = segment;
    Object.assign(utterance, { start_s, end_s, text, merged, words: words ?? utterance.words, ended: true });
    utterance.tags = segment.tags.map((tag) => this.#tag(tag));
  }

  #tag({ tag, group, confidence = null, at_s = null, kept = true }) {
    return { tag, group: group ?? this.#groups[tag] ?? "other", confidence, at_s, kept };
  }

  /** Forget what a lost connection had not finished. Returns the utterances that are gone. */
  drop(connection) {
    const gone = this.utterances.filter((utterance) => !utterance.ended && utterance.key.startsWith(`${connection}.`));
    this.utterances = this.utterances.filter((utterance) => !gone.includes(utterance));
    return gone;
  }

  shows(tag) {
    return tag.confidence === null || tag.confidence >= this.threshold;
  }

  get tags() {
    return this.utterances.flatMap((utterance) => utterance.tags);
  }

  /** Text with the tags that are shown: "[sighs] I told you." */
  merged(utterance) {
    const shown = utterance.pieces().filter((piece) => piece.token || this.shows(piece));
    return shown.map((piece) => piece.token ?? `[${piece.tag}]`).join(" ");
  }
}

export const isUnsure = (tag) => !tag.kept || (tag.confidence !== null && tag.confidence < 0.5);
