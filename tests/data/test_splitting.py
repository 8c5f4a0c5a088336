"""The division into training and validation: against hashes and films computed plainly, and its promises."""

import hashlib
import re

import numpy as np
import pytest

from fasseg_jax.data.splitting import FRAMES, divide

NAMES = [f"{word}{index}{tail}" for index in range(300) for word, tail in (("street", "a"), ("b/garden", "-x"))]


def plain_hash(name: str) -> float:
    return int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16**12


def chosen(names, *arguments, **options):
    return {names[index] for index in divide(names, *arguments, **options).validation}


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_photos_with_a_low_hash_are_for_validation(share):
    expected = {name for name in NAMES if plain_hash(name) < share}
    assert abs(len(expected) / len(NAMES) - share) < 0.06
    assert chosen(NAMES, share) == expected
    assert chosen(NAMES[::-1], share) == expected


def test_more_photos_do_not_move_those_that_are_there():
    before = chosen(NAMES[:400], 0.2)
    assert chosen(NAMES, 0.2) & set(NAMES[:400]) == before


def test_of_few_photos_the_next_hashes_follow():
    """At least half the share, at most twice the share, at least one, never all."""
    for count in range(2, 60):
        names = [f"x{index}y" for index in range(1000 * count, 1001 * count)]
        order = sorted(names, key=plain_hash)
        found = chosen(names, 0.2)
        assert found == set(order[: len(found)])
        assert max(1, 0.1 * count) <= len(found) <= max(1, 0.4 * count)
    assert chosen(["a"], 0.2) == chosen(NAMES, 0) == set()


def films(*sizes, start=0):
    return [
        f"run{chr(97 + film)}_{number:04}" for film, size in enumerate(sizes) for number in range(start, start + size)
    ]


def test_frames_of_a_film_stay_together():
    names = films(*[20] * 10, FRAMES - 1)
    division = divide(names, 0.2)
    assert division.films == 10 and division.divided == 0
    found = {names[index] for index in division.validation}
    for film in "abcdefghij":
        frames = {name for name in names if name.startswith(f"run{film}_")}
        whole = plain_hash(f"run{film}_") < 0.2
        assert frames & found == (frames if whole else set())
    for name in names[200:]:  # one frame too few: each by itself
        assert (name in found) == (plain_hash(name) < 0.2)
    assert divide(names, 0.2, "none").films == 0
    assert chosen(names, 0.2, "none") == {name for name in names if plain_hash(name) < 0.2}


def test_a_film_that_is_too_large_stays_in_training_or_is_divided():
    names = films(60, 12, 12, 12)
    found = chosen(names, 0.2)
    assert found and not any(name.startswith("runa") for name in found)
    division = divide(films(60, 5), 0.2)  # nothing else would be left
    assert (division.films, division.divided) == (0, 1)
    assert 6 <= len(division.validation) <= 26


@pytest.mark.parametrize("name", ["IMG_{:04}", "DSC{:05}", "{:06}", "photos/img-{}", "day2/{}"])
def test_numbers_of_cameras_are_no_films(name):
    assert divide([name.format(index) for index in range(100)] + films(30), 0.2).films == 1


def test_names_that_begin_with_the_same_match_stay_together():
    names = [f"{patient}-{slice_}" for patient in range(40) for slice_ in range(5)]
    division = divide(names, 0.2, r"\d+-")
    assert division.films == 40
    groups = {re.match(r"\d+-", name)[0] for name in names if names.index(name) in division.validation}
    assert groups == {f"{patient}-" for patient in range(40) if plain_hash(f"{patient}-") < 0.2}
    assert len(division.validation) == 5 * len(groups)
    assert not divide(names, 0.2, "").validation  # all in one group


@pytest.mark.parametrize("seed", range(20))
def test_each_class_of_several_photos_is_on_both_sides(seed):
    rng = np.random.default_rng(seed)
    names = [f"p{index}q" for index in rng.choice(10**6, 40, replace=False)]
    classes = [frozenset(f"c{number}" for number in np.flatnonzero(rng.random(12) < 0.06)) for _ in names]
    division = divide(names, 0.2, classes=classes)
    inside = division.validation
    for name in {name for each in classes for name in each}:
        holders = {index for index, each in enumerate(classes) if name in each}
        both = bool(holders & inside) and bool(holders - inside)
        assert both == (len(holders) > 1) or name in division.one_sided
    # Without classes that need it nobody moves.
    free = divide(names, 0.2).validation
    assert division.moved == len(free ^ inside)
    same = [frozenset({"sky"})] * len(names)
    assert divide(names, 0.2, classes=same).validation == free


def test_a_rare_class_moves_the_photo_with_the_next_hash():
    names = [f"p{index}q" for index in range(50)]
    order = sorted(range(50), key=lambda index: plain_hash(names[index]))
    count = len(divide(names, 0.2).validation)
    classes = [frozenset({"sky"})] * 50
    for index in (order[count + 3], order[count + 9]):  # both in training
        classes[index] = frozenset({"sky", "bridge"})
    assert divide(names, 0.2, classes=classes).validation == {*order[:count], order[count + 3]}
    classes = [frozenset({"sky"})] * 50
    for index in order[:2]:  # both for validation
        classes[index] = frozenset({"sky", "bridge"})
    assert divide(names, 0.2, classes=classes).validation == {*order[:count]} - {order[1]}


def test_a_film_with_a_class_to_itself_is_divided():
    """Photos of breeds are called breed_1, breed_2, ...: whole breeds must not be missing from training."""
    names = [f"{breed}_{index}" for breed in ("beagle", "pug", "boxer", "collie") for index in range(25)]
    classes = [frozenset({name.partition("_")[0]}) for name in names]
    division = divide(names, 0.2, classes=classes)
    assert (division.films, division.divided, division.one_sided) == (0, 4, ())
    kept = divide(names, 0.2, r"[a-z]+_", classes)  # as a person says: then classes are missing, and named
    assert kept.films == 4 and set(kept.one_sided) == {"beagle", "pug", "boxer", "collie"}


def test_what_an_earlier_import_decided_stays():
    names = [f"p{index}q" for index in range(60)]
    decided = {index: index % 7 == 0 for index in range(30)}
    classes = [frozenset({"bridge"}) if index in (1, 2) else frozenset() for index in range(60)]
    division = divide(names, 0.2, classes=classes, decided=decided)
    assert {index for index in division.validation if index < 30} == {index for index in range(30) if index % 7 == 0}
    assert division.one_sided == ("bridge",)
