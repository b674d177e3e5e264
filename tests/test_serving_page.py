"""The web page in a real browser, which a real server serves. A fake microphone speaks clips of the corpus.

Without a Chromium these tests are skipped; EVOXTRAL_BROWSER names one that is not in the PATH.
"""

import json
import os
import re
import shutil

import numpy as np
import pytest
import soundfile

from conftest import REPO, TINY_OFFLINE_BASE

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
from serving import Configured, config_of, serving, serving_anew  # noqa: E402 - it needs the extra `serve`

expect = sync_api.expect
BROWSER = os.environ.get("EVOXTRAL_BROWSER") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium, or set EVOXTRAL_BROWSER")

PAUSE_S = 1.2
FIRST, SECOND = "did you hear about this song", "the teacher is wrong and i think it"
SECOND_TAGGED = "the teacher is wrong [clears throat] and i think it"


@pytest.fixture(scope="module")
def speech(spoken, tmp_path_factory):
    """A WAV: "[whispers] did you hear about this song", silence, "the teacher is wrong [clears throat] and i think it"."""
    first, second = (
        soundfile.read(spoken / "audio" / f"{name}.flac", dtype="float32")[0] for name in ("validation-00001", "train-00005")
    )
    path = tmp_path_factory.mktemp("speech") / "two utterances.wav"
    soundfile.write(path, np.concatenate([first, np.zeros(int(PAUSE_S * 16_000), np.float32), second]), 16_000)
    return path


@pytest.fixture(scope="module")
def running():
    """The shipped adapter, which tags while it listens. Utterances end after 1 s of silence: these tests hear in real time."""
    config = config_of(REPO / "data/tiny-tagger", live={"patience_s": 1.0}, segmentation={"patience_s": 1.0})
    with serving_anew(config) as running:
        yield running


@pytest.fixture(scope="module")
def browser(speech):
    fake = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", *fake, f"--use-file-for-fake-audio-capture={speech}%noloop"]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser, running):
    """The page, opened; when the test is over, its console must be without errors."""
    with _opened(browser, running.url) as page:
        yield page


class _opened:
    def __init__(self, browser, url, *, expected: str = "", prepare=lambda page: None):
        self._expected, self._errors = expected, []
        self._context = browser.new_context(base_url=url)
        self._page = self._context.new_page()
        self._page.set_default_timeout(20_000)
        self._page.on("console", lambda message: message.type == "error" and self._errors.append(message.text))
        self._page.on("pageerror", lambda error: self._errors.append(str(error)))
        prepare(self._page)

    def __enter__(self):
        self._page.goto("/")
        expect(button(self._page, "Record")).to_be_enabled()
        return self._page

    def __exit__(self, *failure):
        self._context.close()
        assert [error for error in self._errors if not (self._expected and self._expected in error)] == []


def button(page, name):
    return page.get_by_role("button", name=name, exact=isinstance(name, str))


def transcript(page):
    return page.get_by_role("list", name="Transcript")


def said(page) -> list[str]:
    """Each utterance's words and tags, in reading order."""
    utterances = transcript(page).get_by_role("listitem").locator("p")
    return [" ".join(re.sub(r"\s+", " ", text).split()) for text in utterances.all_inner_texts()]


def tag(page, name):
    return transcript(page).get_by_role("button", name=re.compile(rf"^{name} \("))


def markers(page):
    return page.locator("#waveform [part~=label]")


def status(page):
    return page.get_by_role("status").first


def downloaded(page, name):
    with page.expect_download() as download:
        button(page, f"Download {name}").click()
    return download.value


def open_file(page, path) -> None:
    page.get_by_label("Choose a file").set_input_files(path)
    expect(status(page)).to_have_text("Ready", timeout=30_000)


def await_words(page, words, times=1) -> None:
    """Until the page shows these words in this order, whatever tags stand between them."""
    pattern = r"\s+(?:\S+\s+){0,3}?".join(map(re.escape, words.split()))
    expect(transcript(page)).to_have_text(re.compile(pattern), use_inner_text=True, timeout=30_000)


def test_what_one_says_appears_with_its_tags(page, speech):
    button(page, "Record").click()
    expect(page.locator(".pending .word", has_text="hear")).to_be_visible()  # grey: the utterance has not ended
    expect(status(page)).to_have_text("Listening")
    expect(tag(page, "whispers")).to_be_visible()
    expect(page.locator(".pending")).to_have_count(0, timeout=20_000)
    expect(markers(page)).to_have_text(["whispers"])
    expect(page.get_by_role("log")).to_contain_text("[whispers]")  # read to those who cannot see it
    assert float(page.get_by_role("meter", name="Lag").evaluate("meter => meter.value")) < 5
    button(page, "Stop").click()
    expect(status(page)).to_have_text("Ready")
    assert said(page)[0] == f"whispers {FIRST}"
    wav = downloaded(page, "WAV")
    samples, rate_hz = soundfile.read(wav.path())
    assert rate_hz == 16_000 and wav.suggested_filename.endswith(".wav")
    heard, spoken_rms = samples[: int(2.2 * rate_hz)], float(np.sqrt(np.mean(soundfile.read(speech)[0] ** 2)))
    assert 0.3 < float(np.sqrt(np.mean(heard**2))) / spoken_rms < 3
    duration_s = json.loads(downloaded(page, "JSON").path().read_text("utf-8"))["duration_s"]
    assert duration_s == pytest.approx(len(samples) / rate_hz, abs=0.001)
    button(page, "Play").click()
    expect(button(page, "Pause")).to_be_visible()


def test_a_model_that_hears_the_whole_recording_gets_it_when_one_stops(browser):
    config = config_of(model={"base": str(TINY_OFFLINE_BASE)}, decode={"max_new_tokens": 8})
    with serving_anew(config) as running, _opened(browser, running.url) as page:
        expect(page.get_by_text("the text comes when you stop")).to_be_visible()
        button(page, "Record").click()
        expect(status(page)).to_have_text("Recording")
        expect(page.get_by_role("timer")).to_have_text("0:02")
        expect(page.get_by_role("meter", name="Lag")).to_be_hidden()
        button(page, "Stop").click()
        expect(status(page)).to_have_text("Ready")
        expect(transcript(page).get_by_role("listitem")).to_have_count(1)
        button(page, "Continue").click()
        expect(page.get_by_role("timer")).to_have_text("0:04")
        button(page, "Stop").click()
        expect(status(page)).to_have_text("Ready")
        samples, rate_hz = soundfile.read(downloaded(page, "WAV").path())
        content = json.loads(downloaded(page, "JSON").path().read_text("utf-8"))
        assert content["text"] and content["duration_s"] == pytest.approx(len(samples) / rate_hz, abs=0.001)


def test_a_file_with_markers_threshold_and_downloads(page, speech):
    open_file(page, speech)
    assert said(page) == [f"whispers {FIRST}", SECOND_TAGGED.replace("[", "").replace("]", "")]
    expect(markers(page)).to_have_text(["whispers", "clears throat"])
    content = json.loads(downloaded(page, "JSON").path().read_text("utf-8"))
    assert content["merged"] == f"[whispers] {FIRST} {SECOND_TAGGED}"
    assert [len(content[name]) for name in ("segments", "words", "tags", "tags_filtered")] == [2, 14, 2, 2]
    assert downloaded(page, "TXT").path().read_text("utf-8") == f"[whispers] {FIRST}\n{SECOND_TAGGED}\n"
    cues = downloaded(page, "SRT").path().read_text("utf-8").split("\n\n")
    assert [" ".join(cue.split("\n")[2:]).strip() for cue in cues] == [f"[whispers] {FIRST}", SECOND_TAGGED]
    assert [cue.split("\n")[0] for cue in cues] == ["1", "2"]
    assert all(re.fullmatch(r"00:00:0\d,\d{3} --> 00:00:0\d,\d{3}", cue.split("\n")[1]) for cue in cues)

    at_s = {tag["tag"]: tag["at_s"] for tag in content["tags"]}
    position = page.get_by_role("slider", name="Position in the recording")
    button(page, re.compile("clears throat")).click()
    expect(button(page, "Pause")).to_be_visible()
    assert float(position.get_attribute("aria-valuenow")) >= at_s["clears throat"] - 0.1
    button(page, "Pause").click()
    markers(page).first.click()
    assert at_s["whispers"] - 0.1 <= float(position.get_attribute("aria-valuenow")) < at_s["clears throat"]

    confidence = {tag["tag"]: tag["confidence"] for tag in content["tags"]}
    threshold = page.get_by_role("slider", name="Show tags from")
    threshold.fill(str(int(100 * max(confidence.values())) + 1))
    expect(tag(page, "whispers")).to_have_count(0)
    expect(markers(page)).to_have_count(0)
    assert said(page) == [FIRST, SECOND]
    assert downloaded(page, "TXT").path().read_text("utf-8") == f"{FIRST}\n{SECOND}\n"
    threshold.fill("0")
    expect(markers(page)).to_have_count(2)


def test_by_keyboard_alone(page, speech):
    page.on("filechooser", lambda chooser: chooser.set_files(speech))
    press = page.keyboard.press
    press("Tab")
    expect(page.get_by_role("link", name="Skip to what was heard")).to_be_focused()
    press("Tab")
    expect(button(page, "Record")).to_be_focused()
    press("Tab")
    expect(page.get_by_label("Choose a file")).to_be_focused()
    press("Enter")
    await_words(page, SECOND)
    expect(status(page)).to_have_text("Ready")

    def tab_to(locator):
        for _ in range(20):
            if locator.evaluate("element => element === element.getRootNode().activeElement"):
                return
            press("Tab")
        raise AssertionError(f"Tab does not reach {locator}")

    position = page.get_by_role("slider", name="Position in the recording")
    tab_to(position)
    press("ArrowRight")
    assert float(position.get_attribute("aria-valuenow")) == 1.0
    tab_to(button(page, "Play"))
    tab_to(page.get_by_role("slider", name="Show tags from"))
    press("End")
    expect(tag(page, "whispers")).to_have_count(0)
    press("Home")
    tab_to(tag(page, "clears throat"))
    press("Enter")
    expect(button(page, "Pause")).to_be_visible()
    tab_to(button(page, "Download TXT"))
    with page.expect_download():
        press("Enter")


@pytest.mark.slow
def test_a_lost_connection_loses_nothing(browser, running):
    connections = []

    def connect(socket):
        connections.append(socket)
        socket.connect_to_server()

    def route(page):
        page.route_web_socket(re.compile("/v1/realtime"), connect)

    with _opened(browser, running.url, prepare=route) as page:
        button(page, "Record").click()
        second = transcript(page).get_by_role("listitem").nth(1)
        expect(second).to_contain_text("wrong", timeout=30_000)
        connections[0].close(code=1011, reason="gone")  # in the middle of the second utterance
        expect(status(page)).to_contain_text("still recording")
        expect(second).to_have_count(0)  # it was not finished, and will be heard again
        expect(tag(page, "clears throat")).to_be_visible(timeout=30_000)
        button(page, "Stop").click()
        expect(status(page)).to_have_text("Ready", timeout=30_000)
        assert len(connections) == 2
        assert said(page)[0].endswith(FIRST) and said(page)[1].startswith("the teacher is wrong clears throat")
        content = json.loads(downloaded(page, "JSON").path().read_text("utf-8"))
        at_s = [tag["at_s"] for tag in content["tags"] if tag["tag"] == "clears throat"]
        assert at_s == [pytest.approx(2.2 + PAUSE_S + 1.76, abs=0.7)]  # on the recording's clock, not the connection's


def test_without_wavesurfer(browser, running, speech):
    def route(page):
        page.route("**/vendor/*", lambda route: route.fulfill(status=404))

    with _opened(browser, running.url, expected="404", prepare=route) as page:
        open_file(page, speech)
        await_words(page, SECOND)
        expect(page.get_by_text("No waveform")).to_be_visible()
        tag(page, "clears throat").click()
        audio = page.get_by_label("The recording", exact=True)
        expect(audio).to_be_visible()
        assert audio.evaluate("audio => audio.controls && !audio.paused && audio.currentTime > 3")


def test_an_api_key_is_asked_for(browser, running, speech):
    with (
        serving(Configured(running.engine, listen={"port": 0, "api_key": "open sesame"})) as locked,
        _opened(browser, locked.url, expected="401") as page,
    ):
        key = page.get_by_label("This server needs an API key")
        key.fill("wrong")
        button(page, "Use key").click()
        expect(key).to_be_visible()
        key.fill("open sesame")
        button(page, "Use key").click()
        expect(key).to_be_hidden()
        open_file(page, speech)
        await_words(page, SECOND)


def test_a_file_that_is_none_says_so(browser, running, tmp_path):
    (tmp_path / "notes.wav").write_text("no sound in here", "utf-8")
    with _opened(browser, running.url, expected="400") as page:
        open_file(page, tmp_path / "notes.wav")
        expect(page.get_by_role("alert")).to_contain_text("notes.wav was not transcribed")
        expect(button(page, "Record")).to_be_enabled()


@pytest.mark.slow
def test_a_microphone_that_the_browser_does_not_resample(browser, running):
    """As in Firefox: a stream's own rate is all that a context takes."""
    refuse = """
      const create = AudioContext.prototype.createMediaStreamSource;
      AudioContext.prototype.createMediaStreamSource = function (stream) {
        if (this.sampleRate === 16000) throw new DOMException("another rate", "NotSupportedError");
        return create.call(this, stream);
      };
    """
    with _opened(browser, running.url, prepare=lambda page: page.add_init_script(refuse)) as page:
        button(page, "Record").click()
        await_words(page, SECOND)
        button(page, "Stop").click()
        expect(status(page)).to_have_text("Ready")
        assert soundfile.info(downloaded(page, "WAV").path()).samplerate == 16_000


@pytest.mark.slow
def test_a_recording_is_continued(page):
    for times in (1, 2):
        button(page, "Record" if times == 1 else "Continue").click()
        expect(tag(page, "whispers")).to_have_count(times, timeout=20_000)
        button(page, "Stop").click()
        expect(status(page)).to_have_text("Ready")
    assert said(page) == [f"whispers {FIRST}"] * 2
    first, second = json.loads(downloaded(page, "JSON").path().read_text("utf-8"))["segments"]
    assert first["end_s"] <= second["start_s"]
