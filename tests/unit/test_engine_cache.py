import numpy as np
import pytest

from mi_audit.engine.cache import ActivationCache
from mi_audit.engine.cache_folder import clear, entries, shrink
from mi_audit.engine.capture import Site, capture
from mi_audit.errors import PromptError
from mi_audit.model.load import load
from mi_audit.plan.places import At, Tokens
from mi_audit.suites.prompt import Prompt

TOP, MEAN = Site(At("resid_post", layer=2), Tokens("last")), Site(At("resid_post", layer=1), Tokens("all"))
LETTERS = np.array(list("abcdefgh "))


@pytest.fixture
def model(tiny_folder):
    return load(str(tiny_folder), progress=False)


def texts(n):
    rng = np.random.default_rng(0)
    return [Prompt(f"p{number}", text="x" + "".join(rng.choice(LETTERS, rng.integers(9, 60)))) for number in range(n)]


def same(one, other, sites):
    for site in sites:
        np.testing.assert_array_equal(one.vectors(site), other.vectors(site))
        np.testing.assert_array_equal(one.token_index(site), other.token_index(site))
        np.testing.assert_array_equal(one.excluded(site), other.excluded(site))


def test_what_is_found_is_what_would_pass_bit_for_bit(model, tmp_path):
    plain = capture(model, texts(60), [TOP, MEAN], budget=128)
    first = capture(model, texts(60), [TOP], budget=128, cache=ActivationCache.of(model, tmp_path))
    assert (first.prompts_forwarded, first.prompts_cached) == (60, 0)
    second = capture(model, texts(60), [TOP, MEAN], budget=128, cache=ActivationCache.of(model, tmp_path))
    third = capture(model, texts(60), [TOP, MEAN], budget=128, cache=ActivationCache.of(model, tmp_path))
    assert (second.prompts_forwarded, third.prompts_forwarded, third.prompts_cached) == (60, 0, 60)
    same(second, plain, [TOP, MEAN])
    same(third, plain, [TOP, MEAN])


def test_a_capture_that_breaks_off_goes_on_where_it_was(model, tmp_path):
    class Stop:
        left = 3

        def start(self, prompts, tokens): ...

        def advance(self, prompts, tokens):
            self.left -= 1
            if not self.left:
                raise RuntimeError("killed")

        def close(self): ...

    with pytest.raises(RuntimeError, match="killed"):
        capture(model, texts(60), [TOP], budget=128, cache=ActivationCache.of(model, tmp_path), progress=Stop())
    kept = sum(1 for _ in entries(tmp_path))
    rest = capture(model, texts(60), [TOP], budget=128, cache=ActivationCache.of(model, tmp_path))
    assert kept == 3 and rest.prompts_cached > 0 and rest.prompts_forwarded > 0
    assert rest.prompts_cached + rest.prompts_forwarded == 60
    same(rest, capture(model, texts(60), [TOP], budget=128), [TOP])


def test_a_file_that_was_changed_is_not_believed(model, tmp_path):
    cache = ActivationCache.of(model, tmp_path)
    plain = capture(model, texts(5), [TOP], cache=cache)
    (file,) = tmp_path.rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    again = capture(model, texts(5), [TOP], cache=cache)
    assert (cache.damaged, again.prompts_forwarded) == (1, 5)
    same(again, plain, [TOP])


def test_another_model_token_or_place_is_another_entry(model, tmp_path):
    cache = ActivationCache.of(model, tmp_path)
    capture(model, texts(5), [TOP], cache=cache)
    assert capture(model, texts(5), [Site(At("resid_post", layer=1), Tokens("last"))], cache=cache).prompts_forwarded == 5
    assert capture(model, texts(5), [Site(TOP.at, Tokens("span", start=0, end=1))], cache=cache).prompts_forwarded == 5
    assert capture(model, texts(4), [TOP], cache=cache).prompts_forwarded == 4
    low = load(model.ref, dtype="bfloat16", progress=False)
    assert ActivationCache.of(low, tmp_path).folder != cache.folder


def test_a_disk_that_refuses_ends_the_keeping_and_not_the_run(model, tmp_path):
    (tmp_path / "file").write_text("")
    cache = ActivationCache.of(model, tmp_path / "file" / "below")
    assert capture(model, texts(5), [TOP], cache=cache).prompts_forwarded == 5
    assert cache.trouble and "below" in cache.trouble


def test_a_prompt_that_cannot_be_read_is_an_error_from_the_cache_too(model, tmp_path):
    model.base.get_input_embeddings().weight[model.tokenizer.convert_tokens_to_ids("!")] = float("nan")
    for _ in range(2):
        with pytest.raises(PromptError, match="'bad'"):
            capture(model, [*texts(3), Prompt("bad", text="ab!")], [TOP], cache=ActivationCache.of(model, tmp_path))


def test_the_least_used_goes_first_and_clearing_leaves_nothing(model, tmp_path):
    import os

    cache = ActivationCache.of(model, tmp_path)
    for n in (3, 4, 5):
        capture(model, texts(n), [TOP], cache=cache)
    known = {entry: size for entry, _, size in entries(tmp_path)}
    oldest = next(iter(known))
    os.utime(oldest, (0, 0))
    assert shrink(tmp_path, sum(known.values()) - 1) == known[oldest]
    assert {entry for entry, _, _ in entries(tmp_path)} == set(known) - {oldest}
    assert clear(tmp_path) > 0 and not tmp_path.exists()
