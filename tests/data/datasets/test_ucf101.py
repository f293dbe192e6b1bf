"""UCF-101: CRLF lists, three splits, and names whose case differs between the lists and the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from stjepa_cli.core.errors import DatasetError
from stjepa_cli.core.locations import Location
from stjepa_cli.data.datasets.base import open_dataset
from tests.media import upload, write_crlf


def lay_out(root: Path, *, lists: str = "ucfTrainTestlist", videos: str = "UCF-101") -> Path:
    """Lists and empty files: listing looks at names only, so no video is encoded."""
    (root / lists).mkdir(parents=True, exist_ok=True)
    write_crlf(root / lists / "classInd.txt", ["1 Archery", "2 HandstandPushups"])
    for name in ("Archery/v_Archery_g08_c01.avi", "HandstandPushups/v_HandStandPushups_g08_c01.avi"):
        (root / videos / name).parent.mkdir(parents=True)
        (root / videos / name).write_bytes(b"")
    for split in (1, 2, 3):
        write_crlf(root / lists / f"trainlist0{split}.txt", ["Archery/v_Archery_g08_c01.avi 1"])
        write_crlf(root / lists / f"testlist0{split}.txt", ["HandstandPushups/v_HandstandPushups_g08_c01.avi"])
    return root


def test_the_official_layout(tiny_ucf101: Path) -> None:
    dataset = open_dataset("ucf101", tiny_ucf101)
    assert dataset.classes == ("ApplyEyeMakeup", "BabyCrawling", "HandstandPushups")
    for split in (1, 2, 3):
        train, test = dataset.videos(f"train{split}"), dataset.videos(f"test{split}")
        assert [item.label for item in train] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert [item.label for item in test] == [0, 1, 2]
        assert {item.group for item in test} == {f"g0{split}"}
        assert not {item.group for item in train} & {item.group for item in test}
        assert not {item.id for item in train} & {item.id for item in test}


@pytest.mark.parametrize("lists", ["", "ucfTrainTestlist"])
@pytest.mark.parametrize("videos", ["", "UCF-101"])
def test_every_known_layout_is_found(tmp_path: Path, lists: str, videos: str) -> None:
    dataset = open_dataset("ucf101", lay_out(tmp_path, lists=lists, videos=videos))
    (item,) = dataset.videos("train1")
    assert item.path == tmp_path / videos / "Archery" / "v_Archery_g08_c01.avi"
    assert (item.id, item.label, item.group) == ("v_Archery_g08_c01", 0, "g08")


@pytest.mark.parametrize("line", ["HandStandPushups/v_HandStandPushups_g08_c01.avi", "handstandpushups/V_HANDSTANDPUSHUPS_g08_c01.avi"])
def test_the_case_of_folders_and_files_does_not_matter(tmp_path: Path, line: str) -> None:
    root = lay_out(tmp_path)
    write_crlf(root / "ucfTrainTestlist" / "testlist01.txt", [line])
    (item,) = open_dataset("ucf101", root).videos("test1")
    assert item.path == root / "UCF-101" / "HandstandPushups" / "v_HandStandPushups_g08_c01.avi"
    assert item.label == 1


@pytest.mark.parametrize(("lists", "videos"), [("", ""), ("ucfTrainTestlist", "UCF-101")])
def test_layouts_and_names_of_any_case_are_found_at_a_url(tmp_path: Path, bucket: Location, lists: str, videos: str) -> None:
    dataset = open_dataset("ucf101", upload(lay_out(tmp_path, lists=lists, videos=videos), bucket))
    (item,) = dataset.videos("test1")
    assert item.path == bucket / videos / "HandstandPushups" / "v_HandStandPushups_g08_c01.avi"
    assert (item.id, item.label, item.group) == ("v_HandstandPushups_g08_c01", 1, "g08")


def test_absent_videos_keep_the_place_where_they_should_be(tmp_path: Path) -> None:
    root = lay_out(tmp_path)
    write_crlf(root / "ucfTrainTestlist" / "testlist01.txt", ["Archery/v_Archery_g01_c02.avi"])
    (item,) = open_dataset("ucf101", root).videos("test1")
    assert item.path == root / "UCF-101" / "Archery" / "v_Archery_g01_c02.avi"


def test_lists_with_plain_line_ends_and_blank_lines_are_read(tmp_path: Path) -> None:
    root = lay_out(tmp_path)
    (root / "ucfTrainTestlist" / "trainlist01.txt").write_text("\nArchery/v_Archery_g08_c01.avi 1\n\n")
    assert len(open_dataset("ucf101", root).videos("train1")) == 1


def test_a_name_without_a_group_has_none(tmp_path: Path) -> None:
    root = lay_out(tmp_path)
    write_crlf(root / "ucfTrainTestlist" / "testlist01.txt", ["Archery/bow.avi"])
    assert open_dataset("ucf101", root).videos("test1")[0].group is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\r\n\r\n", "is empty"),
        ("v_Archery_g08_c01.avi 1\r\n", "another shape: got 'v_Archery_g08_c01.avi 1'"),
        ("Cooking/v_Cooking_g08_c01.avi 1\r\n", "expected a class that is in classInd.txt"),
        ("Archery/../../x.avi 1\r\n", "another shape"),
        ("Archery/v_Archery_g08_c01.avi 1\r\n" * 2, "lists video v_Archery_g08_c01 twice"),
    ],
)
def test_a_bad_list_is_one_sentence_that_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    root = lay_out(tmp_path)
    path = root / "ucfTrainTestlist" / "trainlist01.txt"
    path.write_bytes(text.encode())
    with pytest.raises(DatasetError) as caught:
        open_dataset("ucf101", root).videos("train1")
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["Archery\r\n", "1 Archery\r\n1 Bowling\r\n", "one Archery\r\n", "\xff\xfe"])
def test_a_bad_class_list_is_refused(tmp_path: Path, text: str) -> None:
    root = lay_out(tmp_path)
    (root / "ucfTrainTestlist" / "classInd.txt").write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match=r"classInd\.txt"):
        open_dataset("ucf101", root)
