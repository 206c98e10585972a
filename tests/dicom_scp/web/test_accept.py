"""What clients in the field write into Accept (PS3.18 8.7)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_scp.web.accept import Wanted, wanted

BASELINE = "1.2.840.10008.1.2.4.50"
EXPLICIT = "1.2.840.10008.1.2.1"


def test_no_header_means_anything() -> None:
    assert wanted([]) == [Wanted("*/*", multipart=True)]


@pytest.mark.parametrize(
    "header",
    [
        'multipart/related; type="application/octet-stream"; transfer-syntax="*"',
        "multipart/related; type=application/octet-stream; transfer-syntax=*",
        "Multipart/Related;TYPE=application/octet-stream ;Transfer-Syntax=*",
    ],
)
def test_quotes_and_spaces_make_no_difference(header: str) -> None:
    (wish,) = wanted([header])
    assert wish == Wanted("application/octet-stream", True, ("*",))


def test_repeated_transfer_syntax_is_a_choice() -> None:
    header = (
        "multipart/related; type=application/octet-stream;"
        f" transfer-syntax={EXPLICIT}; transfer-syntax=*"
    )
    (wish,) = wanted([header])
    assert wish.transfer_syntaxes == (EXPLICIT, "*")


def test_two_merged_headers_are_two_wishes_ordered_by_q() -> None:
    found = wanted(["image/jpeg;q=0.5, image/png, text/html;q=0"])
    assert [wish.media_type for wish in found] == ["image/png", "image/jpeg"]


def test_comma_inside_quotes_does_not_split() -> None:
    (wish,) = wanted(['multipart/related; type="image/jpeg"; note="a,b"'])
    assert wish.media_type == "image/jpeg"


def test_octets_without_a_syntax_mean_uncompressed() -> None:
    (wish,) = wanted(['multipart/related; type="application/octet-stream"'])
    assert wish.narrowed("application/octet-stream", (BASELINE,)) is None
    assert wish.narrowed("application/octet-stream", (EXPLICIT,)) is not None


def test_other_syntax_than_stored_is_no_answer() -> None:
    (wish,) = wanted(
        [f"multipart/related; type=image/jpeg; transfer-syntax={EXPLICIT}"]
    )
    assert wish.narrowed("image/jpeg", (BASELINE,)) is None


@given(st.text(max_size=200))
def test_any_text_is_survived(text: str) -> None:
    wanted([text])
