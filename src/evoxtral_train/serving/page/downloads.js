// What the page shows, as files.

const CUE_CHARACTERS = 84; // two lines of 42
const CUE_S = 7;
const SHORTEST_CUE_S = 1;
const SILENCE_S = 0.5;

export function txt(transcript) {
  const lines = transcript.utterances.map((utterance) => transcript.merged(utterance));
  return lines.filter(Boolean).map((line) => `${line}\n`).join("");
}

/** The fields of `evoxtral transcribe`; `tags_filtered` and `merged` are those that the page shows. */
export function json(transcript) {
  const tags = transcript.utterances.flatMap((utterance, segment) => utterance.tags.map((tag) => ({ ...tag, segment })));
  const lines = transcript.utterances.map((utterance) => transcript.merged(utterance));
  const content = {
    duration_s: rounded(transcript.duration_s),
    threshold: transcript.threshold,
    text: joined(transcript.utterances.map(({ text }) => text)),
    tags: rounded(tags),
    tags_filtered: rounded(tags.filter((tag) => transcript.shows(tag))),
    merged: joined(lines),
    words: rounded(transcript.utterances.flatMap(({ words }) => words)),
    segments: transcript.utterances.map(({ start_s, end_s, text, tags }, i) => rounded({ start_s, end_s, text, merged: lines[i], tags })),
  };
  return JSON.stringify(content, null, 1) + "\n";
}

export function srt(transcript) {
  const blocks = cues(transcript).map(
    ({ start_s, end_s, text }, i) => `${i + 1}\n${clock(start_s)} --> ${clock(end_s)}\n${twoLines(text)}\n`,
  );
  return blocks.join("\n");
}

function cues(transcript) {
  const groups = transcript.utterances.flatMap((utterance) => split(units(transcript, utterance)));
  return groups.map((group, i) => {
    const start_s = group[0].start_s;
    const free_s = groups[i + 1]?.[0].start_s ?? Math.max(transcript.duration_s, start_s + SHORTEST_CUE_S);
    const end_s = Math.max(group.at(-1).end_s, start_s + SHORTEST_CUE_S);
    return { start_s, end_s: Math.max(start_s + 0.001, Math.min(end_s, free_s)), text: joined(group.map(({ text }) => text)) };
  });
}

/** Words with the tags before them and, after the last word, the tags behind it: [{text, start_s, end_s}]. */
function units(transcript, utterance) {
  const made = [];
  let tags = [];
  let until_s = utterance.start_s;
  for (const piece of utterance.pieces()) {
    if (!piece.token) {
      if (transcript.shows(piece)) tags.push(piece);
      continue;
    }
    const start_s = piece.start_s ?? until_s;
    until_s = Math.max(start_s, piece.end_s ?? until_s);
    made.push({ text: joined([...tags.map(bracketed), piece.token]), start_s, end_s: until_s });
    tags = [];
  }
  if (!tags.length) return made;
  const text = joined(tags.map(bracketed));
  const heard_s = tags.at(-1).at_s ?? utterance.end_s;
  const last = made.pop();
  return [...made, last ? { ...last, text: `${last.text} ${text}`, end_s: Math.max(last.end_s, heard_s) } : { text, start_s: utterance.start_s, end_s: heard_s }];
}

/** Parts that fit into a cue each: cut at silences, after sentences, and where a cue would grow too long. */
function split(units) {
  const groups = [];
  for (const unit of units) {
    const group = groups.at(-1);
    const last = group?.at(-1);
    const fits =
      group &&
      unit.start_s - last.end_s < SILENCE_S &&
      unit.end_s - group[0].start_s <= CUE_S &&
      joined([...group, unit].map(({ text }) => text)).length <= CUE_CHARACTERS &&
      !(/[.!?…]["”’)]?$/.test(last.text) && last.end_s - group[0].start_s >= SHORTEST_CUE_S);
    if (fits) group.push(unit);
    else groups.push([unit]);
  }
  return groups;
}

function twoLines(text) {
  if (text.length <= CUE_CHARACTERS / 2) return text;
  const spaces = [...text.matchAll(/ (?![^[]*\])/g)].map(({ index }) => index); // not within a tag's name
  const middle = spaces.sort((a, b) => Math.abs(a - text.length / 2) - Math.abs(b - text.length / 2))[0];
  return middle === undefined ? text : `${text.slice(0, middle)}\n${text.slice(middle + 1)}`;
}

const bracketed = ({ tag }) => `[${tag}]`;
const joined = (texts) => texts.filter(Boolean).join(" ");

function clock(seconds) {
  const ms = Math.round(1000 * seconds);
  const two = (value) => String(Math.floor(value)).padStart(2, "0");
  return `${two(ms / 3600000)}:${two((ms / 60000) % 60)}:${two((ms / 1000) % 60)},${String(ms % 1000).padStart(3, "0")}`;
}

/** Every number to three places. */
function rounded(value) {
  if (typeof value === "number") return Math.round(1000 * value) / 1000;
  if (Array.isArray(value)) return value.map(rounded);
  if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, rounded(item)]));
  return value;
}

/** Offers `content` (text or Blob) to save as `name`. */
export function save(content, name, type = "text/plain") {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
