"""Attribute matching (PS3.4 C.2.2.2)."""

import pytest

from dicom_scp.services.matching import Key, date_range, matches, name_parts


def stored(vr: str, *values: object) -> dict[str, object]:
    return {"vr": vr, "Value": list(values)}


NAME = stored("PN", {"Alphabetic": "Zhang^San", "Ideographic": "张^三"})


@pytest.mark.parametrize(
    "asked",
    [
        "Zhang^San",
        "ZHANG^SAN",
        "zh*",
        "*san",
        "Zhang^San^^",
        "Zhang?S*n",
        "ZHANGSAN",
        "张^三",
        "张三",
        "张*",
        "Zhang San",
        "zhang*=张*",
        "=张^三",
        "?hang*",
    ],
)
def test_name_is_found_by(asked: str) -> None:
    assert matches(Key("00100010", "PN", (asked,)), NAME)


@pytest.mark.parametrize("asked", ["Zhang", "San*", "张", "zhang*=王*", "Li*", "=San*"])
def test_name_is_not_found_by(asked: str) -> None:
    assert not matches(Key("00100010", "PN", (asked,)), NAME)


def test_accents_of_a_name_do_not_matter() -> None:
    assert matches(
        Key("00100010", "PN", ("Muller^*",)),
        stored("PN", {"Alphabetic": "Müller^Ute"}),
    )


@pytest.mark.parametrize(
    ("vr", "asked", "told", "found"),
    [
        ("DA", "20260102", "20260102", True),
        ("DA", "20260101-20260131", "20260131", True),
        ("DA", "20260101-", "20251231", False),
        ("DA", "-20260101", "20260101", True),
        ("TM", "0900-1000", "095959.5", True),
        ("TM", "0900-1000", "1000", True),
        ("TM", "0900-1000", "100100", False),
        ("TM", "10", "100000", True),
        ("TM", "-0830", "083045", True),
        ("DT", "202601-202602", "20260228235959", True),
        ("DT", "202601-202602", "20260301", False),
        ("CS", "U?", "US", True),
        ("CS", "us", "US", False),
        ("LO", "*breast*", "left breast US", True),
        ("LO", "a.c", "abc", False),
        ("IS", "1", 1, True),
        ("IS", "01", 1, True),
        ("DS", "1.50", 1.5, True),
        ("UI", "1.2.3", "1.2.3", True),
        ("UI", "1.2.*", "1.2.3", False),
    ],
)
def test_single_value(vr: str, asked: str, told: object, found: bool) -> None:
    assert matches(Key("00000000", vr, (asked,)), stored(vr, told)) is found


def test_one_of_a_list_of_uids_is_enough() -> None:
    assert matches(Key("0020000D", "UI", ("1.2", "1.3")), stored("UI", "1.3"))


def test_missing_value_matches_nothing_but_the_universal_key() -> None:
    assert matches(Key("00100040", "CS", ()), None)
    assert matches(Key("00100040", "CS", ("*",)), None)
    assert not matches(Key("00100040", "CS", ("F",)), None)


def test_item_of_a_sequence_has_to_match_all_its_keys() -> None:
    item = {"00400009": stored("SH", "S1"), "00401001": stored("SH", "R1")}
    inner = (Key("00400009", "SH", ("S1",)), Key("00401001", "SH", ("R2",)))
    assert matches(Key("00400275", "SQ", items=inner[:1]), stored("SQ", item))
    assert not matches(Key("00400275", "SQ", items=inner), stored("SQ", item))


def test_beginnings_of_names_are_what_stands_before_the_first_wildcard() -> None:
    assert name_parts("Zhang^S*n=张*") == ("S", "Zhang", "张")
    assert name_parts("*san") == ()


def test_open_ends_of_a_date_range_stay_open() -> None:
    first, last = date_range(Key("00080020", "DA", ("20260101-",)))
    assert (str(first), last) == ("2026-01-01", None)


@pytest.mark.parametrize("hostile", ["*" * 2000 + "x", "*a" * 60 + "b"])
def test_pattern_of_many_wildcards_takes_no_time(hostile: str) -> None:
    assert not matches(Key("0008103E", "LO", (hostile,)), stored("LO", "a" * 64))
