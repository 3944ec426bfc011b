from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from m3rec_spark.config import Config, Ease, Section, Walks, digest, flatten, load
from m3rec_spark.errors import UsageError

CONF = Path(__file__).parents[1] / "conf"
FILES = sorted(CONF.rglob("*.yaml"))


def keys(tree: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted keys of a YAML tree, down to the last section of Config."""
    sections = {key.rpartition(".")[0] for key, _ in flatten(Config())}
    found = set()
    for name, value in tree.items():
        key = f"{prefix}{name}"
        found |= keys(value, f"{key}.") if key in sections else {key}
    return found


def write(folder: Path, text: str) -> Path:
    file = folder / "own.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def refusal(path: Path | None, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_base_yaml_shows_every_key_with_its_default() -> None:
    text = (CONF / "base.yaml").read_text(encoding="utf-8")
    assert keys(yaml.safe_load(text)) == {key for key, _ in flatten(Config())}
    assert load(CONF / "base.yaml") == Config()


def test_base_yaml_explains_every_section() -> None:
    for line in (CONF / "base.yaml").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith((" ", "#")):
            assert "#" in line, f"no comment: {line}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_file_of_conf_loads_and_says_how_to_run_it(file: Path) -> None:
    load(file)
    assert "m3rec" in file.read_text(encoding="utf-8").partition("\n\n")[0]


def test_conf_has_the_promised_files() -> None:
    assert {"base.yaml", "demo.yaml", "xmarket.yaml"} <= {file.name for file in FILES}
    assert load(CONF / "xmarket.yaml").source.format == "xmarket"
    assert load(CONF / "xmarket.yaml").split.method == "given"
    assert load(CONF / "demo.yaml").source.format == "demo"


def test_the_demo_config_ships_with_the_package() -> None:
    import m3rec_spark

    assert (Path(m3rec_spark.__file__).parent / "demo.yaml").samefile(CONF / "demo.yaml")


def test_no_file_is_the_default() -> None:
    assert load() == Config()


def test_overrides_are_yaml_and_win_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "train: {epochs: 3, patience: 2}\n")
    config = load(file, ["train.epochs=5", "ease.memory_gb=1.5", "source.path=a b=c", "evaluate.models=[ease]"])
    assert (config.train.epochs, config.train.patience) == (5, 2)
    assert config.ease.memory_gb == 1.5
    assert config.source.path == "a b=c"  # only the first = divides
    assert config.evaluate.models == ("ease",)
    assert load(None, ["train.lambda_loca=1e-8"]).train.lambda_loca == 1e-8  # a string to YAML 1.1, a number to us
    assert load(file, ["clean.min_rating=3", "clean.min_rating=null"]).clean.min_rating is None  # the last one wins


@pytest.mark.parametrize("override", ["train.epochs", "=5", " =5", "train.epochs.x=5", "train.epochs=[1"])
def test_a_malformed_override_is_refused(override: str) -> None:
    assert "override" in refusal(None, *(["train.epochs=5"] if ".x" in override else []), override)


def test_unknown_keys_name_the_nearest(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "train: {epoch: 3}\n"))
    assert "train.epoch: unknown key. Did you mean 'epochs'?" in message
    assert str(tmp_path) in message
    assert "trian: unknown key. Did you mean 'train'?" in refusal(None, "trian.epochs=3")
    assert "'lambda_f'" in refusal(None, "ease.lambda=3")
    assert "'user'" in refusal(None, "source.columns.usr=u")


def test_unknown_key_like_nothing_lists_the_known_ones() -> None:
    known = "lambda_f, epsilon, solver, precision, tile, neighbours, memory_gb"
    assert f"Known here: {known}" in refusal(None, "ease.qqqqqq=3")


def test_all_problems_are_told_at_once() -> None:
    message = refusal(None, "ease.lambda_f=-1", "train.epochs=many", "walks.lenght=3", "split.method=leave-one-out")
    for part in (
        "ease.lambda_f",
        "train.epochs",
        "walks.lenght",
        "Did you mean 'length'",
        "split.method",
    ):
        assert part in message
    assert len(message.splitlines()) == 5  # the headline, and one line each


@pytest.mark.parametrize("value", ["0", "-3", "0.0", ".nan", ".inf"])
def test_lambda_must_be_above_zero(value: str) -> None:
    message = refusal(None, f"ease.lambda_f={value}")
    assert "ease.lambda_f" in message
    assert "greater than 0" in message or "finite" in message
    assert "got" in message


@pytest.mark.parametrize("text", ["- a list\n", "just words\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "section: key: value" in refusal(write(tmp_path, text))


def test_a_colon_without_a_space_is_told(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "train:\n  epochs:5\n"))
    assert "train: must be a section of `key: value`, with a space after the colon, got 'epochs:5'" in message


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    assert "cannot read" in refusal(tmp_path / "absent.yaml")
    assert "cannot read" in refusal(tmp_path)
    assert "not YAML" in refusal(write(tmp_path, "train: {epochs: 3\n"))
    (tmp_path / "latin.yaml").write_bytes("# Größe".encode("latin-1"))
    assert "cannot read" in refusal(tmp_path / "latin.yaml")


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert load(write(tmp_path, "# nothing\n")) == Config()


def test_settings_cannot_be_changed_after_loading() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().train.epochs = 3  # type: ignore[misc]


def test_flatten_gives_every_setting_once() -> None:
    pairs = list(flatten(load(None, ["source.columns.user=u"])))
    assert ("source.columns.user", "u") in pairs
    assert ("ease.lambda_f", 30.0) in pairs
    assert len(pairs) == len(dict(pairs))
    assert not any(isinstance(value, Section) for _, value in pairs)


def test_digest_is_the_same_in_another_process() -> None:
    program = (
        "from m3rec_spark.config import Ease, Walks, digest; "
        "print(digest('train', Ease(lambda_f=3.5), {'b': [1, 2], 'a': None}, Walks()))"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    assert other == digest("train", Ease(lambda_f=3.5), {"a": None, "b": [1, 2]}, Walks())


def test_digest_tells_settings_apart() -> None:
    assert len({digest(Ease()), digest(Ease(lambda_f=31)), digest(Walks()), digest(Ease(), Walks()), digest()}) == 5
    assert digest(Ease(lambda_f=30)) == digest(Ease())  # 30 and 30.0 are one setting
