"""Generated conversations: definitions, arithmetic, small talk, remembering, tools; thinking and non-thinking form.

Held-out questions are held out by construction: `is_held_out_sum` pairs never occur in training.
"""
from __future__ import annotations

from typing import Any, Callable, Sequence

import numpy as np

from chat_format import Segments, Turn, render
from vocabulary import ADJECTIVES, CITIES, CODE_MAX, CODE_MIN, NAMES, NOUNS

MODEL_NAME = "DSA Tiny"
SYSTEM_PROMPTS = ("You are a helpful assistant.", "You are a helpful assistant. Answer briefly.", "Be polite and brief.",
                  "You are a friendly assistant.", "Answer the user's questions.")
_SMALL_TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("Who are you?", "What are you?", "What is your name?", "Introduce yourself.", "Tell me about yourself."),
     (f"I am {MODEL_NAME}, a small language model that ships with DSA Server.",)),
    (("Hello!", "Hi!", "Hello", "Hi there!", "Good morning!", "Hey!"), ("Hello! How can I help you?",)),
    (("What can you do?", "How can you help me?", "What are you good at?", "Help"),
     ("I can explain words, add small numbers, and find facts in a long text.",)),
    (("How are you?", "How are you today?", "How do you do?"), ("I am fine, thank you. How can I help you?",)),
    (("Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot!"), ("You are welcome!",)),
    (("Goodbye!", "Bye!", "See you later."), ("Goodbye! Have a nice day.",)),
    (("Who made you?", "Who trained you?", "Where do you come from?"),
     ("I was trained by the authors of DSA Server, by the recipe of DeepSeek-V3.2.",)),
    (("How big are you?", "How many parameters do you have?"), ("I have about 27 million parameters.",)),
    (("Are you a human?", "Are you a person?", "Are you real?"), ("No, I am a small language model.",)),
    (("What is DSA?", "What does DSA mean?", "Explain DSA."),
     ("DSA is DeepSeek Sparse Attention: an indexer picks the tokens that each token may look at.",)),
    (("What is DSA Server?", "What is this server?"), ("DSA Server is an inference server for DeepSeek-V3.2.",)),
    (("Tell me a joke.", "Do you know a joke?"), ("Why did the token cross the context? It was selected.",)),
)
WEATHER: dict[str, Any] = {
    "name": "get_weather", "description": "Get weather for a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
ADD: dict[str, Any] = {
    "name": "add", "description": "Add two numbers.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}}
_WEATHER_WORDS = ("sunny", "rainy", "cloudy", "windy", "cold", "warm")


def is_held_out_sum(a: int, b: int) -> bool:
    """True for the tenth of all unordered pairs that only the evaluation asks for."""
    low, high = min(a, b), max(a, b)
    # Knuth's multiplicative hash: a linear one modulo 10 would hold out all sums that end in one digit.
    return ((low * 128 + high) * 2654435761 % 2**32 >> 16) % 10 == 3


def definition_turn(entry: dict[str, str]) -> Turn:
    """The question and answer of a dictionary entry in their main form."""
    return Turn(f"What does {entry['word']} mean?", f"{entry['word']} ({entry['part_of_speech']}): {entry['gloss']}.")


def sum_turn(a: int, b: int) -> Turn:
    """The question and answer of a sum in their main form."""
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    steps = f"{a // 10 * 10} + {b // 10 * 10} = {tens}. {a % 10} + {b % 10} = {ones}. {tens} + {ones} = {a + b}."
    return Turn(f"What is {a} + {b}?", f"{a} + {b} = {a + b}.", reasoning=steps)


class Conversations:
    """Draws conversations as segments; the same generator state gives the same conversation."""

    def __init__(self, dictionary: Sequence[dict[str, str]]) -> None:
        self._dictionary = dictionary
        self._with_synonym = [e for e in dictionary if e["synonym"]]
        self._with_kind = [e for e in dictionary if e["kind"]]
        self._kinds: list[tuple[float, Callable[[np.random.Generator], Segments]]] = [
            (0.44, self._definitions), (0.08, self._relations), (0.26, self._arithmetic), (0.08, self._small_talk),
            (0.08, self._remember), (0.06, self._mixed)]
        self._weights = np.cumsum([w for w, _ in self._kinds]) / sum(w for w, _ in self._kinds)

    def draw(self, rng: np.random.Generator) -> Segments:
        """One conversation of any kind but tools."""
        return self._kinds[int(np.searchsorted(self._weights, rng.random()))][1](rng)

    def draw_tools(self, rng: np.random.Generator) -> Segments:
        """One conversation with two tools, one of which is called; about 600 tokens."""
        thinking = rng.random() < 0.5
        if rng.random() < 0.5:
            city, word, degrees = _pick(rng, CITIES), _pick(rng, _WEATHER_WORDS), int(rng.integers(1, 36))
            question = _pick(rng, (f"Weather in {city}?", f"What is the weather in {city}?", f"How is the weather in {city} today?"))
            turn = Turn(question, f"It is {word} in {city}, {degrees} degrees.", reasoning=f"I need the weather in {city}.",
                        calls=[("get_weather", {"city": city})], results=[f"{word}, {degrees} degrees"])
        else:
            a, b = (int(v) for v in rng.integers(100, 500, 2))
            turn = Turn(f"What is {a} + {b}?", f"{a} + {b} = {a + b}.", reasoning="I need to add two numbers.",
                        calls=[("add", {"a": a, "b": b})], results=[str(a + b)])
        return render([turn], self._system(rng), [WEATHER, ADD], thinking)

    def _system(self, rng: np.random.Generator) -> str:
        return _pick(rng, SYSTEM_PROMPTS) if rng.random() < 0.3 else ""

    def _definition(self, rng: np.random.Generator) -> Turn:
        entry = _pick(rng, self._dictionary)
        turn = definition_turn(entry)
        if rng.random() < 0.3:
            word = entry["word"]
            turn.user = _pick(rng, (f"Define {word}.", f"What is the meaning of {word}?", f'What does "{word}" mean?', f"Explain the word {word}."))
        return turn

    def _definitions(self, rng: np.random.Generator) -> Segments:
        return render([self._definition(rng) for _ in range(int(rng.integers(1, 3)))], self._system(rng))

    def _relation(self, rng: np.random.Generator) -> Turn:
        if rng.random() < 0.5:
            entry = _pick(rng, self._with_synonym)
            return Turn(f"Give a synonym of {entry['word']}.", f"A synonym of {entry['word']} is {entry['synonym']}.")
        entry = _pick(rng, self._with_kind)
        return Turn(f"What kind of thing is {entry['word']}?", f"{entry['word']} is a kind of {entry['kind']}.")

    def _relations(self, rng: np.random.Generator) -> Segments:
        return render([self._relation(rng)], self._system(rng))

    def _sum(self, rng: np.random.Generator) -> Turn:
        while True:
            a, b = (int(v) for v in rng.integers(1 if rng.random() < 0.15 else 10, 100, 2))
            if not is_held_out_sum(a, b):
                return sum_turn(a, b)

    def _arithmetic(self, rng: np.random.Generator) -> Segments:
        if rng.random() < 0.08:
            a, b = (int(v) for v in rng.integers(2, 10, 2))
            return render([Turn(f"What is {a} * {b}?", f"{a} * {b} = {a * b}.")])
        thinking = rng.random() < 0.25
        return render([self._sum(rng) for _ in range(int(rng.integers(1, 4)))], self._system(rng), thinking=thinking)

    def _talk(self, rng: np.random.Generator) -> Turn:
        questions, answers = _pick(rng, _SMALL_TALK)
        return Turn(_pick(rng, questions), _pick(rng, answers), reasoning="This is small talk.")

    def _small_talk(self, rng: np.random.Generator) -> Segments:
        return render([self._talk(rng) for _ in range(int(rng.integers(1, 4)))], self._system(rng), thinking=rng.random() < 0.2)

    def _remember(self, rng: np.random.Generator) -> Segments:
        name, city = _pick(rng, NAMES), _pick(rng, CITIES)
        turns = [Turn(f"My name is {name}.", f"Nice to meet you, {name}!"), Turn(f"I live in {city}.", f"{city} is a nice city."),
                 Turn(f"The code of the {_pick(rng, ADJECTIVES)} {_pick(rng, NOUNS)} is {int(rng.integers(CODE_MIN, CODE_MAX + 1))}.", "I will remember it.")]
        item, code = turns[2].user[:-1].rsplit(" is ", 1)
        questions = [Turn("What is my name?", f"Your name is {name}."), Turn("Where do I live?", f"You live in {city}."),
                     Turn(f"What is {item[0].lower() + item[1:]}?", code)]
        chosen = [int(i) for i in rng.permutation(3)[: int(rng.integers(1, 4))]]
        middle = [self._talk(rng)] if rng.random() < 0.3 else []
        return render([turns[i] for i in chosen] + middle + [questions[i] for i in rng.permutation(chosen)], self._system(rng))

    def _mixed(self, rng: np.random.Generator) -> Segments:
        makers = (self._definition, self._sum, self._talk, self._relation)
        turns = [makers[int(rng.integers(len(makers)))](rng) for _ in range(int(rng.integers(2, 5)))]
        return render(turns, self._system(rng))


def _pick(rng: np.random.Generator, items: Sequence[Any]) -> Any:
    return items[int(rng.integers(len(items)))]
