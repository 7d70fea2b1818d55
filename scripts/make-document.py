#!/usr/bin/env python3
"""Writes a long English text about a town and its gardens, with one fact planted in it and the question at its end.

The text comes from the small grammar below and a generator of our own, so a seed gives the same bytes everywhere.
Every list is drawn like cards from a shuffled deck: nothing comes again before the rest of its list has been used.
"""
import argparse
import re
import sys

FACT = "The secret passcode of the garden gate is 739154."
QUESTION = "What is the secret passcode of the garden gate?"
TOKENS_PER_WORD = 1.238      # of this grammar, with the tokenizer of SmolLM2
TOKENS_AROUND = 84           # chat format, planted fact, question and the answer begun

MONTHS = ("January February March April May June July August September October November December").split()
SEASONS = ["winter", "winter", "spring", "spring", "spring", "summer", "summer", "summer",
           "autumn", "autumn", "autumn", "winter"]

# {name} stands for one entry of that list; {month} and {season} follow the chapter.
GRAMMAR = {
    "sentence": """
{Garden} is at its best when {weather_clause}, and in {month} that happens more often than strangers believe.
{Person} spent the whole morning {garden_work}, and by noon {result}.
Along {street} the {trees} were {tree_state}, and children {child_play} beneath them until the bells rang.
Nobody could say who had planted the {flowers} beside {place}, but everyone agreed that they had never looked so {look}.
The river was {river_state} that week, and {person} measured it every evening with a notched {wood} pole.
In the market hall one could buy {goods}, {goods} and, from {person}, {goods} wrapped in old newspaper.
{Person} and {person} argued for an hour about {dispute}, and then shared a pot of {drink} as if nothing had been said.
It was the kind of {season} day on which {weather_clause}, and even the {bird} on the roof of {place} kept still.
The council met twice in {month} to talk about {matter}, and both times it decided to {decision}.
Behind {place} there is a narrow path that leads to {garden}, though it is easily missed when the {flowers} are tall.
An old map in the library shows {garden} as {old_use}, with a fence of {wood} all around it.
{Person} keeps a notebook in which every {bird} of the season is written down with its hour and its place.
When the wind turned, the smell of {smell} drifted from {street} as far as {place}.
The schoolchildren drew {drawn} for the spring exhibition, and {person} hung the best of them in the window.
For {number} years {person} has repaired the {thing} of the town without once raising the price.
The first {flowers} opened on a {weekday}, which {person} took for a sign of {sign}.
Visitors who come by the {transport} usually ask for {place}, and they are usually sent through {garden}.
There was a concert in {garden}, with {instrument}, {instrument} and a choir that had practised since {other_month}.
{Person} says that a {thing} made of {wood} will outlast three made of anything else.
The rain stopped shortly before {hour}, and within minutes {street} was full of people carrying {carried}.
Of all the houses on {street}, the one with the {colour} door has the most {look} view of the river.
A pair of {bird}s nested under the eaves of {place}, and the painters agreed to wait until the young had flown.
{Person} remembers the year when {disaster}, and still tells the story to anyone who will sit down for it.
The gardeners divided the {flowers} in the {season} and gave what was left to {person}, who never refuses a plant.
On market days the {animal} of {person} sleeps between the baskets, and customers step over it with great care.
A letter arrived from {far_place}, asking whether the {trees} of {garden} could be visited by a party of {number}.
The bakery on {street} tried a new loaf with {goods}, and it was sold out before {hour}.
Some evenings {person} rows to the island with a lamp, a blanket and a book about {book}.
The {thing} at the corner of {street} was painted {colour} again, as it has been every {number} years.
What {person} likes most about {month} is the light, which falls on {place} as though through thin paper.
Two {tradespeople} came from {far_place} to look at {place}, and they stayed until the leaves fell.
The {bird}s left early this year, and {person} wrote as much on the board outside the school.
Every household on {street} owes one day a year to {garden}, and most of them choose a day in {month}.
The well in {garden} is {number} feet deep, and its water tastes faintly of {taste}.
{Person} found a {found} under the roots of an old tree and gave it to the small museum near {place}.
Snow or no snow, the lamps on {street} are lit at dusk by {person}, who learned the work from an aunt.
The {tradespeople} hold their supper in {month}, and by custom the youngest of them tells a story about {book}.
A {look} hedge of {trees} keeps the wind from {garden}, and {person} trims it twice a year by eye.
The ferry was late on {weekday}, so {person} waited in the tea room and learned a great deal about {dispute}.
Between {place} and the river lie the allotments, where {goods} and {goods} grow in rows as straight as print.
At the edge of {garden} stands a bench of {wood}, given by {person} in memory of a patient {animal}.
The clock struck {hour} just as {person} came down {street} with a cart of {carried}.
It is said in {far_place} that our town grows the finest {goods}, and nobody here has ever denied it.
{Person} taught the younger children how to {skill}, and for weeks they did nothing else.
Mist lay over {garden} until late in the morning, and the {flowers} looked {look} and far away.
The museum now owns {number} paintings of {place}, and in all of them the {trees} are too large.
When {weather_clause}, the {tradespeople} leave their doors open and talk across {street}.
{Person} planted a row of {trees} for every grandchild, and the row now reaches almost to {place}.
The new {thing} was carried through {street} by eight people, while {person} walked ahead and rang a bell.
Some say {garden} was once {old_use}; others say that it has always been what it is, only larger.
The beekeepers had a {look} year, and {person} sold honey that tasted of {taste}.
There is a rule that no cart may stand on {street} after {hour}, and there is a second rule that excuses {person}.
In the reading room a lecture was given about {book}, and afterwards there was {drink} for everybody.
The frost came on a {weekday} night, but {person} had already covered the {flowers} with straw and sacking.
A stray {animal} took up residence in {garden} and was soon as well known there as the gardener.
The stonecutters finished the steps below {place}, which are now broad enough for {instrument} and a bride.
{Person} wrote to the newspaper about {matter}, and the answer took up half a page in the next edition.
From the tower you can see the {trees} of {garden}, the bend of the river and, on clear days, {far_place}.
Seeds were exchanged in the hall of {place}, and the packets of {flowers} were gone within the hour.
The orchard gave {number} baskets of fruit this {season}, and {person} dried a good part of it on the attic floor.
""",
    "person": """
Agnes Holloway
old Mr. Pettigrew
Tobias Lindqvist
the miller's daughter
Clara Bexley
Dr. Amadi
Henrik the ferryman
Mrs. Okonkwo
the younger Miss Farrow
Samuel Thorne
Beatrice Vale
the schoolmaster
Ines Caldeira
Walter Quill
Captain Rosewood
the widow Tamsin
Jonas Merriweather
Philippa Dunmore
the new librarian
Ravi Chandran
Edith Marlowe
the organist
Casper Nyholm
Lucinda Grey
the lamplighter's nephew
Oswin Tate
Margit Halloran
the postmistress
Gideon Ashby
Rosalind Peake
""",
    "garden": """
the Rose Walk
the Physic Garden
Abbot's Orchard
the Water Garden
the Long Border
the Fern House
the Lower Meadow
Quince Court
the Sundial Lawn
the Old Nursery
the Herb Terrace
the Walled Garden
Lantern Green
the Poplar Walk
""",
    "street": """
Cooper Street
Bellfounder Lane
Tanner's Row
the Upper Quay
Saint Brigid's Hill
Weaver Street
the Cornmarket
Candle Alley
Orchard Road
Ropewalk Lane
Miller's Rise
the Shambles
Ferry Street
""",
    "place": """
the town hall
the stone bridge
the clock tower
the old brewery
the grammar school
the boat house
the almshouses
the corn exchange
the chapel of Saint Brigid
the railway station
the reading room
the windmill
the glasshouse
the customs house
""",
    "trees": """
lime trees
plum trees
copper beeches
old pear trees
silver birches
chestnuts
hawthorns
walnut trees
hornbeams
crab apples
maples
elms
""",
    "flowers": """
foxgloves
asters
irises
wallflowers
snowdrops
peonies
hollyhocks
larkspurs
primroses
lilies
poppies
sweet peas
marigolds
hyacinths
columbines
dahlias
""",
    "bird": """
heron
blackbird
swallow
jackdaw
goldfinch
owl
starling
kingfisher
wagtail
nightingale
swift
wren
""",
    "animal": """
cat
terrier
goat
pony
goose
spaniel
donkey
tortoise
""",
    "weather_clause": """
the fog lifts before breakfast
a warm wind comes up from the valley
the clouds hang low over the hills
the air is clear after a night of rain
the sun reaches the north wall at last
the frost lies white on the grass
a light rain falls without any wind
the heat stands still between the houses
thunder mutters behind the ridge
the first stars come out while the sky is still green
""",
    "garden_work": """
pruning the climbing roses
turning the compost with a long fork
tying up the raspberry canes
washing flower pots in the stone trough
raking leaves into careful heaps
setting out lettuces under glass
mending the fence by the pond
sowing carrots in the lightest soil
clearing the drains below the terrace
grafting old apples onto young stock
carrying water to the seedlings
weeding the gravel on hands and knees
""",
    "result": """
the whole border looked newly made
there was nothing left to do but look at it
a small crowd had gathered to give advice
both wheelbarrows were broken
the worst of it was done
even the neighbours had to admit the difference
the tea had gone cold three times
there were blisters to show for it
""",
    "tree_state": """
already bare
heavy with blossom
dripping from the night's rain
full of quarrelling sparrows
yellow from top to bottom
just coming into leaf
hung with paper lanterns
loud with bees
""",
    "child_play": """
rolled hoops
traded marbles
played at pirates
threw a ball of rags
sang counting songs
built a house of twigs
skipped rope
flew a patched kite
""",
    "look": """
fine
generous
modest
splendid
peculiar
peaceful
handsome
curious
delicate
cheerful
""",
    "river_state": """
low and clear
brown with rain
higher than the second step
covered with drifting leaves
as smooth as a table
frozen along both banks
noisy under the arches
slow and green
""",
    "wood": """
oak
ash
willow
cherry wood
larch
yew
chestnut
elm
""",
    "goods": """
leeks
smoked trout
goat cheese
red currants
walnuts
dried apples
rye bread
honey
mushrooms
beeswax
onions
pickled plums
barley
elderflower syrup
cabbages
gooseberries
""",
    "drink": """
black tea
cider
coffee
barley soup
mulled wine
mint tea
hot chocolate
elderberry cordial
""",
    "dispute": """
the right depth for tulip bulbs
whose grandfather had built the weir
the price of coal
the proper way to stack firewood
whether swallows sleep in the mud
the spelling of a street name
the best month for moving bees
the ownership of a ladder
a chess game lost long ago
the pitch of the church bell
""",
    "matter": """
the leaking roof of the boat house
the width of the new pavement
the noise of the geese
the colour of the bandstand
the hours of the library
the naming of a footbridge
the cost of lamp oil
the future of the allotments
""",
    "decision": """
wait for better weather
ask the engineer again
leave things as they were
appoint a committee of three
vote at the next meeting
write a polite letter
accept the lowest offer
measure everything once more
""",
    "old_use": """
a drying ground for linen
a monks' fishpond
a timber yard
a place for the horse fair
a field of flax
a bowling green
a vineyard that never ripened
a camp for bridge builders
""",
    "smell": """
fresh bread
cut hay
roasted coffee
wood smoke
wet stone
hops
warm tar
lilac
""",
    "drawn": """
boats with striped sails
the mayor on a horse
every bridge they could remember
owls with enormous eyes
the river as a blue ribbon
their own front doors
a parade of vegetables
the town as seen from a cloud
""",
    "number": """
eleven
fourteen
seventeen
nineteen
twenty-two
twenty-six
thirty
thirty-four
forty-one
sixty
""",
    "thing": """
weather vane
pump
bandstand
signpost
sundial
fountain
village cart
garden swing
bookcase
church door
""",
    "weekday": """
Monday
Tuesday
Wednesday
Thursday
Friday
Saturday
Sunday
""",
    "sign": """
a dry summer
good luck for sailors
an early harvest
a wedding in the family
a mild winter
better times
visitors from abroad
a quarrel soon mended
""",
    "transport": """
morning train
river steamer
mountain road
post coach
night train
towpath
""",
    "instrument": """
two violins
a cello
a borrowed harp
three clarinets
a brass quartet
an accordion
a very small drum
four flutes
""",
    "other_month": """
the first frost
the harvest
last spring
the day of the fair
midsummer
the new year
""",
    "hour": """
seven
eight
nine
ten
noon
three
four
five
six
""",
    "carried": """
umbrellas
empty baskets
flower boxes
bundles of reeds
new-cut timber
kindling
clay pots
rolled carpets
""",
    "colour": """
blue
dark green
yellow
crimson
white
grey
pale pink
""",
    "disaster": """
the river took the lower bridge
the hail broke every pane of the glasshouse
the bees swarmed in the courtroom
the snow reached the second windows
the brewery burned for two nights
the harvest drowned in the fields
a travelling circus lost its bear
the well ran dry in the middle of summer
""",
    "far_place": """
the capital
the coast
the next valley
the university
the islands
the mountain villages
the southern ports
the old mining country
""",
    "tradespeople": """
carpenters
masons
clockmakers
bookbinders
gardeners
surveyors
weavers
potters
""",
    "book": """
comets
the habits of eels
the building of cathedrals
lost rivers
a shipwreck
the history of salt
alpine flowers
the winds of the world
famous clocks
the grammar of birds
""",
    "taste": """
iron
thyme
lime blossom
heather
slate
clover
mint
chestnut
""",
    "found": """
copper coin
clay pipe
silver thimble
rusted sword hilt
glass bead
leaden seal
bone comb
child's tin horse
""",
    "skill": """
plait willow baskets
whistle with a blade of grass
read a barometer
graft a rose
tie a bowline
bake flat bread on a stone
keep a diary of the weather
call an owl
""",
}


class Dice:
    """Knuth's 64-bit linear congruential generator; only its upper half is used."""

    def __init__(self, seed):
        self.state = (seed * 0x9E3779B97F4A7C15 + 1) % 2**64

    def below(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 32) * n >> 32


class Grammar:
    def __init__(self, dice):
        self.dice = dice
        self.lists = {name: text.strip().split("\n") for name, text in GRAMMAR.items()}
        self.decks = {name: [] for name in self.lists}

    def draw(self, name):
        deck = self.decks[name]
        if not deck:
            deck.extend(self.lists[name])
        return deck.pop(self.dice.below(len(deck)))

    def sentence(self, month):
        said = {"month": MONTHS[month], "season": SEASONS[month]}

        def fill(match):
            name = match.group(1)
            text = said.get(name) or self.draw(name.lower())
            return text if name.islower() else text[0].upper() + text[1:]

        return re.sub(r"\{(\w+)\}", fill, self.draw("sentence"))


def paragraphs(seed, n_words):
    """Chapters of three paragraphs of four to six sentences, one chapter a month; ends with the sentence that makes
    n_words."""
    dice = Dice(seed)
    grammar = Grammar(dice)
    year, month, n_left = 1, dice.below(12), n_words
    while True:
        for part in range(3):
            text = f"{MONTHS[month]}, year {year}." if part == 0 else ""
            n_left -= len(text.split())
            for _ in range(4 + dice.below(3)):
                sentence = grammar.sentence(month)
                text = f"{text} {sentence}".lstrip()
                n_left -= len(sentence.split())
                if n_left <= 0:
                    yield text
                    return
            yield text
        month = (month + 1) % 12
        year += month == 0


def document(seed, n_words, fact, depth, question):
    body = list(paragraphs(seed, n_words))
    if fact:
        ends = [0]
        for text in body:
            ends.append(ends[-1] + len(text))
        place = min(range(len(ends)), key=lambda i: abs(ends[i] - depth * ends[-1]))
        body.insert(place, fact)
    if question:
        body.append(question)
    return "\n\n".join(body) + ("" if question else "\n")


def main():
    parser = argparse.ArgumentParser(description="Writes a long generated text with a planted fact to standard output.")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--words", type=int, help="length of the text itself in words")
    size.add_argument("--tokens-approx", type=int, default=6500, help="length in tokens of SmolLM2 as one chat "
                      "turn, within two percent (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="another seed, another text (default: %(default)s)")
    parser.add_argument("--fact", default=FACT, help="the sentence to plant; empty: none (default: %(default)s)")
    parser.add_argument("--depth", type=float, default=0.4, help="where: 0 = first, 1 = last (default: %(default)s)")
    parser.add_argument("--question", default=QUESTION, help="the last line; empty: none (default: %(default)s)")
    options = parser.parse_args()
    n_words = options.words if options.words is not None else round(
        (options.tokens_approx - TOKENS_AROUND) / TOKENS_PER_WORD)
    if n_words < 1 or not 0 <= options.depth <= 1:
        parser.error("needs at least one word, and a depth from 0 to 1")
    sys.stdout.write(document(options.seed, n_words, options.fact, options.depth, options.question))


if __name__ == "__main__":
    main()
