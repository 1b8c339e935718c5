import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rglcd.errors import InputError
from rglcd.sharding.accounting import Reason, RowRejectedError
from rglcd.sharding.source import (
    MAX_IMAGE_BYTES,
    MAX_ROW_BYTES,
    Row,
    parse_row,
    read_image,
    read_lines,
    split_rows,
)
from rglcd.sharding.texts import MAX_CAPTION_BYTES


def reason_of_line(line: bytes) -> Reason:
    with pytest.raises(RowRejectedError) as caught:
        parse_row(line)
    return caught.value.reason


def reason_of_url(url: str, folder: Path) -> Reason:
    with pytest.raises(RowRejectedError) as caught:
        read_image(url, folder)
    return caught.value.reason


class TestRows:
    @given(lines=st.lists(st.binary(max_size=12).filter(lambda line: b"\n" not in line), min_size=1), rows_each=st.integers(1, 7))
    def test_ranges_read_one_after_another_are_the_index(
        self, tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], rows_each: int
    ) -> None:
        index = tmp_path_factory.mktemp("source") / "index.tsv"
        index.write_bytes(b"".join(line + b"\n" for line in lines))
        ranges = split_rows(index, rows_each)
        assert [rows.num_rows for rows in ranges[:-1]] == [rows_each] * (len(ranges) - 1)
        assert [line for rows in ranges for line in read_lines(index, rows)] == list(read_lines(index))
        assert list(read_lines(index)) == [line.removesuffix(b"\r") for line in lines]

    @pytest.mark.parametrize("max_rows", [1, 3, 4, 5, 8, 9, 100])
    def test_max_rows_reads_the_first_rows(self, tmp_path: Path, max_rows: int) -> None:
        index = tmp_path / "index.tsv"
        index.write_bytes(b"".join(b"%d\tcaption\n" % number for number in range(9)))
        ranges = split_rows(index, 4, max_rows=max_rows)
        expected = list(read_lines(index))[:max_rows]
        assert [line for rows in ranges for line in read_lines(index, rows)] == expected

    def test_a_last_row_without_newline_counts(self, tmp_path: Path) -> None:
        (tmp_path / "index.tsv").write_bytes(b"a.png\tone\nb.png\ttwo")
        assert list(read_lines(tmp_path / "index.tsv")) == [b"a.png\tone", b"b.png\ttwo"]

    def test_a_huge_row_is_one_row_and_costs_no_memory(self, tmp_path: Path) -> None:
        index = tmp_path / "index.tsv"
        index.write_bytes(b"a.png\t" + b"x" * (32 << 20) + b"\nb.png\tafter it\n")
        tracemalloc.start()
        lines = list(read_lines(index))
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [reason_of_line(lines[0]), parse_row(lines[1])] == [Reason.CAPTION_TOO_LONG, Row("b.png", "after it")]
        assert peak_bytes < 1 << 20

    @pytest.mark.parametrize("excess", range(5))
    def test_a_cut_row_is_never_taken_for_a_whole_one(self, tmp_path: Path, excess: int) -> None:
        line = b"u" * (MAX_ROW_BYTES - 10) + b"\tcaption" + b"\r" * (excess + 2)
        (tmp_path / "index.tsv").write_bytes(line + b"tail\n")
        (read,) = read_lines(tmp_path / "index.tsv")
        assert len(read) > MAX_ROW_BYTES or read == line + b"tail"

    def test_missing_and_empty_indices_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"index\.tsv is missing"):
            split_rows(tmp_path / "index.tsv", 4)
        (tmp_path / "index.tsv").touch()
        with pytest.raises(InputError, match=r"index\.tsv is empty"):
            split_rows(tmp_path / "index.tsv", 4)


class TestParseRow:
    def test_a_row_is_a_url_and_a_caption(self) -> None:
        assert parse_row("images/0.png\t a café at night ‮\r".encode()) == Row("images/0.png", "a café at night ‮")

    def test_a_byte_order_mark_is_not_part_of_the_url(self) -> None:
        assert parse_row(b"\xef\xbb\xbfa.png\tcaption") == Row("a.png", "caption")

    def test_a_byte_order_mark_is_not_part_of_the_caption(self) -> None:
        assert parse_row(b"a.png\t\xef\xbb\xbf caption") == Row("a.png", "caption")

    def test_a_caption_like_a_formula_is_plain_text(self) -> None:
        assert parse_row(b'a.png\t=HYPERLINK("http://x")').caption == '=HYPERLINK("http://x")'

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"", Reason.MALFORMED_ROW),
            (b"a.png", Reason.MALFORMED_ROW),
            (b"\tcaption without url", Reason.MALFORMED_ROW),
            (b"a.png\tcaption\tmore", Reason.MALFORMED_ROW),
            (b"a.png\tnul \0 inside", Reason.UNREADABLE_CAPTION),
            (b"a\0.png\tnul before", Reason.MALFORMED_ROW),
            (b"caf\xe9.png\ta url that is not UTF-8", Reason.MALFORMED_ROW),
            (b"a.png\tnot utf-8 \xff", Reason.UNREADABLE_CAPTION),
            (b"a.png\t\xed\xa0\x80", Reason.UNREADABLE_CAPTION),
            (b"a.png\t", Reason.EMPTY_CAPTION),
            (b"a.png\t \xc2\xa0 ", Reason.EMPTY_CAPTION),
            (b"a.png\t\xef\xbb\xbf", Reason.EMPTY_CAPTION),
            (b"a.png\t" + b"x" * (MAX_CAPTION_BYTES + 1), Reason.CAPTION_TOO_LONG),
            (b"a.png\t" + b"x" * (1 << 20), Reason.CAPTION_TOO_LONG),
            (b"x" * (1 << 20), Reason.MALFORMED_ROW),
        ],
    )
    def test_hostile_rows_have_one_reason(self, line: bytes, reason: Reason) -> None:
        assert reason_of_line(line[: MAX_ROW_BYTES + 1]) == reason

    @given(st.binary())
    def test_any_bytes_are_a_row_or_refused(self, line: bytes) -> None:
        try:
            row = parse_row(line)
        except RowRejectedError:
            return
        assert row.url
        assert row.caption
        assert "\0" not in row.url + row.caption


class TestReadImage:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """A source folder, with something outside it to be reached for."""
        (tmp_path / "secret.png").write_bytes(b"secret")
        folder = tmp_path / "source"
        (folder / "images").mkdir(parents=True)
        (folder / "images" / "0.png").write_bytes(b"zero")
        return folder

    def test_a_path_within_the_folder_is_read(self, folder: Path) -> None:
        assert read_image("images/0.png", folder) == b"zero"
        assert read_image("./images//0.png", folder) == b"zero"

    @pytest.mark.parametrize("url", ["http://a/b.png", "https://a/b.png", "HTTPS://a/b"])
    def test_a_url_without_downloading_is_counted_as_not_downloaded(self, folder: Path, url: str) -> None:
        assert reason_of_url(url, folder) == Reason.NOT_DOWNLOADED

    @pytest.mark.parametrize("url", ["http:b", "http:/a/b.png", "HTTPS:/a"])
    def test_a_url_without_a_host_is_malformed_whether_downloading_was_asked_for_or_not(self, folder: Path, url: str) -> None:
        assert reason_of_url(url, folder) == Reason.MALFORMED_URL

    @pytest.mark.parametrize("url", ["file:///etc/passwd", "FILE:x", "ftp://a/b", "data:image/png;base64,AA", "s3://b/k", "C:\\x.png"])
    def test_other_schemes_are_forbidden(self, folder: Path, url: str) -> None:
        assert reason_of_url(url, folder) == Reason.FORBIDDEN_SCHEME

    @pytest.mark.parametrize("url", ["../secret.png", "images/../../secret.png", "/etc/passwd", "//host/x.png", "..", "images/..\\x"])
    def test_paths_out_of_the_folder_are_forbidden(self, folder: Path, url: str) -> None:
        assert reason_of_url(url, folder) == Reason.FORBIDDEN_PATH

    def test_links_out_of_the_folder_are_forbidden(self, folder: Path) -> None:
        (folder / "file.png").symlink_to(folder.parent / "secret.png")
        (folder / "up").symlink_to(folder.parent, target_is_directory=True)
        assert reason_of_url("file.png", folder) == Reason.FORBIDDEN_PATH
        assert reason_of_url("up/secret.png", folder) == Reason.FORBIDDEN_PATH

    def test_a_folder_reached_by_a_link_is_still_the_folder(self, folder: Path) -> None:
        (folder.parent / "alias").symlink_to(folder, target_is_directory=True)
        assert read_image("images/0.png", folder.parent / "alias") == b"zero"

    def test_a_path_that_is_no_readable_file_is_missing(self, folder: Path) -> None:
        os.mkfifo(folder / "pipe.png")  # opening it would wait for a writer for ever
        for url in ("nothing.png", "images", ".", "images/0.png/x", "pipe.png", "n" * 5000):
            assert reason_of_url(url, folder) == Reason.MISSING_FILE, url

    def test_a_loop_of_links_is_refused(self, folder: Path) -> None:
        (folder / "loop").symlink_to(folder / "loop")
        assert reason_of_url("loop", folder) in (Reason.FORBIDDEN_PATH, Reason.MISSING_FILE)

    def test_a_file_with_too_many_bytes_is_refused(self, folder: Path) -> None:
        with (folder / "big.png").open("wb") as stream:
            stream.truncate(MAX_IMAGE_BYTES + 1)
        assert reason_of_url("big.png", folder) == Reason.TOO_LARGE
