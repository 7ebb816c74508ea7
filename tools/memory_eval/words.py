"""The words that generated tasks and filler are made of. Plain lists, nothing else."""

from __future__ import annotations

from typing import NamedTuple

# Each word belongs to one list alone, so that a question about one has one right answer.
KINDS: dict[str, tuple[str, ...]] = {
    "an animal": ("horse", "otter", "donkey", "rabbit", "badger", "squirrel", "goat", "tiger", "camel", "beaver"),
    "a bird": ("sparrow", "eagle", "heron", "raven", "swan", "falcon", "magpie", "pigeon", "stork", "robin"),
    "a tool": ("hammer", "chisel", "wrench", "saw", "drill", "shovel", "rake", "pliers", "axe", "screwdriver"),
    "a vehicle": ("tram", "bicycle", "truck", "ferry", "tractor", "canoe", "scooter", "wagon", "helicopter", "train"),
    "a colour": ("purple", "green", "yellow", "crimson", "blue", "grey", "black", "white", "scarlet", "brown"),
    "a musical instrument": ("violin", "flute", "trumpet", "drum", "cello", "harp", "piano", "guitar", "banjo", "oboe"),
    "a piece of furniture": ("table", "sofa", "wardrobe", "stool", "bench", "bookcase", "desk", "cupboard", "armchair"),
    "something to wear": ("jacket", "scarf", "glove", "boot", "sweater", "trousers", "apron", "raincoat", "sock"),
    "a part of the body": ("elbow", "knee", "shoulder", "ankle", "thumb", "wrist", "chin", "forehead", "heel"),
    "a kind of weather": ("rain", "snow", "hail", "fog", "thunder", "sleet", "drizzle", "frost"),
    "a tree": ("oak", "birch", "willow", "maple", "pine", "cedar", "poplar", "spruce", "beech"),
    "a profession": ("plumber", "nurse", "lawyer", "teacher", "sailor", "carpenter", "dentist", "farmer", "barber"),
}

GROCERIES = (
    "apples", "bread", "butter", "cheese", "eggs", "flour", "honey", "lemons", "milk", "mushrooms", "onions", "pasta",
    "pepper", "potatoes", "rice", "salt", "spinach", "sugar", "tomatoes", "yogurt", "bananas", "carrots", "coffee",
    "garlic", "grapes", "lentils", "mustard", "noodles", "olives", "oranges", "peaches", "peanuts", "pears", "beans",
    "cabbage", "celery", "cherries", "chocolate", "cucumbers", "vinegar",
)  # fmt: skip


class Topic(NamedTuple):
    """told: what a person says, {} being the detail. again: how talk comes back to it. reply: up to the detail."""

    told: str
    again: str
    reply: str
    details: tuple[str, ...]


TOPICS = (
    Topic(
        "I moved house last spring, and now I live in {}.",
        "The streets around my new home are noisy at night.",
        "It must be loud in",
        ("Lisbon", "Oslo", "Prague", "Vienna", "Dublin", "Geneva", "Madrid", "Athens", "Boston", "Kyoto", "Naples"),
    ),
    Topic(
        "My sister is called {}, and she visits us in the summer.",
        "My sister has just written to me again.",
        "Please say hello to",
        ("Clara", "Nadia", "Ingrid", "Paula", "Helen", "Maria", "Sofia", "Laura", "Emma", "Julia", "Teresa"),
    ),
    Topic(
        "We have a pet at home, a {}, which sleeps all day.",
        "Our pet ate the flowers on the balcony.",
        "Then keep the flowers away from the",
        ("cat", "parrot", "hamster", "turtle", "poodle", "lizard", "goldfish", "ferret", "puppy", "canary"),
    ),
    Topic(
        "I began to play the {} two years ago.",
        "I had a music lesson this morning.",
        "By now you must be good at the",
        KINDS["a musical instrument"],
    ),
    Topic(
        "For a living I work as a {}.",
        "My boss gave me two days off.",
        "Even so, enjoy your work as a",
        KINDS["a profession"],
    ),
    Topic(
        "What I like best for dinner is {}.",
        "Tonight I will cook my favourite dinner.",
        "I hope that you enjoy the",
        ("soup", "pizza", "curry", "salmon", "risotto", "dumplings", "stew", "pancakes", "lasagna", "paella"),
    ),
    Topic(
        "The front door of our house is painted {}.",
        "Somebody scratched our front door.",
        "You can paint it again in",
        KINDS["a colour"],
    ),
    Topic(
        "Our holiday begins in {}, and we go to the sea.",
        "I have bought the tickets for the holiday.",
        "So you will leave in",
        ("January", "February", "March", "April", "June", "July", "August", "September", "October", "November"),
    ),
    Topic(
        "In the garden I planted a young {} beside the fence.",
        "The tree in my garden lost a branch in the storm.",
        "I am sorry to hear that about the",
        KINDS["a tree"],
    ),
    Topic(
        "My neighbour goes to work by {} every day.",
        "My neighbour was late for work again.",
        "Perhaps there was trouble with the",
        KINDS["a vehicle"],
    ),
)

# Facts to be planted: (the statement up to its answer, the qualities that tell near misses apart, the possible answers;
# none for a number of four digits).
FACTS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("The code of the {} locker is", ("green", "blue", "red", "yellow", "white", "black"), ()),
    ("The number of the {} ticket is", ("first", "second", "third", "fourth", "last", "missing"), ()),
    ("The telephone of the {} office is", ("northern", "southern", "eastern", "western", "central", "upper"), ()),
    ("The password of the {} door is", ("front", "back", "cellar", "attic", "garage", "garden"), GROCERIES),
    ("The owner of the {} boat is the", ("old", "new", "long", "fast", "slow", "broken"), KINDS["a profession"]),
    ("The sign on the {} house is the", ("corner", "brick", "stone", "wooden", "tall", "empty"), KINDS["an animal"]),
    ("The gift for the {} guest is the", ("Danish", "Polish", "Indian", "Greek", "Swedish", "Irish"), KINDS["a tool"]),
    (
        "The mark of the {} team is the",
        ("winning", "losing", "visiting", "local", "youngest", "oldest"),
        KINDS["a bird"],
    ),
)

PLACES = ("mill", "harbour", "market", "school", "bridge", "station", "garden", "library", "workshop", "square", "farm")
PEOPLE = ("miller", "captain", "baker", "clerk", "gardener", "widow", "doctor", "smith", "child", "stranger", "guard")
DOINGS = (
    "walked slowly past the {place}",
    "waited a long time at the {place}",
    "spoke of the weather near the {place}",
    "carried a heavy bag towards the {place}",
    "looked for the {other} behind the {place}",
    "asked the {other} about the road to the {place}",
    "sat down beside the {other} in the {place}",
    "forgot an umbrella at the {place}",
)
TIMES = ("In the morning", "Later that day", "After the rain", "On Sunday", "Before dinner", "At night", "Once more")
