"""The documentation: complete, and built without a warning, with the notebook's results."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import nbformat
import pytest
from flax.traverse_util import flatten_dict

from fasseg_jax.config import base_config, resnet, swin
from tests.helpers import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PROGRAMS = ("train.py", "predict.py", "eval.py", "convert.py")


def hook(name: str):
    """A module of docs/hooks."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference():
    return hook("config_reference")


# Configuration


@pytest.mark.parametrize("function", [base_config, resnet, swin])
def test_every_field_has_a_comment(reference, function):
    silent = [field.name for field in reference.fields_of(function) if not field.comment and not field.is_group]
    assert not silent, f"write a comment in fasseg_jax/config.py beside {', '.join(silent)}"


def test_reference_has_all_fields_and_their_defaults(reference):
    fields = {field.name: field for field in reference.fields_of(base_config)}
    expected = flatten_dict(base_config().to_dict(), sep=".")
    backbone = {name for name in expected if name.startswith("model.backbone.")}  # the table of resnet()
    assert {name for name, field in fields.items() if not field.is_group} == expected.keys() - backbone
    assert all(fields[name].default == expected[name] for name in expected.keys() - backbone)
    shown = {field.name: field.default for field in reference.fields_of(resnet, "model.backbone.")}
    assert shown == {name: expected[name] for name in backbone}


def test_comments_belong_to_their_fields(reference):
    fields = {field.name: field.comment for field in reference.fields_of(base_config)}
    assert fields["train.batch_size"] == "of all devices and hosts together"  # at the end of the line
    assert fields["train.init"].startswith("Start weights: a checkpoint directory of convert.py")  # above it
    assert fields["train.init"].endswith("Empty: random.")
    assert fields["data.root"].startswith("the data set's folder")  # not the lines above its neighbour
    swin_fields = {field.name: field for field in reference.fields_of(swin, "model.backbone.")}
    assert swin_fields["model.backbone.drop_path"].comment == "of the last block; rises linearly from 0 at the first"
    assert swin_fields["model.backbone.embed_dim"].default == 96


def test_recipes_list_what_differs_from_the_base(reference):
    recipes = reference.recipes()
    assert set(recipes) == {path.name for path in (ROOT / "configs").glob("*.py")}
    _, variants = recipes["ade20k.py"]
    assert variants["r50"] == {}
    assert variants["swin_b"]["augmentation.crop"] == (640, 640)
    assert variants["swin_b"]["model.backbone.embed_dim"] == 128
    _, variants = recipes["cityscapes.py"]
    assert variants["r50"]["train.steps"] == 90_000


# Programs, README, API


def test_all_flags_are_shown():
    programs = hook("programs")
    page = (DOCS / "programs.md").read_text("utf-8")
    modules = [path.relative_to(ROOT).as_posix() for path in (ROOT / "fasseg_jax").rglob("*.py")]
    with_flags = [name for name in modules if "flags.DEFINE_" in (ROOT / name).read_text("utf-8")]
    for program in (*PROGRAMS, *with_flags):
        source = (ROOT / program).read_text("utf-8")
        assert f"<!-- program: {program} -->" in page, f"docs/programs.md does not show {program}"
        defined = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)
        flags = programs.flags_of(source)
        assert sorted(flag.name for flag in flags) == sorted(defined)
        assert all(flag.help.endswith(".") for flag in flags), f"{program}: a flag's help is no sentence"
    flags = {flag.name: flag for flag in programs.flags_of((ROOT / "train.py").read_text("utf-8"))}
    assert flags["config"].default == '"configs/shapes.py"'
    assert flags["workdir"] == programs.Flag("workdir", "", "Folder of the run; made if absent.")


def test_commands_name_flags_that_exist():
    programs = hook("programs")
    checked = 0
    for page in (*PAGES, ROOT / "README.md"):
        text = page.read_text("utf-8").replace("\\\n", " ")  # a command may go on in the next line
        for program, arguments in re.findall(r"(?:python |`|>)(-m fasseg_jax[\w.]+|\w[\w/]*\.py) ([^\n`<]*)", text):
            module = program.removeprefix("-m ").replace(".", "/") + ".py" if program.startswith("-m") else program
            package = f"{module.removesuffix('.py')}/__main__.py"
            module = module if (ROOT / module).is_file() else package
            known = {flag.name for flag in programs.flags_of((ROOT / module).read_text("utf-8"))} | {"help"}
            for flag in re.findall(r"--(\w+)", arguments):
                assert flag in known, f"{page.name}: {program} has no flag --{flag}"
                checked += 1
    assert checked > 50


def test_readme_sections_are_inserted():
    readme = hook("readme")
    text = readme.section("Two commands")
    assert text.startswith("With Python 3.11")
    assert "## " not in text
    assert "\n    ```sh\n    python convert.py" in readme.section("Segment photos with the released weights")
    with pytest.raises(ValueError, match=r"README.md has no section 'Three commands'; it has Two commands, "):
        readme.section("Three commands")


def test_every_module_is_on_one_api_page():
    text = "\n".join(path.read_text("utf-8") for path in PAGES if path.parent.name == "api")
    listed = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "fasseg_jax").rglob("*.py")
        if path.name != "__init__.py"
    ]
    missing = ", ".join(sorted(set(modules) - set(listed)))
    assert not missing, f"add to a page in docs/api, as '::: NAME': {missing}"
    assert sorted(listed) == sorted(modules)


def test_pictures_are_small_and_used():
    pictures = [path for path in (DOCS / "pictures").iterdir() if path.suffix != ".py"]
    assert sum(path.stat().st_size for path in pictures) < 1_000_000
    text = "\n".join(path.read_text("utf-8") for path in PAGES)
    unused = [path.name for path in pictures if f"pictures/{path.name}" not in text]
    assert not unused


# The site


class Requests(HTMLParser):
    """Collects what a browser would fetch from elsewhere to show a page; links to follow are none of it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            wanted = name in ("src", "srcset", "poster", "data") or (name == "href" and tag in ("link", "image", "use"))
            if wanted and re.match(r"(https?:)?//", value or ""):
                self.found.append(value)


def test_notebook_is_kept_without_results():
    notebook = nbformat.read(DOCS / "notebook" / "tour.ipynb", as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as CI builds it: the notebook is executed, and any warning is an error."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    environment = {
        **os.environ,
        "EXECUTE_NOTEBOOK": "true",
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache/jax")),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    build = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert build.returncode == 0, build.stdout + build.stderr
    return folder


def test_site_asks_nothing_of_the_network(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        requests = Requests()
        requests.feed(page.read_text("utf-8"))
        assert not requests.found, f"{page.relative_to(site)} loads {requests.found}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text("utf-8")), style


def test_site_holds_what_was_generated(site):
    configuration = (site / "configuration" / "index.html").read_text("utf-8")
    for name in flatten_dict(base_config().to_dict(), sep="."):
        assert f'id="{name}"' in configuration
    text = "\n".join(page.read_text("utf-8") for page in site.rglob("*.html"))
    for mark in ("<!-- README", "<!-- fields", "<!-- program", "<!-- recipes"):
        assert mark not in text


def test_notebook_learns_and_shows_pictures(site):
    page = (site / "notebook" / "tour" / "index.html").read_text("utf-8")
    mean_iou, chance = map(float, re.search(r"mIoU ([\d.]+); one class everywhere ([\d.]+)", page).groups())
    assert mean_iou > 2 * chance
    pictures = re.findall(r'<img alt="png" src="\.\./(tour_\d+_\d+\.png)"', page)
    assert len(pictures) == 3
    assert all((site / "notebook" / picture).stat().st_size > 10_000 for picture in pictures)
