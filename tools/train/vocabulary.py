"""Closed word lists of the generated material.  Every entry is one token of the tokenizer (prepare.py checks it)."""
from __future__ import annotations

ADJECTIVES: tuple[str, ...] = tuple(
    """red blue green yellow white black brown grey pink purple golden silver old new small large tall short long
    round square heavy light dark bright cold warm dry wet soft hard quiet loud quick slow broken empty full hidden
    lost rusty wooden iron glass paper stone sharp simple strange plain pretty""".split()
)
NOUNS: tuple[str, ...] = tuple(
    """lantern bottle ladder hammer basket mirror candle carpet blanket pillow bucket kettle table chair window door
    garden bridge tower castle church school market station harbour river mountain valley forest island desert
    village engine wagon bicycle boat ship train plane rocket camera radio clock watch piano violin guitar drum
    trumpet flute book letter map picture statue ring crown sword shield arrow rope chain anchor wheel key lock
    box chest drawer shelf cabinet desk lamp stove oven plate spoon fork knife cup bowl glove coat hat boot shirt
    scarf belt button needle thread ribbon apple orange lemon cherry potato onion carrot tomato pepper bread cheese
    butter honey sugar coffee horse donkey goat sheep rabbit mouse tiger lion bear wolf fox eagle falcon owl raven
    parrot dolphin whale shark turtle spider""".split()
)
NAMES: tuple[str, ...] = tuple(
    """Anna Peter Maria John Sarah Thomas Emma David Laura Daniel Julia Martin Clara Paul Helen Robert Alice Henry
    Lucy George""".split()
)
CITIES: tuple[str, ...] = tuple("Paris London Berlin Rome Madrid Vienna Lisbon Athens Oslo Prague Dublin Tokyo Cairo Boston".split())

CODE_MIN, CODE_MAX = 100, 999  # the value of a fact; each is one token
