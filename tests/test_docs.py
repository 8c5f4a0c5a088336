"""The documentation is complete and builds without a warning, and the files by which others join are valid."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser

import nbformat
import pytest
import yaml
from flax.traverse_util import flatten_dict

import fasseg_jax
from fasseg_jax.config import base_config, convnext, resnet, swin, vit
from fasseg_jax.inference.label_files import LABEL_FORMATS
from fasseg_jax.programs.commands import COMMANDS
from fasseg_jax.serving.limits import Limits
from tests.helpers import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, *sorted(ROOT.glob("*.md")), ROOT / "benchmarks" / "README.md"]


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


@pytest.mark.parametrize("function", [base_config, convnext, resnet, swin, vit])
def test_every_field_has_a_comment(reference, function):
    silent = [field.name for field in reference.fields_of(function) if not field.comment and not field.is_group]
    assert not silent, f"write a comment in fasseg_jax/config/base.py beside {', '.join(silent)}"


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
    with_flags = [name for name in modules if re.search(r"flags\.DEFINE_(?!flag\()", (ROOT / name).read_text("utf-8"))]
    assert with_flags
    for program in with_flags:
        source = (ROOT / program).read_text("utf-8")
        assert f"<!-- program: {program} -->" in page, f"docs/programs.md does not show {program}"
        defined = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)
        flags = programs.flags_of(source)
        assert sorted(flag.name for flag in flags) == sorted(defined)
        assert all(flag.help.endswith(".") for flag in flags), f"{program}: a flag's help is no sentence"
    flags = {flag.name: flag for flag in programs.flags_of((ROOT / "fasseg_jax/programs/train.py").read_text("utf-8"))}
    assert flags["config"].default == '"configs/shapes.py"'
    assert flags["workdir"] == programs.Flag("workdir", "", "Folder of the run; made if absent.")


def test_names_in_flags_are_resolved():
    """Constants of the module and of others, and the defaults of fields; other expressions are shown as they are."""
    programs = hook("programs")
    source = """
from fasseg_jax.inference.label_files import LABEL_FORMATS
from fasseg_jax.serving.limits import Limits
from absl import flags
SIDE = 3
flags.DEFINE_enum("kind", None, LABEL_FORMATS, "Which.")
flags.DEFINE_integer("side", SIDE, "Pixels.")
flags.DEFINE_integer("waiting", Limits.waiting, "Photos.")
flags.DEFINE_list("list", list(LABEL_FORMATS), "Some.")
flags.DEFINE_integer("other", flags.NUMBER, "Any.")
"""
    kind, *others = programs.flags_of(source)
    assert kind == programs.Flag("kind", "", "Which. One of `labelme`, `coco`.")
    assert [flag.default for flag in others] == ["3", str(Limits.waiting), "list(LABEL_FORMATS)", "flags.NUMBER"]
    shown = {
        flag.name: flag for flag in programs.flags_of((ROOT / "fasseg_jax/programs/predict.py").read_text("utf-8"))
    }
    assert shown["write_labels"].help.endswith(f"One of {', '.join(f'`{name}`' for name in LABEL_FORMATS)}.")


def test_commands_name_flags_that_exist():
    programs = hook("programs")
    checked = 0
    for page in TEXTS:
        text = page.read_text("utf-8").replace("\\\n", " ")  # a command may go on in the next line
        called = r"(?:python |`|>|\n *)(-m fasseg_jax[\w.]+|fasseg \w+|\w[\w/]*\.py) ([^\n`<]*)"
        for program, arguments in re.findall(called, text):
            command = program.removeprefix("fasseg ").removesuffix(".py")
            assert command in COMMANDS or not program.startswith("fasseg "), f"{page.name}: there is no {program}"
            if command in COMMANDS and (program.startswith("fasseg ") or (ROOT / program).is_file()):
                program = f"-m {COMMANDS[command].module}"
            module = program.removeprefix("-m ").replace(".", "/") + ".py" if program.startswith("-m") else program
            package = f"{module.removesuffix('.py')}/__main__.py"
            places = (ROOT / module, ROOT / package, page.parent / module)
            source = next(path for path in places if path.is_file()).read_text("utf-8")
            known = {flag.name for flag in programs.flags_of(source)} | {"help"}
            for flag in re.findall(r"--(\w+)", arguments):
                assert flag in known, f"{page.name}: {program} has no flag --{flag}"
                checked += 1
    assert checked > 50


def test_readme_sections_are_inserted():
    readme = hook("readme")
    text = readme.section("Two commands")
    assert text.startswith("With Python 3.11")
    assert "## " not in text
    list_item = readme.section("Segment photos")
    assert "\n    ```sh\n    python convert.py" in list_item
    assert "\n        --weights ade_faseg_r50.pth" in list_item  # a command's second line stays indented by four more
    assert "| forward of FASeg R50" in readme.section("Speed on a CPU")  # a heading of the third level
    with pytest.raises(ValueError, match=r"README.md has no section 'Three commands'; it has Two commands, "):
        readme.section("Three commands")


def test_readme_links_lead_to_pages_of_the_site():
    link = hook("readme")._site_link
    assert link("Weights", "docs/weights.md#out-of-it", "../") == "[Weights](../weights.md#out-of-it)"
    assert link("paper", "https://arxiv.org/abs/2204.01244", "") == "[paper](https://arxiv.org/abs/2204.01244)"
    assert link("the license", "LICENSE", "") == "the license (`LICENSE`)"


@pytest.mark.parametrize("page", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_fit_a_line(page):
    """On the site a code line of more characters breaks in the middle of a command."""
    blocks = re.findall(r"(?ms)^ *```sh\n(.*?)```", page.read_text("utf-8"))
    long_lines = [line for block in blocks for line in block.splitlines() if len(line) > 88]
    assert not long_lines, "\n".join(long_lines)


@pytest.mark.parametrize("page", [page for page in TEXTS if DOCS not in page.parents], ids=lambda path: path.name)
def test_links_outside_of_the_site_lead_to_files(page):
    """MkDocs checks those of its pages."""
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))]
    missing = [target for target in targets if not re.match("https?:", target) and not (page.parent / target).exists()]
    assert not missing


def test_readme_tree_names_every_chapter():
    tree = hook("readme").section("How it is laid out")
    package = ROOT / "fasseg_jax"
    folders = {path.parent.name for path in package.rglob("*.py")} - {package.name}
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    for name in {f"{folder}/" for folder in folders} | modules:
        assert re.search(rf"^ +{name} ", tree, re.MULTILINE), f"README.md: the tree does not have {name}"


def test_every_module_is_on_one_api_page():
    api = hook("api")
    marks = [mark for path in (DOCS / "api").glob("*.md") for mark in api.MARK.findall(path.read_text("utf-8"))]
    first = {chapter: tuple(names.split(", ")) if names else () for chapter, names in marks}
    listed = [module for chapter, _ in marks for module in api.modules_of(chapter, first[chapter])]
    assert len(listed) == len(set(listed))
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "fasseg_jax").rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    missing = ", ".join(sorted(modules - set(listed)))
    assert not missing, f"add '<!-- modules: CHAPTER -->' to a page in docs/api for {missing}"
    with pytest.raises(ValueError, match=r"fasseg_jax/models has no module fasseg_jax\.models\.nothing"):
        api.modules_of("models", ("nothing",))


def test_pictures_are_small_and_used():
    pictures = [path for path in (DOCS / "pictures").iterdir() if path.suffix != ".py"]
    assert sum(path.stat().st_size for path in pictures) < 1_000_000
    text = "\n".join(path.read_text("utf-8") for path in PAGES)
    unused = [path.name for path in pictures if f"pictures/{path.name}" not in text]
    assert not unused


# How others join


def test_version_is_said_once():
    assert pyproject()["project"]["dynamic"].count("version") == 1
    assert pyproject()["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "fasseg_jax.__version__"}
    assignments = re.findall(r'^__version__ = "(.+)"$', (ROOT / "fasseg_jax/__init__.py").read_text("utf-8"), re.M)
    assert assignments == [fasseg_jax.__version__]  # a plain string, which a build reads without importing JAX


def test_changelog_has_the_version():
    """A released version has a heading of its own; a version in development is under "Unreleased"."""
    headings = re.findall(r"(?m)^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"))
    released = "Unreleased" if ".dev" in fasseg_jax.__version__ else fasseg_jax.__version__
    assert headings[0] == "Unreleased"
    assert released in headings


def test_files_for_contributors_are_valid():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["preferred-citation"]["title"].startswith("Dynamic Focus-aware Positional Queries")
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))["jobs"]["check"]["steps"]
    assert steps[-1]["run"] == ".ci/run"
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        fields = yaml.safe_load(form.read_text("utf-8"))
        assert form.stem == "config" or {"name", "description", "body"} <= fields.keys()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff-check", "ruff-format", "mypy"]


def test_requirements_are_those_of_the_package_and_more():
    """requirements.txt has the packages that users ask for by name; the bounds are written twice, so compare them."""
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    pytest_version = [line for line in extras["test"] if line.startswith("pytest>")]
    assert listed == {*project["dependencies"], *extras["tfds"], *pytest_version}
    names = {re.split(r"[\[>]", line)[0] for line in listed}
    wanted = {"jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy", "ml-collections", "pytest"}
    assert wanted <= names


def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


# The site


class Requests(HTMLParser):
    """Collects what a browser would fetch from elsewhere to show a page; links to follow do not count."""

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
    """The site as CI builds it: with the notebook executed, and with every warning an error."""
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


@pytest.mark.slow
def test_site_asks_nothing_of_the_network(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        requests = Requests()
        requests.feed(page.read_text("utf-8"))
        assert not requests.found, f"{page.relative_to(site)} loads {requests.found}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text("utf-8")), style


@pytest.mark.slow
def test_site_holds_what_was_generated(site):
    configuration = (site / "configuration" / "index.html").read_text("utf-8")
    for name in flatten_dict(base_config().to_dict(), sep="."):
        assert f'id="{name}"' in configuration
    text = "\n".join(page.read_text("utf-8") for page in site.rglob("*.html"))
    for mark in ("<!-- README", "<!-- fields", "<!-- program", "<!-- recipes", "<!-- models"):
        assert mark not in text


@pytest.mark.slow
def test_notebook_learns_and_shows_pictures(site):
    page = (site / "notebook" / "tour" / "index.html").read_text("utf-8")
    mean_iou, chance = map(float, re.search(r"mIoU ([\d.]+); one class everywhere ([\d.]+)", page).groups())
    assert mean_iou > 2 * chance
    pictures = re.findall(r'<img alt="png" src="\.\./(tour_\d+_\d+\.png)"', page)
    assert len(pictures) == 4
    assert all((site / "notebook" / picture).stat().st_size > 10_000 for picture in pictures)


def test_mean_iou_is_in_percent_for_readers():
    """As the programs show it: 48.30, never 0.483."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        assert not re.search(r"mIoU[^.|]*\b0\.\d+", page.read_text("utf-8")), page
