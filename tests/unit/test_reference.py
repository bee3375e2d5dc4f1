"""docs/variables.md and the program that makes it."""

from pathlib import Path

import pytest
import reference


def cells(line: str) -> list[str]:
    """Split a row of a Markdown table where a reader's program does: at unescaped pipes."""
    return [cell.strip() for cell in line.replace("\\|", "\0").strip("|").split("|")]


def test_page_is_up_to_date() -> None:
    stale = "docs/variables.md is stale: run `make docs`"
    assert reference.TARGET.read_text() == reference.render(reference.ROOT), stale


def test_every_row_has_its_tables_width() -> None:
    tables = 0
    width = 0
    for line in reference.render(reference.ROOT).splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        tables += width == 0
        width = width or len(cells(line))
        assert len(cells(line)) == width, line
    assert tables >= 7


def test_pipes_are_escaped_everywhere() -> None:
    options = {
        "app_x": {
            "type": "str",
            "default": "a|b",
            "choices": ["a|b", "c"],
            "description": ["This | that.", "Over\ntwo lines, <name>."],
        },
        "app_y": {"type": "str", "description": "Y."},
    }
    rows = reference.variable_rows(options, {"app_y": "{{ a | b }}"})
    assert rows[0][2] == "`a\\|b`"
    assert rows[0][3] == "This \\| that. Over two lines, &lt;name>. One of `a\\|b`, `c`."
    assert rows[1][2] == "`{{ a \\| b }}`"


def test_nested_options_follow_their_variable() -> None:
    options = {
        "app_list": {
            "type": "list",
            "elements": "dict",
            "description": "L.",
            "options": {"name": {"type": "str", "required": True, "no_log": True}},
        },
        "app_dict": {"type": "dict", "options": {"size": {"type": "int"}}},
    }
    rows = reference.variable_rows(options, {"app_list": []})
    assert [row[0].split(">")[-1] for row in rows] == [
        "`app_list`",
        "`app_list[].name`",
        "`app_dict`",
        "`app_dict.size`",
    ]
    assert rows[0][1:3] == ["list of dict", "`[]`"]
    assert rows[1][2:] == ["*required*", " Secret."]


@pytest.mark.parametrize(
    ("option", "defaults", "expected"),
    [
        ({"default": ""}, {"x": "other"}, "`''`"),
        ({"default": False}, {}, "`false`"),
        ({"required": True}, {"x": "{{ y }}"}, "`{{ y }}`"),
        ({"required": True}, {"x": 5}, "`5`"),
        ({"required": True}, {}, "*required*"),
        ({}, {}, ""),
    ],
)
def test_default(option: dict, defaults: dict, expected: str) -> None:
    assert reference.default_of("x", option, defaults) == expected


def test_links_have_their_targets() -> None:
    page = reference.render(reference.ROOT)
    for section, variable in reference.SECTION_VARIABLES.items():
        assert page.count(f'<a id="{variable}"></a>') == 1
        assert page.count(f"](#{variable})") == 1
        assert page.count(f'<a id="settings-{section}"></a>') == 1
        assert page.count(f"](#settings-{section})") == 1


def test_only_main_is_documented() -> None:
    specs = {
        "argument_specs": {
            "main": {"description": "M.", "options": {"app_x": {"description": "X."}}},
            "preflight": {"description": "P.", "options": {"app_p": {"description": "P."}}},
        }
    }
    text = reference.role_section("app", specs, {})
    assert "app_x" in text
    assert "app_p" not in text


@pytest.mark.parametrize(("text", "code"), [(None, 1), ("old", 1), ("right", 0)])
def test_check_tells_a_stale_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, code: int
) -> None:
    target = tmp_path / "variables.md"
    if text is not None:
        target.write_text(reference.render(reference.ROOT) if text == "right" else text)
    monkeypatch.setattr(reference, "TARGET", target)
    monkeypatch.setattr("sys.argv", ["reference.py", "--check"])
    assert reference.main() == code
    assert text != "old" or target.read_text() == "old"
