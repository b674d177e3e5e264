"""Decoding bound to the tags that exist: what may follow an open bracket, and that nothing else changes."""

from pathlib import Path

import mistral_common
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from conftest import REPO
from evoxtral_train.decoding.known_tags import KnownTags
from evoxtral_train.decoding.sampling import Sampling, choose
from evoxtral_train.families.base import encode_piece
from evoxtral_train.text.tags import TAG, find_tags
from evoxtral_train.text.taxonomy import Taxonomy

TAGS = Taxonomy.load(REPO / "data/tags.yaml").tags


@pytest.fixture(scope="module")
def tokenizer(family):
    return family.tokenizer


@pytest.fixture(scope="module")
def full_tokenizer():
    """131,072 tokens, some of which close a bracket and open the next."""
    return Tekkenizer.from_file(Path(mistral_common.__file__).parent / "data" / "tekken_240911.json")


@pytest.fixture(scope="module")
def known(tokenizer):
    return KnownTags(tokenizer, TAGS)


@pytest.fixture(scope="module")
def full(full_tokenizer):
    return KnownTags(full_tokenizer, TAGS)


def read(known, token_ids, state=KnownTags.start) -> tuple[int, int]:
    """(how many tokens are allowed, the state after them)."""
    for count, token in enumerate(token_ids):
        after = known.advance(torch.tensor([state]), torch.tensor([token])).item()
        if after < 0:
            return count, state
        state = after
    return len(token_ids), state


def accepted(known, tokenizer, text: str) -> str:
    """The part of the text that may be written, token by token."""
    ids = tokenizer.encode(text, bos=False, eos=False)
    return tokenizer.decode(ids[: read(known, ids)[0]])


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("form", ["[{}]", " [{}]", "[{}] [pause]", "[pause][{}].", "well,[{}]\n", "[{}] word"])
def test_known_tags_may_be_written(known, full, tokenizer, full_tokenizer, tag, form):
    for automaton, its_tokenizer in ((known, tokenizer), (full, full_tokenizer)):
        ids = its_tokenizer.encode(form.format(tag), bos=False, eos=False)
        assert read(automaton, ids) == (len(ids), KnownTags.start)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("[cry]", "[cry"),  # the start of "crying"
        ("Oh [angrustrated] no", "Oh [angr"),
        ("[sad][sadly]", "[sad][sad"),
        ("[ sighs]", "["),
        ("[sighs ]", "[sighs"),
        ("[clears  throat]", "[clears "),
        ("[Sighs]", "["),
        ("[]", "["),
        ("[sighs [pause]", "[sighs"),
        ("[sighs] [[pause]", "[sighs] ["),
        ("[laughs softly]", "[laughs"),
    ],
)
def test_nothing_else_follows_an_open_bracket(known, tokenizer, text, start):
    assert accepted(known, tokenizer, text) == start


def test_a_token_of_several_brackets_is_read_whole(full, full_tokenizer):
    pieces = {full_tokenizer.id_to_byte_piece(token): token for token in range(full_tokenizer.n_words)}
    name = full_tokenizer.encode("[sighs", bos=False, eos=False)
    assert read(full, [*name, pieces[b"]["]])[0] == len(name) + 1
    assert read(full, [*name, pieces[b"]["], pieces[b"]"]])[0] == len(name) + 1
    assert read(full, [*name, pieces[b"]]"]]) == (len(name) + 1, KnownTags.start)
    assert read(full, [pieces[b"[["]])[0] == 0
    assert read(full, [pieces[b"[]"]])[0] == 0


def test_special_tokens_are_for_outside_of_brackets(known, tokenizer, clock):
    specials = range(tokenizer.num_special_tokens)
    inside = tokenizer.encode("[sighs", bos=False, eos=False)
    for special in (*specials, clock.eos_id, clock.streaming_pad_id, clock.streaming_word_id):
        assert read(known, [special]) == (1, KnownTags.start)
        assert read(known, [*inside, special])[0] == len(inside)
        assert read(known, [*inside[:1], special])[0] == 1


def test_an_aligned_row_is_accepted(known, tokenizer, clock):
    pieces = [[clock.streaming_word_id, *encode_piece(tokenizer, word)] for word in ("[clears throat]", "well,", "[pause]")]
    ids = [token for piece in pieces for token in [*piece, clock.streaming_pad_id]] + [clock.eos_id]
    assert read(known, ids) == (len(ids), KnownTags.start)


@pytest.mark.parametrize("name", ["known", "full"])
def test_every_state_can_go_on_and_every_bracket_can_be_closed(name, request):
    known = request.getfixturevalue(name)
    assert known.kind.unique().tolist() == list(range(known.next_state.shape[1]))
    closing = torch.zeros(len(known.next_state), dtype=torch.bool)
    closing[[KnownTags.free, KnownTags.start]] = True
    for _ in range(len(closing)):
        closing |= ((known.next_state >= 0) & closing[known.next_state]).any(dim=1)
    assert closing.all()


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_every_tag_of_an_allowed_text_is_known(known, tokenizer, data):
    """Random walks, any kind of token equally likely, so brackets are frequent."""
    state, ids = KnownTags.start, []
    by_kind = [(known.kind == kind).nonzero()[:, 0].tolist() for kind in range(known.next_state.shape[1])]
    for _ in range(data.draw(st.integers(1, 60))):
        kind = data.draw(st.sampled_from((known.next_state[state] >= 0).nonzero()[:, 0].tolist()))
        ids.append(data.draw(st.sampled_from(by_kind[kind])))
        state = known.next_state[state, kind].item()
    text = tokenizer.decode(ids)
    assert set(TAG.findall(text)) <= set(TAGS)
    assert set(find_tags(text)) <= set(TAGS)
    assert ("[" in text[text.rfind("]") + 1 :]) == (state != KnownTags.start)


@given(st.text().filter(lambda text: "[" not in text))
@settings(deadline=None)
def test_text_without_an_open_bracket_is_never_refused(known, full, tokenizer, full_tokenizer, text):
    for automaton, its_tokenizer in ((known, tokenizer), (full, full_tokenizer)):
        ids = its_tokenizer.encode(text, bos=False, eos=False)
        assert read(automaton, ids) == (len(ids), KnownTags.start)


def test_a_free_row_may_write_anything(known):
    vocabulary = torch.arange(len(known.kind))
    assert (known.advance(torch.full_like(vocabulary, KnownTags.free), vocabulary) == KnownTags.free).all()
    logits = torch.randn(1, len(known.kind))
    assert torch.equal(known.masked(logits, torch.tensor([KnownTags.free])), logits)


def test_names_whose_letters_take_several_bytes(tokenizer):
    known = KnownTags(tokenizer, ["müde", "笑", "müde lachend"])
    for text in ("[müde] ja", "ach [müde lachend]", "[笑]。"):
        assert accepted(known, tokenizer, text) == text
    assert accepted(known, tokenizer, "[müde!]") == "[müde"
    assert accepted(known, tokenizer, "[sad]") == "["


def test_without_tags_no_bracket_opens(tokenizer):
    known = KnownTags(tokenizer, [])
    assert accepted(known, tokenizer, "so it is ] [sad]") == "so it is ]"


def random_rows(known, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, len(known.kind), generator=generator) * 3
    return logits, torch.randint(len(known.next_state), (rows,), generator=generator)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7), Sampling(temperature=1.5)])
def test_drawing_refused_rows_again_equals_masking_first(known, sampling):
    logits, states = random_rows(known, 300)
    keys, positions = torch.arange(300) * 7919, torch.arange(300) % 50
    drawn = []

    def draw(logits, rows):
        drawn.append(len(logits))
        return choose(logits, sampling, keys[rows], positions[rows])

    tokens = known.choose(logits, states, draw)
    assert torch.equal(tokens, choose(known.masked(logits, states), sampling, keys, positions))
    assert (known.advance(states, tokens) >= 0).all()
    assert drawn[0] == 300 and 100 < drawn[1] < 300
    assert (known.advance(states, choose(logits, sampling, keys, positions)) < 0).sum() == drawn[1]


@pytest.mark.parametrize("sampling", [Sampling(1.0, top_p=0.9), Sampling(1.0, top_k=5), Sampling(0.7, top_p=0.95, top_k=50)])
def test_with_filters_a_refused_row_is_drawn_from_the_masked_logits(known, sampling):
    logits, states = random_rows(known, 300)
    keys, positions = torch.arange(300) * 7919, torch.arange(300) % 50
    tokens = known.choose(logits, states, lambda logits, rows: choose(logits, sampling, keys[rows], positions[rows]))
    free, bound = (choose(each, sampling, keys, positions) for each in (logits, known.masked(logits, states)))
    assert torch.equal(tokens, torch.where(known.advance(states, free) >= 0, free, bound))
    assert (known.advance(states, tokens) >= 0).all()


def test_the_masked_logits_keep_the_models_own_elsewhere(known):
    logits, states = random_rows(known, 40)
    masked = known.masked(logits, states)
    allowed = known.next_state[states][:, known.kind] >= 0
    assert torch.equal(masked[allowed], logits[allowed])
    assert (masked[~allowed] == -torch.inf).all()
    assert allowed.any(dim=1).all()
