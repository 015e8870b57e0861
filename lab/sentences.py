"""Random English sentences: a small grammar over common words, so that every phoneme and most pairs of them occur."""

from __future__ import annotations

import random

DETERMINERS = "the a this that my your our his her their every some another one each no the the a a".split()
PLURAL_DETERMINERS = """
the these those my your our his her their some many few all two three four five seven nine
""".split()
ADJECTIVES = """
old young small large green blue red yellow purple dark bright quiet loud early late strong weak heavy light warm cold
frozen gentle rough smooth narrow wide deep shallow empty full broken hidden golden silver wooden foreign curious
clever foolish honest proud humble famous secret ordinary strange careful careless dusty clean dirty sharp blunt sour
sweet bitter fresh rotten thick thin ancient modern usual joyful weary cheerful lonely busy lazy patient nervous
generous
""".split()
NOUNS = """
river mountain garden window kitchen teacher doctor sailor farmer soldier painter baker child mother father brother
sister cousin uncle neighbor stranger friend captain judge lawyer singer dancer writer king queen prince village city
castle bridge road street market church school station harbour island forest desert valley meadow orchard field stable
horse donkey sheep goat pig dog cat mouse bird eagle pigeon owl fish whale shark spider bee butterfly tree flower rose
leaf branch root seed apple orange lemon cherry peach onion carrot potato bread butter cheese egg sugar salt pepper
soup coffee tea milk water fire smoke ash stone brick iron gold paper pencil letter book story song voice shadow mirror
picture chair table cupboard blanket pillow candle lamp clock watch ring necklace jacket shirt shoe glove hat umbrella
engine wheel boat ship train carriage bicycle machine hammer needle thread rope basket bottle bucket ladder knife spoon
fork plate cup key lock door wall roof floor chimney cellar journey question answer promise mistake reason measure
treasure pleasure adventure weather thunder lightning winter summer autumn morning evening midnight noise silence music
hour minute year month week country language newspaper telephone message package present birthday holiday
""".split()
TRANSITIVE = """
found carried watched followed painted repaired remembered forgot noticed measured opened closed pushed pulled lifted
dropped washed cooked tasted bought sold borrowed lent stole hid lost chose threw caught broke built burned cleaned
counted covered crossed described drew enjoyed examined explored finished guarded heard imagined joined kept liked
missed needed offered owned passed planted praised promised reached reminded saved searched shared showed touched
understood visited wanted warned welcomed wrote
""".split()
INTRANSITIVE = """
laughed cried slept waited arrived vanished jumped danced sang whispered shouted listened walked ran climbed swam fell
rested worked played shivered smiled traveled returned appeared hesitated agreed argued breathed dreamed knocked
""".split()
ADVERBS = """
quickly slowly quietly loudly gladly sadly often never always sometimes suddenly carefully easily hardly nearly already
again once twice yesterday today tomorrow together alone outside inside everywhere early later usually very soon
""".split()
PREPOSITIONS = """
in on under over near behind beside beyond across through without with from towards around against
""".split()
CONJUNCTIONS = "and but while because before after although when if until so".split()
PRONOUNS = "I you he she it we they somebody nobody everyone".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
DIGITS = "one two three four five six seven eight nine".split()
MONTHS = "January February March April May June July August September October November December".split()
IRREGULAR = {
    "child": "children",
    "mouse": "mice",
    "sheep": "sheep",
    "fish": "fish",
    "leaf": "leaves",
    "knife": "knives",
}


def plural(noun: str) -> str:
    """The noun in the plural."""
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def random_sentence(rng: random.Random) -> str:
    """A sentence of one to three clauses, mostly 2 to 12 seconds long when spoken, without punctuation inside words."""
    clauses = [random_clause(rng)]
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2))):
        clauses.append(f"{rng.choice(CONJUNCTIONS)} {random_clause(rng)}")
    return " ".join(clauses)


def random_clause(rng: random.Random) -> str:
    """A sentence of one clause, about two seconds long when spoken."""
    kind = rng.random()
    if kind < 0.06:
        return f"it was the {rng.choice(('first', 'third', 'fifth', 'ninth', 'tenth'))} of {rng.choice(MONTHS)}"
    if kind < 0.12:
        return f"there were {rng.choice(TENS)} {rng.choice(DIGITS)} {plural(rng.choice(NOUNS))} {_place(rng)}"
    subject = rng.choice(PRONOUNS) if rng.random() < 0.25 else _noun_phrase(rng)
    adverb = f"{rng.choice(ADVERBS)} " if rng.random() < 0.3 else ""
    if rng.random() < 0.7:
        predicate = f"{adverb}{rng.choice(TRANSITIVE)} {_noun_phrase(rng)}"
    else:
        predicate = f"{adverb}{rng.choice(INTRANSITIVE)}"
    place = f" {_place(rng)}" if rng.random() < 0.45 else ""
    return f"{subject} {predicate}{place}"


def _noun_phrase(rng: random.Random) -> str:
    adjective = f"{rng.choice(ADJECTIVES)} " if rng.random() < 0.5 else ""
    if rng.random() < 0.3:
        return f"{rng.choice(PLURAL_DETERMINERS)} {adjective}{plural(rng.choice(NOUNS))}"
    noun = rng.choice(NOUNS)
    determiner = rng.choice(DETERMINERS)
    if determiner == "a" and (adjective or noun)[0] in "aeiou":
        determiner = "an"
    return f"{determiner} {adjective}{noun}"


def _place(rng: random.Random) -> str:
    return f"{rng.choice(PREPOSITIONS)} {_noun_phrase(rng)}"
