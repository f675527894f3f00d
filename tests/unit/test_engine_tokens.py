import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from mi_audit.engine.selection import select
from mi_audit.engine.tokens import encode
from mi_audit.errors import PromptError, SuiteError
from mi_audit.plan.places import Tokens, last_of, span
from mi_audit.suites.prompt import Message, Prompt

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMING = CHATML.replace("{{ m['content'] }}", "{{ m['content'] | trim }}")
THINKING = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>{% endif %}")
SHOUTING = CHATML.replace("{{ m['content'] }}", "{{ m['content'] | upper }}")
REFUSING = "{{ raise_exception('no such chat') }}"


def byte_level(template=None, *, bos=False, trim_offsets=False):
    """GPT-2's kind: every byte a token, but for the words below."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "i"), ("Ġi", "n"), ("Ġ", "P"), ("ĠP", "a"), ("ĠPa", "r"), ("ĠPar", "i"), ("ĠPari", "s")]
    words = ["<|im_start|>", "<|im_end|>", *alphabet, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    steps = [processors.ByteLevel(trim_offsets=trim_offsets)]
    if bos:
        steps.append(processors.TemplateProcessing(single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 0), ("<|im_end|>", 1)]))
    tokenizer.post_processor = processors.Sequence(steps)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<|im_start|>", "<|im_end|>"])
    fast.chat_template = template
    return fast


def chat(*contents, response=None, **fields):
    roles = ("system", "user") if len(contents) == 2 else ("user",)
    return Prompt("p", messages=tuple(Message(*each) for each in zip(roles, contents, strict=True)), response=response, fields=tuple(fields.items()))


def words(tokenizer, prompt, tokens):
    encoded = encode(tokenizer, prompt)
    return [tokenizer.decode([encoded.ids[position]]) for position in select(encoded, Tokens.of(tokens), prompt)]


def test_a_chat_is_the_template_and_nothing_more():
    tokenizer = byte_level(CHATML, bos=True)
    encoded = encode(tokenizer, chat("Hi"))
    assert encoded.text == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(encoded.ids) == encoded.text
    assert not any(encoded.added)


def test_an_answered_chat_continues_its_generation_prompt():
    asked, answered = encode(byte_level(CHATML), chat("Hi")), encode(byte_level(CHATML), chat("Hi", response="Yes."))
    assert answered.text == asked.text + "Yes.<|im_end|>\n"
    assert answered.ids[: len(asked.ids)] == asked.ids
    assert answered.text[answered.response.start : answered.response.end] == "Yes."


def test_plain_text_gets_the_tokenizers_own_special_tokens():
    encoded = encode(byte_level(bos=True), Prompt("p", text="in Paris"))
    assert encoded.ids[0] == 0 and encoded.ids[-1] == 1
    assert encoded.added == (True, False, False, False, True)


@pytest.mark.parametrize(
    ("prompt", "last"),
    [
        (chat("Hi"), "\n"),
        (chat("Hi", response="Oh no"), "o"),
        (chat("Hi", response="user\nHi"), "i"),
        (Prompt("p", text="in Paris"), " Paris"),
        (Prompt("p", text="in", response=" Paris!"), "!"),
    ],
)
def test_last_is_where_the_answer_begins_or_ends(prompt, last):
    tokenizer = byte_level(CHATML, bos=True)
    encoded = encode(tokenizer, prompt)
    assert words(tokenizer, prompt, "last") == [last]
    if prompt.is_chat and prompt.response is None:
        assert select(encoded, Tokens("last"), prompt) == [len(encoded.ids) - 1]
    elif prompt.is_chat:
        assert tokenizer.decode(encoded.ids[select(encoded, Tokens("last"), prompt)[0] + 1 :]) == "<|im_end|>\n"


def test_all_leaves_out_only_what_the_tokenizer_added():
    assert words(byte_level(bos=True), Prompt("p", text="in Paris"), "all") == ["i", "n", " Paris"]
    assert "".join(words(byte_level(CHATML, bos=True), chat("Hi"), "all")) == encode(byte_level(CHATML), chat("Hi")).text


def test_response_tokens_are_the_response():
    tokenizer = byte_level(CHATML, bos=True)
    assert "".join(words(tokenizer, chat("Hi", response="Hi in Paris"), "response")) == "Hi in Paris"
    assert "".join(words(tokenizer, Prompt("p", text="Go", response=" in Paris"), "response")) == " in Paris"


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize(("start", "end", "found"), [(0, 2, ["i", "n"]), (0, 3, ["i", "n"]), (3, 8, [" Paris"]), (4, 5, [" Paris"]), (1, 4, ["n", " Paris"])])
def test_a_span_is_the_tokens_that_share_its_letters(trim_offsets, start, end, found):
    assert words(byte_level(trim_offsets=trim_offsets), Prompt("p", text="in Paris"), span(start, end)) == found


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_every_byte_of_a_character_belongs_to_it(trim_offsets):
    tokenizer, prompt = byte_level(trim_offsets=trim_offsets), Prompt("p", text="a 日本x", fields=(("word", "日"),))
    encoded = encode(tokenizer, prompt)
    assert tokenizer.decode([encoded.ids[position] for position in select(encoded, span(3, 4), prompt)]) == "本"
    assert select(encoded, span(3, 4), prompt)[0] == select(encoded, last_of("word"), prompt)[0] + 1


def test_a_span_counts_in_the_last_message_as_the_suite_gives_it():
    prompt = chat("Hi there in Rome", "  Hi in Paris ", place="Paris")
    for template in (CHATML, TRIMMING):
        assert words(byte_level(template), prompt, span(2, 4)) == ["H", "i"]
        assert words(byte_level(template), prompt, span(8, 13)) == [" Paris"]
        assert words(byte_level(template), prompt, last_of("place")) == [" Paris"]


def test_a_field_is_read_where_it_last_occurs():
    prompt = Prompt("p", text="in Paris, in Paris in", fields=(("place", "Paris"), ("other", "Rome"), ("blank", None)))
    encoded = encode(byte_level(), prompt)
    (position,) = select(encoded, last_of("place"), prompt)
    assert encoded.offsets[position] == (12, 18)
    with pytest.raises(PromptError, match=r"'p'.*'other', 'Rome', does not occur in its text"):
        select(encoded, last_of("other"), prompt)
    with pytest.raises(PromptError, match="'blank' is empty"):
        select(encoded, last_of("blank"), prompt)
    with pytest.raises(SuiteError, match="no field 'absent'"):
        select(encoded, last_of("absent"), prompt)


@pytest.mark.parametrize(
    ("template", "prompt", "tokens", "message"),
    [
        (None, chat("Hi"), "last", "no chat template"),
        (REFUSING, chat("Hi"), "last", "refuses the chat: no such chat"),
        (THINKING, chat("Hi", response="Yes"), "last", "the response does not follow the generation prompt"),
        (SHOUTING, chat("Hi", response="Yes"), "last", "changes the response"),
        (SHOUTING, chat("Hi"), span(0, 1), "changes the last message"),
        (CHATML, chat("Hi"), "response", "no response"),
        (CHATML, chat("Hi"), span(0, 3), "beyond its last message, which has 2"),
        (None, Prompt("p", text="in Paris"), span(2, 9), "beyond its text, which has 8"),
        (None, Prompt("p", text="in Paris"), span(2, 3), "white space"),
    ],
)
def test_what_cannot_be_read_names_the_prompt_and_the_fix(template, prompt, tokens, message):
    with pytest.raises(PromptError, match=rf"prompt 'p'.*{message}.*[;,] .*"):
        words(byte_level(template), prompt, tokens)


def test_an_over_long_prompt_is_refused():
    assert len(encode(byte_level(), Prompt("p", text="x" * 9), max_length=9).ids) == 9
    with pytest.raises(PromptError, match="'p' has 10 tokens, but the model takes at most 9"):
        encode(byte_level(), Prompt("p", text="x" * 10), max_length=9)


def test_a_text_that_leaves_no_token_is_refused():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])))
    with pytest.raises(PromptError, match="'p' has no tokens"):
        encode(tokenizer, Prompt("p", text="zzz"))


def test_a_slow_tokenizer_lacks_only_what_needs_characters():
    prompt, tokenizer = Prompt("p", text="hi you", response=" too"), ByT5Tokenizer()
    encoded = encode(tokenizer, prompt)
    assert select(encoded, Tokens("last"), prompt) == [9] and encoded.ids[10] == tokenizer.eos_token_id
    assert select(encoded, Tokens("all"), prompt) == list(range(10))
    with pytest.raises(PromptError, match=r"can't tell which characters .* tokenizer\.json"):
        select(encoded, Tokens("response"), prompt)
