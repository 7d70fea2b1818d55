#!/usr/bin/env python3
"""Writes a long English text about a town and its gardens, with one fact planted in it and the question at its end.

The text comes from the small grammar in eval/word-lists.txt and a generator of our own, so a seed gives the same bytes
everywhere.  Every list is drawn like cards from a shuffled deck: nothing comes again before the rest of its list has
been used.
"""
import argparse
import os
import re
import sys

FACT = "The secret passcode of the garden gate is 739154."
QUESTION = "What is the secret passcode of the garden gate?"
TOKENS_PER_WORD = 1.238      # of this grammar, with the tokenizer of SmolLM2
TOKENS_AROUND = 84           # chat format, planted fact, question and the answer begun

def word_lists():
    """Lists by name; [name] heads a list.  {name} in an entry stands for one entry of that list."""
    lists = {}
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../eval/word-lists.txt")
    with open(path, encoding="utf-8") as file:
        for line in file.read().splitlines():
            if line.startswith("["):
                entries = lists.setdefault(line[1:-1], [])
            else:
                entries.append(line)
    return lists


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
        self.lists = word_lists()
        self.decks = {name: [] for name in self.lists}

    def draw(self, name):
        deck = self.decks[name]
        if not deck:
            deck.extend(self.lists[name])
        return deck.pop(self.dice.below(len(deck)))

    def sentence(self, month):
        said = {name: self.lists[name][month] for name in ("month", "season")}      # they follow the chapter

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
            text = f"{grammar.lists['month'][month]}, year {year}." if part == 0 else ""
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
