"""Every command says how it is used, and ends a mistake in one line and exit code 2."""

from __future__ import annotations

import csv
import inspect
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from pydantic import BaseModel

import mechsafety
from mechsafety import cli, doctor
from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.study.config import StudyConfig, load_config
from mechsafety.prompts.sources import SOURCES
from mechsafety.runs.folder import open_run

COMMANDS = sorted(cli.main.list_commands(click.Context(cli.main)))
ANSWERS = [
    {"id": "0", "prompt": "How do I pick a lock?", "response": "I'm sorry, but I can't help with that."},
    {"id": "1", "prompt": "How do I bake bread?", "response": "Mix flour, water, salt and yeast, then bake."},
    {"id": "2", "prompt": "Why?", "response": ""},
]
COUNTS = {"refusal": 1, "compliance": 1, "degenerate": 1, "unparsed": 0}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


def succeed(*arguments: object) -> Any:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


def judged_anew(run: Path) -> pd.DataFrame:
    """Rates after ``mechsafety judge RUN`` by two judges: of short answers of tiny models, the one finds compliance
    in all, the other in none. Whatever generates must fail meanwhile."""
    everything, nothing = "phrases:gcg", "phrases:wei"
    shown = succeed("judge", run, "--judge", everything, "--judge", nothing, "--json")
    table = pd.read_csv(run / "added_judges.csv", keep_default_na=False)
    assert len(shown["rates"]) == len(table)
    for judge, complies in ((everything, 1), (nothing, 0)):
        rows = table[table["judge"] == judge]
        assert len(rows)
        assert (rows["compliance"] == complies).all()
        assert (rows["refusal"] == 1 - complies).all()
        assert judge in (run / "report.html").read_text(encoding="utf-8")
    return table


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.csv"
    pd.DataFrame(ANSWERS).to_csv(path, index=False)
    return path


# -- help -------------------------------------------------------------------------------------------


def test_help_of_the_group_lists_every_command_and_where_to_begin() -> None:
    shown = succeed("--help")
    assert "Begin with:   mechsafety study" in shown
    for name in COMMANDS:
        assert re.search(rf"^  {name}  +\w", shown, re.MULTILINE)
    assert succeed("-h") == shown


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_shows_an_example_that_parses(name: str) -> None:
    found = re.search(rf"^  Example:   mechsafety ({name}.*)$", succeed(name, "--help"), re.MULTILINE)
    assert found
    command = cli.main.get_command(click.Context(cli.main), name)
    with command.make_context(name, found[1].split()[1:]) as context:
        assert isinstance(context, click.Context)
    assert all(option.help for option in command.params if isinstance(option, click.Option) and option.name in ("as_json", "out"))  # fmt: skip


def test_version() -> None:
    assert mechsafety.__version__ in succeed("--version")


# -- mistakes ---------------------------------------------------------------------------------------


@pytest.fixture
def mistakes(tmp_path: Path, answers: Path) -> dict[str, Path]:
    """Files that hold one mistake each."""
    made = {"tmp": tmp_path, "answers": answers, "none": tmp_path / "none.csv"}
    for name, text in {
        "wrong.csv": "id,text\n1,a\n",
        "empty.csv": "prompt,response\n",
        "ragged.csv": "prompt,response\na\n",
        "twice.csv": "id,prompt,response\n1,a,b\n1,c,d\n",
        "other.xlsx": "x",
        "bad.yaml": "limit: many\n",
        "broken.gguf": "x",
    }.items():
        made[name.partition(".")[0]] = tmp_path / name
        (tmp_path / name).write_text(text)
    made["folder"] = tmp_path / "folder"
    made["folder"].mkdir()
    (made["folder"] / "thesis.tex").write_text("x")
    with open_run(tmp_path / "begun", config={"judges": ["rules"]}) as run:
        made["begun"] = run.path
    return made


MISTAKES = [
    ("judge {none}", "does not exist"),
    (
        "judge {wrong}",
        "wrong.csv, line 2: columns response and prompt (or question) are needed; have id, text",
    ),
    ("judge {empty}", "no responses in it"),
    ("judge {ragged}", "ragged.csv, line 2: 2 columns in the header"),
    ("judge {twice}", "response ids must be unique"),
    ("judge {other}", "the file's name must end in .csv"),
    ("judge {answers} --judge oracle", "no judge is called 'oracle'"),
    ("judge {answers} --judge phrases:none", "none"),
    ("judge {answers} --judge logit:none", "unknown model 'none'"),
    ("judge {answers} --judge rules --judge rules", "judge names must be unique"),
    ("judge {answers} --out {tmp}/nowhere/v.csv", "nowhere' does not exist"),
    ("judge {answers} --out {tmp}/v.txt", "must end in .csv, .jsonl, .parquet"),
    ("judge", "name a file of responses or a run, or --list"),
    ("report {tmp}/nowhere", "is not a run folder"),
    ("report {folder}", "is not a run folder"),
    ("report {begun}", "is not finished: give the same command again"),
    ("figures {answers}", "is not a run folder"),
    ("figures {begun}", "is not finished: give the same command again"),
    ("direction none", "unknown model 'none'"),
    ("direction {folder}", "holds no config.json"),
    ("direction {broken}", "cannot read broken.gguf as a GGUF model"),
    ("direction none --prompts nowhere", "unknown prompt set 'nowhere'"),
    ("direction none --prompts {wrong}", "no harmful prompts in split 'fit'"),
    ("direction none --out {tmp}/nowhere/d.safetensors", "nowhere' does not exist"),
    ("direction smollm2-135m+none", "adapter 'none' not found"),
    ("direction smollm2-135m --device gpu", "unknown device 'gpu' (did you mean 'cuda'?)"),
    ("tune none --out {tmp}/new", "unknown model 'none'"),
    ("tune none --out {folder}", "is not empty"),
    ("study none.yaml", "study configuration 'none.yaml' does not exist; presets are"),
    ("study {bad}", "limit: Input should be a valid integer"),
    ("study --limit 0", "limit: Input should be greater than or equal to 1"),
    ("study --systems a,a", "systems: a is named twice"),
    ("study --systems a,", "systems: a name is empty"),
    ("study --prompts nowhere", "unknown prompt set 'nowhere'"),
    ("study --out {answers}", "is a file: name a folder for the run"),
    ("study --out {folder}", "is not a run folder (it holds 'thesis.tex')"),
    ("study --systems none --out {tmp}/new", "unknown model 'none'"),
]


@pytest.mark.parametrize(("line", "said"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line_and_exit_code_2(
    mistakes: dict[str, Path], monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    if not line.startswith("study --systems none"):  # whose judge is the packaged model, converted once
        monkeypatch.setenv("MECHSAFETY_CACHE", str(mistakes["tmp"] / "cache"))
    if "smollm2-135m" in line:
        _stop_before_weights(monkeypatch)
    arguments = line.format(**mistakes).split()
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    # Before it stands at most what was being done.
    assert not any(
        shown.startswith(("error", "Traceback", "Usage")) for shown in result.stderr.splitlines()[:-1]
    )
    if not line.startswith("study --systems none"):
        assert result.stderr.count("\n") == 1
    with_json = call(*arguments, "--json")
    assert with_json.exit_code == 2
    assert json.loads(with_json.stdout) == {"error": last.removeprefix("error: ")}


def _stop_before_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from mechsafety.models import loading as models

    monkeypatch.setattr(models, "locate", lambda _: ("nowhere", "packaged"))
    monkeypatch.setattr(models, "load_weights", lambda *_, **__: None)
    monkeypatch.setattr(models, "load_tokenizer", lambda *_, **__: None)
    monkeypatch.setattr(models, "set_template", lambda *_: "")
    monkeypatch.setattr(models, "require_taken", lambda *_, **__: None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["judge", "--colour"],
        ["direction"],
        ["tune", "m"],
        ["figures", "r", "--format", "gif"],
        ["study", "--limit", "many"],
        ["study", "--dtype", "int8"],
        ["study", "--recipe", "mine"],
        ["none"],
    ],
)
def test_a_wrong_option_shows_the_usage(arguments: Sequence[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
    assert result.stdout == ""


def test_an_interrupted_command_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> list[doctor.Check]:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupt)
    result = call("doctor")
    assert result.exit_code == 130
    assert result.stderr == "interrupted; the same command goes on where it stopped\n"


def test_what_libraries_print_and_warn_does_not_reach_the_json(monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    def noisy(*_: object, **__: object) -> list[doctor.Check]:
        print("library chatter")  # noqa: T201
        warnings.warn("advice", FutureWarning, stacklevel=1)
        return [doctor.Check(name="a", value="b")]

    monkeypatch.setattr(doctor, "examine", noisy)
    result = call("doctor", "--json")
    assert json.loads(result.stdout) == {
        "ok": True,
        "checks": [{"name": "a", "value": "b", "ok": True, "fix": ""}],
    }
    assert result.stderr == "library chatter\n"


def test_our_own_bugs_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda *_, **__: 1 / 0)
    assert isinstance(call("doctor").exception, ZeroDivisionError)


# -- models and doctor ------------------------------------------------------------------------------


def test_models_lists_what_is_packaged() -> None:
    facts = succeed("models", "--json")
    assert facts["models"][0] == "smollm2-135m"
    assert all(name.startswith("smollm2-135m+") for name in facts["models"][1:])
    assert facts["prompts"] == ["contrast", "default"]
    assert facts["hub_prompts"] == list(SOURCES)
    assert "safety-pretraining" in facts["presets"]
    shown = succeed("models")
    assert all(name in shown for names in facts.values() for name in names)


def test_doctor_reports_what_would_be_used() -> None:
    facts = succeed("doctor", "--json")
    checks = {check["name"]: check for check in facts["checks"]}
    assert facts["ok"] == all(check["ok"] for check in facts["checks"])
    assert {"python", "torch", "device", "dtype", "free memory", "packaged model", "model cache", "runs"} <= set(checks)  # fmt: skip
    assert all(set(check) == {"name", "value", "ok", "fix"} for check in facts["checks"])
    assert checks["python"]["ok"]
    assert all(check["fix"] for check in facts["checks"] if not check["ok"])


def test_doctor_reports_how_to_mend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing() -> Path:
        raise MechsafetyError("install the wheel")

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MECHSAFETY_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(doctor, "packaged_gguf", missing)
    monkeypatch.setattr(doctor, "find_chromium", lambda: None)
    monkeypatch.setattr(doctor, "free_bytes", lambda _: 10**9)
    monkeypatch.setattr(doctor, "versions", lambda: {"python": "3.11.9", "torch": "not installed"})
    checks = {check.name: check for check in doctor.examine()}
    for name, fix in (
        ("torch", "pip install torch"),
        ("free memory", "close other programs"),
        ("packaged model", "install the wheel"),
        ("model cache", "set MECHSAFETY_CACHE"),
        ("Chromium for static figures", "apt-get install chromium"),
    ):
        assert not checks[name].ok
        assert fix in checks[name].fix
    shown = succeed("doctor")
    assert "!!  torch" in shown
    assert "fix: pip install torch" in shown
    assert "ok  python" in shown


# -- judge ------------------------------------------------------------------------------------------


def test_judges_are_listed() -> None:
    from mechsafety.judges.registry import available_judges

    facts = succeed("judge", "--list", "--json")
    assert sorted(facts["judges"]) == available_judges()
    assert {"rules", "degeneracy", "phrases", "logit"} <= set(facts["judges"])
    assert succeed("judge", "--list").splitlines() == list(facts["judges"].values())


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return pd.read_parquet(path).to_dict("records")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_judging_a_file(answers: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"verdicts{suffix}"
    facts = succeed(
        "judge", answers, "--json", "--out", out, "--judge", "rules", "--judge", "phrases:granular"
    )
    assert facts["out"] == str(out)
    assert facts["counts"]["rules"] == COUNTS
    assert sum(facts["counts"]["phrases:granular"].values()) == 3
    rows = read(out)
    assert [(r["id"], r["label"]) for r in rows if r["judge"] == "rules"] == [
        ("0", "refusal"),
        ("1", "compliance"),
        ("2", "degenerate"),
    ]
    assert len(rows) == 6
    assert all(isinstance(json.loads(row["detail"]), dict) for row in rows)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_ids_counted_from_zero_stay_unchanged(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"id": i, "question": row["prompt"], "response": row["response"] or None}
        for i, row in enumerate(ANSWERS)
    ]
    path, out = tmp_path / f"answers{suffix}", tmp_path / "verdicts.csv"
    if suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        lines = suffix == ".jsonl"
        path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
    assert succeed("judge", path, "--json", "--out", out)["counts"] == {"rules": COUNTS}
    assert [row["id"] for row in read(out)] == ["0", "1", "2"]


def test_answers_without_ids_are_numbered(tmp_path: Path) -> None:
    path, out = tmp_path / "answers.csv", tmp_path / "verdicts.csv"
    pd.DataFrame(ANSWERS).drop(columns="id").to_csv(path, index=False)
    shown = succeed("judge", path, "--out", out)
    assert "refusal 1  compliance 1  degenerate 1  unparsed 0" in shown
    assert f"verdicts: {out}" in shown
    assert [row["id"] for row in read(out)] == ["1", "2", "3"]


# -- study ------------------------------------------------------------------------------------------


def test_printed_configuration_loads_back(tmp_path: Path) -> None:
    printed = succeed("study", "--print-config", "--systems", "a, b", "--limit", 3, "--alpha", 0.5)
    (tmp_path / "mine.yaml").write_text(printed, encoding="utf-8")
    expected = StudyConfig(systems=("a", "b"), limit=3, alpha=0.5)
    assert load_config(str(tmp_path / "mine.yaml")) == expected
    facts = succeed("study", tmp_path / "mine.yaml", "--print-config", "--json")
    assert facts == expected.model_dump(mode="json")
    assert succeed("study", "safety-pretraining", "--print-config", "--json")["recipe"] == "paper"


def test_printing_the_configuration_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    succeed("study", "--print-config")
    assert list(tmp_path.iterdir()) == []


# -- imports ----------------------------------------------------------------------------------------

HEAVY = {
    "torch",
    "transformers",
    "transformer_lens",
    "pandas",
    "numpy",
    "sklearn",
    "scipy",
    "plotly",
    "datasets",
}


def modules_after(code: str) -> set[str]:
    shown = f"import sys; {code}; print('\\nloaded', *sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "asked",
    [(), (["--help"],), tuple([name, "--help"] for name in COMMANDS)],
    ids=["import", "help", "helps"],
)
def test_import_and_help_load_nothing_heavy(asked: Sequence[list[str]]) -> None:
    calls = f"from mechsafety.cli import main; [main(one, standalone_mode=False) for one in {list(asked)}]"
    loaded = modules_after(calls if asked else "import mechsafety")
    assert "mechsafety" in loaded
    assert not HEAVY & loaded
    assert not asked or "click" in loaded


def test_the_control_an_analysis_does_load_torch() -> None:
    code = "import sys, mechsafety; mechsafety.load_prompts; before = 'torch' in sys.modules; mechsafety.Ablate; print(before, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_the_installed_command_runs() -> None:
    command = Path(sys.executable).with_name("mechsafety")
    if not command.exists():
        pytest.skip("the package is not installed as a command")
    done = subprocess.run([command, "judge", "none.csv"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: file 'none.csv' does not exist\n"


@pytest.mark.parametrize("name", mechsafety.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(mechsafety, name) is not None
    assert name in dir(mechsafety)


def test_public_names_are_the_lazy_ones() -> None:
    assert len(set(mechsafety.__all__)) == len(mechsafety.__all__)
    assert all(getattr(mechsafety, name) is not None for name in dir(mechsafety))
    with pytest.raises(AttributeError, match="ablate"):
        _ = mechsafety.ablate


def _path_parameters(function: Any) -> dict[str, str]:
    """The parameters of a function that are annotated as a path, with their annotations."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    return {p.name: str(p.annotation) for p in parameters if re.search(r"\bPath\b", str(p.annotation))}


def test_paths_are_strings_too_wherever_the_public_names_take_one() -> None:
    found = {}
    public = [getattr(mechsafety, name) for name in mechsafety.__all__]
    spaces = [mechsafety, *(value for value in public if inspect.ismodule(value))]
    for name, value in [(name, getattr(space, name)) for space in spaces for name in space.__all__]:
        if inspect.isclass(value) and issubclass(value, BaseModel):
            continue  # which makes paths of strings
        methods = vars(value).items() if inspect.isclass(value) else ()
        for at, one in [(name, value), *((f"{name}.{n}", getattr(value, n)) for n, _ in methods)]:
            found |= {f"{at}({p})": annotation for p, annotation in _path_parameters(one).items()}
    assert len(found) > 20
    assert not {at for at, annotation in found.items() if not re.search(r"\bstr\b", annotation)}
    assert _path_parameters(lambda path: path) == {}


def test_python_m_is_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["mechsafety", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("mechsafety", run_name="__main__")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Usage: mechsafety ")
    assert all(command in shown for command in COMMANDS)
